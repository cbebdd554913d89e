//! `claviger mcp`: the stdio shim that an MCP client starts.
//!
//! It copies JSON-RPC lines between stdin/stdout and `mcp.sock` and holds no key. When tools
//! restarts, the shim connects again and repeats the client's own `initialize`, so that the client
//! notices nothing but a request that was under way being answered with an error to retry.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::connect::peer_check;
use crate::error::{CliError, Exit};
use crate::home::Home;

/// Longest line, as rmcp's own limit.
const MAX_LINE: usize = 16 * 1024 * 1024;
/// How long a broken connection is tried again before a request is answered with an error.
const PATIENCE: Duration = Duration::from_secs(15);

pub(crate) async fn run() -> Result<(), CliError> {
    let home = Home::from_environment()?;
    let path = home.socket("mcp");
    let connect = move || {
        let path = path.clone();
        async move {
            let stream = UnixStream::connect(&path).await.ok()?;
            peer_check(&stream).ok()?;
            Some(stream)
        }
    };
    let first = connect().await.ok_or_else(|| {
        CliError::new(
            Exit::Unreachable,
            "daemon_not_running",
            "no daemon answers in this home",
        )
        .fix("claviger up --detach")
    })?;
    relay(tokio::io::stdin(), tokio::io::stdout(), first, connect).await
}

/// What the shim remembers of the client's side.
#[derive(Default)]
struct Memory {
    /// The client's `initialize`, repeated on every new connection.
    initialize: Option<Value>,
    initialized: Option<Value>,
    /// Requests without an answer yet, by the text of their id.
    open: HashMap<String, Value>,
}

impl Memory {
    fn sent(&mut self, message: &Value) {
        match message.get("method").and_then(Value::as_str) {
            Some("initialize") => self.initialize = Some(message.clone()),
            Some("notifications/initialized") => self.initialized = Some(message.clone()),
            _ => {}
        }
        if let (Some(id), true) = (message.get("id"), message.get("method").is_some()) {
            self.open.insert(id.to_string(), id.clone());
        }
    }

    fn answered(&mut self, message: &Value) {
        if let (Some(id), true) = (message.get("id"), message.get("method").is_none()) {
            self.open.remove(&id.to_string());
        }
    }

    /// Errors for the requests that the lost connection had not answered.
    fn orphans(&mut self) -> Vec<Value> {
        let initialize = self
            .initialize
            .as_ref()
            .and_then(|message| message.get("id"))
            .map(ToString::to_string);
        self.open
            .drain()
            .filter(|(key, _)| Some(key) != initialize.as_ref())
            .map(|(_, id)| {
                json!({"jsonrpc": "2.0", "id": id, "error": {"code": -32603, "message": "outcome_unknown: the server restarted while this request was under way; check before repeating it"}})
            })
            .collect()
    }
}

async fn relay<R, W, C, F>(
    input: R,
    mut output: W,
    first: UnixStream,
    connect: C,
) -> Result<(), CliError>
where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Unpin,
    C: Fn() -> F,
    F: Future<Output = Option<UnixStream>>,
{
    let broken = |error: std::io::Error| CliError::internal("the client's pipe").because(error);
    let (sender, mut from_client) = mpsc::channel::<String>(64);
    tokio::spawn(read_lines(input, sender));
    let mut memory = Memory::default();
    let mut stream = Some(first);
    loop {
        let Some(current) = stream.take() else {
            return Ok(());
        };
        let (reader, mut writer) = current.into_split();
        let (sender, mut from_server) = mpsc::channel::<String>(64);
        let reading = tokio::spawn(read_lines(reader, sender));
        let lost = loop {
            tokio::select! {
                line = from_client.recv() => {
                    let Some(line) = line else {
                        reading.abort();
                        return Ok(());
                    };
                    if let Ok(message) = serde_json::from_str::<Value>(&line) {
                        memory.sent(&message);
                    }
                    if writer.write_all(format!("{line}\n").as_bytes()).await.is_err() {
                        break true;
                    }
                }
                line = from_server.recv() => {
                    let Some(line) = line else { break true };
                    if let Ok(message) = serde_json::from_str::<Value>(&line) {
                        memory.answered(&message);
                    }
                    output.write_all(format!("{line}\n").as_bytes()).await.map_err(broken)?;
                    output.flush().await.map_err(broken)?;
                }
            }
        };
        reading.abort();
        if lost {
            for answer in memory.orphans() {
                output
                    .write_all(format!("{answer}\n").as_bytes())
                    .await
                    .map_err(broken)?;
            }
            output.flush().await.map_err(broken)?;
            stream = again(&connect, &memory).await;
            if stream.is_none() {
                return Err(CliError::new(
                    Exit::Unreachable,
                    "daemon_not_running",
                    "the daemon went away",
                )
                .fix("claviger up --detach"));
            }
        }
    }
}

