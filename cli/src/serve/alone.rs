//! A role without a supervisor: it takes its lock, binds its sockets, and finds the others by path.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::inbox::{Inbox, unix_listener};
use super::proof::{Caller, Door, is_name};
use super::reconnect;
use crate::args::{RoleName, Serve};
use crate::control::End;
use crate::error::{CliError, Exit};
use crate::home::Home;
use crate::{links, listen, lock};

/// How many connections may be proving themselves at a time; further ones wait in the socket's queue.
const MAX_PROVING: usize = 32;

/// Everything that a role needs from outside, taken before the process is hardened.
pub(super) struct Alone {
    /// Where clients find the MCP server; the api tells them.
    pub(super) mcp: Option<SocketAddr>,
    callers: Vec<Caller>,
    doors: Vec<(OwnedFd, &'static str, Door)>,
    /// What is removed at the end.
    paths: Vec<PathBuf>,
    _locks: lock::Locks,
}

impl Alone {
    pub(super) fn prepare(serve: &Serve, home: &Home, inbox: &Inbox) -> Result<Self, CliError> {
        let instance = if serve.instance.is_empty() {
            "0"
        } else {
            &serve.instance
        };
        if !is_name(instance) {
            return Err(CliError::usage(
                "bad_instance",
                format!("'{instance}' is no instance's name"),
            )
            .fix("up to 32 letters, digits, '-' and '_'"));
        }
        if !home.is_initialised() {
            return Err(CliError::new(
                Exit::NotFound,
                "not_initialised",
                "there is no vault in this home yet",
            )
            .fix("claviger init"));
        }
        home.create()?;
        links::make_private_directory(&home.links())?;
        let locks = lock::take_role(home, serve.role, instance)?;
        // No `up` runs while the role's lock is held: what one wrote is out of date.
        drop(std::fs::remove_file(home.up_file()));
        let callers = Caller::of(home, serve.role, instance)?;
        let mut alone = Self {
            mcp: None,
            callers,
            doors: Vec::new(),
            paths: Vec::new(),
            _locks: locks,
        };
        for (path, link, door) in Door::of(home, serve.role)? {
            alone.doors.push((listen::unix(&path)?, link, door));
            alone.paths.push(path);
        }
        alone.listen(serve, home, inbox)?;
        Ok(alone)
    }

    /// Binds what the outside connects to: the same names and places as under `up`.
    fn listen(&mut self, serve: &Serve, home: &Home, inbox: &Inbox) -> Result<(), CliError> {
        let unix: &[&str] = match serve.role {
            RoleName::Api => &["api"],
            RoleName::Tools if serve.demo => &["mcp", "tools-scan"],
            RoleName::Tools => &["mcp"],
            RoleName::Vault => &["admin"],
            _ => &[],
        };
        for name in unix {
            let path = home.socket(name);
            inbox.put_listener(name, listen::unix(&path)?);
            self.paths.push(path);
        }
        #[cfg(any(feature = "api", feature = "tools"))]
        if matches!(serve.role, RoleName::Api | RoleName::Tools) {
            let config = crate::config::Config::load(&home.config_file)?;
            let mcp = fixed(&config.mcp.listen, "mcp.listen")?;
            let (name, address, key) = if serve.role == RoleName::Api {
                let api = fixed(&config.api.listen, "api.listen")?;
                self.mcp = Some(mcp);
                ("api-http", api, "api.listen")
            } else {
                ("mcp-http", mcp, "mcp.listen")
            };
            let fix = format!("set {key} in the configuration to a free address");
            let listener = listen::tcp(&address.to_string(), fix)?;
            inbox.put_listener(name, listener.into());
        }
        Ok(())
    }

    /// Lets clients in, connects to servers, and cancels `stop` on SIGTERM and Ctrl-C.
    pub(super) fn start(
        &mut self,
        inbox: &Inbox,
        stop: &CancellationToken,
    ) -> Result<(), CliError> {
        for (descriptor, link, door) in self.doors.drain(..) {
            let listener = unix_listener(descriptor).map_err(|error| {
                CliError::internal(format!("listening for {link}")).because(error)
            })?;
            let connections = inbox.link(link, End::Server);
            tokio::spawn(accept(listener, link, Arc::new(door), connections));
        }
        for caller in self.callers.drain(..) {
            let connections = inbox.link(caller.rule.link, End::Client);
            tokio::spawn(reconnect::keep(caller, connections));
        }
        let failed =
            |error: std::io::Error| CliError::internal("waiting for signals").because(error);
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let stop = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            info!("stopping");
            stop.cancel();
        });
        Ok(())
    }

    /// Removes the sockets; the role's lock is still held.
    pub(super) fn clean(&self) {
        for path in &self.paths {
            drop(std::fs::remove_file(path));
        }
    }
}

/// An address that others can know beforehand.
#[cfg(any(feature = "api", feature = "tools"))]
fn fixed(text: &str, key: &str) -> Result<SocketAddr, CliError> {
    use std::net::ToSocketAddrs as _;
    let unusable = |code: &str, what: String| {
        CliError::new(Exit::Config, code, what).fix(format!("set {key} in the configuration"))
    };
    let address = text
        .to_socket_addrs()
        .ok()
        .and_then(|mut addresses| addresses.next())
        .ok_or_else(|| {
            unusable(
                "config_malformed",
                format!("{key} '{text}' is no ADDRESS:PORT"),
            )
        })?;
    if address.port() == 0 {
        return Err(unusable(
            "port_not_fixed",
            format!("{key} is '{text}', which picks another port at each start"),
        )
        .because("nobody tells the other roles which port it was"));
    }
    Ok(address)
}

/// Takes connections of one link; only who proves its role is handed on.
async fn accept(
    listener: tokio::net::UnixListener,
    link: &'static str,
    door: Arc<Door>,
    connections: mpsc::Sender<(String, OwnedFd)>,
) {
    let proving = Arc::new(Semaphore::new(MAX_PROVING));
    loop {
        let Ok(place) = Arc::clone(&proving).acquire_owned().await else {
            return;
        };
        let mut stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(link, %error, "no connection could be taken");
                // Out of descriptors, most likely: without a pause this would spin.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (door, connections) = (Arc::clone(&door), connections.clone());
        tokio::spawn(async move {
            let admitted = door.admit(&mut stream).await;
            drop(place);
            let peer = match admitted {
                Ok(peer) => peer,
                Err(error) => {
                    warn!(link, %error, "a connection was refused");
                    return;
                }
            };
            info!(link, peer, "connected");
            if let Ok(stream) = stream.into_std() {
                connections.send((peer, stream.into())).await.ok();
            }
        });
    }
}
