//! What is taken: names, bindings in canonical form, secrets that can be scrubbed.

use claviger_vault_memory::SecretBytes;
use claviger_vault_protocol::admin::{PUT_PURPOSE, Put};
use claviger_vault_protocol::{Binding, CredentialKind, Refusal, Sealed, Slot};

use crate::vault::Unsealed;

/// Below this, the scrubber cannot tell a secret from chance.
const SHORT: usize = 12;
/// Greatest secret; larger things are not credentials.
const LARGEST: usize = 64 * 1024;
/// Greatest metadata, as JSON.
const LARGEST_METADATA: usize = 16 * 1024;

/// Opens a secret that was sealed to the vault's key, and checks it.
pub(super) fn receive(
    open: &Unsealed,
    sealed: &Sealed,
    associated: &[u8],
    short: bool,
) -> Result<SecretBytes, Refusal> {
    let secret = open
        .key_pair
        .open(sealed, PUT_PURPOSE, associated)
        .map_err(|_| {
            Refusal::new(
                "malformed_request",
                "the secret was not sealed to this vault for this name and binding",
            )
            .with_fix("seal it again with the key in vault.pub")
        })?;
    let bytes = secret.expose();
    if bytes.is_empty() {
        return Err(Refusal::new("empty_secret", "the secret is empty"));
    }
    if bytes.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
        return Err(Refusal::new(
            "secret_has_line_break",
            "the secret contains a line break or a zero byte",
        ));
    }
    if bytes.len() > LARGEST {
        return Err(Refusal::new(
            "malformed_request",
            "a secret has at most 64 KiB",
        ));
    }
    if bytes.len() < SHORT && !short {
        return Err(Refusal::new(
            "secret_too_short",
            "a secret under 12 bytes cannot be scrubbed from answers",
        )
        .with_fix("add --short if that is acceptable"));
    }
    Ok(secret)
}

/// Checks names, variable and metadata.
pub(super) fn check_name(query: &Put) -> Result<(), Refusal> {
    let malformed = |why: &str| Err(Refusal::new("malformed_request", why));
    if !is_name(&query.name) {
        return malformed("a credential's name is 1 to 64 of A-Z a-z 0-9 _ . -");
    }
    let collection = query.collection.strip_prefix("vlt_").unwrap_or_default();
    if collection.is_empty()
        || collection.len() > 64
        || !collection.chars().all(|c| c.is_ascii_alphanumeric())
    {
        return malformed("a collection's name is vlt_ and 1 to 64 letters and digits");
    }
    if let Some(variable) = &query.variable {
        let legal = variable.len() <= 64
            && variable.starts_with(|c: char| c.is_ascii_uppercase() || c == '_')
            && variable
                .chars()
                .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
        let reserved = matches!(
            variable.as_str(),
            "HOME" | "LANG" | "PATH" | "SHELL" | "USER"
        ) || ["LD_", "CLAVIGER_"]
            .iter()
            .any(|prefix| variable.starts_with(prefix))
            || variable.ends_with("_PROXY");
        if !legal || reserved {
            return malformed("this environment variable cannot carry a placeholder");
        }
    }
    if !(query.metadata.is_null() || query.metadata.is_object()) {
        return malformed("metadata is a JSON object");
    }
    if query.metadata.to_string().len() > LARGEST_METADATA {
        return malformed("metadata has at most 16 KiB");
    }
    Ok(())
}

/// A binding is taken only in its canonical form: what is compared later is compared byte by byte.
pub(super) fn check_binding(query: &Put) -> Result<(), Refusal> {
    let malformed = |why: &str| Err(Refusal::new("malformed_request", why));
    let Binding {
        destination,
        methods,
        path_prefixes,
        slot,
    } = &query.binding;
    if claviger_vault_protocol::Destination::parse(&destination.origin()).as_ref()
        != Ok(destination)
    {
        return malformed("the binding's destination is not in canonical form");
    }
    if methods.len() > 16 || !methods.iter().all(|method| is_method(method)) {
        return malformed("a binding's methods are upper-case words");
    }
    let is_prefix = |path: &String| {
        path.starts_with('/')
            && path.len() <= 1024
            && !path.contains(['?', '#', '\\'])
            && !path.chars().any(|c| c.is_control() || c.is_whitespace())
            && !path.split('/').any(|segment| matches!(segment, "." | ".."))
    };
    if path_prefixes.len() > 64 || !path_prefixes.iter().all(is_prefix) {
        return malformed(
            "a binding's path prefixes start with / and have no query and no dot segments",
        );
    }
    let is_text = |text: &str| text.len() <= 256 && !text.chars().any(char::is_control);
    let is_token = |text: &str| {
        !text.is_empty()
            && text.len() <= 128
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c))
    };
    let fits = match (query.kind, slot) {
        (CredentialKind::None, Slot::None) => true,
        (CredentialKind::Basic, Slot::Basic { username }) => {
            is_text(username) && !username.contains(':')
        }
        (CredentialKind::Bearer | CredentialKind::Header, Slot::Header { name, prefix }) => {
            let foreign = [
                "host",
                "content-length",
                "transfer-encoding",
                "connection",
                "upgrade",
                "te",
                "trailer",
            ];
            is_token(name)
                && name.to_ascii_lowercase() == *name
                && !foreign.contains(&name.as_str())
                && is_text(prefix)
        }
        (CredentialKind::Query, Slot::Query { name }) => is_token(name),
        _ => false,
    };
    if fits {
        Ok(())
    } else {
        malformed("the binding's slot does not fit the credential's kind")
    }
}

/// Whether a text is a credential's or tool's name.
pub(crate) fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// Whether a text is an HTTP method as bindings and permits write it.
pub(crate) fn is_method(text: &str) -> bool {
    (1..=16).contains(&text.len()) && text.chars().all(|c| c.is_ascii_uppercase() || c == '-')
}
