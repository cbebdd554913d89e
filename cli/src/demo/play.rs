//! The demo from curtain to curtain: set-up, one session with a killed harness, the proof.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use claviger_vault_memory::SecretBytes;
use claviger_vault_protocol::admin::{Authentication, List, PUT_PURPOSE, Put};
use claviger_vault_protocol::sealed::{PublicKey, seal};
use claviger_vault_protocol::{Binding, CredentialKind, Destination, Slot};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::report::Findings;
use super::stage::Program;
use super::{leaks, model, story, upstream};
use crate::args::{Demo, Up};
use crate::command::{Events, Initial, Instance, admin_at, api_request, initialise};
use crate::config::{Config, Listen, Model};
use crate::error::{CliError, Exit};
use crate::home::Home;
use crate::output::Output;

/// How long the session may take.
const SESSION_DEADLINE: Duration = Duration::from_secs(60);
/// A credential is out of tools' memory this long after its last use (design section 6).
const WIPED_AFTER: Duration = Duration::from_secs(1);

/// Runs the demo; exit code 0 only if every part of the proof held.
pub(crate) async fn run(options: Demo, output: Output) -> Result<ExitCode, CliError> {
    let place = Place::make(options.keep.clone())?;
    let mut performance = Box::pin(play(&options, &place, output));
    let findings = tokio::select! {
        findings = &mut performance => Some(findings),
        () = interrupted() => None,
    };
    drop(performance);
    let Some(findings) = findings else {
        place.clear().await;
        let what = "the demo was interrupted; its processes and files are gone";
        return Err(CliError::new(Exit::Internal, "interrupted", what));
    };
    let findings = findings?;
    let document = findings.document();
    output.result(&document, &findings.text(place.kept()));
    Ok(if findings.ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(Exit::Verification as u8)
    })
}

/// Where the demo lives: a directory of its own, removed at the end unless it is kept.
struct Place {
    root: PathBuf,
    /// Sockets have short paths; a kept directory may not.
    run: PathBuf,
    keep: bool,
}

impl Place {
    fn make(keep: Option<PathBuf>) -> Result<Self, CliError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let make = |path: &Path| {
            std::fs::DirBuilder::new()
                .mode(0o700)
                .create(path)
                .map_err(|error| {
                    let failed = CliError::file("creating", path, &error);
                    if error.kind() == std::io::ErrorKind::AlreadyExists {
                        failed.fix("--keep wants a directory that does not exist yet")
                    } else {
                        failed
                    }
                })
        };
        // Not guessable: the temporary directory may be shared.
        // A socket's path has at most 107 bytes: a long TMPDIR gives way to the usual place.
        let mut temporary = std::env::temp_dir();
        if temporary.as_os_str().len() > 60 {
            temporary = PathBuf::from("/tmp");
        }
        let name = random("claviger-demo-")?;
        let run = temporary.join(name.get(..24).unwrap_or(&name));
        make(&run)?;
        let root = match &keep {
            Some(path) => std::path::absolute(path)
                .map_err(|error| CliError::file("resolving", path, &error))?,
            None => run.join("home"),
        };
        let place = Self {
            root,
            run,
            keep: keep.is_some(),
        };
        make(&place.root)?;
        for part in ["upstream", "model", "run"] {
            let parent = if part == "run" {
                &place.run
            } else {
                &place.root
            };
            make(&parent.join(part))?;
        }
        Ok(place)
    }

    /// Removes what is not kept, once the roles that still write to it have ended.
    async fn clear(&self) {
        for _ in 0..100 {
            drop(std::fs::remove_dir_all(&self.run));
            tokio::time::sleep(Duration::from_millis(50)).await;
            if !self.run.exists() {
                return;
            }
        }
    }

    fn home(&self) -> Home {
        let mut home = Home::at(&self.root);
        home.run = self.run.join("run");
        home
    }

    fn kept(&self) -> Option<&Path> {
        self.keep.then_some(self.root.as_path())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.run));
    }
}

/// Ctrl-C, or a polite request to end.
async fn interrupted() {
    let terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
    match terminate {
        Ok(mut terminate) => tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        },
        Err(_) => drop(tokio::signal::ctrl_c().await),
    }
}

/// A random text with a recognisable start.
fn random(prefix: &str) -> Result<String, CliError> {
    let mut bytes = [0_u8; 20];
    getrandom::fill(&mut bytes).map_err(|error| CliError::internal("randomness").because(error))?;
    Ok(format!("{prefix}{}", hex::encode(bytes)))
}

fn digest(secret: &SecretBytes) -> String {
    hex::encode(Sha256::digest(secret.expose()))
}

