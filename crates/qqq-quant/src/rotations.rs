//! The rotations of a model: the offline part of QuaRot (arXiv 2404.00456).
//!
//! Norm weights are folded into the linear layers that follow, the residual stream is turned by an orthogonal matrix `Q`, and
//! the heads of v by a Hadamard matrix: the float model computes the same function afterwards. Activations are row vectors: the
//! stream becomes `h Q`, so layers that read it take `W Q` and layers that write it `Q^T W`.

use std::sync::Arc;

use qqq_backend::{Calibrate, HeadLayout};
use qqq_formats::Checkpoint;
use qqq_model::Site;

use crate::{
    Recipe, Result, Transform,
    report::RotationReport,
    rotation::{Family, Rotation},
};

/// The two matrices that turn a model.
pub struct Rotations {
    /// Of the residual stream.
    pub stream: Rotation,
    /// Of the heads of v and o.
    pub head: Rotation,
}

impl Rotations {
    /// Those of a recipe that rotates.
    pub(crate) fn new(checkpoint: &Checkpoint, recipe: &Recipe) -> Result<Option<Self>> {
        if recipe.transform != Transform::Rotate {
            return Ok(None);
        }
        let config = &checkpoint.config;
        let stream = Rotation::new(recipe.rotation, config.hidden_size, recipe.seed)?;
        Ok(Some(Self { stream, head: Rotation::head(config.head_dim) }))
    }

    /// For the report.
    pub(crate) fn report(&self) -> RotationReport {
        RotationReport {
            stream: self.stream.family,
            hidden_size: self.stream.width,
            head: self.head.family,
            head_dim: self.head.width,
        }
    }

    /// What the user should know about the matrices.
    pub(crate) fn notes(&self) -> Vec<String> {
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

/// The matrices on a device, and on the host for biases.
pub struct DeviceRotations<B: Calibrate> {
    host: Arc<Rotations>,
    /// Of the residual stream.
    pub stream: B::Rotation,
    head: B::Rotation,
}

impl<B: Calibrate> DeviceRotations<B> {
    /// Copies them to the device.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn new(b: &B, host: Arc<Rotations>) -> Result<Self> {
        let of = |rotation: &Rotation| b.rotation(rotation.width, rotation.matrix());
        let (stream, head) = (of(&host.stream)?, of(&host.head)?);
        Ok(Self { host, stream, head })
    }

    /// Rotates one layer of a block, with the norm before it folded.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn turn(
        &self,
        b: &B,
        site: Site,
        weights: &mut B::Weights,
        bias: Option<&mut [f32]>,
        heads: HeadLayout,
    ) -> Result<()> {
        let first_v = heads.q_width() + heads.kv_width();
        match site {
            Site::Qkv | Site::GateUp => b.rotate_inputs(weights, &self.stream)?,
            Site::O | Site::Down => b.rotate_outputs(weights, 0, &self.stream)?,
        }
        match site {
            Site::Qkv => b.rotate_outputs(weights, first_v, &self.head)?,
            // A row of o is a row of `head_dim` values for every query head.
            Site::O => b.rotate_inputs(weights, &self.head)?,
            Site::GateUp | Site::Down => {}
        }
        match (site, bias) {
            (Site::O | Site::Down, Some(bias)) => self.host.stream.apply_rows(bias),
            (Site::Qkv, Some(bias)) => self.host.head.apply_rows(&mut bias[first_v..]),
            _ => {}
        }
        Ok(())
    }
}
