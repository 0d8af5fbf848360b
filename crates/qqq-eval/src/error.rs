//! Errors of evaluation.

/// Result with an [`EvalError`].
pub type Result<T, E = EvalError> = std::result::Result<T, E>;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The model could not be loaded or run.
    #[error(transparent)]
    Model(#[from] qqq_model::ModelError),
    /// A text or options that leave nothing to score.
    #[error("{0}")]
    Windows(String),
    /// A file that is none of a task's.
    #[error("{}{}: {reason}", path.display(), line.map(|n| format!(", line {n}")).unwrap_or_default())]
    Document {
        /// The file.
        path: std::path::PathBuf,
        /// The line, from 1, where it is one's.
        line: Option<usize>,
        /// What is wrong with it.
        reason: String,
    },
    /// An answer whose log-likelihood is no number.
    #[error("the logits of the model for {task}, line {line}, are not finite: {place}")]
    NotFiniteAnswer {
        /// Name of the task.
        task: &'static str,
        /// Line of the document.
        line: usize,
        /// Where it begins.
        place: qqq_model::NotFinite,
    },
    /// Two models that cannot be compared.
    #[error("{0}")]
    Mismatch(String),
    /// Logits that are NaN or infinite.
    #[error("the logits of the {model} for token {position} of the text are not finite: {place}")]
    NotFinite {
        /// Which of the models: "model" or "baseline".
        model: &'static str,
        /// Index in the text's tokens.
        position: usize,
        /// Where it begins; the sequence is the token's window.
        place: qqq_model::NotFinite,
    },
    /// A perplexity that is no number.
    #[error(
        "the {model} finds this text so unlikely ({nll:.0} nats a token) that its perplexity is beyond any number: its \
         logits are far too large, or its tokenizer belongs to another model"
    )]
    Overflow {
        /// Which of the models.
        model: &'static str,
        /// Mean negative log-likelihood of a token.
        nll: f64,
    },
    /// The caller stopped it before anything was scored.
    #[error("interrupted")]
    Interrupted,
}
