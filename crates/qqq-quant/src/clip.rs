//! Choice of scales: the step of each output channel's (or group's) grid of codes.

pub mod group_output;
pub mod integer;

use qqq_backend::simd::{SimdLevel, multiversion};

pub use qqq_backend::solve::Grid;
use qqq_backend::solve::ScaleSearch;
pub(crate) use qqq_backend::solve::round;

use crate::{Clip, solve::ScaleDType};

/// Exponent of the weight error of [`Clip::Weight`], as in GPTQ's `mse` option.
const WEIGHT_NORM: f32 = 2.4;

/// Scales of `weights` (`rows x k`, row-major), shape `rows x (k / group_size)`, rounded to `dtype`.
///
/// `importance` (length `k`) weighs the squared error of each input channel for [`Clip::Output`]; a channel of
/// importance 0 is never seen by the layer and takes no part in any choice. A group without weights gets the least
/// scale of its row, a row without weights 1.
///
/// Shrunk scales never have a larger error, by the measure that chose them, than the unclipped one (but for the
/// rounding to `dtype`).
pub fn scales(
    weights: &[f32],
    k: usize,
    group_size: usize,
    grid: Grid,
    clip: Clip,
    importance: &[f32],
    dtype: ScaleDType,
) -> Vec<f32> {
    let mut out = Vec::with_capacity(weights.len() / group_size.max(1));
    let live = live(importance);
    let chosen_by = if clip == Clip::Output { importance } else { &live };
    for row in weights.chunks_exact(k) {
        let first = out.len();
        for ((w, importance), live) in
            row.chunks(group_size).zip(chosen_by.chunks(group_size)).zip(live.chunks(group_size))
        {
            let largest = largest(w, live);
            let full = largest / grid.reach;
            // Below the least normal number a quotient by the scale may overflow.
            out.push(if full < f32::MIN_POSITIVE {
                0.0
            } else {
                dtype.round(full * ratio(w, importance, full, grid, clip))
            });
        }
        let row = &mut out[first..];
        let least = row.iter().copied().filter(|s| *s > 0.0).fold(f32::INFINITY, f32::min);
        let least = if least.is_finite() { least } else { 1.0 };
        row.iter_mut().filter(|s| **s == 0.0).for_each(|s| *s = least);
    }
    out
}

/// 1 for each channel that the layer sees, else 0.
fn live(importance: &[f32]) -> Vec<f32> {
    importance.iter().map(|&v| if v > 0.0 { 1.0 } else { 0.0 }).collect()
}

/// The largest |weight| of the channels that are alive (1 in `live`, else 0).
fn largest(w: &[f32], live: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for (w, live) in w.chunks(LANES).zip(live.chunks(LANES)) {
        for ((m, w), live) in lanes.iter_mut().zip(w).zip(live) {
            *m = m.max(w.abs() * live);
        }
    }
    lanes.into_iter().fold(0.0, f32::max)
}

/// The ratios that are tried.
pub(crate) fn search(clip: Clip) -> Option<ScaleSearch> {
    match clip {
        // GroupOutput has a search of its own; what was learned is given.
        Clip::None | Clip::GroupOutput | Clip::Learned => None,
        // GPTQ's range: a hundred steps, shrunk by at most 0.8.
        Clip::Weight => Some(ScaleSearch { from: 100, to: 20, stride: 4 }),
        Clip::Output => Some(ScaleSearch { from: 110, to: 40, stride: 5 }),
    }
}

/// The ratio to the unclipped scale that has the least error, by a [`ScaleSearch`].
fn ratio(w: &[f32], importance: &[f32], full: f32, grid: Grid, clip: Clip) -> f32 {
    let Some(ScaleSearch { from, to, stride }) = search(clip) else { return 1.0 };
    let mut best = (1.0, error(w, importance, full, grid, clip));
    let mut centre = 100;
    let mut consider = |hundredths: i32| {
        let ratio = hundredths as f32 / 100.0;
        let error = error(w, importance, full * ratio, grid, clip);
        if error < best.1 {
            best = (ratio, error);
            centre = hundredths;
        }
    };
    (0..=(from - to) / stride).map(|i| from - i * stride).for_each(&mut consider);
    let around = centre;
    let mut consider = |hundredths: i32| {
        let ratio = hundredths as f32 / 100.0;
        let error = error(w, importance, full * ratio, grid, clip);
        if error < best.1 {
            best = (ratio, error);
        }
    };
    (around - stride + 1..around + stride)
        .filter(|&h| h != around && (to..=from).contains(&h))
        .for_each(&mut consider);
    best.0
}

/// The error of rounding `w` to the grid of step `scale`: `sum importance |w - q|^p`, with `p` 2 for [`Clip::Output`]
/// and 2.4 otherwise.
pub fn error(w: &[f32], importance: &[f32], scale: f32, grid: Grid, clip: Clip) -> f32 {
    error_at(SimdLevel::detect(), w, importance, scale, grid, clip)
}

/// Lanes of the sums, whatever the instruction set. Nothing is fused: all paths give the same bits.
const LANES: usize = 16;

multiversion! {
    fn error_at(w: &[f32], importance: &[f32], scale: f32, grid: Grid, clip: Clip) -> f32 {
        let (sum, power) = match clip {
            Clip::Output => (sum_of_powers::<false>(w, importance, scale, grid), scale * scale),
            _ => (sum_of_powers::<true>(w, importance, scale, grid), scale.powf(WEIGHT_NORM)),
        };
        sum * power
    }
}

/// `sum importance |d|^p` with differences `d` in steps, whose powers stay in range; `p` is 2.4 if `STEEP`, else 2.
#[inline(always)]
fn sum_of_powers<const STEEP: bool>(w: &[f32], importance: &[f32], scale: f32, grid: Grid) -> f32 {
    let inverse = 1.0 / scale;
    let mut sums = [0.0f32; LANES];
    let (chunks, rest) = w.as_chunks::<LANES>();
    let (weights, rest_weights) = importance.as_chunks::<LANES>();
    for (w, importance) in chunks.iter().zip(weights) {
        add_powers::<STEEP>(&mut sums, w, importance, inverse, grid);
    }
    if !rest.is_empty() {
        let (mut w, mut importance) = ([0.0; LANES], [0.0; LANES]);
        w[..rest.len()].copy_from_slice(rest);
        importance[..rest.len()].copy_from_slice(rest_weights);
        add_powers::<STEEP>(&mut sums, &w, &importance, inverse, grid);
    }
    sums.iter().sum()
}

#[inline(always)]
fn add_powers<const STEEP: bool>(
    sums: &mut [f32; LANES],
    w: &[f32; LANES],
    importance: &[f32; LANES],
    inverse: f32,
    grid: Grid,
) {
    for l in 0..LANES {
        let x = w[l] * inverse;
        let d = x - round(x.clamp(grid.low, grid.high));
        let square = d * d;
        sums[l] += importance[l] * if STEEP { square * fifth_root(square) } else { square };
    }
}

/// `x^(1/5)` for `x >= 0`, to 0.3%: a guess from the exponent bits and one Newton step. `|d|^2.4 = d^2 (d^2)^(1/5)`.
#[inline(always)]
fn fifth_root(x: f32) -> f32 {
    const ONE: f32 = 0x3f80_0000 as f32;
    let bits = x.to_bits() as i32 as f32 * 0.2 + 0.8 * ONE - 0.034 * 8_388_608.0;
    let y = f32::from_bits(bits as i32 as u32);
    let y2 = y * y;
    y * 0.8 + 0.2 * x / (y2 * y2)
}

#[cfg(test)]
#[path = "clip/tests.rs"]
mod tests;
