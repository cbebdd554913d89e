//! The tools by name, and what they have in common.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{WORKSPACE, files, search};

/// What a call gets unless it asks for another time.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(120);
/// The longest that a call may ask for.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// What a tool answers, before it is timed.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) content: Vec<Value>,
    pub(super) is_error: bool,
}

impl Answer {
    /// No block at all for an empty text: the Messages API refuses empty ones.
    pub(super) fn text(text: impl Into<String>) -> Self {
        let text = text.into();
        let content = if text.is_empty() {
            Vec::new()
        } else {
            vec![json!({ "type": "text", "text": text })]
        };
        Self {
            content,
            is_error: false,
        }
    }

    pub(super) fn error(text: impl Into<String>) -> Self {
        Self {
            is_error: true,
            ..Self::text(text)
        }
    }
}

/// Milliseconds as asked for, zero meaning the default, bounded.
pub(super) fn timeout(asked_ms: u64) -> Duration {
    if asked_ms == 0 {
        DEFAULT_TIMEOUT
    } else {
        Duration::from_millis(asked_ms).min(MAX_TIMEOUT)
    }
}

/// Runs a tool that is not the shell.
pub(super) fn run(name: &str, input: &Value) -> Answer {
    let answer = match name {
        "edit" => parse(name, input).and_then(|input| files::edit(&input)),
        "glob" => parse(name, input).and_then(|input| search::glob(&input)),
        "grep" => parse(name, input).and_then(|input| search::grep(&input)),
        "read" => parse(name, input).and_then(|input| files::read(&input)),
        "write" => parse(name, input).and_then(|input| files::write(&input)),
        _ => Err(format!(
            "there is no tool `{name}` in a sandbox: bash, read, write, edit, glob, grep"
        )),
    };
    answer.unwrap_or_else(Answer::error)
}

fn parse<T: DeserializeOwned>(name: &str, input: &Value) -> Result<T, String> {
    T::deserialize(input).map_err(|error| format!("the input of {name} is wrong: {error}"))
}

/// A path as the model wrote it, from the workspace unless absolute.
pub(super) fn resolve(path: &str) -> PathBuf {
    Path::new(WORKSPACE).join(path)
}
