//! Quantizing a checkpoint, block by block.

use std::time::Instant;

use qqq_backend::{
    Backend, CpuBackend,
    cpu::{CpuLinear, matrix::Matrix},
};
use qqq_formats::{Checkpoint, CheckpointFormat, LinearWeight, QuantizedWeight, writer::Reservation};
use qqq_model::{Block, Decoder, ModelError, Tokenizer, names, rope};

use crate::{
    OutputFormat, Propagation, QuantError, Recipe, Report, Result, Transform, ValueHessian,
    attended::value_hessian,
    calibration::{self, CalibrationText, Read, Source},
    float_block::{FloatBlock, FloatLinear, head_layout},
    half_type::HalfType,
    hessian::Hessian,
    nearest::round_scaled,
    output::{OutputCheckpoint, QuantizedBlock, weight_bytes},
    preflight,
    report::{LayerReport, RotationReport, SmoothReport, Timings, modules},
    rotation::{Family, Rotation},
    self_samples,
    smooth::SearchOptions,
    smooth_sites::SmoothContext,
    solve::{ScaleDType, SolveOptions, solve},
    stages::Stages,
    transform,
    work::{Estimate, Work},
};

/// Told what happens; returning `false` from [`Progress::step`] interrupts.
pub trait Progress {
    /// `done` of `total` units of work are done (units are rough seconds); `next` is what is being worked on.
    fn step(&mut self, done: f64, total: f64, next: &str) -> bool;
    /// A warning.
    fn warn(&mut self, message: &str);
    /// Something to know that is no reason to worry.
    fn note(&mut self, _message: &str) {}
}

/// Where the result goes.
#[derive(Clone, Debug)]
pub struct Output<'a> {
    /// Directory to be made, reserved before the model was looked for.
    pub reservation: &'a Reservation,
    /// Form.
    pub format: OutputFormat,
    /// How the user named the model (for model card and report).
    pub model_name: &'a str,
}

/// Quantizes `checkpoint` and writes the result, one block at a time.
///
/// Besides the block, the hidden states of all calibration tokens are held in memory (f32). The result depends on the
/// recipe's seed, not on the number of threads. Nothing appears under the output's name unless all is well.
///
/// # Errors
/// Recipes that do not fit the model (before any work), calibration text that is too short,
/// damaged weights, numerical failures, a full disk, and [`QuantError::Interrupted`].
pub fn quantize<'a>(
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
    recipe: &Recipe,
    calibration: impl Into<CalibrationText<'a>>,
    output: &Output<'_>,
    progress: &mut dyn Progress,
) -> Result<Report> {
    let started = Instant::now();
    let calibration = calibration.into();
    let plan = preflight::check(checkpoint, recipe, output.format)?;
    let mut writer =
        OutputCheckpoint::create(checkpoint, tokenizer, output.reservation, plan.format, plan.half)?;

    let config = &checkpoint.config;
    preflight::check_space(config, recipe, writer.staging())?;
    let samples = *calibration.source == Source::SelfSamples;
    let estimate = Estimate::new(config, recipe, samples);
    let mut work = Work::new(progress, &estimate, config.num_layers);
    work.begin(
        estimate.prepare,
        if samples { "sampling calibration text" } else { "reading calibration text" },
    )?;
    let windows = if plan.calibrates {
        calibration_windows(checkpoint, tokenizer, recipe, calibration, &mut work)?
    } else {
        Vec::new()
    };
    work.at(1.0)?;

    let mut timings = Timings { calibrate: started.elapsed().as_secs_f64(), ..Timings::default() };
    let clock = Instant::now();
    let rotations = Rotations::new(checkpoint, recipe)?;
    for note in rotations.iter().flat_map(Rotations::notes) {
        work.warn(note);
    }
    let embedding = writer.add_ends(rotations.as_ref().map(|r| &r.stream))?;
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    let embed = |ids: &[u32]| embed(ids, &embedding, vocab, hidden, plan.half);
    let smooth_hidden = match recipe.transform {
        Transform::Smooth => {
            windows.first().map(|w| embed(&w[..recipe.calibration.smooth_tokens])).transpose()?
        }
        _ => None,
    };
    let embedded = windows.iter().map(|w| embed(w)).collect::<Result<Vec<_>>>()?;
    drop(embedding);
    timings.transform += clock.elapsed().as_secs_f64();

    let backend = CpuBackend::default();
    let positions = recipe.calibration.window.max(1);
    let rope = rope::embedding(&backend, config, positions);
    let mut run = Run {
        checkpoint,
        recipe,
        half: plan.half,
        scale_dtype: scale_dtype(plan.format, plan.half),
        backend: &backend,
        rope: &rope,
        rotations,
        smooth_hidden,
        estimate,
        work,
        layers: Vec::new(),
        smoothing: Vec::new(),
        timings,
        bytes: (0, 0),
    };
    let mut stages = Stages::new(&backend, &rope, embedded);
    for index in 0..config.num_layers {
        let float = run.transformed_block(index)?;
        let quantized = run.quantized_block(index, &float, &mut stages)?;
        run.work.begin(run.estimate.pack, format!("block {}/{}: writing", index + 1, config.num_layers))?;
        let clock = Instant::now();
        writer.add_block(index, &float, &quantized)?;
        run.timings.write += clock.elapsed().as_secs_f64();
        run.count_bytes(index, &quantized);
    }

    // What was guessed of the tokenizer is in the files that are written; it was told when it was loaded.
    let warnings = tokenizer.notes().iter().cloned().chain(run.work.finish()).collect();
    run.timings.total = started.elapsed().as_secs_f64();
    let report = Report {
        version: env!("CARGO_PKG_VERSION").into(),
        model: output.model_name.into(),
        format: plan.format.name().into(),
        recipe: recipe.clone(),
        calibration_data: if plan.calibrates { calibration.source.describe() } else { "none".into() },
        calibration_tokens: windows.iter().map(Vec::len).sum(),
        layers: run.layers,
        smoothing: run.smoothing,
        rotation: run.rotations.as_ref().map(Rotations::report),
        warnings,
        timings: run.timings,
        linear_bytes: run.bytes,
    };
    checkpoint.inputs.check()?;
    writer.finish(&report)?;
    Ok(report)
}

