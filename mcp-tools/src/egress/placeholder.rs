//! Finds placeholders, wherever and however written.

use aho_corasick::{AhoCorasick, BuildError};
use claviger_vault_memory::forms;
use claviger_vault_protocol::Opening;

/// How many layers of percent, JSON and HTML escapes are taken off before a text counts as plain.
const MAX_LAYERS: usize = 3;
/// A grammar's fixed beginning shorter than this is no sign of anything.
const MIN_GRAMMAR_BYTES: usize = 4;

/// Whose placeholder was found.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Found {
    /// Of the grammar, but none of this session's: another session's, or invented.
    Foreign,
    /// One of this session's, plain or encoded.
    Own,
}

/// What to look for on behalf of one session.
#[derive(Debug)]
pub(super) struct Placeholders {
    /// Every form of every placeholder of the session.
    own: AhoCorasick,
    /// The fixed beginnings of placeholders: one vault makes all of them to one pattern.
    grammar: AhoCorasick,
}

impl Placeholders {
    /// Prepares the search for the placeholders of an opening and anything like them.
    pub(super) fn of(opening: &Opening) -> Result<Self, BuildError> {
        let texts = || {
            opening
                .grants
                .iter()
                .map(|envelope| envelope.placeholder.as_str())
                .filter(|text| !text.is_empty())
        };
        let own: Vec<Vec<u8>> = texts()
            .flat_map(|text| {
                let forms = forms::of(text.as_bytes()).into_iter().map(|(_, form)| form);
                // A short placeholder has no listed form; its plain text is looked for all the same.
                forms.chain(std::iter::once(text.as_bytes().to_vec()))
            })
            .collect();
        let mut grammar: Vec<Vec<u8>> =
            texts().filter_map(beginning).flat_map(beginnings).collect();
        grammar.sort();
        grammar.dedup();
        Ok(Self {
            own: searcher(&own)?,
            grammar: searcher(&grammar)?,
        })
    }

    /// Looks for a placeholder: as it stands, in every listed encoding, and under layers of escapes.
    pub(super) fn find(&self, bytes: &[u8]) -> Option<Found> {
        let mut layer = std::borrow::Cow::Borrowed(bytes);
        let mut found = None;
        for _ in 0..=MAX_LAYERS {
            if self.own.is_match(layer.as_ref()) {
                return Some(Found::Own);
            }
            // It may turn out to be an own one under the next layer.
            if self.grammar.is_match(layer.as_ref()) {
                found = Some(Found::Foreign);
            }
            match unescape(&layer) {
                Some(plain) => layer = plain.into(),
                None => break,
            }
        }
        found
    }
}

fn searcher(patterns: &[Vec<u8>]) -> Result<AhoCorasick, BuildError> {
    AhoCorasick::builder()
        .ascii_case_insensitive(true)
        .build(patterns)
}

/// What every placeholder of this vault begins with: everything up to its random part.
fn beginning(placeholder: &str) -> Option<&[u8]> {
    let end = placeholder.rfind(['_', '-', '.', ':'])? + 1;
    let beginning = placeholder.as_bytes().get(..end)?;
    (beginning.len() >= MIN_GRAMMAR_BYTES).then_some(beginning)
}

/// The beginning as it stands, in hexadecimal, and in base64 at each alignment where that is long enough to mean it.
fn beginnings(beginning: &[u8]) -> Vec<Vec<u8>> {
    let mut found = vec![beginning.to_vec(), hex::encode(beginning).into_bytes()];
    found.extend(
        forms::of(beginning)
            .into_iter()
            .filter(|(name, _)| name.starts_with("base64"))
            .map(|(_, form)| form),
    );
    found
}

/// Takes one layer of `%XX`, `\uXXXX`, `&#N;` and `&#xH;` off; none where there is none.
fn unescape(bytes: &[u8]) -> Option<Vec<u8>> {
    let first = bytes
        .iter()
        .position(|byte| matches!(byte, b'%' | b'\\' | b'&'))?;
    let mut out = Vec::with_capacity(bytes.len());
    out.extend_from_slice(bytes.get(..first)?);
    let mut rest = bytes.get(first..)?;
    let mut changed = false;
    while let Some((byte, after)) = rest.split_first() {
        let escape = match byte {
            b'%' => number(after, 2, 16).map(|value| (value, 2)),
            b'\\' => after
                .strip_prefix(b"u")
                .and_then(|digits| number(digits, 4, 16))
                .map(|value| (value, 5)),
            b'&' => entity(after),
            _ => None,
        };
        match escape.and_then(|(value, len)| Some((u8::try_from(value).ok()?, after.get(len..)?))) {
            Some((value, tail)) => {
                out.push(value);
                rest = tail;
                changed = true;
            }
            None => {
                out.push(*byte);
                rest = after;
            }
        }
    }
    changed.then_some(out)
}

