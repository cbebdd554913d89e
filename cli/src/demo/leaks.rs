//! The search for the demo's keys: everywhere but at the upstream, in every form.
//!
//! Files and foreign processes are searched from here; vault and tools, which nobody may read,
//! search themselves with keyed fingerprints and answer counts. A search that finds nothing proves
//! nothing unless it finds what is there, so each looks for a planted control besides.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use claviger_vault_memory::scan::{Fingerprints, ScanReport, scan_bytes, scan_process};
use claviger_vault_memory::{SecretBytes, forms};
use claviger_vault_protocol::admin::{Scan, Scanned};
use claviger_vault_protocol::client::AdminVault;
use claviger_vault_protocol::wire::Link;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use zeroize::Zeroize as _;

use crate::command::admin_at;
use crate::error::CliError;
use crate::home::Home;

/// Name of the control pattern.
const CONTROL: &str = "control";
/// Largest file of a sandbox that is read.
const MAX_FILE: u64 = 64 * 1024 * 1024;

/// What is searched, and for what.
pub(super) struct Scene<'a> {
    pub(super) home: &'a Home,
    pub(super) root: &'a Path,
    /// The document of `up`: process ids.
    pub(super) document: &'a Value,
    pub(super) secrets: &'a [(&'a str, &'a SecretBytes)],
    pub(super) control: &'a str,
    pub(super) events: &'a [Value],
    pub(super) scripted: bool,
}

/// One place that was searched.
#[derive(Debug)]
pub(super) struct Searched {
    pub(super) name: String,
    pub(super) bytes: u64,
    /// Who searched: the demo as this user, as root, or the process itself.
    pub(super) by: &'static str,
    pub(super) hits: u64,
    /// Whether the control was found; none where the place cannot hold it.
    pub(super) control: Option<bool>,
    /// Hits in the secret arena, which is where a key may live: told apart, not counted.
    pub(super) arena_hits: Option<u64>,
    /// Which patterns were found where.
    pub(super) found: Vec<String>,
}

/// The whole search.
#[derive(Debug)]
pub(super) struct Leaks {
    pub(super) places: Vec<Searched>,
    pub(super) forms: Vec<String>,
}

impl Leaks {
    pub(super) fn hits(&self) -> u64 {
        self.places.iter().map(|place| place.hits).sum()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.places.iter().map(|place| place.bytes).sum()
    }

    /// Every place that can hold the control must have shown it.
    pub(super) fn control_found(&self) -> bool {
        self.places.iter().any(|place| place.control.is_some())
            && self.places.iter().all(|place| place.control != Some(false))
    }

    /// A place with nothing in it was not searched.
    pub(super) fn empty_place(&self) -> Option<&str> {
        self.places
            .iter()
            .find(|place| place.bytes == 0)
            .map(|place| place.name.as_str())
    }
}

/// The patterns of a search, wiped when it is over.
struct Patterns(Vec<(String, Vec<u8>)>);

impl Patterns {
    fn of(scene: &Scene<'_>, control: &str) -> Self {
        let mut all = vec![(CONTROL.to_owned(), control.as_bytes().to_vec())];
        for (name, secret) in scene.secrets {
            for (form, pattern) in forms::of(secret.expose()) {
                if pattern.len() >= 12 {
                    all.push((format!("{name}/{form}"), pattern));
                }
            }
        }
        Self(all)
    }

    fn fingerprints(&self) -> Result<Fingerprints, CliError> {
        let mut key = [0_u8; 32];
        getrandom::fill(&mut key)
            .map_err(|error| CliError::internal("randomness").because(error))?;
        Fingerprints::new(
            key,
            self.0
                .iter()
                .map(|(name, pattern)| (name.clone(), pattern.as_slice())),
        )
        .map_err(|error| CliError::internal("making fingerprints").because(error))
    }
}

impl Drop for Patterns {
    fn drop(&mut self) {
        for (_, pattern) in &mut self.0 {
            pattern.zeroize();
        }
    }
}

fn searched(
    name: &str,
    by: &'static str,
    bytes: u64,
    mut hits: BTreeMap<String, u64>,
    can_hold_control: bool,
) -> Searched {
    let control = hits.remove(CONTROL).unwrap_or(0) > 0;
    Searched {
        name: name.to_owned(),
        bytes,
        by,
        control: can_hold_control.then_some(control),
        found: hits
            .iter()
            .map(|(pattern, count)| format!("{pattern} x{count}"))
            .collect(),
        hits: hits.values().sum(),
        arena_hits: None,
    }
}

