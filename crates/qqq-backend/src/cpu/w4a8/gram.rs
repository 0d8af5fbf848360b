//! Gram matrices of int8 activations, `sum += weight * sum_t q_t q_t^T`: what calibration for W4A8 spends most of its
//! arithmetic on. The sums over tokens are exact in int32.
//!
//! With AVX-512 VNNI four tokens of a channel make a 32-bit word, the words of 16 channels a line, and `vpdpbusd`
//! multiplies lines (made unsigned by adding 128) by broadcast words: four times the rate of float32. Elsewhere a plain
//! loop gives the same bits; [`is_fast`] tells whether to use it.

use super::super::isa::Isa;
use super::super::pool::parallel_for;
use super::super::shared::SharedMut;
use super::pack::Line;

/// Most tokens of a call: a panel of 48 channels then stays in the L1 cache.
pub const GRAM_TOKENS: usize = 512;
/// Channels of a line.
const BLOCK: usize = 16;
/// Tokens of a word.
const STEP: usize = 4;
/// Column blocks of a panel: with 8 rows, 24 accumulators.
const PANEL_BLOCKS: usize = 3;
/// Row blocks of a job.
const JOB_BLOCKS: usize = 12;

/// Whether [`add_gram`] beats a float32 product on this machine, for activations of this width.
pub fn is_fast(width: usize) -> bool {
    width.is_multiple_of(BLOCK) && Isa::selected().is_ok_and(|isa| isa == Isa::Avx512Vnni)
}

/// Memory that calls reuse.
#[derive(Debug, Default)]
pub struct GramScratch {
    lines: Vec<Line>,
}

/// Adds `weight * sum_t q_t[i] q_t[j]` to `sum[i * width + j]` for all `j <= i`; elements above the diagonal are left
/// unspecified. The sum over tokens is rounded to float32, multiplied and added, each step rounded.
///
/// # Panics
/// If a row of codes is not `width` long, `sum` is not `width x width`, or there are more than [`GRAM_TOKENS`] rows.
pub fn add_gram(codes: &[&[i8]], width: usize, weight: f32, sum: &mut [f32], scratch: &mut GramScratch) {
    assert!(codes.len() <= GRAM_TOKENS && codes.iter().all(|row| row.len() == width), "rows of codes");
    assert_eq!(sum.len(), width * width, "values of the Gram matrix");
    #[cfg(target_arch = "x86_64")]
    if is_fast(width) {
        // SAFETY: the machine has the instructions, the shapes are checked, and width is a multiple of 16.
        return unsafe { avx512(codes, width, weight, sum, scratch) };
    }
    let _ = scratch;
    portable(codes, width, weight, sum);
}

fn portable(codes: &[&[i8]], width: usize, weight: f32, sum: &mut [f32]) {
    let mut row = vec![0i32; width];
    for i in 0..width {
        row.fill(0);
        for q in codes {
            let a = i32::from(q[i]);
            row[..=i].iter_mut().zip(*q).for_each(|(acc, &b)| *acc += a * i32::from(b));
        }
        for (sum, &acc) in sum[i * width..=i * width + i].iter_mut().zip(&row) {
            *sum += acc as f32 * weight;
        }
    }
}

