//! Files of a model that change while it is in use.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use qqq_backend::CpuBackend;
use qqq_formats::{Checkpoint, FormatError, writer::Reservation};
use qqq_model::{Decoder, ModelError, Tokenizer};
use qqq_quant::{
    Output, Progress, QuantError, REPORT_FILE, Recipe, Transform, calibration::Source, quantize,
};
use tempfile::TempDir;

use crate::tiny::{Tiny, logits, recipe, text};

const WEIGHTS: &str = "model.safetensors";
const REPLACED: &str = "something else";

/// Does something at the first step whose label begins so.
struct At<'a> {
    label: &'a str,
    action: Option<&'a dyn Fn()>,
    notes: Vec<String>,
}

impl Progress for At<'_> {
    fn step(&mut self, _done: f64, _total: f64, next: &str) -> bool {
        if next.starts_with(self.label)
            && let Some(action) = self.action.take()
        {
            action();
        }
        true
    }

    fn warn(&mut self, _message: &str) {}

    fn note(&mut self, message: &str) {
        self.notes.push(message.to_owned());
    }
}

/// Writes into the file itself, so that its size stays what it was.
fn overwrite(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let later = fs::metadata(path).unwrap().modified().unwrap() + Duration::from_nanos(1);
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
    // Two writes may fall into one tick of the clock.
    fs::File::options().write(true).open(path).unwrap().set_modified(later).unwrap();
}

/// As [`overwrite`], with the time set back.
#[cfg(unix)]
fn overwrite_unnoticed(path: &Path) {
    use std::os::unix::fs::MetadataExt;

    let before = fs::metadata(path).unwrap();
    let status = |m: &fs::Metadata| (m.ctime(), m.ctime_nsec());
    // Two changes of status may fall into one tick of the clock.
    let clock = path.with_extension("clock");
    while {
        fs::write(&clock, "").unwrap();
        status(&fs::metadata(&clock).unwrap()) <= status(&before)
    } {}
    fs::remove_file(clock).unwrap();
    overwrite(path);
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(before.modified().unwrap()).unwrap();
}

fn truncate(path: &Path) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
}

/// Another file under the same name, as the hub's client and this project's writer replace them.
fn replace(path: &Path) {
    let new = path.with_extension("new");
    fs::write(&new, REPLACED).unwrap();
    fs::rename(new, path).unwrap();
}

struct Case {
    dir: TempDir,
    model: PathBuf,
    source: Source,
}

impl Case {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let tiny = Tiny::families().into_iter().next().unwrap();
        let model = tiny.write(dir.path(), "model");
        let source = Source::Files(vec![text(dir.path(), 2000)]);
        Self { dir, model, source }
    }

    /// Quantizes; at the first step of that label, `action` gets the path of `file`.
    fn run(&self, recipe: &Recipe, label: &str, file: &str, action: fn(&Path)) -> qqq_quant::Result<PathBuf> {
        let out = self.dir.path().join("out");
        let checkpoint = Checkpoint::open(&self.model)?;
        let tokenizer = Tokenizer::load(&checkpoint)?;
        let reservation = Reservation::take(&out)?;
        let output = Output::new(&reservation, "tiny");
        let path = self.model.join(file);
        let action = || action(&path);
        let mut steps = At { label, action: Some(&action), notes: Vec::new() };
        let report =
            quantize(&CpuBackend::new(), &checkpoint, &tokenizer, recipe, &self.source, &output, &mut steps);
        assert!(steps.action.is_none(), "there is a step {label:?}");
        if cfg!(unix) {
            let replaced = steps.notes.iter().filter(|n| n.contains("was replaced or removed")).count();
            let expected = report.is_ok() && fs::metadata(&path).unwrap().len() == REPLACED.len() as u64;
            assert_eq!(replaced, usize::from(expected), "{:?}", steps.notes);
        }
        report.map(|_| out)
    }

    #[track_caller]
    fn refused(&self, recipe: &Recipe, label: &str, file: &str, action: fn(&Path)) {
        let result = self.run(recipe, label, file, action);
        let Err(
            QuantError::Model(ModelError::Format(FormatError::Changed { path, .. }))
            | QuantError::Format(FormatError::Changed { path, .. }),
        ) = result
        else {
            panic!("{label}, {file}: {result:?}")
        };
        assert_eq!(path.file_name().unwrap(), file);
        let left: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains("out"))
            .collect();
        assert!(left.is_empty(), "{label}, {file}: {left:?} is left");
    }
}

#[test]
fn a_changed_file_ends_a_quantization_without_an_output() {
    let smooth = Recipe { transform: Transform::Smooth, ..recipe() };
    for recipe in [recipe(), smooth] {
        for action in [truncate as fn(&Path), overwrite] {
            for label in ["reading calibration text", "block 1/", "block 2/2: solving", "block 2/2: writing"]
            {
                Case::new().refused(&recipe, label, WEIGHTS, action);
            }
        }
    }
    for file in ["config.json", "tokenizer.json"] {
        Case::new().refused(&recipe(), "block 1/", file, overwrite);
        Case::new().refused(&recipe(), "block 2/2: writing", file, truncate);
    }
}

