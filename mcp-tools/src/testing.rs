//! What the tests of this crate stand on: a vault that really seals, and an upstream that records.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use claviger_vault_memory::SecretBytes;
use claviger_vault_protocol::admin::{AuthenticateKey, KeyHolder, Nothing, Permit, Permits};
use claviger_vault_protocol::client::ToolsVault;
use claviger_vault_protocol::opening::{Accept, EndOpening, OpenSeat, RegisterTools};
use claviger_vault_protocol::sealed::{RELEASE_PURPOSE, grant_associated, seal_grant};
use claviger_vault_protocol::usage::{AuthorizeUse, Authorized, RecordOutcome, Report};
use claviger_vault_protocol::wire::{self, Greeting, Link, Verbs};
use claviger_vault_protocol::{
    Binding, CredentialId, CredentialKind, Destination, Envelope, GrantId, KeyPair, Opening,
    OpeningId, Principal, PublicKey, Refusal, Slot, UseId,
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::catalog::Catalog;
use crate::dial::Dialer;
use crate::openings::Openings;
use crate::shared::Shared;
use crate::spend::Spender;

/// A secret whose forms all differ from each other.
pub(crate) const SECRET: &str = "sk-live/+?canary~&<\"0123456789abcXYZ";
/// The one API key that the fake vault knows.
pub(crate) const API_KEY: &str = "clv_test_0123456789abcdef";

/// What the fake vault was told and what it shall do.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) asked: Vec<AuthorizeUse>,
    pub(crate) outcomes: Vec<RecordOutcome>,
    pub(crate) reports: Vec<Report>,
    pub(crate) seats: Vec<OpenSeat>,
    pub(crate) ended: Vec<EndOpening>,
    pub(crate) accepted: usize,
    pub(crate) keys_asked: usize,
    /// Refuse the next uses with this code.
    pub(crate) deny: Option<&'static str>,
    /// Release with another key pair than the pinned one.
    pub(crate) forge: bool,
    /// Release for another use than the one asked for.
    pub(crate) misdirect: bool,
    /// Answer with this newer version of the secret.
    pub(crate) rotated: Option<&'static str>,
    pub(crate) permits: Vec<Permit>,
    /// Name, secret and binding of what seats are given.
    pub(crate) seat_credentials: Vec<(String, String, Binding)>,
    tools_key: Option<PublicKey>,
    openings: HashMap<OpeningId, Opening>,
    grants: HashMap<GrantId, (Vec<u8>, Envelope, String, u64)>,
}

/// A vault over a socketpair.
pub(crate) struct FakeVault {
    key: KeyPair,
    pub(crate) seen: Mutex<Seen>,
}

impl FakeVault {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            key: KeyPair::generate().unwrap(),
            seen: Mutex::default(),
        })
    }

    pub(crate) fn public_key(&self) -> PublicKey {
        self.key.public()
    }

    pub(crate) fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    /// Opens a credential for a session and epoch, as the vault does at `open_session`.
    pub(crate) fn grant(
        &self,
        session: &str,
        epoch: u64,
        name: &str,
        secret: &str,
        binding: Binding,
    ) -> Envelope {
        let mut envelope = Envelope {
            grant: GrantId::random(),
            credential: CredentialId::from(format!("vcrd_{name}")),
            name: name.to_owned(),
            version: 1,
            kind: if binding.slot == Slot::None {
                CredentialKind::None
            } else {
                CredentialKind::Header
            },
            binding,
            placeholder: format!("clv_placeholder_{name}_{}", uuid::Uuid::new_v4().simple()),
            variable: None,
            ciphertext: String::new(),
        };
        let key: Vec<u8> = Sha256::digest(envelope.grant.as_str().as_bytes()).to_vec();
        envelope.ciphertext = seal(&key, session, epoch, &envelope, 1, secret);
        let entry = (key, envelope.clone(), session.to_owned(), epoch);
        self.seen().grants.insert(envelope.grant.clone(), entry);
        envelope
    }

    /// An opening that `accept` will answer.
    pub(crate) fn opening(&self, session: &str, epoch: u64, grants: Vec<Envelope>) -> Opening {
        let opening = Opening {
            opening: OpeningId::random(),
            session: session.to_owned(),
            epoch,
            principal: Principal::from("key:key_test".to_owned()),
            tools: vec!["*".to_owned()],
            model_grant: grants
                .iter()
                .find(|grant| grant.name == "anthropic")
                .map(|grant| grant.grant.clone()),
            grants,
            expires_at_ms: u64::MAX,
        };
        self.seen()
            .openings
            .insert(opening.opening.clone(), opening.clone());
        opening
    }

    fn authorize(&self, ask: AuthorizeUse) -> Result<Authorized, Refusal> {
        let mut seen = self.seen();
        seen.asked.push(ask.clone());
        if let Some(code) = seen.deny {
            return Err(Refusal::new(code, "denied by the test"));
        }
        let (key, envelope, session, epoch) = seen
            .grants
            .get(&ask.grant)
            .ok_or_else(|| Refusal::new("grant_not_found", "no such grant"))?;
        assert_eq!((&ask.session, ask.epoch), (session, *epoch));
        envelope
            .binding
            .admits(&ask.destination, &ask.method, &ask.path)
            .map_err(|code| Refusal::new(code, "outside the binding"))?;
        let use_id = UseId::random();
        let sender = if seen.forge {
            KeyPair::generate().unwrap()
        } else {
            KeyPair::from_private(copy(self.key.private())).unwrap()
        };
        let bound = if seen.misdirect {
            UseId::random()
        } else {
            use_id.clone()
        };
        let release = (envelope.binding.slot != Slot::None).then(|| {
            sender
                .seal_to(
                    seen.tools_key.expect("tools registered"),
                    &SecretBytes::copy_of(key).unwrap(),
                    RELEASE_PURPOSE,
                    bound.as_str().as_bytes(),
                )
                .unwrap()
        });
        let ciphertext = seen
            .rotated
            .map(|secret| seal(key, session, *epoch, envelope, 2, secret));
        let version = if ciphertext.is_some() { 2 } else { 1 };
        Ok(Authorized {
            use_id,
            audit_seq: 1,
            release,
            ciphertext,
            version,
        })
    }

    fn seat(&self, ask: OpenSeat) -> Opening {
        let (number, credentials) = {
            let mut seen = self.seen();
            seen.seats.push(ask.clone());
            (seen.seats.len(), seen.seat_credentials.clone())
        };
        let session = format!("seat_{number}");
        let grants = credentials
            .into_iter()
            .map(|(name, secret, binding)| self.grant(&session, 1, &name, &secret, binding))
            .collect();
        Opening {
            principal: ask.principal,
            ..self.opening(&session, 1, grants)
        }
    }
}

