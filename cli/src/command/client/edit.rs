//! Edits of a JSON file that leave every other byte as it is.

use serde_json::Value;

/// One stretch of text to put in.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Change {
    pub(super) offset: usize,
    pub(super) inserted: String,
}

impl Change {
    pub(super) fn apply(&self, text: &str) -> String {
        let (before, after) = text.split_at_checked(self.offset).unwrap_or((text, ""));
        format!("{before}{}{after}", self.inserted)
    }
}

/// One stretch of text to take out.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Remove {
    pub(super) start: usize,
    pub(super) end: usize,
}

impl Remove {
    pub(super) fn apply(&self, text: &str) -> String {
        let before = text.get(..self.start).unwrap_or(text);
        let after = text.get(self.end..).unwrap_or("");
        format!("{before}{after}")
    }
}

/// One member of an object: where its key starts, where its value starts and ends.
struct Member {
    key: String,
    start: usize,
    value: usize,
    end: usize,
}

/// The entry of a server, if it is there.
pub(super) fn find(text: &str, name: &str) -> Result<Option<Value>, String> {
    if is_blank(text) {
        return Ok(None);
    }
    let value: Value =
        serde_json::from_str(without_mark(text)).map_err(|error| error.to_string())?;
    match value.get("mcpServers") {
        None if value.is_object() => Ok(None),
        Some(Value::Object(servers)) => Ok(servers.get(name).cloned()),
        _ => Err("mcpServers is not an object".to_owned()),
    }
}

/// What to insert so that the entry is there.
pub(super) fn insert(text: &str, name: &str, entry: &Value) -> Result<Change, String> {
    let pretty = |depth: usize| -> String {
        let text = serde_json::to_string_pretty(entry).unwrap_or_default();
        text.replace('\n', &format!("\n{}", "  ".repeat(depth)))
    };
    if is_blank(text) {
        return Ok(Change {
            offset: text.len(),
            inserted: format!(
                "{{\n  \"mcpServers\": {{\n    \"{name}\": {}\n  }}\n}}\n",
                pretty(2)
            ),
        });
    }
    find(text, name)?;
    let line = if text.contains("\r\n") { "\r\n" } else { "\n" };
    let root = text.len() - without_mark(text).trim_start().len();
    let members = members(text, root)?;
    let text_of = |inserted: String| inserted.replace('\n', line);
    if let Some(servers) = members.iter().find(|member| member.key == "mcpServers") {
        let empty = self::members(text, servers.value)?.is_empty();
        let tail = if empty { "\n  " } else { "," };
        return Ok(Change {
            offset: servers.value + 1,
            inserted: text_of(format!("\n    \"{name}\": {}{tail}", pretty(2))),
        });
    }
    let tail = if members.is_empty() { "\n" } else { "," };
    Ok(Change {
        offset: root + 1,
        inserted: text_of(format!(
            "\n  \"mcpServers\": {{\n    \"{name}\": {}\n  }}{tail}",
            pretty(2)
        )),
    })
}

/// What to take out so that the entry is gone and the rest is still JSON.
pub(super) fn remove(text: &str, name: &str) -> Result<Remove, String> {
    find(text, name)?;
    let root = text.len() - without_mark(text).trim_start().len();
    let top = members(text, root)?;
    let servers = top
        .iter()
        .find(|member| member.key == "mcpServers")
        .ok_or("there is no mcpServers")?;
    let all = members(text, servers.value)?;
    let index = all
        .iter()
        .position(|member| member.key == name)
        .ok_or("there is no such entry")?;
    let own = all.get(index).ok_or("there is no such entry")?;
    Ok(
        match (
            all.get(index + 1),
            index.checked_sub(1).and_then(|before| all.get(before)),
        ) {
            // With the comma and the space behind it, else with those before it.
            (Some(next), _) => Remove {
                start: own.start,
                end: next.start,
            },
            (None, Some(before)) => Remove {
                start: before.end,
                end: own.end,
            },
            (None, None) => Remove {
                start: servers.value + 1,
                end: servers.end - 1,
            },
        },
    )
}

fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

fn is_blank(text: &str) -> bool {
    without_mark(text).trim().is_empty()
}

