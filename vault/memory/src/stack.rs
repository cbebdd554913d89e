use std::mem::MaybeUninit;

use crate::sys;

const WIPED_BYTES: usize = 64 * 1024;

/// Wipes 64 KiB of stack below the caller.
///
/// Called after a cryptographic call whose library leaves key schedules on the stack. What the callee's
/// frames left behind is overwritten; what the compiler put into the caller's own frame is not, so the
/// call to wipe after sits in a function of its own that is never inlined. Takes about 2 µs.
#[inline(never)]
pub fn wipe_stack() {
    let mut below = MaybeUninit::<[u8; WIPED_BYTES]>::uninit();
    let start = below.as_mut_ptr().cast::<u8>();
    #[expect(
        unsafe_code,
        reason = "the array is wiped without being initialised first"
    )]
    // SAFETY: the array is ours, alive and 64 KiB long.
    unsafe {
        sys::wipe_raw(start, WIPED_BYTES);
    }
    std::hint::black_box(&below);
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use super::*;

    #[inline(never)]
    fn leave_on_stack(value: u8) -> usize {
        let frame = [std::hint::black_box(value); 4096];
        std::hint::black_box(&frame).as_ptr().addr()
    }

    #[inline(never)]
    fn count_on_stack(value: u8, at: usize) -> usize {
        let mut copy = [0u8; 4096];
        let pid = rustix::process::getpid().as_raw_pid();
        sys::read_process(pid, at, &mut copy).unwrap();
        copy.iter().filter(|byte| **byte == value).count()
    }

    #[test]
    fn what_a_callee_left_is_gone() {
        let marker = 0xA7;
        // The reader's own frame lies over the marked one: read from far above it, by a deeper call.
        let at = leave_deep(marker, 8);
        assert!(
            count_on_stack(marker, at) > 4000,
            "control: without wiping the marker is still there"
        );
        let at = leave_deep(marker, 8);
        wipe_stack();
        assert_eq!(count_on_stack(marker, at), 0);
    }

    #[inline(never)]
    fn leave_deep(value: u8, depth: u8) -> usize {
        let pad = [std::hint::black_box(0u8); 3000];
        let at = if depth == 0 {
            leave_on_stack(value)
        } else {
            leave_deep(value, depth - 1)
        };
        std::hint::black_box(&pad);
        at
    }
}