/// Only what was read of the file shows it: here all of it.
#[cfg(unix)]
#[test]
fn an_old_time_does_not_hide_a_change() {
    for file in [WEIGHTS, "config.json", "tokenizer.json"] {
        Case::new().refused(&recipe(), "block 2/2: writing", file, overwrite_unnoticed);
    }
}

/// What was opened is still there, and the result is the same as if nothing had happened.
#[test]
fn a_file_that_is_replaced_is_used_as_it_was() {
    let bytes = |out: &Path| {
        let mut files: Vec<_> = fs::read_dir(out)
            .unwrap()
            .map(|e| e.unwrap().path())
            // Its timings differ.
            .filter(|p| !p.ends_with(REPORT_FILE))
            .map(|p| (p.file_name().unwrap().to_owned(), fs::read(&p).unwrap()))
            .collect();
        for (name, content) in &mut files {
            if name == "README.md" {
                // So does the time that it tells.
                let text = String::from_utf8(std::mem::take(content)).unwrap();
                let lines = text.lines().filter(|line| !line.starts_with("| Time to quantize |"));
                *content = lines.collect::<Vec<_>>().join("\n").into_bytes();
            }
        }
        files.sort();
        files
    };
    let undisturbed = bytes(&Case::new().run(&recipe(), "block 1/", WEIGHTS, |_| {}).unwrap());
    for file in [WEIGHTS, "tokenizer.json", "config.json"] {
        let case = Case::new();
        let out = case.run(&recipe(), "block 1/", file, replace).unwrap();
        assert!(bytes(&out) == undisturbed, "{file}");
    }
}

#[test]
fn a_changed_file_ends_loading() {
    for action in [truncate as fn(&Path), overwrite] {
        // Before the first part, between two, and after the last one has been read.
        for step in 0..4 {
            let case = Case::new();
            let checkpoint = Checkpoint::open(&case.model).unwrap();
            let weights = case.model.join(WEIGHTS);
            let (mut count, mut last) = (0, (0, 0));
            let loaded = Decoder::load_with(CpuBackend::default(), &checkpoint, &mut |done, total| {
                assert!(done >= last.0 && done <= total, "{done} of {total}");
                last = (done, total);
                if count == step {
                    action(&weights);
                }
                count += 1;
                true
            });
            assert!(count > step);
            match loaded.map(|_| ()) {
                Err(ModelError::Format(FormatError::Changed { path, .. })) => assert_eq!(path, weights),
                other => panic!("step {step}: {other:?}"),
            }
        }
    }
}

#[test]
fn a_loaded_model_needs_no_files() {
    let case = Case::new();
    let expected = logits(&case.model);
    let weights = case.model.join(WEIGHTS);
    let whole = fs::read(&weights).unwrap();
    let checkpoint = Checkpoint::open(&case.model).unwrap();
    let decoder = Decoder::load(CpuBackend::default(), &checkpoint).unwrap();
    truncate(&weights);
    assert!(crate::tiny::logits_of(&decoder) == expected);
    fs::write(&weights, whole).unwrap();
    // Who reads more of the old checkpoint is told; a new one is as good as any.
    assert!(checkpoint.inputs.check().is_err());
    assert!(logits(&case.model) == expected);
}

#[test]
fn loading_stops_when_asked_to() {
    let case = Case::new();
    let checkpoint = Checkpoint::open(&case.model).unwrap();
    for stop in 0..4 {
        let mut count = 0;
        let loaded = Decoder::load_with(CpuBackend::default(), &checkpoint, &mut |_, _| {
            count += 1;
            count <= stop
        });
        assert!(matches!(loaded, Err(ModelError::Interrupted)));
        assert_eq!(count, stop + 1);
    }
}

#[test]
fn kinds_of_layers() {
    let case = Case::new();
    let out = case.run(&Recipe { group_size: Some(32), ..recipe() }, "block 1/", WEIGHTS, |_| {}).unwrap();
    for (path, arithmetic, group_size) in [(&case.model, "F", None), (&out, "W4A8", Some(32))] {
        let checkpoint = Checkpoint::open(path).unwrap();
        let decoder = Decoder::load(CpuBackend::default(), &checkpoint).unwrap();
        let kinds = decoder.layer_kinds();
        let names: Vec<&str> = kinds.iter().map(|k| k.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "embed_tokens",
                "self_attn.q_proj+k_proj+v_proj",
                "self_attn.o_proj",
                "mlp.gate_proj+up_proj",
                "mlp.down_proj",
                "lm_head"
            ]
        );
        for kind in &kinds[1..5] {
            assert_eq!(kind.count, decoder.config.num_layers);
            assert!(kind.arithmetic.starts_with(arithmetic) && kind.group_size == group_size, "{kind}");
            let weights = kind.count * kind.out_features * kind.in_features;
            let least = if group_size.is_some() { weights / 2 } else { 2 * weights };
            assert!((least..=3 * least).contains(&kind.bytes), "{kind}: {} bytes", kind.bytes);
        }
        // The embedding's values are there once.
        assert_eq!(kinds[5].bytes == 0, decoder.config.tie_word_embeddings);
        assert!(kinds[0].bytes > 0);
    }
}
