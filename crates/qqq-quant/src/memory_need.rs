//! How much memory a run will take at most, from shapes and recipe alone.
//!
//! What is large: the hidden states of all calibration tokens (float32, from the first block to the last), the int8 inputs of
//! the layer that is calibrated (kept for the next stage), its Hessian (float32), the factor (the triangle of a float64
//! matrix, then that of a float32 one), its float weights, and what each thread works on. [`run`](crate::run) lets each go as
//! soon as it can; every [`Phase`] here is a point at which something has just come.

use qqq_backend::{Pieces, pool::num_threads};
use qqq_formats::{Checkpoint, ModelConfig};
use qqq_model::{Site, block::head_layout, names};

use crate::{Propagation, Recipe, Transform, ValueHessian, self_samples, solve::ROWS_PER_TASK, windows};

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
pub(crate) fn of(checkpoint: &Checkpoint, recipe: &Recipe, samples: bool, pieces: Pieces) -> MemoryNeed {
    // A block-quantized type is widened to float32 when it is read.
    let width = |name: &str| match checkpoint.tensors.info(name).and_then(|info| info.dtype.size()) {
        Some(2) => 2.0,
        _ => 4.0,
    };
    let stored = Stored {
        linear: width(&format!("{}.weight", names::linear(0, names::DOWN))),
        ends: width(names::EMBEDDING),
    };
    need(&checkpoint.config, recipe, stored, samples, num_threads(), pieces)
}

/// Bytes of a weight when it has been read, before it becomes float32.
#[derive(Clone, Copy)]
struct Stored {
    linear: f64,
    ends: f64,
}

fn need(
    config: &ModelConfig,
    recipe: &Recipe,
    stored: Stored,
    samples: bool,
    threads: usize,
    pieces: Pieces,
) -> MemoryNeed {
    let phases = Model::new(config, recipe, stored, threads, pieces).phases(samples);
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
    /// Hidden states.
    states: f64,
    /// Hidden states and rotation: there from the first block to the last. Where a device holds them, what its libraries take.
    always: f64,
}