fn secret_of(text: String) -> Result<SecretBytes, CliError> {
    let mut bytes = text.into_bytes();
    SecretBytes::from_mut_slice_wiping(&mut bytes)
        .map_err(|error| CliError::internal("keeping a secret").because(error))
}

/// Everything that is known once the stage is set.
struct Set {
    home: Home,
    root: PathBuf,
    instance: Instance,
    upstream: Program,
    model: Option<Program>,
    tracker_key: SecretBytes,
    model_key: SecretBytes,
    /// Planted in the prompt: what a search must find.
    control: String,
    model_name: String,
}

async fn play(options: &Demo, place: &Place, output: Output) -> Result<Findings, CliError> {
    let started = Instant::now();
    let progress = progress(output);
    progress.set_message("starting the roles, an upstream and a model");
    let mut set = set_up(options, place).await?;
    progress.set_message("one session; its harness is about to be killed");
    let session = session(&mut set, &progress).await?;
    progress.set_message("searching everything for the keys");
    tokio::time::sleep(WIPED_AFTER).await;
    let leaks = leaks::search(&leaks::Scene {
        home: &set.home,
        root: &set.root,
        document: &set.instance.document(),
        secrets: &[("tracker", &set.tracker_key), ("anthropic", &set.model_key)],
        control: &set.control,
        events: &session.events,
        scripted: set.model.is_some(),
    })
    .await?;
    progress.set_message("verifying the audit log, and a copy with one byte changed");
    let credentials = credentials(&set).await?;
    set.instance.stop().await;
    let audit = audit(&set.home, &set.root)?;
    let scripted = set.model.is_some();
    set.upstream.stop().await;
    if let Some(model) = set.model {
        model.stop().await;
    }
    progress.finish_and_clear();
    Ok(Findings {
        elapsed: started.elapsed(),
        scripted,
        model_name: set.model_name,
        session,
        credentials,
        leaks,
        audit,
    })
}

