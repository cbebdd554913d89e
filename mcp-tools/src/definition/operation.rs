//! One operation of a tool definition and its parameters.

use std::ops::Range;

use http::{HeaderName, Method};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use toml::Spanned;

use super::is_name;
use crate::inject;

/// Where an argument goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Place {
    /// A member of the JSON body.
    Body,
    /// A header of the parameter's name.
    Header,
    /// One segment of the path.
    Path,
    /// A pair of the query.
    Query,
}

/// What an argument is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum ValueType {
    /// An array.
    Array,
    /// True or false.
    Boolean,
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// An object.
    Object,
    /// Text.
    String,
}

/// One parameter of an operation.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Name.
    pub name: String,
    /// Where it goes.
    pub place: Place,
    /// What it is.
    pub value_type: ValueType,
    /// Whether a call without it is refused.
    pub is_required: bool,
    /// For the model.
    pub description: String,
}

/// One operation: one tool.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Name within the definition.
    pub name: String,
    /// For the model.
    pub description: String,
    /// Method.
    pub method: Method,
    /// Path below the base URL; `{name}` stands for a path parameter.
    pub path: String,
    /// Whether it changes nothing upstream.
    pub is_read_only: bool,
    /// Whether a repeat has no further effect.
    pub is_idempotent: bool,
    /// Its parameters, in the file's order.
    pub parameters: Vec<Parameter>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Table {
    name: Spanned<String>,
    #[serde(default)]
    description: String,
    method: Spanned<String>,
    path: Spanned<String>,
    #[serde(default)]
    read_only: bool,
    #[serde(default)]
    idempotent: bool,
    #[serde(default)]
    parameters: Vec<ParameterTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ParameterTable {
    name: Spanned<String>,
    #[serde(rename = "in")]
    place: Spanned<String>,
    #[serde(rename = "type")]
    value_type: Spanned<String>,
    #[serde(default)]
    required: bool,
    #[serde(default)]
    description: String,
}

type Misfit = (Range<usize>, String);

impl Table {
    pub(super) fn name_span(&self) -> Range<usize> {
        self.name.span()
    }
}

impl Operation {
    pub(super) fn of(table: &Table) -> Result<Self, Misfit> {
        let name = table.name.get_ref();
        if !is_name(name) {
            let reason = format!(
                "operation name '{name}': expected lower-case letters, digits, '-' and '_', starting with a letter"
            );
            return Err((table.name.span(), reason));
        }
        let method = match table.method.get_ref().as_str() {
            "DELETE" => Method::DELETE,
            "GET" => Method::GET,
            "HEAD" => Method::HEAD,
            "PATCH" => Method::PATCH,
            "POST" => Method::POST,
            "PUT" => Method::PUT,
            other => {
                let reason =
                    format!("method is '{other}', expected GET, HEAD, POST, PUT, PATCH or DELETE");
                return Err((table.method.span(), reason));
            }
        };
        let mut parameters: Vec<Parameter> = Vec::new();
        for parameter in &table.parameters {
            let parsed = Parameter::of(parameter, &method)?;
            if parameters.iter().any(|earlier| earlier.name == parsed.name) {
                return Err((
                    parameter.name.span(),
                    format!("parameter '{}' is there twice", parsed.name),
                ));
            }
            parameters.push(parsed);
        }
        check_path(table.path.get_ref(), &parameters)
            .map_err(|reason| (table.path.span(), reason))?;
        Ok(Self {
            name: name.clone(),
            description: table.description.clone(),
            method,
            path: table.path.get_ref().clone(),
            is_read_only: table.read_only,
            is_idempotent: table.idempotent || table.read_only,
            parameters,
        })
    }

    /// JSON Schema of the arguments.
    #[must_use]
    pub fn input_schema(&self) -> Value {
        let mut properties = Map::new();
        for parameter in &self.parameters {
            let mut schema = Map::new();
            schema.insert(
                "type".to_owned(),
                Value::from(parameter.value_type.as_str()),
            );
            if !parameter.description.is_empty() {
                schema.insert(
                    "description".to_owned(),
                    Value::from(parameter.description.as_str()),
                );
            }
            properties.insert(parameter.name.clone(), Value::Object(schema));
        }
        let required: Vec<&str> = self
            .parameters
            .iter()
            .filter(|parameter| parameter.is_required)
            .map(|parameter| parameter.name.as_str())
            .collect();
        json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
    }
}

impl Parameter {
    fn of(table: &ParameterTable, method: &Method) -> Result<Self, Misfit> {
        let name = table.name.get_ref();
        let place = match table.place.get_ref().as_str() {
            "body" => Place::Body,
            "header" => Place::Header,
            "path" => Place::Path,
            "query" => Place::Query,
            other => {
                return Err((
                    table.place.span(),
                    format!("in is '{other}', expected path, query, header or body"),
                ));
            }
        };
        let value_type = match table.value_type.get_ref().as_str() {
            "array" => ValueType::Array,
            "boolean" => ValueType::Boolean,
            "integer" => ValueType::Integer,
            "number" => ValueType::Number,
            "object" => ValueType::Object,
            "string" => ValueType::String,
            other => {
                let reason = format!(
                    "type is '{other}', expected string, integer, number, boolean, object or array"
                );
                return Err((table.value_type.span(), reason));
            }
        };
        if name.is_empty()
            || name.len() > 64
            || name
                .chars()
                .any(|c| c.is_control() || matches!(c, '{' | '}'))
        {
            return Err((
                table.name.span(),
                "parameter name: expected 1 to 64 characters without braces".to_owned(),
            ));
        }
        let is_flat = !matches!(value_type, ValueType::Array | ValueType::Object);
        let reason = match place {
            Place::Body if matches!(*method, Method::GET | Method::HEAD) => {
                Some(format!("{method} has no body"))
            }
            Place::Header if HeaderName::from_bytes(name.as_bytes()).is_err() => {
                Some(format!("'{name}' is no valid header name"))
            }
            Place::Header if inject::is_reserved(name) => Some(format!(
                "header '{name}' is not a parameter's: it is set by the credential or the connection"
            )),
            Place::Header | Place::Path if !is_flat => {
                Some("only text, numbers and booleans go here".to_owned())
            }
            Place::Path if !table.required => {
                Some(format!("path parameter '{name}' must have required = true"))
            }
            Place::Query if value_type == ValueType::Object => {
                Some("an object cannot go into a query".to_owned())
            }
            _ => None,
        };
        if let Some(reason) = reason {
            return Err((table.place.span(), reason));
        }
        Ok(Self {
            name: name.clone(),
            place,
            value_type,
            is_required: table.required,
            description: table.description.clone(),
        })
    }
}

impl ValueType {
    /// The type's name in JSON Schema.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Array => "array",
            Self::Boolean => "boolean",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Object => "object",
            Self::String => "string",
        }
    }

    /// Whether a value is of this type.
    #[must_use]
    pub fn admits(self, value: &Value) -> bool {
        match self {
            Self::Array => value.is_array(),
            Self::Boolean => value.is_boolean(),
            Self::Integer => value.is_i64() || value.is_u64(),
            Self::Number => value.is_number(),
            Self::Object => value.is_object(),
            Self::String => value.is_string(),
        }
    }
}

