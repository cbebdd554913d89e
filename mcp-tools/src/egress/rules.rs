//! Which of the session's grants a request may spend. Pure: the same request and opening give the same answer.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use claviger_vault_protocol::{Destination, Envelope, Slot};
use http::header::{AUTHORIZATION, HOST};
use http::{HeaderMap, HeaderName, Method, StatusCode};
use url::Url;

use super::head::{self, Head};
use super::placeholder::{Found, Placeholders};
use super::refused::Refused;
use super::target::Target;
use crate::openings::Live;

/// A request that may be sent: with which grant, where to, with which of its headers.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) envelope: &'a Envelope,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    /// Whether a credential of the program's own was among the headers and is not any more.
    pub(super) dropped: bool,
}

/// Parts of header names that mean a credential, whoever invented the header.
const CREDENTIAL_PARTS: &[&str] = &[
    "api-key",
    "api_key",
    "apikey",
    "authentication",
    "authorization",
    "cookie",
    "credential",
    "passwd",
    "password",
    "secret",
    "signature",
    "token",
];
/// Headers by which some servers take another method or path than the request line's, which is the one decided about.
const OVERRIDES: &[&str] = &[
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-url",
    "x-original-uri",
    "x-rewrite-url",
];

/// Code of the refusal for a destination that no grant binds.
pub(super) const NOT_ALLOWED: &str = "destination_not_allowed";

/// The target that the session's bindings allow: the request's own, or the same host over https where that alone is bound
/// and the program, which cannot speak TLS to the gateway, wrote `http://`.
pub(super) fn bound(live: &Live, target: Target) -> Result<Target, Refused> {
    let is_bound = |to: &Destination| {
        live.tool_envelopes()
            .any(|envelope| envelope.binding.destination == *to)
    };
    if is_bound(&target.destination) {
        return Ok(target);
    }
    if target.destination.scheme == "http" {
        let port = if target.destination.port == 80 {
            443
        } else {
            target.destination.port
        };
        let secure = Destination {
            scheme: "https".to_owned(),
            port,
            ..target.destination.clone()
        };
        if is_bound(&secure) {
            return target.moved_to(&secure);
        }
    }
    Err(Refused::forbidden(
        NOT_ALLOWED,
        format!(
            "{} is bound by no credential of this session, and nothing else is allowed",
            target.destination.origin()
        ),
    )
    .with_fix("use a bound host, or ask the operator for a credential bound to this one"))
}

/// Decides about a request whose target is bound. `in_body` is what the search of its body found.
pub(super) fn plan<'a>(
    live: &'a Live,
    placeholders: &Placeholders,
    head: &Head,
    target: &Target,
    in_body: Option<Found>,
) -> Result<Plan<'a>, Refused> {
    if head.method == Method::TRACE || head.method.as_str() == "TRACK" {
        return Err(
            Refused::forbidden("method_not_allowed", "TRACE would quote the credential")
                .with_status(StatusCode::METHOD_NOT_ALLOWED),
        );
    }
    let bound: Vec<&Envelope> = live
        .tool_envelopes()
        .filter(|envelope| envelope.binding.destination == target.destination)
        .collect();
    let filled: Vec<&Envelope> = bound
        .iter()
        .copied()
        .filter(|envelope| is_filled(envelope, head, target))
        .collect();

    // What is left without the filled slots must not hold a placeholder anywhere.
    let mut headers = head.headers.clone();
    let mut url = target.url.clone();
    for envelope in &filled {
        empty(&envelope.binding.slot, &mut headers, &mut url);
    }
    let lines = headers
        .iter()
        .flat_map(|(name, value)| [name.as_str().as_bytes(), value.as_bytes()]);
    let in_head = std::iter::once(url.as_str().as_bytes())
        .chain(lines)
        .filter_map(|bytes| placeholders.find(bytes));
    match in_head.chain(in_body).min() {
        Some(Found::Foreign) => {
            return Err(Refused::forbidden(
                "placeholder_not_yours",
                "the request holds a placeholder that is not of this session; it is worth nothing here",
            )
            .with_fix(expected(&bound))
            .alarming());
        }
        Some(Found::Own) => {
            return Err(Refused::forbidden(
                "placeholder_outside_slot",
                "the request holds a placeholder outside its credential's slot, or not exactly as the slot wants it",
            )
            .with_fix(expected(&bound))
            .alarming());
        }
        None => {}
    }
    if let Some(name) = headers
        .keys()
        .find(|name| OVERRIDES.contains(&name.as_str()))
    {
        return Err(Refused::forbidden(
            "override_not_allowed",
            format!("the header {name} asks for another method or path than the one that is decided about"),
        )
        .with_fix("send that method and path in the request line"));
    }
    let envelope = match filled.as_slice() {
        [one] => one,
        [] => bound
            .iter()
            .find(|envelope| envelope.binding.slot == Slot::None)
            .ok_or_else(|| missing(target, &bound))?,
        _ => {
            return Err(Refused::forbidden(
                "placeholder_ambiguous",
                "the request fills the slots of two credentials",
            )
            .with_fix("send one placeholder"));
        }
    };

    for name in head::words(&head.headers, &http::header::CONNECTION) {
        headers.remove(name);
    }
    // Sent by programs that talk to any proxy; says nothing to the upstream.
    headers.remove("proxy-connection");
    headers.remove(HOST);
    let own: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_credential(name))
        .cloned()
        .collect();
    for name in &own {
        headers.remove(name);
    }
    Ok(Plan {
        envelope,
        url,
        headers,
        dropped: !own.is_empty(),
    })
}

