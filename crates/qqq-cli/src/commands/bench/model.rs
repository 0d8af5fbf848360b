//! `qqq bench model`.

use qqq_backend::{Backend, KvDType, pool};
use qqq_engine::{GenerateOptions, SamplingOptions, generate};
use qqq_model::Decoder;
use serde::Serialize;

use crate::{
    console::Console,
    device::{DeviceArgs, Place, on_device},
    errors::{Interrupted, InterruptedWithResult, bad_input},
    interrupt::Guard,
    model::{self, HubArgs},
    numbers,
    progress::Progress,
    table::table,
};

const AFTER_HELP: &str = "\
Example:
  qqq bench model qwen-w4a8 --prompt-tokens 512 --new-tokens 128

One sequence of random tokens, one warm-up run, then --repeat runs. On a shared machine compare only runs that \
alternate within the same minutes. Ctrl-C ends with what was measured until then.";

/// Runs beyond this tell nothing more.
const MAX_REPEAT: usize = 10_000;

/// Speed of a model: tokens a second for the prompt (prefill) and for new tokens (decode)
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct ModelArgs {
    /// Model: a directory, a .gguf file, or owner/name on the hub
    #[arg(value_name = "MODEL")]
    model: String,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 512, allow_negative_numbers = true, value_parser = numbers::count)]
    prompt_tokens: usize,
    /// Tokens to generate behind the prompt
    #[arg(long, value_name = "N", default_value_t = 128, allow_negative_numbers = true, value_parser = numbers::count)]
    new_tokens: usize,
    /// Measured runs, after one to warm up
    #[arg(long, value_name = "N", default_value_t = 5, allow_negative_numbers = true, value_parser = numbers::count)]
    repeat: usize,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// Tokens a second over several runs.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Rate {
    /// The run in the middle; the mean of two where their number is even.
    pub median: f64,
    /// Tokens a second of the slowest run.
    pub min: f64,
    /// Tokens a second of the fastest run.
    pub max: f64,
}

/// Speed of a model.
#[derive(Clone, Debug, Serialize)]
pub struct Speed {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens that a run generates behind the prompt.
    pub new_tokens: usize,
    /// Runs that were measured, the first one to warm up not counted.
    pub repeat: usize,
    /// Whether it was stopped before all runs that were asked for.
    pub partial: bool,
    /// Threads that computed on the CPU.
    pub threads: usize,
    /// Prompt tokens a second.
    pub prefill_tokens_per_second: Rate,
    /// New tokens a second.
    pub decode_tokens_per_second: Rate,
}

#[derive(Serialize)]
struct Outcome<'a> {
    model: &'a str,
    #[serde(flatten)]
    speed: Speed,
}

/// Runs the command.
pub fn run(args: &ModelArgs, console: &Console) -> anyhow::Result<()> {
    if args.new_tokens < 2 {
        return Err(bad_input("--new-tokens must be at least 2: the first comes out of the prompt"));
    }
    if args.repeat > MAX_REPEAT {
        return Err(bad_input(format!("--repeat must be at most {MAX_REPEAT}, not {}", args.repeat)));
    }
    on_device!(args.device.device, &args.model, &args.hub, |place| run_on(args, &place, console))
}

