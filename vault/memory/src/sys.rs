//! The mapping calls that have no safe form.

use std::io;
use std::ptr::{self, NonNull};

/// Size of a page, a power of two.
pub(crate) fn page_size() -> usize {
    #[cfg(miri)]
    return 4096;
    #[cfg(not(miri))]
    rustix::param::page_size()
}

/// Wipes memory in a way that no optimiser removes.
pub(crate) fn wipe(bytes: &mut [u8]) {
    #[expect(unsafe_code, reason = "one wiping routine for slices and raw memory")]
    // SAFETY: pointer and length are those of an exclusive slice; any byte value is valid for u8.
    unsafe {
        wipe_raw(bytes.as_mut_ptr(), bytes.len());
    }
}

/// Wipes memory that may be uninitialised.
///
/// # Safety
/// `len` bytes at `pointer` are allocated, writable and nobody else's.
#[expect(
    unsafe_code,
    reason = "a volatile loop over bytes is twenty times slower"
)]
pub(crate) unsafe fn wipe_raw(pointer: *mut u8, len: usize) {
    #[cfg(not(miri))]
    // SAFETY: the caller's promise is what explicit_bzero asks for.
    unsafe {
        libc::explicit_bzero(pointer.cast(), len);
    }
    #[cfg(miri)]
    {
        // SAFETY: the caller's promise is what write_bytes asks for.
        unsafe { pointer.write_bytes(0, len) };
        std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
    }
}

/// A private mapping of the process that is unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    total: usize,
    guard: usize,
}

#[expect(unsafe_code, reason = "raw pointers are not Send by themselves")]
// SAFETY: the mapping belongs to the process, not to a thread; only its owner hands out access.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Reserves `size` (rounded up to pages) inaccessible bytes with a guard page on both sides.
    pub(crate) fn reserve(size: usize) -> io::Result<Self> {
        let guard = page_size();
        let total = size.next_multiple_of(guard).max(guard) + 2 * guard;
        let base = map(ptr::null_mut(), total, Access::None, Backing::Anonymous)?;
        Ok(Self { base, total, guard })
    }

    /// First byte between the guard pages.
    pub(crate) fn start(&self) -> NonNull<u8> {
        #[expect(unsafe_code, reason = "pointer arithmetic inside one mapping")]
        // SAFETY: the guard page is part of the mapping, so the result stays inside it.
        unsafe {
            self.base.add(self.guard)
        }
    }

    /// Bytes between the guard pages.
    pub(crate) fn size(&self) -> usize {
        self.total - 2 * self.guard
    }

    /// Puts readable and writable ordinary memory between the guard pages.
    pub(crate) fn open_anonymous(&self) -> io::Result<()> {
        map(
            self.start().as_ptr(),
            self.size(),
            Access::ReadWrite,
            Backing::Anonymous,
        )
        .map(drop)
    }

    /// Puts `memfd_secret` memory between the guard pages.
    #[cfg(not(miri))]
    pub(crate) fn open_secret(&self) -> io::Result<()> {
        let descriptor = memfd_secret(self.size())?;
        map(
            self.start().as_ptr(),
            self.size(),
            Access::ReadWrite,
            Backing::Secret(descriptor),
        )
        .map(drop)
    }

    #[cfg(miri)]
    pub(crate) fn open_secret(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    #[cfg(not(miri))]
    pub(crate) fn lock(&self) -> io::Result<()> {
        #[expect(unsafe_code, reason = "mlock is unsafe in rustix")]
        // SAFETY: the range is mapped by self; locking changes no content.
        unsafe { rustix::mm::mlock(self.start().as_ptr().cast(), self.size()) }.map_err(Into::into)
    }

    #[cfg(miri)]
    pub(crate) fn lock(&self) -> io::Result<()> {
        Ok(())
    }

    /// Keeps the memory out of core files.
    pub(crate) fn leave_out_of_core_files(&self) -> io::Result<()> {
        self.advise(libc::MADV_DONTDUMP)
    }

    /// Gives forked children zeros instead of the content; refused for shared memory.
    pub(crate) fn wipe_on_fork(&self) -> io::Result<()> {
        self.advise(libc::MADV_WIPEONFORK)
    }

    /// Leaves the memory out of forked children.
    pub(crate) fn leave_out_of_forks(&self) -> io::Result<()> {
        self.advise(libc::MADV_DONTFORK)
    }

    #[cfg(not(miri))]
    fn advise(&self, advice: libc::c_int) -> io::Result<()> {
        #[expect(unsafe_code, reason = "madvise has no safe form")]
        // SAFETY: the range is mapped by self; none of the three advices used here changes content.
        let answer = unsafe { libc::madvise(self.start().as_ptr().cast(), self.size(), advice) };
        if answer == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    #[cfg(miri)]
    fn advise(&self, _: libc::c_int) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        #[cfg(not(miri))]
        #[expect(unsafe_code, reason = "munmap has no safe form")]
        // SAFETY: base and total are those of the one mapping that self owns, and nothing borrows it any more.
        let _ = unsafe { libc::munmap(self.base.as_ptr().cast(), self.total) };
        #[cfg(miri)]
        {
            let layout = std::alloc::Layout::from_size_align(self.total, 4096)
                .expect("made with this layout");
            #[expect(unsafe_code, reason = "Miri has no mappings")]
            // SAFETY: allocated in `map` with this very layout.
            unsafe {
                std::alloc::dealloc(self.base.as_ptr(), layout);
            }
        }
    }
}

