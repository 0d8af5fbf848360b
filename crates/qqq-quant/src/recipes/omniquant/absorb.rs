//! A block of the model, learned: its weights and states on the way to the operations, and what was learned on the way back, into
//! norms, weights and the scales with which these are rounded.

use qqq_backend::{
    Calibrate, InputKind, Learn,
    learn::{Rotary, WeightGrid},
    solve::Scheme,
};
use qqq_formats::{Activations, ModelConfig};
use qqq_model::{
    Block, RopeChoice, Site, Sites,
    block::{Mixer, Mlp, head_layout},
    rope,
};

use super::{
    block::{Learned, LearnedBlock, Linear, Norms, Scales},
    learn::{Example, LEAST_SCALE, LearnOptions, Outcome, learn, passes},
};
use crate::{
    QuantError, Recipe, Result,
    float_linear::FloatBlock,
    half_type::HalfType,
    recipes::smoothquant,
    report::LearnReport,
    solve::ScaleDType,
    transform,
    windows::{Surroundings, Window, Windows},
};

/// Where clipping strengths begin: their sigmoid is 0.982.
const FIRST_STRENGTH: f32 = 4.0;
/// Migration strength of the scales with which learning begins.
const MIGRATION: f64 = 0.5;
/// Windows and epochs that a trial takes.
const TRIAL: (usize, usize) = (2, 1);

/// What learns a block.
pub(crate) struct BlockLearning<'a, B: Calibrate> {
    pub around: Surroundings<'a, B>,
    pub recipe: &'a Recipe,
    /// What becomes of the block's layers.
    pub schemes: Sites<Option<Scheme>>,
    pub half: HalfType,
    /// Type of scales as they are stored.
    pub dtype: ScaleDType,
    pub index: usize,
    /// Whether some steps are taken only to see how long they are.
    pub is_trial: bool,
}

/// A matrix of the device that learns.
type Array<B> = <<B as Calibrate>::Learner as Learn>::Array;

/// What a pass of the float model has found.
#[derive(Default)]
struct Seen {
    /// Sum of the squares of the states that leave the block.
    power: f64,
    /// The largest magnitude of every channel of the input of each site.
    largest: Sites<Vec<f32>>,
}

/// Told which share is done; an error stops.
type OnShare<'a> = dyn FnMut(f64) -> Result<()> + 'a;

