//! What the CPU says about its layers.

use qqq_formats::WeightData;

use super::{CpuBackend, CpuEmbedding, CpuLinear};
use crate::{Describe, describe::Held};

impl Describe for CpuBackend {
    fn describe_linear(&self, weight: &CpuLinear) -> Held {
        match weight {
            CpuLinear::Float(weight) => {
                self.describe_floats(weight.out_features(), weight.in_features(), weight.data())
            }
            CpuLinear::Integer(weight, _) => Held {
                out_features: weight.out_features(),
                in_features: weight.in_features(),
                arithmetic: weight.arithmetic(),
                group_size: weight.group_size(),
                kernel: weight.isa().name(),
                bytes: weight.bytes(),
            },
            CpuLinear::Simulated(weight) => Held {
                out_features: weight.out_features(),
                in_features: weight.in_features(),
                arithmetic: weight.arithmetic(),
                group_size: None,
                kernel: weight.isa().name(),
                bytes: weight.bytes(),
            },
        }
    }

    fn describe_embedding(&self, table: &CpuEmbedding) -> Held {
        self.describe_floats(table.vocab(), table.hidden(), table.data())
    }
}

impl CpuBackend {
    fn describe_floats(&self, out_features: usize, in_features: usize, data: &WeightData) -> Held {
        let (arithmetic, bytes) = match data {
            WeightData::F32(values) => ("F32", size_of_val(&values[..])),
            WeightData::F16(values) => ("F16", size_of_val(&values[..])),
            WeightData::BF16(values) => ("BF16", size_of_val(&values[..])),
        };
        Held {
            out_features,
            in_features,
            arithmetic,
            group_size: None,
            kernel: self.level.isa().name(),
            bytes,
        }
    }
}
