//! Widths without a Hadamard matrix, and numbers that are not finite or that a 16-bit type cannot hold.

use std::path::{Path, PathBuf};

use qqq_formats::{Checkpoint, DType, writer::CheckpointWriter};
use qqq_model::names;
use qqq_quant::{
    Clip, GroupScales, OutputFormat, QuantError, Recipe, Transform, calibration::Source, rotation::Family,
};
use tempfile::TempDir;

use crate::tiny::{Steps, Tiny, distance, logits, recipe, run, text};

/// Writes `model` again with tensors changed by `change(name, values)`; they must be float32.
fn rewrite(model: &Path, out: PathBuf, change: &dyn Fn(&str, &mut [f32])) -> PathBuf {
    let checkpoint = Checkpoint::open(model).unwrap();
    let mut writer = CheckpointWriter::create(&out).unwrap();
    for name in checkpoint.tensors.names() {
        let shape = checkpoint.tensors.info(&name).unwrap().shape.clone();
        let mut values = checkpoint.tensors.f32(&name, &shape).unwrap();
        change(&name, &mut values);
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        writer.add(&name, DType::F32, &shape, &bytes).unwrap();
    }
    for file in ["config.json", "tokenizer.json"] {
        std::fs::copy(model.join(file), writer.staging().join(file)).unwrap();
    }
    writer.finish().unwrap();
    out
}

/// Multiplies what leaves the value projection by `factor`, and divides what enters o.
fn scale_values(factor: f32) -> impl Fn(&str, &mut [f32]) {
    move |name, values| {
        if name.ends_with("v_proj.weight") {
            values.iter_mut().for_each(|v| *v *= factor);
        } else if name.ends_with("o_proj.weight") {
            values.iter_mut().for_each(|v| *v /= factor);
        }
    }
}

#[test]
fn every_width_can_be_rotated_and_the_report_says_by_what() {
    let dir = TempDir::new().unwrap();
    let source = Source::Files(vec![text(dir.path(), 2000)]);
    for (hidden, head_dim, heads, group_size, families) in [
        (128, 50, 16, Some(32), (Family::Hadamard, Family::Hartley)),
        (944, 16, 4, None, (Family::Hartley, Family::Hadamard)),
        (128, 94, 8, None, (Family::Hadamard, Family::Hartley)),
    ] {
        let tiny = Tiny { hidden, head_dim, heads, kv_heads: heads.min(8), layers: 1, ..Tiny::default() };
        let model = tiny.write(dir.path(), &format!("model{hidden}x{head_dim}"));
        let rotate = Recipe {
            transform: Transform::Rotate,
            clip: Clip::Output,
            group_scales: GroupScales::Integer,
            group_size,
            ..recipe()
        };
        let out = dir.path().join(format!("out{hidden}x{head_dim}"));
        let mut steps = Steps::default();
        let report = run(&model, &source, &out, &rotate, OutputFormat::Auto, &mut steps).unwrap();
        let rotation = report.rotation.unwrap();
        assert_eq!((rotation.stream, rotation.head), families);
        assert_eq!((rotation.hidden_size, rotation.head_dim), (hidden, head_dim));
        assert_eq!(steps.warnings.len(), 1, "{:?}", steps.warnings);
        assert!(steps.warnings[0].contains("Hartley"), "{:?}", steps.warnings);
        let loss = distance(&logits(&out), &logits(&model));
        assert!(loss < 0.2, "{hidden} x {head_dim}: {loss}");
        let card = std::fs::read_to_string(out.join("README.md")).unwrap();
        assert!(card.contains("Hartley"), "{card}");
    }
}

#[test]
fn values_beyond_float16_calibrate_a_model_as_any_others() {
    let dir = TempDir::new().unwrap();
    let model = Tiny::default().write(dir.path(), "model");
    let mut losses = Vec::new();
    // Powers of two: the same model, bit for bit, but for what is stored between v and o.
    for (i, factor) in [1.0, 2f32.powi(19), 2f32.powi(-19)].into_iter().enumerate() {
        let model = rewrite(&model, dir.path().join(format!("scaled{i}")), &scale_values(factor));
        let out = dir.path().join(format!("out{i}"));
        let steps = &mut Steps::default();
        run(&model, &Source::SelfSamples, &out, &recipe(), OutputFormat::Auto, steps).unwrap();
        losses.push(distance(&logits(&out), &logits(&model)));
    }
    assert!(losses.iter().all(|loss| *loss < 1.5 * losses[0]), "{losses:?}");
}

