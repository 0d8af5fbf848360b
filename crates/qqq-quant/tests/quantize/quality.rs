//! The comparison with the float model on held-out text, and the gate behind it.

use std::{collections::BTreeMap, fs, path::Path};

use qqq_backend::CpuBackend;
use qqq_eval::{KldReport, WindowOptions, kl_divergence};
use qqq_formats::{
    Checkpoint, DType, SimulatedMethod,
    simulated::{LlmInt8, Quik, Quip, SpQr},
    writer::Reservation,
};
use qqq_model::{Decoder, TextOptions, Tokenizer};
use qqq_quant::{
    Calibration, Clip, DETAILS_FILE, Gate, Output, OutputFormat, Propagation, Quality, QuantError,
    REPORT_FILE, Recipe, Report, Transform,
    calibration::{self, CalibrationText, Read, Source, TokenWindows},
    quantize,
};
use tempfile::TempDir;

use crate::tiny::{Steps, Tiny, recipe, text};

/// Quantizes the model in `model` with the text of `source` and so many windows held out.
fn run(
    model: &Path,
    source: &Source,
    out: &Path,
    recipe: &Recipe,
    (held_out, gate): (usize, Gate),
    steps: &mut Steps,
) -> qqq_quant::Result<Report> {
    let checkpoint = Checkpoint::open(model)?;
    let tokenizer = Tokenizer::load(&checkpoint)?;
    let reservation = Reservation::take(out)?;
    let format = match recipe.simulated {
        Some(_) => OutputFormat::Auto,
        None => OutputFormat::CompressedTensors,
    };
    let output = Output { format, gate, ..Output::new(&reservation, "tiny") };
    let text = CalibrationText { source, options: None, held_out };
    quantize(&CpuBackend::new(), &checkpoint, &tokenizer, recipe, text, &output, steps)
}

/// The windows of a text file.
fn windows(model: &Path, file: &Path, calibration: &Calibration, held_out: usize) -> TokenWindows {
    let checkpoint = Checkpoint::open(model).unwrap();
    let tokenizer = Tokenizer::load(&checkpoint).unwrap();
    let options = TextOptions::default();
    let read = Read { checkpoint: &checkpoint, tokenizer: &tokenizer, options: &options, note: &mut |_| () };
    calibration::windows_of_files(&[file.to_owned()], read, calibration, held_out, 0).unwrap()
}

/// What an evaluation says of two checkpoints, on windows of the same length.
fn evaluated(model: &Path, out: &Path, windows: &[Vec<u32>]) -> KldReport {
    let load = |dir: &Path| Decoder::load(CpuBackend::new(), &Checkpoint::open(dir).unwrap()).unwrap();
    let options = WindowOptions::new(windows[0].len());
    kl_divergence(&load(model), &load(out), &windows.concat(), &options, &mut |_, _| true).unwrap()
}

#[track_caller]
fn assert_is(quality: &Quality, evaluation: &KldReport, what: &str) {
    let found = quality.divergence.unwrap();
    assert_eq!((quality.windows, quality.tokens), (evaluation.windows, evaluation.tokens), "{what}");
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-9 + 1e-6 * b.abs();
    for (a, b) in [
        (found.kl_divergence.mean, evaluation.kl_divergence.mean),
        (found.kl_divergence.standard_error.unwrap(), evaluation.kl_divergence.standard_error.unwrap()),
        (found.top1_agreement.mean, evaluation.top1_agreement.mean),
        (found.perplexity_ratio.mean, evaluation.perplexity_ratio.mean),
        (found.baseline_perplexity, evaluation.baseline_perplexity),
        (found.perplexity, evaluation.perplexity),
    ] {
        assert!(near(a, b), "{what}: {a} instead of {b}");
    }
    assert!(found.kl_divergence.mean > 1e-5, "{what}: 4 bits lose something: {found:?}");
}

