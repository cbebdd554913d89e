//! The search itself: a rolling hash over a window, a small filter, and a full check of what passes it.

use std::io;
use std::ops::Range;

use super::fingerprints::Fingerprints;
use crate::sys;

/// Starting places examined per read.
const STEP_BYTES: usize = 1024 * 1024;

/// Sizes of the reading window.
pub(super) struct Window;

impl Window {
    /// A step and the longest pattern that may start at its last byte.
    pub(super) fn bytes_for(fingerprints: &Fingerprints) -> usize {
        STEP_BYTES + fingerprints.longest()
    }
}

/// What one stretch of memory holds.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) bytes: u64,
    pub(super) unreadable_bytes: u64,
    /// Number of the pattern and address of its first byte.
    pub(super) found: Vec<(usize, usize)>,
}

pub(super) struct Search<'a> {
    fingerprints: &'a Fingerprints,
    /// What leaves the window: the table, turned by the window's length.
    leaving: Box<[u64; 256]>,
    /// One bit per value of a head's lowest 16 bits.
    filter: Box<[u64; 1024]>,
}

impl<'a> Search<'a> {
    pub(super) fn new(fingerprints: &'a Fingerprints) -> Self {
        let turn = u32::try_from(fingerprints.window % 64).expect("a remainder of 64");
        let mut leaving = fingerprints.table.clone();
        for word in leaving.iter_mut() {
            *word = word.rotate_left(turn);
        }
        let mut filter = Box::new([0u64; 1024]);
        for head in fingerprints.heads() {
            let (word, bit) = place(head);
            filter[word] |= bit;
        }
        Self {
            fingerprints,
            leaving,
            filter,
        }
    }

    /// Searches a range of addresses through `read`, which answers how many bytes were readable.
    pub(super) fn run(
        &self,
        range: Range<usize>,
        window: &mut [u8],
        counts: &mut Counts,
        mut read: impl FnMut(usize, &mut [u8]) -> io::Result<usize>,
    ) {
        let page = sys::page_size();
        let mut start = range.start;
        while start < range.end {
            let wanted = window.len().min(range.end - start);
            let readable = fill(start, &mut window[..wanted], &mut read);
            let starts = if readable == wanted && start + wanted < range.end {
                STEP_BYTES
            } else {
                readable
            };
            for (pattern, offset) in self.find(&window[..readable], starts) {
                counts.found.push((pattern, start + offset));
            }
            counts.bytes += starts as u64;
            start += starts;
            if readable < wanted {
                let refused = ((start / page + 1) * page).min(range.end) - start;
                counts.unreadable_bytes += refused as u64;
                start += refused;
            }
        }
    }

    /// Finds patterns that lie wholly in `bytes` and start before `starts`.
    pub(super) fn find(&self, bytes: &[u8], starts: usize) -> Vec<(usize, usize)> {
        let width = self.fingerprints.window;
        let mut found = Vec::new();
        if bytes.len() < width {
            return found;
        }
        let table = &self.fingerprints.table;
        let mut hash = bytes[..width].iter().fold(0u64, |hash, byte| {
            hash.rotate_left(1) ^ table[usize::from(*byte)]
        });
        self.check(hash, bytes, 0, &mut found);
        let last = starts.min(bytes.len() - width + 1);
        let pairs = bytes[width..].iter().zip(bytes);
        for (offset, (entering, left)) in (1..last).zip(pairs) {
            hash = hash.rotate_left(1)
                ^ table[usize::from(*entering)]
                ^ self.leaving[usize::from(*left)];
            let (word, bit) = place(hash);
            if self.filter[word] & bit != 0 {
                self.check(hash, bytes, offset, &mut found);
            }
        }
        found
    }

    #[cold]
    fn check(&self, hash: u64, bytes: &[u8], offset: usize, found: &mut Vec<(usize, usize)>) {
        for pattern in self.fingerprints.matching(hash, &bytes[offset..]) {
            found.push((pattern, offset));
        }
    }
}

