//! An agent's tools and MCP servers, resolved to the form that answers show and the harness reads.

use serde_json::{Value, json};

use crate::field::Fields;
use crate::problem::{Answer, Problem};

/// Tools of the built-in toolset that a sandbox has.
const SANDBOX_TOOLS: [&str; 6] = ["bash", "edit", "glob", "grep", "read", "write"];
/// Tools of the built-in toolset that are not there.
const WEB_TOOLS: [&str; 2] = ["web_fetch", "web_search"];

/// Reads `tools`, with every default filled in.
pub(crate) fn resolved(fields: &Fields<'_>) -> Answer<Value> {
    let mut tools = Vec::new();
    for (path, tool) in fields.list("tools", 256)? {
        let tool = Fields::of(tool, path.clone())?;
        match tool.required("type", 64)? {
            "agent_toolset_20260401" => tools.push(built_in(&tool)?),
            "mcp_toolset" => tools.push(mcp_toolset(&tool)?),
            "custom" => {
                return Err(Problem::invalid(
                    "custom_tools_not_supported",
                    format!("{path}: custom tools are not supported"),
                ));
            }
            _ => {
                return Err(Problem::field(
                    &path,
                    "type must be agent_toolset_20260401 or mcp_toolset",
                ));
            }
        }
    }
    let mut names: Vec<&Value> = tools
        .iter()
        .map(|tool| tool.get("mcp_server_name").unwrap_or_else(|| &tool["type"]))
        .collect();
    names.sort_unstable_by_key(|name| name.as_str());
    if names.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(Problem::field(
            &fields.path("tools"),
            "names the same toolset twice",
        ));
    }
    Ok(tools.into())
}

fn built_in(tool: &Fields<'_>) -> Answer<Value> {
    tool.only(&["type", "configs", "default_config"])?;
    let default = settings(
        tool.object("default_config")?.as_ref(),
        (true, "always_allow"),
    )?;
    let mut configs = Vec::new();
    for (path, config) in tool.list("configs", 64)? {
        let config = Fields::of(config, path.clone())?;
        let name = config.required("name", 64)?;
        let (enabled, policy) = settings(Some(&config), default)?;
        if WEB_TOOLS.contains(&name) {
            if enabled {
                let problem = Problem::invalid(
                    "web_tools_not_supported",
                    format!("{path}: {name} is not there to enable"),
                );
                return Err(problem.with_fix("disable it, or give the agent a tool that fetches"));
            }
        } else if !SANDBOX_TOOLS.contains(&name) {
            return Err(Problem::field(&path, "names no tool of the toolset"));
        }
        config.only(&["name", "type", "enabled", "permission_policy"])?;
        configs.push(json!({"name": name, "type": name, "enabled": enabled, "permission_policy": {"type": policy}}));
    }
    let (enabled, policy) = default;
    Ok(json!({
        "type": "agent_toolset_20260401",
        "configs": configs,
        "default_config": {"enabled": enabled, "permission_policy": {"type": policy}},
    }))
}

fn mcp_toolset(tool: &Fields<'_>) -> Answer<Value> {
    tool.only(&["type", "mcp_server_name", "configs", "default_config"])?;
    let default = settings(
        tool.object("default_config")?.as_ref(),
        (true, "always_ask"),
    )?;
    let mut configs = Vec::new();
    for (path, config) in tool.list("configs", 256)? {
        let config = Fields::of(config, path)?;
        config.only(&["name", "enabled", "permission_policy"])?;
        let name = config.required("name", 128)?;
        let (enabled, policy) = settings(Some(&config), default)?;
        configs
            .push(json!({"name": name, "enabled": enabled, "permission_policy": {"type": policy}}));
    }
    let (enabled, policy) = default;
    Ok(json!({
        "type": "mcp_toolset",
        "mcp_server_name": tool.required("mcp_server_name", 255)?,
        "configs": configs,
        "default_config": {"enabled": enabled, "permission_policy": {"type": policy}},
    }))
}

/// Reads `enabled` and `permission_policy`, over a default.
fn settings<'a>(config: Option<&Fields<'a>>, default: (bool, &'a str)) -> Answer<(bool, &'a str)> {
    let Some(config) = config else {
        return Ok(default);
    };
    let enabled = config.flag("enabled")?.unwrap_or(default.0);
    let policy = match config.object("permission_policy")? {
        None => default.1,
        Some(policy) => match policy.required("type", 32)? {
            policy @ ("always_allow" | "always_ask") => policy,
            "auto" => {
                let path = config.path("permission_policy");
                return Err(Problem::invalid(
                    "auto_policy_not_supported",
                    format!("{path}: no model judges calls here"),
                )
                .with_fix("always_allow or always_ask"));
            }
            _ => {
                return Err(Problem::field(
                    &config.path("permission_policy"),
                    "must be always_allow or always_ask",
                ));
            }
        },
    };
    Ok((enabled, policy))
}

