//! QUIK: Towards End-to-End 4-Bit Inference on Generative Large Language Models (Ashkboos et al., arXiv 2310.09259).
//!
//! The input channels with the largest magnitudes on the calibration text stay in 16 bits, weights and activations. All others
//! have 4 bits, those of the down projection 8: weights symmetric by output channel, activations asymmetric by token
//! ([`Arithmetic::Quik`](qqq_formats::simulated::Arithmetic)). Weights are rounded by GPTQ with the outlier channels last, so
//! that these take up the errors of the others. Scales are clipped by a linear search for the least squared error of the
//! weights.

use qqq_formats::{SimulatedMethod, simulated::Quik};

use super::{
    Entry, RecipeName, Setting, factor,
    simulated::{Layer, Made, damped, each_rows, failed, hessian, loss},
};
use crate::{QuantError, Recipe, Result, half_type::HalfType};

/// W4A4 but for outliers and the down projection.
pub const ENTRY: Entry = Entry {
    name: RecipeName::Quik,
    word: "quik",
    source: "arXiv 2310.09259",
    what: "channels with the largest inputs in 16 bits, down projection in 8, GPTQ with outliers last",
    gives: "W4A4 simulated (--bits, --down-bits, --outliers)",
    recipe: || Recipe::simulating(SimulatedMethod::Quik(Quik::default())),
    settings: &[
        Setting::Bits,
        Setting::DownBits,
        Setting::Outliers,
        Setting::Damping,
        Setting::Text,
        Setting::Seed,
    ],
};

/// Steps of the linear search for a scale, and the share of the largest weight at which it ends.
const CLIP_STEPS: usize = 100;
const LEAST_CLIP: f64 = 0.2;
/// Bits of a scale, of an outlier weight, and of a channel's number.
const SCALE_BITS: f64 = 16.0;
const OUTLIER_BITS: f64 = 16.0;
const INDEX_BITS: f64 = 32.0;
/// Rows that a task solves together.
const ROWS: usize = 16;

/// Quantizes a layer.
///
/// Bits: codes, a 16-bit scale and the sum of the codes (which zeros of activations take, 16 bits) an output channel, outlier
/// weights in 16 bits, their numbers in 32.
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
    let scales = scales(weights, k, &outliers, bits, half);
    let rounding =
        Rounding { k, outliers: &outliers, scales: &scales, most: f64::from((1u32 << (bits - 1)) - 1) };
    let quantized = rounding.gptq(weights, &damped(h, k, options.damping)).map_err(|e| failed(layer, e))?;
    let nearest = rounding.nearest(weights);

    let scales: Vec<f32> = scales.iter().map(|s| *s as f32).collect();
    let weights: Vec<f32> = quantized.iter().map(|w| half.round(*w as f32)).collect();
    // As the arithmetic has it: codes times scales, but for the outliers, which have 16 bits.
    let mut multiplied = quantized;
    for (row, stored) in multiplied.chunks_exact_mut(k).zip(weights.chunks_exact(k)) {
        outliers.iter().for_each(|j| row[*j] = f64::from(stored[*j]));
    }
    let (rows, count) = (n as f64, outliers.len() as f64);
    let stored = f64::from(bits) * rows * (k as f64 - count)
        + 2.0 * SCALE_BITS * rows
        + OUTLIER_BITS * rows * count
        + INDEX_BITS * count;
    Ok(Made {
        weights,
        quik: Some((scales, outliers)),
        bits: stored,
        loss: loss(layer, &multiplied),
        loss_nearest: loss(layer, &nearest),
    })
}

/// The `count` channels of the largest magnitudes, rising; of equal ones the first.
fn outlier_channels(largest: &[f32], count: usize) -> Vec<usize> {
    let mut channels: Vec<usize> = (0..largest.len()).collect();
    channels.sort_by(|a, b| largest[*b].total_cmp(&largest[*a]));
    channels.truncate(count);
    channels.sort_unstable();
    channels
}

