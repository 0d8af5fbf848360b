//! NEON with the dot-product extension. A block's weights are expanded once, then multiplied by tiles of
//! up to 4 rows and one line (4 output channels); a register holds four partial sums of one channel.

use std::arch::aarch64::*;
use std::arch::asm;
use std::ops::Range;

use super::Gemm;
use super::pack::{BLOCK, CHUNK, Codes, LINES, Line, STEP};

const TILE_ROWS: usize = 4;
/// 128-bit lanes of a line.
const LANES: usize = 4;

/// Signed weights: for each 16 input channels, LINES lines of LANES lanes, as the packed ones.
type Step = [[int8x16_t; LANES]; LINES];

/// Computes output channels `BLOCK * blocks` of the given rows.
///
/// # Safety
/// The machine has the instructions; parts that run at the same time do not overlap.
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn run(gemm: &Gemm, blocks: Range<usize>, rows: Range<usize>) {
    let steps = gemm.weight.in_features / STEP;
    let bytes = gemm.weight.codes != Codes::Nibbles;
    let mut expanded = Vec::with_capacity(if bytes { 0 } else { steps + 1 });
    for block in blocks {
        let weights = if bytes {
            stored(gemm.weight.block(block))
        } else {
            expanded.clear();
            expand(gemm, block, &mut expanded);
            &expanded[..steps]
        };
        let mut row = rows.start;
        while row < rows.end {
            let count = (rows.end - row).min(TILE_ROWS);
            // SAFETY: passed on to the caller.
            unsafe {
                match count {
                    1 => tile::<1>(gemm, block, row, weights),
                    2 => tile::<2>(gemm, block, row, weights),
                    3 => tile::<3>(gemm, block, row, weights),
                    _ => tile::<TILE_ROWS>(gemm, block, row, weights),
                }
            }
            row += count;
        }
    }
}

/// Weights of 8 bits as they are stored, signed.
fn stored(lines: &[Line]) -> &[Step] {
    let steps = lines.len() / LINES;
    // SAFETY: a step is LINES lines of LANES times 16 bytes one behind the other, and a line's alignment is larger.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), steps) }
}

/// Two steps for each chunk.
#[target_feature(enable = "neon")]
fn expand(gemm: &Gemm, block: usize, out: &mut Vec<Step>) {
    let groups = gemm.weight.block_groups(block);
    let codes: [i8; 16] = std::array::from_fn(|i| i as i8 - 8);
    let mut tables = [codes; BLOCK];
    for (chunk, lines) in gemm.weight.block(block).as_chunks::<LINES>().0.iter().enumerate() {
        if let Some((size, scales)) = groups
            && chunk.is_multiple_of(size / CHUNK)
        {
            for (table, scale) in tables.iter_mut().zip(&scales[chunk * CHUNK / size]) {
                let scale = f32::from(*scale);
                // The product is exact (4 + 11 bits), so this rounds once.
                *table = codes.map(|code| (f32::from(code) * scale).round_ties_even() as i8);
            }
        }
        let mut steps = [[[vdupq_n_s8(0); LANES]; LINES]; 2];
        for line in 0..LINES {
            for lane in 0..LANES {
                // SAFETY: a lane has 16 bytes, a table has 16 entries.
                unsafe {
                    let packed = vld1q_u8(lines[line].0.as_ptr().add(lane * 16));
                    let table = vld1q_s8(tables[lane * LINES + line].as_ptr());
                    steps[0][line][lane] = vqtbl1q_s8(table, vandq_u8(packed, vdupq_n_u8(0xf)));
                    steps[1][line][lane] = vqtbl1q_s8(table, vshrq_n_u8::<4>(packed));
                }
            }
        }
        out.extend(steps);
    }
}

/// Adds the products of 16 weights and 16 activations, by fours. (The intrinsic `vdotq_s32` is not stable.)
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot(mut acc: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
    // SAFETY: reads and writes registers only.
    unsafe {
        asm!(
            "sdot {acc:v}.4s, {w:v}.16b, {a:v}.16b",
            acc = inout(vreg) acc, w = in(vreg) w, a = in(vreg) a,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    acc
}

/// One block of output channels, `R` rows.
///
/// # Safety
/// As [`run`].
#[target_feature(enable = "neon,dotprod")]
unsafe fn tile<const R: usize>(gemm: &Gemm, block: usize, row: usize, weights: &[Step]) {
    let k = gemm.weight.in_features;
    let a = &gemm.a.codes[row * k..(row + R) * k];
    let mut sums = [[0; BLOCK]; R];
    for line in 0..LINES {
        let mut acc = [[vdupq_n_s32(0); LANES]; R];
        for (step, w) in weights.iter().enumerate() {
            for (r, acc) in acc.iter_mut().enumerate() {
                // SAFETY: row r has 16 codes for each step.
                let a = unsafe { vld1q_s8(a[r * k + step * 16..].as_ptr()) };
                for (acc, w) in acc.iter_mut().zip(w[line]) {
                    *acc = dot(*acc, w, a);
                }
            }
        }
        for (sums, acc) in sums.iter_mut().zip(acc) {
            for (lane, acc) in acc.into_iter().enumerate() {
                sums[lane * LINES + line] = vaddvq_s32(acc);
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        // SAFETY: passed on to the caller.
        unsafe { gemm.output.store(row + r, block, sums) };
    }
}
