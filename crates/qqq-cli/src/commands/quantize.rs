//! `qqq quantize`.

mod dry_run;
mod gate;
pub mod page;

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use qqq_backend::pool;
use qqq_cuda::CudaOptions;
use qqq_formats::{Activations, CodeBits};
use qqq_model::Tokenizer;
use qqq_quant::{
    Clip, Head, MoreFiles, NeedsText, Output, OutputFormat, Quality, QuantError, Recipe, RecipeName, Report,
    Resume,
    calibration::{CalibrationText, Source},
};
use serde::Serialize;

use self::gate::GateArgs;
pub use self::{gate::way_out, page::circumstances};
use super::recipe::{self, AmountArgs, RecipeArgs};
use crate::{
    console::Console,
    device::{self, DeviceArgs, Place, on_chosen},
    errors::{bad_input, bad_input_hint},
    files::{self, Reserved},
    format,
    interrupt::Guard,
    model::{self, HubArgs},
    numbers,
    progress::Progress,
    table::pairs,
    texts::ReadArgs,
};

const AFTER_HELP: &str = "\
Examples:
  qqq quantize Qwen/Qwen2.5-0.5B-Instruct -o qwen-w4a8
  qqq quantize ./llama -o llama-w4a8 --calibration wiki.txt
  qqq quantize model.gguf -o out --transform smooth --group-size channel --calibration text.jsonl
  qqq quantize ./llama -o llama-mixed --group-size channel --rule down_proj=int8
  qqq quantize ./llama -o llama-5bit --budget 5
  qqq quantize ./llama -o llama-awq --recipe awq --calibration wiki.txt
  qqq quantize ./llama --dry-run
  qqq quantize ./llama -o llama-w4a8 --calibration wiki.txt --resume
  qqq quantize ./llama -o llama-w4a8 --held-out 8 --max-kld 0.2

The linear layers of the blocks become 4-bit (or what --bits and --rule say); embedding, output head (but for --head int8) \
and norms stay 16-bit. One layer is in memory \
at a time, beside what the calibration text becomes on its way through the model; how much that takes, of the host's \
memory and of a GPU's, is told at the beginning. A GPU's sums are in another order than a CPU's: its checkpoints are as \
good, but not the same bytes. OUT appears only when it is complete. A run that is killed or interrupted leaves its \
finished blocks in a hidden folder beside it, for --resume; a run without --resume starts anew and removes them. At the \
end the result is compared with the float model on held-out text; one that is beyond --max-kld is no OUT, and the command \
fails.";

const USAGE: &str = "\
qqq quantize [OPTIONS] --output <OUT> <MODEL>
       qqq quantize [OPTIONS] --dry-run <MODEL>";

