//! MCP over a unix socket as a wire: verbs are tools, arguments and answers are typed JSON.
//!
//! The same two halves carry every MCP link between roles: [`serve`] answers one connection with a
//! set of [`Verbs`]; [`Link`] calls them, always over the newest connection that it was given.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use rmcp::ServerHandler;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ErrorData,
    Implementation, ListToolsResult, PaginatedRequestParams, ServerCapabilities, ServerConfig,
    Tool,
};
use rmcp::service::{Peer, RequestContext, RoleClient, RoleServer, ServiceError, ServiceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::error::{Refusal, WireError};

/// What one connection may call.
pub trait Verbs: Send + Sync + 'static {
    /// Names of the verbs, in a fixed order.
    fn names(&self) -> Vec<&'static str>;

    /// Carries one verb out. Called concurrently.
    fn call(
        &self,
        verb: &str,
        arguments: Value,
    ) -> impl Future<Output = Result<Value, Refusal>> + Send;
}

/// Reads a verb's arguments.
///
/// # Errors
/// `malformed_request` naming the verb and the field; values are not quoted.
pub fn arguments<T: DeserializeOwned>(verb: &str, arguments: Value) -> Result<T, Refusal> {
    serde_json::from_value(arguments).map_err(|error| {
        let reason = without_values(&error.to_string());
        Refusal::new(
            "malformed_request",
            format!("arguments of {verb}: {reason}"),
        )
    })
}

/// What serde says about a mistake, less the offending value, which it quotes.
fn without_values(text: &str) -> String {
    let named = ["missing field", "unknown field", "duplicate field"];
    if named.iter().any(|start| text.starts_with(start)) {
        return text.chars().take(80).collect();
    }
    let what = text.split(':').next().unwrap_or("").chars().take(40);
    let expected = text.rsplit_once("expected ").map(|(_, expected)| expected);
    match expected {
        Some(expected) if !expected.contains('"') => {
            format!("{}, expected {expected}", what.collect::<String>())
        }
        _ => what.collect(),
    }
}

/// Renders a verb's answer.
///
/// # Errors
/// `internal` where the answer has no JSON form, which no answer type of this crate lacks.
pub fn answer<T: Serialize>(value: &T) -> Result<Value, Refusal> {
    serde_json::to_value(value).map_err(|error| Refusal::new("internal", error.to_string()))
}

/// The refusal for a verb that a connection does not have.
#[must_use]
pub fn unknown_verb(verb: &str) -> Refusal {
    let shown: String = verb
        .chars()
        .filter(char::is_ascii_graphic)
        .take(64)
        .collect();
    Refusal::new(
        "unknown_verb",
        format!("this connection has no verb '{shown}'"),
    )
}

struct Served<V>(Arc<V>);

impl<V: Verbs> ServerHandler for Served<V> {
    fn get_info(&self) -> ServerConfig {
        let mut info = ServerConfig::new(ServerCapabilities::builder().enable_tools().build());
        info.server_info = Implementation::new("claviger", env!("CARGO_PKG_VERSION"));
        info
    }

    async fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let schema = Arc::new(serde_json::Map::from_iter([(
            "type".to_owned(),
            Value::from("object"),
        )]));
        let tools = self
            .0
            .names()
            .into_iter()
            .map(|name| Tool::new(name, "", Arc::clone(&schema)))
            .collect();
        Ok(ListToolsResult::with_all_items(tools))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let arguments = request
            .arguments
            .map_or_else(|| Value::Object(serde_json::Map::new()), Value::Object);
        let result = match self.0.call(&request.name, arguments).await {
            Ok(value) => {
                let mut result = CallToolResult::success(Vec::new());
                result.structured_content = Some(value);
                result
            }
            Err(refusal) => {
                let mut result =
                    CallToolResult::error(vec![ContentBlock::text(refusal.to_string())]);
                result.structured_content = serde_json::to_value(&refusal).ok();
                result
            }
        };
        Ok(result.into())
    }
}

/// Answers one connection until its peer leaves or `stop` is cancelled.
///
/// # Errors
/// [`WireError::Malformed`] where the peer does not speak MCP.
pub async fn serve<V: Verbs>(
    verbs: Arc<V>,
    stream: UnixStream,
    stop: CancellationToken,
) -> Result<(), WireError> {
    let malformed = |reason: String| WireError::Malformed {
        peer: "client".to_owned(),
        reason,
    };
    let running = Served(verbs)
        // A child: the service cancels its token when it ends, and the others must not hear that.
        .serve_with_ct(stream.into_split(), stop.child_token())
        .await
        .map_err(|error| malformed(error.to_string()))?;
    running
        .waiting()
        .await
        .map_err(|error| malformed(error.to_string()))?;
    Ok(())
}

