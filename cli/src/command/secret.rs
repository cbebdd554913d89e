//! `claviger secret`: values go in by stdin or a hidden prompt and never come out.

use claviger_vault_memory::SecretBytes;
use claviger_vault_protocol::admin::{
    AUTH_PURPOSE, Authentication, CredentialRow, List, Nothing, OfCredential, PUT_PURPOSE, Put,
    Rotate, Status,
};
use claviger_vault_protocol::client::AdminVault;
use claviger_vault_protocol::sealed::{PublicKey, seal};
use claviger_vault_protocol::{Binding, CredentialKind, Destination, Slot};
use serde_json::json;

use super::connect::admin_at;
use super::model_key;
use crate::args::{Secret, SecretAdd};
use crate::error::{CliError, Exit};
use crate::home::Home;
use crate::output::Output;
use crate::terminal;

/// The operator's own collection.
pub(crate) const LOCAL: &str = "vlt_local";

pub(crate) async fn run(secret: Secret, output: Output) -> Result<(), CliError> {
    match secret {
        Secret::Add(options) => add(options, output).await,
        Secret::List { archived } => list(archived, output).await,
        Secret::Show { name } => {
            let row = find(&connect().await?, &name).await?;
            show(&row, "claviger.secret.show/v1", output);
            Ok(())
        }
        Secret::Rotate { name, short, value } => rotate(&name, short, &value, output).await,
        Secret::Archive { name } => {
            let vault = connect().await?;
            let row = find(&vault, &name).await?;
            let row = vault.archive(&of(&row)).await?;
            show(&row, "claviger.secret.archive/v1", output);
            Ok(())
        }
        Secret::Delete { name } => {
            let vault = connect().await?;
            let row = find(&vault, &name).await?;
            let row = vault.delete(&of(&row)).await?;
            output.result(&json!({"schema": "claviger.secret.delete/v1", "name": row.name, "id": row.id}), &format!("deleted  {}", row.name));
            Ok(())
        }
        Secret::Get { .. } => Err(CliError::usage("there_is_no_get", "no command, API or tool returns a stored value")
            .because("Claviger's vault is write-only: credentials are used, never read")
            .fix("claviger secret show NAME shows everything but the value; claviger secret rotate NAME replaces it")),
    }
}

async fn connect() -> Result<AdminVault, CliError> {
    admin_at(&Home::from_environment()?).await
}

fn of(row: &CredentialRow) -> OfCredential {
    OfCredential {
        credential: row.id.clone(),
        principal: None,
    }
}

/// A value on the command line is in the shell's history and in every process listing.
fn refuse_value(value: &[std::ffi::OsString]) -> Result<(), CliError> {
    if value.is_empty() {
        return Ok(());
    }
    Err(CliError::usage("secret_on_argv", "a value on the command line is refused")
        .because("it is now in the shell's history and was visible to every process listing: treat it as leaked")
        .fix("rotate it where it was issued, then: claviger secret add NAME .. < FILE"))
}

fn read_value() -> Result<SecretBytes, CliError> {
    use std::io::IsTerminal as _;
    if std::io::stdin().is_terminal() {
        terminal::ask_hidden("Value", "claviger secret add .. < FILE")
    } else {
        terminal::secret_from_stdin()
    }
}

/// Operator authentication where the vault wants it, asked on the terminal.
pub(crate) fn authenticate(status: &Status, verb: &str) -> Result<Authentication, CliError> {
    if !status.operator_passphrase {
        return Ok(Authentication::default());
    }
    let passphrase = terminal::ask_hidden(
        "Operator passphrase",
        "run it on a terminal: this command widens access",
    )?;
    let key = PublicKey::parse(&status.session_key)
        .map_err(|error| CliError::internal("the vault's key").because(error))?;
    let sealed = seal(key, &passphrase, AUTH_PURPOSE, verb.as_bytes())
        .map_err(|error| CliError::internal("sealing to the vault").because(error))?;
    Ok(Authentication {
        passphrase: Some(sealed),
    })
}

