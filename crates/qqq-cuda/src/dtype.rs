//! What kernels need to know of the types of elements.

use half::{bf16, f16};
use qqq_formats::DType;

/// Types of activations: int8 with a float32 scale a token, whose sums are int32, and the 16-bit ones, whose sums are
/// float32.
pub const ACTIVATIONS: [DType; 3] = [DType::I8, DType::F16, DType::BF16];
/// The 16-bit types, of which outputs are.
pub const HALVES: [DType; 2] = [DType::F16, DType::BF16];

/// A [`DType`] as kernels see it. They know I8, F16, BF16, and F32 for the factors of a norm; for others the methods
/// panic, so what comes from a user is checked first.
pub trait KernelType: Copy {
    /// In names of kernels, files and options: `int8`, `f16`, `bf16`, `f32`.
    fn kernel_name(self) -> &'static str;
    /// The type of this name.
    fn from_kernel_name(name: &str) -> Option<Self>;
    /// Bytes of an element.
    fn bytes(self) -> usize;
    /// The bits of a number, rounded to the nearest of a 16-bit type, ties to even.
    fn encode(self, number: f32) -> u16;
    /// The number that bits of a 16-bit type stand for.
    fn decode(self, bits: u16) -> f32;
}

impl KernelType for DType {
    fn kernel_name(self) -> &'static str {
        match self {
            DType::I8 => "int8",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::F32 => "f32",
            other => unknown(other),
        }
    }

    fn from_kernel_name(name: &str) -> Option<Self> {
        [DType::I8, DType::F16, DType::BF16, DType::F32].into_iter().find(|t| t.kernel_name() == name)
    }

    fn bytes(self) -> usize {
        self.size().unwrap_or_else(|| unknown(self))
    }

    fn encode(self, number: f32) -> u16 {
        match self {
            DType::F16 => f16::from_f32(number).to_bits(),
            DType::BF16 => bf16::from_f32(number).to_bits(),
            other => unknown(other),
        }
    }

    fn decode(self, bits: u16) -> f32 {
        match self {
            DType::F16 => f16::from_bits(bits).to_f32(),
            DType::BF16 => bf16::from_bits(bits).to_f32(),
            other => unknown(other),
        }
    }
}

/// Reached by a mistake of this crate alone.
fn unknown(dtype: DType) -> ! {
    panic!("kernels know nothing of {dtype}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        for dtype in ACTIVATIONS {
            assert_eq!(DType::from_kernel_name(dtype.kernel_name()), Some(dtype));
        }
        assert_eq!(DType::from_kernel_name("i8"), None);
    }

    #[test]
    fn bits_are_rounded_to_nearest_even() {
        assert_eq!(
            [1.0, 1.0 + 0.5f32.powi(11), 65520.0].map(|x| DType::F16.encode(x)),
            [0x3C00, 0x3C00, 0x7C00]
        );
        assert_eq!(
            [1.0, 1.0 + 0.5f32.powi(8), 3.0 * 0.5f32.powi(8) + 1.0].map(|x| DType::BF16.encode(x)),
            [0x3F80, 0x3F80, 0x3F82]
        );
        assert_eq!((DType::F16.decode(0x3555), DType::BF16.decode(0x3EAB)), (0.333_251_95, 0.333_984_38));
    }
}
