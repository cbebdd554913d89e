//! Where and how a credential may be used.

use serde::{Deserialize, Serialize};

/// What a credential is, which decides its default slot.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum CredentialKind {
    /// `Authorization: Basic base64(username:secret)`.
    Basic,
    /// `Authorization: Bearer secret`.
    Bearer,
    /// The secret in a header of its own.
    Header,
    /// No secret at all: the use is still decided and recorded (a local model, for example).
    None,
    /// The secret in a query parameter.
    Query,
}

/// Where in a request the secret goes; nowhere else, ever.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "in")]
#[non_exhaustive]
pub enum Slot {
    /// `Authorization: Basic`, rendered from the user name and the secret.
    Basic {
        /// The user name before the colon; not secret.
        username: String,
    },
    /// A header; the value is `prefix` followed by the secret.
    Header {
        /// Header name in lower case.
        name: String,
        /// What stands before the secret, `"Bearer "` for example; may be empty.
        #[serde(default)]
        prefix: String,
    },
    /// Nothing is injected.
    None,
    /// A query parameter of the request's URL.
    Query {
        /// Parameter name.
        name: String,
    },
}

/// Scheme, host and port that a request goes to, in canonical form: lower-case host without a
/// trailing dot, port always explicit.
#[derive(Clone, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct Destination {
    /// `http` or `https`.
    pub scheme: String,
    /// Host name or address literal in canonical form (IPv6 without brackets).
    pub host: String,
    /// Port.
    pub port: u16,
}

/// The immutable part of a credential: another host, slot or scheme means giving the secret again.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Binding {
    /// The one destination.
    pub destination: Destination,
    /// Methods allowed, upper case; empty means all.
    #[serde(default)]
    pub methods: Vec<String>,
    /// Path prefixes allowed, each starting with `/`; empty means all.
    #[serde(default)]
    pub path_prefixes: Vec<String>,
    /// Where the secret goes.
    pub slot: Slot,
}

/// Why a `--host` or a binding was not accepted.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct BindingError(pub String);

impl Destination {
    /// Parses `[SCHEME://]HOST[:PORT]` as the operator types it: https unless given, http assumed
    /// for a loopback host.
    ///
    /// # Errors
    /// User information, a path, a wildcard, an unknown scheme or an unparsable host.
    pub fn parse(text: &str) -> Result<Self, BindingError> {
        let error = |why: &str| BindingError(format!("host '{text}': {why}"));
        if let Some((_, host)) = text.rsplit_once('@') {
            // What stands before it may be a password and is not repeated.
            return Err(BindingError(format!(
                "host '..@{host}': user information is not allowed in a host"
            )));
        }
        if text.contains('*') {
            return Err(error("a wildcard cannot be bound; name the exact host"));
        }
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(error("white space or control characters are not allowed"));
        }
        let with_scheme = if text.contains("://") {
            text.to_owned()
        } else {
            format!("https://{text}")
        };
        let url = url::Url::parse(&with_scheme).map_err(|e| error(&e.to_string()))?;
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(error("only SCHEME://HOST:PORT, without a path or a query"));
        }
        let mut destination =
            Self::of(&url).ok_or_else(|| error("expected http or https and a host"))?;
        if !text.contains("://") && destination.is_loopback() {
            "http".clone_into(&mut destination.scheme);
            // The default port follows the scheme unless the operator named one.
            if url.port().is_none() && !text.ends_with(":443") {
                destination.port = 80;
            }
        }
        Ok(destination)
    }

    /// The destination of a parsed URL, or none where the scheme is not http(s) or has no host.
    #[must_use]
    pub fn of(url: &url::Url) -> Option<Self> {
        if !matches!(url.scheme(), "http" | "https") {
            return None;
        }
        let host = match url.host()? {
            url::Host::Domain(name) => name.trim_end_matches('.').to_ascii_lowercase(),
            url::Host::Ipv4(address) => address.to_string(),
            url::Host::Ipv6(address) => address.to_string(),
        };
        if host.is_empty() {
            return None;
        }
        Some(Self {
            scheme: url.scheme().to_owned(),
            host,
            port: url.port_or_known_default()?,
        })
    }

    /// Whether the host is this machine's loopback, by its literal or the name `localhost`.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost"
            || self
                .host
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    }

    /// `scheme://host:port`, IPv6 in brackets.
    #[must_use]
    pub fn origin(&self) -> String {
        if self.host.contains(':') {
            format!("{}://[{}]:{}", self.scheme, self.host, self.port)
        } else {
            format!("{}://{}:{}", self.scheme, self.host, self.port)
        }
    }
}

impl Binding {
    /// Whether a request lies within this binding; the reason where it does not.
    ///
    /// # Errors
    /// The stable reason code: `destination_not_bound`, `method_not_bound`, `path_not_bound`.
    pub fn admits(
        &self,
        destination: &Destination,
        method: &str,
        path: &str,
    ) -> Result<(), &'static str> {
        if &self.destination != destination {
            return Err("destination_not_bound");
        }
        if !self.methods.is_empty() && !self.methods.iter().any(|m| m == method) {
            return Err("method_not_bound");
        }
        let within = |prefix: &String| {
            path == prefix
                || path
                    .strip_prefix(prefix.as_str())
                    .is_some_and(|rest| prefix.ends_with('/') || rest.starts_with('/'))
        };
        if !self.path_prefixes.is_empty() && !self.path_prefixes.iter().any(within) {
            return Err("path_not_bound");
        }
        Ok(())
    }
}