pub(super) async fn search(scene: &Scene<'_>) -> Result<Leaks, CliError> {
    let patterns = Patterns::of(scene, scene.control);
    let fingerprints = patterns.fingerprints()?;
    let mut places = Vec::new();
    if scene.scripted {
        places.push(files(
            "model requests",
            &[scene.root.join("model/requests.jsonl")],
            &fingerprints,
            true,
        )?);
    }
    let log: String = scene
        .events
        .iter()
        .map(|event| format!("{event}\n"))
        .collect();
    places.push(text("session log", &log, &fingerprints, true));
    let results: String = scene
        .events
        .iter()
        .filter(|event| {
            event["type"]
                .as_str()
                .is_some_and(|kind| kind.ends_with("_result"))
        })
        .map(|event| format!("{event}\n"))
        .collect();
    places.push(text("tool results", &results, &fingerprints, false));
    places.push(files(
        "databases",
        &[scene.home.session(), scene.home.vault()],
        &fingerprints,
        true,
    )?);
    places.push(files(
        "audit log",
        &[scene.home.audit()],
        &fingerprints,
        false,
    )?);
    places.push(files(
        "process logs",
        &[
            scene.home.log.clone(),
            scene.root.join("upstream/log"),
            scene.root.join("model/log"),
        ],
        &fingerprints,
        false,
    )?);
    places.push(files(
        "configuration and tools",
        &[scene.home.config_file.clone(), scene.home.tools()],
        &fingerprints,
        false,
    )?);
    let roles = roles(scene.document);
    places.push(command_lines(&roles, &fingerprints));
    let sandbox = sandbox_processes(&roles);
    places.extend(sandboxes(&sandbox, &fingerprints)?);
    // In a role's memory freed text is wiped; what every role does hold is its environment.
    let own = Patterns::of(scene, &scene.home.run.to_string_lossy());
    for role in ["harness", "api", "session", "hands"] {
        let pids: Vec<u32> = roles
            .iter()
            .filter(|(name, _)| name == role)
            .map(|(_, pid)| *pid)
            .collect();
        places.push(memory(&format!("memory of {role}"), &pids, &own, true)?);
    }
    places.push(memory("memory of the sandbox", &sandbox, &patterns, false)?);
    // What these two search for is told as keyed fingerprints: the question leaves no key behind.
    let own = own.fingerprints()?;
    places.push(itself("memory of vault", &admin_at(scene.home).await?, &own).await?);
    places.push(itself("memory of tools", &tools_scan(scene.home).await?, &own).await?);
    let forms: BTreeSet<String> = patterns
        .0
        .iter()
        .filter_map(|(name, _)| name.split_once('/').map(|(_, form)| form.to_owned()))
        .collect();
    let mut forms: Vec<String> = forms.into_iter().collect();
    forms.sort_by_key(|form| form != "raw");
    Ok(Leaks { places, forms })
}

fn text(
    name: &str,
    content: &str,
    fingerprints: &Fingerprints,
    can_hold_control: bool,
) -> Searched {
    searched(
        name,
        "demo",
        content.len() as u64,
        scan_bytes(content.as_bytes(), fingerprints),
        can_hold_control,
    )
}

/// Whether the demo runs with root's eyes.
fn eyes() -> &'static str {
    if rustix::process::geteuid().is_root() {
        "root"
    } else {
        "demo"
    }
}

fn files(
    name: &str,
    paths: &[PathBuf],
    fingerprints: &Fingerprints,
    can_hold_control: bool,
) -> Result<Searched, CliError> {
    let (mut bytes, mut hits) = (0, BTreeMap::new());
    let mut rest: Vec<PathBuf> = paths.to_vec();
    while let Some(path) = rest.pop() {
        let Ok(metadata) = std::fs::symlink_metadata(&path) else {
            continue;
        };
        if metadata.is_dir() {
            let entries = std::fs::read_dir(&path)
                .map_err(|error| CliError::file("reading", &path, &error))?;
            rest.extend(entries.filter_map(|entry| entry.ok().map(|entry| entry.path())));
        } else if metadata.is_file() && metadata.len() <= MAX_FILE {
            let content =
                std::fs::read(&path).map_err(|error| CliError::file("reading", &path, &error))?;
            bytes += content.len() as u64;
            merge(&mut hits, scan_bytes(&content, fingerprints));
        }
    }
    Ok(searched(name, "demo", bytes, hits, can_hold_control))
}

fn merge(into: &mut BTreeMap<String, u64>, from: BTreeMap<String, u64>) {
    for (name, count) in from {
        *into.entry(name).or_default() += count;
    }
}

/// Every role's process, by the supervisor's word.
fn roles(document: &Value) -> Vec<(String, u32)> {
    let mut roles = Vec::new();
    for (role, pids) in document["pids"].as_object().into_iter().flatten() {
        let list = pids
            .as_array()
            .cloned()
            .unwrap_or_else(|| vec![pids.clone()]);
        roles.extend(
            list.iter()
                .filter_map(Value::as_u64)
                .filter_map(|pid| u32::try_from(pid).ok())
                .map(|pid| (role.clone(), pid)),
        );
    }
    roles
}

