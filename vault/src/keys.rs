//! The key hierarchy: the root key's sub-keys, the key-encryption keys, a data key per secret.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use claviger_vault_memory::SecretBytes;
use claviger_vault_protocol::{Binding, CredentialId};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::cipher;
use crate::encoding::{bucket, length_prefixed, unpad};
use crate::error::VaultError;

/// AES-256-GCM everywhere; a number so that a later suite cannot be taken for this one.
const SUITE: u32 = 1;
/// Smallest padded size of a secret.
const SECRET_FLOOR: usize = 128;

/// Sub-keys of the root key, each for one purpose.
#[derive(Debug)]
pub(crate) struct Keys {
    /// Wraps what the audit log keeps sealed.
    pub(crate) audit: SecretBytes,
    /// Authenticates header and stanzas.
    pub(crate) header: SecretBytes,
    /// Blinds identifiers that are names.
    pub(crate) index: SecretBytes,
    /// Wraps key-encryption keys, grant keys and the vault's private key.
    pub(crate) wrap: SecretBytes,
    /// Seals every row.
    pub(crate) metadata: SecretBytes,
    /// Seals the store root.
    pub(crate) store_root: SecretBytes,
}

impl Keys {
    /// Derives all sub-keys; the root key is not needed after.
    pub(crate) fn derive(vault: &str, root: &SecretBytes) -> Result<Self, VaultError> {
        let sub = |purpose: &str| {
            cipher::hkdf(
                root,
                &length_prefixed(&[b"claviger/root/v1", vault.as_bytes(), purpose.as_bytes()]),
            )
        };
        Ok(Self {
            audit: sub("audit")?,
            header: sub("header-mac")?,
            index: sub("blind-index")?,
            wrap: sub("wrap")?,
            metadata: sub("metadata")?,
            store_root: sub("store-root")?,
        })
    }

    /// An identifier that tells nothing of the name behind it.
    pub(crate) fn blind(&self, class: &str, name: &str) -> String {
        hex::encode(cipher::hmac(
            &self.index,
            &length_prefixed(&[class.as_bytes(), name.as_bytes()]),
        ))
    }

    /// Wraps a key for the store.
    pub(crate) fn wrap(
        &self,
        vault: &str,
        purpose: &str,
        id: &str,
        key: &SecretBytes,
    ) -> Result<String, VaultError> {
        let associated = length_prefixed(&[
            b"claviger/wrap/v1",
            vault.as_bytes(),
            purpose.as_bytes(),
            id.as_bytes(),
        ]);
        Ok(BASE64.encode(cipher::seal(&self.wrap, &associated, key.expose())?))
    }

    /// Unwraps a key of the store.
    pub(crate) fn unwrap(
        &self,
        vault: &str,
        purpose: &str,
        id: &str,
        wrapped: &str,
    ) -> Result<SecretBytes, VaultError> {
        let associated = length_prefixed(&[
            b"claviger/wrap/v1",
            vault.as_bytes(),
            purpose.as_bytes(),
            id.as_bytes(),
        ]);
        let altered =
            || VaultError::StoreTampered(format!("the wrapped key {purpose} {id} does not open"));
        let wrapped = BASE64.decode(wrapped).map_err(|_| altered())?;
        cipher::open(&self.wrap, &associated, &wrapped).map_err(|_| altered())
    }
}

/// A key-encryption key as stored.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct StoredKek {
    /// From 1.
    pub(crate) generation: u32,
    /// Base64, under the root key's wrapping sub-key.
    pub(crate) wrapped: String,
}

/// The key-encryption keys; the greatest generation wraps what is new.
#[derive(Debug, Default)]
pub(crate) struct Keyring {
    keks: BTreeMap<u32, SecretBytes>,
}

/// What a secret's ciphertext is bound to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    /// The vault.
    pub(crate) vault: &'a str,
    /// The credential.
    pub(crate) credential: &'a CredentialId,
    /// The secret's version.
    pub(crate) version: u32,
    /// The credential's binding: a ciphertext moved under another one does not open.
    pub(crate) binding: &'a Binding,
}

/// One secret as stored.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct SealedSecret {
    suite: u32,
    generation: u32,
    /// Base64 of the data key under the key-encryption key.
    key: String,
    /// Base64 of the padded secret under the data key.
    body: String,
}

impl Keyring {
    /// Makes generation `generation` and tells how to store it.
    pub(crate) fn generate(
        &mut self,
        keys: &Keys,
        vault: &str,
        generation: u32,
    ) -> Result<StoredKek, VaultError> {
        let kek = SecretBytes::random(32)?;
        let wrapped = keys.wrap(vault, "kek", &generation.to_string(), &kek)?;
        self.keks.insert(generation, kek);
        Ok(StoredKek {
            generation,
            wrapped,
        })
    }

    /// Takes a stored generation in.
    pub(crate) fn restore(
        &mut self,
        keys: &Keys,
        vault: &str,
        stored: &StoredKek,
    ) -> Result<(), VaultError> {
        let kek = keys.unwrap(
            vault,
            "kek",
            &stored.generation.to_string(),
            &stored.wrapped,
        )?;
        self.keks.insert(stored.generation, kek);
        Ok(())
    }

