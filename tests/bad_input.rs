//! Bad input, as transcripts: the exit code, the stable code, what/why/fix, and nothing half-written.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test panics where it fails and says what it skipped"
)]

#[path = "support/support.rs"]
mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::*;

/// A refusal as it must be: the exit code and code, what happened, why, what to do, a page.
#[track_caller]
fn refused(transcript: &Transcript, exit: i32, code: &str) -> Value {
    let error = transcript.error();
    assert_eq!(transcript.code, exit, "{transcript:?}");
    assert_eq!(error["code"], code, "{transcript:?}");
    for part in ["what", "why", "fix"] {
        let text = error[part].as_str().unwrap_or("");
        assert!(text.len() > 3, "{part} is missing: {transcript:?}");
    }
    let page = claviger(Path::new("/nonexistent"), &["explain", code], b"").json();
    assert!(
        page["page"].as_str().unwrap().len() > 40,
        "{code} has a page"
    );
    error
}

/// Every file under a directory with its content, the sockets and logs of a running system aside.
fn files(directory: &Path) -> BTreeSet<(PathBuf, Vec<u8>)> {
    let (mut found, mut rest) = (BTreeSet::new(), vec![directory.to_owned()]);
    while let Some(next) = rest.pop() {
        for entry in std::fs::read_dir(&next)
            .into_iter()
            .flatten()
            .map(Result::unwrap)
        {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            if kind.is_dir() && !["run", "log"].contains(&entry.file_name().to_str().unwrap()) {
                rest.push(path);
            } else if kind.is_file() {
                found.insert((path.clone(), std::fs::read(path).unwrap()));
            }
        }
    }
    found
}

/// A home that was just made, and its `up` where wanted.
fn made() -> (tempfile::TempDir, PathBuf) {
    let directory = scratch();
    let home = directory.path().join("h");
    claviger(&home, &["init", "--no-input"], b"").json();
    (directory, home)
}

const ADD: [&str; 6] = ["secret", "add", "tracker", "--kind", "bearer", "--host"];

fn add<'a>(host: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
    ADD.into_iter()
        .chain([host])
        .chain(rest.iter().copied())
        .collect()
}

#[test]
fn bad_values_and_places_are_refused_and_nothing_is_stored() {
    let (_directory, home) = made();
    let (_up, _) = up(&home, &[]);
    let before = claviger(&home, &["secret", "list"], b"").json();
    let host = "127.0.0.1:8080";
    let good = b"sk-0123456789abcdef";

    // A value on the command line is refused, and the advice is to rotate it.
    let argv = claviger(&home, &add(host, &["sk-on-the-command-line"]), b"");
    let error = refused(&argv, 2, "secret_on_argv");
    assert!(error["fix"].as_str().unwrap().contains("rotate"));
    assert!(
        !argv.stderr.contains("sk-on-the-command-line"),
        "it is not repeated"
    );
    let rotate = claviger(
        &home,
        &["secret", "rotate", "tracker", "sk-on-the-command-line"],
        b"",
    );
    refused(&rotate, 2, "secret_on_argv");

    for (value, code) in [
        (&b""[..], "empty_secret"),
        (b"\n", "empty_secret"),
        (b"sk-0123456789\nabcdef", "secret_has_line_break"),
        (b"sk-0123456789\rabcdef", "secret_has_line_break"),
        (b"sk-0123456789abcdef\n\n", "secret_has_line_break"),
        (b"sk-0123456789\0abcdef", "secret_has_line_break"),
        (b"sk-short", "secret_too_short"),
    ] {
        let transcript = claviger(&home, &add(host, &[]), value);
        refused(&transcript, 2, code);
        assert!(!transcript.stderr.contains("0123456789"), "{transcript:?}");
    }

    for kind in ["jwt", "Bearer", ""] {
        let arguments = ["secret", "add", "tracker", "--kind", kind, "--host", host];
        refused(&claviger(&home, &arguments, good), 2, "unknown_kind");
    }

    for host in [
        "user@example.com",
        "user:password@example.com",
        "https://user@example.com",
        "*",
        "*.com",
        "*.example.com",
        "api.*.com",
        "https://example.com/path",
        "https://example.com?q",
        "example.com:99999",
        "ftp://example.com",
        "exam ple.com",
        "",
    ] {
        let transcript = claviger(&home, &add(host, &[]), good);
        let error = refused(&transcript, 2, "bad_host");
        assert!(
            !error["what"].as_str().unwrap().contains("password@"),
            "{transcript:?}"
        );
    }

    refused(
        &claviger(&home, &add(host, &["--path", "no-slash"]), good),
        2,
        "bad_path",
    );
    refused(
        &claviger(&home, &["secret", "get", "tracker"], b""),
        2,
        "there_is_no_get",
    );
    refused(
        &claviger(&home, &["secret", "show", "nobody"], b""),
        8,
        "credential_not_found",
    );
    refused(&claviger(&home, &["secret", "frobnicate"], b""), 2, "usage");
    refused(
        &claviger(&home, &["secret", "add", "tracker"], good),
        2,
        "usage",
    );
    refused(
        &claviger(&home, &["explain", "no_such_code"], b""),
        8,
        "unknown_code",
    );

    assert_eq!(claviger(&home, &["secret", "list"], b"").json(), before);
    // Now it is taken, once.
    claviger(&home, &add(host, &[]), good).json();
    refused(&claviger(&home, &add(host, &[]), good), 9, "name_taken");
}