fn progress(output: Output) -> ProgressBar {
    if output.is_json() {
        return ProgressBar::hidden();
    }
    // Draws on stderr, and only where that is a terminal.
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

async fn set_up(options: &Demo, place: &Place) -> Result<Set, CliError> {
    let tracker_key = if options.secret_from_stdin {
        crate::terminal::secret_from_stdin()?
    } else {
        secret_of(random("sk-demo-tracker-")?)?
    };
    if tracker_key.expose().len() < 12
        || tracker_key
            .expose()
            .iter()
            .any(|byte| !byte.is_ascii_graphic())
    {
        return Err(CliError::usage(
            "secret_too_short",
            "the demo's key must be at least 12 printable bytes on one line",
        )
        .fix("printf %s MARKER | claviger demo --secret-from-stdin"));
    }
    let root = place.root.clone();
    let upstream_directory = root.join("upstream");
    let upstream = Program::start(
        "upstream",
        &upstream_directory,
        &upstream::Script {
            listen: "127.0.0.1:0".into(),
            address_file: upstream_directory.join("address"),
            record: upstream_directory.join("requests.jsonl"),
            key_sha256: digest(&tracker_key),
        },
        &upstream_directory.join("address"),
    )
    .await?;
    let (model, model_key, base_url, model_name) = match &options.model {
        None => {
            let key = secret_of(random("sk-demo-model-")?)?;
            let directory = root.join("model");
            let script = model::Script {
                listen: "127.0.0.1:0".into(),
                address_file: directory.join("address"),
                record: directory.join("requests.jsonl"),
                key_sha256: Some(digest(&key)),
                first_token_ms: 0,
                delta_ms: 0,
                turns: story::turns(&upstream.address),
            };
            let program =
                Program::start("model", &directory, &script, &directory.join("address")).await?;
            let base_url = format!("http://{}", program.address);
            (Some(program), key, base_url, "scripted".to_owned())
        }
        Some(name) => {
            let key = crate::command::model_key_from_environment()?.ok_or_else(|| {
                CliError::new(
                    Exit::Unauthenticated,
                    "model_key_missing",
                    "--model needs ANTHROPIC_API_KEY",
                )
                .fix("claviger demo without --model plays a script")
            })?;
            (None, key, Model::default().base_url, name.clone())
        }
    };
    let home = place.home();
    let config = Config {
        api: Listen {
            listen: "127.0.0.1:0".into(),
        },
        mcp: Listen {
            listen: "127.0.0.1:0".into(),
        },
        model: Model {
            base_url,
            name: model_name.clone(),
        },
    };
    // The vault's own copy; the demo keeps one to compare and to search with.
    let copy = SecretBytes::from_mut_slice_wiping(&mut model_key.expose().to_vec())
        .map_err(|error| CliError::internal("keeping a secret").because(error))?;
    let made = initialise(
        &home,
        Initial {
            config,
            seal_passphrase: None,
            operator_passphrase: None,
            model_key: Some(copy),
            demo: true,
        },
    )
    .await?;
    let up = Up {
        detach: false,
        listen: None,
        mcp_listen: None,
        harnesses: 2,
        detached: false,
    };
    let mut instance = Instance::start(home.clone(), &up, true)?;
    instance.ready().await?;
    let set = Set {
        home,
        root,
        instance,
        upstream,
        model,
        tracker_key,
        model_key,
        control: random("control-")?,
        model_name,
    };
    give_tracker(&set, &made.key).await?;
    Ok(set)
}

/// What a user does by `secret add` and `tool add`.
async fn give_tracker(set: &Set, vault_key: &str) -> Result<(), CliError> {
    let key = PublicKey::parse(vault_key)
        .map_err(|error| CliError::internal("the vault's key").because(error))?;
    let destination = Destination::parse(&set.upstream.address)
        .map_err(|error| CliError::internal(error.to_string()))?;
    let binding = Binding {
        destination,
        methods: Vec::new(),
        path_prefixes: vec!["/api".into()],
        slot: Slot::Header {
            name: "authorization".into(),
            prefix: "Bearer ".into(),
        },
    };
    let associated = Put::associated("vlt_local", "tracker", CredentialKind::Bearer, &binding);
    let secret = seal(key, &set.tracker_key, PUT_PURPOSE, &associated)
        .map_err(|error| CliError::internal("sealing to the vault").because(error))?;
    let vault = admin_at(&set.home).await?;
    vault
        .put(&Put {
            auth: Authentication::default(),
            collection: "vlt_local".into(),
            name: "tracker".into(),
            kind: CredentialKind::Bearer,
            binding,
            variable: Some("TRACKER_TOKEN".into()),
            secret: Some(secret),
            short: false,
            principal: None,
            metadata: Value::Null,
        })
        .await?;
    crate::command::add_tool(
        &set.home,
        &vault,
        Authentication::default(),
        &story::tracker(&set.upstream.address),
        &[],
    )
    .await?;
    Ok(())
}

/// What the session showed.
pub(super) struct Seen {
    pub(super) id: String,
    pub(super) status: String,
    pub(super) stop_reason: String,
    pub(super) ttft: Duration,
    /// Every stored event, ours included, in order.
    pub(super) events: Vec<Value>,
    pub(super) epochs: usize,
    pub(super) recovery: Recovery,
}

/// What the kill did.
pub(super) struct Recovery {
    pub(super) at_event: u64,
    pub(super) resumed: Option<Duration>,
    pub(super) events_lost: usize,
    pub(super) effects_doubled: usize,
}

async fn session(set: &mut Set, progress: &ProgressBar) -> Result<Seen, CliError> {
    let home = set.home.clone();
    let (prompt, model_name) = (story::prompt(&set.control), set.model_name.clone());
    let created = crate::command::create_session(&home, None, &model_name, "demo").await?;
    let id = created
        .get("id")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    let mut stream = Events::open(&home, &id, 0).await?;
    let sent = Instant::now();
    let message = json!({"events": [{"type": "user.message", "content": [{"type": "text", "text": prompt}]}]});
    api_request(
        &home,
        "POST",
        &format!("/v1/sessions/{id}/events"),
        Some(&message),
    )
    .await?;
    let deadline = tokio::time::Instant::now() + SESSION_DEADLINE;
    let (mut ttft, mut killed, mut resumed) = (None, None, None);
    let mut acknowledged = Vec::new();
    let mut idle = Value::Null;
    while idle.is_null() {
        let next = tokio::select! {
            next = stream.next() => next,
            happening = set.instance.supervisor.next() => { happening?; continue }
            () = tokio::time::sleep_until(deadline) => None,
        };
        let Some((seq, event)) = next else {
            return Err(CliError::internal("the session did not reach its end")
                .because(format!("{} events seen", acknowledged.len()))
                .fix("claviger demo --keep DIR and look into log/"));
        };
        let kind = event
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or("")
            .to_owned();
        if ttft.is_none() && matches!(kind.as_str(), "event_delta" | "agent.message") {
            ttft = Some(sent.elapsed());
        }
        let Some(seq) = seq else { continue };
        if let Some(text) = crate::command::describe(&kind, &event) {
            let line: String = text.lines().next().unwrap_or("").chars().take(70).collect();
            progress.set_message(line);
        }
        acknowledged.push(
            event
                .get("id")
                .and_then(Value::as_str)
                .unwrap_or("")
                .to_owned(),
        );
        if let (Some((at, _)), None) = (killed, resumed) {
            let at: Instant = at;
            resumed = Some(at.elapsed());
        }
        let running = event
            .pointer("/input/command")
            .and_then(Value::as_str)
            .is_some_and(|command| command.contains(story::PROGRESS));
        if killed.is_none() && kind == "agent.tool_use" && running {
            // The command sleeps: its intent is durable, its effect is under way.
            tokio::time::sleep(Duration::from_millis(200)).await;
            kill_harness(&home, &id).await?;
            killed = Some((Instant::now(), seq));
        }
        if kind == "session.status_idle" {
            idle = event;
        }
    }
    let events = all_events(&home, &id).await?;
    let lost = acknowledged
        .iter()
        .filter(|id| {
            !events
                .iter()
                .any(|event| event.get("id").and_then(Value::as_str) == Some(id))
        })
        .count();
    let session = api_request(&home, "GET", &format!("/v1/sessions/{id}"), None).await?;
    let text = |value: &Value, pointer: &str| {
        value
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or("")
            .to_owned()
    };
    Ok(Seen {
        status: text(&session, "/status"),
        stop_reason: text(&idle, "/stop_reason/type"),
        ttft: ttft.unwrap_or_default(),
        epochs: events
            .iter()
            .filter(|event| event.get("type").and_then(Value::as_str) == Some("lease.acquired"))
            .count(),
        recovery: Recovery {
            at_event: killed.map_or(0, |(_, seq)| seq),
            resumed,
            events_lost: lost,
            effects_doubled: doubled(&set.root, &events)?,
        },
        events,
        id,
    })
}

/// Kills the harness that holds the session's lease: its process id is part of its name.
async fn kill_harness(home: &Home, session: &str) -> Result<(), CliError> {
    let leases = api_request(
        home,
        "GET",
        &format!("/v1/sessions/{session}/events?limit=100&types%5B%5D=lease.acquired"),
        None,
    )
    .await?;
    let owner = leases
        .pointer("/data")
        .and_then(Value::as_array)
        .and_then(|data| data.last())
        .and_then(|event| event.get("owner"))
        .and_then(Value::as_str)
        .unwrap_or("")
        .to_owned();
    let pid = owner
        .split('_')
        .nth(1)
        .and_then(|pid| pid.parse().ok())
        .and_then(rustix::process::Pid::from_raw);
    let pid = pid.ok_or_else(|| {
        CliError::internal("finding the harness that holds the lease").because(owner)
    })?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)
        .map_err(|error| CliError::internal("killing the harness").because(error))
}

