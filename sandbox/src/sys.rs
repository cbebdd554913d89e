//! The system calls that have no safe wrapper: the only room of this crate with `unsafe`.
//!
//! rustix, landlock and seccompiler cover everything else. Each function here is safe to call under the condition its
//! documentation names; conditions about threads hold because the zygote and everything cloned from it have one thread.

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::ptr;

use rustix::process::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Which side of a fork this is.
#[derive(Debug)]
pub(crate) enum Forked<T> {
    Child,
    Parent(T),
}

fn check(result: c_long) -> io::Result<c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn pid(raw: c_long) -> io::Result<Pid> {
    i32::try_from(raw)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::other("the kernel gave no process id"))
}

/// Forks a process that has one thread; the child may run any code.
pub(crate) fn fork() -> io::Result<Forked<Pid>> {
    // SAFETY: the callers (start_zygote, which counts the threads, and pid 1, which never makes one) have a single
    // thread, so no lock can be held by a thread that does not exist in the child. rustix offers fork only as unsafe, too.
    let result = check(c_long::from(unsafe { libc::fork() }))?;
    if result == 0 {
        Ok(Forked::Child)
    } else {
        Ok(Forked::Parent(pid(result)?))
    }
}

/// Clones this single-threaded process into fresh user, mount, pid, net, ipc, uts and cgroup namespaces.
pub(crate) fn clone_into_namespaces() -> io::Result<Forked<(Pid, OwnedFd)>> {
    let flags = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_PIDFD
        | libc::SIGCHLD;
    let mut pidfd: c_int = -1;
    let none: c_ulong = 0;
    // SAFETY: without CLONE_VM and with a null stack this is a fork: the child runs on a copy of this stack. `pidfd` is a
    // live c_int to which the kernel writes. The zygote has one thread, as for `fork`. glibc has no wrapper that takes
    // namespace flags without a separate stack; rustix has none.
    let result = check(unsafe {
        libc::syscall(
            libc::SYS_clone,
            c_ulong::from(flags.unsigned_abs()),
            none,
            &raw mut pidfd,
            none,
            none,
        )
    })?;
    if result == 0 {
        return Ok(Forked::Child);
    }
    // SAFETY: CLONE_PIDFD succeeded, so `pidfd` is a descriptor that nothing else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Forked::Parent((pid(result)?, pidfd)))
}

/// Ends this process at once, without running what the parent's copy of the program registered for its exit.
pub(crate) fn exit_now(code: c_int) -> ! {
    // SAFETY: _exit takes no pointers and does not return; std has only `exit`, which runs handlers twice after a fork.
    unsafe { libc::_exit(code) }
}

/// Closes every descriptor from `first` on. Only for a process that is about to exec or that has forgotten those
/// descriptors.
pub(crate) fn close_from(first: RawFd) -> io::Result<()> {
    let first = c_uint::try_from(first).map_err(io::Error::other)?;
    // SAFETY: the callers have just forked and own no value that would close or use these descriptors afterwards.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, c_uint::MAX, 0 as c_uint) })
        .map(drop)
}

/// Puts a copy of `from` at the number `to`, which survives exec.
pub(crate) fn put_at(from: BorrowedFd<'_>, to: RawFd) -> io::Result<()> {
    if from.as_raw_fd() == to {
        return rustix::io::fcntl_setfd(from, rustix::io::FdFlags::empty()).map_err(Into::into);
    }
    // SAFETY: the callers have just forked; what `to` named before is not used again. std and rustix have no dup2 onto
    // a number that no value owns.
    check(c_long::from(unsafe { libc::dup2(from.as_raw_fd(), to) })).map(drop)
}

/// Takes ownership of the descriptor with this number. Only for a number that `put_at` has just filled.
pub(crate) fn own(number: RawFd) -> OwnedFd {
    // SAFETY: the caller put the descriptor there itself in this process and nothing else owns that number.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Adds attributes to a mount, and to all mounts below it if `recursive`.
pub(crate) fn restrict_mount(path: &CStr, attributes: u64, recursive: bool) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let flags = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: `path` is a C string, `attr` a live struct of the size that is passed. rustix has no mount_setattr.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// Brings the loopback interface of this network namespace up.
pub(crate) fn loopback_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut name: [c_char; libc::IFNAMSIZ] = [0; libc::IFNAMSIZ];
    for (to, from) in name.iter_mut().zip(b"lo") {
        *to = from.cast_signed() as c_char;
    }
    let up = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).map_err(io::Error::other)?;
    let request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: up },
    };
    // SAFETY: SIOCSIFFLAGS reads one `ifreq`, which lives across the call. rustix has no interface flags.
    check(c_long::from(unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request)
    }))
    .map(drop)
}

/// Gives every signal its default action and blocks none: what a program expects at its start.
pub(crate) fn default_signals() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL installs no handler; a number the kernel refuses is an error that changes nothing.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: sigset_t is plain data for which zero bytes are a valid value; sigemptyset sets it properly below.
    let mut none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `none` is a live sigset_t.
    unsafe { libc::sigemptyset(&raw mut none) };
    // SAFETY: `none` is initialised; the old mask is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()) };
}

/// Ignores a signal: SIGCHLD, so that the kernel reaps children; SIGPIPE, so that a reader's end is an error like others.
pub(crate) fn ignore_signal(signal: c_int) {
    // SAFETY: SIG_IGN installs no handler.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// A descriptor that becomes readable when a child ends; SIGCHLD is blocked from now on.
pub(crate) fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: as in `default_signals`: plain data, initialised by sigemptyset below.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a live sigset_t.
    unsafe { libc::sigemptyset(&raw mut set) };
    // SAFETY: `set` is initialised and SIGCHLD is a signal number.
    unsafe { libc::sigaddset(&raw mut set, libc::SIGCHLD) };
    // SAFETY: `set` is initialised; the old mask is not asked for.
    check(c_long::from(unsafe {
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut())
    }))?;
    // SAFETY: -1 asks for a new descriptor; `set` is initialised. rustix has no signalfd.
    let fd = check(c_long::from(unsafe {
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    }))?;
    let fd = c_int::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: signalfd succeeded, so `fd` is a descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Replaces this program; returns only the error.
pub(crate) fn execute(path: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const c_char> {
        strings
            .iter()
            .map(|s| s.as_ptr())
            .chain(std::iter::once(ptr::null()))
            .collect()
    };
    let (argv, envp) = (pointers(arguments), pointers(environment));
    // SAFETY: both arrays end in null and their strings live across the call. std's Command would fork once more.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

/// Tries whether the kernel lets this process make a user namespace, in a child that does nothing else.
pub(crate) fn try_user_namespace() -> io::Result<()> {
    let none: c_ulong = 0;
    let flags = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::SIGCHLD;
    // SAFETY: a fork as in `clone_into_namespaces`; the child calls nothing but _exit, so other threads do not matter.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone,
            c_ulong::from(flags.unsigned_abs()),
            none,
            ptr::null_mut::<c_void>(),
            none,
            none,
        )
    };
    if result == 0 {
        exit_now(0);
    }
    let child = pid(check(result)?)?;
    rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty())?;
    Ok(())
}

/// Watches a descriptor for being readable on the runtime.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by the result and closed only when that is dropped, which ends the registration
    // first; nobody takes the inner value out or replaces it. tokio has no safe constructor for an owned descriptor.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(Into::into)
}