/// A caller of verbs over the newest connection of a link.
#[derive(Clone, Debug)]
pub struct Link {
    peer: Arc<str>,
    current: watch::Receiver<Option<Peer<RoleClient>>>,
}

/// A call made on every new connection before anything else is sent over it.
#[derive(Clone, Debug)]
pub struct Greeting {
    /// Verb.
    pub verb: &'static str,
    /// Its arguments.
    pub arguments: Value,
}

impl Link {
    /// Makes a caller and the future that keeps it connected; whoever calls this spawns the future,
    /// which ends when `connections` closes.
    pub fn new(
        peer: &str,
        connections: mpsc::Receiver<UnixStream>,
        greeting: Option<Greeting>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (sender, current) = watch::channel(None);
        let peer: Arc<str> = Arc::from(peer);
        let link = Self {
            peer: Arc::clone(&peer),
            current,
        };
        (link, drive(peer, connections, greeting, sender))
    }

    /// Waits until a connection stands; false where none will come any more.
    pub async fn connected(&self) -> bool {
        self.current.clone().wait_for(Option::is_some).await.is_ok()
    }

    /// Calls a verb once, over the connection of the moment, waiting for one where there is none.
    ///
    /// # Errors
    /// [`WireError`]; after `Disconnected` and `TimedOut` the effect is unknown.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the wait, not the peer's work.
    pub async fn call<Q: Serialize + Sync, A: DeserializeOwned>(
        &self,
        verb: &'static str,
        query: &Q,
        deadline: Duration,
    ) -> Result<A, WireError> {
        let malformed = |reason: &str| WireError::Malformed {
            peer: self.peer.to_string(),
            reason: reason.to_owned(),
        };
        let Ok(Value::Object(arguments)) = serde_json::to_value(query) else {
            return Err(malformed("arguments are no object"));
        };
        let work = async {
            let mut current = self.current.clone();
            let peer = current
                .wait_for(Option::is_some)
                .await
                .ok()
                .and_then(|guard| guard.clone())
                .ok_or_else(|| self.disconnected())?;
            call_over(&peer, &self.peer, verb, arguments).await
        };
        let value =
            tokio::time::timeout(deadline, work)
                .await
                .map_err(|_| WireError::TimedOut {
                    peer: self.peer.to_string(),
                    verb: verb.to_owned(),
                    after_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX),
                })??;
        serde_json::from_value(value).map_err(|_| malformed("answer is not of the expected type"))
    }

    /// As [`Link::call`] for verbs that are safe to repeat: tries again over the next connection
    /// until the deadline.
    ///
    /// # Errors
    /// [`WireError`].
    pub async fn call_again<Q: Serialize + Sync, A: DeserializeOwned>(
        &self,
        verb: &'static str,
        query: &Q,
        deadline: Duration,
    ) -> Result<A, WireError> {
        let end = tokio::time::Instant::now() + deadline;
        loop {
            let left = end.saturating_duration_since(tokio::time::Instant::now());
            match self.call(verb, query, left).await {
                Err(WireError::Disconnected { .. }) if !left.is_zero() => {
                    debug!(peer = %self.peer, verb, "repeating over the next connection");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                other => return other,
            }
        }
    }

    fn disconnected(&self) -> WireError {
        WireError::Disconnected {
            peer: self.peer.to_string(),
        }
    }
}

async fn call_over(
    peer: &Peer<RoleClient>,
    name: &str,
    verb: &'static str,
    arguments: serde_json::Map<String, Value>,
) -> Result<Value, WireError> {
    let mut params = CallToolRequestParams::new(Cow::Borrowed(verb));
    params.arguments = Some(arguments);
    let malformed = |reason: String| WireError::Malformed {
        peer: name.to_owned(),
        reason,
    };
    match peer.call_tool_once(params).await {
        Ok(CallToolResponse::Complete(result)) => {
            let value = result.structured_content.unwrap_or(Value::Null);
            if result.is_error == Some(true) {
                let refusal: Refusal = serde_json::from_value(value)
                    .map_err(|_| malformed("a refusal without a code".to_owned()))?;
                return Err(refusal.into());
            }
            Ok(value)
        }
        Ok(_) => Err(malformed("an answer that is not complete".to_owned())),
        Err(ServiceError::McpError(error)) => {
            Err(Refusal::new("malformed_request", format!("{verb}: {}", error.message)).into())
        }
        Err(_) => Err(WireError::Disconnected {
            peer: name.to_owned(),
        }),
    }
}

