//! `qqq eval kld`.

use qqq_eval::{Estimate, KldReport, WindowOptions, kl_divergence};
use serde::Serialize;

use super::{
    check_vocabularies, scored, scored_row,
    text::{TextArgs, TextName},
};
use crate::{
    console::Console,
    device::{DeviceArgs, Place, on_device},
    errors::{InterruptedWithResult, bad_input_hint},
    format,
    model::{self, HubArgs},
    table::pairs,
};

const AFTER_HELP: &str = "\
Example:
  qqq eval kld qwen-w4a8 --baseline Qwen/Qwen2.5-0.5B-Instruct --text wiki.txt --limit 20

KL(baseline || model) per token in nats is how far the model's predictions are from the baseline's: 0 is no \
difference. It resolves smaller losses than perplexity does, which can even fall by chance. Standard errors come \
from the spread between windows. Both models are in memory at once. Ctrl-C ends with what was scored until then.";

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
    device: DeviceArgs,
    #[command(flatten)]
    hub: HubArgs,
}

#[derive(Serialize)]
struct Outcome<'a> {
    model: &'a str,
    baseline: &'a str,
    text: TextName,
    /// The method whose arithmetic was simulated, in the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    simulated: Option<&'static str>,
    options: WindowOptions,
    #[serde(flatten)]
    report: KldReport,
    /// The figures, with the digits of the table.
    shown: Shown,
}

/// Figures as they are printed.
#[derive(Serialize)]
struct Shown {
    kl_divergence: String,
    top1_agreement_percent: String,
    perplexity_ratio: String,
    perplexity: String,
    baseline_perplexity: String,
}

impl Shown {
    fn of(r: &KldReport) -> Self {
        let show = |e: Estimate| format::estimate(e.mean, e.standard_error);
        let percent = |e: Estimate| format::estimate(e.mean * 100.0, e.standard_error.map(|s| s * 100.0));
        Self {
            kl_divergence: show(r.kl_divergence),
            top1_agreement_percent: percent(r.top1_agreement),
            perplexity_ratio: show(r.perplexity_ratio),
            perplexity: format::estimate(r.perplexity, None),
            baseline_perplexity: format::estimate(r.baseline_perplexity, None),
        }
    }
}

/// Runs the command.
pub fn run(args: &KldArgs, console: &Console) -> anyhow::Result<()> {
    args.hub.check(&[&args.model, &args.baseline])?;
    on_device!(args.device.device, &args.model, &args.hub, |place| run_on(args, &place, console))
}

fn run_on<P: Place>(args: &KldArgs, place: &P, console: &Console) -> anyhow::Result<()> {
    let model = model::load_checked(&args.model, &args.hub, place)?;
    let mut text = args.text.open(&model, &args.hub)?;
    let tokens = text.tokens(&model.tokenizer)?;
    let baseline = model::load_checked(&args.baseline, &args.hub, place)?;
    check_vocabularies((&args.baseline, &baseline), (&args.model, &model))?;
    text.options().check(&baseline.checkpoint.config)?;
    if text.tokens(&baseline.tokenizer)? != tokens {
        return Err(bad_input_hint(
            format!("{} and {} make different tokens of this text", args.model, args.baseline),
            "the baseline must be the model that MODEL was made from, with the same tokenizer",
        ));
    }
    let (text, options) = text.finish(console)?;
    let report = scored(console, "comparing", |progress| {
        kl_divergence(&baseline.decoder, &model.decoder, &tokens, &options, progress)
    })?;
    let shown = Shown::of(&report);
    let simulated = model::simulated(&model.checkpoint);
    let outcome =
        Outcome { model: &args.model, baseline: &args.baseline, text, simulated, options, report, shown };
    console.result(&outcome, |o| {
        let r = &o.report;
        let mut all = rows(r);
        all.extend(o.simulated.map(|method| ("simulated", method.to_owned())));
        all.push(o.text.row());
        all.push(scored_row(r.windows, r.planned_windows, r.tokens, o.options.window));
        all.push(("time", format::seconds(r.seconds)));
        pairs(all)
    })?;
    if outcome.report.partial { Err(InterruptedWithResult.into()) } else { Ok(()) }
}

/// What was measured, as names and values.
pub fn rows(r: &KldReport) -> Vec<(&'static str, String)> {
    let shown = Shown::of(r);
    vec![
        ("KL divergence", format!("{} nats per token", shown.kl_divergence)),
        ("top-1 agreement", format!("{} %", shown.top1_agreement_percent)),
        (
            "perplexity ratio",
            format!(
                "{} ({} against {})",
                shown.perplexity_ratio, shown.perplexity, shown.baseline_perplexity
            ),
        ),
    ]
}
