//! `claviger tool`: definitions of tools that spend credentials, and the permits they imply.

use std::path::Path;

use claviger_mcp_tools::Definition;
use claviger_mcp_tools::definition::Operation;
use claviger_vault_protocol::admin::{
    Authentication, List, Nothing, Permit, PermitTool, Permits, RevokeTool,
};
use claviger_vault_protocol::client::AdminVault;
use claviger_vault_protocol::{Destination, Principal};
use serde_json::{Value, json};

use super::connect::admin_at;
use super::secret::authenticate;
use crate::args::Tool;
use crate::error::{CliError, Exit};
use crate::home::{Home, write_private};
use crate::output::Output;

/// Largest definition file.
const MAX_BYTES: u64 = 1024 * 1024;

pub(crate) async fn run(tool: Tool, output: Output) -> Result<(), CliError> {
    let home = Home::from_environment()?;
    match tool {
        Tool::Add {
            kind,
            file,
            principals,
        } => {
            if kind != "http" {
                return Err(CliError::usage(
                    "unknown_kind",
                    format!("unknown kind of tool '{kind}'"),
                )
                .fix("claviger tool add http FILE"));
            }
            let text = read(&file)?;
            name_in(&file, &text)?;
            let vault = admin_at(&home).await?;
            let auth = authenticate(&vault.status(&Nothing {}).await?, "permit_tool")?;
            let (definition, permit) = add(&home, &vault, auth, &text, &principals).await?;
            let names: Vec<String> = definition
                .tools()
                .into_iter()
                .map(|tool| tool.name)
                .collect();
            let who: Vec<String> = permit.principals.iter().map(ToString::to_string).collect();
            output.result(
                &json!({"schema": "claviger.tool.add/v1", "name": definition.name(), "tools": names, "permit": permit}),
                &format!(
                    "added    {}\ntools    {}\npermit   {} may spend '{}' with exactly this definition ({}..)\nundo     claviger tool remove {}",
                    definition.name(),
                    names.join(", "),
                    who.join(", "),
                    definition.credential(),
                    definition.hash().chars().take(12).collect::<String>(),
                    definition.name()
                ),
            );
            Ok(())
        }
        Tool::List => list(&home, output).await,
        Tool::Show { name } => {
            let (definition, text) = load(&home, &name)?;
            let permits = admin_at(&home).await?.list_permits(&Nothing {}).await?;
            let permit = permits.permits.iter().find(|permit| permit.tool == name);
            output.result(
                &json!({"schema": "claviger.tool.show/v1", "name": name, "hash": definition.hash(), "permit": permit, "tools": definition.tools(), "definition": text}),
                &format!("# {}\n{text}", state(&definition, permit)),
            );
            Ok(())
        }
        Tool::Test { name, args, call } => test(&home, &name, &args, call, output).await,
        Tool::Remove { name } => {
            let path = path_of(&home, &name)?;
            let vault = admin_at(&home).await?;
            if !path.exists() {
                return Err(not_found(&name));
            }
            // The permit first: a definition without a permit is worth nothing.
            vault
                .revoke_tool(&RevokeTool { tool: name.clone() })
                .await?;
            std::fs::remove_file(&path)
                .map_err(|error| CliError::file("removing", &path, &error))?;
            output.result(
                &json!({"schema": "claviger.tool.remove/v1", "name": name}),
                &format!("removed  {name}"),
            );
            Ok(())
        }
    }
}

fn not_found(name: &str) -> CliError {
    CliError::new(
        Exit::NotFound,
        "tool_not_found",
        format!("there is no tool '{name}'"),
    )
    .fix("claviger tool list")
}

fn read(file: &Path) -> Result<String, CliError> {
    let failed = |error: std::io::Error| CliError::file("reading", file, &error);
    if std::fs::metadata(file).map_err(failed)?.len() > MAX_BYTES {
        return Err(CliError::new(
            Exit::Config,
            "definition_malformed",
            format!("{} is larger than 1 MiB", file.display()),
        ));
    }
    std::fs::read_to_string(file).map_err(failed)
}

/// The name that the text itself says; its parse errors are reported with the file's own path.
fn name_in(file: &Path, text: &str) -> Result<String, CliError> {
    parse(text)
        .map(|definition| definition.name().to_owned())
        .map_err(|mut error| {
            error.what = format!("{}: {}", file.display(), error.what);
            error
        })
}

fn parse(text: &str) -> Result<Definition, CliError> {
    let name = toml::from_str::<toml::Table>(text).ok().and_then(|table| {
        table
            .get("name")
            .and_then(|name| name.as_str().map(ToOwned::to_owned))
    });
    Definition::parse(name.as_deref().unwrap_or("definition"), text).map_err(|error| {
        CliError::new(Exit::Config, "definition_malformed", error.to_string())
            .fix("docs/reference/tools.md shows the form")
    })
}

