//! Running sequences together: prefill in bounded pieces, then one token per sequence and step.

use std::time::Instant;

use qqq_backend::{Backend, Span};
use qqq_model::{Decoder, ModelError, NotFinite, Result, names};

use crate::{BadLogit, FinishReason, GenerateOptions, Generation, Sampler, SamplingOptions};

/// Tokens of a prefill pass, over all sequences: bounds the memory of activations, and is enough for the matrix
/// kernels to run at full speed.
pub(crate) const PREFILL_TOKENS: usize = 512;

/// A sequence of a batch.
pub(crate) struct Sequence {
    slot: usize,
    /// Prompt and new tokens.
    tokens: Vec<u32>,
    prompt_len: usize,
    /// Tokens that the cache held at the start.
    reused: usize,
    /// Tokens that the cache holds.
    cached: usize,
    sampler: Sampler,
    finish: Option<FinishReason>,
    prefill_seconds: f64,
    decode_steps: usize,
    decode_seconds: f64,
}

impl Sequence {
    /// A sequence whose slot holds the first `cached` tokens of `prompt`. `index` makes its random draws
    /// differ from those of other sequences.
    pub fn new(
        slot: usize,
        prompt: Vec<u32>,
        cached: usize,
        sampling: &SamplingOptions,
        index: usize,
    ) -> Self {
        Self {
            slot,
            prompt_len: prompt.len(),
            tokens: prompt,
            reused: cached,
            cached,
            sampler: Sampler::for_sequence(sampling.clone(), index),
            finish: None,
            prefill_seconds: 0.0,
            decode_steps: 0,
            decode_seconds: 0.0,
        }
    }

    /// The tokens whose keys and values lie in the cache.
    pub fn cached_tokens(&self) -> &[u32] {
        &self.tokens[..self.cached]
    }

    /// The result.
    pub fn into_generation(self) -> Generation {
        Generation {
            tokens: self.tokens[self.prompt_len..].to_vec(),
            // A sequence that was never run: no new tokens were asked for.
            finish: self.finish.unwrap_or(FinishReason::Length),
            prefill_tokens: self.cached.min(self.prompt_len) - self.reused,
            prefill_seconds: self.prefill_seconds,
            decode_steps: self.decode_steps,
            decode_seconds: self.decode_seconds,
        }
    }

    fn check(&self, index: usize, of: usize, context: usize) -> Result<()> {
        // One prompt has no number; several are counted from 1.
        let prompt = || if of == 1 { "the prompt".into() } else { format!("prompt {} of {of}", index + 1) };
        if self.prompt_len == 0 {
            return Err(ModelError::Request(format!(
                "{} has no tokens; a model needs at least one (its BOS token, if it has one)",
                prompt()
            )));
        }
        if self.prompt_len >= context {
            return Err(ModelError::Request(format!(
                "{} has {} tokens; the model's context of {context} leaves no room for an answer",
                prompt(),
                self.prompt_len
            )));
        }
        Ok(())
    }

    /// Adds the next token and decides whether the sequence goes on.
    fn advance(
        &mut self,
        id: u32,
        options: &GenerateOptions,
        context: usize,
        on_token: &mut dyn FnMut(u32) -> bool,
    ) {
        if options.eos.contains(&id) {
            self.finish = Some(FinishReason::Stop);
            return;
        }
        self.tokens.push(id);
        if !on_token(id) {
            self.finish = Some(FinishReason::Cancelled);
        } else if self.tokens.len() - self.prompt_len >= options.max_new_tokens
            || self.tokens.len() >= context
        {
            self.finish = Some(FinishReason::Length);
        }
    }
}

