//! Choosing the files of a data set.

use std::{collections::BTreeSet, path::PathBuf};

use super::{Client, error, listed};
use crate::Result;

/// Readable kinds of files, the best first; all but parquet may be compressed.
const EXTENSIONS: [&str; 5] = [".parquet", ".jsonl", ".ndjson", ".json", ".txt"];
const COMPRESSED: [&str; 2] = [".gz", ".zst"];
/// Files that describe a data set rather than being part of it.
const DESCRIPTIONS: [&str; 4] = ["dataset_infos.json", "dataset_info.json", "state.json", "requirements.txt"];

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
    let (config, split) = match part.map(|p| p.split_once('/').unwrap_or((p, ""))) {
        Some((config, split)) => {
            (Some(config).filter(|c| !c.is_empty()), Some(split).filter(|s| !s.is_empty()))
        }
        None => (None, None),
    };
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
    Ok(files[0])
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
