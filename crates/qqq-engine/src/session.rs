//! One sequence whose KV cache outlives a generation: the turns of a chat.

use qqq_backend::Backend;
use qqq_model::{Decoder, ModelError, Result, Tokenizer};

use crate::{
    GenerateOptions, Generation, StopStrings,
    batch::{self, Event, Listener, Next, Sequence},
    text::{Monitor, TextEvent, TextGeneration},
};

/// A conversation with a decoder. Each [`Session::generate`] takes the whole prompt and computes only what
/// the cache does not hold already.
pub struct Session<'a, B: Backend> {
    decoder: &'a Decoder<B>,
    options: GenerateOptions,
    kv: B::KvCache,
    slot: usize,
    /// Tokens whose keys and values the cache holds.
    cached: Vec<u32>,
    turn: usize,
}

impl<'a, B: Backend> Session<'a, B> {
    /// An empty session.
    pub fn new(decoder: &'a Decoder<B>, options: GenerateOptions) -> Self {
        let mut kv = decoder.kv_cache(options.kv_dtype);
        let slot = decoder.backend.kv_add_slot(&mut kv);
        Self { decoder, options, kv, slot, cached: Vec::new(), turn: 0 }
    }

    /// Tokens whose keys and values the cache holds.
    pub fn cached(&self) -> &[u32] {
        &self.cached
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.decoder.backend.kv_truncate(&mut self.kv, self.slot, 0);
        self.cached.clear();
    }

    /// Continues `prompt`, which is the whole conversation so far; the longest prefix that the cache holds is not
    /// computed again. `on_token` is called for every new token and stops by returning `false`.
    ///
    /// # Errors
    /// As [`crate::generate()`]. The session can be used further.
    pub fn generate(&mut self, prompt: &[u32], on_token: &mut dyn FnMut(u32) -> bool) -> Result<Generation> {
        self.run(prompt, &mut |event| match event {
            Event::Token(_, id) if !on_token(id) => Next::Cancel,
            _ => Next::Go,
        })
    }

    /// As [`Session::generate`], with the new tokens as text that ends before a stop string. `on_event` is told what
    /// happens (of sequence 0), and stops by returning `false`.
    ///
    /// # Errors
    /// As [`crate::generate()`], and tokens that the tokenizer cannot decode.
    pub fn generate_text(
        &mut self,
        tokenizer: &Tokenizer,
        prompt: &[u32],
        stop: &StopStrings,
        on_event: &mut dyn FnMut(TextEvent<'_>) -> bool,
    ) -> Result<TextGeneration> {
        let mut last = None;
        let mut listener = |event: TextEvent<'_>| match event {
            TextEvent::End { result, .. } => {
                last = Some(result);
                true
            }
            event => on_event(event),
        };
        let mut monitor = Monitor::new(tokenizer, stop, 1, &mut listener);
        let generation = self.run(prompt, &mut |event| monitor.event(event))?;
        monitor.outcome()?;
        // Without new tokens there is no end either.
        Ok(last.unwrap_or(TextGeneration { text: String::new(), stop_string: None, generation }))
    }

    fn run(&mut self, prompt: &[u32], listener: &mut Listener) -> Result<Generation> {
        let common = self.cached.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        // The last token has to run in any case: its logits are needed.
        let common = common.min(prompt.len().saturating_sub(1));
        self.decoder.backend.kv_truncate(&mut self.kv, self.slot, common);
        self.cached.truncate(common);
        let sequence = Sequence::new(prompt.to_vec(), &self.options.sampling, self.turn);
        let mut sequence = [sequence.in_slot(self.slot, common)];
        self.turn += 1;
        let result = batch::run(self.decoder, &mut self.kv, &mut sequence, &self.options, 1, listener);
        let [sequence] = sequence;
        self.cached = sequence.cached_tokens().to_vec();
        if let Err(ModelError::NotFinite(_)) = result {
            // Keys and values of such a run are worth nothing.
            self.clear();
        }
        result.map(|()| sequence.generation())
    }
}
