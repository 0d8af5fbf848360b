//! Prepacked weights for 16-bit activations: the layout that `dequantize16.cuh` describes.

use half::{bf16, f16};
use qqq_formats::{QuantizedWeight, Scales};

use super::weights::CHUNK_ROWS;
use super::{Activation, WeightKind};
use qqq_backend::cpu::pool::parallel_chunks_mut;

/// Columns (input channels) of a chunk.
const CHUNK_COLUMNS: usize = 64;
/// Bytes of its codes.
const CODE_BYTES: usize = CHUNK_ROWS * CHUNK_COLUMNS / 2;

/// Groups of which a chunk has columns.
fn groups_of_chunk(group_size: usize) -> usize {
    (CHUNK_COLUMNS / group_size).max(1)
}

/// Bytes of a chunk of 64 x 64 weights with its group scales.
pub(super) fn chunk_bytes(group_size: Option<usize>) -> usize {
    CODE_BYTES + group_size.map_or(0, |g| groups_of_chunk(g) * CHUNK_ROWS * 2)
}

/// How a weight is stored.
pub(super) fn kind(weight: &QuantizedWeight) -> WeightKind {
    match &weight.scales {
        Scales::PerChannel(_) => WeightKind::Channel4,
        Scales::PerGroup { group_size, .. } => WeightKind::GroupHalf4(*group_size),
    }
}

/// The chunks of a weight.
pub(super) fn pack(weight: &QuantizedWeight, activation: Activation) -> Vec<u8> {
    let (n, k) = (weight.out_features, weight.in_features);
    let steps = k.div_ceil(CHUNK_COLUMNS);
    let bytes = chunk_bytes(kind(weight).group_size());
    let mut chunks = vec![0u8; n.div_ceil(CHUNK_ROWS) * steps * bytes];
    parallel_chunks_mut(&mut chunks, steps * bytes, |block, out| {
        for (step, out) in out.chunks_exact_mut(bytes).enumerate() {
            let (codes, scales) = out.split_at_mut(CODE_BYTES);
            pack_codes(codes, |row, column| {
                let (row, column) = (block * CHUNK_ROWS + row, step * CHUNK_COLUMNS + column);
                let code = if row < n && column < k { weight.codes[row * k + column] } else { 0 };
                (code + 8) as u8
            });
            let Scales::PerGroup { group_size, group, .. } = &weight.scales else { continue };
            let count = k / group_size;
            pack_scales(scales, |row, g| {
                let (row, g) = (block * CHUNK_ROWS + row, step * CHUNK_COLUMNS / group_size + g);
                let scale = if row < n && g < count { group[row * count + g] } else { f16::ZERO };
                match activation {
                    Activation::Bfloat16 => bf16::from_f32(scale.to_f32()).to_bits(),
                    _ => scale.to_bits(),
                }
            });
        }
    });
    chunks
}

/// Each thread's words, whose nibbles `i` and `i + 4` are the two values of register `i`.
fn pack_codes(out: &mut [u8], nibble: impl Fn(usize, usize) -> u8) {
    for (index, word) in out.chunks_exact_mut(4).enumerate() {
        let (piece, thread, step) = (index / 256, index / 2 % 128, index % 2);
        let (row, column) = (16 * (thread / 32) + thread % 32 / 4, 32 * piece + 16 * step + 2 * (thread % 4));
        let packed = (0..8).fold(0u32, |packed, at| {
            let (register, second) = (at % 4, at / 4);
            let value = nibble(row + 8 * (register % 2), column + 8 * (register / 2) + second);
            packed | u32::from(value) << (4 * at)
        });
        word.copy_from_slice(&packed.to_le_bytes());
    }
}

