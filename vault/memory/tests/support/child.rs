//! Runs a test's own body again in a process of its own, for effects that cannot be taken back.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

const ROLE: &str = "CLAVIGER_TEST_ROLE";
const NOBODY: u32 = 65534;

/// The role this process was started for; none in the test itself.
pub(crate) fn role() -> Option<OsString> {
    std::env::var_os(ROLE)
}

/// A command that runs `test` of this binary in `role`.
pub(crate) fn command(test: &str, role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a test knows its binary"));
    command
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .current_dir("/")
        .stdin(Stdio::null());
    command
}

/// The same as an ordinary user: root may do too much to prove a refusal.
pub(crate) fn command_unprivileged(test: &str, role: &str) -> Command {
    let mut command = command(test, role);
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// Runs a command and shows its output if it does not end well.
pub(crate) fn assert_success(command: &mut Command) {
    let output = command.output().expect("the test binary runs");
    assert!(
        output.status.success(),
        "{}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
