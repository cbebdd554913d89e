//! Which hand carries out which tool, and whether it may without asking.

mod builtin;

use claviger_vault_protocol::present::ToolRow;
use serde_json::{Value, json};

use crate::agent::Agent;

/// Anything that executes a tool.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Hand {
    /// Whoever sent the session's messages: a custom tool.
    Client,
    /// mcp-tools.
    Mcp,
    /// The session's sandbox.
    Sandbox,
}

impl Hand {
    /// The word for it in `tool.intent`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Mcp => "mcp",
            Self::Sandbox => "sandbox",
        }
    }
}

/// One tool that the model is offered.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Offered {
    /// Its name for the model.
    pub(crate) name: String,
    /// Who carries it out.
    pub(crate) hand: Hand,
    /// Name of the MCP server in the agent, for MCP tools.
    pub(crate) server: Option<String>,
    /// Whether it runs without asking.
    pub(crate) is_allowed: bool,
    /// Type of the policy that decided so.
    pub(crate) policy: &'static str,
    /// Whether a second run does no harm.
    pub(crate) is_repeatable: bool,
    /// As in the request's `tools`.
    pub(crate) definition: Value,
}

/// The tools of a session: a pure function of its agent and of the pinned list of MCP tools.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Toolbox {
    offered: Vec<Offered>,
}

impl Toolbox {
    /// Lays the tools out in the agent's order; of two with one name the first counts.
    pub(crate) fn new(agent: &Agent, rows: &[ToolRow]) -> Self {
        let mut toolbox = Self::default();
        for tool in &agent.tools {
            match tool["type"].as_str().unwrap_or("") {
                "mcp_toolset" => toolbox.add_mcp(agent, tool, rows),
                "custom" => toolbox.add_custom(tool),
                kind if kind.starts_with("agent_toolset_") => toolbox.add_sandbox(tool),
                _ => {}
            }
        }
        toolbox
    }

    /// All tools, in order.
    pub(crate) fn offered(&self) -> &[Offered] {
        &self.offered
    }

    /// The tool of this name.
    pub(crate) fn find(&self, name: &str) -> Option<&Offered> {
        self.offered.iter().find(|tool| tool.name == name)
    }

    /// Names of the MCP tools that run without asking: what a sandbox may reach.
    pub(crate) fn allowed_mcp(&self) -> Vec<String> {
        let allowed = self
            .offered
            .iter()
            .filter(|tool| tool.hand == Hand::Mcp && tool.is_allowed);
        allowed.map(|tool| tool.name.clone()).collect()
    }

    fn add(&mut self, tool: Offered) {
        if self.find(&tool.name).is_none() {
            self.offered.push(tool);
        }
    }

    fn add_sandbox(&mut self, toolset: &Value) {
        for (name, description, schema) in builtin::all() {
            let Some(policy) = policy(toolset, &[name], "always_allow") else {
                continue;
            };
            self.add(Offered {
                name: name.to_owned(),
                hand: Hand::Sandbox,
                server: None,
                is_allowed: policy == "always_allow",
                policy,
                is_repeatable: false,
                definition: json!({"name": name, "description": description, "input_schema": schema}),
            });
        }
    }

    fn add_mcp(&mut self, agent: &Agent, toolset: &Value, rows: &[ToolRow]) {
        let server = toolset["mcp_server_name"].as_str().unwrap_or("");
        let Some((_, url)) = agent.servers.iter().find(|(name, _)| name == server) else {
            return;
        };
        // `.../mcp` offers every permitted definition, `.../mcp/NAME` that one.
        let path = url
            .split(['?', '#'])
            .next()
            .unwrap_or(url)
            .trim_end_matches('/');
        let last = path.rsplit('/').next().filter(|last| *last != "mcp");
        for row in rows
            .iter()
            .filter(|row| last.is_none_or(|definition| row.definition == definition))
        {
            let operation = row
                .name
                .strip_prefix(row.definition.as_str())
                .and_then(|rest| rest.strip_prefix('_'));
            let names = [row.name.as_str(), operation.unwrap_or(&row.name)];
            let Some(policy) = policy(toolset, &names, "always_ask") else {
                continue;
            };
            self.add(Offered {
                name: row.name.clone(),
                hand: Hand::Mcp,
                server: Some(server.to_owned()),
                is_allowed: policy == "always_allow",
                policy,
                is_repeatable: row.read_only || row.idempotent,
                definition: json!({"name": row.name, "description": row.description, "input_schema": row.input_schema}),
            });
        }
    }

