//! From a tool's name and arguments to its result: what every caller shares.

use std::sync::Arc;

use claviger_vault_protocol::admin::{Nothing, Permit};
use claviger_vault_protocol::present::ToolRow;
use claviger_vault_protocol::{Envelope, Principal, Refusal};
use serde_json::Value;
use tracing::info;

use crate::definition::{Definition, Operation};
use crate::error::from_vault;
use crate::openings::Live;
use crate::shared::Shared;
use crate::spend::Limits;
use crate::tool::http::{self, Outcome};

/// The definitions that a principal may use: permitted for it, with the very file that was permitted.
pub(crate) async fn permitted(
    shared: &Shared,
    principal: &Principal,
) -> Result<Vec<(Arc<Definition>, Permit)>, Refusal> {
    let (definitions, permits) = tokio::join!(
        shared.catalog.definitions(),
        shared.vault.list_permits(&Nothing {})
    );
    let permits = permits.map_err(from_vault)?.permits;
    let may = |permit: &&Permit, definition: &Definition| {
        permit.tool == definition.name()
            && permit.tool_hash.eq_ignore_ascii_case(definition.hash())
            && permit
                .principals
                .iter()
                .any(|allowed| allowed == principal || allowed.as_str() == "*")
    };
    Ok(definitions
        .into_iter()
        .filter_map(|definition| {
            let permit = permits
                .iter()
                .find(|permit| may(permit, &definition))?
                .clone();
            Some((definition, permit))
        })
        .collect())
}

/// The tools of a live opening: permitted, in its charter, and with a grant to spend.
pub(crate) async fn tools_of(shared: &Shared, live: &Live) -> Result<Vec<ToolRow>, Refusal> {
    let permitted = permitted(shared, &live.principal).await?;
    let is_usable = |(definition, permit): &&(Arc<Definition>, Permit)| {
        (live.is_seat() || live.has_tool(definition.name()))
            && live
                .tool_envelopes()
                .any(|envelope| envelope.credential == permit.credential)
    };
    Ok(rows(
        permitted
            .iter()
            .filter(is_usable)
            .map(|(definition, _)| definition.as_ref()),
    ))
}

/// Tools of definitions, sorted by full name; of two with one name, neither can be meant.
pub(crate) fn rows<'a>(definitions: impl Iterator<Item = &'a Definition>) -> Vec<ToolRow> {
    let mut rows: Vec<ToolRow> = definitions.flat_map(Definition::tools).collect();
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    let names: Vec<String> = rows.iter().map(|row| row.name.clone()).collect();
    rows.retain(|row| names.iter().filter(|name| **name == row.name).count() == 1);
    rows
}

/// The definition and operation behind a tool's full name.
pub(crate) async fn find(
    shared: &Shared,
    tool: &str,
) -> Result<(Arc<Definition>, Operation), Refusal> {
    let mut found = shared
        .catalog
        .definitions()
        .await
        .into_iter()
        .filter_map(|definition| {
            definition
                .operation(tool)
                .cloned()
                .map(|operation| (definition, operation))
        });
    match (found.next(), found.next()) {
        (Some(found), None) => Ok(found),
        (Some(_), Some(_)) => Err(Refusal::new(
            "tool_ambiguous",
            "two definitions have a tool of that name",
        )),
        (None, _) => Err(
            Refusal::new("tool_not_found", "there is no tool of that name")
                .with_fix("claviger tool list"),
        ),
    }
}

/// Calls an operation for a live opening.
pub(crate) async fn call(
    shared: &Shared,
    live: &Live,
    definition: &Definition,
    operation: &Operation,
    arguments: &Value,
) -> Result<Outcome, Refusal> {
    let request = http::request(definition, operation, arguments)?;
    let envelope = envelope(shared, live, definition).await?;
    let started = std::time::Instant::now();
    let answer = shared
        .spender
        .spend(
            live,
            &envelope,
            definition.name(),
            definition.hash(),
            request,
            Limits::default(),
        )
        .await;
    let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    match &answer {
        Ok(answer) => {
            info!(session = %live.session, tool = definition.name(), status = answer.status.as_u16(), elapsed_ms, "tool called");
        }
        Err(refusal) => {
            info!(session = %live.session, tool = definition.name(), code = %refusal.code, elapsed_ms, "tool call refused");
        }
    }
    http::outcome(answer?).await
}

/// Calls an operation for a direct client, over its seat; a seat that the vault no longer honours, or
/// that was opened before the credential was added, is opened anew once.
pub(crate) async fn call_from_seat(
    shared: &Shared,
    principal: &Principal,
    client: &str,
    definition: &Definition,
    operation: &Operation,
    arguments: &Value,
) -> Result<Outcome, Refusal> {
    let live = shared.openings.seat(principal, client).await?;
    let first = call(shared, &live, definition, operation, arguments).await;
    let Err(refusal) = &first else { return first };
    let is_over = matches!(
        refusal.code.as_str(),
        "opening_not_found"
            | "opening_void"
            | "opening_not_accepted"
            | "epoch_stale"
            | "charter_expired"
    );
    let lacks_grant = refusal.code == "grant_not_found";
    // None of these codes comes after a request was sent, so the second try is the only one upstream.
    if (is_over || lacks_grant) && shared.openings.renew_seat(&live, lacks_grant).await {
        let live = shared.openings.seat(principal, client).await?;
        return call(shared, &live, definition, operation, arguments).await;
    }
    first
}

async fn envelope(
    shared: &Shared,
    live: &Live,
    definition: &Definition,
) -> Result<Envelope, Refusal> {
    let named: Vec<&Envelope> = live
        .tool_envelopes()
        .filter(|envelope| envelope.name == definition.credential())
        .collect();
    match named.as_slice() {
        [] => Err(Refusal::new(
            "grant_not_found",
            format!("no credential '{}' is open here", definition.credential()),
        )
        .with_fix(format!("claviger secret add {}", definition.credential()))),
        [one] => Ok((*one).clone()),
        several => {
            // Collections may use one name; the permit says which is meant.
            let permits = shared
                .vault
                .list_permits(&Nothing {})
                .await
                .map_err(from_vault)?
                .permits;
            let permit = permits
                .iter()
                .find(|permit| permit.tool == definition.name());
            let meant = several
                .iter()
                .find(|one| permit.is_some_and(|permit| permit.credential == one.credential));
            meant.map(|one| (*one).clone()).ok_or_else(|| {
                Refusal::new(
                    "tool_not_permitted",
                    format!(
                        "no permit names one of the credentials '{}'",
                        definition.credential()
                    ),
                )
            })
        }
    }
}
