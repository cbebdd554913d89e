//! The role is killed again and again while many write and read; nothing acknowledged may be lost.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use claviger_session::{
    Event, NewEvent, Query, SessionClient, SessionError, SessionId, Tailed, role, verify,
};
use futures_util::StreamExt as _;
use serde_json::json;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Names the directory in the child's environment.
const DIRECTORY: &str = "CLAVIGER_SESSION_CRASH_DIRECTORY";
const KILLS: u64 = 25;
const SESSIONS: u64 = 6;

/// On its own this checks that a role ends with its last link. As the child of the test below it *is* the role: its
/// link is the socket on stdin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_ends_with_its_last_link() {
    let (to_role, links) = mpsc::channel(1);
    let home = tempfile::tempdir().unwrap();
    let directory = std::env::var_os(DIRECTORY);
    let (ours, theirs) = StdStream::pair().unwrap();
    let link = match &directory {
        Some(_) => StdStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap()),
        None => theirs,
    };
    link.set_nonblocking(true).unwrap();
    to_role
        .send(role::Linked::new(
            role::Rights::Everything,
            UnixStream::from_std(link).unwrap(),
        ))
        .await
        .unwrap();
    drop((to_role, ours));
    let options = role::Options {
        directory: directory.map_or_else(|| home.path().to_owned(), Into::into),
    };
    let ended = role::run(options, links, CancellationToken::new()).await;
    assert_eq!(ended, Ok(()));
}

fn spawn_role(directory: &Path) -> (Child, UnixStream) {
    let (ours, theirs) = StdStream::pair().unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "a_role_ends_with_its_last_link",
            "--test-threads",
            "1",
        ])
        .env(DIRECTORY, directory)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    ours.set_nonblocking(true).unwrap();
    (child, UnixStream::from_std(ours).unwrap())
}

/// What one writer was told is durable.
type Acknowledged = BTreeMap<u64, Event>;

struct Shared {
    client: SessionClient,
    acknowledged: AtomicU64,
    stop: AtomicBool,
}

impl Shared {
    fn note(&self, known: &mut Acknowledged, events: Vec<Event>) {
        self.acknowledged
            .fetch_add(events.len() as u64, Ordering::Relaxed);
        for event in events {
            if let Some(before) = known.insert(event.seq, event.clone()) {
                assert_eq!(before, event, "an acknowledged event changed");
            }
        }
    }
}

/// Appends under a lease; after each loss of the link it repeats with the same ids.
async fn lead(shared: Arc<Shared>, session: SessionId) -> Acknowledged {
    let mut known = Acknowledged::new();
    let lease = shared
        .client
        .lease(&session, "leader", 600_000)
        .await
        .unwrap();
    let mut head = lease.head;
    let mut n = 0_u64;
    while !shared.stop.load(Ordering::Relaxed) {
        n += 1;
        let size = if n.is_multiple_of(16) { 100_000 } else { 200 };
        let batch: Vec<NewEvent> = (0..1 + n % 3)
            .map(|i| {
                NewEvent::new(
                    "agent.message",
                    json!({"n": n, "i": i, "text": "x".repeat(size)}),
                )
                .with_id(format!("lead{n}.{i}"))
            })
            .collect();
        loop {
            match shared
                .client
                .append(&session, head, lease.epoch, batch.clone())
                .await
            {
                Ok(events) => {
                    head = events.last().unwrap().seq;
                    shared.note(&mut known, events);
                    break;
                }
                Err(SessionError::Conflict { head: newest }) => head = newest,
                Err(SessionError::Disconnected) => {}
                Err(other) => panic!("{session}: {other}"),
            }
        }
    }
    known
}

/// Sends input beside the leader.
async fn speak(shared: Arc<Shared>, session: SessionId) -> Acknowledged {
    let mut known = Acknowledged::new();
    let mut n = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        n += 1;
        let message = NewEvent::new("user.message", json!({"n": n})).with_id(format!("speak{n}"));
        match shared
            .client
            .append_input(&session, &format!("key{n}"), vec![message])
            .await
        {
            Ok(events) => shared.note(&mut known, events),
            Err(SessionError::Disconnected) => n -= 1,
            Err(other) => panic!("{session}: {other}"),
        }
    }
    known
}

/// Follows until it has seen the event with the id `end`.
async fn follow(shared: Arc<Shared>, session: SessionId) -> Vec<Event> {
    let mut seen = Vec::new();
    let mut tail = Box::pin(shared.client.tail(&session, 0));
    while let Some(item) = tail.next().await {
        if let Tailed::Event(event) = item {
            let is_last = event.id == "end";
            seen.push(event);
            if is_last {
                break;
            }
        }
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_is_killed_loses_nothing_that_it_acknowledged() {
    let home = tempfile::tempdir().unwrap();
    let (to_client, links) = mpsc::channel(1);
    let (client, driver) = SessionClient::new(links);
    let driver = tokio::spawn(driver);
    let (mut child, link) = spawn_role(home.path());
    to_client.send(link).await.unwrap();

    let shared = Arc::new(Shared {
        client: client.clone(),
        acknowledged: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    });
    let mut tasks = Vec::new();
    for n in 0..SESSIONS {
        let session = SessionId::random("sesn");
        let created = NewEvent::new("session.created", json!({"n": n}));
        client
            .append_input(&session, "create", vec![created])
            .await
            .unwrap();
        let lead = tokio::spawn(lead(Arc::clone(&shared), session.clone()));
        let speak = tokio::spawn(speak(Arc::clone(&shared), session.clone()));
        let follow = tokio::spawn(follow(Arc::clone(&shared), session.clone()));
        tasks.push((session, lead, speak, follow));
    }

    for round in 0..KILLS {
        // Let it get somewhere, then kill it at a moment that differs from round to round.
        let target = shared.acknowledged.load(Ordering::Relaxed) + 20 + round * 7 % 40;
        let progressed = async {
            while shared.acknowledged.load(Ordering::Relaxed) < target {
                tokio::time::sleep(Duration::from_micros(300 + round * 37 % 500)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), progressed)
            .await
            .expect("the role makes progress");
        child.kill().unwrap();
        child.wait().unwrap();
        let link;
        (child, link) = spawn_role(home.path());
        to_client.send(link).await.unwrap();
    }

    shared.stop.store(true, Ordering::Relaxed);
    for (session, lead, speak, follow) in tasks {
        let mut acknowledged = lead.await.unwrap();
        acknowledged.extend(speak.await.unwrap());
        let end = NewEvent::new("user.message", json!({})).with_id("end");
        client
            .append_input(&session, "end", vec![end])
            .await
            .unwrap();
        let stored = client.read(&session, Query::default()).await.unwrap();
        verify(&stored).unwrap();
        for (seq, event) in (1..).zip(&stored) {
            assert_eq!(event.seq, seq, "positions are dense");
        }
        for (seq, event) in &acknowledged {
            let index = usize::try_from(*seq).unwrap() - 1;
            assert_eq!(
                stored.get(index),
                Some(event),
                "an acknowledged event is lost"
            );
        }
        let mut ids: Vec<&str> = stored.iter().map(|e| e.id.as_str()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), stored.len(), "nothing was written twice");
        assert_eq!(
            follow.await.unwrap(),
            stored,
            "the tail saw all, once, in order"
        );
    }
    assert!(shared.acknowledged.load(Ordering::Relaxed) > KILLS * 20);
    drop((client, shared, to_client));
    driver.await.unwrap();
    assert!(
        child.wait().unwrap().success(),
        "the last role ends with its last link"
    );
}
