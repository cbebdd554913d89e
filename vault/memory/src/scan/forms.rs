//! The forms in which a leaked secret shows itself.

use std::fmt::Write as _;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use super::fingerprints::MIN_PATTERN_BYTES;

/// Lists the forms of a secret to look for: the name of each form and its bytes.
///
/// Raw, reversed, base64 (standard and URL alphabet, each of the three alignments inside a longer text;
/// the part that does not depend on the neighbours), hexadecimal, percent-encoded (everything or only what is
/// reserved; both cases), JSON-escaped (only what must be, or everything as `\u00XX`), HTML-escaped (named
/// entities, decimal, hexadecimal), UTF-16. A form equal to an earlier one or shorter than 12 bytes is left out.
#[must_use]
pub fn of(secret: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut forms: Vec<(&'static str, Vec<u8>)> = Vec::new();
    let mut add = |name, form: Vec<u8>| {
        if form.len() >= MIN_PATTERN_BYTES && forms.iter().all(|(_, earlier)| *earlier != form) {
            forms.push((name, form));
        }
    };
    add("raw", secret.to_vec());
    add("reversed", secret.iter().rev().copied().collect());
    for (before, name) in ["base64", "base64-shift1", "base64-shift2"]
        .into_iter()
        .enumerate()
    {
        add(name, stable_base64(&STANDARD_NO_PAD, before, secret));
    }
    for (before, name) in ["base64url", "base64url-shift1", "base64url-shift2"]
        .into_iter()
        .enumerate()
    {
        add(name, stable_base64(&URL_SAFE_NO_PAD, before, secret));
    }
    add("hex", hex::encode(secret).into_bytes());
    add("hex-upper", hex::encode_upper(secret).into_bytes());
    add(
        "percent",
        percent(secret, |byte| !is_unreserved(byte), false),
    );
    add(
        "percent-lower",
        percent(secret, |byte| !is_unreserved(byte), true),
    );
    add("percent-all", percent(secret, |_| true, false));
    add("percent-all-lower", percent(secret, |_| true, true));
    add("json", json(secret));
    add(
        "json-unicode",
        each(secret, |out, byte| write!(out, "\\u{byte:04x}")),
    );
    add("html", html(secret));
    add(
        "html-decimal",
        each(secret, |out, byte| write!(out, "&#{byte};")),
    );
    add(
        "html-hex",
        each(secret, |out, byte| write!(out, "&#x{byte:x};")),
    );
    add(
        "html-hex-upper",
        each(secret, |out, byte| write!(out, "&#x{byte:X};")),
    );
    add("utf16", secret.iter().flat_map(|byte| [*byte, 0]).collect());
    forms
}

/// The characters of base64 that depend on the secret alone when `before` other bytes come first.
fn stable_base64(alphabet: &impl Engine, before: usize, secret: &[u8]) -> Vec<u8> {
    let mut input = vec![0; before];
    input.extend_from_slice(secret);
    let text = alphabet.encode(&input).into_bytes();
    let from = (before * 8).div_ceil(6);
    let until = input.len() * 8 / 6;
    text.get(from..until).unwrap_or_default().to_vec()
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

fn percent(secret: &[u8], is_escaped: impl Fn(u8) -> bool, lower: bool) -> Vec<u8> {
    each(secret, |out, byte| match (is_escaped(byte), lower) {
        (false, _) => {
            out.push(char::from(byte));
            Ok(())
        }
        (true, true) => write!(out, "%{byte:02x}"),
        (true, false) => write!(out, "%{byte:02X}"),
    })
}

fn json(secret: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(secret.len());
    for byte in secret {
        match byte {
            b'"' | b'\\' => out.extend([b'\\', *byte]),
            b'\n' => out.extend(b"\\n"),
            b'\r' => out.extend(b"\\r"),
            b'\t' => out.extend(b"\\t"),
            0x08 => out.extend(b"\\b"),
            0x0c => out.extend(b"\\f"),
            0..0x20 => out.extend(format!("\\u{byte:04x}").into_bytes()),
            _ => out.push(*byte),
        }
    }
    out
}

fn html(secret: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(secret.len());
    for byte in secret {
        match byte {
            b'&' => out.extend(b"&amp;"),
            b'<' => out.extend(b"&lt;"),
            b'>' => out.extend(b"&gt;"),
            b'"' => out.extend(b"&quot;"),
            b'\'' => out.extend(b"&#39;"),
            _ => out.push(*byte),
        }
    }
    out
}

fn each(secret: &[u8], write: impl Fn(&mut String, u8) -> std::fmt::Result) -> Vec<u8> {
    let mut out = String::new();
    for byte in secret {
        write(&mut out, *byte).expect("writing to a string does not end in an error");
    }
    out.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(secret: &[u8], name: &str) -> Option<String> {
        of(secret)
            .into_iter()
            .find(|(form, _)| *form == name)
            .map(|(_, bytes)| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn every_alignment_of_base64_is_found_inside_a_longer_text() {
        let secret = b"sk-live/+?canary~0123456789";
        for before in 0..6 {
            for after in 0..4 {
                let mut text = vec![b'x'; before];
                text.extend_from_slice(secret);
                text.extend(vec![b'y'; after]);
                for (encoded, prefix) in [
                    (STANDARD_NO_PAD.encode(&text), "base64"),
                    (URL_SAFE_NO_PAD.encode(&text), "base64url"),
                ] {
                    let found = of(secret).iter().any(|(name, bytes)| {
                        (name.starts_with("base64") || name.starts_with(prefix))
                            && encoded.contains(std::str::from_utf8(bytes).unwrap())
                    });
                    assert!(
                        found,
                        "{prefix} with {before} bytes before and {after} after"
                    );
                }
            }
        }
    }

    #[test]
    fn text_forms_are_what_encoders_write() {
        let secret = b"a\"b&c<d>'e/f g\\h";
        assert_eq!(
            form(secret, "percent").unwrap(),
            "a%22b%26c%3Cd%3E%27e%2Ff%20g%5Ch"
        );
        assert_eq!(
            form(secret, "percent-lower").unwrap(),
            "a%22b%26c%3cd%3e%27e%2ff%20g%5ch"
        );
        assert_eq!(form(secret, "json").unwrap(), r#"a\"b&c<d>'e/f g\\h"#);
        assert_eq!(
            form(secret, "html").unwrap(),
            "a&quot;b&amp;c&lt;d&gt;&#39;e/f g\\h"
        );
        assert!(
            form(secret, "json-unicode")
                .unwrap()
                .starts_with("\\u0061\\u0022")
        );
        assert!(
            form(secret, "html-decimal")
                .unwrap()
                .starts_with("&#97;&#34;")
        );
        assert!(
            form(secret, "html-hex")
                .unwrap()
                .starts_with("&#x61;&#x22;")
        );
        assert!(form(secret, "percent-all").unwrap().starts_with("%61%22"));
    }

    #[test]
    fn no_form_is_listed_twice_and_none_is_short() {
        let forms = of(b"plainletters0123");
        for (index, (name, bytes)) in forms.iter().enumerate() {
            assert!(bytes.len() >= 12, "{name}");
            assert!(
                forms[..index].iter().all(|(_, earlier)| earlier != bytes),
                "{name}"
            );
        }
        assert!(
            !forms
                .iter()
                .any(|(name, _)| *name == "percent" || *name == "json" || *name == "html")
        );
    }
}
