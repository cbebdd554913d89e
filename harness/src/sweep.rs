//! Ends the sandboxes of sessions that have ended.
//!
//! Archiving and deleting need no harness, and no session wakes after its end; so every harness looks now and then which
//! sandboxes belong to nobody any more. Any number may look: a sandbox that is gone already is no error.

use std::time::Duration;

use claviger_sandbox::client::HandsClient;
use claviger_session::{Query, SessionClient, SessionId};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Looks again and again until `stop`.
pub(crate) async fn run(
    session: SessionClient,
    hands: HandsClient,
    period: Duration,
    stop: CancellationToken,
) {
    while stop.run_until_cancelled(sleep(period)).await.is_some() {
        once(&session, &hands).await;
    }
}

async fn once(session: &SessionClient, hands: &HandsClient) {
    let Ok(rows) = hands.list().await else { return };
    for row in rows {
        let Ok(name) = row.session.parse::<SessionId>() else {
            continue;
        };
        if !has_ended(session, &name).await {
            continue;
        }
        // Under the epoch of the last harness: nobody takes a later one of a session that has ended.
        match hands.destroy(&row.session, row.epoch, &row.sandbox).await {
            Ok(()) => {
                tracing::info!(session = %name, sandbox = %row.sandbox, "sandbox of an ended session destroyed");
            }
            Err(error) => {
                tracing::debug!(session = %name, sandbox = %row.sandbox, %error, "sandbox not destroyed");
            }
        }
    }
}

/// What cannot be read has not ended.
async fn has_ended(session: &SessionClient, name: &SessionId) -> bool {
    let query = Query {
        kinds: vec!["session.status_terminated".to_owned()],
        descending: true,
        limit: 1,
        ..Query::default()
    };
    session
        .read(name, query)
        .await
        .is_ok_and(|events| !events.is_empty())
}
