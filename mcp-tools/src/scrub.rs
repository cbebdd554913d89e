//! Takes a use's secret out of everything that comes back, in every textual form, as it streams.
//!
//! Patterns of several hundred bytes would make an automaton that costs more than the request; so
//! the search is for the first eight bytes of every form (a vectorised multi-pattern search, cheap to
//! build), and each place found is compared with the whole forms. Only bytes that can still become a
//! form are held back, so an event stream is never late.
//!
//! # Security
//! The forms are the secret. They live as long as one answer, on the zero-on-free heap.

mod forms;

use aho_corasick::packed::{MatchKind, Searcher};
use aho_corasick::{AhoCorasick, AhoCorasickKind};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};

/// Secrets shorter than this are not scrubbed: they would be found everywhere.
pub(crate) const MIN_SECRET_BYTES: usize = 12;
/// How much of each form is searched for before the rest is compared.
const PREFIX_BYTES: usize = 8;

/// One secret to take out.
#[derive(Clone, Copy)]
pub(crate) struct Known<'a> {
    /// The credential's name, which stands in its place.
    pub(crate) name: &'a str,
    /// The bytes.
    pub(crate) secret: &'a [u8],
    /// User name, where the secret also travels as a rendered Basic pair.
    pub(crate) basic_username: Option<&'a str>,
}

/// A form of a secret and what replaces it.
struct Form {
    bytes: Vec<u8>,
    replacement: usize,
}

enum Search {
    Automaton(AhoCorasick),
    Nothing,
    Packed(Searcher),
}

/// Replaces secrets in one answer: whole values at once, the body as a stream.
pub(crate) struct Scrubber {
    search: Search,
    /// Forms that share a prefix, longest first; index = pattern of the search.
    groups: Vec<Vec<Form>>,
    replacements: Vec<Vec<u8>>,
    /// Lower-case raw forms, for header names, which HTTP writes in lower case.
    lower: Vec<Vec<u8>>,
    held: BytesMut,
    hits: u64,
}

