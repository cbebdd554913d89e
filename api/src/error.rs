//! What stops the api role.

/// Why the api role ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// A link has closed for good: whoever supervises the roles has gone.
    #[error("the links to {peer} have closed")]
    Unlinked {
        /// The role at the other end.
        peer: &'static str,
    },
}
