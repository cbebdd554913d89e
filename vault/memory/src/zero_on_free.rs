use std::alloc::{GlobalAlloc, Layout};

use crate::sys;

/// A global allocator that wipes every block before it goes back.
///
/// `realloc` always moves: the old block is wiped after the copy. Memory that C code takes from `malloc`
/// itself does not pass through here.
///
/// ```
/// #[global_allocator]
/// static ALLOCATOR: claviger_vault_memory::ZeroOnFree<std::alloc::System> =
///     claviger_vault_memory::ZeroOnFree(std::alloc::System);
/// # fn main() {}
/// ```
#[derive(Debug, Default)]
pub struct ZeroOnFree<A>(pub A);

#[expect(unsafe_code, reason = "a global allocator is an unsafe trait")]
// SAFETY: every call is passed on to the inner allocator with the layout it was made with, and its answers
// are returned unchanged; between, only bytes of the block itself are written, while the caller has given
// up the block (dealloc) or not yet received it (realloc).
unsafe impl<A: GlobalAlloc> GlobalAlloc for ZeroOnFree<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's obligations are those of the inner allocator.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's obligations are those of the inner allocator.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the block is `layout.size()` bytes that the caller has given up.
        unsafe { sys::wipe_raw(pointer, layout.size()) };
        // SAFETY: the caller's obligations are those of the inner allocator.
        unsafe { self.0.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller promises a new size that is not zero and fits the alignment.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        // SAFETY: the new layout is not empty, as the caller promises.
        let moved = unsafe { self.0.alloc(new_layout) };
        if moved.is_null() {
            return moved;
        }
        // SAFETY: both blocks are live, different, and at least as long as the shorter of both.
        unsafe { pointer.copy_to_nonoverlapping(moved, layout.size().min(new_size)) };
        // SAFETY: the old block was allocated here with this layout and is given up by the caller.
        unsafe { self.dealloc(pointer, layout) };
        moved
    }
}
