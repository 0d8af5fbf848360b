//! A run over the blocks of a model: each is transformed, calibrated, solved and written, layer by layer.
//!
//! What is large lives no longer than it is needed: a float layer from its stage until it is solved, a Hessian until its
//! layer is solved, codes until they are packed and written. [`memory_need`](crate::memory_need) counts on that.

mod head;
mod held_out;
mod layers;
mod learned;
mod replay;
mod simulated;
mod solving;
mod transformed;

use std::{sync::Arc, thread::Scope, time::Instant};

use qqq_backend::{Calibrate, InputKind};
use qqq_formats::{Checkpoint, QuantizedWeight};
use qqq_model::{
    Block, BlockNorms, Site,
    block::{Layer, head_layout},
    memory,
};

use self::layers::input_of;
pub(crate) use self::{
    head::{check as check_head, rows_at_a_time as head_rows},
    layers::{join, zeros},
};

use crate::{
    ActivationReport, BudgetReport, Propagation, QuantError, Recipe, Result, Schemes, ValueHessian,
    behind::{Ahead, Behind},
    estimate::{Estimate, Units},
    float_layers::FloatLayers,
    float_linear::{FloatLinear, StoredLayer, StoredLayers, module},
    float_stream::FloatStream,
    half_type::HalfType,
    held_out::HeldOut,
    moments::Sums,
    output::OutputCheckpoint,
    report::{LayerReport, LearnReport, SmoothReport, Timings},
    rotations::DeviceRotations,
    solve::ScaleDType,
    transform_choice::TransformReport,
    windows::{Surroundings, Window, Windows},
    work::Work,
};

/// State of a run over the blocks.
pub(crate) struct Run<'a, B: Calibrate> {
    pub checkpoint: &'a Checkpoint,
    pub recipe: &'a Recipe,
    /// What becomes of each layer.
    pub schemes: &'a Schemes,
    pub half: HalfType,
    pub scale_dtype: ScaleDType,
    pub around: Surroundings<'a, B>,
    pub rotations: Option<Arc<DeviceRotations<B>>>,
    /// The window of the smoothing search.
    pub smoothing_window: Option<Window<B>>,
    /// The calibration windows in the float model, where weights are corrected.
    pub float_stream: Option<FloatStream<'a, B>>,
    /// The same where blocks are learned.
    pub float_windows: Vec<Window<B>>,
    /// Windows that calibration does not see, until they are [compared](Run::measure).
    pub held_out: Option<HeldOut<'a, B>>,
    /// A block whose layers were read while the one before was calibrated, and what came of that.
    pub block_ahead: Option<(usize, Result<StoredLayers>)>,
    /// The same of its first layer alone, where layers are read one by one.
    pub first_ahead: Option<(usize, Result<StoredLayer>)>,
    /// What decided on the transform, where trials did.
    pub transform: Option<TransformReport>,
    /// What decided on the schemes, where there was a budget.
    pub budget: Option<BudgetReport>,
    pub estimate: Estimate,
    pub work: Work<'a>,
    pub layers: Vec<LayerReport>,
    pub smoothing: Vec<SmoothReport>,
    pub learning: Vec<LearnReport>,
    pub activations: Vec<ActivationReport>,
    /// Whether blocks take only some steps of learning, to see how long these are.
    pub is_trial: bool,
    /// What of the last block's learning was not done.
    pub left_out: Units,
    pub timings: Timings,
}

impl<'a, B: Calibrate> Run<'a, B> {
    /// Quantizes block `index` and writes it, and behind the last one the output head, where that is quantized.
    ///
    /// # Errors
    /// Those of [`quantize`](crate::quantize).
    pub fn block(
        &mut self,
        index: usize,
        windows: &mut Windows<'_, B>,
        writer: &mut OutputCheckpoint<'_>,
    ) -> Result<()> {
        self.held_out_float(index)?;
        self.layers_of_block(index, windows, writer)?;
        self.keep_reach(index);
        let is_last = index + 1 == self.around.config.num_layers;
        if is_last { self.quantize_head(windows, writer) } else { Ok(()) }
    }

