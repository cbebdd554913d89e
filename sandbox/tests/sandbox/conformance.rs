//! Every tool, as a model uses it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use claviger_sandbox::{HandsError, Limits, Resources};
use serde_json::json;

use crate::tests;
use crate::world::{World, eventually};

tests!("conformance":
    bash_background_program_does_not_hold_its_command,
    bash_exit_status_is_an_error_with_the_output,
    bash_keeps_directory_variables_and_functions,
    bash_output_keeps_the_last_100_kib,
    bash_refuses_what_is_no_command,
    bash_restart_forgets_everything,
    bash_stands_up_again_after_exit,
    bash_survives_bad_syntax_and_stray_control_flow,
    bash_takes_commands_longer_than_a_pipe,
    bash_timeout_kills_the_group_and_says_so,
    destroy_ends_every_process,
    edit_must_match_exactly_once,
    environment_is_ours_and_the_given,
    file_calls_run_beside_a_command,
    file_call_that_never_ends_is_ended,
    glob_lists_newest_first_and_200,
    grep_finds_lines_and_is_bounded,
    interrupt_ends_what_runs,
    limits_hold,
    lost_in_the_middle_of_a_call,
    output_is_always_text,
    programs_of_the_host_run,
    read_is_bounded_and_takes_a_range,
    read_shows_images,
    sandboxes_share_nothing,
    write_creates_parents_and_counts,
    wrong_calls_are_errors_for_the_model,
);

async fn bash_keeps_directory_variables_and_functions(world: Arc<World>) {
    let held = world.sandbox().await;
    assert_eq!(held.text("pwd").await, "/workspace\n");
    held.text("mkdir deep && cd deep; export COLOUR=blue; local_one=1; greet() { echo \"hi $1\"; }; alias ll='echo aliased'").await;
    assert_eq!(
        held.text("pwd; echo $COLOUR $local_one; greet you; ll")
            .await,
        "/workspace/deep\nblue 1\nhi you\naliased\n"
    );
    assert_eq!(
        held.text("bash -c 'echo $COLOUR-$local_one'").await,
        "blue-\n"
    );
    held.destroy().await;
}

async fn bash_exit_status_is_an_error_with_the_output(world: Arc<World>) {
    let held = world.sandbox().await;
    let output = held.bash("echo out; echo err >&2; (exit 3)").await;
    assert!(output.is_error);
    assert_eq!(output.text(), "out\nerr\n[exit status 3]");
    let output = held.bash("definitely-no-such-program").await;
    assert!(
        output.is_error
            && output.text().contains("command not found")
            && output.text().contains("127")
    );
    assert_eq!(
        held.text("cat; echo \"stdin was empty\"").await,
        "stdin was empty\n"
    );
    held.destroy().await;
}

async fn bash_output_keeps_the_last_100_kib(world: Arc<World>) {
    let held = world.sandbox().await;
    let text = held
        .text("head -c 1000000 /dev/zero | tr '\\0' x; echo; echo the-end")
        .await;
    assert!(
        text.starts_with('[') && text.contains("bytes of earlier output dropped"),
        "{}",
        text.len()
    );
    assert!(text.ends_with("the-end\n"));
    assert!(
        (100 << 10..(100 << 10) + 100).contains(&text.len()),
        "{}",
        text.len()
    );
    // Ten gigabytes end by the clock, not by memory.
    let call = json!({ "command": "yes", "timeout_ms": 300 });
    let output = held.tool("bash", call).await;
    assert!(output.is_error && output.text().contains("timed out after 300 ms"));
    held.destroy().await;
}

async fn bash_timeout_kills_the_group_and_says_so(world: Arc<World>) {
    let held = world.sandbox().await;
    held.text("mkdir /tmp/here; cd /tmp/here; export KEPT=no")
        .await;
    let started = Instant::now();
    let output = held
        .tool(
            "bash",
            json!({ "command": "echo begun; sleep 1000 & sleep 1000", "timeout_ms": 400 }),
        )
        .await;
    assert!(started.elapsed() < Duration::from_secs(10));
    assert!(output.is_error);
    assert!(
        output.text().starts_with("begun\n") && output.text().contains("timed out after 400 ms"),
        "{}",
        output.text()
    );
    let text = held
        .text("pwd; echo \"[$KEPT]\"; pgrep sleep || echo nobody sleeps")
        .await;
    assert_eq!(
        text, "/tmp/here\n[]\nnobody sleeps\n",
        "the directory is kept, the rest is new"
    );
    held.destroy().await;
}

