//! The model route as a harness sees it, over HTTP/2 on a socket pair.

use std::time::Instant;

use claviger_vault_protocol::Slot;
use claviger_vault_protocol::usage::{AuthorizeUse, UseStatus};
use http::Request as HttpRequest;
use http_body_util::Full;
use hyper::client::conn::http2;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};

use super::*;
use crate::egress::tests::{Credential, World, echo, origin};
use crate::presenters::Presented;
use crate::testing::{SECRET, Upstream, leaks};

struct Route {
    world: World,
    sender: http2::SendRequest<Full<Bytes>>,
    /// Held so that the role's loop sees no end of its links.
    links: mpsc::Sender<Linked>,
    presented: Arc<Presented>,
}

impl Route {
    async fn new(base_url: &str, credential: Credential) -> Self {
        let world = World::new().await;
        world.present("sesn_1", 3, &[credential]).await;
        let (links, receiver) = mpsc::channel(1);
        let presented = world.shared.presenters.enter("harness-0");
        presented.insert("sesn_1", 3);
        let base_url = Url::parse(base_url).unwrap();
        tokio::spawn(run(
            Arc::clone(&world.shared),
            receiver,
            base_url,
            CancellationToken::new(),
        ));
        Self {
            world,
            sender: connect(&links, "harness-0").await,
            links,
            presented,
        }
    }

    async fn ask(&self, request: HttpRequest<Full<Bytes>>) -> Response<Incoming> {
        let asking = self.sender.clone();
        let mut asking = asking;
        tokio::time::timeout(Duration::from_secs(10), asking.send_request(request))
            .await
            .unwrap()
            .unwrap()
    }

    async fn text(&self, request: HttpRequest<Full<Bytes>>) -> (StatusCode, HeaderMap, String) {
        let (head, body) = self.ask(request).await.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (
            head.status,
            head.headers,
            String::from_utf8_lossy(&body).into_owned(),
        )
    }

    /// What the vault was asked to allow so far.
    fn uses(&self) -> Vec<AuthorizeUse> {
        self.world.vault.seen().asked.clone()
    }

    async fn refused(&self, request: HttpRequest<Full<Bytes>>, status: u16, code: &str) {
        let (found, headers, text) = self.text(request).await;
        let error: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (found.as_u16(), error["error"]["code"].as_str()),
            (status, Some(code)),
            "{text}"
        );
        assert_eq!(error["type"], "error");
        assert!(
            error["error"]["type"].as_str().unwrap().ends_with("_error"),
            "{text}"
        );
        assert!(headers.contains_key("x-should-retry") && headers["claviger-refusal"] == code);
    }
}

/// A harness's link to the route.
async fn connect(links: &mpsc::Sender<Linked>, peer: &str) -> http2::SendRequest<Full<Bytes>> {
    let (ours, stream) = UnixStream::pair().unwrap();
    let peer = peer.to_owned();
    links.send(Linked { peer, stream }).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(ours))
        .await
        .unwrap();
    tokio::spawn(async move { drop(connection.await) });
    sender
}

