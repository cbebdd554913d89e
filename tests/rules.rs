//! The rules of the security argument, attacked from outside a running system: what another process
//! can read, who gets in without a key, what listens, and what a killed role loses or doubles.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test panics where it fails and says what it skipped"
)]

#[path = "support/support.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use support::*;

const ROLES: [&str; 6] = ["api", "hands", "harness", "session", "tools", "vault"];

fn text(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

fn bash(command: &str) -> Value {
    json!({"type": "tool_use", "name": "bash", "input": {"command": command}})
}

fn issue(title: &str) -> Value {
    json!({"type": "tool_use", "name": "tracker_create_issue", "input": {"title": title}})
}

/// A system with a session behind it: every role has worked, the key was spent.
fn worked() -> (System, String) {
    let system = System::start(
        &json!([[bash("echo hello"), issue("one")], [text("done")]]),
        &[],
    );
    let session = system.session("work");
    assert_eq!(
        system.idle(&session)["stop_reason"]["type"],
        "end_turn",
        "{}",
        system.logs()
    );
    assert!(
        system
            .upstream
            .requests()
            .iter()
            .all(|request| request["accepted"] == true)
    );
    (system, session)
}

/// Whether this process runs as an ordinary user; root is not bound by what is tested there.
fn as_ordinary_user(test: &str) -> bool {
    if !is_root() {
        return true;
    }
    // The whole test again, as somebody else, with a copy of both programs in a place of theirs.
    let directory = scratch();
    let user = nobody();
    let copy = |from: &std::path::Path, name: &str| {
        let to = directory.path().join(name);
        std::fs::copy(from, &to).unwrap();
        to
    };
    let test_program = copy(&std::env::current_exe().unwrap(), "rules");
    let system_program = copy(program(), "claviger");
    let temporary = directory.path().join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    for path in [directory.path(), temporary.as_path()] {
        std::os::unix::fs::chown(path, Some(user), Some(user)).unwrap();
    }
    let mut command = std::process::Command::new("setpriv");
    command
        .args([
            "--reuid",
            &user.to_string(),
            "--regid",
            &user.to_string(),
            "--clear-groups",
        ])
        .arg(test_program)
        .args(["--exact", test, "--nocapture"])
        .env("TMPDIR", &temporary)
        .env(PROGRAM_VARIABLE, system_program)
        .current_dir("/");
    let transcript = run(command, b"");
    assert_eq!(transcript.code, 0, "as user {user}: {transcript:?}");
    assert!(transcript.stdout.contains("1 passed"), "{transcript:?}");
    false
}

/// The user `nobody`, or whoever has its usual number.
fn nobody() -> u32 {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    users
        .lines()
        .find_map(|line| {
            line.strip_prefix("nobody:")?
                .split(':')
                .nth(1)?
                .parse()
                .ok()
        })
        .unwrap_or(65_534)
}

#[test]
fn a_process_of_the_same_user_cannot_read_vault_or_tools() {
    if !as_ordinary_user("a_process_of_the_same_user_cannot_read_vault_or_tools") {
        return;
    }
    let (system, _) = worked();
    for role in ["vault", "tools"] {
        let pids = system.pids(role);
        assert_eq!(pids.len(), 1, "{role}");
        for file in [
            "mem", "environ", "maps", "smaps", "pagemap", "auxv", "stack", "syscall", "io",
        ] {
            let path = format!("/proc/{}/{file}", pids[0]);
            let read = std::fs::File::open(&path).and_then(|mut file| {
                let mut bytes = [0_u8; 16];
                std::io::Read::read(&mut file, &mut bytes)
            });
            let refused = read.as_ref().err().and_then(std::io::Error::raw_os_error);
            assert!(
                matches!(refused, Some(1 | 13)),
                "{role}: {path} was opened: {read:?}"
            );
        }
        for link in ["exe", "cwd", "root", "fd"] {
            let path = format!("/proc/{}/{link}", pids[0]);
            let read = if link == "fd" {
                std::fs::read_dir(&path).map(|_| ())
            } else {
                std::fs::read_link(&path).map(|_| ())
            };
            assert!(read.is_err(), "{role}: {path} was read");
        }
        let limits =
            std::fs::read_to_string(format!("/proc/{}/limits", pids[0])).unwrap_or_default();
        let core = limits
            .lines()
            .find(|line| line.starts_with("Max core file size"));
        assert!(
            core.is_none_or(|line| line.split_whitespace().nth(4) == Some("0")),
            "{role}: {core:?}"
        );
    }
    // The control: the same eyes do read a role that has nothing to hide.
    let session = system.pids("session")[0];
    assert!(std::fs::read(format!("/proc/{session}/maps")).is_ok_and(|maps| !maps.is_empty()));
    assert!(std::fs::File::open(format!("/proc/{session}/mem")).is_ok());
}

#[test]
fn no_role_carries_a_key_in_its_arguments_or_environment() {
    let (system, _) = worked();
    for role in ROLES {
        for pid in system.pids(role) {
            for part in ["cmdline", "environ"] {
                // Root reads all of them; another user reads what may be read.
                let bytes = std::fs::read(format!("/proc/{pid}/{part}")).unwrap_or_default();
                let found = String::from_utf8_lossy(&bytes).into_owned();
                assert!(!found.contains(&system.key), "{role}: {part}");
                assert!(!found.contains("sk-model-"), "{role}: {part}");
                assert!(!found.contains("ANTHROPIC"), "{role}: {part} is inherited");
                assert!(!found.contains(&system.api_key), "{role}: {part}");
            }
        }
    }
}

#[test]
fn nothing_answers_without_a_key_or_to_a_foreign_page() {
    let (system, _) = worked();
    let (api, mcp) = (system.api(), system.mcp());
    let bearer = format!("Bearer {}", system.api_key);
    let list = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}).to_string();
    let accept = ("accept", "application/json, text/event-stream");
    let content = ("content-type", "application/json");
    let version = ("anthropic-version", "2026-10-21");
    let beta = ("anthropic-beta", "managed-agents-2026-04-01");
    let before = system.upstream.requests().len();
    let ask_mcp = |headers: &[(&str, &str)]| {
        let all: Vec<(&str, &str)> = [accept, content]
            .into_iter()
            .chain(headers.iter().copied())
            .collect();
        http(&mcp, "POST", "/mcp", &all, &list).status
    };
    let ask_api = |headers: &[(&str, &str)]| {
        let all: Vec<(&str, &str)> = [version, beta]
            .into_iter()
            .chain(headers.iter().copied())
            .collect();
        http(&api, "GET", "/v1/sessions", &all, "").status
    };
    let wrong = format!("Bearer clv_{}", "0".repeat(40));
    let nearly = format!("Bearer {}x", system.api_key);
    for (name, ask) in [
        ("mcp", &ask_mcp as &dyn Fn(&[(&str, &str)]) -> u16),
        ("api", &ask_api),
    ] {
        for headers in [
            &[][..],
            &[("authorization", "")],
            &[("authorization", "Bearer ")],
            &[("authorization", wrong.as_str())],
            &[("authorization", nearly.as_str())],
            &[("authorization", "Basic dXNlcjpwYXNz")],
        ] {
            assert_eq!(ask(headers), 401, "{name} without the key: {headers:?}");
        }
        for headers in [
            &[("host", "evil.example")][..],
            &[("host", "evil.example:80")],
            &[("origin", "http://evil.example")],
            &[("origin", "null")],
            &[
                ("origin", "http://evil.example"),
                ("sec-fetch-site", "cross-site"),
            ],
            &[("sec-fetch-site", "cross-site")],
        ] {
            let mut headers = headers.to_vec();
            headers.push(("authorization", bearer.as_str()));
            let status = ask(&headers);
            assert!(
                (400..404).contains(&status),
                "{name} to a foreign page: {status} {headers:?}"
            );
        }
        // The control: with the key and as itself it is let in.
        let own = ask(&[("authorization", bearer.as_str())]);
        assert!(own == 200 || (name == "mcp" && own == 400), "{name}: {own}");
    }
    assert_eq!(
        system.upstream.requests().len(),
        before,
        "nothing of this was spent"
    );
}