/// # Safety
/// The machine has AVX-512 BW and VNNI; rows are `width` codes, `sum` is `width x width`, and `width` is a multiple of 16.
#[cfg(target_arch = "x86_64")]
unsafe fn avx512(codes: &[&[i8]], width: usize, weight: f32, sum: &mut [f32], scratch: &mut GramScratch) {
    let blocks = width / BLOCK;
    let steps = codes.len().div_ceil(STEP);
    scratch.lines.resize(blocks * steps, Line([0; 64]));
    let lines = SharedMut::new(&mut scratch.lines);
    const STEPS_PER_TASK: usize = 16;
    parallel_for(steps.div_ceil(STEPS_PER_TASK), |task| {
        for step in task * STEPS_PER_TASK..steps.min((task + 1) * STEPS_PER_TASK) {
            // SAFETY: every task writes its own steps of the blocks x steps lines.
            unsafe { pack_step(codes, blocks, step, steps, &lines) };
        }
    });
    let panels = (0..blocks).step_by(PANEL_BLOCKS).map(|first| first..blocks.min(first + PANEL_BLOCKS));
    let jobs: Vec<_> = panels
        .flat_map(|columns| {
            let starts = (columns.start..blocks).step_by(JOB_BLOCKS);
            starts.map(move |row| (row..blocks.min(row + JOB_BLOCKS), columns.clone()))
        })
        .collect();
    let sum = SharedMut::new(sum);
    let lines = scratch.lines.as_slice();
    parallel_for(jobs.len(), |job| {
        let (rows, columns) = jobs[job].clone();
        for row in rows {
            let tile = GramTile { lines, steps, row, column: columns.start, width, weight, sum: &sum };
            // SAFETY: blocks are within the matrix, and jobs have different ones.
            unsafe {
                match columns.len() {
                    1 => tile.run::<1>(),
                    2 => tile.run::<2>(),
                    _ => tile.run::<PANEL_BLOCKS>(),
                }
            }
        }
    });
}

/// Packs four tokens: line `block * steps + step` gets the words of the block's 16 channels. Missing tokens are zeros.
///
/// # Safety
/// Rows have `16 * blocks` codes, there are `blocks * steps` lines, and nothing else uses those of this step.
#[cfg(target_arch = "x86_64")]
unsafe fn pack_step(codes: &[&[i8]], blocks: usize, step: usize, steps: usize, lines: &SharedMut<Line>) {
    use std::arch::x86_64::*;
    let row = |i: usize| codes.get(step * STEP + i);
    let rows = [row(0), row(1), row(2), row(3)];
    for block in 0..blocks {
        // SAFETY: 16 codes from 16 * block on; the line is this call's own. SSE2 is part of x86-64.
        unsafe {
            let mut v = [_mm_setzero_si128(); STEP];
            for (v, row) in v.iter_mut().zip(rows) {
                if let Some(row) = row {
                    *v = _mm_loadu_si128(row.as_ptr().add(block * BLOCK).cast());
                }
            }
            let (low, low2) = (_mm_unpacklo_epi8(v[0], v[1]), _mm_unpacklo_epi8(v[2], v[3]));
            let (high, high2) = (_mm_unpackhi_epi8(v[0], v[1]), _mm_unpackhi_epi8(v[2], v[3]));
            let line = lines.at(block * steps + step).cast::<__m128i>();
            _mm_store_si128(line, _mm_unpacklo_epi16(low, low2));
            _mm_store_si128(line.add(1), _mm_unpackhi_epi16(low, low2));
            _mm_store_si128(line.add(2), _mm_unpacklo_epi16(high, high2));
            _mm_store_si128(line.add(3), _mm_unpackhi_epi16(high, high2));
        }
    }
}

/// 16 rows and up to three blocks of columns of the Gram matrix.
#[cfg(target_arch = "x86_64")]
struct GramTile<'a> {
    /// Shape `blocks x steps`.
    lines: &'a [Line],
    steps: usize,
    /// Block of rows.
    row: usize,
    /// First block of columns.
    column: usize,
    width: usize,
    weight: f32,
    sum: &'a SharedMut<'a, f32>,
}

