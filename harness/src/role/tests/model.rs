//! A scripted Messages API on HTTP/2 over a unix stream.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::UnixStream;

/// One request as the model saw it.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) session: String,
    pub(super) epoch: u64,
    pub(super) body: Value,
    /// How many requests of this session came before.
    pub(super) before: usize,
}

impl Asked {
    /// Assistant messages in the request: how far the conversation is, whoever asks.
    pub(super) fn depth(&self) -> usize {
        self.body["messages"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|message| message["role"] == "assistant")
            .count()
    }
}

/// What the model does.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// A whole message: content and stop reason.
    Say(Value, &'static str),
    /// The first events of a message, then silence.
    Hang(Value),
    /// The first events of a message, then this event.
    Break(Value, Value),
    /// The first events of a message, then the end of the stream.
    Cut(Value),
    /// An HTTP error.
    Status(u16, Vec<(&'static str, &'static str)>, Value),
}

pub(super) type Script = Arc<dyn Fn(&Asked) -> Answer + Send + Sync>;

/// The model's end of the model link.
#[derive(Clone)]
pub(super) struct FakeModel {
    script: Script,
    asked: Arc<Mutex<Vec<Asked>>>,
}

pub(super) fn text(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

pub(super) fn tool_use(id: &str, name: &str, input: Value) -> Value {
    json!({"type": "tool_use", "id": id, "name": name, "input": input})
}

impl FakeModel {
    pub(super) fn new(script: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        Self {
            script: Arc::new(script),
            asked: Arc::default(),
        }
    }

    pub(super) fn asked(&self, session: &str) -> Vec<Asked> {
        self.asked
            .lock()
            .unwrap()
            .iter()
            .filter(|asked| asked.session == session)
            .cloned()
            .collect()
    }

    pub(super) async fn serve(self, stream: UnixStream) {
        let service = service_fn(move |request| {
            let model = self.clone();
            async move { Ok::<_, Infallible>(model.answer(request).await) }
        });
        http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service)
            .await
            .ok();
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
        assert_eq!(
            (request.method().as_str(), request.uri().path()),
            ("POST", "/v1/messages")
        );
        let header = |name: &str| {
            request
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
                .unwrap_or("")
                .to_owned()
        };
        assert_eq!(
            header("authorization") + &header("x-api-key"),
            "",
            "a harness has no key"
        );
        let (session, epoch) = (
            header("claviger-session"),
            header("claviger-epoch").parse().unwrap(),
        );
        let Ok(body) = request.into_body().collect().await else {
            return Response::new(Full::new(Bytes::new()).boxed_unsync());
        };
        let body: Value = serde_json::from_slice(&body.to_bytes()).unwrap();
        assert_eq!(body["stream"], true);
        let asked = {
            let mut all = self.asked.lock().unwrap();
            let before = all.iter().filter(|asked| asked.session == session).count();
            let asked = Asked {
                session,
                epoch,
                body,
                before,
            };
            all.push(asked.clone());
            asked
        };
        let answer = (self.script)(&asked);
        let (events, hangs) = match answer {
            Answer::Status(status, headers, body) => {
                let mut response = Response::builder()
                    .status(status)
                    .header("content-type", "application/json");
                for (name, value) in headers {
                    response = response.header(name, value);
                }
                return response
                    .body(Full::new(Bytes::from(body.to_string())).boxed_unsync())
                    .unwrap();
            }
            Answer::Say(content, stop) => (whole(&content, stop), false),
            Answer::Hang(content) => (begun(&content), true),
            Answer::Cut(content) => (begun(&content), false),
            Answer::Break(content, last) => {
                let mut events = begun(&content);
                events.push(last);
                (events, false)
            }
        };
        let text: String = events
            .iter()
            .map(|event| {
                format!(
                    "event: {}\ndata: {event}\n\n",
                    event["type"].as_str().unwrap()
                )
            })
            .collect();
        // Odd sizes, so that events and characters are cut anywhere.
        let chunks: Vec<_> = text
            .into_bytes()
            .chunks(97)
            .map(|chunk| Ok(Frame::data(Bytes::copy_from_slice(chunk))))
            .collect();
        let tail = stream::once(async move {
            if hangs {
                std::future::pending::<()>().await;
            }
        });
        let frames = stream::iter(chunks).chain(tail.filter_map(|()| async { None }));
        Response::builder()
            .header("content-type", "text/event-stream")
            .body(StreamBody::new(frames).boxed_unsync())
            .unwrap()
    }
}

fn begun(content: &Value) -> Vec<Value> {
    let mut events = vec![
        json!({"type": "message_start", "message": {"id": "msg_1", "type": "message", "role": "assistant", "model": "m",
            "content": [], "stop_reason": null, "usage": {"input_tokens": 10, "output_tokens": 1}}}),
        json!({"type": "ping"}),
    ];
    for (index, block) in content.as_array().unwrap().iter().enumerate() {
        let mut start = block.clone();
        let mut deltas = Vec::new();
        if block["type"] == "text" {
            start["text"] = json!("");
            let text: Vec<char> = block["text"].as_str().unwrap().chars().collect();
            for part in text.chunks(text.len().div_ceil(2).max(1)) {
                deltas.push(json!({"type": "text_delta", "text": part.iter().collect::<String>()}));
            }
        } else if block["type"] == "tool_use" {
            start["input"] = json!({});
            let input = block["input"]
                .as_str()
                .map_or_else(|| block["input"].to_string(), str::to_owned);
            let input: Vec<char> = input.chars().collect();
            for part in input.chunks(5) {
                deltas.push(json!({"type": "input_json_delta", "partial_json": part.iter().collect::<String>()}));
            }
        }
        events.push(json!({"type": "content_block_start", "index": index, "content_block": start}));
        events.extend(
            deltas.into_iter().map(
                |delta| json!({"type": "content_block_delta", "index": index, "delta": delta}),
            ),
        );
        events.push(json!({"type": "content_block_stop", "index": index}));
    }
    events
}

fn whole(content: &Value, stop: &str) -> Vec<Value> {
    let mut events = begun(content);
    events.push(json!({"type": "message_delta", "delta": {"stop_reason": stop}, "usage": {"output_tokens": 7}}));
    events.push(json!({"type": "message_stop"}));
    events
}
