use super::*;

const TRACKER: &str = r#"name = "tracker"
kind = "http"
description = "Issue tracker"
base_url = "http://127.0.0.1:9000/api"
credential = "tracker"

[[operations]]
name = "create_issue"
description = "Creates an issue"
method = "POST"
path = "/issues"

[[operations.parameters]]
name = "title"
in = "body"
type = "string"
required = true
description = "Its title"

[[operations]]
name = "show"
description = "Shows an issue"
method = "GET"
path = "/issues/{id}"
read_only = true

[[operations.parameters]]
name = "id"
in = "path"
type = "integer"
required = true
"#;

fn misfit(text: &str) -> (usize, String) {
    match Definition::parse("tracker", text).unwrap_err() {
        ToolsError::Definition { file, line, reason } => {
            assert_eq!(file, "tracker.toml");
            (line, reason)
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_definition_names_its_tools_with_schemas() {
    let definition = Definition::parse("tracker", TRACKER).unwrap();
    assert_eq!(definition.hash(), hex::encode(Sha256::digest(TRACKER)));
    let tools = definition.tools();
    let names: Vec<&str> = tools.iter().map(|tool| tool.name.as_str()).collect();
    assert_eq!(names, ["tracker_create_issue", "tracker_show"]);
    assert_eq!(
        tools[0].input_schema,
        serde_json::json!({
            "type": "object",
            "properties": {"title": {"type": "string", "description": "Its title"}},
            "required": ["title"],
            "additionalProperties": false,
        })
    );
    assert!(tools[1].read_only && tools[1].idempotent && !tools[0].read_only);
    assert!(definition.operation("tracker_show").is_some());
    assert!(
        definition.operation("trackershow").is_none() && definition.operation("show").is_none()
    );
}

#[test]
fn an_error_names_the_line_and_what_was_expected() {
    for (from, to, line, reason) in [
        (
            "name = \"tracker\"",
            "name = \"other\"",
            1,
            "expected 'tracker'",
        ),
        ("kind = \"http\"", "kind = \"soap\"", 2, "expected 'http'"),
        (
            "kind = \"http\"",
            "kind = \"http\"\nsecret = \"x\"",
            3,
            "unknown field `secret`",
        ),
        (
            "http://127.0.0.1:9000/api",
            "ftp://x/",
            4,
            "expected http://",
        ),
        (
            "http://127.0.0.1:9000/api",
            "http://u:p@x/",
            4,
            "user information",
        ),
        (
            "http://127.0.0.1:9000/api",
            "http://x/?key=1",
            4,
            "no query",
        ),
        (
            "credential = \"tracker\"",
            "credential = \"\"",
            5,
            "expected a credential",
        ),
        (
            "credential = \"tracker\"\n",
            "",
            1,
            "missing field `credential`",
        ),
        ("\"create_issue\"", "\"Create Issue\"", 8, "lower-case"),
        ("\"POST\"", "\"CONNECT\"", 10, "expected GET, HEAD, POST"),
        ("\"/issues\"", "\"issues\"", 11, "start with '/'"),
        ("\"/issues\"", "\"/../admin\"", 11, "dot segment"),
        ("\"/issues\"", "\"/issues?x=1\"", 11, "use parameters"),
        (
            "\"/issues\"",
            "\"/issues/{no}\"",
            11,
            "no parameter with in = \"path\"",
        ),
        (
            "in = \"body\"",
            "in = \"cookie\"",
            15,
            "expected path, query, header or body",
        ),
        (
            "type = \"string\"",
            "type = \"text\"",
            16,
            "expected string",
        ),
        ("/issues/{id}", "/issues", 24, "does not hold '{id}'"),
        ("/issues/{id}", "/issues/x{id}", 24, "whole segment"),
        (
            "type = \"integer\"\nrequired = true",
            "type = \"integer\"",
            29,
            "must have required = true",
        ),
        (
            "type = \"integer\"",
            "type = \"array\"",
            29,
            "only text, numbers and booleans",
        ),
        ("in = \"path\"", "in = \"body\"", 29, "GET has no body"),
        ("\"show\"", "\"create_issue\"", 21, "there twice"),
        ("method = \"POST\"", "method = ", 10, ""),
    ] {
        let changed = TRACKER.replacen(from, to, 1);
        assert_ne!(changed, TRACKER, "{from}");
        let (found, text) = misfit(&changed);
        assert_eq!(
            (found, text.contains(reason)),
            (line, true),
            "{from} -> {to}: {text}"
        );
    }
}

#[test]
fn a_parameter_cannot_be_a_header_that_carries_credentials_or_frames_the_request() {
    for header in [
        "Authorization",
        "cookie",
        "Host",
        "proxy-authorization",
        "content-length",
        "Transfer-Encoding",
    ] {
        let changed = TRACKER.replacen(
            "name = \"title\"\nin = \"body\"",
            &format!("name = \"{header}\"\nin = \"header\""),
            1,
        );
        assert!(
            misfit(&changed)
                .1
                .contains("set by the credential or the connection"),
            "{header}"
        );
    }
}

#[test]
fn a_full_name_longer_than_64_bytes_is_refused() {
    let long = "x".repeat(57);
    let (line, reason) = misfit(&TRACKER.replacen("create_issue", &long, 1));
    assert_eq!(line, 8);
    assert!(reason.contains("longer than 64"));
    assert!(
        Definition::parse(
            "tracker",
            &TRACKER.replacen("create_issue", &"x".repeat(56), 1)
        )
        .is_ok()
    );
}

#[test]
fn any_changed_byte_changes_the_hash() {
    let one = Definition::parse("tracker", TRACKER).unwrap();
    let other = Definition::parse("tracker", &format!("{TRACKER}\n")).unwrap();
    assert_ne!(one.hash(), other.hash());
}
