//! `qqq eval tasks`.

mod data;
mod questions;

pub use self::{
    data::{HashedFile, TaskFile},
    questions::{Protocol, QuestionArgs},
};

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::PathBuf,
};

use qqq_eval::{
    Estimate, EvalError,
    tasks::{Encoded, Example, GROUPS, Group, GroupReport, Scored, Scorer, Task, TaskReport},
};
use serde::Serialize;

use crate::{
    console::Console,
    device::{DeviceArgs, Place, on_device},
    errors::InterruptedWithResult,
    files, format,
    interrupt::Guard,
    model::{self, HubArgs},
    numbers,
    progress::Progress,
    table::{pairs, table},
};

const AFTER_HELP: &str = "\
Examples:
  qqq eval tasks qwen-w4a8 --limit 500
  qqq eval tasks qwen-w4a8 --tasks mmlu --fewshot 5 --data mmlu/ --json
  qqq eval tasks qwen-w4a8 --tasks piqa,lambada --chat-template
  qqq eval tasks model.gguf --tasks piqa --data piqa=valid.jsonl --samples answers.jsonl

Tasks: piqa, arc_easy, arc_challenge, hellaswag, winogrande, lambada (the harness's lambada_openai), mmlu (57 subjects, in the \
groups mmlu_stem, mmlu_other, mmlu_social_sciences, mmlu_humanities; or one of them, as mmlu_anatomy).

Prompts, examples, choices and metrics are those of lm-evaluation-harness 0.4.13. acc is the share of questions whose right \
answer has the largest log-likelihood (lambada: whose last word is what greedy decoding gives), acc_norm the same for \
log-likelihood by character of the answer. Standard errors are those of the mean over questions; of a group, pooled.

Without --data, data sets come from the hub: baber/piqa, allenai/ai2_arc, Rowan/hellaswag, allenai/winogrande, \
EleutherAI/lambada_openai, cais/mmlu. Files have their fields, as JSON lines, parquet or Arrow, whole or in shards. In a folder \
they are found by name: piqa*.jsonl, the validation split (arc, lambada, mmlu: test), as in piqa.validation.jsonl; examples \
come from the train split (lambada: test, mmlu: dev). A subject of mmlu has a file or a folder of its own, or rows of one \
file for all. Ctrl-C ends with what was scored until then: the first questions of a task.";

/// How many questions of known tasks a model answers rightly
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct TasksArgs {
    /// Model: a directory, a .gguf file, or owner/name on the hub
    #[arg(value_name = "MODEL")]
    model: String,
    #[command(flatten)]
    questions: QuestionArgs,
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

#[derive(Serialize)]
struct Outcome<'a> {
    model: &'a str,
    /// The method whose arithmetic was simulated.
    #[serde(skip_serializing_if = "Option::is_none")]
    simulated: Option<&'static str>,
    #[serde(flatten)]
    protocol: Protocol<'a>,
    tasks: Vec<OneTask>,
    /// Tasks that count together, where all of them were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    groups: Vec<OneGroup>,
    /// Whether it was stopped before all was scored.
    partial: bool,
    /// Seconds of scoring, texts being tokens already.
    seconds: f64,
}

#[derive(Serialize)]
struct OneTask {
    #[serde(flatten)]
    report: TaskReport,
    files: Vec<HashedFile>,
    /// The figures, with the digits of the table.
    shown: Shown,
}

#[derive(Serialize)]
struct OneGroup {
    #[serde(flatten)]
    report: GroupReport,
    shown: Shown,
}

/// Figures as they are printed; accuracies in percent.
#[derive(Serialize)]
struct Shown {
    acc: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    acc_norm: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    perplexity: Option<String>,
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
    if let Some(path) = &args.samples {
        files::check_writable(path, "--samples")?;
    }
    // Before a model is loaded: files are wrong more often.
    let files = args.questions.read(args.limit, &args.hub)?;
    if let Some(path) = &args.samples {
        let inputs = files.iter().flat_map(|task| &task.files);
        files::check_no_input(path, "--samples", inputs.map(|file| file.file.as_path()))?;
    }
    on_device!(args.device.device, &args.model, &args.hub, |place| run_on(args, files, &place, console))
}

fn run_on<P: Place>(
    args: &TasksArgs,
    files: Vec<TaskFile>,
    place: &P,
    console: &Console,
) -> anyhow::Result<()> {
    let model = model::load(&args.model, &args.hub, place)?;
    let (documents, files): (Vec<_>, Vec<_>) =
        files.into_iter().map(|file| (file.documents, file.files)).unzip();
    for file in files.iter().flatten() {
        file.tell(console);
    }
    let encoded = args.questions.encoded(documents, &model, console)?;
    let scored = score_all(&mut Scorer::new(&model.decoder)?, &encoded, "scoring", console)?;
    if let Some(path) = &args.samples {
        files::write(path, |file| write_samples(file, &scored))?;
    }
    let partial = scored.len() < encoded.len() || scored.iter().any(|one| one.report.partial);
    let groups = GROUPS.iter().filter_map(|group| group.report(scored.iter().map(|one| &one.report)));
    let of_group = |report: GroupReport| {
        let shown = Shown { acc: percent(report.acc), acc_norm: None, perplexity: None };
        OneGroup { report, shown }
    };
    let groups = groups.map(of_group).collect();
    let one = |(Scored { report, .. }, files): (Scored, Vec<HashedFile>)| {
        let shown = Shown {
            acc: percent(report.acc),
            acc_norm: report.acc_norm.map(percent),
            perplexity: report.perplexity.map(|e| format::estimate(e.mean, e.standard_error)),
        };
        OneTask { report, files, shown }
    };
    let outcome = Outcome {
        model: &args.model,
        simulated: model::simulated(&model.checkpoint),
        protocol: args.questions.protocol(args.limit),
        seconds: scored.iter().map(|one| one.report.seconds).sum(),
        tasks: scored.into_iter().zip(files).map(one).collect(),
        groups,
        partial,
    };
    console.result(&outcome, |o| shown(o, encoded.len(), console))?;
    if partial { Err(InterruptedWithResult.into()) } else { Ok(()) }
}

fn percent(e: Estimate) -> String {
    match e.standard_error {
        Some(error) => format!("{:.2} ± {:.2}", 100.0 * e.mean, 100.0 * error),
        None => format!("{:.2}", 100.0 * e.mean),
    }
}

/// Scores one task after the other, until Ctrl-C; of the last one the first questions. `title` stands before the progress.
pub fn score_all<B: qqq_backend::Backend>(
    scorer: &mut Scorer<'_, B>,
    tasks: &[Encoded],
    title: &str,
    console: &Console,
) -> anyhow::Result<Vec<Scored>> {
    let guard =
        Guard::telling("stopping after the questions in hand; Ctrl-C again ends at once, without figures");
    let mut progress = Progress::new(console, title);
    let total: usize = tasks.iter().map(Encoded::tokens).sum();
    let mut before = 0;
    let mut scored: Vec<Scored> = Vec::new();
    for encoded in tasks {
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
    let none = || "-".to_owned();
    let perplexities = outcome.tasks.iter().any(|one| one.shown.perplexity.is_some());
    let row = |name: &str, n: String, shown: &Shown| {
        let mut row =
            vec![name.to_owned(), n, shown.acc.clone(), shown.acc_norm.clone().unwrap_or_else(none)];
        row.extend(perplexities.then(|| shown.perplexity.clone().unwrap_or_else(none)));
        row
    };
    let mut rows = Vec::new();
    for (i, one) in outcome.tasks.iter().enumerate() {
        let n = match one.report.partial {
            true => format!("{} of {} (PARTIAL)", one.report.documents, one.report.planned_documents),
            false => one.report.documents.to_string(),
        };
        rows.push(row(one.report.task, n, &one.shown));
        // A group comes under the last of its tasks.
        let ends = |group: &&OneGroup| {
            let is_member = |one: &OneTask| {
                let task = Task::named(one.report.task);
                Group::named(group.report.group).zip(task).is_some_and(|(group, task)| group.holds(task))
            };
            outcome.tasks.iter().rposition(is_member) == Some(i)
        };
        for group in outcome.groups.iter().filter(ends) {
            rows.push(row(group.report.group, group.report.documents.to_string(), &group.shown));
        }
    }
    let mut columns = vec!["task", "n", "acc, %", "acc_norm, %"];
    columns.extend(perplexities.then_some("perplexity"));
    let found = table(console, &columns, 1, rows);
    let questions: usize = outcome.tasks.iter().map(|one| one.report.documents).sum();
    let time = format!(
        "{} ({:.1} questions/s)",
        format::seconds(outcome.seconds),
        questions as f64 / outcome.seconds
    );
    let missing = (outcome.tasks.len() < asked)
        .then(|| ("not scored", format!("PARTIAL, interrupted: {} tasks", asked - outcome.tasks.len())));
    let simulated = outcome.simulated.map(|method| ("simulated", method.to_owned()));
    let told = [("prompts", outcome.protocol.describe()), ("time", time)];
    format!("{found}\n\n{}", pairs(missing.into_iter().chain(simulated).chain(told)))
}
