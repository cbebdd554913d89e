//! A whole world but for the harness: store, hands, vault, tools and model, and links that can be
//! cut or held at any message.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use claviger_session::role::{Linked, Rights};
use claviger_session::{Event, NewEvent, Query, SessionClient, SessionId, Tailed};
use claviger_vault_protocol::wire;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::hands::FakeHands;
use super::model::{Answer, Asked, FakeModel};
use super::peers::{FakeTools, FakeVault};
use crate::error::HarnessError;
use crate::model::Patience;
use crate::role::{Links, Options, Tuning, run_tuned};

pub(super) const LEASE_MS: u64 = 150;

/// What the links of one harness do at a message.
#[derive(Clone)]
pub(super) struct Wires {
    /// Messages that still pass.
    left: Arc<AtomicI64>,
    state: watch::Sender<Flow>,
    /// What happens when none is left.
    then: Flow,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Flow {
    Passing,
    Held,
    Cut,
}

impl Wires {
    pub(super) fn new(messages: i64, then: Flow) -> Self {
        Self {
            left: Arc::new(AtomicI64::new(messages)),
            state: watch::channel(Flow::Passing).0,
            then,
        }
    }

    pub(super) fn sound() -> Self {
        Self::new(i64::MAX, Flow::Passing)
    }

    pub(super) fn set(&self, flow: Flow) {
        self.left.store(i64::MAX, Ordering::SeqCst);
        self.state.send_replace(flow);
    }

    /// Whether the last message has been reached.
    pub(super) async fn reached(&self) {
        self.state
            .subscribe()
            .wait_for(|flow| *flow != Flow::Passing)
            .await
            .unwrap();
    }

    /// Messages that passed, given how many were allowed.
    pub(super) fn passed(&self, allowed: i64) -> i64 {
        allowed - self.left.load(Ordering::SeqCst)
    }

    async fn pump(
        self,
        mut from: tokio::net::unix::OwnedReadHalf,
        mut to: tokio::net::unix::OwnedWriteHalf,
    ) {
        let mut state = self.state.subscribe();
        let mut buffer = vec![0; 64 << 10];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            if self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
                self.state
                    .send_if_modified(|flow| std::mem::replace(flow, self.then) != self.then);
            }
            let flow = *state.wait_for(|flow| *flow != Flow::Held).await.unwrap();
            if flow == Flow::Cut || to.write_all(buffer.get(..read).unwrap()).await.is_err() {
                return;
            }
        }
    }
}

/// Everything a harness works with.
pub(super) struct World {
    pub(super) store: SessionClient,
    session_links: mpsc::Sender<Linked>,
    pub(super) hands: FakeHands,
    pub(super) vault: Arc<FakeVault>,
    pub(super) tools: FakeTools,
    pub(super) model: FakeModel,
    stop: CancellationToken,
    _directory: tempfile::TempDir,
}

/// A running harness.
pub(super) struct Harness {
    pub(super) task: JoinHandle<Result<(), HarnessError>>,
    pub(super) stop: CancellationToken,
    /// Sends the harness a fresh link to tools.
    pub(super) tools_links: mpsc::Sender<UnixStream>,
    _links: Vec<mpsc::Sender<UnixStream>>,
}

impl Harness {
    /// Dies as by SIGKILL.
    pub(super) async fn kill(self) {
        self.task.abort();
        self.task.await.ok();
    }
}

impl World {
    pub(super) async fn new(script: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let (session_links, links) = mpsc::channel(8);
        let options = claviger_session::role::Options {
            directory: directory.path().to_owned(),
        };
        let role = claviger_session::role::run(options, links, stop.clone());
        tokio::spawn(async move { role.await.expect("the session role goes on") });
        let (ours, theirs) = UnixStream::pair().unwrap();
        session_links
            .send(Linked::new(Rights::Everything, theirs))
            .await
            .unwrap();
        let (sender, receiver) = mpsc::channel(1);
        sender.send(ours).await.unwrap();
        let (store, driver) = SessionClient::new(receiver);
        tokio::spawn(driver);
        Self {
            store,
            session_links,
            hands: FakeHands::default(),
            vault: Arc::default(),
            tools: FakeTools::default(),
            model: FakeModel::new(script),
            stop,
            _directory: directory,
        }
    }