#[test]
fn the_report_says_what_an_evaluation_says() {
    let dir = TempDir::new().unwrap();
    let file = text(dir.path(), 3000);
    let source = Source::Files(vec![file.clone()]);
    let base = recipe();
    let corrected = Recipe { error_correction: 0.5, transform: Transform::Rotate, ..base.clone() };
    let simulating = |method| Recipe { calibration: recipe().calibration, ..Recipe::simulating(method) };
    let recipes = [
        ("rtn", Recipe { compensate: false, ..base.clone() }),
        ("gptq", base.clone()),
        ("float", Recipe { propagation: Propagation::Float, group_size: Some(32), ..base.clone() }),
        ("rotated", Recipe { transform: Transform::Rotate, ..base.clone() }),
        ("smoothed", Recipe { transform: Transform::Smooth, ..base.clone() }),
        ("corrected", corrected.clone()),
        ("corrected-smoothed", Recipe { transform: Transform::Smooth, ..corrected }),
        ("llm-int8", simulating(SimulatedMethod::LlmInt8(LlmInt8 { threshold: 2.0 }))),
        ("quik", simulating(SimulatedMethod::Quik(Quik::default()))),
        ("spqr", simulating(SimulatedMethod::SpQr(SpQr::default()))),
        ("quip", simulating(SimulatedMethod::Quip(Quip { bits: 4, ..Quip::default() }))),
    ];
    let bf16 = Tiny { dtype: DType::BF16, outliers: true, ..Tiny::default() };
    let granite = Tiny { architecture: "GraniteForCausalLM", tied: false, ..Tiny::default() };
    for (model, tiny) in [("f32", Tiny::default()), ("bf16", bf16), ("granite", granite)] {
        let path = tiny.write(dir.path(), model);
        for (name, recipe) in &recipes {
            let out = dir.path().join(format!("{model}-{name}"));
            let report =
                run(&path, &source, &out, recipe, (3, Gate::DEFAULT), &mut Steps::default()).unwrap();
            let held_out = windows(&path, &file, &recipe.calibration, 3).held_out;
            assert_eq!(held_out.len(), 3);
            let quality = report.quality.unwrap();
            if *name == "llm-int8" {
                // What is an outlier depends on the tokens beside it: windows are run one by one.
                let mean = |window: &Vec<u32>| {
                    evaluated(&path, &out, std::slice::from_ref(window)).kl_divergence.mean / 3.0
                };
                let (found, want) =
                    (quality.divergence.unwrap().kl_divergence.mean, held_out.iter().map(mean).sum::<f64>());
                assert!((found - want).abs() <= 1e-9 + 1e-6 * want, "{model}: {found} instead of {want}");
            } else {
                assert_is(&quality, &evaluated(&path, &out, &held_out), &format!("{model}, {name}"));
            }
            assert!(!quality.is_beyond && quality.text == "text3000.txt", "{quality:?}");
            let card = fs::read_to_string(out.join("README.md")).unwrap();
            assert!(
                card.contains("| KL divergence | ") && card.contains("| Held-out text | text3000.txt, "),
                "{card}"
            );
        }
    }
}

#[test]
fn without_calibration_the_built_in_text_is_held_out() {
    let dir = TempDir::new().unwrap();
    let model = Tiny::default().write(dir.path(), "model");
    let calibration = Calibration { windows: 0, ..recipe().calibration };
    let rtn = Recipe { compensate: false, clip: Clip::Weight, calibration, ..recipe() };
    let out = dir.path().join("out");
    let report =
        run(&model, &Source::BuiltIn, &out, &rtn, (2, Gate::DEFAULT), &mut Steps::default()).unwrap();
    let quality = report.quality.unwrap();
    assert_eq!(quality.text, "the built-in text");
    // As long as the model's context.
    assert_eq!((quality.windows, quality.tokens), (2, 2 * 255));
    assert_eq!((report.calibration_data.as_str(), report.calibration_tokens), ("none", 0));
    let tokenizer = Tokenizer::load(&Checkpoint::open(&model).unwrap()).unwrap();
    let amount = Calibration { window: 256, ..calibration };
    let held_out = calibration::windows_of_built_in(&tokenizer, &amount, 2, 0).unwrap().held_out;
    assert_is(&quality, &evaluated(&model, &out, &held_out), "the built-in text");

    // Where nothing is to be held out there is no report of it.
    let out = dir.path().join("none");
    let report =
        run(&model, &Source::BuiltIn, &out, &rtn, (0, Gate::DEFAULT), &mut Steps::default()).unwrap();
    assert_eq!(report.quality, None);
}

