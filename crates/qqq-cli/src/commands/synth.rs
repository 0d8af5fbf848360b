//! `qqq synth`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use qqq_formats::ModelConfig;
use qqq_quant::{
    OutputFormat,
    synth::{Quantized, SHAPES, Shape, Synth, Synthesized, shortened, synthesize},
};
use serde::Serialize;

use super::{quantize::Steps, recipe::GroupSize};
use crate::{
    console::Console,
    errors::{bad_input, bad_input_hint},
    files::Reserved,
    format,
    interrupt::Guard,
    numbers::{self, Seed},
    progress::Progress,
    table::pairs,
};

const AFTER_HELP: &str = "\
Examples:
  qqq synth --like llama-2-7b -o llama-2-7b-random
  qqq synth --like llama-3-70b --layers 4 --quantized --group-size 128 -o four-blocks
  qqq synth --like ./model/config.json -o random

Weights are random normal numbers of deviation 1 / sqrt(inputs), to 16 bits of resolution; norms change nothing. So \
activations stay finite at any depth, speed and memory are those of a trained model, and what it says is noise. The \
tokenizer is made up as well: a token a byte, the begin and end tokens at the ids that the configuration names, and \
placeholders (<unused-300>) up to the size of the vocabulary, which no text makes. The same seed gives the same \
checkpoint. OUT appears only when it is complete.";

/// Make a checkpoint of random weights, to measure at sizes of which no model is at hand
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct SynthArgs {
    /// Shapes: llama-2-7b, llama-2-13b, llama-3-8b, llama-3-70b, qwen3-8b, or the path of a config.json or of its
    /// directory
    #[arg(long, value_name = "SHAPES")]
    like: String,
    /// Directory to be made; must not exist
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Only the first N blocks [default: all]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = numbers::count)]
    layers: Option<usize>,
    /// Seed of the weights; -1: a random one, which is told
    #[arg(long, value_name = "N", default_value = "0", allow_negative_numbers = true, value_parser = Seed::parse)]
    seed: Seed,
    /// 4-bit weights in the blocks, as of a quantized model, instead of bfloat16 ones
    #[arg(long)]
    quantized: bool,
    /// Input channels that share a scale
    #[arg(long, value_enum, default_value_t = GroupSize::G64, requires = "quantized")]
    group_size: GroupSize,
    /// Form of the checkpoint on disk
    #[arg(long, value_enum, default_value_t = OutputFormat::Auto, requires = "quantized")]
    format: OutputFormat,
}

/// For `--json`.
#[derive(Serialize)]
struct Outcome {
    output: PathBuf,
    #[serde(flatten)]
    made: Synthesized,
    layers: usize,
    /// Unless it was drawn: then it stands beside the warnings, as in every command.
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
}

/// Runs the command.
pub fn run(args: &SynthArgs, console: &Console) -> anyhow::Result<()> {
    let (seed, is_drawn) = args.seed.value()?;
    let config = args.config()?;
    let reserved = Reserved::unless_stopped(&args.output, console)?;
    if is_drawn {
        console.drawn_seed(seed);
    }
    let quantized =
        args.quantized.then(|| Quantized { format: args.format, group_size: args.group_size.channels() });
    let guard = Guard::new();
    let mut steps = Steps::new(Progress::new(console, "writing"), &guard);
    let made = synthesize(&config, &Synth { seed, quantized }, reserved.reservation(), &mut steps)?;
    drop(steps);
    let outcome = Outcome {
        output: args.output.clone(),
        made,
        layers: config.num_layers,
        seed: (!is_drawn).then_some(seed),
    };
    console.result(&outcome, summary)
}

impl SynthArgs {
    /// What is to be made.
    fn config(&self) -> anyhow::Result<ModelConfig> {
        let place = Path::new(&self.like);
        let config = match Shape::named(&self.like) {
            Some(shape) => ModelConfig::from_value(place, shape.config())?,
            None if place.is_dir() => ModelConfig::from_json(&place.join("config.json"))?,
            None if place.exists() => ModelConfig::from_json(place)?,
            None => {
                let names: Vec<&str> = SHAPES.iter().map(|shape| shape.name).collect();
                return Err(bad_input_hint(
                    format!("--like {}: neither shapes that are known nor a file", self.like),
                    format!("name {}, or a config.json", names.join(", ")),
                ));
            }
        };
        match self.layers {
            None => Ok(config),
            Some(layers) if layers > config.num_layers => Err(bad_input(format!(
                "--layers {layers}: {} has {}, of which the first ones can be taken",
                self.like, config.num_layers
            ))),
            Some(layers) => ModelConfig::from_value(place, shortened(config.raw, layers))
                .with_context(|| format!("{} with {layers} of its blocks", self.like)),
        }
    }
}

fn summary(outcome: &Outcome) -> String {
    let Outcome { output, made, layers, .. } = outcome;
    let rate = made.tensor_bytes as f64 / made.seconds.max(1e-9);
    let mut text = pairs([
        ("written", output.display().to_string()),
        ("weights", format!("{}, random, in {layers} blocks", format::count(made.parameters))),
        ("linear layers", format!("{}, {}", made.format, format::bytes(made.linear_bytes))),
        ("all tensors", format::bytes(made.tensor_bytes)),
        ("time", format!("{} ({}/s)", format::seconds(made.seconds), format::bytes(rate as u64))),
    ]);
    let path = format::shell_word(output);
    text += &match made.format.as_str() {
        "bfloat16" => format!("\nNext:\n  qqq quantize {path} -o OUT\n  qqq bench model {path}\n"),
        _ => format!("\nNext:\n  qqq bench model {path}\n"),
    };
    text
}
