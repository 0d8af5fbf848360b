//! Products with few rows: `out = x W^T`, where reading the weights is the work. Weights are read as
//! they are stored, once for all rows, and widened in registers.

use super::{element::Element, matrix::Matrix};
#[cfg(target_arch = "x86_64")]
use crate::simd::FloatIsa;
use crate::{
    pool,
    shared::{SharedMut, with_scratch},
    simd::{SimdLevel, fma, multiversion},
};

/// Weight rows that one job takes at most, and at least.
const MAX_ROWS_PER_JOB: usize = 256;
const MIN_ROWS_PER_JOB: usize = 16;
/// Rows of `x` and of `W` in a register tile.
#[cfg(target_arch = "x86_64")]
const TILE: (usize, usize) = (6, 4);

/// Writes `x w^T + bias` to `out`, which holds `x.rows x n` values, for the weight
/// `w` of shape `n x x.cols`.
///
/// # Safety
/// `out` must have that many values, and nothing else may use it.
pub(crate) unsafe fn skinny<W: Element>(
    level: SimdLevel,
    x: &Matrix,
    w: &[W],
    n: usize,
    bias: Option<&[f32]>,
    out: &SharedMut<f32>,
) {
    let step =
        n.div_ceil(8 * pool::num_threads()).next_multiple_of(8).clamp(MIN_ROWS_PER_JOB, MAX_ROWS_PER_JOB);
    pool::parallel_for(n.div_ceil(step), |job| {
        let (first, last) = (job * step, ((job + 1) * step).min(n));
        // SAFETY: jobs write disjoint columns; the machine has the level.
        unsafe {
            let store = |row: usize, col: usize, sum: f32| {
                out.at(row * n + col).write(sum + bias.map_or(0.0, |b| b[col]));
            };
            match level.isa() {
                #[cfg(target_arch = "x86_64")]
                FloatIsa::Avx512 => columns_avx512(x, w, first, last, store),
                _ => columns(level, x, w, first, last, store),
            }
        }
    });
}

/// The product of a row of activations and a row of weights, as [`skinny`] computes it.
///
/// # Panics
/// If the lengths differ.
pub(crate) fn product<W: Element>(level: SimdLevel, x: &[f32], w: &[W]) -> f32 {
    assert_eq!(x.len(), w.len());
    match level.isa() {
        #[cfg(target_arch = "x86_64")]
        FloatIsa::Avx512 => {
            let mut sums = [[0.0; TILE.1]; TILE.0];
            // SAFETY: the machine has the level.
            unsafe { dots_avx512::<W, 1, 1, false>(x, w, x.len(), &mut sums) };
            sums[0][0]
        }
        _ => with_scratch(x.len(), |wide| {
            W::widen(level, w, wide);
            dot(level, x, wide)
        }),
    }
}

/// Four weight rows at a time, widened into scratch memory.
fn columns<W: Element>(
    level: SimdLevel,
    x: &Matrix,
    w: &[W],
    first: usize,
    last: usize,
    store: impl Fn(usize, usize, f32),
) {
    let k = x.cols;
    with_scratch(4 * k, |wide| {
        for start in (first..last).step_by(4) {
            let end = (start + 4).min(last);
            let wide = &mut wide[..(end - start) * k];
            W::widen(level, &w[start * k..end * k], wide);
            for row in 0..x.rows {
                for (j, w) in wide.chunks_exact(k).enumerate() {
                    store(row, start + j, dot(level, x.row(row), w));
                }
            }
        }
    });
}

