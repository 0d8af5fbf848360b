//! Calibration data without data: the model's own samples.
//!
//! Every window starts with the model's BOS, if it has one, and a random token; a few tokens follow greedily, which
//! leads the model from the random token to plausible text, and the rest is sampled at temperature 1 (LLM-QAT,
//! arXiv 2305.17888, section 3.1). End tokens do not end a window.

use qqq_backend::{Calibrate, KvDType, Pieces};
use qqq_engine::{GenerateOptions, SamplingOptions, generate};
use qqq_formats::ModelConfig;
use qqq_model::{Decoder, ModelError, Tokenizer};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{Calibration, QuantError, Result};

/// Tokens that are chosen greedily.
const GREEDY: usize = 4;
/// Windows that are sampled in one batch on the host: bounds the memory of the KV cache.
const HOST_BATCH: usize = 8;
/// On a device, where a step of many windows takes little longer than one of few: as many of these as the cache has room for.
const DEVICE_BATCHES: [usize; 5] = [128, 64, 32, 16, 8];
/// Bytes of the cache on a device.
const DEVICE_CACHE: usize = 4 << 30;

/// Windows of so many tokens that are sampled in one batch. Their random draws depend on it, so it is a matter of the model
/// and the kind of device, not of the memory that is free.
pub(crate) fn batch(pieces: Pieces, config: &ModelConfig, window: usize) -> usize {
    if pieces.on_host {
        return HOST_BATCH;
    }
    let token = 4 * config.num_layers * config.num_kv_heads * config.head_dim;
    let fits = |batch: &usize| batch.saturating_mul(token).saturating_mul(window) <= DEVICE_CACHE;
    DEVICE_BATCHES.into_iter().find(fits).unwrap_or(HOST_BATCH)
}

/// Samples windows; `on_token` is called for every token and stops by an error.
///
/// # Errors
/// Those of generation (a model whose logits are not finite has no samples to give) and of `on_token`.
pub fn sample_windows<B: Calibrate>(
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
    let size = batch(B::PIECES, &decoder.config, calibration.window);
    // A device draws greedy tokens as well: how it searches for the largest logits depends on its free memory, and with that the
    // order of their sums.
    let greedy = if B::PIECES.on_host { 0.0 } else { f32::MIN_POSITIVE };
    for (batch, windows) in windows.chunks_mut(size).enumerate() {
        for (temperature, until) in [(greedy, GREEDY), (1.0, calibration.window)] {
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

#[cfg(test)]
mod tests {
    use qqq_backend::CpuBackend;

    use super::*;

    #[test]
    fn batches_follow_from_model_and_kind_of_device() {
        let tiny = qqq_testing::TinyModel::new();
        let mut config = qqq_formats::Checkpoint::open(&tiny.model()).unwrap().config;
        let host = <CpuBackend as Calibrate>::PIECES;
        let device = Pieces { on_host: false, ..host };
        // Of Llama-3-8B, 128 KiB a token.
        (config.num_layers, config.num_kv_heads, config.head_dim) = (32, 8, 128);
        let of = |pieces, window| batch(pieces, &config, window);
        assert_eq!([512, 2048, 65_536].map(|window| of(host, window)), [8, 8, 8]);
        assert_eq!([16, 512, 513, 2048, 65_536].map(|window| of(device, window)), [128, 64, 32, 16, 8]);
    }
}
