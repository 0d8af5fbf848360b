//! How much work a run is: an amount for each kind of it, in seconds as [`trial`](crate::trial) lets expect them.
//!
//! [`work`](crate::work) turns amounts into time left, by what each kind is seen to take.

mod stages;

use qqq_backend::{HeadLayout, InputKind, Pieces, solve::Scheme};
use qqq_formats::{Activations, ModelConfig};
use qqq_model::{Site, block::head_layout};

pub(crate) use self::stages::StageEstimate;
use crate::{
    Propagation, Recipe, Schemes, Transform, ValueHessian, calibration::Source, held_out::HeldText,
    recipes::omniquant, run::head_rows, trial::Slowness,
};

/// Operations a second of the kinds of work, as SmolLM2-135M and the shapes of Llama-2-7B take them on two cores of a Xeon
/// with AVX-512 VNNI and AMX that have nothing else to do.
pub(crate) mod rate {
    pub const FLOAT: f64 = 165e9;
    pub const INT8: f64 = 930e9;
    pub const RANK_K: f64 = 800e9;
    pub const AVERAGES: f64 = 120e9;
    pub const ATTENTION: f64 = 190e9;
    pub const SOLVE: f64 = 140e9;
    pub const SAMPLE: f64 = 60e9;
    /// Seconds for the code of a weight and its share of a scale that is searched.
    pub const ROUND_SECONDS: f64 = 50e-9;
    /// The smoothing search has many short products.
    pub const SEARCH: f64 = 600e9;
    /// Seconds in which the host rounds a weight of a candidate.
    pub const CANDIDATE_SECONDS: f64 = 3e-9;
    /// Operations of float products in whose time a device rounds one: it waits for its memory.
    pub const CANDIDATE_OPERATIONS: f64 = 3000.0;
    /// Seconds that a device takes for the launches of a candidate, and to tell its loss.
    pub const CANDIDATE_LAUNCHES: f64 = 200e-6;
    /// Candidates of a site.
    pub const CANDIDATES: f64 = 30.0;
    /// Outputs of a site whose scales are given: the float one, with them, without.
    pub const GIVEN_CANDIDATES: f64 = 3.0;
    /// Times that the products of learning take of those of a decoder, and its attention.
    pub const LEARN_SLOWER: f64 = 1.3;
    pub const LEARN_ATTENTION: f64 = 3.0;
    /// Seconds for a weight that is rounded, or what gradients come through that.
    pub const LEARN_ROUND_SECONDS: f64 = 3e-9;
    /// The first two on a device of its own, whose decoders multiply in 16 bits: products are of float32, those of attention of
    /// all keys.
    pub const DEVICE_LEARN_SLOWER: f64 = 8.0;
    pub const DEVICE_LEARN_ATTENTION: f64 = 40.0;
}

/// Operations of correcting a layer for each output and pair of inputs: two products, a system in float64, and losses against
/// another output than the solver's.
const CORRECTION_OPERATIONS: f64 = 14.0;

/// Operations of the solver in whose time a simulated method makes one.
const SIMULATED_OPERATIONS: f64 = 4.0;

/// Seconds an operation here.
struct Costs {
    float: f64,
    int8: f64,
    rank_k: f64,
    averages: f64,
    attention: f64,
    solve: f64,
    sample: f64,
    search: f64,
    /// A second of what moves and converts weights.
    move_second: f64,
    rotate: f64,
}

impl Costs {
    fn new(slowness: &Slowness) -> Self {
        let Slowness { int8, moments, float, solve, moves } = *slowness;
        Self {
            float: float / rate::FLOAT,
            int8: int8 / rate::INT8,
            rank_k: moments / rate::RANK_K,
            averages: float / rate::AVERAGES,
            attention: float / rate::ATTENTION,
            solve: solve / rate::SOLVE,
            sample: float / rate::SAMPLE,
            search: int8 / rate::SEARCH,
            move_second: moves,
            rotate: solve / rate::FLOAT,
        }
    }
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
    /// The float model beside the quantized one, and what their inputs differ by.
    Deviations,
    FloatPass,
    /// Held-out text in the float model.
    HeldFloat,
    /// The same in the quantized one.
    HeldQuantized,
    /// What both predict of it.
    Compare,
    /// Running a finished block again.
    Replay,
    Solve,
    /// Packing and writing a block.
    Pack,
}

impl Kind {
    /// Number of kinds.
    pub(crate) const COUNT: usize = Kind::Pack as usize + 1;
}