/// Make a W4A8 checkpoint of a model
#[derive(Debug, clap::Args)]
#[command(after_help = format!("{}\n{AFTER_HELP}", recipe::table()), override_usage = USAGE)]
pub struct QuantizeArgs {
    /// Float model: a directory, a .gguf file, or owner/name on the hub
    #[arg(value_name = "MODEL")]
    model: String,
    /// Directory to be made; must not exist
    #[arg(short, long, value_name = "OUT", required_unless_present = "dry_run")]
    output: Option<PathBuf>,
    /// Say how much time, memory and disk the run would take: quantizes the first block, and writes nothing
    #[arg(long, conflicts_with_all = ["report", "resume", "max_kld", "force"])]
    dry_run: bool,
    /// Go on with a run to OUT that was killed or interrupted, behind the last block that it has kept. It must have
    /// been the same run: model, calibration text, recipe, device, version of qqq. The result is the same to the byte
    #[arg(long)]
    resume: bool,
    /// Form of the checkpoint on disk
    #[arg(long, value_enum, default_value_t = OutputFormat::Auto)]
    format: OutputFormat,
    /// Write the report (loss and scales of every layer, timings) to this file as well; it is always in OUT
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write the figures of OUT/report.html as SVG files into this folder as well
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Calibration text: files (plain text, JSON lines or arrays, parquet, Arrow), a hub data set (owner/name), "built-in" (425 kB of
    /// English of several kinds, some of other languages and code), or "self" for samples of the model itself, which take far
    /// longer than the rest. Text like the one the model will see is best
    #[arg(long, value_name = "SOURCE", num_args = 1.., default_value = "built-in", help_heading = "Calibration")]
    calibration: Vec<String>,
    #[command(flatten, next_help_heading = "Calibration")]
    read: ReadArgs,
    #[command(flatten)]
    amount: AmountArgs,
    #[command(flatten)]
    quality: GateArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// How much of the GPU's memory may be taken, such as 12GB; a run that would take more is refused before it begins
    /// [default: what is free]
    #[arg(long, value_name = "SIZE", value_parser = numbers::bytes, help_heading = "Calibration")]
    memory: Option<u64>,
    #[command(flatten)]
    hub: HubArgs,
}

impl QuantizeArgs {
    /// For a GPU.
    fn options(&self) -> CudaOptions {
        CudaOptions { memory_limit: self.memory, ..CudaOptions::default() }
    }
}

/// For `--json`.
#[derive(Serialize)]
pub struct Outcome {
    output: PathBuf,
    report: Report,
}

/// Runs the command.
pub fn run(args: &QuantizeArgs, console: &Console) -> anyhow::Result<()> {
    if args.dry_run {
        return dry_run::run(args, &check(args)?, &args.read.options()?, console);
    }
    let outcome = make(args, console)?;
    console.result(&outcome, |o| summary(&o.report, &o.output))
}

/// The recipe that is asked for.
///
/// # Errors
/// Options that make no sense.
pub fn check(args: &QuantizeArgs) -> anyhow::Result<Recipe> {
    let recipe = args.recipe.recipe(&args.amount, args.calibration == ["built-in"])?;
    args.quality.gate()?;
    if let [spec] = args.calibration.as_slice()
        && Source::named(spec).is_some()
    {
        args.recipe.refuse_text_options()?;
    }
    Ok(recipe)
}

/// Makes the checkpoint, without printing what came out.
///
/// # Errors
/// Options that make no sense, and what goes wrong.
pub fn make(args: &QuantizeArgs, console: &Console) -> anyhow::Result<Outcome> {
    let recipe = check(args)?;
    let gate = args.quality.gate()?;
    let read = args.read.options()?;
    let Some(place) = args.output.as_deref() else {
        return Err(bad_input("--output names what will be made"));
    };
    // What would be found at the end is asked first, before anything is downloaded.
    let reserved = match args.resume {
        true => Reserved::to_go_on(place, console)?,
        false => Reserved::new(place, console)?,
    };
    let plots = args.plots.as_deref().map(|path| page::plots_folder(path, place)).transpose()?;
    let report_place = args.report.as_ref().map(|path| reserve_report(path, place, console)).transpose()?;
    if args.recipe.draws_seed() {
        console.drawn_seed(recipe.seed);
    }
    let checkpoint = model::open(&args.model, &args.hub)?;
    let tokenizer = Tokenizer::load(&checkpoint)?;
    let source = source(&args.calibration, &args.hub)?;

    let guard = Guard::new();
    let chosen = device::choose_for(args.device.device, &checkpoint)?;
    let device = on_chosen!(&chosen, |place| place.identity()?);
    if let Source::Files(files) = &source {
        // A pipe can be read once.
        for path in files.iter().filter(|path| path.is_file()) {
            console.read_input(path, &files::sha256(path)?);
        }
    }
    let pages = page::Pages::new(&device, console);
    let page_of = |report: &Report| pages.files(report);
    let output = Output {
        format: args.format,
        resume: Some(Resume { device: &device, goes_on: args.resume }),
        gate,
        more: Some(MoreFiles(&page_of)),
        run: console.recorded().map(serde_json::to_value).transpose()?,
        ..Output::new(reserved.reservation(), &args.model)
    };
    let mut steps = Steps::new(Progress::new(console, "quantizing"), &guard);
    steps.plan = Some(plan(&recipe.resolved(&checkpoint.config).recipe, &source));
    let text = CalibrationText { source: &source, options: Some(&read), held_out: args.quality.held_out() };
    let made = on_chosen!(chosen, |place| {
        let backend = place.backend_with(&checkpoint, args.options())?;
        qqq_quant::quantize(&backend, &checkpoint, &tokenizer, &recipe, text, &output, &mut steps)
    });
    drop(steps);
    pages.tell(console);
    let write_report = |report: &Report| {
        plots.as_deref().map_or(Ok(()), |folder| pages.write_plots(folder))?;
        report_place.as_ref().map_or(Ok(()), |place| write_report(place.path(), report))
    };
    let mut report = match made {
        Err(QuantError::Gate(beyond)) => {
            write_report(&beyond.report)?;
            return Err(gate::refused(beyond, console));
        }
        made => made.inspect_err(|_| reserved.tell_kept(console))?,
    };
    write_report(&report)?;
    // It stands beside it.
    report.run = None;
    Ok(Outcome { output: place.to_owned(), report })
}

/// With fewer windows yet a run is hardly faster, and what comes out is worse.
const FEW_WINDOWS: usize = 16;

/// What a run will do, and what would be better or faster.
fn plan(recipe: &Recipe, source: &Source) -> Plan {
    let calibration = &recipe.calibration;
    let windows = match calibration.windows {
        1 => "1 window".to_owned(),
        n => format!("{n} windows"),
    };
    let text = format!("{}, {windows} of {} tokens", source.describe(), calibration.window);
    let needs = recipe.needs_text();
    let clipped = match recipe.clip {
        Clip::None => "with scales of the largest weights",
        Clip::Weight => "with scales of the least weight error",
        Clip::Output => "with scales of the least output error",
        Clip::GroupOutput => "with groups clipped by their output",
        Clip::Learned => "with learned clipping",
    };
    if recipe.simulated.is_some() {
        let how = match recipe.calibrates() {
            true => format!("recipe {}, simulated, on {text}", recipe.name),
            false => format!("recipe {}, simulated, without calibration", recipe.name),
        };
        return Plan { how, advice: "the checkpoint is as large as the model" };
    }
    let calibrating = match recipe.corrects() {
        true => format!("correcting errors at strength {}, calibrating on {text}", recipe.error_correction),
        false => format!("calibrating on {text}"),
    };
    let how = match needs.as_slice() {
        [] if !recipe.calibrates() => format!("rounding to nearest {clipped}, without calibration"),
        // Text then only measures what was lost.
        [] => format!("rounding to nearest {clipped}, the loss measured on {text}"),
        [NeedsText::Smoothing] => format!(
            "rounding to nearest {clipped}, smoothed for the first {} tokens of {text}",
            calibration.smooth_tokens
        ),
        _ if !recipe.compensate => format!("rounding to nearest {clipped}, {calibrating}"),
        _ => calibrating,
    };
    let advice = match source {
        _ if matches!(needs.as_slice(), [] | [NeedsText::Smoothing]) => {
            "--method gptq keeps more of the quality"
        }
        Source::SelfSamples => {
            "the built-in text is as good and takes none to write (--calibration built-in)"
        }
        Source::BuiltIn if calibration.windows <= FEW_WINDOWS => {
            "text like what the model will see is better (--calibration FILE)"
        }
        Source::BuiltIn => {
            "text like what the model will see is better (--calibration FILE), fewer windows are faster (--windows 16)"
        }
        Source::Files(_) | Source::Dataset { .. } if recipe.corrects() => {
            "faster are fewer windows (--windows 16) and no correction (--error-correction 0)"
        }
        Source::Files(_) | Source::Dataset { .. } if calibration.windows <= FEW_WINDOWS => {
            "more windows keep more of the quality (--windows 32)"
        }
        Source::Files(_) | Source::Dataset { .. } => "fewer windows are faster (--windows 16)",
    };
    match recipe.name.entry() {
        None => Plan { how, advice },
        Some(entry) if recipe.name == RecipeName::Fp16 => {
            Plan { how: format!("recipe {}: {}", entry.word, entry.what), advice: "nothing is quantized" }
        }
        Some(entry) => {
            let advice = match recipe.calibrates() {
                true if recipe.learns() => "fewer windows and epochs are faster (--windows, --epochs)",
                true => "fewer windows are faster (--windows)",
                false => "--recipe best keeps more of the quality",
            };
            Plan { how: format!("recipe {}: {how}", entry.word), advice }
        }
    }
}

/// For the first line of a run.
pub struct Plan {
    how: String,
    advice: &'static str,
}

/// Passes what the library tells on to the terminal, and Ctrl-C to the library.
pub struct Steps<'a> {
    progress: Progress,
    guard: &'a Guard,
    /// Told with the time that the work will take.
    plan: Option<Plan>,
}

