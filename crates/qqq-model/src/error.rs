//! Errors of loading and running models.

/// Result with a [`ModelError`].
pub type Result<T, E = ModelError> = std::result::Result<T, E>;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A model's file cannot be read, or says what is not supported.
    #[error(transparent)]
    Format(#[from] qqq_formats::FormatError),
    /// A weight that the backend refuses.
    #[error("{name}: {source}")]
    Backend {
        /// The layer or tensor, as the checkpoint names it.
        name: String,
        /// What the backend refused.
        source: qqq_backend::BackendError,
    },
    /// An operation that a backend refuses.
    #[error(transparent)]
    Operation(#[from] qqq_backend::BackendError),
    /// Steps through a block in an order that makes no sense: a fault of the caller.
    #[error("{0}")]
    Order(String),
    /// Tokenizer: missing, damaged, or not matching the model.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A text with a token for which the model has no embedding.
    #[error(
        "tokenizer: the text has the token {token:?}, whose id is {id}, but the model has only {rows} embeddings"
    )]
    NoEmbedding {
        /// The token's text.
        token: String,
        /// The id that is not in the vocabulary.
        id: u32,
        /// Embeddings of the model.
        rows: usize,
    },
    /// Chat template: missing or failing.
    #[error("chat template: {0}")]
    ChatTemplate(String),
    /// A file that cannot be read as text.
    #[error(transparent)]
    Text(#[from] crate::text::TextError),
    /// Numbers that are NaN or infinite.
    #[error(transparent)]
    NotFinite(#[from] crate::NotFinite),
    /// The Hugging Face hub.
    #[error("{0}")]
    Hub(String),
    /// The caller stopped it.
    #[error("interrupted")]
    Interrupted,
    /// A request that the model cannot serve (context too long, token out of range).
    #[error("{0}")]
    Request(String),
}
