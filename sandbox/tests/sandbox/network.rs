//! The listeners inside, answered from outside; and that there is no other way out.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use claviger_sandbox::handover::{AttachReceiver, Attached, Handover};
use claviger_sandbox::{Resources, SandboxId};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};

use crate::tests;
use crate::world::World;

tests!("network":
    a_listener_of_the_host_is_out_of_reach,
    a_new_link_names_every_live_sandbox_and_what_is_gone,
    an_attach_hands_over_the_new_epoch,
    bytes_go_round_through_both_listeners,
    loopback_inside_is_the_sandbox_own,
    without_listeners_nothing_is_handed_over,
);

fn with_listeners() -> Resources {
    Resources {
        listeners: true,
        ..Resources::default()
    }
}

async fn next_attached(receiver: &mut AttachReceiver, sandbox: &SandboxId) -> Attached {
    loop {
        let next = tokio::time::timeout(Duration::from_secs(10), receiver.next())
            .await
            .expect("in time");
        match next.expect("a message") {
            Handover::Attached(attached) if attached.sandbox == *sandbox => return attached,
            _ => {}
        }
    }
}

/// Accepts one connection, reads a line, answers with a prefix.
async fn answer_once(listener: std::net::TcpListener, prefix: &'static str) {
    let listener = TcpListener::from_std(listener).expect("a listener");
    let (mut stream, peer) = listener.accept().await.expect("a connection");
    assert!(peer.ip().is_loopback());
    let mut line = vec![0; 64];
    let count = stream.read(&mut line).await.expect("bytes");
    let answer = format!("{prefix}{}", String::from_utf8_lossy(&line[..count]));
    stream.write_all(answer.as_bytes()).await.expect("sent");
}

async fn bytes_go_round_through_both_listeners(world: Arc<World>) {
    let (mut receiver, _links) = world.role.receiver().await;
    let held = world.sandbox_of(with_listeners()).await;
    let attached = next_attached(&mut receiver, &held.id).await;
    assert_eq!(
        (attached.session.as_str(), attached.epoch),
        (held.session.as_str(), 1)
    );
    assert_eq!(
        attached.mcp.local_addr().expect("an address").to_string(),
        "127.0.0.1:7000"
    );
    assert_eq!(
        attached
            .egress
            .local_addr()
            .expect("an address")
            .to_string(),
        "127.0.0.1:7001"
    );
    let mcp = tokio::spawn(answer_once(attached.mcp, "mcp heard "));
    let egress = tokio::spawn(answer_once(attached.egress, "egress heard "));
    let round = |port: u16| {
        format!(
            "exec 5<>/dev/tcp/127.0.0.1/{port}; echo hello >&5; read -r answer <&5; echo $answer"
        )
    };
    assert_eq!(held.text(&round(7000)).await, "mcp heard hello\n");
    assert_eq!(held.text(&round(7001)).await, "egress heard hello\n");
    mcp.await.expect("answered");
    egress.await.expect("answered");
    held.destroy().await;
    let next = tokio::time::timeout(Duration::from_secs(10), receiver.next())
        .await
        .expect("in time");
    assert!(matches!(next, Some(Handover::Detached(id)) if id == held.id));
}

async fn an_attach_hands_over_the_new_epoch(world: Arc<World>) {
    let (mut receiver, _links) = world.role.receiver().await;
    let held = world.sandbox_of(with_listeners()).await;
    assert_eq!(next_attached(&mut receiver, &held.id).await.epoch, 1);
    held.client
        .attach(&held.session, 4)
        .await
        .expect("attached");
    let attached = next_attached(&mut receiver, &held.id).await;
    assert_eq!(attached.epoch, 4);
    let answering = tokio::spawn(answer_once(attached.mcp, "epoch 4: "));
    let call = claviger_sandbox::Execute {
        epoch: 4,
        ..held.call(
            "bash",
            json!({ "command": "exec 5<>/dev/tcp/127.0.0.1/7000; echo x >&5; cat <&5" }),
        )
    };
    assert_eq!(
        held.client.execute(call).await.map(|output| output.text()),
        Ok("epoch 4: x\n".to_owned())
    );
    answering.await.expect("answered");
    held.client
        .destroy(&held.session, 4, &held.id)
        .await
        .expect("destroyed");
}

