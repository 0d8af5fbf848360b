//! The rotations of a model.

use qqq_formats::Checkpoint;

use crate::{
    Recipe, Result, Transform,
    report::RotationReport,
    rotation::{Family, Rotation},
};

/// The two matrices that turn a model.
pub(crate) struct Rotations {
    /// Of the residual stream.
    pub stream: Rotation,
    /// Of the heads of v and o.
    pub head: Rotation,
}

impl Rotations {
    /// Those of a recipe that rotates.
    pub fn new(checkpoint: &Checkpoint, recipe: &Recipe) -> Result<Option<Self>> {
        if recipe.transform != Transform::Rotate {
            return Ok(None);
        }
        let config = &checkpoint.config;
        let stream = Rotation::new(recipe.rotation, config.hidden_size, recipe.seed)?;
        Ok(Some(Self { stream, head: Rotation::head(config.head_dim) }))
    }

    /// For the report.
    pub fn report(&self) -> RotationReport {
        RotationReport {
            stream: self.stream.family,
            hidden_size: self.stream.width,
            head: self.head.family,
            head_dim: self.head.width,
        }
    }

    /// What the user should know about the matrices.
    pub fn notes(&self) -> Vec<String> {
        let parts = [("the residual stream", &self.stream), ("heads", &self.head)];
        parts
            .into_iter()
            .filter(|(_, rotation)| rotation.family == Family::Hartley)
            .map(|(what, rotation)| {
                format!(
                    "no Hadamard matrix of width {} can be built; a Hartley matrix, which is nearly as flat, rotates {what}",
                    rotation.width
                )
            })
            .collect()
    }
}
