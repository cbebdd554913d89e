//! `claviger down`: asks a running `up` to end and waits for it.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::{Value, json};

use crate::error::{CliError, Exit};
use crate::home::Home;
use crate::output::Output;

pub(crate) async fn run(output: Output) -> Result<(), CliError> {
    let home = Home::from_environment()?;
    let not_running = || {
        CliError::new(
            Exit::Unreachable,
            "daemon_not_running",
            "no daemon runs in this home",
        )
    };
    let text = std::fs::read_to_string(home.up_file()).map_err(|_| not_running())?;
    let document: Value = serde_json::from_str(&text).map_err(|_| not_running())?;
    let pid = document
        .get("supervisor")
        .and_then(Value::as_i64)
        .and_then(|pid| i32::try_from(pid).ok())
        .and_then(Pid::from_raw)
        .ok_or_else(not_running)?;
    // The lock, not the file, says whether it runs: a stale pid could be anybody's.
    let lock = std::fs::File::open(home.lock_file()).map_err(|_| not_running())?;
    if rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockShared).is_ok() {
        drop(std::fs::remove_file(home.up_file()));
        return Err(not_running());
    }
    kill_process(pid, Signal::TERM)
        .map_err(|error| CliError::internal("stopping the daemon").because(error))?;
    for _ in 0..300 {
        if test_kill_process(pid).is_err()
            || rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockShared).is_ok()
        {
            output.result(
                &json!({"schema": "claviger.down/v1", "stopped": true}),
                "stopped",
            );
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(CliError::internal("the daemon did not end in 30 s")
        .fix("look into the home's log directory"))
}
