//! How much work is done, and how much there is: rough seconds, so that the time left can be told.

use qqq_backend::HeadLayout;
use qqq_formats::ModelConfig;

use crate::{
    Progress, Propagation, QuantError, Recipe, Result, Transform, ValueHessian, attended::QUERIES,
    float_block::head_layout,
};

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
    /// Calibration stages of a block of quantized layers.
    pub stages: StageEstimate,
    /// A calibration pass of a float block.
    pub float_pass: f64,
    /// Solving all layers of a block.
    solves: f64,
    /// Whether layers are compensated.
    compensate: bool,
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
        let averages = match recipe.value_hessian {
            ValueHessian::Input => 0.0,
            // Of some queries of every head: half of the window's inputs on average, and the second moment.
            ValueHessian::Attention => {
                let queries = windows * num_heads as f64 * window.min(QUERIES as f64);
                queries * (window * hidden + hidden * hidden) / rate::RANK_K
            }
        };
        let quantized = StageEstimate {
            qkv: rank_k(0),
            attended: if averages > 0.0 { averages + linear(0, rate::INT8) } else { 0.0 },
            o: linear(0, rate::INT8) + attend + rank_k(1),
            gate_up: linear(1, rate::INT8) + rank_k(2),
            down: linear(2, rate::INT8) + rank_k(3),
            finish: linear(3, rate::INT8),
        };
        let float = (0..4).map(|i| linear(i, rate::FLOAT) + rank_k(i)).sum::<f64>() + attend + averages;
        let (stages, float_pass) = match recipe.propagation {
            _ if tokens == 0.0 => (StageEstimate::default(), 0.0),
            Propagation::Quantized => (quantized, 0.0),
            Propagation::Float => (StageEstimate::default(), float),
        };
        let compensate = recipe.compensate;
        let [qkv, others @ ..] = shapes;
        let v = heads.kv_width() as f64;
        // Two solutions of one width take two factorizations.
        let solved = match recipe.value_hessian {
            _ if tokens == 0.0 => vec![qkv],
            ValueHessian::Input => vec![qkv],
            ValueHessian::Attention => vec![(qkv.0 - v, qkv.1), (v, qkv.1)],
        };
        let solves = solved.into_iter().chain(others).map(|(n, k)| solve(n, k, compensate)).sum();
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
            float_pass,
            solves,
            compensate,
            pack: weights * 2e-8,
        }
    }

    fn block(&self) -> f64 {
        4.0 * self.smooth_site + self.stages.sum() + self.float_pass + self.solves + self.pack
    }

    /// Solving a layer of `n` outputs and `k` inputs.
    pub(crate) fn solve(&self, n: usize, k: usize) -> f64 {
        solve(n as f64, k as f64, self.compensate)
    }
}

fn solve(n: f64, k: f64, compensate: bool) -> f64 {
    let compensate = if compensate { k * k * k + 2.0 * n * k * k } else { 2.0 * n * k };
    (compensate + 2.0 * n * k * k) / rate::SOLVE
}

/// Calibration stages of a block of quantized layers, named for the layer whose input they make.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StageEstimate {
    pub qkv: f64,
    /// The input of v, averaged by attention.
    pub attended: f64,
    pub o: f64,
    pub gate_up: f64,
    pub down: f64,
    /// The states after the block.
    pub finish: f64,
}

impl StageEstimate {
    fn sum(&self) -> f64 {
        self.qkv + self.attended + self.o + self.gate_up + self.down + self.finish
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

    pub(crate) fn note(&mut self, message: &str) {
        self.progress.note(message);
    }

    pub(crate) fn warn(&mut self, message: String) {
        self.progress.warn(&message);
        self.warnings.push(message);
    }
}
