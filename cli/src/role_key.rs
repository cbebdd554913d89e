//! The keys by which roles that run by themselves prove who they are: made by `init`, one for each
//! link and client role, and opened nowhere but here.

use std::fmt;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use claviger_vault_memory::SecretBytes;
use hmac::{Hmac, KeyInit as _};
use sha2::Sha256;

use crate::error::{CliError, Exit};

const ROLE_KEY_BYTES: usize = 32;

/// A role key.
#[derive(Debug)]
pub(crate) struct RoleKey(SecretBytes);

impl RoleKey {
    /// Reads a key file, which must be its owner's alone.
    pub(crate) fn read(path: &Path) -> Result<Self, CliError> {
        let unusable = |why: &dyn fmt::Display| {
            CliError::new(
                Exit::Config,
                "role_key_unusable",
                format!("{} is no role key", path.display()),
            )
            .because(why)
        };
        let metadata = match std::fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(CliError::new(
                    Exit::Config,
                    "role_key_missing",
                    format!("there is no role key in {}", path.display()),
                )
                .because("a role that runs by itself proves to others who it is")
                .fix("copy it from where `claviger init` made it; both ends need the same"));
            }
            Err(error) => return Err(CliError::file("reading", path, &error)),
        };
        let own = rustix::process::getuid().as_raw();
        if metadata.permissions().mode() & 0o077 != 0 {
            return Err(unusable(&"others than its owner can use it")
                .fix(format!("chmod 600 {}", path.display())));
        }
        if metadata.uid() != own && metadata.uid() != 0 {
            return Err(unusable(&"it belongs to another user"));
        }
        let mut bytes =
            std::fs::read(path).map_err(|error| CliError::file("reading", path, &error))?;
        let key = SecretBytes::from_mut_slice_wiping(&mut bytes)
            .map_err(|error| CliError::internal("keeping a role key").because(error))?;
        if key.len() != ROLE_KEY_BYTES {
            return Err(unusable(&format!("it has not {ROLE_KEY_BYTES} bytes")));
        }
        Ok(Self(key))
    }

    #[cfg(test)]
    pub(crate) fn of(byte: u8) -> Self {
        Self(SecretBytes::copy_of(&[byte; ROLE_KEY_BYTES]).unwrap())
    }

    /// Starts an authentication code under this key.
    pub(crate) fn mac(&self) -> Option<Hmac<Sha256>> {
        Hmac::<Sha256>::new_from_slice(self.0.expose()).ok()
    }
}

/// Makes a key for every link; a key that is there stays.
#[cfg(feature = "operate")]
pub(crate) fn make_all(home: &crate::home::Home) -> Result<(), CliError> {
    crate::links::make_private_directory(&home.role_keys())?;
    for rule in &crate::links::LINKS {
        let path = rule.key_file(home);
        if path.exists() {
            continue;
        }
        let key = SecretBytes::random(ROLE_KEY_BYTES)
            .map_err(|error| CliError::internal("randomness").because(error))?;
        crate::home::write_private(&path, key.expose())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_that_others_can_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let code = |path: &Path| RoleKey::read(path).unwrap_err().code;
        assert_eq!(code(&path), "role_key_missing");
        std::fs::write(&path, [1_u8; ROLE_KEY_BYTES]).unwrap();
        let mode =
            |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        mode(0o640);
        assert_eq!(code(&path), "role_key_unusable");
        mode(0o600);
        RoleKey::read(&path).unwrap();
        std::fs::write(&path, [1_u8; ROLE_KEY_BYTES - 1]).unwrap();
        assert_eq!(code(&path), "role_key_unusable");
    }
}