async fn bash_restart_forgets_everything(world: Arc<World>) {
    let held = world.sandbox().await;
    held.text("cd /tmp; X=1").await;
    assert_eq!(
        held.tool("bash", json!({ "restart": true })).await.text(),
        "the shell was restarted"
    );
    assert_eq!(held.text("pwd; echo \"[$X]\"").await, "/workspace\n[]\n");
    let output = held
        .tool("bash", json!({ "restart": true, "command": "echo anew" }))
        .await;
    assert_eq!(output.text(), "anew\n");
    held.destroy().await;
}

async fn bash_stands_up_again_after_exit(world: Arc<World>) {
    let held = world.sandbox().await;
    let output = held.bash("X=1; echo bye; exit 7").await;
    assert!(
        output.is_error
            && output.text().starts_with("bye\n")
            && output.text().contains("exit status 7"),
        "{output:?}"
    );
    assert_eq!(held.text("echo \"[$X]\"").await, "[]\n");
    let output = held.bash("exec echo replaced").await;
    assert!(
        !output.is_error && output.text().starts_with("replaced\n"),
        "{output:?}"
    );
    let output = held.bash("kill -9 $$").await;
    assert!(
        output.is_error && output.text().contains("signal 9"),
        "{output:?}"
    );
    let output = held.bash("set -e; false; echo never").await;
    assert!(
        output.is_error && !output.text().contains("never"),
        "{output:?}"
    );
    assert_eq!(held.text("echo again").await, "again\n");
    held.destroy().await;
}

async fn bash_survives_bad_syntax_and_stray_control_flow(world: Arc<World>) {
    let held = world.sandbox().await;
    held.text("X=kept").await;
    for command in [
        "if",
        "echo 'open",
        "echo \"open",
        "cat <<EOF\nno end",
        "break",
        "continue",
        "return 1",
        ")",
        "'",
        "\\",
    ] {
        // Whether it is an error is the shell's affair; that it answers and lives on is ours.
        held.bash(command).await;
        assert_eq!(held.text("echo $X").await, "kept\n", "after {command:?}");
    }
    assert_eq!(
        held.text("cat <<'EOF'\nit's \"quoted\" $X `y`\nEOF").await,
        "it's \"quoted\" $X `y`\n"
    );
    assert_eq!(
        held.text("exec > /tmp/log; echo hidden").await,
        "",
        "a redirection ends with its command"
    );
    assert_eq!(held.text("echo shown").await, "shown\n");
    assert_eq!(
        held.text("printf 'a\\nb' | while read -r l; do echo \"<$l>\"; done; true")
            .await,
        "<a>\n"
    );
    held.destroy().await;
}

async fn bash_takes_commands_longer_than_a_pipe(world: Arc<World>) {
    let held = world.sandbox().await;
    let word = "w".repeat(300_000);
    assert_eq!(
        held.text(&format!("x='{word}'; echo ${{#x}}")).await,
        "300000\n"
    );
    held.destroy().await;
}

async fn bash_refuses_what_is_no_command(world: Arc<World>) {
    let held = world.sandbox().await;
    for input in [
        json!({}),
        json!({ "command": 1 }),
        json!({ "command": "a\u{0}b" }),
        json!("ls"),
        json!(null),
    ] {
        assert!(held.tool("bash", input.clone()).await.is_error, "{input}");
    }
    held.destroy().await;
}

async fn bash_background_program_does_not_hold_its_command(world: Arc<World>) {
    let held = world.sandbox().await;
    let started = Instant::now();
    held.text("(sleep 0.3; echo late) & echo early").await;
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(
        held.text("wait; echo done")
            .await
            .lines()
            .collect::<Vec<_>>(),
        ["late", "done"]
    );
    // A server that writes much between commands is not blocked by a full pipe.
    held.text("(head -c 3000000 /dev/zero | tr '\\0' y; touch /tmp/through) & true")
        .await;
    held.text("for i in $(seq 200); do [ -e /tmp/through ] && break; read -t 0.05 <> <(:); done; [ -e /tmp/through ]").await;
    held.destroy().await;
}

async fn output_is_always_text(world: Arc<World>) {
    let held = world.sandbox().await;
    let text = held.text("printf 'a\\0b\\377\\033[31mred'").await;
    assert_eq!(text, "a\u{fffd}b\u{fffd}\u{1b}[31mred");
    held.destroy().await;
}

