//! The small single-threaded process that every sandbox is cloned from.
//!
//! It is forked before the role has threads, forgets everything it inherited (descriptors, arguments, environment), and
//! then does one thing: clone a child into fresh namespaces, map its user, and hand back a control socket and a pidfd.
//! It ends with its socket; so do the sandboxes.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::process::{DumpableBehavior, Pid, PidfdFlags, WaitOptions};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

use crate::inside;
use crate::missing::Missing;
use crate::namespaces::{Layout, enter};
use crate::passing::{self, Inbox};
use crate::sys::{self, Forked};
use crate::{HandsError, Resources};

/// The handle of the process that sandboxes are cloned from; dropping it ends that process and every sandbox.
#[derive(Debug)]
pub struct Zygote {
    link: Option<UnixStream>,
    pid: Pid,
}

impl Zygote {
    /// Takes the socket; the process ends when the socket closes.
    pub(crate) fn take_link(&mut self) -> Option<UnixStream> {
        self.link.take()
    }

    /// Becomes readable when the process has ended.
    pub(crate) fn watch(&self) -> io::Result<AsyncFd<OwnedFd>> {
        sys::watch(rustix::process::pidfd_open(self.pid, PidfdFlags::empty())?)
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        drop(self.link.take());
        // It ends as soon as its socket does; an error means that somebody else has waited for it.
        rustix::process::waitpid(Some(self.pid), WaitOptions::empty()).ok();
    }
}

/// What the role asks of the zygote.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Launch {
    pub(crate) resources: Resources,
}

/// What it answers; `Launched` carries the control socket and the pidfd.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Launched {
    Failed(Missing),
    Launched { pid: i32 },
}

/// Forks the zygote; call it first thing in `main`, before any thread exists.
///
/// # Errors
/// `Refused` when the process already has threads; `Internal` when the fork fails.
pub fn start_zygote() -> Result<Zygote, HandsError> {
    if !is_single_threaded() {
        return Err(HandsError::refused(
            "the zygote is started before any thread, first thing in main",
        ));
    }
    let (ours, theirs) =
        UnixStream::pair().map_err(|error| HandsError::internal("make a socket pair", error))?;
    match sys::fork().map_err(|error| HandsError::internal("fork the zygote", error))? {
        Forked::Child => {
            drop(ours);
            let code = catch_unwind(AssertUnwindSafe(|| live(theirs)));
            sys::exit_now(i32::from(!matches!(code, Ok(Ok(())))))
        }
        Forked::Parent(pid) => Ok(Zygote {
            link: Some(ours),
            pid,
        }),
    }
}

pub(crate) fn is_single_threaded() -> bool {
    fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1)
}

fn live(link: UnixStream) -> io::Result<()> {
    let link = keep_only(link.into())?;
    // What cannot be forgotten is no reason to end without a word: every launch is refused with the cause.
    let layout = forget_inheritance()
        .map(|()| Layout::of_this_machine())
        .map_err(|error| Missing::step("a zygote that has forgotten its parent", error));
    let mut inbox = Inbox::default();
    while let Some(Launch { resources }) = inbox.wait(&link)? {
        let launched = layout
            .as_ref()
            .map_err(Clone::clone)
            .and_then(|layout| launch(&resources, layout));
        match launched {
            Ok((pid, control, pidfd)) => passing::send_frame(
                &link,
                &Launched::Launched {
                    pid: pid.as_raw_nonzero().get(),
                },
                &[control.as_fd(), pidfd.as_fd()],
            )?,
            Err(missing) => passing::send_frame(&link, &Launched::Failed(missing), &[])?,
        }
    }
    Ok(())
}

/// Closes every descriptor but the link, which gets number 3, and the null device at 0, 1 and 2.
fn keep_only(link: OwnedFd) -> io::Result<OwnedFd> {
    let null = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    for number in 0..3 {
        sys::put_at(null.as_fd(), number)?;
    }
    sys::put_at(link.as_fd(), 3)?;
    if link.as_raw_fd() == 3 {
        // `own` below becomes the one owner of number 3.
        let _same_number = std::os::fd::IntoRawFd::into_raw_fd(link);
    } else {
        drop(link);
    }
    if null.as_raw_fd() > 3 {
        drop(null);
    } else {
        let _same_number = std::os::fd::IntoRawFd::into_raw_fd(null);
    }
    let link = sys::own(3);
    rustix::io::fcntl_setfd(&link, rustix::io::FdFlags::CLOEXEC)?;
    sys::close_from(4)?;
    Ok(link)
}

