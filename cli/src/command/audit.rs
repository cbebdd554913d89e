//! `claviger audit`: reads the log through the vault, verifies it without anyone's help.

use std::process::ExitCode;
use std::time::Duration;

use claviger_vault::audit::{
    self, AuditError, Completeness, Integrity, KeyTrust, Verdict, VerifyOptions,
};
use claviger_vault_protocol::admin::{Nothing, ReadAudit};
use serde_json::{Value, json};

use super::connect::admin_at;
use crate::args::Audit;
use crate::error::{CliError, Exit};
use crate::home::Home;
use crate::output::Output;

pub(crate) async fn run(audit: Audit, output: Output) -> Result<ExitCode, CliError> {
    let home = Home::from_environment()?;
    match audit {
        Audit::Tail { limit, follow } => {
            tail(&home, limit, follow, output).await?;
            Ok(ExitCode::SUCCESS)
        }
        Audit::Verify { directory, vkey } => {
            let directory = directory.unwrap_or_else(|| home.audit());
            if !directory.is_dir() {
                return Err(CliError::new(
                    Exit::NotFound,
                    "no_audit_log",
                    format!("there is no audit log in {}", directory.display()),
                ));
            }
            let (document, text, verified) = verify(&directory, vkey.as_deref())?;
            output.result(&document, &text);
            Ok(if verified {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(Exit::Verification as u8)
            })
        }
    }
}

/// One record as a line for people.
fn line(record: &Value) -> String {
    let text = |key: &str| {
        record
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or("")
            .to_owned()
    };
    let host = record
        .pointer("/destination/host")
        .and_then(Value::as_str)
        .unwrap_or("");
    let seq = record.get("seq").and_then(Value::as_u64).unwrap_or(0);
    let parts = [
        text("decision"),
        text("credential_name"),
        text("tool"),
        text("method"),
        host.to_owned(),
        text("reason_code"),
        text("session"),
        text("principal"),
    ];
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    format!(
        "{seq:>6}  {}  {:<8} {:<18} {}",
        text("ts"),
        text("kind"),
        text("op"),
        parts.join(" ")
    )
}

async fn tail(home: &Home, limit: u64, follow: bool, output: Output) -> Result<(), CliError> {
    let vault = admin_at(home).await?;
    let records = vault.status(&Nothing {}).await?.audit_records;
    let mut after = records.saturating_sub(limit);
    loop {
        let lines = vault
            .read_audit(&ReadAudit {
                after,
                limit: limit.clamp(1, 1000),
            })
            .await?
            .records;
        for record in &lines {
            if output.is_json() {
                output.line(&record.to_string());
            } else {
                output.line(&line(record));
            }
            after = record
                .get("seq")
                .and_then(Value::as_u64)
                .unwrap_or(after)
                .max(after);
        }
        if !follow {
            return Ok(());
        }
        // Reading is itself recorded, so a follower asks only when the log has grown by others' records.
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let now = vault.status(&Nothing {}).await?.audit_records;
            if now > after + 1 {
                break;
            }
        }
    }
}

/// Verifies an audit directory; answers the document, the text and the verdict.
pub(crate) fn verify(
    directory: &std::path::Path,
    vkey: Option<&str>,
) -> Result<(Value, String, bool), CliError> {
    let vkey = vkey
        .map(str::parse)
        .transpose()
        .map_err(|error: AuditError| {
            CliError::usage("bad_vkey", error.to_string())
                .fix("the key that `claviger init` printed")
        })?;
    let options = VerifyOptions {
        vkey,
        ..VerifyOptions::default()
    };
    let verdict = audit::verify(directory, &options).map_err(|error| {
        CliError::new(Exit::Verification, "audit_unreadable", error.to_string())
    })?;
    let mut document = serde_json::to_value(&verdict).unwrap_or(Value::Null);
    if let Some(object) = document.as_object_mut() {
        object.insert("schema".into(), json!("claviger.audit.verify/v1"));
        object.insert("verified".into(), json!(verdict.is_ok()));
    }
    Ok((document, describe(&verdict), verdict.is_ok()))
}

fn describe(verdict: &Verdict) -> String {
    let integrity = match &verdict.integrity {
        Integrity::Ok => "ok: everything that is there is what was written".to_owned(),
        Integrity::FirstBad { seq, why } => format!("BROKEN at record {seq}: {why}"),
    };
    let completeness = match &verdict.completeness {
        Completeness::Complete { known } => {
            format!("complete up to the {known} records known from elsewhere")
        }
        Completeness::Truncated { known, found } => {
            format!("TRUNCATED: {known} records are known from elsewhere, {found} are there")
        }
        Completeness::Unproven => {
            "unproven: newer records could have been cut off together with their checkpoints"
                .to_owned()
        }
    };
    let key = match verdict.key {
        KeyTrust::Pinned => "pinned",
        KeyTrust::Unpinned => "unpinned: give the key that init printed with --vkey",
    };
    format!(
        "records       {} ({} under a signed checkpoint, {} intents without an outcome)\nintegrity     {integrity}\ncompleteness  {completeness}\nkey           {key}\n",
        verdict.records, verdict.checkpointed, verdict.open_intents
    )
}
