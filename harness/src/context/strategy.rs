//! Named ways of rendering a log, pinned in it.
//!
//! A strategy never changes once it has a name: a better one gets a new name, so that recorded
//! sessions can be rendered both ways and compared.

use serde_json::{Value, json};

/// Results kept by `clear-old-results/v1`.
const KEPT_RESULTS: usize = 20;

/// How the log is rendered.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Strategy {
    /// Replaces the results of early tool uses by a notice, in steps, so that the cached prefix
    /// changes rarely. Made for small context windows.
    ClearOldResults,
    /// Everything, as it happened.
    #[default]
    Plain,
}

impl Strategy {
    /// Its name in `policy.pinned` and in each request's event.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ClearOldResults => "clear-old-results/v1",
            Self::Plain => "plain/v1",
        }
    }

    /// The strategy of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::ClearOldResults, Self::Plain]
            .into_iter()
            .find(|strategy| strategy.name() == name)
    }

    /// How many of the first result messages are rendered without their content.
    pub(super) fn cleared(self, results: usize) -> usize {
        match self {
            Self::ClearOldResults => {
                results.saturating_sub(KEPT_RESULTS) / KEPT_RESULTS * KEPT_RESULTS
            }
            Self::Plain => 0,
        }
    }
}

/// A result without its content.
pub(super) fn clear(block: &Value) -> Value {
    let mut block = block.clone();
    block["content"] =
        json!([{"type": "text", "text": "[result cleared; call the tool again if it is needed]"}]);
    block
}