#[test]
fn a_model_that_overflows_is_an_error_that_names_the_layer() {
    let dir = TempDir::new().unwrap();
    let model = Tiny::default().write(dir.path(), "model");
    let files = Source::Files(vec![text(dir.path(), 2000)]);
    let smooth = Recipe { transform: Transform::Smooth, ..recipe() };
    for (tensor, layer) in [
        ("model.layers.1.self_attn.v_proj.weight", "model.layers.1.self_attn"),
        ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp"),
        ("model.layers.1.mlp.down_proj.weight", "model.layers.1.mlp"),
    ] {
        let bad = rewrite(&model, dir.path().join(tensor), &|name, values| {
            if name == tensor {
                values.fill(3e38);
            }
        });
        for (source, recipe) in
            [(&files, recipe()), (&files, smooth.clone()), (&Source::SelfSamples, recipe())]
        {
            let out = dir.path().join("out");
            let error =
                run(&bad, source, &out, &recipe, OutputFormat::Auto, &mut Steps::default()).unwrap_err();
            assert!(error.to_string().contains(layer), "{tensor}: {error}");
            let of_the_text = matches!(error, QuantError::Calibration(_));
            assert!(
                of_the_text || matches!(error, QuantError::NotFinite { .. } | QuantError::Numerics { .. }),
                "{error:?}"
            );
            assert_eq!(of_the_text, *source == Source::SelfSamples, "{error}");
            assert!(!out.exists());
        }
    }
}

#[test]
fn what_float16_cannot_stand_for_is_kept_in_bfloat16() {
    let dir = TempDir::new().unwrap();
    let source = Source::Files(vec![text(dir.path(), 2000)]);
    let plain = Tiny::default().write(dir.path(), "model");
    let with = |end: &'static str, factor: f32| {
        move |name: &str, values: &mut [f32]| {
            if name.ends_with(end) {
                values.iter_mut().for_each(|v| *v *= factor);
            }
        }
    };
    let all_small = |name: &str, values: &mut [f32]| {
        if name.ends_with("_proj.weight") {
            values.iter_mut().for_each(|v| *v *= 1e-6);
        }
    };
    type Change<'a> = &'a dyn Fn(&str, &mut [f32]);
    let cases: [(&str, Change<'_>, DType); 6] = [
        ("plain", &|_, _| {}, DType::F16),
        // Its largest weights are beyond float16, their scales are not.
        ("weights", &with("v_proj.weight", 2f32.powi(20)), DType::F16),
        ("scales", &with("v_proj.weight", 2f32.powi(23)), DType::BF16),
        ("small", &with("o_proj.weight", 2f32.powi(-22)), DType::BF16),
        ("smaller", &all_small, DType::BF16),
        ("embedding", &with("embed_tokens.weight", 1e-7), DType::BF16),
    ];
    for (name, change, dtype) in cases {
        let model = rewrite(&plain, dir.path().join(name), change);
        for group_size in [None, Some(32)] {
            let recipe = Recipe { group_size, ..recipe() };
            let out = dir.path().join(format!("{name}{group_size:?}"));
            let format = OutputFormat::CompressedTensors;
            let report = run(&model, &source, &out, &recipe, format, &mut Steps::default()).unwrap();
            let checkpoint = Checkpoint::open(&out).unwrap();
            assert_eq!(checkpoint.tensors.info(names::EMBEDDING).unwrap().dtype, dtype, "{name}");
            let worst = report.layers.iter().fold(0.0, |max: f64, l| max.max(l.loss));
            assert!(worst < 0.2, "{name}, {group_size:?}: {worst}");
        }
    }
}
