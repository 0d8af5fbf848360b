//! Quantizing a checkpoint, block by block.

use std::{sync::Arc, time::Instant};

use qqq_backend::Calibrate;
use qqq_formats::{Checkpoint, CheckpointFormat, size, writer::Reservation};
use qqq_model::{OutputHead, RopeChoice, TensorBytes, Tokenizer, memory, names, rope};

use crate::{
    BeyondGate, BudgetReport, Gate, OutputFormat, QuantError, Recipe, Report, Resolved, Result, Schemes,
    Transform,
    budget::{self, Decided, Sensitivities},
    calibration::{CalibrationText, Source, TokenWindows},
    estimate::Estimate,
    float_linear::module,
    float_stream::FloatStream,
    gate::Quality,
    half_type::HalfType,
    held_out::{HeldOut, HeldText, float_window},
    output::OutputCheckpoint,
    preflight::{self, Plan},
    report::Timings,
    resume::{self, Keeper, Resume, States, Stopped},
    rotations::{DeviceRotations, Rotations},
    run::{Run, log_memory},
    solve::ScaleDType,
    source_types::AlreadyQuantized,
    token_windows::{any_windows, check_tokens, held_out_note, token_windows, uncalibrated_windows},
    transform_choice::{self, Chosen, TransformReport, Trials},
    trial::Slowness,
    windows::{Surroundings, Window, Windows},
    work::Work,
};

/// Told what happens; returning `false` from [`Progress::step`] interrupts.
pub trait Progress {
    /// Told once, before any work of the run: about how many seconds it will take. What is decided by measuring before that (a
    /// budget, trials of transforms) has steps of its own.
    fn planned(&mut self, _seconds: f64) {}
    /// `done` seconds of work are done, and there will be about `total` in all; `next` is what is being worked on.
    fn step(&mut self, done: f64, total: f64, next: &str) -> bool;
    /// Something that may make the result worse than expected; it also stands in the report.
    fn warn(&mut self, message: &str);
    /// Something to know that is no reason to worry.
    fn note(&mut self, _message: &str) {}
}

/// Where the result goes.
#[derive(Clone, Debug)]
pub struct Output<'a> {
    /// Directory to be made, reserved before the model was looked for.
    pub reservation: &'a Reservation,
    /// Form on disk, or that the shapes decide on it.
    pub format: OutputFormat,
    /// How the user named the model (for model card and report).
    pub model_name: &'a str,
    /// Whether finished blocks are kept, and gone on with.
    pub resume: Option<Resume<'a>>,
    /// How far from the float model the result may be.
    pub gate: Gate,
    /// What else is made of the report, to stand beside it.
    pub more: Option<MoreFiles<'a>>,
    /// For the [report](Report::run).
    pub run: Option<serde_json::Value>,
}

impl<'a> Output<'a> {
    /// In the form that fits the shapes, with the usual limit; nothing is kept for a run that goes on.
    pub fn new(reservation: &'a Reservation, model_name: &'a str) -> Self {
        let (format, gate) = (OutputFormat::Auto, Gate::DEFAULT);
        Self { reservation, format, model_name, resume: None, gate, more: None, run: None }
    }
}

/// Makes files of a report: names, and what is in them.
#[derive(Clone, Copy)]
pub struct MoreFiles<'a>(pub &'a dyn Fn(&Report) -> Vec<(String, String)>);

impl std::fmt::Debug for MoreFiles<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MoreFiles(..)")
    }
}

