//! What [`Transform::Auto`] becomes for a model, by measuring.
//!
//! Each transform that the model allows is tried: the recipe runs with it through the whole model, on fewer calibration
//! windows, and nothing is written. What gets closest to the float model on held-out text is taken. The held-out text is
//! neither calibrated on nor what the result is compared on.

use std::{cell::Cell, time::Instant};

use qqq_backend::Calibrate;
use qqq_model::scores::Estimate;
use serde::{Deserialize, Serialize};

use crate::{
    Calibration, Head, OutputFormat, Progress, QuantError, Recipe, Result, Transform,
    held_out::{DECIDING_WINDOWS, Measured},
    pipeline::{Begun, Job, Target, begin},
    resolved::no_rotation,
};

/// Calibration windows of a trial, at most: what transforms do differs by more than what further text gains.
const WINDOWS: usize = 8;

/// When trials take most memory.
pub(crate) const PHASE: &str = "trying transforms";

/// A transform that was tried.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TransformTrial {
    /// Which one.
    pub transform: Transform,
    /// KL divergence from the float model, nats per token; none where the trial's numbers are not finite.
    pub kl_divergence: Option<Estimate>,
}

/// What transforms were tried, and what was chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TransformReport {
    /// The one that is nearest to the float model.
    pub chosen: Transform,
    /// All of them; empty where the model allows no other.
    pub trials: Vec<TransformTrial>,
    /// Calibration windows of each trial.
    pub calibration_windows: usize,
    /// Windows of held-out text on which they were compared.
    pub windows: usize,
    /// Predictions that were compared there.
    pub tokens: usize,
    /// Whether the result is compared with the float model on this text too: there was no other.
    pub chosen_on_compared_text: bool,
}

impl TransformReport {
    /// What was chosen and by how much, for people.
    pub fn describe(&self) -> String {
        let name = |transform: Transform| match transform {
            Transform::Rotate => "rotate",
            Transform::Smooth => "smooth",
            _ => "none",
        };
        if self.trials.is_empty() {
            return format!("{}: the model allows no other", name(self.chosen));
        }
        let trials: Vec<String> = self
            .trials
            .iter()
            .map(|trial| match trial.kl_divergence {
                Some(kld) => format!("{} {:.4}", name(trial.transform), kld.mean),
                None => format!("{} not finite", name(trial.transform)),
            })
            .collect();
        format!("{}, by nats per token in trials: {}", name(self.chosen), trials.join(", "))
    }
}

/// A recipe whose transform is decided.
pub(crate) struct Chosen {
    pub recipe: Recipe,
    /// Where it was chosen by trials.
    pub report: Option<TransformReport>,
    /// Seconds that trials took, or are expected to take.
    pub seconds: f64,
    /// Memory that they take at most, in bytes: estimated.
    pub memory: u64,
}

impl Chosen {
    /// By what a stopped run has found.
    pub fn by(recipe: &Recipe, report: TransformReport) -> Self {
        let recipe = Recipe { transform: report.chosen, ..recipe.clone() };
        Self { recipe, report: Some(report), seconds: 0.0, memory: 0 }
    }
}

/// How it becomes known what transforms lose.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trials {
    /// They are run.
    Run,
    /// Their time is estimated, and the usual one supposed.
    Estimated,
}