async fn drive(
    name: Arc<str>,
    mut connections: mpsc::Receiver<UnixStream>,
    greeting: Option<Greeting>,
    current: watch::Sender<Option<Peer<RoleClient>>>,
) {
    let mut next = connections.recv().await;
    while let Some(stream) = next.take() {
        let running = match ().serve(stream.into_split()).await {
            Ok(running) => running,
            Err(error) => {
                debug!(peer = %name, %error, "a connection did not come up");
                next = connections.recv().await;
                continue;
            }
        };
        let peer = running.peer().clone();
        let mut greeted = true;
        if let Some(Greeting { verb, arguments }) = &greeting {
            let arguments = arguments.as_object().cloned().unwrap_or_default();
            if let Err(error) = call_over(&peer, &name, verb, arguments).await {
                tracing::warn!(peer = %name, verb, code = error.code(), "greeting was not accepted");
                greeted = false;
            }
        }
        if greeted {
            current.send_replace(Some(peer));
        }
        let ended = running.cancellation_token();
        let mut ending = Box::pin(running.waiting());
        tokio::select! {
            _ = &mut ending => {
                current.send_replace(None);
                next = connections.recv().await;
            }
            newer = connections.recv() => {
                current.send_replace(None);
                ended.cancel();
                next = newer;
            }
        }
    }
    current.send_replace(None);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct Echo;

    impl Verbs for Echo {
        fn names(&self) -> Vec<&'static str> {
            vec!["echo", "refuse"]
        }

        async fn call(&self, verb: &str, arguments: Value) -> Result<Value, Refusal> {
            match verb {
                "echo" => Ok(arguments),
                "refuse" => Err(Refusal::new("not_today", "no").with_fix("tomorrow")),
                other => Err(unknown_verb(other)),
            }
        }
    }

    const SOON: Duration = Duration::from_secs(5);

    fn connect(stop: &CancellationToken) -> (Link, mpsc::Sender<UnixStream>) {
        let (sender, connections) = mpsc::channel(4);
        let (link, driver) = Link::new("echo", connections, None);
        tokio::spawn(driver);
        give(&sender, stop);
        (link, sender)
    }

    fn give(
        sender: &mpsc::Sender<UnixStream>,
        stop: &CancellationToken,
    ) -> tokio::task::JoinHandle<()> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        sender.try_send(ours).unwrap();
        let stop = stop.clone();
        tokio::spawn(async move { drop(serve(Arc::new(Echo), theirs, stop).await) })
    }

    #[tokio::test]
    async fn the_end_of_one_connection_does_not_end_the_others() {
        let stop = CancellationToken::new();
        let (first, keeps_first) = connect(&stop);
        let (second, _keeps_second) = connect(&stop);
        for link in [&first, &second] {
            let answer: Value = link.call("echo", &json!({"a": 1}), SOON).await.unwrap();
            assert_eq!(answer, json!({"a": 1}));
        }
        drop(keeps_first);
        while first.connected().await {
            tokio::task::yield_now().await;
        }
        assert!(!stop.is_cancelled());
        let answer: Value = second.call("echo", &json!({"b": 2}), SOON).await.unwrap();
        assert_eq!(answer, json!({"b": 2}));
    }

    #[tokio::test]
    async fn a_refusal_keeps_its_code_and_its_cure() {
        let (link, _keep) = connect(&CancellationToken::new());
        let refused = link.call::<_, Value>("refuse", &json!({}), SOON).await;
        let Err(WireError::Refused(refusal)) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(refusal.code, "not_today");
        assert_eq!(refusal.fix.as_deref(), Some("tomorrow"));
        let unknown = link.call::<_, Value>("get_secret", &json!({}), SOON).await;
        assert_eq!(unknown.unwrap_err().code(), "unknown_verb");
    }

    #[tokio::test]
    async fn a_safe_verb_is_repeated_over_the_next_connection() {
        let stop = CancellationToken::new();
        let (link, sender) = connect(&stop);
        let first: Value = link.call("echo", &json!({}), SOON).await.unwrap();
        assert_eq!(first, json!({}));
        // A peer that takes the request and dies: the next connection answers it.
        let (ours, theirs) = UnixStream::pair().unwrap();
        sender.send(ours).await.unwrap();
        drop(theirs);
        give(&sender, &stop);
        let again: Value = link
            .call_again("echo", &json!({"c": 3}), SOON)
            .await
            .unwrap();
        assert_eq!(again, json!({"c": 3}));
    }

    #[test]
    fn a_malformed_request_quotes_no_value() {
        let refused = arguments::<crate::admin::Unseal>("unseal", json!({"passphrase": "hunter2"}));
        let text = refused.unwrap_err().to_string();
        assert!(
            text.contains("unseal") && !text.contains("hunter2"),
            "{text}"
        );
    }
}