impl<'a> Steps<'a> {
    /// Progress is shown, Ctrl-C stops.
    pub fn new(progress: Progress, guard: &'a Guard) -> Self {
        Self { progress, guard, plan: None }
    }
}

impl qqq_quant::Progress for Steps<'_> {
    fn planned(&mut self, seconds: f64) {
        if let Some(Plan { how, advice }) = &self.plan {
            let time = format::about(seconds);
            self.progress
                .note(&format!("{how}: {time} on {}; {advice}", format::threads(pool::num_threads())));
        }
    }

    fn step(&mut self, done: f64, total: f64, next: &str) -> bool {
        self.progress.update_seconds(done, total - done, next);
        !self.guard.pressed()
    }

    fn warn(&mut self, message: &str) {
        self.progress.warn(message);
    }

    fn note(&mut self, message: &str) {
        self.progress.note(message);
    }
}

/// The report's own file is made after the checkpoint; no other run may have it in mind.
fn reserve_report(path: &Path, output: &Path, console: &Console) -> anyhow::Result<Reserved> {
    files::refuse_existing(path)?;
    let hint = format!("leave --report out: {} always has the report", output.display());
    refuse_inside(output, "--report", path, hint)?;
    files::check_writable(path, "--report")?;
    Reserved::new(path, console)
}

