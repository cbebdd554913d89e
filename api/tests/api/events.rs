use serde_json::{Value, json};

use crate::support::{ALICE, BOB, Server, assert_fields, id};

fn message(text: &str) -> Value {
    json!({"type": "user.message", "content": [{"type": "text", "text": text}]})
}

#[tokio::test]
async fn sent_events_are_echoed_with_ids_and_listed_as_echoed() {
    let server = Server::start().await;
    let session = server.session().await;
    let path = format!("/v1/sessions/{session}/events");
    let content = json!([
        {"type": "text", "text": "look"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
        {"type": "document", "source": {"type": "url", "url": "https://x.example/a.pdf"}, "title": "t"},
    ]);
    let sent = server
        .post(&path, json!({"events": [{"type": "user.message", "content": content}, {"type": "user.interrupt"}]}))
        .await;
    let data = sent["data"].as_array().unwrap();
    assert_eq!(data.len(), 2);
    assert_fields(&data[0], &["id", "type", "processed_at", "content"]);
    assert_fields(&data[1], &["id", "type", "processed_at"]);
    assert!(id(&data[0]).starts_with("sevt_"));
    assert_eq!(data[0]["content"], content);
    assert_eq!(data[1]["type"], "user.interrupt");
    let listed = server.get(&path).await;
    assert_fields(&listed, &["data", "next_page"]);
    assert_eq!(listed["data"], sent["data"]);
}

#[tokio::test]
async fn a_confirmation_answers_a_question_once() {
    let server = Server::start().await;
    let session = server.session().await;
    let path = format!("/v1/sessions/{session}/events");
    let tool_use =
        |permission: &str| json!({"name": "bash", "input": {}, "evaluated_permission": permission});
    let uses = server
        .harness(
            &session,
            vec![
                ("agent.tool_use", tool_use("ask")),
                ("agent.mcp_tool_use", tool_use("ask")),
                ("agent.tool_use", tool_use("allow")),
            ],
        )
        .await;
    let confirm = |id: &str, result: &str| json!({"type": "user.tool_confirmation", "tool_use_id": id, "result": result});
    let mut deny = confirm(&uses[0].id, "deny");
    deny["deny_message"] = "not now".into();
    let sent = server
        .post(
            &path,
            json!({"events": [deny, confirm(&uses[1].id, "allow")]}),
        )
        .await;
    assert_eq!(
        (&sent["data"][0]["result"], &sent["data"][0]["deny_message"]),
        (&json!("deny"), &json!("not now"))
    );
    assert_fields(
        &sent["data"][1],
        &["id", "type", "processed_at", "tool_use_id", "result"],
    );
    let mut talkative = confirm(&uses[0].id, "allow");
    talkative["deny_message"] = "x".into();
    for (event, code) in [
        (confirm(&uses[0].id, "allow"), "tool_use_confirmed"),
        (confirm(&uses[2].id, "allow"), "tool_use_not_found"),
        (confirm("sevt_none", "allow"), "tool_use_not_found"),
        (confirm(&uses[1].id, "maybe"), "invalid_field"),
        (talkative, "invalid_field"),
    ] {
        server
            .refused("POST", &path, json!({"events": [event]}), 400, code)
            .await;
    }
}

#[tokio::test]
async fn what_a_client_may_not_send_is_refused_whole() {
    let server = Server::start().await;
    let session = server.session().await;
    let path = format!("/v1/sessions/{session}/events");
    let block = |block: Value| json!({"type": "user.message", "content": [block]});
    for (event, code) in [
        (
            json!({"type": "agent.message", "content": []}),
            "event_type_not_supported",
        ),
        (
            json!({"type": "session.status_idle"}),
            "event_type_not_supported",
        ),
        (json!({"type": "tool.outcome"}), "event_type_not_supported"),
        (
            json!({"type": "user.tool_result"}),
            "event_type_not_supported",
        ),
        (
            json!({"type": "system.message", "content": []}),
            "event_type_not_supported",
        ),
        (
            json!({"type": "user.interrupt", "session_thread_id": "sthr_1"}),
            "threads_not_supported",
        ),
        (json!({"type": "user.message"}), "invalid_field"),
        (
            json!({"type": "user.message", "content": "hi"}),
            "invalid_field",
        ),
        (
            json!({"type": "user.message", "content": [{"type": "text", "text": ""}]}),
            "invalid_field",
        ),
        (block(json!({"type": "image"})), "invalid_field"),
        (
            block(json!({"type": "image", "source": {"type": "file", "file_id": "file_1"}})),
            "source_not_supported",
        ),
        (block(json!({"type": "tool_result"})), "invalid_field"),
        (
            json!({"type": "user.message", "content": [{"type": "text", "text": "x"}], "id": "sevt_mine"}),
            "unknown_field",
        ),
        (json!("hi"), "invalid_field"),
    ] {
        server
            .refused(
                "POST",
                &path,
                json!({"events": [message("good"), event]}),
                400,
                code,
            )
            .await;
    }
    server
        .refused("POST", &path, json!({"events": []}), 400, "invalid_field")
        .await;
    server
        .refused("POST", &path, json!({}), 400, "invalid_field")
        .await;
    server
        .refused(
            "POST",
            &path,
            json!({"events": vec![message("x"); 101]}),
            400,
            "invalid_field",
        )
        .await;
    server
        .refused(
            "POST",
            "/v1/sessions/sesn_none/events",
            json!({"events": [message("x")]}),
            404,
            "session_not_found",
        )
        .await;
    server
        .call(BOB, "POST", &path, json!({"events": [message("x")]}))
        .await
        .assert_refused(404, "session_not_found");
    server
        .call(BOB, "GET", &path, Value::Null)
        .await
        .assert_refused(404, "session_not_found");
    assert_eq!(
        server.get(&path).await["data"],
        json!([]),
        "no part of a refused request is kept"
    );
}

#[tokio::test]
async fn our_own_types_are_shown_only_to_who_names_them() {
    let server = Server::start().await;
    let session = server.session().await;
    let path = format!("/v1/sessions/{session}/events");
    server.post(&path, json!({"events": [message("hi")]})).await;
    server
        .harness(
            &session,
            vec![
                ("session.status_running", json!({})),
                ("policy.pinned", json!({"strategy": "plain@1"})),
                ("span.model_request_start", json!({"request_hash": "x"})),
                (
                    "model.response",
                    json!({"message": {"content": []}, "type": "hidden", "id": "hidden"}),
                ),
                (
                    "agent.message",
                    json!({"content": [{"type": "text", "text": "hello"}]}),
                ),
            ],
        )
        .await;
    let types = async |query: &str| {
        let page = server.get(&format!("{path}{query}")).await;
        page["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|event| event["type"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        types("").await,
        [
            "user.message",
            "session.status_running",
            "span.model_request_start",
            "agent.message"
        ]
    );
    assert_eq!(
        types("?types%5B%5D=agent.message&types%5B%5D=user.message").await,
        ["user.message", "agent.message"]
    );
    assert_eq!(
        types("?types[]=model.response&types[]=policy.pinned").await,
        ["policy.pinned", "model.response"]
    );
    let named = server.get(&format!("{path}?types[]=model.response")).await;
    assert_eq!(named["data"][0]["message"], json!({"content": []}));
    assert!(
        id(&named["data"][0]).starts_with("sevt_"),
        "a payload cannot give an event another id"
    );
    assert_eq!(types("?types[]=nothing.such").await, Vec::<String>::new());
}

#[tokio::test]
async fn lists_are_paged_in_both_orders_and_by_time() {
    let server = Server::start().await;
    let session = server.session().await;
    let path = format!("/v1/sessions/{session}/events");
    for at in 0..7 {
        server
            .post(&path, json!({"events": [message(&at.to_string())]}))
            .await;
    }
    for (order, expected) in [
        ("asc", [0, 1, 2, 3, 4, 5, 6]),
        ("desc", [6, 5, 4, 3, 2, 1, 0]),
    ] {
        let mut found = Vec::new();
        let mut query = format!("?order={order}&limit=3");
        let mut pages = 0;
        loop {
            let page = server.get(&format!("{path}{query}")).await;
            pages += 1;
            found.extend(page["data"].as_array().unwrap().iter().map(|event| {
                event["content"][0]["text"]
                    .as_str()
                    .unwrap()
                    .parse::<i32>()
                    .unwrap()
            }));
            match page["next_page"].as_str() {
                Some(next) => query = format!("?order={order}&limit=3&page={next}"),
                None => break,
            }
        }
        assert_eq!((found, pages), (expected.to_vec(), 3));
    }
    let all = server.get(&path).await;
    let at = all["data"][3]["processed_at"].as_str().unwrap().to_owned();
    let later = server
        .get(&format!("{path}?created_at[gt]={at}&limit=2"))
        .await;
    assert_eq!(later["data"][0], all["data"][4]);
    assert!(later["next_page"].is_string());
    let earlier = server
        .get(&format!("{path}?created_at[lte]={at}&limit=10"))
        .await;
    assert_eq!(earlier["data"].as_array().unwrap().len(), 4);
    server
        .refused(
            "GET",
            &format!("{path}?order=desc&page=asc.3"),
            Value::Null,
            400,
            "invalid_field",
        )
        .await;
}

#[tokio::test]
async fn a_repeat_with_the_same_idempotency_key_is_one_event() {
    let server = Server::start().await;
    let session = server.session().await;
    let path = format!("/v1/sessions/{session}/events");
    let body = json!({"events": [message("once")]}).to_string();
    let headers = [("x-api-key", ALICE), ("idempotency-key", "k")];
    let first = server
        .raw("POST", &path, &headers, body.clone().into())
        .await
        .ok();
    let again = server
        .raw("POST", &path, &headers, body.clone().into())
        .await
        .ok();
    assert_eq!(first, again);
    // Without a key the same words are said twice.
    server
        .raw("POST", &path, &headers[..1], body.clone().into())
        .await
        .ok();
    server
        .raw("POST", &path, &headers[..1], body.into())
        .await
        .ok();
    assert_eq!(server.get(&path).await["data"].as_array().unwrap().len(), 3);
}
