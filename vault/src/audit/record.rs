//! What a record can say: a closed set of typed fields, none of which can hold a secret.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What a caller wants recorded; the log adds number, time and hash.
///
/// ```
/// use claviger_vault::audit::{Decision, Entry, Kind, Label, Op};
/// let entry = Entry {
///     session: Some(Label::new("sesn_1")),
///     decision: Decision::Deny,
///     reason_code: Some(Label::new("no_permit")),
///     ..Entry::new(Kind::Intent, Op::AuthorizeUse)
/// };
/// assert_eq!(serde_json::to_value(&entry).unwrap()["reason_code"], "no_permit");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Which sort of record.
    pub kind: Kind,
    /// What was asked for or done.
    pub op: Op,
    /// What the vault decided.
    pub decision: Decision,
    /// Why, as a stable code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason_code: Option<Label>,
    /// Version of the policy that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_version: Option<u64>,
    /// Who asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub principal: Option<Label>,
    /// The session it was for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<Label>,
    /// The session's epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// The harness instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub harness: Option<Label>,
    /// The sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<Label>,
    /// The tool that wants to use the credential.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool: Option<Label>,
    /// The caller's own number of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<Label>,
    /// The credential.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential_id: Option<Label>,
    /// The credential's version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential_version: Option<u64>,
    /// The credential's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential_name: Option<Label>,
    /// Where the request goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<Destination>,
    /// The request's method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<Label>,
    /// The request's path, never its query; see [`Entry::path_of`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<Text<512>>,
    /// SHA-256 of the canonical request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// How a use ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// The upstream's HTTP status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Bytes of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// How many things were found, read, scrubbed or granted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// User id at the other end of the connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_uid: Option<u32>,
    /// Process id at the other end of the connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_pid: Option<u32>,
    /// Number of the intent that this outcome belongs to.
    #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
    pub intent: Option<u64>,
}

impl Entry {
    /// An entry that says nothing but its kind and operation.
    #[must_use]
    pub fn new(kind: Kind, op: Op) -> Self {
        Self {
            kind,
            op,
            decision: Decision::None,
            reason_code: None,
            policy_version: None,
            principal: None,
            session: None,
            epoch: None,
            harness: None,
            sandbox: None,
            tool: None,
            request_id: None,
            credential_id: None,
            credential_version: None,
            credential_name: None,
            destination: None,
            method: None,
            path: None,
            digest: None,
            outcome: None,
            status: None,
            bytes: None,
            count: None,
            peer_uid: None,
            peer_pid: None,
            intent: None,
        }
    }

    /// The outcome of an intent, with the fields that say whose use it was.
    #[must_use]
    pub fn outcome_of(intent: &Record, outcome: Outcome) -> Self {
        let told = &intent.entry;
        Self {
            principal: told.principal.clone(),
            session: told.session.clone(),
            epoch: told.epoch,
            tool: told.tool.clone(),
            request_id: told.request_id.clone(),
            credential_id: told.credential_id.clone(),
            credential_version: told.credential_version,
            outcome: Some(outcome),
            intent: Some(intent.seq),
            ..Self::new(Kind::Outcome, told.op)
        }
    }

    /// The part of a request target that may be recorded: no query, no fragment.
    #[must_use]
    pub fn path_of(target: &str) -> Text<512> {
        Text::new(target.split(['?', '#']).next().unwrap_or_default())
    }
}

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Version of the format: 1.
    pub v: u8,
    /// Number of the record, dense from 1.
    pub seq: u64,
    /// Wall clock, RFC 3339 in UTC with nanoseconds.
    pub ts: String,
    /// Nanoseconds since the machine started; never runs backwards while the log is open.
    pub mono_ns: u64,
    /// Which start of the machine `mono_ns` counts from.
    pub boot_id: String,
    /// What happened.
    #[serde(flatten)]
    pub entry: Entry,
    /// Leaf hash of the record before; zeros in the first.
    pub prev: Digest,
}

impl Record {
    /// Reads a line; refuses every spelling but the one that the log writes.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Self> {
        let record: Self = serde_json::from_slice(line).ok()?;
        let canonical = serde_json::to_vec(&record).ok()?;
        (record.v == 1 && canonical == line).then_some(record)
    }
}

/// Which sort of record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An operator's verb.
    Admin,
    /// An identity was accepted or refused.
    Auth,
    /// A use is about to happen; durable before it does.
    Intent,
    /// A session, seat or tools instance came to its grants, or lost them.
    Opening,
    /// How a use ended.
    Outcome,
    /// The vault's own life.
    System,
}

/// What was asked for or done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "each is the verb of the same name")]
pub enum Op {
    Accept,
    AddSeal,
    Approve,
    Archive,
    Authenticate,
    AuthorizeUse,
    Backup,
    CreateKey,
    Delete,
    Deny,
    EndOpening,
    Export,
    Flag,
    Init,
    List,
    OpenSeat,
    OpenSession,
    Permit,
    Put,
    ReadAudit,
    Recover,
    RegisterCharter,
    RegisterTools,
    RemoveSeal,
    Report,
    Restore,
    Revoke,
    RevokeKey,
    Rotate,
    RotateKeys,
    Scan,
    Seal,
    SetRecipient,
    Sign,
    Start,
    Stop,
    Unseal,
    Update,
}