/// Every stored event of a session, our own kinds included.
async fn all_events(home: &Home, session: &str) -> Result<Vec<Value>, CliError> {
    const KINDS: [&str; 25] = [
        "agent.mcp_tool_result",
        "agent.mcp_tool_use",
        "agent.message",
        "agent.thinking",
        "agent.tool_result",
        "agent.tool_use",
        "hand.lost",
        "hand.provisioned",
        "lease.acquired",
        "model.response",
        "policy.pinned",
        "session.created",
        "session.error",
        "session.status_idle",
        "session.status_rescheduled",
        "session.status_running",
        "session.status_terminated",
        "session.updated",
        "session.usage",
        "span.model_request_end",
        "span.model_request_start",
        "tool.intent",
        "tool.outcome",
        "user.interrupt",
        "user.message",
    ];
    let kinds: String = KINDS
        .iter()
        .map(|kind| format!("&types%5B%5D={kind}"))
        .collect();
    let (mut events, mut page) = (Vec::new(), String::new());
    loop {
        let answer = api_request(
            home,
            "GET",
            &format!("/v1/sessions/{session}/events?limit=100{kinds}{page}"),
            None,
        )
        .await?;
        events.extend(
            answer
                .get("data")
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default(),
        );
        match answer.get("next_page").and_then(Value::as_str) {
            Some(next) => page = format!("&page={next}"),
            None => return Ok(events),
        }
    }
}