impl Scrubber {
    /// Prepares to find these secrets.
    pub(crate) fn new(secrets: &[Known<'_>]) -> Self {
        let mut groups: Vec<Vec<Form>> = Vec::new();
        let mut replacements = Vec::new();
        let mut lower = Vec::new();
        for known in secrets
            .iter()
            .filter(|known| known.secret.len() >= MIN_SECRET_BYTES)
        {
            let replacement = replacements.len();
            replacements.push(format!("[scrubbed:{}]", known.name).into_bytes());
            lower.push(known.secret.to_ascii_lowercase());
            let mut add = |bytes: Vec<u8>| {
                if bytes.len() < MIN_SECRET_BYTES {
                    return;
                }
                let is_of = |group: &&mut Vec<Form>| {
                    group
                        .first()
                        .is_some_and(|first| first.bytes[..PREFIX_BYTES] == bytes[..PREFIX_BYTES])
                };
                match groups.iter_mut().find(is_of) {
                    Some(group) if group.iter().any(|form| form.bytes == bytes) => {}
                    Some(group) => group.push(Form { bytes, replacement }),
                    None => groups.push(vec![Form { bytes, replacement }]),
                }
            };
            forms::each(known.secret, &mut add);
            if let Some(username) = known.basic_username {
                let mut pair = username.as_bytes().to_vec();
                pair.push(b':');
                pair.extend_from_slice(known.secret);
                forms::each_base64(&pair, &mut add);
            }
        }
        for group in &mut groups {
            group.sort_by_key(|form| std::cmp::Reverse(form.bytes.len()));
        }
        let prefixes: Vec<&[u8]> = groups
            .iter()
            .filter_map(|group| Some(&group.first()?.bytes[..PREFIX_BYTES]))
            .collect();
        let search = search_for(&prefixes);
        Self {
            search,
            groups,
            replacements,
            lower,
            held: BytesMut::new(),
            hits: 0,
        }
    }

    /// How many places were replaced so far.
    pub(crate) fn hits(&self) -> u64 {
        self.hits
    }

    /// Takes the next piece of the body and gives what is decided; a piece without anything to
    /// replace or to hold back is passed on without a copy.
    pub(crate) fn push(&mut self, chunk: Bytes) -> Bytes {
        if matches!(self.search, Search::Nothing) {
            return chunk;
        }
        if self.held.is_empty() {
            let mut out = Vec::new();
            let (copied, decided) = self.run(&chunk, false, &mut out);
            self.held.extend_from_slice(&chunk[decided..]);
            if copied == 0 && out.is_empty() {
                return chunk.slice(..decided);
            }
            out.extend_from_slice(&chunk[copied..decided]);
            return Bytes::from(out);
        }
        let mut joined = std::mem::take(&mut self.held);
        joined.extend_from_slice(&chunk);
        let mut out = Vec::with_capacity(joined.len());
        let (copied, decided) = self.run(&joined, false, &mut out);
        out.extend_from_slice(&joined[copied..decided]);
        self.held.extend_from_slice(&joined[decided..]);
        Bytes::from(out)
    }

    /// The body has ended: gives what was held back.
    pub(crate) fn finish(&mut self) -> Bytes {
        let held = std::mem::take(&mut self.held);
        if held.is_empty() {
            return Bytes::new();
        }
        let mut out = Vec::with_capacity(held.len());
        let (copied, decided) = self.run(&held, true, &mut out);
        out.extend_from_slice(&held[copied..decided]);
        Bytes::from(out)
    }

    /// Scrubs a whole value; none where there is nothing to replace.
    pub(crate) fn value(&mut self, value: &[u8]) -> Option<Vec<u8>> {
        let before = self.hits;
        let mut out = Vec::new();
        let (copied, decided) = self.run(value, true, &mut out);
        (self.hits > before).then(|| {
            out.extend_from_slice(&value[copied..decided]);
            out
        })
    }

    /// Scrubs header values; a header whose *name* shows a secret is dropped.
    pub(crate) fn headers(&mut self, headers: &mut HeaderMap) {
        if matches!(self.search, Search::Nothing) {
            return;
        }
        let names: Vec<_> = headers.keys().cloned().collect();
        for name in names {
            let text = name.as_str().as_bytes();
            let shows = self
                .lower
                .iter()
                .any(|lower| text.windows(lower.len()).any(|part| part == lower));
            if shows || self.value(text).is_some() {
                self.hits += u64::from(shows);
                headers.remove(&name);
            }
        }
        for value in headers.values_mut() {
            if let Some(scrubbed) = self.value(value.as_bytes()) {
                // A replacement holds the credential's name, which is plain ASCII.
                *value = HeaderValue::from_bytes(&scrubbed)
                    .unwrap_or_else(|_| HeaderValue::from_static("[scrubbed]"));
            }
        }
    }

    /// Goes over `text`: writes what precedes and replaces each place found to `out`, and answers
    /// how far `text` is accounted for in `out` and how far it is decided. Unless `is_last`, what
    /// could become a form with more text stays undecided.
    fn run(&mut self, text: &[u8], is_last: bool, out: &mut Vec<u8>) -> (usize, usize) {
        let (mut copied, mut from) = (0, 0);
        while let Some((at, group)) = self.find(text, from) {
            match settle(&self.groups[group], &text[at..], is_last) {
                Settled::Form { bytes, replacement } => {
                    out.extend_from_slice(&text[copied..at]);
                    out.extend_from_slice(&self.replacements[replacement]);
                    self.hits += 1;
                    copied = at + bytes;
                    from = copied;
                }
                Settled::No => from = at + 1,
                Settled::Open => return (copied, at),
            }
        }
        if is_last {
            return (copied, text.len());
        }
        // Nothing starts before the last seven bytes; in them a prefix may have begun.
        let tail = text.len().saturating_sub(PREFIX_BYTES - 1).max(from);
        let begins = |at: &usize| {
            let rest = &text[*at..];
            self.groups
                .iter()
                .filter_map(|group| group.first())
                .any(|form| form.bytes.starts_with(rest))
        };
        (
            copied,
            (tail..text.len()).find(begins).unwrap_or(text.len()),
        )
    }

    fn find(&self, text: &[u8], from: usize) -> Option<(usize, usize)> {
        match &self.search {
            Search::Automaton(automaton) => {
                let found = automaton.find(aho_corasick::Input::new(text).range(from..))?;
                Some((found.start(), found.pattern().as_usize()))
            }
            Search::Nothing => None,
            Search::Packed(searcher) => {
                let found = searcher.find_in(text, (from..text.len()).into())?;
                Some((found.start(), found.pattern().as_usize()))
            }
        }
    }
}

impl std::fmt::Debug for Scrubber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scrubber([redacted])")
    }
}

enum Settled {
    Form { bytes: usize, replacement: usize },
    No,
    Open,
}

fn settle(group: &[Form], text: &[u8], is_last: bool) -> Settled {
    for form in group {
        if text.starts_with(&form.bytes) {
            return Settled::Form {
                bytes: form.bytes.len(),
                replacement: form.replacement,
            };
        }
        if !is_last && form.bytes.starts_with(text) {
            return Settled::Open;
        }
    }
    Settled::No
}

fn search_for(prefixes: &[&[u8]]) -> Search {
    if prefixes.is_empty() {
        return Search::Nothing;
    }
    let packed = aho_corasick::packed::Config::new()
        .match_kind(MatchKind::LeftmostFirst)
        .builder()
        .extend(prefixes)
        .build();
    if let Some(searcher) = packed {
        return Search::Packed(searcher);
    }
    // Too many prefixes, or a processor without the instructions.
    let automaton = AhoCorasick::builder()
        .kind(Some(AhoCorasickKind::NoncontiguousNFA))
        .build(prefixes);
    match automaton {
        Ok(automaton) => Search::Automaton(automaton),
        // Unreachable by the crate's limits (2^31 states); scrubbing nothing would be a leak.
        Err(error) => unreachable_limits(&error),
    }
}

fn unreachable_limits(error: &aho_corasick::BuildError) -> Search {
    unreachable!("a few hundred prefixes of eight bytes fit an automaton: {error}")
}

#[cfg(test)]
mod tests;
