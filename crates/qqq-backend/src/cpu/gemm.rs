//! Products with many rows: `out = x W^T` by packed panels, after Goto and van de Geijn, "Anatomy
//! of high-performance matrix multiplication" (2008). Panels of W are widened and transposed once per call, in
//! column blocks of bounded size; rows of x are packed per job.

use super::{
    element::Element,
    matrix::Matrix,
    tile::{MR, NR, Tile},
};
#[cfg(target_arch = "x86_64")]
use crate::simd::FloatIsa;
use crate::{
    pool,
    shared::{SharedMut, with_scratch, with_shared_scratch},
    simd::SimdLevel,
};

/// Packed values of W that exist at a time (8 MiB).
const PACKED_VALUES: usize = 2 << 20;
/// Rows of x in a job: 8 tiles.
const ROWS_PER_JOB: usize = 8 * MR;
/// Longest piece of the inner dimension: a panel of 32 columns then takes 40 KB of the L1 cache.
const MAX_DEPTH: usize = 320;

/// Writes `x w^T + bias` to `out`, which holds `x.rows x n` values, for the weight
/// `w` of shape `n x x.cols`.
///
/// # Safety
/// `out` must have that many values, and nothing else may use it.
pub(crate) unsafe fn wide<W: Element>(
    level: SimdLevel,
    x: &Matrix,
    w: &[W],
    n: usize,
    bias: Option<&[f32]>,
    out: &SharedMut<f32>,
) {
    let k = x.cols;
    let panels = n.div_ceil(NR);
    let panels_per_block = (PACKED_VALUES / (k * NR)).clamp(1, panels);
    for first in (0..panels).step_by(panels_per_block) {
        let count = panels_per_block.min(panels - first);
        with_shared_scratch(count * k * NR, |packed| {
            pool::parallel_chunks_mut(packed, k * NR, |p, panel| {
                let col = (first + p) * NR;
                pack_panel(level, &w[col * k..n.min(col + NR) * k], k, panel);
            });
            let block = Block { level, x, packed, first_panel: first, n, bias, out };
            // Two parts of the columns even out the threads' shares; narrow products are not worth it.
            let parts = if count >= 24 { 2 } else { 1 };
            let row_blocks = x.rows.div_ceil(ROWS_PER_JOB);
            pool::parallel_for(row_blocks * parts, |job| {
                let (rows, part) = (job / parts * ROWS_PER_JOB, job % parts);
                let (from, to) = (part * count / parts, (part + 1) * count / parts);
                // SAFETY: jobs have different rows or columns.
                unsafe { block.job(rows..(rows + ROWS_PER_JOB).min(x.rows), from..to) };
            });
        });
    }
}

