//! What the methods share that are simulated: of a layer's weights `W` (`N x K`) and the second moment `H` (`K x K`) of its
//! inputs they make the weights that the method would multiply by.
//!
//! What comes out runs as a [simulated checkpoint](qqq_formats::simulated). Everything is computed in float64.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use qqq_backend::simd::{SimdLevel, multiversion};
use qqq_formats::SimulatedMethod;

use super::{RecipeName, factor::Failure, llm_int8, plain, quik, quip, spqr};
use crate::{Calibration, Propagation, QuantError, Recipe, Result, half_type::HalfType};

impl Recipe {
    /// A method that is simulated, with its paper's amount of text: 128 windows of 2048 tokens, or none. Later layers are
    /// calibrated on what the simulated ones before give, as in the authors' code of all three that look at text.
    pub fn simulating(method: SimulatedMethod) -> Self {
        let name = match method {
            SimulatedMethod::LlmInt8(_) => RecipeName::LlmInt8,
            SimulatedMethod::Quik(_) => RecipeName::Quik,
            SimulatedMethod::SpQr(_) => RecipeName::SpQr,
            SimulatedMethod::Quip(_) => RecipeName::Quip,
        };
        let windows = if matches!(method, SimulatedMethod::LlmInt8(_)) { 0 } else { 128 };
        Self {
            name,
            act_order: false,
            damping: method.damping(),
            propagation: Propagation::Quantized,
            calibration: Calibration { windows, window: 2048, ..Self::DEFAULT.calibration },
            simulated: Some(method),
            ..plain()
        }
    }
}

/// A layer to be quantized.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    /// Its name in the model, for messages and for what goes by names.
    pub name: &'a str,
    /// `N x K`, row-major.
    pub weights: &'a [f64],
    /// Output channels, `N`.
    pub n: usize,
    /// Input channels, `K`.
    pub k: usize,
    /// `K x K`; `None` where no text was looked at.
    pub hessian: Option<&'a [f64]>,
    /// Largest magnitude of each input channel, where that is known.
    pub largest: Option<&'a [f32]>,
}

/// What a method makes of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Made {
    /// What is multiplied by, `N x K`, in the precision of the checkpoint.
    pub weights: Vec<f32>,
    /// What the weights are multiples of, of [`quik`].
    pub quik: Option<quik::Codes>,
    /// Bits that the method would store.
    pub bits: f64,
    /// `tr((W-Q) H (W-Q)^T) / tr(W H W^T)` of the result: `Q` are the weights that inputs are multiplied by, without what is
    /// done to the inputs. `H = I` where there is none.
    pub loss: f64,
    /// The same of the method without compensation: its groups, scales and matrices, but each weight rounded for itself.
    pub loss_nearest: f64,
}

/// Quantizes a layer. `half`: the type in which a checkpoint holds what comes out; `seed`: of random matrices.
///
/// # Errors
/// A layer that the method does not take; a Hessian that is missing, or not positive definite with the method's damping.
pub fn quantize(method: &SimulatedMethod, layer: &Layer<'_>, half: HalfType, seed: u64) -> Result<Made> {
    check(layer)?;
    match method {
        SimulatedMethod::LlmInt8(_) => Ok(llm_int8::quantize(layer, half)),
        SimulatedMethod::Quik(options) => quik::quantize(layer, options, half),
        SimulatedMethod::SpQr(options) => spqr::quantize(layer, options, half),
        SimulatedMethod::Quip(options) => quip::quantize(layer, options, half, seed),
    }
}

fn check(layer: &Layer<'_>) -> Result<()> {
    let Layer { name, weights, n, k, hessian, .. } = layer;
    let fits = weights.len() == n * k && *n > 0 && *k > 0 && hessian.is_none_or(|h| h.len() == k * k);
    if !fits {
        return Err(QuantError::Recipe(format!("{name}: weights and Hessian are not those of {n} x {k}")));
    }
    match weights.iter().chain(hessian.iter().flat_map(|h| h.iter())).find(|v| !v.is_finite()) {
        None => Ok(()),
        Some(value) => Err(QuantError::NotFinite {
            layer: (*name).to_owned(),
            reason: format!("its weights or the second moments of its inputs hold {value}"),
        }),
    }
}

/// The Hessian that a method compensates with.
pub(super) fn hessian<'a>(layer: &Layer<'a>) -> Result<&'a [f64]> {
    layer.hessian.ok_or_else(|| {
        QuantError::Recipe(format!(
            "{}: this recipe looks at calibration text, and there is none",
            layer.name
        ))
    })
}