fn place(hash: u64) -> (usize, u64) {
    (
        usize::try_from(hash & 0xffff).expect("16 bits") >> 6,
        1 << (hash & 63),
    )
}

/// Reads until the buffer is full or a byte is refused.
fn fill(
    address: usize,
    into: &mut [u8],
    mut read: impl FnMut(usize, &mut [u8]) -> io::Result<usize>,
) -> usize {
    let mut filled = 0;
    while filled < into.len() {
        match read(address + filled, &mut into[filled..]) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    filled
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn naive(haystack: &[u8], pattern: &[u8]) -> Vec<usize> {
        haystack
            .windows(pattern.len())
            .enumerate()
            .filter(|(_, part)| *part == pattern)
            .map(|(at, _)| at)
            .collect()
    }

    proptest! {
        #[test]
        fn finds_exactly_what_a_plain_search_finds(
            haystack in prop::collection::vec(0u8..2, 0..600),
            first in prop::collection::vec(0u8..2, 12..20),
            second in prop::collection::vec(0u8..2, 12..20),
        ) {
            let fingerprints = Fingerprints::new([3; 32], [("first", &first), ("second", &second)]).unwrap();
            let mut found = Search::new(&fingerprints).find(&haystack, haystack.len());
            found.sort_unstable();
            let mut expected: Vec<_> = naive(&haystack, &first).into_iter().map(|at| (0, at)).collect();
            expected.extend(naive(&haystack, &second).into_iter().map(|at| (1, at)));
            prop_assert_eq!(found, expected);
        }
    }

    /// Runs over `memory`, whose pages listed in `holes` cannot be read.
    fn run(memory: &[u8], pattern: &[u8], holes: &[usize]) -> Counts {
        let page = sys::page_size();
        let fingerprints = Fingerprints::new([3; 32], [("pattern", pattern)]).unwrap();
        let mut window = vec![0; Window::bytes_for(&fingerprints)];
        let mut counts = Counts::default();
        let base = 16 * page;
        Search::new(&fingerprints).run(
            base..base + memory.len(),
            &mut window,
            &mut counts,
            |address, into| {
                let at = address - base;
                let until = holes
                    .iter()
                    .map(|hole| hole * page)
                    .filter(|hole| hole + page > at)
                    .min()
                    .unwrap_or(usize::MAX);
                let readable = into.len().min(until.saturating_sub(at));
                if readable == 0 {
                    return Err(io::ErrorKind::PermissionDenied.into());
                }
                into[..readable].copy_from_slice(&memory[at..at + readable]);
                Ok(readable)
            },
        );
        counts
    }

    #[test]
    fn a_pattern_across_two_reads_is_found_once() {
        let pattern = b"a pattern that is long enough";
        for start in (STEP_BYTES - 32..STEP_BYTES + 8).step_by(4) {
            let mut memory = vec![0; 3 * STEP_BYTES];
            memory[start..start + pattern.len()].copy_from_slice(pattern);
            let end = memory.len() - pattern.len();
            memory[end..].copy_from_slice(pattern);
            let counts = run(&memory, pattern, &[]);
            let places: Vec<usize> = counts
                .found
                .iter()
                .map(|(_, at)| at - 16 * sys::page_size())
                .collect();
            assert_eq!(places, [start, end]);
            assert_eq!(counts.bytes, 3 * STEP_BYTES as u64);
        }
    }

    #[test]
    fn unreadable_pages_are_counted_and_the_rest_is_searched() {
        let (page, pattern) = (sys::page_size(), b"a pattern that is long enough");
        let mut memory = vec![0; 12 * page];
        for number in [0, 4, 6, 11] {
            let at = number * page + page - pattern.len();
            memory[at..at + pattern.len()].copy_from_slice(pattern);
        }
        let counts = run(&memory, pattern, &[1, 2, 5]);
        assert_eq!(counts.found.len(), 4);
        assert_eq!(
            (counts.bytes, counts.unreadable_bytes),
            (9 * page as u64, 3 * page as u64)
        );
    }
}