/// All files of a directory but report and card, which tell how long it took.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .filter(|(name, _)| ![REPORT_FILE, DETAILS_FILE, "README.md"].contains(&name.as_str()))
        .collect()
}

#[test]
fn what_is_held_out_changes_no_byte() {
    let dir = TempDir::new().unwrap();
    let model = Tiny::default().write(dir.path(), "model");
    let plenty = text(dir.path(), 20_000);
    // Its windows are cut from its tokens, with some left between them.
    let scarce = text(dir.path(), 1200);
    let corrected = Recipe { error_correction: 0.5, transform: Transform::Smooth, ..recipe() };
    for (name, source) in [
        ("plenty", Source::Files(vec![plenty])),
        ("scarce", Source::Files(vec![scarce])),
        ("self", Source::SelfSamples),
    ] {
        let with = |held_out: usize| {
            let out = dir.path().join(format!("{name}-{held_out}"));
            let report =
                run(&model, &source, &out, &corrected, (held_out, Gate::OPEN), &mut Steps::default())
                    .unwrap();
            (files(&out), report)
        };
        let (plain, report) = with(0);
        assert_eq!(report.quality, None);
        for held_out in [2, 5] {
            let (files, report) = with(held_out);
            assert_eq!(report.quality.unwrap().windows, held_out, "{name}");
            assert!(files == plain, "{name}: {held_out} windows held out change the checkpoint");
        }
    }
}

#[test]
fn a_text_with_nothing_left_holds_out_less_and_says_so() {
    let dir = TempDir::new().unwrap();
    let model = Tiny::default().write(dir.path(), "model");
    // Ten windows of 64 tokens.
    for (words, windows, says) in [(900, 1, "not 2 windows of 64"), (640, 0, "nothing left to hold out")] {
        let source = Source::Files(vec![text(dir.path(), words)]);
        let (out, mut steps) = (dir.path().join(format!("{words}")), Steps::default());
        let report = run(&model, &source, &out, &recipe(), (2, Gate::DEFAULT), &mut steps).unwrap();
        let notes = steps.notes.join("\n");
        assert!(notes.contains(says), "{notes}");
        let quality = report.quality;
        assert_eq!(quality.is_some(), windows > 0, "{quality:?}");
        if let Some(quality) = quality {
            assert!((1..=2).contains(&quality.windows) && quality.tokens < 2 * 63, "{quality:?}");
        }
    }
}