#[test]
fn a_malformed_definition_is_named_with_its_line() {
    let (directory, home) = made();
    let (_up, _) = up(&home, &[]);
    claviger(&home, &add("127.0.0.1:8080", &[]), b"sk-0123456789abcdef").json();
    let file = directory.path().join("tracker.toml");
    let good = include_str!("clients/tracker.toml").replace("UPSTREAM", "127.0.0.1:8080");
    let path = file.to_str().unwrap();
    for (from, to, line, expected) in [
        ("kind = \"http\"", "kind = http", "2", ""),
        ("name = \"tracker\"", "nam = \"tracker\"", "1", "name"),
        ("method = \"POST\"", "method = 7", "10", "string"),
        ("[[operations]]", "[[operations", "7", "]]"),
    ] {
        std::fs::write(&file, good.replacen(from, to, 1)).unwrap();
        let error = refused(
            &claviger(&home, &["tool", "add", "http", path], b""),
            3,
            "definition_malformed",
        );
        let told = format!("{} {}", error["what"], error["why"]);
        assert!(told.contains("tracker.toml"), "the file: {told}");
        assert!(
            told.contains(&format!(":{line}:")) || told.contains(&format!("line {line}")),
            "line {line}: {told}"
        );
        assert!(
            told.contains(expected) && told.contains("expected"),
            "what was expected: {told}"
        );
    }
    refused(
        &claviger(&home, &["tool", "add", "grpc", path], b""),
        2,
        "unknown_kind",
    );
    refused(
        &claviger(&home, &["tool", "add", "http", "/nonexistent.toml"], b""),
        3,
        "file_unusable",
    );
    std::fs::write(
        &file,
        good.replace("credential = \"tracker\"", "credential = \"nobody\""),
    )
    .unwrap();
    refused(
        &claviger(&home, &["tool", "add", "http", path], b""),
        8,
        "credential_not_found",
    );
    let tools: Vec<_> = std::fs::read_dir(home.join("tools")).unwrap().collect();
    assert!(tools.is_empty(), "no definition was half added: {tools:?}");
    std::fs::write(&file, good).unwrap();
    claviger(&home, &["tool", "add", "http", path], b"").json();
}

