//! A layer of isolation that could not be put up: what, why, and what to do about it.

use std::fmt::Display;
use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

use crate::HandsError;

/// Why no sandbox is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Missing {
    pub(crate) what: String,
    pub(crate) fix: String,
}

impl Missing {
    pub(crate) fn new(what: &str, why: impl Display, fix: impl Into<String>) -> Self {
        Self {
            what: format!("{what} ({why})"),
            fix: fix.into(),
        }
    }

    /// The kernel refused a step that works wherever the earlier layers do.
    pub(crate) fn step(what: &str, why: impl Display) -> Self {
        Self::new(
            what,
            why,
            "run `claviger doctor` on the machine itself, outside any container",
        )
    }

    /// The kernel refused the namespaces themselves.
    pub(crate) fn namespaces(error: &io::Error) -> Self {
        Self::new(
            "user namespaces",
            error,
            namespaces_fix(error.raw_os_error()),
        )
    }

    /// The namespaces exist but give no rights in them, which is how AppArmor and containers refuse.
    pub(crate) fn rights(what: &str, error: impl Display) -> Self {
        Self::new(what, error, namespaces_fix(Some(libc::EPERM)))
    }
}

impl From<Missing> for HandsError {
    fn from(missing: Missing) -> Self {
        Self::Unsupported {
            what: missing.what,
            fix: missing.fix,
        }
    }
}

/// A number under /proc/sys, if it can be read.
pub(crate) fn sysctl(name: &str) -> Option<i64> {
    fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/")))
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// Names the switch that most likely denies user namespaces, and how to turn it.
pub(crate) fn namespaces_fix(errno: Option<i32>) -> String {
    if sysctl("kernel.apparmor_restrict_unprivileged_userns") == Some(1) {
        return "AppArmor denies them to programs without a profile: install Claviger's profile, or \
                `sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`"
            .to_owned();
    }
    if sysctl("kernel.unprivileged_userns_clone") == Some(0) {
        return "allow them: `sudo sysctl kernel.unprivileged_userns_clone=1`".to_owned();
    }
    if sysctl("user.max_user_namespaces") == Some(0) || errno == Some(libc::ENOSPC) {
        return "raise the limit: `sudo sysctl user.max_user_namespaces=15000`".to_owned();
    }
    if errno == Some(libc::EINVAL) {
        return "this kernel is built without them: use one with CONFIG_USER_NS".to_owned();
    }
    "a container or a security module denies them: run outside the container, or allow user namespaces and mounts in it"
        .to_owned()
}
