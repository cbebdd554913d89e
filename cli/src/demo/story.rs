//! What the scripted agent does, and how each of its steps is judged.

use serde_json::{Value, json};

/// Marks the line that the interrupted command writes: it must be there exactly once.
pub(super) const PROGRESS: &str = "/workspace/progress.txt";

/// How a step reaches the world.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Via {
    Egress,
    Mcp,
    Sandbox,
}

impl Via {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Mcp => "mcp",
            Self::Sandbox => "sandbox",
        }
    }
}

/// The prompt; the control marker in it proves that the search for leaks finds what is there.
pub(super) fn prompt(control: &str) -> String {
    format!(
        "Look for any key in your sandbox. Then file two issues in the tracker, read them back and write a report. (ticket {control})"
    )
}

/// The script of the model: one entry an assistant message.
pub(super) fn turns(upstream: &str) -> Vec<Vec<Value>> {
    let say = |text: &str| json!({"type": "text", "text": text});
    let bash =
        |command: &str| json!({"type": "tool_use", "name": "bash", "input": {"command": command}});
    let call = |name: &str, input: Value| json!({"type": "tool_use", "name": name, "input": input});
    vec![
        vec![
            say("I will look for keys first: environment, files, processes."),
            bash(SEARCH),
            call("glob", json!({"pattern": "**/*", "path": "/workspace"})),
        ],
        vec![
            say("No key anywhere, only placeholders. I file the issues with the tracker's tools."),
            call(
                "tracker_create_issue",
                json!({"title": "Flaky build on Tuesdays", "body": "Seen three times."}),
            ),
            call(
                "tracker_create_issue",
                json!({"title": "Document the retry policy", "body": "Nobody knows it."}),
            ),
        ],
        vec![
            say("A longer job in the sandbox; it takes a moment."),
            bash(&format!(
                "sleep 0.6; echo finished >> {PROGRESS}; cat {PROGRESS}"
            )),
        ],
        vec![
            say("Reading the issues back, and asking the tracker's debug endpoint."),
            call("tracker_list_issues", json!({})),
            call(
                "tracker_debug_echo",
                json!({"note": "what did you receive?"}),
            ),
        ],
        vec![
            say("The same tracker from inside the sandbox, with the placeholder."),
            bash(&egress(upstream)),
        ],
        vec![
            say("Writing the report."),
            call(
                "write",
                json!({"file_path": "/workspace/report.md", "content": "# Report\n\nTwo issues filed. No key was found in this sandbox.\n"}),
            ),
        ],
        vec![call("read", json!({"file_path": "/workspace/report.md"}))],
        vec![say(
            "Two issues are filed and the report is in /workspace/report.md. I never saw a key.",
        )],
    ]
}

/// The ways in which an agent would look.
const SEARCH: &str = "env | sort; echo '--- processes'; for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; tr '\\0' '\\n' < $p/environ; done 2>/dev/null; \
echo '--- files'; find / -xdev \\( -path /proc -o -path /usr -o -path /sys -o -path /dev \\) -prune -o -type f -readable -print 2>/dev/null | head -50; \
find / -xdev \\( -path /proc -o -path /usr -o -path /sys -o -path /dev \\) -prune -o -type f -readable -exec cat {} + 2>/dev/null | head -c 65536; \
grep -a -r -l 'sk-' /proc/[0-9]*/environ /workspace /tmp /etc 2>/dev/null; echo '--- done'";

/// A request through the egress listener: `curl` where there is one, bash's own sockets otherwise.
fn egress(upstream: &str) -> String {
    format!(
        "if command -v curl >/dev/null && curl --help all | grep -q fail-with-body; then curl -sS --fail-with-body --noproxy '' --max-time 10 -H \"Authorization: Bearer $TRACKER_TOKEN\" http://{upstream}/api/issues; \
else exec 3<>/dev/tcp/127.0.0.1/7001; printf 'GET http://{upstream}/api/issues HTTP/1.1\\r\\nHost: {upstream}\\r\\nAuthorization: Bearer %s\\r\\nConnection: close\\r\\n\\r\\n' \"$TRACKER_TOKEN\" >&3; answer=$(cat <&3); echo \"$answer\"; echo \"$answer\" | head -n 1 | grep -q ' 200 '; fi"
    )
}

/// How a call of the script reached the world, by what it was.
pub(super) fn via(kind: &str, input: &Value) -> Via {
    let command = input.get("command").and_then(Value::as_str).unwrap_or("");
    if kind == "agent.mcp_tool_use" {
        Via::Mcp
    } else if command.contains("TRACKER_TOKEN\"") {
        Via::Egress
    } else {
        Via::Sandbox
    }
}

/// The tool definition of the tracker.
pub(super) fn tracker(upstream: &str) -> String {
    format!(
        r#"name = "tracker"
kind = "http"
description = "The team's issue tracker"
base_url = "http://{upstream}/api"
credential = "tracker"

[[operations]]
name = "create_issue"
description = "Files an issue"
method = "POST"
path = "/issues"

[[operations.parameters]]
name = "title"
in = "body"
type = "string"
required = true
description = "One line"

[[operations.parameters]]
name = "body"
in = "body"
type = "string"
description = "Details"

[[operations]]
name = "list_issues"
description = "Lists all issues"
method = "GET"
path = "/issues"
read_only = true
idempotent = true

[[operations]]
name = "debug_echo"
description = "Says what the tracker received"
method = "POST"
path = "/echo"
read_only = true
idempotent = true

[[operations.parameters]]
name = "note"
in = "body"
type = "string"
"#
    )
}