    /// Creates a session and says something in it.
    pub(super) async fn begin(&self, text: &str) -> SessionId {
        let session = SessionId::random("sesn");
        let created = json!({"agent": {"model": {"id": "m"}, "system": "You work.", "tools": [
                {"type": "agent_toolset_20260401", "configs": [
                    {"name": "write", "permission_policy": {"type": "always_ask"}}]},
                {"type": "mcp_toolset", "mcp_server_name": "ours", "default_config": {"permission_policy": {"type": "always_allow"}}},
                {"type": "custom", "name": "ask_human", "description": "d", "input_schema": {"type": "object"}}],
            "mcp_servers": [{"type": "url", "name": "ours", "url": "http://127.0.0.1:2529/mcp"}]}});
        self.store
            .append_input(
                &session,
                "create",
                vec![NewEvent::new("session.created", created)],
            )
            .await
            .unwrap();
        self.say(&session, text).await;
        session
    }

    pub(super) async fn say(&self, session: &SessionId, text: &str) {
        self.input(
            session,
            "user.message",
            json!({"content": [{"type": "text", "text": text}]}),
        )
        .await;
    }

    pub(super) async fn input(&self, session: &SessionId, kind: &str, payload: Value) {
        let key = uuid::Uuid::new_v4().to_string();
        self.store
            .append_input(session, &key, vec![NewEvent::new(kind, payload)])
            .await
            .unwrap();
    }

    /// Starts a harness over these wires.
    pub(super) async fn harness(&self, name: &str, wires: &Wires) -> Harness {
        let stop = CancellationToken::new();
        let (session, hands, vault, tools, model) = (
            mpsc::channel(4),
            mpsc::channel(4),
            mpsc::channel(4),
            mpsc::channel(4),
            mpsc::channel(4),
        );
        self.session_links
            .send(Linked::new(Rights::Sessions, link(wires, &session.0).await))
            .await
            .unwrap();
        tokio::spawn(self.hands.clone().serve(link(wires, &hands.0).await));
        tokio::spawn(wire::serve(
            Arc::clone(&self.vault),
            link(wires, &vault.0).await,
            self.stop.child_token(),
        ));
        tokio::spawn(wire::serve(
            Arc::new(self.tools.clone()),
            link(wires, &tools.0).await,
            self.stop.child_token(),
        ));
        tokio::spawn(self.model.clone().serve(link(wires, &model.0).await));
        let options = Options {
            instance: name.to_owned(),
            max_sessions: 4,
            lease_ttl_ms: LEASE_MS,
        };
        let patience = Patience {
            link: Duration::from_secs(5),
            head: Duration::from_secs(5),
            idle: Duration::from_secs(5),
        };
        let tuning = Tuning {
            patience,
            backoff: Duration::from_millis(2),
            sweep: Duration::from_millis(10),
        };
        let links = Links {
            session: session.1,
            hands: hands.1,
            vault: vault.1,
            tools: tools.1,
            model: model.1,
        };
        Harness {
            task: tokio::spawn(run_tuned(options, tuning, links, stop.clone())),
            stop,
            tools_links: tools.0,
            _links: vec![session.0, hands.0, vault.0, model.0],
        }
    }

    /// Gives a harness a new link to tools, as after a restart of tools.
    pub(super) async fn relink_tools(&self, harness: &Harness) {
        let end = link(&Wires::sound(), &harness.tools_links).await;
        tokio::spawn(wire::serve(
            Arc::new(self.tools.clone()),
            end,
            self.stop.child_token(),
        ));
    }