fn copy(secret: &SecretBytes) -> SecretBytes {
    SecretBytes::copy_of(secret.expose()).unwrap()
}

fn seal(
    key: &[u8],
    session: &str,
    epoch: u64,
    envelope: &Envelope,
    version: u32,
    secret: &str,
) -> String {
    let binding = serde_json::to_vec(&envelope.binding).unwrap();
    let associated = grant_associated(
        session,
        epoch,
        envelope.grant.as_str(),
        envelope.credential.as_str(),
        version,
        &binding,
    );
    let (key, secret) = (
        SecretBytes::copy_of(key).unwrap(),
        SecretBytes::copy_of(secret.as_bytes()).unwrap(),
    );
    seal_grant(&key, &secret, &associated).unwrap()
}

impl Verbs for FakeVault {
    fn names(&self) -> Vec<&'static str> {
        Vec::new()
    }

    async fn call(&self, verb: &str, arguments: Value) -> Result<Value, Refusal> {
        match verb {
            "register_tools" => {
                let register: RegisterTools = wire::arguments(verb, arguments)?;
                self.seen().tools_key = PublicKey::parse(&register.key).ok();
                wire::answer(&Nothing {})
            }
            "accept" => {
                let accept: Accept = wire::arguments(verb, arguments)?;
                let mut seen = self.seen();
                seen.accepted += 1;
                let opening = seen.openings.get(&accept.opening);
                wire::answer(
                    opening.ok_or_else(|| Refusal::new("opening_not_found", "no such opening"))?,
                )
            }
            "open_seat" => wire::answer(&self.seat(wire::arguments(verb, arguments)?)),
            "end_opening" => {
                self.seen().ended.push(wire::arguments(verb, arguments)?);
                wire::answer(&Nothing {})
            }
            "authorize_use" => wire::answer(&self.authorize(wire::arguments(verb, arguments)?)?),
            "record_outcome" => {
                self.seen().outcomes.push(wire::arguments(verb, arguments)?);
                wire::answer(&Nothing {})
            }
            "report" => {
                self.seen().reports.push(wire::arguments(verb, arguments)?);
                wire::answer(&Nothing {})
            }
            "list_permits" => wire::answer(&Permits {
                policy_version: 1,
                permits: self.seen().permits.clone(),
            }),
            "authenticate_key" => {
                let ask: AuthenticateKey = wire::arguments(verb, arguments)?;
                self.seen().keys_asked += 1;
                if ask.key_hash != hex::encode(Sha256::digest(API_KEY)) {
                    return Err(Refusal::new("key_unknown", "no such key"));
                }
                let principal = Principal::key("key_test");
                wire::answer(&KeyHolder {
                    key: "key_test".into(),
                    principal,
                    label: "test".into(),
                })
            }
            other => Err(wire::unknown_verb(other)),
        }
    }
}

