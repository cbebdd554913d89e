//! The gateway against programs that try everything, with a real loopback upstream behind it.

mod support;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use claviger_sandbox::SandboxId;
use claviger_sandbox::handover::{Attached, Handover};
use claviger_vault_protocol::Slot;
use claviger_vault_protocol::usage::AuthorizeUse;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

use crate::testing::{SECRET, Upstream, leaks};

pub(crate) use support::*;

/// What a program got back.
#[derive(Debug)]
struct Reply {
    status: u16,
    code: Option<String>,
    text: String,
}

impl Reply {
    fn parse(text: String) -> Self {
        let status = text
            .get(9..12)
            .and_then(|digits| digits.parse().ok())
            .unwrap_or(0);
        let code = text
            .lines()
            .find_map(|line| line.strip_prefix("claviger-refusal: "))
            .map(str::to_owned);
        Self { status, code, text }
    }

    #[track_caller]
    fn is_refused(&self, status: u16, code: &str) {
        assert_eq!(
            (self.status, self.code.as_deref()),
            (status, Some(code)),
            "{}",
            self.text
        );
        self.leaks_nothing();
    }

    #[track_caller]
    fn leaks_nothing(&self) {
        assert_eq!(
            leaks(self.text.as_bytes()),
            Vec::<&str>::new(),
            "{}",
            self.text
        );
    }
}

/// One sandbox, named for `sesn_1` at epoch 1, with an echoing upstream.
struct Gate {
    world: World,
    upstream: Upstream,
    authority: String,
    attachments: Attachments,
    sandbox: SandboxId,
    port: u16,
}

impl Gate {
    /// With a bearer credential `tracker` bound to the upstream.
    async fn new() -> Self {
        let upstream = echo().await;
        let credential = Credential::bearer("tracker", &origin(&upstream));
        Self::with(upstream, &[credential]).await
    }

    async fn with(upstream: Upstream, credentials: &[Credential]) -> Self {
        let mut gate = Self::unnamed(upstream).await;
        gate.world.present("sesn_1", 1, credentials).await;
        gate.attach("sesn_1", 1);
        gate.name("sesn_1", 1);
        gate
    }

    async fn unnamed(upstream: Upstream) -> Self {
        let world = World::new().await;
        let attachments = Attachments::new(Arc::clone(&world.shared), CancellationToken::new());
        let authority = upstream.address.to_string();
        Self {
            world,
            upstream,
            authority,
            attachments,
            sandbox: SandboxId::random(),
            port: 0,
        }
    }

    fn origin(&self) -> String {
        origin(&self.upstream)
    }

    /// Hands a fresh pair of listeners over, as the hands do.
    fn attach(&mut self, session: &str, epoch: u64) {
        let listener = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let egress = listener();
        self.port = egress.local_addr().unwrap().port();
        self.attachments.take(Handover::Attached(Attached {
            session: session.to_owned(),
            epoch,
            sandbox: self.sandbox.clone(),
            mcp: listener(),
            egress,
        }));
    }

    fn name(&self, session: &str, epoch: u64) {
        let sandbox = self.sandbox.as_str().to_owned();
        self.world
            .shared
            .openings
            .name_sandbox(session, epoch, sandbox, Vec::new())
            .unwrap();
    }

    /// Sends bytes on a connection of their own and reads until the gateway closes it.
    async fn send(&self, bytes: impl AsRef<[u8]>) -> Reply {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        stream.write_all(bytes.as_ref()).await.unwrap();
        let mut text = Vec::new();
        let reading = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut text));
        reading
            .await
            .expect("the gateway answers and closes")
            .unwrap();
        Reply::parse(String::from_utf8_lossy(&text).into_owned())
    }

    /// Sends `GET http://UPSTREAM{path}` with these header lines.
    async fn get(&self, path: &str, lines: &str) -> Reply {
        self.send(self.request("GET", path, lines, "")).await
    }

    fn request(&self, method: &str, path: &str, lines: &str, body: &str) -> String {
        let (origin, authority) = (self.origin(), &self.authority);
        let length = if body.is_empty() {
            String::new()
        } else {
            format!("content-length: {}\r\n", body.len())
        };
        format!(
            "{method} {origin}{path} HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n{lines}{length}\r\n{body}"
        )
    }

    /// What the vault was asked to allow so far.
    fn uses(&self) -> Vec<AuthorizeUse> {
        self.world.vault.seen().asked.clone()
    }

    #[track_caller]
    fn nothing_left(&self) {
        assert_eq!(
            self.upstream.requests(),
            Vec::<String>::new(),
            "nothing reaches the upstream"
        );
        assert_eq!(self.uses(), Vec::new(), "nothing is asked of the vault");
    }
}