/// Inodes of the sockets that a process holds.
fn sockets(pid: u32) -> BTreeSet<u64> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let link = std::fs::read_link(entry.path()).unwrap_or_default();
        let text = link
            .to_str()
            .and_then(|link| link.strip_prefix("socket:[")?.strip_suffix(']'));
        let inode: Option<u64> = text.and_then(|text| text.parse().ok());
        found.extend(inode);
    }
    found
}

/// Internet sockets of this network namespace: inode to (local address, whether it listens).
fn internet_sockets() -> BTreeMap<u64, (String, bool)> {
    let mut found = BTreeMap::new();
    for table in ["tcp", "tcp6", "udp", "udp6", "raw", "raw6"] {
        let text = std::fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let Some(inode) = words.get(9).and_then(|inode| inode.parse().ok()) {
                found.insert(inode, (format!("{table} {}", words[1]), words[3] == "0A"));
            }
        }
    }
    found
}

#[test]
fn only_api_and_tools_listen_and_only_on_loopback_and_the_vault_has_no_network() {
    let (system, _) = worked();
    let all = internet_sockets();
    let of = |role: &str| -> Vec<(String, bool)> {
        let inodes: BTreeSet<u64> = system.pids(role).into_iter().flat_map(sockets).collect();
        inodes
            .iter()
            .filter_map(|inode| all.get(inode).cloned())
            .collect()
    };
    for role in ROLES {
        for (address, listens) in of(role) {
            if listens {
                assert!(
                    address.starts_with("tcp 0100007F:"),
                    "{role} listens on {address}"
                );
                assert!(
                    ["api", "tools"].contains(&role),
                    "{role} listens on {address}"
                );
            }
        }
    }
    for role in ["hands", "session", "harness"] {
        assert_eq!(of(role), [], "{role} has no network");
    }
    if is_root() {
        // Nobody else may look into these two.
        assert_eq!(of("vault"), [], "the vault has no network");
        assert!(
            !sockets(system.pids("vault")[0]).is_empty(),
            "its sockets were seen"
        );
        assert!(of("tools").iter().any(|(_, listens)| *listens));
    }
    assert!(of("api").iter().any(|(_, listens)| *listens));
    // Besides, the vault's filter refuses it a socket of the network at all.
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", system.pids("vault")[0])).unwrap();
    assert!(status.lines().any(|line| line == "Seccomp:\t2"), "{status}");
    assert!(
        status.lines().any(|line| line == "NoNewPrivs:\t1"),
        "{status}"
    );
}

