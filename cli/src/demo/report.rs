//! What the demo found out, as one document and as a page for people.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::leaks::Leaks;
use super::play::CredentialUse;
use super::session::Seen;
use super::story;
use super::tampering::Audit;

/// All that was measured.
pub(super) struct Findings {
    pub(super) elapsed: Duration,
    pub(super) scripted: bool,
    pub(super) model_name: String,
    pub(super) session: Seen,
    pub(super) credentials: Vec<CredentialUse>,
    pub(super) leaks: Leaks,
    pub(super) audit: Audit,
}

/// One tool call of the session.
struct Step {
    tool: String,
    via: &'static str,
    ok: bool,
}

fn kind(event: &Value) -> &str {
    event.get("type").and_then(Value::as_str).unwrap_or("")
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}

impl Findings {
    fn steps(&self) -> Vec<Step> {
        let events = &self.session.events;
        let result_of = |id: &Value| {
            events.iter().find(|event| {
                event.get("tool_use_id") == Some(id) && kind(event) == "agent.tool_result"
                    || event.get("mcp_tool_use_id") == Some(id)
            })
        };
        events
            .iter()
            .filter(|event| matches!(kind(event), "agent.tool_use" | "agent.mcp_tool_use"))
            .map(|event| {
                let result = event.get("id").and_then(result_of);
                Step {
                    tool: event
                        .get("name")
                        .and_then(Value::as_str)
                        .unwrap_or("")
                        .to_owned(),
                    via: story::via(kind(event), event.get("input").unwrap_or(&Value::Null)).name(),
                    ok: result.is_some_and(|result| {
                        result.get("is_error").and_then(Value::as_bool) != Some(true)
                    }),
                }
            })
            .collect()
    }

