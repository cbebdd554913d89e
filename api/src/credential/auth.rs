//! The `auth` of a credential: what upstream's shapes mean as a binding.
//!
//! Narrower than upstream on purpose: a credential has exactly one destination and one slot, fixed for good.

use claviger_vault_protocol::admin::CredentialRow;
use claviger_vault_protocol::{Binding, CredentialKind, Destination, Slot};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::field::Fields;
use crate::problem::{Answer, Problem};

/// What a new credential is to be.
#[derive(Debug)]
pub(super) struct New {
    /// Unique among the vault's live credentials: one credential for each server or variable.
    pub(super) name: String,
    pub(super) kind: CredentialKind,
    pub(super) binding: Binding,
    pub(super) variable: Option<String>,
    /// Which field of `auth` holds the secret.
    pub(super) secret_field: &'static str,
    /// `auth` as answers show it.
    pub(super) shown: Value,
}

impl New {
    /// Reads `auth` of a create; its secret is no longer in it.
    pub(super) fn read(auth: &Fields<'_>) -> Answer<Self> {
        match auth.required("type", 64)? {
            "static_bearer" => Self::static_bearer(auth),
            "environment_variable" => Self::environment_variable(auth),
            "mcp_oauth" => Err(oauth()),
            _ => Err(Problem::field(
                "auth.type",
                "must be static_bearer or environment_variable",
            )),
        }
    }

