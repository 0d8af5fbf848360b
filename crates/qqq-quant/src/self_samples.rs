//! Calibration data without data: the model's own samples.
//!
//! Every window starts with the model's BOS, if it has one, and a random token; a few tokens follow greedily, which
//! leads the model from the random token to plausible text, and the rest is sampled at temperature 1 (LLM-QAT,
//! arXiv 2305.17888, section 3.1). End tokens do not end a window.

use qqq_backend::{Backend, KvDType};
use qqq_engine::{GenerateOptions, SamplingOptions, generate};
use qqq_model::{Decoder, ModelError, Tokenizer};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{Calibration, QuantError, Result};

/// Tokens that are chosen greedily.
const GREEDY: usize = 4;
/// Windows that are sampled in one batch: bounds the memory of the KV cache.
pub(crate) const BATCH: usize = 8;

/// Samples windows; `on_token` is called for every token and stops by an error.
///
/// # Errors
/// Those of generation (a model whose logits are not finite has no samples to give) and of `on_token`.
pub fn sample_windows<B: Backend>(
    decoder: &Decoder<B>,
    tokenizer: &Tokenizer,
    calibration: &Calibration,
    seed: u64,
    on_token: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<Vec<u32>>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut windows: Vec<Vec<u32>> = (0..calibration.windows)
        .map(|_| {
            let random = rng.random_range(0..decoder.config.vocab_size as u32);
            tokenizer.bos().into_iter().chain([random]).take(calibration.window).collect()
        })
        .collect();
    for (batch, windows) in windows.chunks_mut(BATCH).enumerate() {
        for (temperature, until) in [(0.0, GREEDY), (1.0, calibration.window)] {
            let have = windows[0].len();
            let until = until.min(calibration.window);
            if have >= until {
                continue;
            }
            let options = GenerateOptions {
                sampling: SamplingOptions {
                    temperature,
                    top_k: 0,
                    top_p: 1.0,
                    min_p: 0.0,
                    repetition_penalty: 1.0,
                    seed: seed.wrapping_add(batch as u64 + 1),
                },
                max_new_tokens: until - have,
                eos: Vec::new(),
                kv_dtype: KvDType::F16,
            };
            let mut stopped = None;
            let mut token = |_: usize, _: u32| match on_token() {
                Ok(()) => true,
                Err(e) => {
                    stopped.get_or_insert(e);
                    false
                }
            };
            let generated = generate(decoder, windows, &options, &mut token).map_err(|e| match e {
                ModelError::NotFinite(place) => {
                    QuantError::Calibration(format!("the model cannot write its own: {place}"))
                }
                other => other.into(),
            })?;
            if let Some(e) = stopped {
                return Err(e);
            }
            for (window, new) in windows.iter_mut().zip(generated) {
                window.extend(new.tokens);
            }
            if windows.iter().any(|w| w.len() != until) {
                return Err(QuantError::Calibration(format!(
                    "the model's samples ended before {until} tokens; ask for shorter windows"
                )));
            }
        }
    }
    Ok(windows)
}
