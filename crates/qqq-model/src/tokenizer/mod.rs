//! Tokenizers: `tokenizer.json`, or the vocabulary of a GGUF file.

mod directory;
mod gguf;
mod stream;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use qqq_formats::{Checkpoint, Inputs, ModelConfig};

use crate::{ModelError, Result, companions};

pub(crate) use directory::read_json;
pub use stream::TokenStream;

/// Tokens that end an assistant's turn in the chat formats of the supported families. Where the
/// vocabulary has one of them as a special token, it ends a generation: configurations often name
/// the end of the document only.
const END_TOKENS: [&str; 17] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<turn|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<eos>",
    "<｜end▁of▁sentence｜>",
    "</s>",
];

/// The named special tokens of a model, as text; a chat template sees them as variables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// `bos_token`, which begins a text.
    pub bos: Option<String>,
    /// `eos_token`, which ends a text.
    pub eos: Option<String>,
    /// `unk_token`, for what the vocabulary has no token for.
    pub unk: Option<String>,
    /// `pad_token`, which fills batches and says nothing.
    pub pad: Option<String>,
}

/// Where a tokenizer's files come from.
enum Source {
    /// To be copied, as they were when they were read.
    Directory(PathBuf, Arc<Inputs>),
    /// Made from GGUF metadata, besides tokenizer.json: name and content.
    Made(Vec<(String, String)>),
}

/// What a loader finds out; [`Tokenizer::load`] makes the tokenizer of it.
struct Parts {
    inner: tokenizers::Tokenizer,
    special: SpecialTokens,
    /// BOS of generation_config.json.
    bos: Option<u32>,
    /// End tokens beyond those of the model's configuration.
    eos: Vec<u32>,
    source: Source,
    location: String,
    /// Ids without a text of their own, and the ids that have it.
    twins: HashMap<u32, u32>,
    /// What a user should know, a sentence each.
    notes: Vec<String>,
    /// What generation_config.json asks for and generation does not do.
    generation: Option<String>,
}

/// Notes that were logged.
static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// A tokenizer with the special tokens of its model.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: SpecialTokens,
    bos: Option<u32>,
    eos: Vec<u32>,
    source: Source,
    twins: HashMap<u32, u32>,
    notes: Vec<String>,
    generation: Option<String>,
    /// Rows of the model's embedding, where added tokens have ids beyond them.
    rows: Option<usize>,
}

impl Tokenizer {
    /// The tokenizer that comes with a checkpoint; checks that it matches the model's vocabulary. What had to be
    /// guessed or put right is logged as a warning (once in a process), and kept in
    /// [`Tokenizer::notes`].
    ///
    /// # Errors
    /// There is none, it is damaged or of a kind not supported, or it has ids for which the model
    /// has no embedding.
    pub fn load(checkpoint: &Checkpoint) -> Result<Self> {
        let parts = match &checkpoint.gguf {
            Some(file) => gguf::load(file)?,
            None => directory::load(&checkpoint.path, &checkpoint.inputs)?,
        };
        let location = parts.location.clone();
        let tokenizer = Self::new(parts, &checkpoint.config)?;
        // Once in a process: a model and the one made from it have the same tokenizer in two places.
        let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
        for note in &tokenizer.notes {
            if told.insert(note.clone()) {
                tracing::warn!("{location}: {note}");
            }
        }
        Ok(tokenizer)
    }

    fn new(mut parts: Parts, config: &ModelConfig) -> Result<Self> {
        // Whole texts are wanted, whatever a training script left in tokenizer.json.
        parts.inner.with_padding(None);
        parts
            .inner
            .with_truncation(None)
            .map_err(|e| error(&parts.location, format!("cannot disable truncation: {e}")))?;

        let vocab = parts.inner.get_vocab(true);
        let beyond = Self::check_rows(&mut parts, &vocab, config.vocab_size)?;
        let id = |token: &Option<String>| token.as_ref().and_then(|t| parts.inner.token_to_id(t));
        let bos = id(&parts.special.bos).or(config.bos_token_id).or(parts.bos);
        let bos = bos.filter(|&id| (id as usize) < config.vocab_size);
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
        let Parts { inner, special, source, twins, notes, generation, .. } = parts;
        Ok(Tokenizer {
            inner,
            special,
            bos,
            eos,
            source,
            twins,
            notes,
            generation,
            rows: beyond.then_some(config.vocab_size),
        })
    }

