//! The operator's passphrase: a verifier in the store, few attempts, each failure on record.

use std::collections::VecDeque;

use claviger_vault_memory::SecretBytes;
use claviger_vault_protocol::Refusal;
use serde::{Deserialize, Serialize};

use crate::error::VaultError;
use crate::seal::passphrase::{Derivation, SHORTEST};
use crate::seal::{commitment, is_same};

/// Failures before the vault makes callers wait.
const FREE_FAILURES: u32 = 3;
/// Longest wait.
const LONGEST_WAIT_MS: u64 = 60_000;
/// Authentications remembered so that none serves twice.
const REMEMBERED: usize = 4096;

/// The verifier as stored: it tells a right passphrase and opens nothing.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Verifier {
    derivation: Derivation,
    commitment: String,
}

impl Verifier {
    /// Makes the verifier of a passphrase.
    pub(crate) fn new(passphrase: &SecretBytes) -> Result<Self, VaultError> {
        if passphrase.len() < SHORTEST {
            return Err(VaultError::Seal(format!(
                "a passphrase has at least {SHORTEST} bytes"
            )));
        }
        let derivation = Derivation::fresh()?;
        let commitment = commitment(&derivation.derive(passphrase)?)?;
        Ok(Self {
            derivation,
            commitment,
        })
    }

    /// Whether this is the passphrase; compared in constant time.
    pub(crate) fn admits(&self, passphrase: &SecretBytes) -> Result<bool, VaultError> {
        Ok(is_same(
            &commitment(&self.derivation.derive(passphrase)?)?,
            &self.commitment,
        ))
    }
}

/// Attempts so far; one at a time, because whoever attempts holds this.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    failures: u32,
    last_failure_ms: u64,
    spent: VecDeque<String>,
}

impl Attempts {
    /// Refuses while callers have to wait.
    pub(crate) fn check(&self, now_ms: u64) -> Result<(), Refusal> {
        let Some(over) = self.failures.checked_sub(FREE_FAILURES) else {
            return Ok(());
        };
        let wait = LONGEST_WAIT_MS.min(1_000_u64.saturating_mul(1 << over.min(16)));
        let left = (self.last_failure_ms + wait).saturating_sub(now_ms);
        if left == 0 {
            return Ok(());
        }
        Err(Refusal::new(
            "too_many_attempts",
            format!("too many wrong passphrases; wait {} s", left.div_ceil(1000)),
        ))
    }

    /// Takes one sealed authentication; false where it served before.
    pub(crate) fn spend(&mut self, encapsulated: &str) -> bool {
        if self.spent.iter().any(|spent| spent == encapsulated) {
            return false;
        }
        self.spent.push_back(encapsulated.to_owned());
        if self.spent.len() > REMEMBERED {
            self.spent.pop_front();
        }
        true
    }

    /// Counts a failure.
    pub(crate) fn failed(&mut self, now_ms: u64) {
        self.failures = self.failures.saturating_add(1);
        self.last_failure_ms = now_ms;
    }

    /// Forgets failures after a right passphrase.
    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_make_callers_wait_longer_and_longer() {
        let mut attempts = Attempts::default();
        for _ in 0..2 {
            attempts.failed(1_000);
            attempts.check(1_000).unwrap();
        }
        attempts.failed(1_000);
        assert_eq!(attempts.check(1_500).unwrap_err().code, "too_many_attempts");
        attempts.check(2_000).unwrap();
        attempts.failed(2_000);
        assert!(attempts.check(3_900).is_err());
        attempts.check(4_000).unwrap();
        for _ in 0..100 {
            attempts.failed(5_000);
        }
        attempts.check(65_000).unwrap();
        attempts.succeeded();
        attempts.check(5_001).unwrap();
    }

    #[test]
    fn an_authentication_serves_once() {
        let mut attempts = Attempts::default();
        assert!(attempts.spend("one") && attempts.spend("two") && !attempts.spend("one"));
    }

    #[test]
    fn a_verifier_admits_its_passphrase_only() {
        let passphrase = |text: &str| SecretBytes::copy_of(text.as_bytes()).unwrap();
        let verifier = Verifier::new(&passphrase("correct horse")).unwrap();
        assert!(verifier.admits(&passphrase("correct horse")).unwrap());
        assert!(!verifier.admits(&passphrase("correct horses")).unwrap());
        assert!(Verifier::new(&passphrase("short")).is_err());
    }
}