/// An answer with a length.
fn answer(status: &str, headers: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn model(origin: &str) -> Credential {
    Credential::with_slot(
        "anthropic",
        origin,
        Slot::Header {
            name: "x-api-key".to_owned(),
            prefix: String::new(),
        },
    )
}

fn post(path: &str, session: &str, epoch: &str) -> http::request::Builder {
    HttpRequest::post(format!("http://tools{path}"))
        .header(SESSION_HEADER, session)
        .header(EPOCH_HEADER, epoch)
}

fn message(session: &str, epoch: &str) -> HttpRequest<Full<Bytes>> {
    post("/v1/messages", session, epoch)
        .body(Full::from("{\"model\":\"m\"}"))
        .unwrap()
}

#[tokio::test]
async fn a_message_goes_out_with_the_key_and_only_the_kept_headers() {
    let upstream = Upstream::answering(|request| {
        answer(
            "200 OK",
            "request-id: req_1\r\nset-cookie: a=b\r\nanthropic-ratelimit-tokens-remaining: 5\r\n",
            request,
        )
    });
    let upstream = upstream.await;
    let route = Route::new(
        &format!("{}/gateway/", origin(&upstream)),
        model(&origin(&upstream)),
    )
    .await;
    let request = post("/v1/messages?beta=true", "sesn_1", "3")
        .header("anthropic-version", "2023-06-01")
        .header("anthropic-beta", "b-1")
        .header("content-type", "application/json")
        .header("x-api-key", "own-1")
        .header("authorization", "Bearer own-2")
        .header("cookie", "own-3")
        .header("x-anything", "own-4")
        .body(Full::from("{\"model\":\"m\"}"))
        .unwrap();
    let (status, headers, text) = route.text(request).await;
    assert_eq!(status, 200);
    assert_eq!(headers["request-id"], "req_1");
    assert_eq!(headers["anthropic-ratelimit-tokens-remaining"], "5");
    assert!(!headers.contains_key("set-cookie"));
    assert_eq!(
        leaks(text.as_bytes()),
        Vec::<&str>::new(),
        "an echo is scrubbed: {text}"
    );
    assert!(text.contains("[scrubbed:anthropic]"), "{text}");

    let seen = upstream.requests().remove(0);
    assert!(
        seen.starts_with("POST /gateway/v1/messages?beta=true HTTP/1.1\r\n"),
        "{seen}"
    );
    for kept in [
        "anthropic-version: 2023-06-01",
        "anthropic-beta: b-1",
        "content-type: application/json",
        "{\"model\":\"m\"}",
    ] {
        assert!(seen.contains(kept), "{kept}: {seen}");
    }
    assert!(seen.contains(&format!("x-api-key: {SECRET}\r\n")), "{seen}");
    for gone in ["own-", "claviger-", "authorization", "cookie"] {
        assert!(!seen.contains(gone), "{gone}: {seen}");
    }
    let ask = route.uses().remove(0);
    assert_eq!(
        (ask.tool.as_str(), ask.tool_hash.as_str(), ask.epoch),
        ("model", "", 3)
    );
}

#[tokio::test]
async fn a_harness_spends_only_what_it_presented_itself() {
    let upstream = echo().await;
    let mut route = Route::new(&origin(&upstream), model(&origin(&upstream))).await;
    let own = std::mem::replace(&mut route.sender, connect(&route.links, "harness-1").await);
    // Session and epoch are no secret; having presented the opening is what counts.
    route
        .refused(message("sesn_1", "3"), 403, "opening_not_found")
        .await;
    assert!(route.uses().is_empty());
    route.sender = own;
    assert_eq!(route.text(message("sesn_1", "3")).await.0, 200);
}

#[tokio::test]
async fn only_the_epoch_that_was_presented_is_answered() {
    let upstream = echo().await;
    let route = Route::new(&origin(&upstream), model(&origin(&upstream))).await;
    for (session, epoch) in [("sesn_1", "2"), ("sesn_1", "4"), ("sesn_2", "3"), ("", "3")] {
        route
            .refused(message(session, epoch), 403, "opening_not_found")
            .await;
    }
    for epoch in ["", "x", "-3", "99999999999999999999999"] {
        route
            .refused(message("sesn_1", epoch), 400, "malformed_request")
            .await;
    }
    let twice = post("/v1/messages", "sesn_1", "2")
        .header(EPOCH_HEADER, "3")
        .body(Full::default())
        .unwrap();
    route.refused(twice, 400, "malformed_request").await;
    let none = HttpRequest::post("http://tools/v1/messages")
        .body(Full::default())
        .unwrap();
    route.refused(none, 400, "malformed_request").await;
    assert_eq!(route.uses(), Vec::new());
    assert_eq!(upstream.requests(), Vec::<String>::new());

    route
        .world
        .present("sesn_1", 4, &[model(&origin(&upstream))])
        .await;
    route.presented.insert("sesn_1", 4);
    route
        .refused(message("sesn_1", "3"), 403, "opening_not_found")
        .await;
    assert_eq!(route.text(message("sesn_1", "4")).await.0, 200);
}

#[tokio::test]
async fn a_session_without_a_model_grant_gets_none() {
    let upstream = echo().await;
    let route = Route::new(&origin(&upstream), model(&origin(&upstream))).await;
    route.presented.insert("sesn_5", 1);
    route
        .world
        .present(
            "sesn_5",
            1,
            &[Credential::bearer("tracker", &origin(&upstream))],
        )
        .await;
    route
        .refused(message("sesn_5", "1"), 403, "grant_not_found")
        .await;
    assert_eq!(upstream.requests(), Vec::<String>::new());
}

#[tokio::test]
async fn nothing_but_the_messages_api_is_reached() {
    let upstream = echo().await;
    let route = Route::new(&origin(&upstream), model(&origin(&upstream))).await;
    for path in [
        "/",
        "/v1/models",
        "/v1/messages/",
        "/v1/messages/../files",
        "/v1/messages%2fbatches",
        "//v1/messages",
    ] {
        let request = post(path, "sesn_1", "3").body(Full::default()).unwrap();
        route.refused(request, 404, "unknown_path").await;
    }
    let get = HttpRequest::get("http://tools/v1/messages")
        .body(Full::default())
        .unwrap();
    route.refused(get, 405, "method_not_allowed").await;
    let query = post("/v1/messages?key=x", "sesn_1", "3")
        .body(Full::default())
        .unwrap();
    route.refused(query, 400, "malformed_request").await;
    assert_eq!(upstream.requests(), Vec::<String>::new());
    let count = post("/v1/messages/count_tokens", "sesn_1", "3")
        .body(Full::from("{}"))
        .unwrap();
    assert_eq!(route.text(count).await.0, 200);
    assert!(upstream.requests()[0].starts_with("POST /v1/messages/count_tokens HTTP/1.1\r\n"));
}

#[tokio::test]
async fn the_models_own_refusals_pass_as_they_are() {
    for (status, code) in [
        ("401 Unauthorized", 401),
        ("429 Too Many Requests", 429),
        ("529 Overloaded", 529),
    ] {
        let upstream = Upstream::answering(move |_| {
            let body = "{\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\"}}";
            answer(
                status,
                "retry-after: 7\r\nrequest-id: req_2\r\nx-should-retry: true\r\n",
                body,
            )
        });
        let upstream = upstream.await;
        let route = Route::new(&origin(&upstream), model(&origin(&upstream))).await;
        let (found, headers, text) = route.text(message("sesn_1", "3")).await;
        assert_eq!(found.as_u16(), code);
        assert_eq!(
            (&headers["retry-after"], &headers["request-id"]),
            (&"7".parse().unwrap(), &"req_2".parse().unwrap())
        );
        assert!(text.contains("overloaded_error") && !headers.contains_key("claviger-refusal"));
        assert_eq!(route.world.vault.seen().outcomes[0].http_status, code);
    }
}

#[tokio::test]
async fn refusals_of_the_vault_say_whether_waiting_helps() {
    let upstream = echo().await;
    let route = Route::new(&origin(&upstream), model(&origin(&upstream))).await;
    route.world.vault.seen().deny = Some("vault_sealed");
    let (status, headers, _) = route.text(message("sesn_1", "3")).await;
    assert_eq!(
        (status.as_u16(), &headers["x-should-retry"]),
        (503, &"true".parse().unwrap())
    );
    route.world.vault.seen().deny = Some("charter_expired");
    let (status, headers, text) = route.text(message("sesn_1", "3")).await;
    assert_eq!(
        (status.as_u16(), &headers["x-should-retry"]),
        (403, &"false".parse().unwrap())
    );
    assert!(
        text.contains("permission_error") && text.contains("charter_expired"),
        "{text}"
    );
    assert_eq!(upstream.requests(), Vec::<String>::new());
}

#[tokio::test]
async fn a_model_server_that_is_not_there_is_worth_a_retry() {
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let origin = format!("http://{closed}");
    let route = Route::new(&origin, model(&origin)).await;
    let (status, headers, text) = route.text(message("sesn_1", "3")).await;
    assert_eq!(
        (status.as_u16(), &headers["x-should-retry"]),
        (502, &"true".parse().unwrap()),
        "{text}"
    );
    assert!(
        text.contains("api_error") && text.contains("upstream_unreachable"),
        "{text}"
    );
}

#[tokio::test]
async fn a_model_without_a_key_is_decided_and_recorded_like_any_other() {
    let upstream = echo().await;
    let route = Route::new(
        &origin(&upstream),
        Credential::with_slot("anthropic", &origin(&upstream), Slot::None),
    )
    .await;
    let request = post("/v1/messages", "sesn_1", "3")
        .header("x-api-key", "own")
        .body(Full::from("{}"))
        .unwrap();
    assert_eq!(route.text(request).await.0, 200);
    assert!(
        !upstream.requests()[0].contains("own"),
        "{}",
        upstream.requests()[0]
    );
    assert_eq!(route.uses().len(), 1);
    assert_eq!(route.world.vault.seen().outcomes.len(), 1);
}

#[tokio::test]
async fn each_event_passes_at_once_and_scrubbed_while_the_model_still_holds_the_stream() {
    let (go, gone) = mpsc::channel::<()>(1);
    let (wrote, mut written) = mpsc::channel::<Instant>(16);
    let gone = Arc::new(tokio::sync::Mutex::new(gone));
    let upstream = Upstream::serving(move |_, mut stream| {
        let (gone, wrote) = (Arc::clone(&gone), wrote.clone());
        async move {
            let mut gone = gone.lock().await;
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            for number in 0..8 {
                gone.recv().await;
                let event = format!("event: delta\ndata: {number} {SECRET}\n\n");
                wrote.send(Instant::now()).await.unwrap();
                stream
                    .write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes())
                    .await
                    .unwrap();
            }
            gone.recv().await;
            stream.write_all(b"0\r\n\r\n").await.unwrap();
        }
    });
    let upstream = upstream.await;
    let route = Route::new(&origin(&upstream), model(&origin(&upstream))).await;
    let mut response = route.ask(message("sesn_1", "3")).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut waits = Vec::new();
    for number in 0..8 {
        go.send(()).await.unwrap();
        let mut text = String::new();
        while !text.ends_with("\n\n") {
            let frame = tokio::time::timeout(Duration::from_secs(5), response.body_mut().frame());
            let frame = frame
                .await
                .expect("an event passes while the stream is held")
                .unwrap()
                .unwrap();
            text.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
        }
        waits.push(written.recv().await.unwrap().elapsed());
        assert_eq!(
            text,
            format!("event: delta\ndata: {number} [scrubbed:anthropic]\n\n")
        );
    }
    waits.sort();
    assert!(
        waits[4] < Duration::from_millis(50),
        "half of the events come within 50 ms: {waits:?}"
    );
    go.send(()).await.unwrap();
    assert!(
        response.collect().await.unwrap().to_bytes().is_empty(),
        "the stream ends whole"
    );
}

