//! Connections of the command line to a running daemon: unix sockets only, the server's uid checked.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use claviger_vault_protocol::client::AdminVault;
use claviger_vault_protocol::wire::Link;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use crate::error::{CliError, Exit};
use crate::home::Home;

fn unreachable(home: &Home) -> CliError {
    if home.is_initialised() {
        CliError::new(
            Exit::Unreachable,
            "daemon_not_running",
            "no daemon answers in this home",
        )
        .fix("claviger up --detach")
    } else {
        CliError::new(
            Exit::Unreachable,
            "not_initialised",
            "there is no vault in this home yet",
        )
        .fix("claviger init && claviger up --detach")
    }
}

/// Refuses a socket that somebody else serves: a planted socket must not get a secret.
pub(crate) fn peer_check(stream: &UnixStream) -> Result<(), CliError> {
    let peer = stream
        .peer_cred()
        .map_err(|error| CliError::internal("asking who serves the socket").because(error))?;
    let own = rustix::process::getuid().as_raw();
    if peer.uid() != own && peer.uid() != 0 {
        return Err(CliError::new(
            Exit::Denied,
            "foreign_server",
            format!("the socket is served by user {}", peer.uid()),
        )
        .fix("check CLAVIGER_HOME and who owns it"));
    }
    Ok(())
}

async fn connect(home: &Home, name: &str) -> Result<UnixStream, CliError> {
    let stream = UnixStream::connect(home.socket(name))
        .await
        .map_err(|_| unreachable(home))?;
    peer_check(&stream)?;
    Ok(stream)
}

/// Where api and MCP server are: what a running `up` wrote; the configuration's addresses where each
/// role runs by itself.
pub(crate) fn whereabouts(home: &Home) -> Result<Value, CliError> {
    let written = std::fs::read_to_string(home.up_file())
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok());
    if let Some(document) = written {
        return Ok(document);
    }
    let config = crate::config::Config::load(&home.config_file)?;
    Ok(serde_json::json!({
        "api": format!("http://{}", config.api.listen),
        "mcp": format!("http://{}/mcp", config.mcp.listen),
    }))
}

/// The operator's connection to the vault.
pub(crate) async fn admin_at(home: &Home) -> Result<AdminVault, CliError> {
    let stream = connect(home, "admin").await?;
    let (sender, connections) = mpsc::channel(1);
    let (link, driver) = Link::new("vault", connections, None);
    sender.send(stream).await.map_err(|_| unreachable(home))?;
    tokio::spawn(async move {
        driver.await;
        drop(sender);
    });
    match tokio::time::timeout(Duration::from_secs(10), link.connected()).await {
        Ok(true) => Ok(AdminVault(link)),
        _ => Err(CliError::new(
            Exit::Unreachable,
            "peer_timeout",
            "the vault does not answer",
        )
        .fix("claviger status; claviger doctor")),
    }
}

/// A request to the api over its unix socket; answers status and body.
pub(crate) async fn api_request(
    home: &Home,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<Value, CliError> {
    let (status, bytes) = api_bytes(home, method, path, body).await?;
    let value: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    if (200..300).contains(&status) {
        return Ok(value);
    }
    let text = |pointer: &str| {
        value
            .pointer(pointer)
            .and_then(Value::as_str)
            .map(ToOwned::to_owned)
    };
    let code = text("/error/details/error_code")
        .or_else(|| text("/error/type"))
        .unwrap_or_else(|| "api_error".to_owned());
    let message = text("/error/message").unwrap_or_else(|| format!("the api answered {status}"));
    let mut error = CliError::refused(&code, &message, None);
    if status == 404 {
        error.exit = Exit::NotFound;
    }
    Err(error)
}

async fn api_bytes(
    home: &Home,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<(u16, Bytes), CliError> {
    let stream = connect(home, "api").await?;
    let bytes = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
    let request = request(method, path)
        .body(Full::new(bytes))
        .map_err(|error| CliError::internal(error.to_string()))?;
    let response = send(stream, request).await?;
    let status = response.status().as_u16();
    let collected = response
        .into_body()
        .collect()
        .await
        .map_err(|error| CliError::internal("reading the api's answer").because(error))?;
    Ok((status, collected.to_bytes()))
}

async fn send(
    stream: UnixStream,
    request: http::Request<Full<Bytes>>,
) -> Result<http::Response<hyper::body::Incoming>, CliError> {
    let failed = |error: hyper::Error| {
        CliError::new(
            Exit::Unreachable,
            "peer_unreachable",
            "the api does not answer",
        )
        .because(error)
        .fix("claviger status")
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(failed)
}

/// The events of a session as they come, from the api's event stream.
pub(crate) struct Events {
    body: hyper::body::Incoming,
    pending: Vec<u8>,
}

impl Events {
    /// Opens the stream after a sequence number.
    pub(crate) async fn open(home: &Home, session: &str, after: u64) -> Result<Self, CliError> {
        let path = format!("/v1/sessions/{session}/events/stream?event_deltas%5B%5D=agent.message");
        let stream = connect(home, "api").await?;
        let request = request("GET", &path).header("last-event-id", after.to_string());
        let request = request
            .body(Full::new(Bytes::new()))
            .map_err(|error| CliError::internal(error.to_string()))?;
        let response = send(stream, request).await?;
        let status = response.status();
        if !status.is_success() {
            let exit = if status == http::StatusCode::NOT_FOUND {
                Exit::NotFound
            } else {
                Exit::Upstream
            };
            return Err(CliError::new(
                exit,
                "api_error",
                format!("the api answered {status} for session {session}"),
            )
            .fix("claviger session list"));
        }
        Ok(Self {
            body: response.into_body(),
            pending: Vec::new(),
        })
    }

    /// The next event and its sequence number (none for what is not stored); none when the stream ends.
    pub(crate) async fn next(&mut self) -> Option<(Option<u64>, Value)> {
        loop {
            if let Some(end) = self.pending.windows(2).position(|window| window == b"\n\n") {
                let message: Vec<u8> = self.pending.drain(..end + 2).collect();
                let message = String::from_utf8_lossy(&message).into_owned();
                let field = |name: &str| -> String {
                    message
                        .lines()
                        .filter_map(|line| line.strip_prefix(name))
                        .map(str::trim_start)
                        .collect()
                };
                if let Ok(event) = serde_json::from_str(&field("data:")) {
                    return Some((field("id:").parse().ok(), event));
                }
                continue;
            }
            if let Ok(data) = self.body.frame().await?.ok()?.into_data() {
                self.pending.extend_from_slice(&data);
            }
        }
    }
}

fn request(method: &str, path: &str) -> http::request::Builder {
    http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("content-type", "application/json")
        .header("anthropic-version", "2026-10-21")
        .header("anthropic-beta", "managed-agents-2026-04-01")
}

/// Whether something listens on a socket of this home.
pub(crate) async fn answers(path: &Path) -> bool {
    UnixStream::connect(path).await.is_ok()
}