/// An amount of work: seconds that it is expected to take.
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
    /// Held-out text through a block of the float model, which is read for that.
    pub held_float: Units,
    /// The same through a quantized block.
    pub held_quantized: Units,
    /// Comparing what both predict of it.
    pub compare: Units,
    /// Solving all layers of a block.
    solves: f64,
    /// How a layer is solved.
    solving: Solving,
    /// Operations of correcting a layer for each output and pair of inputs.
    correcting: f64,
    /// Seconds an operation of solving.
    solve_cost: f64,
    /// A second of what rounds without data.
    move_second: f64,
    /// Packing and writing of a block.
    pub pack: Units,
    /// The output head, where it is quantized.
    head: Units,
    /// Seconds of reading and rotating a weight of it.
    head_reading: f64,
    /// The second moments of its inputs.
    pub head_inputs: Units,
}

impl Estimate {
    pub(crate) fn new(
        config: &ModelConfig,
        recipe: &Recipe,
        schemes: &Schemes,
        held: HeldText,
        source: &Source,
        slowness: &Slowness,
        pieces: Pieces,
    ) -> Self {
        let cost = Costs::new(slowness);
        let heads = head_layout(config);
        let (hidden, inner) = (config.hidden_size as f64, config.intermediate_size as f64);
        let HeadLayout { num_heads, head_dim, .. } = heads;
        let (q, qkv) = (heads.q_width() as f64, heads.qkv_width() as f64);
        // n, k of the four stacked layers.
        let shapes = [(qkv, hidden), (hidden, q), (2.0 * inner, hidden), (hidden, inner)];
        let (windows, window) = (recipe.calibration.windows as f64, recipe.calibration.window as f64);
        let tokens = windows * window;
        let product = |i: usize| 2.0 * shapes[i].0 * shapes[i].1 * tokens;
        // Blocks may differ: each is taken for their mean.
        let mean = |i: usize, of: &dyn Fn(Option<Scheme>) -> f64| schemes.mean(Site::ALL[i], of);
        let solved_share = |i: usize| mean(i, &|scheme| f64::from(u8::from(scheme.is_some())));
        let float_inputs =
            |scheme: Option<Scheme>| scheme.map_or(InputKind::Float, Scheme::input_kind) == InputKind::Float;
        let linear = |i: usize| {
            product(i) * mean(i, &|scheme| if float_inputs(scheme) { cost.float } else { cost.int8 })
        };
        let moments = |i: usize| shapes[i].1 * shapes[i].1 * tokens;
        // Layers that stay float need none.
        let rank_k = |i: usize| {
            moments(i)
                * mean(i, &|scheme| match scheme {
                    None if recipe.simulated.is_none() => 0.0,
                    scheme if float_inputs(scheme) => cost.float,
                    _ => cost.rank_k,
                })
        };
        let attention = |window: f64| 2.0 * (num_heads * head_dim) as f64 * window * window;
        let attend = windows * attention(window) * cost.attention;
        let averages = match recipe.value_hessian {
            ValueHessian::Input => 0.0,
            // Of some queries of every head: half of the window's inputs on average, and the second moment.
            ValueHessian::Attention => {
                let queries = windows * num_heads as f64 * window.min(pieces.attended_queries as f64);
                queries * (window * hidden + hidden * hidden) * cost.averages * solved_share(0)
            }
        };
        // The float layers up to a site's input, and two sums: of products, and of squares, of which half is computed.
        let corrects = recipe.corrects();
        let deviations = [0.0, product(0), product(1), product(2) + product(3)];
        let float_attend = [0.0, attend, 0.0, 0.0];
        let deviations = [0, 1, 2, 3].map(|i| match corrects {
            true => (deviations[i] + 3.0 * moments(i) * solved_share(i)) * cost.float + float_attend[i],
            false => 0.0,
        });
        let float_averages = if corrects { averages + product(0) * cost.float } else { 0.0 };
        let quantized = StageEstimate::new([
            rank_k(0),
            if averages > 0.0 { averages + linear(0) + float_averages } else { 0.0 },
            linear(0) + attend + rank_k(1),
            linear(1) + rank_k(2),
            linear(2) + rank_k(3),
            linear(3),
        ])
        .with_deviations(deviations);
        let products = (0..4).map(|i| (product(i) + moments(i)) * cost.float).sum::<f64>();
        let float = products + attend + averages;
        let (stages, float_pass) = match recipe.propagation {
            _ if tokens == 0.0 => (StageEstimate::new([0.0; 6]), 0.0),
            Propagation::Quantized => (quantized, 0.0),
            Propagation::Float => (StageEstimate::new([0.0; 6]), float),
        };
        let solving = match recipe.compensate {
            _ if tokens == 0.0 => Solving::WithoutData,
            _ if recipe.simulated.is_some() => Solving::Simulated,
            true => Solving::Compensated,
            false => Solving::Nearest,
        };
        let correcting = if recipe.corrects() && tokens > 0.0 { CORRECTION_OPERATIONS } else { 0.0 };
        let [qkv, others @ ..] = shapes;
        let v = heads.kv_width() as f64;
        // Two solutions of one width take two factorizations.
        let solved = match recipe.value_hessian {
            _ if tokens == 0.0 => vec![qkv],
            ValueHessian::Input => vec![qkv],
            ValueHessian::Attention => vec![(qkv.0 - v, qkv.1), (v, qkv.1)],
        };
        let solved = solved.into_iter().map(|shape| (0, shape));
        let of_modules = |site: Site| {
            let k = site.in_features(config) as f64;
            site.modules(config).into_iter().map(move |(_, n)| (n as f64, k))
        };
        // Module by module.
        let simulated = Site::ALL.into_iter().filter(|_| recipe.simulated.is_some()).flat_map(of_modules);
        let simulated: f64 = simulated.map(|(n, k)| solve(n, k, solving, cost.solve, cost.move_second)).sum();
        let solves: f64 = solved
            .chain((1..).zip(others))
            .map(|(site, (n, k))| {
                let seconds =
                    solve(n, k, solving, cost.solve, cost.move_second) + correcting * n * k * k * cost.solve;
                seconds * solved_share(site)
            })
            .sum();
        let weights: f64 = shapes.iter().map(|(n, k)| n * k).sum();
        let (searched, smooth) = recipe.transform_amount();
        let (searched, smooth) = (searched as f64, smooth as f64);
        let search_cost = match recipe.activations {
            Activations::Int8 => cost.search,
            Activations::Half => cost.float,
        };
        let candidates = match (recipe.transform, recipe.migration_strength) {
            (Transform::Migrate, Some(_)) => rate::GIVEN_CANDIDATES,
            _ => rate::CANDIDATES,
        };
        let (rounding, launches) = match pieces.on_host {
            true => (rate::CANDIDATE_SECONDS * cost.move_second, 0.0),
            false => (rate::CANDIDATE_OPERATIONS * cost.float, rate::CANDIDATE_LAUNCHES),
        };
        let rounded = weights * (2.0 * searched * smooth * search_cost + rounding);
        let attended = searched * attention(smooth) * cost.attention;
        let search = match recipe.epochs {
            Some(epochs) if recipe.learns() => {
                // One of them in float.
                let passes = 1.0 + omniquant::passes(epochs) as f64;
                let (slower, attention, rounding) = match pieces.on_host {
                    true => {
                        let rounding = rate::LEARN_ROUND_SECONDS * cost.move_second;
                        (rate::LEARN_SLOWER, rate::LEARN_ATTENTION, rounding)
                    }
                    false => (rate::DEVICE_LEARN_SLOWER, rate::DEVICE_LEARN_ATTENTION, rounding),
                };
                let products = 2.0 * weights * tokens * cost.float * slower;
                let others = attend * attention + windows * (weights * rounding + launches);
                passes * (products + others) / 4.0
            }
            _ => candidates * ((rounded + attended) / 4.0 + launches),
        };
        let samples = match source {
            Source::SelfSamples if tokens > 0.0 => {
                2.0 * weights * config.num_layers as f64 * (tokens + held.tokens()) * cost.sample
            }
            Source::SelfSamples | Source::BuiltIn | Source::Files(_) | Source::Dataset { .. } => 0.0,
        };
        let held_tokens = held.tokens();
        let held_attend = held.windows as f64 * attention(held.window as f64) * cost.attention;
        let held_pass = |operation: f64| 2.0 * weights * held_tokens * operation + held_attend;
        // Heads of 16 bits, and for each logit two exponentials and some sums.
        let rows = held_tokens * config.vocab_size as f64;
        let compare = rows * (4.0 * hidden + 60.0) * cost.float;
        let reading = if held.windows > 0 { weights * 5e-9 * cost.move_second } else { 0.0 };
        let rotate = recipe.transform == Transform::Rotate;
        // Of a number, by a dense matrix.
        let rotation = if rotate { 2.0 * hidden * cost.rotate } else { 0.0 };
        // A head that is quantized comes at the end.
        let head = schemes.head().is_some();
        let tables = if recipe.separates_head(config) && !head { 2.0 } else { 1.0 };
        let table = config.vocab_size as f64 * hidden;
        let head_reading = 5e-9 * cost.move_second + rotation;
        let head_solves = match head {
            true => head_pieces(config)
                .map(|n| solve(n as f64, hidden, solving, cost.solve, cost.move_second))
                .sum(),
            false => 0.0,
        };
        let head_seconds = if head { head_solves + table * head_reading } else { 0.0 };
        let head_inputs = if head { hidden * hidden * tokens * cost.rank_k } else { 0.0 };
        Self {
            text: Units::new(Kind::Text, 0.2 + samples),
            ends: Units::new(Kind::Ends, tables * table * (12e-9 * cost.move_second + rotation)),
            read: Units::new(Kind::Read, weights * (5e-9 * cost.move_second + rotation)),
            smooth_site: Units::new(
                Kind::Smooth,
                if recipe.transform.scales_channels() { search } else { 0.0 },
            ),
            stages,
            float_pass: Units::new(Kind::FloatPass, float_pass),
            held_float: Units::new(Kind::HeldFloat, reading + held_pass(cost.float)),
            held_quantized: Units::new(Kind::HeldQuantized, held_pass(cost.int8)),
            compare: Units::new(Kind::Compare, compare),
            solves: solves + simulated,
            solving,
            correcting,
            solve_cost: cost.solve,
            move_second: cost.move_second,
            pack: Units::new(Kind::Pack, weights * 11e-9 * cost.move_second),
            head: Units::new(Kind::Solve, head_seconds),
            head_reading,
            head_inputs: Units::new(Kind::Qkv, head_inputs),
        }
    }