/// Effects that happened more often than the agent asked for: issues at the upstream, the line of
/// the interrupted command, outcomes of one call.
fn doubled(root: &Path, events: &[Value]) -> Result<usize, CliError> {
    let kind = |event: &Value| {
        event
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or("")
            .to_owned()
    };
    let asked = events
        .iter()
        .filter(|event| {
            kind(event) == "agent.mcp_tool_use"
                && event.get("name").and_then(Value::as_str) == Some("tracker_create_issue")
        })
        .count();
    let path = root.join("upstream/requests.jsonl");
    let record =
        std::fs::read_to_string(&path).map_err(|error| CliError::file("reading", &path, &error))?;
    let created = record
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["method"] == "POST" && line["path"] == "/api/issues")
        .count();
    let lines: usize = events
        .iter()
        .filter(|event| kind(event) == "agent.tool_result")
        .filter_map(|event| event.pointer("/content/0/text").and_then(Value::as_str))
        .filter(|text| text.lines().all(|line| line == "finished"))
        .map(|text| text.lines().count().saturating_sub(1))
        .sum();
    let mut outcomes: Vec<String> = events
        .iter()
        .filter(|event| kind(event) == "tool.outcome")
        .map(|event| event["tool_use_id"].to_string())
        .collect();
    let all = outcomes.len();
    outcomes.sort();
    outcomes.dedup();
    Ok(created.saturating_sub(asked) + lines + (all - outcomes.len()))
}

/// One row a credential.
pub(super) struct CredentialUse {
    pub(super) name: String,
    pub(super) uses: u64,
    pub(super) upstream_saw_real_key: bool,
}

async fn credentials(set: &Set) -> Result<Vec<CredentialUse>, CliError> {
    let rows = admin_at(&set.home)
        .await?
        .list(&List::default())
        .await?
        .credentials;
    let read = |name: &str| std::fs::read_to_string(set.root.join(name)).unwrap_or_default();
    let key = String::from_utf8_lossy(set.tracker_key.expose()).into_owned();
    let tracker_saw = read("upstream/requests.jsonl").contains(&format!("Bearer {key}\""));
    let model_saw = read("model/requests.jsonl")
        .lines()
        .any(|line| line.starts_with("{\"accepted\":true"));
    Ok(rows
        .into_iter()
        .map(|row| CredentialUse {
            upstream_saw_real_key: if row.name == "tracker" {
                tracker_saw
            } else {
                model_saw || set.model.is_none() && row.uses > 0
            },
            name: row.name,
            uses: row.uses,
        })
        .collect())
}

/// The verdict on the audit log and on an altered copy of it.
pub(super) struct Audit {
    pub(super) records: u64,
    pub(super) verified: bool,
    pub(super) tampered_copy_detected: bool,
}

fn audit(home: &Home, root: &Path) -> Result<Audit, CliError> {
    let kept = root.join("audit");
    copy_directory(&home.audit(), &kept)?;
    let (document, _, verified) = crate::command::verify_audit(&kept, None)?;
    let copy = root.join("audit-tampered");
    copy_directory(&kept, &copy)?;
    let altered = alter_one_byte(&copy)?;
    let tampered_copy_detected = altered
        && crate::command::verify_audit(&copy, None).map_or(true, |(_, _, verified)| !verified);
    drop(std::fs::remove_dir_all(&copy));
    Ok(Audit {
        records: document.get("records").and_then(Value::as_u64).unwrap_or(0),
        verified,
        tampered_copy_detected,
    })
}

fn copy_directory(from: &Path, to: &Path) -> Result<(), CliError> {
    let failed = |error: std::io::Error| CliError::file("copying", from, &error);
    std::fs::create_dir_all(to).map_err(failed)?;
    for entry in std::fs::read_dir(from).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let target = to.join(entry.file_name());
        if entry.file_type().map_err(failed)?.is_dir() {
            copy_directory(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target).map_err(failed)?;
        }
    }
    Ok(())
}

/// Changes one letter in the middle of the first segment.
fn alter_one_byte(directory: &Path) -> Result<bool, CliError> {
    let mut segments: Vec<PathBuf> = std::fs::read_dir(directory)
        .map_err(|error| CliError::file("reading", directory, &error))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "jsonl")
        })
        .collect();
    segments.sort();
    let Some(path) = segments.first() else {
        return Ok(false);
    };
    let mut bytes = std::fs::read(path).map_err(|error| CliError::file("reading", path, &error))?;
    let middle = bytes.len() / 2;
    let Some(position) = bytes
        .iter()
        .skip(middle)
        .position(u8::is_ascii_lowercase)
        .map(|found| middle + found)
    else {
        return Ok(false);
    };
    if let Some(byte) = bytes.get_mut(position) {
        *byte = if *byte == b'a' { b'b' } else { b'a' };
    }
    std::fs::write(path, bytes).map_err(|error| CliError::file("writing", path, &error))?;
    Ok(true)
}
