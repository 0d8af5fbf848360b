//! Learning a block: gradient descent on the squared error of what leaves it, window by window.

use qqq_backend::{
    Learn, Result as BackendResult,
    learn::{AdamStep, Parameter},
};
use qqq_model::Site;

use super::block::{Learned, LearnedBlock};
use crate::Result;

/// How it is learned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LearnOptions {
    /// Times that all windows are gone through.
    pub epochs: usize,
    /// Learning rate of clipping strengths.
    pub clip_rate: f64,
    /// Learning rate of scales of channels.
    pub scale_rate: f64,
}

/// The rates of the authors' code, and the epochs of the paper.
impl Default for LearnOptions {
    fn default() -> Self {
        Self { epochs: 20, clip_rate: 1e-2, scale_rate: 5e-3 }
    }
}

/// No scale may be less, as in the authors' code.
pub(crate) const LEAST_SCALE: f64 = 1e-2;

/// The states of a window before the block, and what the float block gives of the float model's.
pub(crate) struct Example<A> {
    /// As the quantized blocks before have them.
    pub input: A,
    /// What is to come of it.
    pub target: A,
}

/// What came of learning.
pub(crate) struct Outcome<A> {
    /// What was learned.
    pub learned: Learned<A>,
    /// Squared error of what leaves the block before anything is learned, over `power`.
    pub loss_before: f64,
    /// With what was learned.
    pub loss_after: f64,
    /// The epoch that this was learned in, from 1; 0: none has lost less than before learning.
    pub epoch: usize,
}

/// Passes of the forward direction that a step takes as long as.
const STEP_PASSES: usize = 3;

/// Forward passes of a window that learning takes as long as: losses before and after each epoch, and the steps of each.
pub(crate) const fn passes(epochs: usize) -> usize {
    1 + epochs * (STEP_PASSES + 1)
}

/// Told how many forward passes of a window what was done has taken as long as; an error stops.
pub(crate) type OnPasses<'a> = dyn FnMut(usize) -> Result<()> + 'a;

/// A window on its way to the device.
pub(crate) type Load<'a, A> = dyn Fn(usize) -> Result<Example<A>> + 'a;

/// Learns, from what `first` says on, and gives what has lost least of all windows: at the beginning, or behind an epoch. Losses
/// are told as shares of `power`. Gradients are those of losses as shares of the first one: a factor that Adam does not feel, but
/// in its guard against division by 0.
///
/// # Errors
/// Those of the device, of `load` and of `on_passes`.
pub(crate) fn learn<O: Learn>(
    ops: &O,
    block: &LearnedBlock<O::Array>,
    first: Learned<O::Array>,
    (windows, load): (usize, &Load<'_, O::Array>),
    power: f64,
    options: LearnOptions,
    on_passes: &mut OnPasses<'_>,
) -> Result<Outcome<O::Array>> {
    let error_before = error(ops, block, &first, (windows, load), on_passes)?;
    let power = power.max(f64::MIN_POSITIVE);
    let loss_before = error_before / power;
    let mut moments = first.as_ref().try_map(|value| {
        let (mean, square) = (ops.zeros_like(value)?, ops.zeros_like(value)?);
        Ok::<_, crate::QuantError>(Parameter { value: ops.copy(value)?, mean, square })
    })?;
    let mut best = Outcome { learned: first, loss_before, loss_after: loss_before, epoch: 0 };
    let mut step = 0;
    // Of a window's error as a share of the mean one.
    let scale = 2.0 * windows as f64 / error_before.max(f64::MIN_POSITIVE);
    for epoch in 1..=options.epochs {
        for window in 0..windows {
            let Example { input, target } = load(window)?;
            let learned = values(ops, &moments)?;
            let weights = block.weights(ops, &learned)?;
            let trace = block.forward(ops, &input, &learned, &weights)?;
            let dout = ops.difference(&trace.out, &target, scale)?;
            let gradients = block.backward(ops, &dout, &learned, &weights, &trace)?;
            step += 1;
            descend(ops, &mut moments, &gradients, step, options)?;
            on_passes(STEP_PASSES)?;
        }
        let learned = values(ops, &moments)?;
        let loss_after = error(ops, block, &learned, (windows, load), on_passes)? / power;
        if loss_after < best.loss_after {
            best = Outcome { learned, loss_after, epoch, ..best };
        }
    }
    Ok(best)
}

/// The values of all parameters.
fn values<O: Learn>(ops: &O, parameters: &Learned<Parameter<O::Array>>) -> BackendResult<Learned<O::Array>> {
    parameters.as_ref().try_map(|parameter| ops.copy(&parameter.value))
}

/// A step of all parameters down their gradients.
fn descend<O: Learn>(
    ops: &O,
    parameters: &mut Learned<Parameter<O::Array>>,
    gradients: &Learned<O::Array>,
    step: i32,
    options: LearnOptions,
) -> BackendResult<()> {
    for site in Site::ALL {
        if let (Some(parameter), Some(gradient)) = (&mut parameters.clips[site], &gradients.clips[site]) {
            ops.adam(parameter, gradient, AdamStep { rate: options.clip_rate, step, least: None })?;
        }
    }
    if let (Some(parameters), Some(gradients)) = (&mut parameters.scales, &gradients.scales) {
        let step = AdamStep { rate: options.scale_rate, step, least: Some(LEAST_SCALE) };
        ops.adam(&mut parameters.qkv, &gradients.qkv, step)?;
        ops.adam(&mut parameters.values, &gradients.values, step)?;
        ops.adam(&mut parameters.gate_up, &gradients.gate_up, step)?;
    }
    Ok(())
}

/// The squared error of what leaves the block, of all windows.
fn error<O: Learn>(
    ops: &O,
    block: &LearnedBlock<O::Array>,
    learned: &Learned<O::Array>,
    (windows, load): (usize, &Load<'_, O::Array>),
    on_passes: &mut OnPasses<'_>,
) -> Result<f64> {
    let weights = block.weights(ops, learned)?;
    let mut sum = 0.0;
    for window in 0..windows {
        let Example { input, target } = load(window)?;
        sum += ops.squared_distance(&block.run(ops, &input, learned, &weights)?, Some(&target))?;
        on_passes(1)?;
    }
    Ok(sum)
}
