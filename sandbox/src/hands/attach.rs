//! Tells the role that answers the listeners what there is to answer.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::live::Sandbox;
use super::owner::{News, Owner};
use crate::handover::Message;
use crate::passing;

/// Sends news over the newest link; over each new one first everything that is alive.
pub(super) async fn serve(
    owner: Arc<Owner>,
    mut news: mpsc::UnboundedReceiver<News>,
    mut links: mpsc::Receiver<UnixStream>,
    stop: CancellationToken,
) {
    let mut current: Option<UnixStream> = None;
    let mut links_open = true;
    loop {
        let result = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            link = links.recv(), if links_open => match link {
                Some(link) => {
                    let link = current.insert(link);
                    send_everything(link, &owner).await
                }
                None => {
                    links_open = false;
                    Ok(())
                }
            },
            message = news.recv() => match (message, &current) {
                (None, _) => return,
                // Dropping the message tells a waiting `provision` that there is nobody to wait for.
                (Some(_), None) => Ok(()),
                (Some(message), Some(link)) => send(link, message).await,
            },
        };
        if let Err(error) = result {
            tracing::warn!(%error, "the attach link ended");
            current = None;
        }
    }
}

async fn send_everything(link: &UnixStream, owner: &Owner) -> io::Result<()> {
    for (sandbox, epoch) in owner.alive() {
        send_attached(link, &sandbox, epoch).await?;
    }
    passing::send_frame_async(link, &Message::Listed, &[]).await
}

async fn send(link: &UnixStream, news: News) -> io::Result<()> {
    match news {
        News::Attached {
            sandbox,
            epoch,
            sent,
        } => {
            send_attached(link, &sandbox, epoch).await?;
            if let Some(sent) = sent {
                // `provision` may have stopped waiting.
                sent.send(()).ok();
            }
            Ok(())
        }
        News::Detached(sandbox) => {
            passing::send_frame_async(link, &Message::Detached { sandbox }, &[]).await
        }
    }
}

async fn send_attached(link: &UnixStream, sandbox: &Sandbox, epoch: u64) -> io::Result<()> {
    let Some(listeners) = sandbox.listeners() else {
        return Ok(());
    };
    let message = Message::Attached {
        session: sandbox.session.clone(),
        epoch,
        sandbox: sandbox.id.clone(),
    };
    passing::send_frame_async(link, &message, &listeners.map(|listener| listener.as_fd())).await
}