fn pack_scales(out: &mut [u8], scale: impl Fn(usize, usize) -> u16) {
    for (index, value) in out.chunks_exact_mut(2).enumerate() {
        let (group, pair, half) = (index / CHUNK_ROWS, index % CHUNK_ROWS / 2, index % 2);
        value.copy_from_slice(&scale(16 * (pair / 8) + pair % 8 + 8 * half, group).to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::super::PackedWeights;
    use super::*;

    fn weight(n: usize, k: usize, group_size: Option<usize>) -> QuantizedWeight {
        let codes = (0..n * k).map(|i| ((i * 7 + i / 5 + i / 640) % 16) as i8 - 8).collect();
        let scales = match group_size {
            None => Scales::PerChannel((0..n).map(|i| i as f32 + 0.5).collect()),
            Some(group_size) => Scales::PerGroup {
                group_size,
                channel: vec![0.25; n],
                group: (0..n * (k / group_size))
                    .map(|i| f16::from_f32((i * 37 % 1500) as f32 / 100.0))
                    .collect(),
            },
        };
        QuantizedWeight { out_features: n, in_features: k, codes, scales }
    }

    /// A number of the activations' type by its bits.
    fn number(bits: u16, activation: Activation) -> f32 {
        if activation == Activation::Bfloat16 {
            bf16::from_bits(bits).to_f32()
        } else {
            f16::from_bits(bits).to_f32()
        }
    }

    fn rounded(value: f32, activation: Activation) -> f32 {
        if activation == Activation::Bfloat16 {
            bf16::from_f32(value).to_f32()
        } else {
            f16::from_f32(value).to_f32()
        }
    }

    /// The operands that the threads make of a chunk, following `dequantize16.cuh` step by step, down to the bits that it
    /// sets, and placed where PTX says that the fragment of a k16 step has its registers.
    fn operands(p: &PackedWeights, block: usize, step: usize) -> Vec<f32> {
        let bytes = p.kind.chunk_bytes(p.activation);
        let chunk = &p.chunks[(block * p.in_features.div_ceil(64) + step) * bytes..][..bytes];
        let mut out = vec![f32::NAN; 64 * 64];
        for thread in 0..128 {
            let (row, c) = (16 * (thread / 32) + thread % 32 / 4, 2 * (thread % 4));
            for half in 0..2 {
                for j in 0..2 {
                    let at = half * 1024 + thread * 8 + j * 4;
                    let word = u32::from_le_bytes(chunk[at..at + 4].try_into().unwrap());
                    for register in 0..4 {
                        let pair = if p.activation == Activation::Bfloat16 {
                            let bits = (word >> (4 * register)) & 0x000F_000F | 0x4300_4300;
                            [bits as u16, (bits >> 16) as u16].map(|b| number(b, p.activation) - 136.0)
                        } else {
                            let shifted = if register < 2 { word } else { word >> 8 };
                            let (mask, factor, offset) = if register % 2 == 0 {
                                (0x000F_000F, 1.0, 1032.0)
                            } else {
                                (0x00F0_00F0, 1.0 / 16.0, 72.0)
                            };
                            let bits = shifted & mask | 0x6400_6400;
                            [bits as u16, (bits >> 16) as u16]
                                .map(|b| number(b, p.activation) * factor - offset)
                        };
                        let scale = p.kind.group_size().map(|size| {
                            let group = if size == 32 { half } else { 0 };
                            let at = CODE_BYTES + (group * 64 + thread / 4 * 2 + register % 2) * 2;
                            number(u16::from_le_bytes([chunk[at], chunk[at + 1]]), p.activation)
                        });
                        let row = row + 8 * (register % 2);
                        let column = 32 * half + 16 * j + c + 8 * (register / 2);
                        for (i, value) in pair.into_iter().enumerate() {
                            out[row * 64 + column + i] =
                                scale.map_or(value, |s| rounded(value * s, p.activation));
                        }
                    }
                }
            }
        }
        out
    }

    #[test]
    fn threads_unpack_the_weights() {
        let (n, k) = (80, 384);
        for activation in [Activation::Float16, Activation::Bfloat16] {
            for group_size in [None, Some(32), Some(64), Some(128)] {
                let w = weight(n, k, group_size);
                let p = PackedWeights::for_activation(&w, activation).unwrap();
                assert_eq!((p.activation, p.kind.group_size()), (activation, group_size));
                assert_eq!(p.chunks.len(), 2 * 6 * p.kind.chunk_bytes(activation));
                assert_eq!((p.channel_scale.len(), p.channel_scale[100]), (128, 0.0));
                assert_eq!(p.channel_scale[3], w.channel_scales()[3]);
                for (block, step) in (0..2).flat_map(|b| (0..6).map(move |s| (b, s))) {
                    for (i, &got) in operands(&p, block, step).iter().enumerate() {
                        let (row, column) = (block * 64 + i / 64, step * 64 + i % 64);
                        let expected = if row >= n {
                            0.0
                        } else {
                            let code = f32::from(w.codes[row * k + column]);
                            match &w.scales {
                                Scales::PerChannel(_) => code,
                                Scales::PerGroup { group_size, group, .. } => {
                                    let scale = group[row * (k / group_size) + column / group_size].to_f32();
                                    rounded(code * rounded(scale, activation), activation)
                                }
                            }
                        };
                        assert_eq!(got, expected, "{activation:?} {group_size:?} row {row} column {column}");
                    }
                }
            }
        }
    }

    #[test]
    fn columns_beyond_the_last_are_zero() {
        let w = weight(16, 80, None);
        let p = PackedWeights::for_activation(&w, Activation::Float16).unwrap();
        let last = operands(&p, 0, 1);
        for row in 0..16 {
            assert_eq!(last[row * 64 + 15], f32::from(w.codes[row * 80 + 79]));
            assert!(last[row * 64 + 16..][..48].iter().all(|v| *v == 0.0));
        }
    }

    #[test]
    fn integer_scales_are_kept_as_numbers() {
        let mut w = weight(64, 128, Some(64));
        if let Scales::PerGroup { group, .. } = &mut w.scales {
            group.iter_mut().enumerate().for_each(|(i, s)| *s = f16::from_f32((i % 16) as f32));
        }
        let p = PackedWeights::for_activation(&w, Activation::Bfloat16).unwrap();
        assert_eq!(p.kind, WeightKind::GroupHalf4(64));
        assert_eq!(operands(&p, 0, 1)[0], f32::from(w.codes[64]) * 1.0);
        assert_eq!(
            PackedWeights::for_activation(&w, Activation::Int8).unwrap(),
            PackedWeights::new(&w).unwrap()
        );
    }
}