/// A whole tools instance over a fake vault; tool definitions come from `tools`.
pub(crate) async fn shared_in(vault: &Arc<FakeVault>, tools: &Path) -> Arc<Shared> {
    let key = KeyPair::generate().unwrap();
    let register = RegisterTools {
        instance: "tools_test".into(),
        key: key.public().to_string(),
    };
    let greeting = Greeting {
        verb: "register_tools",
        arguments: serde_json::to_value(register).unwrap(),
    };
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (sender, links) = mpsc::channel(1);
    sender.send(ours).await.unwrap();
    let vault_side = Arc::clone(vault);
    tokio::spawn(async move {
        // The link lives as long as the test.
        let _sender = sender;
        wire::serve(vault_side, theirs, CancellationToken::new()).await
    });
    let (link, driver) = Link::new("vault", links, Some(greeting));
    tokio::spawn(driver);
    assert!(link.connected().await);
    let tools_vault = ToolsVault(link);
    let tasks = TaskTracker::new();
    let dialer = Arc::new(Dialer::new());
    Arc::new(Shared {
        openings: Openings::new(tools_vault.clone()),
        presenters: crate::presenters::Presenters::default(),
        spender: Spender::new(
            tools_vault.clone(),
            vault.public_key(),
            key,
            dialer,
            tasks.clone(),
        ),
        vault: tools_vault,
        catalog: Arc::new(Catalog::new(tools.to_owned())),
        tasks,
    })
}

/// As [`shared_in`] without tool definitions.
pub(crate) async fn shared(vault: &Arc<FakeVault>) -> Arc<Shared> {
    shared_in(vault, Path::new("/nonexistent")).await
}

/// Binds a header slot at an upstream.
pub(crate) fn bearer(to: SocketAddr) -> Binding {
    bound(
        to,
        Slot::Header {
            name: "authorization".into(),
            prefix: "Bearer ".into(),
        },
    )
}

/// Binds any slot at an upstream.
pub(crate) fn bound(to: SocketAddr, slot: Slot) -> Binding {
    Binding {
        destination: Destination {
            scheme: "http".into(),
            host: to.ip().to_string(),
            port: to.port(),
        },
        methods: Vec::new(),
        path_prefixes: Vec::new(),
        slot,
    }
}

/// A loopback upstream that answers what its handler says, and records.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<String>>>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Upstream {
    /// Answers each request (head and body as text) with raw bytes, then closes.
    pub(crate) async fn answering(
        handler: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        Self::serving(move |request, mut stream| {
            let answer = handler(&request);
            async move {
                stream.write_all(&answer).await.ok();
                stream.shutdown().await.ok();
            }
        })
        .await
    }

    /// Gives each connection to a handler once its request is read.
    pub(crate) async fn serving<F>(
        handler: impl Fn(String, TcpStream) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (connections, requests) = (
            Arc::new(AtomicUsize::new(0)),
            Arc::new(Mutex::new(Vec::new())),
        );
        let (counter, log, handler) = (
            Arc::clone(&connections),
            Arc::clone(&requests),
            Arc::new(handler),
        );
        let server = tokio::spawn(async move {
            loop {
                let Ok((mut stream, _)) = listener.accept().await else {
                    return;
                };
                counter.fetch_add(1, Ordering::SeqCst);
                let (log, handler) = (Arc::clone(&log), Arc::clone(&handler));
                tokio::spawn(async move {
                    if let Some(request) = read_request(&mut stream).await {
                        log.lock().unwrap().push(request.clone());
                        handler(request, stream).await;
                    }
                });
            }
        });
        Self {
            address,
            connections,
            requests,
            server,
        }
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    pub(crate) fn url(&self, path: &str) -> url::Url {
        url::Url::parse(&format!("http://{}{path}", self.address)).unwrap()
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let read = stream
            .read(&mut buffer)
            .await
            .ok()
            .filter(|read| *read > 0)?;
        bytes.extend_from_slice(&buffer[..read]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head
            .lines()
            .find_map(|line| {
                line.to_ascii_lowercase()
                    .strip_prefix("content-length:")
                    .map(|n| n.trim().parse::<usize>().unwrap())
            })
            .unwrap_or(0);
        let is_whole = if head
            .to_ascii_lowercase()
            .contains("transfer-encoding: chunked")
        {
            body.ends_with("0\r\n\r\n")
        } else {
            body.len() >= length
        };
        if is_whole {
            return Some(text);
        }
    }
}

/// An answer with a body and its length.
pub(crate) fn ok(headers: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n{headers}\r\n",
        body.len()
    )
    .into_bytes();
    answer.extend_from_slice(body);
    answer
}

/// The forms of [`SECRET`] that appear in `text`, by the memory scan's own, independent list.
pub(crate) fn leaks(text: &[u8]) -> Vec<&'static str> {
    claviger_vault_memory::forms::of(SECRET.as_bytes())
        .into_iter()
        .filter(|(_, form)| text.windows(form.len()).any(|part| part == form.as_slice()))
        .map(|(name, _)| name)
        .collect()
}
