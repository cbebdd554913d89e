//! The process-wide home of secrets.

mod free_list;
mod region;

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use free_list::GRAIN;
use region::Region;
use serde::{Deserialize, Serialize};

use crate::error::MemoryError;
use crate::sys;

/// How well the memory of secrets is kept from everything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protection {
    /// Ordinary memory, left out of core files; may be swapped out. The operator is told.
    None,
    /// Locked memory, left out of core files, wiped in forked children.
    Locked,
    /// `memfd_secret`: not even mapped by the kernel; unreadable through `/proc` for root too.
    MemfdSecret,
}

/// Secret memory with guard pages, grown by regions.
///
/// The first region settles the protection: the best that the system grants. Later regions have the
/// same protection or none is added ([`MemoryError::LockLimit`]): an arena never grows weaker unseen.
#[derive(Debug)]
pub struct Arena {
    state: Mutex<State>,
    region_bytes: usize,
}

#[derive(Debug)]
struct State {
    regions: Vec<Region>,
}

/// One allocation: its place and where to give it back.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) pointer: NonNull<u8>,
    capacity: usize,
    region: usize,
    offset: usize,
}

/// What an arena holds at the moment.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ArenaStatus {
    /// Protection of every region; `None` also before anything was allocated.
    pub protection: Protection,
    /// Number of regions.
    pub regions: usize,
    /// Bytes between the guard pages of all regions.
    pub mapped_bytes: usize,
    /// Bytes in blocks that are in use.
    pub used_bytes: usize,
}

static GLOBAL: Arena = Arena::new(1024 * 1024);

impl Arena {
    const fn new(region_bytes: usize) -> Self {
        Self {
            state: Mutex::new(State {
                regions: Vec::new(),
            }),
            region_bytes,
        }
    }

