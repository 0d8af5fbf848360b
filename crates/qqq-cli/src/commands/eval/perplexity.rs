//! `qqq eval perplexity`.

use qqq_eval::{PerplexityReport, WindowOptions, perplexity};
use serde::Serialize;

use super::{
    scored, scored_row,
    text::{TextArgs, TextName},
};
use crate::{
    console::Console,
    device::{DeviceArgs, Place, on_device},
    errors::InterruptedWithResult,
    format,
    model::{self, HubArgs},
    table::pairs,
};

const AFTER_HELP: &str = "\
Examples:
  qqq eval perplexity qwen-w4a8 --text wiki.txt
  qqq eval perplexity qwen-w4a8 --dataset wikitext2                                   # as in papers
  qqq eval perplexity model.gguf --text wiki.txt --scoring second-half --window 512   # as llama-perplexity
  qqq eval perplexity qwen-w4a8 --text wiki.txt --window 2048 --stride 512            # sliding

Perplexity is exp of the mean negative log-likelihood of a token: lower is better. Compare only figures of one \
tokenizer, text, window and way of scoring. What is left after the last full window is not scored. Digits are printed \
down to the fourth place after the standard error's first: recipes on the same text differ by far less than that error. \
Ctrl-C ends with what was scored until then.";

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
    text: TextName,
    options: WindowOptions,
    #[serde(flatten)]
    report: PerplexityReport,
    /// The figures, with the digits of the table.
    shown: Shown,
}

/// Figures as they are printed.
#[derive(Serialize)]
struct Shown {
    perplexity: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    second_half_perplexity: Option<String>,
}

/// Runs the command.
pub fn run(args: &PerplexityArgs, console: &Console) -> anyhow::Result<()> {
    on_device!(args.device.device, &args.model, &args.hub, |place| run_on(args, &place, console))
}

fn run_on<P: Place>(args: &PerplexityArgs, place: &P, console: &Console) -> anyhow::Result<()> {
    let model = model::load(&args.model, &args.hub, place)?;
    let mut text = args.text.open(&model, &args.hub)?;
    let tokens = text.tokens(&model.tokenizer)?;
    let (text, options) = text.finish(console)?;
    let report =
        scored(console, "scoring", |progress| perplexity(&model.decoder, &tokens, &options, progress))?;
    let shown = Shown {
        perplexity: format::estimate(report.perplexity, report.standard_error),
        second_half_perplexity: report.second_half_perplexity.map(|p| format::estimate(p, None)),
    };
    let simulated = model::simulated(&model.checkpoint);
    let outcome = Outcome { model: &args.model, simulated, text, options, report, shown };
    console.result(&outcome, |o| {
        let (r, shown) = (&o.report, &o.shown);
        let halves = shown.second_half_perplexity.clone().map(|p| ("second halves", p));
        let rate = (r.windows * o.options.window) as f64 / r.seconds;
        let simulated = o.simulated.map(|method| ("simulated", method.to_owned()));
        let rows =
            [("perplexity", shown.perplexity.clone())].into_iter().chain(halves).chain(simulated).chain([
                o.text.row(),
                scored_row(r.windows, r.planned_windows, r.tokens, o.options.window),
                ("time", format!("{} ({rate:.0} tokens/s)", format::seconds(r.seconds))),
            ]);
        pairs(rows)
    })?;
    if outcome.report.partial { Err(InterruptedWithResult.into()) } else { Ok(()) }
}
