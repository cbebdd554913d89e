//! `claviger vault`: what state the vault is in, and the way from sealed to open and back.

use claviger_vault_protocol::admin::{Nothing, SEAL_PURPOSE, Status, Unseal};
use claviger_vault_protocol::client::AdminVault;
use claviger_vault_protocol::sealed::{PublicKey, seal};
use serde_json::json;

use super::connect::admin_at;
use crate::args::Vault;
use crate::error::{CliError, Exit};
use crate::home::Home;
use crate::output::Output;
use crate::terminal;

pub(crate) async fn run(verb: Vault, output: Output) -> Result<(), CliError> {
    let home = Home::from_environment()?;
    let vault = admin_at(&home).await?;
    let (schema, status) = match verb {
        Vault::Status => ("claviger.vault.status/v1", vault.status(&Nothing {}).await?),
        // Narrowing: whoever may use the operator's socket may always do it.
        Vault::Seal => ("claviger.vault.seal/v1", vault.seal(&Nothing {}).await?),
        Vault::Unseal => ("claviger.vault.unseal/v1", unseal(&vault).await?),
    };
    show(&status, schema, output);
    Ok(())
}

async fn unseal(vault: &AdminVault) -> Result<Status, CliError> {
    let status = vault.status(&Nothing {}).await?;
    // The vault has the word on every state but this one; nobody is asked in vain.
    if status.state != "sealed" {
        if status.state == "open" {
            return Ok(status);
        }
        let reason = status.reason.as_deref().unwrap_or(&status.state);
        let code = reason.split(':').next().unwrap_or("vault_failed");
        let code = if status.state == "uninitialized" {
            "vault_uninitialized"
        } else {
            code
        };
        return Err(CliError::refused(
            code,
            &format!("the vault cannot be unsealed: {reason}"),
            Some("claviger doctor"),
        ));
    }
    if !status.seals.iter().any(|kind| kind == "passphrase") {
        return Err(CliError::new(
            Exit::Locked,
            "no_passphrase_seal",
            "no passphrase opens this vault",
        )
        .because(format!("its seal is {}", status.seals.join("+")))
        .fix("claviger down && claviger up --detach: the vault unseals itself at its start"));
    }
    let passphrase = {
        use std::io::IsTerminal as _;
        if std::io::stdin().is_terminal() {
            terminal::ask_hidden("Vault passphrase", "claviger vault unseal < FILE")?
        } else {
            terminal::secret_from_stdin()?
        }
    };
    if passphrase.is_empty() {
        return Err(
            CliError::usage("empty_passphrase", "the vault's passphrase is empty")
                .fix("claviger vault unseal < FILE"),
        );
    }
    let malformed =
        |error: &dyn std::fmt::Display| CliError::internal("sealing to the vault").because(error);
    let key = PublicKey::parse(&status.session_key).map_err(|error| malformed(&error))?;
    let passphrase =
        seal(key, &passphrase, SEAL_PURPOSE, b"passphrase").map_err(|error| malformed(&error))?;
    Ok(vault.unseal(&Unseal { passphrase }).await?)
}

fn show(status: &Status, schema: &str, output: Output) {
    let mut document = json!(status);
    if let Some(object) = document.as_object_mut() {
        object.insert("schema".into(), json!(schema));
    }
    let mut text = format!(
        "state      {}\nvault      {}\nseal       {}\nmemory     {}\nrecords    {}\nopenings   {}\n",
        status.state,
        status.vault.as_deref().unwrap_or("-"),
        status.seals.join("+"),
        status.memory_protection,
        status.audit_records,
        status.openings,
    );
    if let Some(reason) = &status.reason {
        text.push_str(&format!("reason     {reason}\n"));
    }
    if status.state == "sealed" {
        let next = if status.seals.iter().any(|kind| kind == "passphrase") {
            "claviger vault unseal"
        } else {
            "claviger down && claviger up --detach: the vault unseals itself at its start"
        };
        text.push_str(&format!("next       {next}\n"));
    }
    output.result(&document, &text);
}