/// Reads `mcp_servers`.
pub(crate) fn mcp_servers(fields: &Fields<'_>) -> Answer<Value> {
    let mut servers: Vec<Value> = Vec::new();
    for (path, server) in fields.list("mcp_servers", 20)? {
        let server = Fields::of(server, path.clone())?;
        server.only(&["type", "name", "url"])?;
        if server.required("type", 16)? != "url" {
            return Err(Problem::field(&path, "type must be url"));
        }
        let (name, url) = (
            server.required("name", 255)?,
            server.required("url", 2_048)?,
        );
        let is_http = url::Url::parse(url).is_ok_and(|url| {
            matches!(url.scheme(), "http" | "https")
                && url.username().is_empty()
                && url.password().is_none()
        });
        if !is_http {
            return Err(Problem::field(
                &path,
                "url must be http or https, without user information",
            ));
        }
        if servers.iter().any(|other| other["name"] == *name) {
            return Err(Problem::field(&path, "name is taken by another server"));
        }
        servers.push(json!({"type": "url", "name": name, "url": url}));
    }
    Ok(servers.into())
}

/// Refuses a server that no toolset names and a toolset that names no server.
pub(crate) fn cross_checked(tools: &Value, servers: &Value) -> Answer<()> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let (tools, servers) = (list(tools), list(servers));
    let is_used = |server: &Value| {
        tools
            .iter()
            .any(|tool| tool["mcp_server_name"] == server["name"])
    };
    if !servers.iter().all(is_used) {
        return Err(Problem::invalid(
            "mcp_server_unused",
            "mcp_servers: every server needs an mcp_toolset in tools",
        ));
    }
    let is_known = |name: &Value| servers.iter().any(|server| server["name"] == *name);
    if !tools
        .iter()
        .filter_map(|tool| tool.get("mcp_server_name"))
        .all(is_known)
    {
        return Err(Problem::invalid(
            "mcp_server_unknown",
            "tools: every mcp_toolset needs a server in mcp_servers",
        ));
    }
    Ok(())
}

/// Which tool definitions an agent's MCP servers stand for: all (`*`) for our own address, one for its path.
pub(crate) fn definitions(agent: &Value, mcp_url: &str) -> Answer<Vec<String>> {
    let mut names = Vec::new();
    for server in agent["mcp_servers"].as_array().into_iter().flatten() {
        let url = server["url"]
            .as_str()
            .unwrap_or_default()
            .trim_end_matches('/');
        let name = match url.strip_prefix(mcp_url.trim_end_matches('/')) {
            Some("") => "*",
            Some(rest) => rest.strip_prefix('/').unwrap_or_default(),
            None => "",
        };
        let is_name = name == "*" && url.len() == mcp_url.trim_end_matches('/').len()
            || !name.is_empty()
                && name.len() <= 64
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
        if !is_name {
            return Err(Problem::invalid(
                "mcp_server_not_supported",
                "agent.mcp_servers: an agent reaches only the tools of this installation",
            )
            .with_fix(format!("add the server with `claviger tool add` and use {mcp_url} or {mcp_url}/NAME as its url")));
        }
        names.push(name.to_owned());
    }
    if names.iter().any(|name| name == "*") {
        names = vec!["*".to_owned()];
    }
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(urls: &[&str]) -> Answer<Vec<String>> {
        let servers: Vec<_> = urls.iter().map(|url| json!({"url": url})).collect();
        definitions(
            &json!({"mcp_servers": servers}),
            "http://127.0.0.1:2529/mcp",
        )
    }

    #[test]
    fn only_our_own_address_names_tools() {
        assert_eq!(names(&[]).unwrap(), Vec::<String>::new());
        assert_eq!(names(&["http://127.0.0.1:2529/mcp"]).unwrap(), ["*"]);
        assert_eq!(names(&["http://127.0.0.1:2529/mcp/"]).unwrap(), ["*"]);
        assert_eq!(
            names(&["http://127.0.0.1:2529/mcp/b", "http://127.0.0.1:2529/mcp/a"]).unwrap(),
            ["a", "b"]
        );
        assert_eq!(
            names(&["http://127.0.0.1:2529/mcp/b", "http://127.0.0.1:2529/mcp"]).unwrap(),
            ["*"]
        );
        for url in [
            "http://127.0.0.1:2529/mcpx",
            "http://127.0.0.1:2529/mcp/a/b",
            "http://127.0.0.1:2529/mcp/*",
            "http://127.0.0.1:2529/mcp*",
            "http://127.0.0.1:2529/mcp?x",
            "http://127.0.0.1:2529/mcp/a?b",
            "https://mcp.example.com",
            "http://127.0.0.1:2529",
            "http://127.0.0.1:2529/",
        ] {
            assert_eq!(
                names(&[url]).unwrap_err().code(),
                "mcp_server_not_supported",
                "{url}"
            );
        }
    }
}