multiversion! {
    /// Inner product in 32 partial sums.
    fn dot(x: &[f32], y: &[f32]) -> f32 {
        let mut lanes = [0.0f32; 32];
        let (xs, ys) = (x.chunks_exact(32), y.chunks_exact(32));
        let mut rest = 0.0;
        for (&a, &b) in xs.remainder().iter().zip(ys.remainder()) {
            rest = fma::<FMA>(a, b, rest);
        }
        for (a, b) in xs.zip(ys) {
            for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
                *lane = fma::<FMA>(a, b, *lane);
            }
        }
        rest + lanes.iter().sum::<f32>()
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn columns_avx512<W: Element>(
    x: &Matrix,
    w: &[W],
    first: usize,
    last: usize,
    store: impl Fn(usize, usize, f32),
) {
    assert!(w.len() >= last * x.cols);
    for col in (first..last).step_by(TILE.1) {
        let cols = (last - col).min(TILE.1);
        for row in (0..x.rows).step_by(TILE.0) {
            let rows = (x.rows - row).min(TILE.0);
            let x_rows = &x.data[row * x.cols..];
            let w_rows = &w[col * x.cols..];
            let mut sums = [[0.0; TILE.1]; TILE.0];
            macro_rules! by_shape {
                ($($r:literal)*) => {
                    match (rows, cols, row == 0) {
                        $(
                            ($r, TILE_COLS, true) => {
                                dots_avx512::<W, $r, TILE_COLS, true>(x_rows, w_rows, x.cols, &mut sums);
                            }
                            ($r, TILE_COLS, false) => {
                                dots_avx512::<W, $r, TILE_COLS, false>(x_rows, w_rows, x.cols, &mut sums);
                            }
                        )*
                        // The last columns of an odd width, one by one.
                        _ => for j in 0..cols {
                            for r in 0..rows {
                                let (x_row, w_row) = (&x_rows[r * x.cols..], &w_rows[j * x.cols..]);
                                let mut one = [[0.0; TILE.1]; TILE.0];
                                dots_avx512::<W, 1, 1, false>(x_row, w_row, x.cols, &mut one);
                                sums[r][j] = one[0][0];
                            }
                        },
                    }
                };
            }
            const TILE_COLS: usize = TILE.1;
            by_shape!(1 2 3 4 5 6);
            for (r, sums) in sums.iter().enumerate().take(rows) {
                for (j, &sum) in sums.iter().enumerate().take(cols) {
                    store(row + r, col + j, sum);
                }
            }
        }
    }
}

/// Inner products of the first `R` rows of `x` with the first `C` rows of `w`, of length `k`. `PREFETCH`
/// fetches the following `C` rows of `w`: the hardware prefetchers do not follow several streams in a page, and
/// without this a third of the memory bandwidth is lost.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn dots_avx512<W: Element, const R: usize, const C: usize, const PREFETCH: bool>(
    x: &[f32],
    w: &[W],
    k: usize,
    sums: &mut [[f32; TILE.1]; TILE.0],
) {
    use std::arch::x86_64::*;
    assert!(x.len() >= R * k && w.len() >= C * k);
    let (x, w) = (x.as_ptr(), w.as_ptr());
    let mut acc = [[_mm512_setzero_ps(); C]; R];
    for i in (0..k - k % 16).step_by(16) {
        let mut wide = [_mm512_setzero_ps(); C];
        for (j, wide) in wide.iter_mut().enumerate() {
            let p = w.wrapping_add(j * k + i);
            if PREFETCH {
                _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(C * k).cast());
            }
            // SAFETY: within C x k of w.
            *wide = unsafe { W::load(p) };
        }
        for (r, acc) in acc.iter_mut().enumerate() {
            // SAFETY: within R x k of x.
            let x = unsafe { _mm512_loadu_ps(x.add(r * k + i)) };
            for (acc, wide) in acc.iter_mut().zip(wide) {
                *acc = _mm512_fmadd_ps(x, wide, *acc);
            }
        }
    }
    let (i, n) = (k - k % 16, k % 16);
    if n > 0 {
        for (r, acc) in acc.iter_mut().enumerate() {
            for (j, acc) in acc.iter_mut().enumerate() {
                // SAFETY: as above, and the masks leave out what lies beyond k.
                *acc = unsafe {
                    _mm512_fmadd_ps(
                        f32::load_first(x.add(r * k + i), n),
                        W::load_first(w.add(j * k + i), n),
                        *acc,
                    )
                };
            }
        }
    }
    for (sums, acc) in sums.iter_mut().zip(acc) {
        for (sum, acc) in sums.iter_mut().zip(acc) {
            *sum = _mm512_reduce_add_ps(acc);
        }
    }
}
