//! What the operands of a product are made of.

use std::fmt;

use super::WeightKind;
use super::weight_kind::WEIGHT_TILE_ROWS;
use crate::dtype::{ACTIVATIONS, HALVES};
use crate::{CudaError, DType, KernelType, Result};

impl fmt::Display for GemmTypes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (weights, activation, output) =
            (self.weights, self.activation.kernel_name(), self.output.kernel_name());
        write!(f, "{weights} weights, {activation} activations and {output} output")
    }
}

/// Weights, activations and output of a product: a combination that there are kernels for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GemmTypes {
    weights: WeightKind,
    activation: DType,
    output: DType,
}

impl GemmTypes {
    /// Any weights and 16-bit output for int8 activations. 16-bit activations give outputs of their own type and take
    /// 4-bit weights per channel or in groups with float16 scales.
    ///
    /// # Errors
    /// [`CudaError::Types`] for other combinations.
    pub fn new(weights: WeightKind, activation: DType, output: DType) -> Result<Self> {
        if !ACTIVATIONS.contains(&activation) || !HALVES.contains(&output) {
            return Err(CudaError::Types(format!(
                "{activation} activations with {output} output: the kernels take I8, F16 and BF16, and give F16 and BF16"
            )));
        }
        if activation != DType::I8 {
            let (own, other) = (activation.kernel_name(), output.kernel_name());
            if activation != output {
                return Err(CudaError::Types(format!(
                    "{own} activations with {other} output: 16-bit activations give outputs of their own type"
                )));
            }
            if !matches!(weights, WeightKind::Channel4 | WeightKind::GroupHalf4(_)) {
                return Err(CudaError::Types(format!(
                    "{own} activations with weights {weights}: the kernels take 4-bit weights per channel or in groups with \
                     float16 scales"
                )));
            }
        }
        Ok(Self { weights, activation, output })
    }

    /// Int8 activations, with which any weights go.
    ///
    /// # Panics
    /// For an output that has not 16 bits.
    pub const fn int8(weights: WeightKind, output: DType) -> Self {
        assert!(matches!(output, DType::F16 | DType::BF16), "outputs are float16 or bfloat16");
        Self { weights, activation: DType::I8, output }
    }

    /// Every combination that there are kernels for.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for activation in ACTIVATIONS {
            for weights in WeightKind::ALL {
                all.extend(HALVES.into_iter().flat_map(|o| Self::new(weights, activation, o)));
            }
        }
        all
    }

    /// How the weights are stored.
    pub fn weights(&self) -> WeightKind {
        self.weights
    }

    /// Type of the activations.
    pub fn activation(&self) -> DType {
        self.activation
    }

    /// Type of the output.
    pub fn output(&self) -> DType {
        self.output
    }

    /// Input channels of a k-tile, which takes 128 bytes of every token's row.
    pub fn k_tile(&self) -> usize {
        128 / self.activation.bytes()
    }

    /// Bytes of a weight tile of weights.
    pub fn weight_tile_bytes(&self) -> usize {
        self.weights.weight_tile_bytes(self.activation)
    }

    /// The first template arguments of the kernels' configurations.
    pub(super) fn template_arguments(&self) -> String {
        let group = self.weights.group_size().unwrap_or(128);
        let activation = match self.activation {
            DType::I8 => "kInt8",
            DType::F16 => "kFloat16",
            _ => "kBfloat16",
        };
        format!("{activation}, {}, {group}", self.weights.enumerator())
    }

    /// For names of kernels: what comes first, and last.
    pub(super) fn short_names(&self) -> (String, &'static str) {
        let weights = self.weights.short_name();
        let first = if self.activation == DType::I8 { weights } else { format!("a16_{weights}") };
        (first, self.output.kernel_name())
    }

    /// The last template argument.
    pub(super) fn bfloat(&self) -> bool {
        self.output == DType::BF16
    }
}

/// In which order the columns of an output are added. It matters for 16-bit activations, whose sums are rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SumOrder {
    /// As the plan cuts them: the same for the same shape, another for another number of tokens.
    #[default]
    Free,
    /// From the first to the last, whatever the number of tokens: a token's outputs do not depend on the others
    /// (batch-invariant). Few tokens leave SMs idle then.
    Fixed,
}

/// A product but for its number of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GemmSpec {
    /// What the operands are made of.
    pub types: GemmTypes,
    /// How sums are added.
    pub order: SumOrder,
    /// Output channels: rows of the weights.
    pub n: usize,
    /// Input channels: columns of the weights.
    pub k: usize,
}

impl GemmSpec {
    /// `n x k` weights, and sums in the order that is fastest.
    pub const fn new(types: GemmTypes, (n, k): (usize, usize)) -> Self {
        Self { types, order: SumOrder::Free, n, k }
    }

    /// Bytes of the prepacked weights.
    pub fn weight_bytes(&self) -> usize {
        self.n.div_ceil(WEIGHT_TILE_ROWS)
            * self.k.div_ceil(self.types.k_tile())
            * self.types.weight_tile_bytes()
    }

    /// Number of the prepacked channel scales.
    pub fn scale_count(&self) -> usize {
        self.n.next_multiple_of(WEIGHT_TILE_ROWS)
    }

    /// The same with sums in this order.
    #[must_use]
    pub const fn with_order(self, order: SumOrder) -> Self {
        Self { order, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn combinations() {
        use {DType as D, WeightKind as W};
        let allowed = |w, a, o| GemmTypes::new(w, a, o).is_ok();
        for output in HALVES {
            for weights in [W::Channel4, W::Channel8, W::GroupInteger4(64), W::GroupHalf4(32)] {
                assert!(allowed(weights, D::I8, output));
                let packed = matches!(weights, W::Channel4 | W::GroupHalf4(_));
                assert_eq!(allowed(weights, D::F16, output), packed && output == D::F16);
                assert_eq!(allowed(weights, D::BF16, output), packed && output == D::BF16);
            }
        }
        let error = GemmTypes::new(W::Channel8, D::F16, D::F16).unwrap_err();
        assert!(error.to_string().contains("f16 activations with weights int8: "), "{error}");
        let error = GemmTypes::new(W::Channel4, D::BF16, D::F16).unwrap_err();
        assert!(error.to_string().contains("bf16 activations with f16 output: "), "{error}");
        for (activation, output) in [(D::F32, D::F32), (D::I8, D::F32), (D::U8, D::F16)] {
            let error = GemmTypes::new(W::Channel4, activation, output).unwrap_err();
            assert!(error.to_string().contains("the kernels take I8, F16 and BF16"), "{error}");
        }
        let types = GemmTypes::new(W::GroupHalf4(32), D::I8, D::BF16).unwrap();
        assert_eq!(types.to_string(), "g32-half weights, int8 activations and bf16 output");
    }
}
