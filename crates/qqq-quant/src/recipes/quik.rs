//! QUIK: Towards End-to-End 4-Bit Inference on Generative Large Language Models (Ashkboos et al., arXiv 2310.09259).
//!
//! The input channels with the largest magnitudes on the calibration text stay in 16 bits, weights and activations. All others
//! have 4 bits, those of the down projection 8: weights symmetric by output channel, activations asymmetric by token
//! ([`Arithmetic::Quik`](qqq_formats::simulated::Arithmetic)). Weights are rounded by GPTQ with the outlier channels last, so
//! that these take up the errors of the others. Scales are clipped by a linear search for the least squared error of the
//! weights.
//!
//! The authors' scripts have outliers of 16 bits alone. With 8 they are what the others are, among themselves: weights of each
//! output channel have a scale of theirs, activations of each token a range of theirs, and GPTQ goes on through them.

use qqq_formats::{SimulatedMethod, simulated::Quik};

use super::{
    Entry, RecipeName, Setting, factor,
    simulated::{Layer, Made, damped, each_rows, failed, hessian, losses, nearest_code, subtract},
};
use crate::{QuantError, Recipe, Result, half_type::HalfType};

/// W4A4 but for outliers and the down projection.
pub const ENTRY: Entry = Entry {
    name: RecipeName::Quik,
    word: "quik",
    source: "arXiv 2310.09259",
    what: "channels with the largest inputs in 16 bits, down projection in 8, GPTQ with outliers last",
    gives: "W4A4 simulated (--bits, --down-bits, --outliers, --outlier-bits)",
    recipe: || Recipe::simulating(SimulatedMethod::Quik(Quik::default())),
    settings: &[
        Setting::Bits,
        Setting::DownBits,
        Setting::Outliers,
        Setting::OutlierBits,
        Setting::Damping,
        Setting::Text,
        Setting::Seed,
    ],
};

/// Steps of the linear search for a scale, and the share of the largest weight at which it ends.
const CLIP_STEPS: usize = 100;
const LEAST_CLIP: f64 = 0.2;
/// Bits of a scale (or a sum of codes), and of a channel's number.
const SCALE_BITS: f64 = 16.0;
const INDEX_BITS: f64 = 32.0;
/// Rows that a task solves together.
const ROWS: usize = 16;

/// What the weights of a layer are multiples of.
#[derive(Clone, Debug, PartialEq)]
pub struct Codes {
    /// Scales of the output channels, `N`.
    pub scales: Vec<f32>,
    /// Outlier channels, rising: weights there are no multiples of these.
    pub outliers: Vec<usize>,
    /// Scales of the outliers' weights where they have 8 bits, `N`.
    pub outlier_scales: Option<Vec<f32>>,
}

/// Quantizes a layer.
///
/// Bits: codes, a 16-bit scale and the sum of the codes (which zeros of activations take, 16 bits) an output channel, outlier
/// weights in their bits, with the same if these are 8, their channels' numbers in 32.
///
/// # Errors
/// No Hessian or largest inputs; a Hessian that is not positive definite.
pub fn quantize(layer: &Layer<'_>, options: &Quik, half: HalfType) -> Result<Made> {
    let &Layer { name, n, k, weights, .. } = layer;
    let h = hessian(layer)?;
    let largest = layer.largest.ok_or_else(|| {
        QuantError::Recipe(format!(
            "{name}: outlier channels are those of the largest inputs, and these are not known"
        ))
    })?;
    let bits = options.bits_of(name);
    let outliers = outlier_channels(largest, (options.outliers * k as f64).round() as usize);
    let grid = Grid { most: most_code(bits), half };
    let rounding = Rounding {
        k,
        outliers: &outliers,
        scales: grid.scales(weights, k, &outliers),
        grid,
        outlier_grid: (options.outlier_bits == 8).then_some(Grid { most: most_code(8), half }),
    };
    let nearest = rounding.nearest(weights);
    let (quantized, outlier_scales) =
        rounding.gptq(weights, &damped(h, k, options.damping)).map_err(|e| failed(layer, e))?;

    let weights: Vec<f32> = quantized.iter().map(|w| half.round(*w as f32)).collect();
    // As the arithmetic has it: codes times scales, but for outliers of 16 bits.
    let mut multiplied = quantized;
    if outlier_scales.is_none() {
        for (row, stored) in multiplied.chunks_exact_mut(k).zip(weights.chunks_exact(k)) {
            outliers.iter().for_each(|j| row[*j] = f64::from(stored[*j]));
        }
    }
    let (rows, count) = (n as f64, outliers.len() as f64);
    let coded = 1.0 + f64::from(u8::from(outlier_scales.is_some() && count > 0.0));
    let stored = f64::from(bits) * rows * (k as f64 - count)
        + 2.0 * SCALE_BITS * rows * coded
        + f64::from(options.outlier_bits) * rows * count
        + INDEX_BITS * count;
    let narrow = |scales: Vec<f64>| scales.into_iter().map(|s| s as f32).collect();
    let [loss, loss_nearest] = losses(layer, [&multiplied, &nearest]);
    Ok(Made {
        weights,
        quik: Some(Codes {
            scales: narrow(rounding.scales),
            outlier_scales: outlier_scales.map(narrow),
            outliers,
        }),
        bits: stored,
        loss,
        loss_nearest,
    })
}

/// The largest code.
fn most_code(bits: u8) -> f64 {
    f64::from((1u32 << (bits - 1)) - 1)
}

/// The `count` channels of the largest magnitudes, rising; of equal ones the first.
fn outlier_channels(largest: &[f32], count: usize) -> Vec<usize> {
    let mut channels: Vec<usize> = (0..largest.len()).collect();
    channels.sort_by(|a, b| largest[*b].total_cmp(&largest[*a]));
    channels.truncate(count);
    channels.sort_unstable();
    channels
}

