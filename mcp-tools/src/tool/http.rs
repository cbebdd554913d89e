//! Kind `http`: one operation is one JSON request.

use bytes::Bytes;
use claviger_vault_protocol::Refusal;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};
use serde_json::{Map, Value, json};
use url::Url;

use crate::definition::{Definition, Operation, Parameter, Place};
use crate::spend::{Answer, Payload, Request, is_plain_path};

/// Most that the model gets of one answer.
pub(crate) const MAX_RESULT_BYTES: usize = 256 * 1024;

/// Everything but RFC 3986's unreserved characters is escaped, '/' too.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// What a tool gives back.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outcome {
    /// For the model.
    pub(crate) text: String,
    /// The answer, where it is JSON and whole.
    pub(crate) structured: Option<Value>,
    /// Whether the upstream said no.
    pub(crate) is_error: bool,
}

/// Makes the request of one call out of checked arguments.
pub(crate) fn request(
    definition: &Definition,
    operation: &Operation,
    arguments: &Value,
) -> Result<Request, Refusal> {
    let arguments = arguments
        .as_object()
        .ok_or_else(|| invalid("expected an object"))?;
    for name in arguments.keys() {
        if !operation
            .parameters
            .iter()
            .any(|parameter| parameter.name == *name)
        {
            return Err(invalid(format!("there is no parameter '{}'", shown(name))));
        }
    }
    let mut path: Vec<String> = operation.path.split('/').map(ToOwned::to_owned).collect();
    let mut headers = HeaderMap::new();
    let mut query: Vec<(&str, String)> = Vec::new();
    let mut body = Map::new();
    for parameter in &operation.parameters {
        let Some(value) = arguments
            .get(&parameter.name)
            .filter(|value| !value.is_null() || parameter.is_required)
        else {
            if parameter.is_required {
                return Err(invalid(format!("'{}' is required", parameter.name)));
            }
            continue;
        };
        if !parameter.value_type.admits(value) {
            return Err(invalid(format!(
                "'{}' must be of type {}",
                parameter.name,
                parameter.value_type.as_str()
            )));
        }
        match parameter.place {
            Place::Body => {
                body.insert(parameter.name.clone(), value.clone());
            }
            Place::Header => {
                let name = HeaderName::from_bytes(parameter.name.as_bytes())
                    .map_err(|_| invalid(format!("'{}' fits no header", parameter.name)))?;
                let value = HeaderValue::try_from(plain(value))
                    .map_err(|_| invalid(format!("'{}' fits no header", parameter.name)))?;
                headers.insert(name, value);
            }
            Place::Path => put_segment(&mut path, parameter, &plain(value))?,
            Place::Query => match value.as_array() {
                Some(items) => query.extend(
                    items
                        .iter()
                        .map(|item| (parameter.name.as_str(), plain(item))),
                ),
                None => query.push((parameter.name.as_str(), plain(value))),
            },
        }
    }
    headers.insert(
        header::ACCEPT,
        HeaderValue::from_static("application/json, text/*;q=0.9, */*;q=0.8"),
    );
    headers.insert(
        header::USER_AGENT,
        HeaderValue::from_static(concat!("claviger/", env!("CARGO_PKG_VERSION"))),
    );
    let has_body = operation
        .parameters
        .iter()
        .any(|parameter| parameter.place == Place::Body);
    let body = if has_body && !matches!(operation.method, Method::GET | Method::HEAD) {
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        Payload::Full(Bytes::from(Value::Object(body).to_string()))
    } else {
        Payload::Empty
    };
    let url = address(definition.base_url(), &path.join("/"), &query)?;
    Ok(Request {
        method: operation.method.clone(),
        url,
        headers,
        body,
    })
}

/// Reads an answer into what the model gets.
pub(crate) async fn outcome(answer: Answer) -> Result<Outcome, Refusal> {
    let status = answer.status;
    let media = answer
        .headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_ascii_lowercase();
    let collected = answer.collect(MAX_RESULT_BYTES).await.map_err(|error| {
        Refusal::new(
            "upstream_cut",
            format!("{error}; what was asked for may or may not have been done"),
        )
    })?;
    let is_error = status.is_client_error() || status.is_server_error();
    let is_json = media.is_empty() || media.contains("json");
    let structured = if is_json { collected.json() } else { None };
    let mut text = match &structured {
        // Something was escaped letter by letter: only the scrubbed value is safe to show.
        Some((value, true)) => value.to_string(),
        _ => match std::str::from_utf8(&collected.bytes) {
            Ok(text) => text.to_owned(),
            Err(error) if collected.is_truncated && error.error_len().is_none() => {
                String::from_utf8_lossy(&collected.bytes[..error.valid_up_to()]).into_owned()
            }
            Err(_) => format!(
                "[{} bytes that are no text, of type '{}', not shown]",
                collected.bytes.len(),
                shown(&media)
            ),
        },
    };
    if is_error || status.is_redirection() || text.is_empty() {
        let line = format!("HTTP {}", status.as_u16());
        let reason = status
            .canonical_reason()
            .map(|reason| format!(" {reason}"))
            .unwrap_or_default();
        let note = if status.is_redirection() {
            " (redirects are not followed with a credential)"
        } else {
            ""
        };
        text = if text.is_empty() {
            format!("{line}{reason}{note}")
        } else {
            format!("{line}{reason}{note}\n{text}")
        };
    }
    if collected.is_truncated {
        text.push_str("\n[truncated: the answer was longer than 262144 bytes]");
    }
    Ok(Outcome {
        text,
        structured: structured.map(|(value, _)| value).filter(|_| !is_error),
        is_error,
    })
}

impl Outcome {
    /// The API's content blocks.
    pub(crate) fn content(&self) -> Vec<Value> {
        vec![json!({"type": "text", "text": self.text})]
    }
}

fn put_segment(path: &mut [String], parameter: &Parameter, value: &str) -> Result<(), Refusal> {
    let is_escape = value.is_empty()
        || value.chars().any(char::is_control)
        || value
            .split(['/', '\\'])
            .any(|part| matches!(part, "." | ".."))
        || !is_plain_path(value);
    if is_escape {
        return Err(invalid(format!("'{}' is no path segment", parameter.name)));
    }
    let placeholder = format!("{{{}}}", parameter.name);
    let encoded = percent_encoding::utf8_percent_encode(value, SEGMENT).to_string();
    for segment in path.iter_mut().filter(|segment| **segment == placeholder) {
        segment.clone_from(&encoded);
    }
    Ok(())
}

fn address(base: &Url, path: &str, query: &[(&str, String)]) -> Result<Url, Refusal> {
    let whole = format!("{}{path}", base.path().trim_end_matches('/'));
    let mut url = base.clone();
    url.set_path(&whole);
    if !query.is_empty() {
        url.query_pairs_mut().extend_pairs(query);
    }
    // The parser must have found nothing to resolve: otherwise an argument changed the path's shape.
    if url.path().matches('/').count() != whole.matches('/').count()
        || url.origin() != base.origin()
    {
        return Err(invalid("the arguments change the shape of the path"));
    }
    Ok(url)
}

fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), ToOwned::to_owned)
}

fn shown(text: &str) -> String {
    text.chars()
        .filter(|c| c.is_ascii_graphic())
        .take(64)
        .collect()
}

fn invalid(why: impl Into<String>) -> Refusal {
    Refusal::new("arguments_invalid", format!("arguments: {}", why.into()))
}

#[cfg(test)]
mod tests;
