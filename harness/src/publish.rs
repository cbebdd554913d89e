//! Passing on a message while it is made: `event_start` and `event_delta`, never stored.

use std::time::Duration;

use claviger_session::{SessionClient, SessionId};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::model::Piece;

/// How long one passing value may take.
const DEADLINE: Duration = Duration::from_secs(2);

/// Where the values of one message go.
#[derive(Debug)]
pub(crate) struct Publisher {
    pub(crate) client: SessionClient,
    pub(crate) session: SessionId,
    pub(crate) epoch: u64,
    /// Id that the `agent.message` event will have.
    pub(crate) message: String,
}

impl Publisher {
    /// Publishes text once the request's start is durable, until the sender is dropped.
    ///
    /// What cannot be delivered in time ends the passing on: what was sent stays a prefix.
    pub(crate) async fn run(
        self,
        gate: oneshot::Receiver<()>,
        mut progress: mpsc::Receiver<Piece>,
    ) {
        if gate.await.is_err() {
            return;
        }
        // Position of each block among the message's text blocks.
        let mut blocks: Vec<u64> = Vec::new();
        while let Some(first) = progress.recv().await {
            for (block, text) in coalesce(first, &mut progress) {
                if blocks.is_empty() {
                    let start = json!({"type": "event_start", "event": {"type": "agent.message", "id": self.message}});
                    if !self.send(start).await {
                        return;
                    }
                }
                let index = blocks
                    .iter()
                    .position(|known| *known == block)
                    .unwrap_or_else(|| {
                        blocks.push(block);
                        blocks.len() - 1
                    });
                let delta = json!({"type": "event_delta", "event_id": self.message, "delta": {
                    "type": "content_delta", "index": index, "content": {"type": "text", "text": text}}});
                if !self.send(delta).await {
                    return;
                }
            }
        }
    }

    async fn send(&self, value: Value) -> bool {
        let sent = timeout(
            DEADLINE,
            self.client.publish(&self.session, self.epoch, value),
        )
        .await;
        matches!(sent, Ok(Ok(())))
    }
}

/// Takes everything that waits, neighbouring texts of one block as one.
fn coalesce(first: Piece, progress: &mut mpsc::Receiver<Piece>) -> Vec<(u64, String)> {
    let mut texts: Vec<(u64, String)> = Vec::new();
    let mut next = Some(first);
    while let Some(Piece { block, text }) = next {
        match texts.last_mut() {
            Some((last, joined)) if *last == block => joined.push_str(&text),
            _ => texts.push((block, text)),
        }
        next = progress.try_recv().ok();
    }
    texts
}