fn bearer() -> String {
    format!("authorization: Bearer {}\r\n", placeholder("tracker"))
}

#[tokio::test]
async fn a_placeholder_in_its_slot_is_spent_and_the_echo_is_scrubbed() {
    let gate = Gate::new().await;
    let reply = gate
        .send(gate.request(
            "POST",
            "/issues?q=1",
            &format!("{}x-own: kept\r\n", bearer()),
            "{\"a\":1}",
        ))
        .await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.leaks_nothing();
    assert!(reply.text.contains("[scrubbed:tracker]"), "{}", reply.text);

    let seen = gate.upstream.requests();
    assert_eq!(seen.len(), 1);
    assert!(
        seen[0].starts_with("POST /issues?q=1 HTTP/1.1\r\n"),
        "{}",
        seen[0]
    );
    assert!(
        seen[0].contains(&format!("authorization: Bearer {SECRET}\r\n")),
        "{}",
        seen[0]
    );
    assert!(
        seen[0].contains("x-own: kept\r\n") && seen[0].ends_with("\r\n\r\n{\"a\":1}"),
        "{}",
        seen[0]
    );
    assert!(!seen[0].contains("clvp_"), "{}", seen[0]);

    let uses = gate.uses();
    assert_eq!(uses.len(), 1);
    assert_eq!(
        (
            uses[0].tool.as_str(),
            uses[0].method.as_str(),
            uses[0].path.as_str()
        ),
        ("egress", "POST", "/issues")
    );
    assert_eq!((uses[0].session.as_str(), uses[0].epoch), ("sesn_1", 1));
    assert_eq!(gate.world.vault.seen().outcomes[0].http_status, 200);
    assert_eq!(gate.world.reports(), Vec::<String>::new());
}

#[tokio::test]
async fn a_program_that_speaks_plain_http_with_a_host_header_is_served() {
    let gate = Gate::new().await;
    let text = format!(
        "GET /x HTTP/1.0\r\nHost: {}\r\n{}\r\n",
        gate.authority,
        bearer()
    );
    let reply = gate.send(text).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(
        !reply.text.contains("chunked"),
        "an old client gets a body that ends with the connection: {}",
        reply.text
    );
    assert!(gate.upstream.requests()[0].starts_with("GET /x HTTP/1.1\r\n"));
}

#[tokio::test]
async fn a_rendered_basic_pair_and_a_query_parameter_are_slots_too() {
    let upstream = echo().await;
    let basic = Credential::with_slot(
        "git",
        &origin(&upstream),
        Slot::Basic {
            username: "bot".to_owned(),
        },
    );
    let query = Credential::with_slot(
        "maps",
        &origin(&upstream),
        Slot::Query {
            name: "key".to_owned(),
        },
    );
    let gate = Gate::with(upstream, &[basic, query]).await;

    let pair = STANDARD.encode(format!("bot:{}", placeholder("git")));
    let reply = gate
        .get("/a", &format!("Authorization: Basic {pair}\r\n"))
        .await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let sent = STANDARD.encode(format!("bot:{SECRET}"));
    assert!(gate.upstream.requests()[0].contains(&sent));
    assert!(!reply.text.contains(&sent), "{}", reply.text);

    let reply = gate
        .get(&format!("/b?x=1&key={}&y=2", placeholder("maps")), "")
        .await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let seen = gate.upstream.requests().remove(1);
    assert!(
        seen.starts_with("GET /b?x=1&y=2&key=sk-live%2F%2B%3Fcanary~"),
        "{seen}"
    );
    assert!(
        !seen.to_lowercase().contains("authorization"),
        "the other credential's slot stays empty: {seen}"
    );
    reply.leaks_nothing();

    let other = STANDARD.encode(format!("root:{}", placeholder("git")));
    gate.get("/a", &format!("Authorization: Basic {other}\r\n"))
        .await
        .is_refused(403, "placeholder_outside_slot");
    let both = format!("Authorization: Basic {pair}\r\n");
    gate.get(&format!("/b?key={}", placeholder("maps")), &both)
        .await
        .is_refused(403, "placeholder_ambiguous");
    let twice = format!("/b?key={0}&key={0}", placeholder("maps"));
    gate.get(&twice, "")
        .await
        .is_refused(403, "placeholder_outside_slot");
    let twice = format!("/b?key={}&KEY=mine", placeholder("maps"));
    gate.get(&twice, "")
        .await
        .is_refused(403, "placeholder_outside_slot");
    assert_eq!(gate.upstream.requests().len(), 2);
}

