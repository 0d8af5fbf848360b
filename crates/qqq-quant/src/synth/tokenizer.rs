//! A tokenizer for a model that was never trained: it takes any text, a token a byte.

use qqq_formats::ModelConfig;
use serde_json::{Map, Value, json};

use crate::{QuantError, Result};

/// Tokens without which no text can be written.
const BYTES: usize = 256;

/// `tokenizer.json` and `tokenizer_config.json`.
///
/// The model's own tokens that begin and end texts have their ids. The lowest others are the 256 bytes. The rest of the
/// vocabulary are placeholders (`<unused-300>`), which no text makes, though the model may answer in them.
///
/// # Errors
/// The vocabulary has no room for all bytes.
pub(super) fn files(config: &ModelConfig) -> Result<[(&'static str, Value); 2]> {
    let bos = config.bos_token_id.filter(|id| (*id as usize) < config.vocab_size);
    let mut eos = config.eos_token_ids.clone();
    eos.retain(|id| (*id as usize) < config.vocab_size);
    let name_of = |id: u32| match (eos.iter().position(|e| *e == id), bos == Some(id)) {
        (Some(0), _) => Some("<eos>".to_owned()),
        (Some(i), _) => Some(format!("<eos-{i}>")),
        (None, true) => Some("<bos>".to_owned()),
        (None, false) => None,
    };
    let mut specials = Vec::new();
    let mut vocab = Map::new();
    let mut bytes = byte_characters().into_iter();
    for id in 0..config.vocab_size as u32 {
        let token = match name_of(id) {
            Some(name) => {
                specials.push(json!({
                    "id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": true,
                }));
                name
            }
            None => bytes.next().map_or_else(|| format!("<unused-{id}>"), String::from),
        };
        vocab.insert(token, id.into());
    }
    if bytes.next().is_some() {
        return Err(QuantError::Recipe(format!(
            "a vocabulary of {} has no room for a tokenizer of all {BYTES} bytes and {} special tokens",
            config.vocab_size,
            specials.len()
        )));
    }
    // Without merges every byte stays a token.
    let level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": specials, "normalizer": null,
        "pre_tokenizer": level, "post_processor": null, "decoder": level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": [],
        },
    });
    let tokenizer_config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos.and_then(name_of),
        "eos_token": eos.first().map(|_| "<eos>"),
        "clean_up_tokenization_spaces": false,
    });
    Ok([("tokenizer.json", tokenizer), ("tokenizer_config.json", tokenizer_config)])
}

/// The characters that stand for the bytes from 0 on in byte-level vocabularies: themselves where they can be seen,
/// else those from U+0100 on (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019).
fn byte_characters() -> Vec<char> {
    let mut hidden = 0x100..;
    (0..BYTES as u32)
        .filter_map(|byte| {
            let is_visible = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
            char::from_u32(if is_visible { byte } else { hidden.next()? })
        })
        .collect()
}
