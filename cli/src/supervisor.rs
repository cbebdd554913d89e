//! Starts every role as a process of its own, hands out their links, restarts what dies.
//!
//! The supervisor holds no secret and no seal input. Links are socketpairs: no path, no key on
//! disk; a role that restarts gets fresh ones, and so does everyone it talks to.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::args::RoleName;
use crate::control::{Control, End, FromRole, ToRole};
use crate::error::CliError;
use crate::home::Home;
use crate::links::{LINKS, LinkRule};
use crate::listen::unix;

/// A restart waits at least this long, twice as long each time, up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(20);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// A role that lived this long starts again without delay.
const STEADY: Duration = Duration::from_secs(10);
/// How long roles may take to end.
const GRACE: Duration = Duration::from_secs(4);

/// Everything that the supervisor listens on; it keeps the listeners over restarts of the roles.
#[derive(Debug)]
pub(crate) struct Listeners(BTreeMap<&'static str, OwnedFd>);

impl Listeners {
    /// Binds the unix sockets and both TCP addresses.
    pub(crate) fn bind(home: &Home, api: &str, mcp: &str, demo: bool) -> Result<Self, CliError> {
        let mut all = BTreeMap::new();
        let tcp = |address: &str, key: &str, flag: &str| {
            let fix = format!("claviger up {flag} 127.0.0.1:0, or set {key} in the configuration");
            crate::listen::tcp(address, fix)
        };
        let api = tcp(api, "api.listen", "--listen")?;
        let mcp = tcp(mcp, "mcp.listen", "--mcp-listen")?;
        let second = mcp
            .try_clone()
            .map_err(|error| CliError::internal("duplicating a listener").because(error))?;
        all.insert("api-http", OwnedFd::from(api));
        all.insert("mcp-http", OwnedFd::from(mcp));
        all.insert("mcp-address", OwnedFd::from(second));
        for name in ["admin", "api", "mcp"]
            .into_iter()
            .chain(demo.then_some("tools-scan"))
        {
            all.insert(name, unix(&home.socket(name))?);
        }
        Ok(Self(all))
    }

    /// Only the operator's socket: what `init` needs.
    pub(crate) fn admin_only(home: &Home) -> Result<Self, CliError> {
        Ok(Self(BTreeMap::from([(
            "admin",
            unix(&home.socket("admin"))?,
        )])))
    }

    /// The address that a TCP listener has.
    pub(crate) fn address(&self, name: &str) -> Option<std::net::SocketAddr> {
        let listener = std::net::TcpListener::from(self.0.get(name)?.try_clone().ok()?);
        listener.local_addr().ok()
    }

    fn of(&self, role: RoleName) -> impl Iterator<Item = (&'static str, &OwnedFd)> {
        let names: &[&str] = match role {
            RoleName::Api => &["mcp-address", "api-http", "api"],
            RoleName::Tools => &["mcp-http", "mcp", "tools-scan"],
            RoleName::Vault => &["admin"],
            _ => &[],
        };
        self.0
            .iter()
            .filter(move |(name, _)| names.contains(name))
            .map(|(name, descriptor)| (*name, descriptor))
    }
}

/// What happens to the supervisor.
#[derive(Debug)]
pub(crate) enum Happening {
    /// A role's process ended.
    Ended { instance: String, status: String },
    /// A role spoke.
    Said { instance: String, message: FromRole },
    /// A delayed restart is due.
    Restart { instance: String },
}

struct Running {
    role: RoleName,
    control: Option<Control>,
    pid: u32,
    started: Instant,
    backoff: Duration,
    ready: bool,
}

/// The supervisor of one home.
pub(crate) struct Supervisor {
    home: Home,
    listeners: Listeners,
    demo: bool,
    stopping: bool,
    running: BTreeMap<String, Running>,
    sender: mpsc::Sender<Happening>,
    receiver: mpsc::Receiver<Happening>,
}

impl Supervisor {
    pub(crate) fn new(home: Home, listeners: Listeners, demo: bool) -> Self {
        let (sender, receiver) = mpsc::channel(256);
        Self {
            home,
            listeners,
            demo,
            stopping: false,
            running: BTreeMap::new(),
            sender,
            receiver,
        }
    }

    /// Starts every role, `harnesses` of the harness.
    pub(crate) fn start_all(&mut self, harnesses: usize) -> Result<(), CliError> {
        for role in [
            RoleName::Vault,
            RoleName::Session,
            RoleName::Tools,
            RoleName::Hands,
            RoleName::Api,
        ] {
            self.start(role, &format!("{role}-0"))?;
        }
        for index in 0..harnesses {
            self.start(RoleName::Harness, &format!("harness-{index}"))?;
        }
        Ok(())
    }

    /// Starts one role and links it to everyone it talks to.
    pub(crate) fn start(&mut self, role: RoleName, instance: &str) -> Result<(), CliError> {
        let (control, theirs) = Control::pair()
            .map_err(|error| CliError::internal("a control channel").because(error))?;
        let child = self.spawn(role, instance, theirs)?;
        let pid = child.id().unwrap_or_default();
        info!(role = %role, instance, pid, "started");
        self.watch(instance, child, &control)?;
        for (name, descriptor) in self.listeners.of(role) {
            let descriptor = descriptor
                .try_clone()
                .map_err(|error| CliError::internal("duplicating a listener").because(error))?;
            control
                .send(
                    &ToRole::Listener {
                        name: name.to_owned(),
                    },
                    Some(descriptor),
                )
                .ok();
        }
        let backoff = self
            .running
            .get(instance)
            .map_or(MIN_BACKOFF, |old| old.backoff);
        let running = Running {
            role,
            control: Some(control),
            pid,
            started: Instant::now(),
            backoff,
            ready: false,
        };
        self.running.insert(instance.to_owned(), running);
        self.link_up(role, instance);
        Ok(())
    }

    fn spawn(
        &self,
        role: RoleName,
        instance: &str,
        control: OwnedFd,
    ) -> Result<tokio::process::Child, CliError> {
        let log_path = self.home.log.join(format!("{role}.log"));
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log_path)
            .map_err(|error| CliError::file("opening", &log_path, &error))?;
        let second = log
            .try_clone()
            .map_err(|error| CliError::file("opening", &log_path, &error))?;
        let program = std::env::current_exe()
            .map_err(|error| CliError::internal("finding this program").because(error))?;
        let mut command = tokio::process::Command::new(program);
        command.args([
            "serve",
            &role.to_string(),
            "--instance",
            instance,
            "--control",
        ]);
        if self.demo {
            command.arg("--demo");
        }
        command.env_clear().envs(self.home.as_environment());
        for name in [
            "PATH",
            "LANG",
            "TZ",
            "SSL_CERT_FILE",
            "SSL_CERT_DIR",
            "CLAVIGER_LOG",
        ] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
            .current_dir("/")
            .stdin(Stdio::from(control))
            .stdout(log)
            .stderr(second)
            .kill_on_drop(true);
        // Ctrl-C on the terminal is for the supervisor, which stops the roles in order.
        command.process_group(0);
        command
            .spawn()
            .map_err(|error| CliError::internal(format!("starting the role {role}")).because(error))
    }

    /// Watches a child's end and its half of the control channel.
    fn watch(
        &self,
        instance: &str,
        mut child: tokio::process::Child,
        control: &Control,
    ) -> Result<(), CliError> {
        let reader = control
            .try_clone()
            .map_err(|error| CliError::internal("a control channel").because(error))?;
        let (sender, name) = (self.sender.clone(), instance.to_owned());
        std::thread::Builder::new()
            .name(format!("control {instance}"))
            .spawn(move || {
                while let Ok(Some((message, _))) = reader.receive::<FromRole>() {
                    if sender
                        .blocking_send(Happening::Said {
                            instance: name.clone(),
                            message,
                        })
                        .is_err()
                    {
                        return;
                    }
                }
            })
            .map_err(|error| CliError::internal("starting a thread").because(error))?;
        let (sender, instance) = (self.sender.clone(), instance.to_owned());
        tokio::spawn(async move {
            let status = child
                .wait()
                .await
                .map_or_else(|error| error.to_string(), |status| status.to_string());
            sender
                .send(Happening::Ended { instance, status })
                .await
                .ok();
        });
        Ok(())
    }

    /// Gives both ends of every link between `instance` and whoever runs.
    fn link_up(&self, role: RoleName, instance: &str) {
        for LinkRule {
            link,
            client,
            server,
        } in &LINKS
        {
            for (other, running) in &self.running {
                if other == instance {
                    continue;
                }
                let (client_name, server_name) = if role == *client && running.role == *server {
                    (instance, other.as_str())
                } else if role == *server && running.role == *client {
                    (other.as_str(), instance)
                } else {
                    continue;
                };
                self.connect(link, client_name, server_name);
            }
        }
    }

    fn connect(&self, link: &str, client: &str, server: &str) {
        let (Some(client_control), Some(server_control)) =
            (self.control(client), self.control(server))
        else {
            return;
        };
        let Ok((client_end, server_end)) = UnixStream::pair() else {
            warn!(link, "no descriptors left for a link");
            return;
        };
        let message = |peer: &str, end| ToRole::Link {
            link: link.to_owned(),
            peer: peer.to_owned(),
            end,
        };
        // A role that is just dying is linked again when it comes back.
        server_control
            .send(&message(client, End::Server), Some(server_end.into()))
            .ok();
        client_control
            .send(&message(server, End::Client), Some(client_end.into()))
            .ok();
    }

    fn control(&self, instance: &str) -> Option<&Control> {
        self.running.get(instance)?.control.as_ref()
    }

    /// Waits for the next happening and does what it asks for; answers what happened.
    pub(crate) async fn next(&mut self) -> Result<Option<Happening>, CliError> {
        let Some(happening) = self.receiver.recv().await else {
            return Ok(None);
        };
        match &happening {
            Happening::Said {
                instance,
                message: FromRole::Ready { .. },
            } => {
                if let Some(running) = self.running.get_mut(instance) {
                    running.ready = true;
                }
            }
            Happening::Said {
                instance,
                message: FromRole::Failed { code, what, .. },
            } => {
                warn!(instance, code, what, "a role cannot serve");
            }
            Happening::Ended { instance, status } => self.ended(instance, status),
            Happening::Restart { instance } => {
                let role = self.running.get(instance).map(|running| running.role);
                if let (Some(role), false) = (role, self.stopping) {
                    self.start(role, instance)?;
                }
            }
        }
        Ok(Some(happening))
    }

    fn ended(&mut self, instance: &str, status: &str) {
        let Some(running) = self.running.get_mut(instance) else {
            return;
        };
        running.control = None;
        running.ready = false;
        if self.stopping {
            return;
        }
        running.backoff = if running.started.elapsed() >= STEADY {
            MIN_BACKOFF
        } else {
            (running.backoff * 2).min(MAX_BACKOFF)
        };
        let wait = if running.started.elapsed() >= STEADY {
            Duration::ZERO
        } else {
            running.backoff / 2
        };
        warn!(
            instance,
            status,
            restart_in_ms = wait.as_millis(),
            "a role ended"
        );
        let (sender, instance) = (self.sender.clone(), instance.to_owned());
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            sender.send(Happening::Restart { instance }).await.ok();
        });
    }

    /// Whether every role has said that it serves.
    pub(crate) fn is_ready(&self) -> bool {
        self.running.values().all(|running| running.ready)
    }

    /// Process ids by instance.
    pub(crate) fn pids(&self) -> BTreeMap<String, u32> {
        self.running
            .iter()
            .map(|(instance, running)| (instance.clone(), running.pid))
            .collect()
    }

    pub(crate) fn listeners(&self) -> &Listeners {
        &self.listeners
    }

    /// Stops every role: harnesses first, the vault last; what does not end in time is killed.
    pub(crate) async fn stop(&mut self) {
        self.stopping = true;
        for role in [
            RoleName::Harness,
            RoleName::Api,
            RoleName::Hands,
            RoleName::Tools,
            RoleName::Session,
            RoleName::Vault,
        ] {
            let members: Vec<String> = self
                .running
                .iter()
                .filter(|(_, running)| running.role == role && running.control.is_some())
                .map(|(name, _)| name.clone())
                .collect();
            for instance in &members {
                if let Some(control) = self.control(instance) {
                    control.send(&ToRole::Stop, None).ok();
                }
            }
            let end = tokio::time::Instant::now() + GRACE;
            while self
                .running
                .values()
                .any(|running| running.role == role && running.control.is_some())
            {
                match tokio::time::timeout_at(end, self.receiver.recv()).await {
                    Ok(Some(Happening::Ended { instance, .. })) => {
                        if let Some(running) = self.running.get_mut(&instance) {
                            running.control = None;
                        }
                    }
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => {
                        warn!(role = %role, "a role did not end in time and is killed");
                        for running in self
                            .running
                            .values_mut()
                            .filter(|running| running.role == role)
                        {
                            if let Some(pid) = rustix::process::Pid::from_raw(
                                i32::try_from(running.pid).unwrap_or(0),
                            ) {
                                let _ = rustix::process::kill_process(
                                    pid,
                                    rustix::process::Signal::KILL,
                                );
                            }
                            running.control = None;
                        }
                    }
                }
            }
        }
    }

    /// Removes the socket paths.
    pub(crate) fn clean(&self) {
        let sockets: [PathBuf; 4] =
            ["admin", "api", "mcp", "tools-scan"].map(|name| self.home.socket(name));
        for path in sockets {
            drop(std::fs::remove_file(path));
        }
        drop(std::fs::remove_file(self.home.up_file()));
    }
}

impl Drop for Supervisor {
    /// A supervisor that goes without [`Supervisor::stop`] takes its roles along.
    fn drop(&mut self) {
        for control in self
            .running
            .values()
            .filter_map(|running| running.control.as_ref())
        {
            control.close();
        }
    }
}
