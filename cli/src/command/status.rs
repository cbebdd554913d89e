//! `claviger status`: what runs and in what state.

use claviger_vault_protocol::admin::Nothing;
use serde_json::{Value, json};

use super::connect::{admin_at, api_request, whereabouts};
use crate::error::CliError;
use crate::home::Home;
use crate::output::Output;

pub(crate) async fn run(output: Output) -> Result<(), CliError> {
    let home = Home::from_environment()?;
    let vault = admin_at(&home).await?;
    let status = vault.status(&Nothing {}).await?;
    let up = whereabouts(&home)?;
    let api = api_request(&home, "GET", "/v1/agents?limit=1", None)
        .await
        .is_ok();
    let document = json!({
        "schema": "claviger.status/v1", "home": home.data, "vault": status, "api_answers": api,
        "api": up.get("api"), "mcp": up.get("mcp"), "isolation": "shared-uid", "pids": up.get("pids"),
    });
    let text = |key: &str| {
        up.get(key)
            .and_then(Value::as_str)
            .unwrap_or("-")
            .to_owned()
    };
    let mut lines = format!(
        "vault      {} ({} memory, {} seal, {} audit records, {} live openings)\napi        {} {}\nmcp        {}\nisolation  shared-uid: not a barrier against programs that run unconfined as this user\noperator   {}\n",
        status.state,
        status.memory_protection,
        status.seals.join("+"),
        status.audit_records,
        status.openings,
        text("api"),
        if api { "answers" } else { "does not answer" },
        text("mcp"),
        if status.operator_passphrase {
            "a passphrase guards what widens access"
        } else {
            "no operator passphrase is set"
        },
    );
    if status.state == "sealed" {
        lines.push_str("next       claviger vault unseal\n");
    }
    output.result(&document, &lines);
    Ok(())
}
