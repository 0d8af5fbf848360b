//! `qqq eval tasks`.

mod data;

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::PathBuf,
};

use qqq_eval::{
    Estimate, EvalError,
    tasks::{Documents, Encoded, Example, Scored, Scorer, TASKS, Task, TaskReport},
};
use serde::Serialize;

use self::data::{Source, TaskFile};
use crate::{
    console::Console,
    device::{DeviceArgs, Place, on_device},
    errors::{InterruptedWithResult, bad_input},
    files, format,
    interrupt::Guard,
    model::{self, HubArgs},
    numbers,
    progress::Progress,
    table::{pairs, table},
};

const AFTER_HELP: &str = "\
Examples:
  qqq eval tasks qwen-w4a8 --data tasks/
  qqq eval tasks qwen-w4a8 --tasks piqa,arc_easy --data tasks/ --limit 500 --json
  qqq eval tasks model.gguf --tasks piqa --data piqa=valid.jsonl --samples answers.jsonl

Prompts, choices and metrics are those of lm-evaluation-harness 0.4.13, without examples in the prompt and without chat \
template: acc is the share of questions whose right answer has the largest log-likelihood, acc_norm the same for \
log-likelihood by character of the answer. Standard errors are those of the mean over questions. Files have a question a \
line, as JSON with the fields of the data set on the hub: baber/piqa, allenai/ai2_arc, Rowan/hellaswag, \
allenai/winogrande. In a folder they are found by name: piqa*.jsonl, the validation split (arc: test), as in \
piqa.validation.jsonl. Ctrl-C ends with what was scored until then: the first questions of a task.";

/// How many questions of known tasks a model answers rightly
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct TasksArgs {
    /// Model: a directory, a .gguf file, or owner/name on the hub
    #[arg(value_name = "MODEL")]
    model: String,
    /// Which, with commas between
    #[arg(long, value_name = "TASKS", value_delimiter = ',', value_parser = known,
        default_value = "piqa,arc_easy,arc_challenge,hellaswag,winogrande", help_heading = "Tasks")]
    tasks: Vec<&'static Task>,
    /// Folder of data files, or a file; TASK=FILE says whose it is. May be given several times
    #[arg(long, value_name = "PATH", required = true, help_heading = "Tasks")]
    data: Vec<String>,
    /// Score the first N questions of each task only; -1: all
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = numbers::questions,
        help_heading = "Tasks")]
    limit: Option<usize>,
    /// Write every question's log-likelihoods, choice and target, as JSON lines
    #[arg(long, value_name = "FILE.jsonl", help_heading = "Tasks")]
    samples: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    hub: HubArgs,
}

fn known(name: &str) -> Result<&'static Task, String> {
    let names = || TASKS.iter().map(|task| task.name).collect::<Vec<_>>().join(", ");
    Task::named(name).ok_or_else(|| format!("there is no such task; there are {}", names()))
}

#[derive(Serialize)]
struct Outcome<'a> {
    model: &'a str,
    /// The method whose arithmetic was simulated.
    #[serde(skip_serializing_if = "Option::is_none")]
    simulated: Option<&'static str>,
    /// The harness whose prompts and metrics these are.
    protocol: &'static str,
    limit: Option<usize>,
    tasks: Vec<OneTask>,
    /// Whether it was stopped before all was scored.
    partial: bool,
    /// Seconds of scoring, texts being tokens already.
    seconds: f64,
}

#[derive(Serialize)]
struct OneTask {
    #[serde(flatten)]
    report: TaskReport,
    file: PathBuf,
    sha256: String,
    /// The figures, with the digits of the table.
    shown: Shown,
}

/// Figures as they are printed, in percent.
#[derive(Serialize)]
struct Shown {
    acc: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    acc_norm: Option<String>,
}

/// A line of --samples.
#[derive(Serialize)]
struct Sample<'a> {
    task: &'static str,
    #[serde(flatten)]
    example: &'a Example,
}

/// Runs the command.
pub fn run(args: &TasksArgs, console: &Console) -> anyhow::Result<()> {
    for (i, task) in args.tasks.iter().enumerate() {
        if args.tasks[..i].iter().any(|before| before.name == task.name) {
            return Err(bad_input(format!("--tasks: {} is named twice", task.name)));
        }
    }
    if let Some(path) = &args.samples {
        files::check_writable(path, "--samples")?;
    }
    // Before a model is loaded: files are wrong more often.
    let sources = args.data.iter().map(|data| Source::of(data)).collect::<anyhow::Result<Vec<_>>>()?;
    let found = data::find(&args.tasks, &sources)?;
    let limit = args.limit.unwrap_or(usize::MAX);
    let files = found
        .into_iter()
        .map(|(task, path)| TaskFile::read(task, &path, limit))
        .collect::<anyhow::Result<Vec<_>>>()?;
    on_device!(args.device.device, &args.model, &args.hub, |place| run_on(args, files, &place, console))
}

