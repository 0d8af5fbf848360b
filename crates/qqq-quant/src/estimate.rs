//! How much work a run is: an amount for each kind of it, in seconds of a machine of two AVX-512 cores.
//!
//! [`work`](crate::work) turns amounts into time left, by what each kind is seen to take on this machine.

use qqq_backend::{HeadLayout, Pieces};
use qqq_formats::ModelConfig;
use qqq_model::{Site, block::head_layout};

use crate::{Propagation, Recipe, Transform, ValueHessian, calibration::Source};

/// Operations a second of the kinds of work (measured on two AVX-512 cores).
mod rate {
    pub const FLOAT: f64 = 170e9;
    pub const INT8: f64 = 400e9;
    pub const RANK_K: f64 = 260e9;
    pub const AVERAGES: f64 = 75e9;
    pub const ATTENTION: f64 = 80e9;
    pub const SOLVE: f64 = 80e9;
    pub const SAMPLE: f64 = 60e9;
    /// Seconds for the code of a weight and its share of a scale that is searched.
    pub const ROUND_SECONDS: f64 = 50e-9;
}

/// What takes its own time for each unit: other shapes, another kernel, another bottleneck.
///
/// `Text` and `Ends` come before the blocks: what they take says nothing about those.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// Calibration text, or the model's own samples.
    Text,
    /// Embedding and output head: reading, rotating, writing.
    Ends,
    /// A block's weights: reading and transforming.
    Read,
    Smooth,
    Qkv,
    Attended,
    O,
    GateUp,
    Down,
    Finish,
    FloatPass,
    Solve,
    /// Packing and writing a block.
    Pack,
}

impl Kind {
    /// Number of kinds.
    pub(crate) const COUNT: usize = Kind::Pack as usize + 1;
}

/// An amount of work: seconds of the machine that the rates were measured on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Units {
    pub kind: Kind,
    pub amount: f64,
}

impl Units {
    fn new(kind: Kind, amount: f64) -> Self {
        Self { kind, amount }
    }

    /// A share of it.
    pub(crate) fn part(self, share: f64) -> Self {
        Self { amount: self.amount * share, ..self }
    }
}

/// Estimates for the stages of one block, and for what comes before the blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Estimate {
    /// Calibration text, or the model's own samples.
    pub text: Units,
    /// Embedding and head.
    pub ends: Units,
    /// Reading and transforming a block.
    pub read: Units,
    /// Smoothing search of a block, per site (four of them).
    pub smooth_site: Units,
    /// Calibration stages of a block of quantized layers.
    pub stages: StageEstimate,
    /// A calibration pass of a float block.
    pub float_pass: Units,
    /// Solving all layers of a block.
    solves: f64,
    /// How a layer is solved.
    solving: Solving,
    /// Packing and writing of a block.
    pub pack: Units,
}

impl Estimate {
    pub(crate) fn new(config: &ModelConfig, recipe: &Recipe, source: &Source, pieces: Pieces) -> Self {
        let heads = head_layout(config);
        let (hidden, inner) = (config.hidden_size as f64, config.intermediate_size as f64);
        let HeadLayout { num_heads, head_dim, .. } = heads;
        let (q, qkv) = (heads.q_width() as f64, heads.qkv_width() as f64);
        // n, k of the four stacked layers.
        let shapes = [(qkv, hidden), (hidden, q), (2.0 * inner, hidden), (hidden, inner)];
        let (windows, window) = (recipe.calibration.windows as f64, recipe.calibration.window as f64);
        let tokens = windows * window;
        let linear = |i: usize, rate: f64| 2.0 * shapes[i].0 * shapes[i].1 * tokens / rate;
        let rank_k = |i: usize| rank_k(shapes[i].1, tokens);
        let attention = |window: f64| 2.0 * (num_heads * head_dim) as f64 * window * window;
        let attend = windows * attention(window) / rate::ATTENTION;
        let averages = match recipe.value_hessian {
            ValueHessian::Input => 0.0,
            // Of some queries of every head: half of the window's inputs on average, and the second moment.
            ValueHessian::Attention => {
                let queries = windows * num_heads as f64 * window.min(pieces.attended_queries as f64);
                queries * (window * hidden + hidden * hidden) / rate::AVERAGES
            }
        };
        let quantized = StageEstimate::new([
            rank_k(0),
            if averages > 0.0 { averages + linear(0, rate::INT8) } else { 0.0 },
            linear(0, rate::INT8) + attend + rank_k(1),
            linear(1, rate::INT8) + rank_k(2),
            linear(2, rate::INT8) + rank_k(3),
            linear(3, rate::INT8),
        ]);
        let float = (0..4).map(|i| linear(i, rate::FLOAT) + rank_k(i)).sum::<f64>() + attend + averages;
        let (stages, float_pass) = match recipe.propagation {
            _ if tokens == 0.0 => (StageEstimate::new([0.0; 6]), 0.0),
            Propagation::Quantized => (quantized, 0.0),
            Propagation::Float => (StageEstimate::new([0.0; 6]), float),
        };
        let solving = match recipe.compensate {
            _ if tokens == 0.0 => Solving::WithoutData,
            true => Solving::Compensated,
            false => Solving::Nearest,
        };
        let [qkv, others @ ..] = shapes;
        let v = heads.kv_width() as f64;
        // Two solutions of one width take two factorizations.
        let solved = match recipe.value_hessian {
            _ if tokens == 0.0 => vec![qkv],
            ValueHessian::Input => vec![qkv],
            ValueHessian::Attention => vec![(qkv.0 - v, qkv.1), (v, qkv.1)],
        };
        let solves = solved.into_iter().chain(others).map(|(n, k)| solve(n, k, solving)).sum();
        let weights: f64 = shapes.iter().map(|(n, k)| n * k).sum();
        let smooth = recipe.calibration.smooth_tokens as f64;
        let search =
            30.0 * (weights * (2.0 * smooth / rate::INT8 + 4e-9) + attention(smooth) / rate::ATTENTION) / 4.0;
        let samples = match source {
            Source::SelfSamples => 2.0 * weights * config.num_layers as f64 * tokens / rate::SAMPLE,
            Source::BuiltIn | Source::Files(_) | Source::Dataset { .. } => 0.0,
        };
        let rotation = if recipe.transform == Transform::Rotate { hidden.log2() * 1e-9 } else { 0.0 };
        Self {
            text: Units::new(Kind::Text, 0.5 + samples),
            ends: Units::new(Kind::Ends, config.vocab_size as f64 * hidden * (8e-9 + 8.0 * rotation)),
            read: Units::new(Kind::Read, weights * (4e-9 + 2.0 * rotation)),
            smooth_site: Units::new(
                Kind::Smooth,
                if recipe.transform == Transform::Smooth { search } else { 0.0 },
            ),
            stages,
            float_pass: Units::new(Kind::FloatPass, float_pass),
            solves,
            solving,
            pack: Units::new(Kind::Pack, weights * 8e-9),
        }
    }

