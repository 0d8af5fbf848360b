//! How fast this machine is now, by a short trial.

use std::time::Instant;

use qqq_backend::{Calibrate, InputKind, solve::Scheme};
use qqq_formats::WeightData;

use crate::{QuantError, Result, estimate::rate};

/// Seconds that an operation takes here, as a multiple of what [`rate`] says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slowness {
    /// Products of int8 activations.
    pub int8: f64,
    /// Second moments of int8 activations.
    pub moments: f64,
    /// Products of float activations, and all that is made of float operations.
    pub float: f64,
    /// Products in float32 with rotations, and what solves layers.
    pub solve: f64,
    /// What the host does to weights.
    pub moves: f64,
}

impl Slowness {
    /// Of a host that computes itself: all but products of integers goes with what float products take.
    pub const fn of_host(int8: f64, moments: f64, float: f64) -> Self {
        Self { int8, moments, float, solve: float, moves: float }
    }
}

/// Width of the layer that is tried, and tokens.
const WIDTH: usize = 1024;
/// The same on a device of its own, which smaller layers leave idle.
const DEVICE_WIDTH: usize = 4096;
/// What is tried before is not counted: it wakes the threads, and touches new memory.
const REPEAT: usize = 5;
/// What solving a layer takes there beyond the operations that are counted: losses of several tries.
const DEVICE_TRIES: f64 = 2.75;
/// What is left to the host there: it reads, packs and writes.
const HOST_SHARE: f64 = 0.25;

impl Slowness {
    /// Tries what takes most of a run.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn measured<B: Calibrate>(b: &B) -> Result<Self> {
        // A linear congruential generator (Knuth's constants): any numbers that are not all alike.
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        let size = if B::PIECES.on_host { WIDTH } else { DEVICE_WIDTH };
        let weights: Vec<f32> = (0..size * size).map(|_| random()).collect();
        let mut rows = b.upload(size, size, (0..size * size).map(|_| random()).collect())?;
        let rotation = match B::PIECES.on_host {
            true => None,
            false => Some(b.rotation(size, &weights)?),
        };
        let weights = b.weights(size, size, WeightData::F32(weights))?;
        let float = b.float_linear(&weights, None)?;
        let mut quantized = None;
        b.round_scaled(&weights, &vec![1.0; size], Scheme::w4a8(None), None, &mut quantized)?;
        let missing = || QuantError::Recipe("no layer was rounded for the trial".into());
        let quantized = quantized.ok_or_else(missing)?;
        let mut turned = rotation.map(|rotation| (weights, rotation));
        let (mut input, mut float_input) = (b.input(size, size)?, b.input(size, size)?);
        b.to_input(&mut rows, InputKind::Int8, &mut input)?;
        b.to_input(&mut rows, InputKind::Float, &mut float_input)?;
        let mut output = b.tensor(size, size)?;
        let moments = (size as f64).powi(3);
        let product = 2.0 * moments;
        // Looked at last, it is there when all before it is.
        let probe = b.upload(1, 1, vec![0.0])?;
        let wait = || b.first_not_finite(&probe).map(|_| ()).map_err(QuantError::from);
        let mut multiply = |input: &B::Input, weight: &B::Linear| {
            median(|| {
                b.linear(input, weight, &mut output)?;
                std::hint::black_box(&mut output);
                wait()
            })
        };
        let mut measured = Self::of_host(
            multiply(&input, &quantized)? * rate::INT8 / product,
            median(|| {
                std::hint::black_box(b.hessian(b.gram_of(size, &[&input])?)?);
                wait()
            })? * rate::RANK_K
                / moments,
            multiply(&float_input, &float)? * rate::FLOAT / product,
        );
        if let Some((weights, rotation)) = &mut turned {
            let seconds = median(|| {
                b.rotate_inputs(weights, rotation)?;
                wait()
            })?;
            measured.solve = DEVICE_TRIES * seconds * rate::SOLVE / product;
            measured.moves = HOST_SHARE;
        }
        Ok(measured)
    }
}

/// The median of what some runs take, in seconds.
fn median(mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    run()?;
    let mut seconds = Vec::with_capacity(REPEAT);
    for _ in 0..REPEAT {
        let clock = Instant::now();
        run()?;
        seconds.push(clock.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[REPEAT / 2])
}