    /// Seals a secret under a fresh data key that seals nothing else.
    pub(crate) fn seal(
        &self,
        place: Place<'_>,
        secret: &SecretBytes,
    ) -> Result<SealedSecret, VaultError> {
        let (&generation, kek) = self
            .keks
            .last_key_value()
            .ok_or_else(|| VaultError::Seal("no key-encryption key".to_owned()))?;
        let data_key = SecretBytes::random(32)?;
        let mut padded = SecretBytes::new_zeroed(bucket(secret.len(), SECRET_FLOOR))?;
        let (head, rest) = padded.expose_mut().split_at_mut(4);
        head.copy_from_slice(
            &u32::try_from(secret.len())
                .unwrap_or(u32::MAX)
                .to_be_bytes(),
        );
        rest[..secret.len()].copy_from_slice(secret.expose());
        Ok(SealedSecret {
            suite: SUITE,
            generation,
            key: BASE64.encode(cipher::seal(
                kek,
                &place.associated("data-key", generation)?,
                data_key.expose(),
            )?),
            body: BASE64.encode(cipher::seal(
                &data_key,
                &place.associated("secret", generation)?,
                padded.expose(),
            )?),
        })
    }

    /// Opens a secret; only on its way into a grant's ciphertext.
    pub(crate) fn open(
        &self,
        place: Place<'_>,
        sealed: &SealedSecret,
    ) -> Result<SecretBytes, VaultError> {
        let altered = || {
            let (credential, version) = (place.credential, place.version);
            VaultError::StoreTampered(format!(
                "the secret of {credential}, version {version}, does not open"
            ))
        };
        if sealed.suite != SUITE {
            return Err(altered());
        }
        let kek = self.keks.get(&sealed.generation).ok_or_else(altered)?;
        let key = BASE64.decode(&sealed.key).map_err(|_| altered())?;
        let body = BASE64.decode(&sealed.body).map_err(|_| altered())?;
        let data_key = cipher::open(kek, &place.associated("data-key", sealed.generation)?, &key)
            .map_err(|_| altered())?;
        let padded = cipher::open(
            &data_key,
            &place.associated("secret", sealed.generation)?,
            &body,
        )
        .map_err(|_| altered())?;
        Ok(SecretBytes::copy_of(unpad(padded.expose())?)?)
    }
}

impl Place<'_> {
    fn associated(&self, purpose: &str, generation: u32) -> Result<Vec<u8>, VaultError> {
        let binding = serde_json::to_vec(self.binding)
            .map_err(|error| VaultError::Seal(error.to_string()))?;
        Ok(length_prefixed(&[
            b"claviger/secret/v1",
            &SUITE.to_be_bytes(),
            self.vault.as_bytes(),
            self.credential.as_str().as_bytes(),
            &self.version.to_be_bytes(),
            purpose.as_bytes(),
            &generation.to_be_bytes(),
            &Sha256::digest(&binding),
        ]))
    }
}

#[cfg(test)]
mod tests {
    use claviger_vault_protocol::{Destination, Slot};

    use super::*;

    fn binding(host: &str) -> Binding {
        Binding {
            destination: Destination::parse(host).unwrap(),
            methods: vec![],
            path_prefixes: vec![],
            slot: Slot::Query {
                name: "key".to_owned(),
            },
        }
    }

    fn ring() -> (Keys, Keyring, StoredKek) {
        let keys = Keys::derive("vault_1", &SecretBytes::random(32).unwrap()).unwrap();
        let mut ring = Keyring::default();
        let stored = ring.generate(&keys, "vault_1", 1).unwrap();
        (keys, ring, stored)
    }

    #[test]
    fn a_secret_opens_only_in_its_place() {
        let (_, ring, _) = ring();
        let (credential, other) = (CredentialId::from("vcrd_1"), CredentialId::from("vcrd_2"));
        let (here, there) = (binding("api.example.com"), binding("evil.example.com"));
        let place = Place {
            vault: "vault_1",
            credential: &credential,
            version: 1,
            binding: &here,
        };
        let sealed = ring
            .seal(place, &SecretBytes::copy_of(b"the secret itself").unwrap())
            .unwrap();
        assert!(
            ring.open(place, &sealed)
                .unwrap()
                .is_equal(b"the secret itself")
        );
        for moved in [
            Place {
                vault: "vault_2",
                ..place
            },
            Place {
                credential: &other,
                ..place
            },
            Place {
                version: 2,
                ..place
            },
            Place {
                binding: &there,
                ..place
            },
        ] {
            assert!(ring.open(moved, &sealed).is_err(), "{moved:?}");
        }
    }

    #[test]
    fn the_stored_size_tells_only_the_bucket() {
        let (_, ring, _) = ring();
        let (credential, here) = (CredentialId::from("vcrd_1"), binding("api.example.com"));
        let place = Place {
            vault: "vault_1",
            credential: &credential,
            version: 1,
            binding: &here,
        };
        let size = |len: usize| {
            ring.seal(place, &SecretBytes::copy_of(&vec![7; len]).unwrap())
                .unwrap()
                .body
                .len()
        };
        assert_eq!(size(1), size(100));
        assert!(size(100) < size(200));
    }

    #[test]
    fn a_restored_keyring_opens_what_the_first_one_sealed() {
        let (keys, ring, stored) = ring();
        let (credential, here) = (CredentialId::from("vcrd_1"), binding("api.example.com"));
        let place = Place {
            vault: "vault_1",
            credential: &credential,
            version: 1,
            binding: &here,
        };
        let sealed = ring
            .seal(place, &SecretBytes::copy_of(b"the secret itself").unwrap())
            .unwrap();
        let mut restored = Keyring::default();
        restored.restore(&keys, "vault_1", &stored).unwrap();
        assert!(
            restored
                .open(place, &sealed)
                .unwrap()
                .is_equal(b"the secret itself")
        );
        let stranger = Keys::derive("vault_1", &SecretBytes::random(32).unwrap()).unwrap();
        assert!(
            Keyring::default()
                .restore(&stranger, "vault_1", &stored)
                .is_err()
        );
    }
}
