//! The AVX-512 VNNI path.

use std::arch::x86_64::*;

use super::{BLOCK, GramScratch};
use crate::cpu::integer::pack::Line;
use crate::pool::parallel_for;
use crate::shared::SharedMut;

/// Tokens of a word.
const STEP: usize = 4;
/// Rows of a tile.
const ROWS: usize = 8;
/// Column blocks of a panel: with 8 rows, 24 accumulators.
const PANEL_BLOCKS: usize = 3;
/// Row blocks of a job.
const JOB_BLOCKS: usize = 12;
/// Steps that a task packs.
const STEPS_PER_TASK: usize = 16;

/// # Safety
/// The machine has AVX-512 BW and VNNI; rows are `width` codes, `sum` is `width x width`, and `width` is a multiple of 16.
pub(super) unsafe fn add(
    codes: &[&[i8]],
    width: usize,
    weight: f32,
    sum: &mut [f32],
    scratch: &mut GramScratch,
) {
    let blocks = width / BLOCK;
    let steps = codes.len().div_ceil(STEP);
    scratch.lines.resize(blocks * steps, Line([0; 64]));
    let lines = SharedMut::new(&mut scratch.lines);
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
unsafe fn pack_step(codes: &[&[i8]], blocks: usize, step: usize, steps: usize, lines: &SharedMut<Line>) {
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

impl GramTile<'_> {
    /// # Safety
    /// The machine has AVX-512 BW and VNNI; the blocks are within the matrix, and nothing else uses their elements.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn run<const C: usize>(&self) {
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
