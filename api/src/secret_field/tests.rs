use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn scan(text: &[u8]) -> Result<Cut, ScanError> {
    let mut scanner = Scanner::new();
    scanner.push(text)?;
    scanner.finish()
}

fn cut(text: &str) -> (Value, Vec<(String, Option<String>)>) {
    let cut = scan(text.as_bytes()).unwrap();
    let secrets = cut.secrets.iter().map(|field| {
        let text = field
            .text
            .as_ref()
            .map(|text| String::from_utf8(text.expose().to_vec()).unwrap());
        (field.path.join("."), text)
    });
    (
        serde_json::from_slice(&cut.body).unwrap(),
        secrets.collect(),
    )
}

fn found(path: &str, text: &str) -> (String, Option<String>) {
    (path.to_owned(), Some(text.to_owned()))
}

#[test]
fn a_secret_is_cut_and_the_rest_stays_as_it_was() {
    let cut =
        scan(br#" { "auth" : {"type":"static_bearer", "token" : "s\u00e9cret" } , "n":1.50e1 } "#)
            .unwrap();
    assert_eq!(
        &cut.body[..],
        br#" { "auth" : {"type":"static_bearer", "token" : null } , "n":1.50e1 } "#
    );
    assert_eq!(cut.secrets.len(), 1);
    assert_eq!(cut.secrets[0].path, ["auth", "token"]);
    assert_eq!(
        cut.secrets[0].text.as_ref().unwrap().expose(),
        "s\u{e9}cret".as_bytes()
    );
}

#[test]
fn every_field_of_the_list_is_cut_at_any_depth() {
    for field in SECRET_FIELDS {
        let (value, secrets) = cut(&json!({"a": [{"b": {field: "hunter2"}}]}).to_string());
        assert_eq!(value, json!({"a": [{"b": {field: null}}]}));
        assert_eq!(secrets, [found(&format!("a.0.b.{field}"), "hunter2")]);
    }
}

#[test]
fn an_escaped_or_capitalised_key_is_still_that_key() {
    assert_eq!(cut(r#"{"\u0074oken":"x"}"#).1, [found("token", "x")]);
    assert_eq!(cut(r#"{"Token":"x"}"#).1, [found("Token", "x")]);
    assert_eq!(cut(r#"{"tokens":"x","toke":"y","token ":"z"}"#).1, []);
}

#[test]
fn escapes_and_surrogates_of_a_secret_are_undone() {
    let (_, secrets) = cut(r#"{"token":"\"\\\/\b\f\n\r\t\u0041\ud83d\ude00\u20ac é"}"#);
    assert_eq!(
        secrets,
        [found("token", "\"\\/\u{8}\u{c}\n\r\tA\u{1f600}\u{20ac} é")]
    );
}

#[test]
fn a_secret_with_half_a_surrogate_or_bad_utf8_is_refused() {
    for text in [
        &br#"{"token":"\ud83d"}"#[..],
        br#"{"token":"\ud83dx"}"#,
        br#"{"token":"\ud83d\n"}"#,
        br#"{"token":"\ud83d\u0041"}"#,
        br#"{"token":"\ude00"}"#,
        b"{\"token\":\"\xff\"}",
        b"{\"token\":\"a\nb\"}",
    ] {
        assert_eq!(scan(text).unwrap_err(), ScanError::Malformed);
    }
}

#[test]
fn both_of_two_equal_keys_are_cut() {
    let (value, secrets) = cut(r#"{"token":"one","token":"two"}"#);
    assert_eq!(value, json!({"token": null}));
    assert_eq!(secrets, [found("token", "one"), found("token", "two")]);
}

#[test]
fn lists_numbers_and_booleans_under_a_secret_key_are_cut_and_schemas_survive() {
    let (value, secrets) = cut(r#"{"token":["a",["b"],1,true,null],"client_secret":42}"#);
    assert_eq!(
        value,
        json!({"token": [null, [null], null, null, null], "client_secret": null})
    );
    assert_eq!(
        secrets[..2],
        [found("token.0", "a"), found("token.1.0", "b")]
    );
    assert_eq!(
        secrets[2..],
        [
            ("token.2".into(), None),
            ("token.3".into(), None),
            ("client_secret".into(), None)
        ]
    );
    let schema = json!({"properties": {"token": {"type": "string"}}, "required": ["token"]});
    assert_eq!(cut(&schema.to_string()), (schema, vec![]));
}

#[test]
fn what_is_no_json_is_refused() {
    for text in [
        "",
        " ",
        "{",
        "}",
        "[",
        "]",
        "{]",
        "[}",
        "[1,]",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{'a':1}",
        "{a:1}",
        "1 2",
        "\"a",
        "[1 2]",
        "{\"a\":1 \"b\":2}",
        "{\"a\":\"token\":\"x\"}",
        "/**/1",
        "\u{feff}{}",
        "[,1]",
        "{,}",
        "{\"a\"::1}",
        "{1:2}",
    ] {
        assert_eq!(
            scan(text.as_bytes()).unwrap_err(),
            ScanError::Malformed,
            "{text}"
        );
        assert!(serde_json::from_str::<Value>(text).is_err(), "{text}");
    }
}

#[test]
fn depth_number_and_length_are_bounded() {
    let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    assert!(scan(nested(MAX_DEPTH).as_bytes()).is_ok());
    assert_eq!(
        scan(nested(MAX_DEPTH + 1).as_bytes()).unwrap_err(),
        ScanError::TooDeep
    );
    assert_eq!(
        scan("[".repeat(1_000_000).as_bytes()).unwrap_err(),
        ScanError::TooDeep
    );
    let many = |number: usize| json!(vec![json!({"token": "x"}); number]).to_string();
    assert!(scan(many(MAX_SECRETS).as_bytes()).is_ok());
    assert_eq!(
        scan(many(MAX_SECRETS + 1).as_bytes()).unwrap_err(),
        ScanError::ManySecrets
    );
    let long = |bytes: usize| json!({"token": "x".repeat(bytes)}).to_string();
    assert_eq!(
        cut(&long(MAX_SECRET_BYTES)).1,
        [found("token", &"x".repeat(MAX_SECRET_BYTES))]
    );
    assert_eq!(
        scan(long(MAX_SECRET_BYTES + 1).as_bytes()).unwrap_err(),
        ScanError::SecretTooLong
    );
}

#[test]
fn a_huge_body_passes_with_its_secret_cut() {
    let filler = "lorem \\\" ipsum ".repeat(1 << 20);
    let text = format!(r#"{{"a":"{filler}","token":"hunter2","b":"{filler}"}}"#);
    let cut = scan(text.as_bytes()).unwrap();
    assert_eq!(cut.secrets[0].text.as_ref().unwrap().expose(), b"hunter2");
    assert_eq!(
        cut.body.len(),
        text.len() - "\"hunter2\"".len() + "null".len()
    );
}

/// What the scanner must leave behind, by the rule instead of by scanning.
fn stripped(value: &Value, is_secret: bool) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .iter()
                .map(|(key, value)| {
                    let is_secret = SECRET_FIELDS
                        .iter()
                        .any(|field| field.eq_ignore_ascii_case(key));
                    (key.clone(), stripped(value, is_secret))
                })
                .collect(),
        ),
        Value::Array(items) => items.iter().map(|item| stripped(item, is_secret)).collect(),
        _ if is_secret => Value::Null,
        other => other.clone(),
    }
}

fn secrets_of(value: &Value, is_secret: bool, out: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let is_secret = SECRET_FIELDS
                    .iter()
                    .any(|field| field.eq_ignore_ascii_case(key));
                secrets_of(value, is_secret, out);
            }
        }
        Value::Array(items) => items
            .iter()
            .for_each(|item| secrets_of(item, is_secret, out)),
        Value::String(text) if is_secret => out.push(text.clone()),
        _ => {}
    }
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        "[\\x00-\\x7f]{0,12}".prop_map(Value::from),
    ];
    let key = prop_oneof![
        3 => any::<String>(),
        1 => prop::sample::select(SECRET_FIELDS.to_vec()).prop_map(str::to_owned),
    ];
    leaf.prop_recursive(5, 48, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// Renders with every character of every string escaped, surrogate pairs included.
fn escaped(value: &Value) -> String {
    let text = |text: &str| {
        let units: String = text
            .encode_utf16()
            .map(|unit| format!("\\u{unit:04x}"))
            .collect();
        format!("\"{units}\"")
    };
    match value {
        Value::Object(fields) => {
            let fields: Vec<_> = fields
                .iter()
                .map(|(key, value)| format!("{} : {}", text(key), escaped(value)))
                .collect();
            format!("{{ {} }}", fields.join(" , "))
        }
        Value::Array(items) => format!(
            "[ {} ]",
            items.iter().map(escaped).collect::<Vec<_>>().join(" ,\n")
        ),
        Value::String(string) => text(string),
        other => other.to_string(),
    }
}

proptest! {
    #[test]
    fn the_rest_has_the_same_structure_however_it_is_written_and_split(
        value in json_value(), all_escaped in any::<bool>(), chunk in 1usize..9,
    ) {
        let text = if all_escaped { escaped(&value) } else { value.to_string() };
        let value: Value = serde_json::from_str(&text).unwrap();
        let mut scanner = Scanner::new();
        let pushed = text.as_bytes().chunks(chunk).try_for_each(|piece| scanner.push(piece));
        let cut = match pushed.and_then(|()| scanner.finish()) {
            Err(ScanError::ManySecrets) => return Ok(()),
            other => other.unwrap(),
        };
        let mut secrets = Vec::new();
        secrets_of(&value, false, &mut secrets);
        let texts = cut.secrets.iter().filter_map(|field| field.text.as_ref());
        let texts: Vec<String> = texts.map(|text| String::from_utf8(text.expose().to_vec()).unwrap()).collect();
        prop_assert_eq!(texts, secrets);
        prop_assert_eq!(serde_json::from_slice::<Value>(&cut.body).unwrap(), stripped(&value, false));
    }

    #[test]
    fn arbitrary_bytes_are_refused_or_leave_what_a_parser_leaves(text in "[\\[\\]{}:,\"\\\\a-u0-9. token]{0,40}") {
        // Whatever a parser accepts, the scanner accepts; and no secret passes it.
        if let Ok(value) = serde_json::from_str::<Value>(&text) {
            let cut = scan(text.as_bytes()).unwrap();
            prop_assert_eq!(serde_json::from_slice::<Value>(&cut.body).unwrap(), stripped(&value, false));
        } else if let Ok(cut) = scan(text.as_bytes()) {
            prop_assert!(serde_json::from_slice::<Value>(&cut.body).is_err() || !cut.secrets.is_empty());
        }
    }
}
