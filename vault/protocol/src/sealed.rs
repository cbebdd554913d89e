//! Sealing and opening: HPKE between roles, AES-256-GCM under a grant's key.
//!
//! One suite, pinned, no negotiation: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM
//! (RFC 9180). Base mode for what a person or the api gives to the vault; auth mode for what the
//! vault releases to a tools instance, so that only the vault can have made it. This is the only
//! module that names `hpke` and `aes-gcm`, and it owns wiping: keys and plaintexts live in the
//! secret arena, intermediate buffers are zeroized.

use aes_gcm::aead::{Aead as _, KeyInit as _, Payload};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use claviger_vault_memory::{SecretBytes, wipe_stack};
use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable as _, Kem as KemTrait, OpModeR, OpModeS, Serializable as _};
use serde::{Deserialize, Serialize};
use zeroize::Zeroize as _;

type Kem = X25519HkdfSha256;

/// Something sealed with HPKE: encapsulated key and ciphertext, both base64.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Sealed {
    /// Encapsulated key.
    pub enc: String,
    /// Ciphertext with its tag.
    pub ct: String,
}

/// An X25519 public key; base64 on the wire.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct PublicKey([u8; 32]);

/// A key pair whose private half lives in the secret arena.
#[derive(Debug)]
pub struct KeyPair {
    private: SecretBytes,
    public: PublicKey,
}

/// Why something did not seal or open. Says nothing about the plaintext.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SealedError {
    /// A key or ciphertext is not of this form.
    #[error("malformed {0}")]
    Malformed(&'static str),
    /// No locked memory is left for a secret; the operator can raise RLIMIT_MEMLOCK.
    #[error("no locked memory is left")]
    Memory,
    /// Wrong key, wrong sender, wrong purpose, wrong associated data, or altered bytes.
    #[error("does not open")]
    Refused,
}

impl PublicKey {
    /// Reads base64 of 32 bytes.
    ///
    /// # Errors
    /// [`SealedError::Malformed`].
    pub fn parse(text: &str) -> Result<Self, SealedError> {
        let bytes = BASE64
            .decode(text.trim())
            .map_err(|_| SealedError::Malformed("public key"))?;
        let bytes: [u8; 32] = bytes
            .try_into()
            .map_err(|_| SealedError::Malformed("public key"))?;
        Ok(Self(bytes))
    }

    fn hpke(self) -> Result<<Kem as KemTrait>::PublicKey, SealedError> {
        <Kem as KemTrait>::PublicKey::from_bytes(&self.0)
            .map_err(|_| SealedError::Malformed("public key"))
    }
}

impl std::fmt::Display for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&BASE64.encode(self.0))
    }
}

impl KeyPair {
    /// Makes a fresh pair.
    ///
    /// # Errors
    /// [`SealedError::Memory`].
    pub fn generate() -> Result<Self, SealedError> {
        let (private, public) = Kem::gen_keypair();
        let mut bytes: [u8; 32] = private.to_bytes().into();
        let stored = SecretBytes::from_mut_slice_wiping(&mut bytes);
        drop(private);
        wipe_stack();
        Ok(Self {
            private: stored.map_err(|_| SealedError::Memory)?,
            public: PublicKey(public.to_bytes().into()),
        })
    }