/// The value and length of `#N;` or `#xH;`.
fn entity(after: &[u8]) -> Option<(u32, usize)> {
    let body = after.strip_prefix(b"#")?;
    let end = body.iter().take(8).position(|byte| *byte == b';')?;
    let digits = body.get(..end)?;
    let value = match digits {
        [b'x' | b'X', hex @ ..] => number(hex, hex.len(), 16)?,
        decimal => number(decimal, decimal.len(), 10)?,
    };
    Some((value, end + 2))
}

fn number(bytes: &[u8], len: usize, radix: u32) -> Option<u32> {
    let digits = bytes
        .get(..len)
        .filter(|digits| digits.iter().all(u8::is_ascii_alphanumeric))?;
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, radix).ok()
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    use proptest::prelude::*;

    use super::super::tests::opening_with;
    use super::*;

    const OWN: &str = "clvp_0123456789abcdefABCDEF0123456789";

    fn placeholders() -> Placeholders {
        Placeholders::of(&opening_with(&[("tracker", OWN)])).unwrap()
    }

    #[test]
    fn an_own_placeholder_is_found_in_every_encoding() {
        let escaped: String = OWN.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let twice = escaped.replace('%', "%25");
        let partly = OWN.replace('_', "%5F").replace("01", "\\u003001");
        let html: String = OWN.bytes().map(|byte| format!("&#x{byte:X};")).collect();
        for text in [
            OWN.to_owned(),
            OWN.to_lowercase(),
            OWN.to_uppercase(),
            hex::encode(OWN),
            escaped,
            twice,
            partly.replace("\\u003001", "\\u00301"),
            html,
            STANDARD.encode(OWN),
            STANDARD.encode(format!("user:{OWN}")),
            STANDARD.encode(format!("x{OWN}")),
            URL_SAFE_NO_PAD.encode(format!("{{\"a\":\"{OWN}\"}}")),
        ] {
            assert!(
                placeholders()
                    .find(format!("before {text} after").as_bytes())
                    .is_some(),
                "{text}"
            );
        }
    }

    #[test]
    fn anything_of_the_grammar_is_found_as_foreign() {
        let searched = placeholders();
        for text in [
            "clvp_ffffffffffffffffffffffffffffffff",
            "%63lvp%5fffff",
            "CLVP_x",
            "\\u0063lvp_1",
        ] {
            assert_eq!(
                searched.find(text.as_bytes()),
                Some(Found::Foreign),
                "{text}"
            );
        }
        assert_eq!(searched.find(OWN.as_bytes()), Some(Found::Own));
        let last_but_one_escaped = OWN.replace("F0123456789", "F01234567%389");
        assert_eq!(
            searched.find(last_but_one_escaped.as_bytes()),
            Some(Found::Own),
            "foreign as it stands, own under the escape"
        );
    }

    #[test]
    fn ordinary_text_is_not_taken_for_a_placeholder() {
        for text in [
            "",
            "hello",
            "clvp",
            "100% of \\users & co; &#; %zz \\uXXXX",
            "{\"a\":[1,2,3]}",
            "%",
        ] {
            assert_eq!(placeholders().find(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn without_placeholders_nothing_is_found() {
        let none = Placeholders::of(&opening_with(&[])).unwrap();
        assert_eq!(none.find(OWN.as_bytes()), None);
    }

    proptest! {
        #[test]
        fn an_own_placeholder_is_found_between_any_bytes_with_any_of_its_letters_escaped(
            before in proptest::collection::vec(any::<u8>(), 0..40),
            after in proptest::collection::vec(any::<u8>(), 0..40),
            how in proptest::collection::vec(0_u8..4, OWN.len()),
        ) {
            let mut text = before;
            // What stands before must not swallow the first letter into an escape of its own.
            text.push(b' ');
            for (byte, how) in OWN.bytes().zip(how) {
                let written = match how {
                    0 => char::from(byte).to_string(),
                    1 => format!("%{byte:02X}"),
                    2 => format!("\\u{byte:04x}"),
                    _ => format!("&#{byte};"),
                };
                text.extend_from_slice(written.as_bytes());
            }
            text.extend_from_slice(&after);
            prop_assert_eq!(placeholders().find(&text), Some(Found::Own));
        }
    }
}