/// Connects again and brings the new connection to where the old one was.
async fn again<C, F>(connect: &C, memory: &Memory) -> Option<UnixStream>
where
    C: Fn() -> F,
    F: Future<Output = Option<UnixStream>>,
{
    let end = tokio::time::Instant::now() + PATIENCE;
    while tokio::time::Instant::now() < end {
        if let Some(stream) = connect().await
            && let Some(stream) = resume(stream, memory).await
        {
            return Some(stream);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    None
}

async fn resume(mut stream: UnixStream, memory: &Memory) -> Option<UnixStream> {
    let Some(initialize) = &memory.initialize else {
        return Some(stream);
    };
    stream
        .write_all(format!("{initialize}\n").as_bytes())
        .await
        .ok()?;
    // One byte at a time: what follows the answer belongs to the relay.
    let mut line = Vec::new();
    loop {
        let mut byte = [0_u8];
        let read = tokio::io::AsyncReadExt::read(&mut stream, &mut byte)
            .await
            .ok()?;
        if read == 0 || line.len() > MAX_LINE {
            return None;
        }
        if byte == *b"\n" {
            break;
        }
        line.extend_from_slice(&byte);
    }
    if let Some(initialized) = &memory.initialized {
        stream
            .write_all(format!("{initialized}\n").as_bytes())
            .await
            .ok()?;
    }
    Some(stream)
}

async fn read_lines<R: AsyncRead + Unpin>(input: R, sender: mpsc::Sender<String>) {
    let mut lines = BufReader::new(input).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if line.len() > MAX_LINE || (!line.trim().is_empty() && sender.send(line).await.is_err()) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    async fn line(stream: &mut BufReader<UnixStream>) -> Value {
        let mut text = String::new();
        stream.read_line(&mut text).await.unwrap();
        serde_json::from_str(&text).unwrap()
    }

    #[tokio::test]
    async fn a_restart_of_the_server_does_not_end_the_clients_stdio() {
        let (mut client, shim_input) = tokio::io::duplex(4096);
        let (shim_output, client_output) = tokio::io::duplex(4096);
        let mut answers = BufReader::new(client_output).lines();
        let (first_server, first) = UnixStream::pair().unwrap();
        let (second_server, second) = UnixStream::pair().unwrap();
        let spare = Mutex::new(Some(second));
        tokio::spawn(async move {
            let connect = || {
                let next = spare.lock().unwrap().take();
                async move { next }
            };
            relay(shim_input, shim_output, first, connect).await
        });
        let mut server = BufReader::new(first_server);
        client.write_all(b"{\"id\":1,\"method\":\"initialize\"}\n{\"method\":\"notifications/initialized\"}\n").await.unwrap();
        assert_eq!(line(&mut server).await["method"], "initialize");
        server
            .get_mut()
            .write_all(b"{\"id\":1,\"result\":{}}\n")
            .await
            .unwrap();
        assert_eq!(
            answers.next_line().await.unwrap().unwrap(),
            "{\"id\":1,\"result\":{}}"
        );
        assert_eq!(
            line(&mut server).await["method"],
            "notifications/initialized"
        );
        client
            .write_all(b"{\"id\":2,\"method\":\"tools/call\"}\n")
            .await
            .unwrap();
        assert_eq!(line(&mut server).await["id"], 2);
        drop(server);
        let orphan: Value =
            serde_json::from_str(&answers.next_line().await.unwrap().unwrap()).unwrap();
        assert_eq!(orphan["id"], 2);
        assert!(
            orphan["error"]["message"]
                .as_str()
                .unwrap()
                .starts_with("outcome_unknown")
        );
        let mut server = BufReader::new(second_server);
        assert_eq!(line(&mut server).await["method"], "initialize");
        server
            .get_mut()
            .write_all(b"{\"id\":1,\"result\":{}}\n")
            .await
            .unwrap();
        assert_eq!(
            line(&mut server).await["method"],
            "notifications/initialized"
        );
        client
            .write_all(b"{\"id\":3,\"method\":\"tools/list\"}\n")
            .await
            .unwrap();
        assert_eq!(line(&mut server).await["id"], 3);
        server
            .get_mut()
            .write_all(b"{\"id\":3,\"result\":{}}\n")
            .await
            .unwrap();
        assert_eq!(
            answers.next_line().await.unwrap().unwrap(),
            "{\"id\":3,\"result\":{}}"
        );
    }
}
