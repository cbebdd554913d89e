//! The `attach` link: the hands give the listeners of each sandbox to the role that answers them.

use std::net::TcpListener;

use tokio::net::UnixStream;
use tokio::sync::mpsc;

use crate::SandboxId;

/// A sandbox whose listeners are now ours to serve.
#[derive(Debug)]
pub struct Attached {
    /// The session it belongs to.
    pub session: String,
    /// The epoch attached to that session.
    pub epoch: u64,
    /// The sandbox.
    pub sandbox: SandboxId,
    /// What programs inside reach as 127.0.0.1:7000.
    pub mcp: TcpListener,
    /// What programs inside reach as 127.0.0.1:7001.
    pub egress: TcpListener,
}

/// What the hands say.
#[derive(Debug)]
pub enum Handover {
    /// A sandbox is there; a repeat for a known sandbox carries its newest epoch.
    Attached(Attached),
    /// A sandbox is gone; close its listeners.
    Detached(SandboxId),
}

/// Receives what the hands hand over, across restarts of either side.
#[derive(Debug)]
pub struct AttachReceiver {
    links: mpsc::Receiver<UnixStream>,
}

impl AttachReceiver {
    /// Makes a receiver of the newest link that arrives.
    pub fn new(links: mpsc::Receiver<UnixStream>) -> Self {
        Self { links }
    }

    /// Waits for the next message; `None` when no link can come any more.
    pub async fn next(&mut self) -> Option<Handover> {
        self.links.recv().await.and(None)
    }
}
