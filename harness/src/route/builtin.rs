//! The sandbox's tools as the model sees them.

use serde_json::{Value, json};

/// Name, description and input schema of each, in a fixed order.
pub(super) fn all() -> [(&'static str, &'static str, Value); 6] {
    let text = |description: &str| json!({"type": "string", "description": description});
    [
        (
            "bash",
            "Runs a command in a persistent shell inside the session's sandbox. The working directory is /workspace; \
             variables and the directory are kept between calls. Output is cut to its last 100 KiB.",
            json!({"type": "object", "properties": {
                "command": text("The command to run."),
                "restart": {"type": "boolean", "description": "Starts a fresh shell instead of running a command."},
                "timeout_ms": {"type": "integer", "description": "When to give up, in milliseconds; 120000 unless given."},
            }}),
        ),
        (
            "read",
            "Reads a file of the sandbox: text with up to 256 KiB, or an image or PDF.",
            json!({"type": "object", "properties": {
                "file_path": text("Path of the file."),
                "view_range": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2,
                    "description": "First and last line, counted from 1; a last line of 0 or less means the end."},
            }, "required": ["file_path"]}),
        ),
        (
            "write",
            "Writes a file of the sandbox, creating its directories; an existing file is replaced.",
            json!({"type": "object", "properties": {
                "file_path": text("Path of the file."),
                "content": text("The whole content."),
            }, "required": ["file_path", "content"]}),
        ),
        (
            "edit",
            "Replaces text in a file of the sandbox; the old text must occur exactly once unless replace_all is set.",
            json!({"type": "object", "properties": {
                "file_path": text("Path of the file."),
                "old_string": text("The text to replace."),
                "new_string": text("What to put in its place."),
                "replace_all": {"type": "boolean", "description": "Replaces every occurrence."},
            }, "required": ["file_path", "old_string", "new_string"]}),
        ),
        (
            "glob",
            "Lists files of the sandbox whose path matches a pattern (** crosses directories), newest first, up to 200.",
            json!({"type": "object", "properties": {
                "pattern": text("The pattern."),
                "path": text("Directory to start from; /workspace unless given."),
            }, "required": ["pattern"]}),
        ),
        (
            "grep",
            "Searches files of the sandbox for a regular expression.",
            json!({"type": "object", "properties": {
                "pattern": text("The regular expression."),
                "path": text("File or directory to search; /workspace unless given."),
            }, "required": ["pattern"]}),
        ),
    ]
}
