//! The sandbox as its users and its attackers meet it, through the hands role.
//!
//! A program of its own instead of a test harness, because the zygote is forked before any thread exists. It runs every
//! test as the user who started it and, if that is root, again as an ordinary user and in a network namespace without a
//! route. `cargo test -p claviger-sandbox --test sandbox -- NAME` runs the tests whose name holds NAME.

#![expect(
    clippy::print_stdout,
    reason = "a test program reports on standard output"
)]

#[path = "sandbox/conformance.rs"]
mod conformance;
#[path = "sandbox/fencing.rs"]
mod fencing;
#[path = "sandbox/measure.rs"]
mod measure;
#[path = "sandbox/network.rs"]
mod network;
#[path = "sandbox/redteam.rs"]
mod redteam;
#[path = "sandbox/role.rs"]
mod role;
#[path = "sandbox/world.rs"]
mod world;

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use claviger_sandbox::hands::start_zygote;
use claviger_sandbox::{Resources, doctor};
use world::{Test, World};

/// Marks what must never be readable inside: planted in this program's environment, arguments and memory.
const CANARY: &str = "canary-4f1d-of-the-host";
/// An ordinary user for the second run.
const NOBODY: u32 = 65534;

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "--inner") {
        arguments.remove(0);
        return inner(&arguments);
    }
    if arguments.first().is_some_and(|first| first == "--victim") {
        return role::victim();
    }
    outer(&arguments)
}

fn outer(arguments: &[String]) -> ExitCode {
    if arguments.iter().any(|argument| argument == "--list") {
        for test in all() {
            println!("{}: test", test.name);
        }
        return ExitCode::SUCCESS;
    }
    let program = std::env::current_exe().expect("the path of this program");
    let filters: Vec<&String> = arguments
        .iter()
        .filter(|argument| !argument.starts_with("--"))
        .collect();
    let inner = |mut command: Command| {
        command
            .arg("--inner")
            .args(&filters)
            .arg(format!("--{CANARY}"))
            .env("CANARY", CANARY);
        command.status().is_ok_and(|status| status.success())
    };
    let mut is_good = true;
    println!("as the user who started the tests");
    is_good &= inner(Command::new(&program));
    let is_root = std::fs::metadata("/proc/self")
        .is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0);
    if is_root {
        println!("as an ordinary user");
        let mut command = Command::new(&program);
        command.uid(NOBODY).gid(NOBODY).current_dir("/");
        is_good &= inner(command);
        let unshare = |rest: &[&str]| {
            let mut command = Command::new("unshare");
            command.arg("--net").args(rest);
            command
        };
        if unshare(&["true"])
            .status()
            .is_ok_and(|status| status.success())
        {
            println!("in a network namespace without a route");
            is_good &= inner(unshare(&[program.to_str().expect("a path in UTF-8")]));
        }
    }
    if is_root {
        // Machines that deny a layer: the limit of user namespaces at zero, and a /proc that a container has masked.
        let without = |name: &str, how: &str, prepare: &str| {
            println!("{name}");
            let mut command = Command::new("unshare");
            command.args(how.split(' ')).args([
                "sh",
                "-c",
                &format!("{prepare} && exec \"$0\" \"$@\""),
            ]);
            command.arg(&program).arg("--inner").arg("--refusal");
            command.status().is_ok_and(|status| status.success())
        };
        let none = "echo 0 > /proc/sys/user/max_user_namespaces";
        is_good &= without("without user namespaces", "--user --map-root-user", none);
        let masked = "mount -t tmpfs none /proc/fs";
        is_good &= without(
            "with a masked /proc",
            "--mount --propagation private",
            masked,
        );
    }
    if is_good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn all() -> Vec<Test> {
    [
        conformance::tests(),
        fencing::tests(),
        network::tests(),
        redteam::tests(),
        role::tests(),
        measure::tests(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn inner(arguments: &[String]) -> ExitCode {
    let filters: Vec<&String> = arguments
        .iter()
        .filter(|argument| !argument.starts_with("--"))
        .collect();
    // On the heap before the fork, so that pid 1 of every sandbox has a copy of it.
    let in_memory = CANARY.chars().rev().collect::<String>().repeat(64);
    let probe = doctor::probe();
    let zygotes = (0..7)
        .map(|_| start_zygote().expect("a zygote before any thread"))
        .collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let world = Arc::new(runtime.block_on(World::start(zygotes)));
    let wants_refusal = arguments.iter().any(|argument| argument == "--refusal");
    if wants_refusal || !probe.is_ready() {
        return refused(&runtime, &world, &probe);
    }
    let (mut passed, mut failed) = (0, Vec::new());
    for test in all()
        .into_iter()
        .filter(|t| filters.is_empty() || filters.iter().any(|f| t.name.contains(f.as_str())))
    {
        let started = Instant::now();
        let task = runtime.spawn((test.run)(Arc::clone(&world)));
        let result =
            runtime.block_on(async { tokio::time::timeout(Duration::from_secs(90), task).await });
        let ms = started.elapsed().as_millis();
        if matches!(result, Ok(Ok(()))) {
            println!("test {} ... ok ({ms} ms)", test.name);
            passed += 1;
        } else {
            println!("test {} ... FAILED ({ms} ms): {result:?}", test.name);
            failed.push(test.name);
        }
    }
    println!("{passed} passed, {} failed: {failed:?}", failed.len());
    assert_eq!(
        in_memory.len(),
        CANARY.len() * 64,
        "the canary stays in memory to the end"
    );
    runtime.block_on(world.end());
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Where a layer is missing nothing can run; what can be tested is that nothing does.
fn refused(runtime: &tokio::runtime::Runtime, world: &World, probe: &doctor::Probe) -> ExitCode {
    println!("no sandbox can be made on this machine, so its tests cannot run:");
    for layer in probe.layers.iter().filter(|layer| !layer.works) {
        println!(
            "  {}: {}; {}",
            layer.name,
            layer.found,
            layer.fix.as_deref().unwrap_or_default()
        );
    }
    let made = runtime.block_on(
        world
            .client
            .provision("sesn_refused", 1, Resources::default()),
    );
    match made {
        Err(claviger_sandbox::HandsError::Unsupported { what, fix })
            if !what.is_empty() && !fix.is_empty() =>
        {
            println!("test provision_is_refused_with_cause_and_cure ... ok: {what}; {fix}");
            ExitCode::SUCCESS
        }
        other => {
            println!("test provision_is_refused_with_cause_and_cure ... FAILED: {other:?}");
            ExitCode::FAILURE
        }
    }
}
