//! What an attacker inside tries, and what must come of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use claviger_sandbox::Resources;
use serde_json::json;

use crate::CANARY;
use crate::tests;
use crate::world::World;

tests!("redteam":
    a_forged_status_stays_in_its_sandbox,
    a_shell_of_the_attacker_finds_nothing,
    every_probe_is_denied,
    pid_1_outlives_what_its_children_do,
    tools_follow_no_link_out,
);

async fn every_probe_is_denied(world: Arc<World>) {
    let held = world
        .sandbox_of(Resources {
            listeners: true,
            ..Resources::default()
        })
        .await;
    if held.bash("command -v python3").await.is_error {
        println!("    there is no python3 here: the shell's probes are all that runs");
        held.destroy().await;
        return;
    }
    let probe = json!({ "file_path": "/workspace/probe.py", "content": include_str!("probe.py") });
    assert!(!held.tool("write", probe).await.is_error);
    let report = held.text(&format!("python3 -B probe.py {CANARY}")).await;
    let (mut counts, mut open) = (BTreeMap::<String, usize>::new(), Vec::new());
    for line in report.lines() {
        let mut parts = line.split('\t');
        let (name, verdict) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        let area = name.split([':', ' ']).next().unwrap_or(name);
        *counts.entry(area.to_owned()).or_default() += 1;
        if verdict != "denied" {
            open.push(line.to_owned());
        }
    }
    println!("    probes by area: {counts:?}");
    assert!(
        counts.values().sum::<usize>() > 200,
        "the probe ran to its end: {report}"
    );
    assert!(
        report.contains("control: UDP over IPv6 exists"),
        "the probe ran to its end: {report}"
    );
    assert!(open.is_empty(), "open: {open:#?}");
    held.destroy().await;
}

async fn a_shell_of_the_attacker_finds_nothing(world: Arc<World>) {
    let held = world.sandbox().await;
    // Every byte the shell can read outside /usr, for the canary of this program's environment and arguments.
    let search = format!(
        "grep -rsl --exclude-dir=usr --exclude-dir=proc -e {CANARY} / ; \
         for f in /proc/[0-9]*/environ /proc/[0-9]*/cmdline; do [ $f = /proc/$$/cmdline ] || \
         tr '\\0' '\\n' 2>/dev/null < $f | grep -v 'grep' | grep -l -e {CANARY}; done; true"
    );
    assert_eq!(held.text(&search).await, "");
    for (command, why) in [
        ("cat /proc/1/environ", "unreadable"),
        ("cat /proc/1/maps", "unreadable"),
        ("ls /proc/1/fd/", "unreadable"),
        ("ls /proc/1/root/", "unreadable"),
        ("echo x > /proc/sys/kernel/core_pattern", "read-only"),
        ("echo x > /usr/bin/x", "read-only"),
        ("mkdir /x", "read-only"),
        ("kill -9 1", "out of reach"),
        ("unshare -U true", "no namespaces"),
        ("unshare -n true", "no namespaces"),
        ("unshare -m true", "no namespaces"),
        ("mount -t tmpfs x /tmp", "no mounts"),
        ("umount /proc/sys", "no mounts"),
        ("su -c id", "no setuid"),
        ("ulimit -c 1", "no core files"),
        ("exec 5<>/dev/tcp/169.254.169.254/80", "no route"),
        ("exec 5<>/dev/udp/8.8.8.8/53", "no route"),
        ("ls /sys /root /home /run 2>&1", "not there"),
    ] {
        let output = held.bash(&format!("({command}) 2>&1")).await;
        assert!(output.is_error, "{command} ({why}): {}", output.text());
    }
    // A program sees three descriptors and its directory listing's own.
    assert_eq!(held.text("ls /proc/self/fd | wc -l").await, "4\n");
    assert_eq!(
        held.text("cat /proc/cmdline /etc/resolv.conf; cut -d: -f1 /etc/passwd; cat /etc/hosts")
            .await,
        "sandbox\nnobody\n127.0.0.1 localhost sandbox\n"
    );
    held.destroy().await;
}