#[tokio::test]
async fn a_placeholder_anywhere_but_in_its_slot_is_refused_and_reported() {
    let gate = Gate::new().await;
    let own = placeholder("tracker");
    let percent: String = own.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let good = bearer();
    let requests = [
        gate.request("GET", "/", &format!("x-other: {own}\r\n"), ""),
        gate.request("GET", "/", &format!("authorization: {own}\r\n"), ""),
        gate.request("GET", "/", &format!("authorization: bearer {own}\r\n"), ""),
        gate.request("GET", "/", &format!("authorization: Bearer  {own}\r\n"), ""),
        gate.request("GET", "/", &format!("authorization: Bearer {own}x\r\n"), ""),
        gate.request(
            "GET",
            "/",
            &format!(
                "authorization: Basic {}\r\n",
                STANDARD.encode(format!("u:{own}"))
            ),
            "",
        ),
        gate.request("GET", "/", &format!("{good}x-other: {own}\r\n"), ""),
        gate.request("GET", "/", &format!("{good}{good}"), ""),
        gate.request("GET", "/", &format!("{good}cookie: a={own}\r\n"), ""),
        gate.request("GET", "/", &format!("{good}{own}: x\r\n"), ""),
        gate.request(
            "GET",
            "/",
            &format!("{good}x-b: {}\r\n", STANDARD.encode(format!("ab{own}"))),
            "",
        ),
        gate.request("GET", &format!("/{own}"), &good, ""),
        gate.request("GET", &format!("/a?b={own}"), &good, ""),
        gate.request("GET", &format!("/a?b={percent}"), &good, ""),
        gate.request("GET", &format!("/{percent}/a"), &good, ""),
        gate.request("POST", "/", &good, &format!("{{\"title\":\"{own}\"}}")),
        gate.request("POST", "/", &good, &format!("a=1&b={percent}")),
        gate.request("POST", "/", &good, &STANDARD.encode(format!("xy{own}"))),
        gate.request("POST", "/", &good, &hex::encode(&own)),
    ];
    for (number, request) in requests.iter().enumerate() {
        gate.send(request)
            .await
            .is_refused(403, "placeholder_outside_slot");
        assert_eq!(gate.world.reports().len(), number + 1, "{request}");
    }
    assert!(
        gate.world
            .reports()
            .iter()
            .all(|reason| reason == "placeholder_outside_slot")
    );
    gate.nothing_left();
}

#[tokio::test]
async fn a_placeholder_cut_across_chunks_is_found_before_anything_leaves() {
    let gate = Gate::new().await;
    let own = placeholder("tracker");
    let (one, two) = own.split_at(11);
    let head = gate.request(
        "POST",
        "/",
        &format!("{}transfer-encoding: chunked\r\n", bearer()),
        "",
    );
    let body = format!(
        "{:x}\r\n{one}\r\n{:x}\r\n{two}\r\n0\r\n\r\n",
        one.len(),
        two.len()
    );
    gate.send(format!("{head}{body}"))
        .await
        .is_refused(403, "placeholder_outside_slot");
    gate.nothing_left();
    let reply = gate.send(format!("{head}2\r\nhi\r\n0\r\n\r\n")).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(
        gate.upstream.requests()[0].contains("content-length: 2\r\n"),
        "one length, made anew: {}",
        gate.upstream.requests()[0]
    );
}