pub(super) fn failed(layer: &Layer<'_>, Failure: Failure) -> QuantError {
    QuantError::Numerics {
        layer: layer.name.to_owned(),
        reason: "the Hessian is not positive definite with this damping; use more calibration data, or more damping \
                 (the recipe's parameter damping)"
            .into(),
    }
}

/// `H` with `damping` times the mean of its diagonal added; channels that were always zero have that mean, so that they take no
/// part in anything.
pub(super) fn damped(hessian: &[f64], k: usize, damping: f64) -> Vec<f64> {
    let mean = hessian.iter().step_by(k + 1).sum::<f64>() / k as f64;
    let mean = if mean > 0.0 { mean } else { 1.0 };
    let mut h = hessian.to_vec();
    for d in h.iter_mut().step_by(k + 1) {
        *d = if *d > 0.0 { *d } else { mean } + damping * mean;
    }
    h
}

/// `tr((W-Q) H (W-Q)^T) / tr(W H W^T)`, for each `Q`.
pub(super) fn losses<const COUNT: usize>(layer: &Layer<'_>, quantized: [&[f64]; COUNT]) -> [f64; COUNT] {
    let whole = energy(layer, layer.weights);
    quantized.map(|quantized| {
        let difference: Vec<f64> = layer.weights.iter().zip(quantized).map(|(w, q)| w - q).collect();
        if whole == 0.0 { 0.0 } else { energy(layer, &difference) / whole }
    })
}

/// `tr(E H E^T)`, rows in parallel.
fn energy(layer: &Layer<'_>, e: &[f64]) -> f64 {
    /// Rows that are multiplied together.
    const ROWS: usize = 64;
    let k = layer.k;
    let Some(h) = layer.hessian else { return e.iter().map(|e| e * e).sum() };
    let mut sums = vec![0.0; layer.n.div_ceil(ROWS)];
    qqq_backend::pool::parallel_each_mut(&mut sums, |i, sum| {
        let e = &e[i * ROWS * k..e.len().min((i + 1) * ROWS * k)];
        let rows = e.len() / k;
        let mut product = vec![0.0; e.len()];
        matmul(
            MatMut::from_row_major_slice_mut(&mut product, rows, k),
            Accum::Replace,
            MatRef::from_row_major_slice(e, rows, k),
            // Symmetric.
            MatRef::from_column_major_slice(h, k, k),
            1.0,
            Par::Seq,
        );
        *sum = dot(&product, e);
    });
    sums.iter().sum()
}

/// The sum of products.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    dot_on(SimdLevel::detect(), a, b)
}

/// `w -= by * u`.
pub(super) fn subtract(w: &mut [f64], by: f64, u: &[f64]) {
    subtract_on(SimdLevel::detect(), w, by, u);
}

multiversion! {
    /// In several sums, so that it is vectorized.
    fn dot_on(a: &[f64], b: &[f64]) -> f64 {
        let mut sums = [0.0; 8];
        let (a, a_rest) = a.as_chunks::<8>();
        let (b, b_rest) = b.as_chunks::<8>();
        for (a, b) in a.iter().zip(b) {
            for l in 0..8 {
                sums[l] += a[l] * b[l];
            }
        }
        sums.iter().sum::<f64>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f64>()
    }
}

multiversion! {
    fn subtract_on(w: &mut [f64], by: f64, u: &[f64]) {
        w.iter_mut().zip(u).for_each(|(w, u)| *w -= by * u);
    }
}

/// The nearest of the codes `low..=high`, ties to even. Adding 1.5 * 2^52 rounds a number of this size to an integer; the
/// function of the standard library is a call where the target has no instruction for it.
pub(super) fn nearest_code(v: f64, low: f64, high: f64) -> f64 {
    const MAGIC: f64 = 6_755_399_441_055_744.0;
    v.clamp(low, high) + MAGIC - MAGIC
}

/// `w` rounded to the type of the checkpoint.
pub(super) fn rounded(w: &[f64], half: HalfType) -> Vec<f32> {
    w.iter().map(|v| half.round(*v as f32)).collect()
}

/// The same in float64, for losses.
pub(super) fn widened(w: &[f32]) -> Vec<f64> {
    w.iter().map(|v| f64::from(*v)).collect()
}

/// Rows of `k` values in chunks of `rows` on all threads.
pub(super) fn each_rows(w: &mut [f64], k: usize, rows: usize, job: impl Fn(usize, &mut [f64]) + Sync) {
    qqq_backend::pool::parallel_chunks_mut(w, rows * k, job);
}

#[cfg(test)]
mod tests;
