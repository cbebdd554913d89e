//! What a process is told about secrets that it shall look for.

use std::collections::BTreeMap;

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

use crate::error::MemoryError;
use crate::stack::wipe_stack;

pub(super) const MIN_PATTERN_BYTES: usize = 12;
const MAX_PATTERN_BYTES: usize = 64 * 1024;
const MAX_WINDOW_BYTES: usize = 16;
const MAX_PATTERNS: usize = 100_000;

/// Keyed fingerprints of named patterns, free of the patterns themselves.
///
/// Of each pattern it holds the name, the length, a 64-bit keyed hash of its first 12 to 16 bytes and an
/// HMAC-SHA256 of the whole. As JSON:
/// `{"key":"<hex>","window":16,"patterns":[{"name":"canary","length":40,"head":"<hex>","mac":"<hex>"}]}`.
///
/// # Security
/// Whoever holds fingerprints can test guesses: give them only for secrets that cannot be guessed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct Fingerprints {
    key: [u8; 32],
    pub(super) window: usize,
    patterns: Vec<Pattern>,
    /// Numbers of patterns by the hash of their head.
    heads: BTreeMap<u64, Vec<usize>>,
    pub(super) table: Box<[u64; 256]>,
}

#[derive(Clone, Debug)]
struct Pattern {
    name: String,
    length: usize,
    head: u64,
    mac: [u8; 32],
}

impl Fingerprints {
    /// Makes fingerprints of named patterns of 12 bytes to 64 KiB under a random key.
    ///
    /// # Errors
    /// [`MemoryError::Fingerprints`] for a pattern that is too short or too long, or too many of them.
    pub fn new<N: Into<String>, P: AsRef<[u8]>>(
        key: [u8; 32],
        patterns: impl IntoIterator<Item = (N, P)>,
    ) -> Result<Self, MemoryError> {
        let named: Vec<(String, P)> = patterns
            .into_iter()
            .map(|(name, pattern)| (name.into(), pattern))
            .collect();
        let shortest = named
            .iter()
            .map(|(_, pattern)| pattern.as_ref().len())
            .min();
        let window = shortest.unwrap_or(MAX_WINDOW_BYTES).min(MAX_WINDOW_BYTES);
        if window < MIN_PATTERN_BYTES {
            return Err(MemoryError::Fingerprints {
                reason: "a pattern has at least 12 bytes",
            });
        }
        let table = table(&key);
        let patterns = named
            .into_iter()
            .map(|(name, pattern)| {
                let pattern = pattern.as_ref();
                let head = pattern[..window].iter().fold(0u64, |hash, byte| {
                    hash.rotate_left(1) ^ table[usize::from(*byte)]
                });
                Pattern {
                    name,
                    length: pattern.len(),
                    head,
                    mac: mac(&key, pattern),
                }
            })
            .collect();
        wipe_stack();
        Self::assemble(key, window, patterns)
    }

    /// Number of patterns.
    #[must_use]
    pub fn len(&self) -> usize {
        self.patterns.len()
    }

    /// True if there is no pattern.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Names of the patterns, in the order given.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.patterns.iter().map(|pattern| pattern.name.as_str())
    }

    pub(super) fn name(&self, number: usize) -> &str {
        &self.patterns[number].name
    }

    pub(super) fn heads(&self) -> impl Iterator<Item = u64> {
        self.heads.keys().copied()
    }

    pub(super) fn longest(&self) -> usize {
        self.patterns
            .iter()
            .map(|pattern| pattern.length)
            .max()
            .unwrap_or(0)
    }

    /// Numbers of the patterns that `bytes` starts with, given the hash of its window.
    #[inline(never)]
    pub(super) fn matching(&self, head: u64, bytes: &[u8]) -> Vec<usize> {
        let Some(candidates) = self.heads.get(&head) else {
            return Vec::new();
        };
        let is_match = |number: &usize| {
            let pattern = &self.patterns[*number];
            bytes
                .get(..pattern.length)
                .is_some_and(|whole| mac(&self.key, whole).ct_eq(&pattern.mac).into())
        };
        let found = candidates.iter().copied().filter(is_match).collect();
        // The hash's block buffer held a part of the pattern; without this the scan finds itself.
        wipe_stack();
        found
    }

    fn assemble(key: [u8; 32], window: usize, patterns: Vec<Pattern>) -> Result<Self, MemoryError> {
        let refuse = |reason| Err(MemoryError::Fingerprints { reason });
        if !(MIN_PATTERN_BYTES..=MAX_WINDOW_BYTES).contains(&window) {
            return refuse("the window has 12 to 16 bytes");
        }
        if patterns.len() > MAX_PATTERNS {
            return refuse("there are at most 100,000 patterns");
        }
        if patterns
            .iter()
            .any(|pattern| !(window..=MAX_PATTERN_BYTES).contains(&pattern.length))
        {
            return refuse("a pattern is at least as long as the window and at most 64 KiB");
        }
        let mut heads = BTreeMap::<u64, Vec<usize>>::new();
        for (number, pattern) in patterns.iter().enumerate() {
            heads.entry(pattern.head).or_default().push(number);
        }
        Ok(Self {
            table: table(&key),
            key,
            window,
            patterns,
            heads,
        })
    }
}

/// One random-looking word per byte value, derived from the key.
fn table(key: &[u8; 32]) -> Box<[u64; 256]> {
    let mut table = Box::new([0; 256]);
    for (value, word) in (0u8..=255).zip(table.iter_mut()) {
        let digest = keyed(key)
            .chain_update(b"window")
            .chain_update([value])
            .finalize()
            .into_bytes();
        *word = digest
            .iter()
            .take(8)
            .fold(0, |word, byte| word << 8 | u64::from(*byte));
    }
    table
}

#[inline(never)]
fn mac(key: &[u8; 32], pattern: &[u8]) -> [u8; 32] {
    let length = pattern.len() as u64;
    keyed(key)
        .chain_update(b"pattern")
        .chain_update(length.to_be_bytes())
        .chain_update(pattern)
        .finalize()
        .into_bytes()
        .into()
}

fn keyed(key: &[u8; 32]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes a key of any length")
}

/// The JSON form.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    key: String,
    window: usize,
    patterns: Vec<WirePattern>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WirePattern {
    name: String,
    length: usize,
    head: String,
    mac: String,
}

impl From<Fingerprints> for Wire {
    fn from(fingerprints: Fingerprints) -> Self {
        let pattern = |pattern: Pattern| WirePattern {
            name: pattern.name,
            length: pattern.length,
            head: hex::encode(pattern.head.to_be_bytes()),
            mac: hex::encode(pattern.mac),
        };
        Self {
            key: hex::encode(fingerprints.key),
            window: fingerprints.window,
            patterns: fingerprints.patterns.into_iter().map(pattern).collect(),
        }
    }
}

impl TryFrom<Wire> for Fingerprints {
    type Error = MemoryError;

    fn try_from(wire: Wire) -> Result<Self, MemoryError> {
        let patterns = wire.patterns.into_iter().map(|pattern| {
            Ok(Pattern {
                name: pattern.name,
                length: pattern.length,
                head: u64::from_be_bytes(array(&pattern.head)?),
                mac: array(&pattern.mac)?,
            })
        });
        let patterns = patterns.collect::<Result<Vec<_>, MemoryError>>()?;
        Self::assemble(array(&wire.key)?, wire.window, patterns)
    }
}

fn array<const N: usize>(text: &str) -> Result<[u8; N], MemoryError> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).map_err(|_| MemoryError::Fingerprints {
        reason: "key, head and mac are hexadecimal of a fixed length",
    })?;
    Ok(bytes)
}
