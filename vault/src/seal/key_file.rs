//! The key-file seal: 32 random bytes beside the store, readable by their owner alone.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use claviger_vault_memory::SecretBytes;

use crate::error::VaultError;

/// Length of the file.
const LENGTH: usize = 32;

/// Where the key file of a store is.
pub(crate) fn path(directory: &Path) -> PathBuf {
    directory.join("seal.key")
}

/// Makes the file, which must not exist, and makes it durable before anything depends on it.
pub(crate) fn create(directory: &Path) -> Result<SecretBytes, VaultError> {
    let path = path(directory);
    let key = SecretBytes::random(LENGTH)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o400)
        .custom_flags(NO_FOLLOW)
        .open(&path)
        .map_err(VaultError::file(&path))?;
    file.write_all(key.expose())
        .map_err(VaultError::file(&path))?;
    file.sync_all().map_err(VaultError::file(&path))?;
    File::open(directory)
        .and_then(|folder| folder.sync_all())
        .map_err(VaultError::file(directory))?;
    Ok(key)
}

/// Reads the file: a regular file of our own, of the right length, closed to everyone else.
pub(crate) fn read(directory: &Path) -> Result<SecretBytes, VaultError> {
    let path = path(directory);
    let refused = |what: &str| VaultError::File {
        path: path.clone(),
        what: what.to_owned(),
    };
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(NO_FOLLOW)
        .open(&path)
        .map_err(VaultError::file(&path))?;
    let metadata = file.metadata().map_err(VaultError::file(&path))?;
    if !metadata.is_file() {
        return Err(refused("is no regular file"));
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(refused(
            "belongs to another user; chown it to the vault's user",
        ));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(refused("is open to other users; chmod 0400"));
    }
    if metadata.len() != LENGTH as u64 {
        return Err(refused("is not 32 bytes long"));
    }
    let mut key = SecretBytes::new_zeroed(LENGTH)?;
    file.read_exact(key.expose_mut())
        .map_err(VaultError::file(&path))?;
    Ok(key)
}

/// `O_NOFOLLOW`: a link in the place of the key is refused.
const NO_FOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions};

    use super::*;

    #[test]
    fn a_created_key_reads_back_and_is_never_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let key = create(directory.path()).unwrap();
        assert!(read(directory.path()).unwrap().is_equal(key.expose()));
        let mode = std::fs::metadata(path(directory.path()))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o400);
        assert!(create(directory.path()).is_err());
        assert!(read(directory.path()).unwrap().is_equal(key.expose()));
    }

    #[test]
    fn a_key_file_that_others_may_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        create(directory.path()).unwrap();
        set_permissions(path(directory.path()), Permissions::from_mode(0o440)).unwrap();
        let error = read(directory.path()).unwrap_err();
        assert!(error.to_string().contains("chmod 0400"), "{error}");
    }

    #[test]
    fn a_link_a_directory_and_a_short_file_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let elsewhere = directory.path().join("elsewhere");
        std::fs::write(&elsewhere, [7; 32]).unwrap();
        set_permissions(&elsewhere, Permissions::from_mode(0o400)).unwrap();
        std::os::unix::fs::symlink(&elsewhere, path(directory.path())).unwrap();
        assert!(read(directory.path()).is_err());
        std::fs::remove_file(path(directory.path())).unwrap();
        std::fs::create_dir(path(directory.path())).unwrap();
        assert!(read(directory.path()).is_err());
        std::fs::remove_dir(path(directory.path())).unwrap();
        std::fs::write(path(directory.path()), [7; 31]).unwrap();
        set_permissions(path(directory.path()), Permissions::from_mode(0o400)).unwrap();
        assert!(read(directory.path()).is_err());
    }
}
