//! How much memory a run will take at most, from shapes and recipe alone.
//!
//! What is large: the hidden states of all calibration tokens (float32, from the first block to the last), the int8 inputs of
//! the layer that is calibrated (kept for the next stage), its Hessian (float32), the factor (the triangle of a float64
//! matrix, then that of a float32 one), its float weights, and what each thread works on. [`run`](crate::run) lets each go as
//! soon as it can; every [`Phase`] here is a point at which something has just come.

mod head;
mod held_out;
mod layers;

use qqq_backend::{Pieces, pool::num_threads};
use qqq_formats::{Checkpoint, ModelConfig};
use qqq_model::{Site, block::head_layout, names};

use crate::{
    Clip, Propagation, Recipe, Schemes, Transform, ValueHessian, held_out::HeldText, layer_bytes,
    recipes::omniquant, self_samples, solve::ROWS_PER_TASK, windows,
};

/// Program, tokenizer, thread stacks.
const BASE: f64 = 70e6;
/// What an allocator has not yet given back to the system, on top of all (measured: 8% with 7B shapes).
const RETAINED: f64 = 1.08;
/// A device's driver and libraries, on either side.
pub(crate) const DEVICE_LIBRARIES: f64 = 500e6;
/// What an allocator still has of embedding and output head when the blocks begin, if these take that much (measured: 80 to
/// 105 MB with SmolLM2-135M).
const LEFT_OF_TABLES: f64 = 100e6;
/// Rows of a table on their way from type to type, and what the reader of the calibration text has left (measured: 15 MB with
/// SmolLM2-135M and 4 windows).
const CONVERTING: f64 = 25e6;
/// Bytes of an element of a 96-row task of the solver for each of its input channels: weights, targets, errors, codes and
/// copies of them.
const SOLVER_BYTES: f64 = 22.0;
/// The same where weights are corrected: what the float model gives, and a difference from it.
const CORRECTED_BYTES: f64 = 12.0;
/// What a run has left over when the float model goes beside (measured with a model of 128 channels and the default amount of
/// text, which took 12% more than was told).
const BESIDE_LEFT: f64 = 26e6;
/// Tokens of which the sums of deviations hold two float copies.
const DEVIATION_TOKENS: f64 = 512.0;

/// Memory that a run takes at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryNeed {
    /// Bytes, to some percent.
    pub bytes: u64,
    /// When that is.
    pub phase: &'static str,
    /// Bytes that it takes even with a single thread, and nothing else in the process.
    pub least: u64,
}

/// The matrices of a rotation.
pub(crate) fn rotation_bytes(config: &ModelConfig, recipe: &Recipe) -> f64 {
    let (hidden, head_dim) = (config.hidden_size as f64, config.head_dim as f64);
    match recipe.transform {
        Transform::Rotate => 4.0 * (hidden * hidden + head_dim * head_dim),
        _ => 0.0,
    }
}

/// What is in memory at some point.
struct Phase {
    name: &'static str,
    /// Whatever the number of threads.
    arrays: f64,
    /// What threads work on, and what the allocator has not given back yet.
    besides: f64,
}

/// The need of quantizing a checkpoint on a device. `samples`: whether the model writes its calibration text itself.
pub(crate) fn of(
    checkpoint: &Checkpoint,
    recipe: &Recipe,
    schemes: &Schemes,
    held: HeldText,
    samples: bool,
    pieces: Pieces,
) -> MemoryNeed {
    // A block-quantized type is widened to float32 when it is read.
    let width = |name: &str| match checkpoint.tensors.info(name).and_then(|info| info.dtype.size()) {
        Some(2) => 2.0,
        _ => 4.0,
    };
    let stored = Stored {
        linear: width(&format!("{}.weight", names::linear(0, names::DOWN))),
        ends: width(names::EMBEDDING),
    };
    need((&checkpoint.config, recipe, schemes, held), stored, samples, num_threads(), pieces)
}

/// Bytes of a weight when it has been read, before it becomes float32.
#[derive(Clone, Copy)]
struct Stored {
    linear: f64,
    ends: f64,
}

fn need(
    (config, recipe, schemes, held): (&ModelConfig, &Recipe, &Schemes, HeldText),
    stored: Stored,
    samples: bool,
    threads: usize,
    pieces: Pieces,
) -> MemoryNeed {
    let phases = Model::new((config, recipe, schemes, held), stored, threads, pieces).phases(samples);
    let mut need = MemoryNeed { bytes: 0, phase: "reading the model", least: 0 };
    for Phase { name, arrays, besides } in phases {
        // Sizes beyond all memory saturate.
        let bytes = (RETAINED * (BASE + arrays + besides)) as u64;
        if bytes > need.bytes {
            (need.bytes, need.phase) = (bytes, name);
        }
        need.least = need.least.max(arrays as u64);
    }
    need
}