#[test]
fn a_malformed_configuration_is_named_with_its_line() {
    let (_directory, home) = made();
    let before = std::fs::read_to_string(home.join("config.toml")).unwrap();
    for (text, line, expected) in [
        ("[api]\nlisten = 2528\n", "line 2", "string"),
        (
            "[api]\nlisten = \"127.0.0.1:0\"\n\n[nodel]\nname = \"x\"\n",
            "line 4",
            "`model`",
        ),
        ("[api\n", "line 1", "]"),
    ] {
        std::fs::write(home.join("config.toml"), text).unwrap();
        let error = refused(&claviger(&home, &["up"], b""), 3, "config_malformed");
        assert!(
            error["what"].as_str().unwrap().contains("config.toml"),
            "{error}"
        );
        let why = error["why"].as_str().unwrap();
        assert!(why.contains(line) && why.contains(expected), "{why}");
    }
    std::fs::write(home.join("config.toml"), before).unwrap();
    let (_up, _) = up(&home, &[]);
}

#[test]
fn a_second_init_changes_nothing() {
    let (_directory, home) = made();
    let before = files(&home);
    refused(
        &claviger(&home, &["init", "--no-input"], b""),
        9,
        "already_initialized",
    );
    assert_eq!(files(&home), before);
    // Not even where only half of a home is left.
    std::fs::remove_file(home.join("vault.pub")).unwrap();
    refused(
        &claviger(&home, &["init", "--no-input"], b""),
        9,
        "already_initialized",
    );
}

#[test]
fn without_a_daemon_every_command_exits_4_and_says_how_to_start_one() {
    let directory = scratch();
    let home = directory.path().join("h");
    let commands: [&[&str]; 8] = [
        &["status"],
        &["secret", "list"],
        &[
            "secret",
            "add",
            "tracker",
            "--kind",
            "bearer",
            "--host",
            "example.com",
        ],
        &["tool", "list"],
        &["session", "list"],
        &["session", "new", "hello"],
        &["mcp"],
        &["down"],
    ];
    for arguments in commands {
        let transcript = claviger(&home, arguments, b"sk-0123456789abcdef");
        let error = transcript.error();
        assert!(
            error["fix"].as_str().unwrap().contains("claviger"),
            "{transcript:?}"
        );
        assert_eq!(transcript.code, 4, "{transcript:?}");
    }
    assert!(!home.exists(), "asking made nothing");
    claviger(&home, &["init", "--no-input"], b"").json();
    for arguments in commands {
        let transcript = claviger(&home, arguments, b"sk-0123456789abcdef");
        let error = refused(&transcript, 4, "daemon_not_running");
        assert!(
            error["fix"].as_str().unwrap().contains("claviger up"),
            "{transcript:?}"
        );
    }
}

#[test]
fn a_taken_port_and_a_running_home_are_named() {
    let (_directory, home) = made();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (arguments, flag) in [
        (
            ["up", "--listen", &address, "--mcp-listen", "127.0.0.1:0"],
            "--listen",
        ),
        (
            ["up", "--listen", "127.0.0.1:0", "--mcp-listen", &address],
            "--mcp-listen",
        ),
    ] {
        let error = refused(&claviger(&home, &arguments, b""), 9, "port_taken");
        assert!(error["what"].as_str().unwrap().contains(&address));
        assert!(error["fix"].as_str().unwrap().contains(flag));
        let detached: Vec<&str> = arguments.into_iter().chain(["--detach"]).collect();
        refused(&claviger(&home, &detached, b""), 9, "port_taken");
    }
    assert!(!home.join("run/up.json").exists() && !home.join("run/admin.sock").exists());
    let (_up, _) = up(&home, &[]);
    let again = claviger(
        &home,
        &[
            "up",
            "--listen",
            "127.0.0.1:0",
            "--mcp-listen",
            "127.0.0.1:0",
        ],
        b"",
    );
    refused(&again, 9, "already_running");
    claviger(&home, &["status"], b"").json();
}

