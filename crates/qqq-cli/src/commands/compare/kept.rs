//! Measurements that are kept: a run that was stopped goes on behind them.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    errors::{bad_input, bad_input_hint},
    files,
};

/// Folder of the measurements, in that of the comparison.
const FOLDER: &str = "measurements";

/// That measurements can be kept in a folder.
///
/// # Errors
/// It cannot be made, or nothing can be written there.
pub fn prepare(folder: &Path) -> anyhow::Result<()> {
    if folder.join("config.json").exists() {
        return Err(bad_input_hint(
            format!("--output {}: there is a model", folder.display()),
            "give another folder: the comparison's files would take the place of some of the model's",
        ));
    }
    let own = folder.join(FOLDER);
    fs::create_dir_all(&own).map_err(|e| bad_input(format!("--output {}: {e}", folder.display())))?;
    files::check_writable(&own.join("test"), "--output")
}

/// What is kept of one model: a file.
pub struct Kept {
    path: Option<PathBuf>,
    all: Vec<Measurement>,
}

/// What was measured, and all that decides on it.
#[derive(Serialize, Deserialize)]
struct Measurement {
    key: Value,
    result: Value,
}

impl Kept {
    /// What is kept of a model, where there is a folder.
    ///
    /// # Errors
    /// A file that is none of ours.
    pub fn of(folder: Option<&Path>, name: &str) -> anyhow::Result<Self> {
        let path = folder.map(|folder| folder.join(FOLDER).join(format!("{}.json", file_name(name))));
        let all = match &path {
            Some(path) if path.exists() => {
                let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
                serde_json::from_slice(&text).map_err(|e| {
                    bad_input_hint(
                        format!("{}: no measurements of this tool: {e}", path.display()),
                        "remove it: they are made again",
                    )
                })?
            }
            _ => Vec::new(),
        };
        Ok(Self { path, all })
    }

    /// What was measured under the same circumstances.
    pub fn get<T: DeserializeOwned>(&self, key: &Value) -> Option<T> {
        let found = self.all.iter().find(|one| one.key == *key)?;
        // One of another version has other fields.
        T::deserialize(&found.result).ok()
    }

    /// Keys of all that is kept.
    pub fn keys(&self) -> impl Iterator<Item = &Value> {
        self.all.iter().map(|one| &one.key)
    }

    /// Keeps a measurement, at once.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn put<T: Serialize>(&mut self, key: Value, result: &T) -> anyhow::Result<()> {
        self.all.retain(|one| one.key != key);
        self.all.push(Measurement { key, result: serde_json::to_value(result)? });
        self.write()
    }

    /// Forgets what is not wanted.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn retain(&mut self, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<()> {
        self.all.retain(|one| wanted(&one.key));
        self.write()
    }

    fn write(&self) -> anyhow::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let text = serde_json::to_string(&self.all)? + "\n";
        files::write(path, |file| file.write_all(text.as_bytes()))
    }
}

/// A name as one of a file: letters, digits and what is harmless beside them.
pub fn file_name(name: &str) -> String {
    let is_harmless = |c: char| c.is_alphanumeric() || "._+-".contains(c);
    let text: String = name.chars().map(|c| if is_harmless(c) { c } else { '-' }).collect();
    // Neither hidden nor an option.
    text.trim_start_matches(['.', '-']).to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_kept_is_found_by_all_that_decides() {
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path()).unwrap();
        let open = || Kept::of(Some(folder.path()), "./os+:bits=4").unwrap();
        let mut kept = open();
        kept.put(json!({ "text": "a", "window": 4 }), &1.5).unwrap();
        kept.put(json!({ "text": "b", "window": 4 }), &2.5).unwrap();
        kept.put(json!({ "text": "a", "window": 4 }), &3.5).unwrap();
        let kept = open();
        assert_eq!(kept.get::<f64>(&json!({ "window": 4, "text": "a" })), Some(3.5));
        assert_eq!(kept.get::<f64>(&json!({ "text": "a", "window": 8 })), None);
        assert_eq!(kept.get::<String>(&json!({ "text": "b", "window": 4 })), None);
        assert!(folder.path().join("measurements/os+-bits-4.json").exists());
        assert_eq!(Kept::of(None, "x").unwrap().get::<f64>(&json!({})), None);
        fs::write(folder.path().join("measurements/x.json"), "{").unwrap();
        assert!(Kept::of(Some(folder.path()), "x").is_err());
    }
}
