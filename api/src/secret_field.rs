//! Cuts secrets out of a JSON body before any parser sees it.
//!
//! The body is scanned byte by byte as it arrives. What is not secret goes to a second buffer as it came; the string
//! under a key of [`SECRET_FIELDS`], at any depth, goes unescaped into the secret arena and leaves `null` behind. The
//! scanner follows the JSON grammar strictly and gives up at the first byte that does not fit, so that it never loses
//! track of which string belongs to which key.

mod unescape;

use claviger_vault_protocol::SecretBytes;
use zeroize::{Zeroize as _, Zeroizing};

use unescape::{Step, Unescape};

/// Keys whose values are secret wherever they stand, compared without regard to case.
pub(crate) const SECRET_FIELDS: [&str; 6] = [
    "access_token",
    "authorization_token",
    "client_secret",
    "refresh_token",
    "secret_value",
    "token",
];

/// Deepest nesting of a body; the log takes 100 levels of payload, and a body is wrapped before it gets there.
const MAX_DEPTH: usize = 64;
/// Longest secret.
const MAX_SECRET_BYTES: usize = 64 * 1024;
/// Most secrets of one body.
const MAX_SECRETS: usize = 16;
/// What is kept of a key for the path; longer keys match no field.
const MAX_KEY_BYTES: usize = 64;

/// Why a body was given up. Quotes nothing of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum ScanError {
    /// No memory for a secret.
    #[error("no secret memory")]
    Memory,
    /// Not JSON.
    #[error("malformed JSON")]
    Malformed,
    /// More secrets than one body may hold.
    #[error("too many secret fields")]
    ManySecrets,
    /// A secret is too long.
    #[error("a secret is longer than 64 KiB")]
    SecretTooLong,
    /// Nested too deeply.
    #[error("nested deeper than 64 levels")]
    TooDeep,
}

/// A secret that was cut out.
#[derive(Debug)]
pub(crate) struct SecretField {
    /// Keys and indices from the root.
    pub(crate) path: Vec<String>,
    /// The unescaped string; none where the value was a number or a boolean.
    pub(crate) text: Option<SecretBytes>,
}

/// A body without its secrets.
#[derive(Debug)]
pub(crate) struct Cut {
    /// JSON in which every secret is `null`.
    pub(crate) body: Zeroizing<Vec<u8>>,
    /// The secrets in the order of the body.
    pub(crate) secrets: Vec<SecretField>,
}

/// The scanner; bytes go in by [`Scanner::push`], which wipes nothing: its caller owns them.
#[derive(Debug)]
pub(crate) struct Scanner {
    body: Zeroizing<Vec<u8>>,
    secrets: Vec<SecretField>,
    levels: Vec<Level>,
    state: State,
    unescape: Unescape,
    key: Key,
    secret: Growing,
}

#[derive(Debug)]
enum Level {
    Array { index: usize, is_secret: bool },
    Object { key: String, is_secret: bool },
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// A value must come; in a fresh array it may end instead.
    Value {
        may_end: bool,
    },
    /// A key must come; in a fresh object it may end instead.
    Key {
        may_end: bool,
    },
    InKey,
    Colon,
    /// A string that is no secret.
    InText {
        escaped: bool,
    },
    InSecret,
    /// A number or literal.
    InScalar {
        swallow: bool,
    },
    AfterValue,
}

impl Scanner {
    pub(crate) fn new() -> Self {
        Self {
            body: Zeroizing::new(Vec::new()),
            secrets: Vec::new(),
            levels: Vec::new(),
            state: State::Value { may_end: false },
            unescape: Unescape::default(),
            key: Key::default(),
            secret: Growing::default(),
        }
    }

