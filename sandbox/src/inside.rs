//! Pid 1 of a sandbox: reads what the hands ask on its one socket, runs the tools, answers.
//!
//! One thread and one loop. The shell is a child that lives as long as the sandbox; every other tool call is a forked
//! child of its own, so that a file that never ends or a pattern that never matches holds up nobody and cannot take
//! pid 1 with it. When the socket ends, pid 1 ends, and the kernel ends everything else.

mod files;
mod search;
mod shell;
mod supervisor;
mod tail;
mod tool;
mod worker;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::supervisor::Supervisor;
use crate::missing::Missing;
use crate::{Output, Resources};

/// The only user and group inside.
pub(crate) const UID: u32 = 1000;
/// Where programs start and files live.
pub(crate) const WORKSPACE: &str = "/workspace";
/// The port of the `mcp` listener.
pub(crate) const MCP_PORT: u16 = 7000;
/// The port of the `egress` listener.
pub(crate) const EGRESS_PORT: u16 = 7001;

/// What the hands tell pid 1.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Told {
    Call(Call),
    Interrupt,
}

/// One tool call.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Call {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) input: Value,
    pub(crate) timeout_ms: u64,
}

/// What pid 1 says; `Ready` carries the listeners.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Says {
    Answer { id: u64, output: Output },
    Failed(Missing),
    Ready,
}

/// Serves until the socket ends.
pub(crate) fn serve(control: OwnedFd, resources: &Resources) -> io::Result<()> {
    Supervisor::new(control, environment(resources)?)?.run()
}

fn environment(resources: &Resources) -> io::Result<Vec<CString>> {
    let proxy = format!("http://127.0.0.1:{EGRESS_PORT}");
    let mut all = BTreeMap::from([
        ("HOME", WORKSPACE.to_owned()),
        ("LANG", "C.UTF-8".to_owned()),
        (
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
        ),
        ("USER", "sandbox".to_owned()),
    ]);
    if resources.listeners {
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
            all.insert(name, proxy.clone());
        }
        all.insert("NO_PROXY", "localhost,127.0.0.1,::1".to_owned());
        all.insert("no_proxy", "localhost,127.0.0.1,::1".to_owned());
        all.insert(
            "CLAVIGER_MCP_URL",
            format!("http://127.0.0.1:{MCP_PORT}/mcp"),
        );
    }
    for (name, value) in &resources.environment {
        all.insert(name, value.clone());
    }
    all.into_iter()
        .map(|(name, value)| CString::new(format!("{name}={value}")).map_err(io::Error::other))
        .collect()
}