    /// Whether there are tokens without an embedding. Only added ones may be without (a padding token, say), as long as
    /// no text has them.
    fn check_rows(parts: &mut Parts, vocab: &HashMap<String, u32>, rows: usize) -> Result<bool> {
        if vocab.is_empty() {
            return Err(error(&parts.location, "the vocabulary is empty"));
        }
        let added = parts.inner.get_added_tokens_decoder();
        let mut beyond: Vec<(u32, &str)> =
            vocab.iter().map(|(t, id)| (*id, t.as_str())).filter(|(id, _)| *id as usize >= rows).collect();
        beyond.sort_unstable();
        if let Some((id, token)) = beyond.iter().rfind(|(id, _)| !added.contains_key(id)) {
            return Err(error(
                &parts.location,
                format!(
                    "token {token:?} has id {id}, but the model has only {rows} embeddings: \
                     this tokenizer belongs to another model"
                ),
            ));
        }
        let always = parts.inner.encode_fast("", true).map_err(|e| error(&parts.location, e))?;
        if let Some(&id) = always.get_ids().iter().find(|&&id| id as usize >= rows) {
            return Err(error(
                &parts.location,
                format!(
                    "every text gets the token {:?} with id {id}, but the model has only {rows} embeddings: \
                     this tokenizer belongs to another model",
                    parts.inner.id_to_token(id).unwrap_or_default()
                ),
            ));
        }
        if let Some((id, token)) = beyond.first() {
            parts.notes.push(format!(
                "{} added tokens have no embedding in the model, which has {rows}: texts must not have them \
                 (the first is {token:?}, with id {id})",
                beyond.len()
            ));
        }
        Ok(!beyond.is_empty())
    }

    /// Token ids of a text. `special`: add what the tokenizer's post-processor adds (BOS, EOS). Special tokens
    /// that are spelled out in the text are recognised.
    ///
    /// # Errors
    /// The text has a token for which the model has no embedding.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode_fast(text, special)
            .map_err(|e| ModelError::Tokenizer(format!("cannot encode: {e}")))?;
        let ids = encoding.get_ids().to_vec();
        if let Some(rows) = self.rows
            && let Some(&id) = ids.iter().find(|&&id| id as usize >= rows)
        {
            return Err(ModelError::NoEmbedding {
                token: self.inner.id_to_token(id).unwrap_or_default(),
                id,
                rows,
            });
        }
        Ok(ids)
    }

    /// Text of token ids.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let own: Vec<u32>;
        let ids = if self.twins.is_empty() {
            ids
        } else {
            own = ids.iter().map(|id| *self.twins.get(id).unwrap_or(id)).collect();
            &own
        };
        self.inner.decode(ids, skip_special).map_err(|e| ModelError::Tokenizer(format!("cannot decode: {e}")))
    }

    /// Decodes a stream of ids; each call gives the text that has become complete. Special tokens
    /// give no text.
    pub fn stream(&self) -> TokenStream<'_> {
        TokenStream::new(self)
    }

    /// BOS, if the model has an embedding for it.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// BOS, if the tokenizer puts it before every text.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn added_bos(&self) -> Result<Option<u32>> {
        let first = self.encode("", true)?.first().copied();
        Ok(first.filter(|id| self.bos == Some(*id)))
    }

    /// Whether generation does all that the model's generation_config.json asks for; sampling is the caller's to choose.
    ///
    /// # Errors
    /// It forbids, forces or weighs tokens, or has a key that is not known: named.
    pub fn check_generation(&self) -> Result<()> {
        self.generation.as_ref().map_or(Ok(()), |reason| Err(ModelError::Tokenizer(reason.clone())))
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

    /// What had to be guessed or put right in the model's files, a sentence each. [`Tokenizer::load`] has logged them.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Writes tokenizer.json, tokenizer_config.json, special_tokens_map.json (copied where the source is a directory,
    /// made from the GGUF metadata otherwise), chat_template.jinja and generation_config.json into `dir`.
    pub fn save(&self, dir: &Path) -> Result<()> {
        match &self.source {
            Source::Directory(from, inputs) => companions::copy(from, dir, inputs),
            Source::Made(files) => {
                let json = self
                    .inner
                    .to_string(false)
                    .map_err(|e| ModelError::Tokenizer(format!("cannot be written as JSON: {e}")))?;
                write(&dir.join("tokenizer.json"), &json)?;
                files.iter().try_for_each(|(name, content)| {
                    let path = dir.join(name);
                    if let Some(folder) = path.parent() {
                        std::fs::create_dir_all(folder).map_err(|e| io(folder, e))?;
                    }
                    write(&path, content)
                })
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
