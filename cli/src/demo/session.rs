//! The demo's one session: followed, its harness killed in the middle, counted at the end.

use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::play::Set;
use super::story;
use crate::command::{Events, api_request};
use crate::error::CliError;
use crate::home::Home;

/// How long the session may take.
const SESSION_DEADLINE: Duration = Duration::from_secs(60);

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

pub(super) async fn session(set: &mut Set, progress: &ProgressBar) -> Result<Seen, CliError> {
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
