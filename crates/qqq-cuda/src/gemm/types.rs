//! What the operands of a product are made of.

use std::fmt;

use half::{bf16, f16};

use super::WeightKind;
use crate::{CudaError, Result};

/// Type of the activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// int8 with a float32 scale a token; sums are int32.
    Int8,
    /// IEEE half precision; sums are float32.
    Float16,
    /// bfloat16; sums are float32.
    Bfloat16,
}

impl Activation {
    /// All of them.
    pub const ALL: [Activation; 3] = [Activation::Int8, Activation::Float16, Activation::Bfloat16];

    /// For files: `int8`, `f16`, `bf16`.
    pub(super) fn short_name(self) -> &'static str {
        match self {
            Activation::Int8 => "int8",
            Activation::Float16 => "f16",
            Activation::Bfloat16 => "bf16",
        }
    }

    /// Bytes of a value.
    pub fn bytes(self) -> usize {
        if self == Activation::Int8 { 1 } else { 2 }
    }

    /// The enumerator in `activations.cuh`.
    pub(super) fn enumerator(self) -> &'static str {
        match self {
            Activation::Int8 => "kInt8",
            Activation::Float16 => "kFloat16",
            Activation::Bfloat16 => "kBfloat16",
        }
    }

    /// The output's type, where it is not free.
    pub fn output(self) -> Option<OutputType> {
        match self {
            Activation::Int8 => None,
            Activation::Float16 => Some(OutputType::Float16),
            Activation::Bfloat16 => Some(OutputType::Bfloat16),
        }
    }
}

/// Type of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutputType {
    /// IEEE half precision.
    Float16,
    /// bfloat16.
    Bfloat16,
}

impl OutputType {
    /// All of them.
    pub const ALL: [OutputType; 2] = [OutputType::Float16, OutputType::Bfloat16];

    /// The bits of a number, rounded to the nearest of the type, ties to even.
    pub fn to_bits(self, number: f32) -> u16 {
        match self {
            OutputType::Float16 => f16::from_f32(number).to_bits(),
            OutputType::Bfloat16 => bf16::from_f32(number).to_bits(),
        }
    }

    /// The number that bits of the type stand for.
    pub fn from_bits(self, bits: u16) -> f32 {
        match self {
            OutputType::Float16 => f16::from_bits(bits).to_f32(),
            OutputType::Bfloat16 => bf16::from_bits(bits).to_f32(),
        }
    }

    /// For names of kernels.
    pub(crate) fn short_name(self) -> &'static str {
        match self {
            OutputType::Float16 => "f16",
            OutputType::Bfloat16 => "bf16",
        }
    }
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short_name())
    }
}

impl fmt::Display for OutputType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short_name())
    }
}

impl fmt::Display for GemmTypes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { weights, activation, output } = self;
        write!(f, "{weights} weights, {activation} activations and {output} output")
    }
}

/// Weights, activations and output of a product: a combination that there are kernels for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GemmTypes {
    weights: WeightKind,
    activation: Activation,
    output: OutputType,
}

impl GemmTypes {
    /// Any weights and output for int8 activations. 16-bit activations give outputs of their own type and take 4-bit weights
    /// per channel or in groups with float16 scales.
    ///
    /// # Errors
    /// [`CudaError::Types`] for other combinations.
    pub fn new(weights: WeightKind, activation: Activation, output: OutputType) -> Result<Self> {
        if let Some(own) = activation.output() {
            if own != output {
                return Err(CudaError::Types(format!(
                    "{activation} activations with {output} output: 16-bit activations give outputs of their own type"
                )));
            }
            if !matches!(weights, WeightKind::Channel4 | WeightKind::GroupHalf4(_)) {
                return Err(CudaError::Types(format!(
                    "{activation} activations with weights {weights}: the kernels take 4-bit weights per channel or in \
                     groups with float16 scales"
                )));
            }
        }
        Ok(Self { weights, activation, output })
    }

    /// Int8 activations, with which any weights and output go.
    pub const fn int8(weights: WeightKind, output: OutputType) -> Self {
        Self { weights, activation: Activation::Int8, output }
    }

    /// Every combination that there are kernels for.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for activation in Activation::ALL {
            for weights in WeightKind::ALL {
                all.extend(OutputType::ALL.into_iter().flat_map(|o| Self::new(weights, activation, o)));
            }
        }
        all
    }

    /// How the weights are stored.
    pub fn weights(&self) -> WeightKind {
        self.weights
    }

    /// Type of the activations.
    pub fn activation(&self) -> Activation {
        self.activation
    }

    /// Type of the output.
    pub fn output(&self) -> OutputType {
        self.output
    }

    /// Input channels of a k-tile, which takes 128 bytes of every token's row.
    pub fn k_tile(&self) -> usize {
        128 / self.activation.bytes()
    }

    /// Bytes of a chunk of weights.
    pub fn chunk_bytes(&self) -> usize {
        self.weights.chunk_bytes(self.activation)
    }

    /// The first template arguments of the kernels' configurations.
    pub(super) fn template_arguments(&self) -> String {
        let group = self.weights.group_size().unwrap_or(128);
        format!("{}, {}, {group}", self.activation.enumerator(), self.weights.enumerator())
    }

    /// For names of kernels: what comes first, and last.
    pub(super) fn short_names(&self) -> (String, &'static str) {
        let weights = self.weights.short_name();
        let first = if self.activation == Activation::Int8 { weights } else { format!("a16_{weights}") };
        (first, self.output.short_name())
    }

    /// The last template argument.
    pub(super) fn bfloat(&self) -> bool {
        self.output == OutputType::Bfloat16
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
    /// Output channels.
    pub n: usize,
    /// Input channels.
    pub k: usize,
}

impl GemmSpec {
    /// `n x k` weights, and sums in the order that is fastest.
    pub const fn new(types: GemmTypes, (n, k): (usize, usize)) -> Self {
        Self { types, order: SumOrder::Free, n, k }
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
        use {Activation as A, OutputType as O, WeightKind as W};
        let allowed = |w, a, o| GemmTypes::new(w, a, o).is_ok();
        for output in [O::Float16, O::Bfloat16] {
            for weights in [W::Channel4, W::Channel8, W::GroupInteger4(64), W::GroupHalf4(32)] {
                assert!(allowed(weights, A::Int8, output));
                let packed = matches!(weights, W::Channel4 | W::GroupHalf4(_));
                assert_eq!(allowed(weights, A::Float16, output), packed && output == O::Float16);
                assert_eq!(allowed(weights, A::Bfloat16, output), packed && output == O::Bfloat16);
            }
        }
        let error = GemmTypes::new(W::Channel8, A::Float16, O::Float16).unwrap_err();
        assert!(error.to_string().contains("f16 activations with weights int8: "), "{error}");
        let error = GemmTypes::new(W::Channel4, A::Bfloat16, O::Float16).unwrap_err();
        assert!(error.to_string().contains("bf16 activations with f16 output: "), "{error}");
        let types = GemmTypes::new(W::GroupHalf4(32), A::Int8, O::Bfloat16).unwrap();
        assert_eq!(types.to_string(), "g32-half weights, int8 activations and bf16 output");
    }
}
