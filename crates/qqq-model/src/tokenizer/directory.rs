//! The tokenizer of a Hugging Face directory.

use std::path::Path;

use serde_json::Value;

use super::{Parts, Source, SpecialTokens, error, io};
use crate::Result;

/// Files that belong to a tokenizer, copied with it where they exist.
const FILES: [&str; 10] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
];

/// Reads a JSON object, `None` where the file does not exist.
pub(crate) fn read_json(dir: &Path, name: &str) -> Result<Option<Value>> {
    let path = dir.join(name);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(&path, e)),
    };
    match serde_json::from_slice::<Value>(&text) {
        Ok(value) if value.is_object() => Ok(Some(value)),
        Ok(_) => Err(error(&path.display().to_string(), "is not a JSON object")),
        Err(e) => Err(error(&path.display().to_string(), e)),
    }
}

/// Reads the tokenizer of `dir`.
pub(super) fn load(dir: &Path) -> Result<Parts> {
    let path = dir.join("tokenizer.json");
    let location = path.display().to_string();
    if !path.is_file() {
        return Err(missing(dir));
    }
    let inner = tokenizers::Tokenizer::from_file(&path).map_err(|e| error(&location, e))?;
    check_added_tokens(dir, &inner, &location)?;
    let config = read_json(dir, "tokenizer_config.json")?.unwrap_or_default();
    let map = read_json(dir, "special_tokens_map.json")?.unwrap_or_default();
    let generation = read_json(dir, "generation_config.json")?.unwrap_or_default();

    let token = |name: &str| content(&config[name]).or_else(|| content(&map[name]));
    let special = SpecialTokens {
        bos: token("bos_token"),
        eos: token("eos_token"),
        unk: token("unk_token"),
        pad: token("pad_token"),
    };
    let add = config["add_bos_token"]
        .as_bool()
        .map(|bos| (bos, config["add_eos_token"].as_bool().unwrap_or(false)));
    Ok(Parts {
        inner,
        special,
        add,
        bos: ids(&generation["bos_token_id"]).first().copied(),
        eos: ids(&generation["eos_token_id"]),
        source: Source::Directory(dir.into()),
        location,
    })
}

/// The `tokenizers` crate renumbers added tokens whose declared ids do not continue the vocabulary, and goes on;
/// the model was trained with the declared ones.
fn check_added_tokens(dir: &Path, inner: &tokenizers::Tokenizer, location: &str) -> Result<()> {
    let json = read_json(dir, "tokenizer.json")?.unwrap_or_default();
    for token in json["added_tokens"].as_array().into_iter().flatten() {
        let (Some(text), Some(declared)) = (token["content"].as_str(), token["id"].as_u64()) else {
            continue;
        };
        let found = inner.token_to_id(text);
        if found.map(u64::from) != Some(declared) {
            let found = found.map_or("none".to_owned(), |id| id.to_string());
            return Err(error(
                location,
                format!("added token {text:?} declares id {declared}, but the vocabulary gives it {found}"),
            ));
        }
    }
    Ok(())
}

/// A token, given as its text or as an object with `content`.
fn content(token: &Value) -> Option<String> {
    token.as_str().or_else(|| token["content"].as_str()).map(str::to_owned)
}

/// One id or a list of them.
fn ids(value: &Value) -> Vec<u32> {
    let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    match value.as_array() {
        Some(list) => list.iter().filter_map(id).collect(),
        None => id(value).into_iter().collect(),
    }
}

fn missing(dir: &Path) -> crate::ModelError {
    let location = dir.display().to_string();
    let other = ["tokenizer.model", "vocab.json"].into_iter().find(|name| dir.join(name).is_file());
    match other {
        Some(name) => error(
            &location,
            format!(
                "has {name}, but no tokenizer.json; convert it with transformers: \
                 python -c 'from transformers import AutoTokenizer as T; T.from_pretrained(\".\", use_fast=True).save_pretrained(\".\")'"
            ),
        ),
        None => error(&location, "has no tokenizer.json"),
    }
}

/// Copies the tokenizer's files.
pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    for name in FILES {
        let source = from.join(name);
        if source.is_file() {
            // Not fs::copy: the permissions of a read-only cache must not come along.
            let bytes = std::fs::read(&source).map_err(|e| io(&source, e))?;
            let target = to.join(name);
            std::fs::write(&target, bytes).map_err(|e| io(&target, e))?;
        }
    }
    Ok(())
}
