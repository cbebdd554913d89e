//! `claviger demo`: the whole system on this machine, with an upstream and a model of its own.
//!
//! Nothing is simulated but the two things that a user would have elsewhere. The roles are the real
//! ones, each in its own process; the proof at the end is measured on them.

mod leaks;
mod model;
mod place;
mod play;
mod report;
mod session;
mod stage;
mod story;
mod tampering;
mod upstream;

use crate::args::Stage;
use crate::error::CliError;

pub(crate) use play::run;

/// Runs one of the demo's own programs until it is ended.
pub(crate) async fn stage(stage: Stage) -> Result<(), CliError> {
    match stage {
        Stage::Upstream { script } => upstream::serve(&script).await,
        Stage::Model { script } => model::serve(&script).await,
    }
}
