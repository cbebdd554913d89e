//! What is asked of a sandbox and what it answers.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::HandsError;

/// The name of one sandbox, `sbx_` and 32 hexadecimal digits; never used twice.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxId(String);

impl SandboxId {
    /// Makes a fresh name.
    pub fn random() -> Self {
        Self(format!("sbx_{}", uuid::Uuid::new_v4().simple()))
    }

    /// Shows the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SandboxId {
    type Err = HandsError;

    fn from_str(text: &str) -> Result<Self, HandsError> {
        let digits = text.strip_prefix("sbx_").unwrap_or("");
        if digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(HandsError::refused(
                "a sandbox is named sbx_ and 32 hexadecimal digits",
            ))
        }
    }
}

impl TryFrom<String> for SandboxId {
    type Error = HandsError;

    fn try_from(text: String) -> Result<Self, HandsError> {
        text.parse()
    }
}

impl From<SandboxId> for String {
    fn from(id: SandboxId) -> Self {
        id.0
    }
}

/// How much of the machine one sandbox may take. Limits are always on; zero means none of it, never "unlimited".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Bytes of `/workspace`, `/tmp` and `/dev/shm` together (they live in memory).
    pub disk_bytes: u64,
    /// Files and directories in `/workspace`, `/tmp` and `/dev/shm` together.
    pub files: u64,
    /// Bytes of private memory of one process (`RLIMIT_DATA`).
    pub memory_bytes: u64,
    /// Open descriptors of one process.
    pub open_files: u64,
    /// Processes and threads of the sandbox together.
    pub processes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            disk_bytes: 2 << 30,
            files: 500_000,
            memory_bytes: 4 << 30,
            open_files: 4096,
            processes: 512,
        }
    }
}

impl Limits {
    /// Names the first limit that is greater than another set allows.
    pub(crate) fn exceeds(&self, most: &Self) -> Option<&'static str> {
        [
            ("disk_bytes", self.disk_bytes, most.disk_bytes),
            ("files", self.files, most.files),
            ("memory_bytes", self.memory_bytes, most.memory_bytes),
            ("open_files", self.open_files, most.open_files),
            ("processes", self.processes, most.processes),
        ]
        .into_iter()
        .find_map(|(name, asked, most)| (asked > most).then_some(name))
    }
}

/// What a sandbox is made of.
///
/// # Security
/// `environment` is readable by everything that runs inside: placeholders only, never a secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Variables beside the fixed ones (`PATH`, `HOME`, `LANG`, the proxy addresses).
    pub environment: BTreeMap<String, String>,
    /// How much of the machine it may take.
    pub limits: Limits,
    /// Whether it gets the listeners 127.0.0.1:7000 (`mcp`) and 127.0.0.1:7001 (`egress`).
    pub listeners: bool,
}

/// One tool call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Execute {
    /// The session on whose behalf the call is made.
    pub session: String,
    /// The caller's lease of that session.
    pub epoch: u64,
    /// Where to run it.
    pub sandbox: SandboxId,
    /// `session/tool_use_id`: the same key never runs twice.
    pub key: String,
    /// The tool: `bash`, `read`, `write`, `edit`, `glob` or `grep`.
    pub name: String,
    /// The tool's input, as the model wrote it.
    pub input: Value,
    /// When to give up, in milliseconds; 0 means 120,000. `bash` may ask for another time in its input.
    pub timeout_ms: u64,
}

/// What a tool answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Output {
    /// Content blocks as in the Messages API: `{"type":"text","text":..}` or an image or document.
    pub content: Vec<Value>,
    /// Whether the tool failed; the content says how.
    pub is_error: bool,
    /// How long it ran inside the sandbox.
    pub elapsed_ms: u64,
}

impl Output {
    /// All text blocks, joined.
    pub fn text(&self) -> String {
        self.content
            .iter()
            .filter_map(|block| block.get("text")?.as_str())
            .collect()
    }
}

/// What the hands remember about a key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Ledger {
    /// It finished; this is what it answered.
    Done(Output),
    /// It was started and will answer.
    Running,
    /// These hands never started it (or they are not the ones that did).
    Unknown,
}

/// One line of `list`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SandboxRow {
    /// Its name.
    pub sandbox: SandboxId,
    /// The session it belongs to.
    pub session: String,
    /// The epoch attached to that session.
    pub epoch: u64,
    /// The process id of its pid 1, as the host sees it.
    pub pid: u32,
    /// Calls running now.
    pub running: usize,
    /// Milliseconds since it was provisioned.
    pub age_ms: u64,
    /// How long provisioning took, in microseconds.
    pub provision_us: u64,
}
