//! Which files have a task's questions and examples.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    rc::Rc,
};

use anyhow::Context;
use qqq_eval::tasks::{Documents, Records, TASKS, Task};
use qqq_model::{hub::Dataset, shards};
use serde::Serialize;

use crate::{
    console::Console,
    errors::{bad_input, bad_input_hint},
    files,
    model::HubArgs,
};

/// Ends of the names of files that have records; the first three also behind `.gz` and `.zst`.
const EXTENSIONS: [&str; 5] = [".jsonl", ".json", ".ndjson", ".parquet", ".arrow"];
/// How deep folders are looked into: data set, configuration, file.
const DEPTH: usize = 3;

/// What --data names.
pub struct Source {
    /// Whose it is, where that was said.
    tasks: Option<Vec<&'static Task>>,
    path: PathBuf,
}

impl Source {
    /// `PATH`, or `TASK=PATH`.
    pub fn of(text: &str) -> anyhow::Result<Self> {
        let named = text.split_once('=').filter(|_| !Path::new(text).exists());
        let (tasks, path) = match named.and_then(|(name, path)| Some((Task::asked(name)?, path))) {
            Some((tasks, path)) => (Some(tasks), path),
            None => (None, text),
        };
        let path = PathBuf::from(path);
        if !path.exists() {
            return Err(bad_input_hint(
                format!("--data {text}: no such file or directory"),
                "a folder of data files, a file, or TASK=PATH",
            ));
        }
        Ok(Self { tasks, path })
    }

    fn is_of(&self, task: &Task) -> Option<bool> {
        self.tasks.as_ref().map(|named| named.iter().any(|one| one.name == task.name))
    }
}

/// The questions of a task, and which files they come from.
pub struct TaskFile {
    pub documents: Documents,
    /// Of the questions, then of the examples.
    pub files: Vec<HashedFile>,
}

/// A file, and what it holds.
#[derive(Clone, PartialEq, Serialize)]
pub struct HashedFile {
    split: &'static str,
    pub file: PathBuf,
    pub sha256: String,
}

impl HashedFile {
    /// That it was read.
    pub fn tell(&self, console: &Console) {
        console.read_input(&self.file, &self.sha256);
    }
}

/// The files of a task, in their order.
struct Files {
    questions: Vec<PathBuf>,
    examples: Vec<PathBuf>,
}

/// Reads the files of tasks; what several share, once.
pub struct Loader {
    files: Vec<Files>,
    shots: usize,
    known: HashMap<Vec<PathBuf>, (Rc<Records>, Vec<String>)>,
}

impl Loader {
    /// Finds the files for each task, on the hub if no source is given; with `shots` examples also those that have these.
    ///
    /// # Errors
    /// A task without files, or with several that may be meant; a source that is for none of them; the hub's.
    pub fn new(
        tasks: &[&'static Task],
        sources: &[Source],
        hub: &HubArgs,
        shots: usize,
    ) -> anyhow::Result<Self> {
        let files = match sources {
            [] => fetch(tasks, hub, shots)?,
            _ => find(tasks, sources, shots)?,
        };
        Ok(Self { files, shots, known: HashMap::new() })
    }

    /// The questions of each of the tasks, the first `limit` of each, with their examples.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn read(mut self, tasks: &[&'static Task], limit: usize) -> anyhow::Result<Vec<TaskFile>> {
        let found = std::mem::take(&mut self.files);
        tasks
            .iter()
            .zip(found)
            .map(|(&task, Files { questions, examples })| {
                let hashed = |split, paths: Vec<PathBuf>, hashes: Vec<String>| {
                    let one = move |(file, sha256)| HashedFile { split, file, sha256 };
                    paths.into_iter().zip(hashes).map(one)
                };
                let (records, hashes) = self.records(&questions)?;
                let mut documents = Documents::new(task, &records, limit)?;
                let mut files = Vec::new();
                if self.shots > 0 {
                    let (records, hashes) = self.records(&examples)?;
                    documents = documents.with_shots(self.shots, &records)?;
                    files.extend(
                        hashed(task.shots.split, examples, hashes).filter(|_| task.shots.split != task.split),
                    );
                }
                files.splice(..0, hashed(task.split, questions, hashes));
                Ok(TaskFile { documents, files })
            })
            .collect()
    }

