//! Checkpoints: C2SP signed notes with one Ed25519 signature.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest as _, Sha256};

use super::AuditError;
use super::merkle::Hash;
use crate::cipher::{SigningKey, verify_signature};

/// The signed note's type number of Ed25519.
const ED25519: u8 = 1;
/// Lines of a note as the log writes it: origin, size, root, blank, signature.
pub(super) const NOTE_LINES: usize = 5;

/// What a checkpoint says: so many records, with this Merkle root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Name of the log.
    pub origin: String,
    /// Number of records.
    pub size: u64,
    /// Root of the tree over them.
    pub root: [u8; 32],
}

impl Checkpoint {
    fn text(&self) -> String {
        format!(
            "{}\n{}\n{}\n",
            self.origin,
            self.size,
            BASE64.encode(self.root)
        )
    }

    /// Reads one signed note and checks its signature.
    ///
    /// # Errors
    /// [`AuditError::Tampered`] if it is not exactly such a note, or not signed by `vkey`.
    pub fn parse(note: &str, vkey: &Vkey) -> Result<Self, AuditError> {
        let (checkpoint, signature) = Self::split(note)
            .ok_or_else(|| AuditError::tampered(0, "a checkpoint is malformed"))?;
        let refused =
            || AuditError::tampered(checkpoint.size, "a checkpoint's signature does not fit");
        let rest = signature
            .strip_prefix(&format!("\u{2014} {} ", vkey.name))
            .ok_or_else(refused)?;
        let bytes = BASE64.decode(rest).map_err(|_| refused())?;
        let bytes = bytes.strip_prefix(&vkey.id()).ok_or_else(refused)?;
        if checkpoint.origin != vkey.name {
            return Err(refused());
        }
        verify_signature(&vkey.public, checkpoint.text().as_bytes(), bytes)
            .map_err(|_| refused())?;
        Ok(checkpoint)
    }

    /// Separates the content from the signature line.
    pub(super) fn split(note: &str) -> Option<(Self, &str)> {
        let (text, signature) = note.split_once("\n\n")?;
        let mut lines = text.split('\n');
        let origin = lines.next()?.to_owned();
        let size = lines.next()?.parse().ok()?;
        let root = BASE64.decode(lines.next()?).ok()?.try_into().ok()?;
        let checkpoint = Self { origin, size, root };
        // Rendering it again refuses what parsing lets pass: leading zeros, signs, further lines.
        let is_canonical =
            lines.next().is_none() && checkpoint.text().strip_suffix('\n') == Some(text);
        let signature = signature.strip_suffix('\n')?;
        (is_canonical && !signature.contains('\n')).then_some((checkpoint, signature))
    }
}

/// The key that verifies a log, in the signed note's form `name+id+base64`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vkey {
    name: String,
    public: [u8; 32],
}

impl Vkey {
    /// Name of the log, which is also its checkpoints' origin.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn id(&self) -> [u8; 4] {
        let digest = Sha256::new()
            .chain_update(&self.name)
            .chain_update([b'\n', ED25519])
            .chain_update(self.public)
            .finalize();
        [digest[0], digest[1], digest[2], digest[3]]
    }
}

impl fmt::Display for Vkey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut key = vec![ED25519];
        key.extend_from_slice(&self.public);
        write!(
            f,
            "{}+{}+{}",
            self.name,
            hex::encode(self.id()),
            BASE64.encode(key)
        )
    }
}

impl FromStr for Vkey {
    type Err = AuditError;

    fn from_str(text: &str) -> Result<Self, AuditError> {
        let parse = || {
            let (name, rest) = text.split_once('+')?;
            let (_, key) = rest.split_once('+')?;
            let key = BASE64.decode(key).ok()?;
            let public = key.strip_prefix(&[ED25519])?.try_into().ok()?;
            Some(Self {
                name: name.to_owned(),
                public,
            })
        };
        parse()
            .filter(|vkey| is_name(&vkey.name) && vkey.to_string() == text)
            .ok_or_else(|| {
                AuditError::Signer("this is no verifier key of the form name+id+base64".into())
            })
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 200
        && !name
            .contains(|letter: char| letter == '+' || letter.is_whitespace() || letter.is_control())
}

/// What signs checkpoints.
#[derive(Debug)]
pub struct Signer {
    key: SigningKey,
    vkey: Vkey,
}

impl Signer {
    /// Makes a signer for the log of this name, for example `claviger/vlt_7f3a`.
    ///
    /// # Errors
    /// [`AuditError::Signer`] if the name is empty, too long or holds white space or `+`.
    pub fn new(name: &str, key: SigningKey) -> Result<Self, AuditError> {
        if !is_name(name) {
            return Err(AuditError::Signer(
                "a log's name holds neither white space nor +".into(),
            ));
        }
        let vkey = Vkey {
            name: name.to_owned(),
            public: *key.public(),
        };
        Ok(Self { key, vkey })
    }

    /// The key that verifies what this signer signs.
    #[must_use]
    pub fn vkey(&self) -> &Vkey {
        &self.vkey
    }

    pub(super) fn sign(&self, size: u64, root: Hash) -> String {
        let text = Checkpoint {
            origin: self.vkey.name.clone(),
            size,
            root,
        }
        .text();
        let mut signature = self.vkey.id().to_vec();
        signature.extend_from_slice(&self.key.sign(text.as_bytes()));
        format!(
            "{text}\n\u{2014} {} {}\n",
            self.vkey.name,
            BASE64.encode(signature)
        )
    }
}

#[cfg(test)]
mod tests {
    use claviger_vault_memory::SecretBytes;

    use super::*;

    fn signer(byte: u8) -> Signer {
        let seed = SecretBytes::copy_of(&[byte; 32]).unwrap();
        Signer::new("claviger/test", SigningKey::from_seed(seed).unwrap()).unwrap()
    }

    #[test]
    fn a_note_is_read_back_under_its_own_key_only() {
        let note = signer(1).sign(17, [9; 32]);
        let checkpoint = Checkpoint::parse(&note, signer(1).vkey()).unwrap();
        assert_eq!((checkpoint.size, checkpoint.root), (17, [9; 32]));
        assert!(Checkpoint::parse(&note, signer(2).vkey()).is_err());
    }

    #[test]
    fn every_changed_byte_of_a_note_is_refused() {
        let note = signer(1).sign(17, [9; 32]);
        for at in 0..note.len() {
            for flip in [1, 0x20, 0x80] {
                let mut bytes = note.clone().into_bytes();
                bytes[at] ^= flip;
                let refused = String::from_utf8(bytes).map_or(true, |changed| {
                    Checkpoint::parse(&changed, signer(1).vkey()).is_err()
                });
                assert!(refused, "byte {at} xor {flip:#x}");
            }
        }
    }

    #[test]
    fn sizes_have_one_spelling() {
        let note = signer(1).sign(17, [9; 32]);
        for other in ["+17", "017", "17 ", "17\n"] {
            assert!(
                Checkpoint::split(&note.replacen("17", other, 1)).is_none(),
                "{other:?}"
            );
        }
    }

    #[test]
    fn the_verifier_key_is_that_of_the_signed_note_specification() {
        // The example of the specification.
        let text = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
        let vkey: Vkey = text.parse().unwrap();
        assert_eq!(vkey.to_string(), text);
        for bad in [
            "",
            "a+b",
            "PeterNeumann+c74f20a4+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
            "Peter Neumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        ] {
            assert!(bad.parse::<Vkey>().is_err(), "{bad}");
        }
    }
}