enum Access {
    None,
    ReadWrite,
}

enum Backing {
    Anonymous,
    #[cfg(not(miri))]
    Secret(std::os::fd::OwnedFd),
}

#[cfg(not(miri))]
fn memfd_secret(size: usize) -> io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
    #[expect(unsafe_code, reason = "neither rustix nor libc wraps memfd_secret")]
    // SAFETY: the call takes one flag and touches no memory of ours.
    let answer = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    let raw = RawFd::try_from(answer).map_err(io::Error::other)?;
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    #[expect(unsafe_code, reason = "a raw descriptor becomes an owned one")]
    // SAFETY: the kernel just made this descriptor for us and nobody else knows it.
    let descriptor = unsafe { OwnedFd::from_raw_fd(raw) };
    rustix::fs::ftruncate(&descriptor, size as u64)?;
    Ok(descriptor)
}

#[cfg(not(miri))]
fn map(at: *mut u8, size: usize, access: Access, backing: Backing) -> io::Result<NonNull<u8>> {
    use std::os::fd::AsRawFd as _;
    let protection = match access {
        Access::None => libc::PROT_NONE,
        Access::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
    };
    let (kind, descriptor) = match &backing {
        Backing::Anonymous => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
        Backing::Secret(owned) => (libc::MAP_SHARED, owned.as_raw_fd()),
    };
    let flags = if at.is_null() {
        kind
    } else {
        kind | libc::MAP_FIXED
    };
    #[expect(unsafe_code, reason = "mmap has no safe form")]
    // SAFETY: without an address the kernel picks a free range; with one, callers pass the inside of a
    // reservation that they own and nothing points into yet.
    let address = unsafe { libc::mmap(at.cast(), size, protection, flags, descriptor, 0) };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(address.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

#[cfg(miri)]
fn map(at: *mut u8, size: usize, _: Access, _: Backing) -> io::Result<NonNull<u8>> {
    if let Some(inside) = NonNull::new(at) {
        return Ok(inside);
    }
    let layout = std::alloc::Layout::from_size_align(size, 4096).map_err(io::Error::other)?;
    #[expect(unsafe_code, reason = "Miri has no mappings")]
    // SAFETY: the layout is never empty: it holds two guard pages.
    let base = unsafe { std::alloc::alloc_zeroed(layout) };
    NonNull::new(base).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

/// Reads memory of process `pid` (our own included) at `address`; answers how many bytes were readable.
#[cfg(not(miri))]
pub(crate) fn read_process(pid: i32, address: usize, into: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec {
        iov_base: into.as_mut_ptr().cast(),
        iov_len: into.len(),
    };
    let remote = libc::iovec {
        iov_base: ptr::without_provenance_mut(address),
        iov_len: into.len(),
    };
    #[expect(unsafe_code, reason = "process_vm_readv has no safe form")]
    // SAFETY: the local vector is an exclusive slice; the remote address is checked by the kernel,
    // which copies (other threads may write meanwhile: the copy is then a mixture, never a fault).
    let answer =
        unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(answer).map_err(|_| io::Error::last_os_error())
}

#[cfg(miri)]
pub(crate) fn read_process(_: i32, _: usize, _: &mut [u8]) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}
