//! The `attach` link: the hands give the listeners of each sandbox to the role that answers them.
//!
//! A listener *is* a sandbox's identity: whoever connects to it runs inside that sandbox, so no token exists to steal.

use std::collections::HashSet;
use std::io;
use std::net::TcpListener;

use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use crate::SandboxId;
use crate::passing::Inbox;

/// A sandbox whose listeners are now ours to serve.
#[derive(Debug)]
pub struct Attached {
    /// The session it belongs to.
    pub session: String,
    /// The epoch attached to that session.
    pub epoch: u64,
    /// The sandbox.
    pub sandbox: SandboxId,
    /// What programs inside reach as 127.0.0.1:7000; non-blocking.
    pub mcp: TcpListener,
    /// What programs inside reach as 127.0.0.1:7001; non-blocking.
    pub egress: TcpListener,
}

/// What the hands say.
#[derive(Debug)]
pub enum Handover {
    /// A sandbox is there. A repeat for a known sandbox carries the newest epoch and fresh copies of its listeners.
    Attached(Attached),
    /// A sandbox is gone; close its listeners.
    Detached(SandboxId),
}

/// The message itself; `Attached` is followed by two descriptors, `mcp` and `egress`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Message {
    Attached {
        session: String,
        epoch: u64,
        sandbox: SandboxId,
    },
    Detached {
        sandbox: SandboxId,
    },
    /// Every sandbox alive when the link was made has been named.
    Listed,
}

/// Receives what the hands hand over, across restarts of either side.
#[derive(Debug)]
pub struct AttachReceiver {
    links: mpsc::Receiver<UnixStream>,
    links_open: bool,
    current: Option<UnixStream>,
    inbox: Inbox,
    /// Sandboxes that our caller believes alive.
    known: HashSet<SandboxId>,
    /// While the hands name what is alive: the ones named so far.
    named: Option<HashSet<SandboxId>>,
    /// Gone while no link told us.
    gone: Vec<SandboxId>,
}

impl AttachReceiver {
    /// Makes a receiver of the newest link that arrives.
    pub fn new(links: mpsc::Receiver<UnixStream>) -> Self {
        Self {
            links,
            links_open: true,
            current: None,
            inbox: Inbox::default(),
            known: HashSet::new(),
            named: None,
            gone: Vec::new(),
        }
    }

    /// Waits for the next message; `None` when no link can come any more.
    ///
    /// After a new link the hands name every live sandbox again; one that they do not name is reported as detached.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Handover> {
        loop {
            if let Some(sandbox) = self.gone.pop() {
                self.known.remove(&sandbox);
                return Some(Handover::Detached(sandbox));
            }
            let Some(stream) = &self.current else {
                let link = if self.links_open {
                    self.links.recv().await
                } else {
                    None
                };
                self.start(link?);
                continue;
            };
            let message = tokio::select! {
                link = self.links.recv(), if self.links_open => {
                    match link {
                        Some(link) => self.start(link),
                        None => self.links_open = false,
                    }
                    continue;
                }
                message = self.inbox.wait_async(stream) => message,
            };
            match message
                .and_then(|message| message.map(|message| self.accept(message)).transpose())
            {
                Ok(Some(Some(handover))) => return Some(handover),
                Ok(Some(None)) => {}
                Ok(None) => self.current = None,
                Err(error) => {
                    tracing::warn!(%error, "the attach link is dropped");
                    self.current = None;
                }
            }
        }
    }

    fn start(&mut self, link: UnixStream) {
        self.current = Some(link);
        self.inbox = Inbox::default();
        self.named = Some(HashSet::new());
    }

    fn accept(&mut self, message: Message) -> io::Result<Option<Handover>> {
        match message {
            Message::Attached {
                session,
                epoch,
                sandbox,
            } => {
                let mcp = TcpListener::from(self.inbox.descriptor()?);
                let egress = TcpListener::from(self.inbox.descriptor()?);
                mcp.set_nonblocking(true)?;
                egress.set_nonblocking(true)?;
                self.known.insert(sandbox.clone());
                if let Some(named) = &mut self.named {
                    named.insert(sandbox.clone());
                }
                Ok(Some(Handover::Attached(Attached {
                    session,
                    epoch,
                    sandbox,
                    mcp,
                    egress,
                })))
            }
            Message::Detached { sandbox } => {
                self.known.remove(&sandbox);
                Ok(Some(Handover::Detached(sandbox)))
            }
            Message::Listed => {
                if let Some(named) = self.named.take() {
                    self.gone = self.known.difference(&named).cloned().collect();
                }
                Ok(None)
            }
        }
    }
}