fn command_lines(roles: &[(String, u32)], fingerprints: &Fingerprints) -> Searched {
    let mut all = Vec::new();
    for (_, pid) in roles {
        for part in ["cmdline", "environ"] {
            // Vault and tools refuse their environment to everyone but root; their arguments are public.
            all.extend(std::fs::read(format!("/proc/{pid}/{part}")).unwrap_or_default());
        }
    }
    searched(
        "arguments and environment of the roles",
        eyes(),
        all.len() as u64,
        scan_bytes(&all, fingerprints),
        false,
    )
}

/// Children of `hands`, theirs, and so on: the zygote, the sandboxes and what runs in them.
fn sandbox_processes(roles: &[(String, u32)]) -> Vec<u32> {
    let mut parents: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
    {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1))
            .and_then(|parent| parent.parse::<u32>().ok());
        if let Some(parent) = parent {
            parents.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut rest: Vec<u32> = roles
        .iter()
        .filter(|(name, _)| name == "hands")
        .map(|(_, pid)| *pid)
        .collect();
    while let Some(pid) = rest.pop() {
        for child in parents.get(&pid).into_iter().flatten() {
            found.push(*child);
            rest.push(*child);
        }
    }
    found
}

/// Files and environment as they are inside; through `/proc/PID/root`, so as the sandbox sees them.
fn sandboxes(processes: &[u32], fingerprints: &Fingerprints) -> Result<Vec<Searched>, CliError> {
    let mut environment = Vec::new();
    let mut roots: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let own = mount_namespace(std::process::id());
    for pid in processes {
        environment.extend(std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default());
        if let Some(namespace) = mount_namespace(*pid)
            && Some(namespace) != own
        {
            roots
                .entry(namespace)
                .or_insert_with(|| PathBuf::from(format!("/proc/{pid}/root")));
        }
    }
    let paths: Vec<PathBuf> = roots
        .values()
        .flat_map(|root| {
            ["workspace", "tmp", "etc", "home", "root", "run", "var"].map(|part| root.join(part))
        })
        .collect();
    let mut inside = files("files of the sandbox", &paths, fingerprints, false)?;
    inside.by = eyes();
    let environment = searched(
        "environment of the sandbox",
        eyes(),
        environment.len() as u64,
        scan_bytes(&environment, fingerprints),
        false,
    );
    Ok(vec![inside, environment])
}

fn mount_namespace(pid: u32) -> Option<u64> {
    let link = std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()?;
    link.to_str()?
        .strip_prefix("mnt:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

fn memory(
    name: &str,
    pids: &[u32],
    patterns: &Patterns,
    can_hold_control: bool,
) -> Result<Searched, CliError> {
    let list: Vec<(&str, &[u8])> = patterns
        .0
        .iter()
        .map(|(name, pattern)| (name.as_str(), pattern.as_slice()))
        .collect();
    let (mut bytes, mut hits) = (0, BTreeMap::new());
    for pid in pids {
        // A process of the sandbox may have ended meanwhile; a role that cannot be read is 0 bytes and so a failure.
        if let Ok(report) = scan_process(*pid, &list) {
            bytes += report.bytes;
            merge(&mut hits, report.hits);
        }
    }
    Ok(searched(name, eyes(), bytes, hits, can_hold_control))
}

/// Asks a process to search itself.
async fn itself(
    name: &str,
    process: &AdminVault,
    fingerprints: &Fingerprints,
) -> Result<Searched, CliError> {
    let fingerprints = serde_json::to_value(fingerprints)
        .map_err(|error| CliError::internal(error.to_string()))?;
    let Scanned { report } = process.scan(&Scan { fingerprints }).await?;
    let report: ScanReport = serde_json::from_value(report)
        .map_err(|error| CliError::internal("reading a scan's report").because(error))?;
    let mut result = searched(name, "itself", report.bytes, report.hits, true);
    result.arena_hits = Some(report.arena_hits.values().sum());
    result.found = report
        .places
        .iter()
        .filter(|place| place.pattern != CONTROL)
        .map(|place| {
            format!(
                "{} in {}",
                place.pattern,
                if place.mapping.is_empty() {
                    "anonymous memory"
                } else {
                    &place.mapping
                }
            )
        })
        .collect();
    Ok(result)
}

async fn tools_scan(home: &Home) -> Result<AdminVault, CliError> {
    let path = home.socket("tools-scan");
    let stream = UnixStream::connect(&path)
        .await
        .map_err(|error| CliError::file("connecting to", &path, &error))?;
    let (sender, connections) = mpsc::channel(1);
    let (link, driver) = Link::new("tools", connections, None);
    drop(sender.send(stream).await);
    tokio::spawn(async move {
        driver.await;
        drop(sender);
    });
    Ok(AdminVault(link))
}
