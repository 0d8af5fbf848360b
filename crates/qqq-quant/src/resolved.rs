//! What [`Transform::Usual`] becomes for a model.

use qqq_formats::ModelConfig;

use crate::{Recipe, Transform};

/// A recipe in which nothing is left to be decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    /// Its transform is never [`Transform::Usual`], nor [`Transform::Auto`].
    pub recipe: Recipe,
    /// What was chosen and why, where that is not the rotation that most models get.
    pub note: Option<String>,
}

impl Recipe {
    /// The recipe for a model. [`Transform::Usual`] becomes rotation where the residual stream may be turned; else
    /// smoothing; else, without calibration windows to search thresholds on, nothing. So does [`Transform::Auto`], where
    /// nothing is measured. Any other transform stays as it was asked for, whether the model allows it or not.
    pub fn resolved(&self, config: &ModelConfig) -> Resolved {
        let (transform, note) = match (self.transform, no_rotation(config)) {
            (Transform::Usual | Transform::Auto, None) => (Transform::Rotate, None),
            (Transform::Usual | Transform::Auto, Some(reason)) if self.calibrates() => {
                (Transform::Smooth, Some(format!("the model is smoothed, not rotated, as {reason}")))
            }
            (Transform::Usual | Transform::Auto, Some(reason)) => (
                Transform::None,
                Some(format!(
                    "the weights are not transformed, as {reason}; and without calibration windows nothing can be smoothed"
                )),
            ),
            (asked, _) => (asked, None),
        };
        Resolved { recipe: Self { transform, ..self.clone() }, note }
    }
}

/// Why the residual stream of a model cannot be turned. Smoothing has no such reason: a norm stands before the inputs of
/// attention and MLP in every graph, whatever stands behind them.
pub(crate) fn no_rotation(config: &ModelConfig) -> Option<String> {
    config.graph.norms_after.then(|| {
        format!(
            "{} has norms behind attention and MLP, whose weights do not commute with a rotation of the residual stream",
            config.architecture.class_name()
        )
    })
}
