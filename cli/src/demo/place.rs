//! Where the demo lives, and how nothing of it is left.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::CliError;
use crate::home::Home;

/// Where the demo lives: a directory of its own, removed at the end unless it is kept.
pub(super) struct Place {
    pub(super) root: PathBuf,
    /// Sockets have short paths; a kept directory may not.
    run: PathBuf,
    keep: bool,
}

impl Place {
    pub(super) fn make(keep: Option<PathBuf>) -> Result<Self, CliError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let make = |path: &Path| {
            std::fs::DirBuilder::new()
                .mode(0o700)
                .create(path)
                .map_err(|error| {
                    let failed = CliError::file("creating", path, &error);
                    if error.kind() == std::io::ErrorKind::AlreadyExists {
                        failed.fix("--keep wants a directory that does not exist yet")
                    } else {
                        failed
                    }
                })
        };
        // Not guessable: the temporary directory may be shared.
        // A socket's path has at most 107 bytes: a long TMPDIR gives way to the usual place.
        let mut temporary = std::env::temp_dir();
        if temporary.as_os_str().len() > 60 {
            temporary = PathBuf::from("/tmp");
        }
        let name = random("claviger-demo-")?;
        let run = temporary.join(name.get(..24).unwrap_or(&name));
        make(&run)?;
        let root = match &keep {
            Some(path) => std::path::absolute(path)
                .map_err(|error| CliError::file("resolving", path, &error))?,
            None => run.join("home"),
        };
        let place = Self {
            root,
            run,
            keep: keep.is_some(),
        };
        make(&place.root)?;
        for part in ["upstream", "model", "run"] {
            let parent = if part == "run" {
                &place.run
            } else {
                &place.root
            };
            make(&parent.join(part))?;
        }
        Ok(place)
    }

    /// Removes what is not kept, once the roles that still write to it have ended.
    pub(super) async fn clear(&self) {
        for _ in 0..100 {
            drop(std::fs::remove_dir_all(&self.run));
            tokio::time::sleep(Duration::from_millis(50)).await;
            if !self.run.exists() {
                return;
            }
        }
    }

    pub(super) fn home(&self) -> Home {
        let mut home = Home::at(&self.root);
        home.run = self.run.join("run");
        home
    }

    pub(super) fn kept(&self) -> Option<&Path> {
        self.keep.then_some(self.root.as_path())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.run));
    }
}

/// A random text with a recognisable start.
pub(super) fn random(prefix: &str) -> Result<String, CliError> {
    let mut bytes = [0_u8; 20];
    getrandom::fill(&mut bytes).map_err(|error| CliError::internal("randomness").because(error))?;
    Ok(format!("{prefix}{}", hex::encode(bytes)))
}