#[test]
fn sockets_and_keys_of_a_home_are_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let (system, _) = worked();
    let mode = |path: &str| {
        std::fs::metadata(system.home.join(path))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    for name in ["admin", "api", "mcp"] {
        assert_eq!(mode(&format!("run/{name}.sock")), 0o600, "{name}");
    }
    for name in [
        "api-key",
        "config.toml",
        "vault/seal.key",
        "vault/vault.db",
        "session/session.db",
    ] {
        assert_eq!(mode(name) & 0o177, 0, "{name}");
    }
    for name in ["", "run", "log", "vault", "session", "tools"] {
        assert_eq!(mode(name) & 0o077, 0, "'{name}'");
    }
    let sockets: Vec<String> = std::fs::read_dir(system.home.join("run"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| {
            std::path::Path::new(name)
                .extension()
                .is_some_and(|extension| extension == "sock")
        })
        .collect();
    assert_eq!(sockets.len(), 3, "no other door: {sockets:?}");
}

#[test]
fn after_hands_dies_the_model_reads_that_its_sandbox_is_lost() {
    let turns = json!([
        [bash("echo precious > /workspace/file; cat /workspace/file")],
        [bash("sleep 30; echo never")],
        [bash("cat /workspace/file 2>&1 || echo gone")],
        [text("done")],
    ]);
    let system = System::start(&turns, &[]);
    let session = system.session("work");
    eventually("the second command", PATIENCE, || {
        let intents = system.events(&session, &["tool.intent"])?;
        (intents.len() == 2).then_some(())
    });
    assert!(signal(system.pids("hands")[0], Signal::KILL));
    let idle = system.idle(&session);
    assert_eq!(idle["stop_reason"]["type"], "end_turn", "{}", system.logs());
    let results = system.events(&session, &["agent.tool_result"]).unwrap();
    let texts: Vec<String> = results
        .iter()
        .map(|result| result["content"].to_string())
        .collect();
    assert!(texts[0].contains("precious"), "{texts:?}");
    assert!(texts[1].contains("sandbox_lost"), "{texts:?}");
    assert_eq!(results[1]["is_error"], true);
    assert!(
        texts[2].contains("gone") && !texts[2].contains("precious"),
        "its files are gone: {texts:?}"
    );
    let last = system.model.requests().pop().unwrap();
    assert!(
        last["request"]["messages"]
            .to_string()
            .contains("sandbox_lost"),
        "the model read it"
    );
}

/// A generator of times that says its seed, so that a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below
    }
}

