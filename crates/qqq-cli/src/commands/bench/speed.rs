//! How fast a decoder generates.

use qqq_backend::{Backend, KvDType, PAGE, pages_for, pool};
use qqq_engine::{FinishReason, GenerateOptions, SamplingOptions, generate_while};
use qqq_formats::ModelConfig;
use qqq_model::Decoder;
use serde::{Deserialize, Serialize};

use crate::errors::{Interrupted, bad_input_hint};

/// Tokens a second over several runs.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Rate {
    /// The run in the middle; the mean of two where their number is even.
    pub median: f64,
    /// Tokens a second of the slowest run.
    pub min: f64,
    /// Tokens a second of the fastest run.
    pub max: f64,
}

/// Speed of a model with so many sequences at once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Speed {
    /// Sequences that run together.
    pub batch: usize,
    /// Tokens of each prompt.
    pub prompt_tokens: usize,
    /// Tokens that a run generates behind each prompt.
    pub new_tokens: usize,
    /// Runs that were measured, the first one to warm up not counted.
    pub repeat: usize,
    /// Whether it was stopped before all runs that were asked for.
    pub partial: bool,
    /// Threads that computed on the CPU.
    pub threads: usize,
    /// Prompt tokens a second, until every sequence has its first new token.
    pub prefill_tokens_per_second: Rate,
    /// New tokens a second, from then on.
    pub decode_tokens_per_second: Rate,
    /// New tokens a second of the whole time, prompts included.
    pub output_tokens_per_second: Rate,
}

/// What is run.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Sequences that run together.
    pub batch: usize,
    /// Random tokens of each prompt.
    pub prompt_tokens: usize,
    /// Tokens to generate behind each; at least 2.
    pub new_tokens: usize,
    /// Runs to measure, after one to warm up.
    pub repeat: usize,
}

impl Load {
    /// That a model's context holds it.
    ///
    /// # Errors
    /// It does not.
    pub fn check(&self, config: &ModelConfig) -> anyhow::Result<()> {
        let Self { prompt_tokens, new_tokens, .. } = *self;
        let context = config.max_position_embeddings;
        if prompt_tokens.checked_add(new_tokens).is_some_and(|tokens| tokens <= context) {
            return Ok(());
        }
        Err(bad_input_hint(
            format!("the model's context of {context} tokens does not hold {prompt_tokens} + {new_tokens}"),
            "--prompt-tokens and --new-tokens say how many",
        ))
    }

    /// Bytes of keys and values of 16 bits, in whole pages.
    pub fn cache_bytes(&self, config: &ModelConfig) -> u64 {
        let positions = self.batch * pages_for(self.prompt_tokens + self.new_tokens) * PAGE;
        4 * (config.num_layers * config.num_kv_heads * config.head_dim) as u64 * positions as u64
    }
}

/// Measures a decoder; `on_run` is told after every run (0: the warm-up). `go_on` is asked between the steps of a run, and stops
/// by an error, or by `false` with the runs that were complete by then.
///
/// # Errors
/// A load that the model's context does not hold, those of generation and of `go_on`.
pub fn measure<B: Backend>(
    decoder: &Decoder<B>,
    load: Load,
    on_run: &mut dyn FnMut(usize, usize),
    go_on: &mut dyn FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<Speed> {
    let Load { batch, prompt_tokens, new_tokens, repeat } = load;
    load.check(&decoder.config)?;
    let options = GenerateOptions {
        sampling: SamplingOptions::default(),
        max_new_tokens: new_tokens,
        eos: Vec::new(),
        kv_dtype: KvDType::F16,
    };
    let (mut prefill, mut decode, mut output) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..=repeat {
        let seed = |sequence| (run * batch + sequence) as u64 + 1;
        let prompts: Vec<_> =
            (0..batch).map(|s| random_tokens(prompt_tokens, decoder.config.vocab_size, seed(s))).collect();
        let mut stopped = Ok(true);
        let generations = generate_while(decoder, &prompts, &options, &mut || {
            stopped = go_on();
            matches!(stopped, Ok(true))
        })?;
        stopped?;
        if generations.iter().any(|g| g.finish == FinishReason::Cancelled) {
            break;
        }
        // The first run warms caches and the memory allocator up.
        if run > 0 {
            let longest =
                |f: &dyn Fn(&qqq_engine::Generation) -> f64| generations.iter().map(f).fold(0.0, f64::max);
            let first = longest(&|g| g.prefill_seconds);
            let all = longest(&|g| g.prefill_seconds + g.decode_seconds);
            prefill.push((batch * prompt_tokens) as f64 / first);
            // The first new token comes out of the prefill, so there is a step less than tokens.
            decode.push((batch * (new_tokens - 1)) as f64 / (all - first));
            output.push((batch * new_tokens) as f64 / all);
        }
        on_run(run, repeat);
    }
    if prefill.is_empty() {
        return Err(Interrupted.into());
    }
    Ok(Speed {
        batch,
        prompt_tokens,
        new_tokens,
        repeat: prefill.len(),
        partial: prefill.len() < repeat,
        threads: pool::num_threads(),
        prefill_tokens_per_second: rate(prefill),
        decode_tokens_per_second: rate(decode),
        output_tokens_per_second: rate(output),
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
