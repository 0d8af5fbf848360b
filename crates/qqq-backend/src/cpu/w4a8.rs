//! The W4A8 GEMM.

use qqq_formats::QuantizedWeight;

use super::{isa::Isa, matrix::Matrix};
use crate::Result;

/// Per-token int8 activations: value = code * scale.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Int8Activations {
    /// Tokens.
    pub rows: usize,
    /// Channels.
    pub cols: usize,
    /// Shape `rows x cols`, row-major.
    pub codes: Vec<i8>,
    /// Shape `rows`.
    pub scales: Vec<f32>,
    /// Sum of each row's codes (kernels that take weights with an offset subtract a multiple).
    pub sums: Vec<i32>,
}

impl Int8Activations {
    /// Quantizes rows: scale = max|x| / 127 in float32, code = round-half-to-even(x / scale). A row of zeros
    /// gets scale 1.
    pub fn quantize(_x: &Matrix) -> Self {
        unimplemented!()
    }

    /// `code * scale`, shape `rows x cols`.
    pub fn dequantize(&self) -> Matrix {
        unimplemented!()
    }
}

/// A prepacked 4-bit weight.
#[derive(Clone, Debug)]
pub struct W4A8Linear {
    isa: Isa,
}

impl W4A8Linear {
    /// Prepacks for the best path of this machine.
    pub fn new(_weight: &QuantizedWeight) -> Result<Self> {
        unimplemented!()
    }

    /// Prepacks for a given path.
    ///
    /// # Errors
    /// The machine lacks the path, or N or K is not divisible by 16.
    pub fn with_isa(_weight: &QuantizedWeight, _isa: Isa) -> Result<Self> {
        unimplemented!()
    }

    /// The path that this weight is packed for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// int32 accumulators `a w8^T`, shape `rows x N` (for tests; the product path is fused).
    pub fn accumulators(&self, _a: &Int8Activations) -> Vec<i32> {
        unimplemented!()
    }

    /// `out = (acc as f32 * channel_scale) * token_scale + bias`, or `out += ...` if `add`.
    pub fn matmul(&self, _a: &Int8Activations, _bias: Option<&[f32]>, _add: bool, _out: &mut Matrix) {
        unimplemented!()
    }
}