/// Quantizes `checkpoint` on a device and writes the result, one block at a time.
///
/// Besides what one layer takes, the hidden states of all calibration tokens are held in memory (f32): how much memory all
/// takes together is told before the work. The result depends on the recipe's seed, not on the number of threads, nor
/// on how often the run was stopped and [gone on with](Resume). Nothing appears under the output's name unless all is
/// well.
///
/// [`Transform::Auto`] is decided before anything else, by short runs; the report has what it became, and why. Where the
/// recipe has a [budget](Recipe::budget), what layers cost is measured before the run, which then has rules in its place.
///
/// # Errors
/// Recipes that do not fit the model or the machine's memory (before any work), calibration text that is too short,
/// damaged weights, numerical failures, a full disk, a stopped run that was another one, a result beyond the
/// [gate](Output::gate), which is complete under another name, and [`QuantError::Interrupted`].
pub fn quantize<'a, B: Calibrate>(
    backend: &B,
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
    recipe: &Recipe,
    calibration: impl Into<CalibrationText<'a>>,
    output: &Output<'_>,
    progress: &mut dyn Progress,
) -> Result<Report> {
    let calibration = calibration.into();
    let job = Job { backend, checkpoint, tokenizer, recipe, calibration, transform: None, budget: None };
    let kept = match (recipe.transform, output.resume) {
        (Transform::Auto, Some(Resume { goes_on: true, .. })) => Stopped::transform(output.reservation)?,
        _ => None,
    };
    let chosen = match kept {
        Some(kept) => Chosen::by(recipe, kept),
        None => transform_choice::choose(&job, Trials::Run, progress)?,
    };
    let recipe = &chosen.recipe;
    let job = Job { recipe, transform: chosen.report.as_ref(), ..job };
    let kept = match (recipe.budget, output.resume) {
        (Some(budget), Some(Resume { goes_on: true, .. })) => Stopped::budget(output.reservation, budget)?,
        _ => None,
    };
    let Decided { recipe, format, report: budget, measuring } = match kept {
        Some(kept) => Decided::by(recipe, kept),
        None => budget::decide(&job, output.format, Sensitivities::Measured, progress)?,
    };
    let output = &Output { format, ..output.clone() };
    let job = Job { recipe: &recipe, budget: budget.as_ref(), ..job };
    begin(&job, Target::Directory(output), progress, |begun| {
        let Begun {
            mut run,
            mut live,
            mut writer,
            recipe,
            plan,
            rotations,
            tokens,
            started,
            first,
            mut keeper,
        } = begun;
        run.timings.sensitivities += measuring.seconds;
        run.timings.trials += chosen.seconds;
        for index in first..checkpoint.config.num_layers {
            let done = run.block(index, &mut live, &mut writer);
            match (&done, &mut keeper) {
                (Ok(()), Some(keeper)) => keeper.keep(index + 1, &mut run, &live, &mut writer),
                (Err(e), Some(keeper)) => {
                    // What was kept last is on its way to the disk.
                    keeper.settle(&mut run, &mut writer);
                    if !e.may_pass() {
                        writer.writer_mut().keep_unfinished(false);
                    }
                }
                (_, None) => {}
            }
            done?;
        }
        if let Some(keeper) = &mut keeper {
            keeper.settle(&mut run, &mut writer);
        }
        live.clear();
        let measured = run.measure(|b| Ok(OutputHead::load(b, &writer.so_far()?)?)).inspect_err(|e| {
            if !e.may_pass() {
                writer.writer_mut().keep_unfinished(false);
            }
        })?;
        log_memory("the end");
        let quality = measured.and_then(|(size, measured)| {
            let quality = Quality::of(measured, size, held_text(plan, calibration.source), &output.gate);
            quality
                .inspect_err(|what| {
                    run.work.warn(format!(
                        "the result cannot be compared with the float model, whose own numbers are not finite on held-out \
                         text: {what}"
                    ));
                })
                .ok()
        });
        if let Some(beyond) = quality.as_ref().filter(|quality| quality.is_beyond && output.gate.force) {
            run.work.warn(format!(
                "the result is too far from the float model, and was given its name by force: {}",
                beyond.complaint()
            ));
        }

        for path in checkpoint.inputs.replaced() {
            run.work.note(&format!(
                "{} was replaced or removed meanwhile; the result is made of the file as it was at the start",
                path.display()
            ));
        }
        // What was guessed of the tokenizer is in the files that are written; it was told when it was loaded.
        let warnings = tokenizer.notes().iter().cloned().chain(run.work.finish()).collect();
        run.timings.total = keeper.as_ref().map_or_else(|| started.elapsed().as_secs_f64(), Keeper::seconds)
            + run.timings.sensitivities
            + run.timings.trials;
        let (before, after) = (TensorBytes::of(&*checkpoint.tensors), writer.tensor_bytes());
        let report = Report {
            version: env!("CARGO_PKG_VERSION").into(),
            model: output.model_name.into(),
            text_part_of: checkpoint.config.text_part_of.map(Into::into),
            format: plan.format_name().into(),
            recipe: recipe.clone(),
            calibration_data: if plan.calibrates { calibration.source.describe() } else { "none".into() },
            calibration_tokens: tokens.calibration.iter().map(Vec::len).sum(),
            layers: run.layers,
            float_layers: float_layers(&plan.schemes),
            transform: run.transform,
            budget: run.budget,
            quality,
            smoothing: run.smoothing,
            learning: run.learning,
            activations: run.activations,
            rotation: rotations.as_ref().map(|rotations| rotations.report()),
            warnings,
            timings: run.timings,
            run: output.run.clone(),
            linear_bytes: (before.linear, after.linear),
            end_bytes: (before.ends, after.ends),
            tensor_bytes: (before.total, after.total),
            memory_estimate: plan.memory.bytes.max(measuring.memory).max(chosen.memory),
            peak_memory: memory::used().map(|used| used.peak),
        };
        if let Err(e) = checkpoint.inputs.check() {
            writer.writer_mut().keep_unfinished(false);
            return Err(e.into());
        }
        let more = output.more.map(|MoreFiles(make)| make(&report)).unwrap_or_default();
        match writer.finish(&report, &more, output.gate.force)? {
            None => Ok(report),
            Some(path) => Err(QuantError::Gate(Box::new(BeyondGate { path, report }))),
        }
    })
}