    /// Restores a pair from its stored private half.
    ///
    /// # Errors
    /// [`SealedError::Malformed`] where the bytes are no X25519 private key.
    pub fn from_private(private: SecretBytes) -> Result<Self, SealedError> {
        let public = {
            let key = <Kem as KemTrait>::PrivateKey::from_bytes(private.expose())
                .map_err(|_| SealedError::Malformed("private key"))?;
            PublicKey(Kem::sk_to_pk(&key).to_bytes().into())
        };
        wipe_stack();
        Ok(Self { private, public })
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// The private half, for the vault's own store.
    #[must_use]
    pub fn private(&self) -> &SecretBytes {
        &self.private
    }

    /// Opens what anyone sealed to this pair for `purpose`.
    ///
    /// # Errors
    /// [`SealedError`].
    pub fn open(
        &self,
        sealed: &Sealed,
        purpose: &str,
        associated: &[u8],
    ) -> Result<SecretBytes, SealedError> {
        self.open_in(&OpModeR::Base, sealed, purpose, associated)
    }

    /// Opens what `sender`, and nobody else, sealed to this pair for `purpose`.
    ///
    /// # Errors
    /// [`SealedError`].
    pub fn open_from(
        &self,
        sender: PublicKey,
        sealed: &Sealed,
        purpose: &str,
        associated: &[u8],
    ) -> Result<SecretBytes, SealedError> {
        self.open_in(&OpModeR::Auth(sender.hpke()?), sealed, purpose, associated)
    }

    fn open_in(
        &self,
        mode: &OpModeR<'_, Kem>,
        sealed: &Sealed,
        purpose: &str,
        associated: &[u8],
    ) -> Result<SecretBytes, SealedError> {
        let enc = BASE64
            .decode(&sealed.enc)
            .map_err(|_| SealedError::Malformed("encapsulated key"))?;
        let enc = <Kem as KemTrait>::EncappedKey::from_bytes(&enc)
            .map_err(|_| SealedError::Malformed("encapsulated key"))?;
        let ciphertext = BASE64
            .decode(&sealed.ct)
            .map_err(|_| SealedError::Malformed("ciphertext"))?;
        let private = <Kem as KemTrait>::PrivateKey::from_bytes(self.private.expose())
            .map_err(|_| SealedError::Malformed("private key"))?;
        let opened = hpke::single_shot_open::<AesGcm256, HkdfSha256, Kem>(
            mode,
            &private,
            &enc,
            purpose.as_bytes(),
            &ciphertext,
            associated,
        );
        drop(private);
        wipe_stack();
        let mut plaintext = opened.map_err(|_| SealedError::Refused)?;
        let secret = SecretBytes::from_mut_slice_wiping(&mut plaintext);
        plaintext.zeroize();
        secret.map_err(|_| SealedError::Memory)
    }

    /// Seals to `recipient` as this pair (auth mode).
    ///
    /// # Errors
    /// [`SealedError::Malformed`] for a recipient that is no key.
    pub fn seal_to(
        &self,
        recipient: PublicKey,
        secret: &SecretBytes,
        purpose: &str,
        associated: &[u8],
    ) -> Result<Sealed, SealedError> {
        let private = <Kem as KemTrait>::PrivateKey::from_bytes(self.private.expose())
            .map_err(|_| SealedError::Malformed("private key"))?;
        let mode = OpModeS::Auth((private, self.public.hpke()?));
        let sealed = seal_in(&mode, recipient, secret.expose(), purpose, associated);
        drop(mode);
        wipe_stack();
        sealed
    }
}

/// Seals to `recipient` anonymously (base mode).
///
/// # Errors
/// [`SealedError::Malformed`] for a recipient that is no key.
pub fn seal(
    recipient: PublicKey,
    secret: &SecretBytes,
    purpose: &str,
    associated: &[u8],
) -> Result<Sealed, SealedError> {
    let sealed = seal_in(
        &OpModeS::Base,
        recipient,
        secret.expose(),
        purpose,
        associated,
    );
    wipe_stack();
    sealed
}

fn seal_in(
    mode: &OpModeS<'_, Kem>,
    recipient: PublicKey,
    plaintext: &[u8],
    purpose: &str,
    associated: &[u8],
) -> Result<Sealed, SealedError> {
    let (enc, ct) = hpke::single_shot_seal::<AesGcm256, HkdfSha256, Kem>(
        mode,
        &recipient.hpke()?,
        purpose.as_bytes(),
        plaintext,
        associated,
    )
    .map_err(|_| SealedError::Malformed("recipient"))?;
    Ok(Sealed {
        enc: BASE64.encode(enc.to_bytes()),
        ct: BASE64.encode(ct),
    })
}

/// HPKE `info` of a release: a grant's key on its way to one tools instance.
pub const RELEASE_PURPOSE: &str = "claviger/release/v1";

/// What a grant's ciphertext is bound to.
#[must_use]
pub fn grant_associated(
    session: &str,
    epoch: u64,
    grant: &str,
    credential: &str,
    version: u32,
    binding_json: &[u8],
) -> Vec<u8> {
    let mut out = Vec::with_capacity(160 + binding_json.len());
    for part in [
        b"claviger/grant/v1".as_slice(),
        session.as_bytes(),
        &epoch.to_be_bytes(),
        grant.as_bytes(),
        credential.as_bytes(),
        &version.to_be_bytes(),
        binding_json,
    ] {
        out.extend_from_slice(&(part.len() as u64).to_be_bytes());
        out.extend_from_slice(part);
    }
    out
}

/// Seals a secret under a grant's 32-byte key; base64 of nonce and ciphertext.
///
/// # Errors
/// [`SealedError::Malformed`] where the key is not 32 bytes.
pub fn seal_grant(
    key: &SecretBytes,
    secret: &SecretBytes,
    associated: &[u8],
) -> Result<String, SealedError> {
    let cipher = aes_gcm::Aes256Gcm::new_from_slice(key.expose())
        .map_err(|_| SealedError::Malformed("grant key"))?;
    let mut nonce = [0_u8; 12];
    getrandom::fill(&mut nonce).map_err(|_| SealedError::Malformed("randomness"))?;
    let sealed = cipher.encrypt(
        &nonce.into(),
        Payload {
            msg: secret.expose(),
            aad: associated,
        },
    );
    drop(cipher);
    wipe_stack();
    let mut out = nonce.to_vec();
    out.extend_from_slice(&sealed.map_err(|_| SealedError::Refused)?);
    Ok(BASE64.encode(out))
}

/// Opens a grant's ciphertext with its released key.
///
/// # Errors
/// [`SealedError`].
pub fn open_grant(
    key: &SecretBytes,
    ciphertext: &str,
    associated: &[u8],
) -> Result<SecretBytes, SealedError> {
    let bytes = BASE64
        .decode(ciphertext)
        .map_err(|_| SealedError::Malformed("grant ciphertext"))?;
    let (nonce, body) = bytes
        .split_at_checked(12)
        .ok_or(SealedError::Malformed("grant ciphertext"))?;
    let nonce: [u8; 12] = nonce
        .try_into()
        .map_err(|_| SealedError::Malformed("grant ciphertext"))?;
    let cipher = aes_gcm::Aes256Gcm::new_from_slice(key.expose())
        .map_err(|_| SealedError::Malformed("grant key"))?;
    let opened = cipher.decrypt(
        &nonce.into(),
        Payload {
            msg: body,
            aad: associated,
        },
    );
    drop(cipher);
    wipe_stack();
    let mut plaintext = opened.map_err(|_| SealedError::Refused)?;
    let secret = SecretBytes::from_mut_slice_wiping(&mut plaintext);
    plaintext.zeroize();
    secret.map_err(|_| SealedError::Memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> SecretBytes {
        SecretBytes::from_mut_slice_wiping(&mut text.as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn a_sealed_secret_opens_only_for_its_recipient_purpose_and_binding() {
        let vault = KeyPair::generate().unwrap();
        let other = KeyPair::generate().unwrap();
        let sealed = seal(vault.public(), &secret("hunter2hunter2"), "put", b"name").unwrap();
        assert_eq!(
            vault.open(&sealed, "put", b"name").unwrap().expose(),
            b"hunter2hunter2"
        );
        assert_eq!(
            vault.open(&sealed, "put", b"other").unwrap_err(),
            SealedError::Refused
        );
        assert_eq!(
            vault.open(&sealed, "auth", b"name").unwrap_err(),
            SealedError::Refused
        );
        assert_eq!(
            other.open(&sealed, "put", b"name").unwrap_err(),
            SealedError::Refused
        );
    }

    #[test]
    fn a_release_not_made_by_the_vault_does_not_open() {
        let vault = KeyPair::generate().unwrap();
        let impostor = KeyPair::generate().unwrap();
        let tools = KeyPair::generate().unwrap();
        let key = secret("0123456789abcdef0123456789abcdef");
        let good = vault
            .seal_to(tools.public(), &key, RELEASE_PURPOSE, b"use")
            .unwrap();
        let forged = impostor
            .seal_to(tools.public(), &key, RELEASE_PURPOSE, b"use")
            .unwrap();
        let anonymous = seal(tools.public(), &key, RELEASE_PURPOSE, b"use").unwrap();
        assert!(
            tools
                .open_from(vault.public(), &good, RELEASE_PURPOSE, b"use")
                .is_ok()
        );
        for wrong in [&forged, &anonymous] {
            assert!(
                tools
                    .open_from(vault.public(), wrong, RELEASE_PURPOSE, b"use")
                    .is_err()
            );
        }
        assert!(
            tools
                .open_from(vault.public(), &good, RELEASE_PURPOSE, b"another use")
                .is_err()
        );
    }

    #[test]
    fn a_grant_opens_only_in_the_place_it_was_made_for() {
        let key = secret("0123456789abcdef0123456789abcdef");
        let here = grant_associated("sesn_1", 3, "grant_1", "vcrd_1", 1, b"{}");
        let ciphertext = seal_grant(&key, &secret("the secret itself"), &here).unwrap();
        assert_eq!(
            open_grant(&key, &ciphertext, &here).unwrap().expose(),
            b"the secret itself"
        );
        for there in [
            grant_associated("sesn_2", 3, "grant_1", "vcrd_1", 1, b"{}"),
            grant_associated("sesn_1", 4, "grant_1", "vcrd_1", 1, b"{}"),
            grant_associated("sesn_1", 3, "grant_2", "vcrd_1", 1, b"{}"),
            grant_associated("sesn_1", 3, "grant_1", "vcrd_2", 1, b"{}"),
            grant_associated("sesn_1", 3, "grant_1", "vcrd_1", 2, b"{}"),
            grant_associated("sesn_1", 3, "grant_1", "vcrd_1", 1, b"{ }"),
        ] {
            assert_eq!(
                open_grant(&key, &ciphertext, &there).unwrap_err(),
                SealedError::Refused
            );
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_refuses() {
        let vault = KeyPair::generate().unwrap();
        let sealed = seal(vault.public(), &secret("hunter2hunter2"), "put", b"").unwrap();
        let ct = BASE64.decode(&sealed.ct).unwrap();
        for bit in 0..ct.len() * 8 {
            let mut altered = ct.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            let altered = Sealed {
                enc: sealed.enc.clone(),
                ct: BASE64.encode(altered),
            };
            assert!(vault.open(&altered, "put", b"").is_err());
        }
    }
}
