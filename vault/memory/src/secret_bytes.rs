use std::fmt;

use subtle::ConstantTimeEq as _;

use crate::arena::{Arena, Block};
use crate::error::MemoryError;
use crate::sys;

/// Secret bytes in the arena of this process: wiped when dropped, never copied, never printed.
pub struct SecretBytes {
    block: Option<Block>,
    len: usize,
}

#[expect(unsafe_code, reason = "a block is a raw pointer")]
// SAFETY: a block belongs to one `SecretBytes`, whose `&` and `&mut` govern all access to it; the arena
// behind it is synchronised.
unsafe impl Send for SecretBytes {}
#[expect(unsafe_code, reason = "a block is a raw pointer")]
// SAFETY: as for Send; shared access only reads.
unsafe impl Sync for SecretBytes {}

impl SecretBytes {
    /// Takes `len` zero bytes of the arena.
    ///
    /// # Errors
    /// [`MemoryError::LockLimit`] when no more memory may be locked, [`MemoryError::System`] when there is none.
    pub fn new_zeroed(len: usize) -> Result<Self, MemoryError> {
        let block = if len == 0 {
            None
        } else {
            Some(Arena::global().allocate(len)?)
        };
        Ok(Self { block, len })
    }

    /// Moves bytes into the arena and wipes where they came from, on error too.
    ///
    /// # Errors
    /// As [`SecretBytes::new_zeroed`].
    pub fn from_mut_slice_wiping(source: &mut [u8]) -> Result<Self, MemoryError> {
        let moved = Self::copy_of(source);
        sys::wipe(source);
        moved
    }

    /// Copies bytes into the arena; for a source that is itself secret memory or a part of it.
    ///
    /// # Errors
    /// As [`SecretBytes::new_zeroed`].
    pub fn copy_of(source: &[u8]) -> Result<Self, MemoryError> {
        let mut copy = Self::new_zeroed(source.len())?;
        copy.expose_mut().copy_from_slice(source);
        Ok(copy)
    }

    /// Fills `len` bytes of the arena from the operating system's random source.
    ///
    /// # Errors
    /// As [`SecretBytes::new_zeroed`]; [`MemoryError::Random`] without randomness.
    pub fn random(len: usize) -> Result<Self, MemoryError> {
        let mut bytes = Self::new_zeroed(len)?;
        getrandom::fill(bytes.expose_mut()).map_err(|_| MemoryError::Random)?;
        Ok(bytes)
    }

    /// Keeps the first `len` bytes and wipes the rest; does nothing if there are fewer.
    pub fn truncate(&mut self, len: usize) {
        if len < self.len {
            sys::wipe(&mut self.expose_mut()[len..]);
            self.len = len;
        }
    }

    /// Gives the bytes to change them.
    #[must_use]
    pub fn expose_mut(&mut self) -> &mut [u8] {
        let Some(block) = &mut self.block else {
            return &mut [];
        };
        #[expect(unsafe_code, reason = "the block's bytes as a slice")]
        // SAFETY: the block holds at least `len` initialised bytes, is owned by self alone, and the
        // slice borrows self exclusively.
        unsafe {
            std::slice::from_raw_parts_mut(block.pointer.as_ptr(), self.len)
        }
    }

    /// Gives the bytes to read them.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        let Some(block) = &self.block else { return &[] };
        #[expect(unsafe_code, reason = "the block's bytes as a slice")]
        // SAFETY: the block holds at least `len` initialised bytes, and the slice borrows self, so that
        // nobody writes meanwhile.
        unsafe {
            std::slice::from_raw_parts(block.pointer.as_ptr(), self.len)
        }
    }

    /// Compares in a time that depends on the lengths alone.
    #[must_use]
    pub fn is_equal(&self, other: &[u8]) -> bool {
        self.expose().ct_eq(other).into()
    }

    /// Number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there is no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretBytes([redacted])")
    }
}

impl Drop for SecretBytes {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            Arena::global().release(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moving_in_wipes_the_source() {
        let mut source = *b"correct horse battery staple";
        let secret = SecretBytes::from_mut_slice_wiping(&mut source).unwrap();
        assert_eq!(source, [0; 28]);
        assert_eq!(secret.expose(), b"correct horse battery staple");
        assert!(secret.is_equal(b"correct horse battery staple"));
        assert!(!secret.is_equal(b"correct horse battery stapl"));
    }

    #[test]
    fn debug_shows_nothing_not_even_the_length() {
        let secret = SecretBytes::copy_of(b"correct horse battery staple").unwrap();
        assert_eq!(format!("{secret:?}"), "SecretBytes([redacted])");
    }

    #[test]
    fn truncating_wipes_the_tail() {
        let mut secret = SecretBytes::copy_of(&[9; 40]).unwrap();
        secret.truncate(10);
        assert_eq!(secret.expose(), [9; 10]);
        secret.len = 40;
        assert_eq!(&secret.expose()[10..], [0; 30]);
    }

    #[test]
    fn empty_needs_no_memory() {
        let mut secret = SecretBytes::new_zeroed(0).unwrap();
        assert!(secret.is_empty() && secret.expose().is_empty() && secret.expose_mut().is_empty());
    }

    #[test]
    fn random_bytes_differ() {
        let (one, two) = (
            SecretBytes::random(32).unwrap(),
            SecretBytes::random(32).unwrap(),
        );
        assert!(!one.is_equal(two.expose()));
    }

    #[test]
    fn threads_share_the_arena() {
        std::thread::scope(|scope| {
            for number in 0..8u8 {
                scope.spawn(move || {
                    for len in 1..200 {
                        let mut secret = SecretBytes::new_zeroed(len).unwrap();
                        assert!(secret.expose().iter().all(|byte| *byte == 0));
                        secret.expose_mut().fill(number + 1);
                        assert!(secret.expose().iter().all(|byte| *byte == number + 1));
                    }
                });
            }
        });
    }
}