    /// Takes the next bytes of the body.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), ScanError> {
        let mut rest = bytes;
        while let Some((&byte, after)) = rest.split_first() {
            // The bulk of a body is plain text: copy runs of it at once.
            if self.state == (State::InText { escaped: false }) {
                let run = rest
                    .iter()
                    .position(|b| matches!(b, b'"' | b'\\' | 0..=0x1f))
                    .unwrap_or(rest.len());
                if run > 0 {
                    let (text, behind) = rest.split_at(run);
                    self.body.extend_from_slice(text);
                    rest = behind;
                    continue;
                }
            }
            self.step(byte)?;
            rest = after;
        }
        Ok(())
    }

    /// Ends the body.
    pub(crate) fn finish(self) -> Result<Cut, ScanError> {
        let at_end = match self.state {
            State::AfterValue => true,
            State::InScalar { .. } => self.levels.is_empty(),
            _ => false,
        };
        if at_end && self.levels.is_empty() {
            Ok(Cut {
                body: self.body,
                secrets: self.secrets,
            })
        } else {
            Err(ScanError::Malformed)
        }
    }

    fn step(&mut self, byte: u8) -> Result<(), ScanError> {
        let is_space = matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        match self.state {
            State::Value { .. } | State::Key { .. } | State::Colon | State::AfterValue
                if is_space =>
            {
                self.body.push(byte);
            }
            State::Value { may_end: true } if byte == b']' => self.close(byte)?,
            State::Value { .. } => self.begin_value(byte)?,
            State::Key { may_end: true } if byte == b'}' => self.close(byte)?,
            State::Key { .. } if byte == b'"' => {
                self.body.push(byte);
                self.key = Key::default();
                self.unescape = Unescape::default();
                self.state = State::InKey;
            }
            State::InKey => self.in_key(byte)?,
            State::Colon if byte == b':' => {
                self.body.push(byte);
                self.state = State::Value { may_end: false };
            }
            State::InText { escaped } => {
                if byte < 0x20 {
                    return Err(ScanError::Malformed);
                }
                self.body.push(byte);
                self.state = match byte {
                    _ if escaped => State::InText { escaped: false },
                    b'"' => State::AfterValue,
                    _ => State::InText {
                        escaped: byte == b'\\',
                    },
                };
            }
            State::InSecret => self.in_secret(byte)?,
            State::InScalar { swallow }
                if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'+') =>
            {
                if !swallow {
                    self.body.push(byte);
                }
            }
            State::InScalar { .. } => {
                self.state = State::AfterValue;
                self.step(byte)?;
            }
            State::AfterValue => self.after_value(byte)?,
            State::Key { .. } | State::Colon => return Err(ScanError::Malformed),
        }
        Ok(())
    }

    fn begin_value(&mut self, byte: u8) -> Result<(), ScanError> {
        let is_secret = match self.levels.last() {
            Some(Level::Array { is_secret, .. } | Level::Object { is_secret, .. }) => *is_secret,
            None => false,
        };
        match byte {
            b'"' if is_secret => {
                self.unescape = Unescape::default();
                self.secret = Growing::default();
                self.state = State::InSecret;
            }
            b'"' => {
                self.body.push(byte);
                self.state = State::InText { escaped: false };
            }
            b'{' => {
                self.open(
                    byte,
                    Level::Object {
                        key: String::new(),
                        is_secret: false,
                    },
                )?;
                self.state = State::Key { may_end: true };
            }
            b'[' => {
                // What stands in a list under a secret key is as secret as what stands there alone.
                self.open(
                    byte,
                    Level::Array {
                        index: 0,
                        is_secret,
                    },
                )?;
                self.state = State::Value { may_end: true };
            }
            b't' | b'f' | b'-' | b'0'..=b'9' if is_secret => {
                self.cut(None)?;
                self.state = State::InScalar { swallow: true };
            }
            b't' | b'f' | b'n' | b'-' | b'0'..=b'9' => {
                self.body.push(byte);
                self.state = State::InScalar { swallow: false };
            }
            _ => return Err(ScanError::Malformed),
        }
        Ok(())
    }

    fn in_key(&mut self, byte: u8) -> Result<(), ScanError> {
        self.body.push(byte);
        match self.unescape.step(byte)? {
            Step::More => {}
            Step::Char { bytes, len } => self.key.extend(&bytes[..len]),
            Step::End => {
                let (name, is_a_secret) = self.key.take();
                if let Some(Level::Object { key, is_secret }) = self.levels.last_mut() {
                    *key = name;
                    *is_secret = is_a_secret;
                }
                self.state = State::Colon;
            }
        }
        Ok(())
    }

    fn in_secret(&mut self, byte: u8) -> Result<(), ScanError> {
        match self.unescape.step(byte)? {
            Step::More => {}
            Step::Char { mut bytes, len } => {
                let pushed = self.secret.extend(&bytes[..len]);
                bytes.zeroize();
                pushed?;
            }
            Step::End => {
                let text = std::mem::take(&mut self.secret).finish()?;
                if std::str::from_utf8(text.expose()).is_err() {
                    return Err(ScanError::Malformed);
                }
                self.cut(Some(text))?;
                self.state = State::AfterValue;
            }
        }
        Ok(())
    }

    fn after_value(&mut self, byte: u8) -> Result<(), ScanError> {
        match (byte, self.levels.last_mut()) {
            (b',', Some(Level::Object { .. })) => {
                self.body.push(byte);
                self.state = State::Key { may_end: false };
            }
            (b',', Some(Level::Array { index, .. })) => {
                *index += 1;
                self.body.push(byte);
                self.state = State::Value { may_end: false };
            }
            (b'}', Some(Level::Object { .. })) | (b']', Some(Level::Array { .. })) => {
                self.close(byte)?;
            }
            _ => return Err(ScanError::Malformed),
        }
        Ok(())
    }

    fn open(&mut self, byte: u8, level: Level) -> Result<(), ScanError> {
        if self.levels.len() == MAX_DEPTH {
            return Err(ScanError::TooDeep);
        }
        self.body.push(byte);
        self.levels.push(level);
        Ok(())
    }

    fn close(&mut self, byte: u8) -> Result<(), ScanError> {
        self.levels.pop().ok_or(ScanError::Malformed)?;
        self.body.push(byte);
        self.state = State::AfterValue;
        Ok(())
    }

    fn cut(&mut self, text: Option<SecretBytes>) -> Result<(), ScanError> {
        if self.secrets.len() == MAX_SECRETS {
            return Err(ScanError::ManySecrets);
        }
        let path = self.levels.iter().map(|level| match level {
            Level::Array { index, .. } => index.to_string(),
            Level::Object { key, .. } => key.clone(),
        });
        let path = path.collect();
        self.body.extend_from_slice(b"null");
        self.secrets.push(SecretField { path, text });
        Ok(())
    }
}

