//! One sandbox, seen from outside: its control socket, its pid 1, the calls that wait for it.

use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::inside::{Call, Says, Told};
use crate::missing::Missing;
use crate::passing::{self, Inbox};
use crate::zygote::{Launch, Launched};
use crate::{Execute, HandsError, Output, Resources, SandboxId, sys};

/// How long a sandbox may take to say that it is ready; it takes a millisecond.
const READY_DEADLINE: Duration = Duration::from_secs(15);
/// How much longer than its own limit a call may take before its sandbox is given up.
const ANSWER_GRACE: Duration = Duration::from_secs(30);

/// The link to the zygote: one launch at a time.
#[derive(Debug)]
pub(super) struct ZygoteLink {
    stream: UnixStream,
    inbox: Inbox,
}

impl ZygoteLink {
    pub(super) fn new(link: StdStream) -> Result<Self, HandsError> {
        let stream = link
            .set_nonblocking(true)
            .and_then(|()| UnixStream::from_std(link))
            .map_err(|error| HandsError::internal("the zygote's link", error))?;
        Ok(Self {
            stream,
            inbox: Inbox::default(),
        })
    }

    async fn launch(&mut self, resources: &Resources) -> io::Result<Result<Started, Missing>> {
        let launch = Launch {
            resources: resources.clone(),
        };
        passing::send_frame_async(&self.stream, &launch, &[]).await?;
        match self.inbox.wait_async(&self.stream).await? {
            Some(Launched::Launched { pid }) => {
                let control = self.inbox.descriptor()?;
                Ok(Ok(Started {
                    pid,
                    control,
                    pidfd: self.inbox.descriptor()?,
                }))
            }
            Some(Launched::Failed(missing)) => Ok(Err(missing)),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

struct Started {
    pid: i32,
    control: OwnedFd,
    pidfd: OwnedFd,
}

/// A sandbox that is alive or has just died.
#[derive(Debug)]
pub(super) struct Sandbox {
    pub(super) id: SandboxId,
    pub(super) session: String,
    pub(super) pid: u32,
    pub(super) made: Instant,
    pub(super) provisioning: Duration,
    /// `mcp` and `egress`.
    pub(super) listeners: Option<(TcpListener, TcpListener)>,
    /// Cancelled when every process of the sandbox is gone.
    pub(super) gone: CancellationToken,
    pidfd: AsyncFd<OwnedFd>,
    outbox: mpsc::UnboundedSender<Told>,
    calls: Mutex<Calls>,
    used: Mutex<Instant>,
}

#[derive(Debug, Default)]
struct Calls {
    next: u64,
    waiting: HashMap<u64, oneshot::Sender<Output>>,
    is_closed: bool,
}

/// What `drive` needs of a sandbox that is not shared.
#[derive(Debug)]
pub(super) struct Control {
    stream: UnixStream,
    inbox: Inbox,
    outgoing: mpsc::UnboundedReceiver<Told>,
}

impl Sandbox {
    /// Makes a sandbox; the caller drives it with what comes beside it.
    pub(super) async fn provision(
        session: &str,
        resources: &Resources,
        zygote: &tokio::sync::Mutex<Option<ZygoteLink>>,
        zygote_broken: &CancellationToken,
    ) -> Result<(Self, Control), HandsError> {
        let made = Instant::now();
        let started = {
            let mut link = zygote.lock().await;
            let ended = || HandsError::Internal {
                reason: "the zygote has ended".to_owned(),
            };
            match link.as_mut().ok_or_else(ended)?.launch(resources).await {
                Ok(started) => started?,
                Err(error) => {
                    // A broken exchange cannot be continued: drop the link, which ends the zygote.
                    *link = None;
                    zygote_broken.cancel();
                    return Err(HandsError::internal("the zygote", error));
                }
            }
        };
        let broken = |error: io::Error| HandsError::internal("a new sandbox's socket", error);
        // From here on dropping the control socket ends the half-made sandbox.
        let stream = StdStream::from(started.control);
        stream.set_nonblocking(true).map_err(broken)?;
        let stream = UnixStream::from_std(stream).map_err(broken)?;
        let mut inbox = Inbox::default();
        let said = tokio::time::timeout(READY_DEADLINE, inbox.wait_async(&stream)).await;
        match said
            .map_err(|_elapsed| HandsError::internal("a new sandbox", "it did not start in time"))?
        {
            Ok(Some(Says::Ready)) => {}
            Ok(Some(Says::Failed(missing))) => return Err(missing.into()),
            Ok(Some(Says::Answer { .. })) => {
                return Err(HandsError::internal("a new sandbox", "it answered first"));
            }
            Ok(None) => {
                return Err(HandsError::internal(
                    "a new sandbox",
                    "it ended while it started",
                ));
            }
            Err(error) => return Err(broken(error)),
        }
        let listeners = if resources.listeners {
            let mcp = inbox.descriptor().map_err(broken)?;
            Some((mcp.into(), inbox.descriptor().map_err(broken)?.into()))
        } else {
            None
        };
        let (outbox, outgoing) = mpsc::unbounded_channel();
        let sandbox = Self {
            id: SandboxId::random(),
            session: session.to_owned(),
            pid: started.pid.unsigned_abs(),
            made,
            provisioning: made.elapsed(),
            listeners,
            gone: CancellationToken::new(),
            pidfd: sys::watch(started.pidfd).map_err(broken)?,
            outbox,
            calls: Mutex::default(),
            used: Mutex::new(Instant::now()),
        };
        Ok((
            sandbox,
            Control {
                stream,
                inbox,
                outgoing,
            },
        ))
    }

    /// Carries messages until pid 1 and everything below it has ended.
    pub(super) async fn drive(&self, control: Control) {
        let Control {
            stream,
            mut inbox,
            mut outgoing,
        } = control;
        let writer = async {
            while let Some(told) = outgoing.recv().await {
                if passing::send_frame_async(&stream, &told, &[])
                    .await
                    .is_err()
                {
                    break;
                }
            }
        };
        let reader = async {
            while let Ok(Some(Says::Answer { id, output })) = inbox.wait_async(&stream).await {
                if let Some(waiting) = self.calls().waiting.remove(&id) {
                    // Whoever asked may have given up.
                    waiting.send(output).ok();
                }
            }
        };
        tokio::select! {
            () = writer => {}
            () = reader => {}
            _ = self.pidfd.readable() => {}
        }
        self.kill();
        {
            let mut calls = self.calls();
            calls.is_closed = true;
            // Whoever waits hears that the sandbox is lost.
            calls.waiting.clear();
        }
        // The descriptor of a pid 1 becomes readable when its whole namespace is empty.
        if self.pidfd.readable().await.is_err() {
            tracing::warn!(sandbox = %self.id, "the end of a sandbox could not be watched");
        }
        self.gone.cancel();
    }

    /// Runs a tool in it.
    pub(super) async fn execute(&self, call: Execute) -> Result<Output, HandsError> {
        let lost = || HandsError::Lost {
            sandbox: self.id.clone(),
        };
        let (waiting, answer) = oneshot::channel();
        let asked_ms = call
            .input
            .get("timeout_ms")
            .and_then(serde_json::Value::as_u64)
            .unwrap_or(0);
        let patience = Duration::from_millis(asked_ms.max(call.timeout_ms).max(120_000))
            .saturating_add(ANSWER_GRACE);
        let id = {
            let mut calls = self.calls();
            if calls.is_closed {
                return Err(lost());
            }
            calls.next += 1;
            let id = calls.next;
            calls.waiting.insert(id, waiting);
            id
        };
        let told = Told::Call(Call {
            id,
            name: call.name,
            input: call.input,
            timeout_ms: call.timeout_ms,
        });
        self.outbox.send(told).map_err(|_closed| lost())?;
        let answered = tokio::time::timeout(patience, answer).await;
        self.touch();
        match answered {
            Ok(Ok(output)) => Ok(output),
            Ok(Err(_closed)) => Err(lost()),
            Err(_elapsed) => {
                tracing::warn!(sandbox = %self.id, "a sandbox does not answer and is ended");
                self.kill();
                Err(lost())
            }
        }
    }

    /// Ends what runs in it.
    pub(super) fn interrupt(&self) {
        // A sandbox that has died needs no interrupt.
        self.outbox.send(Told::Interrupt).ok();
    }

    /// Kills pid 1, with which the kernel ends everything inside.
    pub(super) fn kill(&self) {
        // The only error is that it has ended.
        rustix::process::pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL).ok();
    }

    /// Notes that somebody has a use for it now.
    pub(super) fn touch(&self) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// For how long nobody has had a use for it; none while a call runs.
    pub(super) fn idle(&self) -> Duration {
        let used = *self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if self.running() == 0 {
            used.elapsed()
        } else {
            Duration::ZERO
        }
    }

    pub(super) fn running(&self) -> usize {
        self.calls().waiting.len()
    }

    /// The listeners to hand over, `mcp` and `egress`.
    pub(super) fn listeners(&self) -> Option<[&TcpListener; 2]> {
        self.listeners.as_ref().map(|(mcp, egress)| [mcp, egress])
    }

    fn calls(&self) -> std::sync::MutexGuard<'_, Calls> {
        // No code panics while it holds the lock; the map is whole either way.
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
