//! `qqq convert`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use qqq_cuda::CudaOptions;
use qqq_eval::{KldReport, Text, WindowOptions, kl_divergence};
use qqq_formats::{Checkpoint, Int4Checkpoint, foreign::Method};
use qqq_model::{ChatTemplate, Decoder, TextOptions, TextReader, Tokenizer, text::TextFormat};
use qqq_quant::convert::{Converted, Target, convert, float_form};
use serde::Serialize;

use super::{
    eval::{kld_rows, scored},
    quantize::Steps,
};
use crate::{
    console::Console,
    device::{self, Choice, Place, on_chosen},
    errors::{InterruptedWithResult, bad_input_hint},
    files::Reserved,
    format,
    interrupt::Guard,
    model::{self, HubArgs},
    numbers,
    progress::Progress,
    table::pairs,
};

const AFTER_HELP: &str = "\
Examples:
  qqq convert ./llama-gptq -o llama-w4a8
  qqq convert owner/llama-awq -o llama-w4a8 --check wiki.txt
  qqq convert llama-w4a8 -o llama-gptq --to gptq
  qqq convert llama-w4a8 -o llama-w4a16 --to compressed-tensors

No calibration: codes and scales stay what they are. Read are 4-bit checkpoints of GPTQ (gptq, gptq_v2), AWQ (gemm), \
AutoRound and compressed-tensors (pack-quantized), and those of this program. Zero points go where signed codes hold the same \
weights without them, signs of scales go into codes, act-order goes where gate and up can make the order that down_proj \
needs; what cannot be converted without a change is refused, with the layer. Per channel the int8 kernels multiply exactly \
these weights; in groups they round them to int8 of the output channel, and the summary says by how much. OUT appears only \
when it is complete.";

/// Make a W4A8 checkpoint of a 4-bit one of another tool, without calibration, or the reverse
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct ConvertArgs {
    /// 4-bit checkpoint: a directory, or owner/name on the hub
    #[arg(value_name = "MODEL")]
    model: String,
    /// Directory to be made; must not exist
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// What to make
    #[arg(long, value_enum, default_value_t = Target::W4a8)]
    to: Target,
    /// Say how far int8 activations move the model, when it is done: KL divergence and perplexity on this text, against the
    /// same weights with float activations. The float weights take 4 bytes each in the host's memory
    #[arg(long, value_name = "FILE", help_heading = "Check")]
    check: Option<PathBuf>,
    /// Tokens of a window of the text
    #[arg(long, value_name = "TOKENS", default_value_t = 512, allow_negative_numbers = true,
        value_parser = numbers::count, requires = "check", help_heading = "Check")]
    window: usize,
    /// Score the first N windows only; -1: all
    #[arg(long, value_name = "N", default_value = "16", allow_negative_numbers = true,
        value_parser = numbers::limit, requires = "check", help_heading = "Check")]
    limit: usize,
    /// Where to compute the check: cpu, cuda (the first GPU), cuda:N (GPU number N), or auto: a GPU if there is one that can, else
    /// the CPU
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = device::parser(), requires = "check",
        help_heading = "Check")]
    device: Choice,
    #[command(flatten)]
    hub: HubArgs,
}

/// For `--json`.
#[derive(Serialize)]
struct Outcome {
    output: PathBuf,
    #[serde(flatten)]
    converted: Converted,
    /// Where it was asked for.
    check: Option<KldReport>,
}

/// Runs the command.
pub fn run(args: &ConvertArgs, console: &Console) -> anyhow::Result<()> {
    if args.check.is_some() && args.to != Target::W4a8 {
        return Err(bad_input_hint(
            "--check says what int8 activations do, of which this target has none",
            "leave it out, or compare models with qqq eval kld",
        ));
    }
    args.hub.check(&[&args.model])?;
    let reserved = Reserved::unless_stopped(&args.output, console)?;
    let path = model::locate(&args.model, &args.hub)?;
    let source = Int4Checkpoint::open(&path).with_context(|| format!("cannot convert {}", args.model))?;
    let tokens = args.check.as_deref().map(|text| args.tokens(text, &source, console)).transpose()?;
    if source.method == Method::W4a8 && args.to == Target::W4a8 {
        console.note(&format!("{} is W4A8 already: its form becomes compressed-tensors'", args.model));
    }
    let guard = Guard::new();
    let mut steps = Steps::new(Progress::new(console, "converting"), &guard);
    let converted = convert(&source, args.to, &args.model, reserved.reservation(), &mut steps)
        .with_context(|| format!("cannot convert {}", args.model))?;
    drop(steps);
    drop(guard);
    let check =
        tokens.map(|(tokens, options)| args.compare(source, &tokens, &options, console)).transpose()?;
    let outcome = Outcome { output: args.output.clone(), converted, check };
    console.result(&outcome, summary)?;
    match outcome.check {
        Some(report) if report.partial => Err(InterruptedWithResult.into()),
        _ => Ok(()),
    }
}

