//! `qqq eval`.

mod curve;
mod kld;
mod perplexity;
mod tasks;
mod text;

pub use kld::rows as kld_rows;
pub use tasks::{HashedFile, Protocol, QuestionArgs, TaskFile, score_all};
pub use text::CutArgs;

use std::path::Path;

use clap::Subcommand;

use crate::{
    console::Console,
    errors::{bad_input, bad_input_hint},
    interrupt::Guard,
    model::LoadedModel,
    progress::Progress,
};

/// Measure a model's quality on text and questions
#[derive(Debug, clap::Args)]
pub struct EvalArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Perplexity(perplexity::PerplexityArgs),
    Kld(kld::KldArgs),
    Curve(Box<curve::CurveArgs>),
    Tasks(tasks::TasksArgs),
}

/// Runs the command.
pub fn run(args: &EvalArgs, console: &Console) -> anyhow::Result<()> {
    match &args.command {
        Command::Perplexity(args) => perplexity::run(args, console),
        Command::Kld(args) => kld::run(args, console),
        Command::Curve(args) => curve::run(args, console),
        Command::Tasks(args) => tasks::run(args, console),
    }
}

/// Scores windows with progress, until Ctrl-C.
pub fn scored<R>(
    console: &Console,
    title: &str,
    score: impl FnOnce(&mut qqq_eval::Progress<'_>) -> qqq_eval::Result<R>,
) -> qqq_eval::Result<R> {
    let guard =
        Guard::telling("stopping after the windows in hand; Ctrl-C again ends at once, without figures");
    let mut progress = Progress::new(console, title);
    score(&mut |done, total| {
        tracing::debug!("{done} of {total} windows are done");
        progress.update(done as f64, total as f64, &format!("window {done}/{total}"));
        !guard.pressed()
    })
}

/// That two models, each with its name, predict the same tokens.
fn check_vocabularies<B: qqq_backend::Backend>(
    (baseline, of_baseline): (&str, &LoadedModel<B>),
    (name, model): (&str, &LoadedModel<B>),
) -> anyhow::Result<()> {
    let [expected, found] = [of_baseline, model].map(|m| m.decoder.config.vocab_size);
    if expected != found {
        return Err(bad_input(format!(
            "{baseline} has a vocabulary of {expected} tokens, {name} one of {found}: their predictions cannot be compared"
        )));
    }
    Ok(())
}

/// That two models, each with its name, see the same of a text: the baseline sees `tokens`.
pub fn check_tokens<B: qqq_backend::Backend>(
    (path, cut): (&Path, &CutArgs),
    tokens: &[u32],
    baseline: (&str, &LoadedModel<B>),
    model: (&str, &LoadedModel<B>),
) -> anyhow::Result<()> {
    check_vocabularies(baseline, model)?;
    if cut.open(path, model.1)?.tokens(&model.1.tokenizer)? != tokens {
        return Err(bad_input_hint(
            format!("{} and {} make different tokens of {}", model.0, baseline.0, path.display()),
            "the baseline must be the model that all others were made from, with the same tokenizer",
        ));
    }
    Ok(())
}

/// For a table: what was scored, of what was to be.
fn scored_row(windows: usize, planned: usize, tokens: usize, window: usize) -> (&'static str, String) {
    match windows < planned {
        false => ("scored", format!("{tokens} tokens in {windows} windows of {window}")),
        true => (
            "scored",
            format!(
                "PARTIAL, interrupted: {tokens} tokens in the first {windows} of {planned} windows of {window}"
            ),
        ),
    }
}
