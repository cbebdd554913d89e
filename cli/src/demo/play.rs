//! The demo from curtain to curtain: set-up, one session with a killed harness, the proof.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use claviger_vault_memory::SecretBytes;
use claviger_vault_protocol::admin::{Authentication, List, PUT_PURPOSE, Put};
use claviger_vault_protocol::sealed::{PublicKey, seal};
use claviger_vault_protocol::{Binding, CredentialKind, Destination, Slot};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::place::{Place, random};
use super::report::Findings;
use super::session::session;
use super::stage::Program;
use super::tampering::audit;
use super::{leaks, model, story, upstream};
use crate::args::{Demo, Up};
use crate::command::{Initial, Instance, admin_at, initialise};
use crate::config::{Config, Listen, Model};
use crate::error::{CliError, Exit};
use crate::home::Home;
use crate::output::Output;

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

fn digest(secret: &SecretBytes) -> String {
    hex::encode(Sha256::digest(secret.expose()))
}

fn secret_of(text: String) -> Result<SecretBytes, CliError> {
    let mut bytes = text.into_bytes();
    SecretBytes::from_mut_slice_wiping(&mut bytes)
        .map_err(|error| CliError::internal("keeping a secret").because(error))
}

/// Everything that is known once the stage is set.
pub(super) struct Set {
    pub(super) home: Home,
    pub(super) root: PathBuf,
    pub(super) instance: Instance,
    upstream: Program,
    model: Option<Program>,
    tracker_key: SecretBytes,
    model_key: SecretBytes,
    /// Planted in the prompt: what a search must find.
    pub(super) control: String,
    pub(super) model_name: String,
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
