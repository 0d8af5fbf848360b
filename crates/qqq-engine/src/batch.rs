//! Running sequences together: prefill in bounded pieces, then one token per sequence and step.

use std::time::Instant;

use qqq_backend::{Backend, BatchPlan, pages_for};
use qqq_model::{Decoder, ModelError, NotFinite, Result, RopeChoice, Runner, names};

use crate::{
    BadLogit, FinishReason, GenerateOptions, Generation, Sampler, SamplingOptions, choose, pages::Pages,
};

/// A sequence of a batch.
pub(crate) struct Sequence {
    /// Pages that hold its keys and values.
    pages: Vec<u32>,
    /// Whether these are the batch's own, to be freed at the end of the sequence.
    lent: bool,
    /// Prompt and new tokens.
    tokens: Vec<u32>,
    prompt_len: usize,
    /// Tokens that the cache held at the start.
    reused: usize,
    /// Tokens that the cache holds.
    cached: usize,
    /// Its rotary embedding, from the first token to the last.
    rope: RopeChoice,
    sampler: Sampler,
    finish: Option<FinishReason>,
    /// Whether its end was told.
    told: bool,
    /// When it joined the batch.
    joined: Option<Instant>,
    prefill_seconds: f64,
    decode_steps: usize,
    decode_seconds: f64,
}

/// What happens in a batch. Sequences are named by their index.
pub(crate) enum Event<'a> {
    /// The decoder is about to run. `computed` of the `total` tokens of the prompts that have joined lie in the cache.
    Pass { computed: usize, total: usize },
    /// A new token.
    Token(usize, u32),
    /// A sequence has ended.
    End(usize, &'a Sequence),
}

/// What is to happen after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Go,
    /// The sequence ends, because of a stop string.
    Stop,
    /// The sequence ends.
    Cancel,
    /// All sequences end.
    CancelAll,
}

/// What is told what happens.
pub(crate) type Listener<'a> = dyn FnMut(Event) -> Next + 'a;

impl Sequence {
    /// A sequence that gets pages as it needs them. `index` makes its random draws differ from those of other
    /// sequences.
    pub fn new(prompt: Vec<u32>, sampling: &SamplingOptions, index: usize) -> Self {
        Self {
            pages: Vec::new(),
            lent: true,
            prompt_len: prompt.len(),
            tokens: prompt,
            reused: 0,
            cached: 0,
            rope: RopeChoice::Original,
            sampler: Sampler::for_sequence(sampling.clone(), index),
            finish: None,
            told: false,
            joined: None,
            prefill_seconds: 0.0,
            decode_steps: 0,
            decode_seconds: 0.0,
        }
    }

    /// With pages that hold the first `cached` tokens of the prompt, and stay its own at the end.
    pub fn with_pages(self, pages: Vec<u32>, cached: usize) -> Self {
        Self { pages, lent: false, reused: cached, cached, ..self }
    }

    /// Positions that it takes at most.
    pub fn positions(&self, options: &GenerateOptions, context: usize) -> usize {
        reach(self.prompt_len, options, context)
    }

    /// Its pages, which are the caller's from now on.
    pub fn into_pages(self) -> Vec<u32> {
        self.pages
    }

    /// The tokens whose keys and values lie in the cache.
    pub fn cached_tokens(&self) -> &[u32] {
        &self.tokens[..self.cached]
    }

