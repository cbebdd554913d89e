//! Encodings without ambiguity: length-prefixed associated data, padded plaintexts.

use crate::error::VaultError;

/// Joins parts so that no two different lists give the same bytes.
pub(crate) fn length_prefixed(parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::with_capacity(parts.iter().map(|part| part.len() + 8).sum());
    for part in parts {
        out.extend_from_slice(&(part.len() as u64).to_be_bytes());
        out.extend_from_slice(part);
    }
    out
}

/// The size that a plaintext of `len` bytes is padded to: the next power of two, at least `floor`.
pub(crate) fn bucket(len: usize, floor: usize) -> usize {
    len.saturating_add(4).next_power_of_two().max(floor)
}

/// Pads with a length before and zeros behind, so that a stored size tells only the bucket.
pub(crate) fn pad(body: &[u8], floor: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bucket(body.len(), floor));
    out.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(body);
    out.resize(bucket(body.len(), floor), 0);
    out
}

/// Finds the body inside a padded plaintext.
///
/// # Errors
/// [`VaultError::StoreTampered`] where the length does not fit.
pub(crate) fn unpad(padded: &[u8]) -> Result<&[u8], VaultError> {
    let wrong = || VaultError::StoreTampered("a padded value has no such length".to_owned());
    let (head, rest) = padded.split_first_chunk::<4>().ok_or_else(wrong)?;
    let len = usize::try_from(u32::from_be_bytes(*head)).map_err(|_| wrong())?;
    rest.get(..len).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_parts_cannot_be_confused() {
        assert_ne!(
            length_prefixed(&[b"ab", b"c"]),
            length_prefixed(&[b"a", b"bc"])
        );
        assert_ne!(length_prefixed(&[b"ab"]), length_prefixed(&[b"ab", b""]));
    }

    proptest::proptest! {
        #[test]
        fn padding_comes_off_and_hides_the_length(body in proptest::collection::vec(proptest::num::u8::ANY, 0..3000)) {
            let padded = pad(&body, 64);
            assert_eq!(unpad(&padded).unwrap(), &body[..]);
            assert!(padded.len().is_power_of_two() && padded.len() >= 64);
        }

        #[test]
        fn no_bytes_make_unpad_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..40)) {
            drop(unpad(&bytes));
        }
    }
}
