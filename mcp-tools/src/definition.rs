//! Tool definitions: small TOML files whose hash the vault's permit carries.

mod operation;

use claviger_vault_protocol::present::ToolRow;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use toml::Spanned;
use url::Url;

pub use operation::{Operation, Parameter, Place, ValueType};

use crate::error::ToolsError;

/// Longest full name of a tool (`definition_operation`), by the Messages API and MCP clients.
const MAX_NAME_BYTES: usize = 64;

/// One tool definition: a file `tools/NAME.toml`.
///
/// ```toml
/// name = "tracker"
/// kind = "http"
/// description = "Issue tracker"
/// base_url = "https://tracker.example.com/api"
/// credential = "tracker"
///
/// [[operations]]
/// name = "create_issue"
/// description = "Creates an issue"
/// method = "POST"
/// path = "/issues"
///
/// [[operations.parameters]]
/// name = "title"
/// in = "body"
/// type = "string"
/// required = true
/// ```
#[derive(Clone, Debug)]
pub struct Definition {
    name: String,
    description: String,
    base_url: Url,
    credential: String,
    operations: Vec<Operation>,
    hash: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: Spanned<String>,
    kind: Spanned<String>,
    #[serde(default)]
    description: String,
    base_url: Spanned<String>,
    credential: Spanned<String>,
    operations: Spanned<Vec<operation::Table>>,
}

impl Definition {
    /// Reads a definition; `name` is the file's name without `.toml`.
    ///
    /// # Errors
    /// [`ToolsError::Definition`] with the line and what was expected there.
    pub fn parse(name: &str, text: &str) -> Result<Self, ToolsError> {
        let at = |span: std::ops::Range<usize>, reason: String| ToolsError::Definition {
            file: format!("{name}.toml"),
            line: line_of(text, span.start),
            reason,
        };
        let file: File = toml::from_str(text).map_err(|error| ToolsError::Definition {
            file: format!("{name}.toml"),
            line: error.span().map_or(0, |span| line_of(text, span.start)),
            reason: error.message().to_owned(),
        })?;
        if file.name.get_ref() != name {
            let reason = format!(
                "name is '{}', expected '{name}', the file's own name",
                file.name.get_ref()
            );
            return Err(at(file.name.span(), reason));
        }
        if !is_name(name) {
            let reason = format!(
                "name '{name}': expected lower-case letters, digits, '-' and '_', starting with a letter"
            );
            return Err(at(file.name.span(), reason));
        }
        if file.kind.get_ref() != "http" {
            return Err(at(
                file.kind.span(),
                format!("kind is '{}', expected 'http'", file.kind.get_ref()),
            ));
        }
        let credential = file.credential.get_ref();
        if credential.is_empty() {
            return Err(at(
                file.credential.span(),
                "credential is empty, expected a credential's name".to_owned(),
            ));
        }
        let base_url = base_url(file.base_url.get_ref())
            .map_err(|reason| at(file.base_url.span(), format!("base_url {reason}")))?;
        if file.operations.get_ref().is_empty() {
            return Err(at(
                file.operations.span(),
                "operations is empty, expected at least one".to_owned(),
            ));
        }
        let mut operations: Vec<Operation> = Vec::new();
        for table in file.operations.get_ref() {
            let operation = Operation::of(table).map_err(|(span, reason)| at(span, reason))?;
            if operations
                .iter()
                .any(|earlier| earlier.name == operation.name)
            {
                return Err(at(
                    table.name_span(),
                    format!("operation '{}' is there twice", operation.name),
                ));
            }
            if name.len() + 1 + operation.name.len() > MAX_NAME_BYTES {
                let reason = format!(
                    "'{name}_{}' is longer than {MAX_NAME_BYTES} bytes",
                    operation.name
                );
                return Err(at(table.name_span(), reason));
            }
            operations.push(operation);
        }
        Ok(Self {
            name: name.to_owned(),
            description: file.description,
            base_url,
            credential: credential.clone(),
            operations,
            hash: hex::encode(Sha256::digest(text.as_bytes())),
        })
    }

    /// Its name, which is the file's.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is for.
    #[must_use]
    pub fn description(&self) -> &str {
        &self.description
    }

    /// Where its requests go.
    #[must_use]
    pub fn base_url(&self) -> &Url {
        &self.base_url
    }

    /// Name of the credential that it spends.
    #[must_use]
    pub fn credential(&self) -> &str {
        &self.credential
    }

    /// Hex SHA-256 of the file: what a permit names.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Its operations, in the file's order.
    #[must_use]
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// Its tools as a model sees them, in the file's order.
    #[must_use]
    pub fn tools(&self) -> Vec<ToolRow> {
        self.operations
            .iter()
            .map(|operation| ToolRow {
                name: self.full_name(operation),
                definition: self.name.clone(),
                description: operation.description.clone(),
                input_schema: operation.input_schema(),
                read_only: operation.is_read_only,
                idempotent: operation.is_idempotent,
            })
            .collect()
    }

    /// The operation behind a tool's full name.
    #[must_use]
    pub fn operation(&self, full_name: &str) -> Option<&Operation> {
        let name = full_name.strip_prefix(&self.name)?.strip_prefix('_')?;
        self.operations
            .iter()
            .find(|operation| operation.name == name)
    }

    fn full_name(&self, operation: &Operation) -> String {
        format!("{}_{}", self.name, operation.name)
    }
}

fn base_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("'{text}': {error}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(format!("'{text}': expected http:// or https:// and a host"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("holds user information; a key belongs into a credential".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!("'{text}': expected no query and no fragment"));
    }
    Ok(url)
}

pub(crate) fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.len() <= MAX_NAME_BYTES
        && text.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_')
        })
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()
        .iter()
        .take(offset)
        .filter(|byte| **byte == b'\n')
        .count()
        + 1
}

#[cfg(test)]
mod tests;