/// Sizes as floats: products of what a user asks for have no bound.
struct Model<'a> {
    config: &'a ModelConfig,
    recipe: &'a Recipe,
    schemes: &'a Schemes,
    stored: Stored,
    threads: f64,
    pieces: Pieces,
    hidden: f64,
    inner: f64,
    /// Width of queries, and of keys.
    q: f64,
    kv: f64,
    vocab: f64,
    window: f64,
    tokens: f64,
    /// What is held out.
    held: HeldText,
    /// Hidden states.
    states: f64,
    /// Hidden states and rotation: there from the first block to the last. Where a device holds them, what its libraries take.
    always: f64,
}

impl<'a> Model<'a> {
    fn new(
        (config, recipe, schemes, held): (&'a ModelConfig, &'a Recipe, &'a Schemes, HeldText),
        stored: Stored,
        threads: usize,
        pieces: Pieces,
    ) -> Self {
        let heads = head_layout(config);
        let calibration = &recipe.calibration;
        let (windows, window) = (calibration.windows as f64, calibration.window as f64);
        let hidden = config.hidden_size as f64;
        let rotation = rotation_bytes(config, recipe);
        let streams = if recipe.follows_float() { 2.0 } else { 1.0 };
        // What is held out is in both models.
        let tokens = streams * windows * window + 2.0 * held.tokens();
        let states = if pieces.on_host { 4.0 * tokens * hidden } else { 0.0 };
        Self {
            config,
            recipe,
            schemes,
            stored,
            threads: threads as f64,
            pieces,
            hidden,
            inner: config.intermediate_size as f64,
            q: heads.q_width() as f64,
            kv: heads.kv_width() as f64,
            vocab: config.vocab_size as f64,
            window,
            tokens: windows * window,
            held,
            states,
            always: if pieces.on_host { states } else { DEVICE_LIBRARIES } + rotation,
        }
    }

    fn outputs(&self, linear: Site) -> f64 {
        linear.out_features(self.config) as f64
    }

    fn inputs(&self, linear: Site) -> f64 {
        linear.in_features(self.config) as f64
    }

    fn weights(&self, linear: Site) -> f64 {
        self.outputs(linear) * self.inputs(linear)
    }

    /// The inputs of a site, as all windows hold them between the stages of a quantized block.
    fn kept(&self, site: Site) -> f64 {
        self.tokens * self.input(site) + self.held_inputs(site)
    }

    /// The same of what is held out alone.
    fn held_inputs(&self, site: Site) -> f64 {
        self.held.tokens() * self.input(site)
    }

    /// The input of a site for a token.
    fn input(&self, site: Site) -> f64 {
        let on_host = self.pieces.on_host;
        self.inputs(site) * self.schemes.largest(site, |scheme| layer_bytes::input(scheme, on_host))
    }

    /// A block's layers as they are multiplied.
    fn packed(&self) -> f64 {
        Site::ALL
            .map(|site| {
                let on_host = self.pieces.on_host;
                let simulated = self.schemes.simulated().map(|m| layer_bytes::simulated(m, on_host));
                let bytes = |scheme| simulated.unwrap_or_else(|| layer_bytes::multiplied(scheme));
                self.weights(site) * self.schemes.largest(site, bytes)
            })
            .iter()
            .sum()
    }

    fn all_weights(&self) -> f64 {
        Site::ALL.iter().map(|&linear| self.weights(linear)).sum()
    }

    fn largest_weights(&self) -> f64 {
        Site::ALL.iter().map(|&site| self.weights(site)).fold(0.0, f64::max)
    }

    /// Windows that are worked on at the same time.
    fn lanes(&self, most: usize) -> f64 {
        self.threads.min(most as f64).min(self.recipe.calibration.windows as f64)
    }

    /// What the threads take in a forward pass, `each` for a window.
    fn passes(&self, most: usize, each: f64) -> f64 {
        self.lanes(most) * each
    }

    /// Queries, keys and values of a window after the rotary embedding, the cache that keys and values are copied to, and the
    /// output of attention with its int8 form.
    fn attention(&self) -> f64 {
        self.window * (4.0 * (self.q + 2.0 * self.kv) + 8.0 * self.kv + 5.0 * self.q)
    }

    fn phases(&self, samples: bool) -> Vec<Phase> {
        let mut phases = self.of_blocks();
        let left = LEFT_OF_TABLES.min(self.reading_table());
        phases.iter_mut().for_each(|phase| phase.besides += left);
        if self.pieces.on_host && self.recipe.corrects() {
            // All that these take has long taken the place of what was left.
            phases.extend(Site::ALL.map(|site| self.beside(site)));
        }
        phases.push(self.embedding());
        if self.schemes.head().is_some() {
            phases.push(self.head());
        }
        if self.held.windows > 0 {
            phases.extend([self.held_out(), self.comparing()]);
        }
        if samples {
            phases.push(self.samples());
        }
        phases
    }

    fn of_blocks(&self) -> Vec<Phase> {
        if !self.pieces.on_host {
            return vec![self.handed_over()];
        }
        let mut phases = Vec::new();
        let smooth = self.recipe.transform.scales_channels();
        if self.recipe.learns() {
            phases.push(self.learning());
        } else if smooth {
            phases.push(self.smoothing());
        }
        let calibrates = self.tokens > 0.0;
        if calibrates && self.recipe.propagation == Propagation::Float {
            phases.push(self.float_pass());
        } else if calibrates {
            let after = |linear: Site| self.waiting(linear);
            if self.recipe.value_hessian == ValueHessian::Attention {
                phases.push(self.averages(&after));
            }
            phases.extend(self.stages(&after));
        }
        phases.extend(self.solves(calibrates, smooth));
        phases
    }

    /// The layers of a smoothed block from one on, which were transformed together.
    fn waiting(&self, from: Site) -> f64 {
        match self.recipe.transform {
            transform if transform.scales_channels() => {
                Site::ALL.iter().skip_while(|l| **l != from).map(|&l| 4.0 * self.weights(l)).sum()
            }
            _ => 0.0,
        }
    }

    /// A layer that a device solves: as read, its codes, and these as they are written, while the codes of the one before are
    /// still packed and written (measured with 7B shapes). Layers that are smoothed together are read while the block before is
    /// calibrated.
    fn handed_over(&self) -> Phase {
        let block = match self.recipe.transform {
            transform if transform.scales_channels() => self.stored.linear * self.all_weights(),
            _ => 0.0,
        };
        // Clipping by groups is the host's work: weights and Hessian come back.
        let by_host = match self.recipe.clip {
            Clip::GroupOutput => 4.0 * (self.largest_weights() + self.inner * self.inner),
            // With learned scales the host rounds as well, and a layer's weights pass through it while a block is learned.
            Clip::Learned => 4.0 * (2.0 * self.largest_weights() + self.inner * self.inner),
            _ => 0.0,
        };
        Phase {
            name: "reading and writing layers",
            arrays: self.always + block + self.largest_weights() * (self.stored.linear + 6.0) + by_host,
            besides: 0.0,
        }
    }

    /// A table as read and as it is written.
    fn reading_table(&self) -> f64 {
        self.vocab * self.hidden * (self.stored.ends + 2.0)
    }

    /// A table as read and as it is written; then the hidden states beside what was written.
    fn embedding(&self) -> Phase {
        let table = self.vocab * self.hidden;
        let reading = self.reading_table();
        let arrays = (self.always - self.states + reading).max(self.always + 2.0 * table);
        let head = self.always + reading;
        Phase { name: "converting embedding and output head", arrays: arrays.max(head), besides: CONVERTING }
    }

    /// The whole float model, and a cache for the windows of a batch; a device has both in its own memory.
    fn samples(&self) -> Phase {
        let name = "sampling calibration text";
        if !self.pieces.on_host {
            let read = self.reading_table().max(self.all_weights() * self.stored.linear);
            return Phase { name, arrays: self.always + read, besides: 0.0 };
        }
        let layers = self.config.num_layers as f64;
        let heads = if self.config.tie_word_embeddings { 1.0 } else { 2.0 };
        let model = layers * self.all_weights() * self.stored.linear
            + heads * self.vocab * self.hidden * self.stored.ends;
        let batch = self_samples::batch(self.pieces, self.config, self.recipe.calibration.window);
        let batch = self.recipe.calibration.windows.min(batch) as f64;
        let cache = batch * self.window * layers * 2.0 * self.kv * 2.0;
        // Sampling at a temperature reads all logits.
        let logits = batch * self.vocab * 8.0;
        Phase { name, arrays: model + cache + logits, besides: 0.0 }
    }

    /// The block in float32 and a copy of one of its layers, and one window's way through it with two outputs of its widest
    /// layer.
    fn smoothing(&self) -> Phase {
        let (windows, tokens) = self.recipe.transform_amount();
        let tokens = tokens as f64;
        let wide = (2.0 * self.inner).max(self.q + 2.0 * self.kv);
        let pass = tokens * 4.0 * (2.0 * wide + 2.0 * self.inner + 4.0 * self.hidden);
        let rounded = 1.6 * 2.0 * self.inner * self.hidden;
        // Where all calibration windows are looked at: copies of their states, and the inputs of a site with outputs behind it.
        let copies = match self.recipe.transform.reads_windows() {
            true => {
                4.0 * windows as f64 * tokens * (2.0 * self.hidden + self.inner.max(self.hidden + self.q))
            }
            false => 0.0,
        };
        let arrays =
            self.always + 4.0 * (self.all_weights() + self.largest_weights()) + pass + rounded + copies;
        Phase { name: "smoothing", arrays, besides: 0.0 }
    }

    /// The block as it is read, as it is learned with, and rounded; what a window leaves in a forward pass and the gradients of
    /// the widest layer, in numbers of 32 bits.
    fn learning(&self) -> Phase {
        let rows = omniquant::rows_at_once(self.config) * self.window;
        let arrays = self.always + 4.0 * (3.0 * self.all_weights() + 2.0 * self.largest_weights() + rows);
        Phase { name: "learning", arrays, besides: 0.0 }
    }

    /// The float block, and the Hessians of all its layers in every lane.
    fn float_pass(&self) -> Phase {
        let widths: Vec<usize> = [
            Some(Site::Qkv),
            (self.recipe.value_hessian == ValueHessian::Attention).then_some(Site::Qkv),
            Some(Site::O),
            Some(Site::GateUp),
            Some(Site::Down),
        ]
        .into_iter()
        .flatten()
        .map(|linear| linear.in_features(self.config))
        .collect();
        let lanes = windows::lanes(&widths, self.pieces.lanes);
        let hessians: f64 = widths.iter().map(|&k| 4.0 * (k * k) as f64).sum();
        let each = self.attention() + self.window * 4.0 * (3.0 * self.inner + 2.0 * self.hidden);
        Phase {
            name: "calibrating",
            arrays: self.always
                + 4.0 * self.all_weights()
                + hessians * lanes.min(self.recipe.calibration.windows) as f64,
            besides: self.passes(lanes, each),
        }
    }

    /// The float inputs of a site that are kept where weights are corrected: those of the last are not.
    fn float_inputs(&self, site: Site) -> f64 {
        match site {
            Site::Down => 0.0,
            Site::Qkv | Site::O | Site::GateUp if self.recipe.corrects() => {
                4.0 * self.tokens * self.inputs(site)
            }
            Site::Qkv | Site::O | Site::GateUp => 0.0,
        }
    }

    /// The float model beside the quantized one at a site, with the sums of both.
    fn beside(&self, site: Site) -> Phase {
        let k = self.inputs(site);
        let wave = self.recipe.calibration.windows.min(windows::lanes(&[], self.pieces.lanes)) as f64;
        let (layers, inputs, each) = match site {
            Site::Qkv => (0.0, 0.0, 0.0),
            Site::O => (self.weights(Site::Qkv), 0.0, self.attention()),
            Site::GateUp => (self.weights(Site::O), 0.0, 4.0 * self.window * self.hidden),
            // A wave's inputs beside what the windows after it hold; the layer that takes the float stream on, as it is solved
            // and as it multiplies.
            Site::Down => (
                self.weights(Site::GateUp) + 2.0 * self.weights(site),
                self.float_inputs(Site::GateUp) + 4.0 * wave * self.window * k,
                4.0 * self.window * (2.0 * self.inner + self.hidden),
            ),
        };
        Phase {
            name: "comparing with the float model",
            arrays: self.always
                + self.kept(site)
                + self.float_inputs(site)
                + inputs
                + self.waiting(site)
                + 4.0 * layers
                + self.packed()
                + 12.0 * k * k,
            besides: self.passes(self.pieces.lanes, each) + 8.0 * DEVIATION_TOKENS * k + BESIDE_LEFT,
        }
    }
}

#[cfg(test)]
#[path = "memory_need/tests.rs"]
mod tests;
