use std::pin::pin;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinHandle;
use tokio_util::codec::{Framed, LengthDelimitedCodec};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::role;

/// A role and a client, and the means to link them and to break the link.
struct Linked {
    home: TempDir,
    to_role: mpsc::Sender<role::Linked>,
    to_client: mpsc::Sender<UnixStream>,
    stop: CancellationToken,
    role: JoinHandle<Result<(), SessionError>>,
    driver: JoinHandle<()>,
}

impl Drop for Linked {
    fn drop(&mut self) {
        self.role.abort();
        self.driver.abort();
    }
}

impl Linked {
    fn start() -> (SessionClient, Self) {
        let home = tempfile::tempdir().unwrap();
        let (to_client, client_links) = mpsc::channel(4);
        let (client, driver) = SessionClient::new(client_links);
        let (to_role, stop, role) = start_role(&home);
        let linked = Self {
            home,
            to_role,
            to_client,
            stop,
            role,
            driver: tokio::spawn(driver),
        };
        (client, linked)
    }

    /// Links the two anew.
    async fn link(&self) {
        let (left, right) = UnixStream::pair().unwrap();
        self.to_role.send(for_api(left)).await.unwrap();
        self.to_client.send(right).await.unwrap();
    }

    /// Links the client to the test instead of to the role.
    async fn link_to_test(&self) -> Framed<UnixStream, LengthDelimitedCodec> {
        let (left, right) = UnixStream::pair().unwrap();
        self.to_client.send(right).await.unwrap();
        Framed::new(left, LengthDelimitedCodec::new())
    }

    /// A raw link to the role.
    async fn raw(&self) -> Framed<UnixStream, LengthDelimitedCodec> {
        let (left, right) = UnixStream::pair().unwrap();
        self.to_role.send(for_api(left)).await.unwrap();
        Framed::new(right, LengthDelimitedCodec::new())
    }

    /// Ends the role as a supervisor does and starts it again.
    async fn restart_role(&mut self) {
        self.stop.cancel();
        (&mut self.role).await.unwrap().unwrap();
        (self.to_role, self.stop, self.role) = start_role(&self.home);
    }
}

fn for_api(link: UnixStream) -> role::Linked {
    role::Linked::new(role::Rights::Everything, link)
}

fn start_role(
    home: &TempDir,
) -> (
    mpsc::Sender<role::Linked>,
    CancellationToken,
    JoinHandle<Result<(), SessionError>>,
) {
    let (to_role, links) = mpsc::channel(4);
    let stop = CancellationToken::new();
    let options = role::Options {
        directory: home.path().to_owned(),
    };
    let role = tokio::spawn(role::run(options, links, stop.clone()));
    (to_role, stop, role)
}

async fn open() -> (SessionClient, Linked) {
    let (client, linked) = Linked::start();
    linked.link().await;
    (client, linked)
}

mod conformance {
    crate::conformance_tests!(super::open);
}

fn message(text: &str) -> NewEvent {
    NewEvent::new("user.message", json!({"text": text}))
}

async fn leased(client: &SessionClient) -> (SessionId, u64) {
    let session = SessionId::random("sesn");
    client
        .append_input(&session, "k", vec![message("a")])
        .await
        .unwrap();
    let lease = client.lease(&session, "one", 60_000).await.unwrap();
    (session, lease.epoch)
}

