//! The demo's checkpoint: quantized once, kept in the cache, copied where the user wants it.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use anyhow::Context;
use qqq_backend::CpuBackend;
use qqq_formats::{Checkpoint, cache, writer::CheckpointWriter};
use qqq_model::Tokenizer;
use qqq_quant::{Output, OutputFormat, REPORT_FILE, Recipe, Report, calibration::Source};
use sha2::{Digest, Sha256};

use crate::{
    commands::quantize::Steps,
    console::Console,
    files::{self, Reserved},
    format,
    interrupt::Guard,
    progress::Progress,
};

/// The folder of the cache.
const FOLDER: &str = "demo";

/// A quantized checkpoint.
pub struct Made {
    place: Place,
    /// How it was made.
    pub report: Report,
    /// Whether an earlier run made it.
    pub from_cache: bool,
}

enum Place {
    Cache(PathBuf),
    /// Where there is no cache: removed at the end.
    Temporary(tempfile::TempDir),
}

impl Place {
    fn checkpoint(&self) -> PathBuf {
        match self {
            Self::Cache(path) => path.clone(),
            Self::Temporary(dir) => dir.path().join("w4a8"),
        }
    }
}

impl Made {
    /// From the cache, or quantized now.
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
        let place = place(model, recipe, console)?;
        let path = place.checkpoint();
        if again && path.exists() {
            fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        if let Some(report) = complete(&path) {
            console.note(&format!(
                "Using {}, which an earlier demo quantized in {} (--again does it anew).",
                path.display(),
                format::seconds(report.timings.total)
            ));
            return Ok(Self { place, report, from_cache: true });
        }
        let reserved = Reserved::new(&path, console)?;
        let report = quantize(model, recipe, &reserved, console, guard)?;
        if let Place::Cache(path) = &place {
            remove_others(path);
        }
        Ok(Self { place, report, from_cache: false })
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.place.checkpoint()
    }

    /// Copies it to a directory that was reserved.
    ///
    /// # Errors
    /// A full disk.
    pub fn copy_to(&self, to: &Reserved) -> anyhow::Result<()> {
        let writer = CheckpointWriter::reserved(to.reservation())?;
        copy(&self.path(), writer.staging())
            .with_context(|| format!("cannot write {}", to.reservation().path().display()))?;
        Ok(writer.finish()?)
    }
}

/// The report of a checkpoint that is there; directories appear only when they are complete.
fn complete(path: &Path) -> Option<Report> {
    serde_json::from_slice(&fs::read(path.join(REPORT_FILE)).ok()?).ok()
}

fn place(model: &Path, recipe: &Recipe, console: &Console) -> anyhow::Result<Place> {
    if let Some(folder) = cache::folder().map(|f| f.join(FOLDER)) {
        match fs::create_dir_all(&folder) {
            Ok(()) => return Ok(Place::Cache(folder.join(key(model, recipe)?))),
            Err(e) => console.warn(&format!(
                "cannot keep the checkpoint in the cache: {}: {e}; it is removed at the end",
                folder.display()
            )),
        }
    }
    let temporary = tempfile::Builder::new().prefix("qqq-demo-").tempdir();
    Ok(Place::Temporary(temporary.context("cannot make a temporary directory")?))
}

/// What the checkpoint depends on: this very program, the recipe, and the model's files by name, size and time.
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
    }
    Ok(hash.finalize()[..8].iter().map(|b| format!("{b:02x}")).collect())
}

/// Results of other models and versions would pile up.
fn remove_others(kept: &Path) {
    let Some(entries) = kept.parent().and_then(|folder| fs::read_dir(folder).ok()) else { return };
    for path in entries.filter_map(|e| Some(e.ok()?.path())) {
        // Hidden names are what other runs are writing.
        let hidden = path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
        if path != kept && !hidden {
            // A cache that cannot be cleaned is no reason to fail.
            let _ = fs::remove_dir_all(path);
        }
    }
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(from)? {
        let (entry, name) = entry.map(|e| (e.path(), e.file_name()))?;
        let target = to.join(name);
        if entry.is_dir() {
            match fs::create_dir(&target) {
                Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
                _ => copy(&entry, &target)?,
            }
        } else {
            fs::copy(&entry, &target)?;
        }
    }
    Ok(())
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
    console.note(&format!(
        "Quantizing {name} to W4A8: rotation, compensation, groups of 64; calibrated on {} windows of {} tokens of the \
         built-in text.",
        recipe.calibration.windows, recipe.calibration.window
    ));
    let output = Output { reservation: out.reservation(), format: OutputFormat::Auto, model_name: &name };
    let mut steps = Steps::new(Progress::new(console, "quantizing"), guard);
    Ok(qqq_quant::quantize(
        &CpuBackend::new(),
        &checkpoint,
        &tokenizer,
        recipe,
        &Source::BuiltIn,
        &output,
        &mut steps,
    )?)
}
