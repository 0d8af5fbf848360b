//! How fast this machine is now, by a short trial.

use std::time::Instant;

use qqq_backend::{Backend, Calibrate, InputKind};
use qqq_formats::{LinearWeight, WeightData};

use crate::{Result, estimate::rate, nearest::round_scaled};

/// Seconds that an operation takes here, as a multiple of what [`rate`] says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slowness {
    /// Products of int8 activations.
    pub int8: f64,
    /// Second moments of int8 activations.
    pub moments: f64,
    /// Products in float32, and all that is made of float operations.
    pub float: f64,
}

/// Width of the layer that is tried.
const WIDTH: usize = 1024;
const TOKENS: usize = 1024;
/// What is tried before is not counted: it wakes the threads, and touches new memory.
const REPEAT: usize = 5;

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
        let weights: Vec<f32> = (0..WIDTH * WIDTH).map(|_| random()).collect();
        let mut rows = b.upload(TOKENS, WIDTH, (0..TOKENS * WIDTH).map(|_| random()).collect())?;
        let quantized = LinearWeight::Quantized(round_scaled(&weights, &[1.0; WIDTH], None));
        let float =
            LinearWeight::Float { out_features: WIDTH, in_features: WIDTH, data: WeightData::F32(weights) };
        let (quantized, float) = (b.linear_weight(quantized, None)?, b.linear_weight(float, None)?);
        let (mut input, mut float_input) = (b.input(TOKENS, WIDTH)?, b.input(TOKENS, WIDTH)?);
        b.to_input(&mut rows, InputKind::Int8, &mut input)?;
        b.to_input(&mut rows, InputKind::Float, &mut float_input)?;
        let mut output = b.tensor(TOKENS, WIDTH)?;
        let (width, tokens) = (WIDTH as f64, TOKENS as f64);
        let product = 2.0 * width * width * tokens;
        Ok(Self {
            int8: median(|| multiply(b, &input, &quantized, &mut output))? * rate::INT8 / product,
            moments: median(|| {
                std::hint::black_box(b.read_hessian(&b.hessian(b.gram_of(WIDTH, &[&input])?)?)?);
                Ok(())
            })? * rate::RANK_K
                / (width * width * tokens),
            float: median(|| multiply(b, &float_input, &float, &mut output))? * rate::FLOAT / product,
        })
    }
}

fn multiply<B: Backend>(b: &B, input: &B::Input, weight: &B::Linear, output: &mut B::Tensor) -> Result<()> {
    b.linear(input, weight, output)?;
    std::hint::black_box(b.read(output)?);
    Ok(())
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