/// What is quantized, and how.
pub(crate) struct Job<'a, B> {
    pub backend: &'a B,
    pub checkpoint: &'a Checkpoint,
    pub tokenizer: &'a Tokenizer,
    pub recipe: &'a Recipe,
    pub calibration: CalibrationText<'a>,
    /// What decided on its recipe's transform, where trials did.
    pub transform: Option<&'a TransformReport>,
    /// What decided on its recipe's rules, where there was a budget.
    pub budget: Option<&'a BudgetReport>,
}

/// Where tensors go.
pub(crate) enum Target<'a> {
    /// To a directory.
    Directory(&'a Output<'a>),
    /// Nowhere: in this form they are counted.
    Nowhere(OutputFormat),
}

/// What there is when the blocks begin.
pub(crate) struct Begun<'r, B: Calibrate> {
    pub run: Run<'r, B>,
    pub live: Windows<'r, B>,
    pub writer: OutputCheckpoint<'r>,
    /// With nothing left to be decided.
    pub recipe: &'r Recipe,
    pub plan: &'r Plan,
    pub rotations: Option<Arc<Rotations>>,
    /// The tokens of all windows.
    pub tokens: TokenWindows,
    pub started: Instant,
    /// The first block that is not finished.
    pub first: usize,
    /// Keeps what is finished, where that was asked for.
    pub keeper: Option<Keeper>,
}

