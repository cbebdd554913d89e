//! All cryptography of the vault with stored keys; the only file that names `ring`.
//!
//! Keys come as [`SecretBytes`], plaintext goes back as [`SecretBytes`]; sealing and opening happen in
//! place, inside the arena. `ring` does not wipe what it puts on the stack, so every function does its work
//! in a frame of its own, below the caller, and wipes that stretch of stack afterwards.

use std::fmt;

use claviger_vault_memory::{MemoryError, SecretBytes, wipe_stack};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use ring::{hkdf, hmac};

use crate::error::VaultError;

/// Bytes of every symmetric key and of a signing seed.
pub const KEY_BYTES: usize = 32;
/// Bytes of a nonce, which stands before the ciphertext.
pub const NONCE_BYTES: usize = 12;
/// Bytes of an authentication tag, which stands after the ciphertext.
pub const TAG_BYTES: usize = 16;

/// Why a cryptographic operation gave nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CipherError {
    /// The key has the wrong length: a mistake of the caller.
    #[error("a key has 32 bytes")]
    KeyLength,
    /// The arena is full.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The operating system gives no randomness.
    #[error("the operating system gives no random bytes")]
    Random,
    /// The sealed bytes or the signature do not fit the key and the context: changed, or of another place.
    #[error("authentication failed")]
    Refused,
}

impl From<CipherError> for VaultError {
    fn from(error: CipherError) -> Self {
        match error {
            CipherError::Memory(error) => error.into(),
            other => Self::Seal(other.to_string()),
        }
    }
}

/// Seals plaintext for a context with AES-256-GCM and returns nonce, ciphertext and tag.
///
/// # Errors
/// [`CipherError::KeyLength`], [`CipherError::Memory`], [`CipherError::Random`].
pub fn seal(key: &SecretBytes, context: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, CipherError> {
    let nonce: [u8; NONCE_BYTES] = random()?;
    let end = NONCE_BYTES + plaintext.len();
    let mut buffer = SecretBytes::new_zeroed(end + TAG_BYTES)?;
    let bytes = buffer.expose_mut();
    bytes[..NONCE_BYTES].copy_from_slice(&nonce);
    bytes[NONCE_BYTES..end].copy_from_slice(plaintext);
    let tag = wiping(|| {
        let key = aead_key(key)?;
        key.seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(context),
            &mut bytes[NONCE_BYTES..end],
        )
        .map_err(|_| CipherError::Refused)
    })?;
    bytes[end..].copy_from_slice(tag.as_ref());
    Ok(bytes.to_vec())
}

/// Opens what [`seal`] made under the same key and context.
///
/// # Errors
/// [`CipherError::Refused`] if key, context or any bit of `sealed` differs; [`CipherError::KeyLength`], [`CipherError::Memory`].
pub fn open(key: &SecretBytes, context: &[u8], sealed: &[u8]) -> Result<SecretBytes, CipherError> {
    let (nonce, ciphertext) = sealed
        .split_first_chunk::<NONCE_BYTES>()
        .ok_or(CipherError::Refused)?;
    let mut buffer = SecretBytes::copy_of(ciphertext)?;
    let bytes = buffer.expose_mut();
    let len = wiping(|| {
        let key = aead_key(key)?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let plaintext = key
            .open_in_place(nonce, Aad::from(context), bytes)
            .map_err(|_| CipherError::Refused)?;
        Ok::<_, CipherError>(plaintext.len())
    })?;
    buffer.truncate(len);
    Ok(buffer)
}

/// Derives a sub-key by HKDF-SHA256; different `info` gives unrelated keys.
///
/// # Errors
/// [`CipherError::Memory`].
pub fn hkdf(key: &SecretBytes, info: &[u8]) -> Result<SecretBytes, CipherError> {
    let mut derived = SecretBytes::new_zeroed(KEY_BYTES)?;
    let bytes = derived.expose_mut();
    wiping(|| {
        let info = [info];
        let pseudorandom = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(key.expose());
        pseudorandom
            .expand(&info, hkdf::HKDF_SHA256)
            .and_then(|output| output.fill(bytes))
    })
    .map_err(|_| CipherError::KeyLength)?;
    Ok(derived)
}