#[tokio::test]
async fn long_bodies_are_searched_to_their_end_and_too_long_ones_refused() {
    let gate = Gate::new().await;
    let long = "x".repeat(1 << 20);
    let hidden = gate.request(
        "PUT",
        "/",
        &bearer(),
        &format!("{long}{}", placeholder("tracker")),
    );
    gate.send(hidden)
        .await
        .is_refused(403, "placeholder_outside_slot");
    gate.nothing_left();
    let reply = gate.send(gate.request("PUT", "/", &bearer(), &long)).await;
    assert_eq!(reply.status, 200);
    assert!(gate.upstream.requests()[0].ends_with(&long));

    let line = format!(
        "{}content-length: 8388609\r\nexpect: 100-continue\r\n",
        bearer()
    );
    let reply = gate.send(gate.request("PUT", "/", &line, "")).await;
    reply.is_refused(413, "body_too_large");
    assert!(!reply.text.contains("100 Continue"), "{}", reply.text);
}

#[tokio::test]
async fn the_placeholder_of_another_session_is_worth_nothing_and_reported() {
    let gate = Gate::new().await;
    let other = Credential::bearer("tracker", &gate.origin())
        .placeholder("clvp_00000000000000000000000000000000");
    gate.world.present("sesn_2", 1, &[other]).await;
    for lines in [
        "authorization: Bearer clvp_00000000000000000000000000000000\r\n",
        "authorization: Bearer clvp_ffffffffffffffffffffffffffffffff\r\n",
        "x-other: CLVP_0\r\n",
    ] {
        gate.get("/", lines)
            .await
            .is_refused(403, "placeholder_not_yours");
    }
    assert_eq!(gate.world.reports(), ["placeholder_not_yours"; 3]);
    gate.nothing_left();
}

#[tokio::test]
async fn another_credential_of_the_session_does_not_open_this_host() {
    let upstream = echo().await;
    let here = Credential::bearer("tracker", &origin(&upstream));
    let there = Credential::bearer("elsewhere", "http://127.0.0.1:9");
    let gate = Gate::with(upstream, &[here, there]).await;
    let lines = format!("authorization: Bearer {}\r\n", placeholder("elsewhere"));
    gate.get("/", &lines)
        .await
        .is_refused(403, "placeholder_outside_slot");
    gate.nothing_left();
}

#[tokio::test]
async fn the_models_credential_is_not_spent_here() {
    let upstream = echo().await;
    let mut gate = Gate::unnamed(upstream).await;
    let model = Credential::bearer("anthropic", &gate.origin());
    gate.world.present("sesn_1", 1, &[model]).await;
    gate.attach("sesn_1", 1);
    gate.name("sesn_1", 1);
    let lines = format!("authorization: Bearer {}\r\n", placeholder("anthropic"));
    gate.get("/v1/messages", &lines)
        .await
        .is_refused(403, "destination_not_allowed");
    gate.nothing_left();
    assert_eq!(
        gate.world.reports(),
        ["destination_not_allowed"],
        "carrying a placeholder elsewhere is probing"
    );
}

#[tokio::test]
async fn credentials_of_the_programs_own_are_dropped_and_reported() {
    let gate = Gate::new().await;
    gate.get("/", "authorization: Bearer attackers-own-key\r\n")
        .await
        .is_refused(403, "placeholder_missing");
    gate.get("/", "x-api-key: attackers-own-key\r\n")
        .await
        .is_refused(403, "placeholder_missing");
    gate.get("/?access_token=attackers-own-key", "")
        .await
        .is_refused(403, "placeholder_missing");
    gate.nothing_left();

    let own = "x-api-key: own1\r\nX-Upstream-Authorization: own2\r\nx-mcp-auth: own3\r\ncookie: own4\r\nprivate-token: own5\r\n\
               proxy-authorization: own6\r\nx-author: me\r\nproxy-connection: keep-alive\r\n";
    let reply = gate.get("/", &format!("{}{own}", bearer())).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let seen = gate.upstream.requests().remove(0);
    assert!(
        (1..=6).all(|n| !seen.contains(&format!("own{n}"))),
        "{seen}"
    );
    assert!(seen.contains("x-author: me"), "{seen}");
    assert!(!seen.contains("proxy-connection"), "{seen}");
    assert_eq!(gate.world.reports(), ["client_credential_dropped"]);

    gate.get(
        "/",
        &format!("{}proxy-connection: keep-alive\r\n", bearer()),
    )
    .await;
    assert_eq!(
        gate.world.reports().len(),
        1,
        "what every proxy client sends is no credential"
    );
}

