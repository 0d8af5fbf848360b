//! The demo's checkpoint: quantized once, kept in the cache, copied where the user wants it.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use anyhow::Context;
use qqq_backend::CpuBackend;
use qqq_formats::{Checkpoint, cache, writer::CheckpointWriter};
use qqq_model::Tokenizer;
use qqq_quant::{
    Gate, MoreFiles, Output, Recipe, Report, Transform,
    calibration::{CalibrationText, Source},
};
use qqq_report::PAGE_FILE;
use sha2::{Digest, Sha256};

use super::{
    cached::{Cached, Found, KEY, remove_others},
    lock::{Lock, Work},
    sums::Sums,
};
use crate::{
    commands::quantize::{Steps, page::Pages},
    console::Console,
    device::{CpuPlace, Place as _},
    files::{self, Reserved},
    format,
    interrupt::Guard,
    progress::Progress,
};

/// The folder of the cache.
const FOLDER: &str = "qqq-demo";
/// Between two looks at what another demo does.
const PAUSE: Duration = Duration::from_millis(100);

/// A quantized checkpoint.
pub struct Made {
    place: Place,
    /// How it was made.
    pub report: Report,
    /// Whether an earlier run made it.
    pub from_cache: bool,
    sums: Sums,
    /// No other demo makes it anew meanwhile.
    _lock: Option<Lock>,
}

enum Place {
    Cache(Cached),
    /// Where there is no cache: removed at the end.
    Temporary(tempfile::TempDir),
}

impl Made {
    /// From the cache, or quantized now. A demo that quantizes the same model is waited for.
    ///
    /// # Errors
    /// As `qqq quantize`.
    pub fn get(
        model: &Path,
        recipe: &Recipe,
        again: bool,
        console: &Console,
        guard: &Guard,
    ) -> anyhow::Result<Self> {
        match place(model, recipe, console)? {
            Place::Temporary(dir) => {
                let path = dir.path().join("w4a8");
                let report = quantize(model, recipe, &Reserved::new(&path, console)?, console, guard)?;
                let sums = Sums::of(&path)?;
                Ok(Self { place: Place::Temporary(dir), report, from_cache: false, sums, _lock: None })
            }
            Place::Cache(cached) => Self::get_cached(cached, model, recipe, again, console, guard),
        }
    }

    fn get_cached(
        cached: Cached,
        model: &Path,
        recipe: &Recipe,
        again: bool,
        console: &Console,
        guard: &Guard,
    ) -> anyhow::Result<Self> {
        let path = cached.checkpoint().to_owned();
        let lock = |work: Work| {
            let mut told = false;
            let does = match work {
                Work::Use => "makes",
                Work::Make => "uses",
            };
            Lock::take(&cached.lock(), work, &mut || {
                if !std::mem::replace(&mut told, true) {
                    console.status(&format!(
                        "Another demo {does} {}: waiting until it has finished (Ctrl-C ends the wait).",
                        path.display()
                    ));
                }
                std::thread::sleep(PAUSE);
                guard.check()
            })
        };
        let (mut again, mut is_made) = (again, false);
        loop {
            let using = lock(Work::Use)?;
            if !again {
                match cached.look()? {
                    Found::Nothing => {}
                    Found::Sound(report, sums) => {
                        if !is_made {
                            console.note(&format!(
                                "Using {}, which an earlier demo quantized in {} (--again does it anew).",
                                path.display(),
                                format::seconds(report.timings.total)
                            ));
                        }
                        let (place, lock) = (Place::Cache(cached), Some(using));
                        return Ok(Self { place, report: *report, from_cache: !is_made, sums, _lock: lock });
                    }
                    Found::Damaged(why) if is_made => {
                        anyhow::bail!("{}: {why}, though it was just made", path.display())
                    }
                    Found::Damaged(why) => {
                        console.warn(&format!("{} is damaged ({why}): making it again", path.display()));
                    }
                }
            }
            drop(using);
            let _making = lock(Work::Make)?;
            // Another demo may have made it in between.
            if !again && matches!(cached.look()?, Found::Sound(..)) {
                continue;
            }
            cached.remove()?;
            quantize(model, recipe, &Reserved::new(&path, console)?, console, guard)?;
            cached.keep_sums()?;
            remove_others(&cached);
            (again, is_made) = (false, true);
        }
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        match &self.place {
            Place::Cache(cached) => cached.checkpoint().to_owned(),
            Place::Temporary(dir) => dir.path().join("w4a8"),
        }
    }

    /// The page of how it was made, where that stays.
    pub fn page(&self) -> Option<PathBuf> {
        match &self.place {
            Place::Cache(cached) => Some(cached.checkpoint().join(PAGE_FILE)).filter(|page| page.is_file()),
            Place::Temporary(_) => None,
        }
    }

    /// Copies it to a directory that was reserved.
    ///
    /// # Errors
    /// A full disk; it is not what was made any more.
    pub fn copy_to(&self, to: &Reserved) -> anyhow::Result<()> {
        copy(&self.path(), &self.sums, to)
    }
}

