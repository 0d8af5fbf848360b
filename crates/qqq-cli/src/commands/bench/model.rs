//! `qqq bench model`.

use std::{path::PathBuf, str::FromStr};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use qqq_backend::Calibrate;
use qqq_cuda::{Arithmetic, CudaOptions};
use qqq_formats::{Checkpoint, LayerScheme};
use qqq_model::{Decoder, memory};
use serde::Serialize;

use super::{
    speed::{Load, Rate, Speed, measure},
    throughput,
};
use crate::{
    console::Console,
    device::{DeviceArgs, Place, on_device},
    errors::{FailedWithResult, InterruptedWithResult, bad_input, bad_input_hint},
    files, format,
    interrupt::Guard,
    model::{self, HubArgs},
    numbers,
    progress::Progress,
    table::table,
};

const AFTER_HELP: &str = "\
Examples:
  qqq bench model qwen-w4a8 --prompt-tokens 512 --new-tokens 128
  qqq bench model llama-w4a8 --device cuda --batch 1,4,16,64 --prompt-tokens 1024 --compare fp16,w8a8,w4a16

Sequences of random tokens, one warm-up run, then --repeat runs. \"prefill\" is prompt tokens a second until all sequences have \
their first new token, \"decode\" new tokens a second from then on, \"output\" new tokens a second of the whole time. \
--compare runs the same layers with other arithmetic, by the kernels that this tool has for it: fp16 (16-bit weights and \
activations, cuBLAS), w8a8 (int8 weights and activations) and w4a16 (4-bit weights, 16-bit activations). On a shared machine \
compare only runs that alternate within the same minutes. Ctrl-C ends with what was measured until then.";

/// Runs beyond this tell nothing more.
const MAX_REPEAT: usize = 10_000;
/// More sequences than any GPU runs together.
const MAX_BATCH: usize = 65_536;

/// Speed of a model: tokens a second for the prompts (prefill) and for new tokens (decode)
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct ModelArgs {
    /// Model: a directory, a .gguf file, or owner/name on the hub
    #[arg(value_name = "MODEL")]
    model: String,
    /// Sequences that run together
    #[arg(long, value_name = "N", default_value = "1", value_delimiter = ',', allow_negative_numbers = true,
        value_parser = numbers::count)]
    batch: Vec<usize>,
    /// Tokens of each prompt
    #[arg(long, value_name = "N", default_value_t = 512, allow_negative_numbers = true, value_parser = numbers::count)]
    prompt_tokens: usize,
    /// Tokens to generate behind each prompt
    #[arg(long, value_name = "N", default_value_t = 128, allow_negative_numbers = true, value_parser = numbers::count)]
    new_tokens: usize,
    /// Measured runs, after one to warm up
    #[arg(long, value_name = "N", default_value_t = 5, allow_negative_numbers = true, value_parser = numbers::count)]
    repeat: usize,
    /// Beside the quantized model the same one in other arithmetic, on a GPU
    #[arg(long, value_name = "ARITHMETIC", value_delimiter = ',', value_parser = others())]
    compare: Vec<Arithmetic>,
    /// Draw tokens a second against the number of sequences, as an SVG figure
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// Arithmetic on the command line that is not the checkpoint's own.
fn others() -> impl TypedValueParser<Value = Arithmetic> {
    let names = Arithmetic::ALL.into_iter().filter(|a| *a != Arithmetic::W4A8).map(Arithmetic::name);
    PossibleValuesParser::new(names.collect::<Vec<_>>())
        .map(|name| Arithmetic::from_str(&name).expect("one of the possible values"))
}

/// A measured speed.
#[derive(Clone, Debug, Serialize)]
struct Measured {
    /// `w4a8` and the like; `mixed` for one whose layers differ, `float` for a model that is not quantized.
    arithmetic: String,
    #[serde(flatten)]
    speed: Speed,
    /// Output tokens a second, by those of W4A8.
    #[serde(skip_serializing_if = "Option::is_none")]
    of_w4a8: Option<f64>,
}

#[derive(Serialize)]
struct Outcome<'a> {
    model: &'a str,
    device: String,
    partial: bool,
    results: Vec<Measured>,
}

