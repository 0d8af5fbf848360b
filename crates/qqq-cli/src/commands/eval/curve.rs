//! `qqq eval curve`: what several checkpoints of a model lose, against their size.

mod figure;

use std::path::{Path, PathBuf};

use qqq_eval::{KldReport, WindowOptions, kl_divergence};
use serde::Serialize;

use self::figure::Point;
use super::{
    check_tokens, scored,
    text::{CutArgs, TextName},
};
use crate::{
    commands::inspect::Size,
    console::Console,
    device::{DeviceArgs, Place, on_device},
    errors::{InterruptedWithResult, bad_input},
    files, format,
    model::{self, HubArgs},
};

const AFTER_HELP: &str = "\
Example:
  qqq eval curve llama-g64 llama-g32 llama-5bit --baseline ./llama --text wiki.txt --text code.txt \\
      --plot curve.svg

Bits per weight are those of the linear layers of the blocks, as qqq inspect counts them. A checkpoint whose \
layers are all of one kind is \"uniform\", any other \"mixed\": what mixes is worth it below the line that joins the \
uniform ones. The table is Markdown.";

/// KL divergence from a baseline against bits per weight: a table of several checkpoints, and a figure
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct CurveArgs {
    /// Models to judge: directories, .gguf files, or owner/name on the hub
    #[arg(value_name = "MODEL", required = true)]
    models: Vec<String>,
    /// Model to compare with, usually the float one that they were made from
    #[arg(long, value_name = "MODEL")]
    baseline: String,
    /// Text file: plain text, JSON lines or arrays, parquet. Held-out text: not what the models were calibrated on. May be given
    /// several times: each is a column of the table and a panel of the figure
    #[arg(long = "text", value_name = "FILE", required = true, help_heading = "Text")]
    texts: Vec<PathBuf>,
    #[command(flatten)]
    cut: CutArgs,
    /// Write the figure, as SVG
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    hub: HubArgs,
}

#[derive(Serialize)]
struct Outcome<'a> {
    baseline: &'a str,
    texts: Vec<TextName>,
    options: WindowOptions,
    models: Vec<Judged<'a>>,
    /// All of it as Markdown.
    table: String,
}

/// A model and what it loses.
#[derive(Serialize)]
struct Judged<'a> {
    model: &'a str,
    #[serde(flatten)]
    size: Size,
    /// By text, in the order of `texts`; fewer where it was interrupted.
    results: Vec<KldReport>,
}

impl Judged<'_> {
    /// Its name in the table: the last part of it.
    fn name(&self) -> &str {
        Path::new(self.model).file_name().and_then(|name| name.to_str()).unwrap_or(self.model)
    }

    fn is_uniform(&self) -> bool {
        self.size.schemes.len() == 1
    }
}

/// Runs the command.
pub fn run(args: &CurveArgs, console: &Console) -> anyhow::Result<()> {
    if let Some(path) = &args.plot {
        files::check_figure(path, "--plot")?;
    }
    let specs: Vec<&str> = args.models.iter().chain([&args.baseline]).map(String::as_str).collect();
    args.hub.check(&specs)?;
    on_device!(args.device.device, &args.baseline, &args.hub, |place| run_on(args, &place, console))
}

fn run_on<P: Place>(args: &CurveArgs, place: &P, console: &Console) -> anyhow::Result<()> {
    let baseline = model::load_checked(&args.baseline, &args.hub, place)?;
    let mut texts = Vec::new();
    let mut tokens = Vec::new();
    let mut options = None;
    for path in &args.texts {
        let mut text = args.cut.open(path, &baseline)?;
        tokens.push(text.tokens(&baseline.tokenizer)?);
        let (name, how) = text.finish(console)?;
        texts.push(name);
        options = Some(how);
    }
    let Some(options) = options else { return Err(bad_input("--text: no text is given")) };
    let mut judged: Vec<Judged<'_>> = Vec::new();
    for spec in &args.models {
        let model = model::load_checked(spec, &args.hub, place)?;
        let mut one = Judged { model: spec, size: Size::of(&model.checkpoint)?, results: Vec::new() };
        for (path, tokens) in args.texts.iter().zip(&tokens) {
            check_tokens((path, &args.cut), tokens, (&args.baseline, &baseline), (spec, &model))?;
            options.check(&model.checkpoint.config)?;
            let title = format!("comparing {}", one.name());
            let report = scored(console, &title, |progress| {
                kl_divergence(&baseline.decoder, &model.decoder, tokens, &options, progress)
            })?;
            one.results.push(report);
            if is_partial(&one) {
                break;
            }
        }
        judged.push(one);
        if judged.last().is_some_and(is_partial) {
            break;
        }
    }
    judged.sort_by(|a, b| a.size.bits_per_weight.total_cmp(&b.size.bits_per_weight));
    let table = markdown(&texts, &judged);
    let outcome = Outcome { baseline: &args.baseline, texts, options, models: judged, table };
    let partial = outcome.models.iter().any(is_partial);
    if let (Some(path), false) = (&args.plot, partial) {
        let name = Path::new(outcome.baseline).file_name().and_then(|name| name.to_str());
        figure::write(path, name.unwrap_or(outcome.baseline), &points(&outcome))?;
    }
    console.result(&outcome, |o| o.table.clone())?;
    if partial { Err(InterruptedWithResult.into()) } else { Ok(()) }
}

/// Whether it was stopped while this one was scored.
fn is_partial(one: &Judged<'_>) -> bool {
    one.results.last().is_some_and(|report| report.partial)
}

/// The points of the figure.
fn points(outcome: &Outcome<'_>) -> Vec<Point> {
    let mut points = Vec::new();
    for one in &outcome.models {
        for (text, report) in outcome.texts.iter().zip(&one.results) {
            points.push(Point {
                text: text.name(),
                uniform: one.is_uniform().then(|| one.size.schemes[0].clone()),
                bits: one.size.bits_per_weight,
                loss: report.kl_divergence.mean,
            });
        }
    }
    points
}

/// The table, as Markdown.
fn markdown(texts: &[TextName], models: &[Judged<'_>]) -> String {
    let mut header = vec!["model".to_owned(), "layers".into(), "bits per weight".into(), "size".into()];
    for text in texts {
        header.push(format!("KL, {}", text.name()));
        header.push("top-1, %".into());
    }
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let rule = header.iter().enumerate().map(|(i, _)| if i < 2 { "---" } else { "---:" }.to_owned());
    let rule = line(rule.collect());
    let mut table = line(header) + &rule;
    for one in models {
        let mut row = vec![
            one.name().replace('|', "\\|"),
            one.size.schemes.join(", "),
            format!("{:.3}", one.size.bits_per_weight),
            format::bytes(one.size.bytes),
        ];
        for report in &one.results {
            let partial = if report.partial { " (PARTIAL)" } else { "" };
            let kl = report.kl_divergence;
            row.push(format!("{}{partial}", format::estimate(kl.mean, kl.standard_error)));
            row.push(format!("{:.2}", report.top1_agreement.mean * 100.0));
        }
        table += &line(row);
    }
    table
}
