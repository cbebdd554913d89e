//! One hands role and its two peers, in one program.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use claviger_sandbox::client::HandsClient;
use claviger_sandbox::handover::AttachReceiver;
use claviger_sandbox::hands::{self, Options, Zygote};
use claviger_sandbox::{Execute, HandsError, Output, Resources, SandboxId};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) type Run = fn(Arc<World>) -> Pin<Box<dyn Future<Output = ()> + Send>>;

pub(crate) struct Test {
    pub(crate) name: &'static str,
    pub(crate) run: Run,
}

/// Lists async functions of a module as tests.
#[macro_export]
macro_rules! tests {
    ($module:literal: $($name:ident),+ $(,)?) => {
        pub(crate) fn tests() -> Vec<$crate::world::Test> {
            vec![$($crate::world::Test {
                name: concat!($module, "::", stringify!($name)),
                run: |world| Box::pin($name(world)),
            }),+]
        }
    };
}

/// A running hands role.
pub(crate) struct Role {
    pub(crate) callers: mpsc::Sender<UnixStream>,
    pub(crate) attach: mpsc::Sender<UnixStream>,
    pub(crate) stop: CancellationToken,
    pub(crate) task: JoinHandle<Result<(), HandsError>>,
}

impl Role {
    pub(crate) fn start(zygote: Zygote) -> Self {
        Self::start_with(Options::default(), zygote)
    }

    pub(crate) fn start_with(options: Options, zygote: Zygote) -> Self {
        let (callers, links) = mpsc::channel(8);
        let (attach, attach_links) = mpsc::channel(8);
        let stop = CancellationToken::new();
        let task = tokio::spawn(hands::run(
            options,
            zygote,
            links,
            attach_links,
            stop.clone(),
        ));
        Self {
            callers,
            attach,
            stop,
            task,
        }
    }

    /// A client with one link, and where to send it another.
    pub(crate) async fn client(&self) -> (HandsClient, mpsc::Sender<UnixStream>) {
        let (links, arriving) = mpsc::channel(8);
        let (client, driver) = HandsClient::new(arriving);
        tokio::spawn(driver);
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        self.callers.send(theirs).await.expect("the role runs");
        links.send(ours).await.expect("the client runs");
        (client, links)
    }

    /// A receiver of listeners with one link, and where to send it another.
    pub(crate) async fn receiver(&self) -> (AttachReceiver, mpsc::Sender<UnixStream>) {
        let (links, arriving) = mpsc::channel(8);
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        self.attach.send(theirs).await.expect("the role runs");
        links.send(ours).await.expect("room for a link");
        (AttachReceiver::new(arriving), links)
    }
}

pub(crate) struct World {
    pub(crate) client: HandsClient,
    pub(crate) role: Role,
    spare: Mutex<Vec<Zygote>>,
    next: AtomicU64,
    _links: mpsc::Sender<UnixStream>,
}

impl World {
    pub(crate) async fn start(mut zygotes: Vec<Zygote>) -> Self {
        let role = Role::start(zygotes.pop().expect("at least one zygote"));
        let (client, links) = role.client().await;
        Self {
            client,
            role,
            spare: Mutex::new(zygotes),
            next: AtomicU64::new(1),
            _links: links,
        }
    }

    /// A zygote for a role of a test's own.
    pub(crate) fn zygote(&self) -> Zygote {
        self.spare
            .lock()
            .expect("no test panics here")
            .pop()
            .expect("main starts enough zygotes")
    }

    pub(crate) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// A sandbox in a session of its own.
    pub(crate) async fn sandbox(self: &Arc<Self>) -> Held {
        self.sandbox_of(Resources::default()).await
    }

    pub(crate) async fn sandbox_of(self: &Arc<Self>, resources: Resources) -> Held {
        let session = format!("sesn_{}", self.number());
        let id = self
            .client
            .provision(&session, 1, resources)
            .await
            .expect("a sandbox");
        Held {
            client: self.client.clone(),
            session,
            epoch: 1,
            id,
            world: Arc::clone(self),
        }
    }

    pub(crate) async fn end(&self) {
        self.role.stop.cancel();
        tokio::time::timeout(
            std::time::Duration::from_secs(10),
            self.role.attach.closed(),
        )
        .await
        .expect("the role ends");
    }
}

/// A sandbox and who holds it.
#[derive(Clone)]
pub(crate) struct Held {
    pub(crate) client: HandsClient,
    pub(crate) session: String,
    pub(crate) epoch: u64,
    pub(crate) id: SandboxId,
    world: Arc<World>,
}

impl Held {
    pub(crate) fn call(&self, name: &str, input: Value) -> Execute {
        Execute {
            session: self.session.clone(),
            epoch: self.epoch,
            sandbox: self.id.clone(),
            key: format!("{}/toolu_{}", self.session, self.world.number()),
            name: name.to_owned(),
            input,
            timeout_ms: 30_000,
        }
    }

    pub(crate) async fn tool(&self, name: &str, input: Value) -> Output {
        self.client
            .execute(self.call(name, input))
            .await
            .expect("an answer")
    }

    pub(crate) async fn bash(&self, command: &str) -> Output {
        self.tool("bash", json!({ "command": command })).await
    }

    /// The text of a command that succeeds.
    pub(crate) async fn text(&self, command: &str) -> String {
        let output = self.bash(command).await;
        assert!(!output.is_error, "{command}: {}", output.text());
        output.text()
    }

    /// The host's number of pid 1.
    pub(crate) async fn pid(&self) -> u32 {
        let rows = self.client.list().await.expect("a list");
        rows.iter()
            .find(|row| row.sandbox == self.id)
            .expect("it is alive")
            .pid
    }

    pub(crate) async fn destroy(&self) {
        self.client
            .destroy(&self.session, self.epoch, &self.id)
            .await
            .expect("destroyed");
    }
}

/// Waits until something holds, at most ten seconds.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}
