use std::path::Path;

use claviger_vault_protocol::admin::Permit;
use claviger_vault_protocol::client::ToolsLink;
use claviger_vault_protocol::present::{At, Call, NameSandbox, Present};
use claviger_vault_protocol::wire::{self, Link};
use claviger_vault_protocol::{CredentialId, WireError};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::mpsc;

use super::http::Door;
use super::*;
use crate::definition::Definition;
use crate::testing::{API_KEY, FakeVault, SECRET, Upstream, bearer, leaks, ok, shared_in};
use crate::verbs::HarnessVerbs;

struct Scene {
    home: tempfile::TempDir,
    vault: Arc<FakeVault>,
    shared: Arc<Shared>,
    upstream: Upstream,
    stop: CancellationToken,
}

fn definition(name: &str, upstream: &Upstream) -> String {
    format!(
        "name = \"{name}\"\nkind = \"http\"\nbase_url = \"{}\"\ncredential = \"tracker\"\n\
         [[operations]]\nname = \"list\"\ndescription = \"Lists\"\nmethod = \"GET\"\npath = \"/issues\"\nread_only = true\n\
         [[operations]]\nname = \"create\"\ndescription = \"Creates\"\nmethod = \"POST\"\npath = \"/issues\"\n\
         [[operations.parameters]]\nname = \"title\"\nin = \"body\"\ntype = \"string\"\nrequired = true\n",
        upstream.url("/api")
    )
}

fn permit(home: &Path, name: &str, principals: &[&str]) -> Permit {
    let text = std::fs::read_to_string(home.join(format!("{name}.toml"))).unwrap();
    Permit {
        tool: name.to_owned(),
        tool_hash: Definition::parse(name, &text).unwrap().hash().to_owned(),
        credential: CredentialId::from("vcrd_tracker"),
        principals: principals
            .iter()
            .map(|text| Principal::from((*text).to_owned()))
            .collect(),
        methods: Vec::new(),
    }
}

/// Two definitions, both permitted to the key and to the operator; the upstream quotes the key.
async fn scene() -> Scene {
    let upstream = Upstream::answering(|request| {
        if request.contains("\"fail\"") {
            return format!(
                "HTTP/1.1 422 Unprocessable\r\ncontent-length: {}\r\n\r\nbad key {SECRET}",
                8 + SECRET.len()
            )
            .into_bytes();
        }
        let unicode: String = SECRET
            .chars()
            .enumerate()
            .map(|(n, c)| {
                if n % 2 == 0 {
                    c.to_string()
                } else {
                    format!("\\u{:04x}", c as u32)
                }
            })
            .map(|s| if s == "\"" { "\\\"".into() } else { s })
            .collect();
        ok(
            "content-type: application/json\r\n",
            format!("{{\"id\":7,\"echo\":\"{unicode}\",\"nested\":[\"{unicode}\"]}}"),
        )
    })
    .await;
    let home = tempfile::tempdir().unwrap();
    for name in ["tracker", "other"] {
        std::fs::write(
            home.path().join(format!("{name}.toml")),
            definition(name, &upstream),
        )
        .unwrap();
    }
    let vault = FakeVault::new();
    let uid = rustix::process::getuid().as_raw();
    let principals = ["key:key_test".to_owned(), format!("operator:uid:{uid}")];
    let principals: Vec<&str> = principals.iter().map(String::as_str).collect();
    {
        let mut seen = vault.seen();
        seen.permits = vec![
            permit(home.path(), "tracker", &principals),
            permit(home.path(), "other", &principals),
        ];
        seen.seat_credentials = vec![("tracker".into(), SECRET.into(), bearer(upstream.address))];
    }
    let shared = shared_in(&vault, home.path()).await;
    Scene {
        home,
        vault,
        shared,
        upstream,
        stop: CancellationToken::new(),
    }
}

