//! Rounding a layer's weights: to nearest, or with Hessian-based compensation (GPTQ, arXiv 2210.17323).
//!
//! Rows (output channels) are independent and are solved in chunks on all threads; what they share is one factor of the
//! damped Hessian (`factor`). `rows` has the inner loops.

mod checks;
mod correction;
mod factor;
mod rows;

use std::ops::Range;

use half::f16;
pub use qqq_backend::solve::ScaleDType;
use qqq_backend::{
    BackendError, Calibrate, DeviationValues, first_not_finite,
    pool::parallel_each_mut,
    solve::{
        Compensation, Correction as DeviceCorrection, ErrorPower, Problem, ScaleChoice, Scheme, Solution,
        Unsolved,
    },
};
use qqq_formats::{Activations, CodeBits, QuantizedWeight, Scales};

use crate::{Clip, GroupScales, QuantError, Result, clip};
use checks::{check, check_correction, check_hessian, check_options, check_scales, too_large};
pub use correction::Correction;
use factor::Factor;
pub(crate) use factor::factorise;
pub(crate) use rows::ROWS_PER_TASK;
use rows::{RowSolution, Task};

/// Why compensation fails where it does not overflow in the factor.
const OVERFLOW: &str = "the compensated weights overflow";
/// Factor between a damping and the next one to try.
const DAMPING_STEP: f64 = 10.0;
/// Damping beyond this would drown the Hessian.
const DAMPING_LIMIT: f64 = 10.0;
/// The first damping to try after 0.
const LEAST_DAMPING: f64 = 1e-4;

/// How to solve a layer.
#[derive(Clone, Debug)]
pub struct SolveOptions {
    /// Bits of a code.
    pub bits: CodeBits,
    /// What the layer multiplies. Int8: weights of groups are solved as the int8 weights that the kernels make of them.
    pub activations: Activations,
    /// `None`: per channel.
    pub group_size: Option<usize>,
    /// GPTQ, else rounding to nearest.
    pub compensate: bool,
    /// How the scales of groups are kept; without groups this says nothing.
    pub group_scales: GroupScales,
    /// How scales are chosen.
    pub clip: Clip,
    /// Columns in order of falling Hessian diagonal, static groups.
    pub act_order: bool,
    /// Initial damping, as a share of the mean diagonal.
    pub damping: f64,
    /// Precision of stored scales.
    pub scale_dtype: ScaleDType,
}

impl SolveOptions {
    /// What the weights become.
    pub fn scheme(&self) -> Scheme {
        Scheme { bits: self.bits, activations: self.activations, group_size: self.group_size }
    }

    /// How scales are chosen, in the words of a device.
    fn scale_choice(&self) -> ScaleChoice {
        ScaleChoice {
            search: clip::search(self.clip),
            power: if self.clip == Clip::Weight { ErrorPower::Steep } else { ErrorPower::Square },
            weighted: self.clip == Clip::Output,
            integer: self.scheme().has_two_levels() && self.group_scales == GroupScales::Integer,
            dtype: self.scale_dtype.dtype(),
            fit: self.clip == Clip::Output && self.group_size.is_none(),
        }
    }
}

impl Default for SolveOptions {
    /// 4 bits per channel for int8 activations; GPTQ with act-order, unclipped, at the usual damping of 0.01.
    fn default() -> Self {
        Self {
            bits: CodeBits::Four,
            activations: Activations::Int8,
            group_size: None,
            group_scales: GroupScales::Half,
            compensate: true,
            clip: Clip::None,
            act_order: true,
            damping: 0.01,
            scale_dtype: ScaleDType::F32,
        }
    }
}

/// A solved layer.
#[derive(Clone, Debug)]
pub struct Solved {
    /// Codes and scales.
    pub weight: QuantizedWeight,
    /// `tr((W-Q) H (W-Q)^T) / tr(W H W^T)`, relative output error, of rounding to nearest with the scales
    /// that `clip` chose.
    pub loss_nearest: f64,
    /// The same of the result, as the kernel sees it (int8-rounded group scales included).
    pub loss: f64,
    /// Damping that was needed.
    pub damping: f64,
    /// Channels whose inputs are always zero.
    pub dead_channels: usize,
    /// `tr(W H W^T)`, by which losses of parts of a layer are weighed.
    pub energy: f64,
    /// `|W-Q|^2 / |W|^2` of the result, of the weights before they were corrected.
    pub weight_loss: f64,
    /// `|W|^2`.
    pub weight_energy: f64,
}

