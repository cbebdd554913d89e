use serde_json::json;

use super::*;

fn definition(path: &str, parameters: &[(&str, &str, &str, bool)]) -> Definition {
    let mut text = format!(
        "name = \"t\"\nkind = \"http\"\nbase_url = \"https://h.example/api/v1/\"\ncredential = \"c\"\n\
         [[operations]]\nname = \"op\"\nmethod = \"POST\"\npath = \"{path}\"\n"
    );
    for (name, place, kind, required) in parameters {
        text.push_str(&format!(
            "[[operations.parameters]]\nname = \"{name}\"\nin = \"{place}\"\ntype = \"{kind}\"\nrequired = {required}\n"
        ));
    }
    Definition::parse("t", &text).unwrap()
}

fn built(definition: &Definition, arguments: Value) -> Result<Request, Refusal> {
    request(
        definition,
        definition.operation("t_op").unwrap(),
        &arguments,
    )
}

fn body(request: Request) -> String {
    match request.body {
        Payload::Full(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
        Payload::Empty => String::new(),
    }
}

#[test]
fn each_argument_goes_to_its_place_and_only_there() {
    let definition = definition(
        "/projects/{project}/issues",
        &[
            ("project", "path", "string", true),
            ("title", "body", "string", true),
            ("labels", "body", "array", false),
            ("page", "query", "integer", false),
            ("tag", "query", "array", false),
            ("X-Trace", "header", "string", false),
        ],
    );
    let arguments = json!({
        "project": "a b/c&d", "title": "He said \"hi\"", "labels": [1, {"x": null}], "page": 2,
        "tag": ["a&b", "c=d"], "X-Trace": "t1",
    });
    let request = built(&definition, arguments).unwrap();
    assert_eq!(
        request.url.as_str(),
        "https://h.example/api/v1/projects/a%20b%2Fc%26d/issues?page=2&tag=a%26b&tag=c%3Dd"
    );
    assert_eq!(request.headers["x-trace"], "t1");
    assert_eq!(
        body(request),
        r#"{"title":"He said \"hi\"","labels":[1,{"x":null}]}"#
    );
}

#[test]
fn a_path_argument_cannot_leave_its_segment() {
    let definition = definition("/items/{id}/x", &[("id", "path", "string", true)]);
    for bad in [
        "..",
        ".",
        "",
        "../admin",
        "a/../..",
        "..\\x",
        "%2e%2e",
        "a%2f..%2fb",
        "%252e%252e",
        "a\r\nb",
        "a\0",
        "x/%2e%2e/y",
    ] {
        let refusal = built(&definition, json!({"id": bad}))
            .err()
            .unwrap_or_else(|| panic!("{bad} passed"));
        assert_eq!(refusal.code, "arguments_invalid", "{bad}");
    }
    for good in [
        "...",
        "a..b",
        "?q=1#f",
        "a@b:c",
        "日本",
        "{id}",
        "https://evil.com/",
    ] {
        let request = built(&definition, json!({"id": good})).unwrap();
        assert_eq!(request.url.host_str(), Some("h.example"), "{good}");
        assert!(
            request.url.path().starts_with("/api/v1/items/") && request.url.path().ends_with("/x"),
            "{good}"
        );
        assert_eq!(request.url.path().matches('/').count(), 5, "{good}");
        assert_eq!(request.url.query(), None);
    }
}

#[test]
fn arguments_that_do_not_fit_the_schema_are_refused() {
    let definition = definition(
        "/x",
        &[
            ("n", "body", "integer", true),
            ("s", "body", "string", false),
            ("b", "query", "boolean", false),
        ],
    );
    for bad in [
        json!({}),
        json!([]),
        json!({"n": "1"}),
        json!({"n": 1.5}),
        json!({"n": null}),
        json!({"n": 1, "s": 2}),
        json!({"n": 1, "b": "true"}),
        json!({"n": 1, "unknown": 1}),
    ] {
        assert_eq!(
            built(&definition, bad.clone()).err().unwrap().code,
            "arguments_invalid",
            "{bad}"
        );
    }
    assert_eq!(
        body(built(&definition, json!({"n": 1, "s": null})).unwrap()),
        r#"{"n":1}"#
    );
}

#[test]
fn a_header_argument_cannot_add_a_line() {
    let definition = definition("/x", &[("X-A", "header", "string", true)]);
    for bad in ["a\r\nX-B: c", "a\nb", "a\0b"] {
        assert_eq!(
            built(&definition, json!({"X-A": bad})).err().unwrap().code,
            "arguments_invalid"
        );
    }
}