/// Permits a definition and then writes it: a crash between leaves a permit without a file, which permits nothing.
pub(crate) async fn add(
    home: &Home,
    vault: &AdminVault,
    auth: Authentication,
    text: &str,
    principals: &[String],
) -> Result<(Definition, Permit), CliError> {
    let definition = parse(text)?;
    let rows = vault.list(&List::default()).await?.credentials;
    let mut fitting: Vec<_> = rows
        .into_iter()
        .filter(|row| row.name == definition.credential() && row.archived_at_ms.is_none())
        .collect();
    fitting.sort_by_key(|row| row.collection != super::secret::LOCAL);
    let credential = fitting.into_iter().next().ok_or_else(|| {
        CliError::new(
            Exit::NotFound,
            "credential_not_found",
            format!(
                "the definition names the credential '{}', which does not exist",
                definition.credential()
            ),
        )
        .fix(format!(
            "claviger secret add {} --kind bearer --host HOST < FILE",
            definition.credential()
        ))
    })?;
    let destination = Destination::of(definition.base_url());
    if destination.as_ref() != Some(&credential.binding.destination) {
        return Err(CliError::new(
            Exit::Config,
            "destination_not_bound",
            format!(
                "the definition's base_url {} is not where the credential '{}' is bound",
                definition.base_url(),
                credential.name
            ),
        )
        .because(format!(
            "it is bound to {}",
            credential.binding.destination.origin()
        ))
        .fix("correct base_url, or give the secret again with another --host"));
    }
    let principals = if principals.is_empty() {
        default_principals(home)?
    } else {
        principals.iter().cloned().map(Principal::from).collect()
    };
    let permit = Permit {
        tool: definition.name().to_owned(),
        tool_hash: definition.hash().to_owned(),
        credential: credential.id,
        principals,
        methods: Vec::new(),
    };
    vault
        .permit_tool(&PermitTool {
            auth,
            permit: permit.clone(),
        })
        .await?;
    let path = path_of(home, definition.name())?;
    write_private(&path, text.as_bytes())?;
    Ok((definition, permit))
}

/// The local operator, and the holder of the first key.
fn default_principals(home: &Home) -> Result<Vec<Principal>, CliError> {
    let mut all = vec![Principal::operator(rustix::process::getuid().as_raw())];
    // `init` leaves the first key's identifier beside it.
    if let Ok(id) = std::fs::read_to_string(home.api_key_id()) {
        all.push(Principal::key(id.trim()));
    }
    Ok(all)
}

fn path_of(home: &Home, name: &str) -> Result<std::path::PathBuf, CliError> {
    if name.is_empty()
        || !name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
    {
        return Err(
            CliError::usage("bad_name", format!("'{name}' is no tool's name"))
                .fix("claviger tool list"),
        );
    }
    Ok(home.tools().join(format!("{name}.toml")))
}

fn load(home: &Home, name: &str) -> Result<(Definition, String), CliError> {
    let path = path_of(home, name)?;
    if !path.exists() {
        return Err(not_found(name));
    }
    let text = read(&path)?;
    Ok((parse(&text)?, text))
}

/// Whether a definition is in force, in words.
fn state(definition: &Definition, permit: Option<&Permit>) -> String {
    match permit {
        None => format!(
            "not permitted: claviger tool add http {}.toml",
            definition.name()
        ),
        Some(permit) if permit.tool_hash != definition.hash() => {
            "changed since it was permitted, so refused: claviger tool add again".to_owned()
        }
        Some(permit) => {
            let who: Vec<String> = permit.principals.iter().map(ToString::to_string).collect();
            format!("permitted for {}", who.join(", "))
        }
    }
}

async fn list(home: &Home, output: Output) -> Result<(), CliError> {
    let permits: Permits = admin_at(home).await?.list_permits(&Nothing {}).await?;
    let mut names: Vec<String> = std::fs::read_dir(home.tools())
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            entry
                .ok()?
                .path()
                .file_name()?
                .to_str()?
                .strip_suffix(".toml")
                .map(ToOwned::to_owned)
        })
        .collect();
    names.sort();
    let (mut rows, mut text) = (Vec::new(), String::new());
    for name in names {
        let permit = permits.permits.iter().find(|permit| permit.tool == name);
        match load(home, &name) {
            Ok((definition, _)) => {
                let said = state(&definition, permit);
                let in_force = permit.is_some_and(|permit| permit.tool_hash == definition.hash());
                let tools: Vec<String> = definition
                    .tools()
                    .into_iter()
                    .map(|tool| tool.name)
                    .collect();
                text.push_str(&format!(
                    "{name:<16} {:<32} {} tools  {said}\n",
                    definition.base_url().as_str(),
                    tools.len()
                ));
                rows.push(json!({"name": name, "base_url": definition.base_url().as_str(), "credential": definition.credential(), "tools": tools, "in_force": in_force, "state": said}));
            }
            Err(error) => {
                text.push_str(&format!("{name:<16} {}\n", error.what));
                rows.push(json!({"name": name, "in_force": false, "state": error.what}));
            }
        }
    }
    if text.is_empty() {
        "no tools yet: claviger tool add http FILE\n".clone_into(&mut text);
    }
    output.result(
        &json!({"schema": "claviger.tool.list/v1", "tools": rows}),
        &text,
    );
    Ok(())
}

