//! One role in this process: `claviger serve ROLE`, under a supervisor or by itself.

mod alone;
mod inbox;
mod proof;
mod reconnect;

use std::net::SocketAddr;
use std::process::ExitCode;

use serde_json::json;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::alone::Alone;
use self::inbox::{Inbox, streams, tcp_listener, unix_listener};
#[cfg(any(feature = "session", feature = "tools", feature = "vault"))]
use self::inbox::{WAITING, stream};
use crate::args::{RoleName, Serve};
use crate::control::{Control, End, FromRole, ToRole};
use crate::error::CliError;
use crate::home::Home;

/// Who brings the links: a supervisor on the control channel, or this process itself.
enum Origin {
    Alone(Alone),
    Supervisor(Control),
}

impl Origin {
    /// Tells the supervisor, where there is one, why this role cannot serve.
    fn failed(&self, error: CliError) -> CliError {
        match self {
            Self::Alone(_) => error,
            Self::Supervisor(control) => failed(control, &error.code, &error.what, error.fix),
        }
    }
}

/// Runs the role until the control channel closes or a `Stop` arrives; by itself, until SIGTERM.
pub(crate) fn run(serve: &Serve) -> Result<ExitCode, CliError> {
    let home = Home::inherited()?;
    let control = serve
        .control
        .then(Control::on_stdin)
        .transpose()
        .map_err(|error| CliError::internal("the control channel").because(error))?;
    // Before any thread: the zygote must be forked from a single-threaded process.
    #[cfg(feature = "hands")]
    let zygote = match serve.role {
        RoleName::Hands => Some(claviger_sandbox::hands::start_zygote().map_err(|error| {
            let (code, what) = ("sandbox_unavailable", error.to_string());
            match &control {
                Some(control) => failed(control, code, &what, None),
                None => CliError::refused(code, &what, Some("claviger doctor")),
            }
        })?),
        _ => None,
    };
    let inbox = Inbox::default();
    let mut origin = match control {
        Some(control) => Origin::Supervisor(control),
        None => Origin::Alone(Alone::prepare(serve, &home, &inbox)?),
    };
    harden(serve.role)?;
    crate::telemetry::start();
    #[cfg(feature = "tools")]
    drop(rustls::crypto::ring::default_provider().install_default());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build()
        .map_err(|error| CliError::internal("starting the runtime").because(error))?;
    let stop = CancellationToken::new();
    let roles = Roles {
        home,
        stop: stop.clone(),
        inbox: inbox.clone(),
        mcp: match &origin {
            Origin::Alone(alone) => alone.mcp,
            Origin::Supervisor(_) => None,
        },
        #[cfg(feature = "hands")]
        zygote,
        demo: serve.demo,
    };
    let role = serve.role;
    let result = runtime.block_on(async {
        let ready = begin(&mut origin, inbox, stop)?;
        Box::pin(roles.serve(role, ready)).await
    });
    runtime.shutdown_timeout(std::time::Duration::from_millis(500));
    if let Origin::Alone(alone) = &origin {
        alone.clean();
    }
    match result {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(origin.failed(error)),
    }
}

/// Starts what brings links; answers how to say that the role serves.
fn begin(
    origin: &mut Origin,
    inbox: Inbox,
    stop: CancellationToken,
) -> Result<Box<dyn FnOnce() + Send>, CliError> {
    match origin {
        Origin::Alone(alone) => {
            alone.start(&inbox, &stop)?;
            Ok(Box::new(|| info!("serving")))
        }
        Origin::Supervisor(control) => {
            let channel =
                |error: std::io::Error| CliError::internal("the control channel").because(error);
            let reader = control.try_clone().map_err(channel)?;
            let ready = control.try_clone().map_err(channel)?;
            std::thread::Builder::new()
                .name("control".to_owned())
                .spawn(move || listen(&reader, &inbox, &stop))
                .map_err(|error| CliError::internal("starting a thread").because(error))?;
            Ok(Box::new(move || {
                let detail = json!({});
                ready.send(&FromRole::Ready { detail }, None).ok();
            }))
        }
    }
}