impl Scene {
    async fn http(&self, door: Door) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(http::serve(
            Arc::clone(&self.shared),
            listener,
            door,
            self.stop.clone(),
        ));
        port
    }

    fn open_session(&self, epoch: u64) -> claviger_vault_protocol::Opening {
        let envelope = self.vault.grant(
            "sesn_1",
            epoch,
            "tracker",
            SECRET,
            bearer(self.upstream.address),
        );
        self.vault.opening("sesn_1", epoch, vec![envelope])
    }

    async fn harness(&self, peer: &str) -> ToolsLink {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let verbs = Arc::new(HarnessVerbs::new(Arc::clone(&self.shared), peer.to_owned()));
        let (sender, links) = mpsc::channel(1);
        sender.send(ours).await.unwrap();
        let stop = self.stop.clone();
        tokio::spawn(async move {
            let _sender = sender;
            Box::pin(wire::serve(verbs, theirs, stop)).await
        });
        let (link, driver) = Link::new("tools", links, None);
        tokio::spawn(driver);
        ToolsLink(link)
    }
}

/// One HTTP exchange; answers status and the whole answer.
async fn exchange(port: u16, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    stream
        .write_all(format!("{request}\r\n{body}").as_bytes())
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    (answer.get(9..12).unwrap().parse().unwrap(), answer)
}

async fn post(port: u16, path: &str, extra: &[(&str, &str)], body: Value) -> (u16, String) {
    let host = format!("127.0.0.1:{port}");
    let mut headers = vec![
        ("host", host.as_str()),
        ("content-type", "application/json"),
        ("accept", "application/json, text/event-stream"),
        ("mcp-protocol-version", "2025-11-25"),
    ];
    headers.extend_from_slice(extra);
    exchange(port, path, &headers, &body.to_string()).await
}

fn key() -> String {
    format!("Bearer {API_KEY}")
}

fn list() -> Value {
    json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}})
}

fn call_of(tool: &str, arguments: Value) -> Value {
    json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}})
}

fn refused(error: &WireError) -> &str {
    error.code()
}

#[tokio::test]
async fn http_without_a_good_key_is_401_and_says_how() {
    let scene = scene().await;
    let port = scene.http(Door::Keyed).await;
    let with_space = format!("Bearer {API_KEY} x");
    for authorization in [
        None,
        Some("Bearer wrong"),
        Some("Basic dTpw"),
        Some("Bearer "),
        Some(API_KEY),
        Some(with_space.as_str()),
    ] {
        let extra: Vec<(&str, &str)> = authorization
            .map(|value| ("authorization", value))
            .into_iter()
            .collect();
        let (status, answer) = post(port, "/mcp", &extra, list()).await;
        assert_eq!(status, 401, "{authorization:?}");
        assert!(answer.to_lowercase().contains("www-authenticate: bearer"));
        assert!(answer.contains("\"code\":\"unauthenticated\""));
    }
    let key = key();
    let twice = [
        ("authorization", key.as_str()),
        ("authorization", "Bearer other"),
    ];
    assert_eq!(post(port, "/mcp", &twice, list()).await.0, 401);
    assert_eq!(
        post(port, "/mcp", &[("authorization", &key)], list())
            .await
            .0,
        200
    );
}

#[tokio::test]
async fn http_from_a_foreign_host_or_page_is_403_even_with_a_key() {
    let scene = scene().await;
    let port = scene.http(Door::Keyed).await;
    let key = key();
    let evil_host = [("host", "evil.example"), ("authorization", key.as_str())];
    assert_eq!(exchange(port, "/mcp", &evil_host, "{}").await.0, 403);
    for (name, value) in [
        ("origin", "http://evil.example"),
        ("origin", "null"),
        ("sec-fetch-site", "cross-site"),
    ] {
        let (status, _) = post(
            port,
            "/mcp",
            &[("authorization", &key), (name, value)],
            list(),
        )
        .await;
        assert_eq!(status, 403, "{value}");
    }
    let ours = format!("http://127.0.0.1:{port}");
    assert_eq!(
        post(
            port,
            "/mcp",
            &[("authorization", &key), ("origin", &ours)],
            list()
        )
        .await
        .0,
        200
    );
    assert_eq!(
        post(port, "/elsewhere", &[("authorization", &key)], list())
            .await
            .0,
        404
    );
    assert_eq!(
        post(port, "/mcp/../x", &[("authorization", &key)], list())
            .await
            .0,
        404
    );
}

