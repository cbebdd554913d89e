//! Logs: one JSON line an event on stderr, which the supervisor keeps in `log/ROLE.log`.

use tracing_subscriber::EnvFilter;

/// Starts logging for a role; `CLAVIGER_LOG` filters (`info` unless set).
pub(crate) fn start() {
    let filter = EnvFilter::try_from_env("CLAVIGER_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,rmcp=warn"));
    // A second start in one process (the demo's own roles are processes) would be refused; once is enough.
    drop(
        tracing_subscriber::fmt()
            .json()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .try_init(),
    );
}
