use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use claviger_vault_protocol::Binding;
use futures_util::StreamExt as _;
use http::HeaderMap;
use tokio::io::AsyncWriteExt as _;
use url::Url;

use super::*;
use crate::shared::Shared;
use crate::testing::{FakeVault, SECRET, Upstream, bearer, bound, leaks, ok, shared};

struct Scene {
    vault: Arc<FakeVault>,
    shared: Arc<Shared>,
    live: Arc<Live>,
    envelope: Envelope,
}

async fn scene(binding: Binding) -> Scene {
    let vault = FakeVault::new();
    let shared = shared(&vault).await;
    let envelope = vault.grant("sesn_1", 3, "tracker", SECRET, binding);
    let opening = vault.opening("sesn_1", 3, vec![envelope.clone()]);
    shared.openings.present(opening).await.unwrap();
    let live = shared.openings.live("sesn_1", 3).unwrap();
    Scene {
        vault,
        shared,
        live,
        envelope,
    }
}

impl Scene {
    async fn send(&self, request: Request) -> Result<Answer, Refusal> {
        self.shared
            .spender
            .spend(
                &self.live,
                &self.envelope,
                "tracker",
                "hash",
                request,
                Limits::default(),
            )
            .await
    }
}

fn get(url: Url) -> Request {
    Request {
        method: Method::GET,
        url,
        headers: HeaderMap::new(),
        body: Payload::Empty,
    }
}

fn every_echo() -> Vec<u8> {
    let mut body = Vec::new();
    for (name, form) in claviger_vault_memory::forms::of(SECRET.as_bytes()) {
        body.extend_from_slice(format!("\n{name} = ").as_bytes());
        body.extend_from_slice(&form);
    }
    for before in ["", "a", "ab"] {
        let text = format!("{before}{SECRET} and more");
        body.extend_from_slice(
            format!(
                "\n{} {}",
                STANDARD.encode(&text),
                URL_SAFE_NO_PAD.encode(&text)
            )
            .as_bytes(),
        );
    }
    body.extend_from_slice(
        format!("\nBasic {}\n", STANDARD.encode(format!("user:{SECRET}"))).as_bytes(),
    );
    body
}

#[tokio::test]
async fn an_upstream_that_echoes_the_key_everywhere_gives_nothing_back() {
    let upstream = Upstream::answering(|_| {
        let plain: String = SECRET.chars().filter(|c| *c != '"').collect();
        let headers = format!(
            "x-key: {SECRET}\r\nset-cookie: k={}; path=/\r\nlocation: http://x/?k={}\r\nx-{}: 1\r\nx-h: {plain}\r\n",
            STANDARD.encode(SECRET),
            percent_encoding::utf8_percent_encode(SECRET, percent_encoding::NON_ALPHANUMERIC),
            hex::encode(SECRET),
        );
        ok(&headers, every_echo())
    })
    .await;
    let scene = scene(bearer(upstream.address)).await;
    let answer = scene.send(get(upstream.url("/issues?q=1"))).await.unwrap();
    assert_eq!(answer.status, 200);
    let headers = format!("{:?}", answer.headers);
    assert_eq!(leaks(headers.as_bytes()), Vec::<&str>::new(), "{headers}");
    assert!(
        !answer
            .headers
            .keys()
            .any(|name| name.as_str().contains(&hex::encode(SECRET)))
    );
    let collected = answer.collect(1 << 20).await.unwrap();
    assert_eq!(leaks(&collected.bytes), Vec::<&str>::new());
    assert!(String::from_utf8_lossy(&collected.bytes).contains("[scrubbed:tracker]"));
    // The upstream itself got the key, once, in its slot.
    let requests = upstream.requests();
    assert_eq!(requests.len(), 1);
    assert!(requests[0].starts_with("GET /issues?q=1 HTTP/1.1\r\n"));
    assert_eq!(requests[0].matches(SECRET).count(), 1);
    assert!(requests[0].contains(&format!("authorization: Bearer {SECRET}\r\n")));
    assert!(requests[0].contains("accept-encoding: identity\r\n"));
    let seen = scene.vault.seen();
    assert_eq!(seen.outcomes.len(), 1);
    assert_eq!(
        (seen.outcomes[0].status, seen.outcomes[0].http_status),
        (UseStatus::Ok, 200)
    );
    assert_eq!(seen.outcomes[0].bytes, collected.bytes.len() as u64);
    assert!(seen.outcomes[0].scrubbed > 20);
    let asked = serde_json::to_string(&seen.asked).unwrap();
    assert_eq!(leaks(asked.as_bytes()), Vec::<&str>::new());
}