/// Issues that each session asks for.
const ISSUES: usize = 4;

/// A story long enough to be killed anywhere in it: sandbox and upstream in turn, streamed slowly.
fn story() -> Value {
    let mut turns = Vec::new();
    for number in 0..ISSUES {
        turns.push(json!([
            text("One more step of a longer piece of work, told in enough words to be streamed."),
            issue(&format!("SESSION {number}")),
            bash(&format!(
                "sleep 0.05; echo line{number} >> /workspace/progress; cat /workspace/progress"
            )),
        ]));
    }
    turns.push(json!([text("Everything is done.")]));
    json!(turns)
}

/// What the upstream was asked to do.
fn effects(system: &System) -> usize {
    let requests = system.upstream.requests();
    assert!(
        requests.iter().all(|request| request["accepted"] == true),
        "every request had the key"
    );
    requests
        .iter()
        .filter(|request| request["method"] == "POST" && request["path"] == "/api/issues")
        .count()
}

/// One session during which `kills` processes of `role` are killed at random times; everything that
/// was acknowledged must be there at the end, once.
fn killed_session(system: &System, role: &str, kills: u64, dice: &mut Dice) -> (u64, usize) {
    let before = effects(system);
    let session = system.session("work");
    let mut seen: BTreeMap<String, Value> = BTreeMap::new();
    let (mut done, started) = (0, Instant::now());
    let mut next = Duration::from_millis(dice.roll(300));
    let kinds = [
        "user.message",
        "agent.message",
        "agent.tool_use",
        "agent.mcp_tool_use",
        "agent.tool_result",
        "agent.mcp_tool_result",
        "tool.intent",
        "tool.outcome",
        "lease.acquired",
        "session.status_idle",
        "session.error",
    ];
    let idle = eventually(
        "the end of a session with kills",
        Duration::from_secs(120),
        || {
            if done < kills && started.elapsed() >= next {
                // A role that is not back yet cannot be killed; its turn comes.
                if let Some(pid) = system.pids(role).first()
                    && signal(*pid, Signal::KILL)
                {
                    done += 1;
                    next = started.elapsed() + Duration::from_millis(50 + dice.roll(700));
                }
            }
            for event in system.events(&session, &kinds)? {
                seen.insert(event["id"].as_str().unwrap().to_owned(), event);
            }
            seen.values()
                .find(|event| event["type"] == "session.status_idle")
                .cloned()
        },
    );
    let told = |what: &str| {
        format!(
            "{what} (kills of {role}, session {session})\n{}",
            system.logs()
        )
    };
    assert_eq!(
        idle["stop_reason"]["type"],
        "end_turn",
        "{}",
        told("the turn ended otherwise")
    );
    let events = eventually("the whole log", PATIENCE, || {
        system.events(&session, &kinds)
    });
    for (id, event) in &seen {
        assert!(
            events.iter().any(|kept| kept == event),
            "{}",
            told(&format!("event {id} is lost"))
        );
    }
    let of = |kind: &str| -> Vec<&Value> {
        events
            .iter()
            .filter(|event| event["type"] == kind)
            .collect()
    };
    let asked = of("agent.mcp_tool_use").len();
    assert_eq!(asked, ISSUES, "{}", told("the script was played otherwise"));
    // An interrupted call may have happened or not; the model is told which calls nobody knows about.
    let calls: BTreeSet<&str> = of("tool.intent")
        .iter()
        .filter(|intent| intent["hand"] == "mcp")
        .map(|intent| intent["tool_use_id"].as_str().unwrap())
        .collect();
    assert_eq!(calls.len(), ISSUES, "{}", told("an intent for every call"));
    let unknown = of("tool.outcome")
        .iter()
        .filter(|outcome| {
            outcome["status"] != "ok" && calls.contains(outcome["tool_use_id"].as_str().unwrap())
        })
        .count();
    let made = effects(system) - before;
    assert!(
        made <= asked,
        "{}",
        told(&format!("{made} issues were made of {asked}"))
    );
    assert!(
        made + unknown >= asked,
        "{}",
        told(&format!(
            "{made} made and {unknown} told as unsure of {asked}"
        ))
    );
    for kind in ["tool.intent", "tool.outcome"] {
        let ids: Vec<&str> = of(kind)
            .iter()
            .map(|event| event["tool_use_id"].as_str().unwrap())
            .collect();
        let once: BTreeSet<&&str> = ids.iter().collect();
        assert_eq!(
            ids.len(),
            once.len(),
            "{}",
            told(&format!("{kind} twice for one call"))
        );
        assert_eq!(
            ids.len(),
            ISSUES * 2,
            "{}",
            told(&format!("{kind} for every call"))
        );
    }
    // A line of the sandbox stands there once, or its sandbox was lost with it.
    for result in of("agent.tool_result") {
        let text = result["content"][0]["text"].as_str().unwrap_or("");
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("line"))
            .collect();
        let once: BTreeSet<&&str> = lines.iter().collect();
        assert_eq!(lines.len(), once.len(), "{}", told("a command ran twice"));
    }
    (done, unknown)
}