    /// All that a model of so many blocks takes, by kind.
    pub(crate) fn plan(&self, blocks: usize) -> [f64; Kind::COUNT] {
        let mut plan = [0.0; Kind::COUNT];
        let blocks = blocks as f64;
        let mut add = |units: Units, times: f64| plan[units.kind as usize] += times * units.amount;
        add(self.text, 1.0);
        add(self.ends, 1.0);
        for units in [self.read, self.float_pass, Units::new(Kind::Solve, self.solves), self.pack] {
            add(units, blocks);
        }
        add(self.smooth_site, 4.0 * blocks);
        for units in self.stages.all() {
            add(units, blocks);
        }
        plan
    }

    /// Solving a layer of `n` outputs and `k` inputs.
    pub(crate) fn solve(&self, n: usize, k: usize) -> Units {
        Units::new(Kind::Solve, solve(n as f64, k as f64, self.solving))
    }
}

/// An int8 product.
pub(crate) fn int8_product(n: f64, k: f64, tokens: f64) -> f64 {
    2.0 * n * k * tokens / rate::INT8
}

/// The second moment of so many tokens of a width.
pub(crate) fn rank_k(width: f64, tokens: f64) -> f64 {
    width * width * tokens / rate::RANK_K
}

/// What solving a layer has to do.
#[derive(Clone, Copy, Debug)]
enum Solving {
    /// Codes and scales; losses are those of the weights.
    WithoutData,
    /// The same, with losses for a Hessian.
    Nearest,
    /// A factor of the Hessian, and a product with it, as well.
    Compensated,
}

fn solve(n: f64, k: f64, solving: Solving) -> f64 {
    let losses = 2.0 * n * k * k;
    let operations = match solving {
        Solving::WithoutData => return n * k * rate::ROUND_SECONDS,
        Solving::Nearest => 2.0 * n * k + losses,
        Solving::Compensated => k * k * k + 2.0 * n * k * k + losses,
    };
    operations / rate::SOLVE
}

/// Calibration stages of a block of quantized layers, named for the layer whose input they make.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StageEstimate {
    pub qkv: Units,
    /// The input of v, averaged by attention.
    pub attended: Units,
    pub o: Units,
    pub gate_up: Units,
    pub down: Units,
    /// The states after the block.
    pub finish: Units,
}

impl StageEstimate {
    /// From amounts in the order of the fields.
    fn new([qkv, attended, o, gate_up, down, finish]: [f64; 6]) -> Self {
        Self {
            qkv: Units::new(Kind::Qkv, qkv),
            attended: Units::new(Kind::Attended, attended),
            o: Units::new(Kind::O, o),
            gate_up: Units::new(Kind::GateUp, gate_up),
            down: Units::new(Kind::Down, down),
            finish: Units::new(Kind::Finish, finish),
        }
    }

    /// The stage that makes a site's input.
    pub fn site(&self, site: Site) -> Units {
        match site {
            Site::Qkv => self.qkv,
            Site::O => self.o,
            Site::GateUp => self.gate_up,
            Site::Down => self.down,
        }
    }

    fn all(&self) -> [Units; 6] {
        [self.qkv, self.attended, self.o, self.gate_up, self.down, self.finish]
    }
}
