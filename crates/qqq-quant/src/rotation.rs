//! Orthogonal matrices, and the rotation of a decoder.

use crate::{Result, RotationKind};

/// An orthogonal matrix.
#[derive(Clone, Debug)]
pub struct Rotation {
    /// Width.
    pub width: usize,
    // `width x width`, row-major
    matrix: Vec<f32>,
}

impl Rotation {
    /// A random rotation.
    ///
    /// # Errors
    /// No Hadamard matrix of this width can be built.
    pub fn new(_kind: RotationKind, _width: usize, _seed: u64) -> Result<Self> {
        unimplemented!()
    }

    /// Row-major values.
    pub fn matrix(&self) -> &[f32] {
        &self.matrix
    }

    /// `x <- x Q` for every row of `width` values.
    pub fn apply_rows(&self, _x: &mut [f32]) {
        unimplemented!()
    }

    /// `W <- Q^T W` for a weight of shape `width x cols` (the layer's outputs are rotated: `y Q`); a bias is a row vector
    /// and takes `apply_rows`.
    pub fn apply_outputs(&self, _w: &mut [f32], _cols: usize) {
        unimplemented!()
    }
}

/// A normalised Hadamard matrix of this width, `None` if none can be built from the constructions known here
/// (Sylvester, Paley I and II, and their products).
pub fn hadamard(_width: usize) -> Option<Vec<f32>> {
    unimplemented!()
}