#[tokio::test]
async fn a_key_is_asked_for_once_a_moment_and_never_sent_on() {
    let scene = scene().await;
    let port = scene.http(Door::Keyed).await;
    for _ in 0..3 {
        post(
            port,
            "/mcp",
            &[("authorization", &key())],
            call_of("tracker_list", json!({})),
        )
        .await;
    }
    assert_eq!(scene.vault.seen().keys_asked, 1);
    assert!(
        scene
            .upstream
            .requests()
            .iter()
            .all(|request| !request.contains(API_KEY))
    );
}

#[tokio::test]
async fn a_direct_client_lists_and_calls_over_http_and_the_key_does_not_come_back() {
    let scene = scene().await;
    let port = scene.http(Door::Keyed).await;
    let key = key();
    let (status, answer) = post(port, "/mcp", &[("authorization", &key)], list()).await;
    assert_eq!(status, 200, "{answer}");
    let at: Vec<usize> = [
        "other_create",
        "other_list",
        "tracker_create",
        "tracker_list",
    ]
    .iter()
    .map(|name| answer.find(&format!("\"name\":\"{name}\"")).unwrap())
    .collect();
    assert!(at.is_sorted());
    assert!(answer.contains("\"readOnlyHint\":true"));
    for (tool, arguments) in [
        ("tracker_list", json!({})),
        ("tracker_create", json!({"title": "x"})),
        ("tracker_create", json!({"title": "fail"})),
    ] {
        let (status, answer) = post(
            port,
            "/mcp",
            &[("authorization", &key)],
            call_of(tool, arguments),
        )
        .await;
        assert_eq!(status, 200);
        assert!(answer.contains("[scrubbed:tracker]"), "{answer}");
        assert_eq!(leaks(answer.as_bytes()), Vec::<&str>::new(), "{answer}");
        assert!(
            !answer.contains("\\\\u006b"),
            "letter-by-letter escapes are decoded and scrubbed: {answer}"
        );
    }
    assert_eq!(scene.upstream.requests().len(), 3);
    // One seat served all calls, for the key's holder.
    let seen = scene.vault.seen();
    assert_eq!(seen.seats.len(), 1);
    assert_eq!(seen.seats[0].principal.as_str(), "key:key_test");
    assert!(
        seen.asked
            .iter()
            .all(|ask| ask.tool == "tracker" && ask.tool_hash.len() == 64)
    );
}

#[tokio::test]
async fn an_address_with_a_name_offers_that_definition_alone() {
    let scene = scene().await;
    let port = scene.http(Door::Keyed).await;
    let key = key();
    let (_, answer) = post(port, "/mcp/other", &[("authorization", &key)], list()).await;
    assert!(
        answer.contains("other_list") && !answer.contains("tracker_list"),
        "{answer}"
    );
    let (_, answer) = post(
        port,
        "/mcp/other",
        &[("authorization", &key)],
        call_of("tracker_list", json!({})),
    )
    .await;
    assert!(answer.contains("tool_not_found"), "{answer}");
    assert_eq!(scene.upstream.connections(), 0);
}