/// That what an option names is not in the output, which is made as a whole.
fn refuse_inside(output: &Path, option: &str, path: &Path, hint: String) -> anyhow::Result<()> {
    if std::path::absolute(path)?.starts_with(std::path::absolute(output)?) {
        let what = format!("{option} {}: {} is what will be made", path.display(), output.display());
        return Err(bad_input_hint(what, hint));
    }
    Ok(())
}

/// One source of text: files can be several, a data set or "self" stands alone.
fn source(specs: &[String], hub: &HubArgs) -> anyhow::Result<Source> {
    if let [spec] = specs {
        return Ok(Source::parse(spec, &hub.data_set_options())?);
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
    files::write_new(path, |file| file.write_all(text.as_bytes()))
}

fn summary(report: &Report, output: &Path) -> String {
    let mean = |f: &dyn Fn(&qqq_quant::report::LayerReport) -> f64| {
        report.layers.iter().map(f).sum::<f64>() / report.layers.len().max(1) as f64
    };
    let worst = report.layers.iter().max_by(|a, b| a.loss.total_cmp(&b.loss));
    let t = &report.timings;
    let mut rows = vec![("written", output.display().to_string()), ("format", report.format.clone())];
    if let Some(entry) = report.recipe.name.entry() {
        rows.push(("recipe", format!("{} ({}): {}", entry.word, entry.source, entry.what)));
    }
    let kinds = report.kinds();
    let half = report.recipe.activations == Activations::Half;
    if kinds.len() > 1 || half || report.recipe.bits == CodeBits::Eight {
        let activations = if half { "16-bit" } else { "int8" };
        rows.push(("weights", format!("{}; {activations} activations", kinds.join("; "))));
    }
    if report.recipe.head == Head::Int8 {
        rows.push(("output head", "int8, one scale per token of the vocabulary; int8 activations".into()));
    }
    rows.extend(report.transform.iter().map(|transform| ("transform", transform.describe())));
    rows.extend(report.budget.iter().map(|budget| ("budget", budget.describe())));
    rows.extend(report.size_rows());
    let (name, whose) = match report.recipe.calibrates() {
        true => ("output error", "output's square"),
        false => ("weight error", "weights' square (no calibration)"),
    };
    let error = (
        name,
        format!(
            "{} of the {whose}, mean over layers (rounding to nearest: {})",
            format::significant(mean(&|l| l.loss), 3),
            format::significant(mean(&|l| l.loss_nearest), 3)
        ),
    );
    if !report.layers.is_empty() {
        rows.push(error);
    }
    if !report.learning.is_empty() {
        let mean = |of: &dyn Fn(&qqq_quant::report::LearnReport) -> f64| {
            format::significant(report.learning.iter().map(of).sum::<f64>() / report.learning.len() as f64, 3)
        };
        let (before, after) = (mean(&|block| block.loss_before), mean(&|block| block.loss_after));
        let learned = format!("{after} of what leaves a block, mean over blocks (before learning: {before})");
        rows.push(("learned error", learned));
    }
    rows.extend(report.quality.iter().flat_map(Quality::rows));
    if let Some(rotation) = &report.rotation {
        rows.push(("rotation", rotation.to_string()));
    }
    if let Some(worst) = worst {
        rows.push(("worst layer", format!("{} ({})", worst.name, format::significant(worst.loss, 3))));
    }
    rows.push((
        "time",
        format!(
            "{} (transform {}, calibrate {}, solve {}, make ready {}, write {}, compare {}, keep for \
             --resume {})",
            format::seconds(t.total),
            format::seconds(t.transform),
            format::seconds(t.calibrate),
            format::seconds(t.solve),
            format::seconds(t.ready),
            format::seconds(t.write),
            format::seconds(t.compare),
            format::seconds(t.keep)
        ),
    ));
    if let Some(peak) = report.peak_memory {
        let estimate = format::bytes(report.memory_estimate);
        rows.push(("memory", format!("{} at most (estimated: {estimate})", format::bytes(peak))));
    }
    let mut text = pairs(rows);
    text += &format!(
        "\nNext:\n  qqq inspect {0}\n  qqq chat {0}\n  qqq eval kld {0} --baseline {1} --text FILE\n",
        format::shell_word(output),
        format::shell_word(Path::new(&report.model))
    );
    text
}