/// Drops what a forked process shares with its parent beside descriptors.
fn forget_inheritance() -> io::Result<()> {
    sys::default_signals();
    sys::ignore_signal(libc::SIGCHLD);
    sys::ignore_signal(libc::SIGPIPE);
    // Out of the terminal's process group: its signals are for the supervisor, which then closes our link.
    rustix::process::setsid()?;
    std::env::set_current_dir("/")?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // An unprivileged process that is not dumpable may not write its child's uid_map; there is nothing to read here.
    rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    erase_arguments()?;
    if rustix::process::geteuid().is_root() {
        match rustix::thread::set_thread_groups(&[]) {
            // Root of a user namespace that denies it is an ordinary user, whose groups cannot be dropped either.
            Ok(()) | Err(rustix::io::Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // Under memory pressure sandboxes go before the hands; lowering a greater value would need a capability.
    let score = "/proc/self/oom_score_adj";
    if fs::read_to_string(score)?
        .trim()
        .parse()
        .is_ok_and(|now: i32| now < 500)
    {
        fs::write(score, "500")?;
    }
    // A name that says what it is in a process list; not having it harms nobody.
    rustix::thread::set_name(c"claviger-zygote").ok();
    Ok(())
}

/// Overwrites the argument and environment strings of the copied process image.
///
/// Pid 1 of a sandbox runs on this image; nobody inside may read it, and if somebody could, there is nothing to find.
fn erase_arguments() -> io::Result<()> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // Fields 48 and 51 of proc(5), counted after the command name, which may hold spaces: arg_start and env_end.
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .map_or("", |(_, rest)| rest)
        .split_whitespace()
        .collect();
    let field = |number: usize| -> Option<u64> { fields.get(number - 3)?.parse().ok() };
    let (Some(start), Some(end)) = (field(48), field(51)) else {
        return Err(io::Error::other("no argument area in /proc/self/stat"));
    };
    if start == 0 || end <= start || end - start > 8 << 20 {
        return Err(io::Error::other(
            "an impossible argument area in /proc/self/stat",
        ));
    }
    let memory = fs::OpenOptions::new().write(true).open("/proc/self/mem")?;
    let zeros = vec![0; usize::try_from(end - start).map_err(io::Error::other)?];
    memory.write_all_at(&zeros, start)
}

fn launch(resources: &Resources, layout: &Layout) -> Result<(Pid, OwnedFd, OwnedFd), Missing> {
    let broken = |what: &str, error: &dyn std::fmt::Display| {
        Missing::new(what, error, "see the limits of this machine")
    };
    let (ours, theirs) = UnixStream::pair().map_err(|error| broken("a socket pair", &error))?;
    let (gate, opener) = UnixStream::pair().map_err(|error| broken("a socket pair", &error))?;
    match sys::clone_into_namespaces().map_err(|error| Missing::namespaces(&error))? {
        Forked::Child => {
            drop((ours, opener));
            let code = catch_unwind(AssertUnwindSafe(|| child(theirs, &gate, resources, layout)));
            sys::exit_now(i32::from(!matches!(code, Ok(Ok(())))))
        }
        Forked::Parent((pid, pidfd)) => {
            // A child whose gate closes without a byte ends by itself.
            map_user(pid, layout)?;
            rustix::io::write(&opener, b"!").map_err(|error| broken("the new process", &error))?;
            Ok((pid, ours.into(), pidfd))
        }
    }
}

/// Maps the one user of the sandbox to one user of the host, and denies it every other.
fn map_user(pid: Pid, layout: &Layout) -> Result<(), Missing> {
    let pid = pid.as_raw_nonzero();
    let write = |file: &str, text: &str| {
        fs::write(format!("/proc/{pid}/{file}"), text)
            .map_err(|error| Missing::rights("a user namespace with rights", error))
    };
    let (uid, gid) = layout.next_host_user();
    write("setgroups", "deny")?;
    write("uid_map", &format!("{} {uid} 1", inside::UID))?;
    write("gid_map", &format!("{} {gid} 1", inside::UID))
}

fn child(
    control: UnixStream,
    gate: &UnixStream,
    resources: &Resources,
    layout: &Layout,
) -> io::Result<()> {
    let mut byte = [0];
    if rustix::io::read(gate, &mut byte)? != 1 {
        return Ok(());
    }
    match enter(control.into(), resources, layout) {
        Ok((control, listeners)) => {
            let descriptors: Vec<_> = listeners.iter().map(|listener| listener.as_fd()).collect();
            passing::send_frame(&control, &inside::Says::Ready, &descriptors)?;
            drop(listeners);
            inside::serve(control, resources)
        }
        Err((control, missing)) => {
            passing::send_frame(&control, &inside::Says::Failed(missing), &[])
        }
    }
}
