//! Where links and listeners wait for the role that takes them, whoever brings them.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tracing::warn;

use crate::control::End;

/// Links waiting to be taken; a role that takes none for long is restarted anyway.
pub(super) const WAITING: usize = 64;

/// Where arriving links and listeners wait for the role that takes them.
#[derive(Clone, Default)]
pub(super) struct Inbox(Arc<Mutex<Waiting>>);

#[derive(Default)]
struct Waiting {
    links: HashMap<(String, End), Channel<(String, OwnedFd)>>,
    listeners: HashMap<String, Channel<OwnedFd>>,
}

/// A bounded channel whose receiver is taken once.
struct Channel<T> {
    sender: mpsc::Sender<T>,
    receiver: Option<mpsc::Receiver<T>>,
}

impl<T> Default for Channel<T> {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        Self {
            sender,
            receiver: Some(receiver),
        }
    }
}

impl Inbox {
    fn with<T>(&self, work: impl FnOnce(&mut Waiting) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Raw connections of one link with their peers' names.
    pub(super) fn connections(&self, link: &str, end: End) -> mpsc::Receiver<(String, OwnedFd)> {
        self.with(|waiting| {
            waiting
                .links
                .entry((link.to_owned(), end))
                .or_default()
                .receiver
                .take()
        })
        .unwrap_or_else(|| mpsc::channel(1).1)
    }

    /// The next listener of a name.
    pub(super) async fn listener(&self, name: &str) -> Option<OwnedFd> {
        let receiver = self.with(|waiting| {
            waiting
                .listeners
                .entry(name.to_owned())
                .or_default()
                .receiver
                .take()
        });
        receiver?.recv().await
    }

    /// Where connections of one link are put.
    pub(super) fn link(&self, link: &str, end: End) -> mpsc::Sender<(String, OwnedFd)> {
        self.with(|waiting| {
            waiting
                .links
                .entry((link.to_owned(), end))
                .or_default()
                .sender
                .clone()
        })
    }

    /// Puts a listener where its role finds it.
    pub(super) fn put_listener(&self, name: &str, descriptor: OwnedFd) {
        let sender = self.with(|waiting| {
            waiting
                .listeners
                .entry(name.to_owned())
                .or_default()
                .sender
                .clone()
        });
        sender.try_send(descriptor).ok();
    }
}

/// Turns descriptors into tokio streams; ends with the inbox.
pub(super) fn streams(
    mut connections: mpsc::Receiver<(String, OwnedFd)>,
) -> mpsc::Receiver<UnixStream> {
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        while let Some((_, descriptor)) = connections.recv().await {
            match stream(descriptor) {
                Ok(stream) => {
                    if sender.send(stream).await.is_err() {
                        return;
                    }
                }
                Err(error) => warn!(%error, "a link could not be used"),
            }
        }
    });
    receiver
}

pub(super) fn stream(descriptor: OwnedFd) -> std::io::Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(descriptor);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

pub(super) fn unix_listener(descriptor: OwnedFd) -> std::io::Result<tokio::net::UnixListener> {
    let listener = std::os::unix::net::UnixListener::from(descriptor);
    listener.set_nonblocking(true)?;
    tokio::net::UnixListener::from_std(listener)
}

pub(super) fn tcp_listener(descriptor: OwnedFd) -> std::io::Result<tokio::net::TcpListener> {
    let listener = std::net::TcpListener::from(descriptor);
    listener.set_nonblocking(true)?;
    tokio::net::TcpListener::from_std(listener)
}