    /// All that a model of so many blocks takes, by kind.
    pub(crate) fn plan(&self, blocks: usize) -> [f64; Kind::COUNT] {
        let mut plan = [0.0; Kind::COUNT];
        let blocks = blocks as f64;
        let mut add = |units: Units, times: f64| plan[units.kind as usize] += times * units.amount;
        add(self.text, 1.0);
        add(self.ends, 1.0);
        add(self.compare, 1.0);
        add(self.held_float, blocks);
        add(self.held_quantized, blocks);
        for units in [self.read, self.float_pass, Units::new(Kind::Solve, self.solves), self.pack] {
            add(units, blocks);
        }
        add(self.smooth_site, 4.0 * blocks);
        for units in self.stages.all().into_iter().chain(self.stages.deviations) {
            add(units, blocks);
        }
        add(self.head, 1.0);
        add(self.head_inputs, 1.0);
        if self.head.amount == 0.0 {
            // Nothing comes after the last block.
            add(self.stages.finish, -1.0);
        }
        plan
    }

    /// Running a finished block again: what calibrating it takes without its sums, which are about half of that.
    pub(crate) fn replay(&self) -> Units {
        let stages =
            self.stages.all().iter().map(|units| units.amount).sum::<f64>() - self.stages.attended.amount;
        Units::new(Kind::Replay, (stages + self.float_pass.amount) / 2.0)
    }

