//! A run over the blocks of a model: each is transformed, calibrated, solved and written, layer by layer.
//!
//! What is large lives no longer than it is needed: a float layer from its stage until it is solved, a Hessian until its
//! layer is solved, codes until they are packed and written. [`memory_need`](crate::memory_need) counts on that.

use std::{sync::Arc, time::Instant};

use qqq_backend::{
    Backend, CpuBackend,
    cpu::{
        CpuLinear,
        matrix::{Matrix, free_kept},
        w4a8::W4A8Linear,
    },
};
use qqq_formats::{Checkpoint, LinearWeight, QuantizedWeight, WeightData};
use qqq_model::{Block, BlockNorms, BlockWeights, JoinedLinear, ModelError, memory, names};

use crate::{
    Propagation, QuantError, Recipe, Result, ValueHessian,
    attended::value_hessian,
    estimate::{Estimate, Units},
    float_block::{FloatBlock, FloatLinear, head_layout, module},
    float_layers::FloatLayers,
    half_type::HalfType,
    hessian::Hessian,
    nearest::round_scaled,
    output::OutputCheckpoint,
    report::{LayerReport, SmoothReport, Timings, modules},
    rotations::Rotations,
    smooth::SearchOptions,
    smooth_sites::SmoothContext,
    solve::{ScaleDType, SolveOptions, solve},
    stages::Stages,
    work::Work,
};

/// State of a run over the blocks.
pub(crate) struct Run<'a> {
    pub checkpoint: &'a Checkpoint,
    pub recipe: &'a Recipe,
    pub half: HalfType,
    pub scale_dtype: ScaleDType,
    pub backend: &'a CpuBackend,
    pub rope: &'a <CpuBackend as Backend>::Rope,
    pub rotations: Option<Arc<Rotations>>,
    /// Float states of the tokens for the smoothing search.
    pub smooth_hidden: Option<Matrix>,
    pub estimate: Estimate,
    pub work: Work<'a>,
    pub layers: Vec<LayerReport>,
    pub smoothing: Vec<SmoothReport>,
    pub timings: Timings,
}

/// Output channels of a layer with their input channels and weights, row-major.
#[derive(Clone, Copy)]
struct Rows<'w> {
    n: usize,
    k: usize,
    weight: &'w [f32],
}

impl<'w> Rows<'w> {
    fn of(linear: &'w FloatLinear) -> Self {
        Self { n: linear.n, k: linear.k, weight: &linear.weight }
    }

    /// The first `n` output channels and the others.
    fn split(self, n: usize) -> (Self, Self) {
        let (first, others) = self.weight.split_at(n * self.k);
        (Self { n, weight: first, ..self }, Self { n: self.n - n, weight: others, ..self })
    }
}

impl<'a> Run<'a> {
    /// Quantizes block `index` and writes it.
    ///
    /// # Errors
    /// Those of [`quantize`](crate::quantize).
    pub fn block(
        &mut self,
        index: usize,
        stages: &mut Stages<'_>,
        writer: &mut OutputCheckpoint<'_>,
    ) -> Result<()> {
        let mut float = self.transformed_block(index)?;
        writer.add_norms(index, &float.norms)?;
        if stages.sequences.is_empty() {
            return self.uncalibrated_block(index, &mut float, writer);
        }
        match self.recipe.propagation {
            Propagation::Float => self.float_block(index, float, stages, writer),
            Propagation::Quantized => self.quantized_block(index, float, stages, writer),
        }
    }

    fn label(&self, index: usize, what: &str) -> String {
        format!("block {}/{}: {what}", index + 1, self.checkpoint.config.num_layers)
    }

    /// The last stage is done; begins one of `units`.
    fn begin(&mut self, index: usize, units: Units, what: &str) -> Result<()> {
        let label = self.label(index, what);
        log_memory(&label);
        self.work.begin(units, label)
    }

