//! `qqq quantize`.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use qqq_model::Tokenizer;
use qqq_quant::{
    Output, Report,
    calibration::{CalibrationText, Source},
};
use serde::Serialize;

use super::recipe::{AmountArgs, FormatArg, RecipeArgs};
use crate::{
    console::Console,
    errors::{bad_input, bad_input_hint},
    files::{self, Reserved},
    format,
    interrupt::Guard,
    model::{self, HubArgs},
    progress::Progress,
    table::pairs,
    texts::ReadArgs,
};

const AFTER_HELP: &str = "\
Examples:
  qqq quantize Qwen/Qwen2.5-0.5B-Instruct -o qwen-w4a8
  qqq quantize ./llama -o llama-w4a8 --calibration wiki.txt
  qqq quantize model.gguf -o out --transform smooth --group-size channel --calibration text.jsonl

The linear layers of the blocks become 4-bit; embedding, output head and norms stay 16-bit. One layer is in memory \
at a time, beside what the calibration text becomes on its way through the model; how much that takes is told at the \
beginning. OUT appears only when it is complete: after an error or Ctrl-C nothing is left behind.";

/// Make a W4A8 checkpoint of a model
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct QuantizeArgs {
    /// Float model: a directory, a .gguf file, or owner/name on the hub
    #[arg(value_name = "MODEL")]
    model: String,
    /// Directory to be made; must not exist
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Form of the checkpoint on disk
    #[arg(long, value_enum, default_value_t = FormatArg::Auto)]
    format: FormatArg,
    /// Write the report (loss and scales of every layer, timings) to this file as well; it is always in OUT
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Calibration text: files (plain text, JSON lines or arrays, parquet), a hub data set (owner/name), or "self" for
    /// samples of the model itself. Text like the one the model will see is best; "self" needs none
    #[arg(long, value_name = "SOURCE", num_args = 1.., default_value = "self", help_heading = "Calibration")]
    calibration: Vec<String>,
    #[command(flatten, next_help_heading = "Calibration")]
    read: ReadArgs,
    #[command(flatten)]
    amount: AmountArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// For `--json`.
#[derive(Serialize)]
struct Outcome {
    output: PathBuf,
    report: Report,
}

/// Runs the command.
pub fn run(args: &QuantizeArgs, console: &Console) -> anyhow::Result<()> {
    let recipe = args.recipe.recipe(&args.amount)?;
    // What would be found at the end is asked first, before anything is downloaded.
    let reserved = Reserved::new(&args.output, console)?;
    if let Some(path) = &args.report {
        check_report(path, &args.output)?;
    }
    let checkpoint = model::open(&args.model, &args.hub)?;
    let tokenizer = Tokenizer::load(&checkpoint)?;
    let source = source(&args.calibration, &args.hub)?;

    let guard = Guard::new();
    let output =
        Output { reservation: reserved.reservation(), format: args.format.format(), model_name: &args.model };
    let mut steps = Steps { progress: Progress::new(console, "quantizing"), guard: &guard };
    let read = args.read.options();
    let text = CalibrationText { source: &source, options: Some(&read) };
    let report = qqq_quant::quantize(&checkpoint, &tokenizer, &recipe, text, &output, &mut steps)?;
    drop(steps);
    if let Some(path) = &args.report {
        write_report(path, &report)?;
    }
    let outcome = Outcome { output: args.output.clone(), report };
    console.result(&outcome, |o| summary(&o.report, &o.output))
}

/// Passes what the library tells on to the terminal, and Ctrl-C to the library.
pub struct Steps<'a> {
    /// Where progress is shown.
    pub progress: Progress,
    /// Ctrl-C.
    pub guard: &'a Guard,
}

impl qqq_quant::Progress for Steps<'_> {
    fn step(&mut self, done: f64, total: f64, next: &str) -> bool {
        self.progress.update(done, total, next);
        !self.guard.pressed()
    }

    fn warn(&mut self, message: &str) {
        self.progress.warn(message);
    }

    fn note(&mut self, message: &str) {
        self.progress.note(message);
    }
}

/// The report's own file is made after the checkpoint.
fn check_report(path: &Path, output: &Path) -> anyhow::Result<()> {
    files::refuse_existing(path)?;
    if std::path::absolute(path)?.starts_with(std::path::absolute(output)?) {
        return Err(bad_input_hint(
            format!("--report {}: {} is what will be made", path.display(), output.display()),
            format!("leave --report out: {} always has the report", output.display()),
        ));
    }
    files::check_writable(path, "--report")
}

/// One source of text: files can be several, a data set or "self" stands alone.
fn source(specs: &[String], hub: &HubArgs) -> anyhow::Result<Source> {
    if let [spec] = specs {
        return Ok(Source::parse(spec, &hub.options())?);
    }
    let mut files = Vec::new();
    for spec in specs {
        let path = PathBuf::from(spec);
        if !path.is_file() {
            return Err(bad_input(format!(
                "--calibration {spec}: of several sources each must be a file, and this is none"
            )));
        }
        files.push(path);
    }
    Ok(Source::Files(files))
}

fn write_report(path: &Path, report: &Report) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(report)? + "\n";
    files::write(path, |file| file.write_all(text.as_bytes()))
}

fn summary(report: &Report, output: &Path) -> String {
    let mean = |f: &dyn Fn(&qqq_quant::report::LayerReport) -> f64| {
        report.layers.iter().map(f).sum::<f64>() / report.layers.len().max(1) as f64
    };
    let worst = report.layers.iter().max_by(|a, b| a.loss.total_cmp(&b.loss));
    let t = &report.timings;
    let mut rows = vec![("written", output.display().to_string()), ("format", report.format.clone())];
    rows.extend(report.size_rows());
    rows.push((
        "output error",
        format!(
            "{} of the output's square, mean over layers (rounding to nearest: {})",
            format::significant(mean(&|l| l.loss), 3),
            format::significant(mean(&|l| l.loss_nearest), 3)
        ),
    ));
    if let Some(rotation) = &report.rotation {
        rows.push(("rotation", rotation.to_string()));
    }
    if let Some(worst) = worst {
        rows.push(("worst layer", format!("{} ({})", worst.name, format::significant(worst.loss, 3))));
    }
    rows.push((
        "time",
        format!(
            "{} (transform {}, calibrate {}, solve {}, write {})",
            format::seconds(t.total),
            format::seconds(t.transform),
            format::seconds(t.calibrate),
            format::seconds(t.solve),
            format::seconds(t.write)
        ),
    ));
    if let Some(peak) = report.peak_memory {
        let estimate = format::bytes(report.memory_estimate);
        rows.push(("memory", format!("{} at most (estimated: {estimate})", format::bytes(peak))));
    }
    let mut text = pairs(rows);
    text += &format!(
        "\nNext:\n  qqq inspect {0}\n  qqq chat {0}\n  qqq eval kld {0} --baseline {1} --text FILE\n",
        output.display(),
        report.model
    );
    text
}
