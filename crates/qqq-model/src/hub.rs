//! Finding a model or a data set: a local path, or an id on the Hugging Face hub.

mod client;
mod dataset;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use hf_hub::RepoType;
use serde_json::Value;

use crate::{ModelError, Result};
use client::{Client, Snapshot};

/// Where and how to look on the hub.
#[derive(Clone, Debug, Default)]
pub struct HubOptions {
    /// Branch, tag or commit.
    pub revision: Option<String>,
    /// Access token; else `HF_TOKEN` or the token file of the hub's own tools.
    pub token: Option<String>,
    /// Use what is in the cache only (as with `HF_HUB_OFFLINE=1`).
    pub offline: bool,
}

/// Resolves `spec` to a local directory or GGUF file: an existing path, or `owner/name` on the hub
/// (`owner/name:file.gguf` for one GGUF file of a repository). Downloads go to the hub's cache
/// (`HF_HOME`, by default `~/.cache/huggingface`); `HF_ENDPOINT` names another hub.
///
/// # Errors
/// A path that does not exist, an id that the hub does not know or does not give out, no network, a repository
/// without weights that can be read; offline, a cache that lacks files. The text says what to do.
pub fn resolve(spec: &str, options: &HubOptions) -> Result<PathBuf> {
    if Path::new(spec).exists() {
        return Ok(spec.into());
    }
    let (repo, file) = parse_id(spec).ok_or_else(|| not_found(spec))?;
    model_files(&Client::from_env(RepoType::Model, repo, options)?, file)
}

/// Downloads the text-bearing files of a hub data set (`owner/name`, or
/// `owner/name:config/split`, both parts optional), and returns their local paths: parquet before jsonl, json
/// and plain text; of the `train` split if no other is named; of a split in several files only the first, which
/// is plenty for calibration.
///
/// # Errors
/// As [`resolve`]; a data set with several configurations of which none is named, or without such files.
pub fn dataset_files(spec: &str, options: &HubOptions) -> Result<Vec<PathBuf>> {
    let (repo, part) = parse_id(spec).ok_or_else(|| not_found(spec))?;
    dataset::files(&Client::from_env(RepoType::Dataset, repo, options)?, part)
}

fn error(text: String) -> ModelError {
    ModelError::Hub(text)
}

fn not_found(spec: &str) -> ModelError {
    error(format!(
        "{spec:?} is neither an existing path nor an id on the Hugging Face hub, which is written owner/name"
    ))
}

/// `owner/name` and what follows a colon; `None` if `spec` cannot be an id on the hub.
fn parse_id(spec: &str) -> Option<(&str, Option<&str>)> {
    let (repo, file) = match spec.split_once(':') {
        Some((repo, file)) => (repo, Some(file)),
        None => (spec, None),
    };
    let (owner, name) = repo.split_once('/')?;
    let word = |s: &str| {
        s.len() <= 96
            && s.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    // A file's name that nobody would give to a repository: a path with a typo.
    let is_file = file.is_none() && [".gguf", ".safetensors"].iter().any(|end| name.ends_with(end));
    (word(owner) && word(name) && !is_file && file != Some("")).then_some((repo, file))
}

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
/// Files that come along if the repository has them.
const SMALL_FILES: [&str; 10] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];

/// Fetches a model's files; returns its directory, or the GGUF file.
fn model_files(client: &Client, file: Option<&str>) -> Result<PathBuf> {
    let snapshot = client.snapshot()?;
    let id = client.id();
    if let Some(file) = file {
        if !file.ends_with(".gguf") {
            return Err(error(format!("{id}:{file}: only a GGUF file can be named after the colon")));
        }
        return client.file(&snapshot, file);
    }
    let ggufs: Vec<&str> = snapshot.names().filter(|n| n.ends_with(".gguf")).collect();
    if !snapshot.has("config.json") {
        return Err(error(match ggufs.first() {
            Some(first) => format!(
                "{id} has no config.json, but GGUF files; name one of them, as in {id}:{first} (there are {})",
                ggufs.join(", ")
            ),
            None => format!(
                "{id} has no config.json, so it is not a model that transformers could load{}",
                client.incomplete()
            ),
        }));
    }
    let weights = weight_files(client, &snapshot, &ggufs)?;
    for name in SMALL_FILES.into_iter().filter(|name| snapshot.has(name)) {
        client.file(&snapshot, name)?;
    }
    for name in &weights {
        client.file(&snapshot, name)?;
    }
    client.remember(&snapshot)?;
    Ok(snapshot.directory().to_owned())
}

/// Names of the safetensors files that make up the model.
fn weight_files(client: &Client, snapshot: &Snapshot, ggufs: &[&str]) -> Result<BTreeSet<String>> {
    let id = client.id();
    if snapshot.has(SINGLE) {
        return Ok(BTreeSet::from([SINGLE.to_owned()]));
    }
    if snapshot.has(INDEX) {
        let path = client.file(snapshot, INDEX)?;
        let text = std::fs::read(&path).map_err(|e| error(format!("{}: {e}", path.display())))?;
        let index: Value = serde_json::from_slice(&text)
            .map_err(|e| error(format!("{}: not valid JSON: {e}", path.display())))?;
        let shards: Option<BTreeSet<String>> = index
            .get("weight_map")
            .and_then(Value::as_object)
            .and_then(|map| map.values().map(|v| v.as_str().map(str::to_owned)).collect());
        let Some(mut shards) = shards.filter(|s| !s.is_empty()) else {
            return Err(error(format!("{}: no weight_map of tensor names and files", path.display())));
        };
        if let Some(missing) = shards.iter().find(|s| !snapshot.has(s)) {
            return Err(error(format!(
                "{id}: {INDEX} names {missing}, but it is not there{}",
                client.incomplete()
            )));
        }
        shards.insert(INDEX.to_owned());
        return Ok(shards);
    }
    let safetensors: Vec<&str> =
        snapshot.names().filter(|n| n.ends_with(".safetensors") && !n.contains('/')).collect();
    match safetensors[..] {
        [only] => Ok(BTreeSet::from([only.to_owned()])),
        [] if !ggufs.is_empty() => Err(error(format!(
            "{id} has GGUF files, but no safetensors; name one of them, as in {id}:{} (there are {})",
            ggufs[0],
            ggufs.join(", ")
        ))),
        [] if snapshot.names().any(|n| n.ends_with(".bin") || n.ends_with(".pth") || n.ends_with(".pt")) => {
            Err(error(format!(
                "{id} has its weights in PyTorch pickle files only, which can run code when they are read; use a \
                 revision with safetensors (many models have one in a pull request, refs/pr/N), or convert them"
            )))
        }
        [] => Err(error(format!("{id} has no safetensors and no GGUF files{}", client.incomplete()))),
        _ => Err(error(format!(
            "{id} has several safetensors files, and neither {SINGLE} nor {INDEX} says which belong to the model: {}",
            safetensors.join(", ")
        ))),
    }
}
