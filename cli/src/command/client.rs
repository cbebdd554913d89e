//! `claviger client`: this server's entry in MCP clients' configurations.
//!
//! Installing inserts one stretch of text and remembers it; everything else in the file stays as it
//! is to the byte, and so uninstalling an untouched file restores it to the byte.

mod edit;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::args::{Client, ClientName};
use crate::error::{CliError, Exit};
use crate::home::{Home, write_private};
use crate::output::Output;
use edit::Remove;

/// The entry's name.
const NAME: &str = "claviger";

/// What an installation remembers.
#[derive(Deserialize, Serialize)]
struct Receipt {
    path: PathBuf,
    offset: usize,
    inserted: String,
    after_sha256: String,
    /// Whether the file did not exist before.
    created: bool,
}

impl ClientName {
    fn id(self) -> &'static str {
        match self {
            Self::ClaudeCode => "claude-code",
            Self::ClaudeDesktop => "claude-desktop",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::ClaudeCode => "Claude Code",
            Self::ClaudeDesktop => "Claude Desktop",
        }
    }

    /// Whether the client runs programs as this user, beside our roles.
    fn runs_code(self) -> bool {
        matches!(self, Self::ClaudeCode)
    }

    fn file(self) -> Result<PathBuf, CliError> {
        let user = std::env::var_os("HOME")
            .map(PathBuf::from)
            .ok_or_else(|| CliError::new(Exit::Config, "no_home", "HOME is not set"))?;
        Ok(match self {
            Self::ClaudeCode => user.join(".claude.json"),
            Self::ClaudeDesktop if cfg!(target_os = "macos") => {
                user.join("Library/Application Support/Claude/claude_desktop_config.json")
            }
            Self::ClaudeDesktop => std::env::var_os("XDG_CONFIG_HOME")
                .map_or_else(|| user.join(".config"), PathBuf::from)
                .join("Claude/claude_desktop_config.json"),
        })
    }

    /// The entry: the stdio shim by its absolute path, no key anywhere.
    fn entry(self) -> Result<Value, CliError> {
        let program = std::env::current_exe()
            .map_err(|error| CliError::internal("finding this program").because(error))?;
        let mut environment = serde_json::Map::new();
        // GUI programs do not inherit the shell's environment: what chose this home goes along.
        for name in ["CLAVIGER_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR"] {
            if let Some(value) = std::env::var_os(name)
                .and_then(|value| value.into_string().ok())
                .filter(|value| !value.is_empty())
            {
                environment.insert(name.to_owned(), json!(value));
            }
        }
        let mut entry = json!({"command": program, "args": ["mcp"], "env": environment});
        if let (Self::ClaudeCode, Some(object)) = (self, entry.as_object_mut()) {
            object.insert("type".into(), json!("stdio"));
        }
        Ok(entry)
    }
}

pub(crate) fn run(client: Client, output: Output) -> Result<(), CliError> {
    match client {
        Client::Install { client, dry_run } => install(client, dry_run, output),
        Client::Uninstall { client, dry_run } => uninstall(client, dry_run, output),
        Client::Status => status(output),
        Client::Snippet { client } => {
            let snippet = json!({"mcpServers": {NAME: client.entry()?}});
            output.result(&json!({"schema": "claviger.client.snippet/v1", "file": client.file()?, "snippet": snippet}), &format!("# in {}\n{}", client.file()?.display(), serde_json::to_string_pretty(&snippet).unwrap_or_default()));
            Ok(())
        }
    }
}

fn receipt_path(home: &Home, client: ClientName) -> PathBuf {
    home.data
        .join("clients")
        .join(format!("{}.json", client.id()))
}

fn read(path: &Path) -> Result<Option<String>, CliError> {
    match std::fs::read(path) {
        Ok(bytes) => String::from_utf8(bytes)
            .map(Some)
            .map_err(|_| malformed(path, "it is not UTF-8")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(CliError::file("reading", path, &error)),
    }
}

fn malformed(path: &Path, why: &str) -> CliError {
    CliError::new(
        Exit::Config,
        "client_config_malformed",
        format!(
            "{} is left alone: it is no JSON that can be edited safely",
            path.display()
        ),
    )
    .because(why)
    .fix("correct the file, or paste the entry by hand: claviger client snippet CLIENT")
}

/// Replaces a file's content atomically, keeping its mode and following its links.
fn replace(path: &Path, text: &str) -> Result<(), CliError> {
    let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mode = std::fs::metadata(&target)
        .map(|metadata| metadata.permissions().mode())
        .ok();
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent)
            .map_err(|error| CliError::file("creating", parent, &error))?;
    }
    write_private(&target, text.as_bytes())?;
    if let Some(mode) = mode {
        std::fs::set_permissions(&target, std::fs::Permissions::from_mode(mode))
            .map_err(|error| CliError::file("writing", &target, &error))?;
    }
    Ok(())
}