#[test]
fn a_result_beyond_the_limit_does_not_get_its_name() {
    let dir = TempDir::new().unwrap();
    let model = Tiny::default().write(dir.path(), "model");
    let source = Source::Files(vec![text(dir.path(), 3000)]);
    let out = dir.path().join("out");
    let with = |gate: Gate, steps: &mut Steps| run(&model, &source, &out, &recipe(), (2, gate), steps);
    let sound = with(Gate::DEFAULT, &mut Steps::default()).unwrap();
    let whole = files(&out);
    let kld = sound.quality.unwrap().divergence.unwrap().kl_divergence.mean;
    fs::remove_dir_all(&out).unwrap();

    let strict = Gate { max_kld: Some(kld / 2.0), force: false };
    for name in ["out.failed-gate", "out.failed-gate-2"] {
        let error = with(strict, &mut Steps::default()).unwrap_err();
        let message = error.to_string();
        let QuantError::Gate(beyond) = error else { panic!("{message}") };
        assert!(message.contains(name) && message.contains("nats per token"), "{message}");
        assert_eq!(beyond.path, dir.path().join(name));
        assert!(!out.exists());
        // Complete, and the same but for the name.
        assert!(files(&beyond.path) == whole);
        let stored: Report =
            serde_json::from_slice(&fs::read(beyond.path.join(REPORT_FILE)).unwrap()).unwrap();
        let quality = stored.quality.unwrap();
        assert!(quality.is_beyond && quality.max_kld == strict.max_kld, "{quality:?}");
        let card = fs::read_to_string(beyond.path.join("README.md")).unwrap();
        assert!(card.contains("further from the float model"), "{card}");
        Decoder::load(CpuBackend::new(), &Checkpoint::open(&beyond.path).unwrap()).unwrap();
    }

    let mut steps = Steps::default();
    let forced = with(Gate { force: true, ..strict }, &mut steps).unwrap();
    assert!(files(&out) == whole && forced.quality.unwrap().is_beyond);
    for warnings in [&forced.warnings, &steps.warnings] {
        assert!(warnings.iter().any(|w| w.contains("by force")), "{warnings:?}");
    }
    let card = fs::read_to_string(out.join("README.md")).unwrap();
    assert!(card.contains("by force") && card.contains("further from the float model"), "{card}");
    fs::remove_dir_all(&out).unwrap();

    // A limit just above, and none.
    let above = Gate { max_kld: Some(kld * 1.001), force: true };
    let passed = with(above, &mut Steps::default()).unwrap();
    assert!(!passed.quality.unwrap().is_beyond && passed.warnings.is_empty(), "{:?}", passed.warnings);
    fs::remove_dir_all(&out).unwrap();
    let open = with(Gate::OPEN, &mut Steps::default()).unwrap().quality.unwrap();
    assert!(!open.is_beyond && open.max_kld.is_none() && open.divergence.is_some());
}

#[test]
fn how_far_inputs_reach_is_told_of_both_models() {
    let dir = TempDir::new().unwrap();
    let model = Tiny::default().write(dir.path(), "model");
    let source = Source::Files(vec![text(dir.path(), 3000)]);
    let calibration = Calibration { windows: 4, window: 64, smooth_tokens: 64 };
    let of = |transform, name: &str, held_out| {
        let recipe = Recipe { transform, calibration, ..recipe() };
        let out = dir.path().join(name);
        let report =
            run(&model, &source, &out, &recipe, (held_out, Gate::OPEN), &mut Steps::default()).unwrap();
        (report.activations, out.join(DETAILS_FILE).exists())
    };
    let (plain, is_written) = of(Transform::None, "none", 2);
    assert!(is_written);
    assert_eq!(plain.len() % 4, 0);
    assert!(plain[0].name.ends_with("layers.0.self_attn.qkv_proj"), "{}", plain[0].name);
    // The first input is the float model's but for int8, whose largest number is exact.
    let (a, b) = (&plain[0].float, &plain[0].quantized);
    assert!((a.peak() / b.peak() - 1.0).abs() < 0.02, "{a:?} {b:?}");
    assert!(plain.iter().all(|a| a.float.median > 0.0 && a.quantized.median > 0.0));
    // A rotation changes what the layers take, and nothing of the float model.
    let (turned, _) = of(Transform::Rotate, "turned", 2);
    assert_eq!(turned.len(), plain.len());
    for (turned, plain) in turned.iter().zip(&plain) {
        assert_eq!((&turned.name, &turned.float), (&plain.name, &plain.float));
    }
    assert_ne!(turned[0].quantized, plain[0].quantized);
    // Where nothing is held out nothing is seen.
    assert_eq!(of(Transform::None, "alone", 0), (Vec::new(), false));
}