#[tokio::test]
async fn only_permitted_and_unchanged_definitions_are_listed() {
    let scene = scene().await;
    let port = scene.http(Door::Keyed).await;
    let key = key();
    scene.vault.seen().permits[1].principals = vec![Principal::operator(4242)];
    let (_, answer) = post(port, "/mcp", &[("authorization", &key)], list()).await;
    assert!(
        answer.contains("tracker_list") && !answer.contains("other_list"),
        "{answer}"
    );
    let path = scene.home.path().join("tracker.toml");
    let changed = std::fs::read_to_string(&path).unwrap() + "# changed\n";
    std::fs::write(&path, changed).unwrap();
    let (_, answer) = post(port, "/mcp", &[("authorization", &key)], list()).await;
    assert!(!answer.contains("tracker_list"), "{answer}");
}

#[tokio::test]
async fn a_denied_call_is_a_tool_error_with_code_and_nothing_was_dialed() {
    let scene = scene().await;
    let port = scene.http(Door::Keyed).await;
    scene.vault.seen().deny = Some("principal_not_permitted");
    let (status, answer) = post(
        port,
        "/mcp",
        &[("authorization", &key())],
        call_of("tracker_list", json!({})),
    )
    .await;
    assert_eq!(status, 200);
    assert!(
        answer.contains("\"isError\":true") && answer.contains("principal_not_permitted"),
        "{answer}"
    );
    assert_eq!(scene.upstream.connections(), 0);
}

#[tokio::test]
async fn a_seat_that_the_vault_voided_is_opened_again_once() {
    let scene = scene().await;
    let principal = Principal::key("key_test");
    let first = scene.shared.openings.seat(&principal, "a").await.unwrap();
    scene.vault.seen().deny = Some("opening_void");
    let (definition, operation) = call::find(&scene.shared, "tracker_list").await.unwrap();
    let refusal = call::call_from_seat(
        &scene.shared,
        &principal,
        "a",
        &definition,
        &operation,
        &json!({}),
    )
    .await
    .unwrap_err();
    assert_eq!(refusal.code, "opening_void");
    {
        let seen = scene.vault.seen();
        assert_eq!(
            (seen.seats.len(), seen.ended.len(), seen.asked.len()),
            (2, 1, 2)
        );
    }
    scene.vault.seen().deny = None;
    call::call_from_seat(
        &scene.shared,
        &principal,
        "a",
        &definition,
        &operation,
        &json!({}),
    )
    .await
    .unwrap();
    assert_ne!(
        scene
            .shared
            .openings
            .seat(&principal, "a")
            .await
            .unwrap()
            .session,
        first.session
    );
}

#[tokio::test]
async fn a_sandbox_is_served_only_when_named_and_only_with_always_allowed_tools() {
    let scene = scene().await;
    let attached = Arc::new(Attachment::new("sbx_1", "sesn_1", 1));
    let port = scene.http(Door::Sandbox(Arc::clone(&attached))).await;
    let foreign = scene
        .http(Door::Sandbox(Arc::new(Attachment::new(
            "sbx_1", "sesn_2", 1,
        ))))
        .await;
    let (status, answer) = post(port, "/mcp", &[], list()).await;
    assert_eq!((status, answer.contains("sandbox_not_named")), (503, true));

    let harness = scene.harness("harness-0").await;
    harness
        .present(&Present {
            opening: scene.open_session(1),
        })
        .await
        .unwrap();
    let name = |epoch| NameSandbox {
        session: "sesn_1".into(),
        epoch,
        sandbox: "sbx_1".into(),
        tools: vec!["tracker_list".into()],
    };
    harness.name_sandbox(&name(1)).await.unwrap();
    let (status, answer) = post(port, "/mcp", &[], list()).await;
    assert_eq!(status, 200);
    assert!(
        answer.contains("tracker_list") && !answer.contains("tracker_create"),
        "{answer}"
    );
    let (_, answer) = post(port, "/mcp", &[], call_of("tracker_list", json!({}))).await;
    assert!(
        answer.contains("[scrubbed:tracker]") && leaks(answer.as_bytes()).is_empty(),
        "{answer}"
    );
    let (_, answer) = post(
        port,
        "/mcp",
        &[],
        call_of("tracker_create", json!({"title": "x"})),
    )
    .await;
    assert!(answer.contains("tool_not_always_allowed"), "{answer}");
    assert_eq!(scene.upstream.requests().len(), 1);
    assert_eq!(
        scene.vault.seen().reports[0].reason,
        "tool_not_always_allowed"
    );
    // The listener was attached for another session than the one that named it.
    assert_eq!(post(foreign, "/mcp", &[], list()).await.0, 503);
    // A new epoch must name its sandboxes anew.
    harness
        .present(&Present {
            opening: scene.open_session(2),
        })
        .await
        .unwrap();
    assert_eq!(post(port, "/mcp", &[], list()).await.0, 503);
    harness.name_sandbox(&name(2)).await.unwrap();
    assert_eq!(post(port, "/mcp", &[], list()).await.0, 200);
    // The hands have gone on to an epoch whose harness has not spoken yet: nobody speaks for the sandbox.
    attached.raise(3);
    assert_eq!(post(port, "/mcp", &[], list()).await.0, 503);
    let (status, _) = post(port, "/mcp", &[], call_of("tracker_list", json!({}))).await;
    assert_eq!((status, scene.upstream.requests().len()), (503, 1));
}