fn run_on<P: Place>(args: &ModelArgs, place: &P, console: &Console) -> anyhow::Result<()> {
    let model = model::load(&args.model, &args.hub, place)?;
    let guard = Guard::telling("stopping after the run in hand; Ctrl-C again ends at once, without figures");
    let mut progress = Progress::new(console, "measuring");
    let speed =
        measure(&model.decoder, args.prompt_tokens, args.new_tokens, args.repeat, &mut |done, total| {
            tracing::debug!("{done} of {total} runs are done");
            progress.update(done as f64, total as f64, &format!("run {done}/{total}"));
            Ok(!guard.pressed())
        })?;
    drop(progress);
    let outcome = Outcome { model: &args.model, speed };
    console.result(&outcome, |o| {
        let s = &o.speed;
        let row = |what: String, rate: Rate| {
            let mut cells = vec![what];
            cells.extend([rate.median, rate.min, rate.max].map(|r| format!("{r:.0}")));
            cells
        };
        let rows = [
            row(format!("prefill {}", s.prompt_tokens), s.prefill_tokens_per_second),
            row(format!("decode {}", s.new_tokens), s.decode_tokens_per_second),
        ];
        let table = table(console, &["tokens/s", "median", "min", "max"], 1, rows);
        let part =
            if s.partial { format!("PARTIAL, interrupted: of {}, ", args.repeat) } else { String::new() };
        format!("{table}\n{part}{} runs, {} threads", s.repeat, s.threads)
    })?;
    if outcome.speed.partial { Err(InterruptedWithResult.into()) } else { Ok(()) }
}

/// Measures a decoder; `on_run` is told after every run (0: the warm-up), and stops by an error, or by `false` with what
/// was measured until then.
pub fn measure<B: Backend>(
    decoder: &Decoder<B>,
    prompt_tokens: usize,
    new_tokens: usize,
    repeat: usize,
    on_run: &mut dyn FnMut(usize, usize) -> anyhow::Result<bool>,
) -> anyhow::Result<Speed> {
    let context = decoder.config.max_position_embeddings;
    let too_long = || {
        bad_input(format!(
            "the model's context of {context} tokens does not hold {prompt_tokens} + {new_tokens}"
        ))
    };
    if prompt_tokens.checked_add(new_tokens).is_none_or(|tokens| tokens > context) {
        return Err(too_long());
    }
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    for run in 0..=repeat {
        let prompt = random_tokens(prompt_tokens, decoder.config.vocab_size, run as u64 + 1);
        let options = GenerateOptions {
            sampling: SamplingOptions::default(),
            max_new_tokens: new_tokens,
            eos: Vec::new(),
            kv_dtype: KvDType::F16,
        };
        let generations = generate(decoder, &[prompt], &options, &mut |_, _| true)?;
        let Some(g) = generations.first().filter(|g| g.tokens.len() == new_tokens) else {
            return Err(too_long());
        };
        // The first run warms caches and the memory allocator up.
        if run > 0 {
            prefill.push(prompt_tokens as f64 / g.prefill_seconds);
            // The first new token comes out of the prefill, so there is a step less than tokens.
            decode.push(g.decode_steps as f64 / g.decode_seconds);
        }
        if !on_run(run, repeat)? {
            break;
        }
    }
    if prefill.is_empty() {
        return Err(Interrupted.into());
    }
    Ok(Speed {
        prompt_tokens,
        new_tokens,
        repeat: prefill.len(),
        partial: prefill.len() < repeat,
        threads: pool::num_threads(),
        prefill_tokens_per_second: rate(prefill),
        decode_tokens_per_second: rate(decode),
    })
}

fn rate(mut values: Vec<f64>) -> Rate {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    Rate { median: (values[(n - 1) / 2] + values[n / 2]) / 2.0, min: values[0], max: values[n - 1] }
}

/// Tokens spread over the vocabulary (splitmix64).
fn random_tokens(count: usize, vocab: usize, seed: u64) -> Vec<u32> {
    let mut state = seed;
    (0..count)
        .map(|_| {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) % vocab as u64) as u32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(rate(vec![3.0, 1.0, 2.0]).median, 2.0);
        let r = rate(vec![4.0, 1.0, 2.0, 3.0]);
        assert_eq!((r.median, r.min, r.max), (2.5, 1.0, 4.0));
        assert_eq!(rate(vec![7.0]).median, 7.0);
    }

    #[test]
    fn tokens_stay_in_the_vocabulary() {
        let tokens = random_tokens(1000, 300, 1);
        assert!(tokens.iter().all(|t| *t < 300) && tokens.iter().any(|t| *t > 250));
        assert_ne!(tokens, random_tokens(1000, 300, 2));
    }
}