/// The scale of each output channel: the one of least squared error of its weights that are no outliers, of those by which the
/// largest of them, or a share of it, has the largest code. As the checkpoint's type has it.
fn scales(weights: &[f64], k: usize, outliers: &[usize], bits: u8, half: HalfType) -> Vec<f64> {
    let mut scales = vec![0.0; weights.len() / k];
    let most = f64::from((1u32 << (bits - 1)) - 1);
    qqq_backend::pool::parallel_each_mut(&mut scales, |i, scale| {
        let mut left_out = outliers.iter().copied().peekable();
        let row = weights[i * k..(i + 1) * k].iter().enumerate();
        let row: Vec<f64> = row.filter(|(j, _)| left_out.next_if_eq(j).is_none()).map(|(_, w)| *w).collect();
        let largest = row.iter().fold(0.0f64, |m, w| m.max(w.abs()));
        let candidate = |step: usize| {
            let share = 1.0 - (1.0 - LEAST_CLIP) * step as f64 / CLIP_STEPS as f64;
            f64::from(half.round((share * largest / most) as f32))
        };
        let error = |scale: f64| row.iter().map(|w| (w - code(*w, scale, most) * scale).powi(2)).sum::<f64>();
        let candidates = (0..CLIP_STEPS).map(candidate).filter(|s| *s > 0.0).map(|s| (error(s), s));
        *scale = candidates.min_by(|(a, _), (b, _)| a.total_cmp(b)).map_or(1.0, |(_, s)| s);
    });
    scales
}

fn code(w: f64, scale: f64, most: f64) -> f64 {
    (w / scale).round_ties_even().clamp(-most - 1.0, most)
}

struct Rounding<'a> {
    k: usize,
    outliers: &'a [usize],
    scales: &'a [f64],
    /// The largest code.
    most: f64,
}

impl Rounding<'_> {
    /// Every weight to the nearest code; outliers as they are.
    fn nearest(&self, weights: &[f64]) -> Vec<f64> {
        let mut out = weights.to_vec();
        for ((row, w), &scale) in
            out.chunks_exact_mut(self.k).zip(weights.chunks_exact(self.k)).zip(self.scales)
        {
            row.iter_mut().for_each(|q| *q = code(*q, scale, self.most) * scale);
            self.outliers.iter().for_each(|j| row[*j] = w[*j]);
        }
        out
    }

    /// GPTQ over the channels that are no outliers, in their order; then the outliers are what is left of them.
    fn gptq(&self, weights: &[f64], h: &[f64]) -> Result<Vec<f64>, factor::Failure> {
        let k = self.k;
        let mut left_out = self.outliers.iter().copied().peekable();
        let mut order: Vec<usize> = (0..k).filter(|j| left_out.next_if_eq(j).is_none()).collect();
        let base = order.len();
        order.extend(self.outliers);
        let row = |i: usize| order.iter().map(move |j| h[i * k + j]);
        let permuted: Vec<f64> = order.iter().flat_map(|i| row(*i)).collect();
        let u = factor::inverse(&permuted, k)?;
        let mut out = weights.to_vec();
        each_rows(&mut out, k, ROWS, |chunk, rows| {
            for (row, q) in rows.chunks_exact_mut(k).enumerate() {
                let scale = self.scales[chunk * ROWS + row];
                let mut w: Vec<f64> = order.iter().map(|j| q[*j]).collect();
                for j in 0..base {
                    let u = &u[j * k..(j + 1) * k];
                    let quantized = code(w[j], scale, self.most) * scale;
                    let error = (w[j] - quantized) / u[j];
                    w[j + 1..].iter_mut().zip(&u[j + 1..]).for_each(|(w, u)| *w -= error * u);
                    w[j] = quantized;
                }
                order.iter().zip(&w).for_each(|(j, w)| q[*j] = *w);
            }
        });
        Ok(out)
    }
}