impl ConvertArgs {
    /// The tokens of the text to be scored, and how it is cut.
    fn tokens(
        &self,
        text: &Path,
        source: &Int4Checkpoint,
        console: &Console,
    ) -> anyhow::Result<(Vec<u32>, WindowOptions)> {
        let path = text;
        let checkpoint = &source.checkpoint;
        let limit = Some(self.limit).filter(|n| *n != usize::MAX);
        let options = WindowOptions { limit, ..WindowOptions::new(self.window) };
        options.check(&checkpoint.config)?;
        let tokenizer = Tokenizer::load(checkpoint)?;
        let template = Box::new(|| ChatTemplate::load(checkpoint, &tokenizer));
        let read = TextOptions { format: TextFormat::Auto, field: None };
        let mut text = Text::new(TextReader::open(text, &read, template)?);
        let tokens = text.first_tokens(&tokenizer, options.tokens_needed())?;
        if let Some(read) = text.reader().describe() {
            console.note(&read);
        }
        if let Some(sha256) = text.reader().sha256()? {
            console.read_input(path, &sha256);
        }
        // Too short a text is told before the work.
        options.cut(tokens.len())?;
        Ok((tokens, options))
    }

    /// The output against the same weights with float activations.
    fn compare(
        &self,
        source: Int4Checkpoint,
        tokens: &[u32],
        options: &WindowOptions,
        console: &Console,
    ) -> anyhow::Result<KldReport> {
        let (float, output) = (float_form(source)?, Checkpoint::open(&self.output)?);
        let report = on_chosen!(device::choose_for(self.device, &output)?, |place| {
            let load = |checkpoint| {
                let backend = place.backend_with(checkpoint, CudaOptions::default())?;
                anyhow::Ok(Decoder::load(backend, checkpoint)?)
            };
            let (baseline, model) = (load(&float)?, load(&output)?);
            scored(console, "checking", |progress| {
                kl_divergence(&baseline, &model, tokens, options, progress)
            })?
        });
        Ok(report)
    }
}

fn summary(outcome: &Outcome) -> String {
    let Outcome { output, converted: c, check } = outcome;
    let groups = c.group_size.map_or("one scale a channel".into(), |g| format!("groups of {g}"));
    let mut rows = vec![
        ("written", output.display().to_string()),
        ("from", format!("{}: {} layers, {groups}, {} scales", c.from, c.layers, c.scales)),
        ("to", c.to.to_owned()),
    ];
    if !c.float_layers.is_empty() {
        rows.push(("float layers", c.float_layers.len().to_string()));
    }
    let of = |n: u64| format!("{} of {}", format::count(n), format::count(c.groups));
    for (name, groups) in [
        ("groups re-centred", c.recentred),
        ("signs folded into codes", c.flipped),
        ("negative scales kept", c.negative),
    ] {
        if groups > 0 {
            rows.push((name, of(groups)));
        }
    }
    if !c.reordered.is_empty() {
        rows.push(("act-order resolved", format!("{} layers", c.reordered.len())));
    }
    if c.scale_rounding > 0.0 {
        rows.push((
            "scales rounded",
            format!("to float16, by {:.1e} of themselves at most", c.scale_rounding),
        ));
    }
    if c.to == Target::W4a8.name() {
        rows.push((
            "rounding to int8",
            match c.int8_rounding.largest {
                0.0 => "none: the kernels multiply exactly these weights".into(),
                largest => format!(
                    "{:.1e} of the weights' squares; at most {largest:.1e} of a channel's largest weight",
                    c.int8_rounding.relative
                ),
            },
        ));
    }
    rows.push(("linear layers", format::bytes(c.linear_bytes)));
    rows.push(("time", format::seconds(c.seconds)));
    if let Some(report) = check {
        rows.extend(kld_rows(report));
    }
    let mut text = pairs(rows);
    if c.to == Target::W4a8.name() {
        text += &format!("\nNext:\n  qqq chat {}\n", format::shell_word(output));
    }
    text
}