/// What the vault decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// It may happen.
    Allow,
    /// It may not.
    Deny,
    /// The vault could not decide or not do it.
    Error,
    /// Nothing was to be decided.
    None,
}

/// How a use ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was not sent, or no answer came.
    Failed,
    /// An answer came, of whatever status.
    Ok,
    /// Nobody knows: a crash lay between.
    Unknown,
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    /// `https`, `postgres` and so on.
    pub scheme: Label,
    /// Host name or address.
    pub host: Label,
    /// Port.
    pub port: u16,
}

/// A name or identifier of at most 128 characters.
pub type Label = Text<128>;

/// Text of at most `MAX` characters that can neither break a line nor deceive a reader.
///
/// Control characters, line separators and characters that change the direction of writing become
/// `\u{..}`; what is too long ends in `…`.
#[derive(Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Text<const MAX: usize>(String);

impl<const MAX: usize> Text<MAX> {
    /// Makes any text fit.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut safe = String::with_capacity(text.len().min(MAX * 4));
        let mut count = 0;
        for letter in text.chars() {
            let escaped = if is_deceptive(letter) {
                letter.escape_unicode().to_string()
            } else {
                letter.to_string()
            };
            let width = escaped.chars().count();
            if count + width > MAX {
                while count >= MAX {
                    safe.pop();
                    count -= 1;
                }
                safe.push('…');
                break;
            }
            safe.push_str(&escaped);
            count += width;
        }
        Self(safe)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_deceptive(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

impl<const MAX: usize> fmt::Debug for Text<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<const MAX: usize> fmt::Display for Text<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<const MAX: usize> From<&str> for Text<MAX> {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl<'de, const MAX: usize> Deserialize<'de> for Text<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::new(&String::deserialize(deserializer)?))
    }
}

/// A SHA-256 hash, written in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Reads 64 lower-case hexadecimal digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        (hex::encode(bytes) == text).then_some(Self(bytes))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(self.0))
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("64 hexadecimal digits expected"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_cannot_break_a_line_or_turn_writing_around() {
        let text = Label::new("a\nb\r\0\u{202e}c\u{2028}d\u{1b}[2K\u{85}");
        assert_eq!(
            text.as_str(),
            r"a\u{a}b\u{d}\u{0}\u{202e}c\u{2028}d\u{1b}[2K\u{85}"
        );
    }

    #[test]
    fn text_is_cut_visibly() {
        assert_eq!(Text::<5>::new("abcde").as_str(), "abcde");
        assert_eq!(Text::<5>::new("abcdef").as_str(), "abcd…");
        assert_eq!(Text::<5>::new("abcd\n").as_str(), "abcd…");
    }

    proptest! {
        #[test]
        fn making_text_fit_twice_changes_nothing(text in any::<String>()) {
            let once = Text::<20>::new(&text);
            prop_assert!(once.as_str().chars().count() <= 20);
            prop_assert!(!once.as_str().chars().any(is_deceptive));
            prop_assert_eq!(Text::<20>::new(once.as_str()), once);
        }
    }

    #[test]
    fn a_path_loses_its_query() {
        assert_eq!(Entry::path_of("/v1/x?token=secret").as_str(), "/v1/x");
        assert_eq!(Entry::path_of("/v1/x#token=secret?a").as_str(), "/v1/x");
        assert_eq!(
            Entry::path_of(&"/a".repeat(600)).as_str().chars().count(),
            512
        );
    }

    #[test]
    fn a_line_has_one_spelling() {
        let record = Record {
            v: 1,
            seq: 7,
            ts: "2026-11-22T10:00:00.000000001Z".into(),
            mono_ns: 5,
            boot_id: "b".into(),
            entry: Entry {
                status: Some(200),
                destination: Some(Destination {
                    scheme: "https".into(),
                    host: "h".into(),
                    port: 443,
                }),
                ..Entry::new(Kind::Outcome, Op::AuthorizeUse)
            },
            prev: Digest([0; 32]),
        };
        let line = serde_json::to_string(&record).unwrap();
        assert_eq!(Record::parse(line.as_bytes()).unwrap(), record);
        for (from, to) in [
            ("\"v\":1", "\"v\":2"),
            ("{\"v\"", "{ \"v\""),
            ("\"v\":1,", "\"v\":1,\"note\":\"x\","),
            ("\"status\":200", "\"status\":2e2"),
            ("\"kind\":\"outcome\",", ""),
            ("https", "\\u0068ttps"),
        ] {
            assert!(line.contains(from), "{from}");
            assert!(
                Record::parse(line.replacen(from, to, 1).as_bytes()).is_none(),
                "{to}"
            );
        }
    }
}
