//! `qqq eval perplexity`.

use qqq_eval::{PerplexityReport, WindowOptions, perplexity};
use serde::Serialize;

use super::text::{TextArgs, TextName};
use crate::{
    console::Console,
    format,
    model::{self, HubArgs},
    progress::Progress,
    table::pairs,
};

const AFTER_HELP: &str = "\
Examples:
  qqq eval perplexity qwen-w4a8 --text wiki.txt
  qqq eval perplexity model.gguf --text wiki.txt --scoring second-half --window 512   # as llama-perplexity
  qqq eval perplexity qwen-w4a8 --text wiki.txt --window 2048 --stride 512            # sliding

Perplexity is exp of the mean negative log-likelihood of a token: lower is better. Compare only figures of one \
tokenizer, text, window and way of scoring. What is left after the last full window is not scored.";

/// Perplexity of a model on a text
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct PerplexityArgs {
    /// Model: a directory, a .gguf file, or owner/name on the hub
    #[arg(value_name = "MODEL")]
    model: String,
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    hub: HubArgs,
}

#[derive(Serialize)]
struct Outcome<'a> {
    model: &'a str,
    text: TextName,
    options: WindowOptions,
    #[serde(flatten)]
    report: PerplexityReport,
}

/// Runs the command.
pub fn run(args: &PerplexityArgs, console: &Console) -> anyhow::Result<()> {
    let model = model::load(&args.model, &args.hub)?;
    let (tokens, options) = args.text.load(&model, &|read| console.note(read))?;
    let mut progress = Progress::new(console, "scoring");
    let report = perplexity(&model.decoder, &tokens, &options, &mut |done, total| {
        progress.update(done as f64, total as f64, &format!("window {done}/{total}"));
        true
    })?;
    drop(progress);
    let outcome = Outcome { model: &args.model, text: args.text.name()?, options, report };
    console.result(&outcome, |o| {
        let r = &o.report;
        let halves = r.second_half_perplexity.map(|p| ("second halves", format::significant(p, 5)));
        let perplexity = format::estimate(r.perplexity, r.standard_error, console.fancy_out());
        let rows = [("perplexity", perplexity)].into_iter().chain(halves).chain([
            o.text.row(),
            ("scored", format!("{} tokens in {} windows of {}", r.tokens, r.windows, o.options.window)),
            (
                "time",
                format!(
                    "{} ({:.0} tokens/s)",
                    format::seconds(r.seconds),
                    (r.windows * o.options.window) as f64 / r.seconds
                ),
            ),
        ]);
        pairs(rows)
    })
}
