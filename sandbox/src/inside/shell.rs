//! The one shell of a sandbox, which keeps its directory, variables and functions between commands.
//!
//! It reads a script from a pipe. Each command is one quoted word for `eval`, so that a syntax error, a `break` or an
//! unclosed quote stays inside it; a status on a second pipe says that it is over, so that a program left in the
//! background may keep the output open.

use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, WaitStatus};
use serde::Deserialize;
use serde_json::Value;

use super::tail::Tail;
use super::tool::Answer;
use crate::namespaces::nest;
use crate::sys::{self, Forked};

/// How much of the end of an output is kept.
const MAX_OUTPUT_BYTES: usize = 100 << 10;

const BASH: &CStr = c"/bin/bash";

/// The input of `bash`.
#[derive(Debug, Deserialize)]
pub(super) struct Input {
    pub(super) command: Option<String>,
    #[serde(default)]
    pub(super) restart: bool,
    pub(super) timeout_ms: Option<u64>,
}

impl Input {
    pub(super) fn parse(value: &Value) -> Result<Self, Answer> {
        let input = Self::deserialize(value)
            .map_err(|e| Answer::error(format!("the input of bash is wrong: {e}")))?;
        if input
            .command
            .as_ref()
            .is_some_and(|command| command.contains('\0'))
        {
            return Err(Answer::error("a command cannot hold a NUL character"));
        }
        Ok(input)
    }
}

/// Why a shell ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum ShellEnd {
    Exited,
    Interrupted,
    TimedOut,
}

#[derive(Debug)]
struct Running {
    id: u64,
    started: Instant,
    timeout: Duration,
}

#[derive(Debug)]
pub(super) struct Shell {
    pub(super) pid: Pid,
    pub(super) output: Option<OwnedFd>,
    pub(super) status: Option<OwnedFd>,
    pub(super) ended: Option<WaitStatus>,
    script: OwnedFd,
    unsent: VecDeque<u8>,
    said: Vec<u8>,
    tail: Tail,
    running: Option<Running>,
}

impl Shell {
    pub(super) fn start(environment: &[CString], directory: Option<&Path>) -> io::Result<Self> {
        let (script_end, script) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (output, output_end) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (status, status_end) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        for ours in [&script, &output, &status] {
            rustix::io::ioctl_fionbio(ours, true)?;
        }
        match sys::fork()? {
            Forked::Child => {
                let ends = [script_end.as_fd(), output_end.as_fd(), status_end.as_fd()];
                // Returns only if the program could not be started; the parent sees the end of the pipes.
                become_shell(ends, environment, directory).ok();
                sys::exit_now(127)
            }
            Forked::Parent(pid) => Ok(Self {
                pid,
                output: Some(output),
                status: Some(status),
                ended: None,
                script,
                unsent: VecDeque::new(),
                said: Vec::new(),
                tail: Tail::new(MAX_OUTPUT_BYTES),
                running: None,
            }),
        }
    }

    pub(super) fn run(&mut self, id: u64, command: &str, timeout: Duration) {
        self.running = Some(Running {
            id,
            started: Instant::now(),
            timeout,
        });
        self.unsent.extend(line(id, command).as_bytes());
        self.write_script();
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.running
            .as_ref()
            .map(|running| running.started + running.timeout)
    }

    /// The script's pipe, if there is something to write to it.
    pub(super) fn script_with_work(&self) -> Option<BorrowedFd<'_>> {
        (!self.unsent.is_empty()).then(|| self.script.as_fd())
    }

    pub(super) fn write_script(&mut self) {
        while !self.unsent.is_empty() {
            let (first, _) = self.unsent.as_slices();
            match rustix::io::write(&self.script, first) {
                Ok(written) => drop(self.unsent.drain(..written)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                // The shell has ended; pid 1 hears of that by its signal.
                Err(_) => self.unsent.clear(),
            }
        }
    }

    pub(super) fn read_output(&mut self) {
        let mut chunk = [0; 64 * 1024];
        // At most a megabyte at a time: a program that never stops writing must not keep pid 1 from its deadline.
        for _ in 0..16 {
            let Some(output) = &self.output else { return };
            match rustix::io::read(output, &mut chunk) {
                Ok(0) => self.output = None,
                Ok(count) => self.tail.push(chunk.get(..count).unwrap_or_default()),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                Err(_) => self.output = None,
            }
        }
    }

    pub(super) fn read_status(&mut self) {
        let mut chunk = [0; 64];
        let Some(status) = &self.status else { return };
        match rustix::io::read(status, &mut chunk) {
            // The shell was replaced by `exec` or has ended; its own end decides.
            Ok(0) => self.status = None,
            Ok(count) => self.said.extend(chunk.iter().take(count)),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(_) => self.status = None,
        }
    }

    /// The answer of the running command, if it has finished.
    pub(super) fn finished(&mut self) -> Option<(u64, Answer, Duration)> {
        let id = self.running.as_ref()?.id;
        let code = take_status(&mut self.said, id)?;
        let running = self.running.take()?;
        // What the command wrote is in the pipe by now; what others write later belongs to the next command.
        self.read_output();
        let text = self.tail.take_text();
        let answer = if code == 0 {
            Answer::text(text)
        } else {
            Answer::error(with_note(text, &exit_note(code)))
        };
        Some((running.id, answer, running.started.elapsed()))
    }

    /// Where it stands, if that can be told.
    pub(super) fn directory(&self) -> Option<PathBuf> {
        std::fs::read_link(format!("/proc/{}/cwd", self.pid.as_raw_nonzero())).ok()
    }

    /// Kills it and its process group; the answer of the command that ran in it.
    pub(super) fn end(mut self, end: ShellEnd) -> Option<(u64, Answer, Duration)> {
        // Its group may be gone already; then there is nothing to kill.
        rustix::process::kill_process_group(self.pid, Signal::KILL).ok();
        self.read_output();
        let running = self.running.take()?;
        let text = self.tail.take_text();
        let ms = running.timeout.as_millis();
        let anew = "the next command finds a new shell: variables, functions and background programs are gone";
        let answer = match end {
            ShellEnd::Exited => {
                let code = self.ended.and_then(|status| status.exit_status());
                let signal = self.ended.and_then(|status| status.terminating_signal());
                match (code, signal) {
                    (Some(0), _) => Answer::text(with_note(
                        text,
                        &format!("[the command ended its shell; {anew}]"),
                    )),
                    (Some(code), _) => {
                        let note = format!(
                            "[the command ended its shell with exit status {code}; {anew}]"
                        );
                        Answer::error(with_note(text, &note))
                    }
                    (None, signal) => {
                        let signal = signal.unwrap_or_default();
                        Answer::error(with_note(
                            text,
                            &format!("[the shell was ended by signal {signal}; {anew}]"),
                        ))
                    }
                }
            }
            ShellEnd::Interrupted => {
                Answer::error(with_note(text, &format!("[interrupted; {anew}]")))
            }
            ShellEnd::TimedOut => {
                let note =
                    format!("[timed out after {ms} ms; its process group was killed; {anew}]");
                Answer::error(with_note(text, &note))
            }
        };
        Some((running.id, answer, running.started.elapsed()))
    }
}

