//! Clipping by what a group alone adds to the output, as AWQ has it ([`recipes::awq`](crate::recipes::awq)).
//!
//! A group `g` of an output channel adds `w_g . x_g` to the output. Rounded it adds another number, and the squared difference,
//! summed over the calibration tokens, is `d H_gg d^T` with `d = w_g - q_g` and the group's block of the Hessian on the diagonal.
//! What the rounding of other groups does to the same output is not looked at.

use super::{Grid, round};
use crate::solve::ScaleDType;

/// Ratios to the unclipped scale, in twentieths: from 1 down to 0.55.
const RATIOS: std::ops::Range<usize> = 0..10;
const PARTS: f32 = 20.0;

/// Moves the scales of `weights` (`rows x k`, row-major) to the ratio of least error, where there is one; `scales` are the
/// unclipped ones, `rows x (k / group_size)`, and come back rounded to `dtype`. `hessian` is `k x k`, symmetric.
pub fn shrink(
    weights: &[f32],
    k: usize,
    group_size: usize,
    grid: Grid,
    hessian: &[f32],
    dtype: ScaleDType,
    scales: &mut [f32],
) {
    let groups = k / group_size;
    let mut difference = vec![0.0f32; group_size];
    for (row, scales) in weights.chunks_exact(k).zip(scales.chunks_exact_mut(groups)) {
        for (g, (w, scale)) in row.chunks_exact(group_size).zip(scales).enumerate() {
            let full = *scale;
            let mut least = f64::INFINITY;
            for part in RATIOS {
                let candidate = dtype.round(full * (1.0 - part as f32 / PARTS));
                let inverse = 1.0 / candidate;
                for (d, w) in difference.iter_mut().zip(w) {
                    *d = w - round((w * inverse).clamp(grid.low, grid.high)) * candidate;
                }
                let error = quadratic_form(&difference, hessian, k, g * group_size);
                if error < least {
                    (least, *scale) = (error, candidate);
                }
            }
        }
    }
}

/// `d H_gg d^T` of the block of `H` on the diagonal that begins at channel `first`.
fn quadratic_form(d: &[f32], hessian: &[f32], k: usize, first: usize) -> f64 {
    const LANES: usize = 8;
    let mut sum = 0.0f64;
    for (i, &di) in d.iter().enumerate() {
        let row = &hessian[(first + i) * k + first..][..d.len()];
        let mut lanes = [0.0f32; LANES];
        for (h, d) in row.chunks(LANES).zip(d.chunks(LANES)) {
            for ((lane, h), d) in lanes.iter_mut().zip(h).zip(d) {
                *lane += h * d;
            }
        }
        sum += f64::from(di) * f64::from(lanes.iter().sum::<f32>());
    }
    sum
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Against outputs of tokens in float64, ratio by ratio.
    #[test]
    fn the_ratio_is_that_of_the_least_output_error() {
        let (rows, k, group, tokens) = (6, 64, 32, 200);
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut random = |n: usize| -> Vec<f32> { (0..n).map(|_| 2.0 * rng.random::<f32>() - 1.0).collect() };
        let mut weights = random(rows * k);
        // Outliers that pay to be clipped, and one that does not.
        (0..rows).for_each(|r| weights[r * k + 3] = 2.5);
        let mut x = random(tokens * k);
        x.iter_mut().skip(3).step_by(k).for_each(|x| *x *= 0.05);
        x.iter_mut().skip(40).step_by(k).for_each(|x| *x *= 30.0);
        (0..rows).for_each(|r| weights[r * k + 40] = 1.5);
        let mut hessian = vec![0.0f32; k * k];
        for token in x.chunks_exact(k) {
            for i in 0..k {
                for j in 0..k {
                    hessian[i * k + j] += 2.0 / tokens as f32 * token[i] * token[j];
                }
            }
        }
        let full: Vec<f32> = weights
            .chunks_exact(group)
            .map(|w| w.iter().fold(0.0f32, |m, w| m.max(w.abs())) / Grid::GROUP.reach)
            .collect();
        let mut scales = full.clone();
        shrink(&weights, k, group, Grid::GROUP, &hessian, ScaleDType::F32, &mut scales);
        let mut clipped = 0;
        for r in 0..rows {
            for g in 0..k / group {
                let at = r * (k / group) + g;
                let error = |ratio: f64| -> f64 {
                    let scale = f64::from(full[at]) * ratio;
                    let difference = |j: usize| {
                        let w = f64::from(weights[r * k + j]);
                        w - (w / scale).round_ties_even().clamp(-8.0, 7.0) * scale
                    };
                    let d: Vec<f64> = (g * group..(g + 1) * group).map(difference).collect();
                    let added = |token: &[f32]| -> f64 {
                        token[g * group..][..group].iter().zip(&d).map(|(x, d)| f64::from(*x) * d).sum()
                    };
                    x.chunks_exact(k).map(|token| added(token).powi(2)).sum()
                };
                let chosen = error(f64::from(scales[at] / full[at]));
                let best = (0..10).map(|i| error(1.0 - f64::from(i) / 20.0)).fold(f64::INFINITY, f64::min);
                assert!(chosen <= best * 1.001, "row {r}, group {g}: {chosen} {best}");
                clipped += usize::from(scales[at] < full[at] * 0.99);
            }
        }
        assert!(clipped >= rows / 2 && clipped < 2 * rows, "{clipped}");
    }
}
