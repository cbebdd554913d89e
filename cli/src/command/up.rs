//! `claviger up`: all roles on this machine, under one supervisor.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::signal::unix::{SignalKind, signal};

use super::connect::{admin_at, api_request};
use super::model_key;
use crate::args::Up;
use crate::config::Config;
use crate::control::FromRole;
use crate::error::{CliError, Exit};
use crate::home::{Home, write_private};
use crate::lock;
use crate::output::Output;
use crate::supervisor::{Happening, Listeners, Supervisor};

/// How long everything may take to come up.
const READY_DEADLINE: Duration = Duration::from_secs(30);

/// A running system: supervisor, home, lock.
pub(crate) struct Instance {
    pub(crate) supervisor: Supervisor,
    pub(crate) home: Home,
    /// What the vault said of itself when everything was ready: `open` or `sealed`.
    vault: String,
    /// Held as long as the system runs: a second `up` of the same home finds them.
    _locks: lock::Locks,
}

pub(crate) async fn run(options: Up, output: Output) -> Result<(), CliError> {
    let home = Home::from_environment()?;
    if !home.is_initialised() {
        return Err(CliError::new(
            Exit::NotFound,
            "not_initialised",
            "there is no vault in this home yet",
        )
        .fix("claviger init"));
    }
    if options.detach {
        return detach(&options, output).await;
    }
    if options.detached {
        // Leaves the terminal's session, so that closing it does not end the daemon.
        let _ = rustix::process::setsid();
    }
    crate::telemetry::start();
    // From here on, Ctrl-C and SIGTERM stop everything in order.
    let failed = |error: std::io::Error| CliError::internal("waiting for signals").because(error);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut instance = Instance::start(home, &options, false)?;
    let document = tokio::select! {
        document = instance.ready() => document,
        _ = terminate.recv() => Err(interrupted()),
        _ = interrupt.recv() => Err(interrupted()),
    };
    let document = match document {
        Ok(document) => document,
        Err(error) => {
            instance.stop().await;
            return Err(error);
        }
    };
    // What the environment has, and only where the home never had it.
    match model_key::import(&instance.home).await {
        Ok(true) => output.note("imported ANTHROPIC_API_KEY as the credential 'anthropic'"),
        Ok(false) => {}
        Err(error) => tracing::warn!(
            code = error.code,
            what = error.what,
            "model key not imported"
        ),
    }
    announce(&document, options.detached, output);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            happening = instance.supervisor.next() => if happening?.is_none() { break },
        }
    }
    instance.stop().await;
    Ok(())
}

fn interrupted() -> CliError {
    CliError::internal("interrupted before everything was ready")
}

fn announce(document: &Value, detached: bool, output: Output) {
    if detached {
        Output::new(true).result(document, "");
    } else {
        output.result(document, &describe(document, "claviger down (or Ctrl-C)"));
    }
}

/// The document of `up --json` for people.
fn describe(document: &Value, stop: &str) -> String {
    let text = |key: &str| document.get(key).and_then(Value::as_str).unwrap_or("");
    let vault = match text("vault") {
        "sealed" => "vault      sealed: claviger vault unseal\n",
        _ => "",
    };
    format!(
        "api        {}\nmcp        {}\n{vault}isolation  {}\nstop with  {stop}",
        text("api"),
        text("mcp"),
        text("isolation")
    )
}

/// Starts the same command in the background and waits until it is ready.
async fn detach(options: &Up, output: Output) -> Result<(), CliError> {
    let home = Home::from_environment()?;
    home.create()?;
    let log_path = home.log.join("supervisor.log");
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log_path)
        .map_err(|error| CliError::file("opening", &log_path, &error))?;
    let program = std::env::current_exe()
        .map_err(|error| CliError::internal("finding this program").because(error))?;
    let mut command = tokio::process::Command::new(program);
    command.args([
        "--json",
        "up",
        "--detached",
        "--harnesses",
        &options.harnesses.to_string(),
    ]);
    for (flag, value) in [
        ("--listen", &options.listen),
        ("--mcp-listen", &options.mcp_listen),
    ] {
        if let Some(value) = value {
            command.args([flag, value]);
        }
    }
    let reader_path = home.log.join(format!("up-{}.err", std::process::id()));
    let errors = std::fs::File::create(&reader_path)
        .map_err(|error| CliError::file("writing", &reader_path, &error))?;
    drop(log);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .map_err(|error| CliError::internal("starting the daemon").because(error))?;
    let stdout = child
        .stdout
        .take()
        .ok_or_else(|| CliError::internal("the daemon's output"))?;
    let mut line = String::new();
    let read = BufReader::new(stdout).read_line(&mut line).await;
    let document: Option<Value> = serde_json::from_str(&line).ok();
    if let (Ok(_), Some(document)) = (read, document) {
        // From now on the file is the supervisor's log.
        drop(std::fs::rename(&reader_path, &log_path));
        output.result(&document, &describe(&document, "claviger down"));
        return Ok(());
    }
    child.wait().await.ok();
    let told = std::fs::read_to_string(&reader_path).unwrap_or_default();
    drop(std::fs::remove_file(&reader_path));
    // The daemon reports its failure as one JSON object, its last line.
    let error: Value = told
        .lines()
        .rev()
        .find_map(|line| {
            serde_json::from_str(line)
                .ok()
                .filter(|value: &Value| value.get("exit").is_some())
        })
        .unwrap_or(Value::Null);
    let text = |key: &str| {
        error
            .get(key)
            .and_then(Value::as_str)
            .map(ToOwned::to_owned)
    };
    let mut failed = CliError::refused(
        &text("code").unwrap_or_else(|| "daemon_failed".into()),
        &text("what").unwrap_or_else(|| "the daemon did not come up".into()),
        text("fix").as_deref().or(Some("claviger doctor")),
    );
    failed.why = text("why");
    if error.get("exit").and_then(Value::as_u64) == Some(u64::from(Exit::Conflict as u8)) {
        failed.exit = Exit::Conflict;
    }
    Err(failed)
}

