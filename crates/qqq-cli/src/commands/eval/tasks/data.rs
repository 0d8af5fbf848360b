//! Which file has a task's questions.

use std::path::{Path, PathBuf};

use anyhow::Context;
use qqq_eval::tasks::{Documents, TASKS, Task};

use crate::{
    errors::{bad_input, bad_input_hint},
    files,
};

/// Ends of the names of files that have a question a line.
const EXTENSIONS: [&str; 2] = ["jsonl", "json"];

/// What --data names.
pub struct Source {
    /// Whose it is, where that was said.
    task: Option<&'static Task>,
    path: PathBuf,
}

impl Source {
    /// `PATH`, or `TASK=PATH`.
    pub fn of(text: &str) -> anyhow::Result<Self> {
        let named = text.split_once('=').filter(|_| !Path::new(text).exists());
        let (task, path) = match named.and_then(|(name, path)| Some((Task::named(name)?, path))) {
            Some((task, path)) => (Some(task), path),
            None => (None, text),
        };
        let path = PathBuf::from(path);
        if !path.exists() {
            return Err(bad_input_hint(
                format!("--data {text}: no such file or directory"),
                "a folder of data files, a file, or TASK=FILE",
            ));
        }
        Ok(Self { task, path })
    }
}

/// The questions of a task, and which file they come from.
pub struct TaskFile {
    pub documents: Documents,
    pub sha256: String,
}

impl TaskFile {
    pub fn read(task: &'static Task, path: &Path, limit: usize) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let documents = Documents::parse(task, path, &text, limit)?;
        Ok(Self { documents, sha256: files::sha256(path)? })
    }
}

/// A file for each task; and that each source is for one of them.
pub fn find(tasks: &[&'static Task], sources: &[Source]) -> anyhow::Result<Vec<(&'static Task, PathBuf)>> {
    for source in sources {
        let of_none = match source.task {
            Some(task) => !tasks.iter().any(|t| t.name == task.name),
            None => source.path.is_file() && !tasks.iter().any(|task| takes(task, source, tasks)),
        };
        if of_none {
            return Err(bad_input_hint(
                format!("--data {} belongs to none of the tasks that are asked for", source.path.display()),
                "say whose it is: TASK=FILE, with a task of --tasks",
            ));
        }
    }
    tasks.iter().map(|&task| Ok((task, find_one(task, sources, tasks)?))).collect()
}

/// Whether a file is a task's: as was said, as it is called, or because nothing else is asked for.
fn takes(task: &Task, source: &Source, tasks: &[&'static Task]) -> bool {
    match source.task {
        Some(named) => named.name == task.name,
        None => {
            is_called(task, &source.path)
                || (tasks.len() == 1 && !TASKS.iter().any(|t| is_called(t, &source.path)))
        }
    }
}

fn find_one(task: &Task, sources: &[Source], tasks: &[&'static Task]) -> anyhow::Result<PathBuf> {
    let mut candidates = Vec::new();
    for source in sources.iter().filter(|source| source.task.is_none_or(|named| named.name == task.name)) {
        if source.path.is_dir() {
            let entries = std::fs::read_dir(&source.path)
                .with_context(|| format!("cannot read the folder {}", source.path.display()))?;
            for entry in entries {
                let path = entry?.path();
                let ends = path.extension().and_then(|end| end.to_str());
                if path.is_file()
                    && ends.is_some_and(|end| EXTENSIONS.contains(&end))
                    && is_called(task, &path)
                {
                    candidates.push(path);
                }
            }
        } else if takes(task, source, tasks) {
            candidates.push(source.path.clone());
        }
    }
    // Other splits may lie beside the one that is scored.
    if candidates.len() > 1 {
        let of_split = |path: &PathBuf| plain_name(path).contains(task.split);
        if candidates.iter().any(of_split) {
            candidates.retain(of_split);
        }
    }
    candidates.sort();
    match candidates.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(bad_input_hint(
            format!("no file of --data has the questions of {}", task.name),
            format!(
                "in a folder it is called {}*.jsonl; or say --data {}=FILE (data set {}, split {})",
                task.file, task.name, task.data_set, task.split
            ),
        )),
        several => {
            let names: Vec<String> = several.iter().map(|path| path.display().to_string()).collect();
            Err(bad_input(format!(
                "several files of --data may have the questions of {}: {}; say --data {}=FILE",
                task.name,
                names.join(", "),
                task.name
            )))
        }
    }
}

/// A file's name in lower case with `_`, as tasks have it.
fn plain_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.to_lowercase().replace('-', "_")
}

fn is_called(task: &Task, path: &Path) -> bool {
    plain_name(path).starts_with(task.file)
}
