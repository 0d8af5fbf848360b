//! Rounding to nearest on the checkpoint's grid, fast: the inner loop of the smoothing search.

use qqq_formats::QuantizedWeight;

use crate::{
    pool::parallel_each_mut,
    simd::{SimdLevel, multiversion},
    solve::{Grid, Scheme, round},
};

/// Rows that one task rounds.
const ROWS: usize = 16;

/// Codes and scales of `W diag(s)` rounded to nearest with scales from the largest weight, on the scheme's
/// [grid](Scheme::grid).
///
/// # Panics
/// If there are not whole rows of `s.len()` weights.
pub(super) fn round_scaled(weight: &[f32], s: &[f32], scheme: Scheme) -> QuantizedWeight {
    let k = s.len();
    let n = weight.len() / k;
    assert_eq!(n * k, weight.len(), "values of whole rows of {k}");
    let groups = scheme.group_size.map_or(1, |g| k / g);
    let len = k / groups;
    let mut codes = vec![0i8; n * k];
    // Per row: the group scales (or the channel's).
    let mut scales = vec![0.0f32; n * groups];
    let mut tasks: Vec<_> = codes.chunks_mut(ROWS * k).zip(scales.chunks_mut(ROWS * groups)).collect();
    let grid = scheme.grid();
    let level = SimdLevel::detect();
    parallel_each_mut(&mut tasks, |task, (codes, scales)| {
        let source = &weight[task * ROWS * k..][..codes.len()];
        round_rows(level, source, s, len, grid, codes, scales);
    });
    scheme.weight((n, k), codes, scales)
}

multiversion! {
    /// Rounds rows of `s.len()` weights in groups of `len`; never fused, the same bits on every level.
    fn round_rows(source: &[f32], s: &[f32], len: usize, grid: Grid, codes: &mut [i8], scales: &mut [f32]) {
        let k = s.len();
        let mut row = vec![0.0f32; k];
        let rows = source.chunks_exact(k).zip(codes.chunks_exact_mut(k)).zip(scales.chunks_exact_mut(k / len));
        for ((source, codes), scales) in rows {
            for ((r, w), s) in row.iter_mut().zip(source).zip(s) {
                *r = w * s;
            }
            for ((w, codes), scale) in row.chunks_exact(len).zip(codes.chunks_exact_mut(len)).zip(scales) {
                // Magnitudes compare as their bits do.
                let max = f32::from_bits(w.iter().fold(0, |max, w| max.max(w.to_bits() & 0x7fff_ffff)));
                let step = max / grid.reach;
                *scale = if step > f32::MIN_POSITIVE { step } else { 1.0 };
                let inverse = 1.0 / *scale;
                for (c, w) in codes.iter_mut().zip(w) {
                    *c = round(w * inverse).clamp(grid.low, grid.high) as i8;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use qqq_formats::CodeBits;

    use super::*;

    #[test]
    fn errors_stay_below_half_a_step() {
        let (n, k) = (40, 64);
        let weight: Vec<f32> = (0..n * k).map(|i| ((i * 37 % 101) as f32 - 50.0) / 30.0).collect();
        let s: Vec<f32> = (0..k).map(|j| 1.0 + (j % 5) as f32).collect();
        let eight = Scheme { bits: CodeBits::Eight, ..Scheme::w4a8(None) };
        for scheme in [Scheme::w4a8(None), Scheme::w4a8(Some(32)), eight] {
            let q = round_scaled(&weight, &s, scheme);
            let back = q.dequantize();
            for i in 0..n {
                let row = |j: usize| weight[i * k + j] * s[j];
                let max = (0..k).map(|j| row(j).abs()).fold(0.0, f32::max);
                for j in 0..k {
                    // Half a step, the clipped code +8, and the rounding of int8 weights.
                    let bound = match (scheme.bits, scheme.group_size) {
                        (CodeBits::Four, Some(_)) => max / 14.0,
                        (CodeBits::Four, None) => max / 14.0 * 1.0001,
                        (CodeBits::Eight, _) => max / 254.0 * 1.0001,
                    };
                    assert!((back[i * k + j] - row(j)).abs() <= bound, "{scheme:?} {i} {j}");
                }
            }
            assert!(q.int8_weights().iter().all(|w| (-127..=127).contains(w)));
        }
    }

    #[test]
    fn rows_of_zeros_have_finite_scales() {
        for group_size in [None, Some(32)] {
            let q = round_scaled(&[0.0; 64], &[1.0; 32], Scheme::w4a8(group_size));
            assert!(q.dequantize().iter().all(|&w| w == 0.0));
        }
    }
}
