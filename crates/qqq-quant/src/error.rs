//! Errors of quantization.

use qqq_formats::FormatError;
use qqq_model::ModelError;

/// Result with a [`QuantError`].
pub type Result<T, E = QuantError> = std::result::Result<T, E>;

/// What can go wrong. Errors of numbers name the layer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuantError {
    /// A file of the model or of the output cannot be read or written.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The model could not be loaded or run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// An operation that the backend refuses.
    #[error(transparent)]
    Operation(#[from] qqq_backend::BackendError),
    /// Calibration text that is missing, unreadable or too short.
    #[error("calibration data: {0}")]
    Calibration(String),
    /// A recipe that cannot be carried out on this model.
    #[error("{0}")]
    Recipe(String),
    /// Numbers that are NaN or infinite, or that a type cannot hold: of the model, not of the method.
    #[error("{layer}: {reason}")]
    NotFinite {
        /// Layer or tensor concerned.
        layer: String,
        /// What happened, and what to do.
        reason: String,
    },
    /// A numerical failure that raising the damping did not cure.
    #[error("{layer}: {reason}")]
    Numerics {
        /// The layer, as the checkpoint names it.
        layer: String,
        /// What happened, with the values.
        reason: String,
    },
    /// A stopped run that cannot be gone on with.
    #[error("cannot go on with the stopped run: {0}")]
    Resume(String),
    /// The result is complete, but further from the float model than the [gate](crate::Gate) allows.
    #[error("{0}")]
    Gate(Box<crate::BeyondGate>),
    /// The caller stopped it.
    #[error("interrupted")]
    Interrupted,
}

impl QuantError {
    /// Whether the same run may come further another time: it was interrupted, or the system failed.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Interrupted
                | Self::Format(FormatError::Io { .. })
                | Self::Model(ModelError::Interrupted | ModelError::Format(FormatError::Io { .. }))
        )
    }
}