/// Copies the files that have sums, and compares what has arrived.
fn copy(from: &Path, sums: &Sums, to: &Reserved) -> anyhow::Result<()> {
    let writer = CheckpointWriter::reserved(to.reservation())?;
    let staging = writer.staging();
    for name in sums.names() {
        let target = staging.join(name);
        let folder = target.parent().unwrap_or(staging);
        fs::create_dir_all(folder)
            .and_then(|()| fs::copy(from.join(name), &target))
            .with_context(|| format!("cannot copy {} to {}", from.join(name).display(), target.display()))?;
    }
    if let Some(difference) = sums.difference(&Sums::of_files(staging, sums.names())?) {
        anyhow::bail!("{} was changed while it was in use: {difference}", from.display());
    }
    Ok(writer.finish()?)
}

fn place(model: &Path, recipe: &Recipe, console: &Console) -> anyhow::Result<Place> {
    if let Some(folder) = cache::folder().map(|f| f.join(FOLDER)) {
        match fs::create_dir_all(&folder) {
            Ok(()) => return Ok(Place::Cache(Cached::new(&folder, key(model, recipe)?))),
            Err(e) => console.warn(&format!(
                "cannot keep the checkpoint in the cache: {}: {e}; it is removed at the end",
                folder.display()
            )),
        }
    }
    let temporary = tempfile::Builder::new().prefix("qqq-demo-").tempdir();
    Ok(Place::Temporary(temporary.context("cannot make a temporary directory")?))
}

/// What the checkpoint depends on: this very program, the recipe, and the model's files by name, size and times.
fn key(model: &Path, recipe: &Recipe) -> anyhow::Result<String> {
    let mut hash = Sha256::new();
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    hash.update(files::sha256(&program)?);
    hash.update(serde_json::to_vec(recipe)?);
    let model = model.canonicalize().with_context(|| format!("cannot read {}", model.display()))?;
    let mut inputs = vec![model.clone()];
    if model.is_dir() {
        inputs.clear();
        for entry in fs::read_dir(&model).with_context(|| format!("cannot read {}", model.display()))? {
            inputs.push(entry?.path());
        }
        inputs.sort();
    }
    for path in inputs {
        let data = fs::metadata(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let time = data.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        hash.update(format!("{}\0{}\0{}\n", path.display(), data.len(), time.as_nanos()));
        // A time of modification can be set back.
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            hash.update(format!("{}\0{}\n", data.ctime(), data.ctime_nsec()));
        }
    }
    Ok(hash.finalize()[..KEY / 2].iter().map(|b| format!("{b:02x}")).collect())
}

fn quantize(
    path: &Path,
    recipe: &Recipe,
    out: &Reserved,
    console: &Console,
    guard: &Guard,
) -> anyhow::Result<Report> {
    let checkpoint = Checkpoint::open(path)?;
    let tokenizer = Tokenizer::load(&checkpoint)?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let transform = match recipe.resolved(&checkpoint.config).recipe.transform {
        Transform::Rotate => "rotation",
        // What channels are divided by, in one way or another.
        Transform::Smooth
        | Transform::Migrate
        | Transform::Suppress
        | Transform::Protect
        | Transform::Learn => "smoothing",
        Transform::Usual | Transform::Auto | Transform::None => "no transform",
    };
    console.note(&format!(
        "Quantizing {name} to W4A8: {transform}, compensation, groups of 64; calibrated on {} windows of {} tokens of the \
         built-in text.",
        recipe.calibration.windows, recipe.calibration.window
    ));
    let backend = CpuBackend::new();
    let pages = Pages::new(&CpuPlace.identity()?, console);
    let page_of = |report: &Report| pages.files(report);
    let more = Some(MoreFiles(&page_of));
    let output = Output { gate: Gate::OPEN, more, ..Output::new(out.reservation(), &name) };
    // For the page; the demo compares both models itself, on more text.
    let text = CalibrationText { source: &Source::BuiltIn, options: None, held_out: 1 };
    let mut steps = Steps::new(Progress::new(console, "quantizing"), guard);
    let report = qqq_quant::quantize(&backend, &checkpoint, &tokenizer, recipe, text, &output, &mut steps)?;
    pages.tell(console);
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_since_it_was_compared_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("w4a8"), dir.path().join("mine"));
        fs::create_dir_all(from.join("below")).unwrap();
        let write = |name: &str, text: &str| fs::write(from.join(name), text).unwrap();
        write("model.safetensors", "weights");
        write("below/config.json", "{}");
        let sums = Sums::of(&from).unwrap();
        let console = Console::new(false, true);
        let kept = || copy(&from, &sums, &Reserved::new(&to, &console).unwrap());

        // As long as before.
        write("model.safetensors", "Weights");
        let error = kept().unwrap_err().to_string();
        assert!(error.contains("was changed while it was in use: model.safetensors is not what"), "{error}");
        assert!(!to.exists(), "nothing that is not what was measured");
        write("model.safetensors", "weights");
        // No part of what was measured.
        write("notes", "");
        kept().unwrap();
        assert_eq!(fs::read_to_string(to.join("model.safetensors")).unwrap(), "weights");
        assert_eq!(fs::read_to_string(to.join("below/config.json")).unwrap(), "{}");
        assert!(!to.join("notes").exists());
    }
}