    fn static_bearer(auth: &Fields<'_>) -> Answer<Self> {
        auth.only(&["type", "mcp_server_url", "token"])?;
        let text = auth.required("mcp_server_url", 2_048)?;
        let rule = |rule: &str| Problem::field("auth.mcp_server_url", rule);
        let url = url::Url::parse(text).map_err(|_| rule("must be a url"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(rule("must hold no user information"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(rule("must have no query and no fragment"));
        }
        let destination =
            Destination::of(&url).ok_or_else(|| rule("must be http or https with a host"))?;
        let path = url.path().trim_end_matches('/');
        let identity = format!("{}{path}", destination.origin());
        let digest = hex::encode(Sha256::digest(&identity));
        let host: String = destination
            .host
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || c == '.' {
                    c
                } else {
                    '-'
                }
            })
            .take(40)
            .collect();
        let name = format!("{host}-{}", digest.get(..16).unwrap_or_default());
        let path_prefixes = if path.is_empty() {
            Vec::new()
        } else {
            vec![path.to_owned()]
        };
        Ok(Self {
            name,
            kind: CredentialKind::Bearer,
            binding: Binding {
                destination,
                methods: Vec::new(),
                path_prefixes,
                slot: bearer(),
            },
            variable: None,
            secret_field: "token",
            shown: json!({"type": "static_bearer", "mcp_server_url": text}),
        })
    }

    fn environment_variable(auth: &Fields<'_>) -> Answer<Self> {
        auth.only(&[
            "type",
            "secret_name",
            "secret_value",
            "networking",
            "injection_location",
        ])?;
        let name = auth.required("secret_name", 64)?;
        let is_name = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            && !name.bytes().next().is_some_and(|b| b.is_ascii_digit());
        if !is_name {
            return Err(Problem::field(
                "auth.secret_name",
                "must be letters, digits and _, not starting with a digit",
            ));
        }
        let (host, destination) = one_host(auth)?;
        header_only(auth)?;
        Ok(Self {
            name: name.to_owned(),
            kind: CredentialKind::Bearer,
            binding: Binding {
                destination,
                methods: Vec::new(),
                path_prefixes: Vec::new(),
                slot: bearer(),
            },
            variable: Some(name.to_owned()),
            secret_field: "secret_value",
            shown: variable(name, &host),
        })
    }
}

fn bearer() -> Slot {
    Slot::Header {
        name: "authorization".to_owned(),
        prefix: "Bearer ".to_owned(),
    }
}

fn variable(name: &str, host: &str) -> Value {
    json!({
        "type": "environment_variable",
        "secret_name": name,
        "networking": {"type": "limited", "allowed_hosts": [host]},
        "injection_location": {"header": true, "body": false},
    })
}

fn oauth() -> Problem {
    Problem::invalid(
        "mcp_oauth_not_supported",
        "auth.type: mcp_oauth is not supported",
    )
    .with_fix("put the access token into a static_bearer credential")
}

/// The one host that a secret may go to.
fn one_host(auth: &Fields<'_>) -> Answer<(String, Destination)> {
    let needs_one = || {
        Problem::invalid(
            "binding_needs_one_host",
            "auth.networking: a credential is bound to exactly one exact host, so that it cannot be sent anywhere else",
        )
        .with_fix("networking {type: limited, allowed_hosts: [ONE HOST]}; one credential for each host")
    };
    let networking = auth.object("networking")?.ok_or_else(needs_one)?;
    networking.only(&["type", "allowed_hosts"])?;
    if networking.required("type", 32)? != "limited" {
        return Err(needs_one());
    }
    match networking.texts("allowed_hosts", 16)?[..] {
        [host] if !host.contains('*') => {
            let destination = Destination::parse(host).map_err(|_| {
                Problem::field("auth.networking.allowed_hosts.0", "must be a bare host")
            })?;
            Ok((host.to_owned(), destination))
        }
        _ => Err(needs_one()),
    }
}

/// Refuses injection anywhere but in the header.
fn header_only(auth: &Fields<'_>) -> Answer<()> {
    let explicit_null = auth
        .present("injection_location")
        .is_some_and(Value::is_null);
    let (header, body) = match auth.object("injection_location")? {
        None => (!explicit_null, false),
        Some(location) => {
            location.only(&["header", "body"])?;
            (
                location.flag("header")?.unwrap_or(false),
                location.flag("body")?.unwrap_or(false),
            )
        }
    };
    if header && !body {
        return Ok(());
    }
    Err(Problem::invalid(
        "slot_not_supported",
        "auth.injection_location: a secret goes into the authorization header only",
    )
    .with_fix("injection_location {header: true, body: false}, or none"))
}

/// Checks `auth` of an update against what is: nothing but the secret may differ. Returns the secret's field.
pub(super) fn unchanged(auth: &Fields<'_>, shown: &Value) -> Answer<&'static str> {
    let immutable = |what: &str| {
        Problem::invalid(
            "binding_immutable",
            format!("auth.{what}: cannot be changed"),
        )
        .with_fix("create a new credential and archive this one")
    };
    let given = auth.required("type", 64)?;
    if shown["type"] != given {
        return Err(Problem::invalid(
            "auth_type_immutable",
            "auth.type: is not the credential's type",
        ));
    }
    let same = |name: &str| auth.value(name).is_none_or(|value| *value == shown[name]);
    match given {
        "static_bearer" => {
            auth.only(&["type", "mcp_server_url", "token"])?;
            if !same("mcp_server_url") {
                return Err(immutable("mcp_server_url"));
            }
            Ok("token")
        }
        "environment_variable" => {
            auth.only(&[
                "type",
                "secret_name",
                "secret_value",
                "networking",
                "injection_location",
            ])?;
            if !same("secret_name") {
                return Err(immutable("secret_name"));
            }
            if auth.value("networking").is_some()
                && json!(one_host(auth)?.0) != shown["networking"]["allowed_hosts"][0]
            {
                return Err(immutable("networking"));
            }
            // Absent flags keep their values here, unlike at creation.
            if auth
                .present("injection_location")
                .is_some_and(Value::is_null)
            {
                return Err(immutable("injection_location"));
            }
            if let Some(location) = auth.object("injection_location")? {
                location.only(&["header", "body"])?;
                if location.flag("header")? == Some(false) || location.flag("body")? == Some(true) {
                    return Err(immutable("injection_location"));
                }
            }
            Ok("secret_value")
        }
        _ => Err(oauth()),
    }
}

/// `auth` of a credential that did not come through the api, told from its binding.
pub(super) fn shown(row: &CredentialRow) -> Value {
    let destination = &row.binding.destination;
    match &row.variable {
        Some(name) => variable(name, &destination.host),
        None => {
            let path = row.binding.path_prefixes.first().map_or("", String::as_str);
            json!({"type": "static_bearer", "mcp_server_url": format!("{}{path}", destination.origin())})
        }
    }
}
