//! Errors of preparing weights and running operations.

/// Result with a [`BackendError`].
pub type Result<T, E = BackendError> = std::result::Result<T, E>;

/// What a backend can refuse.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// A shape that no kernel of this backend takes, or that does not fit the other arguments.
    #[error("{0}")]
    Shape(String),
    /// A kernel path that this machine cannot run, with the way out.
    #[error("{0}")]
    Unavailable(String),
    /// Numbers that are NaN or infinite where nothing can be computed with them.
    #[error("{0}")]
    NotFinite(String),
    /// A step that contradicts itself, or the pool it is to use.
    #[error("{0}")]
    Batch(String),
}