/// Runs the command.
pub fn run(args: &ModelArgs, console: &Console) -> anyhow::Result<()> {
    if args.new_tokens < 2 {
        return Err(bad_input("--new-tokens must be at least 2: the first comes out of the prompt"));
    }
    if args.repeat > MAX_REPEAT {
        return Err(bad_input(format!("--repeat must be at most {MAX_REPEAT}, not {}", args.repeat)));
    }
    if let Some(batch) = args.batch.iter().find(|batch| **batch > MAX_BATCH) {
        return Err(bad_input(format!("--batch must be at most {MAX_BATCH}, not {batch}")));
    }
    if let Some(path) = &args.plot {
        files::check_figure(path, "--plot")?;
    }
    on_device!(args.device.device, &args.model, &args.hub, |place| run_on(args, &place, console))
}

fn run_on<P: Place>(args: &ModelArgs, place: &P, console: &Console) -> anyhow::Result<()> {
    let options = |arithmetic| CudaOptions { arithmetic, ..CudaOptions::default() };
    let load = |arithmetic| model::load_with(&args.model, &args.hub, place, options(arithmetic));
    let loads = args.batch.iter().map(|&batch| args.load(batch)).collect::<Vec<_>>();
    // What config and options tell is said before a large model is loaded.
    let checkpoint = model::open(&args.model, &args.hub)?;
    if let Some(method) = model::simulated(&checkpoint) {
        return Err(bad_input_hint(
            format!(
                "{}: the arithmetic of {method} is simulated, and how fast that is says nothing of the method's speed",
                args.model
            ),
            "bench another checkpoint of the model, such as one of --recipe rtn",
        ));
    }
    for load in &loads {
        load.check(&checkpoint.config)?;
    }
    for &other in &args.compare {
        place.backend_with(&checkpoint, options(other))?;
    }
    let own = own_arithmetic(&checkpoint);
    drop(checkpoint);
    let first = load(Arithmetic::W4A8)?;
    if !args.compare.is_empty() && own.is_none() {
        return Err(bad_input_hint(
            format!("--compare: {} is not quantized", args.model),
            "it takes what `qqq quantize` has made; for speed alone `qqq synth --quantized` makes weights that are as good",
        ));
    }
    check_memory(&first.decoder, &loads)?;
    let guard = Guard::telling(
        "stopping, with the runs that are complete; Ctrl-C again ends at once, without figures",
    );
    let mut outcome =
        Outcome { model: &args.model, device: place.identity()?, partial: false, results: Vec::new() };
    let mut first = Some(first.decoder);
    let forms = std::iter::once(Arithmetic::W4A8).chain(args.compare.iter().copied());
    let total = (args.compare.len() + 1) * args.batch.len() * (args.repeat + 1);
    let mut done = 0;
    let mut progress = Progress::new(console, "measuring");
    'forms: for arithmetic in forms {
        let decoder = match first.take() {
            Some(decoder) => decoder,
            None => match load(arithmetic) {
                Ok(model) => model.decoder,
                Err(_) if guard.pressed() => {
                    outcome.partial = true;
                    break;
                }
                Err(e) => return Err(e),
            },
        };
        let name = match arithmetic {
            Arithmetic::W4A8 => own.clone().unwrap_or_else(|| String::from("float")),
            other => other.to_string(),
        };
        for &load in &loads {
            let batch = load.batch;
            let mut on_run = |run: usize, runs: usize| {
                done += 1;
                tracing::debug!("{run} of {runs} runs are done");
                progress.update(done as f64, total as f64, &format!("{name}, {batch} at once"));
            };
            let measured = measure(&decoder, load, &mut on_run, &mut || Ok(!guard.pressed()));
            let speed = match measured {
                // What was measured before counts.
                Err(_) if guard.pressed() && !outcome.results.is_empty() => {
                    outcome.partial = true;
                    break 'forms;
                }
                other => other?,
            };
            outcome.partial |= speed.partial;
            let of_w4a8 = outcome.ratio(&speed);
            outcome.results.push(Measured { arithmetic: name.clone(), speed, of_w4a8 });
            if outcome.partial {
                break 'forms;
            }
        }
    }
    drop(progress);
    // Figures that were measured are not lost with their drawing.
    let drawn = match &args.plot {
        Some(path) => throughput::write(path, &outcome.device, &outcome.points()),
        None => Ok(()),
    };
    let planned = (args.compare.len() + 1) * loads.len();
    console.result(&outcome, |o| o.text(args, planned, console))?;
    drawn.map_err(|e| FailedWithResult(format!("--plot: {e:#}")))?;
    if outcome.partial { Err(InterruptedWithResult.into()) } else { Ok(()) }
}