    /// What did not hold, in words; empty when everything did.
    fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        let mut expect = |holds: bool, text: String| {
            if !holds {
                failures.push(text);
            }
        };
        let steps = self.steps();
        expect(
            self.session.stop_reason == "end_turn",
            format!("the session ended with '{}'", self.session.stop_reason),
        );
        expect(
            steps.iter().all(|step| step.ok),
            "a tool call failed".to_owned(),
        );
        if self.scripted {
            for via in ["sandbox", "mcp", "egress"] {
                expect(
                    steps.iter().any(|step| step.via == via),
                    format!("no step went by {via}"),
                );
            }
            expect(
                self.session.recovery.resumed.is_some(),
                "no harness was killed and replaced".to_owned(),
            );
            expect(
                self.session.epochs == 2,
                format!("{} epochs, not 2", self.session.epochs),
            );
            let spent = steps.iter().filter(|step| step.via != "sandbox").count();
            let used = self
                .credentials
                .iter()
                .find(|row| row.name == "tracker")
                .map_or(0, |row| row.uses);
            expect(
                used == spent as u64,
                format!("{used} recorded uses of 'tracker' for {spent} calls that spend it"),
            );
            expect(
                self.scrubbed(),
                "the echoed key was not marked as scrubbed".to_owned(),
            );
        }
        expect(
            self.session.recovery.events_lost == 0,
            format!(
                "{} acknowledged events lost",
                self.session.recovery.events_lost
            ),
        );
        expect(
            self.session.recovery.effects_doubled == 0,
            format!("{} effects doubled", self.session.recovery.effects_doubled),
        );
        for credential in &self.credentials {
            expect(
                credential.upstream_saw_real_key && credential.uses > 0,
                format!(
                    "the upstream of '{}' did not see the real key",
                    credential.name
                ),
            );
        }
        for place in self.leaks.places.iter().filter(|place| place.hits > 0) {
            expect(
                false,
                format!(
                    "{} in {}: {}",
                    place.hits,
                    place.name,
                    place.found.join(", ")
                ),
            );
        }
        if let Some(place) = self.leaks.empty_place() {
            expect(false, format!("nothing was searched in {place}"));
        }
        for place in self
            .leaks
            .places
            .iter()
            .filter(|place| place.control == Some(false))
        {
            expect(
                false,
                format!("the control was not found in {}", place.name),
            );
        }
        expect(
            self.audit.verified,
            "the audit log does not verify".to_owned(),
        );
        expect(
            self.audit.tampered_copy_detected,
            "a changed byte in the audit log was not noticed".to_owned(),
        );
        failures
    }

    /// Whether the hostile echo came back, with the key taken out.
    fn scrubbed(&self) -> bool {
        self.session.events.iter().any(|event| {
            kind(event) == "agent.mcp_tool_result" && event.to_string().contains("[scrubbed")
        })
    }

    pub(super) fn ok(&self) -> bool {
        self.failures().is_empty()
    }

    pub(super) fn document(&self) -> Value {
        let recovery = &self.session.recovery;
        let mut model = json!({"kind": if self.scripted { "scripted" } else { "messages_api" }});
        if let (false, Some(object)) = (self.scripted, model.as_object_mut()) {
            object.insert("name".into(), json!(self.model_name));
        }
        json!({
            "schema": "claviger.demo/v1",
            "ok": self.ok(),
            "failures": self.failures(),
            "elapsed_ms": milliseconds(self.elapsed),
            "model": model,
            "session": {"id": self.session.id, "status": self.session.status, "stop_reason": self.session.stop_reason, "events": self.session.events.len(), "epochs": self.session.epochs},
            "ttft_ms": milliseconds(self.session.ttft),
            "steps": self.steps().iter().map(|step| json!({"tool": step.tool, "via": step.via, "ok": step.ok})).collect::<Vec<_>>(),
            "recovery": {"killed": "harness", "at_event": recovery.at_event, "resumed_ms": recovery.resumed.map(milliseconds), "events_lost": recovery.events_lost, "effects_doubled": recovery.effects_doubled},
            "credentials": self.credentials.iter().map(|row| json!({"name": row.name, "uses": row.uses, "upstream_saw_real_key": row.upstream_saw_real_key})).collect::<Vec<_>>(),
            "leak_scan": {
                "places": self.leaks.places.iter().map(|place| {
                    let mut row = json!({"name": place.name, "bytes": place.bytes, "by": place.by, "hits": place.hits});
                    if let Some(object) = row.as_object_mut() {
                        if let Some(control) = place.control {
                            object.insert("control_found".into(), json!(control));
                        }
                        if let Some(arena) = place.arena_hits {
                            object.insert("arena_hits".into(), json!(arena));
                        }
                    }
                    row
                }).collect::<Vec<_>>(),
                "bytes": self.leaks.bytes(), "forms": self.leaks.forms, "control_found": self.leaks.control_found(), "hits": self.leaks.hits(),
            },
            "audit": {"records": self.audit.records, "verified": self.audit.verified, "tampered_copy_detected": self.audit.tampered_copy_detected},
        })
    }

    pub(super) fn text(&self, kept: Option<&Path>) -> String {
        let paint = Paint(crate::output::colour(std::io::stdout().is_terminal()));
        let mut out = String::new();
        let _ = self.write(&mut out, &paint, kept);
        out
    }

    fn write(&self, out: &mut String, paint: &Paint, kept: Option<&Path>) -> std::fmt::Result {
        writeln!(
            out,
            "{}",
            paint.bold("Claviger demo: an agent works with a real key that it never sees")
        )?;
        writeln!(out)?;
        self.timeline(out, paint)?;
        writeln!(out)?;
        writeln!(out, "{}", paint.bold("Proof"))?;
        for row in &self.credentials {
            writeln!(
                out,
                "  {} the upstream of '{}' saw the real key ({} uses)",
                paint.mark(row.upstream_saw_real_key),
                row.name,
                row.uses
            )?;
        }
        let recovery = &self.session.recovery;
        if let Some(resumed) = recovery.resumed {
            writeln!(
                out,
                "  {} a harness was killed at event {}; another went on after {:.0} ms: {} events lost, {} effects doubled",
                paint.mark(recovery.events_lost == 0 && recovery.effects_doubled == 0),
                recovery.at_event,
                milliseconds(resumed),
                recovery.events_lost,
                recovery.effects_doubled
            )?;
        }
        writeln!(
            out,
            "  {} {} occurrences of the keys in {} places, {} searched, {} forms{}",
            paint.mark(self.leaks.hits() == 0 && self.leaks.empty_place().is_none()),
            self.leaks.hits(),
            self.leaks.places.len(),
            size(self.leaks.bytes()),
            self.leaks.forms.len(),
            if self.leaks.control_found() {
                "; the planted control was found"
            } else {
                "; THE PLANTED CONTROL WAS NOT FOUND"
            },
        )?;
        for place in &self.leaks.places {
            let arena = place
                .arena_hits
                .map(|hits| format!("; its secret arena, apart: {hits}"))
                .unwrap_or_default();
            writeln!(
                out,
                "      {:<40} {:>10}  {:>2} hits  by {}{}",
                place.name,
                size(place.bytes),
                place.hits,
                place.by,
                paint.dim(&arena)
            )?;
        }
        writeln!(
            out,
            "  {} the audit log verifies: {} records",
            paint.mark(self.audit.verified),
            self.audit.records
        )?;
        writeln!(
            out,
            "  {} a copy with one byte changed is refused",
            paint.mark(self.audit.tampered_copy_detected)
        )?;
        writeln!(out)?;
        for failure in self.failures() {
            writeln!(out, "  {} {failure}", paint.mark(false))?;
        }
        let verdict = if self.ok() {
            paint.green("Everything held.")
        } else {
            paint.red("Something did not hold.")
        };
        writeln!(
            out,
            "{verdict} {:.1} s in all, first token after {:.0} ms.",
            self.elapsed.as_secs_f64(),
            milliseconds(self.session.ttft)
        )?;
        if let Some(path) = kept {
            writeln!(
                out,
                "Kept in {}: search it for the key yourself; only upstream/requests.jsonl may have it.",
                path.display()
            )?;
        } else {
            writeln!(
                out,
                "Look for yourself:  printf %s MY-OWN-MARKER | claviger demo --secret-from-stdin --keep DIR"
            )?;
        }
        Ok(())
    }

    fn timeline(&self, out: &mut String, paint: &Paint) -> std::fmt::Result {
        let mut leases = 0;
        let start = self.session.events.first().map(time_of).unwrap_or_default();
        for event in &self.session.events {
            let text = match kind(event) {
                "lease.acquired" => {
                    leases += 1;
                    if leases == 1 {
                        continue;
                    } else {
                        paint.yellow("another harness wakes the session from its log and goes on")
                    }
                }
                "hand.provisioned" => {
                    paint.dim("a sandbox is made: no network, no keys, two listeners")
                }
                "agent.tool_use" | "agent.mcp_tool_use" => self.call(event, paint),
                other => match crate::command::describe(other, event) {
                    Some(text) if !other.ends_with("tool_result") => {
                        text.chars().take(96).collect()
                    }
                    _ => continue,
                },
            };
            let at = time_of(event).saturating_sub(start);
            writeln!(out, "  {} {text}", paint.dim(&format!("{at:>6} ms")))?;
            let killed = self.session.recovery.resumed.is_some()
                && event
                    .pointer("/input/command")
                    .and_then(Value::as_str)
                    .is_some_and(|command| command.contains(story::PROGRESS));
            if killed {
                writeln!(
                    out,
                    "            {}",
                    paint.red("kill -9 of the harness, in the middle of this command")
                )?;
            }
        }
        Ok(())
    }

    fn call(&self, event: &Value, paint: &Paint) -> String {
        let name = event.get("name").and_then(Value::as_str).unwrap_or("");
        let via = story::via(kind(event), event.get("input").unwrap_or(&Value::Null));
        let id = event.get("id");
        let result = self.session.events.iter().find(|other| {
            kind(other).ends_with("tool_result")
                && (other.get("tool_use_id") == id || other.get("mcp_tool_use_id") == id)
        });
        let text = result
            .and_then(|result| result.pointer("/content/0/text"))
            .and_then(Value::as_str)
            .unwrap_or("");
        let said = match (name, via) {
            ("bash", story::Via::Sandbox) if text.contains("--- done") => {
                "env, /proc and files searched: placeholders only".to_owned()
            }
            ("tracker_debug_echo", _) => "the tracker quotes the key it got; scrubbed".to_owned(),
            (_, story::Via::Egress) => "placeholder in, real key out, answer scrubbed".to_owned(),
            _ => text
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
                .chars()
                .take(56)
                .collect(),
        };
        let failed = result
            .and_then(|result| result.get("is_error"))
            .and_then(Value::as_bool)
            == Some(true);
        format!(
            "{} {:<22} {:<8} {}",
            paint.mark(!failed),
            name,
            via.name(),
            paint.dim(&said)
        )
    }
}

/// Milliseconds since the epoch of an event.
fn time_of(event: &Value) -> i64 {
    event
        .get("processed_at")
        .and_then(Value::as_str)
        .and_then(|text| text.parse::<jiff::Timestamp>().ok())
        .map_or(0, jiff::Timestamp::as_millisecond)
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes / 1024),
        _ => format!("{} MiB", bytes / 1_048_576),
    }
}

/// Colours, or none.
struct Paint(bool);

impl Paint {
    fn with(&self, code: &str, text: &str) -> String {
        if self.0 && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
    fn bold(&self, text: &str) -> String {
        self.with("1", text)
    }
    fn dim(&self, text: &str) -> String {
        self.with("2", text)
    }
    fn green(&self, text: &str) -> String {
        self.with("1;32", text)
    }
    fn red(&self, text: &str) -> String {
        self.with("1;31", text)
    }
    fn yellow(&self, text: &str) -> String {
        self.with("33", text)
    }
    fn mark(&self, holds: bool) -> String {
        if holds {
            self.with("32", "ok")
        } else {
            self.with("1;31", "FAILED")
        }
    }
}