    /// The result so far.
    pub fn generation(&self) -> Generation {
        Generation {
            tokens: self.tokens[self.prompt_len..].to_vec(),
            // A sequence that was never run: no new tokens were asked for.
            finish: self.finish.unwrap_or(FinishReason::Length),
            // Cancelled before it joined, or within its prompt, it has computed less.
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

    /// Whether it takes part in the next run of the decoder.
    fn is_live(&self) -> bool {
        self.joined.is_some() && self.finish.is_none()
    }

    /// Adds the next token and decides whether the sequence goes on.
    fn advance(
        &mut self,
        id: u32,
        options: &GenerateOptions,
        context: usize,
        on_token: &mut dyn FnMut(u32) -> Next,
    ) -> Next {
        if options.eos.contains(&id) {
            self.finish = Some(FinishReason::Stop);
            return Next::Go;
        }
        self.tokens.push(id);
        let next = on_token(id);
        self.finish = match next {
            Next::Stop => Some(FinishReason::StopString),
            Next::Cancel | Next::CancelAll => Some(FinishReason::Cancelled),
            Next::Go if self.tokens.len() - self.prompt_len >= options.max_new_tokens => {
                Some(FinishReason::Length)
            }
            Next::Go if self.tokens.len() >= context => Some(FinishReason::Length),
            Next::Go => None,
        };
        next
    }
}

/// Tokens that a sequence with a prompt of so many can reach.
pub(crate) fn reach(prompt_len: usize, options: &GenerateOptions, context: usize) -> usize {
    prompt_len.saturating_add(options.max_new_tokens).min(context)
}

/// A runner for sequences, `together` of them at a time, with as many pages as they can come to need.
pub(crate) fn runner<'d, B: Backend>(
    decoder: &'d Decoder<B>,
    sequences: &[Sequence],
    options: &GenerateOptions,
    together: usize,
) -> Result<(Runner<'d, B>, Pages)> {
    let context = decoder.config.max_position_embeddings;
    let mut needs: Vec<usize> = sequences.iter().map(|s| pages_for(s.positions(options, context))).collect();
    needs.sort_unstable_by_key(|&pages| std::cmp::Reverse(pages));
    let pages = Pages::new(needs.iter().take(together.max(1)).sum());
    let rows = sequences.iter().map(|s| s.prompt_len).sum::<usize>().min(B::STEP_TOKENS);
    Ok((Runner::new(decoder, options.kv_dtype, pages.total(), rows)?, pages))
}

/// Runs the sequences to their ends, `together` at a time: one that ends makes room for the next. Which tokens come out
/// does not depend on what else is in the batch (on a backend whose rows do not depend on each other).
pub(crate) fn run<B: Backend>(
    runner: &mut Runner<'_, B>,
    pages: &mut Pages,
    sequences: &mut [Sequence],
    options: &GenerateOptions,
    together: usize,
    listener: &mut Listener,
) -> Result<()> {
    if let Some(problem) = options.sampling.problem() {
        return Err(ModelError::Request(problem));
    }
    let decoder = runner.decoder();
    let context = decoder.config.max_position_embeddings;
    for (i, s) in sequences.iter().enumerate() {
        s.check(i, sequences.len(), context)?;
    }
    for s in sequences.iter_mut() {
        s.rope = RopeChoice::new(&decoder.config, s.positions(options, context));
    }
    if options.max_new_tokens == 0 {
        return Ok(());
    }
    // Sequences before `joined` are in the batch or have ended, those before `started` have a new token.
    let (mut joined, mut started) = (0, 0);
    loop {
        let before = joined;
        let mut live = sequences[..joined].iter().filter(|s| s.is_live()).count();
        while joined < sequences.len() && live < together.max(1) {
            let s = &mut sequences[joined];
            s.joined = Some(Instant::now());
            joined += 1;
            live += 1;
        }
        if before < joined {
            // Whoever joins while others still wait for their first token waits with them.
            decoder.begin_prefill(sequences[started..joined].iter().map(|s| s.prompt_len - s.cached).sum());
        }
        let prefill = started < joined;
        let work = if prefill {
            prefill_pass(&sequences[..joined], started, B::STEP_TOKENS)
        } else {
            decode_pass(&sequences[..joined])
        };
        if work.is_empty() {
            return Ok(());
        }
        let count = |f: fn(&Sequence) -> usize| -> usize { sequences[..joined].iter().map(f).sum() };
        let (computed, total) = (count(|s| s.cached.min(s.prompt_len)), count(|s| s.prompt_len));
        let mut next = listener(Event::Pass { computed, total });
        if prefill {
            started = work.last().map_or(joined, |last| last.index + usize::from(last.ends));
        }
        for work in by_rope(sequences, work) {
            if next != Next::Go {
                break;
            }
            next = step(runner, pages, sequences, &work, options, listener)?;
            for w in &work {
                let s = &mut sequences[w.index];
                let seconds = s.joined.map_or(0.0, |joined| joined.elapsed().as_secs_f64());
                match prefill {
                    true if w.ends => s.prefill_seconds = seconds,
                    true => {}
                    false => {
                        s.decode_steps += 1;
                        s.decode_seconds = seconds - s.prefill_seconds;
                    }
                }
            }
        }
        let cancelled = next != Next::Go;
        if cancelled {
            decoder.end_prefill();
        }
        for (index, s) in sequences.iter_mut().enumerate() {
            if cancelled {
                s.finish.get_or_insert(FinishReason::Cancelled);
            }
            if s.joined.is_none() || s.finish.is_none() || std::mem::replace(&mut s.told, true) {
                continue;
            }
            if s.lent {
                pages.truncate(&mut s.pages, 0);
            }
            // Who wants to cancel the rest says so again before the next run.
            listener(Event::End(index, s));
        }
        if cancelled {
            return Ok(());
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

/// The last token of each sequence that has not ended.
fn decode_pass(sequences: &[Sequence]) -> Vec<Work> {
    let live = sequences.iter().enumerate().filter(|(_, s)| s.is_live());
    live.map(|(index, _)| Work { index, len: 1, ends: true }).collect()
}

/// The next tokens of prompts, sequence by sequence from `first` on, `room` at most: that bounds the memory of activations.
fn prefill_pass(sequences: &[Sequence], first: usize, mut room: usize) -> Vec<Work> {
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

/// Work in parts, each of sequences with the same rotary embedding: a step has one.
fn by_rope(sequences: &[Sequence], work: Vec<Work>) -> Vec<Vec<Work>> {
    let mut parts: Vec<Vec<Work>> = Vec::new();
    for w in work {
        let rope = sequences[w.index].rope;
        match parts.iter_mut().find(|part| sequences[part[0].index].rope == rope) {
            Some(part) => part.push(w),
            None => parts.push(vec![w]),
        }
    }
    parts
}

/// Runs tokens of sequences with the same rotary embedding, and samples for those whose last token was among them. Gives
/// [`Next::CancelAll`] if that was wanted.
fn step<B: Backend>(
    runner: &mut Runner<'_, B>,
    pages: &mut Pages,
    sequences: &mut [Sequence],
    work: &[Work],
    options: &GenerateOptions,
    listener: &mut Listener,
) -> Result<Next> {
    let positions = work.iter().map(|w| (&sequences[w.index], w.len));
    let positions = positions.map(|(s, len)| (s.pages.len(), s.cached + len));
    if let Some(wanted) = pages.wanted(positions) {
        // Less may fit where what would be better does not.
        let grown = match runner.grow(wanted.better) {
            Ok(()) => wanted.better,
            Err(_) if wanted.least < wanted.better => {
                runner.grow(wanted.least)?;
                wanted.least
            }
            Err(e) => return Err(e),
        };
        pages.grow(grown);
    }
    let mut plan = BatchPlan::default();
    let mut ends = Vec::new();
    for w in work {
        let s = &mut sequences[w.index];
        let end = s.cached + w.len;
        pages.extend(&mut s.pages, end)?;
        plan.push(&s.tokens[s.cached..end], s.cached, &s.pages);
        if w.ends {
            ends.push(plan.tokens.len() - 1);
        }
    }
    let decoder = runner.decoder();
    runner.choose_rope(sequences[work[0].index].rope)?;
    runner.step(&plan)?;
    for w in work {
        sequences[w.index].cached += w.len;
    }
    if ends.is_empty() {
        return Ok(Next::Go);
    }
    // The head is the widest layer: it runs for the rows that are sampled only.
    let sampled: Vec<&Work> = work.iter().filter(|w| w.ends).collect();
    // Work is in the order of the sequences.
    let is_sampled = |index: &usize| sampled.binary_search_by_key(index, |w| w.index).is_ok();
    let mut samplers: Vec<(&mut Sampler, &[u32])> = sequences
        .iter_mut()
        .enumerate()
        .filter(|(index, _)| is_sampled(index))
        .map(|(_, s)| (&mut s.sampler, s.tokens.as_slice()))
        .collect();
    let next = choose::tokens(runner, &ends, &mut samplers)?;
    let context = decoder.config.max_position_embeddings;
    let mut all = Next::Go;
    for (w, id) in sampled.into_iter().zip(next) {
        let s = &mut sequences[w.index];
        let id = id.map_err(|BadLogit { .. }| not_finite(decoder, s.cached_tokens(), s.rope))?;
        let next = s.advance(id, options, context, &mut |id| listener(Event::Token(w.index, id)));
        if next == Next::CancelAll {
            all = next;
        }
    }
    Ok(all)
}

/// The error of a sequence whose last token has a logit that is not finite: names where it comes from.
fn not_finite<B: Backend>(decoder: &Decoder<B>, sequence: &[u32], rope: RopeChoice) -> ModelError {
    match decoder.first_not_finite(sequence, rope) {
        Ok(Some(place)) => place.into(),
        Ok(None) => {
            NotFinite { module: names::LM_HEAD_MODULE.into(), position: sequence.len().saturating_sub(1) }
                .into()
        }
        Err(e) => e,
    }
}