impl<'a> Model<'a> {
    fn new(
        config: &'a ModelConfig,
        recipe: &'a Recipe,
        stored: Stored,
        threads: usize,
        pieces: Pieces,
    ) -> Self {
        let heads = head_layout(config);
        let calibration = &recipe.calibration;
        let (windows, window) = (calibration.windows as f64, calibration.window as f64);
        let hidden = config.hidden_size as f64;
        let rotation = rotation_bytes(config, recipe);
        Self {
            config,
            recipe,
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
            states: if pieces.on_host { 4.0 * windows * window * hidden } else { 0.0 },
            always: if pieces.on_host { 4.0 * windows * window * hidden } else { DEVICE_LIBRARIES }
                + rotation,
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
        phases.push(self.embedding());
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
        let smooth = self.recipe.transform == Transform::Smooth;
        if smooth {
            phases.push(self.smoothing());
        }
        let calibrates = self.tokens > 0.0;
        if calibrates && self.recipe.propagation == Propagation::Float {
            phases.push(self.float_pass());
        } else if calibrates {
            let after = |linear: Site| match smooth {
                // The layers were transformed together, and wait.
                true => Site::ALL.iter().skip_while(|l| **l != linear).map(|&l| 4.0 * self.weights(l)).sum(),
                false => 0.0,
            };
            if self.recipe.value_hessian == ValueHessian::Attention {
                phases.push(self.averages(&after));
            }
            phases.extend(self.stages(&after));
        }
        phases.extend(self.solves(calibrates, smooth));
        phases
    }

    /// A layer that a device solves: as read, its codes, and these as they are written, while the codes of the one before are
    /// still packed and written (measured with 7B shapes). Layers that are smoothed together are read while the block before is
    /// calibrated.
    fn handed_over(&self) -> Phase {
        let block = match self.recipe.transform {
            Transform::Smooth => self.stored.linear * self.all_weights(),
            _ => 0.0,
        };
        Phase {
            name: "reading and writing layers",
            arrays: self.always + block + self.largest_weights() * (self.stored.linear + 6.0),
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
        let tokens = self.recipe.calibration.smooth_tokens as f64;
        let wide = (2.0 * self.inner).max(self.q + 2.0 * self.kv);
        let pass = tokens * 4.0 * (2.0 * wide + 2.0 * self.inner + 4.0 * self.hidden);
        let rounded = 1.6 * 2.0 * self.inner * self.hidden;
        let arrays = self.always + 4.0 * (self.all_weights() + self.largest_weights()) + pass + rounded;
        Phase { name: "smoothing", arrays, besides: 0.0 }
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

    /// The inputs of v as attention averages them, in every lane, beside q, k and v in float.
    fn averages(&self, waiting: &dyn Fn(Site) -> f64) -> Phase {
        let queries = (self.config.num_heads * self.pieces.attended_queries) as f64;
        let weights = (self.config.num_heads * self.pieces.probability_queries) as f64 * self.window * 4.0;
        let each = self.attention() + 5.0 * self.window * self.hidden + 4.0 * queries * self.hidden + weights;
        let lanes = windows::lanes(&[self.config.hidden_size], self.pieces.lanes);
        let hessians = 1 + lanes.min(self.recipe.calibration.windows);
        Phase {
            name: "calibrating v",
            arrays: self.always
                + self.tokens * self.hidden
                + 4.0 * self.weights(Site::Qkv)
                + waiting(Site::O)
                + 4.0 * self.hidden * self.hidden * hessians as f64,
            besides: self.passes(lanes, each),
        }
    }

    /// The calibration stages of a quantized block. `waiting` is what the float layers from one on take that were
    /// transformed beforehand.
    fn stages(&self, waiting: &dyn Fn(Site) -> f64) -> Vec<Phase> {
        // Codes and scales of a block's layers as they are multiplied.
        let packed = 0.6 * self.all_weights();
        let kept = self.tokens * self.hidden;
        let panels = self.threads * self.pieces.gram_rows as f64 * self.inner * 4.0 * 3.0;
        vec![
            Phase {
                name: "calibrating o",
                arrays: self.always + kept + packed / 4.0 + waiting(Site::O),
                besides: self.passes(self.pieces.lanes, self.attention()),
            },
            Phase {
                name: "calibrating down",
                arrays: self.always + self.tokens * self.inner + packed / 2.0 + waiting(Site::Down),
                besides: self.passes(
                    self.pieces.lanes,
                    (self.pieces.mlp_tokens as f64).min(self.window) * 4.0 * 3.0 * self.inner,
                ),
            },
            Phase {
                name: "summing the Hessian of down",
                arrays: self.always
                    + self.tokens * self.inner
                    + packed / 2.0
                    + waiting(Site::Down)
                    + 4.0 * self.inner * self.inner,
                besides: panels,
            },
        ]
    }

    /// Reading, factorising and solving each layer.
    fn solves(&self, calibrates: bool, smooth: bool) -> Vec<Phase> {
        let name = |linear| match linear {
            Site::Qkv => "solving q, k and v",
            Site::O => "solving o",
            Site::GateUp => "solving gate and up",
            Site::Down => "solving down",
        };
        let quantized = calibrates && self.recipe.propagation == Propagation::Quantized;
        let mut phases = Vec::new();
        let mut others = self.all_weights();
        for linear in Site::ALL {
            let (n, k, weights) = (self.outputs(linear), self.inputs(linear), self.weights(linear));
            others -= weights;
            // Inputs that the next stage takes; float layers that wait; Hessians that do.
            let kept = if quantized { self.tokens * k } else { 0.0 };
            let held = smooth || !quantized && calibrates;
            let waiting = if held { 4.0 * others } else { 0.0 };
            let hessians = if quantized || !calibrates { 0.0 } else { 4.0 * self.inner * self.inner };
            let own = if calibrates { 4.0 * k * k } else { 0.0 };
            let fixed = self.always + kept + waiting + hessians + own;
            let page = 8192.0 * k;
            let factor = if self.recipe.compensate { 2.0 * k * k + page } else { 0.0 };
            let factorising = if self.recipe.compensate { 4.0 * k * k + 2.0 * page } else { 0.0 };
            // Outputs of a rotated layer are turned from a copy of it.
            let reading = weights * (4.0f64).max(self.stored.linear * if n > k { 2.0 } else { 1.0 });
            phases.push(Phase {
                name: name(linear),
                arrays: fixed + 4.0 * weights + if held { factorising } else { factorising.max(reading) },
                besides: 0.0,
            });
            let tasks = (n / ROWS_PER_TASK as f64).ceil().min(self.threads);
            phases.push(Phase {
                name: name(linear),
                arrays: fixed + 4.0 * weights + factor + 2.2 * weights,
                besides: tasks * ROWS_PER_TASK as f64 * k * SOLVER_BYTES,
            });
        }
        phases
    }
}

#[cfg(test)]
mod tests {
    use qqq_backend::{Calibrate, CpuBackend};

    use super::*;
    use crate::shapes;

    const BF16: Stored = Stored { linear: 2.0, ends: 2.0 };

    fn of(recipe: &Recipe, samples: bool, threads: usize) -> MemoryNeed {
        need(&shapes::llama_7b(32), recipe, BF16, samples, threads, CpuBackend::PIECES)
    }

    #[test]
    fn a_model_of_7b_takes_less_than_4_gb() {
        let recipe = Recipe {
            calibration: crate::Calibration { windows: 32, window: 2048, smooth_tokens: 512 },
            ..Recipe::DEFAULT
        };
        for threads in [1, 2, 16] {
            let need = of(&recipe, false, threads);
            println!("{threads} threads: {need:?}");
            // 32 windows of hidden states alone are 1.07 GB, the inputs of down 0.72 GB, its Hessian 0.48 GB.
            assert!((2_500_000_000..3_800_000_000).contains(&need.bytes), "{need:?}");
            assert!(need.least < need.bytes && need.least > 2_270_000_000, "{need:?}");
        }
        // The model itself in 16 bits.
        let sampled = of(&recipe, true, 2);
        assert!(
            sampled.bytes > 13_000_000_000 && sampled.phase == "sampling calibration text",
            "{sampled:?}"
        );
    }

    /// Peaks (VmHWM) of whole runs with two threads.
    #[test]
    fn plans_are_a_little_above_what_runs_took() {
        let with = |windows, transform, propagation| Recipe {
            transform,
            propagation,
            calibration: crate::Calibration { windows, ..Recipe::DEFAULT.calibration },
            ..Recipe::DEFAULT
        };
        let usual = with(32, Transform::Rotate, Propagation::Quantized);
        // Of a GGUF file.
        let smol = (shapes::smollm2(), Stored { linear: 4.0, ends: 4.0 });
        for ((config, stored), recipe, peak) in [
            (smol.clone(), usual.clone(), 454e6),
            (smol.clone(), with(4, Transform::Smooth, Propagation::Quantized), 277e6),
            (smol, with(4, Transform::Rotate, Propagation::Float), 401e6),
            ((shapes::wide(), BF16), usual.clone(), 1.91e9),
            ((shapes::llama_7b(2), BF16), usual, 3.36e9),
        ] {
            let need = need(&config, &recipe, stored, false, 2, CpuBackend::PIECES);
            let ratio = need.bytes as f64 / peak;
            assert!((1.0..1.15).contains(&ratio), "{need:?} is {ratio} of {peak}");
        }
    }

    #[test]
    fn recipes_and_calibration_count() {
        let base = of(&Recipe::DEFAULT, false, 2).bytes;
        let with = |recipe: Recipe| of(&recipe, false, 2).bytes;
        let float = Recipe { propagation: Propagation::Float, ..Recipe::DEFAULT };
        assert!(with(float) > base);
        let mut fewer = Recipe::DEFAULT;
        fewer.calibration.windows /= 2;
        let saved = base - with(fewer);
        // 32,768 tokens of hidden states, and of int8 inputs of down.
        let expected = RETAINED * f64::from(32_768 * (4 * 4096 + 11008));
        assert!((saved as f64 - expected).abs() < 10.0, "{saved} {expected}");
        let mut none = Recipe { compensate: false, ..Recipe::DEFAULT };
        none.calibration.windows = 0;
        assert!(with(none) < base / 2);
        let mut huge = Recipe::DEFAULT;
        (huge.calibration.windows, huge.calibration.window) = (usize::MAX, 2048);
        assert_eq!(of(&huge, false, 2).least, u64::MAX);
    }
}