fn run_on<P: Place>(
    args: &TasksArgs,
    files: Vec<TaskFile>,
    place: &P,
    console: &Console,
) -> anyhow::Result<()> {
    let model = model::load(&args.model, &args.hub, place)?;
    let mut tasks = Vec::new();
    for TaskFile { documents, sha256 } in files {
        console.read_input(&documents.path, &sha256);
        tasks.push((Encoded::new(documents, &model.tokenizer, &model.checkpoint.config)?, sha256));
    }
    let scored = score_all(&mut Scorer::new(&model.decoder)?, &tasks, console)?;
    if let Some(path) = &args.samples {
        files::write(path, |file| write_samples(file, &scored))?;
    }
    let partial = scored.len() < tasks.len() || scored.iter().any(|one| one.report.partial);
    let seconds = scored.iter().map(|one| one.report.seconds).sum();
    let one = |(Scored { report, .. }, (encoded, sha256)): (Scored, &(Encoded, String))| {
        let percent = |e: Estimate| match e.standard_error {
            Some(error) => format!("{:.2} ± {:.2}", 100.0 * e.mean, 100.0 * error),
            None => format!("{:.2}", 100.0 * e.mean),
        };
        let shown = Shown { acc: percent(report.acc), acc_norm: report.acc_norm.map(percent) };
        let Documents { path, .. } = &encoded.documents;
        OneTask { report, file: path.clone(), sha256: sha256.clone(), shown }
    };
    let outcome = Outcome {
        model: &args.model,
        simulated: model::simulated(&model.checkpoint),
        protocol: "lm-evaluation-harness 0.4.13, zero-shot",
        limit: args.limit.filter(|limit| *limit != usize::MAX),
        tasks: scored.into_iter().zip(&tasks).map(one).collect(),
        partial,
        seconds,
    };
    console.result(&outcome, |o| shown(o, args.tasks.len(), console))?;
    if partial { Err(InterruptedWithResult.into()) } else { Ok(()) }
}

/// Scores one task after the other, until Ctrl-C; of the last one the first questions.
fn score_all<B: qqq_backend::Backend>(
    scorer: &mut Scorer<'_, B>,
    tasks: &[(Encoded, String)],
    console: &Console,
) -> anyhow::Result<Vec<Scored>> {
    let guard =
        Guard::telling("stopping after the questions in hand; Ctrl-C again ends at once, without figures");
    let mut progress = Progress::new(console, "scoring");
    let total: usize = tasks.iter().map(|(encoded, _)| encoded.tokens()).sum();
    let mut before = 0;
    let mut scored: Vec<Scored> = Vec::new();
    for (encoded, _) in tasks {
        let name = encoded.documents.task.name;
        let outcome = scorer.score(encoded, &mut |done, _| {
            tracing::debug!("{name}: {} of {total} tokens are done", before + done);
            progress.update((before + done) as f64, total as f64, name);
            !guard.pressed()
        });
        match outcome {
            Ok(one) => scored.push(one),
            // Tasks before it have their figures.
            Err(EvalError::Interrupted) if !scored.is_empty() => break,
            Err(e) => return Err(e.into()),
        }
        before += encoded.tokens();
        if scored.last().is_some_and(|one| one.report.partial) {
            break;
        }
    }
    Ok(scored)
}

fn write_samples(file: &mut File, scored: &[Scored]) -> std::io::Result<()> {
    let mut out = BufWriter::new(file);
    for one in scored {
        for example in &one.examples {
            serde_json::to_writer(&mut out, &Sample { task: one.report.task, example })?;
            out.write_all(b"\n")?;
        }
    }
    out.flush()
}

fn shown(outcome: &Outcome<'_>, asked: usize, console: &Console) -> String {
    let rows = outcome.tasks.iter().map(|one| {
        let n = match one.report.partial {
            true => format!("{} of {} (PARTIAL)", one.report.documents, one.report.planned_documents),
            false => one.report.documents.to_string(),
        };
        let norm = one.shown.acc_norm.clone().unwrap_or_else(|| "-".into());
        vec![one.report.task.to_owned(), n, one.shown.acc.clone(), norm]
    });
    let found = table(console, &["task", "n", "acc, %", "acc_norm, %"], 1, rows);
    let questions: usize = outcome.tasks.iter().map(|one| one.report.documents).sum();
    let time = format!(
        "{} ({:.1} questions/s)",
        format::seconds(outcome.seconds),
        questions as f64 / outcome.seconds
    );
    let missing = (outcome.tasks.len() < asked)
        .then(|| ("not scored", format!("PARTIAL, interrupted: {} tasks", asked - outcome.tasks.len())));
    let simulated = outcome.simulated.map(|method| ("simulated", method.to_owned()));
    let rows = missing.into_iter().chain(simulated).chain([("time", time)]);
    format!("{found}\n\n{}", pairs(rows))
}