/// Does what comes before the blocks, and hands it to `blocks`.
pub(crate) fn begin<B: Calibrate, T>(
    job: &Job<'_, B>,
    target: Target<'_>,
    progress: &mut dyn Progress,
    blocks: impl FnOnce(Begun<'_, B>) -> Result<T>,
) -> Result<T> {
    let started = Instant::now();
    let &Job { backend, checkpoint, tokenizer, calibration, .. } = job;
    let samples = *calibration.source == Source::SelfSamples;
    let Resolved { recipe, note } = job.recipe.resolved(&checkpoint.config);
    let recipe = &recipe;
    let is_trial = matches!(target, Target::Nowhere(_));
    let format = match &target {
        Target::Directory(output) => output.format,
        Target::Nowhere(format) => *format,
    };
    let config = &checkpoint.config;
    let held = HeldText::new(config, recipe, calibration.held_out);
    let plan = preflight::check::<B>(checkpoint, recipe, held, format, samples)?;
    let on_its_own = match backend.free_memory()? {
        Some(free) => Some((preflight::check_device(config, recipe, &plan.schemes, held, free)?, free)),
        None => None,
    };
    let kept = match &target {
        Target::Directory(Output { resume: Some(resume), reservation, .. }) => {
            let print = resume::fingerprint(checkpoint, recipe, &plan, calibration, resume.device)?;
            let stopped = if resume.goes_on { Stopped::find(reservation, &print)? } else { None };
            Some((print, stopped))
        }
        _ => None,
    };
    let (print, stopped) = kept.unzip();
    let stopped = stopped.flatten();
    let first = stopped.as_ref().map_or(0, Stopped::blocks);
    let mut writer = match (&target, &stopped) {
        (Target::Nowhere(_), _) => OutputCheckpoint::counting(checkpoint, &plan),
        (Target::Directory(output), Some(stopped)) => {
            OutputCheckpoint::resumed(checkpoint, tokenizer, stopped, output.reservation, &plan)?
        }
        (Target::Directory(output), None) => {
            let reservation = output.reservation;
            let writer = OutputCheckpoint::create(checkpoint, tokenizer, reservation, &plan)?;
            preflight::check_space(config, recipe, &plan.schemes, writer.staging())?;
            writer
        }
    };

    let slowness = Slowness::measured(backend)?;
    let estimate =
        Estimate::new(config, recipe, &plan.schemes, held, calibration.source, &slowness, B::PIECES);
    let mut work = Work::new(progress, &estimate, config.num_layers - first);
    if let Some(note) = note {
        work.note(&note);
    }
    match &plan.already_quantized {
        Some(AlreadyQuantized::Coarse(message)) => work.warn(message.clone()),
        Some(AlreadyQuantized::Fine(message)) => work.note(message),
        None => {}
    }
    let need = plan.memory.bytes;
    match memory::available() {
        Some(free) if need > free => work.warn(format!(
            "this run may take {} of memory (while {}), but {} are free: it may be stopped by the system, or slowed down by \
             swapping; ask for fewer or shorter calibration windows",
            size::bytes(need),
            plan.memory.phase,
            size::bytes(free)
        )),
        Some(free) => {
            work.note(&format!("memory: about {} at most, {} are free", size::bytes(need), size::bytes(free)))
        }
        None => work.note(&format!("memory: about {} at most", size::bytes(need))),
    }
    if let Some((need, free)) = on_its_own {
        work.note(&format!(
            "GPU memory: about {} at most, {} are free",
            size::bytes(need),
            size::bytes(free)
        ));
    }
    work.begin(
        estimate.text,
        if samples { "sampling calibration text" } else { "reading calibration text" },
    )?;
    let windows = match (target, &stopped) {
        (_, Some(stopped)) if samples && plan.calibrates => stopped.samples(),
        // What they say makes no difference to time, which sampling them would take most of.
        (Target::Nowhere(_), _) if samples && plan.calibrates => {
            any_windows(config, &recipe.calibration, held)
        }
        _ if plan.calibrates => {
            token_windows(backend, checkpoint, tokenizer, recipe, held, calibration, &mut work)?
        }
        _ => uncalibrated_windows(config, tokenizer, recipe, held, &mut work),
    };
    work.at(1.0)?;
    if windows.held_out.len() < held.windows || windows.held_out.iter().any(|w| w.len() < held.window) {
        work.note(&held_out_note(&windows.held_out, held));
    }
    let mut keeper = print.as_ref().map(|print| {
        let streams = if recipe.follows_float() { 2 } else { 1 };
        let width = streams * config.hidden_size;
        Keeper::new(writer.staging(), print.clone(), &windows, samples, (width, config.hidden_size), started)
    });
    if let (Some(stopped), Some(print)) = (&stopped, print) {
        stopped.check_windows(print, &windows)?;
        work.note(&format!(
            "going on behind block {first} of {}, the last that the stopped run has kept",
            config.num_layers
        ));
    } else if let Some(keeper) = &mut keeper {
        let output = preflight::output_bytes(config, recipe, &plan.schemes);
        keeper.check_room(output).iter().for_each(|reason| work.note(reason));
    }

    let mut timings = Timings { calibrate: started.elapsed().as_secs_f64(), ..Timings::default() };
    let clock = Instant::now();
    work.begin(estimate.ends, "embedding and output head")?;
    log_memory("embedding");
    let rotations = Rotations::new(checkpoint, recipe)?.map(Arc::new);
    for note in rotations.iter().flat_map(|rotations| rotations.notes()) {
        work.warn(note);
    }
    let on_device = match &rotations {
        Some(rotations) => Some(Arc::new(DeviceRotations::new(backend, rotations.clone())?)),
        None => None,
    };
    let stream = on_device.as_ref().map(|r| &r.stream);
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    let restored = match &stopped {
        Some(stopped) => stopped.states(backend, !windows.held_out.is_empty())?,
        None => None,
    };
    let states = match restored {
        Some(states) => states,
        None => {
            let embedding = match &stopped {
                Some(_) => writer.embedding(backend, stream)?,
                None => writer.add_embedding(backend, stream)?,
            };
            let table = backend.embedding(vocab, hidden, plan.half.values(embedding))?;
            let scale = config.graph.embedding_scale as f32;
            let embed = |ids: &[u32]| -> Result<Window<B>> {
                check_tokens(ids, vocab)?;
                Window::embedded(backend, &table, ids, hidden, scale)
            };
            let smoothing_window = match (recipe.transform, windows.calibration.first()) {
                (Transform::Smooth, Some(first)) => Some(embed(&first[..recipe.calibration.smooth_tokens])?),
                _ => None,
            };
            let embedded =
                |windows: &[Vec<u32>]| windows.iter().map(|w| embed(w)).collect::<Result<Vec<_>>>();
            let float = if recipe.follows_float() { embedded(&windows.calibration)? } else { Vec::new() };
            let held_out = embedded(&windows.held_out)?;
            let embedded = embedded(&windows.calibration)?;
            drop(table);
            let held_out_float = windows.held_out.iter().map(|ids| float_window(backend, checkpoint, ids));
            let held_out_float = held_out_float.collect::<Result<Vec<_>>>()?;
            if stopped.is_none() {
                writer.add_head(backend, stream)?;
            }
            States { blocks: 0, windows: embedded, float, smoothing_window, held_out_float, held_out }
        }
    };
    let States {
        blocks: passed,
        windows: mut embedded,
        mut float,
        smoothing_window,
        held_out_float,
        held_out,
    } = states;
    if first == config.num_layers {
        // All is calibrated.
        (embedded, float) = (Vec::new(), Vec::new());
    }
    let earlier = stopped.map(Stopped::earlier).unwrap_or_default();
    timings.transform += clock.elapsed().as_secs_f64();
    timings.add(&earlier.timings);
    work.recall(earlier.warnings);
    if let Some(keeper) = &mut keeper {
        // Behind the last block there is a file of held-out windows alone.
        let is_kept = passed > 0 && (passed < config.num_layers || !windows.held_out.is_empty());
        keeper.add_earlier(earlier.timings.total, is_kept.then_some(passed));
    }

    let longest = if plan.calibrates { recipe.calibration.window } else { held.window };
    let positions = longest.max(1);
    let ropes = rope::embeddings(backend, config, RopeChoice::new(config, positions), positions)?;
    let around = Surroundings { backend, config, ropes: &ropes };
    let (float, float_windows) = if recipe.learns() { (Vec::new(), float) } else { (float, Vec::new()) };
    let mut run = Run {
        checkpoint,
        recipe,
        schemes: &plan.schemes,
        half: plan.half,
        scale_dtype: scale_dtype(plan.format, plan.half),
        around,
        rotations: on_device.clone(),
        smoothing_window,
        float_stream: recipe.corrects().then(|| FloatStream::new(around, float, recipe.calibration.window)),
        float_windows,
        held_out: (!windows.held_out.is_empty())
            .then(|| HeldOut::new(around, windows.held_out.clone(), held_out_float, held_out)),
        block_ahead: None,
        first_ahead: None,
        transform: job.transform.cloned(),
        budget: job.budget.cloned(),
        estimate,
        work,
        layers: earlier.layers,
        smoothing: earlier.smoothing,
        learning: earlier.learning,
        activations: earlier.activations,
        is_trial,
        left_out: estimate.smooth_site.part(0.0),
        timings,
    };
    let mut live = Windows::new(around, embedded, recipe.calibration.window);
    // Without windows nothing is known of states.
    if passed < first && !(live.is_empty() && run.held_out.is_none()) {
        let again = (first - passed) as f64;
        if !live.is_empty() {
            run.work.add(run.estimate.replay().part(again));
            run.work.add(run.estimate.replay_float().part(again));
        }
        run.work.add(run.estimate.held_float.part(again));
        let written = writer.so_far()?;
        for index in passed..first {
            run.replay(index, &mut live, &written)?;
        }
    }
    // A trial has no report, and that of blocks which are run again is there.
    if let (false, Some(held_out)) = (is_trial, &mut run.held_out) {
        held_out.watch();
    }
    let tokens = windows;
    blocks(Begun { run, live, writer, recipe, plan: &plan, rotations, tokens, started, first, keeper })
}

/// Names of the layers that stay in 16 bits.
fn float_layers(schemes: &Schemes) -> Vec<String> {
    let float = schemes.all().filter(|(block, site, _)| !schemes.is_solved(*block, *site));
    float.map(|(block, site, _)| names::linear(block, module(site))).collect()
}

/// Precision of scales in a format.
fn scale_dtype(format: CheckpointFormat, half: HalfType) -> ScaleDType {
    match (format, half) {
        (CheckpointFormat::Qqq, _) => ScaleDType::F32,
        (_, HalfType::F16) => ScaleDType::F16,
        (_, HalfType::BF16) => ScaleDType::BF16,
    }
}

/// The held-out text, in words.
fn held_text(plan: &Plan, source: &Source) -> String {
    let source = if plan.calibrates { source } else { &Source::BuiltIn };
    source.describe()
}
