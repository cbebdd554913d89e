//! The tool definitions of this home, read again when their files change.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tracing::warn;

use crate::definition::Definition;

/// Largest definition file that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// What tells one version of a file from another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    modified: Option<SystemTime>,
    bytes: u64,
}

type Entry = (Stamp, Option<Arc<Definition>>);

/// The definitions in one directory, by name.
#[derive(Debug)]
pub(crate) struct Catalog {
    directory: PathBuf,
    known: Mutex<HashMap<String, Entry>>,
}

impl Catalog {
    /// The definitions of a directory, which need not exist yet.
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            known: Mutex::default(),
        }
    }

    /// All usable definitions as their files are now, sorted by name.
    ///
    /// What is answered is what was hashed: a file that changes later changes nothing here.
    pub(crate) async fn definitions(self: &Arc<Self>) -> Vec<Arc<Definition>> {
        let catalog = Arc::clone(self);
        tokio::task::spawn_blocking(move || catalog.read())
            .await
            .unwrap_or_default()
    }

    /// A tool by its full name among the definitions last read.
    pub(crate) fn last_read(&self) -> Vec<Arc<Definition>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        sorted(&known)
    }

    fn read(&self) -> Vec<Arc<Definition>> {
        let mut found = HashMap::new();
        for (name, path, stamp) in files(&self.directory) {
            let earlier = self
                .known
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get(&name)
                .cloned();
            let entry = match earlier {
                Some((old, definition)) if old == stamp => (old, definition),
                _ => (stamp, load(&name, &path)),
            };
            found.insert(name, entry);
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        *known = found;
        sorted(&known)
    }
}

fn sorted(known: &HashMap<String, Entry>) -> Vec<Arc<Definition>> {
    let mut definitions: Vec<_> = known
        .values()
        .filter_map(|(_, definition)| definition.clone())
        .collect();
    definitions.sort_by(|a, b| a.name().cmp(b.name()));
    definitions
}

fn files(directory: &Path) -> Vec<(String, PathBuf, Stamp)> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let name = path
                .file_name()?
                .to_str()?
                .strip_suffix(".toml")?
                .to_owned();
            let metadata = std::fs::metadata(&path).ok()?;
            let stamp = Stamp {
                modified: metadata.modified().ok(),
                bytes: metadata.len(),
            };
            (metadata.is_file() && stamp.bytes <= MAX_FILE_BYTES).then_some((name, path, stamp))
        })
        .collect()
}

fn load(name: &str, path: &Path) -> Option<Arc<Definition>> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| warn!(name, %error, "tool definition is not readable"))
        .ok()?;
    match Definition::parse(name, &text) {
        Ok(definition) => Some(Arc::new(definition)),
        Err(error) => {
            warn!(%error, "tool definition is not usable");
            None
        }
    }
}