/// What each role gives up before it serves (design rule 8).
fn harden(role: RoleName) -> Result<(), CliError> {
    use claviger_vault_memory::harden;
    let refused = |error: claviger_vault_memory::MemoryError| {
        CliError::internal("hardening this process").because(error)
    };
    if matches!(role, RoleName::Vault | RoleName::Tools) {
        harden::process().map_err(refused)?;
        harden::forbid_new_processes().map_err(refused)?;
    }
    if role == RoleName::Vault {
        harden::forbid_network().map_err(refused)?;
    }
    Ok(())
}

fn failed(control: &Control, code: &str, what: &str, fix: Option<String>) -> CliError {
    let message = FromRole::Failed {
        code: code.to_owned(),
        what: what.to_owned(),
        fix: fix.clone(),
    };
    control.send(&message, None).ok();
    CliError::refused(code, what, fix.as_deref())
}

/// Reads the control channel until it closes; then the role ends, whatever it is doing.
fn listen(control: &Control, inbox: &Inbox, stop: &CancellationToken) {
    loop {
        match control.receive::<ToRole>() {
            Ok(Some((ToRole::Link { link, peer, end }, Some(descriptor)))) => {
                let sender = inbox.link(&link, end);
                if sender.try_send((peer, descriptor)).is_err() {
                    warn!(link, "nobody takes this link");
                }
            }
            Ok(Some((ToRole::Listener { name }, Some(descriptor)))) => {
                inbox.put_listener(&name, descriptor);
            }
            Ok(Some((ToRole::Stop, _))) => {
                info!("stopping");
                stop.cancel();
            }
            Ok(Some(_)) => warn!("a control message without its descriptor"),
            Ok(None) | Err(_) => {
                stop.cancel();
                // A role that cannot finish in time must not outlive its supervisor.
                std::thread::sleep(std::time::Duration::from_secs(3));
                rustix::process::kill_process(
                    rustix::process::getpid(),
                    rustix::process::Signal::KILL,
                )
                .ok();
                return;
            }
        }
    }
}

/// What a role needs to start.
struct Roles {
    home: Home,
    stop: CancellationToken,
    inbox: Inbox,
    /// Where the MCP server is, where no supervisor says it.
    mcp: Option<SocketAddr>,
    #[cfg(feature = "hands")]
    zygote: Option<claviger_sandbox::hands::Zygote>,
    demo: bool,
}

