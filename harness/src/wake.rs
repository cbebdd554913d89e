//! Waking a session: lease, opening, log and hands, side by side.

use std::sync::Arc;
use std::time::Duration;

use claviger_sandbox::HandsError;
use claviger_sandbox::client::HandsClient;
use claviger_session::{NewEvent, SessionClient, SessionId};
use claviger_vault_protocol::WireError;
use claviger_vault_protocol::client::{HarnessVault, ToolsLink};
use claviger_vault_protocol::opening::OpenSession;
use claviger_vault_protocol::present::{At, ToolRow};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::error::HarnessError;
use crate::hand::Performer;
use crate::log::{Log, session_error};
use crate::model::ModelClient;
use crate::presence::{Presence, is_fenced, is_passing};
use crate::state::{Status, Step};
use crate::turn::Turn;

/// Everyone a harness speaks to; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Clients {
    pub(crate) session: SessionClient,
    pub(crate) hands: HandsClient,
    pub(crate) vault: HarnessVault,
    pub(crate) tools: ToolsLink,
    pub(crate) model: ModelClient,
    /// Grows with every new link to tools.
    pub(crate) generations: watch::Receiver<u64>,
    /// The first pause before a model request is repeated; doubles each time.
    pub(crate) backoff: Duration,
}

/// A lease that was just taken.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) session: SessionId,
    pub(crate) epoch: u64,
    /// Number of the newest event then.
    pub(crate) head: u64,
    /// A head of the log as the vault's audit may witness it.
    pub(crate) witness: (u64, String),
}

/// Wakes a session under its lease; none where nothing is to be done.
///
/// Opening, reading and attaching run side by side; nothing has an effect before all three are
/// acknowledged.
pub(crate) async fn wake(
    clients: &Clients,
    instance: &str,
    held: &Held,
    interrupts: watch::Receiver<u64>,
) -> Result<Option<Turn>, HarnessError> {
    let query = OpenSession {
        session: held.session.as_str().to_owned(),
        epoch: held.epoch,
        instance: instance.to_owned(),
        head: held.witness.clone(),
    };
    let (log, live, opened) = tokio::join!(
        Log::read(&clients.session, &held.session, held.epoch, held.head),
        clients.hands.attach(held.session.as_str(), held.epoch),
        open(clients, &query),
    );
    let mut log = log?;
    if log.state().step() == Step::Done {
        return Ok(None);
    }
    log.announce(instance);
    let live = match live {
        Ok(live) => live,
        Err(HandsError::Fenced { .. }) => return Err(HarnessError::Fenced),
        Err(error) => return Err(error.into()),
    };
    let Some(presence) = settle_opening(clients, &query, &mut log, opened).await? else {
        return Ok(None);
    };
    let rows = if log.state().agent.has_mcp_tools() {
        list_tools(clients, &query, &presence).await?
    } else {
        Vec::new()
    };
    let performer = Performer {
        clients: clients.clone(),
        presence: Arc::new(presence),
        session: query.session,
        epoch: held.epoch,
        live,
    };
    Ok(Some(Turn::new(log, performer, rows, interrupts)))
}

async fn open(clients: &Clients, query: &OpenSession) -> Result<Presence, WireError> {
    let opening = clients.vault.open_session(query).await?;
    Presence::new(clients.tools.clone(), opening).await
}

/// Waits for an opening that only needs time, and tells the session why it does not go on.
async fn settle_opening(
    clients: &Clients,
    query: &OpenSession,
    log: &mut Log,
    mut opened: Result<Presence, WireError>,
) -> Result<Option<Presence>, HarnessError> {
    let mut pause = Duration::from_millis(250);
    loop {
        let error = match opened {
            Ok(presence) => return Ok(Some(presence)),
            Err(error) => error,
        };
        let code = error.code().to_owned();
        if is_fenced(&code) {
            return Err(HarnessError::Fenced);
        }
        if matches!(
            code.as_str(),
            "opening_void" | "already_open" | "already_accepted" | "opening_not_found"
        ) {
            return Err(HarnessError::OpeningLost);
        }
        let message = format!("{code}: {error}");
        if !is_passing(&error) {
            tracing::warn!(session = %query.session, code, "the session was not opened");
            log.record(vec![session_error("unknown_error", &message, "terminal")])
                .await?;
            close_failed(log).await?;
            return Ok(None);
        }
        if log.state().status != Status::Rescheduled {
            tracing::warn!(session = %query.session, code, "the session waits to be opened");
            let waits = NewEvent::new("session.status_rescheduled", json!({}));
            log.record(vec![
                session_error("unknown_error", &message, "retrying"),
                waits,
            ])
            .await?;
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(10));
        opened = open(clients, query).await;
    }
}

/// Ends a session's work that cannot go on, so that it waits for new input.
pub(crate) async fn close_failed(log: &mut Log) -> Result<(), HarnessError> {
    if let Some(request) = log.state().open_request.clone() {
        log.record(vec![crate::turn::abandoned(&request)]).await?;
    }
    let handled = log.head();
    let idle = json!({"stop_reason": {"type": "retries_exhausted"}, "handled_seq": handled});
    log.record(vec![NewEvent::new("session.status_idle", idle)])
        .await
}

async fn list_tools(
    clients: &Clients,
    query: &OpenSession,
    presence: &Presence,
) -> Result<Vec<ToolRow>, HarnessError> {
    let at = At {
        session: query.session.clone(),
        epoch: query.epoch,
    };
    match clients.tools.list_tools(&at).await {
        Ok(tools) => Ok(tools.tools),
        Err(WireError::Refused(refusal)) if is_fenced(&refusal.code) => Err(HarnessError::Fenced),
        Err(_) => {
            presence.present().await?;
            Ok(clients.tools.list_tools(&at).await?.tools)
        }
    }
}
