//! Finding a model or a data set: a local path, or an id on the Hugging Face hub.
//!
//! The client is our own, over `ureq`: those of the hub's makers for Rust either bring an asynchronous runtime and 300
//! crates along, or check neither size nor hash of what they receive, and take a lost connection for an error of
//! the disk. Its cache is that of the hub's other tools.

mod access;
mod cache;
mod client;
mod dataset;
mod download;
mod environment;
mod http;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use qqq_formats::gguf;
use serde_json::Value;

use crate::{
    ModelError, Result,
    companions::{is_companion, is_needed},
};
pub use access::HubAccess;
use client::{Client, Snapshot};
pub use dataset::Dataset;
use environment::Settings;

/// Where and how to look on the hub.
#[derive(Clone, Debug, Default)]
pub struct HubOptions {
    /// Branch, tag or commit.
    pub revision: Option<String>,
    /// Access token; else `HF_TOKEN` or the token file of the hub's own tools. One that is empty or blank is none.
    pub token: Option<String>,
    /// Use what is in the cache only (as with `HF_HUB_OFFLINE=1` or `TRANSFORMERS_OFFLINE=1`).
    pub offline: bool,
    /// Told now and then how far the download of a file is.
    pub progress: Option<fn(&Transfer<'_>)>,
}

/// State of a download.
#[derive(Clone, Copy, Debug)]
pub struct Transfer<'a> {
    /// Path of the file within its repository.
    pub file: &'a str,
    /// Bytes that are here, those of earlier runs included.
    pub done: u64,
    /// Bytes of the file, if the hub has said so.
    pub size: Option<u64>,
}

/// What a repository holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Model,
    Dataset,
}

impl Kind {
    /// In the addresses of the hub's API, and in the cache.
    fn plural(self) -> &'static str {
        match self {
            Kind::Model => "models",
            Kind::Dataset => "datasets",
        }
    }

    /// Before a repository's id in the addresses of its pages and files.
    fn prefix(self) -> &'static str {
        match self {
            Kind::Model => "",
            Kind::Dataset => "datasets/",
        }
    }
}

/// Resolves `spec` to a local directory or GGUF file: an existing path, or `owner/name` on the hub
/// (`owner/name:file.gguf` or `owner/name:folder/file.gguf` for one GGUF model of a repository; of a split one, the
/// name of any part). Downloads go to the hub's cache: `HF_HUB_CACHE`, else `HF_HOME/hub`, by default
/// `~/.cache/huggingface/hub`; `HF_ENDPOINT` names another hub. Where there is no way to the hub, what the cache has
/// is taken, with a warning in the log.
///
/// # Errors
/// A path that does not exist, an id that the hub does not know or does not give out, no network, a repository
/// without weights that can be read; offline, a cache that lacks files. The text says what to do.
pub fn resolve(spec: &str, options: &HubOptions) -> Result<PathBuf> {
    if Path::new(spec).exists() {
        return Ok(spec.into());
    }
    let (repo, file) = parse_id(spec).ok_or_else(|| not_found(spec))?;
    model_files(&client(Kind::Model, repo, options)?, file)
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
    dataset::files(&client(Kind::Dataset, repo, options)?, part)
}

/// Whether `spec` is written as an id on the hub: `owner/name`, perhaps with what is wanted of it after a colon.
/// A path of that form goes before it (see [`resolve`]).
pub fn is_id(spec: &str) -> bool {
    parse_id(spec).is_some()
}

fn client(kind: Kind, repo: &str, options: &HubOptions) -> Result<Client> {
    Client::new(&Settings::from_env(options)?, kind, repo, options)
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

/// The first of many names.
fn listed(names: &[&str]) -> String {
    let mut text = names.iter().take(8).copied().collect::<Vec<_>>().join(", ");
    if names.len() > 8 {
        text.push_str(&format!(" and {} more", names.len() - 8));
    }
    text
}

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
const CONFIG: &str = "config.json";
/// The model card, whose metadata name the license.
const CARD: &str = "README.md";

/// Fetches a model's files; returns its directory, or the GGUF file.
fn model_files(client: &Client, file: Option<&str>) -> Result<PathBuf> {
    let snapshot = client.snapshot()?;
    let id = client.id();
    let ggufs = gguf_models(&snapshot);
    if let Some(file) = file {
        return gguf_file(client, &snapshot, &ggufs, file);
    }
    if !snapshot.has(CONFIG) {
        return Err(error(match ggufs.first() {
            Some(first) => format!(
                "{id} has no config.json, but GGUF files; name one of them, as in {id}:{first} (there are {})",
                listed(&ggufs)
            ),
            None => format!(
                "{id} has no config.json, so it is not a model that transformers could load{}",
                client.incomplete()
            ),
        }));
    }
    let weights = weight_files(client, &snapshot, &ggufs)?;
    for name in snapshot.names().filter(|name| [CONFIG, CARD].contains(name) || is_companion(name)) {
        match client.file(&snapshot, name) {
            // A model runs without its license at hand.
            Err(fault) if name != CONFIG && !is_needed(name) => {
                tracing::warn!("{fault}; going on without it");
            }
            other => drop(other?),
        }
    }
    for name in &weights {
        client.file(&snapshot, name)?;
    }
    client.remember(&snapshot);
    Ok(snapshot.directory().to_owned())
}

/// The GGUF models of a repository; of one that is split, the first part stands for all.
fn gguf_models(snapshot: &Snapshot) -> Vec<&str> {
    let is_first = |name: &str| gguf::split_parts(name).is_none_or(|parts| parts[0] == name);
    snapshot.names().filter(|n| n.ends_with(".gguf") && is_first(n)).collect()
}

/// Fetches a GGUF file, or all parts of one that is split, and returns the path of the first.
fn gguf_file(client: &Client, snapshot: &Snapshot, ggufs: &[&str], file: &str) -> Result<PathBuf> {
    let id = client.id();
    if !file.ends_with(".gguf") {
        // Other tools take a quantization's name there, as Q8_0.
        let wanted = file.to_lowercase();
        let meant: Vec<&str> = ggufs.iter().copied().filter(|n| n.to_lowercase().contains(&wanted)).collect();
        let hint = match (&meant[..], ggufs) {
            ([], []) => String::new(),
            ([], _) => format!("; there are {}", listed(ggufs)),
            ([only], _) => format!("; is {id}:{only} what you mean?"),
            _ => format!("; there are {}", listed(&meant)),
        };
        return Err(error(format!("{id}:{file}: only a GGUF file can be named after the colon{hint}")));
    }
    let parts = gguf::split_parts(file).unwrap_or_else(|| vec![file.to_owned()]);
    let mut paths = Vec::new();
    for part in &parts {
        paths.push(client.file(snapshot, part)?);
    }
    client.remember(snapshot);
    Ok(paths.swap_remove(0))
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
            listed(ggufs)
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