/// Two kills of each role in an ordinary run, `CLAVIGER_KILLS` in all where it is set.
#[test]
fn killing_any_role_at_any_time_loses_no_event_and_doubles_no_effect() {
    let wanted: u64 = std::env::var_os("CLAVIGER_KILLS")
        .and_then(|text| text.into_string().ok()?.parse().ok())
        .unwrap_or(12);
    let seed = u64::from(std::process::id());
    let mut dice = Dice(seed);
    let started = Instant::now();
    let mut system = System::start_with(&story(), &["--harnesses", "2"], |script| {
        script["first_token_ms"] = json!(20);
        script["delta_ms"] = json!(5);
    });
    let (mut done, mut sessions, mut unsure) = (0, 0, 0);
    while done < wanted {
        for role in ROLES {
            let (now, unknown) = killed_session(&system, role, (wanted - done).min(2), &mut dice);
            unsure += unknown;
            done += now;
            sessions += 1;
            println!(
                "{done} of {wanted} kills: {role}, {now} in a session ({:.1} s, seed {seed})",
                started.elapsed().as_secs_f64()
            );
            if done >= wanted {
                break;
            }
        }
    }
    let list = system.claviger(&["secret", "list"], b"").json();
    assert!(list.to_string().contains("\"tracker\""));
    system.stop();
    let audit = system.claviger(&["audit", "verify"], b"").json();
    assert_eq!(audit["verified"], true, "{audit}");
    println!(
        "{done} kills in {sessions} sessions, {unsure} calls told as of unknown outcome, {:.1} s",
        started.elapsed().as_secs_f64()
    );
}
