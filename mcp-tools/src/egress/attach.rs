//! The sandboxes that the hands attached, and the accepting of their programs' connections.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use claviger_sandbox::handover::{Attached, Handover};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Gateway;
use crate::openings::Attachment;
use crate::server;
use crate::shared::Shared;

/// Connections of one sandbox at a time; more wait in the listener's queue.
const MAX_CONNECTIONS: usize = 256;

/// The sandboxes that are attached now.
pub(super) struct Attachments {
    shared: Arc<Shared>,
    stop: CancellationToken,
    sandboxes: HashMap<String, Served>,
}

/// One attached sandbox: ended as a whole when it is dropped.
struct Served {
    gateway: Arc<Gateway>,
    /// Ends the accepting on the listeners of the last message, not the connections already made.
    accepting: CancellationToken,
    all: CancellationToken,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.all.cancel();
    }
}

impl Attachments {
    pub(super) fn new(shared: Arc<Shared>, stop: CancellationToken) -> Self {
        Self {
            shared,
            stop,
            sandboxes: HashMap::new(),
        }
    }

    pub(super) fn take(&mut self, handover: Handover) {
        match handover {
            Handover::Attached(attached) => self.attach(attached),
            Handover::Detached(sandbox) => {
                info!(%sandbox, "sandbox detached");
                // Dropping the attachment ends its listeners and connections.
                self.sandboxes.remove(sandbox.as_str());
                self.shared.openings.forget_sandbox(sandbox.as_str());
            }
        }
    }

    /// Serves a sandbox's listeners. A repeat takes the place of the earlier listeners; requests under way go on.
    fn attach(&mut self, attached: Attached) {
        let Attached {
            session,
            epoch,
            sandbox,
            mcp,
            egress,
        } = attached;
        let known = self
            .sandboxes
            .remove(sandbox.as_str())
            .filter(|known| known.gateway.attached.session == session);
        let mut attachment = known.unwrap_or_else(|| Served {
            gateway: Arc::new(Gateway::new(
                Arc::clone(&self.shared),
                Attachment::new(sandbox.as_str(), &session, epoch),
            )),
            accepting: CancellationToken::new(),
            all: self.stop.child_token(),
        });
        attachment.accepting.cancel();
        attachment.accepting = attachment.all.child_token();
        attachment.gateway.attached.raise(epoch);
        match listen(egress) {
            Ok(listener) => {
                let gateway = Arc::clone(&attachment.gateway);
                let work = serve(
                    gateway,
                    listener,
                    attachment.accepting.clone(),
                    attachment.all.clone(),
                );
                self.shared.tasks.spawn(work);
            }
            Err(error) => warn!(%sandbox, %error, "egress listener is not usable"),
        }
        self.shared.tasks.spawn(server::http::serve_sandbox(
            Arc::clone(&self.shared),
            mcp,
            Arc::clone(&attachment.gateway.attached),
            attachment.accepting.clone(),
        ));
        info!(%sandbox, epoch, "sandbox attached");
        self.sandboxes
            .insert(sandbox.as_str().to_owned(), attachment);
    }
}

fn listen(listener: std::net::TcpListener) -> std::io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Accepts until `accepting` is cancelled; connections go on until `all` is.
async fn serve(
    gateway: Arc<Gateway>,
    listener: TcpListener,
    accepting: CancellationToken,
    all: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await.ok();
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = accepting.cancelled() => return,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let gateway = Arc::clone(&gateway);
                let all = all.clone();
                let tasks = gateway.shared.tasks.clone();
                tasks.spawn(async move {
                    tokio::select! {
                        () = all.cancelled() => {}
                        () = gateway.talk(stream) => {}
                    }
                    drop(place);
                });
            }
            Err(error) => {
                warn!(sandbox = %gateway.attached.sandbox, %error, "egress accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}