/// Computes HMAC-SHA256.
#[must_use]
pub fn hmac(key: &SecretBytes, message: &[u8]) -> [u8; 32] {
    let mut tag = [0; 32];
    wiping(|| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, key.expose());
        tag.copy_from_slice(hmac::sign(&key, message).as_ref());
    });
    tag
}

/// Checks an HMAC-SHA256 in constant time.
///
/// # Errors
/// [`CipherError::Refused`] if it differs.
pub fn verify_hmac(key: &SecretBytes, message: &[u8], tag: &[u8]) -> Result<(), CipherError> {
    wiping(|| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, key.expose());
        hmac::verify(&key, message, tag).map_err(|_| CipherError::Refused)
    })
}

/// Gives random bytes that are no secret: nonces, identifiers. Keys come from [`random_key`].
///
/// # Errors
/// [`CipherError::Random`].
pub fn random<const N: usize>() -> Result<[u8; N], CipherError> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| CipherError::Random)?;
    Ok(bytes)
}

/// Makes a fresh key in the arena.
///
/// # Errors
/// [`CipherError::Random`], [`CipherError::Memory`].
pub fn random_key() -> Result<SecretBytes, CipherError> {
    let mut key = SecretBytes::new_zeroed(KEY_BYTES)?;
    SystemRandom::new()
        .fill(key.expose_mut())
        .map_err(|_| CipherError::Random)?;
    Ok(key)
}

/// An Ed25519 key that signs; only its seed is kept, in the arena.
pub struct SigningKey {
    seed: SecretBytes,
    public: [u8; 32],
}

impl SigningKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// [`CipherError::Random`], [`CipherError::Memory`].
    pub fn generate() -> Result<Self, CipherError> {
        Self::from_seed(random_key()?)
    }

    /// Restores a key from its seed of 32 bytes.
    ///
    /// # Errors
    /// [`CipherError::KeyLength`].
    pub fn from_seed(seed: SecretBytes) -> Result<Self, CipherError> {
        let mut public = [0; 32];
        wiping(|| {
            let pair = Ed25519KeyPair::from_seed_unchecked(seed.expose())
                .map_err(|_| CipherError::KeyLength)?;
            public.copy_from_slice(pair.public_key().as_ref());
            Ok::<_, CipherError>(())
        })?;
        Ok(Self { seed, public })
    }

    /// Signs a message.
    ///
    /// # Panics
    /// Never: the pair was accepted when the key was made.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        wiping(|| {
            let pair = Ed25519KeyPair::from_seed_and_public_key(self.seed.expose(), &self.public)
                .expect("seed and public key were accepted by from_seed");
            signature.copy_from_slice(pair.sign(message).as_ref());
        });
        signature
    }

    /// The key that verifies.
    #[must_use]
    pub fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// The seed, to be sealed into the store.
    #[must_use]
    pub fn seed(&self) -> &SecretBytes {
        &self.seed
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey")
            .field("public", &hex::encode(self.public))
            .finish_non_exhaustive()
    }
}

/// Checks an Ed25519 signature.
///
/// # Errors
/// [`CipherError::Refused`] if it is not of this key over this message.
pub fn verify_signature(
    public: &[u8; 32],
    message: &[u8],
    signature: &[u8],
) -> Result<(), CipherError> {
    UnparsedPublicKey::new(&ED25519, public)
        .verify(message, signature)
        .map_err(|_| CipherError::Refused)
}

fn aead_key(key: &SecretBytes) -> Result<LessSafeKey, CipherError> {
    UnboundKey::new(&AES_256_GCM, key.expose())
        .map(LessSafeKey::new)
        .map_err(|_| CipherError::KeyLength)
}

/// Does work that leaves key material on the stack, and wipes that stack.
fn wiping<T>(work: impl FnOnce() -> T) -> T {
    // Never inlined: what the work's frames hold lies below this one, where the wipe reaches.
    #[inline(never)]
    fn below<T>(work: impl FnOnce() -> T) -> T {
        work()
    }
    let done = below(work);
    wipe_stack();
    done
}

#[cfg(test)]
mod tests;