#[tokio::test]
async fn a_bound_host_without_a_placeholder_gets_nothing_and_says_what_to_send() {
    let gate = Gate::new().await;
    let reply = gate.get("/", "").await;
    reply.is_refused(403, "placeholder_missing");
    assert!(
        reply
            .text
            .contains("the header authorization: Bearer $TRACKER_TOKEN for 'tracker'"),
        "{}",
        reply.text
    );
    gate.nothing_left();
}

#[tokio::test]
async fn a_refusal_never_tells_a_placeholder_that_the_sandbox_was_not_given() {
    let upstream = echo().await;
    let credential = Credential::bearer("tracker", &origin(&upstream)).for_tools_alone();
    let gate = Gate::with(upstream, &[credential]).await;
    let reply = gate.get("/", "").await;
    reply.is_refused(403, "placeholder_missing");
    assert!(
        !reply.text.contains(&placeholder("tracker")),
        "{}",
        reply.text
    );
    assert!(reply.text.contains("$CLAVIGER_MCP_URL"), "{}", reply.text);
}

#[tokio::test]
async fn destinations_that_no_grant_binds_are_refused() {
    let gate = Gate::new().await;
    let port = gate
        .authority
        .strip_prefix("127.0.0.1:")
        .unwrap()
        .to_owned();
    let other = echo().await;
    for authority in [
        other.address.to_string(),
        format!("localhost:{port}"),
        format!("[::ffff:127.0.0.1]:{port}"),
        format!("[::1]:{port}"),
        "127.0.0.1".to_owned(),
        "169.254.169.254".to_owned(),
        format!("127.0.0.1:{}", gate.port),
    ] {
        let text = format!(
            "GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n"
        );
        gate.send(text)
            .await
            .is_refused(403, "destination_not_allowed");
    }
    let text = format!(
        "GET https://{0}/ HTTP/1.1\r\nHost: {0}\r\nConnection: close\r\n\r\n",
        gate.authority
    );
    gate.send(text)
        .await
        .is_refused(403, "destination_not_allowed");
    assert_eq!(gate.world.reports(), Vec::<String>::new());
    let text = format!(
        "GET http://{0}/ HTTP/1.1\r\nHost: {0}\r\nConnection: close\r\n{1}\r\n",
        other.address,
        bearer()
    );
    gate.send(text)
        .await
        .is_refused(403, "destination_not_allowed");
    assert_eq!(
        gate.world.reports(),
        ["destination_not_allowed"],
        "a placeholder on its way elsewhere is reported"
    );
    assert_eq!(other.requests(), Vec::<String>::new());
    gate.nothing_left();
}

#[tokio::test]
async fn numeric_forms_of_a_bound_address_are_the_bound_address() {
    let gate = Gate::new().await;
    let port = gate
        .authority
        .strip_prefix("127.0.0.1:")
        .unwrap()
        .to_owned();
    let text = format!(
        "GET http://2130706433:{port}/x HTTP/1.1\r\nHost: 127.1:{port}\r\nConnection: close\r\n{}\r\n",
        bearer()
    );
    let reply = gate.send(text).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let seen = gate.upstream.requests().remove(0);
    assert!(
        seen.contains(&format!("host: 127.0.0.1:{port}\r\n")),
        "decision and dial share one form: {seen}"
    );
}