/// Precision of scales in a format.
fn scale_dtype(format: CheckpointFormat, half: HalfType) -> ScaleDType {
    match (format, half) {
        (CheckpointFormat::Qqq, _) => ScaleDType::F32,
        (CheckpointFormat::CompressedTensors, HalfType::F16) => ScaleDType::F16,
        (CheckpointFormat::CompressedTensors, HalfType::BF16) => ScaleDType::BF16,
    }
}

fn calibration_windows(
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
    recipe: &Recipe,
    text: CalibrationText<'_>,
    work: &mut Work<'_>,
) -> Result<Vec<Vec<u32>>> {
    let calibration = &recipe.calibration;
    match text.source {
        Source::Files(files) | Source::Dataset { files, .. } => {
            let options = text.options.cloned().unwrap_or_default();
            let read =
                Read { checkpoint, tokenizer, options: &options, note: &mut |message| work.note(message) };
            calibration::windows_of_files(files, read, calibration, recipe.seed)
        }
        Source::SelfSamples => {
            // The time that it takes is not among the units; Ctrl-C works all the same.
            let decoder =
                Decoder::load_with(CpuBackend::default(), checkpoint, &mut |_, _| work.at(0.0).is_ok());
            let decoder = decoder.map_err(|e| match e {
                ModelError::Interrupted => QuantError::Interrupted,
                e => e.into(),
            })?;
            let total = (calibration.windows * calibration.window) as f64;
            let mut done = 0.0;
            self_samples::sample_windows(&decoder, tokenizer, calibration, recipe.seed, &mut || {
                done += 1.0;
                work.at(done / total)
            })
        }
    }
}

/// Rows of the stored embedding.
fn embed(ids: &[u32], embedding: &[u8], vocab: usize, hidden: usize, half: HalfType) -> Result<Matrix> {
    let mut data = Vec::with_capacity(ids.len() * hidden);
    for &id in ids {
        let id = id as usize;
        if id >= vocab {
            return Err(ModelError::Tokenizer(format!(
                "token {id} of the calibration text is outside the model's vocabulary of {vocab}"
            ))
            .into());
        }
        data.extend(half.widen(&embedding[id * hidden * 2..(id + 1) * hidden * 2]));
    }
    Ok(Matrix { rows: ids.len(), cols: hidden, data })
}

/// Stacks two layers.
fn join(first: &QuantizedWeight, second: &QuantizedWeight) -> Result<QuantizedWeight> {
    QuantizedWeight::concat(&[first, second])
        .ok_or_else(|| QuantError::Recipe("parts of a layer were quantized in different ways".into()))
}

struct Rotations {
    stream: Rotation,
    head: Rotation,
}

impl Rotations {
    fn new(checkpoint: &Checkpoint, recipe: &Recipe) -> Result<Option<Self>> {
        if recipe.transform != Transform::Rotate {
            return Ok(None);
        }
        let config = &checkpoint.config;
        let stream = Rotation::new(recipe.rotation, config.hidden_size, recipe.seed)?;
        Ok(Some(Self { stream, head: Rotation::head(config.head_dim) }))
    }

    fn report(&self) -> RotationReport {
        RotationReport {
            stream: self.stream.family,
            hidden_size: self.stream.width,
            head: self.head.family,
            head_dim: self.head.width,
        }
    }

