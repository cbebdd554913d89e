//! What the whole-system tests share: a scratch home, the program's transcript, a running system
//! with the demo's upstream and model beside it, plain HTTP. Everything started here is ended here.
#![allow(dead_code, reason = "each test target uses its own part")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// How long anything may take that should take a moment.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Names a copy of the program, for tests that run again as another user.
pub(crate) const PROGRAM_VARIABLE: &str = "CLAVIGER_TEST_PROGRAM";

/// The program under test.
pub(crate) fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        std::env::var_os(PROGRAM_VARIABLE).map_or_else(
            || PathBuf::from(env!("CARGO_BIN_EXE_claviger")),
            PathBuf::from,
        )
    })
}

/// A directory of its own with a short path, for sockets have short paths.
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("clv").tempdir().unwrap()
}

/// Waits until something holds; says what did not.
pub(crate) fn eventually<T>(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> Option<T>,
) -> T {
    let end = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            Instant::now() < end,
            "{what} did not happen in {patience:?}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The program with an environment of nothing but a home.
pub(crate) fn command(home: &Path) -> Command {
    let mut command = Command::new(program());
    with_home(&mut command, home);
    command
}

/// The environment of a test: nothing of the reader's own.
pub(crate) fn with_home(command: &mut Command, home: &Path) {
    let user = home.with_extension("user");
    std::fs::create_dir_all(&user).ok();
    command
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("CLAVIGER_HOME", home)
        .env("HOME", &user)
        .current_dir("/");
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct Transcript {
    pub(crate) line: String,
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Transcript {
    /// The one document on stdout.
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{self:?}");
        assert_eq!(self.stdout.lines().count(), 1, "one document: {self:?}");
        serde_json::from_str(&self.stdout).unwrap()
    }

    /// The one error object on stderr; stdout stays empty.
    pub(crate) fn error(&self) -> Value {
        assert_ne!(self.code, 0, "{self:?}");
        assert_eq!(self.stdout, "", "stdout is pure: {self:?}");
        assert_eq!(self.stderr.lines().count(), 1, "one object: {self:?}");
        let error: Value = serde_json::from_str(&self.stderr).unwrap();
        assert_eq!(error["schema"], "claviger.error/v1");
        assert_eq!(error["exit"], self.code);
        error
    }
}

/// Runs a command to its end with an input.
pub(crate) fn run(mut command: Command, input: &[u8]) -> Transcript {
    let line = format!("{:?}", command.get_args().collect::<Vec<_>>());
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that refuses before it reads has closed its end.
    let _written = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    Transcript {
        line,
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs the program in a home with `--json`.
pub(crate) fn claviger(home: &Path, arguments: &[&str], input: &[u8]) -> Transcript {
    let mut command = command(home);
    command.args(arguments).arg("--json");
    run(command, input)
}

/// A child that ends with its owner: first asked, then made to.
#[derive(Debug)]
pub(crate) struct Kept(pub(crate) Child);

impl Kept {
    pub(crate) fn end(&mut self) {
        if self.0.try_wait().unwrap().is_some() {
            return;
        }
        signal(self.0.id(), rustix::process::Signal::TERM);
        let end = Instant::now() + Duration::from_secs(20);
        while Instant::now() < end {
            if self.0.try_wait().unwrap().is_some() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.end();
    }
}

pub(crate) fn signal(pid: u32, signal: rustix::process::Signal) -> bool {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).is_ok()
}

/// One of the demo's programs with a script file.
#[derive(Debug)]
pub(crate) struct Stage {
    child: Kept,
    pub(crate) address: String,
    pub(crate) record: PathBuf,
}

impl Stage {
    pub(crate) fn start(name: &str, directory: &Path, mut script: Value) -> Self {
        std::fs::create_dir_all(directory).unwrap();
        let (address_file, record) = (directory.join("address"), directory.join("requests.jsonl"));
        script["listen"] = json!("127.0.0.1:0");
        script["address_file"] = json!(address_file);
        script["record"] = json!(record);
        let file = directory.join("script.json");
        std::fs::write(&file, script.to_string()).unwrap();
        let child = Command::new(program())
            .args(["stage", name])
            .arg(&file)
            .env_clear()
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let child = Kept(child);
        let address = eventually("a listening stage", PATIENCE, || {
            std::fs::read_to_string(&address_file)
                .ok()
                .filter(|address| !address.is_empty())
        });
        Self {
            child,
            address,
            record,
        }
    }

    /// Every request that it recorded.
    pub(crate) fn requests(&self) -> Vec<Value> {
        std::fs::read_to_string(&self.record)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

pub(crate) fn sha256(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}

/// The whole system, up, with an upstream whose key is in the vault and a scripted model.
#[derive(Debug)]
pub(crate) struct System {
    up: Kept,
    pub(crate) home: PathBuf,
    pub(crate) document: Value,
    pub(crate) upstream: Stage,
    pub(crate) model: Stage,
    /// The upstream's key.
    pub(crate) key: String,
    /// The first API key.
    pub(crate) api_key: String,
    /// Last: removed when everything has ended.
    _directory: tempfile::TempDir,
}

impl System {
    /// Starts everything; `turns` is the model's script.
    pub(crate) fn start(turns: &Value, options: &[&str]) -> Self {
        Self::start_with(turns, options, |_| {})
    }

    /// As [`System::start`], with a model whose script is changed first.
    pub(crate) fn start_with(
        turns: &Value,
        options: &[&str],
        change: impl FnOnce(&mut Value),
    ) -> Self {
        let directory = scratch();
        let home = directory.path().join("h");
        let key = format!("sk-upstream-{}", hex::encode(rand()));
        let model_key = format!("sk-model-{}", hex::encode(rand()));
        let upstream = Stage::start(
            "upstream",
            &directory.path().join("u"),
            json!({"key_sha256": sha256(&key)}),
        );
        let mut script = json!({"key_sha256": sha256(&model_key), "turns": turns});
        change(&mut script);
        let model = Stage::start("model", &directory.path().join("m"), script);
        let mut init = command(&home);
        init.args(["init", "--no-input", "--json"])
            .env("ANTHROPIC_BASE_URL", format!("http://{}", model.address))
            .env("ANTHROPIC_API_KEY", &model_key);
        let made = run(init, b"").json();
        assert_eq!(made["imported"], json!(["anthropic"]));
        let (up, document) = up(&home, options);
        let system = Self {
            up,
            api_key: std::fs::read_to_string(home.join("api-key"))
                .unwrap()
                .trim()
                .to_owned(),
            home,
            document,
            upstream,
            model,
            key,
            _directory: directory,
        };
        system.give_tracker();
        system
    }

    fn give_tracker(&self) {
        let address = &self.upstream.address;
        self.claviger(
            &[
                "secret", "add", "tracker", "--kind", "bearer", "--host", address,
            ],
            self.key.as_bytes(),
        )
        .json();
        let file = self.home.with_extension("tracker.toml");
        let definition = include_str!("../clients/tracker.toml").replace("UPSTREAM", address);
        std::fs::write(&file, definition).unwrap();
        self.claviger(&["tool", "add", "http", file.to_str().unwrap()], b"")
            .json();
    }

    /// Runs the program in this home.
    pub(crate) fn claviger(&self, arguments: &[&str], input: &[u8]) -> Transcript {
        claviger(&self.home, arguments, input)
    }

    /// The system's processes of a role, as they are now: the supervisor's children.
    pub(crate) fn pids(&self, role: &str) -> Vec<u32> {
        children(self.up.0.id())
            .into_iter()
            .filter(|pid| {
                let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let mut words = line.split(|byte| *byte == 0);
                words.any(|word| word == b"serve") && words.next() == Some(role.as_bytes())
            })
            .collect()
    }

    pub(crate) fn api(&self) -> String {
        self.document["api"]
            .as_str()
            .unwrap()
            .trim_start_matches("http://")
            .to_owned()
    }

    pub(crate) fn mcp(&self) -> String {
        let url = self.document["mcp"]
            .as_str()
            .unwrap()
            .trim_start_matches("http://");
        url.split('/').next().unwrap().to_owned()
    }

    /// A request to the api with the first key; none while the api is away or its peers are.
    pub(crate) fn request(
        &self,
        method: &str,
        path: &str,
        once: &str,
        body: Option<&Value>,
    ) -> Option<Value> {
        let authorization = format!("Bearer {}", self.api_key);
        let mut headers = vec![
            ("authorization", authorization.as_str()),
            ("anthropic-version", "2026-10-21"),
            ("anthropic-beta", "managed-agents-2026-04-01"),
            ("content-type", "application/json"),
        ];
        if !once.is_empty() {
            headers.push(("idempotency-key", once));
        }
        let body = body.map(ToString::to_string).unwrap_or_default();
        let answer = try_http(&self.api(), method, path, &headers, &body).ok()?;
        assert!(
            answer.status < 300 || answer.status >= 500,
            "{method} {path}: {answer:?}"
        );
        (answer.status < 300).then(|| answer.json())
    }

    /// Every stored event of a session of the named kinds, in order; none while the api is away.
    pub(crate) fn events(&self, session: &str, kinds: &[&str]) -> Option<Vec<Value>> {
        let kinds: String = kinds
            .iter()
            .map(|kind| format!("&types%5B%5D={kind}"))
            .collect();
        let (mut events, mut page) = (Vec::new(), String::new());
        loop {
            let path = format!("/v1/sessions/{session}/events?limit=100{kinds}{page}");
            let answer = self.request("GET", &path, "", None)?;
            events.extend(answer["data"].as_array()?.clone());
            match answer["next_page"].as_str() {
                Some(next) => page = format!("&page={next}"),
                None => return Some(events),
            }
        }
    }

    /// Starts a session of the first key with a message, over restarts of whoever takes it: each
    /// request carries the key under which a repeat is known.
    pub(crate) fn session(&self, prompt: &str) -> String {
        let once = hex::encode(rand());
        let post = |path: &str, body: &Value| {
            let made = eventually(path, PATIENCE, || {
                self.request("POST", path, &once, Some(body))
            });
            made["id"].as_str().unwrap_or("").to_owned()
        };
        let agent = post(
            "/v1/agents",
            &json!({
                "name": "tester", "model": "scripted",
                "tools": [
                    {"type": "agent_toolset_20260401", "configs": [{"name": "web_fetch", "enabled": false}, {"name": "web_search", "enabled": false}]},
                    {"type": "mcp_toolset", "mcp_server_name": "claviger", "default_config": {"permission_policy": {"type": "always_allow"}}},
                ],
                "mcp_servers": [{"type": "url", "name": "claviger", "url": self.document["mcp"]}],
            }),
        );
        let environment = post(
            "/v1/environments",
            &json!({"name": "local", "config": {"type": "cloud", "networking": {"type": "limited", "allowed_hosts": []}}}),
        );
        let session = post(
            "/v1/sessions",
            &json!({"agent": agent, "environment_id": environment, "vault_ids": ["vlt_local"]}),
        );
        post(
            &format!("/v1/sessions/{session}/events"),
            &json!({"events": [{"type": "user.message", "content": [{"type": "text", "text": prompt}]}]}),
        );
        session
    }

    /// Waits for the end of a session's turn.
    pub(crate) fn idle(&self, session: &str) -> Value {
        eventually("the end of the turn", Duration::from_secs(60), || {
            let idle = self.events(session, &["session.status_idle"])?;
            idle.last().cloned()
        })
    }

    /// The logs' last lines, for whoever reads a failure.
    pub(crate) fn logs(&self) -> String {
        let mut out = String::new();
        for role in [
            "supervisor",
            "vault",
            "session",
            "tools",
            "hands",
            "api",
            "harness",
        ] {
            let text = std::fs::read_to_string(self.home.join(format!("log/{role}.log")))
                .unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            for line in lines.iter().skip(lines.len().saturating_sub(8)) {
                out.push_str(&format!("{role}: {line}\n"));
            }
        }
        out
    }

    /// Ends the system before its files are looked at.
    pub(crate) fn stop(&mut self) {
        self.up.end();
    }
}

/// `claviger up` in a home, on ports of its own, until it says that it is ready.
pub(crate) fn up(home: &Path, options: &[&str]) -> (Kept, Value) {
    let mut up = command(home);
    up.args([
        "up",
        "--json",
        "--listen",
        "127.0.0.1:0",
        "--mcp-listen",
        "127.0.0.1:0",
    ])
    .args(options)
    .stdin(Stdio::null())
    .stdout(Stdio::piped())
    .stderr(Stdio::null());
    let mut child = Kept(up.spawn().unwrap());
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let document: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(document["schema"], "claviger.up/v1");
    (child, document)
}

pub(crate) fn rand() -> [u8; 20] {
    let mut bytes = [0_u8; 20];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

/// Direct children of a process.
pub(crate) fn children(parent: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().map(Result::unwrap) {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let of = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1))
            .and_then(|of| of.parse::<u32>().ok());
        if of == Some(parent) {
            found.push(pid);
        }
    }
    found
}

/// An HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// One HTTP/1.1 request, by hand: no client's own opinions about Host or Origin.
pub(crate) fn http(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    try_http(address, method, path, headers, body).unwrap()
}

/// As [`http`], for a server that may be away.
pub(crate) fn try_http(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = format!(
        "{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n",
        body.len()
    );
    if !headers
        .iter()
        .any(|(name, _)| name.eq_ignore_ascii_case("host"))
    {
        request.push_str(&format!("host: {address}\r\n"));
    }
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{request}\r\n{body}").as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let cut = || std::io::Error::other("the answer is cut");
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(cut)?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .ok_or_else(cut)?;
    let chunked = head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked");
    let body = if chunked {
        dechunked(body).ok_or_else(cut)?
    } else {
        body.to_owned()
    };
    Ok(Answer { status, body })
}

fn dechunked(mut rest: &str) -> Option<String> {
    let mut out = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n")?;
        let size = usize::from_str_radix(size.trim(), 16).ok()?;
        if size == 0 {
            return Some(out);
        }
        out.push_str(after.get(..size)?);
        rest = after.get(size + 2..)?;
    }
}

/// Whether this process may do what only root may.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
