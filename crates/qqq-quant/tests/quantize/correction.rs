//! Weights that are corrected for what the layers before have done to their inputs.

use std::path::Path;

use qqq_backend::CpuBackend;
use qqq_formats::Checkpoint;
use qqq_model::{Decoder, Tokenizer};
use qqq_quant::{
    Calibration, Clip, OutputFormat, Propagation, QuantError, Recipe, Report, Transform, calibration::Source,
};
use tempfile::TempDir;

use crate::tiny::{Steps, Tiny, distance, logits_on, recipe, run, text};

/// Enough tokens for the layers of the small models not to learn them by heart.
fn amount() -> Calibration {
    Calibration { windows: 40, window: 128, smooth_tokens: 64 }
}

#[test]
fn reports_of_before_there_was_a_choice_say_that_nothing_was_corrected() {
    let mut json = serde_json::to_value(Recipe::DEFAULT).unwrap();
    assert_eq!(json["error_correction"], Recipe::DEFAULT.error_correction);
    json.as_object_mut().unwrap().remove("error_correction");
    let read = serde_json::from_value::<Recipe>(json).unwrap();
    assert_eq!(read, Recipe { error_correction: 0.0, ..Recipe::DEFAULT });
}

/// A strength that moves nothing shows what the same weights lose against the float model.
#[test]
fn later_layers_make_up_for_earlier_ones() {
    let dir = TempDir::new().unwrap();
    let text = text(dir.path(), 6000);
    let words = std::fs::read_to_string(&text).unwrap();
    let source = Source::Files(vec![text]);
    for (name, tiny, transform) in [
        ("llama", Tiny { layers: 4, ..Tiny::default() }, Transform::Rotate),
        (
            "gemma",
            Tiny { layers: 4, architecture: "Gemma3ForCausalLM", ..Tiny::default() },
            Transform::Smooth,
        ),
    ] {
        let model = tiny.write(dir.path(), name);
        // What corrections are learned on; on other texts they may be worth less than nothing.
        let checkpoint = Checkpoint::open(&model).unwrap();
        let tokens = Tokenizer::load(&checkpoint).unwrap().encode(&words, false).unwrap();
        let logits = |dir: &Path| {
            let decoder = Decoder::load(CpuBackend::default(), &Checkpoint::open(dir).unwrap()).unwrap();
            tokens
                .chunks_exact(128)
                .take(4)
                .flat_map(|tokens| logits_on(&decoder, tokens))
                .collect::<Vec<_>>()
        };
        let float = logits(&model);
        let quantized = |strength: f64| {
            let out = dir.path().join(format!("{name}{strength}"));
            let clip = Clip::Output;
            let calibration = amount();
            let recipe = Recipe { transform, clip, calibration, error_correction: strength, ..recipe() };
            let report =
                run(&model, &source, &out, &recipe, OutputFormat::Auto, &mut Steps::default()).unwrap();
            (distance(&logits(&out), &float), report)
        };
        let [(plain, before), (unmoved, against_float), (corrected, after)] =
            [0.0, 1e-12, 1.0].map(quantized);
        let mean =
            |report: &Report| report.layers.iter().map(|l| l.loss).sum::<f64>() / report.layers.len() as f64;
        println!(
            "{name}: losses {} {} {}, distances {plain} {unmoved} {corrected}",
            mean(&before),
            mean(&against_float),
            mean(&after)
        );
        // The same weights; but errors of the layers before count.
        assert_eq!(plain, unmoved, "{name}");
        assert!(mean(&against_float) > 1.5 * mean(&before), "{name}");
        assert!(mean(&after) < 0.9 * mean(&against_float), "{name}");
        assert!(corrected < 0.9 * plain, "{name}: {corrected} after {plain}");
    }
}

#[test]
fn what_cannot_be_corrected_is_refused_before_any_work() {
    let dir = TempDir::new().unwrap();
    let source = Source::Files(vec![text(dir.path(), 1500)]);
    let model = Tiny::default().write(dir.path(), "model");
    let base = Recipe { error_correction: 0.5, ..recipe() };
    let none = Calibration { windows: 0, ..base.calibration };
    for (recipe, says) in [
        (Recipe { propagation: Propagation::Float, ..base.clone() }, "propagation quantized"),
        (Recipe { error_correction: 1.01, ..base.clone() }, "from 0 to 1, not 1.01"),
        (Recipe { error_correction: f64::NAN, ..base.clone() }, "from 0 to 1, not NaN"),
        (Recipe { compensate: false, calibration: none, ..base }, "calibration text for error_correction"),
    ] {
        let out = dir.path().join("out");
        let mut steps = Steps::default();
        let error = run(&model, &source, &out, &recipe, OutputFormat::Auto, &mut steps).unwrap_err();
        assert!(matches!(error, QuantError::Recipe(_)) && error.to_string().contains(says), "{error}");
        assert!(steps.count == 0 && !out.exists());
    }
}
