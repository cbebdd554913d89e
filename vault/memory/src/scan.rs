//! Looks for secrets in the memory of a live process: the judge of every claim about wiping.
//!
//! The asker knows the secrets and hands over [`Fingerprints`]; the process that scans itself learns where
//! they are without being told what they are, so the question leaves no copy behind.

mod fingerprints;
pub mod forms;
mod maps;
mod search;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::{Mutex, PoisonError};

pub use fingerprints::Fingerprints;
use maps::Area;
use search::{Counts, Search, Window};
use serde::{Deserialize, Serialize};

use crate::arena::Arena;
use crate::error::MemoryError;
use crate::sys::{self, Mapping};

/// What a scan found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanReport {
    /// Readable mappings that were looked at.
    pub regions: u64,
    /// Bytes looked at outside the arena.
    pub bytes: u64,
    /// Number of places outside the arena, by name of the pattern; a pattern without any is left out.
    pub hits: BTreeMap<String, u64>,
    /// Where those places are: pattern and mapping (`[heap]`, `[stack]`, a file); at most 64.
    pub places: Vec<Place>,
    /// Bytes of the arena; 0 when another process is scanned.
    pub arena_bytes: u64,
    /// Number of places inside the arena, by name of the pattern.
    pub arena_hits: BTreeMap<String, u64>,
    /// Bytes of readable mappings that the kernel refused to read (`memfd_secret`, devices).
    pub unreadable_bytes: u64,
}

impl ScanReport {
    /// Number of places outside the arena, all patterns together.
    #[must_use]
    pub fn total_hits(&self) -> u64 {
        self.hits.values().sum()
    }
}

/// One place that holds a pattern.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Name of the pattern.
    pub pattern: String,
    /// Name of the mapping as the kernel tells it, empty for anonymous memory.
    pub mapping: String,
    /// Bytes from the start of the mapping.
    pub offset: u64,
}

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Most places that a report lists.
const MAX_PLACES: usize = 64;

/// Scans the memory of this process; the arena is read by its own pointers and counted apart.
///
/// Works after [`crate::harden`]: the kernel lets a process look at itself. The scan's own buffer is left out.
///
/// # Errors
/// [`MemoryError::System`] if `/proc/self/maps` cannot be read or there is no memory for the buffer.
pub fn scan_self(fingerprints: &Fingerprints) -> Result<ScanReport, MemoryError> {
    // Two scans at once would find each other's reading buffers.
    let _one_at_a_time = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let pid = rustix::process::getpid().as_raw_pid();
    let mut window = Buffer::new(fingerprints)?;
    let arena = Arena::global().addresses();
    let mut excluded = arena.clone();
    excluded.push(window.addresses());
    let areas = maps::of("/proc/self/maps")?;
    let mut report = scan_areas(
        fingerprints,
        &areas,
        &excluded,
        &mut window,
        |address, into| sys::read_process(pid, address, into),
    );
    for (number, addresses) in arena.iter().enumerate() {
        let mut counts = Counts::default();
        let search = Search::new(fingerprints);
        search.run(
            0..addresses.len(),
            window.slice(),
            &mut counts,
            |offset, into| {
                Arena::global().read(number, offset, into);
                Ok(into.len())
            },
        );
        report.arena_bytes += counts.bytes;
        for (pattern, _) in counts.found {
            *report
                .arena_hits
                .entry(fingerprints.name(pattern).to_owned())
                .or_default() += 1;
        }
    }
    Ok(report)
}

/// Scans another process through `/proc/PID/mem`, as root or, while it is dumpable, as its user.
///
/// # Errors
/// [`MemoryError::System`] if the process cannot be opened, [`MemoryError::Fingerprints`] for a pattern under 12 bytes.
pub fn scan_process(pid: u32, patterns: &[(&str, &[u8])]) -> Result<ScanReport, MemoryError> {
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(|_| MemoryError::Random)?;
    let fingerprints = Fingerprints::new(key, patterns.iter().copied())?;
    let areas = maps::of(&format!("/proc/{pid}/maps"))?;
    let memory = File::open(format!("/proc/{pid}/mem"))
        .map_err(MemoryError::system("open(/proc/PID/mem)"))?;
    let mut window = Buffer::new(&fingerprints)?;
    Ok(scan_areas(
        &fingerprints,
        &areas,
        &[window.addresses()],
        &mut window,
        |address, into| memory.read_at(into, address as u64),
    ))
}

/// Counts patterns in bytes at hand: a file, a dump, captured output.
#[must_use]
pub fn scan_bytes(bytes: &[u8], fingerprints: &Fingerprints) -> BTreeMap<String, u64> {
    let mut hits = BTreeMap::new();
    for (pattern, _) in Search::new(fingerprints).find(bytes, bytes.len()) {
        *hits
            .entry(fingerprints.name(pattern).to_owned())
            .or_default() += 1;
    }
    hits
}

fn scan_areas(
    fingerprints: &Fingerprints,
    areas: &[Area],
    excluded: &[Range<usize>],
    window: &mut Buffer,
    mut read: impl FnMut(usize, &mut [u8]) -> io::Result<usize>,
) -> ScanReport {
    let mut report = ScanReport::default();
    for area in areas.iter().filter(|area| area.readable) {
        report.regions += 1;
        for piece in maps::without(&area.addresses, excluded) {
            let mut counts = Counts::default();
            Search::new(fingerprints).run(piece.clone(), window.slice(), &mut counts, &mut read);
            report.bytes += counts.bytes;
            report.unreadable_bytes += counts.unreadable_bytes;
            for (pattern, address) in counts.found {
                let name = fingerprints.name(pattern);
                *report.hits.entry(name.to_owned()).or_default() += 1;
                if report.places.len() < MAX_PLACES {
                    report.places.push(Place {
                        pattern: name.to_owned(),
                        mapping: area.name.clone(),
                        offset: (address - area.addresses.start) as u64,
                    });
                }
            }
        }
    }
    report
}

/// The scan's own reading buffer: a mapping of its own, so that it can be left out exactly, and wiped.
#[derive(Debug)]
struct Buffer {
    mapping: Mapping,
}

impl Buffer {
    fn new(fingerprints: &Fingerprints) -> Result<Self, MemoryError> {
        let size = Window::bytes_for(fingerprints);
        let mapping = Mapping::reserve(size).map_err(MemoryError::system("mmap"))?;
        mapping
            .open_anonymous()
            .map_err(MemoryError::system("mmap"))?;
        mapping
            .leave_out_of_core_files()
            .map_err(MemoryError::system("madvise"))?;
        Ok(Self { mapping })
    }

    fn addresses(&self) -> Range<usize> {
        let start = self.mapping.start().as_ptr().addr();
        start..start + self.mapping.size()
    }

    fn slice(&mut self) -> &mut [u8] {
        #[expect(unsafe_code, reason = "the mapping's bytes as a slice")]
        // SAFETY: the mapping is readable, writable, zero-initialised by the kernel and owned by self,
        // which the slice borrows exclusively.
        unsafe {
            std::slice::from_raw_parts_mut(self.mapping.start().as_ptr(), self.mapping.size())
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        sys::wipe(self.slice());
    }
}
