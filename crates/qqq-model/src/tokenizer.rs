//! Tokenizers: `tokenizer.json`, or the vocabulary of a GGUF file.

use std::path::Path;

use qqq_formats::Checkpoint;

use crate::Result;

/// A tokenizer with the special tokens of its model.
pub struct Tokenizer {}

impl Tokenizer {
    /// The tokenizer that comes with a checkpoint; checks that it matches the model's vocabulary.
    pub fn load(_checkpoint: &Checkpoint) -> Result<Self> {
        unimplemented!()
    }

    /// Token ids of a text. `special`: add the model's BOS (and EOS) where its configuration says so. Special tokens
    /// that are spelled out in the text are recognised.
    pub fn encode(&self, _text: &str, _special: bool) -> Result<Vec<u32>> {
        unimplemented!()
    }

    /// Text of token ids.
    pub fn decode(&self, _ids: &[u32], _skip_special: bool) -> Result<String> {
        unimplemented!()
    }

    /// Decodes a stream of ids; each call gives the text that has become complete.
    pub fn stream(&self) -> TokenStream<'_> {
        unimplemented!()
    }

    /// BOS.
    pub fn bos(&self) -> Option<u32> {
        unimplemented!()
    }

    /// Ids that end a generation (config.json, generation_config.json, tokenizer, chat end tokens).
    pub fn eos(&self) -> &[u32] {
        unimplemented!()
    }

    /// Writes tokenizer.json, tokenizer_config.json, special_tokens_map.json (copied where the source is a directory,
    /// made from the GGUF metadata otherwise), chat_template.jinja and generation_config.json into `dir`.
    pub fn save(&self, _dir: &Path) -> Result<()> {
        unimplemented!()
    }
}

/// Incremental decoding: holds back bytes of an incomplete character.
pub struct TokenStream<'a> {
    _tokenizer: &'a Tokenizer,
}

impl TokenStream<'_> {
    /// Adds an id; returns the new complete text, if any.
    pub fn push(&mut self, _id: u32) -> Result<Option<String>> {
        unimplemented!()
    }

    /// What is left at the end (incomplete characters as U+FFFD).
    pub fn finish(self) -> Result<Option<String>> {
        unimplemented!()
    }
}