    /// A block with the recipe's transformation.
    fn transformed_block(&mut self, index: usize) -> Result<FloatLayers<'a>> {
        let clock = Instant::now();
        let label = self.label(index, "smoothing");
        let layers = match &mut self.smooth_hidden {
            None => FloatLayers::stored(self.checkpoint, index, self.half, self.rotations.clone())?,
            Some(hidden) => {
                let mut block = FloatBlock::read(self.checkpoint, index)?;
                let context = SmoothContext {
                    backend: self.backend,
                    config: &self.checkpoint.config,
                    rope: self.rope,
                    group_size: self.recipe.group_size,
                    half: self.half,
                    options: SearchOptions::default(),
                };
                let (work, units) = (&mut self.work, self.estimate.smooth_site);
                let mut on_site = || {
                    log_memory(&label);
                    work.begin(units, label.as_str())
                };
                self.smoothing.extend(context.smooth_block(index, &mut block, hidden, &mut on_site)?);
                FloatLayers::held(block, self.half)
            }
        };
        self.timings.transform += clock.elapsed().as_secs_f64();
        Ok(layers)
    }

    /// A layer of a block.
    fn take(
        &mut self,
        index: usize,
        float: &mut FloatLayers<'_>,
        linear: JoinedLinear,
    ) -> Result<FloatLinear> {
        let clock = Instant::now();
        self.begin(index, self.estimate.read.part(self.share(linear)), "reading")?;
        let layer = float.take(linear)?;
        self.timings.transform += clock.elapsed().as_secs_f64();
        Ok(layer)
    }

    /// Without calibration every input counts the same.
    fn uncalibrated_block(
        &mut self,
        index: usize,
        float: &mut FloatLayers<'_>,
        writer: &mut OutputCheckpoint<'_>,
    ) -> Result<()> {
        for linear in JoinedLinear::ALL {
            let layer = self.take(index, float, linear)?;
            let mut identity = vec![0.0; layer.k * layer.k];
            identity.iter_mut().step_by(layer.k + 1).for_each(|d| *d = 1.0);
            let weight = self.solve(index, module(linear), Rows::of(&layer), &identity)?;
            drop(identity);
            self.write(index, linear, &weight, layer.bias.as_deref(), writer)?;
        }
        Ok(())
    }

    /// One pass of the float block, then all layers.
    fn float_block(
        &mut self,
        index: usize,
        mut float: FloatLayers<'_>,
        stages: &mut Stages<'_>,
        writer: &mut OutputCheckpoint<'_>,
    ) -> Result<()> {
        let clock = Instant::now();
        let mut layer = |linear: JoinedLinear| -> Result<(LinearWeight, Option<Vec<f32>>)> {
            let FloatLinear { n, k, weight, bias } = float.take(linear)?;
            let data = WeightData::F32(weight);
            Ok((LinearWeight::Float { out_features: n, in_features: k, data }, bias))
        };
        let [qkv, o, gate_up, down] = JoinedLinear::ALL.map(&mut layer);
        let norms = float.norms.clone();
        let live = self.live_block(index, norms, [qkv?, o?, gate_up?, down?])?;
        self.timings.transform += clock.elapsed().as_secs_f64();

        let config = &self.checkpoint.config;
        let width = |linear: JoinedLinear| linear.in_features(config);
        let averages = if self.attends() { width(JoinedLinear::Qkv) } else { 0 };
        let [qkv, o, gate_up, down] = JoinedLinear::ALL.map(width);
        let name = format!("model.layers.{index}");
        let h = self.stage(index, self.estimate.float_pass, "calibrating", |wave| {
            stages.float_block(&name, &live, [qkv, averages, o, gate_up, down], wave)
        })?;
        let Block { qkv, o, gate_up, down, .. } = live;
        let inputs = h.qkv.finish();
        let (layer, bias) = float_rows(&qkv)?;
        let weight = match self.attends() {
            true => {
                let (qk, v) = layer.split(self.queries_and_keys());
                let qk = self.solve(index, modules::QK, qk, &inputs)?;
                let v = self.solve(index, modules::V, v, &value_hessian(h.attended, &inputs))?;
                join(&qk, &v)?
            }
            false => self.solve(index, modules::QKV, layer, &inputs)?,
        };
        drop(inputs);
        self.write(index, JoinedLinear::Qkv, &weight, bias, writer)?;
        drop(qkv);
        for (linear, layer, h) in [
            (JoinedLinear::O, o, h.o),
            (JoinedLinear::GateUp, gate_up, h.gate_up),
            (JoinedLinear::Down, down, h.down),
        ] {
            let (layer, bias) = float_rows(&layer)?;
            let weight = self.solve(index, module(linear), layer, &h.finish())?;
            self.write(index, linear, &weight, bias, writer)?;
        }
        Ok(())
    }

    /// Layer by layer, each calibrated on the quantized ones before it.
    fn quantized_block(
        &mut self,
        index: usize,
        mut float: FloatLayers<'_>,
        stages: &mut Stages<'_>,
        writer: &mut OutputCheckpoint<'_>,
    ) -> Result<()> {
        let config = &self.checkpoint.config;
        let name = format!("model.layers.{index}");
        let units = self.estimate.stages;
        let width = |linear: JoinedLinear| linear.in_features(config);
        let mut live = self.unsolved_block(index, float.norms.clone())?;

        let linear = JoinedLinear::Qkv;
        let h = self.stage(index, units.qkv, "calibrating qkv", |wave| {
            stages.qkv_input(&live, width(linear), wave)
        })?;
        let layer = self.take(index, &mut float, linear)?;
        let h = h.finish();
        let qkv = match self.attends() {
            true => {
                let (qk, v) = Rows::of(&layer).split(self.queries_and_keys());
                let solved = self.solve(index, modules::QK, qk, &h)?;
                // Attention needs some v to run; its output is not looked at.
                let any = round_scaled(v.weight, &vec![1.0; v.k], self.recipe.group_size);
                live.qkv = self.pack(index, &join(&solved, &any)?, layer.bias.as_deref())?;
                let averages = self.stage(index, units.attended, "calibrating v", |wave| {
                    stages.attended_input(&live, v.k, wave)
                })?;
                let v = self.solve(index, modules::V, v, &value_hessian(averages, &h))?;
                join(&solved, &v)?
            }
            false => self.solve(index, modules::QKV, Rows::of(&layer), &h)?,
        };
        drop(h);
        live.qkv = self.pack(index, &qkv, layer.bias.as_deref())?;
        self.write(index, linear, &qkv, layer.bias.as_deref(), writer)?;
        drop((layer, qkv));

        let linear = JoinedLinear::O;
        let h =
            self.stage(index, units.o, "calibrating o", |wave| stages.o_input(&live, width(linear), wave))?;
        live.qkv = self.nothing()?;
        live.o = self.solved(index, linear, &mut float, h, writer)?;

        let linear = JoinedLinear::GateUp;
        let h = self.stage(index, units.gate_up, "calibrating gate and up", |wave| {
            stages.gate_up_input(&name, &live, width(linear), wave)
        })?;
        live.o = self.nothing()?;
        live.gate_up = self.solved(index, linear, &mut float, h, writer)?;

        let linear = JoinedLinear::Down;
        let h = self.stage(index, units.down, "calibrating down", |wave| {
            stages.down_input(&live, width(linear), wave)
        })?;
        live.gate_up = self.nothing()?;
        if index + 1 == config.num_layers {
            // Nothing comes after it.
            stages.sequences.clear();
        }
        live.down = self.solved(index, linear, &mut float, h, writer)?;
        if index + 1 < config.num_layers {
            self.stage(index, units.finish, "forward", |wave| stages.finish_block(&name, &live, wave))?;
        }
        Ok(())
    }

    /// Solves a layer, writes it, and makes what stands for it in the forward passes.
    fn solved(
        &mut self,
        index: usize,
        linear: JoinedLinear,
        float: &mut FloatLayers<'_>,
        hessian: Hessian,
        writer: &mut OutputCheckpoint<'_>,
    ) -> Result<CpuLinear> {
        let layer = self.take(index, float, linear)?;
        let weight = self.solve(index, module(linear), Rows::of(&layer), &hessian.finish())?;
        let FloatLinear { bias, .. } = layer;
        self.write(index, linear, &weight, bias.as_deref(), writer)?;
        self.pack(index, &weight, bias.as_deref())
    }

    /// A block in which every layer is still to be put in its place: until then it has a single output, which no operation
    /// of a block takes for its own.
    fn unsolved_block(&self, index: usize, norms: BlockNorms) -> Result<Block<CpuBackend>> {
        let config = &self.checkpoint.config;
        let layers = JoinedLinear::ALL.map(|linear| {
            let k = linear.in_features(config);
            let data = WeightData::F32(vec![0.0; k]);
            (LinearWeight::Float { out_features: 1, in_features: k, data }, None)
        });
        self.live_block(index, norms, layers)
    }

    /// What such a place holds, for one whose layer will not run again.
    fn nothing(&self) -> Result<CpuLinear> {
        let data = WeightData::F32(vec![0.0]);
        let weight = LinearWeight::Float { out_features: 1, in_features: 1, data };
        Ok(self
            .backend
            .linear_weight(weight, None)
            .map_err(|source| ModelError::Backend { name: "a spent layer".into(), source })?)
    }

    fn live_block(
        &self,
        index: usize,
        norms: BlockNorms,
        layers: [(LinearWeight, Option<Vec<f32>>); 4],
    ) -> Result<Block<CpuBackend>> {
        let BlockNorms { input, post, qk } = norms;
        let [qkv, o, gate_up, down] = layers;
        let weights = BlockWeights { input_norm: input, post_norm: post, qk_norm: qk, qkv, o, gate_up, down };
        Ok(Block::new(self.backend, &self.checkpoint.config, index, weights)?)
    }

    /// Whether v has a Hessian of its own.
    fn attends(&self) -> bool {
        self.recipe.value_hessian == ValueHessian::Attention
    }

    /// Output channels of q and k.
    fn queries_and_keys(&self) -> usize {
        let heads = head_layout(&self.checkpoint.config);
        heads.q_width() + heads.kv_width()
    }

    /// Runs a calibration stage with its progress.
    fn stage<T>(
        &mut self,
        index: usize,
        units: Units,
        what: &str,
        run: impl FnOnce(&mut dyn FnMut(f64) -> Result<()>) -> Result<T>,
    ) -> Result<T> {
        let clock = Instant::now();
        self.begin(index, units, what)?;
        let result = run(&mut |share| self.work.at(share))?;
        // What comes next is not a forward pass.
        free_kept();
        self.timings.calibrate += clock.elapsed().as_secs_f64();
        Ok(result)
    }

    /// Solves a layer, or several that share their input, for a Hessian (`k x k`).
    fn solve(
        &mut self,
        index: usize,
        module: &str,
        layer: Rows<'_>,
        hessian: &[f32],
    ) -> Result<QuantizedWeight> {
        let clock = Instant::now();
        let Rows { n, k, weight } = layer;
        self.begin(index, self.estimate.solve(n, k), &format!("solving {module}"))?;
        let name = names::linear(index, module);
        let options = SolveOptions {
            group_size: self.recipe.group_size,
            group_scales: self.recipe.group_scales,
            compensate: self.recipe.compensate,
            clip: self.recipe.clip,
            act_order: self.recipe.act_order,
            damping: self.recipe.damping,
            scale_dtype: self.scale_dtype,
        };
        let solved = solve(&name, weight, n, k, hessian, &options)?;
        if solved.damping > self.recipe.damping * 1.000_001 {
            self.work.warn(format!(
                "{name}: the Hessian is not positive definite at damping {}; {} was used",
                self.recipe.damping, solved.damping
            ));
        }
        let scales = solved.weight.channel_scales();
        self.layers.push(LayerReport {
            name,
            out_features: n,
            in_features: k,
            loss_nearest: solved.loss_nearest,
            loss: solved.loss,
            damping: solved.damping,
            dead_channels: solved.dead_channels,
            scale_range: scales
                .iter()
                .fold((f32::INFINITY, 0.0), |(low, high), &s| (low.min(s), high.max(s))),
        });
        self.timings.solve += clock.elapsed().as_secs_f64();
        Ok(solved.weight)
    }

    /// The share of a block's weights that a layer has.
    fn share(&self, linear: JoinedLinear) -> f64 {
        let config = &self.checkpoint.config;
        let weights =
            |linear: JoinedLinear| (linear.out_features(config) * linear.in_features(config)) as f64;
        weights(linear) / JoinedLinear::ALL.map(weights).iter().sum::<f64>()
    }

    fn write(
        &mut self,
        index: usize,
        linear: JoinedLinear,
        weight: &QuantizedWeight,
        bias: Option<&[f32]>,
        writer: &mut OutputCheckpoint<'_>,
    ) -> Result<()> {
        self.begin(index, self.estimate.pack.part(self.share(linear)), "writing")?;
        let clock = Instant::now();
        writer.add_linear(index, linear, weight, bias)?;
        self.timings.write += clock.elapsed().as_secs_f64();
        Ok(())
    }

    fn pack(&self, index: usize, weight: &QuantizedWeight, bias: Option<&[f32]>) -> Result<CpuLinear> {
        let packed = W4A8Linear::new(weight).map_err(|source| {
            QuantError::from(ModelError::Backend { name: format!("model.layers.{index}"), source })
        })?;
        Ok(CpuLinear::W4A8(packed, bias.map(<[f32]>::to_vec)))
    }
}

/// Weights and bias of a float layer.
fn float_rows(linear: &CpuLinear) -> Result<(Rows<'_>, Option<&[f32]>)> {
    if let CpuLinear::Float(layer) = linear
        && let WeightData::F32(weight) = layer.data()
    {
        return Ok((Rows { n: layer.out_features(), k: layer.in_features(), weight }, layer.bias()));
    }
    Err(QuantError::Recipe("a layer of a float block is not float".into()))
}

/// Stacks two layers.
fn join(first: &QuantizedWeight, second: &QuantizedWeight) -> Result<QuantizedWeight> {
    QuantizedWeight::concat(&[first, second])
        .ok_or_else(|| QuantError::Recipe("parts of a layer were quantized in different ways".into()))
}

/// Tells the log what memory is used as something begins.
pub(crate) fn log_memory(next: &str) {
    if tracing::enabled!(tracing::Level::DEBUG)
        && let Some(used) = memory::used()
    {
        tracing::debug!(
            resident_mb = used.resident / 1_000_000,
            peak_mb = used.peak / 1_000_000,
            next,
            "memory"
        );
    }
}
