//! Tokenizers: `tokenizer.json`, or the vocabulary of a GGUF file.

mod directory;
mod gguf;
mod pre;
mod stream;

use std::path::{Path, PathBuf};

use qqq_formats::{Checkpoint, ModelConfig};

use crate::{ModelError, Result};

pub(crate) use directory::read_json;
pub use stream::TokenStream;

/// Tokens that end an assistant's turn in the chat formats of the supported families. Where the
/// vocabulary has one of them as a special token, it ends a generation: configurations often name
/// the end of the document only.
const END_TOKENS: [&str; 9] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
];

/// The named special tokens of a model, as text; a chat template sees them as variables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// `bos_token`.
    pub bos: Option<String>,
    /// `eos_token`.
    pub eos: Option<String>,
    /// `unk_token`.
    pub unk: Option<String>,
    /// `pad_token`.
    pub pad: Option<String>,
}

/// Where a tokenizer's files come from.
enum Source {
    /// To be copied.
    Directory(PathBuf),
    /// Made from GGUF metadata, besides tokenizer.json: name and content.
    Made(Vec<(&'static str, String)>),
}

/// What a loader finds out; [`Tokenizer::load`] makes the tokenizer of it.
struct Parts {
    inner: tokenizers::Tokenizer,
    special: SpecialTokens,
    /// Whether to add BOS and EOS; `None`: as the tokenizer's own post-processor does.
    add: Option<(bool, bool)>,
    /// BOS of generation_config.json.
    bos: Option<u32>,
    /// End tokens beyond those of the model's configuration.
    eos: Vec<u32>,
    source: Source,
    location: String,
}

/// A tokenizer with the special tokens of its model.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: SpecialTokens,
    add: Option<(bool, bool)>,
    bos: Option<u32>,
    eos: Vec<u32>,
    source: Source,
}

impl Tokenizer {
    /// The tokenizer that comes with a checkpoint; checks that it matches the model's vocabulary.
    ///
    /// # Errors
    /// There is none, it is damaged or of a kind not supported, or it has ids for which the model
    /// has no embedding.
    pub fn load(checkpoint: &Checkpoint) -> Result<Self> {
        let parts = match &checkpoint.gguf {
            Some(file) => gguf::load(file)?,
            None => directory::load(&checkpoint.path)?,
        };
        Self::new(parts, &checkpoint.config)
    }

    fn new(mut parts: Parts, config: &ModelConfig) -> Result<Self> {
        let vocab = parts.inner.get_vocab(true);
        let Some((token, &largest)) = vocab.iter().max_by_key(|(_, id)| **id) else {
            return Err(error(&parts.location, "the vocabulary is empty"));
        };
        if largest as usize >= config.vocab_size {
            return Err(error(
                &parts.location,
                format!(
                    "token {token:?} has id {largest}, but the model has only {} embeddings: \
                     this tokenizer belongs to another model",
                    config.vocab_size
                ),
            ));
        }
        // Whole texts are wanted, whatever a training script left in tokenizer.json.
        parts.inner.with_padding(None);
        parts
            .inner
            .with_truncation(None)
            .map_err(|e| error(&parts.location, format!("cannot disable truncation: {e}")))?;

        let id = |token: &Option<String>| token.as_ref().and_then(|t| parts.inner.token_to_id(t));
        let bos = id(&parts.special.bos).or(config.bos_token_id).or(parts.bos);
        if let Some((true, _)) = parts.add
            && bos.is_none()
        {
            return Err(error(&parts.location, "asks for a BOS token (add_bos_token), but names none"));
        }
        let is_special = |id: &u32| parts.inner.get_added_tokens_decoder().get(id).is_some_and(|t| t.special);
        let ends = END_TOKENS.iter().filter_map(|t| vocab.get(*t).copied()).filter(is_special);
        let mut eos: Vec<u32> = Vec::new();
        for id in config
            .eos_token_ids
            .iter()
            .copied()
            .chain(parts.eos.iter().copied())
            .chain(id(&parts.special.eos))
            .chain(ends)
        {
            if !eos.contains(&id) {
                eos.push(id);
            }
        }
        let Parts { inner, special, add, source, .. } = parts;
        Ok(Tokenizer { inner, special, add, bos, eos, source })
    }

    /// Token ids of a text. `special`: add the model's BOS (and EOS) where its configuration says so. Special tokens
    /// that are spelled out in the text are recognised.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let own = special && self.add.is_none();
        let encoding = self
            .inner
            .encode_fast(text, own)
            .map_err(|e| ModelError::Tokenizer(format!("cannot encode: {e}")))?;
        let mut ids = encoding.get_ids().to_vec();
        if special && let Some((add_bos, add_eos)) = self.add {
            if add_bos && let Some(bos) = self.bos {
                ids.insert(0, bos);
            }
            if add_eos && let Some(eos) = self.special_id(&self.special.eos) {
                ids.push(eos);
            }
        }
        Ok(ids)
    }

    /// Text of token ids.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special).map_err(|e| ModelError::Tokenizer(format!("cannot decode: {e}")))
    }

    /// Decodes a stream of ids; each call gives the text that has become complete. Special tokens
    /// give no text.
    pub fn stream(&self) -> TokenStream<'_> {
        TokenStream::new(self)
    }

    /// BOS.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Ids that end a generation (config.json, generation_config.json, tokenizer, chat end tokens).
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// The named special tokens.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }

    /// Id of a token by its text (`<|im_end|>`).
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Number of tokens, added ones included.
    pub fn len(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Never true for a loaded tokenizer.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn special_id(&self, token: &Option<String>) -> Option<u32> {
        token.as_ref().and_then(|t| self.inner.token_to_id(t))
    }

    /// Writes tokenizer.json, tokenizer_config.json, special_tokens_map.json (copied where the source is a directory,
    /// made from the GGUF metadata otherwise), chat_template.jinja and generation_config.json into `dir`.
    pub fn save(&self, dir: &Path) -> Result<()> {
        match &self.source {
            Source::Directory(from) => directory::copy(from, dir),
            Source::Made(files) => {
                let json = self
                    .inner
                    .to_string(false)
                    .map_err(|e| ModelError::Tokenizer(format!("cannot be written as JSON: {e}")))?;
                write(&dir.join("tokenizer.json"), &json)?;
                files.iter().try_for_each(|(name, content)| write(&dir.join(name), content))
            }
        }
    }
}

fn write(path: &Path, content: &str) -> Result<()> {
    std::fs::write(path, content).map_err(|source| io(path, source))
}

fn io(path: &Path, source: std::io::Error) -> ModelError {
    qqq_formats::FormatError::Io { path: path.into(), source }.into()
}

fn error(location: &str, reason: impl std::fmt::Display) -> ModelError {
    ModelError::Tokenizer(format!("{location}: {reason}"))
}
