//! SpQR: A Sparse-Quantized Representation for Near-Lossless LLM Weight Compression (Dettmers et al., arXiv 2306.03078),
//! Algorithm 1.
//!
//! GPTQ in natural order over small groups of input channels. Each output channel has a scale and a zero for a group, which are
//! quantized themselves together with those of the output channels beside it. Weights without which a group would be
//! rounded with much less error are kept in 16 bits, sparse.
//!
//! The threshold is a given number, as in the paper and in the authors' scripts (which print the share of outliers that comes of
//! it, and look for none). Outliers are those of Algorithm 1, the weights that a group does better without; the authors' scripts
//! fit a group without these, and then keep each weight that is rounded with more error than the threshold.

use qqq_formats::{SimulatedMethod, simulated::SpQr};

use super::{
    Entry, RecipeName, Setting, factor,
    simulated::{
        Layer, Made, damped, each_rows, failed, hessian, losses, nearest_code, rounded, subtract, widened,
    },
};
use crate::{Recipe, Result, half_type::HalfType};

/// W3A16 in groups of 16, with scales and zeros of 3 bits, and sparse outliers.
pub const ENTRY: Entry = Entry {
    name: RecipeName::SpQr,
    word: "spqr",
    source: "arXiv 2306.03078",
    what: "small groups with quantized scales and zeros, sensitive weights sparse in 16 bits",
    gives: "W3A16 simulated (--bits, --beta1, --beta2, --statistics-bits, --outlier-threshold)",
    recipe: || Recipe::simulating(SimulatedMethod::SpQr(SpQr::default())),
    settings: &[
        Setting::Bits,
        Setting::Beta1,
        Setting::Beta2,
        Setting::StatisticsBits,
        Setting::OutlierThreshold,
        Setting::Damping,
        Setting::Text,
        Setting::Seed,
    ],
};

/// Bits of a sparse weight with its column, and of a row's place among them.
const OUTLIER_BITS: f64 = 32.0;
const ROW_BITS: f64 = 32.0;
/// Bits of a scale or a zero of scales or zeros (or of weights, where these are not quantized).
const STATISTIC_BITS: f64 = 16.0;

/// Quantizes a layer.
///
/// Bits as the paper counts them: codes of all weights, scales and zeros, 16 bits for each of their two scales and two zeros (here
/// in full precision), 32 for an outlier, 32 for a row's place among them.
///
/// # Errors
/// No Hessian, or one that is not positive definite.
pub fn quantize(layer: &Layer<'_>, options: &SpQr, half: HalfType) -> Result<Made> {
    let (n, k) = (layer.n, layer.k);
    let h = damped(hessian(layer)?, k, options.damping);
    let u = factor::inverse(&h, k).map_err(|e| failed(layer, e))?;
    let solved = solve(layer.weights, n, k, &u, options, true);
    let nearest = solve(layer.weights, n, k, &u, options, false);
    let weights = rounded(&solved.weights, half);
    let groups = k.div_ceil(options.group);
    let statistics = match options.statistics_bits {
        16 => 2.0 * STATISTIC_BITS * (n * groups) as f64,
        bits => {
            let shared = (n.div_ceil(options.statistics_group) * groups) as f64;
            2.0 * f64::from(bits) * (n * groups) as f64 + 4.0 * STATISTIC_BITS * shared
        }
    };
    let sparse = OUTLIER_BITS * solved.outliers as f64 + ROW_BITS * n as f64;
    let [loss, loss_nearest] = losses(layer, [&widened(&weights), &nearest.weights]);
    Ok(Made {
        bits: f64::from(options.bits) * (n * k) as f64 + statistics + sparse,
        quik: None,
        loss,
        loss_nearest,
        weights,
    })
}

/// Weights of a layer, and how many of them are sparse.
pub(super) struct Solved {
    /// `N x K`.
    pub weights: Vec<f64>,
    pub outliers: usize,
}

/// Algorithm 1 for `u`, the upper Cholesky factor of `H^-1` (the paper's `H^ic`). Without compensation errors stay where they are.
pub(super) fn solve(w: &[f64], n: usize, k: usize, u: &[f64], options: &SpQr, compensate: bool) -> Solved {
    let threshold = options.threshold * mean_saliency(w, n, k, u);
    let mut weights = w.to_vec();
    let chunks = n.div_ceil(options.statistics_group);
    let counts: Vec<std::sync::atomic::AtomicUsize> = (0..chunks).map(|_| Default::default()).collect();
    // Output channels know each other only by the statistics that they share.
    each_rows(&mut weights, k, options.statistics_group, |chunk, rows| {
        let found = solve_rows(rows, k, u, options, threshold, compensate);
        counts[chunk].store(found, std::sync::atomic::Ordering::Relaxed);
    });
    Solved { weights, outliers: counts.into_iter().map(|count| count.into_inner()).sum() }
}

