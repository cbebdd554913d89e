//! A running api, its peers and a small HTTP client.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use claviger_api::role::{Links, Options, run};
use claviger_session::role::{Linked, Rights};
use claviger_session::{NewEvent, SessionClient, SessionId};
use claviger_vault_protocol::admin::{
    AuthenticateKey, CredentialRow, Credentials, KeyHolder, List, OfCredential, PUT_PURPOSE, Put,
    Rotate,
};
use claviger_vault_protocol::charter::Registered;
use claviger_vault_protocol::wire::{Verbs, answer, arguments, serve, unknown_verb};
use claviger_vault_protocol::{Charter, CredentialId, KeyPair, Principal, Refusal};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub(crate) const MCP_URL: &str = "http://127.0.0.1:2529/mcp";
pub(crate) const ALICE: &str = "clv-key-alice";
pub(crate) const BOB: &str = "clv-key-bob";

/// The vault as the api sees it: keeps what it was given and checks that secrets were sealed to it.
#[derive(Debug)]
pub(crate) struct FakeVault {
    key: KeyPair,
    pub(crate) state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) rows: Vec<CredentialRow>,
    /// Opened secrets by credential.
    pub(crate) secrets: HashMap<String, String>,
    pub(crate) principals: Vec<Option<Principal>>,
    pub(crate) charters: Vec<Charter>,
    pub(crate) authentications: u64,
    /// Every verb answers with this refusal.
    pub(crate) refusal: Option<Refusal>,
    clock_ms: u64,
}

impl State {
    fn row(&mut self, id: &CredentialId) -> Result<&mut CredentialRow, Refusal> {
        let row = self.rows.iter_mut().find(|row| row.id == *id);
        row.ok_or_else(|| Refusal::new("credential_not_found", "no such credential"))
    }

    fn now(&mut self) -> u64 {
        self.clock_ms += 1;
        1_763_800_000_000 + self.clock_ms
    }
}

impl Verbs for FakeVault {
    fn names(&self) -> Vec<&'static str> {
        vec![
            "register_charter",
            "put",
            "rotate",
            "archive",
            "delete",
            "list",
            "authenticate_key",
        ]
    }

    async fn call(&self, verb: &str, value: Value) -> Result<Value, Refusal> {
        let mut state = self.state.lock().unwrap();
        if let Some(refusal) = &state.refusal {
            return Err(refusal.clone());
        }
        match verb {
            "authenticate_key" => {
                state.authentications += 1;
                let asked: AuthenticateKey = arguments(verb, value)?;
                for key in [ALICE, BOB] {
                    if asked.key_hash == hex::encode(Sha256::digest(key)) {
                        return answer(&KeyHolder {
                            key: key.to_owned(),
                            principal: Principal::key(key),
                            label: "test".to_owned(),
                        });
                    }
                }
                Err(Refusal::new("key_unknown", "no such key"))
            }
            "register_charter" => {
                let charter: Charter = arguments(verb, value)?;
                let session = charter.session.clone();
                state.charters.push(charter);
                answer(&Registered {
                    session,
                    policy_version: 1,
                })
            }
            "put" => {
                let put: Put = arguments(verb, value)?;
                state.principals.push(put.principal.clone());
                let live = |row: &&CredentialRow| row.archived_at_ms.is_none();
                if state
                    .rows
                    .iter()
                    .filter(live)
                    .any(|row| row.collection == put.collection && row.name == put.name)
                {
                    return Err(Refusal::new("name_taken", "the name is taken"));
                }
                let associated =
                    Put::associated(&put.collection, &put.name, put.kind, &put.binding);
                let secret = self
                    .key
                    .open(&put.secret.unwrap(), PUT_PURPOSE, &associated)
                    .unwrap();
                let now = state.now();
                let row = CredentialRow {
                    id: CredentialId::random(),
                    collection: put.collection,
                    name: put.name,
                    kind: put.kind,
                    binding: put.binding,
                    variable: put.variable,
                    version: 1,
                    created_at_ms: now,
                    rotated_at_ms: now,
                    archived_at_ms: None,
                    uses: 0,
                    last_used_at_ms: None,
                    metadata: put.metadata,
                };
                let text = String::from_utf8(secret.expose().to_vec()).unwrap();
                state.secrets.insert(row.id.to_string(), text);
                state.rows.push(row.clone());
                answer(&row)
            }
            "rotate" => {
                let rotate: Rotate = arguments(verb, value)?;
                state.principals.push(rotate.principal.clone());
                let associated = rotate.credential.as_str().as_bytes();
                let secret = self
                    .key
                    .open(&rotate.secret, PUT_PURPOSE, associated)
                    .unwrap();
                let text = String::from_utf8(secret.expose().to_vec()).unwrap();
                state.secrets.insert(rotate.credential.to_string(), text);
                let now = state.now();
                let row = state.row(&rotate.credential)?;
                row.version += 1;
                row.rotated_at_ms = now;
                answer(row)
            }
            "archive" => {
                let of: OfCredential = arguments(verb, value)?;
                state.principals.push(of.principal);
                let now = state.now();
                let row = state.row(&of.credential)?;
                row.archived_at_ms = Some(now);
                answer(row)
            }
            "delete" => {
                let of: OfCredential = arguments(verb, value)?;
                state.principals.push(of.principal);
                let row = state.row(&of.credential)?.clone();
                state.rows.retain(|other| other.id != row.id);
                answer(&row)
            }
            "list" => {
                let list: List = arguments(verb, value)?;
                let wanted = |row: &&CredentialRow| {
                    list.collection
                        .as_ref()
                        .is_none_or(|collection| row.collection == *collection)
                        && (list.include_archived || row.archived_at_ms.is_none())
                };
                let credentials = state.rows.iter().filter(wanted).cloned().collect();
                answer(&Credentials { credentials })
            }
            other => Err(unknown_verb(other)),
        }
    }
}

