//! The tokenizer of a Hugging Face directory.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use qqq_formats::Inputs;
use serde_json::Value;

use super::{Parts, Source, SpecialTokens, error};
use crate::Result;

/// Reads a JSON object, `None` where the file does not exist.
pub(crate) fn read_json(inputs: &Inputs, dir: &Path, name: &str) -> Result<Option<Value>> {
    let path = dir.join(name);
    let Some(text) = inputs.read_if_there(&path)? else { return Ok(None) };
    match serde_json::from_slice::<Value>(&text) {
        Ok(value) if value.is_object() => Ok(Some(value)),
        Ok(_) => Err(error(&path.display().to_string(), "is not a JSON object")),
        Err(e) => Err(error(&path.display().to_string(), e)),
    }
}

/// Reads the tokenizer of `dir`.
pub(super) fn load(dir: &Path, inputs: &Arc<Inputs>) -> Result<Parts> {
    let path = dir.join("tokenizer.json");
    let location = path.display().to_string();
    if !path.is_file() {
        return Err(missing(dir));
    }
    let text = inputs.read(&path)?;
    let mut inner = tokenizers::Tokenizer::from_bytes(&text).map_err(|e| error(&location, e))?;
    check_added_tokens(&text, &inner, &location)?;
    let json = |name: &str| Ok::<_, crate::ModelError>(read_json(inputs, dir, name)?.unwrap_or_default());
    let config = json("tokenizer_config.json")?;
    let map = json("special_tokens_map.json")?;
    let generation = json("generation_config.json")?;
    let added = json("added_tokens.json")?;
    add_named_tokens(&mut inner, &config, &map, &added);

    let token = |name: &str| content(&config[name]).or_else(|| content(&map[name]));
    let special = SpecialTokens {
        bos: token("bos_token"),
        eos: token("eos_token"),
        unk: token("unk_token"),
        pad: token("pad_token"),
    };
    let notes = disagreements(&inner, &config, &location)?;
    Ok(Parts {
        inner,
        special,
        bos: ids(&generation["bos_token_id"]).first().copied(),
        eos: ids(&generation["eos_token_id"]),
        source: Source::Directory(dir.into(), Arc::clone(inputs)),
        location,
        twins: HashMap::new(),
        notes,
    })
}

/// Tokens that the files beside tokenizer.json name are found in a text as they are, as in transformers 5, though
/// tokenizer.json may have them as mere text. Those that it does not have at all are left alone: transformers would
/// give them ids that the model was not trained with.
fn add_named_tokens(inner: &mut tokenizers::Tokenizer, config: &Value, map: &Value, added: &Value) {
    let mut tokens = Vec::new();
    let decoder = config["added_tokens_decoder"].as_object();
    let declared = decoder.into_iter().flat_map(|d| d.values()).cloned();
    let listed = added.as_object().into_iter().flat_map(|a| a.keys());
    let listed = listed.map(|t| serde_json::json!({"content": t, "special": false}));
    for token in declared.chain(listed) {
        tokens.push((token.clone(), token["special"].as_bool().unwrap_or(false)));
    }
    for object in [config, map] {
        let named = object.as_object().into_iter().flatten().filter(|(key, _)| key.ends_with("_token"));
        tokens.extend(named.map(|(_, token)| (token.clone(), true)));
        for list in ["additional_special_tokens", "extra_special_tokens"] {
            let list = object[list].as_array().into_iter().flatten();
            tokens.extend(list.map(|token| (token.clone(), true)));
        }
    }
    for (token, special) in tokens {
        let Some(text) = content(&token).filter(|t| !t.is_empty()) else { continue };
        let Some(id) = inner.token_to_id(&text) else { continue };
        if inner.get_added_tokens_decoder().contains_key(&id) {
            continue;
        }
        let flag = |name: &str| token[name].as_bool().unwrap_or(false);
        let token = tokenizers::AddedToken::from(text, special)
            .single_word(flag("single_word"))
            .lstrip(flag("lstrip"))
            .rstrip(flag("rstrip"))
            .normalized(flag("normalized"));
        if special {
            inner.add_special_tokens(&[token]);
        } else {
            inner.add_tokens(&[token]);
        }
    }
}

/// What tokenizer_config.json says of BOS and EOS and the post-processor of tokenizer.json does otherwise. The
/// post-processor is followed, as in transformers 5, which does not read these settings where there is a tokenizer.json.
fn disagreements(inner: &tokenizers::Tokenizer, config: &Value, location: &str) -> Result<Vec<String>> {
    let encode = |special| {
        let encoding = inner.encode_fast("a", special).map_err(|e| error(location, e))?;
        Ok::<_, crate::ModelError>(encoding.get_ids().to_vec())
    };
    let (plain, whole) = (encode(false)?, encode(true)?);
    let spare = whole.len().saturating_sub(plain.len());
    let before = (0..=spare).find(|&n| whole[n..].starts_with(&plain)).unwrap_or(spare);
    let mut notes = Vec::new();
    for (name, end, adds) in [("bos", "beginning", before > 0), ("eos", "end", spare > before)] {
        let key = format!("add_{name}_token");
        if let Some(said) = config[&key].as_bool().filter(|&said| said != adds) {
            let does = if adds { "a token is added" } else { "no token is added" };
            notes.push(format!(
                "{key} is {said} in tokenizer_config.json, but by the post-processor of tokenizer.json {does} at the \
                 {end} of a text; the post-processor is followed, as in transformers 5"
            ));
        }
    }
    Ok(notes)
}

/// The `tokenizers` crate renumbers added tokens whose declared ids do not continue the vocabulary, and goes on;
/// the model was trained with the declared ones.
fn check_added_tokens(text: &[u8], inner: &tokenizers::Tokenizer, location: &str) -> Result<()> {
    let json: Value = serde_json::from_slice(text).map_err(|e| error(location, e))?;
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
