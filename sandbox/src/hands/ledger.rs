//! What became of each key of a session, in bounded memory.

use std::collections::{HashMap, VecDeque};

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use crate::{HandsError, Ledger, Output, SandboxId};

/// Bytes of recorded answers per session; the oldest are forgotten first, but not that they ran.
const MAX_ANSWER_BYTES: usize = 16 << 20;
/// Keys per session, answered or forgotten.
const MAX_KEYS: usize = 16_384;

/// How a call ended.
pub(super) type Verdict = Result<Output, HandsError>;

/// Tells who asked what, so that a key is not reused for something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint([u8; 32]);

impl Fingerprint {
    pub(super) fn of(sandbox: &SandboxId, name: &str, input: &Value) -> Self {
        let mut hash = Sha256::new();
        for part in [
            sandbox.as_str().as_bytes(),
            name.as_bytes(),
            input.to_string().as_bytes(),
        ] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }
}

#[derive(Debug)]
enum State {
    Done(Verdict),
    Forgotten,
    Running(watch::Receiver<Option<Verdict>>),
}

#[derive(Debug)]
struct Entry {
    fingerprint: Fingerprint,
    state: State,
}

/// What a key leads to.
#[derive(Debug)]
pub(super) enum Found {
    Done(Verdict),
    New,
    Running(watch::Receiver<Option<Verdict>>),
}

/// The keys of one session.
#[derive(Debug, Default)]
pub(super) struct Book {
    entries: HashMap<String, Entry>,
    /// Answered keys with their sizes, oldest first.
    answered: VecDeque<(String, usize)>,
    answer_bytes: usize,
    /// Keys whose answers are forgotten, oldest first.
    forgotten: VecDeque<String>,
}

impl Book {
    pub(super) fn find(&self, key: &str, fingerprint: Fingerprint) -> Result<Found, HandsError> {
        let Some(entry) = self.entries.get(key) else {
            return Ok(Found::New);
        };
        if entry.fingerprint != fingerprint {
            return Err(HandsError::refused("this key was used for another call"));
        }
        match &entry.state {
            State::Done(verdict) => Ok(Found::Done(verdict.clone())),
            State::Forgotten => Err(forgotten()),
            State::Running(verdict) => Ok(Found::Running(verdict.clone())),
        }
    }

    pub(super) fn look_up(&self, key: &str) -> Result<Ledger, HandsError> {
        match self.entries.get(key).map(|entry| &entry.state) {
            None => Ok(Ledger::Unknown),
            Some(State::Done(Ok(output))) => Ok(Ledger::Done(output.clone())),
            Some(State::Done(Err(error))) => Err(error.clone()),
            Some(State::Forgotten) => Err(forgotten()),
            Some(State::Running(_)) => Ok(Ledger::Running),
        }
    }

    /// Opens an entry for a key that is new.
    pub(super) fn open(
        &mut self,
        key: &str,
        fingerprint: Fingerprint,
    ) -> watch::Sender<Option<Verdict>> {
        let (teller, verdict) = watch::channel(None);
        self.entries.insert(
            key.to_owned(),
            Entry {
                fingerprint,
                state: State::Running(verdict),
            },
        );
        teller
    }

    /// Records how the call ended and forgets the oldest answers beyond the limit.
    pub(super) fn close(&mut self, key: &str, verdict: Verdict) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let size = size_of_verdict(&verdict);
        entry.state = State::Done(verdict);
        self.answered.push_back((key.to_owned(), size));
        self.answer_bytes += size;
        while self.answer_bytes > MAX_ANSWER_BYTES && self.answered.len() > 1
            || self.answered.len() > MAX_KEYS / 2
        {
            let Some((oldest, size)) = self.answered.pop_front() else {
                break;
            };
            self.answer_bytes -= size;
            if let Some(entry) = self.entries.get_mut(&oldest) {
                entry.state = State::Forgotten;
            }
            self.forgotten.push_back(oldest);
        }
        while self.forgotten.len() > MAX_KEYS / 2 {
            let Some(oldest) = self.forgotten.pop_front() else {
                break;
            };
            self.entries.remove(&oldest);
        }
    }

    /// Whether a call is running.
    pub(super) fn is_busy(&self) -> bool {
        self.entries.len() > self.answered.len() + self.forgotten.len()
    }
}

fn forgotten() -> HandsError {
    HandsError::refused("this key has run and its answer is no longer held")
}

fn size_of_verdict(verdict: &Verdict) -> usize {
    match verdict {
        Ok(output) => {
            output
                .content
                .iter()
                .map(|block| block.to_string().len())
                .sum::<usize>()
                + 128
        }
        Err(_) => 128,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Book, Fingerprint, Found};
    use crate::{Ledger, Output, SandboxId};

    fn output(text: &str) -> Output {
        Output {
            content: vec![json!({ "type": "text", "text": text })],
            is_error: false,
            elapsed_ms: 1,
        }
    }

    #[test]
    fn a_key_leads_from_unknown_to_running_to_its_answer() {
        let mut book = Book::default();
        let sandbox = SandboxId::random();
        let print = Fingerprint::of(&sandbox, "bash", &json!({ "command": "true" }));
        assert!(matches!(book.find("s/1", print), Ok(Found::New)));
        assert_eq!(book.look_up("s/1"), Ok(Ledger::Unknown));
        drop(book.open("s/1", print));
        assert!(matches!(book.find("s/1", print), Ok(Found::Running(_))));
        assert!(book.is_busy());
        book.close("s/1", Ok(output("hi")));
        assert!(!book.is_busy());
        assert_eq!(book.look_up("s/1"), Ok(Ledger::Done(output("hi"))));
    }

    #[test]
    fn a_key_reused_for_another_call_is_refused() {
        let mut book = Book::default();
        let sandbox = SandboxId::random();
        let one = Fingerprint::of(&sandbox, "bash", &json!({ "command": "true" }));
        let other = Fingerprint::of(&sandbox, "bash", &json!({ "command": "false" }));
        drop(book.open("s/1", one));
        assert!(book.find("s/1", other).is_err());
    }

    #[test]
    fn forgotten_answers_are_refused_and_never_run_again() {
        let mut book = Book::default();
        let print = Fingerprint::of(&SandboxId::random(), "read", &json!({}));
        let big = "x".repeat(9 << 20);
        for key in ["s/1", "s/2", "s/3"] {
            drop(book.open(key, print));
            book.close(key, Ok(output(&big)));
        }
        assert!(
            book.find("s/1", print).is_err(),
            "its answer is gone, the fact that it ran is not"
        );
        assert!(book.find("s/2", print).is_err());
        assert!(matches!(book.find("s/3", print), Ok(Found::Done(Ok(_)))));
        assert!(book.answer_bytes <= super::MAX_ANSWER_BYTES);
    }

    #[test]
    fn memory_stays_bounded_by_keys() {
        let mut book = Book::default();
        let print = Fingerprint::of(&SandboxId::random(), "read", &json!({}));
        for number in 0..3 * super::MAX_KEYS {
            let key = number.to_string();
            drop(book.open(&key, print));
            book.close(&key, Ok(output("")));
        }
        assert!(book.entries.len() <= super::MAX_KEYS);
    }
}