/// Symmetric codes of so many bits, with scales in the checkpoint's type.
#[derive(Clone, Copy, Debug)]
struct Grid {
    /// The largest code.
    most: f64,
    half: HalfType,
}

impl Grid {
    /// The scale of each output channel for its weights that are no outliers.
    fn scales(&self, weights: &[f64], k: usize, outliers: &[usize]) -> Vec<f64> {
        let mut scales = vec![0.0; weights.len() / k];
        qqq_backend::pool::parallel_each_mut(&mut scales, |i, scale| {
            let mut left_out = outliers.iter().copied().peekable();
            let row = weights[i * k..(i + 1) * k].iter().enumerate();
            let row: Vec<f64> =
                row.filter(|(j, _)| left_out.next_if_eq(j).is_none()).map(|(_, w)| *w).collect();
            *scale = self.scale(&row);
        });
        scales
    }

    /// The scale of least squared error, of those by which the largest weight, or a share of it, has the largest code.
    fn scale(&self, row: &[f64]) -> f64 {
        let largest = row.iter().fold(0.0f64, |m, w| m.max(w.abs()));
        let candidate = |step: usize| {
            let share = 1.0 - (1.0 - LEAST_CLIP) * step as f64 / CLIP_STEPS as f64;
            f64::from(self.half.round((share * largest / self.most) as f32))
        };
        let error = |scale: f64| row.iter().map(|w| (w - self.round(*w, scale)).powi(2)).sum::<f64>();
        let candidates = (0..CLIP_STEPS).map(candidate).filter(|s| *s > 0.0).map(|s| (error(s), s));
        candidates.min_by(|(a, _), (b, _)| a.total_cmp(b)).map_or(1.0, |(_, s)| s)
    }

    fn round(&self, w: f64, scale: f64) -> f64 {
        nearest_code(w / scale, -self.most - 1.0, self.most) * scale
    }
}

struct Rounding<'a> {
    k: usize,
    outliers: &'a [usize],
    scales: Vec<f64>,
    grid: Grid,
    /// Where outliers are codes.
    outlier_grid: Option<Grid>,
}

impl Rounding<'_> {
    /// Every weight to the nearest code; outliers of 16 bits as they are.
    fn nearest(&self, weights: &[f64]) -> Vec<f64> {
        let mut out = weights.to_vec();
        each_rows(&mut out, self.k, ROWS, |chunk, rows| {
            for (row, q) in rows.chunks_exact_mut(self.k).enumerate() {
                let outliers: Vec<f64> = self.outliers.iter().map(|j| q[*j]).collect();
                let scale = self.scales[chunk * ROWS + row];
                q.iter_mut().for_each(|q| *q = self.grid.round(*q, scale));
                let outlier_scale = self.outlier_grid.map(|grid| grid.scale(&outliers));
                for (j, w) in self.outliers.iter().zip(outliers) {
                    q[*j] = self.round_outlier(w, outlier_scale);
                }
            }
        });
        out
    }

    fn round_outlier(&self, w: f64, scale: Option<f64>) -> f64 {
        match (self.outlier_grid, scale) {
            (Some(grid), Some(scale)) => grid.round(w, scale),
            _ => w,
        }
    }

    /// GPTQ over the channels that are no outliers, in their order, then over these. Outliers of 16 bits are what is left of
    /// them; of 8 they have a scale of their own for what is left. Weights, and the scales of outliers that are codes.
    fn gptq(&self, weights: &[f64], h: &[f64]) -> Result<(Vec<f64>, Option<Vec<f64>>), factor::Failure> {
        let k = self.k;
        let mut left_out = self.outliers.iter().copied().peekable();
        let mut order: Vec<usize> = (0..k).filter(|j| left_out.next_if_eq(j).is_none()).collect();
        let base = order.len();
        order.extend(self.outliers);
        let row = |i: usize| order.iter().map(move |j| h[i * k + j]);
        let permuted: Vec<f64> = order.iter().flat_map(|i| row(*i)).collect();
        let u = factor::inverse(&permuted, k)?;
        // A row's weights, and the scale of its outliers behind them.
        let mut out: Vec<f64> =
            weights.chunks_exact(k).flat_map(|row| row.iter().copied().chain([1.0])).collect();
        each_rows(&mut out, k + 1, ROWS, |chunk, rows| {
            for (row, q) in rows.chunks_exact_mut(k + 1).enumerate() {
                let scale = self.scales[chunk * ROWS + row];
                let mut w: Vec<f64> = order.iter().map(|j| q[*j]).collect();
                let mut outlier_scale = None;
                let last = if self.outlier_grid.is_some() { k } else { base };
                for j in 0..last {
                    if j == base {
                        outlier_scale = self.outlier_grid.map(|grid| grid.scale(&w[base..]));
                    }
                    let u = &u[j * k..(j + 1) * k];
                    let quantized = match j < base {
                        true => self.grid.round(w[j], scale),
                        false => self.round_outlier(w[j], outlier_scale),
                    };
                    let error = (w[j] - quantized) / u[j];
                    subtract(&mut w[j + 1..], error, &u[j + 1..]);
                    w[j] = quantized;
                }
                order.iter().zip(&w).for_each(|(j, w)| q[*j] = *w);
                q[k] = outlier_scale.unwrap_or(1.0);
            }
        });
        let scales = out.iter().skip(k).step_by(k + 1).copied().collect();
        let weights = out.chunks_exact(k + 1).flat_map(|row| &row[..k]).copied().collect();
        Ok((weights, self.outlier_grid.map(|_| scales)))
    }
}
