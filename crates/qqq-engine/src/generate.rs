//! Generation of several sequences in one batch.

use qqq_backend::{Backend, KvDType};
use qqq_model::{Decoder, Result};

use crate::{
    SamplingOptions,
    batch::{self, Event, Next, Sequence},
};

/// What to generate.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// How the next token is chosen from the logits.
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
    /// A stop string.
    StopString,
    /// `max_new_tokens`, or the model's context.
    Length,
    /// The caller's callback said so.
    Cancelled,
}

/// A finished sequence.
#[derive(Clone, Debug)]
pub struct Generation {
    /// New tokens (the end token not included, those of a stop string included).
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: FinishReason,
    /// Tokens of the prompt that were computed (less than its length where a session had some already).
    pub prefill_tokens: usize,
    /// Seconds from when this sequence joined the batch to its first new token, that token's sampling included.
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
    let mut listener = |event: Event<'_>| match event {
        Event::Token(i, id) if !on_token(i, id) => Next::Cancel,
        _ => Next::Go,
    };
    run(decoder, prompts, options, &mut listener)
}

/// As [`generate`]; `go_on` is asked before every run of the decoder, a piece of a prompt or a token of each sequence, and ends
/// all of them by returning `false` ([`FinishReason::Cancelled`]).
///
/// # Errors
/// As [`generate`].
pub fn generate_while<B: Backend>(
    decoder: &Decoder<B>,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<Vec<Generation>> {
    let mut listener = |event: Event<'_>| match event {
        Event::Pass { .. } if !go_on() => Next::CancelAll,
        _ => Next::Go,
    };
    run(decoder, prompts, options, &mut listener)
}

/// One continuation per prompt; `listener` is told what happens.
fn run<B: Backend>(
    decoder: &Decoder<B>,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    listener: &mut batch::Listener,
) -> Result<Vec<Generation>> {
    let sequence = |(i, prompt): (usize, &Vec<u32>)| Sequence::new(prompt.clone(), &options.sampling, i);
    let mut sequences: Vec<Sequence> = prompts.iter().enumerate().map(sequence).collect();
    let (mut runner, mut pages) = batch::runner(decoder, &sequences, options, prompts.len())?;
    batch::run(&mut runner, &mut pages, &mut sequences, options, prompts.len(), listener)?;
    Ok(sequences.iter().map(Sequence::generation).collect())
}