/// Says whether a call would be sent and why not; sends it only when asked to.
async fn test(
    home: &Home,
    name: &str,
    arguments: &str,
    call: bool,
    output: Output,
) -> Result<(), CliError> {
    let arguments: Value = serde_json::from_str(arguments).map_err(|error| {
        CliError::usage("malformed_arguments", format!("--args is no JSON: {error}"))
    })?;
    let definition = definition_of(home, name)?;
    let operations: Vec<&Operation> = match definition.operation(name) {
        Some(operation) => vec![operation],
        None => definition.operations().iter().collect(),
    };
    let vault = admin_at(home).await?;
    let permits = vault.list_permits(&Nothing {}).await?;
    let permit = permits
        .permits
        .iter()
        .find(|permit| permit.tool == definition.name());
    let credential = vault
        .list(&List {
            collection: None,
            include_archived: true,
        })
        .await?
        .credentials
        .into_iter()
        .find(|row| permit.is_some_and(|permit| permit.credential == row.id));
    let mut problems = Vec::new();
    if permit.is_none_or(|permit| permit.tool_hash != definition.hash()) {
        problems.push(state(&definition, permit));
    }
    let (mut text, mut rows) = (String::new(), Vec::new());
    for operation in &operations {
        let path = format!(
            "{}{}",
            definition.base_url().path().trim_end_matches('/'),
            operation.path
        );
        let destination = Destination::of(definition.base_url());
        let admitted = match (&credential, &destination) {
            (Some(row), _) if row.archived_at_ms.is_some() => Err("credential_archived"),
            (Some(row), Some(destination)) => {
                row.binding
                    .admits(destination, operation.method.as_str(), &path)
            }
            _ => Err("credential_not_found"),
        };
        let missing: Vec<&str> = operation
            .parameters
            .iter()
            .filter(|parameter| parameter.is_required && arguments.get(&parameter.name).is_none())
            .map(|parameter| parameter.name.as_str())
            .collect();
        let verdict = admitted.err().unwrap_or("would be sent");
        text.push_str(&format!(
            "{:<28} {} {}{path}  {verdict}",
            format!("{}_{}", definition.name(), operation.name),
            operation.method,
            destination.map(|d| d.origin()).unwrap_or_default()
        ));
        if !missing.is_empty() {
            text.push_str(&format!("; needs {}", missing.join(", ")));
        }
        text.push('\n');
        rows.push(json!({"tool": format!("{}_{}", definition.name(), operation.name), "method": operation.method.as_str(), "path": path, "verdict": verdict, "missing": missing}));
    }
    if let Some(row) = &credential {
        text.push_str(&format!(
            "credential '{}' goes into {}\n",
            row.name,
            serde_json::to_string(&row.binding.slot).unwrap_or_default()
        ));
    }
    for problem in &problems {
        text.push_str(&format!("problem  {problem}\n"));
    }
    let mut document =
        json!({"schema": "claviger.tool.test/v1", "operations": rows, "problems": problems});
    if call {
        if operations.len() != 1 {
            return Err(CliError::usage(
                "which_operation",
                format!("--call needs one operation: {text}"),
            ));
        }
        let answer = call_tool(home, name, &arguments).await?;
        text.push_str(&format!("answer   {answer}\n"));
        if let Some(object) = document.as_object_mut() {
            object.insert("answer".into(), answer);
        }
    }
    output.result(&document, &text);
    Ok(())
}

fn definition_of(home: &Home, name: &str) -> Result<Definition, CliError> {
    if let Ok((definition, _)) = load(home, name) {
        return Ok(definition);
    }
    // A tool's full name is `definition_operation`; either part may have underscores.
    let cuts = name
        .char_indices()
        .filter(|(_, c)| *c == '_')
        .map(|(at, _)| at);
    for at in cuts {
        if let Some((definition, _)) = name.get(..at).and_then(|prefix| load(home, prefix).ok())
            && definition.operation(name).is_some()
        {
            return Ok(definition);
        }
    }
    Err(not_found(name))
}

/// Calls a tool as any MCP client does, by `mcp.sock`.
async fn call_tool(home: &Home, name: &str, arguments: &Value) -> Result<Value, CliError> {
    use rmcp::ServiceExt as _;
    let path = home.socket("mcp");
    let unreachable = || {
        CliError::new(
            Exit::Unreachable,
            "daemon_not_running",
            "no daemon answers in this home",
        )
        .fix("claviger up --detach")
    };
    let stream = tokio::net::UnixStream::connect(&path)
        .await
        .map_err(|_| unreachable())?;
    super::connect::peer_check(&stream)?;
    let client = ().serve(stream.into_split()).await.map_err(|error| unreachable().because(error))?;
    let mut params = rmcp::model::CallToolRequestParams::new(name.to_owned());
    params.arguments = arguments.as_object().cloned();
    let result = client.call_tool(params).await.map_err(|error| {
        CliError::new(Exit::Upstream, "tool_failed", format!("{name} failed")).because(error)
    })?;
    drop(client.cancel().await);
    serde_json::to_value(result).map_err(|error| CliError::internal(error.to_string()))
}