    pub(super) async fn events(&self, session: &SessionId) -> Vec<Event> {
        self.store.read(session, Query::default()).await.unwrap()
    }

    /// Waits for an event that fits.
    pub(super) async fn until(&self, session: &SessionId, fits: impl Fn(&Event) -> bool) -> Event {
        let mut tail = Box::pin(self.store.tail(session, 0));
        within(async {
            loop {
                if let Tailed::Event(event) = tail.next().await.expect("the store is there")
                    && fits(&event)
                {
                    return event;
                }
            }
        })
        .await
    }

    /// Waits for the nth idle event and returns its stop reason.
    pub(super) async fn idle(&self, session: &SessionId, nth: usize) -> Value {
        let seen = std::cell::Cell::new(0);
        let event = self
            .until(session, |event| {
                seen.set(seen.get() + usize::from(event.kind == "session.status_idle"));
                seen.get() == nth
            })
            .await;
        event.payload["stop_reason"].clone()
    }

    pub(super) async fn kinds(&self, session: &SessionId) -> Vec<String> {
        self.events(session)
            .await
            .into_iter()
            .map(|event| event.kind)
            .collect()
    }

    /// The payloads of all events of one kind.
    pub(super) async fn payloads(&self, session: &SessionId, kind: &str) -> Vec<Value> {
        self.events(session)
            .await
            .into_iter()
            .filter(|event| event.kind == kind)
            .map(|event| event.payload)
            .collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Gives one end of a wire to the harness and returns the peer's.
async fn link(wires: &Wires, to_harness: &mpsc::Sender<UnixStream>) -> UnixStream {
    let (harness, near) = UnixStream::pair().unwrap();
    let (far, peer) = UnixStream::pair().unwrap();
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    tokio::spawn(wires.clone().pump(near_read, far_write));
    tokio::spawn(wires.clone().pump(far_read, near_write));
    to_harness.send(harness).await.unwrap();
    peer
}

pub(super) async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), work)
        .await
        .expect("in time")
}

/// A log without ids, times, epochs and what only tells of crashes: the conversation, what the API
/// shows of it, and how each call ended.
pub(super) fn transcript(events: &[Event]) -> Value {
    let mut conversation = crate::context::Conversation::default();
    let mut names: BTreeMap<&str, &str> = BTreeMap::new();
    let mut shown = Vec::new();
    let mut results = Vec::new();
    for event in events {
        conversation.apply(event);
        let payload = &event.payload;
        match event.kind.as_str() {
            "agent.message" => shown.push(payload["content"].clone()),
            "agent.tool_use" | "agent.mcp_tool_use" => {
                names.insert(&event.id, payload["model_tool_use_id"].as_str().unwrap());
                shown.push(json!([
                    payload["name"],
                    payload["input"],
                    payload["evaluated_permission"]
                ]));
            }
            "tool.outcome" => results.push(json!([
                payload["tool_use_id"],
                payload["status"],
                payload["content"],
                payload["is_error"]
            ])),
            "agent.tool_result" => results.push(json!([
                names[payload["tool_use_id"].as_str().unwrap()],
                payload["content"]
            ])),
            "agent.mcp_tool_result" => results.push(json!([
                names[payload["mcp_tool_use_id"].as_str().unwrap()],
                payload["content"]
            ])),
            _ => {}
        }
    }
    // Parallel calls end in any order.
    results.sort_by_key(ToString::to_string);
    let last = events
        .iter()
        .rev()
        .find(|event| event.kind == "session.status_idle")
        .map(|event| event.payload["stop_reason"].clone());
    let agent = crate::agent::Agent::of(&events[0].payload);
    let body = crate::context::render(
        &conversation,
        &agent,
        &crate::route::Toolbox::default(),
        crate::context::Strategy::Plain,
    );
    json!({"messages": body["messages"], "shown": shown, "results": results, "stop": last})
}
