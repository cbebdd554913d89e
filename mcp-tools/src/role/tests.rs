use claviger_vault_memory::scan::{Fingerprints, ScanReport};
use claviger_vault_protocol::admin::Scan;
use claviger_vault_protocol::client::{AdminVault, ToolsLink};
use claviger_vault_protocol::present::Present;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use crate::testing::{FakeVault, SECRET, bearer};

/// A link of one connection, and the other side's senders kept alive.
async fn link<T>(stream: T) -> (mpsc::Sender<T>, mpsc::Receiver<T>) {
    let (sender, receiver) = mpsc::channel(4);
    drop(sender.send(stream).await);
    (sender, receiver)
}

#[tokio::test]
async fn the_role_registers_serves_its_links_and_ends_when_told() {
    let vault = FakeVault::new();
    let home = tempfile::tempdir().unwrap();
    let (vault_ours, vault_theirs) = UnixStream::pair().unwrap();
    tokio::spawn(Box::pin(wire::serve(
        Arc::clone(&vault),
        vault_theirs,
        CancellationToken::new(),
    )));
    let (_vault_sender, vault_link) = link(vault_ours).await;
    let (harness_ours, harness_theirs) = UnixStream::pair().unwrap();
    let (_harness_sender, harness_link) = link(Linked {
        peer: "harness-0".to_owned(),
        stream: harness_theirs,
    })
    .await;
    let (_attach_sender, attach) = mpsc::channel(1);
    let (_model_sender, model) = mpsc::channel(1);
    let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = http.local_addr().unwrap().port();
    let scan_path = home.path().join("tools-scan.sock");
    let options = |demo| Options {
        tools_directory: home.path().join("tools"),
        vault_key: vault.public_key(),
        instance: "tools_test".into(),
        operators: vec![rustix::process::getuid().as_raw()],
        model_base_url: "http://127.0.0.1:1".parse().unwrap(),
        demo,
    };
    let links = Links {
        vault: vault_link,
        attach,
        harness: harness_link,
        model,
        mcp_socket: None,
        http: Some(http),
        scan_socket: Some(UnixListener::bind(&scan_path).unwrap()),
    };
    let stop = CancellationToken::new();
    let role = tokio::spawn(run(options(true), links, stop.clone()));

    let (_sender, ours) = link(harness_ours).await;
    let (tools, driver) = Link::new("tools", ours, None);
    tokio::spawn(driver);
    let envelope = vault.grant(
        "sesn_1",
        1,
        "tracker",
        SECRET,
        bearer(([127, 0, 0, 1], 9).into()),
    );
    let opening = vault.opening("sesn_1", 1, vec![envelope]);
    let at = ToolsLink(tools)
        .present(&Present { opening })
        .await
        .unwrap();
    assert_eq!(at.epoch, 1);

    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request =
        format!("POST /mcp HTTP/1.1\r\nhost: localhost:{port}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");

    // The vault's answers never held the secret in clear, so this process, which made it, is
    // asked about a pattern that nobody has.
    let (_sender, ours) = link(UnixStream::connect(&scan_path).await.unwrap()).await;
    let (scanner, driver) = Link::new("tools", ours, None);
    tokio::spawn(driver);
    let nobody: Vec<u8> = (0..32_u8).map(|n| n.wrapping_mul(37) ^ 0x5a).collect();
    let fingerprints = Fingerprints::new([7; 32], [("nobody", nobody.as_slice())]).unwrap();
    drop(nobody);
    let scan = Scan {
        fingerprints: serde_json::to_value(fingerprints).unwrap(),
    };
    let scanned = AdminVault(scanner).scan(&scan).await.unwrap();
    let report: ScanReport = serde_json::from_value(scanned.report).unwrap();
    assert!(report.bytes > 0);

    stop.cancel();
    role.await.unwrap().unwrap();
    assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());
    assert!(UnixStream::connect(&scan_path).await.is_err());
}
