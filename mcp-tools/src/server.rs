//! The MCP server for direct clients and for programs in a sandbox.
//!
//! Both protocol eras (2026-07-28 and 2025-11-25) are answered by the same handler; who asks is fixed
//! by the connection or by an authenticated key, never by what a client claims about itself.

pub(crate) mod http;
mod key;
mod origin;

use std::sync::Arc;

use claviger_vault_protocol::present::ToolRow;
use claviger_vault_protocol::{Principal, Refusal};
use rmcp::ServerHandler;
use rmcp::model::{
    CacheScope, CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ErrorData,
    Implementation, ListToolsResult, PaginatedRequestParams, ServerCapabilities, ServerConfig,
    Tool, ToolAnnotations,
};
use rmcp::service::{RequestContext, RoleServer, ServiceExt as _};
use serde_json::Value;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::call;
use crate::openings::{Attachment, Live};
use crate::shared::Shared;
use crate::tool::http::Outcome;
use crate::verbs::explained;

/// For the client's model, said once per connection.
const INSTRUCTIONS: &str = "Tools that use credentials on your behalf. You never see a key: each call is decided and \
recorded by the vault, the key is put into the request on its way out, and answers come back without it. \
[scrubbed:NAME] in an answer stands where the upstream repeated the key NAME. A refused call names a code, a cause \
and what would help; a person can run `claviger explain CODE`.";

/// Who is at the other end.
#[derive(Clone, Debug)]
pub(crate) enum Caller {
    /// A direct client, authenticated as this principal.
    Client(Principal),
    /// A program in a sandbox that the hands attached.
    Sandbox(Arc<Attachment>),
}

/// What one HTTP request may do; put into its extensions by the HTTP listener, by nobody else.
#[derive(Clone, Debug)]
pub(crate) struct Admitted {
    pub(crate) caller: Caller,
    /// Only this definition, where the address names one.
    pub(crate) only: Option<String>,
}

/// Answers MCP.
#[derive(Clone)]
pub(crate) struct Server {
    shared: Arc<Shared>,
    /// The connection's caller; none where each request brings its own.
    admitted: Option<Admitted>,
}

impl Server {
    pub(crate) fn new(shared: Arc<Shared>, admitted: Option<Admitted>) -> Self {
        Self { shared, admitted }
    }

    fn admitted(&self, context: &RequestContext<RoleServer>) -> Result<Admitted, ErrorData> {
        let of_request = || {
            let parts = context.extensions.get::<::http::request::Parts>()?;
            parts.extensions.get::<Admitted>().cloned()
        };
        self.admitted
            .clone()
            .or_else(of_request)
            .ok_or_else(|| ErrorData::internal_error("the request was not authenticated", None))
    }

    async fn rows(&self, admitted: &Admitted) -> Result<Vec<ToolRow>, Refusal> {
        let mut rows = match &admitted.caller {
            Caller::Client(principal) => {
                let permitted = call::permitted(&self.shared, principal).await?;
                call::rows(permitted.iter().map(|(definition, _)| definition.as_ref()))
            }
            Caller::Sandbox(attached) => {
                let (live, allowed) = self.named(attached)?;
                let mut rows = call::tools_of(&self.shared, &live).await?;
                rows.retain(|row| allowed.contains(&row.name));
                rows
            }
        };
        if let Some(only) = &admitted.only {
            rows.retain(|row| row.definition == *only);
        }
        Ok(rows)
    }

    fn named(&self, attached: &Attachment) -> Result<(Arc<Live>, Vec<String>), Refusal> {
        self.shared
            .openings
            .by_sandbox(attached)
            .ok_or_else(not_named)
    }