/// Runs a command line with a terminal of its own (`script` of util-linux makes one) and answers
/// its prompts in turn.
fn at_terminal(home: &Path, line: &str, answers: &[(&str, &str)]) -> (i32, String) {
    use std::io::{Read as _, Write as _};
    let mut command = Command::new("script");
    with_home(&mut command, home);
    let mut child = command
        .args(["--quiet", "--return", "--command", line, "/dev/null"])
        .env("SHELL", "/bin/sh")
        .env("PROGRAM", program())
        .env("NO_COLOR", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut keyboard, mut screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (mut shown, mut waiting) = (String::new(), answers.iter());
    let mut next = waiting.next();
    let mut from = 0;
    let mut buffer = [0_u8; 4096];
    loop {
        let read = screen.read(&mut buffer).unwrap_or(0);
        if read == 0 {
            break;
        }
        shown.push_str(&String::from_utf8_lossy(&buffer[..read]));
        if let Some((prompt, answer)) = next
            && shown.get(from..).is_some_and(|new| new.contains(prompt))
        {
            // The prompt throws away what was typed before echo was off, as it should.
            std::thread::sleep(std::time::Duration::from_millis(150));
            keyboard
                .write_all(format!("{answer}\n").as_bytes())
                .unwrap();
            from = shown.len();
            next = waiting.next();
        }
    }
    drop(keyboard);
    assert!(next.is_none(), "not every prompt came: {shown}");
    (child.wait().unwrap().code().unwrap(), shown)
}

#[test]
fn a_wrong_operator_passphrase_widens_nothing() {
    let directory = scratch();
    let home = directory.path().join("h");
    let (code, shown) = at_terminal(
        &home,
        "$PROGRAM init",
        &[
            ("Operator passphrase", "a right one"),
            ("Once more", "a right one"),
        ],
    );
    assert_eq!(code, 0, "{shown}");
    let (_up, _) = up(&home, &[]);
    let before = claviger(&home, &["secret", "list"], b"").json();
    let line = "printf sk-0123456789abcdef | $PROGRAM secret add tracker --kind bearer --host example.com --json 2>&1";
    let (code, shown) = at_terminal(&home, line, &[("Operator passphrase", "a wrong one")]);
    assert_eq!(code, 5, "{shown}");
    assert!(shown.contains("\"code\":\"wrong_passphrase\""), "{shown}");
    assert!(
        !shown.contains("a wrong one"),
        "what is typed is not shown: {shown}"
    );
    assert_eq!(claviger(&home, &["secret", "list"], b"").json(), before);
    // Without a terminal nobody is asked, and nothing is taken from stdin instead.
    let mut without = Command::new("setsid");
    with_home(&mut without, &home);
    without
        .arg("--wait")
        .arg(program())
        .args(ADD)
        .args(["example.com", "--json"]);
    refused(&run(without, b"sk-0123456789abcdef"), 2, "no_terminal");
    let (code, shown) = at_terminal(&home, line, &[("Operator passphrase", "a right one")]);
    assert_eq!(code, 0, "{shown}");
}

#[test]
fn a_sealed_vault_refuses_with_its_own_exit_code_and_stays_whole() {
    let directory = scratch();
    let home = directory.path().join("h");
    let (code, shown) = at_terminal(
        &home,
        "$PROGRAM init --seal passphrase",
        &[
            ("Vault passphrase", "correct horse"),
            ("Once more", "correct horse"),
            ("Operator passphrase", ""),
        ],
    );
    assert_eq!(code, 0, "{shown}");
    let (_up, _) = up(&home, &[]);
    assert_eq!(
        claviger(&home, &["status"], b"").json()["vault"]["state"],
        "sealed"
    );
    let before = files(&home.join("vault"));
    refused(
        &claviger(&home, &add("example.com", &[]), b"sk-0123456789abcdef"),
        11,
        "vault_sealed",
    );
    refused(
        &claviger(&home, &["secret", "list"], b""),
        11,
        "vault_sealed",
    );
    refused(
        &claviger(&home, &["session", "new", "hello"], b""),
        11,
        "vault_sealed",
    );
    assert_eq!(files(&home.join("vault")), before);
    for (_, content) in files(directory.path()) {
        assert!(!content.windows(13).any(|window| window == b"correct horse"));
    }
}

/// Runs a shell script with a mount namespace of its own; none where the kernel refuses one.
fn in_mount_namespace(home: &Path, script: &str) -> Option<Transcript> {
    let mut command = Command::new("unshare");
    with_home(&mut command, home);
    command.arg("--mount");
    if !is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command
        .args(["sh", "-euc", script])
        .env("PROGRAM", program())
        .env("PLACE", home.parent().unwrap());
    let transcript = run(command, b"");
    if transcript.stderr.contains("unshare") || transcript.stderr.contains("mount:") {
        println!(
            "skipped: no mount namespace here: {}",
            transcript.stderr.trim()
        );
        return None;
    }
    Some(transcript)
}

#[test]
fn a_read_only_place_is_named_and_left_alone() {
    let directory = scratch();
    let place = directory.path().join("p");
    std::fs::create_dir(&place).unwrap();
    let script =
        "mount -t tmpfs -o ro,size=1m tmpfs \"$PLACE\"; exec \"$PROGRAM\" init --no-input --json";
    if let Some(transcript) = in_mount_namespace(&place.join("h"), script) {
        let error = refused(&transcript, 3, "disk_read_only");
        assert!(
            error["what"]
                .as_str()
                .unwrap()
                .contains(place.to_str().unwrap())
        );
    }
    assert!(files(&place).is_empty());
}

#[test]
fn init_on_a_full_disk_leaves_no_vault_behind_and_works_afterwards() {
    let directory = scratch();
    let place = directory.path().join("p");
    std::fs::create_dir(&place).unwrap();
    for size in ["12k", "32k", "48k", "64k"] {
        let script = format!(
            "mount -t tmpfs -o size={size} tmpfs \"$PLACE\"
            code=0; \"$PROGRAM\" init --no-input --json >/dev/null || code=$?
            if [ -e \"$CLAVIGER_HOME/vault\" ] || [ -e \"$CLAVIGER_HOME/vault.pub\" ] || [ -e \"$CLAVIGER_HOME/api-key\" ]; then echo half-written; fi
            mount -o remount,size=4m \"$PLACE\"
            \"$PROGRAM\" init --no-input --json >/dev/null || echo \"a later init exits with $?\"
            exit $code"
        );
        let Some(transcript) = in_mount_namespace(&place.join("h"), &script) else {
            return;
        };
        assert_eq!(transcript.stdout, "", "{size}: {transcript:?}");
        let error = transcript.error();
        let code = error["code"].as_str().unwrap().to_owned();
        assert!(
            ["disk_full", "store_failed", "audit_failed"].contains(&code.as_str()),
            "{size}: {transcript:?}"
        );
        let told = format!("{} {}", error["what"], error["why"]);
        assert!(
            told.contains("full") || told.contains("No space left"),
            "{size}: {told}"
        );
        refused(&transcript, transcript.code, &code);
    }
}

#[test]
fn a_disk_that_fills_up_stops_uses_and_loses_nothing() {
    let directory = scratch();
    let place = directory.path().join("p");
    std::fs::create_dir(&place).unwrap();
    let script = "mount -t tmpfs -o size=3m tmpfs \"$PLACE\"
        \"$PROGRAM\" init --no-input --json >/dev/null
        \"$PROGRAM\" up --detach --listen 127.0.0.1:0 --mcp-listen 127.0.0.1:0 --json >/dev/null
        trap '\"$PROGRAM\" down >/dev/null' EXIT
        add() { printf sk-0123456789abcdef | \"$PROGRAM\" secret add \"$1\" --kind bearer --host 127.0.0.1:9 --json; }
        add before >/dev/null
        dd if=/dev/zero of=\"$PLACE/fill\" bs=4k 2>/dev/null || true
        code=0; add during >/dev/null || code=$?
        rm \"$PLACE/fill\"
        \"$PROGRAM\" down >/dev/null
        \"$PROGRAM\" up --detach --listen 127.0.0.1:0 --mcp-listen 127.0.0.1:0 --json >/dev/null
        add after >/dev/null
        \"$PROGRAM\" secret list --json >\"$PLACE/list\"
        \"$PROGRAM\" audit verify --json >\"$PLACE/audit\"
        for name in before after; do grep -q \"\\\"name\\\":\\\"$name\\\"\" \"$PLACE/list\" || echo \"$name is lost\"; done
        if grep -q '\"name\":\"during\"' \"$PLACE/list\"; then echo 'refused, yet stored'; fi
        grep -q '\"verified\":true' \"$PLACE/audit\" || echo 'the audit log is broken'
        exit $code";
    let Some(transcript) = in_mount_namespace(&place.join("h"), script) else {
        return;
    };
    assert_eq!(transcript.stdout, "", "{transcript:?}");
    let error = transcript.error();
    let code = error["code"].as_str().unwrap().to_owned();
    refused(&transcript, transcript.code, &code);
    assert!(
        format!("{} {}", error["what"], error["why"]).contains("full"),
        "{error}"
    );
}

#[test]
fn without_user_namespaces_doctor_names_the_setting_and_everything_else_works() {
    let directory = scratch();
    let home = directory.path().join("h");
    let turns = json!([[{"type": "tool_use", "name": "bash", "input": {"command": "echo hello"}}, {"type": "tool_use", "name": "tracker_create_issue", "input": {"title": "x"}}]]);
    let model = Stage::start(
        "model",
        &directory.path().join("m"),
        json!({"key_sha256": null, "turns": turns}),
    );
    let mut command = Command::new("unshare");
    with_home(&mut command, &home);
    command
        .args(["--user", "--map-root-user", "sh", "-euc"])
        .arg(
            "if ! echo 0 2>/dev/null >/proc/sys/user/max_user_namespaces; then echo 'the setting cannot be changed here'; exit 77; fi
            \"$PROGRAM\" doctor --json || test $? = 14
            \"$PROGRAM\" init --no-input --json >/dev/null
            \"$PROGRAM\" up --detach --listen 127.0.0.1:0 --mcp-listen 127.0.0.1:0 --json >/dev/null
            trap '\"$PROGRAM\" down >/dev/null' EXIT
            printf sk-0123456789abcdef | \"$PROGRAM\" secret add tracker --kind bearer --host 127.0.0.1:9 --json >/dev/null
            \"$PROGRAM\" secret list --json >/dev/null
            timeout 60 \"$PROGRAM\" session new 'say hello' --model scripted --follow",
        )
        .env("PROGRAM", program())
        .env("ANTHROPIC_BASE_URL", format!("http://{}", model.address));
    let transcript = run(command, b"");
    if transcript.code == 77 || transcript.stderr.contains("unshare") {
        println!("skipped: no user namespace to take away here: {transcript:?}");
        return;
    }
    assert_eq!(transcript.code, 0, "{transcript:?}");
    let (document, session) = transcript.stdout.split_once('\n').unwrap();
    let document: Value = serde_json::from_str(document).unwrap();
    let check = document["checks"]
        .as_array()
        .unwrap()
        .iter()
        .find(|check| check["verdict"] == "fail")
        .unwrap();
    assert!(
        check["found"].as_str().unwrap().contains("user namespaces"),
        "{check}"
    );
    let fix = check["fix"].as_str().unwrap();
    assert!(
        fix.contains("user.max_user_namespaces") || fix.contains("apparmor"),
        "{fix}"
    );
    // The model reads why its sandbox tool did not run and finishes its turn.
    assert!(session.contains("namespace"), "{session}");
    assert!(session.contains("end_turn"), "{session}");
}
