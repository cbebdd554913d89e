//! The default backend: Linux namespaces, a root of its own, no capability, Landlock and seccomp.
//!
//! Every step is an order of the kernel that either holds or makes the sandbox refuse to start; there is no weaker mode.

mod confine;
mod filter;
mod network;
mod root;

use std::cell::Cell;
use std::fs;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::process::{DumpableBehavior, Signal};
use seccompiler::BpfProgram;

pub(crate) use self::confine::{landlock_abi, nest};
use crate::missing::Missing;
use crate::{Resources, inside, sys};

/// What of this machine goes into every sandbox, looked up once.
#[derive(Debug)]
pub(crate) struct Layout {
    root: root::Plan,
    filters: Result<Vec<BpfProgram>, Missing>,
    host_users: HostUsers,
}

#[derive(Debug)]
enum HostUsers {
    /// Started as root: each sandbox is another user that no file on the host belongs to.
    Many { next: Cell<u32> },
    /// An ordinary user can map only itself.
    One { uid: u32, gid: u32 },
}

/// Where the users of sandboxes start when root may choose: above the ranges that distributions and containers hand out.
const FIRST_HOST_USER: u32 = 2_000_000_000;
const HOST_USERS: u32 = 100_000_000;

impl Layout {
    pub(crate) fn of_this_machine() -> Self {
        let own = HostUsers::One {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        };
        let host_users = if rustix::process::geteuid().is_root()
            && maps_host_users("uid")
            && maps_host_users("gid")
        {
            HostUsers::Many { next: Cell::new(0) }
        } else {
            own
        };
        Self {
            root: root::Plan::of_this_machine(),
            filters: filter::compile(),
            host_users,
        }
    }

    /// The user and group of the host that the next sandbox runs as.
    pub(crate) fn next_host_user(&self) -> (u32, u32) {
        match &self.host_users {
            HostUsers::Many { next } => {
                let offset = next.get();
                next.set((offset + 1) % HOST_USERS);
                (FIRST_HOST_USER + offset, FIRST_HOST_USER + offset)
            }
            HostUsers::One { uid, gid } => (*uid, *gid),
        }
    }
}

/// Whether the range that we take host users from exists here; inside a container's own user namespace it may not.
fn maps_host_users(kind: &str) -> bool {
    let map = fs::read_to_string(format!("/proc/self/{kind}_map")).unwrap_or_default();
    map.lines().any(|line| {
        let numbers: Vec<u64> = line
            .split_whitespace()
            .filter_map(|number| number.parse().ok())
            .collect();
        let [first, _, count] = numbers.as_slice() else {
            return false;
        };
        *first <= u64::from(FIRST_HOST_USER)
            && first + count >= u64::from(FIRST_HOST_USER + HOST_USERS)
    })
}

/// Turns the freshly cloned process into pid 1 of a sandbox; returns its control socket and the listeners for the host.
///
/// The order matters: what needs the host's tree comes before `pivot_root`, what needs capabilities before they are
/// dropped, and seccomp last.
pub(crate) fn enter(
    control: OwnedFd,
    resources: &Resources,
    layout: &Layout,
) -> Result<(OwnedFd, Vec<TcpListener>), (OwnedFd, Missing)> {
    let control = keep_only(control)?;
    match build(resources, layout) {
        Ok(listeners) => Ok((control, listeners)),
        Err(missing) => Err((control, missing)),
    }
}

/// Closes every descriptor but the control socket and the null device at 0, 1 and 2.
fn keep_only(control: OwnedFd) -> Result<OwnedFd, (OwnedFd, Missing)> {
    // The zygote's link is number 3 and is not used again in this process; the control socket takes its place.
    if let Err(error) = sys::put_at(control.as_fd(), 3) {
        return Err((control, Missing::step("a clean descriptor table", error)));
    }
    drop(control);
    let control = sys::own(3);
    let closed = rustix::io::fcntl_setfd(&control, rustix::io::FdFlags::CLOEXEC)
        .map_err(std::io::Error::from)
        .and_then(|()| sys::close_from(4));
    match closed {
        Ok(()) => Ok(control),
        Err(error) => Err((control, Missing::step("a clean descriptor table", error))),
    }
}

fn build(resources: &Resources, layout: &Layout) -> Result<Vec<TcpListener>, Missing> {
    sys::default_signals();
    sys::ignore_signal(libc::SIGPIPE);
    let filters = layout.filters.as_ref().map_err(Clone::clone)?;
    let user = rustix::process::Uid::from_raw(inside::UID);
    let group = rustix::process::Gid::from_raw(inside::UID);
    rustix::thread::set_thread_res_gid(group, group, group)
        .map_err(|e| Missing::rights("a group of its own", e))?;
    rustix::thread::set_thread_res_uid(user, user, user)
        .map_err(|e| Missing::rights("a user of its own", e))?;
    // After the change of user, which clears it: the zygote's end is ours.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|e| Missing::step("an end with its owner", e))?;
    // Nobody inside may trace pid 1 or read its memory, which is a copy of the zygote's.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|e| Missing::step("an unreadable pid 1", e))?;
    rustix::thread::set_name(c"sandbox").ok();

    root::close_user_namespaces()?;
    root::build(&layout.root, &resources.limits)?;
    rustix::system::sethostname(b"sandbox")
        .map_err(|e| Missing::step("a host name of its own", e))?;
    let listeners = network::bring_up(resources.listeners)?;
    confine::confine(&resources.limits)?;
    filter::apply(filters)?;
    Ok(listeners)
}