#[tokio::test]
async fn the_key_in_reason_phrase_and_trailers_does_not_come_back() {
    let upstream = Upstream::answering(|_| {
        format!("HTTP/1.1 200 {SECRET}\r\ntransfer-encoding: chunked\r\ntrailer: x-t\r\n\r\n2\r\nok\r\n0\r\nx-t: {SECRET}\r\n\r\n").into_bytes()
    })
    .await;
    let scene = scene(bearer(upstream.address)).await;
    let answer = scene.send(get(upstream.url("/"))).await.unwrap();
    let shown = format!("{:?} {:?}", answer.status, answer.headers);
    assert_eq!(leaks(shown.as_bytes()), Vec::<&str>::new());
    assert_eq!(answer.collect(1 << 20).await.unwrap().bytes, "ok");
}

#[tokio::test]
async fn the_key_one_byte_a_chunk_does_not_come_back() {
    let upstream = Upstream::serving(|_, mut stream| async move {
        stream.set_nodelay(true).unwrap();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            .await
            .unwrap();
        for byte in
            format!("before {SECRET} between {} after", STANDARD.encode(SECRET)).into_bytes()
        {
            stream
                .write_all(&[b'1', b'\r', b'\n', byte, b'\r', b'\n'])
                .await
                .unwrap();
            tokio::task::yield_now().await;
        }
        stream.write_all(b"0\r\n\r\n").await.unwrap();
    })
    .await;
    let scene = scene(bearer(upstream.address)).await;
    let body = scene
        .send(get(upstream.url("/")))
        .await
        .unwrap()
        .collect(1 << 20)
        .await
        .unwrap();
    assert_eq!(
        body.bytes,
        "before [scrubbed:tracker] between [scrubbed:tracker] after"
    );
}

#[tokio::test]
async fn a_denied_use_dials_nothing() {
    let upstream = Upstream::answering(|_| ok("", "hello")).await;
    let scene = scene(bearer(upstream.address)).await;
    scene.vault.seen().deny = Some("tool_not_permitted");
    let refusal = scene.send(get(upstream.url("/"))).await.err().unwrap();
    assert_eq!(refusal.code, "tool_not_permitted");
    assert_eq!(upstream.connections(), 0);
    assert!(scene.vault.seen().outcomes.is_empty());
}

#[tokio::test]
async fn another_destination_than_the_bound_one_is_refused_and_not_dialed() {
    let bound_to = Upstream::answering(|_| ok("", "hello")).await;
    let other = Upstream::answering(|_| ok("", "hello")).await;
    let scene = scene(bearer(bound_to.address)).await;
    let refusal = scene.send(get(other.url("/"))).await.err().unwrap();
    assert_eq!(refusal.code, "destination_not_bound");
    assert_eq!((other.connections(), bound_to.connections()), (0, 0));
}

#[tokio::test]
async fn a_redirect_is_answered_and_not_followed() {
    let target = Upstream::answering(|_| ok("", "stolen")).await;
    let location = target.url("/take");
    let upstream = Upstream::answering(move |_| {
        format!(
            "HTTP/1.1 307 Temporary Redirect\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n"
        )
        .into_bytes()
    })
    .await;
    let scene = scene(bearer(upstream.address)).await;
    let answer = scene.send(get(upstream.url("/"))).await.unwrap();
    assert_eq!(answer.status, 307);
    assert!(answer.collect(10).await.unwrap().bytes.is_empty());
    assert_eq!((upstream.connections(), target.connections()), (1, 0));
    assert_eq!(scene.vault.seen().outcomes[0].http_status, 307);
}

#[tokio::test]
async fn what_the_client_puts_in_place_of_the_key_is_dropped_and_reported() {
    let upstream = Upstream::answering(|_| ok("", "hello")).await;
    let scene = scene(bearer(upstream.address)).await;
    let mut request = get(upstream.url("/"));
    request
        .headers
        .append("authorization", "Bearer mine-all-mine".parse().unwrap());
    request
        .headers
        .append("cookie", "session=mine".parse().unwrap());
    request.headers.append("x-other", "kept".parse().unwrap());
    scene.send(request).await.unwrap();
    let request = upstream.requests().remove(0);
    assert!(
        !request.contains("mine") && request.contains("x-other: kept"),
        "{request}"
    );
    assert_eq!(request.to_lowercase().matches("authorization:").count(), 1);
    assert_eq!(
        scene.vault.seen().reports[0].reason,
        "client_credential_dropped"
    );
}

