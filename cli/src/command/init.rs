//! `claviger init`: makes a home. The vault makes its own keys; this process never holds them.

use claviger_vault_memory::SecretBytes;
use claviger_vault_protocol::admin::{
    AUTH_PURPOSE, Authentication, Init as InitVerb, Initialized, Nothing, PUT_PURPOSE, Put,
    SEAL_PURPOSE, SealChoice,
};
use claviger_vault_protocol::client::AdminVault;
use claviger_vault_protocol::sealed::{PublicKey, seal};
use claviger_vault_protocol::{Binding, CredentialKind, Destination, Slot};
use serde_json::json;

use super::connect::admin_at;
use crate::args::{Init, RoleName, SealKind};
use crate::config::Config;
use crate::error::{CliError, Exit};
use crate::home::{Home, write_private};
use crate::output::Output;
use crate::supervisor::{Happening, Listeners, Supervisor};
use crate::terminal;

/// What a new home starts with.
pub(crate) struct Initial {
    /// The configuration to write.
    pub(crate) config: Config,
    /// Passphrase of the passphrase seal; none = key file.
    pub(crate) seal_passphrase: Option<SecretBytes>,
    /// Operator passphrase.
    pub(crate) operator_passphrase: Option<SecretBytes>,
    /// The model's key; none = a credential without a key.
    pub(crate) model_key: Option<SecretBytes>,
    /// Whether the home is a demo's.
    pub(crate) demo: bool,
}

pub(crate) async fn run(options: Init, output: Output) -> Result<(), CliError> {
    let home = Home::from_environment()?;
    if home.is_initialised() || home.vault().exists() {
        return Err(CliError::new(
            Exit::Conflict,
            "already_initialized",
            format!("there is a home in {} already", home.data.display()),
        )
        .because("a second init would make its credentials unreadable")
        .fix("claviger status; for another home: CLAVIGER_HOME=DIR claviger init"));
    }
    let mut config = Config::load(&home.config_file)?;
    if let Some(url) = std::env::var_os("ANTHROPIC_BASE_URL")
        .and_then(|url| url.into_string().ok())
        .filter(|url| !url.is_empty())
    {
        config.model.base_url = url;
    }
    config.model_url()?;
    let ask = !options.no_input && terminal::has_terminal();
    let seal_passphrase = match options.seal {
        SealKind::KeyFile if options.passphrase_stdin => {
            return Err(CliError::usage(
                "unused_passphrase",
                "--passphrase-stdin gives a passphrase that a key-file seal has no use for",
            )
            .fix("claviger init --seal passphrase --passphrase-stdin < FILE"));
        }
        SealKind::KeyFile => None,
        SealKind::Passphrase => Some(seal_passphrase(&options)?),
    };
    let operator_passphrase = if ask {
        Some(ask_new(
            "Operator passphrase (empty sets none)",
            "--no-input sets none",
        )?)
        .filter(|text| !text.expose().is_empty())
    } else {
        None
    };
    let model_key = model_key_from_environment()?;
    let imported = model_key.is_some();
    let has_operator_passphrase = operator_passphrase.is_some();
    let made = initialise(
        &home,
        Initial {
            config,
            seal_passphrase,
            operator_passphrase,
            model_key,
            demo: false,
        },
    )
    .await?;
    let document = json!({
        "schema": "claviger.init/v1", "home": home.data, "vault": made.vault, "key": made.key, "audit_vkey": made.audit_vkey,
        "api_key_file": home.api_key(), "isolation": "shared-uid", "operator_passphrase": has_operator_passphrase, "imported": if imported { json!(["anthropic"]) } else { json!([]) },
    });
    let mut text = format!(
        "made     {}\nvault    {} ({})\napi key  {}\naudit    {}  keep this key: it verifies the log\nlevel    shared-uid: protects against sandboxes, harnesses and agents, not against\n         programs that run unconfined as this user\n",
        home.data.display(),
        made.vault,
        if options.seal == SealKind::KeyFile {
            "key-file seal"
        } else {
            "passphrase seal"
        },
        home.api_key().display(),
        made.audit_vkey,
    );
    if imported {
        text.push_str("imported ANTHROPIC_API_KEY as the credential 'anthropic'\n");
    }
    if !has_operator_passphrase {
        text.push_str("note     no operator passphrase is set: whoever runs as this user can add credentials\n");
    }
    text.push_str("next     claviger up --detach\n");
    output.result(&document, &text);
    Ok(())
}

/// The new vault's passphrase, from stdin or a person; an empty one would seal nothing.
fn seal_passphrase(options: &Init) -> Result<SecretBytes, CliError> {
    let flag = "claviger init --seal passphrase --passphrase-stdin < FILE";
    let passphrase = if options.passphrase_stdin {
        terminal::secret_from_stdin()?
    } else {
        ask_new("Vault passphrase", flag)?
    };
    if passphrase.is_empty() {
        return Err(
            CliError::usage("empty_passphrase", "the vault's passphrase is empty").fix(flag),
        );
    }
    Ok(passphrase)
}

fn ask_new(prompt: &str, flag: &str) -> Result<SecretBytes, CliError> {
    let first = terminal::ask_hidden(prompt, flag)?;
    if first.expose().is_empty() {
        return Ok(first);
    }
    let second = terminal::ask_hidden("Once more", flag)?;
    if first.expose() == second.expose() {
        Ok(first)
    } else {
        Err(CliError::usage(
            "passphrases_differ",
            "the two passphrases differ",
        ))
    }
}

