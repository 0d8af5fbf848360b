//! Choosing the files of a data set.

use std::{collections::BTreeSet, path::PathBuf};

use super::{Client, HubOptions, Kind, Snapshot, client, error, listed, not_found, parse_id};
use crate::{Result, shards};

/// Readable kinds of files, the best first; all but parquet may be compressed.
const EXTENSIONS: [&str; 5] = [".parquet", ".jsonl", ".ndjson", ".json", ".txt"];
const COMPRESSED: [&str; 2] = [".gz", ".zst"];
/// Files that describe a data set rather than being part of it.
const DESCRIPTIONS: [&str; 4] = ["dataset_infos.json", "dataset_info.json", "state.json", "requirements.txt"];

/// A data set of the hub, whose files are fetched as they are asked for.
pub struct Dataset {
    client: Client,
    snapshot: Snapshot,
}

impl Dataset {
    /// The data set `owner/name`, as the hub lists it, or, where there is no way to it, the cache.
    ///
    /// # Errors
    /// As [`resolve`](super::resolve).
    pub fn open(repo: &str, options: &HubOptions) -> Result<Self> {
        let (repo, _) = parse_id(repo).ok_or_else(|| not_found(repo))?;
        let client = client(Kind::Dataset, repo, options)?;
        let snapshot = client.snapshot()?;
        Ok(Self { client, snapshot })
    }

    /// Fetches all files of a split of a configuration, in their order. A configuration is a folder, or what the names of its
    /// files begin with; without one the data set must have only one.
    ///
    /// # Errors
    /// No such configuration or split, or what names leave open; a download that fails.
    pub fn split(&self, config: Option<&str>, split: &str) -> Result<Vec<PathBuf>> {
        let names: Vec<&str> = self.snapshot.names().collect();
        let id = self.client.id();
        let chosen = whole_split(&names, config, split)
            .map_err(|reason| error(format!("data set {id}: {reason}{}", self.client.incomplete())))?;
        let paths =
            chosen.iter().map(|name| self.client.file(&self.snapshot, name)).collect::<Result<_>>()?;
        self.client.remember(&self.snapshot);
        Ok(paths)
    }
}

/// Fetches the files of `part` (`config`, `config/split` or `/split`).
pub(super) fn files(client: &Client, part: Option<&str>) -> Result<Vec<PathBuf>> {
    let snapshot = client.snapshot()?;
    let names: Vec<&str> = snapshot.names().collect();
    let chosen =
        choose(&names, part).map_err(|reason| error(format!("data set {}: {reason}", client.id())))?;
    let path = client.file(&snapshot, chosen)?;
    client.remember(&snapshot);
    Ok(vec![path])
}

/// The file to take; else a sentence that says why there is none.
pub(super) fn choose<'a>(names: &[&'a str], part: Option<&str>) -> Result<&'a str, String> {
    let (config, split) = part.map_or((None, None), |p| {
        let (config, split) = p.split_once('/').unwrap_or((p, ""));
        (Some(config).filter(|c| !c.is_empty()), Some(split).filter(|s| !s.is_empty()))
    });
    Ok(candidates(names, config, split)?[0])
}

/// All files of a split, in their order; else a sentence that says why there are none.
pub(super) fn whole_split<'a>(
    names: &[&'a str],
    config: Option<&str>,
    split: &str,
) -> Result<Vec<&'a str>, String> {
    let mut sets = shards::sets(candidates(names, config, Some(split))?);
    let stem = |set: &shards::Set<'a>| set.stem.rsplit('/').next().map(str::to_owned);
    // Configurations whose names begin alike: the one of just this name.
    if sets.len() > 1 && sets.iter().any(|set| stem(set).as_deref() == config) {
        sets.retain(|set| stem(set).as_deref() == config);
    }
    match &sets[..] {
        [set] => set.whole().map_err(|missing| format!("of {} {missing}", set.stem)),
        several => {
            let all: Vec<&str> = several.iter().flat_map(|set| set.names()).collect();
            Err(format!("several of its files may be the split {split:?}: {}", listed(&all)))
        }
    }
}

/// The files of which one is to be taken, sorted; at least one.
fn candidates<'a>(
    names: &[&'a str],
    config: Option<&str>,
    split: Option<&str>,
) -> Result<Vec<&'a str>, String> {
    let readable = |name: &str| {
        EXTENSIONS.iter().any(|e| has_extension(name, e))
            && !name.starts_with('.')
            && !DESCRIPTIONS.contains(&name.rsplit('/').next().unwrap_or(name))
    };
    let mut files: Vec<&str> = names.iter().copied().filter(|n| readable(n)).collect();
    if files.is_empty() {
        let packed = names
            .iter()
            .find(|n| [".gz", ".zst", ".zip", ".tar", ".xz", ".arrow"].iter().any(|e| n.ends_with(e)));
        return Err(match packed {
            Some(file) => format!("it has no parquet, jsonl, json or txt files ({file} would have to be unpacked); \
                download and unpack it, and name the local file"),
            None => "it has no parquet, jsonl, json or txt files; if it is made by a script, download its text by \
                     other means, and name the local file".into(),
        });
    }
    if let Some(config) = config {
        let all = listed(&files);
        files.retain(|name| in_config(name, config));
        if files.is_empty() {
            return Err(format!("it has no configuration {config:?}; its files are {all}"));
        }
    }
    let of_split: Vec<&str> =
        files.iter().copied().filter(|n| in_split(n, split.unwrap_or("train"))).collect();
    match (of_split.is_empty(), split) {
        (false, _) => files = of_split,
        (true, Some(split)) => {
            return Err(format!("it has no split {split:?}; its files are {}", listed(&files)));
        }
        (true, None) if files.len() == 1 => {}
        (true, None) => {
            return Err(format!(
                "it has no split \"train\"; name another after a colon (owner/name:/split); its files are {}",
                listed(&files)
            ));
        }
    }
    let best =
        EXTENSIONS.iter().find(|e| files.iter().any(|n| has_extension(n, e))).copied().unwrap_or_default();
    files.retain(|n| has_extension(n, best));
    if config.is_none() {
        let directories: BTreeSet<&str> =
            files.iter().map(|n| n.rsplit_once('/').map_or("", |(d, _)| d)).collect();
        if directories.len() > 1 {
            return Err(format!(
                "it has several configurations; name one after a colon (owner/name:config); their directories are {}",
                listed(&directories.into_iter().collect::<Vec<_>>())
            ));
        }
    }
    files.sort_unstable();
    Ok(files)
}

fn has_extension(name: &str, extension: &str) -> bool {
    let unpacked = COMPRESSED.iter().find_map(|c| name.strip_suffix(c)).filter(|_| extension != ".parquet");
    unpacked.unwrap_or(name).ends_with(extension)
}

/// `config` is one of the directories, or begins the file's name.
fn in_config(name: &str, config: &str) -> bool {
    let (directories, file) = name.rsplit_once('/').unwrap_or(("", name));
    directories.split('/').any(|d| d == config)
        || file.strip_prefix(config).is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric()))
}

/// `split` is one of the words of the file's name, or one of the directories.
fn in_split(name: &str, split: &str) -> bool {
    let (directories, file) = name.rsplit_once('/').unwrap_or(("", name));
    directories.split('/').any(|d| d == split) || file.split(['-', '.', '_']).any(|word| word == split)
}
