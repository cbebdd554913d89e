//! The model: a Messages API that plays a script, streamed as the real one streams.
//!
//! It keeps no state: which turn is due follows from the number of assistant messages in the
//! request, so a request that is repeated after a crash gets the same answer.

use std::convert::Infallible;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::error::CliError;

/// The script of a model.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Script {
    /// Where to listen; port 0 picks one.
    pub(crate) listen: String,
    /// File that gets the address once it listens.
    pub(crate) address_file: PathBuf,
    /// File that gets one JSON line a request: its body, and whether its key was right.
    pub(crate) record: PathBuf,
    /// Hex SHA-256 of the key; none accepts any.
    pub(crate) key_sha256: Option<String>,
    /// Milliseconds before the first token.
    #[serde(default)]
    pub(crate) first_token_ms: u64,
    /// Milliseconds between deltas.
    #[serde(default)]
    pub(crate) delta_ms: u64,
    /// Content blocks of each assistant message: `{"type":"text","text":..}` or
    /// `{"type":"tool_use","name":..,"input":{..}}`. After the last, `end_turn` texts follow.
    pub(crate) turns: Vec<Vec<Value>>,
}

struct Player {
    script: Script,
    record: Mutex<std::fs::File>,
}

pub(crate) async fn serve(script: &Path) -> Result<(), CliError> {
    let script: Script = super::stage::read_script(script)?;
    let record = std::fs::File::create(&script.record)
        .map_err(|error| CliError::file("writing", &script.record, &error))?;
    let (listen, address_file) = (script.listen.clone(), script.address_file.clone());
    let player = Arc::new(Player {
        script,
        record: Mutex::new(record),
    });
    let router = Router::new()
        .route("/v1/messages", post(messages))
        .route(
            "/v1/messages/count_tokens",
            post(|| async { axum::Json(json!({"input_tokens": 100})) }),
        )
        .layer(axum::extract::DefaultBodyLimit::max(64 * 1024 * 1024))
        .with_state(player);
    super::stage::listen(&listen, &address_file, router).await
}

fn key_of(headers: &HeaderMap) -> String {
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("")
            .to_owned()
    };
    let own = text("x-api-key");
    if own.is_empty() {
        text("authorization")
            .strip_prefix("Bearer ")
            .unwrap_or("")
            .to_owned()
    } else {
        own
    }
}

fn failure(status: StatusCode, kind: &str, message: &str) -> Response {
    (
        status,
        axum::Json(json!({"type": "error", "error": {"type": kind, "message": message}})),
    )
        .into_response()
}

async fn messages(State(player): State<Arc<Player>>, headers: HeaderMap, body: Bytes) -> Response {
    let Ok(request) = serde_json::from_slice::<Value>(&body) else {
        return failure(
            StatusCode::BAD_REQUEST,
            "invalid_request_error",
            "the body is no JSON",
        );
    };
    let accepted = player
        .script
        .key_sha256
        .as_ref()
        .is_none_or(|wanted| &hex::encode(Sha256::digest(key_of(&headers))) == wanted);
    if let Ok(mut record) = player.record.lock() {
        drop(writeln!(
            record,
            "{}",
            json!({"accepted": accepted, "request": request})
        ));
    }
    if !accepted {
        return failure(
            StatusCode::UNAUTHORIZED,
            "authentication_error",
            "invalid x-api-key",
        );
    }
    let past = request
        .get("messages")
        .and_then(Value::as_array)
        .map_or(0, |messages| {
            messages
                .iter()
                .filter(|message| message.get("role").and_then(Value::as_str) == Some("assistant"))
                .count()
        });
    let blocks = player
        .script
        .turns
        .get(past)
        .cloned()
        .unwrap_or_else(|| vec![json!({"type": "text", "text": "Done."})]);
    let message = message(past, &request, blocks);
    if request.get("stream").and_then(Value::as_bool) != Some(true) {
        return axum::Json(message).into_response();
    }
    let frames = frames(&message);
    let (first, each) = (
        Duration::from_millis(player.script.first_token_ms),
        Duration::from_millis(player.script.delta_ms),
    );
    let stream = futures_util::stream::unfold(
        (frames.into_iter(), 0_usize),
        move |(mut frames, index)| async move {
            let frame = frames.next()?;
            let wait = if index == 1 { first } else { each };
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            Some((Ok::<_, Infallible>(Bytes::from(frame)), (frames, index + 1)))
        },
    );
    (
        [
            ("content-type", "text/event-stream"),
            ("request-id", "req_scripted"),
        ],
        Body::from_stream(stream),
    )
        .into_response()
}

