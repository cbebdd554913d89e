//! Identifiers that cross the wire; opaque to everyone but their maker.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Makes a fresh random identifier.
            #[must_use]
            pub fn random() -> Self {
                Self(format!(concat!($prefix, "_{}"), uuid::Uuid::new_v4().simple()))
            }

            /// The identifier as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

identifier!(
    /// One credential: name, binding and sealed secret, versioned.
    CredentialId, "vcrd"
);
identifier!(
    /// One credential opened for one session and epoch.
    GrantId, "grant"
);
identifier!(
    /// One opening of a session's charter.
    OpeningId, "open"
);
identifier!(
    /// One use of a grant: the handle that joins intent and outcome.
    UseId, "use"
);

/// Who asks: `operator:uid:1000` (a person by kernel credentials), `key:key_..` (an API key), or
/// `session:sesn_..`.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct Principal(String);

impl Principal {
    /// The person behind a unix socket, by the kernel's word.
    #[must_use]
    pub fn operator(uid: u32) -> Self {
        Self(format!("operator:uid:{uid}"))
    }

    /// The holder of an API key.
    #[must_use]
    pub fn key(key_id: &str) -> Self {
        Self(format!("key:{key_id}"))
    }

    /// The principal as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for Principal {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The rights of a connection, fixed by where it came from.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Role {
    /// The operator's socket.
    Admin,
    /// The HTTP face.
    Api,
    /// A turn loop.
    Harness,
    /// mcp-tools.
    Tools,
}
