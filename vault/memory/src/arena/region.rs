//! One stretch of secret memory between two guard pages.

use std::io;
use std::ops::Range;
use std::ptr::NonNull;

use super::Protection;
use super::free_list::FreeList;
use crate::sys::{self, Mapping};

#[derive(Debug)]
pub(crate) struct Region {
    mapping: Mapping,
    pub(crate) protection: Protection,
    pub(crate) free: FreeList,
}

impl Region {
    /// Maps a region with exactly this protection.
    pub(crate) fn new(size: usize, protection: Protection) -> io::Result<Self> {
        let mapping = Mapping::reserve(size)?;
        match protection {
            Protection::MemfdSecret => {
                mapping.open_secret()?;
                mapping.leave_out_of_forks()?;
            }
            Protection::Locked => {
                mapping.open_anonymous()?;
                mapping.lock()?;
                mapping.wipe_on_fork()?;
            }
            Protection::None => {
                mapping.open_anonymous()?;
                mapping.wipe_on_fork()?;
            }
        }
        mapping.leave_out_of_core_files()?;
        let free = FreeList::new(mapping.size());
        Ok(Self {
            mapping,
            protection,
            free,
        })
    }

    pub(crate) fn size(&self) -> usize {
        self.mapping.size()
    }

    pub(crate) fn addresses(&self) -> Range<usize> {
        let start = self.mapping.start().as_ptr().addr();
        start..start + self.size()
    }

    /// Pointer to the byte at `offset`, which lies inside the region.
    pub(crate) fn pointer(&self, offset: usize) -> NonNull<u8> {
        assert!(
            offset <= self.size(),
            "offsets come from this region's own free list"
        );
        #[expect(unsafe_code, reason = "pointer arithmetic inside one mapping")]
        // SAFETY: offset was checked to lie inside the mapping.
        unsafe {
            self.mapping.start().add(offset)
        }
    }

    /// Copies content out for the memory scan, also while others use it.
    pub(crate) fn copy_out(&self, offset: usize, into: &mut [u8]) {
        assert!(
            offset + into.len() <= self.size(),
            "the scan stays inside the region"
        );
        for (index, byte) in into.iter_mut().enumerate() {
            let from = self.pointer(offset + index);
            #[expect(
                unsafe_code,
                reason = "the owner of a block may write while the scan reads"
            )]
            // SAFETY: index stays inside the region (checked above). A volatile read of a single byte
            // cannot tear; the copy may mix old and new bytes, and only fingerprints are computed of it.
            let value = unsafe { from.read_volatile() };
            *byte = value;
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let size = self.size();
        #[expect(unsafe_code, reason = "a slice over the whole region")]
        // SAFETY: the arena drops a region only when no block of it is left, so this access is exclusive.
        let all = unsafe { std::slice::from_raw_parts_mut(self.mapping.start().as_ptr(), size) };
        sys::wipe(all);
    }
}