fn parse_kind(options: &SecretAdd) -> Result<(CredentialKind, Slot), CliError> {
    let named = |what: &str| {
        options.slot.clone().ok_or_else(|| {
            CliError::usage(
                "slot_missing",
                format!("--kind {} needs --slot NAME ({what})", options.kind),
            )
        })
    };
    Ok(match options.kind.as_str() {
        "bearer" => (
            CredentialKind::Bearer,
            Slot::Header {
                name: "authorization".into(),
                prefix: "Bearer ".into(),
            },
        ),
        "header" => (
            CredentialKind::Header,
            Slot::Header {
                name: named("the header")?.to_ascii_lowercase(),
                prefix: String::new(),
            },
        ),
        "query" => (
            CredentialKind::Query,
            Slot::Query {
                name: named("the parameter")?,
            },
        ),
        "basic" => {
            let username = options.username.clone().ok_or_else(|| {
                CliError::usage("username_missing", "--kind basic needs --username NAME")
            })?;
            (CredentialKind::Basic, Slot::Basic { username })
        }
        other => {
            return Err(
                CliError::usage("unknown_kind", format!("unknown kind '{other}'"))
                    .fix("one of: bearer, basic, header, query"),
            );
        }
    })
}

async fn add(options: SecretAdd, output: Output) -> Result<(), CliError> {
    refuse_value(&options.value)?;
    let (kind, slot) = parse_kind(&options)?;
    let destination = Destination::parse(&options.host).map_err(|error| {
        CliError::usage("bad_host", error.0)
            .fix("--host [SCHEME://]HOST[:PORT], for example api.github.com or 127.0.0.1:8080")
    })?;
    for prefix in &options.path {
        if !prefix.starts_with('/') {
            return Err(CliError::usage(
                "bad_path",
                format!("path prefix '{prefix}' does not start with '/'"),
            ));
        }
    }
    let methods = options
        .method
        .iter()
        .map(|method| method.to_ascii_uppercase())
        .collect();
    let binding = Binding {
        destination,
        methods,
        path_prefixes: options.path.clone(),
        slot,
    };
    let is_model_key = options.name == model_key::NAME;
    if is_model_key {
        model_key::check_destination(&Home::from_environment()?, &binding.destination)?;
    }
    let collection = if is_model_key {
        model_key::SYSTEM
    } else {
        LOCAL
    };
    let vault = connect().await?;
    let status = vault.status(&Nothing {}).await?;
    let key = vault_key(&status)?;
    let value = read_value()?;
    check_value(&value, options.short)?;
    let auth = authenticate(&status, "put")?;
    let associated = Put::associated(collection, &options.name, kind, &binding);
    let secret = seal(key, &value, PUT_PURPOSE, &associated)
        .map_err(|error| CliError::internal("sealing to the vault").because(error))?;
    drop(value);
    let variable = options
        .variable
        .clone()
        .or_else(|| (!is_model_key).then(|| default_variable(&options.name)));
    if is_model_key {
        model_key::retire_keyless(&vault).await?;
    }
    let row = vault
        .put(&Put {
            auth,
            collection: collection.into(),
            name: options.name,
            kind,
            binding,
            variable,
            secret: Some(secret),
            short: options.short,
            principal: None,
            metadata: serde_json::Value::Null,
        })
        .await?;
    show(&row, "claviger.secret.add/v1", output);
    output.note(&format!("undo     claviger secret delete {}", row.name));
    Ok(())
}

/// The same checks as the vault's, before anything is asked of a person.
fn check_value(value: &SecretBytes, short: bool) -> Result<(), CliError> {
    let bytes = value.expose();
    if bytes.is_empty() {
        return Err(CliError::usage("empty_secret", "the value is empty")
            .fix("claviger secret add NAME .. < FILE"));
    }
    if bytes.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
        return Err(CliError::usage(
            "secret_has_line_break",
            "the value has a line break or a NUL inside",
        )
        .fix("give exactly the key, one line"));
    }
    if bytes.len() < 12 && !short {
        return Err(CliError::usage(
            "secret_too_short",
            "a value under 12 bytes cannot be scrubbed from answers reliably",
        )
        .fix("--short, if that is understood"));
    }
    Ok(())
}

fn vault_key(status: &Status) -> Result<PublicKey, CliError> {
    let home = Home::from_environment()?;
    let pinned = crate::serve::vault_key(&home)?;
    // The pinned file, not the answer, decides to whom a secret is sealed.
    if status
        .key
        .as_deref()
        .is_some_and(|answered| answered != pinned.to_string())
    {
        return Err(CliError::new(
            Exit::Verification,
            "foreign_vault",
            "the daemon's key is not the one pinned in vault.pub",
        )
        .fix("check CLAVIGER_HOME; claviger status"));
    }
    Ok(pinned)
}

