//! Errors of evaluation.

/// Result with an [`EvalError`].
pub type Result<T, E = EvalError> = std::result::Result<T, E>;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The model.
    #[error(transparent)]
    Model(#[from] qqq_model::ModelError),
    /// A text or options that leave nothing to score.
    #[error("{0}")]
    Windows(String),
    /// Two models that cannot be compared.
    #[error("{0}")]
    Mismatch(String),
    /// Logits that are NaN or infinite.
    #[error(
        "the logits after token {position} are not finite: the model's weights are damaged or overflow on this text"
    )]
    NotFinite {
        /// Index in the text's tokens.
        position: usize,
    },
    /// The caller stopped it.
    #[error("interrupted")]
    Interrupted,
}
