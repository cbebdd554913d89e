//! `GET .../events/stream`: events as they happen, as server-sent events.

use std::collections::HashMap;
use std::pin::Pin;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use claviger_session::Tailed;
use futures_util::{Stream, StreamExt as _, stream};
use http::{HeaderMap, HeaderValue, header};
use serde_json::Value;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::{rendered, wanted};
use crate::app::{Caller, Shared};
use crate::page::Parameters;
use crate::problem::{Answer, Problem};

/// Pause between signs of life, well inside the idle limits of proxies.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Messages whose previews are followed at once.
const MAX_PREVIEWS: usize = 64;

/// Every frame names its event, for the SDKs drop frames that do not; `id:` is the event's number, by which a client
/// that comes back with `Last-Event-ID` goes on without gap or duplicate.
pub(super) async fn stream(
    State(app): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    parameters: Parameters,
) -> Answer<Response> {
    let (id, _) = app.session(&caller, &id).await?;
    let kinds = wanted(&parameters)?;
    let previews: Vec<String> = parameters
        .many("event_deltas")
        .into_iter()
        .map(str::to_owned)
        .collect();
    if !previews
        .iter()
        .all(|kind| ["agent.message", "agent.thinking"].contains(&kind.as_str()))
    {
        return Err(Problem::field(
            "event_deltas",
            "must be agent.message or agent.thinking",
        ));
    }
    let (head, _, _) = app.log.head(&id).await?;
    let after = match headers.get("last-event-id") {
        None => head,
        Some(seq) => {
            let seq = seq
                .to_str()
                .ok()
                .and_then(|seq| seq.parse().ok())
                .filter(|seq| *seq <= head);
            seq.ok_or_else(|| Problem::field("Last-Event-ID", "is no event of this session"))?
        }
    };
    let mut beat = tokio::time::interval(HEARTBEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let following = Following {
        tail: Box::pin(app.log.tail(&id, after)),
        kinds,
        previews: Previews {
            kinds: previews,
            open: HashMap::new(),
        },
        beat,
        stop: Box::pin(app.stop.clone().cancelled_owned()),
        is_over: false,
    };
    let frames = stream::unfold(following, async |mut following| {
        following
            .next()
            .await
            .map(|frame| (Ok::<_, std::convert::Infallible>(frame), following))
    });
    let mut response = Body::from_stream(frames).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream; charset=utf-8"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

struct Following {
    tail: Pin<Box<dyn Stream<Item = Tailed> + Send>>,
    kinds: Vec<String>,
    previews: Previews,
    beat: Interval,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    is_over: bool,
}

impl Following {
    async fn next(&mut self) -> Option<Bytes> {
        if self.is_over {
            return None;
        }
        loop {
            tokio::select! {
                biased;
                () = &mut self.stop => return None,
                item = self.tail.next() => match item? {
                    Tailed::Event(event) => {
                        self.previews.open.remove(&event.id);
                        self.is_over = event.kind == "session.deleted";
                        if self.kinds.contains(&event.kind) {
                            self.beat.reset();
                            return Some(frame(&event.kind, Some(event.seq), &rendered(&event)));
                        }
                        if self.is_over {
                            return None;
                        }
                    }
                    Tailed::Ephemeral(value) => {
                        if let Some(kind) = self.previews.admit(&value) {
                            return Some(frame(kind, None, &value));
                        }
                    }
                },
                // The first tick comes at once and so tells the client that it is connected.
                _ = self.beat.tick() => return Some(frame("ping", None, &serde_json::json!({"type": "ping"}))),
            }
        }
    }
}

/// Which passing values this client asked for.
#[derive(Debug)]
struct Previews {
    kinds: Vec<String>,
    /// Begun previews and the index that their next piece may have at most; SDKs refuse a piece that skips one.
    open: HashMap<String, u64>,
}

impl Previews {
    /// The frame's event name, where the value is one that the client can fold.
    fn admit(&mut self, value: &Value) -> Option<&'static str> {
        match value["type"].as_str()? {
            "event_start" => {
                let id = value["event"]["id"].as_str()?;
                let kind = value["event"]["type"].as_str()?;
                let is_wanted = self.kinds.iter().any(|wanted| wanted == kind);
                if !is_wanted || self.open.len() >= MAX_PREVIEWS || self.open.contains_key(id) {
                    return None;
                }
                self.open.insert(id.to_owned(), 0);
                Some("event_start")
            }
            "event_delta" => {
                let next = self.open.get_mut(value["event_id"].as_str()?)?;
                let index = value["delta"]["index"].as_u64().unwrap_or(0);
                if index > *next {
                    return None;
                }
                *next = (*next).max(index + 1);
                Some("event_delta")
            }
            _ => None,
        }
    }
}

fn frame(name: &str, seq: Option<u64>, data: &Value) -> Bytes {
    // Compact JSON has no line break, so that one `data:` line holds it.
    let id = seq.map(|seq| format!("id: {seq}\n")).unwrap_or_default();
    format!("event: {name}\n{id}data: {data}\n\n").into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_frame_has_a_name_and_one_line_of_data() {
        let data = json!({"text": "a\nb\r\u{2028}"});
        let frame = frame("agent.message", Some(7), &data);
        assert_eq!(
            frame,
            "event: agent.message\nid: 7\ndata: {\"text\":\"a\\nb\\r\u{2028}\"}\n\n"
        );
    }

    #[test]
    fn a_preview_passes_only_if_asked_for_and_begun_and_without_gap() {
        let start =
            |kind: &str| json!({"type": "event_start", "event": {"type": kind, "id": "sevt_1"}});
        let delta = |index: u64| json!({"type": "event_delta", "event_id": "sevt_1", "delta": {"type": "content_delta", "index": index}});
        let mut previews = Previews {
            kinds: vec!["agent.message".into()],
            open: HashMap::new(),
        };
        assert_eq!(previews.admit(&delta(0)), None, "not begun");
        assert_eq!(
            previews.admit(&start("agent.thinking")),
            None,
            "not asked for"
        );
        assert_eq!(previews.admit(&start("agent.message")), Some("event_start"));
        assert_eq!(previews.admit(&start("agent.message")), None, "begins once");
        assert_eq!(previews.admit(&delta(0)), Some("event_delta"));
        assert_eq!(previews.admit(&delta(0)), Some("event_delta"));
        assert_eq!(previews.admit(&delta(2)), None, "skips one");
        assert_eq!(previews.admit(&delta(1)), Some("event_delta"));
        assert_eq!(previews.admit(&json!({"type": "secret.thing"})), None);
        assert_eq!(previews.admit(&json!(1)), None);
    }
}