/// Transposes up to 32 rows of W of length `k` into a panel: `panel[i * 32 + j] = w[j][i]`, zeros for
/// missing rows.
fn pack_panel<W: Element>(level: SimdLevel, w: &[W], k: usize, panel: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if level.isa() == FloatIsa::Avx512 {
        // SAFETY: the machine has the level.
        return unsafe { pack_panel_avx512(w, k, panel) };
    }
    let _ = level;
    with_scratch(k, |wide| {
        for j in 0..NR {
            match w.get(j * k..(j + 1) * k) {
                Some(row) => W::widen(level, row, wide),
                None => wide.fill(0.0),
            }
            for (i, &v) in wide.iter().enumerate() {
                panel[i * NR + j] = v;
            }
        }
    });
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn pack_panel_avx512<W: Element>(w: &[W], k: usize, panel: &mut [f32]) {
    use std::arch::x86_64::*;
    assert!(panel.len() >= k * NR);
    let rows = w.len() / k;
    for i in (0..k).step_by(16) {
        let n = (k - i).min(16);
        for half in [0, 16] {
            let mut v = [_mm512_setzero_ps(); 16];
            for (j, v) in v.iter_mut().enumerate().take(rows.saturating_sub(half)) {
                // SAFETY: n elements of row half + j, from column i on.
                *v = unsafe { W::load_first(w.as_ptr().add((half + j) * k + i), n) };
            }
            transpose_avx512(&mut v);
            for (j, v) in v.iter().enumerate().take(n) {
                // SAFETY: within row i + j of the panel.
                unsafe { _mm512_storeu_ps(panel.as_mut_ptr().add((i + j) * NR + half), *v) };
            }
        }
    }
}

/// Transposes a 16 x 16 matrix: pairs, then quads, then the four 128-bit lanes.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose_avx512(v: &mut [std::arch::x86_64::__m512; 16]) {
    use std::arch::x86_64::*;
    let mut quads = [_mm512_setzero_ps(); 16];
    for g in 0..4 {
        let [a, b, c, d] = [v[4 * g], v[4 * g + 1], v[4 * g + 2], v[4 * g + 3]];
        let (ab_low, ab_high) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let (cd_low, cd_high) = (_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        let pd = _mm512_castps_pd;
        // quads[4 * g + i], lane l: rows 4g..4g+4 of column 4l + i.
        quads[4 * g] = _mm512_castpd_ps(_mm512_unpacklo_pd(pd(ab_low), pd(cd_low)));
        quads[4 * g + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(pd(ab_low), pd(cd_low)));
        quads[4 * g + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(pd(ab_high), pd(cd_high)));
        quads[4 * g + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(pd(ab_high), pd(cd_high)));
    }
    for i in 0..4 {
        let [a, b, c, d] = [quads[i], quads[4 + i], quads[8 + i], quads[12 + i]];
        let (ab01, ab23) = (_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
        let (cd01, cd23) = (_mm512_shuffle_f32x4::<0x44>(c, d), _mm512_shuffle_f32x4::<0xee>(c, d));
        v[i] = _mm512_shuffle_f32x4::<0x88>(ab01, cd01);
        v[4 + i] = _mm512_shuffle_f32x4::<0xdd>(ab01, cd01);
        v[8 + i] = _mm512_shuffle_f32x4::<0x88>(ab23, cd23);
        v[12 + i] = _mm512_shuffle_f32x4::<0xdd>(ab23, cd23);
    }
}

/// Packs `depth` columns from `col` on of up to 14 rows from `row` on: `packed[i * 14 + r] = x[row + r][col + i]`.
/// `packed` has room for 2 values more.
fn pack_rows(
    level: SimdLevel,
    x: &Matrix,
    row: usize,
    rows: usize,
    col: usize,
    depth: usize,
    packed: &mut [f32],
) {
    #[cfg(target_arch = "x86_64")]
    if level.isa() == FloatIsa::Avx512 {
        // SAFETY: the machine has the level.
        return unsafe { pack_rows_avx512(x, row, rows, col, depth, packed) };
    }
    let _ = level;
    for r in 0..rows {
        for (i, &v) in x.row(row + r)[col..col + depth].iter().enumerate() {
            packed[i * MR + r] = v;
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn pack_rows_avx512(x: &Matrix, row: usize, rows: usize, col: usize, depth: usize, packed: &mut [f32]) {
    use std::arch::x86_64::*;
    assert!(packed.len() >= depth * MR + 2 && row + rows <= x.rows && col + depth <= x.cols);
    for i in (0..depth).step_by(16) {
        let n = (depth - i).min(16);
        let mut v = [_mm512_setzero_ps(); 16];
        for (r, v) in v.iter_mut().enumerate().take(rows) {
            // SAFETY: n elements of row + r from col + i on.
            *v = unsafe { f32::load_first(x.data.as_ptr().add((row + r) * x.cols + col + i), n) };
        }
        transpose_avx512(&mut v);
        for (j, v) in v.iter().enumerate().take(n) {
            // SAFETY: 16 values from (i + j) * 14 on, the last two of which the next store overwrites.
            unsafe { _mm512_storeu_ps(packed.as_mut_ptr().add((i + j) * MR), *v) };
        }
    }
}

/// A block of columns whose weights are packed.
struct Block<'a> {
    level: SimdLevel,
    x: &'a Matrix,
    packed: &'a [f32],
    first_panel: usize,
    n: usize,
    bias: Option<&'a [f32]>,
    out: &'a SharedMut<'a, f32>,
}

impl Block<'_> {
    /// Rows `rows` of the output, columns of the panels `panels` (counted within the block).
    ///
    /// # Safety
    /// No other job may use these elements of the output.
    unsafe fn job(&self, rows: std::ops::Range<usize>, panels: std::ops::Range<usize>) {
        let k = self.x.cols;
        let pieces = k.div_ceil(MAX_DEPTH);
        let depth = k.div_ceil(pieces);
        let tile_size = (depth * MR + 2).next_multiple_of(16);
        let tiles = rows.len().div_ceil(MR);
        with_scratch(tiles * tile_size + MR * NR, |scratch| {
            let (a, edge) = scratch.split_at_mut(tiles * tile_size);
            for start in (0..k).step_by(depth) {
                let depth = depth.min(k - start);
                let last = start + depth == k;
                for (t, a) in a.chunks_exact_mut(tile_size).enumerate() {
                    let row = rows.start + t * MR;
                    pack_rows(self.level, self.x, row, MR.min(rows.end - row), start, depth, a);
                }
                for p in panels.clone() {
                    let b = &self.packed[(p * k + start) * NR..(p * k + start + depth) * NR];
                    let col = (self.first_panel + p) * NR;
                    for (t, a) in a.chunks_exact(tile_size).enumerate() {
                        let row = rows.start + t * MR;
                        let tile = Tile {
                            rows: MR.min(rows.end - row),
                            depth,
                            a: a.as_ptr(),
                            a_step: MR,
                            b: b.as_ptr(),
                            b_step: NR,
                            c: edge.as_mut_ptr(),
                            c_row: NR,
                            add: false,
                        };
                        // SAFETY: the packed operands hold the tile; the output part is this job's.
                        unsafe { self.run(tile, row, col, start > 0, last) };
                    }
                }
            }
        });
    }

    /// Runs a tile into the output at (`row`, `col`); `tile.c` is memory for tiles that overhang.
    ///
    /// # Safety
    /// As for [`Tile::run`]; no other job may use the `tile.rows x` [`NR`] elements of the output from there on (fewer at
    /// its right edge).
    unsafe fn run(&self, tile: Tile, row: usize, col: usize, add: bool, last: bool) {
        let cols = NR.min(self.n - col);
        // SAFETY: `tile.rows x cols` values of the output are the job's own.
        unsafe {
            if cols == NR {
                Tile { c: self.out.at(row * self.n + col), c_row: self.n, add, ..tile }.run::<1>(self.level);
            } else {
                tile.run::<1>(self.level);
            }
            let bias = self.bias.filter(|_| last);
            if cols == NR && bias.is_none() {
                return;
            }
            for r in 0..tile.rows {
                let out = self.out.slice((row + r) * self.n + col..(row + r) * self.n + col + cols);
                if cols < NR {
                    let edge = std::slice::from_raw_parts(tile.c.add(r * NR), cols);
                    for (out, &v) in out.iter_mut().zip(edge) {
                        *out = if add { *out + v } else { v };
                    }
                }
                if let Some(bias) = bias {
                    for (out, &b) in out.iter_mut().zip(&bias[col..]) {
                        *out += b;
                    }
                }
            }
        }
    }
}
