//! `qqq compare`.

mod columns;
mod judge;
mod kept;
mod measure;
mod recipes;
mod shown;
mod subject;

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use clap::ValueEnum;
use qqq_model::memory;
use serde::Serialize;

use self::{
    measure::{Session, Sources},
    recipes::Recipes,
    subject::Named,
};
use super::{
    bench::Load,
    eval::{CutArgs, QuestionArgs},
    quantize,
};
use crate::{
    console::Console,
    device::{DeviceArgs, Place, on_device},
    errors::{InterruptedWithResult, bad_input, bad_input_hint},
    files,
    given::Given,
    model::HubArgs,
    numbers,
    record::Record,
};

const AFTER_HELP: &str = "\
Examples:
  qqq compare llama-w4a8 llama-awq --baseline ./llama --text wiki.txt --data tasks/
  qqq compare llama-fp16 llama-w4a8 --text wiki.txt --speed --report comparison.html
  qqq compare ./llama --recipes fp16,smoothquant,gptq,awq,os+,qqq,qqq-g128,qqq-rot -o llama-recipes \\
      --calibration c4.jsonl --text wiki.txt --data tasks/
  qqq compare ./llama --recipes fp16,os+,os+:bits=4,gptq:group-size=channel -o llama-recipes --text wiki.txt --format latex

A recipe is a name of quantize --recipe, with options of that command behind it: NAME:OPTION=VALUE:... Each makes a checkpoint in \
the folder of --output, which is kept there. With --output what was measured is kept as well, and the same command goes on where it \
was stopped; a model, text or option that has changed is measured again. The folder also gets comparison.md, comparison.tex, \
comparison.json and report.html.

A star marks what differs from the baseline by more than chance, on the same windows and questions: perplexity by Student's t test of \
the windows' mean negative log-likelihoods, accuracy by McNemar's exact test, the average of tasks by a normal test; p < 0.05 after \
Holm's correction for the models of a column. Accuracy is acc; the JSON object also has acc_norm. Memory is what a loaded model's \
weights take. Ctrl-C ends with what was measured until then.";

/// Size, quality and speed of several models, or of a model's recipes, in one table
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct CompareArgs {
    // First: it sees what comes after it.
    #[command(flatten)]
    given: Given,
    /// Models to compare: directories, .gguf files, or owner/name on the hub; with --recipes the one float model to quantize
    #[arg(value_name = "MODEL", required = true)]
    models: Vec<String>,
    /// Model to compare with, usually the float one [default: the first MODEL; with --recipes fp16 if it is among them, else MODEL]
    #[arg(long, value_name = "MODEL")]
    baseline: Option<String>,
    /// Folder where measurements are kept, and the checkpoints of --recipes; a run that was stopped goes on there
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// What is printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Write a page with tables and figures
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Recipes to quantize MODEL by, with commas between: names of quantize --recipe, with its options behind a colon
    #[arg(long, value_name = "NAMES", value_delimiter = ',', requires = "output", help_heading = "Recipes")]
    recipes: Vec<String>,
    /// Calibration text of the recipes that take one, as quantize --calibration [default: built-in]
    #[arg(long, value_name = "SOURCE", num_args = 1.., requires = "recipes", help_heading = "Recipes")]
    calibration: Vec<String>,
    /// Calibration windows, as quantize --windows [default: each recipe's own]
    #[arg(long, value_name = "N", requires = "recipes", allow_negative_numbers = true, value_parser = numbers::count,
        help_heading = "Recipes")]
    calibration_windows: Option<usize>,
    /// Tokens of a calibration window, as quantize --window [default: each recipe's own]
    #[arg(long, value_name = "TOKENS", requires = "recipes", allow_negative_numbers = true, value_parser = numbers::count,
        help_heading = "Recipes")]
    calibration_window: Option<usize>,
    /// Seed of everything random in the recipes [default: 0]
    #[arg(long, value_name = "N", requires = "recipes", help_heading = "Recipes")]
    seed: Option<u64>,
    /// Text file: plain text, JSON lines or arrays, parquet, Arrow. Held-out text: not what the models were calibrated on. May be given
    /// several times
    #[arg(long = "text", value_name = "FILE", help_heading = "Text")]
    texts: Vec<PathBuf>,
    #[command(flatten)]
    cut: CutArgs,
    #[command(flatten)]
    questions: QuestionArgs,
    /// Score the first N questions of each task only; -1: all
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = numbers::questions, help_heading = "Tasks")]
    limit_tasks: Option<usize>,
    /// Measure tokens a second as well, as bench model does with one sequence
    #[arg(long, help_heading = "Speed")]
    speed: bool,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 512, requires = "speed", allow_negative_numbers = true,
        value_parser = numbers::count, help_heading = "Speed")]
    prompt_tokens: usize,
    /// Tokens to generate behind it
    #[arg(long, value_name = "N", default_value_t = 128, requires = "speed", allow_negative_numbers = true,
        value_parser = numbers::count, help_heading = "Speed")]
    new_tokens: usize,
    /// Measured runs, after one to warm up
    #[arg(long, value_name = "N", default_value_t = 5, requires = "speed", allow_negative_numbers = true,
        value_parser = numbers::count, help_heading = "Speed")]
    repeat: usize,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// What is printed of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Format {
    /// Tables for a terminal
    Text,
    /// Tables of GitHub's Markdown
    Markdown,
    /// Tables of LaTeX, with the package booktabs
    Latex,
}