/// The members of the object that starts at `open`; the text is known to be valid JSON.
fn members(text: &str, open: usize) -> Result<Vec<Member>, String> {
    let bytes = text.as_bytes();
    if bytes.get(open) != Some(&b'{') {
        return Err("expected an object".to_owned());
    }
    let mut members = Vec::new();
    let mut at = skip_space(bytes, open + 1);
    while bytes.get(at) == Some(&b'"') {
        let start = at;
        let key_end = skip_value(bytes, at);
        let key = text
            .get(start..key_end)
            .and_then(|key| serde_json::from_str(key).ok())
            .ok_or("a key that is no string")?;
        let colon = skip_space(bytes, key_end);
        let value = skip_space(bytes, colon + 1);
        let end = skip_value(bytes, value);
        members.push(Member {
            key,
            start,
            value,
            end,
        });
        at = skip_space(bytes, end);
        if bytes.get(at) == Some(&b',') {
            at = skip_space(bytes, at + 1);
        }
    }
    Ok(members)
}

fn skip_space(bytes: &[u8], mut at: usize) -> usize {
    while bytes.get(at).is_some_and(u8::is_ascii_whitespace) {
        at += 1;
    }
    at
}

/// The end of the value that starts at `at`.
fn skip_value(bytes: &[u8], mut at: usize) -> usize {
    let mut depth = 0_usize;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => {
                at += 1;
                while let Some(inside) = bytes.get(at) {
                    match inside {
                        b'\\' => at += 2,
                        b'"' => break,
                        _ => at += 1,
                    }
                }
                if depth == 0 {
                    return at + 1;
                }
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => {
                if depth <= 1 {
                    // Depth 0: the end of the object around a bare number or word.
                    return if depth == 0 { at } else { at + 1 };
                }
                depth -= 1;
            }
            b',' if depth == 0 => return at,
            byte if byte.is_ascii_whitespace() && depth == 0 => return at,
            _ => {}
        }
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const FILES: [&str; 12] = [
        "",
        "  \n",
        "{}",
        "{ }\n",
        "{\"mcpServers\":{}}",
        "{\n  \"mcpServers\": {\n  }\n}\n",
        "{\"mcpServers\":{\"other\":{\"command\":\"x\"}}}",
        "{\n\t\"a\": [1, {\"b\": \"}\\\"{\"}],\n\t\"mcpServers\": {\n\t\t\"other\": {}\n\t},\n\t\"z\": null\n}",
        "{\"n\":-1.5e3,\"t\":true}",
        "\u{feff}{\"a\": 1}\n",
        "{\r\n  \"a\": \"\\u00e4\"\r\n}\r\n",
        "{\"mcpServers\": {\"claviger-old\": {}, \"b\": 1}}",
    ];

    #[test]
    fn installing_and_uninstalling_gives_every_file_back_to_the_byte() {
        for file in FILES {
            let change =
                insert(file, "claviger", &json!({"command": "/x", "args": ["mcp"]})).unwrap();
            let after = change.apply(file);
            assert_eq!(
                find(&after, "claviger").unwrap(),
                Some(json!({"command": "/x", "args": ["mcp"]})),
                "{file:?}"
            );
            let undone = Remove {
                start: change.offset,
                end: change.offset + change.inserted.len(),
            }
            .apply(&after);
            assert_eq!(undone, file);
        }
    }

    #[test]
    fn removing_from_an_edited_file_leaves_the_rest_valid() {
        for file in FILES {
            let after = insert(file, "claviger", &json!({"command": "/x"}))
                .unwrap()
                .apply(file);
            let removed = remove(&after, "claviger").unwrap().apply(&after);
            let value: Value = serde_json::from_str(without_mark(&removed)).unwrap();
            assert_eq!(
                value["mcpServers"].get("claviger"),
                None,
                "{file:?} -> {removed:?}"
            );
            let old: Value = if is_blank(file) {
                json!({})
            } else {
                serde_json::from_str(without_mark(file)).unwrap()
            };
            for (key, wanted) in old.as_object().unwrap() {
                assert_eq!(&value[key], wanted, "{file:?} -> {removed:?}");
            }
        }
    }

    #[test]
    fn what_is_no_json_is_left_alone() {
        for file in [
            "{",
            "[]",
            "{\"mcpServers\": []}",
            "// comment\n{}",
            "{\"a\": 1,}",
        ] {
            assert!(insert(file, "claviger", &json!({})).is_err(), "{file:?}");
        }
    }
}