    /// The arena of this process, made when first needed.
    #[must_use]
    pub fn global() -> &'static Self {
        &GLOBAL
    }

    /// Makes the first region if there is none and tests that it behaves; called at start-up.
    ///
    /// # Errors
    /// [`MemoryError::SelfTest`] if memory does not hold what is written, is not zero after a wipe, or
    /// can be read from outside although it says `MemfdSecret`; [`MemoryError::System`] if there is no
    /// memory at all.
    pub fn start(&self) -> Result<Protection, MemoryError> {
        let refuse = |reason| MemoryError::SelfTest { reason };
        let block = self.allocate(64)?;
        let mut pattern = [0u8; 64];
        getrandom::fill(&mut pattern).map_err(|_| MemoryError::Random)?;
        let address = block.pointer.as_ptr().addr();
        self.write(&block, &pattern);
        let mut copy = [0u8; 64];
        self.read(block.region, block.offset, &mut copy);
        let held = copy == pattern;
        let protection = self.status().protection;
        #[cfg(not(miri))]
        let exposed =
            sys::read_process(rustix::process::getpid().as_raw_pid(), address, &mut copy).is_ok();
        #[cfg(miri)]
        let exposed = address == 0;
        let (region, offset) = (block.region, block.offset);
        self.release(block);
        copy = [1; 64];
        self.read(region, offset, &mut copy);
        if !held {
            return Err(refuse("a region does not hold what is written to it"));
        }
        if exposed && protection == Protection::MemfdSecret {
            return Err(refuse("memfd_secret memory can be read from outside"));
        }
        if copy != [0; 64] {
            return Err(refuse("a freed block is not wiped"));
        }
        Ok(protection)
    }

    /// Says what the arena holds.
    #[must_use]
    pub fn status(&self) -> ArenaStatus {
        let state = self.lock();
        ArenaStatus {
            protection: state
                .regions
                .first()
                .map_or(Protection::None, |region| region.protection),
            regions: state.regions.len(),
            mapped_bytes: state.regions.iter().map(Region::size).sum(),
            used_bytes: state.regions.iter().map(|region| region.free.used()).sum(),
        }
    }

    /// Takes a zeroed block of at least `len` bytes.
    pub(crate) fn allocate(&self, len: usize) -> Result<Block, MemoryError> {
        let capacity =
            len.max(1)
                .checked_next_multiple_of(GRAIN)
                .ok_or_else(|| MemoryError::LockLimit {
                    requested_bytes: len,
                    limit_bytes: lock_limit(),
                })?;
        let mut state = self.lock();
        for (index, region) in state.regions.iter_mut().enumerate() {
            if let Some(offset) = region.free.take(capacity) {
                return Ok(Block {
                    pointer: region.pointer(offset),
                    capacity,
                    region: index,
                    offset,
                });
            }
        }
        let mut region = self.grow(&state, capacity)?;
        let offset = region
            .free
            .take(capacity)
            .expect("a new region is at least as large as the block");
        let block = Block {
            pointer: region.pointer(offset),
            capacity,
            region: state.regions.len(),
            offset,
        };
        state.regions.push(region);
        Ok(block)
    }

    /// Wipes a block and gives it back.
    pub(crate) fn release(&self, block: Block) {
        #[expect(unsafe_code, reason = "the block's bytes as a slice")]
        // SAFETY: the block came from `allocate`, is given back once (it is moved in here), and its
        // owner holds no reference any more; pointer and capacity lie inside its region.
        let bytes =
            unsafe { std::slice::from_raw_parts_mut(block.pointer.as_ptr(), block.capacity) };
        sys::wipe(bytes);
        self.lock().regions[block.region]
            .free
            .give(block.offset, block.capacity);
    }

    fn write(&self, block: &Block, from: &[u8]) {
        assert!(
            from.len() <= block.capacity,
            "the self-test writes no more than it asked for"
        );
        #[expect(unsafe_code, reason = "the block's bytes as a slice")]
        // SAFETY: the block is not shared with anyone yet and holds at least `from.len()` bytes.
        let bytes = unsafe { std::slice::from_raw_parts_mut(block.pointer.as_ptr(), from.len()) };
        bytes.copy_from_slice(from);
    }

    /// Copies bytes out of a region for the memory scan.
    pub(crate) fn read(&self, region: usize, offset: usize, into: &mut [u8]) {
        self.lock().regions[region].copy_out(offset, into);
    }

    /// Addresses of all regions, in the order of their numbers.
    pub(crate) fn addresses(&self) -> Vec<Range<usize>> {
        self.lock().regions.iter().map(Region::addresses).collect()
    }

    fn grow(&self, state: &State, needed: usize) -> Result<Region, MemoryError> {
        let sizes = [needed.max(self.region_bytes), needed.max(64 * 1024), needed];
        let kinds: &[Protection] = match state.regions.first().map(|region| region.protection) {
            None => &[
                Protection::MemfdSecret,
                Protection::Locked,
                Protection::None,
            ],
            Some(Protection::MemfdSecret) => &[Protection::MemfdSecret],
            Some(Protection::Locked) => &[Protection::Locked],
            Some(Protection::None) => &[Protection::None],
        };
        let mut last = std::io::Error::from(std::io::ErrorKind::OutOfMemory);
        for kind in kinds {
            for size in sizes {
                match Region::new(size, *kind) {
                    Ok(region) => return Ok(region),
                    Err(error) => last = error,
                }
            }
        }
        if state.regions.is_empty() || kinds == [Protection::None] {
            return Err(MemoryError::System {
                call: "mmap",
                source: last,
            });
        }
        Err(MemoryError::LockLimit {
            requested_bytes: needed,
            limit_bytes: lock_limit(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The bookkeeping is consistent at every point where a panic is possible.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock_limit() -> u64 {
    #[cfg(miri)]
    return u64::MAX;
    #[cfg(not(miri))]
    rustix::process::getrlimit(rustix::process::Resource::Memlock)
        .current
        .unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn self_test_passes_and_names_the_protection() {
        let arena = Arena::new(64 * 1024);
        let protection = arena.start().unwrap();
        assert_eq!(protection, arena.status().protection);
        assert_eq!(arena.status().used_bytes, 0);
    }

    #[test]
    fn grows_by_regions_and_reuses_freed_blocks() {
        let arena = Arena::new(16 * 1024);
        let blocks: Vec<Block> = (0..5).map(|_| arena.allocate(8 * 1024).unwrap()).collect();
        assert_eq!(arena.status().regions, 3);
        let large = arena.allocate(40 * 1024).unwrap();
        assert_eq!(arena.status().regions, 4);
        for block in blocks.into_iter().chain([large]) {
            arena.release(block);
        }
        assert_eq!(arena.status().used_bytes, 0);
        arena.release(arena.allocate(40 * 1024).unwrap());
        assert_eq!(arena.status().regions, 4);
    }

    #[test]
    fn a_block_is_zero_again_when_it_is_handed_out_the_second_time() {
        let arena = Arena::new(16 * 1024);
        let block = arena.allocate(32).unwrap();
        let place = block.pointer;
        arena.write(&block, &[7; 32]);
        arena.release(block);
        let again = arena.allocate(32).unwrap();
        assert_eq!(again.pointer, place);
        let mut copy = [1; 32];
        arena.read(again.region, again.offset, &mut copy);
        assert_eq!(copy, [0; 32]);
        arena.release(again);
    }

    #[test]
    fn an_impossible_size_is_an_error() {
        assert!(matches!(
            Arena::new(4096).allocate(usize::MAX),
            Err(MemoryError::LockLimit { .. })
        ));
    }
}
