use serde_json::{Value, json};

use crate::support::{Frame, Server};

fn message(text: usize) -> Value {
    json!({"events": [{"type": "user.message", "content": [{"type": "text", "text": text.to_string()}]}]})
}

fn number(frame: &Frame) -> usize {
    frame.data["content"][0]["text"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap()
}

#[tokio::test]
async fn a_stream_tells_what_happens_after_it_was_opened_and_names_every_frame() {
    let server = Server::start().await;
    let session = server.session().await;
    let path = format!("/v1/sessions/{session}/events");
    server.post(&path, message(0)).await;
    let mut frames = server.stream(&format!("{path}/stream"), None).await;
    assert_eq!(
        frames.next_any().await.unwrap().event,
        "ping",
        "says at once that it is open"
    );
    let sent = server.post(&path, message(1)).await;
    server
        .harness(
            &session,
            vec![
                ("session.status_running", json!({})),
                ("policy.pinned", json!({"strategy": "s"})),
            ],
        )
        .await;
    server
        .harness(
            &session,
            vec![(
                "session.status_idle",
                json!({"stop_reason": {"type": "end_turn"}, "handled_seq": 3}),
            )],
        )
        .await;
    let frame = frames.next().await.unwrap();
    assert_eq!(
        (frame.event.as_str(), frame.id.as_deref()),
        ("user.message", Some("3"))
    );
    assert_eq!(
        frame.data, sent["data"][0],
        "the same event in answer, list and stream"
    );
    assert_eq!(frames.next().await.unwrap().event, "session.status_running");
    let idle = frames.next().await.unwrap();
    assert_eq!(
        (idle.event.as_str(), &idle.data["stop_reason"]),
        ("session.status_idle", &json!({"type": "end_turn"}))
    );
    assert!(idle.data["processed_at"].is_string());
}

#[tokio::test]
async fn a_stream_of_named_types_shows_just_those() {
    let server = Server::start().await;
    let session = server.session().await;
    let path = format!("/v1/sessions/{session}/events/stream?types[]=policy.pinned");
    let mut frames = server.stream(&path, None).await;
    assert_eq!(frames.next_any().await.unwrap().event, "ping");
    server
        .harness(
            &session,
            vec![
                ("session.status_running", json!({})),
                ("policy.pinned", json!({"strategy": "s"})),
            ],
        )
        .await;
    let frame = frames.next().await.unwrap();
    assert_eq!(
        (frame.event.as_str(), frame.data["strategy"].as_str()),
        ("policy.pinned", Some("s"))
    );
}

#[tokio::test]
async fn a_client_that_comes_back_gets_everything_once_in_order() {
    const EVENTS: usize = 120;
    let server = Server::start().await;
    let session = server.session().await;
    let path = format!("/v1/sessions/{session}/events");
    let writing = async {
        for at in 0..EVENTS {
            server.post(&path, message(at)).await;
            if at % 40 == 20 {
                // The session role's link breaks under way, too.
                server.relink().await;
            }
        }
    };
    let reading = async {
        let mut last = "1".to_owned();
        let mut found = Vec::new();
        while found.len() < EVENTS {
            let mut frames = server.stream(&format!("{path}/stream"), Some(&last)).await;
            // A few frames, then the client is gone.
            for _ in 0..7 {
                if found.len() == EVENTS {
                    break;
                }
                let frame = frames
                    .next()
                    .await
                    .expect("streams do not end by themselves");
                found.push(number(&frame));
                last = frame.id.expect("stored events have numbers");
            }
        }
        found
    };
    let ((), found) = tokio::join!(writing, reading);
    assert_eq!(found, (0..EVENTS).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_position_that_is_none_is_refused() {
    let server = Server::start().await;
    let session = server.session().await;
    let path = format!("/v1/sessions/{session}/events/stream");
    for last in ["99", "-1", "x", ""] {
        let headers = [
            ("x-api-key", crate::support::ALICE),
            ("last-event-id", last),
        ];
        server
            .raw("GET", &path, &headers, Vec::new())
            .await
            .assert_refused(400, "invalid_field");
    }
    server
        .refused(
            "GET",
            &format!("{path}?event_deltas[]=agent.tool_use"),
            Value::Null,
            400,
            "invalid_field",
        )
        .await;
}

#[tokio::test]
async fn previews_go_to_who_asked_for_them_and_are_never_in_the_history() {
    let server = Server::start().await;
    let session = server.session().await;
    let path = format!("/v1/sessions/{session}/events");
    let deltas = "event_deltas%5B%5D=agent.message";
    let mut with = server
        .stream(&format!("{path}/stream?{deltas}"), None)
        .await;
    let mut without = server.stream(&format!("{path}/stream"), None).await;
    assert_eq!(with.next_any().await.unwrap().event, "ping");
    assert_eq!(without.next_any().await.unwrap().event, "ping");
    let name = session.parse().unwrap();
    let lease = server.log.lease(&name, "hrn_test", 60_000).await.unwrap();
    // A stored event first: once it arrives both tails are live.
    let stored = |kind: &str| vec![claviger_session::NewEvent::new(kind, json!({}))];
    server
        .log
        .append(&name, 1, lease.epoch, stored("session.status_running"))
        .await
        .unwrap();
    assert_eq!(with.next().await.unwrap().event, "session.status_running");
    assert_eq!(
        without.next().await.unwrap().event,
        "session.status_running"
    );
    let start = json!({"type": "event_start", "event": {"type": "agent.message", "id": "sevt_m"}});
    let delta = json!({"type": "event_delta", "event_id": "sevt_m", "delta": {"type": "content_delta", "index": 0, "content": {"type": "text", "text": "hel"}}});
    for value in [
        json!({"type": "harness.private"}),
        start.clone(),
        delta.clone(),
    ] {
        server.log.publish(&name, lease.epoch, value).await.unwrap();
    }
    let said = claviger_session::NewEvent::new(
        "agent.message",
        json!({"content": [{"type": "text", "text": "hello"}]}),
    );
    server
        .log
        .append(&name, 2, lease.epoch, vec![said.with_id("sevt_m")])
        .await
        .unwrap();
    for (event, id, data) in [("event_start", None, start), ("event_delta", None, delta)] {
        assert_eq!(
            with.next().await.unwrap(),
            Frame {
                event: event.to_owned(),
                id,
                data
            }
        );
    }
    let message = with.next().await.unwrap();
    assert_eq!(
        (message.event.as_str(), message.data["id"].as_str()),
        ("agent.message", Some("sevt_m"))
    );
    assert_eq!(without.next().await.unwrap(), message);
    assert_eq!(server.get(&path).await["data"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn deleting_a_session_ends_its_streams() {
    let server = Server::start().await;
    let session = server.session().await;
    let mut frames = server
        .stream(&format!("/v1/sessions/{session}/events/stream"), None)
        .await;
    server
        .call(
            crate::support::ALICE,
            "DELETE",
            &format!("/v1/sessions/{session}"),
            Value::Null,
        )
        .await
        .ok();
    assert_eq!(
        frames.next().await.unwrap().event,
        "session.status_terminated"
    );
    assert_eq!(frames.next().await.unwrap().event, "session.deleted");
    assert_eq!(frames.next().await, None);
}
