//! The passphrase seal and the operator's verifier: argon2id, with bounds on stored parameters.

use argon2::{Algorithm, Argon2, Block, Params, Version};
use claviger_vault_memory::{SecretBytes, wipe_stack};
use serde::{Deserialize, Serialize};
use zeroize::Zeroize as _;

use crate::error::VaultError;

/// Stored parameters of one derivation.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Derivation {
    /// Hex of 16 random bytes.
    salt: String,
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

/// Shortest passphrase that is taken: argon2id buys time, not entropy.
pub(crate) const SHORTEST: usize = 8;

/// Bounds: a stored header may neither weaken the derivation nor exhaust the machine.
const MEMORY_KIB: std::ops::RangeInclusive<u32> = 19 * 1024..=1024 * 1024;
const PASSES: std::ops::RangeInclusive<u32> = 2..=16;
const LANES: std::ops::RangeInclusive<u32> = 1..=4;

impl Derivation {
    /// The default cost (64 MiB, 3 passes) with a fresh salt.
    pub(crate) fn fresh() -> Result<Self, VaultError> {
        let mut salt = [0_u8; 16];
        getrandom::fill(&mut salt)
            .map_err(|error| VaultError::Seal(format!("no randomness: {error}")))?;
        Ok(Self {
            salt: hex::encode(salt),
            memory_kib: 64 * 1024,
            passes: 3,
            lanes: 1,
        })
    }

    /// Derives 32 bytes; takes about half a second, so call it off the async threads.
    pub(crate) fn derive(&self, passphrase: &SecretBytes) -> Result<SecretBytes, VaultError> {
        let refused =
            |what: &str| VaultError::Seal(format!("stored passphrase parameters: {what}"));
        if !MEMORY_KIB.contains(&self.memory_kib) {
            return Err(refused("memory is out of bounds"));
        }
        if !PASSES.contains(&self.passes) || !LANES.contains(&self.lanes) {
            return Err(refused("passes or lanes are out of bounds"));
        }
        let salt = hex::decode(&self.salt).map_err(|_| refused("salt is no hex"))?;
        let params = Params::new(self.memory_kib, self.passes, self.lanes, Some(32))
            .map_err(|error| refused(&error.to_string()))?;
        let mut blocks = vec![Block::new(); params.block_count()];
        let mut derived = SecretBytes::new_zeroed(32)?;
        let done = Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into_with_memory(
                passphrase.expose(),
                &salt,
                derived.expose_mut(),
                &mut blocks,
            );
        for block in &mut blocks {
            block.zeroize();
        }
        wipe_stack();
        done.map_err(|error| refused(&error.to_string()))?;
        Ok(derived)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passphrase(text: &str) -> SecretBytes {
        SecretBytes::copy_of(text.as_bytes()).unwrap()
    }

    #[test]
    fn the_same_passphrase_and_salt_derive_the_same_key_and_nothing_else_does() {
        let derivation = Derivation {
            memory_kib: 19 * 1024,
            passes: 2,
            ..Derivation::fresh().unwrap()
        };
        let key = derivation.derive(&passphrase("correct horse")).unwrap();
        assert!(
            key.is_equal(
                derivation
                    .derive(&passphrase("correct horse"))
                    .unwrap()
                    .expose()
            )
        );
        assert!(
            !key.is_equal(
                derivation
                    .derive(&passphrase("correct horsf"))
                    .unwrap()
                    .expose()
            )
        );
        let other = Derivation {
            salt: Derivation::fresh().unwrap().salt,
            ..derivation
        };
        assert!(!key.is_equal(other.derive(&passphrase("correct horse")).unwrap().expose()));
    }

    #[test]
    fn parameters_that_weaken_or_exhaust_are_refused() {
        let good = Derivation::fresh().unwrap();
        for bad in [
            Derivation {
                memory_kib: 1024,
                ..good.clone()
            },
            Derivation {
                memory_kib: u32::MAX,
                ..good.clone()
            },
            Derivation {
                passes: 1,
                ..good.clone()
            },
            Derivation {
                passes: u32::MAX,
                ..good.clone()
            },
            Derivation {
                lanes: 0,
                ..good.clone()
            },
            Derivation {
                salt: "zz".to_owned(),
                ..good.clone()
            },
            Derivation {
                salt: String::new(),
                ..good
            },
        ] {
            assert!(bad.derive(&passphrase("correct horse")).is_err(), "{bad:?}");
        }
    }
}
