//! Prepacked weights: the layout that `dequantize.cuh` describes; for 16-bit activations see `weights16.rs`.

use std::fmt;
use std::str::FromStr;

use half::f16;
use qqq_formats::{QuantizedWeight, Scales};

use super::{Activation, weights16};
use crate::{CudaError, Result};
use qqq_backend::cpu::pool::parallel_chunks_mut;

/// Rows (output channels) of a chunk.
pub(super) const CHUNK_ROWS: usize = 64;
/// Columns (input channels) of a chunk for int8 activations.
pub(super) const CHUNK_COLUMNS: usize = 128;
/// Largest K whose int32 sums cannot overflow: operands are at most 128 in magnitude on both sides.
const MAX_IN_FEATURES: usize = 65536;

/// How the weights of a layer are stored, as `Weights` in `dequantize.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightKind {
    /// 4-bit codes, one scale an output channel.
    Channel4,
    /// 4-bit codes, groups of 32, 64 or 128 input channels with an integer scale of 0 to 16: the int8 weight is their
    /// product.
    GroupInteger4(usize),
    /// 4-bit codes, groups of 32, 64 or 128 input channels with a float16 scale: the int8 weight is their product rounded
    /// to nearest, ties to even.
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

    /// How 4-bit weights with these scales are stored. Group scales that are all integers of at most 16 are stored as such:
    /// the kernel for them is faster, and its int8 weights are the same.
    pub fn of(scales: &Scales) -> Self {
        let Scales::PerGroup { group_size, group, .. } = scales else { return WeightKind::Channel4 };
        let integer = |s: &f16| {
            let s = f32::from(*s);
            (0.0..=16.0).contains(&s) && s.fract() == 0.0
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

    /// Bytes of a chunk of 64 rows of weights with its group scales: 128 columns for int8 activations, 64 for 16-bit ones. A multiple
    /// of 128: chunks are whole cache lines.
    pub fn chunk_bytes(self, activation: Activation) -> usize {
        if activation != Activation::Int8 {
            return weights16::chunk_bytes(self.group_size());
        }
        let scale =
            |group: usize, bytes: usize| (CHUNK_COLUMNS / group * CHUNK_ROWS * bytes).next_multiple_of(128);
        match self {
            WeightKind::Channel4 => CHUNK_ROWS * CHUNK_COLUMNS / 2,
            WeightKind::GroupInteger4(g) => CHUNK_ROWS * CHUNK_COLUMNS / 2 + scale(g, 1),
            WeightKind::GroupHalf4(g) => CHUNK_ROWS * CHUNK_COLUMNS / 2 + scale(g, 2),
            WeightKind::Channel8 => CHUNK_ROWS * CHUNK_COLUMNS,
        }
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
}

impl WeightKind {
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

/// Weights of a layer in the order in which the kernels read them.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedWeights {
    /// How they are stored.
    pub kind: WeightKind,
    /// The activations that they are packed for.
    pub activation: Activation,
    /// `N`, output channels.
    pub out_features: usize,
    /// `K`, input channels.
    pub in_features: usize,
    /// Chunks, shape `ceil(N / 64) x ceil(K / 128)` for int8 activations and `ceil(N / 64) x ceil(K / 64)` for 16-bit ones,
    /// padded with code 0.
    pub chunks: Vec<u8>,
    /// Factor of each channel's sum, `ceil(N / 64) * 64` values, padded with 0.
    pub channel_scale: Vec<f32>,
}

impl PackedWeights {
    /// Packs a weight in the neutral form for int8 activations, stored as [`WeightKind::of`] says.
    ///
    /// # Errors
    /// [`CudaError::Shape`] when K or N is no multiple of 16, K exceeds 65,536, or the group size is none of 32, 64, 128.
    pub fn new(weight: &QuantizedWeight) -> Result<Self> {
        check(weight)?;
        let (n, k) = (weight.out_features, weight.in_features);
        let kind = WeightKind::of(&weight.scales);
        let groups = match &weight.scales {
            Scales::PerChannel(_) => None,
            Scales::PerGroup { group, .. } => Some(group.as_slice()),
        };
        // The kernel multiplies 16 x code where there are no groups.
        let factor = if kind == WeightKind::Channel4 { 1.0 / 16.0 } else { 1.0 };
        Ok(Self {
            kind,
            activation: Activation::Int8,
            out_features: n,
            in_features: k,
            chunks: pack_chunks(kind, n, k, &weight.codes, groups),
            channel_scale: padded_scales(weight.channel_scales(), factor),
        })
    }

    /// Packs a weight in the neutral form for activations of this type. Group scales for 16-bit ones are stored in the
    /// activations' type, to which the kernel rounds their products with the codes too.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn for_activation(weight: &QuantizedWeight, activation: Activation) -> Result<Self> {
        if activation == Activation::Int8 {
            return Self::new(weight);
        }
        check(weight)?;
        Ok(Self {
            kind: weights16::kind(weight),
            activation,
            out_features: weight.out_features,
            in_features: weight.in_features,
            chunks: weights16::pack(weight, activation),
            channel_scale: padded_scales(weight.channel_scales(), 1.0),
        })
    }

    /// Packs int8 weights for int8 activations (`codes` of shape `N x K`) with a scale a channel.
    ///
    /// # Errors
    /// As [`new`](Self::new); also when the lengths do not agree.
    pub fn from_int8(codes: &[i8], channel_scale: &[f32], in_features: usize) -> Result<Self> {
        let n = channel_scale.len();
        check_shape(n, in_features)?;
        if codes.len() != n * in_features {
            return Err(CudaError::Shape(format!("{} codes for {n} x {in_features} weights", codes.len())));
        }
        Ok(Self {
            kind: WeightKind::Channel8,
            activation: Activation::Int8,
            out_features: n,
            in_features,
            chunks: pack_chunks(WeightKind::Channel8, n, in_features, codes, None),
            channel_scale: padded_scales(channel_scale, 1.0),
        })
    }
}

/// Whether there are kernels for the weight.
fn check(weight: &QuantizedWeight) -> Result<()> {
    weight.check("weight").map_err(|e| CudaError::Shape(e.to_string()))?;
    check_shape(weight.out_features, weight.in_features)?;
    match &weight.scales {
        Scales::PerGroup { group_size, .. } if ![32, 64, 128].contains(group_size) => Err(CudaError::Shape(
            format!("groups of {group_size} input channels: the GPU kernels take 32, 64 or 128"),
        )),
        _ => Ok(()),
    }
}

pub(super) fn check_shape(n: usize, k: usize) -> Result<()> {
    if n == 0 || k == 0 || !n.is_multiple_of(16) || !k.is_multiple_of(16) || k > MAX_IN_FEATURES {
        return Err(CudaError::Shape(format!(
            "{n} output and {k} input channels: the GPU kernels take multiples of 16, and at most {MAX_IN_FEATURES} input \
             channels"
        )));
    }
    Ok(())
}

fn padded_scales(scales: &[f32], factor: f32) -> Vec<f32> {
    let mut out = vec![0.0; scales.len().next_multiple_of(CHUNK_ROWS)];
    for (o, s) in out.iter_mut().zip(scales) {
        *o = s * factor;
    }
    out
}

fn pack_chunks(kind: WeightKind, n: usize, k: usize, codes: &[i8], groups: Option<&[f16]>) -> Vec<u8> {
    let steps = k.div_ceil(CHUNK_COLUMNS);
    let bytes = kind.chunk_bytes(Activation::Int8);
    let mut chunks = vec![0u8; n.div_ceil(CHUNK_ROWS) * steps * bytes];
    parallel_chunks_mut(&mut chunks, steps * bytes, |block, out| {
        for (step, out) in out.chunks_exact_mut(bytes).enumerate() {
            let code = |row: usize, column: usize| {
                let (row, column) = (block * CHUNK_ROWS + row, step * CHUNK_COLUMNS + column);
                if row < n && column < k { codes[row * k + column] } else { 0 }
            };
            let codes_bytes = if kind == WeightKind::Channel8 { 64 * 128 } else { 64 * 64 };
            let (out, scales) = out.split_at_mut(codes_bytes);
            if kind == WeightKind::Channel8 {
                pack_codes8(out, code);
            } else {
                // Groups need codes that are not negative; without groups the nibble is the high half of an int8.
                let offset = if kind == WeightKind::Channel4 { 0 } else { 8 };
                pack_codes4(out, |row, column| (code(row, column) + offset) as u8 & 15);
            }
            if let (Some(group), Some(size)) = (groups, kind.group_size()) {
                let count = k / size;
                let scale = |row: usize, g: usize| {
                    let (row, g) = (block * CHUNK_ROWS + row, step * (CHUNK_COLUMNS / size) + g);
                    if row < n && g < count { group[row * count + g] } else { f16::ZERO }
                };
                pack_scales(scales, size, matches!(kind, WeightKind::GroupInteger4(_)), scale);
            }
        }
    });
    chunks
}

/// Row and first column inside a piece for a thread of a warpgroup; the second row is 8 further on.
fn place(thread: usize) -> (usize, usize) {
    (16 * (thread / 32) + thread % 32 / 4, 4 * (thread % 4))
}

fn pack_codes4(out: &mut [u8], nibble: impl Fn(usize, usize) -> u8) {
    for (i, byte) in out.iter_mut().enumerate() {
        let (piece, thread, word, element) = (i / 2048, i / 16 % 128, i / 4 % 4, i % 4);
        let (row, column) = place(thread);
        let column = 64 * piece + 16 * word + column + element;
        *byte = nibble(row, column) << 4 | nibble(row + 8, column);
    }
}

fn pack_codes8(out: &mut [u8], code: impl Fn(usize, usize) -> i8) {
    for (i, byte) in out.iter_mut().enumerate() {
        let (piece, thread, word, element) = (i / 2048, i / 16 % 128, i / 4 % 4, i % 4);
        let (row, column) = place(thread);
        *byte = code(row + 8 * (word % 2), 32 * piece + 16 * (word / 2) + column + element) as u8;
    }
}

fn pack_scales(out: &mut [u8], group_size: usize, integer: bool, scale: impl Fn(usize, usize) -> f16) {
    for g in 0..CHUNK_COLUMNS / group_size {
        for pair in 0..32 {
            for half in 0..2 {
                let s = scale(16 * (pair / 8) + pair % 8 + 8 * half, g);
                let at = g * 64 + pair * 2 + half;
                if integer {
                    out[at] = f32::from(s) as u8;
                } else {
                    out[at * 2..at * 2 + 2].copy_from_slice(&s.to_le_bytes());
                }
            }
        }
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

    fn codes(n: usize, k: usize) -> Vec<i8> {
        (0..n * k).map(|i| ((i * 7 + i / 5) % 16) as i8 - 8).collect()
    }

    /// The int8 operands that a thread makes of a chunk, following `dequantize.cuh` step by step.
    fn operands(p: &PackedWeights, block: usize, step: usize) -> Vec<i8> {
        let steps = p.in_features.div_ceil(CHUNK_COLUMNS);
        let bytes = p.kind.chunk_bytes(p.activation);
        let chunk = &p.chunks[(block * steps + step) * bytes..][..bytes];
        let mut out = vec![0i8; 64 * 128];
        let word = |at: usize| u32::from_le_bytes(chunk[at..at + 4].try_into().unwrap());
        for thread in 0..128 {
            let (row, column) = (16 * (thread / 32) + (thread % 32) / 4, 4 * (thread % 4));
            for half in 0..2 {
                for j in 0..2 {
                    for x in 0..2 {
                        let first = 64 * half + 32 * j + 16 * x + column;
                        let (high, low) = if p.kind == WeightKind::Channel8 {
                            let at = (2 * half + j) * 2048 + thread * 16 + 8 * x;
                            (word(at), word(at + 4))
                        } else {
                            let w = word(half * 2048 + thread * 16 + (2 * j + x) * 4);
                            match p.kind {
                                WeightKind::Channel4 => (w & 0xF0F0_F0F0, w << 4 & 0xF0F0_F0F0),
                                WeightKind::GroupInteger4(size) => {
                                    let g = (64 * half + 32 * j) / size;
                                    let s = |h: usize| u32::from(chunk[4096 + g * 64 + thread / 4 * 2 + h]);
                                    let make = |codes: u32, s: u32| {
                                        (codes * s + (0x8080_8080 - s * 0x0808_0808)) ^ 0x8080_8080
                                    };
                                    (make(w >> 4 & 0x0F0F_0F0F, s(0)), make(w & 0x0F0F_0F0F, s(1)))
                                }
                                WeightKind::GroupHalf4(size) => {
                                    let g = (64 * half + 32 * j) / size;
                                    let s = |h: usize| {
                                        let at = 4096 + (g * 64 + thread / 4 * 2 + h) * 2;
                                        f32::from(f16::from_le_bytes([chunk[at], chunk[at + 1]]))
                                    };
                                    let make = |shift: u32, s: f32| {
                                        (0..4).fold(0, |packed, i| {
                                            let code = (w >> (8 * i + shift) & 15) as f32 - 8.0;
                                            let q = (code * s).round_ties_even() as i8;
                                            packed | u32::from(q as u8) << (8 * i)
                                        })
                                    };
                                    (make(4, s(0)), make(0, s(1)))
                                }
                                WeightKind::Channel8 => unreachable!(),
                            }
                        };
                        for i in 0..4 {
                            out[row * 128 + first + i] = high.to_le_bytes()[i] as i8;
                            out[(row + 8) * 128 + first + i] = low.to_le_bytes()[i] as i8;
                        }
                    }
                }
            }
        }
        out
    }

    fn compare(p: &PackedWeights, int8: &[i8], factor: i32) {
        let (n, k) = (p.out_features, p.in_features);
        for block in 0..n.div_ceil(64) {
            for step in 0..k.div_ceil(128) {
                for (i, &got) in operands(p, block, step).iter().enumerate() {
                    let (row, column) = (block * 64 + i / 128, step * 128 + i % 128);
                    let expected =
                        if row < n && column < k { i32::from(int8[row * k + column]) * factor } else { 0 };
                    assert_eq!(i32::from(got), expected, "{:?} row {row} column {column}", p.kind);
                }
            }
        }
    }

    #[test]
    fn per_channel_holds_sixteen_times_the_code() {
        let w = QuantizedWeight {
            out_features: 80,
            in_features: 208,
            codes: codes(80, 208),
            scales: Scales::PerChannel((0..80).map(|i| i as f32 + 0.5).collect()),
        };
        let p = PackedWeights::new(&w).unwrap();
        assert_eq!((p.kind, p.chunks.len()), (WeightKind::Channel4, 2 * 2 * 4096));
        assert_eq!((p.channel_scale.len(), p.channel_scale[3], p.channel_scale[100]), (128, 3.5 / 16.0, 0.0));
        compare(&p, &w.codes, 16);
    }

    #[test]
    fn groups_give_the_int8_weights_of_the_neutral_form() {
        for size in [32, 64, 128] {
            let (n, k) = (96, 384);
            for integer in [true, false] {
                let group = (0..n * (k / size))
                    .map(|i| {
                        f16::from_f32(if integer { (i % 17) as f32 } else { (i * 37 % 1500) as f32 / 100.0 })
                    })
                    .collect();
                // A scale of 16 takes codes up to 7.
                let w = QuantizedWeight {
                    out_features: n,
                    in_features: k,
                    codes: codes(n, k).into_iter().map(|c| c.max(-7)).collect(),
                    scales: Scales::PerGroup { group_size: size, channel: vec![0.25; n], group },
                };
                let p = PackedWeights::new(&w).unwrap();
                let kind =
                    if integer { WeightKind::GroupInteger4(size) } else { WeightKind::GroupHalf4(size) };
                assert_eq!(p.kind, kind);
                compare(&p, &w.int8_weights(), 1);
            }
        }
    }

    #[test]
    fn int8_weights_are_kept() {
        let (n, k) = (64, 144);
        let codes: Vec<i8> = (0..n * k).map(|i| (i * 31 % 256) as u8 as i8).collect();
        let p = PackedWeights::from_int8(&codes, &vec![1.0; n], k).unwrap();
        compare(&p, &codes, 1);
    }

    #[test]
    fn shapes_that_no_kernel_takes() {
        let make = |n: usize, k: usize, scales| QuantizedWeight {
            out_features: n,
            in_features: k,
            codes: vec![0; n * k],
            scales,
        };
        for (n, k) in [(24, 64), (64, 40), (16, 65552)] {
            let error = PackedWeights::new(&make(n, k, Scales::PerChannel(vec![1.0; n]))).unwrap_err();
            assert!(error.to_string().contains("multiples of 16"), "{error}");
        }
        let scales =
            Scales::PerGroup { group_size: 16, channel: vec![1.0; 16], group: vec![f16::ONE; 16 * 4] };
        for activation in [Activation::Int8, Activation::Float16] {
            let error = PackedWeights::for_activation(&make(16, 64, scales.clone()), activation).unwrap_err();
            assert!(error.to_string().contains("32, 64 or 128"), "{error}");
        }
    }
}
