//! Names of streams and events.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::SessionError;

/// Longest part after the prefix of a stream's name.
const MAX_BODY_BYTES: usize = 64;

/// Names a stream: `sesn_..` for a session, other prefixes for other objects that are kept as events.
///
/// Shape: lower-case letters, `_`, then 1 to 64 ASCII letters and digits.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct SessionId(String);

impl SessionId {
    /// Makes a new name with this prefix (`sesn` or `sesn_`), unique and ascending in time.
    ///
    /// # Panics
    ///
    /// When the prefix is not made of lower-case letters; it is a constant of the caller.
    pub fn random(prefix: &str) -> Self {
        let prefix = prefix.trim_end_matches('_');
        let name = format!("{prefix}_{}", uuid::Uuid::now_v7().simple());
        name.parse()
            .expect("a prefix of lower-case letters and a uuid make a name")
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the letters before the underscore.
    pub fn prefix(&self) -> &str {
        self.0.split('_').next().unwrap_or_default()
    }

    /// Says whether the stream is a session, the only kind with a lease and a transcript.
    pub fn is_session(&self) -> bool {
        self.prefix() == "sesn"
    }
}

impl FromStr for SessionId {
    type Err = SessionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::try_from(text.to_owned())
    }
}

impl TryFrom<String> for SessionId {
    type Error = SessionError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let well_formed = text.split_once('_').is_some_and(|(prefix, body)| {
            !prefix.is_empty()
                && prefix.len() <= 16
                && prefix.bytes().all(|b| b.is_ascii_lowercase())
                && (1..=MAX_BODY_BYTES).contains(&body.len())
                && body.bytes().all(|b| b.is_ascii_alphanumeric())
        });
        if well_formed {
            Ok(Self(text))
        } else {
            Err(SessionError::invalid(
                "a stream's name is lower-case letters, an underscore, then 1 to 64 letters and digits",
            ))
        }
    }
}

impl From<SessionId> for String {
    fn from(id: SessionId) -> Self {
        id.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Makes a new event id.
pub(crate) fn event_id() -> String {
    format!("sevt_{}", uuid::Uuid::now_v7().simple())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_outside_the_shape_is_refused() {
        for text in [
            "", "sesn", "sesn_", "_a", "Sesn_a", "sesn_a_b", "sesn_a/b", "sesn_ü", "se2n_a",
            "sesn_a\n",
        ] {
            assert!(text.parse::<SessionId>().is_err(), "{text:?}");
        }
        assert!(
            format!("sesn_{}", "a".repeat(65))
                .parse::<SessionId>()
                .is_err()
        );
        assert!(
            format!("sesn_{}", "a".repeat(64))
                .parse::<SessionId>()
                .is_ok()
        );
    }

    #[test]
    fn a_random_name_carries_its_prefix_and_survives_json() {
        let id = SessionId::random("vlt_");
        assert_eq!(id.prefix(), "vlt");
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(serde_json::from_str::<SessionId>(&json).unwrap(), id);
        assert!(serde_json::from_str::<SessionId>("\"../x\"").is_err());
    }
}