/// The mean over columns of the variance of their weights over `(u_jj)^2`: what a threshold is a share of.
fn mean_saliency(w: &[f64], n: usize, k: usize, u: &[f64]) -> f64 {
    let (mut sums, mut squares) = (vec![0.0; k], vec![0.0; k]);
    for row in w.chunks_exact(k) {
        for ((sum, square), w) in sums.iter_mut().zip(&mut squares).zip(row) {
            *sum += w;
            *square += w * w;
        }
    }
    let n = n as f64;
    let saliency = |j: usize| (squares[j] / n - (sums[j] / n).powi(2)) / u[j * k + j].powi(2);
    (0..k).map(saliency).sum::<f64>() / k as f64
}

/// Solves output channels that share statistics, and says how many outliers there are.
fn solve_rows(
    rows: &mut [f64],
    k: usize,
    u: &[f64],
    options: &SpQr,
    threshold: f64,
    compensate: bool,
) -> usize {
    let levels = f64::from((1u32 << options.bits) - 1);
    let mut outliers = 0;
    for first in (0..k).step_by(options.group) {
        let columns = first..k.min(first + options.group);
        let pivots: Vec<f64> = columns.clone().map(|j| u[j * k + j]).collect();
        let group = |row: &[f64]| row[columns.clone()].to_vec();
        let is_outlier: Vec<Vec<bool>> = rows
            .chunks_exact(k)
            .map(|row| match threshold.is_finite() {
                true => find_outliers(&group(row), &pivots, levels, threshold),
                false => vec![false; columns.len()],
            })
            .collect();
        outliers += is_outlier.iter().flatten().filter(|is| **is).count();
        let grids: Vec<Grid> = rows
            .chunks_exact(k)
            .zip(&is_outlier)
            .map(|(row, is)| {
                Grid::fit(group(row).into_iter().zip(is).filter(|(_, is)| !**is).map(|(w, _)| w), levels)
            })
            .collect();
        let grids = quantized_grids(&grids, options.statistics_bits);
        for ((row, is_outlier), grid) in rows.chunks_exact_mut(k).zip(&is_outlier).zip(&grids) {
            for (j, is_outlier) in columns.clone().zip(is_outlier) {
                if *is_outlier {
                    continue;
                }
                let quantized = grid.round(row[j], levels);
                let u = &u[j * k..(j + 1) * k];
                let error = (row[j] - quantized) / u[j];
                row[j] = quantized;
                if compensate {
                    subtract(&mut row[j + 1..], error, &u[j + 1..]);
                }
            }
        }
    }
    outliers
}

/// Weights whose removal from the group lowers its error by more than the threshold.
fn find_outliers(group: &[f64], pivots: &[f64], levels: f64, threshold: f64) -> Vec<bool> {
    let term = |grid: &Grid, w: f64, u: f64| ((w - grid.round(w, levels)) / u).powi(2);
    let whole = Grid::fit(group.iter().copied(), levels);
    let terms: Vec<f64> = group.iter().zip(pivots).map(|(w, u)| term(&whole, *w, *u)).collect();
    let base: f64 = terms.iter().sum();
    let (low, high) =
        group.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), w| (l.min(*w), h.max(*w)));
    let alone = |end: f64| group.iter().filter(|w| **w == end).count() == 1;
    let (low_alone, high_alone) = (alone(low), alone(high));
    let gain = |i: usize| {
        if !(group[i] == low && low_alone || group[i] == high && high_alone) {
            // The others have the grid of all.
            return terms[i];
        }
        let others = || group.iter().zip(pivots).enumerate().filter(|(j, _)| *j != i).map(|(_, pair)| pair);
        let grid = Grid::fit(others().map(|(w, _)| *w), levels);
        base - others().map(|(w, u)| term(&grid, *w, *u)).sum::<f64>()
    };
    (0..group.len()).map(|i| gain(i) > threshold).collect()
}

/// A scale and a zero: a code `q` stands for `scale (q - zero)`.
#[derive(Clone, Copy, Debug)]
struct Grid {
    scale: f64,
    zero: f64,
}

impl Grid {
    /// From the least value to the largest in steps of `1 / levels`.
    fn fit(values: impl Iterator<Item = f64>, levels: f64) -> Self {
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        match high - low {
            range if range > 0.0 => Self { scale: range / levels, zero: -low * levels / range },
            // A single value, or none.
            _ => Self { scale: 1.0, zero: if low.is_finite() { -low } else { 0.0 } },
        }
    }

    fn round(self, value: f64, levels: f64) -> f64 {
        let code = nearest_code(value / self.scale + self.zero, 0.0, levels);
        self.scale * (code - self.zero)
    }
}

/// The scales of a group of input channels rounded on a grid of their own, and the zeros.
fn quantized_grids(grids: &[Grid], bits: u8) -> Vec<Grid> {
    if bits == 16 {
        return grids.to_vec();
    }
    let levels = f64::from((1u32 << bits) - 1);
    let scales = Grid::fit(grids.iter().map(|grid| grid.scale), levels);
    let zeros = Grid::fit(grids.iter().map(|grid| grid.zero), levels);
    let quantized =
        |grid: &Grid| Grid { scale: scales.round(grid.scale, levels), zero: zeros.round(grid.zero, levels) };
    grids.iter().map(quantized).collect()
}
