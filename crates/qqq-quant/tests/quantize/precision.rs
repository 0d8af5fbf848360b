//! Layers of 8 bits, of weights alone, in groups of their own, and layers that stay in 16 bits.

use std::path::Path;

use half::f16;
use qqq_formats::{
    Activations, Checkpoint, CheckpointFormat, CodeBits, CodeLayout, LayerScheme, LinearWeight, Scales,
};
use qqq_model::{Site, names};
use qqq_quant::{
    Calibration, Clip, OutputFormat, Precision, Propagation, QuantError, Recipe, Report, Rule, Transform,
    calibration::Source, solve::SolveOptions,
};
use tempfile::TempDir;

use crate::tiny::{Steps, Tiny, distance, logits, recipe, run, text};

fn rules(words: &[&str]) -> Vec<Rule> {
    words.iter().map(|rule| rule.parse().unwrap()).collect()
}

pub fn stored(bits: CodeBits, activations: Activations, group_size: Option<usize>) -> LayerScheme {
    LayerScheme::new(CheckpointFormat::CompressedTensors, bits, activations, group_size).unwrap()
}

/// How layers are stored, by their whole names.
fn schemes(checkpoint: &Checkpoint, module: &str) -> Vec<Option<LayerScheme>> {
    let config = checkpoint.config.quantization.as_ref().unwrap();
    (0..checkpoint.config.num_layers).map(|i| config.scheme(&names::linear(i, module)).unwrap()).collect()
}

/// Runs over one model.
pub struct Runs {
    pub dir: TempDir,
    pub model: std::path::PathBuf,
    pub source: Source,
    pub float: Vec<f32>,
}

impl Runs {
    pub fn new(tiny: Tiny) -> Self {
        let dir = TempDir::new().unwrap();
        let source = Source::Files(vec![text(dir.path(), 4000)]);
        let model = tiny.write(dir.path(), "model");
        let float = logits(&model);
        Self { dir, model, source, float }
    }

    /// The report, the checkpoint, and how far its logits are off.
    pub fn run(&self, name: &str, recipe: &Recipe) -> (Report, Checkpoint, f64) {
        let out = self.dir.path().join(name);
        let report =
            run(&self.model, &self.source, &out, recipe, OutputFormat::Auto, &mut Steps::default()).unwrap();
        assert_eq!(reread(&out).recipe, *recipe, "{name}");
        (report, Checkpoint::open(&out).unwrap(), distance(&logits(&out), &self.float))
    }
}

fn reread(out: &Path) -> Report {
    serde_json::from_str(&std::fs::read_to_string(out.join(qqq_quant::REPORT_FILE)).unwrap()).unwrap()
}

pub fn amount() -> Calibration {
    Calibration { windows: 20, window: 128, smooth_tokens: 64 }
}

#[test]
fn every_precision_runs_and_comes_nearer_to_float() {
    let runs = Runs::new(Tiny { layers: 2, ..Tiny::default() });
    let base = Recipe { calibration: amount(), clip: Clip::Output, ..recipe() };
    let mixed = Recipe { rules: rules(&["down_proj=int8"]), ..base.clone() };
    let eight = Recipe { bits: CodeBits::Eight, ..base.clone() };
    let half = Recipe { activations: Activations::Half, ..eight.clone() };
    let (report, checkpoint, four_loss) = runs.run("four", &base);
    assert_eq!(report.format, "qqq");
    assert!(report.layers.iter().all(|l| l.precision == Some("int4:channel".parse().unwrap())));
    assert_eq!(schemes(&checkpoint, names::DOWN)[0].unwrap().layout, CodeLayout::Tiles);

    let (report, checkpoint, mixed_loss) = runs.run("mixed", &mixed);
    assert_eq!(report.format, "compressed-tensors");
    let (w4a8, w8a8) =
        (stored(CodeBits::Four, Activations::Int8, None), stored(CodeBits::Eight, Activations::Int8, None));
    assert_eq!(schemes(&checkpoint, names::DOWN), [Some(w8a8); 2]);
    assert_eq!(schemes(&checkpoint, names::UP), [Some(w4a8); 2]);
    for layer in &report.layers {
        let eight = layer.name.ends_with("down_proj");
        assert_eq!(layer.precision == Some(Precision::Int8), eight, "{layer:?}");
        // 4 bits more are a sixteenth of the step.
        assert!(layer.loss < if eight { 4e-4 } else { 0.05 }, "{layer:?}");
    }
    let card = std::fs::read_to_string(checkpoint.path.join("README.md")).unwrap();
    assert!(card.contains("int8: mlp.down_proj") && card.contains("- mixed-precision"), "{card}");

    let (report, checkpoint, eight_loss) = runs.run("eight", &eight);
    assert_eq!(checkpoint.config.quantization.as_ref().unwrap().schemes(), [w8a8]);
    assert_eq!(report.kinds(), ["int8"]);
    let (_, checkpoint, half_loss) = runs.run("half", &half);
    let w8a16 = stored(CodeBits::Eight, Activations::Half, None);
    assert_eq!(checkpoint.config.quantization.unwrap().schemes(), [w8a16]);
    println!("W4A8 {four_loss}, down in 8 bits {mixed_loss}, W8A8 {eight_loss}, W8A16 {half_loss}");
    assert!(mixed_loss < 0.9 * four_loss, "{mixed_loss} {four_loss}");
    assert!(eight_loss < 0.1 * mixed_loss, "{eight_loss} {mixed_loss}");
    assert!(half_loss < eight_loss, "{half_loss} {eight_loss}");
}

