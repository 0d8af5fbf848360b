//! The models of a comparison, as they lie on the disk.

use std::path::Path;

use qqq_formats::Checkpoint;
use qqq_model::Tokenizer;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    commands::inspect::Size,
    model::{self, HubArgs},
};

/// A model, and what tables call it.
#[derive(Clone, Debug, PartialEq)]
pub struct Named {
    /// Where it is.
    pub spec: String,
    /// In tables.
    pub name: String,
}

impl Named {
    /// By the last part of its path, or its name on the hub.
    pub fn new(spec: &str) -> Self {
        let path = Path::new(spec);
        let last = path.file_name().filter(|_| path.exists()).and_then(|name| name.to_str());
        Self { spec: spec.to_owned(), name: last.unwrap_or(spec).to_owned() }
    }
}

/// Each by its [own name](Named::new), and by its whole path where others have that too.
pub fn named(specs: &[String]) -> Vec<Named> {
    let all: Vec<Named> = specs.iter().map(|spec| Named::new(spec)).collect();
    let is_alone =
        |named: &Named| all.iter().all(|other| other.name != named.name || other.spec == named.spec);
    let mut found: Vec<Named> = Vec::new();
    for named in &all {
        let name = if is_alone(named) { &named.name } else { &named.spec };
        let unique = Named { spec: named.spec.clone(), name: name.clone() };
        if !found.contains(&unique) {
            found.push(unique);
        }
    }
    found
}

/// A model that is to be measured.
pub struct Subject {
    /// Its name and place.
    pub named: Named,
    /// What it takes on the disk.
    pub size: Size,
    /// What is said of one whose arithmetic is simulated.
    pub simulated: Option<Simulated>,
    /// What its files are known again by.
    pub prints: Value,
    /// As it was opened.
    pub checkpoint: Checkpoint,
}

/// What stands for a method that no kernel runs.
#[derive(Clone, Debug, Serialize)]
pub struct Simulated {
    /// The method.
    pub method: &'static str,
    /// Bits that it would store for a weight of the blocks' linear layers.
    pub bits_per_weight: Option<f64>,
}

impl Subject {
    /// Whether it lies where another does.
    pub fn is_same(&self, other: &Self) -> bool {
        let place = |subject: &Self| std::fs::canonicalize(&subject.named.spec).ok();
        place(self).is_some_and(|own| place(other) == Some(own))
    }

    /// Reads headers and tokenizer.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn open(named: &Named, hub: &HubArgs) -> anyhow::Result<Self> {
        let checkpoint = model::open_checked(&named.spec, hub)?;
        // Its files are among those that decide.
        Tokenizer::load(&checkpoint)?;
        let simulated = checkpoint.config.quantization.as_ref().and_then(|q| q.simulated());
        let simulated =
            simulated.map(|s| Simulated { method: s.method.name(), bits_per_weight: s.bits_per_weight });
        Ok(Self {
            named: named.clone(),
            size: Size::of(&checkpoint)?,
            simulated,
            prints: prints(&checkpoint)?,
            checkpoint,
        })
    }
}

/// What the files of a checkpoint are known again by, those that were read until now.
pub fn prints(checkpoint: &Checkpoint) -> anyhow::Result<Value> {
    let of_file = |file: qqq_formats::input::FilePrint| json!({ "file": file.name, "bytes": file.bytes, "modified": file.modified, "ends": format!("{:016x}", file.ends) });
    Ok(checkpoint.inputs.prints()?.into_iter().map(of_file).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_where_they_are_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let place = |path: &str| {
            let path = folder.path().join(path);
            std::fs::create_dir_all(&path).unwrap();
            path.display().to_string()
        };
        let specs = [place("a/x"), place("b/x"), place("y"), "owner/y".to_owned(), place("y")];
        let found = named(&specs);
        let names: Vec<&str> = found.iter().map(|named| named.name.as_str()).collect();
        assert_eq!(names, [specs[0].as_str(), &specs[1], "y", "owner/y"]);
    }
}
