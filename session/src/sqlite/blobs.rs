//! Large payloads, each in a file named by its hash.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use crate::error::SessionError;
use crate::event::Draft;

/// Payloads above this size leave the database.
const INLINE_BYTES: usize = 64 * 1024;

/// The directory of blobs.
#[derive(Clone, Debug)]
pub(super) struct Blobs {
    directory: Arc<Path>,
}

impl Blobs {
    /// Opens the directory beside the database, making it when absent.
    pub(super) fn open(store: &Path) -> Result<Self, SessionError> {
        let directory = store.join("blobs");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .and_then(|()| sync_directory(store))
            .map_err(|e| SessionError::store("make the directory of blobs", e))?;
        Ok(Self {
            directory: directory.into(),
        })
    }

    /// Says whether a payload is kept as a blob.
    pub(super) fn takes(text: &str) -> bool {
        text.len() > INLINE_BYTES
    }

    /// Makes every large payload durable and notes its name in the draft.
    pub(super) fn store_all(&self, drafts: &mut [Draft]) -> Result<(), SessionError> {
        for draft in drafts.iter_mut().filter(|draft| Self::takes(&draft.text)) {
            let name = hex::encode(Sha256::digest(draft.text.as_bytes()));
            self.store(&name, draft.text.as_bytes())
                .map_err(|e| SessionError::store("write a blob", e))?;
            draft.blob = Some(name);
        }
        Ok(())
    }

    /// Reads a payload and checks that it is the one that was written.
    pub(super) fn load(&self, name: &str) -> Result<String, SessionError> {
        let bytes = fs::read(self.path(name)).map_err(|e| SessionError::store("read a blob", e))?;
        if hex::encode(Sha256::digest(&bytes)) != name {
            return Err(SessionError::Store(format!("blob {name} was altered")));
        }
        String::from_utf8(bytes).map_err(|e| SessionError::store("read a blob", e))
    }

    fn store(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.path(name);
        let parent = path.parent().unwrap_or(&self.directory).to_owned();
        if fs::metadata(&path).is_ok_and(|m| m.len() == bytes.len() as u64) {
            // Another writer may have renamed it without having synced the directory yet.
            return sync_directory(&parent);
        }
        if !parent.exists() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&parent)?;
            sync_directory(&self.directory)?;
        }
        let draft = parent.join(format!("{name}.{}", uuid::Uuid::now_v7().simple()));
        let written = write_synced(&draft, bytes)
            .and_then(|()| fs::rename(&draft, &path))
            .and_then(|()| sync_directory(&parent));
        if written.is_err() {
            // Best effort: the error that matters is the first one.
            drop(fs::remove_file(&draft));
        }
        written
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory
            .join(name.get(..2).unwrap_or_default())
            .join(name)
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes new names in a directory durable.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    // A relative path of one part has an empty parent.
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    File::open(path)?.sync_all()
}
