//! Which layers of isolation this machine offers.

use serde::Serialize;

/// What was found about one layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Layer {
    /// The layer: `user namespaces`, `landlock`, ...
    pub name: String,
    /// Whether it works here.
    pub works: bool,
    /// What was found, as a sentence.
    pub found: String,
    /// What to do when it does not work.
    pub fix: Option<String>,
}

/// What was found about all layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Probe {
    /// Every layer, in the order in which a sandbox needs them.
    pub layers: Vec<Layer>,
}

impl Probe {
    /// Whether a sandbox can be provisioned.
    pub fn is_ready(&self) -> bool {
        self.layers.iter().all(|layer| layer.works)
    }
}

/// Tries every layer.
pub fn probe() -> Probe {
    Probe { layers: Vec::new() }
}