    fn add_custom(&mut self, tool: &Value) {
        let Some(name) = tool["name"].as_str() else {
            return;
        };
        self.add(Offered {
            name: name.to_owned(),
            hand: Hand::Client,
            server: None,
            is_allowed: true,
            policy: "always_allow",
            is_repeatable: false,
            definition: json!({
                "name": name, "description": tool["description"], "input_schema": tool["input_schema"],
            }),
        });
    }
}

/// The policy of a tool in a toolset; none where it is not enabled. What is not understood asks.
fn policy(toolset: &Value, names: &[&str], default: &'static str) -> Option<&'static str> {
    let configs = toolset["configs"].as_array();
    let own = configs
        .and_then(|all| {
            all.iter().find(|config| {
                config["name"]
                    .as_str()
                    .is_some_and(|name| names.contains(&name))
            })
        })
        .unwrap_or(&Value::Null);
    let general = &toolset["default_config"];
    if !own["enabled"]
        .as_bool()
        .or_else(|| general["enabled"].as_bool())
        .unwrap_or(true)
    {
        return None;
    }
    let chosen = [own, general]
        .into_iter()
        .find_map(|config| config.get("permission_policy"));
    Some(
        match chosen.map(|policy| policy["type"].as_str().unwrap_or("")) {
            None => default,
            Some("always_allow") => "always_allow",
            Some("auto") => "auto",
            Some(_) => "always_ask",
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, definition: &str, read_only: bool) -> ToolRow {
        ToolRow {
            name: name.to_owned(),
            definition: definition.to_owned(),
            description: String::new(),
            input_schema: json!({"type": "object"}),
            read_only,
            idempotent: false,
        }
    }

    fn toolbox(tools: Value) -> Toolbox {
        let agent = Agent::of(&json!({"agent": {"tools": tools, "mcp_servers": [
            {"name": "all", "url": "http://127.0.0.1:2529/mcp"}, {"name": "one", "url": "http://127.0.0.1:2529/mcp/wiki/"}]}}));
        Toolbox::new(
            &agent,
            &[
                row("tracker_list", "tracker", true),
                row("wiki_write", "wiki", false),
            ],
        )
    }

    fn shape(toolbox: &Toolbox) -> Vec<(&str, Hand, bool)> {
        toolbox
            .offered()
            .iter()
            .map(|tool| (tool.name.as_str(), tool.hand, tool.is_allowed))
            .collect()
    }

    #[test]
    fn sandbox_tools_run_unless_configured_otherwise() {
        let toolbox = toolbox(json!([{"type": "agent_toolset_20260401",
            "default_config": {"enabled": false, "permission_policy": {"type": "always_allow"}},
            "configs": [{"name": "bash", "enabled": true, "permission_policy": {"type": "always_ask"}}, {"name": "read", "enabled": true}]}]));
        assert_eq!(
            shape(&toolbox),
            [
                ("bash", Hand::Sandbox, false),
                ("read", Hand::Sandbox, true)
            ]
        );
    }

    #[test]
    fn mcp_tools_ask_unless_configured_otherwise_and_follow_the_url() {
        let one = toolbox(json!([{"type": "mcp_toolset", "mcp_server_name": "one"}]));
        assert_eq!(shape(&one), [("wiki_write", Hand::Mcp, false)]);
        let all = toolbox(json!([{"type": "mcp_toolset", "mcp_server_name": "all",
            "configs": [{"name": "list", "permission_policy": {"type": "always_allow"}}]}]));
        assert_eq!(
            shape(&all),
            [
                ("tracker_list", Hand::Mcp, true),
                ("wiki_write", Hand::Mcp, false)
            ]
        );
        assert_eq!(all.allowed_mcp(), ["tracker_list"]);
        assert!(all.find("tracker_list").unwrap().is_repeatable);
    }

    #[test]
    fn a_policy_that_is_not_understood_asks() {
        let toolbox = toolbox(json!([{"type": "agent_toolset_20260401",
            "default_config": {"permission_policy": {"type": "whenever"}}}, {"type": "novelty"}]));
        assert!(toolbox.offered().iter().all(|tool| !tool.is_allowed));
        assert_eq!(toolbox.offered().len(), 6);
    }
}
