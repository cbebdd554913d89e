//! Reading the fields of a body, with their limits, into values that are right.

use serde_json::{Map, Value};

use crate::problem::{Answer, Problem};

/// An object of a body and where it stands in it.
#[derive(Clone, Debug)]
pub(crate) struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: String,
}

impl<'a> Fields<'a> {
    /// Reads an object; `path` is empty for the body itself.
    pub(crate) fn of(value: &'a Value, path: impl Into<String>) -> Answer<Self> {
        let path = path.into();
        match value {
            Value::Object(map) => Ok(Self { map, path }),
            _ => Err(Problem::field(
                if path.is_empty() { "body" } else { &path },
                "must be an object",
            )),
        }
    }

    /// Refuses fields that nobody reads: a setting that is silently without effect is worse than none.
    pub(crate) fn only(&self, known: &[&str]) -> Answer<()> {
        if self.map.keys().all(|key| known.contains(&key.as_str())) {
            return Ok(());
        }
        // The name of the unknown field is the caller's text and stays out of the answer.
        let place = if self.path.is_empty() {
            "body"
        } else {
            &self.path
        };
        Err(Problem::invalid(
            "unknown_field",
            format!("{place}: has a field besides {}", known.join(", ")),
        ))
    }

    /// The path of a field.
    pub(crate) fn path(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    /// A field, also where it is `null`.
    pub(crate) fn present(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name)
    }

    /// A field that is there and not `null`.
    pub(crate) fn value(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// An object field that is there and not `null`.
    pub(crate) fn object(&self, name: &str) -> Answer<Option<Self>> {
        self.value(name)
            .map(|value| Fields::of(value, self.path(name)))
            .transpose()
    }

    /// A text of at most `most` characters; none where absent or `null`.
    pub(crate) fn text(&self, name: &str, most: usize) -> Answer<Option<&'a str>> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) if text.chars().count() <= most => Ok(Some(text)),
            Some(Value::String(_)) => Err(Problem::field(
                &self.path(name),
                &format!("must be at most {most} characters"),
            )),
            Some(_) => Err(Problem::field(&self.path(name), "must be a string")),
        }
    }

    /// A text that must be there and not be empty.
    pub(crate) fn required(&self, name: &str, most: usize) -> Answer<&'a str> {
        match self.text(name, most)? {
            Some(text) if !text.is_empty() => Ok(text),
            _ => Err(Problem::field(
                &self.path(name),
                "is required and must not be empty",
            )),
        }
    }

    pub(crate) fn flag(&self, name: &str) -> Answer<Option<bool>> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(Problem::field(&self.path(name), "must be true or false")),
        }
    }

    /// A list with its items' paths; empty where absent or `null`.
    pub(crate) fn list(&self, name: &str, most: usize) -> Answer<Vec<(String, &'a Value)>> {
        match self.value(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) if items.len() <= most => {
                let path = self.path(name);
                Ok(items
                    .iter()
                    .enumerate()
                    .map(|(at, item)| (format!("{path}.{at}"), item))
                    .collect())
            }
            Some(Value::Array(_)) => Err(Problem::field(
                &self.path(name),
                &format!("must have at most {most} items"),
            )),
            Some(_) => Err(Problem::field(&self.path(name), "must be a list")),
        }
    }

    /// A list of texts.
    pub(crate) fn texts(&self, name: &str, most: usize) -> Answer<Vec<&'a str>> {
        let text = |(path, item): (String, &'a Value)| {
            item.as_str()
                .ok_or_else(|| Problem::field(&path, "must be a string"))
        };
        self.list(name, most)?.into_iter().map(text).collect()
    }

    /// Refuses a feature that is asked for and not there.
    pub(crate) fn without(&self, name: &str, code: &str) -> Answer<()> {
        let is_empty = match self.value(name) {
            None => true,
            Some(Value::Array(items)) => items.is_empty(),
            Some(_) => false,
        };
        if is_empty {
            Ok(())
        } else {
            Err(Problem::invalid(
                code,
                format!("{}: is not supported", self.path(name)),
            ))
        }
    }

    /// Applies a metadata patch: a text sets a key, `null` takes it away. At most 16 pairs remain.
    pub(crate) fn metadata(&self, current: Option<&Value>) -> Answer<Value> {
        let mut metadata = current
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default();
        let invalid = |rule: &str| {
            Problem::invalid(
                "invalid_metadata",
                format!("{}: {rule}", self.path("metadata")),
            )
        };
        match self.value("metadata") {
            None => {}
            Some(Value::Object(patch)) => {
                for (key, value) in patch {
                    match value {
                        Value::Null => drop(metadata.shift_remove(key)),
                        Value::String(text)
                            if text.chars().count() <= 512 && key.chars().count() <= 64 =>
                        {
                            metadata.insert(key.clone(), text.clone().into());
                        }
                        _ => {
                            return Err(invalid(
                                "keys have at most 64 characters, values are strings of at most 512",
                            ));
                        }
                    }
                }
            }
            Some(_) => return Err(invalid("must be an object")),
        }
        if metadata.len() > 16 {
            return Err(invalid("holds at most 16 pairs"));
        }
        Ok(Value::Object(metadata))
    }
}
