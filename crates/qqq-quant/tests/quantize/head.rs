//! An output head of 8 bits.

use qqq_formats::{Activations, Checkpoint, CodeBits, DType, LinearWeight, QuantizedWeight};
use qqq_model::names;
use qqq_quant::{
    Calibration, Clip, Head, OutputFormat, Precision, Propagation, QuantError, Recipe, RecipeName, Transform,
};

use crate::{
    precision::{Runs, amount, stored},
    tiny::{HIDDEN, Steps, Tiny, VOCAB, distance, logits, recipe, run},
};

fn with_head(recipe: &Recipe) -> Recipe {
    Recipe { head: Head::Int8, ..recipe.clone() }
}

fn head_of(checkpoint: &Checkpoint) -> QuantizedWeight {
    match checkpoint.linear(names::LM_HEAD_MODULE, VOCAB, HIDDEN).unwrap() {
        LinearWeight::Quantized(weight) => weight,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_head_alone_differs_and_costs_little() {
    for tied in [true, false] {
        let runs = Runs::new(Tiny { tied, dtype: DType::BF16, ..Tiny::default() });
        for (transform, propagation) in [
            (Transform::None, Propagation::Quantized),
            (Transform::Rotate, Propagation::Quantized),
            (Transform::Rotate, Propagation::Float),
        ] {
            let corrects = propagation == Propagation::Quantized && transform == Transform::Rotate;
            let base = Recipe {
                calibration: amount(),
                clip: Clip::Output,
                // In the same form as with a head of 8 bits, which stores scales in the same type.
                group_size: Some(64),
                transform,
                propagation,
                error_correction: if corrects { 0.5 } else { 0.0 },
                ..recipe()
            };
            let name = format!("{tied}{transform:?}{propagation:?}");
            let (plain, float, float_loss) = runs.run(&name, &base);
            let (report, made, loss) = runs.run(&format!("{name}-head"), &with_head(&base));
            assert_eq!(report.format, "compressed-tensors");
            assert!(!made.config.tie_word_embeddings, "{name}");
            let scheme = made.config.quantization.as_ref().unwrap().scheme(names::LM_HEAD_MODULE).unwrap();
            assert_eq!(scheme, Some(stored(CodeBits::Eight, Activations::Int8, None)), "{name}");
            let info = |checkpoint: &Checkpoint, name: &str| checkpoint.tensors.info(name).map(|i| i.dtype);
            assert_eq!(info(&made, names::LM_HEAD), Some(DType::I8));
            // The embedding and the last norm are those of a float head.
            for tensor in [names::EMBEDDING, names::FINAL_NORM] {
                let bytes = |c: &Checkpoint| c.tensors.bytes(tensor).unwrap().into_owned();
                assert!(bytes(&made) == bytes(&float), "{name}: {tensor}");
            }

            // It is reported behind the layers of the blocks, which are what they are without.
            let (head, others) = report.layers.split_last().unwrap();
            assert_eq!((head.name.as_str(), head.precision), ("lm_head", Some(Precision::Int8)));
            assert_eq!((head.out_features, head.in_features), (VOCAB, HIDDEN));
            assert!(head.loss > 0.0 && head.loss < head.loss_nearest && head.loss < 1e-4, "{name}: {head:?}");
            let losses = |layers: &[qqq_quant::report::LayerReport]| -> Vec<f64> {
                layers.iter().map(|layer| layer.loss).collect()
            };
            assert_eq!(losses(others), losses(&plain.layers), "{name}");
            assert_eq!(report.kinds(), plain.kinds());
            assert!(plain.layers.iter().all(|layer| layer.name != "lm_head"));
            let card = std::fs::read_to_string(made.path.join("README.md")).unwrap();
            assert!(card.contains("| Output head | int8") && card.contains("| lm_head |"), "{card}");
            // A byte a weight and a scale of 16 bits a token; the embedding as before.
            let (table, scales) = ((VOCAB * HIDDEN) as u64, 2 * VOCAB as u64);
            assert_eq!(report.end_bytes.1, 3 * table + scales, "{name}");

            // Between the logits of both heads there are int8 inputs and weights, and nothing else.
            let (a, b) = (logits(&made.path), logits(&float.path));
            let apart = distance(&a, &b);
            println!("{name}: {float_loss}, int8 head {loss}, {apart} apart");
            assert!(apart > 1e-7 && apart < 5e-4, "{name}: {apart}");
            let quality = report.quality.unwrap();
            assert!(quality.divergence.unwrap().kl_divergence.mean > 0.0, "{name}");
        }
    }
}

/// To nearest, by the largest weight: by hand, of the stored head or of the embedding that it is tied to.
#[test]
fn a_head_is_what_rounding_by_hand_gives() {
    for tied in [true, false] {
        let runs = Runs::new(Tiny { tied, ..Tiny::default() });
        for windows in [0, 4] {
            let calibration = Calibration { windows, window: 32, smooth_tokens: 8 };
            let plain = with_head(&Recipe { compensate: false, calibration, ..recipe() });
            let (report, made, _) = runs.run(&format!("{tied}{windows}"), &plain);
            let source = Checkpoint::open(&runs.model).unwrap();
            let name = if tied { names::EMBEDDING } else { names::LM_HEAD };
            let w = source.tensors.f32(name, &[VOCAB, HIDDEN]).unwrap();
            let head = head_of(&made);
            let mut errors = 0.0;
            for ((codes, scale), w) in
                head.codes.chunks(HIDDEN).zip(head.channel_scales()).zip(w.chunks(HIDDEN))
            {
                let largest = w.iter().fold(0.0f32, |m, w| m.max(w.abs()));
                assert!((scale * 127.0 / largest - 1.0).abs() < 1.0 / 256.0);
                for (code, w) in codes.iter().zip(w) {
                    let want = (w * (1.0 / scale)).clamp(-127.0, 127.0).round_ties_even();
                    assert_eq!(f32::from(*code), want);
                    errors += f64::from(w - f32::from(*code) * scale).powi(2);
                }
            }
            let layer = report.layers.last().unwrap();
            let energy: f64 = w.iter().map(|w| f64::from(*w).powi(2)).sum();
            if windows == 0 {
                assert!((layer.loss - errors / energy).abs() < 1e-3 * layer.loss, "{layer:?}");
            }
            assert!(layer.loss > 0.0 && layer.loss == layer.loss_nearest, "{layer:?}");
        }
    }
}

#[test]
fn what_cannot_be_is_refused_before_any_work() {
    let runs = Runs::new(Tiny::default());
    let float_layers = Recipe { name: RecipeName::Fp16, ..recipe() };
    let ruled = Recipe { rules: vec!["lm_head=int8".parse().unwrap()], ..recipe() };
    for (recipe, format, says) in [
        (with_head(&recipe()), OutputFormat::Qqq, "no int8 output head"),
        (with_head(&float_layers), OutputFormat::Auto, "goes with quantized layers"),
        (ruled, OutputFormat::Auto, "--head int8"),
    ] {
        let out = runs.dir.path().join("out");
        let mut steps = Steps::default();
        let error = run(&runs.model, &runs.source, &out, &recipe, format, &mut steps).unwrap_err();
        assert!(matches!(error, QuantError::Recipe(_)) && error.to_string().contains(says), "{error}");
        assert!(steps.count == 0 && !out.exists());
    }
}

/// A head whose values are not finite is found at the beginning, though it is quantized at the end.
#[test]
fn a_damaged_head_costs_no_work() {
    let runs = Runs::new(Tiny { tied: false, ..Tiny::default() });
    let path = runs.model.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let place = 8 + header + json[names::LM_HEAD]["data_offsets"][0].as_u64().unwrap() as usize + 4 * 77;
    bytes[place..place + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let mut steps = Steps::default();
    let out = runs.dir.path().join("out");
    let recipe = Recipe { calibration: amount(), ..with_head(&recipe()) };
    let error = run(&runs.model, &runs.source, &out, &recipe, OutputFormat::Auto, &mut steps).unwrap_err();
    assert!(error.to_string().contains("lm_head.weight"), "{error}");
    assert!(steps.count < 10 && !out.exists(), "{}", steps.count);
}