/// Weights that are multiplied in 16 bits have one level of scales, and are solved as such.
#[test]
fn weights_alone_in_groups() {
    let runs = Runs::new(Tiny { layers: 2, ..Tiny::default() });
    let base = Recipe { calibration: amount(), clip: Clip::Output, group_size: Some(32), ..recipe() };
    let half = Recipe { activations: Activations::Half, ..base.clone() };
    let (_, _, int8_loss) = runs.run("w4a8", &base);
    let (report, checkpoint, half_loss) = runs.run("w4a16", &half);
    let w4a16 = stored(CodeBits::Four, Activations::Half, Some(32));
    assert_eq!(checkpoint.config.quantization.as_ref().unwrap().schemes(), [w4a16]);
    // Logits of another text are a rough measure of models so small.
    assert!(half_loss < 1.2 * int8_loss, "{half_loss} {int8_loss}");
    assert!(report.layers.iter().all(|l| l.loss < l.loss_nearest), "{:?}", report.layers);
    // Every weight is its code times a scale of the group that bfloat16 or float16 holds.
    let config = &checkpoint.config;
    let read =
        checkpoint.linear(&names::linear(0, names::DOWN), config.hidden_size, config.intermediate_size);
    let LinearWeight::WeightOnly { weight, .. } = read.unwrap() else { panic!("another kind") };
    assert!(matches!(weight.scales, Scales::PerGroup { group_size: 32, .. }));
}

/// Without compensation, clipping and transformation a layer is what rounding by hand makes of it, whatever is beside it.
#[test]
fn a_layer_is_what_rounding_by_hand_gives() {
    let runs = Runs::new(Tiny { layers: 2, ..Tiny::default() });
    for (calibration, propagation) in [
        (Calibration { windows: 0, window: 0, smooth_tokens: 0 }, Propagation::Quantized),
        (amount(), Propagation::Quantized),
        (amount(), Propagation::Float),
    ] {
        let plain = Recipe {
            compensate: false,
            calibration,
            propagation,
            rules: rules(&["down_proj=int8", "layers.1.self_attn=float", "re:.*layers.0.*o_proj=int4:g32"]),
            ..recipe()
        };
        let name = format!("{}{propagation:?}", calibration.windows);
        let (report, made, loss) = runs.run(&name, &plain);
        assert!(loss < 0.1, "{name}: {loss}");
        let float = ["model.layers.1.self_attn.qkv_proj", "model.layers.1.self_attn.o_proj"];
        assert_eq!(report.float_layers, float);
        assert!(report.layers.iter().all(|l| !float.contains(&l.name.as_str())));
        let source = Checkpoint::open(&runs.model).unwrap();
        let c = &source.config;
        let read = |checkpoint: &Checkpoint, block, module: &str, site: Site| {
            let n = site.modules(c).iter().find(|(name, _)| *name == module).unwrap().1;
            checkpoint.linear(&names::linear(block, module), n, site.in_features(c)).unwrap()
        };
        let floats = |weight| match weight {
            LinearWeight::Float { data, .. } => data.into_f32(),
            other => panic!("{other:?}"),
        };
        for block in 0..2 {
            let LinearWeight::Quantized(down) = read(&made, block, names::DOWN, Site::Down) else { panic!() };
            let w = floats(read(&source, block, names::DOWN, Site::Down));
            let scales = down.channel_scales();
            for (row, (codes, w)) in
                down.codes.chunks(down.in_features).zip(w.chunks(down.in_features)).enumerate()
            {
                let largest = w.iter().fold(0.0f32, |m, w| m.max(w.abs()));
                // Stored in 16 bits.
                assert!((scales[row] * 127.0 / largest - 1.0).abs() < 1.0 / 256.0);
                for (code, w) in codes.iter().zip(w) {
                    let want = (w * (1.0 / scales[row])).clamp(-127.0, 127.0).round_ties_even();
                    assert_eq!(f32::from(*code), want);
                }
            }
        }
        let kept = floats(read(&made, 1, names::O, Site::O));
        let w = floats(read(&source, 1, names::O, Site::O));
        assert!(kept.iter().zip(&w).all(|(a, b)| *a == f16::from_f32(*b).to_f32()), "{name}");
        assert_eq!(schemes(&made, names::Q)[1], None);
        let grouped = stored(CodeBits::Four, Activations::Int8, Some(32));
        assert_eq!(schemes(&made, names::O), [Some(grouped), None]);
    }
}