fn exit_note(code: i32) -> String {
    format!("[exit status {code}]")
}

fn with_note(mut text: String, note: &str) -> String {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(note);
    text
}

/// One line (of the script's grammar) that runs a command and reports its status under the call's number.
///
/// Descriptors 7 (output) and 8 (status) are the shell's alone: no program inherits them.
fn line(id: u64, command: &str) -> String {
    let quoted = command.replace('\'', r"'\''");
    let report = format!("builtin printf '\\000{id} %d\\000' \"$?\" >&8");
    format!("eval '{quoted}' </dev/null >&7 2>&7 7>&- 8>&-; {report}\n")
}

/// Takes the status of a call out of what came through the status pipe.
///
/// What an earlier command left behind is not this call's and is dropped. A program that digs the pipe out of /proc can
/// forge a status all the same; it then lies about its own sandbox, whose processes are all of one trust.
fn take_status(said: &mut Vec<u8>, id: u64) -> Option<i32> {
    while let Some(end) = said.iter().position(|byte| *byte == 0) {
        let record: Vec<u8> = said.drain(..=end).take(end).collect();
        let text = std::str::from_utf8(&record).unwrap_or_default();
        if let Some((number, code)) = text.split_once(' ')
            && number.parse() == Ok(id)
            && let Ok(code) = code.parse()
        {
            return Some(code);
        }
    }
    // The longest status has 24 bytes; more without an end is none.
    if said.len() > 64 {
        said.clear();
    }
    None
}

fn become_shell(
    ends: [BorrowedFd<'_>; 3],
    environment: &[CString],
    directory: Option<&Path>,
) -> io::Result<()> {
    // First out of the way of the numbers that they are to get.
    let [script, output, status] = ends.map(|end| rustix::io::fcntl_dupfd_cloexec(end, 32));
    let (script, output, status) = (script?, output?, status?);
    for (end, number) in [
        (&script, 0),
        (&output, 1),
        (&output, 2),
        (&output, 7),
        (&status, 8),
    ] {
        sys::put_at(end.as_fd(), number)?;
    }
    for number in [3, 4, 5, 6] {
        // Whatever pid 1 held there.
        sys::put_at(output.as_fd(), number)?;
        drop(sys::own(number));
    }
    sys::close_from(9)?;
    rustix::process::setsid()?;
    sys::default_signals();
    if let Some(directory) = directory {
        // It may have been deleted; then the shell starts in the workspace, where pid 1 stands.
        std::env::set_current_dir(directory).ok();
    }
    nest().map_err(io::Error::other)?;
    // Aliases as in a shell at a prompt; nothing of the host's start-up files.
    let arguments = ["bash", "--noprofile", "--norc", "-O", "expand_aliases"]
        .map(|argument| CString::new(argument).unwrap_or_default());
    Err(sys::execute(BASH, &arguments, environment))
}

#[cfg(test)]
mod tests {
    use super::{line, take_status};

    #[test]
    fn a_command_stays_one_quoted_word() {
        let line = line(7, "echo 'a'\nb");
        assert!(
            line.starts_with("eval 'echo '\\''a'\\''\nb' </dev/null"),
            "{line}"
        );
        assert!(
            line.ends_with("printf '\\0007 %d\\000' \"$?\" >&8\n"),
            "{line}"
        );
    }

    #[test]
    fn only_the_status_of_its_own_call_is_taken() {
        let mut said = b"garbage\x006 0\0\x007 41\0\x007 0\0rest".to_vec();
        assert_eq!(take_status(&mut said, 7), Some(41));
        assert_eq!(take_status(&mut said, 8), None);
        assert_eq!(said, b"rest");
        let mut flood = vec![b'x'; 1000];
        assert_eq!(take_status(&mut flood, 8), None);
        assert!(flood.is_empty());
    }
}