/// `tracker` becomes `TRACKER_TOKEN`.
fn default_variable(name: &str) -> String {
    let upper: String = name
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_uppercase()
            } else {
                '_'
            }
        })
        .collect();
    format!("{upper}_TOKEN")
}

async fn rotate(
    name: &str,
    short: bool,
    value: &[std::ffi::OsString],
    output: Output,
) -> Result<(), CliError> {
    refuse_value(value)?;
    let vault = connect().await?;
    let row = find(&vault, name).await?;
    let status = vault.status(&Nothing {}).await?;
    let key = vault_key(&status)?;
    let value = read_value()?;
    check_value(&value, short)?;
    let auth = authenticate(&status, "rotate")?;
    let secret = seal(key, &value, PUT_PURPOSE, row.id.as_str().as_bytes())
        .map_err(|error| CliError::internal("sealing to the vault").because(error))?;
    drop(value);
    let row = vault
        .rotate(&Rotate {
            auth,
            credential: row.id,
            secret,
            short,
            principal: None,
        })
        .await?;
    show(&row, "claviger.secret.rotate/v1", output);
    Ok(())
}

/// The live credential of a name, or of an identifier.
pub(crate) async fn find(vault: &AdminVault, name: &str) -> Result<CredentialRow, CliError> {
    let all = vault
        .list(&List {
            collection: None,
            include_archived: true,
        })
        .await?
        .credentials;
    let mut fitting: Vec<CredentialRow> = all
        .into_iter()
        .filter(|row| row.name == name || row.id.as_str() == name)
        .collect();
    fitting.sort_by_key(|row| (row.archived_at_ms.is_some(), row.collection != LOCAL));
    fitting.into_iter().next().ok_or_else(|| {
        CliError::new(
            Exit::NotFound,
            "credential_not_found",
            format!("there is no credential '{name}'"),
        )
        .fix("claviger secret list")
    })
}

async fn list(archived: bool, output: Output) -> Result<(), CliError> {
    let rows = connect()
        .await?
        .list(&List {
            collection: None,
            include_archived: archived,
        })
        .await?
        .credentials;
    let mut text = format!(
        "{:<20} {:<7} {:<32} {:>3} {:>6}  {}\n",
        "NAME", "KIND", "WHERE", "VER", "USES", "LAST USED"
    );
    for row in &rows {
        let state = if row.archived_at_ms.is_some() {
            " (archived)"
        } else {
            ""
        };
        text.push_str(&format!(
            "{:<20} {:<7} {:<32} {:>3} {:>6}  {}{state}\n",
            row.name,
            kind_name(row.kind),
            row.binding.destination.origin(),
            row.version,
            row.uses,
            row.last_used_at_ms.map_or_else(|| "never".to_owned(), time),
        ));
    }
    if rows.is_empty() {
        text = "no credentials yet: claviger secret add NAME --kind bearer --host HOST < FILE\n"
            .into();
    }
    output.result(
        &json!({"schema": "claviger.secret.list/v1", "credentials": rows}),
        &text,
    );
    Ok(())
}

fn kind_name(kind: CredentialKind) -> String {
    serde_json::to_value(kind)
        .ok()
        .and_then(|value| value.as_str().map(ToOwned::to_owned))
        .unwrap_or_default()
}

/// Unix milliseconds as a person reads them.
pub(crate) fn time(milliseconds: u64) -> String {
    i64::try_from(milliseconds)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or_else(|| "?".to_owned(), |at| format!("{at:.0}"))
}

fn show(row: &CredentialRow, schema: &str, output: Output) {
    let mut document = json!({"schema": schema, "credential": row});
    if let Some(object) = document.as_object_mut() {
        object.insert("name".into(), json!(row.name));
    }
    let limits = |list: &[String]| {
        if list.is_empty() {
            "all".to_owned()
        } else {
            list.join(", ")
        }
    };
    output.result(
        &document,
        &format!(
            "name     {}\nid       {}\nkind     {}\nwhere    {}  methods {}  paths {}\nsandbox  ${} holds a placeholder\nversion  {}\nuses     {}\nadded    {}\n{}",
            row.name,
            row.id,
            kind_name(row.kind),
            row.binding.destination.origin(),
            limits(&row.binding.methods),
            limits(&row.binding.path_prefixes),
            row.variable.as_deref().unwrap_or("-"),
            row.version,
            row.uses,
            time(row.created_at_ms),
            row.archived_at_ms.map(|at| format!("archived {}\n", time(at))).unwrap_or_default(),
        ),
    );
}