#[cfg(target_arch = "x86_64")]
impl GramTile<'_> {
    /// # Safety
    /// The machine has AVX-512 BW and VNNI; the blocks are within the matrix, and nothing else uses their elements.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn run<const C: usize>(&self) {
        use std::arch::x86_64::*;
        const ROWS: usize = 8;
        let block = |i: usize| self.lines[i * self.steps..(i + 1) * self.steps].as_ptr();
        let rows = block(self.row);
        let mut columns = [rows; C];
        for (c, column) in columns.iter_mut().enumerate() {
            *column = block(self.column + c);
        }
        // SAFETY: all reads are within `steps` lines of a block, all writes within the caller's elements.
        unsafe {
            let mut totals = _mm512_setzero_si512();
            for step in 0..self.steps {
                let line = _mm512_load_si512(rows.add(step).cast());
                totals = _mm512_dpbusd_epi32(totals, _mm512_set1_epi8(1), line);
            }
            let mut row_sums = [0i32; BLOCK];
            _mm512_storeu_si512(row_sums.as_mut_ptr().cast(), totals);
            for half in 0..BLOCK / ROWS {
                let mut acc = [[_mm512_setzero_si512(); C]; ROWS];
                for step in 0..self.steps {
                    let mut unsigned = [_mm512_setzero_si512(); C];
                    for (c, unsigned) in unsigned.iter_mut().enumerate() {
                        let line = _mm512_load_si512(columns[c].add(step).cast());
                        *unsigned = _mm512_xor_si512(line, _mm512_set1_epi8(-128));
                    }
                    let words = rows.add(step).cast::<i32>().add(half * ROWS);
                    for (r, acc) in acc.iter_mut().enumerate() {
                        let word = _mm512_set1_epi32(*words.add(r));
                        for c in 0..C {
                            acc[c] = _mm512_dpbusd_epi32(acc[c], unsigned[c], word);
                        }
                    }
                }
                for (r, acc) in acc.iter().enumerate() {
                    let i = half * ROWS + r;
                    let offset = _mm512_set1_epi32(128 * row_sums[i]);
                    let start = (self.row * BLOCK + i) * self.width + self.column * BLOCK;
                    for (c, acc) in acc.iter().enumerate() {
                        let product = _mm512_mul_ps(
                            _mm512_cvtepi32_ps(_mm512_sub_epi32(*acc, offset)),
                            _mm512_set1_ps(self.weight),
                        );
                        let sum = self.sum.at(start + c * BLOCK);
                        _mm512_storeu_ps(sum, _mm512_add_ps(_mm512_loadu_ps(sum), product));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fast_path_gives_the_bits_of_the_definition() {
        let mut state = 9u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8 as i8
        };
        for (tokens, width) in [(1, 16), (5, 48), (16, 64), (63, 80), (GRAM_TOKENS, 208), (7, 96), (0, 32)] {
            let data: Vec<i8> = (0..tokens * width).map(|_| next()).collect();
            let extreme = vec![-128i8; tokens * width];
            for data in [&data, &extreme] {
                let codes: Vec<&[i8]> = data.chunks_exact(width).collect();
                let start: Vec<f32> = (0..width * width).map(|i| i as f32 * 0.37 - 40.0).collect();
                let (mut got, mut want) = (start.clone(), start);
                let mut scratch = GramScratch::default();
                add_gram(&codes, width, 0.013, &mut got, &mut scratch);
                add_gram(&codes, width, 1.7e-5, &mut got, &mut scratch);
                portable(&codes, width, 0.013, &mut want);
                portable(&codes, width, 1.7e-5, &mut want);
                for i in 0..width {
                    let row = i * width..=i * width + i;
                    assert_eq!(got[row.clone()], want[row], "{tokens} tokens, row {i} of {width}");
                }
            }
        }
    }

    #[test]
    fn portable_is_the_definition() {
        let codes: [&[i8]; 2] = [&[1, -2, 3], &[-128, 127, 5]];
        let mut sum = vec![1.0; 9];
        add_gram(&codes, 3, 0.5, &mut sum, &mut GramScratch::default());
        let dot = |i: usize, j: usize| codes.iter().map(|q| f32::from(q[i]) * f32::from(q[j])).sum::<f32>();
        for i in 0..3 {
            for j in 0..=i {
                assert_eq!(sum[i * 3 + j], 1.0 + 0.5 * dot(i, j));
            }
        }
    }
}
