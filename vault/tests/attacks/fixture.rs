//! A vault in a temporary home, and peers that talk to it as the roles do.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use claviger_vault::VaultError;
use claviger_vault::clock::Clock;
use claviger_vault::role::{Connection, Options, run_with_clock};
use claviger_vault_memory::SecretBytes;
use claviger_vault_protocol::admin::{
    AUTH_PURPOSE, Authentication, CredentialRow, Init, Initialized, Nothing, PUT_PURPOSE, Permit,
    PermitTool, Put, ReadAudit, Rotate, SealChoice,
};
use claviger_vault_protocol::client::{AdminVault, ApiVault, HarnessVault, ToolsVault};
use claviger_vault_protocol::opening::{Accept, OpenSession, RegisterTools};
use claviger_vault_protocol::sealed::{grant_associated, open_grant, seal};
use claviger_vault_protocol::usage::{AuthorizeUse, Authorized};
use claviger_vault_protocol::wire::{Greeting, Link};
use claviger_vault_protocol::{
    Binding, Charter, CredentialId, CredentialKind, Destination, KeyPair, Opening, Principal,
    PublicKey, Role, Sealed, Slot, WireError,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const SECRET: &str = "sk-marked-7f3a9c51e2b84d06";
pub(crate) const HOST: &str = "https://api.example.com";

/// Time that moves when told.
#[derive(Debug)]
pub(crate) struct TestClock(AtomicU64);

impl TestClock {
    pub(crate) fn pass(&self, ms: u64) {
        self.0.fetch_add(ms, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn wall_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    fn monotonic_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// A home, with or without a running vault.
pub(crate) struct Home {
    pub(crate) directory: TempDir,
    pub(crate) clock: Arc<TestClock>,
}

/// A running vault.
pub(crate) struct Running {
    connections: mpsc::Sender<Connection>,
    socket: PathBuf,
    stop: CancellationToken,
    task: JoinHandle<Result<(), VaultError>>,
}

/// One connection; dropping it closes it.
pub(crate) struct Peer<C> {
    pub(crate) client: C,
    pub(crate) link: Link,
    _connections: mpsc::Sender<UnixStream>,
    driver: JoinHandle<()>,
}

impl<C> Drop for Peer<C> {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl<C> Peer<C> {
    /// Calls any verb with any arguments.
    pub(crate) async fn raw(
        &self,
        verb: &'static str,
        arguments: Value,
    ) -> Result<Value, WireError> {
        self.link
            .call(verb, &arguments, std::time::Duration::from_secs(20))
            .await
    }
}

/// A tools instance with its key.
pub(crate) struct Instance {
    pub(crate) name: String,
    pub(crate) key: KeyPair,
}

impl Instance {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            key: KeyPair::generate().unwrap(),
        }
    }
}

impl Home {
    pub(crate) fn new() -> Self {
        let clock = Arc::new(TestClock(AtomicU64::new(1_800_000_000_000)));
        Self {
            directory: tempfile::tempdir().unwrap(),
            clock,
        }
    }

    pub(crate) fn vault(&self) -> PathBuf {
        self.directory.path().join("vault")
    }

    pub(crate) fn options(&self) -> Options {
        Options {
            directory: self.vault(),
            public_key_file: self.directory.path().join("vault.pub"),
            operators: vec![rustix::process::getuid().as_raw()],
        }
    }

    pub(crate) fn start(&self) -> Running {
        self.start_with(self.options())
    }

    pub(crate) fn start_with(&self, options: Options) -> Running {
        let socket = self.directory.path().join("admin.sock");
        drop(std::fs::remove_file(&socket));
        let listener = UnixListener::bind(&socket).unwrap();
        let (connections, receiver) = mpsc::channel(64);
        let stop = CancellationToken::new();
        let clock: Arc<dyn Clock> = Arc::clone(&self.clock) as Arc<dyn Clock>;
        let task = tokio::spawn(run_with_clock(
            options,
            receiver,
            Some(listener),
            stop.clone(),
            clock,
        ));
        Running {
            connections,
            socket,
            stop,
            task,
        }
    }

    /// Starts and expects that the vault refuses to.
    pub(crate) async fn refusal(&self) -> VaultError {
        let running = self.start();
        let ended = tokio::time::timeout(std::time::Duration::from_secs(20), running.task).await;
        ended
            .expect("the vault starts")
            .unwrap()
            .expect_err("the vault ends well")
    }
}

fn peer<C>(stream: UnixStream, greeting: Option<Greeting>, client: impl Fn(Link) -> C) -> Peer<C> {
    let (sender, receiver) = mpsc::channel(1);
    sender.try_send(stream).unwrap();
    let (link, driver) = Link::new("vault", receiver, greeting);
    Peer {
        client: client(link.clone()),
        link,
        _connections: sender,
        driver: tokio::spawn(driver),
    }
}

impl Running {
    pub(crate) async fn stop(self) -> Result<(), VaultError> {
        self.stop.cancel();
        self.task.await.unwrap()
    }

    /// Ends the vault without a word, as a crash does to everything that is not on disk.
    pub(crate) async fn crash(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }

    pub(crate) async fn admin(&self) -> Peer<AdminVault> {
        peer(
            UnixStream::connect(&self.socket).await.unwrap(),
            None,
            AdminVault,
        )
    }

    async fn connect(&self, role: Role, instance: &str) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.connections
            .send(Connection {
                role,
                instance: instance.to_owned(),
                stream: theirs,
            })
            .await
            .unwrap();
        ours
    }

    pub(crate) async fn api(&self) -> Peer<ApiVault> {
        peer(self.connect(Role::Api, "api-1").await, None, ApiVault)
    }

    pub(crate) async fn harness(&self, connection: &str) -> Peer<HarnessVault> {
        peer(
            self.connect(Role::Harness, connection).await,
            None,
            HarnessVault,
        )
    }

    pub(crate) async fn tools_unregistered(&self, connection: &str) -> Peer<ToolsVault> {
        peer(
            self.connect(Role::Tools, connection).await,
            None,
            ToolsVault,
        )
    }

    pub(crate) async fn tools(&self, connection: &str, instance: &Instance) -> Peer<ToolsVault> {
        let arguments = serde_json::to_value(RegisterTools {
            instance: instance.name.clone(),
            key: instance.key.public().to_string(),
        });
        let greeting = Greeting {
            verb: "register_tools",
            arguments: arguments.unwrap(),
        };
        let tools = peer(
            self.connect(Role::Tools, connection).await,
            Some(greeting),
            ToolsVault,
        );
        assert!(tools.link.connected().await);
        tools
    }
}

/// A vault with one credential, one permitted tool, one model key and one session's charter.
pub(crate) struct World {
    pub(crate) home: Home,
    pub(crate) running: Running,
    pub(crate) admin: Peer<AdminVault>,
    pub(crate) api: Peer<ApiVault>,
    pub(crate) made: Initialized,
    pub(crate) vault_key: PublicKey,
    pub(crate) principal: Principal,
    pub(crate) tracker: CredentialRow,
    pub(crate) model: CredentialRow,
}

pub(crate) const SESSION: &str = "sesn_1";
pub(crate) const HASH: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

pub(crate) fn secret(text: &str) -> SecretBytes {
    SecretBytes::copy_of(text.as_bytes()).unwrap()
}

pub(crate) fn binding(host: &str) -> Binding {
    Binding {
        destination: Destination::parse(host).unwrap(),
        methods: vec!["GET".to_owned(), "POST".to_owned()],
        path_prefixes: vec!["/v1".to_owned()],
        slot: Slot::Header {
            name: "authorization".to_owned(),
            prefix: "Bearer ".to_owned(),
        },
    }
}

pub(crate) fn put(key: PublicKey, collection: &str, name: &str, text: &str) -> Put {
    let (kind, binding) = (CredentialKind::Bearer, binding(HOST));
    let associated = Put::associated(collection, name, kind, &binding);
    Put {
        auth: Authentication::default(),
        collection: collection.to_owned(),
        name: name.to_owned(),
        kind,
        binding,
        variable: Some(format!("{}_TOKEN", name.to_uppercase())),
        secret: Some(seal(key, &secret(text), PUT_PURPOSE, &associated).unwrap()),
        short: false,
        principal: None,
        metadata: Value::Null,
    }
}

pub(crate) fn rotate(key: PublicKey, credential: &CredentialId, text: &str) -> Rotate {
    Rotate {
        auth: Authentication::default(),
        credential: credential.clone(),
        secret: seal(
            key,
            &secret(text),
            PUT_PURPOSE,
            credential.as_str().as_bytes(),
        )
        .unwrap(),
        short: false,
        principal: None,
    }
}

pub(crate) fn passphrase(session_key: &str, purpose: &str, verb: &str, text: &str) -> Sealed {
    seal(
        PublicKey::parse(session_key).unwrap(),
        &secret(text),
        purpose,
        verb.as_bytes(),
    )
    .unwrap()
}

pub(crate) fn authentication(session_key: &str, verb: &str, text: &str) -> Authentication {
    Authentication {
        passphrase: Some(passphrase(session_key, AUTH_PURPOSE, verb, text)),
    }
}

pub(crate) fn init() -> Init {
    Init {
        seal: SealChoice::KeyFile,
        operator_passphrase: None,
        first_key_label: "first".to_owned(),
        demo: false,
    }
}

pub(crate) fn charter(session: &str, principal: &Principal, now_ms: u64) -> Charter {
    Charter {
        session: session.to_owned(),
        principal: principal.clone(),
        vaults: vec!["vlt_local".to_owned()],
        agent: "agent_1".to_owned(),
        model_credential: "anthropic".to_owned(),
        tools: vec!["*".to_owned()],
        expires_at_ms: now_ms + 3_600_000,
    }
}

pub(crate) fn open_session(epoch: u64, instance: &str) -> OpenSession {
    OpenSession {
        session: SESSION.to_owned(),
        epoch,
        instance: instance.to_owned(),
        head: (7, HASH.to_owned()),
    }
}

pub(crate) fn accept(opening: &Opening) -> Accept {
    Accept {
        opening: opening.opening.clone(),
        session: opening.session.clone(),
        epoch: opening.epoch,
    }
}

/// The code of a refusal.
pub(crate) fn code<T: std::fmt::Debug>(result: Result<T, WireError>) -> String {
    result.expect_err("not refused").code().to_owned()
}

impl World {
    pub(crate) async fn new() -> Self {
        let home = Home::new();
        let running = home.start();
        let admin = running.admin().await;
        let made = admin.client.init(&init()).await.unwrap();
        let vault_key = PublicKey::parse(&made.key).unwrap();
        let tracker = admin
            .client
            .put(&put(vault_key, "vlt_local", "tracker", SECRET))
            .await
            .unwrap();
        let model = admin
            .client
            .put(&put(
                vault_key,
                "vlt_system",
                "anthropic",
                "sk-ant-model-key",
            ))
            .await
            .unwrap();
        let api = running.api().await;
        let key_hash = {
            use sha2::{Digest as _, Sha256};
            hex::encode(Sha256::digest(made.first_key.as_bytes()))
        };
        let holder = api
            .client
            .authenticate_key(&claviger_vault_protocol::admin::AuthenticateKey { key_hash })
            .await;
        let principal = holder.unwrap().principal;
        let permit = Permit {
            tool: "tracker".to_owned(),
            tool_hash: HASH.to_owned(),
            credential: tracker.id.clone(),
            principals: vec![principal.clone()],
            methods: vec![],
        };
        admin
            .client
            .permit_tool(&PermitTool {
                auth: Authentication::default(),
                permit,
            })
            .await
            .unwrap();
        api.client
            .register_charter(&charter(SESSION, &principal, home.clock.wall_ms()))
            .await
            .unwrap();
        Self {
            home,
            running,
            admin,
            api,
            made,
            vault_key,
            principal,
            tracker,
            model,
        }
    }

    /// Opens the session as a harness and accepts as a tools instance.
    pub(crate) async fn live(&self) -> (Opening, Instance, Peer<ToolsVault>) {
        let harness = self.running.harness("harness-1").await;
        let opening = harness
            .client
            .open_session(&open_session(1, "hrn_1"))
            .await
            .unwrap();
        let instance = Instance::new("tools_1");
        let tools = self.running.tools("tools", &instance).await;
        let accepted = tools.client.accept(&accept(&opening)).await.unwrap();
        (accepted, instance, tools)
    }

    pub(crate) async fn restart(self) -> Self {
        let Self {
            home,
            running,
            admin,
            api,
            made,
            vault_key,
            principal,
            tracker,
            model,
        } = self;
        drop((admin, api));
        running.stop().await.unwrap();
        let running = home.start();
        let admin = running.admin().await;
        let api = running.api().await;
        admin.client.status(&Nothing {}).await.unwrap();
        Self {
            home,
            running,
            admin,
            api,
            made,
            vault_key,
            principal,
            tracker,
            model,
        }
    }

    /// All audit records.
    pub(crate) async fn records(&self) -> Vec<Value> {
        self.admin
            .client
            .read_audit(&ReadAudit {
                after: 0,
                limit: 1_000,
            })
            .await
            .unwrap()
            .records
    }

    /// Opens what a release released, as tools does.
    pub(crate) fn spend(
        &self,
        instance: &Instance,
        opening: &Opening,
        name: &str,
        authorized: &Authorized,
    ) -> Option<Vec<u8>> {
        let envelope = opening
            .grants
            .iter()
            .find(|envelope| envelope.name == name)?;
        let key = instance
            .key
            .open_from(
                self.vault_key,
                authorized.release.as_ref()?,
                claviger_vault_protocol::sealed::RELEASE_PURPOSE,
                authorized.use_id.as_str().as_bytes(),
            )
            .ok()?;
        let associated = grant_associated(
            &opening.session,
            opening.epoch,
            envelope.grant.as_str(),
            envelope.credential.as_str(),
            authorized.version,
            &serde_json::to_vec(&envelope.binding).unwrap(),
        );
        let ciphertext = authorized
            .ciphertext
            .as_ref()
            .unwrap_or(&envelope.ciphertext);
        open_grant(&key, ciphertext, &associated)
            .ok()
            .map(|secret| secret.expose().to_vec())
    }
}

/// A use of the tracker that everything permits.
pub(crate) fn a_use(opening: &Opening, request_id: &str) -> AuthorizeUse {
    let envelope = opening
        .grants
        .iter()
        .find(|envelope| envelope.name == "tracker")
        .unwrap();
    AuthorizeUse {
        request_id: request_id.to_owned(),
        session: opening.session.clone(),
        epoch: opening.epoch,
        grant: envelope.grant.clone(),
        tool: "tracker".to_owned(),
        tool_hash: HASH.to_owned(),
        destination: Destination::parse(HOST).unwrap(),
        method: "POST".to_owned(),
        path: "/v1/issues".to_owned(),
        digest: HASH.to_owned(),
    }
}