#[tokio::test]
async fn plain_http_to_a_host_bound_with_https_is_dialled_with_tls_or_not_at_all() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let authority = listener.local_addr().unwrap().to_string();
    let greeted = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut first = [0; 3];
        stream.read_exact(&mut first).await.unwrap();
        first
    });
    let secure = Credential::bearer("tracker", &format!("https://{authority}"));
    let mut gate = Gate::with(echo().await, &[secure]).await;
    gate.authority.clone_from(&authority);
    let text = format!(
        "GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n{}\r\n",
        bearer()
    );
    let reply = gate.send(text).await;
    assert!((500..600).contains(&reply.status), "{}", reply.text);
    assert_eq!(
        greeted.await.unwrap()[..2],
        [0x16, 0x03],
        "a TLS greeting, not a request in the clear"
    );
    assert_eq!(gate.uses()[0].destination.scheme, "https");
}

#[tokio::test]
async fn requests_that_mean_two_things_are_refused_and_end_the_connection() {
    let gate = Gate::new().await;
    let (origin, authority, good) = (gate.origin(), &gate.authority, bearer());
    let smuggled = format!("GET {origin}/smuggled HTTP/1.1\r\nHost: {authority}\r\n{good}\r\n");
    let start = format!("POST {origin}/ HTTP/1.1\r\nHost: {authority}\r\n{good}");
    for (request, code) in [
        (
            format!("{start}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            "ambiguous_length",
        ),
        (
            format!("{start}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"),
            "ambiguous_length",
        ),
        (
            format!("{start}Content-Length: 0\r\nContent-Length: 9\r\n\r\n"),
            "ambiguous_length",
        ),
        (
            format!("{start}Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n"),
            "ambiguous_length",
        ),
        (format!("{start}Host: evil.test\r\n\r\n"), "duplicate_host"),
        (format!("{start}X: y\r\n folded\r\n\r\n"), "folded_header"),
        (format!("{start}X: a\rY: b\r\n\r\n"), "malformed_request"),
        (format!("{start}X: a\nY: b\r\n\r\n"), "malformed_request"),
        (format!("{start}X: a\0b\r\n\r\n"), "malformed_request"),
        (format!("{start}X : a\r\n\r\n"), "malformed_request"),
        (
            format!("GET {origin}/a\0b HTTP/1.1\r\nHost: {authority}\r\n\r\n"),
            "malformed_request",
        ),
        (
            format!("GET {origin}/a\rb HTTP/1.1\r\nHost: {authority}\r\n\r\n"),
            "malformed_request",
        ),
        (
            format!("GET {origin}/a HTTP/1.1\r\nHost: evil.test\r\n{good}\r\n"),
            "host_mismatch",
        ),
        (
            format!("GET http://u:p@{authority}/ HTTP/1.1\r\nHost: {authority}\r\n\r\n"),
            "userinfo_not_allowed",
        ),
        (
            format!("GET http://{authority}%00.evil.test/ HTTP/1.1\r\nHost: {authority}\r\n\r\n"),
            "malformed_host",
        ),
        (
            format!("GET {origin}/a/..%2fb HTTP/1.1\r\nHost: {authority}\r\n{good}\r\n"),
            "path_ambiguous",
        ),
        (
            format!("GET {origin}\\@evil.test/ HTTP/1.1\r\nHost: {authority}\r\n\r\n"),
            "userinfo_not_allowed",
        ),
    ] {
        // Whatever follows on the connection is never taken for a request.
        let reply = gate.send(format!("{request}{smuggled}")).await;
        reply.is_refused(400, code);
        assert_eq!(reply.text.matches("HTTP/1.1 ").count(), 1, "{}", reply.text);
    }
    assert_eq!(gate.world.reports(), ["host_mismatch"]);
    gate.nothing_left();
}

#[tokio::test]
async fn a_header_that_asks_for_another_method_or_path_is_refused() {
    let gate = Gate::new().await;
    for line in [
        "X-HTTP-Method-Override: DELETE",
        "X-Original-URL: /admin",
        "x-rewrite-url: /admin",
    ] {
        gate.get("/", &format!("{}{line}\r\n", bearer()))
            .await
            .is_refused(403, "override_not_allowed");
    }
    gate.send(gate.request("TRACE", "/", &bearer(), ""))
        .await
        .is_refused(405, "method_not_allowed");
    gate.nothing_left();
}

#[tokio::test]
async fn a_connection_header_cannot_take_the_credential_away_or_leave_hop_headers() {
    let gate = Gate::new().await;
    let lines = format!(
        "{}connection: authorization, x-hop\r\nx-hop: a\r\nte: trailers\r\nupgrade: h2c\r\n",
        bearer()
    );
    let reply = gate.get("/", &lines).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let seen = gate.upstream.requests().remove(0);
    assert!(
        seen.contains(&format!("authorization: Bearer {SECRET}\r\n")),
        "{seen}"
    );
    for gone in ["x-hop", "te: ", "upgrade", "connection: authorization"] {
        assert!(!seen.contains(gone), "{gone}: {seen}");
    }
}

#[tokio::test]
async fn connect_is_refused_with_a_way_out() {
    let gate = Gate::new().await;
    let text = format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", gate.authority);
    let reply = gate.send(text).await;
    reply.is_refused(501, "connect_not_supported");
    assert!(
        reply.text.contains("write http:// instead"),
        "{}",
        reply.text
    );
    gate.nothing_left();
}

#[tokio::test]
async fn an_unnamed_sandbox_and_one_of_another_session_get_nothing() {
    let mut gate = Gate::unnamed(echo().await).await;
    let credential = Credential::bearer("tracker", &gate.origin());
    gate.attach("sesn_1", 1);
    gate.get("/", &bearer())
        .await
        .is_refused(403, "sandbox_not_named");
    gate.world
        .present("sesn_1", 1, std::slice::from_ref(&credential))
        .await;
    gate.get("/", &bearer())
        .await
        .is_refused(403, "sandbox_not_named");
    // Another session's harness names a sandbox that the hands attached for this one.
    gate.world.present("sesn_2", 1, &[credential]).await;
    gate.name("sesn_2", 1);
    gate.get("/", &bearer())
        .await
        .is_refused(403, "sandbox_not_named");
    gate.nothing_left();
}

#[tokio::test]
async fn a_new_epoch_serves_new_requests_and_a_stale_one_none() {
    let mut gate = Gate::new().await;
    let credential = Credential::bearer("tracker", &gate.origin());
    assert_eq!(gate.get("/", &bearer()).await.status, 200);
    let old_port = gate.port;

    // The hands have moved on; the harness of the new epoch has not named the sandbox yet.
    gate.attach("sesn_1", 2);
    gate.get("/", &bearer())
        .await
        .is_refused(403, "sandbox_not_named");
    gate.world.present("sesn_1", 2, &[credential]).await;
    gate.get("/", &bearer())
        .await
        .is_refused(403, "sandbox_not_named");
    gate.name("sesn_1", 2);
    assert_eq!(gate.get("/", &bearer()).await.status, 200);
    let epochs: Vec<u64> = gate.uses().iter().map(|ask| ask.epoch).collect();
    assert_eq!(epochs, [1, 2]);
    let refused = TcpStream::connect(("127.0.0.1", old_port)).await;
    assert!(refused.is_err(), "the listener that was replaced is closed");
}

#[tokio::test]
async fn a_connection_that_outlives_an_epoch_is_judged_by_the_new_one() {
    let mut gate = Gate::new().await;
    let mut stream = TcpStream::connect(("127.0.0.1", gate.port)).await.unwrap();
    let request = gate
        .request("HEAD", "/", &bearer(), "")
        .replace("connection: close\r\n", "");
    let mut ask = async || {
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = Vec::new();
        while !text.ends_with(b"\r\n\r\n") {
            stream.read_buf(&mut text).await.unwrap();
        }
        Reply::parse(String::from_utf8(text).unwrap())
    };
    assert_eq!(ask().await.status, 200);
    assert_eq!(ask().await.status, 200, "connections are kept");
    let credential = Credential::bearer("tracker", &gate.origin());
    gate.world.present("sesn_1", 2, &[credential]).await;
    ask().await.is_refused(403, "sandbox_not_named");
    gate.attach("sesn_1", 2);
    gate.name("sesn_1", 2);
    assert_eq!(ask().await.status, 200);
    assert_eq!(gate.uses().last().unwrap().epoch, 2);
}

#[tokio::test]
async fn a_detached_sandbox_is_closed_with_its_connections() {
    let mut gate = Gate::new().await;
    let mut open = TcpStream::connect(("127.0.0.1", gate.port)).await.unwrap();
    assert_eq!(gate.get("/", &bearer()).await.status, 200);
    let sandbox = gate.sandbox.clone();
    gate.attachments.take(Handover::Detached(sandbox));
    let mut byte = [0];
    let ended = tokio::time::timeout(Duration::from_secs(5), open.read(&mut byte))
        .await
        .expect("the connection ends");
    assert!(matches!(ended, Ok(0) | Err(_)));
    gate.world.shared.tasks.close();
    tokio::time::timeout(Duration::from_secs(5), gate.world.shared.tasks.wait())
        .await
        .expect("no task is left");
    assert!(TcpStream::connect(("127.0.0.1", gate.port)).await.is_err());
}

#[tokio::test]
async fn the_vaults_refusal_reaches_the_program_and_nothing_is_dialled() {
    let gate = Gate::new().await;
    for (code, status) in [
        ("vault_sealed", 503),
        ("method_not_bound", 403),
        ("epoch_stale", 403),
    ] {
        gate.world.vault.seen().deny = Some(code);
        gate.get("/", &bearer()).await.is_refused(status, code);
    }
    assert_eq!(gate.upstream.connections(), 0);
}

#[tokio::test]
async fn a_keyless_credential_is_still_decided_and_recorded() {
    let upstream = echo().await;
    let none = Credential::with_slot("local", &origin(&upstream), Slot::None);
    let gate = Gate::with(upstream, &[none]).await;
    assert_eq!(gate.get("/", "").await.status, 200);
    assert_eq!(gate.uses().len(), 1);
    assert_eq!(gate.upstream.requests().len(), 1);
}

#[tokio::test]
async fn an_answer_that_breaks_off_does_not_look_complete() {
    let cut = Upstream::answering(|_| {
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this".to_vec()
    })
    .await;
    let credential = Credential::bearer("tracker", &origin(&cut));
    let gate = Gate::with(cut, &[credential]).await;
    let mut stream = TcpStream::connect(("127.0.0.1", gate.port)).await.unwrap();
    stream
        .write_all(gate.request("GET", "/", &bearer(), "").as_bytes())
        .await
        .unwrap();
    let mut text = Vec::new();
    let ended = stream.read_to_end(&mut text).await;
    assert!(
        ended.is_err() || !text.ends_with(b"0\r\n\r\n"),
        "{}",
        String::from_utf8_lossy(&text)
    );
}

#[tokio::test]
async fn an_event_stream_passes_while_the_upstream_holds_it_open() {
    let (go, gone) = tokio::sync::mpsc::channel::<()>(1);
    let gone = Arc::new(tokio::sync::Mutex::new(gone));
    let upstream = Upstream::serving(move |_, mut stream| {
        let gone = Arc::clone(&gone);
        async move {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
            stream
                .write_all(format!("{head}9\r\ndata: 1\n\n\r\n").as_bytes())
                .await
                .unwrap();
            gone.lock().await.recv().await;
            stream
                .write_all(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")
                .await
                .unwrap();
        }
    });
    let upstream = upstream.await;
    let credential = Credential::bearer("tracker", &origin(&upstream));
    let gate = Gate::with(upstream, &[credential]).await;
    let mut stream = TcpStream::connect(("127.0.0.1", gate.port)).await.unwrap();
    stream
        .write_all(gate.request("GET", "/", &bearer(), "").as_bytes())
        .await
        .unwrap();
    let mut text = Vec::new();
    while !String::from_utf8_lossy(&text).contains("data: 1\n\n") {
        let reading = tokio::time::timeout(Duration::from_secs(5), stream.read_buf(&mut text));
        assert_ne!(
            reading
                .await
                .expect("the first event passes alone")
                .unwrap(),
            0
        );
    }
    assert!(!String::from_utf8_lossy(&text).contains("data: 2"));
    go.send(()).await.unwrap();
    stream.read_to_end(&mut text).await.unwrap();
    assert!(String::from_utf8_lossy(&text).contains("data: 2\n\n"));
}