#[test]
fn corrected_and_smoothed_models_have_layers_of_several_kinds() {
    let runs = Runs::new(Tiny { layers: 3, tied: false, outliers: true, ..Tiny::default() });
    let base = Recipe { calibration: amount(), clip: Clip::Output, error_correction: 0.5, ..recipe() };
    for transform in [Transform::Rotate, Transform::Smooth] {
        for rule in ["layers.1.mlp=float", "q_proj=float", "layers.2=int8"] {
            let rules = match rule {
                "q_proj=float" => rules(&["re:.*[qkv]_proj=float", "layers.0.mlp.down_proj=int8"]),
                rule => rules(&[rule]),
            };
            let name = format!("{transform:?}{rule}");
            let (_, _, without) = runs.run(&format!("{name}none"), &Recipe { transform, ..base.clone() });
            for activations in [Activations::Int8, Activations::Half] {
                let recipe = Recipe { transform, rules: rules.clone(), activations, ..base.clone() };
                let (report, _, loss) = runs.run(&format!("{name}{activations:?}"), &recipe);
                assert!(loss < without, "{name} {activations:?}: {loss} {without}");
                let smoothed = report.smoothing.iter().any(|site| site.site.contains("layers.1.mlp"));
                assert_eq!(smoothed, transform == Transform::Smooth && !rule.contains(".mlp"), "{name}");
            }
        }
    }
}

#[test]
fn what_cannot_be_is_refused_before_any_work() {
    let runs = Runs::new(Tiny { layers: 2, ..Tiny::default() });
    let with = |words: &[&str]| Recipe { rules: rules(words), ..recipe() };
    let eight = Recipe { bits: CodeBits::Eight, ..recipe() };
    let (auto, qqq) = (OutputFormat::Auto, OutputFormat::Qqq);
    for (recipe, format, says) in [
        (with(&["k_proj=int8"]), auto, "name all of them"),
        (with(&["head=int8"]), auto, "names no linear layer"),
        (with(&["down_proj=int8"]), qqq, "layers of several kinds"),
        (with(&["re:.*=int8"]), qqq, "8-bit weights"),
        (with(&["layers=float"]), auto, "nothing to quantize"),
        (Recipe { activations: Activations::Half, ..recipe() }, qqq, "16-bit activations"),
        (Recipe { group_size: Some(64), ..eight.clone() }, auto, "no groups of 64"),
        (eight, qqq, "8-bit weights"),
    ] {
        let out = runs.dir.path().join("out");
        let mut steps = Steps::default();
        let error = run(&runs.model, &runs.source, &out, &recipe, format, &mut steps).unwrap_err();
        assert!(matches!(error, QuantError::Recipe(_)) && error.to_string().contains(says), "{error}");
        assert!(steps.count == 0 && !out.exists());
    }
    let runs = Runs::new(Tiny { hidden: 160, ..Tiny::default() });
    let out = runs.dir.path().join("out");
    let rules = with(&["re:.*(gate|up)_proj=int4:g64"]);
    let error = run(&runs.model, &runs.source, &out, &rules, auto, &mut Steps::default()).unwrap_err();
    assert!(
        error.to_string().contains("groups of 64 do not divide the 160 inputs of mlp.gate_proj, mlp.up_proj"),
        "{error}"
    );
}

#[test]
fn reports_of_before_there_was_a_choice_say_int4_and_int8_activations() {
    let mut json = serde_json::to_value(Recipe::DEFAULT).unwrap();
    assert_eq!(
        (&json["bits"], &json["activations"], &json["rules"]),
        (&4.into(), &"int8".into(), &serde_json::json!([]))
    );
    for key in ["bits", "activations", "rules"] {
        json.as_object_mut().unwrap().remove(key).unwrap();
    }
    assert_eq!(serde_json::from_value::<Recipe>(json).unwrap(), Recipe::DEFAULT);
    assert_eq!(SolveOptions::default().bits, CodeBits::Four);
}
