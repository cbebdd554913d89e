//! The loop of pid 1.

use std::collections::VecDeque;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::WaitOptions;

use super::shell::{self, Shell, ShellEnd};
use super::tool::{self, Answer};
use super::worker::Worker;
use super::{Call, Says, Told};
use crate::passing::{self, Inbox};
use crate::{Output, sys};

/// File tool calls at once; more wait in line.
const MAX_WORKERS: usize = 16;

#[derive(Debug)]
pub(super) struct Supervisor {
    children: OwnedFd,
    control: OwnedFd,
    environment: Vec<CString>,
    inbox: Inbox,
    outbox: VecDeque<u8>,
    shell: Option<Shell>,
    shell_calls: VecDeque<Call>,
    worker_calls: VecDeque<Call>,
    workers: Vec<Worker>,
}

/// Which descriptor of the loop became ready.
#[derive(Clone, Copy)]
enum Source {
    Children,
    ControlIn,
    ControlOut,
    ShellOutput,
    ShellScript,
    ShellStatus,
    Worker(usize),
}

impl Supervisor {
    pub(super) fn new(control: OwnedFd, environment: Vec<CString>) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&control, true)?;
        // The first command should not wait for it; if it cannot start now, that command says why.
        let shell = Shell::start(&environment, None).ok();
        Ok(Self {
            children: sys::child_signals()?,
            control,
            environment,
            inbox: Inbox::default(),
            outbox: VecDeque::new(),
            shell,
            shell_calls: VecDeque::new(),
            worker_calls: VecDeque::new(),
            workers: Vec::new(),
        })
    }

    pub(super) fn run(&mut self) -> io::Result<()> {
        while self.turn()? {}
        Ok(())
    }

    /// One round of the loop; false when the socket has ended.
    fn turn(&mut self) -> io::Result<bool> {
        let ready = self.wait()?;
        // Workers from the last to the first, so that removing one leaves the other numbers right.
        for source in ready.into_iter().rev() {
            match source {
                Source::Children => self.reap()?,
                Source::ControlIn => {
                    if !self.receive()? {
                        return Ok(false);
                    }
                }
                Source::ControlOut => self.flush()?,
                Source::ShellOutput => self.shell.iter_mut().for_each(Shell::read_output),
                Source::ShellScript => self.shell.iter_mut().for_each(Shell::write_script),
                Source::ShellStatus => self.shell.iter_mut().for_each(Shell::read_status),
                Source::Worker(at) => self.read_worker(at)?,
            }
        }
        self.expire()?;
        self.settle_shell()?;
        self.start_calls()?;
        Ok(true)
    }

    fn wait(&self) -> io::Result<Vec<Source>> {
        let mut sources = vec![Source::Children, Source::ControlIn];
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.children.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.control.as_fd(), PollFlags::IN),
        ];
        if !self.outbox.is_empty() {
            sources.push(Source::ControlOut);
            fds.push(PollFd::from_borrowed_fd(
                self.control.as_fd(),
                PollFlags::OUT,
            ));
        }
        if let Some(shell) = &self.shell {
            if let Some(output) = &shell.output {
                sources.push(Source::ShellOutput);
                fds.push(PollFd::from_borrowed_fd(output.as_fd(), PollFlags::IN));
            }
            if let Some(status) = &shell.status {
                sources.push(Source::ShellStatus);
                fds.push(PollFd::from_borrowed_fd(status.as_fd(), PollFlags::IN));
            }
            if let Some(script) = shell.script_with_work() {
                sources.push(Source::ShellScript);
                fds.push(PollFd::from_borrowed_fd(script, PollFlags::OUT));
            }
        }
        for (at, worker) in self.workers.iter().enumerate() {
            sources.push(Source::Worker(at));
            fds.push(PollFd::from_borrowed_fd(
                worker.answer.as_fd(),
                PollFlags::IN,
            ));
        }
        let timeout = self.next_deadline().map(|deadline| {
            // One millisecond more than asked, so that the deadline has passed when we wake.
            let left =
                deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
        Ok(sources
            .into_iter()
            .zip(&fds)
            .filter(|(_, fd)| !fd.revents().is_empty())
            .map(|(s, _)| s)
            .collect())
    }

    fn next_deadline(&self) -> Option<Instant> {
        let shell = self.shell.as_ref().and_then(Shell::deadline);
        self.workers
            .iter()
            .map(|worker| worker.deadline)
            .chain(shell)
            .min()
    }

    fn reap(&mut self) -> io::Result<()> {
        let mut buffer = [0; 1024];
        // Reading resets the descriptor; what it says is less than what waiting tells.
        rustix::io::read(&self.children, &mut buffer).ok();
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    if let Some(shell) = self.shell.as_mut().filter(|shell| shell.pid == pid) {
                        shell.ended = Some(status);
                    }
                }
                Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn receive(&mut self) -> io::Result<bool> {
        match self.inbox.receive(&self.control) {
            Ok(0) => return Ok(false),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(error),
        }
        while let Some(told) = self.inbox.take()? {
            match told {
                Told::Call(call) if call.name == "bash" => self.shell_calls.push_back(call),
                Told::Call(call) => self.worker_calls.push_back(call),
                Told::Interrupt => self.interrupt()?,
            }
        }
        Ok(true)
    }

    fn interrupt(&mut self) -> io::Result<()> {
        let waiting: Vec<Call> = self
            .shell_calls
            .drain(..)
            .chain(self.worker_calls.drain(..))
            .collect();
        for call in waiting {
            self.answer(
                call.id,
                Answer::error("interrupted before it ran"),
                Duration::ZERO,
            )?;
        }
        for worker in std::mem::take(&mut self.workers) {
            worker.kill();
            self.answer(
                worker.id,
                Answer::error("interrupted"),
                worker.started.elapsed(),
            )?;
        }
        if self.shell.as_ref().is_some_and(Shell::is_running) {
            self.end_shell(ShellEnd::Interrupted)?;
        }
        Ok(())
    }

    fn expire(&mut self) -> io::Result<()> {
        let now = Instant::now();
        if self
            .shell
            .as_ref()
            .and_then(Shell::deadline)
            .is_some_and(|deadline| deadline <= now)
        {
            self.end_shell(ShellEnd::TimedOut)?;
        }
        while let Some(at) = self
            .workers
            .iter()
            .position(|worker| worker.deadline <= now)
        {
            let worker = self.workers.swap_remove(at);
            worker.kill();
            let text = format!(
                "timed out after {} ms; the call was ended",
                worker.timeout.as_millis()
            );
            self.answer(worker.id, Answer::error(text), worker.started.elapsed())?;
        }
        Ok(())
    }

    /// Answers a command that has finished, and forgets a shell that has ended.
    fn settle_shell(&mut self) -> io::Result<()> {
        let Some(shell) = &mut self.shell else {
            return Ok(());
        };
        if let Some((id, answer, elapsed)) = shell.finished() {
            self.answer(id, answer, elapsed)?;
        }
        if self
            .shell
            .as_ref()
            .is_some_and(|shell| shell.ended.is_some())
        {
            self.end_shell(ShellEnd::Exited)?;
        }
        Ok(())
    }

    /// Ends the shell and its process group; answers the command that ran in it. The next one starts where it stood.
    fn end_shell(&mut self, end: ShellEnd) -> io::Result<()> {
        let Some(shell) = self.shell.take() else {
            return Ok(());
        };
        let directory = shell.directory();
        if let Some((id, answer, elapsed)) = shell.end(end) {
            self.answer(id, answer, elapsed)?;
        }
        self.shell = match end {
            // Not at once: a shell that cannot live would be started for ever.
            ShellEnd::Exited => None,
            ShellEnd::Interrupted | ShellEnd::TimedOut => {
                Shell::start(&self.environment, directory.as_deref()).ok()
            }
        };
        Ok(())
    }

    fn start_calls(&mut self) -> io::Result<()> {
        while self.workers.len() < MAX_WORKERS {
            let Some(call) = self.worker_calls.pop_front() else {
                break;
            };
            match Worker::start(&call) {
                Ok(worker) => self.workers.push(worker),
                Err(error) => {
                    let text = format!("no process could be started for it: {error}");
                    self.answer(call.id, Answer::error(text), Duration::ZERO)?;
                }
            }
        }
        while !self.shell.as_ref().is_some_and(Shell::is_running) {
            let Some(call) = self.shell_calls.pop_front() else {
                break;
            };
            if let Some(answer) = self.start_command(&call) {
                self.answer(call.id, answer, Duration::ZERO)?;
            }
        }
        Ok(())
    }

    /// Starts a command; an answer means that there is nothing to wait for.
    fn start_command(&mut self, call: &Call) -> Option<Answer> {
        let input = match shell::Input::parse(&call.input) {
            Ok(input) => input,
            Err(answer) => return Some(answer),
        };
        if input.restart
            && let Some(shell) = self.shell.take()
        {
            // No command runs here, so there is no answer to lose.
            shell.end(ShellEnd::Interrupted);
        }
        if self.shell.is_none() {
            match Shell::start(&self.environment, None) {
                Ok(shell) => self.shell = Some(shell),
                Err(error) => {
                    return Some(Answer::error(format!(
                        "the shell could not be started: {error}"
                    )));
                }
            }
        }
        let command = match input.command {
            Some(command) => command,
            None if input.restart => return Some(Answer::text("the shell was restarted")),
            None => return Some(Answer::error("bash needs `command` or `restart`")),
        };
        let timeout = tool::timeout(input.timeout_ms.unwrap_or(call.timeout_ms));
        self.shell.as_mut()?.run(call.id, &command, timeout);
        None
    }

    fn read_worker(&mut self, at: usize) -> io::Result<()> {
        let Some(worker) = self.workers.get_mut(at) else {
            return Ok(());
        };
        if let Some(answer) = worker.read() {
            let worker = self.workers.swap_remove(at);
            self.answer(worker.id, answer, worker.started.elapsed())?;
        }
        Ok(())
    }

    fn answer(&mut self, id: u64, answer: Answer, elapsed: Duration) -> io::Result<()> {
        let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        let output = Output {
            content: answer.content,
            is_error: answer.is_error,
            elapsed_ms,
        };
        self.outbox
            .extend(passing::frame(&Says::Answer { id, output })?);
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.outbox.is_empty() {
            let (first, _) = self.outbox.as_slices();
            match passing::send(&self.control, first, &[]) {
                Ok(sent) => drop(self.outbox.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
