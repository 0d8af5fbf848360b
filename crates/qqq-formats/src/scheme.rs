//! What a quantized linear layer is: bits of its codes, what it multiplies, and how it lies in the file.

use std::{fmt, ops::RangeInclusive};

use crate::{CheckpointFormat, CodeLayout, FormatError, Result};

/// Bits of a weight's codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CodeBits {
    /// int4.
    Four,
    /// int8, with a scale an output channel.
    Eight,
}

impl CodeBits {
    /// How many bits these are.
    pub const fn get(self) -> usize {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// Those of so many bits.
    pub const fn of(bits: u64) -> Option<Self> {
        match bits {
            4 => Some(Self::Four),
            8 => Some(Self::Eight),
            _ => None,
        }
    }

    /// The codes that a checkpoint may hold.
    pub const fn range(self) -> RangeInclusive<i8> {
        match self {
            Self::Four => -8..=7,
            Self::Eight => i8::MIN..=i8::MAX,
        }
    }

    /// The largest code; symmetric codes per channel are made from `-largest` to `largest`.
    pub const fn largest(self) -> i8 {
        match self {
            Self::Four => 7,
            Self::Eight => i8::MAX,
        }
    }
}

/// `int4` or `int8`.
impl fmt::Display for CodeBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "int{}", self.get())
    }
}

/// What a quantized layer's weights are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Activations {
    /// Quantized to int8, symmetric, with a scale a token that is found when the layer runs.
    Int8,
    /// As they are, in 16 bits (weight-only quantization).
    Half,
}

impl Activations {
    /// Bits of a value.
    pub const fn bits(self) -> usize {
        match self {
            Self::Int8 => 8,
            Self::Half => 16,
        }
    }
}

/// How one linear layer is quantized and stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerScheme {
    /// Bits of its codes.
    pub bits: CodeBits,
    /// What it multiplies.
    pub activations: Activations,
    /// Input channels that share a scale; `None`: one scale per output channel, as 8 bits always have.
    pub group_size: Option<usize>,
    /// How the codes lie in the file.
    pub layout: CodeLayout,
}

impl LayerScheme {
    /// A scheme in the layout that a format writes it in.
    ///
    /// # Errors
    /// [`FormatError::Unsupported`] for what the format does not hold: 8 bits or 16-bit activations in
    /// [`Qqq`](CheckpointFormat::Qqq), 8 bits with groups in any.
    pub fn new(
        format: CheckpointFormat,
        bits: CodeBits,
        activations: Activations,
        group_size: Option<usize>,
    ) -> Result<Self> {
        let scheme = Self { bits, activations, group_size, layout: format.layout(bits, activations) };
        if format == CheckpointFormat::Qqq && (bits, activations) != (CodeBits::Four, Activations::Int8) {
            return Err(FormatError::Unsupported(format!(
                "the qqq format holds 4-bit weights for int8 activations, no {scheme}; write compressed-tensors \
                 (--format compressed-tensors)"
            )));
        }
        scheme.check()?;
        Ok(scheme)
    }

    /// 4-bit weights for int8 activations.
    pub fn w4a8(format: CheckpointFormat, group_size: Option<usize>) -> Self {
        let (bits, activations) = (CodeBits::Four, Activations::Int8);
        Self { bits, activations, group_size, layout: format.layout(bits, activations) }
    }

    /// That there is such a weight.
    ///
    /// # Errors
    /// [`FormatError::Unsupported`] for 8 bits with groups.
    pub(crate) fn check(&self) -> Result<()> {
        match (self.bits, self.group_size) {
            (CodeBits::Eight, Some(size)) => Err(FormatError::Unsupported(format!(
                "8-bit weights have one scale an output channel here, no groups of {size}; quantize them per channel"
            ))),
            _ => Ok(()),
        }
    }
}

/// In the field's terms: `W4A8`, `W4A8 g64`, `W8A8`, `W4A16 g128`.
impl fmt::Display for LayerScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "W{}A{}", self.bits.get(), self.activations.bits())?;
        self.group_size.map_or(Ok(()), |g| write!(f, " g{g}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_are_named_and_bounded() {
        use {Activations as A, CheckpointFormat as F, CodeBits as B};
        let name =
            |f, b, a, g| LayerScheme::new(f, b, a, g).map(|s| s.to_string()).map_err(|e| e.to_string());
        assert_eq!(name(F::Qqq, B::Four, A::Int8, Some(128)), Ok("W4A8 g128".into()));
        assert_eq!(name(F::CompressedTensors, B::Eight, A::Int8, None), Ok("W8A8".into()));
        assert_eq!(name(F::CompressedTensors, B::Four, A::Half, Some(64)), Ok("W4A16 g64".into()));
        let layout = |b| LayerScheme::new(F::CompressedTensors, b, A::Int8, None).unwrap().layout;
        assert_eq!((layout(B::Four), layout(B::Eight)), (CodeLayout::Packed, CodeLayout::Bytes));
        let alone = LayerScheme::new(F::CompressedTensors, B::Eight, A::Half, None).unwrap();
        assert_eq!(alone.layout, CodeLayout::Packed);
        for (format, bits, activations, size, says) in [
            (F::Qqq, B::Eight, A::Int8, None, "no W8A8"),
            (F::Qqq, B::Four, A::Half, Some(128), "no W4A16 g128"),
            (F::CompressedTensors, B::Eight, A::Int8, Some(64), "no groups of 64"),
        ] {
            assert!(name(format, bits, activations, size).unwrap_err().contains(says), "{says}");
        }
        for bits in [B::Four, B::Eight] {
            assert_eq!(B::of(bits.get() as u64), Some(bits));
            assert!(bits.range().contains(&bits.largest()) && bits.range().contains(&-bits.largest()));
        }
        assert_eq!(B::of(3), None);
    }
}