/// The model's key from the environment, where it is set.
pub(crate) fn model_key_from_environment() -> Result<Option<SecretBytes>, CliError> {
    use std::os::unix::ffi::OsStringExt as _;
    match std::env::var_os("ANTHROPIC_API_KEY") {
        Some(value) if !value.is_empty() => {
            let mut bytes = value.into_vec();
            SecretBytes::from_mut_slice_wiping(&mut bytes)
                .map(Some)
                .map_err(|error| CliError::internal("keeping a secret").because(error))
        }
        _ => Ok(None),
    }
}

/// Makes the home: directories, configuration, vault, first key. Nothing is left behind on failure.
pub(crate) async fn initialise(home: &Home, initial: Initial) -> Result<Initialized, CliError> {
    home.create()?;
    let made = make(home, initial).await;
    if made.is_err() {
        drop(std::fs::remove_dir_all(home.vault()));
        drop(std::fs::remove_file(home.vault_key()));
        drop(std::fs::remove_file(home.api_key()));
        drop(std::fs::remove_file(home.api_key_id()));
        drop(std::fs::remove_dir_all(home.role_keys()));
    }
    made
}

async fn make(home: &Home, initial: Initial) -> Result<Initialized, CliError> {
    initial.config.save(&home.config_file)?;
    crate::role_key::make_all(home)?;
    let listeners = Listeners::admin_only(home)?;
    let mut supervisor = Supervisor::new(home.clone(), listeners, initial.demo);
    supervisor.start(RoleName::Vault, "vault-0")?;
    let work = async {
        let vault = admin_at(home).await?;
        let made = ask_vault(&vault, &initial).await?;
        write_private(&home.api_key(), format!("{}\n", made.first_key).as_bytes())?;
        write_private(
            &home.api_key_id(),
            format!("{}\n", made.first_key_id).as_bytes(),
        )?;
        Ok(made)
    };
    let failed = async {
        loop {
            match supervisor.next().await {
                Ok(Some(Happening::Said {
                    message: crate::control::FromRole::Failed { code, what, fix },
                    ..
                })) => {
                    return CliError::refused(&code, &what, fix.as_deref());
                }
                Ok(Some(_)) => {}
                Ok(None) => return CliError::internal("the vault ended"),
                Err(error) => return error,
            }
        }
    };
    let result = tokio::select! {
        made = work => made,
        error = failed => Err(error),
    };
    supervisor.stop().await;
    supervisor.clean();
    result
}

async fn ask_vault(vault: &AdminVault, initial: &Initial) -> Result<Initialized, CliError> {
    let status = vault.status(&Nothing {}).await?;
    let malformed =
        |error: &dyn std::fmt::Display| CliError::internal("sealing to the vault").because(error);
    let session_key = PublicKey::parse(&status.session_key).map_err(|error| malformed(&error))?;
    let choice = match &initial.seal_passphrase {
        None => SealChoice::KeyFile,
        Some(passphrase) => SealChoice::Passphrase {
            passphrase: seal(session_key, passphrase, SEAL_PURPOSE, b"passphrase")
                .map_err(|error| malformed(&error))?,
        },
    };
    let for_operator = |verb: &[u8]| -> Result<_, CliError> {
        initial
            .operator_passphrase
            .as_ref()
            .map(|passphrase| seal(session_key, passphrase, AUTH_PURPOSE, verb))
            .transpose()
            .map_err(|error| malformed(&error))
    };
    let made = vault
        .init(&InitVerb {
            seal: choice,
            operator_passphrase: for_operator(b"init")?,
            first_key_label: "first".into(),
            demo: initial.demo,
        })
        .await?;
    let key = PublicKey::parse(&made.key).map_err(|error| malformed(&error))?;
    let put = model_credential(
        &initial.config,
        key,
        initial.model_key.as_ref(),
        Authentication {
            passphrase: for_operator(b"put")?,
        },
    )?;
    vault.put(&put).await?;
    Ok(made)
}

/// The credential `anthropic`, bound to the origin of `model.base_url`.
pub(crate) fn model_credential(
    config: &Config,
    key: PublicKey,
    secret: Option<&SecretBytes>,
    auth: Authentication,
) -> Result<Put, CliError> {
    let url = config.model_url()?;
    let destination = Destination::of(&url).ok_or_else(|| {
        CliError::new(
            Exit::Config,
            "config_malformed",
            format!("model.base_url '{url}' is no http(s) address"),
        )
    })?;
    let (kind, slot) = match secret {
        Some(_) => (
            CredentialKind::Header,
            Slot::Header {
                name: "x-api-key".into(),
                prefix: String::new(),
            },
        ),
        None => (CredentialKind::None, Slot::None),
    };
    let binding = Binding {
        destination,
        methods: vec!["POST".into()],
        path_prefixes: Vec::new(),
        slot,
    };
    let associated = Put::associated("vlt_system", "anthropic", kind, &binding);
    let secret = secret
        .map(|secret| seal(key, secret, PUT_PURPOSE, &associated))
        .transpose()
        .map_err(|error| CliError::internal("sealing to the vault").because(error))?;
    Ok(Put {
        auth,
        collection: "vlt_system".into(),
        name: "anthropic".into(),
        kind,
        binding,
        variable: None,
        secret,
        short: false,
        principal: None,
        metadata: serde_json::Value::Null,
    })
}