fn install(client: ClientName, dry_run: bool, output: Output) -> Result<(), CliError> {
    let home = Home::from_environment()?;
    let path = client.file()?;
    let before = read(&path)?;
    let mut text = before.clone().unwrap_or_default();
    let entry = client.entry()?;
    let document = |changed: bool, inserted: &str| json!({"schema": "claviger.client.install/v1", "client": client.id(), "file": path, "changed": changed, "dry_run": dry_run, "inserted": inserted});
    match edit::find(&text, NAME).map_err(|why| malformed(&path, &why))? {
        Some(found) if found == entry => {
            output.result(
                &document(false, ""),
                &format!(
                    "{} has the entry already: {}",
                    client.title(),
                    path.display()
                ),
            );
            return Ok(());
        }
        Some(_) => {
            let removal = edit::remove(&text, NAME).map_err(|why| malformed(&path, &why))?;
            text = removal.apply(&text);
        }
        None => {}
    }
    let change = edit::insert(&text, NAME, &entry).map_err(|why| malformed(&path, &why))?;
    let after = change.apply(&text);
    if !dry_run {
        home.create()?;
        let receipt = Receipt {
            path: path.clone(),
            offset: change.offset,
            inserted: change.inserted.clone(),
            after_sha256: digest(&after),
            created: before.is_none(),
        };
        let place = receipt_path(&home, client);
        if let Some(parent) = place.parent() {
            std::fs::create_dir_all(parent)
                .map_err(|error| CliError::file("creating", parent, &error))?;
        }
        let receipt =
            serde_json::to_vec(&receipt).map_err(|error| CliError::internal(error.to_string()))?;
        replace(&path, &after)?;
        write_private(&place, &receipt)?;
    }
    let mut said = format!("{}  {}\n", client.title(), path.display());
    for line in change
        .inserted
        .lines()
        .filter(|line| !line.trim().is_empty())
    {
        said.push_str(&format!("  + {line}\n"));
    }
    said.push_str(if dry_run {
        "nothing written (dry run)\n"
    } else {
        ""
    });
    said.push_str(&format!(
        "undo     claviger client uninstall {}\n",
        client.id()
    ));
    if client.runs_code() {
        said.push_str("note     this client runs programs as you: at the isolation level shared-uid they can use your tools, and Claviger claims no protection against them\n");
    }
    output.result(&document(true, &change.inserted), &said);
    Ok(())
}

fn digest(text: &str) -> String {
    hex::encode(Sha256::digest(text.as_bytes()))
}

fn uninstall(client: ClientName, dry_run: bool, output: Output) -> Result<(), CliError> {
    let home = Home::from_environment()?;
    let path = client.file()?;
    let receipt: Option<Receipt> = std::fs::read(receipt_path(&home, client))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let Some(text) = read(&path)? else {
        return Err(CliError::new(
            Exit::NotFound,
            "client_not_installed",
            format!(
                "{} has no configuration at {}",
                client.title(),
                path.display()
            ),
        ));
    };
    let document = |exact: bool| json!({"schema": "claviger.client.uninstall/v1", "client": client.id(), "file": path, "dry_run": dry_run, "byte_exact": exact});
    let untouched = receipt
        .as_ref()
        .filter(|receipt| receipt.path == path && receipt.after_sha256 == digest(&text));
    let (restored, exact, created) = if let Some(receipt) = untouched {
        let undo = Remove {
            start: receipt.offset,
            end: receipt.offset + receipt.inserted.len(),
        };
        (undo.apply(&text), true, receipt.created)
    } else {
        if edit::find(&text, NAME)
            .map_err(|why| malformed(&path, &why))?
            .is_none()
        {
            return Err(CliError::new(
                Exit::NotFound,
                "client_not_installed",
                format!("{} has no entry '{NAME}'", path.display()),
            ));
        }
        (
            edit::remove(&text, NAME)
                .map_err(|why| malformed(&path, &why))?
                .apply(&text),
            false,
            false,
        )
    };
    if !dry_run {
        if created && restored.is_empty() {
            std::fs::remove_file(&path)
                .map_err(|error| CliError::file("removing", &path, &error))?;
        } else {
            replace(&path, &restored)?;
        }
        drop(std::fs::remove_file(receipt_path(&home, client)));
    }
    output.result(
        &document(exact),
        &format!(
            "{}  {} {}{}",
            client.title(),
            path.display(),
            if exact {
                "is again as it was, to the byte"
            } else {
                "has no entry any more; the rest of the file is as you left it"
            },
            if dry_run {
                " (dry run: nothing written)"
            } else {
                ""
            }
        ),
    );
    Ok(())
}

fn status(output: Output) -> Result<(), CliError> {
    let (mut rows, mut text) = (Vec::new(), String::new());
    for client in [ClientName::ClaudeCode, ClientName::ClaudeDesktop] {
        let path = client.file()?;
        // One client's broken file does not hide the others.
        let state = match read(&path) {
            Err(_) => "unreadable",
            Ok(None) => "no configuration",
            Ok(Some(found)) => match edit::find(&found, NAME) {
                Err(_) => "malformed",
                Ok(None) => "not installed",
                Ok(Some(entry)) if entry == client.entry()? => "installed",
                Ok(Some(entry))
                    if entry
                        .get("command")
                        .and_then(Value::as_str)
                        .is_none_or(|command| !Path::new(command).exists()) =>
                {
                    "installed, but its program is gone"
                }
                Ok(Some(_)) => "installed, differs from this program's entry",
            },
        };
        text.push_str(&format!(
            "{:<16} {:<24} {}\n",
            client.title(),
            state,
            path.display()
        ));
        rows.push(json!({"client": client.id(), "file": path, "state": state}));
    }
    output.result(
        &json!({"schema": "claviger.client.status/v1", "clients": rows}),
        &text,
    );
    Ok(())
}