#[tokio::test]
async fn a_stream_that_breaks_off_is_an_error_and_recorded() {
    let upstream = Upstream::answering(|_| {
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this".to_vec()
    })
    .await;
    let route = Route::new(&origin(&upstream), model(&origin(&upstream))).await;
    let response = route.ask(message("sesn_1", "3")).await;
    assert!(response.into_body().collect().await.is_err());
    assert_eq!(
        route.world.vault.seen().outcomes[0].reason.as_deref(),
        Some("upstream_cut")
    );
}

#[tokio::test]
async fn a_harness_that_gives_up_ends_the_call_and_its_outcome_is_recorded() {
    let (told, mut hears) = mpsc::channel(4);
    let upstream = Upstream::serving(move |_, mut stream| {
        let told = told.clone();
        async move {
            told.send("asked").await.unwrap();
            let mut rest = Vec::new();
            // The model thinks until its client is gone.
            drop(stream.read_to_end(&mut rest).await);
            told.send("gone").await.unwrap();
        }
    });
    let upstream = upstream.await;
    let route = Route::new(&origin(&upstream), model(&origin(&upstream))).await;
    let mut sender = route.sender.clone();
    let asking =
        tokio::spawn(async move { sender.send_request(message("sesn_1", "3")).await.is_ok() });
    assert_eq!(hears.recv().await, Some("asked"));
    asking.abort();
    let gone = tokio::time::timeout(Duration::from_secs(10), hears.recv()).await;
    assert_eq!(
        gone.expect("the upstream sees its client leave"),
        Some("gone")
    );
    let recorded = async {
        while route.world.vault.seen().outcomes.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), recorded)
        .await
        .expect("the outcome is recorded");
    assert_eq!(
        route.world.vault.seen().outcomes[0].status,
        UseStatus::Unknown
    );
}
