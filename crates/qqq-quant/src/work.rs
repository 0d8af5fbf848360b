//! How much work is done, and how much there is: rough seconds, so that the time left can be told.

use qqq_backend::HeadLayout;
use qqq_formats::ModelConfig;

use crate::{Progress, Propagation, QuantError, Recipe, Result, Transform, float_block::head_layout};

/// Operations a second, relative to each other, of the kinds of work (measured on two AVX-512 cores).
mod rate {
    pub const FLOAT: f64 = 170e9;
    pub const INT8: f64 = 700e9;
    pub const RANK_K: f64 = 170e9;
    pub const ATTENTION: f64 = 100e9;
    pub const SOLVE: f64 = 40e9;
    pub const SAMPLE: f64 = 60e9;
}

/// Estimates for the stages of one block, and for what comes before the blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Estimate {
    /// Calibration text (or the model's own samples) and embeddings.
    pub prepare: f64,
    /// Smoothing search of a block, per site (four of them).
    pub smooth_site: f64,
    /// Calibration stages of a block: A to E, or all of a float pass in the first.
    pub stages: [f64; 5],
    /// Solving qkv, o, gate and up, down.
    pub solves: [f64; 4],
    /// Rotation or rounding, packing and writing of a block.
    pub pack: f64,
}

impl Estimate {
    pub(crate) fn new(config: &ModelConfig, recipe: &Recipe, samples: bool) -> Self {
        let heads = head_layout(config);
        let (hidden, inner) = (config.hidden_size as f64, config.intermediate_size as f64);
        let HeadLayout { num_heads, head_dim, .. } = heads;
        let (q, qkv) = (heads.q_width() as f64, heads.qkv_width() as f64);
        // n, k of the four stacked layers.
        let shapes = [(qkv, hidden), (hidden, q), (2.0 * inner, hidden), (hidden, inner)];
        let (windows, window) = (recipe.calibration.windows as f64, recipe.calibration.window as f64);
        let tokens = windows * window;
        let linear = |i: usize, rate: f64| 2.0 * shapes[i].0 * shapes[i].1 * tokens / rate;
        let rank_k = |i: usize| shapes[i].1 * shapes[i].1 * tokens / rate::RANK_K;
        let attention = |window: f64| 2.0 * (num_heads * head_dim) as f64 * window * window;
        let attend = windows * attention(window) / rate::ATTENTION;
        let stages = match recipe.propagation {
            Propagation::Quantized => [
                rank_k(0),
                linear(0, rate::INT8) + attend + rank_k(1),
                linear(1, rate::INT8) + rank_k(2),
                linear(2, rate::INT8) + rank_k(3),
                linear(3, rate::INT8),
            ],
            Propagation::Float => {
                [(0..4).map(|i| linear(i, rate::FLOAT) + rank_k(i)).sum::<f64>() + attend, 0.0, 0.0, 0.0, 0.0]
            }
        };
        let stages = if tokens > 0.0 { stages } else { [0.0; 5] };
        let solves = shapes.map(|(n, k)| {
            let compensate = if recipe.compensate { k * k * k + 2.0 * n * k * k } else { 2.0 * n * k };
            (compensate + 2.0 * n * k * k) / rate::SOLVE
        });
        let weights: f64 = shapes.iter().map(|(n, k)| n * k).sum();
        let smooth = recipe.calibration.smooth_tokens as f64;
        let search =
            30.0 * (weights * (2.0 * smooth / rate::INT8 + 4e-9) + attention(smooth) / rate::ATTENTION) / 4.0;
        let prepare = (config.vocab_size as f64 * hidden + tokens * hidden) * 4e-9
            + if samples { 2.0 * weights * config.num_layers as f64 * tokens / rate::SAMPLE } else { 1.0 };
        Self {
            prepare,
            smooth_site: if recipe.transform == Transform::Smooth { search } else { 0.0 },
            stages,
            solves,
            pack: weights * 2e-8,
        }
    }

    fn block(&self) -> f64 {
        4.0 * self.smooth_site + self.stages.iter().sum::<f64>() + self.solves.iter().sum::<f64>() + self.pack
    }
}

/// Counts work and tells it.
pub(crate) struct Work<'a> {
    progress: &'a mut dyn Progress,
    done: f64,
    total: f64,
    /// Work at which the running stage began, and its extent.
    stage: (f64, f64),
    label: String,
    warnings: Vec<String>,
}

impl<'a> Work<'a> {
    pub(crate) fn new(progress: &'a mut dyn Progress, estimate: &Estimate, blocks: usize) -> Self {
        let total = estimate.prepare + blocks as f64 * estimate.block();
        Self { progress, done: 0.0, total, stage: (0.0, 0.0), label: String::new(), warnings: Vec::new() }
    }

    /// The last stage is done; begins one of `units`.
    pub(crate) fn begin(&mut self, units: f64, label: impl Into<String>) -> Result<()> {
        self.stage = (self.stage.0 + self.stage.1, units);
        self.label = label.into();
        self.at(0.0)
    }

    /// `share` of the running stage is done.
    pub(crate) fn at(&mut self, share: f64) -> Result<()> {
        // Estimates may not add up to the last digit: never go back, never beyond the end.
        self.done = (self.stage.0 + share * self.stage.1).min(self.total).max(self.done);
        match self.progress.step(self.done, self.total, &self.label) {
            true => Ok(()),
            false => Err(QuantError::Interrupted),
        }
    }

    /// All is done.
    pub(crate) fn finish(&mut self) -> Vec<String> {
        self.progress.step(self.total, self.total, "done");
        std::mem::take(&mut self.warnings)
    }

    pub(crate) fn warn(&mut self, message: String) {
        tracing::warn!("{message}");
        self.progress.warn(&message);
        self.warnings.push(message);
    }
}
