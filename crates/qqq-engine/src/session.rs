//! One sequence whose KV cache outlives a generation: the turns of a chat.

use qqq_backend::Backend;
use qqq_model::{Decoder, ModelError, Result};

use crate::{
    GenerateOptions, Generation,
    batch::{self, Sequence},
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
        let common = self.cached.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        // The last token has to run in any case: its logits are needed.
        let common = common.min(prompt.len().saturating_sub(1));
        self.decoder.backend.kv_truncate(&mut self.kv, self.slot, common);
        self.cached.truncate(common);
        let mut sequence =
            [Sequence::new(self.slot, prompt.to_vec(), common, &self.options.sampling, self.turn)];
        self.turn += 1;
        let result =
            batch::run(self.decoder, &mut self.kv, &mut sequence, &self.options, &mut |_, id| on_token(id));
        let [sequence] = sequence;
        self.cached = sequence.cached_tokens().to_vec();
        if let Err(ModelError::NotFinite(_)) = result {
            // Keys and values of such a run are worth nothing.
            self.clear();
        }
        result.map(|()| sequence.into_generation())
    }
}
