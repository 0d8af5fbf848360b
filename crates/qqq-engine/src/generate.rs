//! Generation of several sequences in one batch.

use qqq_backend::{Backend, KvDType};
use qqq_model::{Decoder, Result};

use crate::SamplingOptions;

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
    /// Seconds for the prompt.
    pub prefill_seconds: f64,
    /// Seconds for the new tokens.
    pub decode_seconds: f64,
}

/// Generates one continuation per prompt, all in one ragged batch; `on_token(sequence, id)` is
/// called for every new token and stops that sequence by returning `false`.
pub fn generate<B: Backend>(
    _decoder: &Decoder<B>,
    _prompts: &[Vec<u32>],
    _options: &GenerateOptions,
    _on_token: &mut dyn FnMut(usize, u32) -> bool,
) -> Result<Vec<Generation>> {
    unimplemented!()
}
