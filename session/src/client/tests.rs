use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;

/// A role and a client that is linked to it by a socketpair.
struct Linked {
    _home: tempfile::TempDir,
    _links: (mpsc::Sender<UnixStream>, mpsc::Sender<UnixStream>),
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Linked {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn open() -> (SessionClient, Linked) {
    let home = tempfile::tempdir().unwrap();
    let (to_role, role_links) = mpsc::channel(4);
    let (to_client, client_links) = mpsc::channel(4);
    let (client, driver) = SessionClient::new(client_links);
    let options = crate::role::Options {
        directory: home.path().to_owned(),
    };
    let role = crate::role::run(options, role_links, CancellationToken::new());
    let tasks = vec![
        tokio::spawn(driver),
        tokio::spawn(async { role.await.unwrap() }),
    ];
    let (left, right) = UnixStream::pair().unwrap();
    to_role.send(left).await.unwrap();
    to_client.send(right).await.unwrap();
    let linked = Linked {
        _home: home,
        _links: (to_role, to_client),
        tasks,
    };
    (client, linked)
}

mod conformance {
    crate::conformance_tests!(super::open);
}
