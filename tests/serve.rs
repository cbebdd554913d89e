//! Every role by itself, as under systemd: six processes that find each other by path and role key.
#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it must be"
)]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const ROLES: [&str; 6] = ["vault", "session", "tools", "hands", "api", "harness"];
/// How long anything may take that should take a moment.
const PATIENCE: Duration = Duration::from_secs(30);

/// A home with roles of its own; what still runs at the end is killed.
struct Scene {
    directory: tempfile::TempDir,
    running: Vec<(String, Child)>,
}

impl Drop for Scene {
    fn drop(&mut self) {
        for (_, child) in &mut self.running {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

impl Scene {
    fn new() -> Self {
        // Sockets have short paths.
        let directory = tempfile::Builder::new().prefix("clv").tempdir().unwrap();
        std::fs::create_dir(directory.path().join("home")).unwrap();
        Self {
            directory,
            running: Vec::new(),
        }
    }

    fn home(&self) -> PathBuf {
        self.directory.path().join("home")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_claviger"));
        command
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.directory.path())
            .env("CLAVIGER_HOME", self.home())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn start(&mut self, name: &str, arguments: &[&str]) {
        let log = self.directory.path().join(format!("{name}.log"));
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        let child = self
            .command(arguments)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.running.push((name.to_owned(), child));
    }

    fn serve(&mut self, role: &str) {
        self.start(role, &["serve", role]);
    }

    /// Ends a process by a signal; answers its exit code.
    fn end(&mut self, name: &str, signal: Signal) -> Option<i32> {
        let index = self
            .running
            .iter()
            .position(|(found, _)| found == name)
            .unwrap();
        let (_, mut child) = self.running.remove(index);
        kill_process(Pid::from_child(&child), signal).unwrap();
        eventually("the end of a role", || child.try_wait().unwrap()).code()
    }

    /// A model that first runs a command and then says so.
    fn model(&mut self) -> String {
        let (script, address) = (self.path("model.json"), self.path("model.address"));
        let document = json!({
            "listen": "127.0.0.1:0", "address_file": address, "record": self.path("model.jsonl"), "key_sha256": null,
            "turns": [
                [{"type": "tool_use", "name": "bash", "input": {"command": "echo $((6 * 7))"}}],
                [{"type": "text", "text": "It is done."}],
            ],
        });
        std::fs::write(&script, document.to_string()).unwrap();
        self.start("model", &["stage", "model", script.to_str().unwrap()]);
        eventually("the model's address", || {
            std::fs::read_to_string(&address).ok()
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn api_answers(&self) -> bool {
        let status = self.run(&["--json", "status"]);
        let status: Value = serde_json::from_slice(&status.stdout).unwrap_or_default();
        status.get("api_answers") == Some(&json!(true))
    }

    /// Runs one session to its end; answers everything that it printed.
    fn session(&self) -> String {
        let mut child = self
            .command(&[
                "--json",
                "session",
                "new",
                "What is six times seven?",
                "--follow",
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let end = Instant::now() + PATIENCE;
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > end {
                child.kill().unwrap();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}\n{errors}\n{}", self.logs());
        text
    }

    fn logs(&self) -> String {
        let log = |role: &&str| {
            let path = self.path(&format!("{role}.log"));
            format!(
                "--- {role}\n{}",
                std::fs::read_to_string(path).unwrap_or_default()
            )
        };
        ROLES.iter().map(log).collect()
    }
}

fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what} did not come in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A port that was free a moment ago: roles that run by themselves have fixed ones.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn code(output: &Output) -> String {
    let error: Value = serde_json::from_slice(&output.stderr).unwrap_or_default();
    error
        .get("code")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn six_roles_by_themselves_run_a_session_survive_a_restart_and_end_cleanly() {
    let mut scene = Scene::new();
    let model = scene.model();
    let config = format!(
        "[api]\nlisten = \"127.0.0.1:{}\"\n[mcp]\nlisten = \"127.0.0.1:{}\"\n[model]\nbase_url = \"http://{model}\"\n",
        free_port(),
        free_port()
    );
    std::fs::write(scene.home().join("config.toml"), config).unwrap();
    assert!(scene.run(&["init", "--no-input"]).status.success());
    // In any order: who connects too early tries again.
    for role in ["harness", "api", "hands", "tools", "session", "vault"] {
        scene.serve(role);
    }
    eventually("the api", || scene.api_answers().then_some(()));
    let events = scene.session();
    assert!(
        events.contains("end_turn") && events.contains("42"),
        "{events}"
    );

    let links = scene.home().join("run/links");
    assert_eq!(
        (mode(&links), mode(&links.join("vault-vault.sock"))),
        (0o700, 0o600)
    );
    let key = scene.home().join("role-keys/tools-vault-vault");
    assert_eq!(mode(&key), 0o600);
    // Neither `up` nor a second process of a role runs beside them.
    assert_eq!(code(&scene.run(&["--json", "up"])), "already_running");
    assert_eq!(
        code(&scene.run(&["--json", "serve", "tools"])),
        "already_running"
    );
    assert_eq!(
        code(&scene.run(&["--json", "serve", "harness"])),
        "already_running"
    );

    // Every server is killed and comes back; everybody connects again.
    for role in ["vault", "tools", "session", "hands"] {
        scene.end(role, Signal::KILL);
        scene.serve(role);
    }
    eventually("the api", || scene.api_answers().then_some(()));
    let events = scene.session();
    assert!(
        events.contains("end_turn") && events.contains("42"),
        "{events}"
    );

    for role in ["harness", "api", "hands", "tools", "session", "vault"] {
        assert_eq!(
            scene.end(role, Signal::TERM),
            Some(0),
            "{role}\n{}",
            scene.logs()
        );
    }
    assert!(std::fs::read_dir(&links).unwrap().next().is_none());
}

#[test]
fn a_harness_without_the_role_key_reaches_nobody() {
    let mut scene = Scene::new();
    assert!(scene.run(&["init", "--no-input"]).status.success());
    scene.serve("session");
    let socket = scene.home().join("run/links/session-session.sock");
    eventually("the session's socket", || socket.exists().then_some(()));
    // The session role has read the right key; the harness reads another one.
    let key = scene.home().join("role-keys/harness-session-session");
    std::fs::write(&key, [7_u8; 32]).unwrap();
    scene.serve("harness");
    eventually("the refusal", || {
        scene
            .logs()
            .contains("the peer does not know the role key")
            .then_some(())
    });
    assert!(!scene.logs().contains("\"peer\":\"harness-0\""));
}