async fn a_forged_status_stays_in_its_sandbox(world: Arc<World>) {
    let held = world.sandbox().await;
    // A program may dig the shell's status pipe out of /proc and forge the end of any command of this shell; a new
    // shell has new pipes, and pid 1 is not impressed.
    held.text("forge() { for fd in /proc/$$/fd/1[0-9]; do sh -c \"printf '$1' > $fd\" 2>/dev/null; done; }").await;
    for number in 0..100 {
        // Statuses for every call to come, and then an honest command.
        held.bash(&format!("forge '\\\\000{} 42\\\\000' & true", number + 5))
            .await;
    }
    held.tool("bash", json!({ "restart": true })).await;
    assert_eq!(held.text("echo honest").await, "honest\n");
    held.bash("for fd in /proc/$$/fd/1[0-9]; do printf garbage > $fd; done 2>/dev/null")
        .await;
    for _ in 0..5 {
        // Whatever was left in the pipes, the next commands settle.
        held.bash("echo settle").await;
    }
    held.bash("for i in $(seq 1000); do printf 'garbage' > /proc/$$/fd/8; done")
        .await;
    let output = held
        .tool(
            "bash",
            json!({ "command": "echo after", "timeout_ms": 2000 }),
        )
        .await;
    assert!(!output.text().is_empty());
    held.tool("bash", json!({ "restart": true })).await;
    assert_eq!(held.text("echo clean").await, "clean\n");
    held.destroy().await;
}

async fn pid_1_outlives_what_its_children_do(world: Arc<World>) {
    let held = world.sandbox().await;
    for command in [
        "kill -9 -1",
        "for i in $(seq 500); do (sleep 0.01 &) ; done; true",
        "kill -STOP $PPID; kill -TERM $PPID; kill -SEGV $PPID; true",
        "head -c 300000 /dev/urandom",
        "exec 0<&- 1>&- 2>&-; true",
        "rm -rf /workspace/* /tmp/* /dev/shm/* 2>/dev/null; cd /; rmdir /workspace 2>/dev/null; true",
        "chmod 000 /workspace /tmp; true",
    ] {
        // What the command answers is its own affair.
        held.tool("bash", json!({ "command": command, "timeout_ms": 5000 }))
            .await;
        held.tool("bash", json!({ "restart": true })).await;
        assert_eq!(held.text("echo alive").await, "alive\n", "after {command}");
    }
    held.destroy().await;
}

async fn tools_follow_no_link_out(world: Arc<World>) {
    let held = world.sandbox().await;
    held.text("ln -s /etc/shadow s; ln -s /proc/1/environ e; ln -s /proc/1/root r; ln -s /etc w; mkdir -p a; ln -s /usr/bin a/b").await;
    for (name, input) in [
        ("read", json!({ "file_path": "s" })),
        ("read", json!({ "file_path": "e" })),
        ("read", json!({ "file_path": "/proc/1/mem" })),
        ("read", json!({ "file_path": "r/etc/hostname" })),
        ("read", json!({ "file_path": "../../../../root/.bashrc" })),
        ("write", json!({ "file_path": "w/passwd", "content": "x" })),
        ("write", json!({ "file_path": "a/b/evil", "content": "x" })),
        (
            "edit",
            json!({ "file_path": "/etc/passwd", "old_string": "sandbox", "new_string": "x", "replace_all": true }),
        ),
        ("glob", json!({ "pattern": "**", "path": "r" })),
        ("grep", json!({ "pattern": "root:", "path": "s" })),
        ("grep", json!({ "pattern": "x", "path": "r" })),
    ] {
        let output = held.tool(name, input.clone()).await;
        assert!(output.is_error, "{name} {input}: {}", output.text());
    }
    held.destroy().await;
}
