//! The CPU backend: float32 compute, and W4A8 with integer kernels picked at run time.

pub mod isa;
pub mod matrix;
pub mod pool;
pub mod w4a8;

use crate::InputKind;
use matrix::Matrix;
use w4a8::{Int8Activations, W4A8Linear};

/// The CPU backend.
#[derive(Clone, Debug, Default)]
pub struct CpuBackend {}

/// Input of a linear layer.
#[derive(Clone, Debug)]
pub enum CpuActivation {
    /// Float rows.
    Float(Matrix),
    /// int8 rows with per-token scales.
    Int8(Int8Activations),
}

impl CpuActivation {
    /// Kind of this activation.
    pub fn kind(&self) -> InputKind {
        match self {
            CpuActivation::Float(_) => InputKind::Float,
            CpuActivation::Int8(_) => InputKind::Int8,
        }
    }
}

/// A prepacked linear layer.
pub enum CpuLinear {
    /// Float weights.
    Float(()),
    /// 4-bit weights, int8 activations.
    W4A8(W4A8Linear, Option<Vec<f32>>),
}