fn check_path(path: &str, parameters: &[Parameter]) -> Result<(), String> {
    if !path.starts_with('/') {
        return Err(format!("path is '{path}', expected it to start with '/'"));
    }
    if path.contains(['?', '#', '\\', '%'])
        || path.chars().any(|c| c.is_control() || c.is_whitespace())
    {
        return Err("path holds a query, an escape or white space; use parameters".to_owned());
    }
    let mut placeholders = Vec::new();
    for segment in path.split('/') {
        if matches!(segment, "." | "..") {
            return Err("path holds a dot segment".to_owned());
        }
        if let Some(name) = segment
            .strip_prefix('{')
            .and_then(|rest| rest.strip_suffix('}'))
        {
            placeholders.push(name);
        } else if segment.contains(['{', '}']) {
            return Err(format!(
                "path segment '{segment}': a placeholder must be the whole segment"
            ));
        }
    }
    for name in &placeholders {
        if !parameters
            .iter()
            .any(|parameter| parameter.place == Place::Path && parameter.name == *name)
        {
            return Err(format!(
                "path names '{{{name}}}' but no parameter with in = \"path\" has that name"
            ));
        }
    }
    let unused = parameters
        .iter()
        .find(|p| p.place == Place::Path && !placeholders.contains(&p.name.as_str()));
    match unused {
        Some(parameter) => Err(format!(
            "path does not hold '{{{}}}', which is a path parameter",
            parameter.name
        )),
        None => Ok(()),
    }
}
