//! Prepacked weights for int8 activations: the layout that `dequantize.cuh` describes.

use half::f16;
use qqq_backend::pool::parallel_chunks_mut;

use super::WeightKind;
use super::weight_kind::{WEIGHT_TILE_ROWS, code_bytes};
use crate::DType;

/// Columns (input channels) of a weight tile.
const COLUMNS: usize = 128;

/// The weight tiles of a weight: `codes` are `n x k`, `groups` its group scales, `n x ceil(k / group)`.
pub(super) fn pack(kind: WeightKind, n: usize, k: usize, codes: &[i8], groups: Option<&[f16]>) -> Vec<u8> {
    let steps = k.div_ceil(COLUMNS);
    let bytes = kind.weight_tile_bytes(DType::I8);
    let mut chunks = vec![0u8; n.div_ceil(WEIGHT_TILE_ROWS) * steps * bytes];
    parallel_chunks_mut(&mut chunks, steps * bytes, |block, out| {
        for (step, out) in out.chunks_exact_mut(bytes).enumerate() {
            let code = |row: usize, column: usize| {
                let (row, column) = (block * WEIGHT_TILE_ROWS + row, step * COLUMNS + column);
                if row < n && column < k { codes[row * k + column] } else { 0 }
            };
            let (out, scales) = out.split_at_mut(code_bytes(kind, DType::I8));
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
                    let (row, g) = (block * WEIGHT_TILE_ROWS + row, step * (COLUMNS / size) + g);
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
    for g in 0..COLUMNS / group_size {
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