/// Decides on the transform of a job whose recipe leaves it to trials; otherwise nothing changes.
///
/// # Errors
/// Nothing held out to compare on; trials without numbers all; as those of a run.
pub(crate) fn choose<B: Calibrate>(
    job: &Job<'_, B>,
    trials: Trials,
    progress: &mut dyn Progress,
) -> Result<Chosen> {
    let mut chosen = Chosen { recipe: job.recipe.clone(), report: None, seconds: 0.0, memory: 0 };
    if job.recipe.transform != Transform::Auto {
        return Ok(chosen);
    }
    let mut allowed = vec![Transform::None];
    if job.recipe.calibrates() {
        allowed.insert(0, Transform::Smooth);
    }
    if no_rotation(&job.checkpoint.config).is_none() {
        allowed.insert(0, Transform::Rotate);
    }
    let calibration = &job.recipe.calibration;
    let windows = calibration.windows.min(WINDOWS);
    let mut report = TransformReport {
        chosen: allowed[0],
        trials: Vec::new(),
        calibration_windows: windows,
        windows: 0,
        tokens: 0,
        chosen_on_compared_text: false,
    };
    if allowed.len() > 1 {
        let began = Instant::now();
        let estimated = Cell::new(0.0);
        for (index, &transform) in allowed.iter().enumerate() {
            let calibration = Calibration { windows, ..*calibration };
            // The output head as it is, which a transform does little to.
            let head = Head::Float;
            let recipe = Recipe { transform, calibration, budget: None, head, ..job.recipe.clone() };
            let told = &mut Told {
                inner: progress,
                transform,
                place: (index, allowed.len()),
                estimated: &estimated,
            };
            let (memory, kld) = trial(job, &recipe, trials, &mut report, told)?;
            chosen.memory = chosen.memory.max(memory);
            report.trials.push(TransformTrial { transform, kl_divergence: kld });
        }
        match trials {
            Trials::Estimated => {
                chosen.recipe.transform = job.recipe.resolved(&job.checkpoint.config).recipe.transform;
                chosen.seconds = estimated.get();
                return Ok(chosen);
            }
            Trials::Run => chosen.seconds = began.elapsed().as_secs_f64(),
        }
        let finite = report.trials.iter().filter_map(|t| Some((t.transform, t.kl_divergence?.mean)));
        // The first of equals: what costs nothing less.
        let best = finite.reduce(|best, other| if other.1 < best.1 { other } else { best });
        let Some((best, _)) = best else {
            return Err(QuantError::NotFinite {
                layer: "transform auto".into(),
                reason: "with every transform that the model allows, numbers are not finite on held-out text; name one \
                         (--transform) to see where"
                    .into(),
            });
        };
        report.chosen = best;
    }
    progress.note(&format!("transform {}", report.describe()));
    chosen.recipe.transform = report.chosen;
    chosen.report = Some(report);
    Ok(chosen)
}

/// Runs a recipe that writes nothing, or only begins to: the memory that it takes, and what it loses.
fn trial<B: Calibrate>(
    job: &Job<'_, B>,
    recipe: &Recipe,
    trials: Trials,
    report: &mut TransformReport,
    progress: &mut Told<'_>,
) -> Result<(u64, Option<Estimate>)> {
    let compared = job.calibration.held_out;
    let calibration = job.calibration.with_more_held_out(DECIDING_WINDOWS);
    let job = Job { recipe, calibration, transform: None, budget: None, ..*job };
    let blocks = job.checkpoint.config.num_layers;
    begin(&job, Target::Nowhere(OutputFormat::CompressedTensors), progress, |begun| {
        let Begun { mut run, mut live, mut writer, plan, .. } = begun;
        let memory = plan.memory.bytes;
        if trials == Trials::Estimated {
            return Ok((memory, None));
        }
        let Some(held_out) = &mut run.held_out else {
            return Err(QuantError::Calibration(
                "transform auto compares on held-out text, and the text has nothing left to hold out beside the calibration \
                 windows; give more text, ask for fewer or shorter windows, or name a transform"
                    .into(),
            ));
        };
        report.chosen_on_compared_text = !held_out.skip(compared);
        (report.windows, report.tokens) = held_out.size();
        for index in 0..blocks {
            match run.block(index, &mut live, &mut writer) {
                // The model's numbers with this transform, which others need not have.
                Err(QuantError::NotFinite { .. }) => return Ok((memory, None)),
                done => done?,
            }
        }
        live.clear();
        let rotations = run.rotations.clone();
        let measured =
            run.measure(|b| writer.head(b, rotations.as_ref().map(|rotations| &rotations.stream)))?;
        match measured {
            Some((_, Measured::Numbers(divergence))) => Ok((memory, Some(divergence.kl_divergence))),
            Some((_, Measured::FloatNotFinite(reason))) => {
                Err(QuantError::NotFinite { layer: "the float model".into(), reason })
            }
            Some((_, Measured::NotFinite(_))) | None => Ok((memory, None)),
        }
    })
}

/// Tells of a trial as a part of all of them, as if each took as long; its notes and warnings are told by the run itself.
struct Told<'a> {
    inner: &'a mut dyn Progress,
    transform: Transform,
    /// Which of how many.
    place: (usize, usize),
    /// Seconds that all so far were expected to take.
    estimated: &'a Cell<f64>,
}

impl Progress for Told<'_> {
    fn planned(&mut self, seconds: f64) {
        self.estimated.set(self.estimated.get() + seconds);
    }

    fn step(&mut self, done: f64, total: f64, next: &str) -> bool {
        let (index, count) = self.place;
        let next = format!("trying {:?}: {next}", self.transform).to_lowercase();
        self.inner.step(index as f64 * total + done, count as f64 * total, &next)
    }

    fn warn(&mut self, _message: &str) {}
}