#[tokio::test]
async fn every_slot_reaches_the_wire_as_declared() {
    let upstream = Upstream::answering(|_| ok("", "hello")).await;
    let rendered = format!(
        "authorization: Basic {}\r\n",
        STANDARD.encode(format!("user:{SECRET}"))
    );
    let encoded = percent_encoding::utf8_percent_encode(SECRET, percent_encoding::NON_ALPHANUMERIC);
    let in_query = format!("GET /p?a=b&key={encoded} HTTP/1.1\r\n")
        .replace("%2D", "-")
        .replace("%7E", "~");
    for (slot, wanted) in [
        (
            Slot::Basic {
                username: "user".into(),
            },
            rendered,
        ),
        (
            Slot::Header {
                name: "x-api-key".into(),
                prefix: String::new(),
            },
            format!("x-api-key: {SECRET}\r\n"),
        ),
        (Slot::Query { name: "key".into() }, in_query),
        (Slot::None, "GET /p?a=b HTTP/1.1\r\n".to_owned()),
    ] {
        let scene = scene(bound(upstream.address, slot)).await;
        scene.send(get(upstream.url("/p?a=b"))).await.unwrap();
        let request = upstream.requests().pop().unwrap();
        assert!(request.contains(&wanted), "{wanted} in {request}");
    }
}

#[tokio::test]
async fn a_release_that_the_vault_did_not_make_for_this_use_sends_nothing() {
    let upstream = Upstream::answering(|_| ok("", "hello")).await;
    let scene = scene(bearer(upstream.address)).await;
    scene.vault.seen().forge = true;
    assert_eq!(
        scene.send(get(upstream.url("/"))).await.err().unwrap().code,
        "release_not_opened"
    );
    scene.vault.seen().forge = false;
    scene.vault.seen().misdirect = true;
    assert_eq!(
        scene.send(get(upstream.url("/"))).await.err().unwrap().code,
        "release_not_opened"
    );
    assert!(upstream.requests().is_empty());
    let seen = scene.vault.seen();
    assert!(
        seen.outcomes
            .iter()
            .all(|outcome| outcome.status == UseStatus::Failed)
    );
    assert_eq!(seen.outcomes.len(), 2);
}

#[tokio::test]
async fn a_grant_moved_to_another_session_does_not_open() {
    let upstream = Upstream::answering(|_| ok("", "hello")).await;
    let mut scene = scene(bearer(upstream.address)).await;
    let other = scene
        .vault
        .grant("sesn_2", 3, "tracker", SECRET, bearer(upstream.address));
    scene.envelope.ciphertext = other.ciphertext;
    assert_eq!(
        scene.send(get(upstream.url("/"))).await.err().unwrap().code,
        "release_not_opened"
    );
}

#[tokio::test]
async fn after_a_rotation_the_newer_secret_is_sent_and_scrubbed() {
    const NEWER: &str = "sk-live-the-newer-secret-0001";
    let upstream = Upstream::answering(|_| ok("", format!("you are {NEWER}"))).await;
    let scene = scene(bearer(upstream.address)).await;
    scene.vault.seen().rotated = Some(NEWER);
    let body = scene
        .send(get(upstream.url("/")))
        .await
        .unwrap()
        .collect(1 << 10)
        .await
        .unwrap();
    assert_eq!(body.bytes, "you are [scrubbed:tracker]");
    assert!(upstream.requests()[0].contains(NEWER));
}

#[tokio::test]
async fn a_compressed_answer_is_refused() {
    for encoding in ["gzip", "br", "identity, zstd", "x-unknown"] {
        let upstream =
            Upstream::answering(move |_| ok(&format!("content-encoding: {encoding}\r\n"), "...."))
                .await;
        let scene = scene(bearer(upstream.address)).await;
        assert_eq!(
            scene.send(get(upstream.url("/"))).await.err().unwrap().code,
            "encoding_not_supported"
        );
        assert_eq!(scene.vault.seen().outcomes.len(), 1);
    }
}

#[tokio::test]
async fn a_path_that_another_parser_would_read_differently_is_refused_before_the_vault_is_asked() {
    let upstream = Upstream::answering(|_| ok("", "hello")).await;
    let scene = scene(bearer(upstream.address)).await;
    for path in [
        "/a/..%2fadmin",
        "/a%2f..%2fadmin",
        "/a/%252e%252e/x",
        "/a/..%5cx",
        "/a%00",
        "/a%0d%0ax",
        "/a/%25252e%25252e/",
    ] {
        assert_eq!(
            scene
                .send(get(upstream.url(path)))
                .await
                .err()
                .unwrap()
                .code,
            "path_not_bound",
            "{path}"
        );
    }
    assert!(scene.vault.seen().asked.is_empty());
    scene
        .send(get(upstream.url("/a%2Fb/%E2%9C%93%20c")))
        .await
        .unwrap();
}