/// The beginning of a key.
#[derive(Debug, Default)]
struct Key {
    bytes: Vec<u8>,
    is_longer: bool,
}

impl Key {
    fn extend(&mut self, bytes: &[u8]) {
        if self.bytes.len() + bytes.len() > MAX_KEY_BYTES {
            self.is_longer = true;
        } else if !self.is_longer {
            self.bytes.extend_from_slice(bytes);
        }
    }

    /// The key as text and whether it names a secret.
    fn take(&mut self) -> (String, bool) {
        let Self { bytes, is_longer } = std::mem::take(self);
        let is_secret = !is_longer
            && SECRET_FIELDS
                .iter()
                .any(|field| field.as_bytes().eq_ignore_ascii_case(&bytes));
        (String::from_utf8_lossy(&bytes).into_owned(), is_secret)
    }
}

/// A secret of unknown length that grows inside the arena.
#[derive(Debug, Default)]
struct Growing {
    memory: Option<SecretBytes>,
    len: usize,
}

impl Growing {
    fn extend(&mut self, bytes: &[u8]) -> Result<(), ScanError> {
        let end = self.len + bytes.len();
        if end > MAX_SECRET_BYTES {
            return Err(ScanError::SecretTooLong);
        }
        let capacity = self.memory.as_ref().map_or(0, SecretBytes::len);
        if end > capacity {
            let mut larger =
                SecretBytes::new_zeroed((2 * end).max(256)).map_err(|_| ScanError::Memory)?;
            if let Some(old) = self.memory.take() {
                larger.expose_mut()[..self.len].copy_from_slice(&old.expose()[..self.len]);
            }
            self.memory = Some(larger);
        }
        if let Some(memory) = &mut self.memory {
            memory.expose_mut()[self.len..end].copy_from_slice(bytes);
        }
        self.len = end;
        Ok(())
    }

    fn finish(self) -> Result<SecretBytes, ScanError> {
        let mut memory = match self.memory {
            Some(memory) => memory,
            None => SecretBytes::new_zeroed(0).map_err(|_| ScanError::Memory)?,
        };
        memory.truncate(self.len);
        Ok(memory)
    }
}

#[cfg(test)]
mod tests;
