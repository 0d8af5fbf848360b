//! What a run would take, from its first block.
//!
//! All that comes before the blocks is done, and the first block is quantized as in a run, but nothing is written. What
//! is left is counted as in a run whose first block is done: by kinds of work, at what each has taken so far. Where blocks are
//! learned, the first takes some steps alone.

use qqq_backend::Calibrate;
use qqq_formats::{Checkpoint, ModelConfig};
use qqq_model::{Site, Tokenizer, memory};
use serde::Serialize;

use crate::{
    OutputFormat, Progress, Recipe, Result, Schemes,
    budget::{self, Decided, Sensitivities},
    calibration::{CalibrationText, Source},
    layer_bytes,
    pipeline::{Begun, Job, Target, begin},
    transform_choice::{self, Trials},
};

/// Beside the tensors: tokenizer, configuration, report, model card.
const FILES: u64 = 4 << 20;

/// What a run would take.
#[derive(Clone, Debug, Serialize)]
pub struct DryRun {
    /// With nothing left to be decided.
    pub recipe: Recipe,
    /// Form on disk: `qqq` or `compressed-tensors`.
    pub format: String,
    /// Blocks of the model.
    pub blocks: usize,
    /// Seconds that the whole run would take. Samples of the model itself are estimated, not made.
    pub seconds: f64,
    /// Of these, the first block's.
    pub block_seconds: f64,
    /// Of these, what trials of transforms take, where these decide: estimated. That they choose the usual one is supposed.
    pub trial_seconds: f64,
    /// Of these, what measuring candidates for a budget takes: estimated, not measured. Which layers get more bits is not known
    /// before: that the first do is supposed, which changes little of the rest.
    pub sensitivity_seconds: f64,
    /// Seconds that this measurement has taken.
    pub measured_seconds: f64,
    /// Memory that the run would use at most, in bytes: estimated.
    pub memory_estimate: u64,
    /// When that is.
    pub memory_phase: String,
    /// Most memory that was resident until the first block was done, in bytes, where the system says.
    pub peak_memory: Option<u64>,
    /// Memory that can be used here, in bytes, where the system says.
    pub memory_free: Option<u64>,
    /// Bytes of the checkpoint on disk.
    pub output_bytes: u64,
    /// Bytes of the linear layers of all blocks.
    pub linear_bytes: u64,
}

/// Quantizes the first block of `checkpoint`, writes nothing, and says what a whole run would take.
///
/// # Errors
/// As [`quantize`](crate::quantize), but for those of the output.
pub fn dry_run<'a, B: Calibrate>(
    backend: &B,
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
    recipe: &Recipe,
    calibration: impl Into<CalibrationText<'a>>,
    format: OutputFormat,
    progress: &mut dyn Progress,
) -> Result<DryRun> {
    let memory_free = memory::available();
    let calibration = calibration.into();
    let job = Job { backend, checkpoint, tokenizer, recipe, calibration, transform: None, budget: None };
    let chosen = transform_choice::choose(&job, Trials::Estimated, progress)?;
    let job = Job { recipe: &chosen.recipe, ..job };
    let Decided { recipe, format, measuring, .. } =
        budget::decide(&job, format, Sensitivities::Alike, progress)?;
    let job = Job { recipe: &recipe, ..job };
    begin(&job, Target::Nowhere(format), progress, |begun| {
        let Begun { mut run, mut live, mut writer, recipe, plan, started, .. } = begun;
        let blocks = checkpoint.config.num_layers;
        let table_bytes = writer.tensor_bytes().ends;
        let (before, ends) = (started.elapsed().as_secs_f64(), writer.file_bytes());
        run.block(0, &mut live, &mut writer)?;
        let measured_seconds = started.elapsed().as_secs_f64();
        let left_out = run.work.expected(run.left_out);
        // The stage that makes samples had none to make.
        let samples = match calibration.source {
            Source::SelfSamples => run.estimate.text.amount,
            _ => 0.0,
        };
        let of_block = writer.file_bytes() - ends;
        let of_layers = writer.tensor_bytes().linear;
        // The output head comes behind the last block, which may be the first.
        let head = plan.schemes.head().map_or(0, |scheme| {
            layer_bytes::stored(Some(scheme), checkpoint.config.vocab_size, checkpoint.config.hidden_size)
                as u64
        });
        let of_block = of_block - (writer.tensor_bytes().ends - table_bytes);
        let linear_bytes = of_all_blocks(&checkpoint.config, &plan.schemes, of_layers);
        checkpoint.inputs.check()?;
        let phases = [
            (plan.memory.bytes, plan.memory.phase),
            (measuring.memory, budget::PHASE),
            (chosen.memory, transform_choice::PHASE),
        ];
        // The last of those that take as much is the run itself.
        let (memory, phase) = phases.into_iter().rev().max_by_key(|(bytes, _)| *bytes).unwrap_or_default();
        Ok(DryRun {
            recipe: recipe.clone(),
            format: plan.format_name().into(),
            blocks,
            seconds: chosen.seconds + measuring.seconds + measured_seconds + run.work.left() + samples,
            trial_seconds: chosen.seconds,
            sensitivity_seconds: measuring.seconds,
            block_seconds: measured_seconds - before + left_out,
            measured_seconds,
            memory_estimate: memory,
            memory_phase: phase.into(),
            peak_memory: memory::used().map(|used| used.peak),
            memory_free,
            output_bytes: ends + (of_block - of_layers) * blocks as u64 + linear_bytes + head + FILES,
            linear_bytes,
        })
    })
}

/// Bytes of the layers of all blocks, where those of the first take `measured`; blocks may be of other kinds.
fn of_all_blocks(config: &ModelConfig, schemes: &Schemes, measured: u64) -> u64 {
    let bytes = |site: Site, scheme| {
        layer_bytes::stored(scheme, site.out_features(config), site.in_features(config)) as u64
    };
    let first: u64 = Site::ALL.map(|site| bytes(site, schemes.at(0, site))).iter().sum();
    let all: u64 = schemes.all().map(|(_, site, scheme)| bytes(site, scheme)).sum();
    (u128::from(measured) * u128::from(all) / u128::from(first.max(1))) as u64
}