#[tokio::test]
async fn an_event_comes_back_before_the_upstream_says_more() {
    let more = Arc::new(tokio::sync::Notify::new());
    let go = Arc::clone(&more);
    let upstream = Upstream::serving(move |_, mut stream| {
        let go = Arc::clone(&go);
        async move {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
            stream
                .write_all(format!("{head}data: one\n\n").as_bytes())
                .await
                .unwrap();
            go.notified().await;
            stream.write_all(b"data: two\n\n").await.unwrap();
        }
    })
    .await;
    let scene = scene(bearer(upstream.address)).await;
    let mut answer = scene.send(get(upstream.url("/"))).await.unwrap();
    assert_eq!(answer.body.next().await.unwrap().unwrap(), "data: one\n\n");
    assert!(scene.vault.seen().outcomes.is_empty());
    more.notify_one();
    assert_eq!(answer.body.next().await.unwrap().unwrap(), "data: two\n\n");
    assert!(answer.body.next().await.is_none());
    assert_eq!(scene.vault.seen().outcomes[0].bytes, 22);
}

#[tokio::test]
async fn the_outcome_of_a_dropped_answer_is_recorded() {
    let upstream = Upstream::serving(|_, mut stream| async move {
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nhello")
            .await
            .unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    let scene = scene(bearer(upstream.address)).await;
    let mut answer = scene.send(get(upstream.url("/"))).await.unwrap();
    answer.body.next().await.unwrap().unwrap();
    drop(answer);
    scene.shared.tasks.close();
    scene.shared.tasks.wait().await;
    let seen = scene.vault.seen();
    assert_eq!((seen.outcomes.len(), seen.outcomes[0].bytes), (1, 5));
}

#[tokio::test]
async fn the_outcome_is_known_to_the_vault_when_the_last_byte_arrives() {
    let upstream = Upstream::answering(|_| ok("", "hello")).await;
    let scene = scene(bearer(upstream.address)).await;
    let mut answer = scene.send(get(upstream.url("/"))).await.unwrap();
    assert_eq!(answer.body.next().await.unwrap().unwrap(), "hello");
    assert_eq!(scene.vault.seen().outcomes.len(), 1);
}

#[tokio::test]
async fn an_upstream_that_breaks_off_is_an_error_and_an_outcome() {
    let upstream =
        Upstream::answering(|_| b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello".to_vec())
            .await;
    let scene = scene(bearer(upstream.address)).await;
    let answer = scene.send(get(upstream.url("/"))).await.unwrap();
    assert_eq!(answer.collect(100).await.err().unwrap(), BodyError::Cut);
    assert_eq!(
        scene.vault.seen().outcomes[0].reason.as_deref(),
        Some("upstream_cut")
    );
    let gone = Upstream::answering(|_| Vec::new()).await;
    let scene = self::scene(bearer(gone.address)).await;
    assert_eq!(
        scene.send(get(gone.url("/"))).await.err().unwrap().code,
        "upstream_unreachable"
    );
    assert_eq!(scene.vault.seen().outcomes[0].status, UseStatus::Failed);
}

#[tokio::test]
async fn the_digest_covers_every_part_of_the_request() {
    let upstream = Upstream::answering(|_| ok("", "hello")).await;
    let scene = scene(bearer(upstream.address)).await;
    let requests = || {
        let mut with_header = get(upstream.url("/a"));
        with_header.headers.insert("x-a", "1".parse().unwrap());
        let mut with_body = get(upstream.url("/a"));
        with_body.body = Payload::Full(Bytes::from_static(b"x"));
        let mut with_method = get(upstream.url("/a"));
        with_method.method = Method::DELETE;
        [
            get(upstream.url("/a")),
            get(upstream.url("/b")),
            get(upstream.url("/a?c")),
            with_header,
            with_body,
            with_method,
        ]
    };
    for request in requests().into_iter().chain(requests()) {
        scene.send(request).await.unwrap();
    }
    let digests: Vec<String> = scene
        .vault
        .seen()
        .asked
        .iter()
        .map(|ask| ask.digest.clone())
        .collect();
    assert_eq!(digests[..6], digests[6..]);
    let distinct: std::collections::HashSet<_> = digests.iter().collect();
    assert_eq!(distinct.len(), 6);
}