/// Whether the request has this grant's placeholder in its slot: once, and nothing else there.
fn is_filled(envelope: &Envelope, head: &Head, target: &Target) -> bool {
    let placeholder = envelope.placeholder.as_str();
    if placeholder.is_empty() {
        return false;
    }
    let only = |name: &str| {
        let mut values = head.headers.get_all(name).iter();
        values
            .next()
            .filter(|_| values.next().is_none())
            .map(http::HeaderValue::as_bytes)
    };
    match &envelope.binding.slot {
        Slot::Basic { username } => only(AUTHORIZATION.as_str())
            .and_then(|value| value.split_at_checked(6))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"basic "))
            .and_then(|(_, pair)| BASE64.decode(pair.trim_ascii()).ok())
            .is_some_and(|pair| pair == format!("{username}:{placeholder}").as_bytes()),
        Slot::Header { name, prefix } => only(name)
            .and_then(|value| value.strip_prefix(prefix.as_bytes()))
            .is_some_and(|value| value == placeholder.as_bytes()),
        Slot::Query { name } => {
            let mut values = target
                .url
                .query_pairs()
                .filter(|(key, _)| key.eq_ignore_ascii_case(name));
            values
                .next()
                .is_some_and(|(key, value)| key == name.as_str() && value == placeholder)
                && values.next().is_none()
        }
        _ => false,
    }
}

fn empty(slot: &Slot, headers: &mut HeaderMap, url: &mut Url) {
    match slot {
        Slot::Basic { .. } => drop(headers.remove(AUTHORIZATION)),
        Slot::Header { name, .. } => drop(headers.remove(name.as_str())),
        Slot::Query { name } => {
            let is_slot = |pair: &&str| {
                url::form_urlencoded::parse(pair.as_bytes()).any(|(key, _)| key == name.as_str())
            };
            let kept: Vec<&str> = url
                .query()
                .unwrap_or("")
                .split('&')
                .filter(|pair| !is_slot(pair))
                .collect();
            let kept = kept.join("&");
            url.set_query((!kept.is_empty()).then_some(&kept));
        }
        _ => {}
    }
}

fn is_credential(name: &HeaderName) -> bool {
    let text = name.as_str();
    text.starts_with("proxy-")
        || text.split(['-', '_']).any(|word| word == "auth")
        || CREDENTIAL_PARTS.iter().any(|part| text.contains(part))
}

fn missing(target: &Target, bound: &[&Envelope]) -> Refused {
    Refused::forbidden(
        "placeholder_missing",
        format!(
            "{} is bound to a credential, and the request has no placeholder for it",
            target.destination.origin()
        ),
    )
    .with_fix(expected(bound))
}

/// What the program would have to send for each credential that is bound here. A placeholder is named by the variable
/// that holds it, never by its text: a sandbox learns none that it was not given.
fn expected(bound: &[&Envelope]) -> String {
    let ways: Vec<String> = bound
        .iter()
        .filter_map(|envelope| {
            let variable = envelope.variable.as_ref()?;
            let way = match &envelope.binding.slot {
                Slot::Basic { username } => {
                    format!("the header Authorization: Basic base64({username}:${variable})")
                }
                Slot::Header { name, prefix } => format!("the header {name}: {prefix}${variable}"),
                Slot::Query { name } => format!("the query parameter {name}=${variable}"),
                _ => return None,
            };
            Some(format!("{way} for '{}'", envelope.name))
        })
        .collect();
    if ways.is_empty() {
        "call the credential's tool at $CLAVIGER_MCP_URL: no sandbox holds a placeholder for this host".to_owned()
    } else {
        format!("send {}, and nowhere else", ways.join(", or "))
    }
}