    /// Records, and the hashes of their files.
    fn records(&mut self, paths: &[PathBuf]) -> anyhow::Result<(Rc<Records>, Vec<String>)> {
        if let Some((records, hashes)) = self.known.get(paths) {
            return Ok((Rc::clone(records), hashes.clone()));
        }
        let records = Rc::new(Records::read(paths.to_vec())?);
        let hashes = paths.iter().map(|path| files::sha256(path)).collect::<anyhow::Result<Vec<String>>>()?;
        self.known.insert(paths.to_vec(), (Rc::clone(&records), hashes.clone()));
        Ok((records, hashes))
    }
}

/// Fetches the files of the hub's data sets.
fn fetch(tasks: &[&'static Task], hub: &HubArgs, shots: usize) -> anyhow::Result<Vec<Files>> {
    let mut sets: HashMap<&str, Dataset> = HashMap::new();
    let mut fetch_one = |task: &Task| {
        let repo = task.data_set.repo;
        if !sets.contains_key(repo) {
            sets.insert(repo, Dataset::open(repo, &hub.data_set_options())?);
        }
        let set = &sets[repo];
        let questions = set.split(task.data_set.config, task.split)?;
        let examples = match shots {
            0 => Vec::new(),
            _ => set.split(task.data_set.config, task.shots.split)?,
        };
        anyhow::Ok(Files { questions, examples })
    };
    tasks
        .iter()
        .map(|task| {
            fetch_one(task)
                .with_context(|| format!("cannot fetch the questions of {}; --data takes files", task.name))
        })
        .collect()
}

/// Files for each task; and that each source is for one of them.
fn find(tasks: &[&'static Task], sources: &[Source], shots: usize) -> anyhow::Result<Vec<Files>> {
    for source in sources {
        let of_none = match &source.tasks {
            Some(_) => !tasks.iter().any(|task| source.is_of(task) == Some(true)),
            None => source.path.is_file() && !tasks.iter().any(|task| takes(task, source, tasks)),
        };
        if of_none {
            return Err(bad_input_hint(
                format!("--data {} belongs to none of the tasks that are asked for", source.path.display()),
                "say whose it is: TASK=FILE, with a task of --tasks",
            ));
        }
    }
    let folders = sources
        .iter()
        .map(|source| if source.path.is_dir() { names_in(&source.path) } else { Ok(Vec::new()) })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let find_one = |&task: &&'static Task| {
        let candidates = candidates(task, sources, &folders, tasks);
        let questions = one_split(task, candidates.clone(), task.split, false)?;
        let examples = match shots {
            0 => Vec::new(),
            _ if task.shots.split == task.split => questions.clone(),
            _ => one_split(task, candidates, task.shots.split, true)?,
        };
        Ok(Files { questions, examples })
    };
    tasks.iter().map(find_one).collect()
}

/// Whether a file that is named is a task's: as was said, as it is called, or because nothing else is asked for.
fn takes(task: &Task, source: &Source, tasks: &[&'static Task]) -> bool {
    let name = plain(&source.path.file_name().unwrap_or_default().to_string_lossy());
    source.is_of(task).unwrap_or_else(|| {
        belongs(task, &name)
            || holds_subjects(task, &name)
            || (tasks.len() == 1
                && !TASKS.iter().any(|task| belongs(task, &name) || holds_subjects(task, &name)))
    })
}

/// The files that may have a task's records.
fn candidates(
    task: &Task,
    sources: &[Source],
    folders: &[Vec<String>],
    tasks: &[&'static Task],
) -> Vec<PathBuf> {
    let (mut own, mut of_all) = (Vec::new(), Vec::new());
    for (source, names) in sources.iter().zip(folders) {
        if source.is_of(task) == Some(false) {
            continue;
        }
        if source.path.is_file() && takes(task, source, tasks) {
            own.push(source.path.clone());
        }
        // A folder that is said to be one task's has no other's files.
        let is_named = source.tasks.as_ref().is_some_and(|tasks| tasks.len() == 1);
        for name in names {
            let path = source.path.join(name);
            let name = plain(name);
            if is_named || belongs(task, &name) {
                own.push(path);
            } else if holds_subjects(task, &name) {
                of_all.push(path);
            }
        }
    }
    if own.is_empty() { of_all } else { own }
}

/// The files of one split among a task's; `needed` if nothing else will do.
fn one_split(
    task: &Task,
    mut candidates: Vec<PathBuf>,
    split: &str,
    needed: bool,
) -> anyhow::Result<Vec<PathBuf>> {
    let of_split = |path: &PathBuf| is_split(&path.to_string_lossy(), split);
    // Other splits may lie beside it.
    if needed || candidates.iter().any(of_split) {
        candidates.retain(of_split);
    }
    let names: Vec<String> = candidates.iter().map(|path| path.display().to_string()).collect();
    let what = if needed { "examples" } else { "questions" };
    match &shards::sets(names.iter().map(String::as_str))[..] {
        [set] => {
            let whole =
                set.whole().map_err(|reason| bad_input(format!("--data: of {} {reason}", set.stem)))?;
            Ok(whole.into_iter().map(PathBuf::from).collect())
        }
        [] => Err(bad_input_hint(
            format!("no file of --data has the {what} of {}", task.name),
            format!(
                "in a folder it is called {}*{split}*.jsonl, .parquet or .arrow; or say --data {}=FILE (data set {}, split {split})",
                task.file, task.name, task.data_set
            ),
        )),
        _ => Err(bad_input(format!(
            "several files of --data may have the {what} of {}: {}; say --data {}=FILE",
            task.name,
            names.join(", "),
            task.name
        ))),
    }
}

/// Names of the files with records below a folder, relative to it, sorted.
fn names_in(folder: &Path) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    let mut open = vec![(String::new(), DEPTH)];
    while let Some((below, depth)) = open.pop() {
        let here = folder.join(&below);
        let entries =
            std::fs::read_dir(&here).with_context(|| format!("cannot read the folder {}", here.display()))?;
        for entry in entries {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.starts_with('.') {
                continue;
            }
            let name = if below.is_empty() { name } else { format!("{below}/{name}") };
            let unpacked = [".gz", ".zst"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
            if entry.path().is_dir() {
                open.extend((depth > 1).then_some((name, depth - 1)));
            } else if EXTENSIONS.iter().any(|end| unpacked.ends_with(end)) {
                names.push(name);
            }
        }
    }
    names.sort();
    Ok(names)
}

/// A name in lower case with `_`, as tasks have it.
fn plain(name: &str) -> String {
    name.to_lowercase().replace('-', "_")
}

/// Whether a file is called as a task's are, or lies in a folder that is; by its plain name.
fn belongs(task: &Task, name: &str) -> bool {
    // Subjects also have the names of their folders on the hub.
    let begins = |part: &str, with: &str| {
        part.strip_prefix(with).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric()))
    };
    name.split('/').any(|part| part.starts_with(task.file) || task.subject.is_some_and(|s| begins(part, s)))
}

/// Whether a file may have the records of several subjects, a task's among them.
fn holds_subjects(task: &Task, name: &str) -> bool {
    let of_all = |part: &str| part == "all" || part.starts_with("mmlu");
    task.subject.is_some() && name.split('/').any(of_all) && !TASKS.iter().any(|other| belongs(other, name))
}

/// Whether a split is one of the words of a file's name, or its folder.
fn is_split(path: &str, split: &str) -> bool {
    let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
    let words = |word: &str| word == split || (split == "validation" && ["valid", "val"].contains(&word));
    file.split(|c: char| !c.is_ascii_alphanumeric()).any(words) || folder.rsplit('/').next() == Some(split)
}