    async fn run(
        &self,
        admitted: &Admitted,
        client: &str,
        tool: &str,
        arguments: &Value,
    ) -> Result<Outcome, Refusal> {
        let (definition, operation) = call::find(&self.shared, tool).await?;
        if admitted
            .only
            .as_deref()
            .is_some_and(|only| only != definition.name())
        {
            return Err(Refusal::new(
                "tool_not_found",
                "this address offers one definition, and the tool is not of it",
            ));
        }
        match &admitted.caller {
            Caller::Client(principal) => {
                call::call_from_seat(
                    &self.shared,
                    principal,
                    client,
                    &definition,
                    &operation,
                    arguments,
                )
                .await
            }
            Caller::Sandbox(attached) => {
                let (live, allowed) = self.named(attached)?;
                if !allowed.iter().any(|name| name == tool) {
                    self.shared
                        .spender
                        .report(&live, definition.name(), "tool_not_always_allowed", None)
                        .await;
                    return Err(Refusal::new(
                        "tool_not_always_allowed",
                        "from inside a sandbox only tools whose permission is always_allow can be called",
                    ));
                }
                call::call(&self.shared, &live, &definition, &operation, arguments).await
            }
        }
    }
}

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        let mut info = ServerConfig::new(ServerCapabilities::builder().enable_tools().build());
        info.server_info = Implementation::new("claviger", env!("CARGO_PKG_VERSION"));
        info.instructions = Some(INSTRUCTIONS.to_owned());
        info
    }

    async fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let admitted = self.admitted(&context)?;
        let rows = self.rows(&admitted).await.map_err(|refusal| {
            ErrorData::internal_error(explained(&refusal), serde_json::to_value(&refusal).ok())
        })?;
        let tools = rows.into_iter().map(tool).collect();
        // The list differs by principal and changes with permits: nobody may share or keep it.
        Ok(ListToolsResult::with_all_items(tools)
            .with_cache_scope(CacheScope::Private)
            .with_ttl_ms(0))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let admitted = self.admitted(&context)?;
        let claimed = context.peer.peer_info().map_or_else(
            || "unknown".to_owned(),
            |info| format!("{} {}", info.client_info.name, info.client_info.version),
        );
        let client: String = claimed
            .chars()
            .filter(|c| !c.is_control())
            .take(100)
            .collect();
        let arguments = Value::Object(request.arguments.unwrap_or_default());
        let result = match self
            .run(&admitted, &client, &request.name, &arguments)
            .await
        {
            Ok(outcome) => {
                let content = vec![ContentBlock::text(outcome.text)];
                let mut result = if outcome.is_error {
                    CallToolResult::error(content)
                } else {
                    CallToolResult::success(content)
                };
                result.structured_content = outcome.structured;
                result
            }
            Err(refusal) if refusal.code == "tool_not_found" => {
                return Err(ErrorData::invalid_params(
                    explained(&refusal),
                    serde_json::to_value(&refusal).ok(),
                ));
            }
            Err(refusal) => {
                let mut result =
                    CallToolResult::error(vec![ContentBlock::text(explained(&refusal))]);
                result.structured_content = serde_json::to_value(&refusal).ok();
                result
            }
        };
        Ok(result.into())
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        let definitions = self.shared.catalog.last_read();
        call::rows(definitions.iter().map(AsRef::as_ref))
            .into_iter()
            .find(|row| row.name == name)
            .map(tool)
    }
}

fn not_named() -> Refusal {
    Refusal::new(
        "sandbox_not_named",
        "no harness of the session's epoch has named this sandbox",
    )
}

fn tool(row: ToolRow) -> Tool {
    let schema = match row.input_schema {
        Value::Object(schema) => schema,
        _ => serde_json::Map::new(),
    };
    let annotations = ToolAnnotations::new()
        .read_only(row.read_only)
        .destructive(!row.read_only)
        .idempotent(row.idempotent)
        .open_world(true);
    Tool::new(row.name, row.description, Arc::new(schema)).with_annotations(annotations)
}

/// Serves `mcp.sock`: each peer is the operator that the kernel says it is, or is turned away.
pub(crate) async fn serve_unix(
    shared: Arc<Shared>,
    listener: UnixListener,
    operators: Vec<u32>,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "mcp.sock did not accept");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            }
        };
        let uid = match stream.peer_cred() {
            Ok(credentials) => credentials.uid(),
            Err(error) => {
                warn!(%error, "a peer of mcp.sock has no credentials");
                continue;
            }
        };
        if !operators.contains(&uid) {
            warn!(uid, "a peer of mcp.sock is not on the operators' list");
            continue;
        }
        info!(uid, "direct client connected");
        let admitted = Admitted {
            caller: Caller::Client(Principal::operator(uid)),
            only: None,
        };
        let server = Server::new(Arc::clone(&shared), Some(admitted));
        let stop = stop.child_token();
        shared.tasks.spawn(async move {
            match Box::pin(server.serve_with_ct(stream.into_split(), stop)).await {
                Ok(running) => {
                    if let Err(error) = running.waiting().await {
                        debug!(%error, "direct client's connection ended");
                    }
                }
                Err(error) => debug!(%error, "direct client did not start"),
            }
        });
    }
}

#[cfg(test)]
mod tests;
