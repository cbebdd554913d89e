//! The textual forms of a secret that a scrubber looks for.

use std::fmt::Write as _;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};

/// Gives every form of a secret, some of them more than once.
pub(super) fn each(secret: &[u8], add: &mut impl FnMut(Vec<u8>)) {
    add(secret.to_vec());
    add(secret.iter().rev().copied().collect());
    add(secret.iter().flat_map(|byte| [*byte, 0]).collect());
    each_base64(secret, add);
    add(hex::encode(secret).into_bytes());
    add(hex::encode_upper(secret).into_bytes());
    each_percent(secret, add);
    for slash in [false, true] {
        let json = json(secret, slash, |_| false);
        // JSON inside JSON: a tool's answer quoted in another.
        add(self::json(&json, false, |_| false));
        add(json);
        // Encoders that also escape what is special in HTML or scripts.
        add(self::json(secret, slash, |byte| b"<>&'".contains(&byte)));
        add(self::json(secret, slash, |byte| {
            b"<>&'\"+=".contains(&byte)
        }));
    }
    for upper in [false, true] {
        add(unicode(secret, upper, |_| true));
        add(unicode(secret, upper, |character| !character.is_ascii()));
    }
    each_html(secret, add);
}

/// Base64 in both alphabets, whole (padded or not) and at each alignment inside a longer text, also
/// with its own special characters escaped for a URL or a JSON string.
pub(super) fn each_base64(secret: &[u8], add: &mut impl FnMut(Vec<u8>)) {
    let mut escaped = |text: Vec<u8>| {
        if text.iter().any(|byte| b"+/=".contains(byte)) {
            for lower in [false, true] {
                add(percent(&text, lower, |byte| b"+/=".contains(&byte), false));
            }
            add(json(&text, true, |_| false));
        }
        add(text);
    };
    escaped(STANDARD.encode(secret).into_bytes());
    escaped(STANDARD_NO_PAD.encode(secret).into_bytes());
    escaped(URL_SAFE.encode(secret).into_bytes());
    escaped(URL_SAFE_NO_PAD.encode(secret).into_bytes());
    for before in 0..3 {
        escaped(stable(&STANDARD_NO_PAD, before, secret));
        escaped(stable(&URL_SAFE_NO_PAD, before, secret));
    }
}

/// The characters of base64 that depend on the secret alone when `before` other bytes come first.
fn stable(alphabet: &impl Engine, before: usize, secret: &[u8]) -> Vec<u8> {
    let mut input = vec![0; before];
    input.extend_from_slice(secret);
    let text = alphabet.encode(&input).into_bytes();
    let from = (before * 8).div_ceil(6);
    let until = input.len() * 8 / 6;
    text.get(from..until).unwrap_or_default().to_vec()
}

fn each_percent(secret: &[u8], add: &mut impl FnMut(Vec<u8>)) {
    for lower in [false, true] {
        add(percent(secret, lower, |_| true, false));
        // RFC 3986, JavaScript's encodeURIComponent and encodeURI, Python's quote, HTML forms.
        for (kept, plus) in [
            ("-._~", false),
            ("-._~", true),
            ("-_.!~*'()", false),
            ("-._~/", false),
            ("-._*", true),
            (";,/?:@&=+$-_.!~*'()#", false),
        ] {
            add(percent(
                secret,
                lower,
                |byte| !byte.is_ascii_alphanumeric() && !kept.as_bytes().contains(&byte),
                plus,
            ));
        }
    }
}

fn percent(
    secret: &[u8],
    lower: bool,
    is_escaped: impl Fn(u8) -> bool,
    plus_for_space: bool,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(secret.len() * 3);
    for &byte in secret {
        match (is_escaped(byte), lower) {
            (true, _) if plus_for_space && byte == b' ' => out.push(b'+'),
            (true, true) => push_hex(&mut out, byte, b"%", b"0123456789abcdef"),
            (true, false) => push_hex(&mut out, byte, b"%", b"0123456789ABCDEF"),
            (false, _) => out.push(byte),
        }
    }
    out
}

fn push_hex(out: &mut Vec<u8>, byte: u8, before: &[u8], digits: &[u8; 16]) {
    out.extend_from_slice(before);
    out.push(digits[usize::from(byte >> 4)]);
    out.push(digits[usize::from(byte & 15)]);
}

fn json(secret: &[u8], slash: bool, is_unicode: impl Fn(u8) -> bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(secret.len() + 8);
    for &byte in secret {
        match byte {
            _ if is_unicode(byte) => push_hex(&mut out, byte, b"\\u00", b"0123456789abcdef"),
            b'"' | b'\\' => out.extend([b'\\', byte]),
            b'/' if slash => out.extend(b"\\/"),
            b'\t' => out.extend(b"\\t"),
            0..0x20 => push_hex(&mut out, byte, b"\\u00", b"0123456789abcdef"),
            _ => out.push(byte),
        }
    }
    out
}

/// `\uXXXX` for the characters (UTF-16 units) chosen, JSON escapes for the rest.
fn unicode(secret: &[u8], upper: bool, is_escaped: impl Fn(char) -> bool) -> Vec<u8> {
    let mut out = String::with_capacity(secret.len() * 6);
    let text = String::from_utf8_lossy(secret);
    let text: std::borrow::Cow<'_, str> = if std::str::from_utf8(secret).is_ok() {
        text
    } else {
        // Not UTF-8: what shows it at all shows its bytes as Latin-1.
        secret
            .iter()
            .map(|byte| char::from(*byte))
            .collect::<String>()
            .into()
    };
    let mut units = [0; 2];
    for character in text.chars() {
        if is_escaped(character) {
            for unit in character.encode_utf16(&mut units) {
                // Writing to a string does not end in an error.
                let _ = if upper {
                    write!(out, "\\u{unit:04X}")
                } else {
                    write!(out, "\\u{unit:04x}")
                };
            }
        } else if matches!(character, '"' | '\\') {
            out.push('\\');
            out.push(character);
        } else {
            out.push(character);
        }
    }
    out.into_bytes()
}

fn each_html(secret: &[u8], add: &mut impl FnMut(Vec<u8>)) {
    for (quote, apostrophe) in [
        ("&quot;", "&#39;"),
        ("&quot;", "&#x27;"),
        ("&quot;", "&apos;"),
        ("&#34;", "&#39;"),
        ("&#34;", "&#039;"),
        ("&quot;", "&#039;"),
        ("\"", "'"),
        ("&quot;", "'"),
    ] {
        let mut out = Vec::with_capacity(secret.len() + 16);
        for byte in secret {
            match byte {
                b'&' => out.extend(b"&amp;"),
                b'<' => out.extend(b"&lt;"),
                b'>' => out.extend(b"&gt;"),
                b'"' => out.extend(quote.as_bytes()),
                b'\'' => out.extend(apostrophe.as_bytes()),
                _ => out.push(*byte),
            }
        }
        add(out);
    }
    let mut numeric = [const { String::new() }; 4];
    for byte in secret {
        // Writing to a string does not end in an error.
        let _ = write!(numeric[0], "&#{byte};");
        let _ = write!(numeric[1], "&#x{byte:x};");
        let _ = write!(numeric[2], "&#x{byte:X};");
        let _ = write!(numeric[3], "&#X{byte:X};");
    }
    for text in numeric {
        add(text.into_bytes());
    }
}
