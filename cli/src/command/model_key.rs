//! The model's key: the credential `anthropic`, which starts without one where none was given.

use claviger_vault_protocol::admin::{Authentication, List, Nothing, OfCredential};
use claviger_vault_protocol::client::AdminVault;
use claviger_vault_protocol::{CredentialKind, Destination};

use super::connect::admin_at;
use super::init::{model_credential, model_key_from_environment};
use crate::config::Config;
use crate::error::{CliError, Exit};
use crate::home::Home;

/// The credential's name.
pub(crate) const NAME: &str = "anthropic";
/// The collection of model keys.
pub(crate) const SYSTEM: &str = "vlt_system";

/// Imports `ANTHROPIC_API_KEY` into a home that never had a model's key; answers whether it did.
///
/// A vault with an operator passphrase is left alone: adding a key there asks a person.
pub(crate) async fn import(home: &Home) -> Result<bool, CliError> {
    let Some(secret) = model_key_from_environment()? else {
        return Ok(false);
    };
    let vault = admin_at(home).await?;
    let status = vault.status(&Nothing {}).await?;
    if status.state != "open" || status.operator_passphrase || !retire_keyless(&vault).await? {
        return Ok(false);
    }
    let config = Config::load(&home.config_file)?;
    let key = crate::serve::vault_key(home)?;
    let put = model_credential(&config, key, Some(&secret), Authentication::default())?;
    vault.put(&put).await?;
    Ok(true)
}

/// Archives the credential that stands for "no key"; answers whether there was one.
pub(crate) async fn retire_keyless(vault: &AdminVault) -> Result<bool, CliError> {
    let rows = vault.list(&List::default()).await?.credentials;
    let keyless = rows.into_iter().find(|row| {
        row.collection == SYSTEM && row.name == NAME && row.kind == CredentialKind::None
    });
    let Some(row) = keyless else { return Ok(false) };
    vault
        .archive(&OfCredential {
            credential: row.id,
            principal: None,
        })
        .await?;
    Ok(true)
}

/// The model's key is bound to the origin of `model.base_url` and to nothing else.
pub(crate) fn check_destination(home: &Home, destination: &Destination) -> Result<(), CliError> {
    let url = Config::load(&home.config_file)?.model_url()?;
    if Destination::of(&url).as_ref() == Some(destination) {
        return Ok(());
    }
    Err(CliError::new(
        Exit::Usage,
        "destination_not_bound",
        format!("'{NAME}' is the model's key, which goes to {url} alone"),
    )
    .fix("give that host, or change model.base_url in the configuration first"))
}
