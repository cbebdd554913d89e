//! A file tool call in a process of its own.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal};

use super::Call;
use super::tool::{self, Answer};
use crate::namespaces::nest;
use crate::sys::{self, Forked};

/// More than the largest answer: an image of 5 MiB, or 256 KiB of text in which every character is escaped.
const MAX_ANSWER_BYTES: usize = 30 << 20;

#[derive(Debug)]
pub(super) struct Worker {
    pub(super) id: u64,
    pub(super) answer: OwnedFd,
    pub(super) started: Instant,
    pub(super) timeout: Duration,
    pub(super) deadline: Instant,
    pid: Pid,
    read: Vec<u8>,
}

impl Worker {
    pub(super) fn start(call: &Call) -> io::Result<Self> {
        let (answer, teller) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        match sys::fork()? {
            Forked::Child => {
                let code = catch_unwind(AssertUnwindSafe(|| work(teller, call)));
                sys::exit_now(i32::from(!matches!(code, Ok(Ok(())))))
            }
            Forked::Parent(pid) => {
                let (started, timeout) = (Instant::now(), tool::timeout(call.timeout_ms));
                rustix::io::ioctl_fionbio(&answer, true)?;
                Ok(Self {
                    id: call.id,
                    answer,
                    started,
                    timeout,
                    deadline: started + timeout,
                    pid,
                    read: Vec::new(),
                })
            }
        }
    }

    /// Reads what is there; the answer once it is complete.
    pub(super) fn read(&mut self) -> Option<Answer> {
        let mut chunk = [0; 64 * 1024];
        loop {
            match rustix::io::read(&self.answer, &mut chunk) {
                Ok(0) => break,
                Ok(count) => self.read.extend(chunk.iter().take(count)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return None,
                Err(_) => break,
            }
            if self.read.len() > MAX_ANSWER_BYTES {
                self.kill();
                return Some(Answer::error("the answer is too long"));
            }
        }
        let ended = || {
            Answer::error("the call ended without an answer: it ran out of memory or was killed")
        };
        Some(serde_json::from_slice(&self.read).unwrap_or_else(|_| ended()))
    }

    pub(super) fn kill(&self) {
        // A worker that has just ended needs no signal; pid 1 has not reaped it before it let go of the pipe.
        rustix::process::kill_process(self.pid, Signal::KILL).ok();
    }
}

/// The child: lets go of everything of pid 1, runs the tool, writes the answer.
fn work(teller: OwnedFd, call: &Call) -> io::Result<()> {
    if teller.as_raw_fd() != 3 {
        // Number 3 is the control socket, which is not ours.
        sys::put_at(teller.as_fd(), 3)?;
        drop(teller);
    }
    let teller = sys::own(3);
    sys::close_from(4)?;
    sys::default_signals();
    nest().map_err(io::Error::other)?;
    let bytes =
        serde_json::to_vec(&tool::run(&call.name, &call.input)).map_err(io::Error::other)?;
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        let written = rustix::io::write(&teller, rest)?;
        rest = rest.get(written..).unwrap_or_default();
    }
    Ok(())
}
