//! Query parameters of lists: limits, cursors, filters.

use axum::extract::FromRequestParts;
use claviger_session::SessionId;
use http::request::Parts;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::problem::{Answer, Problem};

/// The query of a request. Arrays come as `name[]=a&name[]=b`; `beta=true` of older SDKs is nobody's parameter.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parameters(Vec<(String, String)>);

impl<S: Sync> FromRequestParts<S> for Parameters {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Answer<Self> {
        let query = parts.uri.query().unwrap_or_default();
        Ok(Self(
            url::form_urlencoded::parse(query.as_bytes())
                .into_owned()
                .collect(),
        ))
    }
}

impl Parameters {
    /// The last value of a parameter.
    pub(crate) fn one(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .rev()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// All values of an array parameter.
    pub(crate) fn many(&self, name: &str) -> Vec<&str> {
        let is_it = |key: &str| key == name || key.strip_suffix("[]") == Some(name);
        self.0
            .iter()
            .filter(|(key, _)| is_it(key))
            .map(|(_, value)| value.as_str())
            .collect()
    }

    pub(crate) fn flag(&self, name: &str) -> Answer<bool> {
        match self.one(name) {
            None | Some("" | "false" | "0") => Ok(false),
            Some("true" | "1") => Ok(true),
            Some(_) => Err(Problem::field(name, "must be true or false")),
        }
    }

    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> Answer<Option<T>> {
        let parse = |text: &str| {
            text.parse()
                .map_err(|_| Problem::field(name, "must be a whole number"))
        };
        self.one(name).map(parse).transpose()
    }

    pub(crate) fn limit(&self, default: usize, most: usize) -> Answer<usize> {
        match self.number("limit")?.unwrap_or(default) {
            0 => Err(Problem::field("limit", "must be at least 1")),
            limit if limit > most => {
                Err(Problem::field("limit", &format!("must be at most {most}")))
            }
            limit => Ok(limit),
        }
    }

    /// Whether the newest come first.
    pub(crate) fn descending(&self, default: bool) -> Answer<bool> {
        match self.one("order") {
            None => Ok(default),
            Some("desc") => Ok(true),
            Some("asc") => Ok(false),
            Some(_) => Err(Problem::field("order", "must be asc or desc")),
        }
    }

    /// What a cursor points at; it is bound to the order of its list.
    pub(crate) fn cursor(&self, descending: bool) -> Answer<Option<&str>> {
        let rule = || Problem::field("page", "is no cursor of this list");
        match self.one("page") {
            None | Some("") => Ok(None),
            Some(page) => {
                let (order, at) = page.split_once('.').ok_or_else(rule)?;
                if order != order_name(descending) {
                    return Err(rule());
                }
                Ok(Some(at))
            }
        }
    }

    pub(crate) fn created(&self) -> Answer<Created> {
        let time = |name: &str| {
            let parse = |text: &str| text.parse::<Timestamp>();
            self.one(name)
                .map(parse)
                .transpose()
                .map_err(|_| Problem::field(name, "must be an RFC 3339 time"))
        };
        Ok(Created {
            gt: time("created_at[gt]")?,
            gte: time("created_at[gte]")?,
            lt: time("created_at[lt]")?,
            lte: time("created_at[lte]")?,
        })
    }
}

fn order_name(descending: bool) -> &'static str {
    if descending { "desc" } else { "asc" }
}

/// Renders a cursor.
pub(crate) fn cursor(descending: bool, at: &str) -> String {
    format!("{}.{at}", order_name(descending))
}

/// Bounds of a time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Created {
    gt: Option<Timestamp>,
    gte: Option<Timestamp>,
    lt: Option<Timestamp>,
    lte: Option<Timestamp>,
}

impl Created {
    pub(crate) fn admits(&self, at: Timestamp) -> bool {
        self.gt.is_none_or(|bound| at > bound)
            && self.gte.is_none_or(|bound| at >= bound)
            && self.lt.is_none_or(|bound| at < bound)
            && self.lte.is_none_or(|bound| at <= bound)
    }
}

/// What a list of objects is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Listing {
    pub(crate) limit: usize,
    pub(crate) after: Option<SessionId>,
    pub(crate) newest_first: bool,
    pub(crate) include_archived: bool,
    pub(crate) created: Created,
}

impl Listing {
    pub(crate) fn of(parameters: &Parameters) -> Answer<Self> {
        let newest_first = parameters.descending(true)?;
        let after = parameters.cursor(newest_first)?.map(|id| {
            id.parse()
                .map_err(|_| Problem::field("page", "is no cursor of this list"))
        });
        Ok(Self {
            limit: parameters.limit(20, 100)?,
            after: after.transpose()?,
            newest_first,
            include_archived: parameters.flag("include_archived")?,
            created: parameters.created()?,
        })
    }

    pub(crate) fn page(&self, data: Vec<Value>, next: Option<&SessionId>) -> Value {
        json!({"data": data, "next_page": next.map(|id| cursor(self.newest_first, id.as_str()))})
    }
}

impl<S: Sync> FromRequestParts<S> for Listing {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Answer<Self> {
        Self::of(&Parameters::from_request_parts(parts, state).await?)
    }
}
