//! Prepacked weights for 16-bit activations: the layout that `dequantize16.cuh` describes.

use half::{bf16, f16};
use qqq_backend::pool::parallel_chunks_mut;
use qqq_formats::{QuantizedWeight, Scales};

use super::WeightKind;
use super::weight_kind::{WEIGHT_TILE_ROWS, code_bytes};
use crate::DType;

/// Columns (input channels) of a weight tile.
const COLUMNS: usize = 64;

/// The weight tiles of a weight that is stored so.
pub(super) fn pack(kind: WeightKind, weight: &QuantizedWeight, activation: DType) -> Vec<u8> {
    let (n, k) = (weight.out_features, weight.in_features);
    let steps = k.div_ceil(COLUMNS);
    let bytes = kind.weight_tile_bytes(activation);
    let mut chunks = vec![0u8; n.div_ceil(WEIGHT_TILE_ROWS) * steps * bytes];
    parallel_chunks_mut(&mut chunks, steps * bytes, |block, out| {
        for (step, out) in out.chunks_exact_mut(bytes).enumerate() {
            let (codes, scales) = out.split_at_mut(code_bytes(kind, activation));
            pack_codes(codes, |row, column| {
                let (row, column) = (block * WEIGHT_TILE_ROWS + row, step * COLUMNS + column);
                let code = if row < n && column < k { weight.codes[row * k + column] } else { 0 };
                (code + 8) as u8
            });
            let Scales::PerGroup { group_size, group, .. } = &weight.scales else { continue };
            let count = k / group_size;
            pack_scales(scales, |row, g| {
                let (row, g) = (block * WEIGHT_TILE_ROWS + row, step * COLUMNS / group_size + g);
                let scale = if row < n && g < count { group[row * count + g] } else { f16::ZERO };
                match activation {
                    DType::BF16 => bf16::from_f32(scale.to_f32()).to_bits(),
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
        let (group, pair, half) = (index / WEIGHT_TILE_ROWS, index % WEIGHT_TILE_ROWS / 2, index % 2);
        value.copy_from_slice(&scale(16 * (pair / 8) + pair % 8 + 8 * half, group).to_le_bytes());
    }
}