/// Quantizes `weights` (`n x k`, row-major) for inputs with Hessian `hessian` (`k x k`, full). `layer` names the layer in errors.
/// Rows are independent: several layers that share an input may be stacked.
///
/// Without a Hessian every input counts the same, and losses are those of the weights: rounding that looks at no data.
///
/// Input channels that were always zero (diagonal 0) are rounded to nearest: they carry no loss, take no part in the
/// choice of scales, and neither give nor receive compensation.
///
/// # Errors
/// Sizes that do not fit, compensation without a Hessian, weights or Hessian or results that are not finite, scales beyond
/// their type, a Hessian that stays indefinite at any damping.
pub fn solve(
    layer: &str,
    weights: &[f32],
    n: usize,
    k: usize,
    hessian: Option<&[f32]>,
    options: &SolveOptions,
) -> Result<Solved> {
    solve_corrected(layer, weights, n, k, hessian, None, options)
}

/// As [`solve`], of weights that are corrected first; losses are then those against the float model's output.
///
/// # Errors
/// As [`solve`]; a correction without a Hessian, of other sizes, or by numbers that are not finite.
pub fn solve_corrected(
    layer: &str,
    weights: &[f32],
    n: usize,
    k: usize,
    hessian: Option<&[f32]>,
    correction: Option<Correction<'_>>,
    options: &SolveOptions,
) -> Result<Solved> {
    solve_given(layer, weights, n, k, hessian, correction, None, options)
}

/// As [`solve_corrected`], with `scales` of each group of each row where they are not to be chosen.
#[expect(clippy::too_many_arguments)]
fn solve_given(
    layer: &str,
    weights: &[f32],
    n: usize,
    k: usize,
    hessian: Option<&[f32]>,
    correction: Option<Correction<'_>>,
    scales: Option<&[f32]>,
    options: &SolveOptions,
) -> Result<Solved> {
    check(layer, weights, n, k, options)?;
    if let Some(scales) = scales {
        check_scales(layer, scales, n, k, options)?;
    }
    if let Some(hessian) = hessian {
        check_hessian(layer, hessian, k)?;
    }
    if let Some(correction) = &correction {
        check_correction(layer, correction, k)?;
    }
    let diagonal: Vec<f32> = match hessian {
        Some(hessian) => hessian.iter().step_by(k + 1).copied().collect(),
        None => vec![1.0; k],
    };
    let dead_channels = diagonal.iter().filter(|d| **d == 0.0).count();
    let moved = match (&correction, hessian) {
        (None, _) => None,
        (Some(_), None) => return Err(no_hessian(layer)),
        (Some(correction), Some(hessian)) => {
            let moved = correction.moved(weights, hessian, &diagonal);
            Some(moved.map_err(|reason| uncorrected(layer, &reason))?)
        }
    };
    let float = correction.map(|correction| (correction, weights));
    let weights = moved.as_deref().unwrap_or(weights);
    with_damping(layer, options, |damping| {
        let factor = match (options.compensate, hessian) {
            (true, Some(hessian)) => match Factor::new(hessian, &diagonal, damping, options.act_order) {
                Ok(factor) => Some(factor),
                Err(reason) => return Ok(Err(reason)),
            },
            (true, None) => return Err(no_hessian(layer)),
            (false, _) => None,
        };
        let factor = factor.as_ref();
        let task = Task { weights, k, hessian, diagonal: &diagonal, factor, float, scales, options };
        Ok(match solve_rows(&task, n) {
            Some(rows) => Ok(assemble(rows, n, k, damping, dead_channels, options)),
            None => Err(OVERFLOW.to_owned()),
        })
    })
}

/// As [`solve`], for the output channels `rows` of weights with `k` input channels; on a device where that can.
///
/// # Errors
/// As [`solve`]; those of the device.
pub fn solve_on<B: Calibrate>(
    b: &B,
    layer: &str,
    weights: &B::Weights,
    rows: Range<usize>,
    k: usize,
    hessian: Option<&B::Hessian>,
    options: &SolveOptions,
) -> Result<Solved> {
    solve_corrected_on(b, layer, weights, rows, k, hessian, None, options)
}

