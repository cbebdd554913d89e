//! Seals: each wraps the same root key on its own, so that one more never touches what is stored.

pub(crate) mod key_file;
pub(crate) mod passphrase;

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use claviger_vault_memory::SecretBytes;
use serde::{Deserialize, Serialize};

use crate::cipher;
use crate::encoding::length_prefixed;
use crate::error::VaultError;
use passphrase::Derivation;

/// What a seal is opened with.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Input<'a> {
    /// The directory that holds the key file.
    KeyFile(&'a Path),
    /// A passphrase.
    Passphrase(&'a SecretBytes),
}

/// One seal as stored.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Stanza {
    /// Random; names the row.
    pub(crate) id: String,
    kind: Kind,
    /// Hex commitment to the wrapping key: a wrong input is told from an altered stanza, and one
    /// ciphertext cannot answer for two keys.
    commitment: String,
    /// Base64 of the root key under the wrapping key.
    wrapped: String,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
enum Kind {
    KeyFile,
    Passphrase { derivation: Derivation },
}

impl Stanza {
    /// Wraps the root key.
    pub(crate) fn wrap(
        vault: &str,
        input: Input<'_>,
        root: &SecretBytes,
    ) -> Result<Self, VaultError> {
        let kind = match input {
            Input::KeyFile(_) => Kind::KeyFile,
            Input::Passphrase(passphrase) if passphrase.len() < passphrase::SHORTEST => {
                return Err(VaultError::Seal(format!(
                    "a passphrase has at least {} bytes",
                    passphrase::SHORTEST
                )));
            }
            Input::Passphrase(_) => Kind::Passphrase {
                derivation: Derivation::fresh()?,
            },
        };
        let mut stanza = Self {
            id: format!("seal_{}", uuid::Uuid::new_v4().simple()),
            kind,
            commitment: String::new(),
            wrapped: String::new(),
        };
        let key = stanza.wrapping_key(vault, input)?;
        stanza.commitment = commitment(&key)?;
        stanza.wrapped = BASE64.encode(cipher::seal(
            &key,
            &stanza.associated(vault)?,
            root.expose(),
        )?);
        Ok(stanza)
    }

    /// Unwraps the root key; none where the input is not this stanza's.
    ///
    /// # Errors
    /// [`VaultError::StoreTampered`] where the input is right and the stanza is not.
    pub(crate) fn unwrap(
        &self,
        vault: &str,
        input: Input<'_>,
    ) -> Result<Option<SecretBytes>, VaultError> {
        if !self.takes(input) {
            return Ok(None);
        }
        let key = self.wrapping_key(vault, input)?;
        if !is_same(&commitment(&key)?, &self.commitment) {
            return Ok(None);
        }
        let altered = || VaultError::StoreTampered(format!("stanza {} does not open", self.id));
        let wrapped = BASE64.decode(&self.wrapped).map_err(|_| altered())?;
        cipher::open(&key, &self.associated(vault)?, &wrapped)
            .map(Some)
            .map_err(|_| altered())
    }

    /// Whether this seal is opened with such an input.
    pub(crate) fn takes(&self, input: Input<'_>) -> bool {
        matches!(
            (&self.kind, input),
            (Kind::KeyFile, Input::KeyFile(_)) | (Kind::Passphrase { .. }, Input::Passphrase(_))
        )
    }

    /// The seal's name in `status`.
    pub(crate) fn kind(&self) -> &'static str {
        match self.kind {
            Kind::KeyFile => "key_file",
            Kind::Passphrase { .. } => "passphrase",
        }
    }

    fn wrapping_key(&self, vault: &str, input: Input<'_>) -> Result<SecretBytes, VaultError> {
        let material = match (&self.kind, input) {
            (Kind::KeyFile, Input::KeyFile(directory)) => key_file::read(directory)?,
            (Kind::Passphrase { derivation }, Input::Passphrase(passphrase)) => {
                derivation.derive(passphrase)?
            }
            _ => {
                return Err(VaultError::Seal(
                    "this input belongs to another kind of seal".to_owned(),
                ));
            }
        };
        let info = length_prefixed(&[
            b"claviger/seal/v1",
            vault.as_bytes(),
            self.id.as_bytes(),
            self.kind().as_bytes(),
        ]);
        Ok(cipher::hkdf(&material, &info)?)
    }

    fn associated(&self, vault: &str) -> Result<Vec<u8>, VaultError> {
        let kind =
            serde_json::to_vec(&self.kind).map_err(|error| VaultError::Seal(error.to_string()))?;
        Ok(length_prefixed(&[
            b"claviger/stanza/v1",
            vault.as_bytes(),
            self.id.as_bytes(),
            &kind,
            self.commitment.as_bytes(),
        ]))
    }
}

/// Hex commitment to a key.
pub(crate) fn commitment(key: &SecretBytes) -> Result<String, VaultError> {
    Ok(hex::encode(
        cipher::hkdf(key, b"claviger/commitment/v1")?.expose(),
    ))
}

/// Compares two commitments in constant time.
pub(crate) fn is_same(one: &str, other: &str) -> bool {
    use subtle::ConstantTimeEq as _;
    one.as_bytes().ct_eq(other.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passphrase(text: &str) -> SecretBytes {
        SecretBytes::copy_of(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_key_file_unwraps_the_root_key_only_for_its_vault_and_stanza() {
        let directory = tempfile::tempdir().unwrap();
        key_file::create(directory.path()).unwrap();
        let root = SecretBytes::random(32).unwrap();
        let input = Input::KeyFile(directory.path());
        let stanza = Stanza::wrap("vault_1", input, &root).unwrap();
        assert!(
            stanza
                .unwrap("vault_1", input)
                .unwrap()
                .unwrap()
                .is_equal(root.expose())
        );
        assert!(stanza.unwrap("vault_2", input).unwrap().is_none());
        let moved = Stanza {
            id: "seal_other".to_owned(),
            ..stanza
        };
        assert!(moved.unwrap("vault_1", input).unwrap().is_none());
    }

    #[test]
    fn a_wrong_passphrase_is_told_from_an_altered_stanza() {
        let root = SecretBytes::random(32).unwrap();
        let right = passphrase("correct horse");
        let stanza = Stanza::wrap("vault_1", Input::Passphrase(&right), &root).unwrap();
        assert!(
            stanza
                .unwrap("vault_1", Input::Passphrase(&passphrase("wrong horse")))
                .unwrap()
                .is_none()
        );
        let mut wrapped = BASE64.decode(&stanza.wrapped).unwrap();
        wrapped[20] ^= 1;
        let altered = Stanza {
            wrapped: BASE64.encode(wrapped),
            ..stanza
        };
        let error = altered
            .unwrap("vault_1", Input::Passphrase(&right))
            .unwrap_err();
        assert!(matches!(error, VaultError::StoreTampered(_)));
    }

    #[test]
    fn a_passphrase_of_seven_bytes_is_refused() {
        let root = SecretBytes::random(32).unwrap();
        assert!(Stanza::wrap("vault_1", Input::Passphrase(&passphrase("1234567")), &root).is_err());
    }
}