#[tokio::test]
async fn a_sandbox_that_hoards_connections_uses_up_its_own_alone() {
    let scene = scene().await;
    let attached = |name| Door::Sandbox(Arc::new(Attachment::new(name, "sesn_1", 1)));
    let (hoarded, other) = (
        scene.http(attached("sbx_1")).await,
        scene.http(attached("sbx_2")).await,
    );
    let mut idle = Vec::new();
    for _ in 0..http::MAX_SANDBOX_CONNECTIONS {
        idle.push(TcpStream::connect(("127.0.0.1", hoarded)).await.unwrap());
    }
    let mut asking = Box::pin(post(hoarded, "/mcp", &[], list()));
    let early = tokio::time::timeout(std::time::Duration::from_millis(300), &mut asking).await;
    assert!(early.is_err(), "{early:?}");
    assert_eq!(post(other, "/mcp", &[], list()).await.0, 503);
    idle.clear();
    assert_eq!(asking.await.0, 503);
}

#[tokio::test]
async fn a_harness_presents_lists_and_calls_and_the_key_does_not_come_back() {
    let scene = scene().await;
    let harness = scene.harness("harness-0").await;
    let opening = scene.open_session(3);
    let at = harness
        .present(&Present {
            opening: opening.clone(),
        })
        .await
        .unwrap();
    assert_eq!(harness.present(&Present { opening }).await.unwrap(), at);
    assert_eq!(scene.vault.seen().accepted, 1);
    let tools = harness.list_tools(&at).await.unwrap().tools;
    assert_eq!(tools.len(), 4);
    let call = |tool: &str, arguments| Call {
        session: "sesn_1".into(),
        epoch: 3,
        key: "sesn_1/toolu_1".into(),
        tool: tool.into(),
        arguments,
    };
    let called = harness
        .call(&call("tracker_create", json!({"title": "x"})))
        .await
        .unwrap();
    let text = serde_json::to_string(&called).unwrap();
    assert!(
        !called.is_error
            && text.contains("[scrubbed:tracker]")
            && leaks(text.as_bytes()).is_empty(),
        "{text}"
    );
    let called = harness
        .call(&call("tracker_create", json!({"title": "fail"})))
        .await
        .unwrap();
    let text = serde_json::to_string(&called).unwrap();
    assert!(
        called.is_error && text.contains("HTTP 422") && leaks(text.as_bytes()).is_empty(),
        "{text}"
    );
    for (tool, arguments, code) in [
        ("tracker_none", json!({}), "tool_not_found"),
        ("tracker_create", json!({}), "arguments_invalid"),
    ] {
        let called = harness.call(&call(tool, arguments)).await.unwrap();
        assert!(called.is_error && called.content[0].to_string().contains(code));
    }
    scene.vault.seen().deny = Some("vault_sealed");
    let error = harness
        .call(&call("tracker_list", json!({})))
        .await
        .unwrap_err();
    assert_eq!(refused(&error), "vault_sealed");
}