/// As [`solve_corrected`], on a device where that can.
///
/// # Errors
/// As [`solve_corrected`]; those of the device.
#[expect(clippy::too_many_arguments)]
pub fn solve_corrected_on<B: Calibrate>(
    b: &B,
    layer: &str,
    weights: &B::Weights,
    rows: Range<usize>,
    k: usize,
    hessian: Option<&B::Hessian>,
    correction: Option<DeviceCorrection<'_, B::Deviation>>,
    options: &SolveOptions,
) -> Result<Solved> {
    let n = rows.len();
    // Devices choose scales by the Hessian's diagonal alone.
    if !B::SOLVES || options.clip == Clip::GroupOutput {
        let hessian = hessian.map(|h| b.read_hessian(h)).transpose()?;
        let all = b.read_weights(weights)?;
        let Some(own) = all.get(rows.start * k..rows.end * k) else {
            return Err(QuantError::Recipe(format!(
                "{layer}: channels {rows:?} of {}",
                all.len() / k.max(1)
            )));
        };
        let (deviation, strength) = match &correction {
            Some(correction) => (Some(b.read_deviation(correction.deviation)?), correction.strength),
            None => (None, 0.0),
        };
        let correction = deviation.as_ref().map(|DeviationValues { cross, square }| Correction {
            cross,
            square,
            strength,
        });
        return solve_corrected(layer, own, n, k, hessian.as_deref(), correction, options);
    }
    check_options(layer, k, options)?;
    if (options.compensate || correction.is_some()) && hessian.is_none() {
        return Err(no_hessian(layer));
    }
    let mut problem = Problem {
        weights,
        rows,
        k,
        hessian,
        scheme: options.scheme(),
        scales: options.scale_choice(),
        compensation: None,
        correction,
    };
    with_damping(layer, options, |damping| {
        let compensation = Compensation { damping, act_order: options.act_order };
        problem.compensation = options.compensate.then_some(compensation);
        let outcome = b.solve(&problem).map_err(|e| match e {
            BackendError::NotFinite(reason) => not_finite(layer, reason),
            e => e.into(),
        })?;
        match outcome {
            Ok(solution) => {
                // A scale at the end of its type would have been larger.
                if options.scale_dtype == ScaleDType::F16 && solution.scales.contains(&f16::MAX.to_f32()) {
                    return Err(too_large(layer, f16::MAX.to_f32() * options.scheme().grid().reach));
                }
                Ok(Ok(of_solution(solution, (n, k), damping, options)))
            }
            Err(Unsolved::Damping(reason)) => Ok(Err(reason)),
            Err(Unsolved::Correction(reason)) => Err(uncorrected(layer, &reason)),
        }
    })
}

/// Rounds the output channels `rows` of weights with `k` input channels to nearest, with `scales` of each group of each of them.
/// `options` say no other way to round.
///
/// # Errors
/// As [`solve`]; scales that are no positive numbers; those of the device.
#[expect(clippy::too_many_arguments)]
pub(crate) fn round_on<B: Calibrate>(
    b: &B,
    layer: &str,
    weights: &B::Weights,
    rows: Range<usize>,
    k: usize,
    hessian: Option<&B::Hessian>,
    scales: &[f32],
    options: &SolveOptions,
) -> Result<Solved> {
    let hessian = hessian.map(|h| b.read_hessian(h)).transpose()?;
    let all = b.read_weights(weights)?;
    let Some(own) = all.get(rows.start * k..rows.end * k) else {
        return Err(QuantError::Recipe(format!("{layer}: channels {rows:?} of {}", all.len() / k.max(1))));
    };
    solve_given(layer, own, rows.len(), k, hessian.as_deref(), None, Some(scales), options)
}

/// Tries ever larger dampings until one can be solved with: the inner error says why one cannot.
fn with_damping(
    layer: &str,
    options: &SolveOptions,
    mut attempt: impl FnMut(f64) -> Result<std::result::Result<Solved, String>>,
) -> Result<Solved> {
    let mut damping = options.damping;
    loop {
        let reason = match attempt(damping)? {
            Ok(solved) => return finished(layer, solved),
            Err(reason) => reason,
        };
        let next = (damping * DAMPING_STEP).max(LEAST_DAMPING);
        if next > DAMPING_LIMIT || !options.compensate {
            return Err(numerics(
                layer,
                format!(
                    "{reason}, even with {damping} of the mean diagonal added to the Hessian; \
                     use more calibration data, or round to nearest"
                ),
            ));
        }
        tracing::debug!(layer, damping, next, reason, "raising the damping");
        damping = next;
    }
}

/// What a device found, with the scales as a checkpoint has them.
fn of_solution(solution: Solution, (n, k): (usize, usize), damping: f64, options: &SolveOptions) -> Solved {
    let Solution { codes, scales, energy, error_nearest, error, weight_energy, weight_error, dead_channels } =
        solution;
    let scheme = options.scheme();
    let scales = match scheme.group_size {
        None => Scales::PerChannel(scales),
        Some(group) if scheme.has_two_levels() => two_levels(&codes, k, group, &scales),
        Some(group) => Scales::weight_only(n, group, &scales),
    };
    Solved {
        weight: QuantizedWeight { bits: options.bits, out_features: n, in_features: k, codes, scales },
        loss_nearest: relative(error_nearest, energy),
        loss: relative(error, energy),
        damping,
        dead_channels,
        energy,
        weight_loss: relative(weight_error, weight_energy),
        weight_energy,
    }
}