impl CompareArgs {
    /// Speed as it is to be measured.
    fn load(&self) -> Option<Load> {
        let Self { prompt_tokens, new_tokens, repeat, .. } = *self;
        self.speed.then_some(Load { batch: 1, prompt_tokens, new_tokens, repeat })
    }

    /// Refuses what makes no sense, before work begins.
    fn check(&self) -> anyhow::Result<()> {
        if self.texts.is_empty() && !self.questions.are_asked_for() && !self.speed {
            return Err(bad_input_hint(
                "nothing is to be measured",
                "give a text (--text FILE), questions (--tasks, --data FOLDER), or ask for --speed",
            ));
        }
        let of_texts = ["window", "stride", "scoring", "limit", "text-format", "text-field"];
        if let (true, Some(option)) =
            (self.texts.is_empty(), of_texts.into_iter().find(|o| self.given.has(o)))
        {
            return Err(bad_input(format!("--{option} does nothing without --text: leave it out")));
        }
        let of_tasks =
            ["limit-tasks", "fewshot", "chat-template", "fewshot-as-multiturn", "system-instruction"];
        if let (false, Some(option)) =
            (self.questions.are_asked_for(), of_tasks.into_iter().find(|o| self.given.has(o)))
        {
            return Err(bad_input(format!(
                "--{option} does nothing without --tasks or --data: leave it out"
            )));
        }
        if self.speed && self.new_tokens < 2 {
            return Err(bad_input("--new-tokens must be at least 2: the first comes out of the prompt"));
        }
        if !self.recipes.is_empty() && self.models.len() > 1 {
            return Err(bad_input_hint(
                format!("--recipes quantizes one model, and {} are named", self.models.len()),
                "name one; checkpoints that are there are compared without --recipes",
            ));
        }
        if let Some(path) = &self.report {
            files::check_writable(path, "--report")?;
            files::check_no_input(path, "--report", self.texts.iter().map(PathBuf::as_path))?;
        }
        let specs: Vec<&str> = self.models.iter().chain(&self.baseline).map(String::as_str).collect();
        self.hub.check(&specs)
    }
}

/// What a file has of a comparison: what `--json` prints.
#[derive(Serialize)]
struct Written<'a> {
    #[serde(flatten)]
    outcome: &'a judge::Outcome<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<Record>,
}

/// Runs the command.
pub fn run(args: &CompareArgs, console: &Console) -> anyhow::Result<()> {
    args.check()?;
    let sources = Sources::read(args, console)?;
    let recipes = Recipes::new(args)?;
    if let Some(folder) = &args.output {
        kept::prepare(folder)?;
    }
    let models = match &recipes {
        Some(recipes) => recipes.make(args, console)?,
        None => subject::named(&args.models),
    };
    let own = || match models.iter().find(|named| named.name == "fp16" && recipes.is_some()) {
        Some(fp16) => fp16.clone(),
        None => Named::new(&args.models[0]),
    };
    let baseline = args.baseline.as_ref().map_or_else(own, |spec| Named::new(spec));
    // First, and once.
    let mut models: Vec<Named> = models.into_iter().filter(|named| named.spec != baseline.spec).collect();
    models.insert(0, baseline);
    on_device!(args.device.device, &models[0].spec, &args.hub, |place| {
        run_on(args, &sources, &models, &place, console)
    })
}

fn run_on<P: Place>(
    args: &CompareArgs,
    sources: &Sources,
    models: &[Named],
    place: &P,
    console: &Console,
) -> anyhow::Result<()> {
    let session = Session::new(args, sources, models, place, console)?;
    let (rows, partial) = session.measure()?;
    let outcome = judge::Outcome::new(sources, args, place.identity()?, rows, (partial, models.len()));
    let tables = shown::tables(&outcome);
    let page = || {
        let mut circumstances = quantize::circumstances(&outcome.device, console);
        circumstances
            .environment
            .extend(memory::total().map(|bytes| ("memory".into(), crate::format::bytes(bytes))));
        shown::page(&outcome, &tables).page(&circumstances)
    };
    let partial_line = shown::partial(&outcome).map(|partial| format!("PARTIAL, interrupted: {partial}"));
    let with_partial = |mut parts: Vec<String>, mark: &str| {
        parts.splice(..0, partial_line.iter().map(|line| format!("{mark}{line}\n")));
        parts.join("\n")
    };
    let markdown = || with_partial(tables.iter().map(qqq_report::Table::markdown).collect(), "");
    let latex = || with_partial(tables.iter().map(qqq_report::Table::latex).collect(), "% ");
    let write = |path: &Path, text: &str| files::write(path, |file| file.write_all(text.as_bytes()));
    if let Some(path) = &args.report {
        write(path, &page()?)?;
    }
    if let Some(folder) = &args.output {
        write(&folder.join("comparison.md"), &markdown())?;
        write(&folder.join("comparison.tex"), &latex())?;
        let whole = Written { outcome: &outcome, run: console.recorded() };
        write(&folder.join("comparison.json"), &(serde_json::to_string_pretty(&whole)? + "\n"))?;
        write(&folder.join(qqq_report::PAGE_FILE), &page()?)?;
        if outcome.partial {
            console.note(&format!(
                "what is finished is kept in {}: the same command goes on there",
                folder.display()
            ));
        }
    }
    console.result(&outcome, |_| match args.format {
        Format::Text => shown::text(&outcome, &tables, console),
        Format::Markdown => markdown(),
        Format::Latex => latex(),
    })?;
    if outcome.partial { Err(InterruptedWithResult.into()) } else { Ok(()) }
}