impl<B: Calibrate> BlockLearning<'_, B> {
    /// Windows that are learned of so many, and epochs.
    fn amount(&self, windows: usize) -> (usize, usize) {
        let epochs = self.recipe.epochs.unwrap_or(0);
        match self.is_trial {
            true => (windows.min(TRIAL.0), epochs.min(TRIAL.1)),
            false => (windows, epochs),
        }
    }

    /// Forward passes of a window that [`learn`](Self::learn) takes as long as: that in float, and those of learning.
    fn passes(&self, windows: usize) -> usize {
        let (count, epochs) = self.amount(windows);
        windows + count * passes(epochs)
    }

    /// The share of a block's learning that is done of it.
    pub fn share(&self, windows: usize) -> f64 {
        let whole = windows * (1 + passes(self.recipe.epochs.unwrap_or(0)));
        self.passes(windows) as f64 / whole.max(1) as f64
    }

    /// Learns a block and changes its layers, whose scales are then given. `windows` stand before it; those of the float model,
    /// `float`, leave it.
    ///
    /// # Errors
    /// Losses that are not finite; those of the device and of `on_share`.
    pub fn learn(
        &self,
        block: &mut FloatBlock<B>,
        windows: &Windows<'_, B>,
        float: &mut [Window<B>],
        on_share: &mut OnShare<'_>,
    ) -> Result<LearnReport> {
        let ops = self.around.backend.learner();
        let (count, epochs) = self.amount(float.len());
        let total = self.passes(float.len()).max(1) as f64;
        let mut done = 0;
        let mut passed = |passes: usize| {
            done += passes;
            on_share(done as f64 / total)
        };
        let seen = self.pass(&ops, block, float, &mut || passed(1))?;
        let learner = self.block(&ops, block, self.schemes)?;
        let first = self.first(&ops, block, &seen)?;
        let states: Vec<_> = windows.states().zip(float.iter()).collect();
        let load = |window: usize| -> Result<Example<_>> {
            let (b, (input, target)) = (self.around.backend, states[window]);
            Ok(Example { input: b.to_array(input)?, target: b.to_array(&target.flow.residual)? })
        };
        let options = LearnOptions { epochs, ..LearnOptions::default() };
        let outcome = learn(&ops, &learner, first, (count, &load), seen.power, options, &mut passed)?;
        drop(learner);
        let Outcome { learned, loss_before, loss_after, epoch } = outcome;
        let name = format!("model.layers.{}", self.index);
        if !loss_before.is_finite() {
            return Err(QuantError::NotFinite {
                layer: name,
                reason: format!(
                    "its loss is {loss_before} before learning: the model's weights are damaged, or overflow on this text"
                ),
            });
        }
        self.absorb(&ops, block, &learned)?;
        Ok(LearnReport { block: name, loss_before, loss_after, epoch })
    }

    /// Takes windows of the float model through the block.
    ///
    /// # Errors
    /// Those of the device.
    pub fn follow(&self, block: &FloatBlock<B>, float: &mut [Window<B>]) -> Result<()> {
        self.pass(&self.around.backend.learner(), block, float, &mut || Ok(())).map(|_| ())
    }

    /// The same, looking at what there is on the way.
    fn pass(
        &self,
        ops: &B::Learner,
        block: &FloatBlock<B>,
        float: &mut [Window<B>],
        on_window: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Seen> {
        let b = self.around.backend;
        let exact = self.block(ops, block, Sites::default())?;
        let nothing = Learned { clips: Sites::default(), scales: None };
        let weights = exact.weights(ops, &nothing)?;
        let mut seen = Seen::default();
        for window in float {
            let trace = exact.forward(ops, &b.to_array(&window.flow.residual)?, &nothing, &weights)?;
            for site in Site::ALL {
                let largest = ops.largest_of_columns(trace.taken(site))?;
                let so_far = &mut seen.largest[site];
                so_far.resize(largest.len(), 0.0);
                so_far.iter_mut().zip(largest).for_each(|(most, x)| *most = most.max(x));
            }
            seen.power += ops.squared_distance(&trace.out, None)?;
            window.flow.residual = b.tensor_of(trace.out)?;
            on_window()?;
        }
        Ok(seen)
    }

    /// The weights of a layer.
    fn weights(&self, ops: &B::Learner, block: &FloatBlock<B>, site: Site) -> Result<Array<B>> {
        let layer = &block.layers[site];
        Ok(ops.array(layer.n, layer.k, &self.around.backend.read_weights(&layer.weights)?)?)
    }

    /// How a layer's weights are rounded.
    fn grid(&self, scheme: Scheme, k: usize) -> WeightGrid {
        WeightGrid { grid: scheme.grid(), group: scheme.group_size.unwrap_or(k), dtype: self.dtype }
    }

    /// The block with layers of these schemes, differentiable.
    fn block(
        &self,
        ops: &B::Learner,
        block: &FloatBlock<B>,
        schemes: Sites<Option<Scheme>>,
    ) -> Result<LearnedBlock<Array<B>>> {
        let Surroundings { backend, config, .. } = self.around;
        let graph =
            Block::without_layers(backend, config, self.index, block.norms.clone(), InputKind::Float)?;
        let (Mixer::Attention(attention), Mlp::Dense(mlp)) = (&graph.mixer, &graph.mlp);
        let norms = &block.norms;
        let norm = |weight: &Vec<f32>| {
            let weight: Vec<f32> = weight.iter().map(|w| w + norms.offset).collect();
            ops.array(1, weight.len(), &weight)
        };
        let pair = |pair: &Option<(Vec<f32>, Vec<f32>)>| {
            pair.as_ref().map(|(a, b)| Ok::<_, QuantError>((norm(a)?, norm(b)?))).transpose()
        };
        let layers = Sites::try_new(|site| {
            let layer = &block.layers[site];
            let bias = layer.bias.as_ref().map(|bias| ops.array(1, bias.len(), bias)).transpose()?;
            Ok::<_, QuantError>(Linear {
                weights: self.weights(ops, block, site)?,
                bias,
                grid: schemes[site].map(|scheme| self.grid(scheme, layer.k)),
                is_int8: schemes[site].is_some_and(|scheme| scheme.activations == Activations::Int8),
            })
        })?;
        let window = self.recipe.calibration.window;
        Ok(LearnedBlock {
            norms: Norms {
                input: norm(&norms.input)?,
                post: norm(&norms.post)?,
                qk: pair(&norms.qk)?,
                after: pair(&norms.after)?,
                eps: f64::from(config.rms_norm_eps),
            },
            layers,
            attention: attention.kind,
            rotary: attention.rope.map(|rope| rotary(ops, config, rope, window)).transpose()?,
            gate: mlp.gate,
            residual_scale: f64::from(graph.residual_scale),
        })
    }

    /// Where learning begins.
    fn first(&self, ops: &B::Learner, block: &FloatBlock<B>, seen: &Seen) -> Result<Learned<Array<B>>> {
        let clips = Sites::try_new(|site| {
            let layer = &block.layers[site];
            let strengths = self.schemes[site].map(|scheme| {
                let groups = layer.n * (layer.k / self.grid(scheme, layer.k).group);
                ops.array(2, groups, &vec![FIRST_STRENGTH; 2 * groups])
            });
            strengths.transpose()
        })?;
        if self.recipe.activations == Activations::Half {
            return Ok(Learned { clips, scales: None });
        }
        let heads = head_layout(self.around.config);
        let of_values = |channels: Vec<f32>| -> Vec<f32> {
            let each = heads.num_heads / heads.num_kv_heads.max(1);
            let (width, mut largest) = (heads.head_dim, vec![0.0f32; heads.kv_width()]);
            for (j, x) in channels.into_iter().enumerate() {
                let most = &mut largest[j / (each * width) * width + j % width];
                *most = most.max(x);
            }
            largest
        };
        let scales = |site: Site| -> Result<Array<B>> {
            let of_weights = ops.largest_of_columns(&self.weights(ops, block, site)?)?;
            let (mut x, mut w) = (seen.largest[site].clone(), of_weights);
            if site == Site::O {
                (x, w) = (of_values(x), of_values(w));
            }
            let mut scales = smoothquant::scales(&x, &w, MIGRATION);
            scales.iter_mut().for_each(|s| *s = s.max(LEAST_SCALE as f32));
            Ok(ops.array(1, scales.len(), &scales)?)
        };
        let scales =
            Scales { qkv: scales(Site::Qkv)?, values: scales(Site::O)?, gate_up: scales(Site::GateUp)? };
        Ok(Learned { clips, scales: Some(scales) })
    }

    /// Changes the block as it has learned.
    fn absorb(&self, ops: &B::Learner, block: &mut FloatBlock<B>, learned: &Learned<Array<B>>) -> Result<()> {
        let (b, heads) = (self.around.backend, head_layout(self.around.config));
        if let Some(Scales { qkv, values, gate_up }) = &learned.scales {
            transform::smooth_qkv(b, block, &ops.read(qkv)?, self.half)?;
            transform::smooth_o(b, block, &ops.read(&ops.repeat_heads(values, heads)?)?, heads)?;
            transform::smooth_gate_up(b, block, &ops.read(gate_up)?, self.half)?;
        }
        for site in Site::ALL {
            let Some((scheme, clip)) = self.schemes[site].zip(learned.clip(site)) else { continue };
            let weights = self.weights(ops, block, site)?;
            let layer = &mut block.layers[site];
            layer.scales = Some(ops.steps(&weights, clip, self.grid(scheme, layer.k))?);
        }
        Ok(())
    }
}

/// Cosines and sines of the positions of a window.
fn rotary<O: Learn>(ops: &O, config: &ModelConfig, index: usize, window: usize) -> Result<Rotary<O::Array>> {
    let parameters = rope::parameters(config, RopeChoice::new(config, window)).swap_remove(index);
    let half = parameters.inv_freq.len();
    // As backends do it: the angle is rounded to f32 first.
    let table = |of: fn(f64) -> f64| -> Vec<f32> {
        let angles = (0..window).flat_map(|p| parameters.inv_freq.iter().map(move |f| p as f32 * f));
        angles.map(|angle| of(f64::from(angle)) as f32 * parameters.factor).collect()
    };
    let queries =
        parameters.query_scale.map(|scale| -> Vec<f32> { (0..window).map(|p| scale.at(p)).collect() });
    Ok(Rotary {
        cos: ops.array(window, half, &table(f64::cos))?,
        sin: ops.array(window, half, &table(f64::sin))?,
        queries: queries.map(|queries| ops.array(window, 1, &queries)).transpose()?,
    })
}