/// That the KV caches have room beside the model.
///
/// # Errors
/// One has not.
fn check_memory<B: Calibrate>(decoder: &Decoder<B>, loads: &[Load]) -> anyhow::Result<()> {
    let Some(free) = decoder.backend.free_memory()?.or_else(memory::available) else { return Ok(()) };
    for load in loads {
        let needed = load.cache_bytes(&decoder.config);
        if needed > free {
            return Err(bad_input_hint(
                format!(
                    "--batch {}: keys and values of {} + {} tokens each take {}, and {} are free",
                    load.batch,
                    load.prompt_tokens,
                    load.new_tokens,
                    format::bytes(needed),
                    format::bytes(free)
                ),
                "fewer sequences at once, or fewer tokens",
            ));
        }
    }
    Ok(())
}

impl ModelArgs {
    fn load(&self, batch: usize) -> Load {
        Load { batch, prompt_tokens: self.prompt_tokens, new_tokens: self.new_tokens, repeat: self.repeat }
    }
}

/// What a checkpoint's quantized layers are made for; `None` if there are none.
fn own_arithmetic(checkpoint: &Checkpoint) -> Option<String> {
    let schemes = checkpoint.config.quantization.as_ref()?.block_schemes();
    let name = |s: &LayerScheme| LayerScheme { group_size: None, ..*s }.to_string().to_lowercase();
    let first = name(schemes.first()?);
    Some(if schemes.iter().all(|s| name(s) == first) { first } else { String::from("mixed") })
}

impl Outcome<'_> {
    /// Speed by that of W4A8, which comes first.
    fn ratio(&self, speed: &Speed) -> Option<f64> {
        let own = self.results.iter().find(|r| r.arithmetic == "w4a8" && r.speed.batch == speed.batch)?;
        Some(speed.output_tokens_per_second.median / own.speed.output_tokens_per_second.median)
    }

    fn points(&self) -> Vec<throughput::Point> {
        let point = |r: &Measured| throughput::Point {
            series: r.arithmetic.clone(),
            batch: r.speed.batch,
            tokens_per_second: r.speed.output_tokens_per_second.median,
        };
        self.results.iter().map(point).collect()
    }

    fn text(&self, args: &ModelArgs, planned: usize, console: &Console) -> String {
        let range = |rate: Rate| format!("{:.0} ({:.0}..{:.0})", rate.median, rate.min, rate.max);
        let compares = !args.compare.is_empty();
        let rows = self.results.iter().map(|r| {
            let s = &r.speed;
            let step = 1e3 * s.batch as f64 / s.decode_tokens_per_second.median;
            let runs =
                if s.partial { format!(" ({} of {} runs)", s.repeat, args.repeat) } else { String::new() };
            let mut cells = vec![r.arithmetic.clone(), format!("{}{runs}", s.batch)];
            cells.extend(
                [s.prefill_tokens_per_second, s.decode_tokens_per_second, s.output_tokens_per_second]
                    .map(range),
            );
            cells.push(format!("{step:.2}"));
            if compares {
                cells.push(r.of_w4a8.map_or("1".into(), |ratio| format!("{:.2}x", 1.0 / ratio)));
            }
            cells
        });
        let header =
            ["", "sequences", "prefill", "decode", "output tokens/s", "ms a step", "w4a8 is faster by"];
        let table = table(console, &header[..if compares { 7 } else { 6 }], 1, rows);
        let runs = self.results.first().map_or(0, |r| r.speed.repeat);
        let complete = self.results.iter().filter(|r| !r.speed.partial).count();
        let part = match self.partial {
            true => format!("PARTIAL, interrupted: {complete} of {planned} rows are complete; "),
            false => String::new(),
        };
        let threads = self.results.first().map_or(0, |r| r.speed.threads);
        format!(
            "{table}\n{part}{runs} runs, median (slowest..fastest); {} tokens in, {} out; {}, {}",
            args.prompt_tokens,
            args.new_tokens,
            self.device,
            format::threads(threads)
        )
    }
}
