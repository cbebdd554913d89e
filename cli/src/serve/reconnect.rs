//! Keeps the client's end of a link: connects, hands the connection over, and connects again when
//! it has ended.
//!
//! The role gets the connection itself, because descriptors travel on one of the links. Its end is
//! watched through epoll, which, unlike a duplicate, does not keep the connection open: a role that
//! lets go of its end is seen to do so by the server at once.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::proof::Caller;

/// The first pause before another try; each is twice as long as the one before.
const MIN_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_millis(500);
/// A connection that lived this long is followed by the shortest pause.
const STEADY: Duration = Duration::from_secs(1);
/// How often it is looked whether the role still holds its end.
const LOOK: Duration = Duration::from_secs(1);

/// Runs until nobody takes connections any more.
pub(super) async fn keep(caller: Caller, connections: mpsc::Sender<(String, OwnedFd)>) {
    let (link, server) = (caller.rule.link, caller.rule.server);
    let mut pause = MIN_PAUSE;
    let mut told = String::new();
    loop {
        match connect(&caller).await {
            Ok((descriptor, watch)) => {
                info!(link, server = %server, "connected");
                told.clear();
                let since = Instant::now();
                if connections
                    .send((server.to_string(), descriptor))
                    .await
                    .is_err()
                {
                    return;
                }
                watch.ended().await;
                info!(link, server = %server, "the connection ended");
                if since.elapsed() >= STEADY {
                    pause = MIN_PAUSE;
                }
            }
            Err(error) if error == told => {}
            Err(error) => {
                warn!(link, server = %server, error, "not connected; trying again");
                told = error;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

async fn connect(caller: &Caller) -> Result<(OwnedFd, Watch), String> {
    let stream = caller.connect().await.map_err(|error| error.to_string())?;
    let told = |error: std::io::Error| error.to_string();
    let descriptor = OwnedFd::from(stream.into_std().map_err(told)?);
    let watch = Watch::of(&descriptor).map_err(told)?;
    Ok((descriptor, watch))
}

/// Sees the end of a connection that somebody else holds.
struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    fn of(stream: impl AsFd) -> std::io::Result<Self> {
        let watched = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(
            &watched,
            stream,
            epoll::EventData::new_u64(0),
            epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR,
        )?;
        #[expect(
            deprecated,
            reason = "unsound for types that may change their descriptor; this one owns it to the end"
        )]
        let watched = AsyncFd::with_interest(watched, Interest::READABLE)?;
        Ok(Self(watched))
    }

    /// Waits until the server has ended the connection, or the role has let go of it.
    async fn ended(&self) {
        loop {
            tokio::select! {
                readable = self.0.readable() => match readable {
                    Ok(_) if self.has_event() => return,
                    Ok(mut readable) => readable.clear_ready(),
                    Err(_) => return,
                },
                () = tokio::time::sleep(LOOK) => if !self.is_held() { return },
            }
        }
    }

    fn has_event(&self) -> bool {
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); 1];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        epoll::wait(self.0.get_ref(), &mut events, Some(&now))
            .is_ok_and(|(events, _)| !events.is_empty())
    }

    /// The kernel forgets a watched connection when its last descriptor is closed (proc(5), fdinfo).
    fn is_held(&self) -> bool {
        let path = format!("/proc/self/fdinfo/{}", self.0.get_ref().as_raw_fd());
        std::fs::read_to_string(path).map_or(true, |text| text.contains("tfd:"))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{UnixListener, UnixStream};

    use super::super::proof::{Door, kernel_user};
    use super::*;
    use crate::links::{LINKS, LinkRule};
    use crate::role_key::RoleKey;

    const RULE: LinkRule = LINKS[1];

    fn caller(path: &Path) -> Caller {
        Caller {
            rule: RULE,
            path: path.to_owned(),
            instance: "0".into(),
            key: RoleKey::of(1),
            user: kernel_user,
        }
    }

    /// A server that admits one connection after the other.
    struct Server {
        listener: UnixListener,
        door: Arc<Door>,
    }

    impl Server {
        fn at(path: &Path) -> Self {
            drop(std::fs::remove_file(path));
            Self {
                listener: UnixListener::bind(path).unwrap(),
                door: Arc::new(Door::with([(RULE, RoleKey::of(1))], kernel_user)),
            }
        }

        async fn next(&self) -> UnixStream {
            let (mut stream, _) = self.listener.accept().await.unwrap();
            assert_eq!(self.door.admit(&mut stream).await.unwrap(), "harness-0");
            stream
        }
    }

    fn tokio_stream(descriptor: OwnedFd) -> UnixStream {
        UnixStream::from_std(std::os::unix::net::UnixStream::from(descriptor)).unwrap()
    }

    #[tokio::test]
    async fn a_client_connects_again_when_its_server_comes_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("link.sock");
        let (sender, mut connections) = mpsc::channel(4);
        let keeping = tokio::spawn(keep(caller(&path), sender));
        for round in 0..3_u8 {
            // The server is not there at first, and is another one each time.
            let server = Server::at(&path);
            let mut theirs = server.next().await;
            let (peer, descriptor) = connections.recv().await.unwrap();
            assert_eq!(peer, "hands");
            let mut ours = tokio_stream(descriptor);
            ours.write_all(&[round]).await.unwrap();
            assert_eq!(theirs.read_u8().await.unwrap(), round);
            drop((server, theirs));
            assert_eq!(ours.read(&mut [0]).await.unwrap(), 0);
        }
        keeping.abort();
    }

    #[tokio::test]
    async fn a_client_connects_again_when_its_role_lets_go() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("link.sock");
        let server = Server::at(&path);
        let (sender, mut connections) = mpsc::channel(4);
        let keeping = tokio::spawn(keep(caller(&path), sender));
        let mut theirs = server.next().await;
        let (_, descriptor) = connections.recv().await.unwrap();
        drop(descriptor);
        // Seen at once by the server, and soon by the client.
        assert_eq!(theirs.read(&mut [0]).await.unwrap(), 0);
        let _again = server.next().await;
        assert!(connections.recv().await.is_some());
        keeping.abort();
    }
}