async fn environment_is_ours_and_the_given(world: Arc<World>) {
    let environment = [("GITHUB_TOKEN".to_owned(), "placeholder 'x'\n2".to_owned())].into();
    let held = world
        .sandbox_of(Resources {
            environment,
            listeners: true,
            ..Resources::default()
        })
        .await;
    assert_eq!(
        held.text("printf %s \"$GITHUB_TOKEN\"").await,
        "placeholder 'x'\n2"
    );
    let names = held
        .text("env -u GITHUB_TOKEN | cut -d= -f1 | sort | tr '\\n' ' '")
        .await;
    assert_eq!(
        names,
        "CLAVIGER_MCP_URL HOME HTTPS_PROXY HTTP_PROXY LANG NO_PROXY PATH PWD SHLVL USER _ http_proxy https_proxy no_proxy "
    );
    let values = held
        .text("echo $CLAVIGER_MCP_URL $HTTPS_PROXY $HOME; id -un; hostname")
        .await;
    assert_eq!(
        values,
        "http://127.0.0.1:7000/mcp http://127.0.0.1:7001 /workspace\nsandbox\nsandbox\n"
    );
    held.destroy().await;
    let bad = Resources {
        environment: [("A=B".to_owned(), String::new())].into(),
        ..Resources::default()
    };
    assert!(matches!(
        world.client.provision("sesn_env", 1, bad).await,
        Err(HandsError::Refused { .. })
    ));
}

async fn write_creates_parents_and_counts(world: Arc<World>) {
    let held = world.sandbox().await;
    let output = held
        .tool(
            "write",
            json!({ "file_path": "a/b/c.txt", "content": "grüße\n" }),
        )
        .await;
    assert_eq!(
        (output.text().as_str(), output.is_error),
        ("wrote 8 bytes to a/b/c.txt", false)
    );
    assert_eq!(held.text("cat /workspace/a/b/c.txt").await, "grüße\n");
    let output = held
        .tool(
            "write",
            json!({ "file_path": "/etc/passwd", "content": "x" }),
        )
        .await;
    assert!(output.is_error, "{output:?}");
    let output = held
        .tool(
            "write",
            json!({ "file_path": "/usr/bin/evil", "content": "x" }),
        )
        .await;
    assert!(output.is_error, "{output:?}");
    held.destroy().await;
}

