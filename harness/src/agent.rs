//! The agent as the session was created with it, read tolerantly.

use serde_json::Value;

/// What the harness reads of an agent; fields that it does not know are left alone.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Agent {
    /// Model id.
    pub(crate) model: String,
    /// Effort, where one other than the model's own was chosen.
    pub(crate) effort: Option<String>,
    /// Most tokens of one answer, where chosen.
    pub(crate) max_tokens: Option<u64>,
    /// System prompt.
    pub(crate) system: Option<String>,
    /// Toolsets and custom tools, raw.
    pub(crate) tools: Vec<Value>,
    /// MCP servers: name and url.
    pub(crate) servers: Vec<(String, String)>,
    /// Strategy that its metadata asks for.
    pub(crate) strategy: Option<String>,
}

impl Agent {
    /// Reads the payload of `session.created`.
    pub(crate) fn of(payload: &Value) -> Self {
        let agent = payload.get("agent").unwrap_or(&Value::Null);
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let model = agent.get("model").unwrap_or(&Value::Null);
        let effort = model.get("effort");
        let named = |server: &Value| {
            Some((
                text(server.get("name"))?,
                text(server.get("url")).unwrap_or_default(),
            ))
        };
        let list = |name: &str| {
            agent
                .get(name)
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default()
        };
        let strategy = |of: &Value| text(of.pointer("/metadata/claviger_strategy"));
        Self {
            model: text(model.get("id"))
                .or_else(|| text(Some(model)))
                .unwrap_or_default(),
            effort: text(effort.and_then(|effort| effort.get("type")))
                .or_else(|| text(effort))
                .filter(|effort| {
                    matches!(effort.as_str(), "low" | "medium" | "high" | "xhigh" | "max")
                }),
            max_tokens: model.get("max_tokens").and_then(Value::as_u64),
            system: text(agent.get("system")).filter(|system| !system.is_empty()),
            tools: list("tools"),
            servers: list("mcp_servers").iter().filter_map(named).collect(),
            strategy: strategy(payload).or_else(|| strategy(agent)),
        }
    }

    /// Whether any of its tools come from MCP servers.
    pub(crate) fn has_mcp_tools(&self) -> bool {
        self.tools.iter().any(|tool| tool["type"] == "mcp_toolset")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_agent_is_read_in_both_forms_of_its_model() {
        let full = Agent::of(
            &json!({"agent": {"model": {"id": "m", "effort": {"type": "high"}}, "system": "s",
            "tools": [{"type": "mcp_toolset", "mcp_server_name": "x"}], "mcp_servers": [{"name": "x", "url": "u"}],
            "unknown": 1}, "metadata": {"claviger_strategy": "plain/v1"}}),
        );
        assert_eq!(
            (full.model.as_str(), full.effort.as_deref()),
            ("m", Some("high"))
        );
        assert_eq!(full.servers, [("x".to_owned(), "u".to_owned())]);
        assert_eq!(full.strategy.as_deref(), Some("plain/v1"));
        assert!(full.has_mcp_tools());
        assert_eq!(Agent::of(&json!({"agent": {"model": "m"}})).model, "m");
        assert_eq!(Agent::of(&json!(null)), Agent::default());
    }
}
