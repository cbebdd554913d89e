//! What stops the api role.

/// Why the api role ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// A listener failed for good; the operator must act.
    #[error("a listener failed")]
    Listener(#[source] std::io::Error),
}