#[tokio::test]
async fn a_call_without_a_link_waits_for_one() {
    let (client, linked) = Linked::start();
    let call = tokio::spawn(async move {
        client
            .append_input(&SessionId::random("sesn"), "k", vec![message("a")])
            .await
    });
    linked.link().await;
    assert_eq!(call.await.unwrap().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_nobody_answers_ends_as_disconnected() {
    let (client, linked) = Linked::start();
    let silent = linked.link_to_test().await;
    let answer = client.head(&SessionId::random("sesn")).await;
    assert_eq!(answer, Err(SessionError::Disconnected));
    drop(silent);
}

#[tokio::test]
async fn a_call_whose_answer_was_lost_is_sent_again_and_done_once() {
    let (client, linked) = Linked::start();
    linked.link().await;
    let (session, epoch) = leased(&client).await;
    for round in 0..3_u64 {
        // The request reaches the role, which makes it durable and answers; the answer is lost with the link.
        let mut to_client = linked.link_to_test().await;
        let mut to_role = linked.raw().await;
        let call = {
            let (client, session) = (client.clone(), session.clone());
            tokio::spawn(async move {
                client
                    .append(&session, round + 1, epoch, vec![message("b")])
                    .await
            })
        };
        let request = to_client.next().await.unwrap().unwrap();
        to_role.send(request.freeze()).await.unwrap();
        to_role.next().await.unwrap().unwrap();
        drop(to_client);
        linked.link().await;
        assert_eq!(call.await.unwrap().unwrap()[0].seq, round + 2);
    }
    assert_eq!(
        client.read(&session, Query::default()).await.unwrap().len(),
        4
    );
}

#[tokio::test]
async fn a_published_value_is_never_sent_twice() {
    let (client, linked) = Linked::start();
    let session = SessionId::random("sesn");
    let mut to_client = linked.link_to_test().await;
    let call = {
        let (client, session) = (client.clone(), session.clone());
        tokio::spawn(async move { client.publish(&session, 1, json!(1)).await })
    };
    to_client.next().await.unwrap().unwrap();
    drop(to_client);
    assert_eq!(call.await.unwrap(), Err(SessionError::Disconnected));
    linked.link().await;
    assert_eq!(client.head(&session).await, Err(SessionError::NotFound));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tails_have_no_gap_or_duplicate_across_links_that_break() {
    let (client, linked) = Linked::start();
    linked.link().await;
    let session = SessionId::random("sesn");
    let tails: Vec<_> = (0..4)
        .map(|_| {
            let tail = client.tail(&session, 0);
            tokio::spawn(async move { tail.take(400).collect::<Vec<_>>().await })
        })
        .collect();
    for n in 0..400 {
        if n % 10 == 5 {
            linked.link().await;
        }
        let key = format!("k{n}");
        client
            .append_input(&session, &key, vec![message(&key)])
            .await
            .unwrap();
    }
    let whole = client.read(&session, Query::default()).await.unwrap();
    assert_eq!(whole.len(), 400);
    for tail in tails {
        let seen = tail.await.unwrap();
        assert!(
            seen.into_iter()
                .eq(whole.iter().cloned().map(Tailed::Event))
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_tails_and_watches_outlive_restarts_of_the_role() {
    let (client, mut linked) = Linked::start();
    linked.link().await;
    let session = SessionId::random("sesn");
    let mut watch = pin!(client.watch("one"));
    let tail = client.tail(&session, 0);
    let tail = tokio::spawn(async move { tail.take(60).collect::<Vec<_>>().await });
    let writer = {
        let (client, session) = (client.clone(), session.clone());
        tokio::spawn(async move {
            for n in 0..60 {
                let key = format!("k{n}");
                client
                    .append_input(&session, &key, vec![message(&key)])
                    .await
                    .unwrap();
            }
        })
    };
    for _ in 0..5 {
        assert_eq!(watch.next().await.as_ref(), Some(&session));
        linked.restart_role().await;
        linked.link().await;
    }
    writer.await.unwrap();
    let whole = client.read(&session, Query::default()).await.unwrap();
    crate::verify(&whole).unwrap();
    assert!(
        tail.await
            .unwrap()
            .into_iter()
            .eq(whole.into_iter().map(Tailed::Event))
    );
    assert_eq!(watch.next().await.as_ref(), Some(&session));
}

#[tokio::test]
async fn a_malformed_frame_closes_only_its_own_link() {
    let (client, linked) = open().await;
    let (session, _) = leased(&client).await;
    let deep = format!(r#"{{"id":1,"call":{}"#, "[".repeat(100_000));
    let attacks: [&[u8]; 6] = [
        b"not json",
        b"{}",
        br#"{"id":1,"call":{"head":{"session":"../../etc"}}}"#,
        br#"{"id":-1,"call":{"watch":{"owner":"x"}}}"#,
        br#"{"id":1,"call":{"no_such_call":{}}}"#,
        deep.as_bytes(),
    ];
    for attack in attacks {
        let mut raw = linked.raw().await;
        raw.send(Bytes::copy_from_slice(attack)).await.unwrap();
        assert!(
            raw.next().await.is_none(),
            "{:?}",
            String::from_utf8_lossy(attack)
        );
    }
    // A length that no frame may have.
    let mut raw = linked.raw().await.into_inner();
    tokio::io::AsyncWriteExt::write_all(&mut raw, &[0xff; 8])
        .await
        .unwrap();
    assert_eq!(raw.read(&mut [0; 1]).await.unwrap(), 0);
    assert_eq!(client.head(&session).await.unwrap().0, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_never_reads_holds_up_only_itself() {
    let (client, linked) = open().await;
    let (session, epoch) = leased(&client).await;
    let mut stuck = linked.raw().await;
    for id in 0..8 {
        let call = json!({"id": id, "call": {"tail": {"session": session, "after": 0}}});
        stuck.send(Bytes::from(call.to_string())).await.unwrap();
    }
    let large = NewEvent::new("agent.message", json!("x".repeat(200_000)));
    for head in 1..40 {
        client
            .append(&session, head, epoch, vec![large.clone()])
            .await
            .unwrap();
    }
    assert_eq!(client.head(&session).await.unwrap().0, 40);
}

#[tokio::test]
async fn a_role_that_talks_nonsense_is_left_for_the_next_link() {
    let (client, linked) = Linked::start();
    let mut nonsense = linked.link_to_test().await;
    let call = {
        let client = client.clone();
        tokio::spawn(async move { client.head(&SessionId::random("sesn")).await })
    };
    nonsense.next().await.unwrap().unwrap();
    nonsense
        .send(Bytes::from_static(b"nonsense"))
        .await
        .unwrap();
    assert!(nonsense.next().await.is_none(), "the client hangs up");
    linked.link().await;
    assert_eq!(call.await.unwrap(), Err(SessionError::NotFound));
}

#[tokio::test]
async fn without_any_link_to_come_calls_and_tails_end() {
    let (client, linked) = open().await;
    let (session, _) = leased(&client).await;
    let (to_nowhere, _) = mpsc::channel(1);
    let mut linked = linked;
    linked.to_client = to_nowhere;
    let mut tail = pin!(client.tail(&session, 1));
    linked.stop.cancel();
    assert_eq!(tail.next().await, None);
    assert_eq!(client.head(&session).await, Err(SessionError::Disconnected));
}

#[tokio::test]
async fn what_a_role_could_not_parse_is_refused_before_it_is_sent() {
    let (client, linked) = open().await;
    let (session, epoch) = leased(&client).await;
    let mut deep = json!(1);
    for _ in 0..120 {
        deep = json!([deep]);
    }
    let append = client
        .append(
            &session,
            1,
            epoch,
            vec![NewEvent::new("agent.message", deep.clone())],
        )
        .await;
    assert!(
        matches!(append, Err(SessionError::Invalid { .. })),
        "{append:?}"
    );
    let publish = client.publish(&session, epoch, deep).await;
    assert!(
        matches!(publish, Err(SessionError::Invalid { .. })),
        "{publish:?}"
    );
    let mut deep_enough = json!(1);
    for _ in 0..100 {
        deep_enough = json!([deep_enough]);
    }
    let event = NewEvent::new("agent.message", deep_enough);
    client
        .append(&session, 1, epoch, vec![event])
        .await
        .unwrap();
    drop(linked);
}

#[tokio::test]
async fn a_second_role_over_the_same_directory_is_refused() {
    let (client, linked) = open().await;
    leased(&client).await;
    let (_links, links) = mpsc::channel(1);
    let options = role::Options {
        directory: linked.home.path().to_owned(),
    };
    let second = role::run(options, links, CancellationToken::new()).await;
    assert!(
        matches!(second, Err(SessionError::Locked { .. })),
        "{second:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_role_finishes_what_it_was_asked() {
    let (client, mut linked) = open().await;
    let mut writers = tokio::task::JoinSet::new();
    for n in 0..50 {
        let client = client.clone();
        writers.spawn(async move {
            let session = SessionId::random("sesn");
            let answer = client
                .append_input(&session, "k", vec![message(&n.to_string())])
                .await;
            (session, answer)
        });
    }
    linked.restart_role().await;
    linked.link().await;
    for (session, answer) in writers.join_all().await {
        assert_eq!(client.read(&session, Query::default()).await, answer);
    }
}