    fn layers_of_block(
        &mut self,
        index: usize,
        windows: &mut Windows<'_, B>,
        writer: &mut OutputCheckpoint<'_>,
    ) -> Result<()> {
        let mut float = self.transformed_block(index, windows)?;
        writer.add_norms(index, &float.norms)?;
        if windows.is_empty() {
            return self.uncalibrated_block(index, &mut float, writer);
        }
        match self.recipe.propagation {
            Propagation::Float => self.float_block(index, float, windows, writer),
            Propagation::Quantized => std::thread::scope(|scope| {
                let mut behind = Behind::new(scope, writer);
                let done = self.quantized_block(scope, index, float, windows, &mut behind);
                let written = behind.wait();
                self.timings.write += behind.seconds;
                done.and(written)
            }),
        }
    }

    /// A block of these layers.
    ///
    /// # Errors
    /// Those of `layer` and of the backend.
    pub fn block_of(
        &self,
        index: usize,
        norms: BlockNorms,
        layer: impl Fn(Site) -> Result<Layer<B>>,
    ) -> Result<Block<B>> {
        let Surroundings { backend, config, .. } = self.around;
        let mut block = Block::without_layers(backend, config, index, norms, InputKind::Float)?;
        for site in Site::ALL {
            *block.layer_mut(site) = layer(site)?;
        }
        Ok(block)
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

    /// A layer of a block.
    fn take(
        &mut self,
        index: usize,
        float: &mut FloatLayers<'_, B>,
        site: Site,
        ahead: Option<Ahead<'_>>,
    ) -> Result<FloatLinear<B>> {
        let clock = Instant::now();
        self.begin(index, self.estimate.read.part(self.share(site)), "reading")?;
        let read = ahead.map(Ahead::wait).transpose()?;
        let layer = float.take(self.around.backend, site, read)?;
        self.timings.transform += clock.elapsed().as_secs_f64();
        Ok(layer)
    }

    /// Without calibration every input counts the same.
    fn uncalibrated_block(
        &mut self,
        index: usize,
        float: &mut FloatLayers<'_, B>,
        writer: &mut OutputCheckpoint<'_>,
    ) -> Result<()> {
        let mut held_out = self.held_out_block(index, &float.norms)?;
        for site in Site::ALL {
            let layer = self.take(index, float, site, None)?;
            let weight = match (self.recipe.simulated, self.schemes.at(index, site)) {
                (Some(method), _) => self.simulate(&method, (index, site), &layer, None, None)?,
                (None, Some(scheme)) => {
                    let weight = self.solve(index, module(site), scheme, &layer, 0..layer.n, None)?;
                    scheme.layer(weight, self.half.dtype())
                }
                (None, None) => self.keep_float(index, site, &layer)?,
            };
            self.write(index, site, &weight, layer.bias.as_deref(), writer)?;
            self.held_out_layer(index, &mut held_out, site, (weight, layer.bias))?;
        }
        Ok(())
    }

    /// One pass of the float block, then all layers.
    fn float_block(
        &mut self,
        index: usize,
        mut float: FloatLayers<'_, B>,
        windows: &mut Windows<'_, B>,
        writer: &mut OutputCheckpoint<'_>,
    ) -> Result<()> {
        let clock = Instant::now();
        let backend = self.around.backend;
        let live = self.block_of(index, float.norms.clone(), |site| float.layer(backend, index, site))?;
        self.timings.transform += clock.elapsed().as_secs_f64();

        let name = format!("model.layers.{index}");
        let attends = self.attends() && self.schemes.at(index, Site::Qkv).is_some();
        let sums = self.stage(index, self.estimate.float_pass, "calibrating", |wave| {
            windows.float_pass(&name, &live, attends, wave)
        })?;
        drop(live);
        let mut held_out = self.held_out_block(index, &float.norms)?;
        let mut attended = sums.attended;
        let mut sums = sums.sites.map(Some);
        for site in Site::ALL {
            let Some(sum) = sums[site].take() else { continue };
            let layer = self.take(index, &mut float, site, None)?;
            let Some(scheme) = self.schemes.at(index, site) else {
                let weight = match self.recipe.simulated {
                    Some(method) => {
                        let inputs = Sums::plain(sum).moments(self.around.backend)?;
                        self.simulate(&method, (index, site), &layer, Some(&inputs.hessian), None)?
                    }
                    None => self.keep_float(index, site, &layer)?,
                };
                self.write(index, site, &weight, layer.bias.as_deref(), writer)?;
                self.held_out_layer(index, &mut held_out, site, (weight, layer.bias))?;
                continue;
            };
            let inputs = Sums::plain(sum).moments(self.around.backend)?;
            let averages = |_: &mut Self, _: &QuantizedWeight| {
                attended
                    .take()
                    .map(Sums::plain)
                    .ok_or_else(|| QuantError::Recipe("a float pass has left no averages".into()))
            };
            let weight = self.solve_site(index, site, scheme, &layer, &inputs, averages)?;
            drop(inputs);
            let weight = scheme.layer(weight, self.half.dtype());
            self.write(index, site, &weight, layer.bias.as_deref(), writer)?;
            self.held_out_layer(index, &mut held_out, site, (weight, layer.bias))?;
        }
        Ok(())
    }

    /// Layer by layer, each calibrated on the quantized ones before it.
    fn quantized_block<'scope, 'env, 'w: 'env>(
        &mut self,
        scope: &'scope Scope<'scope, 'env>,
        index: usize,
        mut float: FloatLayers<'_, B>,
        windows: &mut Windows<'_, B>,
        writer: &mut Behind<'scope, 'env, 'w>,
    ) -> Result<()>
    where
        'a: 'env,
    {
        let checkpoint = self.checkpoint;
        let Surroundings { backend, config, .. } = self.around;
        let next_block = index + 1;
        let is_last = next_block == config.num_layers;
        // Whether anything comes that is calibrated.
        let goes_on = !is_last || self.schemes.head().is_some();
        // Where the host computes, reading would take cores and memory from that.
        let idle = !B::PIECES.on_host;
        let reads_ahead = idle && float.reads();
        let mut ahead = match self.first_ahead.take() {
            Some((block, layer)) if block == index => Some(Ahead::Read(layer)),
            _ => None,
        };
        let mut first_ahead = None;
        let block_ahead =
            (idle && !float.reads() && !is_last).then(|| Ahead::read_block(scope, checkpoint, next_block));
        let name = format!("model.layers.{index}");
        let units = self.estimate.stages;
        let all = self.schemes;
        let schemes = all.block(index);
        // Each layer is calibrated on such inputs as it will take.
        let kind = |site: Site| all.input_kind(index, site);
        let mut live = self.block_of(index, float.norms.clone(), |site| Ok(Layer::Awaited(kind(site))))?;
        let mut stream = self.float_stream.take();
        let mut beside = match &stream {
            Some(_) => {
                Some(Block::without_layers(backend, config, index, float.norms.clone(), InputKind::Float)?)
            }
            None => None,
        };
        let mut before = None;
        for site in Site::ALL {
            let is_solved = all.is_solved(index, site);
            let what = format!("calibrating {}", input_of(site));
            let gram = self.stage(index, units.site(site), &what, |wave| match is_solved {
                true => Ok(Some(windows.sum_input(&name, &live, site, wave)?)),
                false => windows.go_on(&name, &live, site, wave).map(|()| None),
            })?;
            let largest = self.largest_inputs(windows)?;
            self.held_out_advance(index, &live, site)?;
            let mut sums = gram.map(Sums::plain);
            let mut early = None;
            if let (Some(stream), Some(beside)) = (&mut stream, &mut beside) {
                // Through its last layer the float stream leaves the block as soon as it is there.
                if site == Site::Down && !is_last {
                    let layer = self.take(index, &mut float, site, ahead.take())?;
                    *beside.layer_mut(site) = layer.layer(backend, index, site)?;
                    early = Some(layer);
                }
                let what = format!("{what} beside the float model");
                let leaves = !is_last;
                self.stage(index, units.deviations(site), &what, |wave| match &mut sums {
                    Some(sums) => {
                        let deviations = stream.sum_deviations(&name, beside, site, windows, leaves, wave)?;
                        sums.deviations = Some(deviations);
                        Ok(())
                    }
                    None => stream.go_on(&name, beside, site, leaves, wave),
                })?;
                before.into_iter().chain(early.as_ref().map(|_| site)).for_each(|spent| {
                    *beside.layer_mut(spent) = Layer::Awaited(InputKind::Float);
                });
            }
            if let Some(spent) = before.replace(site) {
                *live.layer_mut(spent) = Layer::Awaited(kind(spent));
            }
            if is_last && site == Site::Down {
                if !goes_on {
                    windows.clear();
                }
                stream.iter_mut().for_each(FloatStream::clear);
            }
            let layer = match early {
                Some(layer) => layer,
                None => self.take(index, &mut float, site, ahead.take())?,
            };
            if let Some(beside) = &mut beside
                && site != Site::Down
            {
                *beside.layer_mut(site) = layer.layer(backend, index, site)?;
            }
            match site.next() {
                Some(next) if reads_ahead => ahead = Some(Ahead::read(scope, checkpoint, index, next)),
                None if reads_ahead && !is_last => {
                    first_ahead = Some(Ahead::read(scope, checkpoint, next_block, Site::Qkv));
                }
                _ => {}
            }
            let weight = match (schemes[site], sums, self.recipe.simulated) {
                (Some(scheme), Some(sums), _) => {
                    let inputs = sums.moments(backend)?;
                    let averages = |run: &mut Self, qk: &QuantizedWeight| {
                        // Attention needs some v to run; its output is not looked at.
                        let any = zeros(layer.n - run.queries_and_keys(), layer.k, scheme);
                        let joined = scheme.layer(join(qk, &any)?, run.half.dtype());
                        *live.layer_mut(site) = run.pack(index, joined, layer.bias.clone())?;
                        run.stage(index, units.attended, "calibrating v", |wave| {
                            match (&mut stream, &beside) {
                                (Some(stream), Some(beside)) => {
                                    stream.sum_attended(beside, windows, &live, wave)
                                }
                                _ => Ok(Sums::plain(windows.sum_attended(&live, wave)?)),
                            }
                        })
                    };
                    let weight = self.solve_site(index, site, scheme, &layer, &inputs, averages)?;
                    scheme.layer(weight, self.half.dtype())
                }
                (None, Some(sums), Some(method)) => {
                    let inputs = sums.moments(backend)?;
                    self.simulate(&method, (index, site), &layer, Some(&inputs.hessian), largest.as_deref())?
                }
                _ => self.keep_float(index, site, &layer)?,
            };
            let FloatLinear { bias, .. } = layer;
            self.begin(index, self.estimate.pack.part(self.share(site)), "writing")?;
            if B::PIECES.on_host {
                writer.write_now(index, site, &weight, bias.as_deref())?;
                *live.layer_mut(site) = self.pack(index, weight, bias)?;
            } else {
                // The device goes on with it while it is written.
                *live.layer_mut(site) = self.pack_kept(index, &weight, bias.as_deref())?;
                writer.write(index, site, weight, bias)?;
            }
        }
        self.held_out_leave(&live)?;
        if goes_on {
            self.stage(index, units.finish, "forward", |wave| windows.finish_block(&name, &live, wave))?;
        }
        self.float_stream = stream;
        self.block_ahead = block_ahead.map(|layers| (next_block, layers.wait()));
        self.first_ahead = first_ahead.map(|layer| (next_block, layer.wait()));
        Ok(())
    }

    /// Whether v has a Hessian of its own.
    pub fn attends(&self) -> bool {
        self.recipe.value_hessian == ValueHessian::Attention
    }

    /// Output channels of q and k.
    pub fn queries_and_keys(&self) -> usize {
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
        self.timings.calibrate += clock.elapsed().as_secs_f64();
        Ok(result)
    }

    /// The share of a block's weights that a layer has.
    fn share(&self, site: Site) -> f64 {
        let config = &self.checkpoint.config;
        let weights = |site: Site| (site.out_features(config) * site.in_features(config)) as f64;
        weights(site) / Site::ALL.map(weights).iter().sum::<f64>()
    }
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