/// An api in its own temporary home.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) socket: PathBuf,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) vault: Arc<FakeVault>,
    /// The log, for what a harness would write.
    pub(crate) log: SessionClient,
    pub(crate) uid: u32,
    /// Everything that was ever answered.
    pub(crate) answers: Mutex<Vec<String>>,
    pub(crate) stop: CancellationToken,
    pub(crate) api_stop: CancellationToken,
    session_links: mpsc::Sender<Linked>,
    api_session: mpsc::Sender<UnixStream>,
    _vault_links: mpsc::Sender<UnixStream>,
    _log_links: mpsc::Sender<UnixStream>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn for_api(link: UnixStream) -> Linked {
    Linked::new(Rights::Everything, link)
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_with(|uid| vec![uid]).await
    }

    /// Starts with these operators, told the test's own uid.
    pub(crate) async fn start_with(operators: impl FnOnce(u32) -> Vec<u32>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let uid = std::fs::metadata(directory.path()).unwrap().uid();
        let stop = CancellationToken::new();

        let (session_links, links) = mpsc::channel(8);
        let options = claviger_session::role::Options {
            directory: directory.path().join("session"),
        };
        tokio::spawn(claviger_session::role::run(options, links, stop.clone()));

        let vault = Arc::new(FakeVault {
            key: KeyPair::generate().unwrap(),
            state: Mutex::default(),
        });
        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(serve(Arc::clone(&vault), theirs, stop.clone()));
        let (vault_links, vault_receiver) = mpsc::channel(8);
        vault_links.send(ours).await.unwrap();

        let (log_links, receiver) = mpsc::channel(8);
        let (log, driver) = SessionClient::new(receiver);
        tokio::spawn(driver);
        let (ours, theirs) = UnixStream::pair().unwrap();
        log_links.send(ours).await.unwrap();
        session_links.send(for_api(theirs)).await.unwrap();

        let (api_session, session_receiver) = mpsc::channel(8);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let socket = directory.path().join("api.sock");
        let options = Options {
            mcp_url: MCP_URL.to_owned(),
            vault_key: vault.key.public(),
            operators: operators(uid),
        };
        let links = Links {
            session: session_receiver,
            vault: vault_receiver,
            http: Some(listener),
            unix: Some(UnixListener::bind(&socket).unwrap()),
        };
        let api_stop = stop.child_token();
        tokio::spawn(run(options, links, api_stop.clone()));
        let server = Self {
            address,
            socket,
            directory,
            vault,
            log,
            uid,
            answers: Mutex::default(),
            stop,
            api_stop,
            session_links,
            api_session,
            _vault_links: vault_links,
            _log_links: log_links,
        };
        server.relink().await;
        server
    }

    /// Gives the api a fresh link to the session role; the old one breaks.
    pub(crate) async fn relink(&self) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.session_links.send(for_api(theirs)).await.unwrap();
        self.api_session.send(ours).await.unwrap();
    }

    /// Sends exactly this request over TCP.
    pub(crate) async fn raw(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Reply {
        let stream = TcpStream::connect(self.address).await.unwrap();
        self.over(stream, method, path, headers, body).await
    }

    /// Sends exactly this request over the unix socket.
    pub(crate) async fn local(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Value,
    ) -> Reply {
        let stream = UnixStream::connect(&self.socket).await.unwrap();
        self.over(stream, method, path, headers, body.to_string().into_bytes())
            .await
    }

    async fn over<S>(
        &self,
        stream: S,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Reply
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    {
        let response = exchange(stream, self.address, method, path, headers, body).await;
        let (head, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        self.answers
            .lock()
            .unwrap()
            .push(format!("{:?}\n{text}", head.headers));
        let body = serde_json::from_str(&text)
            .unwrap_or_else(|_| panic!("{method} {path}: {} {text}", head.status));
        assert!(head.headers.contains_key("request-id"), "{method} {path}");
        Reply {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
        }
    }

    /// A request with a key, as the newest SDKs send it.
    pub(crate) async fn call(&self, key: &str, method: &str, path: &str, body: Value) -> Reply {
        let bearer = format!("Bearer {key}");
        let headers = [
            ("authorization", bearer.as_str()),
            ("anthropic-version", "2026-10-21"),
            ("anthropic-beta", "managed-agents-2026-04-01"),
            ("content-type", "application/json"),
        ];
        let body = if body.is_null() {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        self.raw(method, path, &headers, body).await
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        self.call(ALICE, "GET", path, Value::Null).await.ok()
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Value {
        self.call(ALICE, "POST", path, body).await.ok()
    }

    /// Expects a refusal with this status and code.
    pub(crate) async fn refused(
        &self,
        method: &str,
        path: &str,
        body: Value,
        status: u16,
        code: &str,
    ) -> Reply {
        let reply = self.call(ALICE, method, path, body).await;
        reply.assert_refused(status, code);
        reply
    }

    /// An agent and an environment, made by Alice.
    pub(crate) async fn workplace(&self) -> (String, String) {
        let agent = self
            .post(
                "/v1/agents",
                json!({"name": "a", "model": "claude-opus-5-5"}),
            )
            .await;
        let environment = self.post("/v1/environments", json!({"name": "e"})).await;
        (id(&agent), id(&environment))
    }

    /// A session without events.
    pub(crate) async fn session(&self) -> String {
        let (agent, environment) = self.workplace().await;
        id(&self
            .post(
                "/v1/sessions",
                json!({"agent": agent, "environment_id": environment}),
            )
            .await)
    }

    /// Writes as a harness would, under a lease of its own; returns what was stored.
    pub(crate) async fn harness(
        &self,
        session: &str,
        events: Vec<(&str, Value)>,
    ) -> Vec<claviger_session::Event> {
        let session: SessionId = session.parse().unwrap();
        let lease = self.log.lease(&session, "hrn_test", 60_000).await.unwrap();
        let mut head = lease.head;
        let mut stored = Vec::new();
        for (kind, payload) in events {
            loop {
                let event = vec![NewEvent::new(kind, payload.clone())];
                match self.log.append(&session, head, lease.epoch, event).await {
                    Ok(events) => {
                        head += 1;
                        stored.extend(events);
                        break;
                    }
                    Err(claviger_session::SessionError::Conflict { head: newer }) => head = newer,
                    Err(error) => panic!("{error}"),
                }
            }
        }
        self.log
            .release(&session, "hrn_test", lease.epoch)
            .await
            .unwrap();
        stored
    }

    /// Opens an event stream.
    pub(crate) async fn stream(&self, path: &str, last_event_id: Option<&str>) -> Frames {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let mut headers = vec![("x-api-key", ALICE), ("accept", "application/json")];
        headers.extend(last_event_id.map(|id| ("last-event-id", id)));
        let response = exchange(stream, self.address, "GET", path, &headers, Vec::new()).await;
        assert_eq!(response.status(), 200);
        assert_eq!(
            response.headers()["content-type"],
            "text/event-stream; charset=utf-8"
        );
        Frames {
            body: response.into_body(),
            text: String::new(),
        }
    }
}

async fn exchange<S>(
    stream: S,
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> hyper::Response<Incoming>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let mut request = hyper::Request::builder().method(method).uri(path);
    if !headers.iter().any(|(name, _)| *name == "host") {
        request = request.header("host", address.to_string());
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from(body))).unwrap();
    tokio::time::timeout(Duration::from_secs(20), sender.send_request(request))
        .await
        .unwrap()
        .unwrap()
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: hyper::HeaderMap,
    pub(crate) body: Value,
}

impl Reply {
    #[track_caller]
    pub(crate) fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.body
    }

    /// Checks the whole error envelope.
    #[track_caller]
    pub(crate) fn assert_refused(&self, status: u16, code: &str) {
        assert_eq!(
            (
                self.status,
                self.body["error"]["details"]["error_code"].as_str()
            ),
            (status, Some(code)),
            "{}",
            self.body
        );
        assert_eq!(self.body["type"], "error");
        assert!(
            self.body["error"]["message"]
                .as_str()
                .is_some_and(|message| !message.is_empty())
        );
        assert_eq!(
            self.body["request_id"].as_str().unwrap(),
            self.headers["request-id"]
        );
        let kind = match status {
            400 | 405 | 413 => "invalid_request_error",
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            409 => "conflict_error",
            503 => "api_error",
            other => panic!("unexpected status {other}"),
        };
        assert_eq!(self.body["error"]["type"], kind);
        assert_eq!(
            self.headers
                .get("x-should-retry")
                .is_some_and(|retry| retry == "false"),
            status == 409
        );
    }
}

/// Server-sent events as they arrive.
pub(crate) struct Frames {
    body: Incoming,
    text: String,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Frame {
    pub(crate) event: String,
    pub(crate) id: Option<String>,
    pub(crate) data: Value,
}

impl Frames {
    /// The next frame; none where the stream ended.
    pub(crate) async fn next_any(&mut self) -> Option<Frame> {
        loop {
            if let Some((frame, rest)) = self.text.split_once("\n\n") {
                let line = |name: &str| {
                    let lines = frame
                        .lines()
                        .filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                    lines.map(str::to_owned).next()
                };
                let frame = Frame {
                    event: line("event").expect("every frame names its event"),
                    id: line("id"),
                    data: serde_json::from_str(&line("data").unwrap()).unwrap(),
                };
                self.text = rest.to_owned();
                return Some(frame);
            }
            let frame = tokio::time::timeout(Duration::from_secs(20), self.body.frame())
                .await
                .expect("a frame in time");
            let bytes = frame?.ok()?.into_data().unwrap();
            self.text.push_str(std::str::from_utf8(&bytes).unwrap());
        }
    }

    /// The next frame that is no sign of life.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        loop {
            match self.next_any().await? {
                Frame { event, data, .. } if event == "ping" => {
                    assert_eq!(data, json!({"type": "ping"}));
                }
                frame => return Some(frame),
            }
        }
    }
}

pub(crate) fn id(object: &Value) -> String {
    object["id"]
        .as_str()
        .unwrap_or_else(|| panic!("no id in {object}"))
        .to_owned()
}

/// Checks that an object has exactly these fields.
#[track_caller]
pub(crate) fn assert_fields(object: &Value, fields: &[&str]) {
    let mut names: Vec<_> = object
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    let mut expected = fields.to_vec();
    names.sort_unstable();
    expected.sort_unstable();
    assert_eq!(names, expected);
}

/// Checks the prefix of an id and its times.
#[track_caller]
pub(crate) fn assert_made(object: &Value, prefix: &str, kind: &str) {
    assert!(id(object).starts_with(prefix), "{object}");
    assert_eq!(object["type"], kind);
    for time in ["created_at", "updated_at"] {
        let time = object[time].as_str().unwrap();
        assert!(time.parse::<jiff::Timestamp>().is_ok(), "{time}");
    }
}