#[tokio::test]
async fn a_connection_acts_only_for_what_was_presented_over_it_at_the_newest_epoch() {
    let scene = scene().await;
    let (one, two) = (
        scene.harness("harness-0").await,
        scene.harness("harness-1").await,
    );
    let opening = scene.open_session(3);
    let at = one
        .present(&Present {
            opening: opening.clone(),
        })
        .await
        .unwrap();
    assert_eq!(
        refused(&two.list_tools(&at).await.unwrap_err()),
        "opening_not_accepted"
    );
    assert_eq!(
        refused(&two.withdraw(&at).await.unwrap_err()),
        "opening_not_accepted"
    );
    let mut forged = opening;
    forged.opening = claviger_vault_protocol::OpeningId::random();
    assert_eq!(
        refused(&two.present(&Present { opening: forged }).await.unwrap_err()),
        "opening_not_found"
    );
    two.present(&Present {
        opening: scene.open_session(4),
    })
    .await
    .unwrap();
    assert_eq!(
        refused(&one.list_tools(&at).await.unwrap_err()),
        "epoch_stale"
    );
    assert_eq!(
        refused(
            &one.present(&Present {
                opening: scene.open_session(3)
            })
            .await
            .unwrap_err()
        ),
        "epoch_stale"
    );
    let newer = At {
        session: "sesn_1".into(),
        epoch: 4,
    };
    two.withdraw(&newer).await.unwrap();
    assert_eq!(
        refused(&two.list_tools(&newer).await.unwrap_err()),
        "opening_not_accepted"
    );
}

#[tokio::test]
async fn mcp_sock_serves_operators_in_both_eras_and_turns_others_away() {
    let scene = scene().await;
    let uid = rustix::process::getuid().as_raw();
    let directory = tempfile::tempdir().unwrap();
    let serve = |name: &str, operators: Vec<u32>| {
        let path = directory.path().join(name);
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(serve_unix(
            Arc::clone(&scene.shared),
            listener,
            operators,
            scene.stop.clone(),
        ));
        path
    };
    let ours = serve("mcp.sock", vec![uid]);
    let others = serve("others.sock", vec![uid + 1]);

    let running = ().serve(UnixStream::connect(&ours).await.unwrap().into_split()).await.unwrap();
    assert!(
        running
            .peer_info()
            .unwrap()
            .instructions
            .as_ref()
            .unwrap()
            .contains("never see a key")
    );
    let tools = running.list_all_tools().await.unwrap();
    assert_eq!(tools.len(), 4);
    let result = running
        .call_tool(CallToolRequestParams::new("tracker_list"))
        .await
        .unwrap();
    let text = serde_json::to_string(&result).unwrap();
    assert!(
        text.contains("[scrubbed:tracker]") && leaks(text.as_bytes()).is_empty(),
        "{text}"
    );
    assert_eq!(
        scene.vault.seen().seats[0].principal,
        Principal::operator(uid)
    );

    // The modern era needs no handshake: one line in, one line out.
    let mut stream = UnixStream::connect(&ours).await.unwrap();
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
    });
    let ask = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": meta}});
    stream
        .write_all(format!("{ask}\n").as_bytes())
        .await
        .unwrap();
    let mut line = String::new();
    tokio::io::AsyncBufReadExt::read_line(&mut tokio::io::BufReader::new(&mut stream), &mut line)
        .await
        .unwrap();
    assert!(
        line.contains("tracker_list") && line.contains("\"cacheScope\":\"private\""),
        "{line}"
    );

    let mut stream = UnixStream::connect(&others).await.unwrap();
    let mut nothing = Vec::new();
    stream.read_to_end(&mut nothing).await.unwrap();
    assert!(nothing.is_empty());
}
