//! What every server of the tools role holds in common.

use std::sync::Arc;

use claviger_vault_protocol::client::ToolsVault;
use tokio_util::task::TaskTracker;

use crate::catalog::Catalog;
use crate::openings::Openings;
use crate::presenters::Presenters;
use crate::spend::Spender;

/// The parts that all listeners and links of one tools instance share.
pub(crate) struct Shared {
    /// The vault, as this instance registered there.
    pub(crate) vault: ToolsVault,
    /// Live sessions, seats and named sandboxes.
    pub(crate) openings: Openings,
    /// Which harness presented which of them.
    pub(crate) presenters: Presenters,
    /// The one way to a credentialed request.
    pub(crate) spender: Spender,
    /// The tool definitions.
    pub(crate) catalog: Arc<Catalog>,
    /// Every task started beside a request; the role waits for them when it ends.
    pub(crate) tasks: TaskTracker,
}