    /// The same in the float model.
    pub(crate) fn replay_float(&self) -> Units {
        Units::new(Kind::Replay, self.stages.deviations.iter().map(|units| units.amount).sum::<f64>() / 2.0)
    }

    /// Reading and solving `n` rows of the output head of `k` inputs.
    pub(crate) fn head_rows(&self, n: usize, k: usize) -> Units {
        let (n, k) = (n as f64, k as f64);
        let seconds = solve(n, k, self.solving, self.solve_cost, self.move_second);
        Units::new(Kind::Solve, seconds + n * k * self.head_reading)
    }

    /// Solving a layer of `n` outputs and `k` inputs.
    pub(crate) fn solve(&self, n: usize, k: usize) -> Units {
        let (n, k) = (n as f64, k as f64);
        let seconds = solve(n, k, self.solving, self.solve_cost, self.move_second);
        Units::new(Kind::Solve, seconds + self.correcting * n * k * k * self.solve_cost)
    }
}

/// Rows of the output head that are solved together, piece by piece.
fn head_pieces(config: &ModelConfig) -> impl Iterator<Item = usize> {
    let (vocab, rows) = (config.vocab_size, head_rows(config));
    (0..vocab).step_by(rows).map(move |first| rows.min(vocab - first))
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
    /// A simulated method: the same twice, with and without compensation, and in float64, column by column.
    Simulated,
}

/// Seconds of solving a layer, at seconds an operation and a second of what rounds.
fn solve(n: f64, k: f64, solving: Solving, cost: f64, move_second: f64) -> f64 {
    let losses = 2.0 * n * k * k;
    let operations = match solving {
        Solving::WithoutData => return n * k * rate::ROUND_SECONDS * move_second,
        Solving::Nearest => 2.0 * n * k + losses,
        Solving::Compensated => k * k * k + 2.0 * n * k * k + losses,
        Solving::Simulated => SIMULATED_OPERATIONS * (k * k * k + 2.0 * n * k * k + 2.0 * losses),
    };
    operations * cost
}

#[cfg(test)]
mod tests;