/// The whole message of a turn; tool uses get identifiers that a repeat gets again.
fn message(turn: usize, request: &Value, blocks: Vec<Value>) -> Value {
    let blocks: Vec<Value> = blocks
        .into_iter()
        .enumerate()
        .map(|(index, mut block)| {
            if let (Some("tool_use"), Some(object)) = (
                block
                    .get("type")
                    .and_then(Value::as_str)
                    .map(ToOwned::to_owned)
                    .as_deref(),
                block.as_object_mut(),
            ) {
                object.insert("id".into(), json!(format!("toolu_{turn:02}_{index:02}")));
            }
            block
        })
        .collect();
    let uses_tools = blocks
        .iter()
        .any(|block| block.get("type").and_then(Value::as_str) == Some("tool_use"));
    json!({
        "id": format!("msg_{turn:02}"), "type": "message", "role": "assistant", "model": request.get("model"), "content": blocks,
        "stop_reason": if uses_tools { "tool_use" } else { "end_turn" }, "stop_sequence": null,
        "usage": {"input_tokens": 100, "output_tokens": 50, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0},
    })
}

/// The same message as server-sent events, text and tool input in pieces.
fn frames(message: &Value) -> Vec<String> {
    let frame = |kind: &str, data: &Value| format!("event: {kind}\ndata: {data}\n\n");
    let mut start = message.clone();
    if let Some(object) = start.as_object_mut() {
        object.insert("content".into(), json!([]));
        object.insert("stop_reason".into(), Value::Null);
    }
    let mut out = vec![frame(
        "message_start",
        &json!({"type": "message_start", "message": start}),
    )];
    let blocks = message
        .get("content")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    for (index, block) in blocks.iter().enumerate() {
        let (empty, deltas) = split(block);
        out.push(frame(
            "content_block_start",
            &json!({"type": "content_block_start", "index": index, "content_block": empty}),
        ));
        for delta in deltas {
            out.push(frame(
                "content_block_delta",
                &json!({"type": "content_block_delta", "index": index, "delta": delta}),
            ));
        }
        out.push(frame(
            "content_block_stop",
            &json!({"type": "content_block_stop", "index": index}),
        ));
    }
    out.push(frame(
        "message_delta",
        &json!({"type": "message_delta", "delta": {"stop_reason": message.get("stop_reason"), "stop_sequence": null}, "usage": {"output_tokens": 50}}),
    ));
    out.push(frame("message_stop", &json!({"type": "message_stop"})));
    out
}

/// A block as it starts, and the deltas that fill it.
fn split(block: &Value) -> (Value, Vec<Value>) {
    let mut empty = block.clone();
    let pieces = |text: &str| -> Vec<String> {
        let characters: Vec<char> = text.chars().collect();
        characters
            .chunks(24)
            .map(|chunk| chunk.iter().collect())
            .collect()
    };
    match block.get("type").and_then(Value::as_str) {
        Some("text") => {
            let text = block.get("text").and_then(Value::as_str).unwrap_or("");
            if let Some(object) = empty.as_object_mut() {
                object.insert("text".into(), json!(""));
            }
            (
                empty,
                pieces(text)
                    .into_iter()
                    .map(|piece| json!({"type": "text_delta", "text": piece}))
                    .collect(),
            )
        }
        Some("tool_use") => {
            let input = block
                .get("input")
                .map(ToString::to_string)
                .unwrap_or_default();
            if let Some(object) = empty.as_object_mut() {
                object.insert("input".into(), json!({}));
            }
            (
                empty,
                pieces(&input)
                    .into_iter()
                    .map(|piece| json!({"type": "input_json_delta", "partial_json": piece}))
                    .collect(),
            )
        }
        _ => (empty, Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_streamed_pieces_make_the_message_again() {
        let blocks = vec![
            json!({"type": "text", "text": "Looking for keys, with ümlauts and a long enough text to be split."}),
            json!({"type": "tool_use", "name": "bash", "input": {"command": "env | sort; cat /proc/self/environ"}}),
        ];
        let message = message(3, &json!({"model": "m"}), blocks);
        assert_eq!(message["stop_reason"], "tool_use");
        assert_eq!(message["content"][1]["id"], "toolu_03_01");
        let (mut text, mut input) = (String::new(), String::new());
        for frame in frames(&message) {
            let data = frame
                .lines()
                .find_map(|line| line.strip_prefix("data: "))
                .unwrap();
            let event: Value = serde_json::from_str(data).unwrap();
            text.push_str(event["delta"]["text"].as_str().unwrap_or(""));
            input.push_str(event["delta"]["partial_json"].as_str().unwrap_or(""));
        }
        assert_eq!(text, message["content"][0]["text"]);
        assert_eq!(
            serde_json::from_str::<Value>(&input).unwrap(),
            message["content"][1]["input"]
        );
    }
}
