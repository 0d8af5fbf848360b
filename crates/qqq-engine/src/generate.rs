//! Generation of several sequences in one batch.

use qqq_backend::{Backend, KvDType};
use qqq_model::{Decoder, Result};

use crate::{
    SamplingOptions,
    batch::{self, Sequence},
};

/// What to generate.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Sampling.
    pub sampling: SamplingOptions,
    /// New tokens at most.
    pub max_new_tokens: usize,
    /// Ids that end a sequence.
    pub eos: Vec<u32>,
    /// Type of the KV cache.
    pub kv_dtype: KvDType,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// An end token.
    Stop,
    /// `max_new_tokens`, or the model's context.
    Length,
    /// The caller's callback said so.
    Cancelled,
}

/// A finished sequence.
#[derive(Clone, Debug)]
pub struct Generation {
    /// New tokens (the end token not included).
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: FinishReason,
    /// Tokens of the prompt that were computed (less than its length where a session had some already).
    pub prefill_tokens: usize,
    /// Seconds from the start of the batch to this sequence's first new token, that token's sampling included.
    pub prefill_seconds: f64,
    /// Runs of the decoder after the first new token. A sequence that ends by [`FinishReason::Length`] takes one
    /// less than it has tokens.
    pub decode_steps: usize,
    /// Seconds from the first new token to the end of this sequence.
    pub decode_seconds: f64,
}

/// Generates one continuation per prompt, all in one ragged batch; `on_token(sequence, id)` is
/// called for every new token and stops that sequence by returning `false`.
///
/// # Errors
/// Sampling options without sense, an empty prompt, one that fills the model's context, token ids outside the
/// vocabulary, logits that are not finite ([`ModelError::NotFinite`](qqq_model::ModelError::NotFinite)).
pub fn generate<B: Backend>(
    decoder: &Decoder<B>,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    on_token: &mut dyn FnMut(usize, u32) -> bool,
) -> Result<Vec<Generation>> {
    let mut kv = decoder.kv_cache(options.kv_dtype);
    let mut sequences: Vec<Sequence> = prompts
        .iter()
        .enumerate()
        .map(|(i, prompt)| {
            let slot = decoder.backend.kv_add_slot(&mut kv);
            Sequence::new(slot, prompt.clone(), 0, &options.sampling, i)
        })
        .collect();
    batch::run(decoder, &mut kv, &mut sequences, options, on_token)?;
    Ok(sequences.into_iter().map(Sequence::into_generation).collect())
}
