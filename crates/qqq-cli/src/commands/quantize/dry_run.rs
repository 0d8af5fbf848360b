//! `qqq quantize --dry-run`.

use std::path::{Path, PathBuf};

use qqq_backend::pool;
use qqq_formats::disk;
use qqq_model::{TextOptions, Tokenizer};
use qqq_quant::{DryRun, Recipe, calibration::CalibrationText};
use serde::Serialize;

use super::{QuantizeArgs, Steps, source};
use crate::{
    console::Console,
    device::{self, Place, on_chosen},
    files::refuse_existing,
    format,
    interrupt::Guard,
    model,
    progress::Progress,
    table::pairs,
};

/// For `--json`.
#[derive(Serialize)]
struct Outcome {
    /// Where the checkpoint would be, if that was said.
    output: Option<PathBuf>,
    #[serde(flatten)]
    needs: DryRun,
    /// Bytes that can be written there, or in the current folder, where the system says.
    disk_free: Option<u64>,
    threads: usize,
}

/// Measures and tells.
pub(super) fn run(
    args: &QuantizeArgs,
    recipe: &Recipe,
    read: &TextOptions,
    console: &Console,
) -> anyhow::Result<()> {
    if let Some(output) = &args.output {
        refuse_existing(output)?;
    }
    let checkpoint = model::open(&args.model, &args.hub)?;
    let tokenizer = Tokenizer::load(&checkpoint)?;
    let source = source(&args.calibration, &args.hub)?;
    let guard = Guard::new();
    let mut steps = Steps::new(Progress::new(console, "measuring"), &guard);
    let text = CalibrationText { source: &source, options: Some(read), held_out: args.quality.held_out() };
    let needs = on_chosen!(device::choose_for(args.device.device, &checkpoint)?, |place| {
        let backend = place.backend_with(&checkpoint, args.options())?;
        qqq_quant::dry_run(&backend, &checkpoint, &tokenizer, recipe, text, args.format, &mut steps)?
    });
    drop(steps);
    let parent = args.output.as_deref().and_then(Path::parent).filter(|p| !p.as_os_str().is_empty());
    let outcome = Outcome {
        output: args.output.clone(),
        needs,
        disk_free: disk::free(parent.unwrap_or(Path::new("."))),
        threads: pool::num_threads(),
    };
    console.result(&outcome, summary)
}

fn summary(outcome: &Outcome) -> String {
    let Outcome { needs, disk_free, threads, .. } = outcome;
    let of_free = |free: Option<u64>| free.map(|free| format!(", {} are free", format::bytes(free)));
    let peak = needs.peak_memory.map(|peak| format!("; the first block took {}", format::bytes(peak)));
    pairs([
        ("format", needs.format.clone()),
        (
            "time",
            format!(
                "{} on {} ({} for each of {} blocks{}{})",
                format::seconds(needs.seconds),
                format::threads(*threads),
                format::seconds(needs.block_seconds),
                needs.blocks,
                match needs.trial_seconds {
                    0.0 => String::new(),
                    seconds => format!(", {} to try transforms", format::seconds(seconds)),
                },
                match needs.sensitivity_seconds {
                    0.0 => String::new(),
                    seconds => format!(", {} to measure what bits cost", format::seconds(seconds)),
                }
            ),
        ),
        (
            "memory",
            format!(
                "{} at most (while {}){}{}",
                format::bytes(needs.memory_estimate),
                needs.memory_phase,
                of_free(needs.memory_free).unwrap_or_default(),
                peak.unwrap_or_default()
            ),
        ),
        (
            "disk",
            format!(
                "{} ({} of them layers of the blocks){}",
                format::bytes(needs.output_bytes),
                format::bytes(needs.linear_bytes),
                of_free(*disk_free).unwrap_or_default()
            ),
        ),
        (
            "measured",
            format!(
                "in {}, on the first block; nothing was written",
                format::seconds(needs.measured_seconds)
            ),
        ),
    ])
}
