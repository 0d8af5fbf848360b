//! How weights are stored: kinds, and the sizes of their weight tiles.

use std::fmt;
use std::str::FromStr;

use half::f16;
use qqq_formats::{CodeBits, QuantizedWeight, Scales};

use crate::{DType, KernelType};

/// Rows (output channels) of a weight tile.
pub(super) const WEIGHT_TILE_ROWS: usize = 64;

/// Columns (input channels) of a weight tile for activations of a type: 128 bytes of a token's row.
pub(super) fn weight_tile_columns(activation: DType) -> usize {
    128 / activation.bytes()
}

/// Bytes of the codes of a weight tile, which its group scales follow.
pub(super) fn code_bytes(kind: WeightKind, activation: DType) -> usize {
    let weights = WEIGHT_TILE_ROWS * weight_tile_columns(activation);
    if kind == WeightKind::Channel8 { weights } else { weights / 2 }
}

/// How the weights of a layer are stored, as `Weights` in `dequantize.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightKind {
    /// 4-bit codes, one scale an output channel.
    Channel4,
    /// 4-bit codes, groups of 32, 64 or 128 input channels with an integer scale of 0 to 16: the int8 weight is their
    /// product.
    GroupInteger4(usize),
    /// 4-bit codes, groups of 32, 64 or 128 input channels with a float16 scale: the int8 weight is their product
    /// rounded to nearest, ties to even.
    GroupHalf4(usize),
    /// int8 codes, one scale an output channel.
    Channel8,
}

impl WeightKind {
    /// All of them.
    pub const ALL: [WeightKind; 8] = [
        WeightKind::Channel4,
        WeightKind::GroupInteger4(32),
        WeightKind::GroupInteger4(64),
        WeightKind::GroupInteger4(128),
        WeightKind::GroupHalf4(32),
        WeightKind::GroupHalf4(64),
        WeightKind::GroupHalf4(128),
        WeightKind::Channel8,
    ];

    /// How a weight is stored for int8 activations. Group scales that are all integers of at most 16 are stored as
    /// such: the kernel for them is faster, and its int8 weights are the same.
    pub fn of(weight: &QuantizedWeight) -> Self {
        let Scales::PerGroup { group_size, group, .. } = &weight.scales else {
            return match weight.bits {
                CodeBits::Four => WeightKind::Channel4,
                CodeBits::Eight => WeightKind::Channel8,
            };
        };
        let integer = |s: &f16| {
            let s = f32::from(*s);
            (0.0..=16.0).contains(&s) && f32::from(s as u8) == s
        };
        if group.iter().all(integer) {
            WeightKind::GroupInteger4(*group_size)
        } else {
            WeightKind::GroupHalf4(*group_size)
        }
    }

    /// Input channels of a group, if any.
    pub fn group_size(self) -> Option<usize> {
        match self {
            WeightKind::GroupInteger4(g) | WeightKind::GroupHalf4(g) => Some(g),
            WeightKind::Channel4 | WeightKind::Channel8 => None,
        }
    }

    /// Bytes of a weight tile of 64 rows of weights with its group scales: 128 columns for int8 activations, 64 for
    /// 16-bit ones. A multiple of 128: weight tiles are whole cache lines.
    pub fn weight_tile_bytes(self, activation: DType) -> usize {
        let columns = weight_tile_columns(activation);
        let groups = self.group_size().map_or(0, |g| (columns / g).max(1));
        let bytes = matches!((self, activation), (WeightKind::GroupInteger4(_), DType::I8));
        let scale_bytes = if bytes { 1 } else { 2 };
        code_bytes(self, activation) + (groups * WEIGHT_TILE_ROWS * scale_bytes).next_multiple_of(128)
    }

    /// The enumerator in `dequantize.cuh`.
    pub(super) fn enumerator(self) -> &'static str {
        match self {
            WeightKind::Channel4 => "kChannel4",
            WeightKind::GroupInteger4(_) => "kGroupInteger4",
            WeightKind::GroupHalf4(_) => "kGroupHalf4",
            WeightKind::Channel8 => "kChannel8",
        }
    }

    /// For names of kernels: `c4`, `gi4g128`, `gh4g64`, `c8`.
    pub(super) fn short_name(self) -> String {
        match self {
            WeightKind::Channel4 => String::from("c4"),
            WeightKind::GroupInteger4(g) => format!("gi4g{g}"),
            WeightKind::GroupHalf4(g) => format!("gh4g{g}"),
            WeightKind::Channel8 => String::from("c8"),
        }
    }
}

/// What users call it: `channel`, `g128` (integer group scales), `g128-half` (float16 ones), `int8`.
impl fmt::Display for WeightKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WeightKind::Channel4 => f.write_str("channel"),
            WeightKind::GroupInteger4(g) => write!(f, "g{g}"),
            WeightKind::GroupHalf4(g) => write!(f, "g{g}-half"),
            WeightKind::Channel8 => f.write_str("int8"),
        }
    }
}

impl FromStr for WeightKind {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        Self::ALL.into_iter().find(|kind| kind.to_string() == name).ok_or_else(|| {
            format!("weights are one of {}, not {name:?}", Self::ALL.map(|kind| kind.to_string()).join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for kind in WeightKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert_eq!("g64".parse(), Ok(WeightKind::GroupInteger4(64)));
        assert_eq!("g128-half".parse(), Ok(WeightKind::GroupHalf4(128)));
        for other in ["g16", "g", "half", "g064", "Channel", ""] {
            assert!(
                other.parse::<WeightKind>().unwrap_err().contains("channel, g32, g64, g128, g32-half"),
                "{other}"
            );
        }
    }
}
