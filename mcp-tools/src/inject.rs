//! Puts a secret into its one slot, and takes everything else out that could stand for it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use claviger_vault_memory::SecretBytes;
use claviger_vault_protocol::{Refusal, Slot};
use http::header::{self, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{HeaderMap, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};
use url::Url;
use zeroize::Zeroize as _;

/// Headers that can carry a credential of the client's own: never passed on to a bound host.
const CREDENTIAL_HEADERS: &[&str] = &["authorization", "cookie", "proxy-authorization"];

/// Headers that belong to one hop, or that we set ourselves. `range` is among them because an echo
/// read piece by piece would pass every pattern.
const OWN_HEADERS: &[&str] = &[
    "accept-encoding",
    "connection",
    "content-length",
    "expect",
    "forwarded",
    "host",
    "http2-settings",
    "if-range",
    "keep-alive",
    "max-forwards",
    "range",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Whether a header is set by a credential or by the connection, and so by no tool's parameter.
pub(crate) fn is_reserved(header: &str) -> bool {
    let header = header.to_ascii_lowercase();
    CREDENTIAL_HEADERS.contains(&header.as_str())
        || OWN_HEADERS.contains(&header.as_str())
        || header.starts_with("proxy-")
}

/// What RFC 3986 leaves unreserved stays as it is in a query; everything else is escaped.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Takes out of a request what the client may not send to a bound host: values for the credential's
/// slot, other credentials, hop-by-hop headers. Answers the names of the *credentials* that were
/// dropped, which are worth a record; their values are gone.
pub(crate) fn strip(url: &mut Url, headers: &mut HeaderMap, slot: &Slot) -> Vec<String> {
    let mut dropped = Vec::new();
    // Headers that `connection` names are hop-by-hop; otherwise a client could ask for the
    // removal of a header that was set after the check.
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let is_credential = |name: &HeaderName| {
        CREDENTIAL_HEADERS.contains(&name.as_str())
            || name.as_str().starts_with("proxy-")
            || matches!(slot, Slot::Header { name: slot, .. } if slot.eq_ignore_ascii_case(name.as_str()))
    };
    let names: Vec<HeaderName> = headers.keys().cloned().collect();
    for name in names {
        if is_credential(&name) {
            dropped.push(name.as_str().to_owned());
            headers.remove(&name);
        } else if OWN_HEADERS.contains(&name.as_str()) || named.contains(&name) {
            headers.remove(&name);
        }
    }
    if !url.username().is_empty() || url.password().is_some() {
        // Setting user information fails only for URLs that cannot have any.
        let removed = url.set_username("").and_then(|()| url.set_password(None));
        if removed.is_ok() {
            dropped.push("userinfo".to_owned());
        }
    }
    if let Slot::Query { name } = slot {
        let is_slot = |pair: &str| {
            let key = pair.split('=').next().unwrap_or_default();
            url::form_urlencoded::parse(key.as_bytes())
                .any(|(key, _)| key.eq_ignore_ascii_case(name))
        };
        if let Some(query) = url.query()
            && query.split('&').any(is_slot)
        {
            let kept: Vec<&str> = query.split('&').filter(|pair| !is_slot(pair)).collect();
            let kept = kept.join("&");
            url.set_query((!kept.is_empty()).then_some(&kept));
            dropped.push(format!("?{name}"));
        }
    }
    url.set_fragment(None);
    dropped
}

/// Puts the secret into the request's slot. The bytes that hold it are fresh and nobody else's.
pub(crate) fn inject(
    uri: &mut Uri,
    headers: &mut HeaderMap,
    slot: &Slot,
    secret: &SecretBytes,
) -> Result<(), Refusal> {
    let secret = secret.expose();
    if secret.is_empty() || secret.iter().any(|byte| byte.is_ascii_control()) {
        return Err(unusable("it is empty or holds a control character"));
    }
    match slot {
        Slot::Basic { username } => {
            if username.contains(':') || username.chars().any(char::is_control) {
                return Err(unusable(
                    "its user name holds a colon or a control character",
                ));
            }
            let mut pair = Vec::with_capacity(username.len() + 1 + secret.len());
            pair.extend_from_slice(username.as_bytes());
            pair.push(b':');
            pair.extend_from_slice(secret);
            let mut value = vec![0; b"Basic ".len() + pair.len().div_ceil(3) * 4];
            value[..6].copy_from_slice(b"Basic ");
            let encoded = BASE64.encode_slice(&pair, &mut value[6..]);
            pair.zeroize();
            encoded.map_err(|_| unusable("it is too long"))?;
            set(headers, header::AUTHORIZATION, value)
        }
        Slot::Header { name, prefix } => {
            let name = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| unusable("its header has no valid name"))?;
            if OWN_HEADERS.contains(&name.as_str()) || prefix.chars().any(char::is_control) {
                return Err(unusable(
                    "its header is not one that can carry a credential",
                ));
            }
            let mut value = Vec::with_capacity(prefix.len() + secret.len());
            value.extend_from_slice(prefix.as_bytes());
            value.extend_from_slice(secret);
            set(headers, name, value)
        }
        Slot::Query { name } => {
            let mut target = Vec::with_capacity(
                uri.path().len()
                    + uri.query().map_or(0, str::len)
                    + 8
                    + name.len() * 3
                    + secret.len() * 3,
            );
            target.extend_from_slice(uri.path().as_bytes());
            target.push(b'?');
            if let Some(query) = uri.query() {
                target.extend_from_slice(query.as_bytes());
                target.push(b'&');
            }
            for part in percent_encoding::percent_encode(name.as_bytes(), QUERY) {
                target.extend_from_slice(part.as_bytes());
            }
            target.push(b'=');
            for part in percent_encoding::percent_encode(secret, QUERY) {
                target.extend_from_slice(part.as_bytes());
            }
            let target = PathAndQuery::from_maybe_shared(Bytes::from(target))
                .map_err(|_| unusable("it fits no query"))?;
            let mut parts = http::uri::Parts::default();
            parts.path_and_query = Some(target);
            *uri = Uri::from_parts(parts).map_err(|_| unusable("it fits no query"))?;
            Ok(())
        }
        Slot::None => Ok(()),
        _ => Err(unusable(
            "its slot is of a kind that this version does not know",
        )),
    }
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: Vec<u8>) -> Result<(), Refusal> {
    let mut value = HeaderValue::from_maybe_shared(Bytes::from(value))
        .map_err(|_| unusable("it fits no header"))?;
    value.set_sensitive(true);
    headers.insert(name, value);
    Ok(())
}

fn unusable(why: &str) -> Refusal {
    Refusal::new(
        "secret_unusable",
        format!("the credential's secret cannot be sent: {why}"),
    )
    .with_fix("claviger secret rotate NAME")
}

#[cfg(test)]
mod tests;
