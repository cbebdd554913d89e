//! Where everything lives: one directory under `CLAVIGER_HOME`, the XDG places otherwise.

use std::ffi::OsString;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use crate::error::{CliError, Exit};

/// The places of one installation.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    /// Stores, tool definitions, the API key.
    pub(crate) data: PathBuf,
    /// `config.toml`.
    pub(crate) config_file: PathBuf,
    /// Sockets and the state of a running `up`.
    pub(crate) run: PathBuf,
    /// One log a role.
    pub(crate) log: PathBuf,
}

impl Home {
    /// A home with everything under one directory.
    pub(crate) fn at(root: &Path) -> Self {
        Self {
            data: root.to_owned(),
            config_file: root.join("config.toml"),
            run: root.join("run"),
            log: root.join("log"),
        }
    }

    /// The home that the environment names.
    pub(crate) fn from_environment() -> Result<Self, CliError> {
        let named = |name: &str| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        if let Some(root) = named("CLAVIGER_HOME") {
            let root = std::path::absolute(&root)
                .map_err(|error| CliError::file("resolving", &root, &error))?;
            return Ok(Self::at(&root));
        }
        let user = named("HOME").ok_or_else(|| {
            CliError::new(
                Exit::Config,
                "no_home",
                "neither CLAVIGER_HOME nor HOME is set",
            )
            .fix("CLAVIGER_HOME=DIR claviger ..")
        })?;
        let data = named("XDG_DATA_HOME")
            .unwrap_or_else(|| user.join(".local/share"))
            .join("claviger");
        let state = named("XDG_STATE_HOME")
            .unwrap_or_else(|| user.join(".local/state"))
            .join("claviger");
        let run =
            named("XDG_RUNTIME_DIR").map_or_else(|| data.join("run"), |dir| dir.join("claviger"));
        Ok(Self {
            config_file: named("XDG_CONFIG_HOME")
                .unwrap_or_else(|| user.join(".config"))
                .join("claviger/config.toml"),
            log: state.join("log"),
            run,
            data,
        })
    }

    pub(crate) fn vault(&self) -> PathBuf {
        self.data.join("vault")
    }

    pub(crate) fn audit(&self) -> PathBuf {
        self.vault().join("audit")
    }

    pub(crate) fn vault_key(&self) -> PathBuf {
        self.data.join("vault.pub")
    }

    pub(crate) fn session(&self) -> PathBuf {
        self.data.join("session")
    }

    pub(crate) fn tools(&self) -> PathBuf {
        self.data.join("tools")
    }

    pub(crate) fn api_key(&self) -> PathBuf {
        self.data.join("api-key")
    }

    /// The first key's identifier, beside it: what a permit names.
    pub(crate) fn api_key_id(&self) -> PathBuf {
        self.data.join("api-key.id")
    }

    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.run.join(format!("{name}.sock"))
    }

    /// What a running `up` wrote when it was ready.
    pub(crate) fn up_file(&self) -> PathBuf {
        self.run.join("up.json")
    }

    pub(crate) fn lock_file(&self) -> PathBuf {
        self.data.join("lock")
    }

    /// Held by whoever runs one role of this home.
    pub(crate) fn role_lock(&self, name: &str) -> PathBuf {
        self.data.join(format!("lock-{name}"))
    }

    /// Sockets between roles that run by themselves.
    pub(crate) fn links(&self) -> PathBuf {
        self.run.join("links")
    }

    /// One key a link, for roles that run by themselves.
    pub(crate) fn role_keys(&self) -> PathBuf {
        self.data.join("role-keys")
    }

    /// Whether `init` has been here.
    pub(crate) fn is_initialised(&self) -> bool {
        self.vault_key().exists()
    }

    /// Makes the directories, readable by the owner alone.
    pub(crate) fn create(&self) -> Result<(), CliError> {
        let config_directory = self.config_file.parent().map(Path::to_owned);
        let directories = [
            Some(self.data.clone()),
            Some(self.run.clone()),
            Some(self.log.clone()),
            Some(self.tools()),
            config_directory,
        ];
        for directory in directories.into_iter().flatten() {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&directory)
                .map_err(|error| CliError::file("creating", &directory, &error))?;
        }
        Ok(())
    }

    /// Arguments that name this home to another process of ours.
    pub(crate) fn as_environment(&self) -> Vec<(&'static str, OsString)> {
        vec![
            ("CLAVIGER_DATA", self.data.clone().into()),
            ("CLAVIGER_CONFIG", self.config_file.clone().into()),
            ("CLAVIGER_RUN", self.run.clone().into()),
            ("CLAVIGER_LOGS", self.log.clone().into()),
        ]
    }

    /// The home that [`Home::as_environment`] named, else [`Home::from_environment`].
    pub(crate) fn inherited() -> Result<Self, CliError> {
        let named = |name: &str| std::env::var_os(name).map(PathBuf::from);
        match (
            named("CLAVIGER_DATA"),
            named("CLAVIGER_CONFIG"),
            named("CLAVIGER_RUN"),
            named("CLAVIGER_LOGS"),
        ) {
            (Some(data), Some(config_file), Some(run), Some(log)) => Ok(Self {
                data,
                config_file,
                run,
                log,
            }),
            _ => Self::from_environment(),
        }
    }
}

/// Writes a file for its owner alone, whole or not at all.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), CliError> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let temporary = path.with_extension(format!("new-{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(|error| {
        drop(std::fs::remove_file(&temporary));
        CliError::file("writing", path, &error)
    })
}