async fn read_is_bounded_and_takes_a_range(world: Arc<World>) {
    let held = world.sandbox().await;
    held.text(
        "seq 1 100000 > numbers; mkdir dir; mkfifo pipe; printf 'no newline' > short; : > empty",
    )
    .await;
    let read = async |input| held.tool("read", input).await;
    assert_eq!(
        read(json!({ "file_path": "numbers", "view_range": [3, 5] }))
            .await
            .text(),
        "3\n4\n5\n"
    );
    let to_end =
        read(json!({ "file_path": "/workspace/numbers", "view_range": [99999, -1] })).await;
    assert_eq!(to_end.text(), "99999\n100000\n");
    let whole = read(json!({ "file_path": "numbers" })).await.text();
    assert!(
        whole.len() < (256 << 10) + 200 && whole.contains("only 262144 bytes are shown"),
        "{}",
        whole.len()
    );
    assert_eq!(
        read(json!({ "file_path": "short" })).await.text(),
        "no newline"
    );
    assert_eq!(read(json!({ "file_path": "empty" })).await.text(), "");
    for (path, why) in [
        ("dir", "is a directory"),
        ("pipe", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        ("gone", "No such file"),
    ] {
        let output = read(json!({ "file_path": path })).await;
        assert!(
            output.is_error && output.text().contains(why),
            "{path}: {}",
            output.text()
        );
    }
    held.destroy().await;
}

async fn read_shows_images(world: Arc<World>) {
    let held = world.sandbox().await;
    held.text("printf '\\x89PNG' > a.png; head -c 6000000 /dev/zero > big.jpg")
        .await;
    let output = held.tool("read", json!({ "file_path": "a.png" })).await;
    let source = json!({ "type": "base64", "media_type": "image/png", "data": "iVBORw==" });
    assert_eq!(
        output.content,
        [json!({ "type": "image", "source": source })]
    );
    assert!(
        held.tool("read", json!({ "file_path": "big.jpg" }))
            .await
            .is_error
    );
    held.text("head -c 3900000 /dev/urandom > fits.jpg").await;
    let output = held.tool("read", json!({ "file_path": "fits.jpg" })).await;
    assert!(
        !output.is_error
            && output.content[0]["source"]["data"]
                .as_str()
                .map_or(0, str::len)
                == 5_200_000
    );
    held.destroy().await;
}

async fn edit_must_match_exactly_once(world: Arc<World>) {
    let held = world.sandbox().await;
    held.text("printf 'one two two' > f").await;
    let edit = async |old: &str, new: &str, all: bool| {
        held.tool(
            "edit",
            json!({ "file_path": "f", "old_string": old, "new_string": new, "replace_all": all }),
        )
        .await
    };
    assert!(edit("three", "x", false).await.text().contains("not found"));
    let twice = edit("two", "x", false).await;
    assert!(
        twice.is_error && twice.text().contains("found 2 times"),
        "{}",
        twice.text()
    );
    assert!(edit("", "x", false).await.is_error);
    assert_eq!(
        held.text("cat f").await,
        "one two two",
        "a refused edit changes nothing"
    );
    assert!(!edit("one", "1", false).await.is_error);
    assert!(!edit("two", "2", true).await.is_error);
    assert_eq!(held.text("cat f").await, "1 2 2");
    held.destroy().await;
}

async fn glob_lists_newest_first_and_200(world: Arc<World>) {
    let held = world.sandbox().await;
    held.text("mkdir -p src/deep many; touch -d 2020-01-01 src/old.rs; touch -d 2021-01-01 src/deep/new.rs; touch src/x.txt").await;
    let glob = async |input| held.tool("glob", input).await.text();
    assert_eq!(
        glob(json!({ "pattern": "**/*.rs" })).await,
        "/workspace/src/deep/new.rs\n/workspace/src/old.rs"
    );
    assert_eq!(
        glob(json!({ "pattern": "*.rs", "path": "src" })).await,
        "/workspace/src/old.rs",
        "a star stays in its directory"
    );
    assert_eq!(
        glob(json!({ "pattern": "/workspace/src/*.{txt,md}" })).await,
        "/workspace/src/x.txt"
    );
    assert_eq!(
        glob(json!({ "pattern": "*.none" })).await,
        "no file matches"
    );
    held.text("touch many/{1..250}").await;
    let many = glob(json!({ "pattern": "many/*" })).await;
    assert_eq!(many.lines().count(), 201);
    assert!(many.ends_with("[the 200 newest of 250 files]"));
    assert!(held.tool("glob", json!({ "pattern": "[" })).await.is_error);
    held.text("ln -s / root; ln -s . loop").await;
    assert_eq!(
        glob(json!({ "pattern": "**/passwd" })).await,
        "no file matches",
        "links are not followed"
    );
    held.destroy().await;
}

async fn grep_finds_lines_and_is_bounded(world: Arc<World>) {
    let held = world.sandbox().await;
    held.text("mkdir d; printf 'alpha\\nbeta 42\\n' > d/a; printf 'beta 7\\r\\n' > b; printf 'beta\\0' > binary").await;
    let grep = async |input| held.tool("grep", input).await;
    let found = grep(json!({ "pattern": r"beta \d+" })).await.text();
    assert_eq!(found, "/workspace/b:1:beta 7\n/workspace/d/a:2:beta 42\n");
    assert_eq!(
        grep(json!({ "pattern": "alpha", "path": "d/a" }))
            .await
            .text(),
        "/workspace/d/a:1:alpha\n"
    );
    assert_eq!(
        grep(json!({ "pattern": "nowhere" })).await.text(),
        "no line matches"
    );
    assert!(grep(json!({ "pattern": "(" })).await.is_error);
    held.text("head -c 5000 /dev/zero | tr '\\0' z > long; yes zzz | head -50000 > lines")
        .await;
    let long = grep(json!({ "pattern": "z", "path": "long" })).await.text();
    assert!(
        long.len() < 2100 && long.ends_with("...\n"),
        "{}",
        long.len()
    );
    let lines = grep(json!({ "pattern": "z", "path": "lines" }))
        .await
        .text();
    assert!(
        lines.len() < (100 << 10) + 100 && lines.ends_with("bytes are shown]"),
        "{}",
        lines.len()
    );
    held.destroy().await;
}

async fn wrong_calls_are_errors_for_the_model(world: Arc<World>) {
    let held = world.sandbox().await;
    for (name, input) in [
        ("read", json!({})),
        ("edit", json!({ "file_path": "x" })),
        ("write", json!({ "file_path": 7, "content": "" })),
        ("fly", json!({})),
        ("", json!({})),
    ] {
        let output = held.tool(name, input).await;
        assert!(output.is_error && !output.text().is_empty(), "{name}");
    }
    assert_eq!(held.text("echo fine").await, "fine\n");
    held.destroy().await;
}

async fn file_calls_run_beside_a_command(world: Arc<World>) {
    let held = world.sandbox().await;
    held.text("mkfifo gate").await;
    let command = tokio::spawn({
        let held = held.clone();
        async move { held.text("cat gate").await }
    });
    // The command waits for this write, which therefore cannot wait for the command.
    let output = held
        .tool("write", json!({ "file_path": "gate", "content": "opened" }))
        .await;
    assert!(!output.is_error, "{output:?}");
    assert_eq!(command.await.expect("an answer"), "opened");
    held.destroy().await;
}

async fn file_call_that_never_ends_is_ended(world: Arc<World>) {
    let held = world.sandbox().await;
    held.text("mkfifo nobody-reads").await;
    let mut call = held.call(
        "write",
        json!({ "file_path": "nobody-reads", "content": "x" }),
    );
    call.timeout_ms = 300;
    let output = held.client.execute(call).await.expect("an answer");
    assert!(
        output.is_error && output.text().contains("timed out after 300 ms"),
        "{output:?}"
    );
    held.destroy().await;
}

async fn interrupt_ends_what_runs(world: Arc<World>) {
    let held = world.sandbox().await;
    let running = tokio::spawn({
        let held = held.clone();
        async move { held.bash("echo begun; touch /tmp/begun; sleep 1000").await }
    });
    let queued = held.call("bash", json!({ "command": "echo queued" }));
    let started = held.tool("bash", json!({ "restart": false, "command": "true" }));
    // Only order matters: wait until the sleeper runs, seen through a file call.
    drop(started);
    for _ in 0..500 {
        if !held
            .tool("read", json!({ "file_path": "/tmp/begun" }))
            .await
            .is_error
        {
            break;
        }
    }
    let queued = tokio::spawn({
        let held = held.clone();
        async move { held.client.execute(queued).await.expect("an answer") }
    });
    while held
        .client
        .list()
        .await
        .expect("a list")
        .iter()
        .any(|row| row.sandbox == held.id && row.running < 2)
    {
        tokio::task::yield_now().await;
    }
    held.client
        .interrupt(&held.session, 1, &held.id)
        .await
        .expect("interrupted");
    let output = running.await.expect("an answer");
    assert!(
        output.is_error && output.text().starts_with("begun\n[interrupted"),
        "{output:?}"
    );
    assert!(
        queued
            .await
            .expect("an answer")
            .text()
            .contains("interrupted before it ran")
    );
    assert_eq!(held.text("echo alive").await, "alive\n");
    held.destroy().await;
}

async fn destroy_ends_every_process(world: Arc<World>) {
    let held = world.sandbox().await;
    held.text("setsid sleep 1000 & nohup sleep 1000 >/dev/null 2>&1 & disown -a")
        .await;
    let pid = held.pid().await;
    let children = || {
        let all = std::fs::read_dir("/proc")
            .expect("a proc")
            .filter_map(Result::ok);
        all.filter(|entry| {
            let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
            status.lines().any(|line| line == format!("PPid:\t{pid}"))
                || entry.file_name().to_str() == Some(&pid.to_string())
        })
        .count()
    };
    assert!(children() >= 2, "pid 1 and its shell");
    held.destroy().await;
    assert_eq!(children(), 0, "nothing is left when destroy returns");
    held.destroy().await;
    let call = held.call("bash", json!({ "command": "true" }));
    assert_eq!(held.client.execute(call).await, Err(HandsError::NotFound));
}

async fn lost_in_the_middle_of_a_call(world: Arc<World>) {
    let held = world.sandbox().await;
    let call = held.call("bash", json!({ "command": "sleep 1000" }));
    let running = tokio::spawn({
        let (held, call) = (held.clone(), call.clone());
        async move { held.client.execute(call).await }
    });
    while held
        .client
        .list()
        .await
        .expect("a list")
        .iter()
        .any(|row| row.sandbox == held.id && row.running == 0)
    {
        tokio::task::yield_now().await;
    }
    let pid = held.pid().await.to_string();
    let killed = std::process::Command::new("kill")
        .args(["-9", &pid])
        .status()
        .expect("kill runs");
    assert!(killed.success());
    let lost = Err(HandsError::Lost {
        sandbox: held.id.clone(),
    });
    assert_eq!(running.await.expect("an answer"), lost);
    assert_eq!(
        held.client.execute(call).await,
        lost,
        "the ledger says the same"
    );
    eventually("its pid 1 is gone", || {
        !std::path::Path::new(&format!("/proc/{pid}")).exists()
    })
    .await;
    let mut later = held
        .client
        .execute(held.call("bash", json!({ "command": "true" })))
        .await;
    while later.is_ok() {
        later = held
            .client
            .execute(held.call("bash", json!({ "command": "true" })))
            .await;
    }
    assert_eq!(later, lost, "lost, not unknown");
    assert_eq!(held.client.attach(&held.session, 1).await, Ok(vec![]));
}

async fn limits_hold(world: Arc<World>) {
    let limits = Limits {
        disk_bytes: 8 << 20,
        files: 200,
        memory_bytes: 64 << 20,
        open_files: 64,
        processes: 24,
    };
    let held = world
        .sandbox_of(Resources {
            limits,
            ..Resources::default()
        })
        .await;
    for command in [
        "head -c 9000000 /dev/zero > big",
        "head -c 5000000 /dev/zero > a && head -c 5000000 /dev/zero > /tmp/b",
        "truncate -s 1G sparse",
        "rm -f big a /tmp/b; for i in $(seq 300); do : > f$i || exit 1; done",
        "ulimit -n 5000 || (exit 1)",
        "ulimit -c unlimited || (exit 1)",
    ] {
        assert!(held.bash(command).await.is_error, "{command}");
    }
    held.bash("rm -f f*").await;
    let memory = held
        .bash("head -c 200000000 /dev/zero | sort | wc -c; exit ${PIPESTATUS[1]}")
        .await;
    assert!(memory.is_error, "{memory:?}");
    // A fork bomb ends with the call, and the sandbox serves on.
    let bomb = json!({ "command": ":() { : | : & }; :; sleep 20", "timeout_ms": 1500 });
    assert!(held.tool("bash", bomb).await.is_error);
    let mut alive = false;
    for _ in 0..100 {
        held.client
            .interrupt(&held.session, 1, &held.id)
            .await
            .expect("interrupted");
        let output = held
            .tool(
                "bash",
                json!({ "command": "echo alive", "timeout_ms": 2000 }),
            )
            .await;
        alive = output.text() == "alive\n";
        if alive {
            break;
        }
    }
    assert!(alive, "the shell comes back");
    held.destroy().await;
}

async fn programs_of_the_host_run(world: Arc<World>) {
    let held = world.sandbox().await;
    assert_eq!(
        held.text("echo 'b a' | tr ' ' '\\n' | sort | awk '{print $1}'")
            .await,
        "a\nb\n"
    );
    if held
        .bash("command -v python3")
        .await
        .text()
        .starts_with('/')
    {
        let threads = "import threading,subprocess\nt=threading.Thread(target=lambda:print('thread'));t.start();t.join()\nprint(subprocess.run(['echo','child'],capture_output=True,text=True).stdout)";
        let output = held
            .tool("write", json!({ "file_path": "t.py", "content": threads }))
            .await;
        assert!(!output.is_error);
        assert_eq!(held.text("python3 t.py").await, "thread\nchild\n\n");
    }
    if held.bash("command -v git").await.text().starts_with('/') {
        held.text("git init -q repo && cd repo && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m x && git log --oneline").await;
    }
    assert_eq!(held.text("printf '#!/bin/sh\\necho ran' > s.sh; chmod +x s.sh; ./s.sh 2>/dev/null || /workspace/s.sh").await, "ran\n");
    held.destroy().await;
}

async fn sandboxes_share_nothing(world: Arc<World>) {
    let (one, two) = (world.sandbox().await, world.sandbox().await);
    one.text("echo mine > f; echo mine > /tmp/f; echo mine > /dev/shm/f; sleep 1000 & true")
        .await;
    assert_eq!(
        two.text("ls -A /workspace /tmp /dev/shm | grep f; pgrep sleep; true")
            .await,
        ""
    );
    let foreign = claviger_sandbox::Execute {
        session: two.session.clone(),
        ..one.call("bash", json!({ "command": "true" }))
    };
    assert_eq!(
        two.client.execute(foreign).await,
        Err(HandsError::NotFound),
        "a sandbox belongs to one session"
    );
    one.destroy().await;
    assert_eq!(two.text("echo fine").await, "fine\n");
    two.destroy().await;
}
