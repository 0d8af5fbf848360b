//! What a prepared linear layer is and what runs it, for people.

use qqq_formats::WeightData;

use super::{CpuBackend, CpuLinear, FloatLinear};

impl CpuBackend {
    /// The kernel that multiplies by a weight: `avx2`, `avx512-vnni`.
    pub fn kernel(&self, weight: &CpuLinear) -> &'static str {
        match weight {
            CpuLinear::Float(_) => self.level.isa().name(),
            CpuLinear::W4A8(weight, _) => weight.isa().name(),
        }
    }
}

impl CpuLinear {
    /// `(N, K)`: output and input channels.
    pub fn shape(&self) -> (usize, usize) {
        match self {
            CpuLinear::Float(weight) => (weight.out_features(), weight.in_features()),
            CpuLinear::W4A8(weight, _) => (weight.out_features(), weight.in_features()),
        }
    }

    /// What is multiplied: `W4A8`, or the type of float weights, `F32`, `F16` or `BF16`.
    pub fn arithmetic(&self) -> &'static str {
        match self {
            CpuLinear::Float(weight) => float_type(weight.data()),
            CpuLinear::W4A8(..) => "W4A8",
        }
    }

    /// Input channels that share a scale; `None` for one scale a channel, and for floats.
    pub fn group_size(&self) -> Option<usize> {
        match self {
            CpuLinear::Float(_) => None,
            CpuLinear::W4A8(weight, _) => weight.group_size(),
        }
    }

    /// Bytes of weights and scales in memory. Those of a tied output head are the embedding's.
    pub fn bytes(&self) -> usize {
        match self {
            CpuLinear::Float(weight) => float_bytes(weight),
            CpuLinear::W4A8(weight, _) => weight.bytes(),
        }
    }
}

/// Name of a type as checkpoints have it.
pub fn float_type(data: &WeightData) -> &'static str {
    match data {
        WeightData::F32(_) => "F32",
        WeightData::F16(_) => "F16",
        WeightData::BF16(_) => "BF16",
    }
}

/// Bytes of the values.
pub fn data_bytes(data: &WeightData) -> usize {
    match data {
        WeightData::F32(values) => size_of_val(&values[..]),
        WeightData::F16(values) => size_of_val(&values[..]),
        WeightData::BF16(values) => size_of_val(&values[..]),
    }
}

fn float_bytes(weight: &FloatLinear) -> usize {
    data_bytes(weight.data())
}