    /// What the user should know about the matrices.
    fn notes(&self) -> Vec<String> {
        let parts = [("the residual stream", &self.stream), ("heads", &self.head)];
        parts
            .into_iter()
            .filter(|(_, rotation)| rotation.family == Family::Hartley)
            .map(|(what, rotation)| {
                format!(
                    "no Hadamard matrix of width {} can be built; a Hartley matrix, which is nearly as flat, rotates {what}",
                    rotation.width
                )
            })
            .collect()
    }
}

/// State of a run over the blocks.
struct Run<'a> {
    checkpoint: &'a Checkpoint,
    recipe: &'a Recipe,
    half: HalfType,
    scale_dtype: ScaleDType,
    backend: &'a CpuBackend,
    rope: &'a <CpuBackend as Backend>::Rope,
    rotations: Option<Rotations>,
    /// Float states of the tokens for the smoothing search.
    smooth_hidden: Option<Matrix>,
    estimate: Estimate,
    work: Work<'a>,
    layers: Vec<LayerReport>,
    smoothing: Vec<SmoothReport>,
    timings: Timings,
    bytes: (u64, u64),
}

impl Run<'_> {
    fn label(&self, index: usize, what: &str) -> String {
        format!("block {}/{}: {what}", index + 1, self.checkpoint.config.num_layers)
    }

    /// Reads a block and applies the recipe's transformation.
    fn transformed_block(&mut self, index: usize) -> Result<FloatBlock> {
        let clock = Instant::now();
        let config = &self.checkpoint.config;
        let mut block = FloatBlock::read(self.checkpoint, index)?;
        if let Some(rotations) = &self.rotations {
            transform::fold_norms(&mut block);
            transform::rotate(&mut block, &rotations.stream, &rotations.head, head_layout(config));
        }
        let label = self.label(index, "smoothing");
        if let Some(hidden) = &mut self.smooth_hidden {
            let context = SmoothContext {
                backend: self.backend,
                config,
                rope: self.rope,
                group_size: self.recipe.group_size,
                half: self.half,
                options: SearchOptions::default(),
            };
            let (work, units) = (&mut self.work, self.estimate.smooth_site);
            let mut on_site = || work.begin(units, label.as_str());
            self.smoothing.extend(context.smooth_block(index, &mut block, hidden, &mut on_site)?);
        }
        transform::round_kept(&mut block, self.half);
        self.timings.transform += clock.elapsed().as_secs_f64();
        Ok(block)
    }

    /// Calibrates and solves the layers of a block.
    fn quantized_block(
        &mut self,
        index: usize,
        float: &FloatBlock,
        stages: &mut Stages<'_>,
    ) -> Result<QuantizedBlock> {
        if stages.sequences.is_empty() {
            let identity = |k: usize| {
                let mut h = Hessian::new(k);
                h.tokens = 2;
                h.sum.iter_mut().step_by(k + 1).for_each(|d| *d = 1.0);
                h
            };
            return Ok(QuantizedBlock {
                qkv: self.solve(index, modules::QKV, &float.qkv, &identity(float.qkv.k).finish())?,
                o: self.solve(index, modules::O, &float.o, &identity(float.o.k).finish())?,
                gate_up: self.solve(
                    index,
                    modules::GATE_UP,
                    &float.gate_up,
                    &identity(float.gate_up.k).finish(),
                )?,
                down: self.solve(index, modules::DOWN, &float.down, &identity(float.down.k).finish())?,
            });
        }
        let name = format!("model.layers.{index}");
        let mut live = Block::new(self.backend, &self.checkpoint.config, index, float.to_weights())?;
        if self.recipe.propagation == Propagation::Float {
            let averages = if self.attends() { float.qkv.k } else { 0 };
            let widths = [float.qkv.k, averages, float.o.k, float.gate_up.k, float.down.k];
            let pass = self.estimate.float_pass;
            let h = self
                .stage(index, pass, "calibrating", |wave| stages.float_block(&name, &live, widths, wave))?;
            let qkv = match self.attends() {
                true => {
                    let (qk, v) = self.split(&float.qkv);
                    let qk = self.solve(index, modules::QK, &qk, &h.qkv.finish())?;
                    let v = self.solve(index, modules::V, &v, &value_hessian(&h.attended, &h.qkv))?;
                    join(&qk, &v)?
                }
                false => self.solve(index, modules::QKV, &float.qkv, &h.qkv.finish())?,
            };
            return Ok(QuantizedBlock {
                qkv,
                o: self.solve(index, modules::O, &float.o, &h.o.finish())?,
                gate_up: self.solve(index, modules::GATE_UP, &float.gate_up, &h.gate_up.finish())?,
                down: self.solve(index, modules::DOWN, &float.down, &h.down.finish())?,
            });
        }
        let units = self.estimate.stages;
        let h = self
            .stage(index, units.qkv, "calibrating qkv", |wave| stages.qkv_input(&live, float.qkv.k, wave))?;
        let qkv = match self.attends() {
            true => {
                let (qk, v) = self.split(&float.qkv);
                let solved = self.solve(index, modules::QK, &qk, &h.finish())?;
                // Attention needs some v to run; its output is not looked at.
                let any = round_scaled(&v, &vec![1.0; v.k], self.recipe.group_size);
                live.qkv = self.pack(index, &join(&solved, &any)?, &float.qkv)?;
                let averages = self.stage(index, units.attended, "calibrating v", |wave| {
                    stages.attended_input(&live, float.qkv.k, wave)
                })?;
                let v = self.solve(index, modules::V, &v, &value_hessian(&averages, &h))?;
                join(&solved, &v)?
            }
            false => self.solve(index, modules::QKV, &float.qkv, &h.finish())?,
        };
        drop(h);
        live.qkv = self.pack(index, &qkv, &float.qkv)?;

        let h = self.stage(index, units.o, "calibrating o", |wave| stages.o_input(&live, float.o.k, wave))?;
        let o = self.solve(index, modules::O, &float.o, &h.finish())?;
        live.o = self.pack(index, &o, &float.o)?;

        let h = self.stage(index, units.gate_up, "calibrating gate and up", |wave| {
            stages.gate_up_input(&name, &live, float.gate_up.k, wave)
        })?;
        let gate_up = self.solve(index, modules::GATE_UP, &float.gate_up, &h.finish())?;
        live.gate_up = self.pack(index, &gate_up, &float.gate_up)?;

        let h = self.stage(index, units.down, "calibrating down", |wave| {
            stages.down_input(&live, float.down.k, wave)
        })?;
        let down = self.solve(index, modules::DOWN, &float.down, &h.finish())?;
        if index + 1 < self.checkpoint.config.num_layers {
            live.down = self.pack(index, &down, &float.down)?;
            self.stage(index, units.finish, "forward", |wave| stages.finish_block(&name, &live, wave))?;
        }
        Ok(QuantizedBlock { qkv, o, gate_up, down })
    }

    /// Whether v has a Hessian of its own.
    fn attends(&self) -> bool {
        self.recipe.value_hessian == ValueHessian::Attention
    }

    /// q and k, and v.
    fn split(&self, qkv: &FloatLinear) -> (FloatLinear, FloatLinear) {
        let v = qkv.n - head_layout(&self.checkpoint.config).kv_width();
        (qkv.outputs(0..v), qkv.outputs(v..qkv.n))
    }

    /// Runs a calibration stage with its progress.
    fn stage<T>(
        &mut self,
        index: usize,
        units: f64,
        what: &str,
        run: impl FnOnce(&mut dyn FnMut(f64) -> Result<()>) -> Result<T>,
    ) -> Result<T> {
        let clock = Instant::now();
        let label = self.label(index, what);
        self.work.begin(units, label)?;
        let result = run(&mut |share| self.work.at(share))?;
        self.timings.calibrate += clock.elapsed().as_secs_f64();
        Ok(result)
    }

    /// Solves a layer, or several that share their input, for a Hessian (`k x k`).
    fn solve(
        &mut self,
        index: usize,
        module: &str,
        linear: &FloatLinear,
        hessian: &[f32],
    ) -> Result<QuantizedWeight> {
        let clock = Instant::now();
        let label = self.label(index, &format!("solving {module}"));
        self.work.begin(self.estimate.solve(linear.n, linear.k), label)?;
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
        let solved = solve(&name, &linear.weight, linear.n, linear.k, hessian, &options)?;
        if solved.damping > self.recipe.damping * 1.000_001 {
            self.work.warn(format!(
                "{name}: the Hessian is not positive definite at damping {}; {} was used",
                self.recipe.damping, solved.damping
            ));
        }
        let scales = solved.weight.channel_scales();
        self.layers.push(LayerReport {
            name,
            out_features: linear.n,
            in_features: linear.k,
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

    fn pack(&self, index: usize, weight: &QuantizedWeight, float: &FloatLinear) -> Result<CpuLinear> {
        self.backend.linear_weight(LinearWeight::Quantized(weight.clone()), float.bias.clone()).map_err(
            |source| QuantError::from(ModelError::Backend { name: format!("model.layers.{index}"), source }),
        )
    }

    fn count_bytes(&mut self, index: usize, block: &QuantizedBlock) {
        for module in names::LINEARS {
            let name = format!("{}.weight", names::linear(index, module));
            self.bytes.0 += self.checkpoint.tensors.info(&name).map_or(0, |t| t.bytes);
        }
        let parts = [&block.qkv, &block.o, &block.gate_up, &block.down];
        self.bytes.1 += parts.into_iter().map(weight_bytes).sum::<u64>();
    }
}
