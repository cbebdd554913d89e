//! The life and death of the hands themselves.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use claviger_sandbox::hands::{Options, start_zygote};
use claviger_sandbox::{Execute, HandsError, Resources, SandboxId};
use serde_json::json;

use crate::tests;
use crate::world::{Role, World, eventually};

tests!("role":
    a_killed_hands_process_takes_its_sandboxes_along,
    a_sandbox_without_use_is_ended_and_one_at_work_is_not,
    a_stopped_role_ends_its_sandboxes,
    a_zygote_after_the_first_thread_is_refused,
    without_its_zygote_the_role_ends_with_an_error,
);

fn is_alive(pid: u32) -> bool {
    // A zombie that nobody has reaped yet is dead.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// The program that a test kills: a role with one sandbox, whose pids it prints.
pub(crate) fn victim() -> ExitCode {
    let zygote = start_zygote().expect("a zygote");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let role = Role::start(zygote);
        let (client, _links) = role.client().await;
        client
            .provision("sesn_victim", 1, Resources::default())
            .await
            .expect("a sandbox");
        let row = client.list().await.expect("a list").remove(0);
        println!("{}", row.pid);
        std::future::pending::<()>().await;
    });
    ExitCode::SUCCESS
}

async fn a_killed_hands_process_takes_its_sandboxes_along(_world: Arc<World>) {
    let program = std::env::current_exe().expect("the path of this program");
    let mut victim = Command::new(program)
        .arg("--victim")
        .stdout(Stdio::piped())
        .spawn()
        .expect("a victim");
    let mut line = String::new();
    BufReader::new(victim.stdout.take().expect("a pipe"))
        .read_line(&mut line)
        .expect("a line");
    let pid: u32 = line.trim().parse().expect("a pid");
    assert!(is_alive(pid));
    victim.kill().expect("killed");
    victim.wait().expect("reaped");
    eventually("the sandbox of the killed role is gone", || !is_alive(pid)).await;
}

async fn a_sandbox_without_use_is_ended_and_one_at_work_is_not(world: Arc<World>) {
    let mut options = Options::default();
    options.max_idle = Duration::from_millis(500);
    let role = Role::start_with(options, world.zygote());
    let (client, _links) = role.client().await;
    let make = |session: &'static str| client.provision(session, 1, Resources::default());
    let idle = make("sesn_idle").await.expect("a sandbox");
    let busy = make("sesn_busy").await.expect("a sandbox");
    let bash = |session: &str, sandbox: &SandboxId, key: &str, command: &str| {
        client.execute(Execute {
            session: session.to_owned(),
            epoch: 1,
            sandbox: sandbox.clone(),
            key: key.to_owned(),
            name: "bash".to_owned(),
            input: json!({ "command": command }),
            timeout_ms: 30_000,
        })
    };
    let work = bash("sesn_busy", &busy, "a", "sleep 2; echo done").await;
    assert_eq!(work.expect("an answer").text(), "done\n");
    let again = bash("sesn_busy", &busy, "b", "echo still").await;
    assert_eq!(again.expect("an answer").text(), "still\n");
    let late = bash("sesn_idle", &idle, "a", "echo late").await;
    assert_eq!(late, Err(HandsError::Lost { sandbox: idle }));
    role.stop.cancel();
}

async fn a_stopped_role_ends_its_sandboxes(world: Arc<World>) {
    let role = Role::start(world.zygote());
    let (client, _links) = role.client().await;
    client
        .provision("sesn_stop", 1, Resources::default())
        .await
        .expect("a sandbox");
    let pid = client.list().await.expect("a list")[0].pid;
    assert!(is_alive(pid));
    role.stop.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(10), role.task)
        .await
        .expect("in time");
    assert_eq!(ended.expect("no panic"), Ok(()));
    assert!(!is_alive(pid), "it is gone when the role returns");
}

async fn without_its_zygote_the_role_ends_with_an_error(world: Arc<World>) {
    let zygote = world.zygote();
    // Its debug text names the process; there is no other way to get at it, nor should there be.
    let text = format!("{zygote:?}");
    let digits: String = text
        .split("Pid(")
        .nth(1)
        .unwrap_or("")
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    let role = Role::start(zygote);
    let (client, _links) = role.client().await;
    client
        .provision("sesn_zygote", 1, Resources::default())
        .await
        .expect("a sandbox");
    let pid = client.list().await.expect("a list")[0].pid;
    assert!(
        Command::new("kill")
            .args(["-9", &digits])
            .status()
            .expect("kill runs")
            .success()
    );
    let ended = tokio::time::timeout(Duration::from_secs(10), role.task)
        .await
        .expect("in time");
    assert!(matches!(
        ended.expect("no panic"),
        Err(HandsError::Internal { .. })
    ));
    eventually("its sandboxes died with it", || !is_alive(pid)).await;
}

async fn a_zygote_after_the_first_thread_is_refused(_world: Arc<World>) {
    assert!(matches!(start_zygote(), Err(HandsError::Refused { .. })));
}
