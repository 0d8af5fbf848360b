//! `qqq eval kld`.

use qqq_eval::{KldReport, WindowOptions, kl_divergence};
use serde::Serialize;

use super::text::{TextArgs, TextName};
use crate::{
    console::Console,
    errors::{bad_input, bad_input_hint},
    format,
    model::{self, HubArgs},
    progress::Progress,
    table::pairs,
};

const AFTER_HELP: &str = "\
Example:
  qqq eval kld qwen-w4a8 --baseline Qwen/Qwen2.5-0.5B-Instruct --text wiki.txt --limit 20

KL(baseline || model) per token in nats is how far the model's predictions are from the baseline's: 0 is no \
difference. It resolves smaller losses than perplexity does, which can even fall by chance. Standard errors come \
from the spread between windows. Both models are in memory at once.";

/// KL divergence, top-1 agreement and perplexity ratio of a model against a baseline
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct KldArgs {
    /// Model to judge: a directory, a .gguf file, or owner/name on the hub
    #[arg(value_name = "MODEL")]
    model: String,
    /// Model to compare with, usually the float one that MODEL was made from
    #[arg(long, value_name = "MODEL")]
    baseline: String,
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    hub: HubArgs,
}

#[derive(Serialize)]
struct Outcome<'a> {
    model: &'a str,
    baseline: &'a str,
    text: TextName,
    options: WindowOptions,
    #[serde(flatten)]
    report: KldReport,
}

/// Runs the command.
pub fn run(args: &KldArgs, console: &Console) -> anyhow::Result<()> {
    let model = model::load(&args.model, &args.hub)?;
    let (tokens, options) = args.text.load(&model, &|read| console.note(read))?;
    let baseline = model::load(&args.baseline, &args.hub)?;
    if baseline.decoder.config.vocab_size != model.decoder.config.vocab_size {
        return Err(bad_input(format!(
            "{} has a vocabulary of {} tokens, {} one of {}: their predictions cannot be compared",
            args.baseline, baseline.decoder.config.vocab_size, args.model, model.decoder.config.vocab_size
        )));
    }
    if args.text.load(&baseline, &|_| {})?.0 != tokens {
        return Err(bad_input_hint(
            format!("{} and {} make different tokens of this text", args.model, args.baseline),
            "the baseline must be the model that MODEL was made from, with the same tokenizer",
        ));
    }
    let mut progress = Progress::new(console, "comparing");
    let report = kl_divergence(&baseline.decoder, &model.decoder, &tokens, &options, &mut |done, total| {
        progress.update(done as f64, total as f64, &format!("window {done}/{total}"));
        true
    })?;
    drop(progress);
    let text = args.text.name()?;
    let outcome = Outcome { model: &args.model, baseline: &args.baseline, text, options, report };
    console.result(&outcome, |o| {
        let r = &o.report;
        let mut all = rows(r, console.fancy_out());
        all.push(o.text.row());
        all.push(("scored", format!("{} tokens in {} windows of {}", r.tokens, r.windows, o.options.window)));
        all.push(("time", format::seconds(r.seconds)));
        pairs(all)
    })
}

/// What was measured, as names and values.
pub fn rows(r: &KldReport, unicode: bool) -> Vec<(&'static str, String)> {
    let show = |e: qqq_eval::Estimate| format::estimate(e.mean, e.standard_error, unicode);
    let percent = |e: qqq_eval::Estimate| {
        format!("{} %", format::estimate(e.mean * 100.0, e.standard_error.map(|s| s * 100.0), unicode))
    };
    vec![
        ("KL divergence", format!("{} nats per token", show(r.kl_divergence))),
        ("top-1 agreement", percent(r.top1_agreement)),
        (
            "perplexity ratio",
            format!(
                "{} ({} against {})",
                show(r.perplexity_ratio),
                format::significant(r.perplexity, 5),
                format::significant(r.baseline_perplexity, 5)
            ),
        ),
    ]
}