impl Roles {
    async fn serve(self, role: RoleName, ready: impl FnOnce()) -> Result<(), CliError> {
        match role {
            #[cfg(feature = "api")]
            RoleName::Api => self.api(ready).await,
            #[cfg(feature = "hands")]
            RoleName::Hands => self.hands(ready).await,
            #[cfg(feature = "harness")]
            RoleName::Harness => self.harness(ready).await,
            #[cfg(feature = "session")]
            RoleName::Session => self.session(ready).await,
            #[cfg(feature = "tools")]
            RoleName::Tools => self.tools(ready).await,
            #[cfg(feature = "vault")]
            RoleName::Vault => self.vault(ready).await,
            #[cfg(not(all(
                feature = "api",
                feature = "hands",
                feature = "harness",
                feature = "session",
                feature = "tools",
                feature = "vault"
            )))]
            _ => {
                drop(ready);
                Err(CliError::usage(
                    "role_not_built",
                    "this binary was built without that role",
                ))
            }
        }
    }

    fn client(&self, link: &str) -> mpsc::Receiver<UnixStream> {
        streams(self.inbox.connections(link, End::Client))
    }

    /// As [`Self::server`], with what `make` makes of the peer's name.
    #[cfg(any(feature = "session", feature = "tools"))]
    fn linked<T: Send + 'static>(
        &self,
        link: &str,
        make: impl Fn(String, UnixStream) -> T + Send + 'static,
    ) -> mpsc::Receiver<T> {
        let mut connections = self.inbox.connections(link, End::Server);
        let (sender, receiver) = mpsc::channel(WAITING);
        tokio::spawn(async move {
            while let Some((peer, descriptor)) = connections.recv().await {
                match stream(descriptor) {
                    Ok(stream) => {
                        if sender.send(make(peer, stream)).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => warn!(%error, "a link could not be used"),
                }
            }
        });
        receiver
    }

    fn server(&self, link: &str) -> mpsc::Receiver<UnixStream> {
        streams(self.inbox.connections(link, End::Server))
    }

    async fn unix(&self, name: &str) -> Result<tokio::net::UnixListener, CliError> {
        let descriptor = self
            .inbox
            .listener(name)
            .await
            .ok_or_else(|| CliError::internal("no listener"))?;
        unix_listener(descriptor)
            .map_err(|error| CliError::internal(format!("listening on {name}")).because(error))
    }

    async fn tcp(&self, name: &str) -> Result<tokio::net::TcpListener, CliError> {
        let descriptor = self
            .inbox
            .listener(name)
            .await
            .ok_or_else(|| CliError::internal("no listener"))?;
        tcp_listener(descriptor)
            .map_err(|error| CliError::internal(format!("listening on {name}")).because(error))
    }

    #[cfg(feature = "vault")]
    async fn vault(self, ready: impl FnOnce()) -> Result<(), CliError> {
        use claviger_vault::role::{Connection, Options, run};
        use claviger_vault_protocol::Role;
        let admin = self.unix("admin").await?;
        let mut raw = self.inbox.connections("vault", End::Server);
        let (sender, connections) = mpsc::channel(WAITING);
        tokio::spawn(async move {
            while let Some((peer, descriptor)) = raw.recv().await {
                // The supervisor's word, not the peer's, decides what a connection may do.
                let role = match peer.split('-').next() {
                    Some("api") => Role::Api,
                    Some("harness") => Role::Harness,
                    Some("tools") => Role::Tools,
                    _ => continue,
                };
                let Ok(stream) = stream(descriptor) else {
                    continue;
                };
                if sender
                    .send(Connection {
                        role,
                        instance: peer,
                        stream,
                    })
                    .await
                    .is_err()
                {
                    return;
                }
            }
        });
        let options = Options {
            directory: self.home.vault(),
            public_key_file: self.home.vault_key(),
            operators: operators(),
        };
        ready();
        run(options, connections, Some(admin), self.stop)
            .await
            .map_err(|error| CliError::refused(error.code(), &error.to_string(), None))
    }

    #[cfg(feature = "session")]
    async fn session(self, ready: impl FnOnce()) -> Result<(), CliError> {
        use claviger_session::role::{Linked, Rights};
        let options = claviger_session::role::Options {
            directory: self.home.session(),
        };
        let links = self.linked("session", |peer, stream| {
            // The supervisor's word, not the peer's, decides what a link may do.
            let rights = match peer.split('-').next() {
                Some("api") => Rights::Everything,
                _ => Rights::Sessions,
            };
            Linked::new(rights, stream)
        });
        ready();
        claviger_session::role::run(options, links, self.stop)
            .await
            .map_err(|error| {
                CliError::refused(
                    "session_failed",
                    &error.to_string(),
                    Some("claviger doctor"),
                )
            })
    }

    #[cfg(feature = "hands")]
    async fn hands(mut self, ready: impl FnOnce()) -> Result<(), CliError> {
        let zygote = self
            .zygote
            .take()
            .ok_or_else(|| CliError::internal("hands without a zygote"))?;
        let (links, attach) = (self.server("hands"), self.client("attach"));
        ready();
        claviger_sandbox::hands::run(
            claviger_sandbox::hands::Options::default(),
            zygote,
            links,
            attach,
            self.stop,
        )
        .await
        .map_err(|error| {
            CliError::refused("hands_failed", &error.to_string(), Some("claviger doctor"))
        })
    }

    /// Connections with the name that the supervisor gave their peer.
    #[cfg(feature = "tools")]
    fn harnesses(&self, link: &str) -> mpsc::Receiver<claviger_mcp_tools::role::Linked> {
        self.linked(link, |peer, stream| claviger_mcp_tools::role::Linked {
            peer,
            stream,
        })
    }

    #[cfg(feature = "tools")]
    async fn tools(self, ready: impl FnOnce()) -> Result<(), CliError> {
        use claviger_mcp_tools::role::{Links, Options, run};
        let config = crate::config::Config::load(&self.home.config_file)?;
        let options = Options {
            tools_directory: self.home.tools(),
            vault_key: vault_key(&self.home)?,
            instance: format!("tools_{}_{}", std::process::id(), random_hex()?),
            operators: operators(),
            model_base_url: config.model_url()?,
            demo: self.demo,
        };
        let links = Links {
            vault: self.client("vault"),
            attach: self.server("attach"),
            harness: self.harnesses("tools"),
            model: self.harnesses("model"),
            mcp_socket: Some(self.unix("mcp").await?),
            http: Some(self.tcp("mcp-http").await?),
            scan_socket: if self.demo {
                Some(self.unix("tools-scan").await?)
            } else {
                None
            },
        };
        ready();
        run(options, links, self.stop).await.map_err(|error| {
            CliError::refused("tools_failed", &error.to_string(), Some("claviger doctor"))
        })
    }

    #[cfg(feature = "harness")]
    async fn harness(self, ready: impl FnOnce()) -> Result<(), CliError> {
        use claviger_harness::role::{Links, Options, run};
        // Fresh at each start: a harness that comes back is another one (design rule 2).
        let instance = format!("hrn_{}_{}", std::process::id(), random_hex()?);
        let options = Options {
            instance,
            max_sessions: 256,
            lease_ttl_ms: 5_000,
        };
        let links = Links {
            session: self.client("session"),
            hands: self.client("hands"),
            vault: self.client("vault"),
            tools: self.client("tools"),
            model: self.client("model"),
        };
        ready();
        run(options, links, self.stop).await.map_err(|error| {
            CliError::refused(
                "harness_failed",
                &error.to_string(),
                Some("claviger doctor"),
            )
        })
    }

    #[cfg(feature = "api")]
    async fn api(self, ready: impl FnOnce()) -> Result<(), CliError> {
        use claviger_api::role::{Links, Options, run};
        let address = match self.mcp {
            Some(address) => address,
            // Only its address is wanted here; tools alone accepts on it.
            None => self
                .tcp("mcp-address")
                .await?
                .local_addr()
                .map_err(|error| CliError::internal("the mcp address").because(error))?,
        };
        let options = Options {
            mcp_url: format!("http://{address}/mcp"),
            vault_key: vault_key(&self.home)?,
            operators: operators(),
        };
        let links = Links {
            session: self.client("session"),
            vault: self.client("vault"),
            http: Some(self.tcp("api-http").await?),
            unix: Some(self.unix("api").await?),
        };
        ready();
        run(options, links, self.stop).await.map_err(|error| {
            CliError::refused("api_failed", &error.to_string(), Some("claviger doctor"))
        })
    }
}

#[cfg(any(feature = "harness", feature = "tools"))]
fn random_hex() -> Result<String, CliError> {
    let mut bytes = [0_u8; 8];
    getrandom::fill(&mut bytes).map_err(|error| CliError::internal("randomness").because(error))?;
    Ok(hex::encode(bytes))
}

/// Whoever runs the daemon is its operator.
fn operators() -> Vec<u32> {
    vec![rustix::process::getuid().as_raw()]
}

#[cfg(any(feature = "api", feature = "operate", feature = "tools"))]
pub(crate) fn vault_key(home: &Home) -> Result<claviger_vault_protocol::PublicKey, CliError> {
    let path = home.vault_key();
    let text = std::fs::read_to_string(&path)
        .map_err(|error| CliError::file("reading", &path, &error).fix("claviger init"))?;
    claviger_vault_protocol::PublicKey::parse(&text).map_err(|error| {
        CliError::refused(
            "store_tampered",
            &format!("{}: {error}", path.display()),
            None,
        )
    })
}