async fn a_new_link_names_every_live_sandbox_and_what_is_gone(world: Arc<World>) {
    let (mut receiver, links) = world.role.receiver().await;
    let (stays, goes) = (
        world.sandbox_of(with_listeners()).await,
        world.sandbox_of(with_listeners()).await,
    );
    next_attached(&mut receiver, &stays.id).await;
    next_attached(&mut receiver, &goes.id).await;
    // Another receiver takes the role's side away; what happens now this one does not hear.
    let (_other, _other_links) = world.role.receiver().await;
    goes.destroy().await;
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    world.role.attach.send(theirs).await.expect("the role runs");
    links.send(ours).await.expect("room for a link");
    let mut seen: HashMap<SandboxId, bool> = HashMap::new();
    while seen.len() < 2 {
        let next = tokio::time::timeout(Duration::from_secs(10), receiver.next())
            .await
            .expect("in time");
        match next.expect("a message") {
            Handover::Attached(attached) => seen.insert(attached.sandbox, true),
            Handover::Detached(id) => seen.insert(id, false),
        };
    }
    assert_eq!(
        seen,
        HashMap::from([(stays.id.clone(), true), (goes.id.clone(), false)])
    );
    stays.destroy().await;
}

async fn without_listeners_nothing_is_handed_over(world: Arc<World>) {
    let (mut receiver, _links) = world.role.receiver().await;
    let without = world.sandbox().await;
    let output = without.bash("exec 5<>/dev/tcp/127.0.0.1/7000").await;
    assert!(
        output.is_error && output.text().contains("refused"),
        "{}",
        output.text()
    );
    assert_eq!(
        without
            .text("echo \"[$HTTP_PROXY$CLAVIGER_MCP_URL]\"")
            .await,
        "[]\n"
    );
    let with = world.sandbox_of(with_listeners()).await;
    let next = tokio::time::timeout(Duration::from_secs(10), receiver.next())
        .await
        .expect("in time");
    assert!(matches!(next, Some(Handover::Attached(attached)) if attached.sandbox == with.id));
    without.destroy().await;
    with.destroy().await;
}

async fn a_listener_of_the_host_is_out_of_reach(world: Arc<World>) {
    let held = world.sandbox_of(with_listeners()).await;
    let Ok(host) = TcpListener::bind("127.0.0.1:0").await else {
        // In a network namespace whose loopback is down there is no host listener to reach.
        held.destroy().await;
        return;
    };
    let port = host.local_addr().expect("an address").port();
    for address in [
        "127.0.0.1",
        "127.0.0.2",
        "0.0.0.0",
        "169.254.169.254",
        "10.0.0.1",
        "8.8.8.8",
    ] {
        let output = held
            .bash(&format!("exec 5<>/dev/tcp/{address}/{port}"))
            .await;
        assert!(output.is_error, "{address}: {}", output.text());
    }
    let output = held
        .bash(&format!("exec 5<>/dev/tcp/example.com/{port}"))
        .await;
    assert!(output.is_error, "no name is resolved");
    let accepted = tokio::time::timeout(Duration::from_millis(50), host.accept()).await;
    assert!(accepted.is_err(), "nobody came");
    held.destroy().await;
}

async fn loopback_inside_is_the_sandbox_own(world: Arc<World>) {
    let (one, two) = (
        world.sandbox_of(with_listeners()).await,
        world.sandbox_of(with_listeners()).await,
    );
    assert_eq!(
        one.text("tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '")
            .await,
        "lo\n"
    );
    assert_eq!(one.text("tail -n +2 /proc/net/route | wc -l").await, "0\n");
    if one.bash("command -v python3").await.is_error {
        return;
    }
    one.text("(cd /tmp && exec python3 -m http.server 8000 >/dev/null 2>&1) & for i in $(seq 300); do (exec 5<>/dev/tcp/127.0.0.1/8000) 2>/dev/null && break; read -t 0.02 <> <(:); done; echo up").await;
    assert!(
        two.bash("exec 5<>/dev/tcp/127.0.0.1/8000").await.is_error,
        "another sandbox's server is not reachable"
    );
    one.destroy().await;
    two.destroy().await;
}