impl Instance {
    /// Takes the home's lock, binds the listeners and starts every role.
    pub(crate) fn start(home: Home, options: &Up, demo: bool) -> Result<Self, CliError> {
        home.create()?;
        raise_descriptor_limit();
        let config = Config::load(&home.config_file)?;
        let locks = lock::take_all(&home)?;
        let api = options.listen.as_ref().unwrap_or(&config.api.listen);
        let mcp = options.mcp_listen.as_ref().unwrap_or(&config.mcp.listen);
        let listeners = Listeners::bind(&home, api, mcp, demo)?;
        let mut supervisor = Supervisor::new(home.clone(), listeners, demo);
        supervisor.start_all(usize::from(options.harnesses))?;
        Ok(Self {
            supervisor,
            home,
            vault: String::new(),
            _locks: locks,
        })
    }

    /// Waits until every role serves and the api answers through session and vault; writes and
    /// answers the document of `up --json`.
    pub(crate) async fn ready(&mut self) -> Result<Value, CliError> {
        let end = tokio::time::Instant::now() + READY_DEADLINE;
        let late = || {
            CliError::new(
                Exit::Unreachable,
                "not_ready",
                "the roles did not come up in time",
            )
            .fix("claviger doctor; the logs are in the home's log directory")
        };
        while !self.supervisor.is_ready() {
            let happening = tokio::time::timeout_at(end, self.supervisor.next())
                .await
                .map_err(|_| late())??;
            if let Some(Happening::Said {
                message: FromRole::Failed { code, what, fix },
                ..
            }) = happening
            {
                return Err(CliError::refused(&code, &what, fix.as_deref()));
            }
        }
        let home = self.home.clone();
        let probe = async {
            let vault = admin_at(&home).await?;
            let status = vault
                .status(&claviger_vault_protocol::admin::Nothing {})
                .await?;
            if status.state == "failed" {
                let reason = status.reason.unwrap_or_default();
                let code = reason
                    .split(':')
                    .next()
                    .unwrap_or("vault_failed")
                    .to_owned();
                return Err(CliError::refused(
                    &code,
                    &format!("the vault refuses its store: {reason}"),
                    Some("claviger doctor; restore a backup"),
                ));
            }
            let answer = api_request(&home, "GET", "/v1/agents?limit=1", None).await;
            match answer {
                // A sealed vault waits for its operator; everything else is up.
                Err(error) if status.state == "sealed" && error.code == "vault_sealed" => {}
                answer => drop(answer?),
            }
            Ok(status.state)
        };
        let mut probe = std::pin::pin!(probe);
        self.vault = loop {
            tokio::select! {
                state = &mut probe => break state?,
                happening = self.supervisor.next() => {
                    if let Some(Happening::Said { message: FromRole::Failed { code, what, fix }, .. }) = happening? {
                        return Err(CliError::refused(&code, &what, fix.as_deref()));
                    }
                }
                () = tokio::time::sleep_until(end) => return Err(late()),
            }
        };
        let document = self.document();
        write_private(&self.home.up_file(), document.to_string().as_bytes())?;
        Ok(document)
    }

    /// The document of `up --json`, with the process ids of the moment.
    pub(crate) fn document(&self) -> Value {
        let address = |name: &str| {
            self.supervisor
                .listeners()
                .address(name)
                .map(|address| address.to_string())
                .unwrap_or_default()
        };
        let pids = self.supervisor.pids();
        let of = |role: &str| json!(pids.get(&format!("{role}-0")));
        let harness: Vec<u32> = pids
            .iter()
            .filter(|(name, _)| name.starts_with("harness-"))
            .map(|(_, pid)| *pid)
            .collect();
        json!({
            "schema": "claviger.up/v1",
            "api": format!("http://{}", address("api-http")),
            "mcp": format!("http://{}/mcp", address("mcp-http")),
            "isolation": "shared-uid",
            "vault": self.vault,
            "pids": {"vault": of("vault"), "tools": of("tools"), "hands": of("hands"), "session": of("session"), "api": of("api"), "harness": harness},
            "supervisor": std::process::id(),
        })
    }

    pub(crate) async fn stop(&mut self) {
        let started = Instant::now();
        self.supervisor.stop().await;
        self.supervisor.clean();
        tracing::info!(elapsed_ms = started.elapsed().as_millis(), "stopped");
    }
}

/// Gives the roles all descriptors that this user may have.
///
/// Each connection of each sandbox is a descriptor of tools; the usual soft limit of 1,024 is for
/// programs that use `select`, and sandboxes set their own.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of descriptors stays as it is");
    }
}