/// [`Scales::from_effective`] on all threads.
fn two_levels(codes: &[i8], k: usize, group_size: usize, effective: &[f32]) -> Scales {
    let groups = k / group_size;
    let chunks = codes.chunks(rows::ROWS_PER_TASK * k).zip(effective.chunks(rows::ROWS_PER_TASK * groups));
    let mut parts: Vec<_> = chunks.map(|(codes, effective)| (codes, effective, None)).collect();
    parallel_each_mut(&mut parts, |_, (codes, effective, scales)| {
        *scales = Some(Scales::from_effective(codes, codes.len() / k, k, group_size, effective));
    });
    let (mut channel, mut group) = (Vec::new(), Vec::with_capacity(effective.len()));
    for (_, _, scales) in parts {
        if let Some(Scales::PerGroup { channel: c, group: g, .. }) = scales {
            channel.extend(c);
            group.extend(g);
        }
    }
    Scales::PerGroup { group_size, channel, group }
}

/// An error as a share of the output's energy.
fn relative(error: f64, energy: f64) -> f64 {
    match energy {
        0.0 => 0.0,
        _ if energy.is_finite() => error / energy,
        _ => f64::NAN,
    }
}

fn no_hessian(layer: &str) -> QuantError {
    QuantError::Recipe(format!("{layer}: compensation takes a Hessian, and there is none"))
}

fn uncorrected(layer: &str, reason: &str) -> QuantError {
    numerics(layer, format!("{reason}; use more calibration data, or correct less"))
}

fn numerics(layer: &str, reason: String) -> QuantError {
    QuantError::Numerics { layer: layer.to_owned(), reason }
}

fn not_finite(layer: &str, reason: String) -> QuantError {
    QuantError::NotFinite { layer: layer.to_owned(), reason }
}

/// Lets nothing out that no reader could use.
fn finished(layer: &str, solved: Solved) -> Result<Solved> {
    let scales = solved.weight.channel_scales();
    if let Some(row) = first_not_finite(scales) {
        return Err(not_finite(layer, format!("the scale of output channel {row} is {}", scales[row])));
    }
    match [solved.loss_nearest, solved.loss].into_iter().find(|loss| !loss.is_finite()) {
        None => Ok(solved),
        Some(loss) => Err(not_finite(
            layer,
            format!(
                "the relative error of its output is {loss}: its weights or inputs are too large for 32-bit sums; the \
                 model's weights may be damaged"
            ),
        )),
    }
}

/// Solves all rows; `None` if numbers overflowed.
fn solve_rows(task: &Task<'_>, n: usize) -> Option<Vec<RowSolution>> {
    let mut chunks: Vec<Option<RowSolution>> = Vec::new();
    chunks.resize_with(n.div_ceil(rows::ROWS_PER_TASK), || None);
    parallel_each_mut(&mut chunks, |i, solution| {
        let first = i * rows::ROWS_PER_TASK;
        let count = rows::ROWS_PER_TASK.min(n - first);
        *solution = rows::solve(task, first..first + count);
    });
    chunks.into_iter().collect()
}

/// Puts the chunks' rows together.
fn assemble(
    chunks: Vec<RowSolution>,
    n: usize,
    k: usize,
    damping: f64,
    dead_channels: usize,
    options: &SolveOptions,
) -> Solved {
    let mut codes = Vec::with_capacity(n * k);
    let (mut channels, mut groups) = (Vec::with_capacity(n), Vec::new());
    let (mut energy, mut nearest, mut result) = (0.0, 0.0, 0.0);
    let (mut weight_energy, mut weight_error) = (0.0, 0.0);
    for chunk in chunks {
        codes.extend(chunk.weight.codes);
        match chunk.weight.scales {
            Scales::PerChannel(channel) => channels.extend(channel),
            Scales::PerGroup { channel, group, .. } => {
                channels.extend(channel);
                groups.extend(group);
            }
        }
        energy += chunk.energy;
        nearest += chunk.error_nearest;
        result += chunk.error;
        weight_energy += chunk.weight_energy;
        weight_error += chunk.weight_error;
    }
    let scales = match options.group_size {
        None => Scales::PerChannel(channels),
        Some(group_size) => Scales::PerGroup { group_size, channel: channels, group: groups },
    };
    Solved {
        weight: QuantizedWeight { bits: options.bits, out_features: n, in_features: k, codes, scales },
        loss_nearest: relative(nearest, energy),
        loss: relative(result, energy),
        damping,
        dead_channels,
        energy,
        weight_loss: relative(weight_error, weight_energy),
        weight_energy,
    }
}

#[cfg(test)]
#[path = "solve/tests.rs"]
mod tests;
