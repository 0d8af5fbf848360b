//! Errors of reading and writing checkpoints.

use std::path::PathBuf;

/// Result with a [`FormatError`].
pub type Result<T, E = FormatError> = std::result::Result<T, E>;

/// What can be wrong with a file. Every variant names the file or tensor and the offending values.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// File or directory concerned.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file was written to while it was in use.
    #[error("{path} was changed while it was in use: {what}")]
    Changed {
        /// The file, as it was opened.
        path: PathBuf,
        /// How it differs from what was opened.
        what: String,
    },
    /// A file's content breaks its format.
    #[error("{path}: {reason}")]
    Malformed {
        /// The file, as it was opened.
        path: PathBuf,
        /// What is wrong, with the values.
        reason: String,
    },
    /// A tensor that the architecture needs is not there.
    #[error("{location} has no tensor {name:?}")]
    MissingTensor {
        /// Where it was looked for.
        location: String,
        /// The tensor, as the model names it.
        name: String,
    },
    /// A tensor has another shape than the configuration implies.
    #[error(
        "{location}: tensor {name:?} has shape {found:?}, but the model's configuration implies {expected:?}"
    )]
    Shape {
        /// Where it lies.
        location: String,
        /// The tensor, as the model names it.
        name: String,
        /// Shape on disk.
        found: Vec<usize>,
        /// Shape that the configuration implies.
        expected: Vec<usize>,
    },
    /// A tensor has a type that cannot serve here.
    #[error("{location}: tensor {name:?} has type {found}, expected {expected}")]
    Type {
        /// Where it lies.
        location: String,
        /// The tensor, as the model names it.
        name: String,
        /// Type on disk.
        found: String,
        /// The type or types that could serve.
        expected: String,
    },
    /// NaN or infinite weights.
    #[error(
        "{location}: tensor {name:?} holds {count} NaN or infinite values (the first at index {first}); the file is damaged or its training diverged"
    )]
    NotFinite {
        /// Where it lies.
        location: String,
        /// The tensor, as the model names it.
        name: String,
        /// How many values of the tensor are NaN or infinite.
        count: usize,
        /// Flat index of the first.
        first: usize,
    },
    /// Something that is well-formed, but not supported; the text names the way out.
    #[error("{0}")]
    Unsupported(String),
    /// A shape or size that a layout cannot hold.
    #[error("{0}")]
    Layout(String),
}