/// Runs the sequences to their ends. Which tokens come out does not depend on what else is in the batch (on a backend
/// whose rows do not depend on each other).
pub(crate) fn run<B: Backend>(
    decoder: &Decoder<B>,
    kv: &mut B::KvCache,
    sequences: &mut [Sequence],
    options: &GenerateOptions,
    on_token: &mut dyn FnMut(usize, u32) -> bool,
) -> Result<()> {
    if let Some(problem) = options.sampling.problem() {
        return Err(ModelError::Request(problem));
    }
    let context = decoder.config.max_position_embeddings;
    for (i, s) in sequences.iter().enumerate() {
        s.check(i, sequences.len(), context)?;
    }
    if options.max_new_tokens == 0 {
        return Ok(());
    }
    let start = Instant::now();
    decoder.begin_prefill(sequences.iter().map(|s| s.prompt_len - s.cached).sum());
    let mut waiting = 0;
    while waiting < sequences.len() {
        let work = prefill_pass(sequences, waiting);
        waiting = work.last().map_or(sequences.len(), |last| last.index + usize::from(last.ends));
        step(decoder, kv, sequences, &work, options, on_token)?;
        for w in work.iter().filter(|w| w.ends) {
            sequences[w.index].prefill_seconds = start.elapsed().as_secs_f64();
        }
    }
    loop {
        let live = |(_, s): &(usize, &Sequence)| s.finish.is_none();
        let work: Vec<Work> = sequences
            .iter()
            .enumerate()
            .filter(live)
            .map(|(index, _)| Work { index, len: 1, ends: true })
            .collect();
        if work.is_empty() {
            return Ok(());
        }
        step(decoder, kv, sequences, &work, options, on_token)?;
        for w in &work {
            let s = &mut sequences[w.index];
            s.decode_steps += 1;
            s.decode_seconds = start.elapsed().as_secs_f64() - s.prefill_seconds;
        }
    }
}

/// A sequence's part of a run of the decoder.
struct Work {
    index: usize,
    /// Tokens to run, from `cached` on.
    len: usize,
    /// Whether they are the last of the sequence so far, so that the next one can be sampled.
    ends: bool,
}

/// The next tokens of prompts, sequence by sequence from `first` on, [`PREFILL_TOKENS`] at most.
fn prefill_pass(sequences: &[Sequence], first: usize) -> Vec<Work> {
    let mut room = PREFILL_TOKENS;
    let mut work = Vec::new();
    for (index, s) in sequences.iter().enumerate().skip(first) {
        if room == 0 {
            break;
        }
        let left = s.prompt_len - s.cached;
        let len = left.min(room);
        work.push(Work { index, len, ends: len == left });
        room -= len;
    }
    work
}

/// Runs tokens, and samples for the sequences whose last token was among them.
fn step<B: Backend>(
    decoder: &Decoder<B>,
    kv: &mut B::KvCache,
    sequences: &mut [Sequence],
    work: &[Work],
    options: &GenerateOptions,
    on_token: &mut dyn FnMut(usize, u32) -> bool,
) -> Result<()> {
    let mut tokens = Vec::new();
    let mut spans = Vec::with_capacity(work.len());
    let mut ends = Vec::new();
    for w in work {
        let s = &sequences[w.index];
        tokens.extend_from_slice(&s.tokens[s.cached..s.cached + w.len]);
        spans.push(Span { slot: s.slot, start: s.cached, len: w.len });
        if w.ends {
            ends.push(tokens.len() - 1);
        }
    }
    let hidden = decoder.hidden(&tokens, &spans, kv)?;
    for w in work {
        sequences[w.index].cached += w.len;
    }
    if ends.is_empty() {
        return Ok(());
    }
    // The head is the widest layer: it runs for the rows that are sampled only.
    let last = decoder.backend.select_rows(&hidden, &ends);
    let sampled: Vec<&Work> = work.iter().filter(|w| w.ends).collect();
    // All sequences share their options.
    let next: Vec<Result<u32, BadLogit>> = match sequences[sampled[0].index].sampler.top_needed() {
        Some(count) => {
            let rows = decoder.top_logits(&last, count);
            sampled.iter().zip(rows).map(|(w, row)| sequences[w.index].sampler.sample_top(&row)).collect()
        }
        None => {
            let logits = decoder.backend.to_host(&decoder.logits(&last));
            let rows = logits.chunks_exact(decoder.config.vocab_size);
            let sample = |(w, row): (&&Work, &[f32])| {
                let s = &mut sequences[w.index];
                s.sampler.sample(row, &s.tokens)
            };
            sampled.iter().zip(rows).map(sample).collect()
        }
    };
    let context = decoder.config.max_position_embeddings;
    for (w, id) in sampled.into_iter().zip(next) {
        let s = &mut sequences[w.index];
        let id = id.map_err(|BadLogit { .. }| not_finite(decoder, s.cached_tokens()))?;
        s.advance(id, options, context, &mut |id| on_token(w.index, id));
    }
    Ok(())
}

/// The error of a sequence whose last token has a logit that is not finite: names where it comes from.
fn not_finite<B: Backend>(decoder: &Decoder<B>, sequence: &[u32]) -> ModelError {
    match decoder.first_not_finite(sequence) {
        Ok(Some(place)) => place.into(),
        Ok(None) => {
            NotFinite { module: names::LM_HEAD_MODULE.into(), position: sequence.len().saturating_sub(1) }
                .into()
        }
        Err(e) => e,
    }
}
