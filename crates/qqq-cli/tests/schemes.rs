//! Checkpoints in every scheme, and with several side by side: read, looked at and run.

mod common;

use std::{fs, path::Path};

use common::Place;
use half::bf16;
use qqq_backend::{
    Backend, CpuBackend, InputKind,
    cpu::{integer::Int8Activations, matrix::Matrix},
};
use qqq_formats::{Checkpoint, DType, LinearWeight, QuantizedWeight, writer::CheckpointWriter};
use qqq_model::{BlockWeights, LinearLayer, Site};
use qqq_testing::{TinyModel, scheme_named, write_rounded};

/// Schemes of a mixed checkpoint: all sites of the first block differ.
fn mixed(module: &str) -> &'static str {
    match module {
        m if m.contains("layers.1.mlp.down") => "float",
        m if m.contains("down_proj") => "W8A8",
        m if m.contains("o_proj") => "W4A16 g32",
        m if m.contains("layers.1.mlp") => "W8A16",
        _ => "W4A8 g64",
    }
}

fn rows(m: usize, k: usize) -> Matrix {
    Matrix { rows: m, cols: k, data: qqq_testing::values(m * k, 7) }
}

/// `x w^T` of int8 rows and int8 weights by definition, scaled as the kernels do.
fn by_definition(weight: &QuantizedWeight, x: &Matrix) -> Vec<f32> {
    let (n, k) = (weight.out_features, weight.in_features);
    let (a, w) = (Int8Activations::quantize(x), weight.int8_weights());
    let product = |i: usize| {
        let pairs = a.codes[i / n * k..][..k].iter().zip(&w[i % n * k..][..k]);
        let sum: i64 = pairs.map(|(a, w)| i64::from(*a) * i64::from(*w)).sum();
        sum as f32 * weight.channel_scales()[i % n] * a.scales[i / n]
    };
    (0..x.rows * n).map(product).collect()
}

fn run(b: &CpuBackend, layer: &LinearLayer, x: &Matrix, kind: InputKind) -> Vec<f32> {
    let linear = b.linear_weight(layer.weight.clone(), layer.bias.clone()).unwrap();
    assert_eq!(b.input_kind(&linear), kind);
    let mut input = b.input(x.rows, x.cols).unwrap();
    let mut x = x.clone();
    b.to_input(&mut x, kind, &mut input).unwrap();
    let mut out = b.tensor(0, 0).unwrap();
    b.linear(&input, &linear, &mut out).unwrap();
    out.data
}

#[test]
fn what_is_written_runs_as_the_neutral_form_says() {
    let tiny = TinyModel::new();
    let out = tiny.path("mixed");
    write_rounded(&tiny.model(), &out, &|module| scheme_named(mixed(module)));
    let checkpoint = Checkpoint::open(&out).unwrap();
    let b = CpuBackend::new();
    let (mut integer, mut alone, mut float) = (0, 0, 0);
    for index in 0..2 {
        let weights = BlockWeights::read(&checkpoint, index).unwrap();
        for site in Site::ALL {
            let layer = &weights.layers[site];
            let x = rows(5, site.in_features(&checkpoint.config));
            match &layer.weight {
                LinearWeight::Quantized(weight) => {
                    integer += 1;
                    assert_eq!(
                        run(&b, layer, &x, InputKind::Int8),
                        by_definition(weight, &x),
                        "{index} {site:?}"
                    );
                }
                LinearWeight::WeightOnly { weight, dtype } => {
                    alone += 1;
                    assert_eq!(*dtype, DType::BF16);
                    let (n, k) = (weight.out_features, weight.in_features);
                    let values = (0..n).flat_map(|row| weight.row_values(row));
                    let data: Vec<bf16> = values.map(bf16::from_f32).collect();
                    let same = LinearLayer {
                        weight: LinearWeight::Float {
                            out_features: n,
                            in_features: k,
                            data: qqq_formats::WeightData::BF16(data),
                        },
                        bias: None,
                    };
                    assert_eq!(
                        run(&b, layer, &x, InputKind::Float),
                        run(&b, &same, &x, InputKind::Float),
                        "{index} {site:?}"
                    );
                }
                LinearWeight::Float { .. } => float += 1,
                LinearWeight::Simulated(_) => panic!("no such layer was written"),
            }
        }
    }
    assert_eq!((integer, alone, float), (4, 3, 1));
}

#[test]
fn layers_that_run_as_one_have_one_scheme() {
    let (place, tiny) = (Place::new(), TinyModel::new());
    let out = place.path("parts");
    write_rounded(&tiny.model(), &out, &|module| {
        scheme_named(if module.contains("v_proj") { "W8A8" } else { "W4A8 g64" })
    });
    let text = tiny.text();
    let line = format!("eval perplexity parts --text {} --window 32 --limit 1", text.display());
    for says in ["self_attn.q_proj: W4A8 g64", "self_attn.v_proj: W8A8", "one scheme"] {
        place.run(&line).failure(2, says);
    }
}

/// A float model of what the codes stand for.
fn write_meant(source: &Path, out: &Path) {
    let checkpoint = Checkpoint::open(source).unwrap();
    let mut writer = CheckpointWriter::create(out).unwrap();
    for name in checkpoint.tensors.names() {
        let info = checkpoint.tensors.info(&name).unwrap();
        let (module, tensor) = name.rsplit_once('.').unwrap();
        if tensor == "weight_scale" {
            let n = info.shape[0];
            // Inner layers of the tiny model: hidden 64, inner 128.
            let k = if module.contains("down_proj") { 128 } else { 64 };
            let LinearWeight::WeightOnly { weight, .. } = checkpoint.linear(module, n, k).unwrap() else {
                panic!("{module}")
            };
            let values = (0..n).flat_map(|row| weight.row_values(row)).map(bf16::from_f32).collect();
            let data = qqq_formats::WeightData::BF16(values);
            writer.add_float(&format!("{module}.weight"), &[n, k], &data).unwrap();
        } else if info.dtype == DType::BF16 {
            let data = checkpoint.tensors.float(&name, &info.shape).unwrap();
            writer.add_float(&name, &info.shape, &data).unwrap();
        }
    }
    let mut config = checkpoint.config.raw.clone();
    config.remove("quantization_config");
    let text = serde_json::Value::Object(config).to_string();
    fs::write(writer.staging().join("config.json"), text).unwrap();
    fs::copy(source.join("tokenizer.json"), writer.staging().join("tokenizer.json")).unwrap();
    writer.finish().unwrap();
}

#[test]
fn every_scheme_from_end_to_end() {
    let (place, tiny) = (Place::new(), TinyModel::new());
    let text = tiny.text();
    let json = |line: String| place.run(&line).success().json();
    let perplexity = |model: &str| {
        let report =
            json(format!("eval perplexity {model} --text {} --window 128 --limit 6 --json", text.display()));
        report["perplexity"].as_f64().unwrap()
    };
    let float = perplexity(&tiny.model().display().to_string());
    // Bits of a layer's weights: the code's, and those of its scale of 16 bits for each group.
    for (name, bits) in [
        ("W4A8", 4.0),
        ("W4A8 g64", 4.0 + 16.0 / 64.0),
        ("W8A8", 8.0),
        ("W4A16 g32", 4.0 + 16.0 / 32.0),
        ("W8A16", 8.0),
    ] {
        let dir = name.replace(' ', "-");
        write_rounded(&tiny.model(), &place.path(&dir), &|_| scheme_named(name));
        let seen = json(format!("inspect {dir} --json"));
        assert_eq!(seen["quantization"]["schemes"], serde_json::json!([name]), "{seen}");
        let modules = seen["modules"].as_array().unwrap();
        let down = modules.iter().find(|m| m["name"] == "model.layers.0.mlp.down_proj").unwrap();
        assert_eq!(down["scheme"], name);
        assert_eq!(down["shape"], serde_json::json!([64, 128]));
        let storage = down["storage"].as_str().unwrap();
        let expected = format!("int{}", bits as u32);
        assert!(storage.starts_with(&expected), "{storage}");
        assert!(
            storage.ends_with(if name.contains("A16") { "16-bit inputs" } else { "int8 inputs" }),
            "{storage}"
        );
        let found = seen["totals"]["block_linear_bits_per_weight"].as_f64().unwrap();
        // A scale a channel of 64 or 128 inputs, and the shape that packed codes have beside them.
        assert!(found >= bits && found < bits + 0.3, "{name}: {found}");
        let text = place.run(&format!("inspect {dir}")).success().stdout;
        assert!(text.contains(name.split(' ').next().unwrap()), "{text}");

        let (found, limit) = (perplexity(&dir), if bits < 8.0 { 0.5 } else { 0.02 });
        assert!((found / float).ln().abs() < limit, "{name}: {found}, float {float}");
        if name.contains("A16") {
            write_meant(&place.path(&dir), &place.path(&format!("{dir}-meant")));
            assert_eq!(found, perplexity(&format!("{dir}-meant")), "{name}");
        }
    }

    write_rounded(&tiny.model(), &place.path("mixed"), &|module| scheme_named(mixed(module)));
    let seen = json("inspect mixed --json".into());
    let schemes = &seen["quantization"]["schemes"];
    let mut names: Vec<&str> = schemes.as_array().unwrap().iter().map(|s| s.as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["W4A16 g32", "W4A8 g64", "W8A16", "W8A8"]);
    let told = place.run("inspect mixed").success().stdout;
    assert!(told.contains("mixed, compressed-tensors: ") && told.contains("W8A16"), "{told}");
    let found = perplexity("mixed");
    assert!((found / float).ln().abs() < 0.5, "{found}, float {float}");
    let answer = json("generate mixed --prompt w1 --raw -n 8 --temperature 0 --json".into());
    assert_eq!(answer["text"].as_str().unwrap().split_whitespace().count(), 8, "{answer}");
}
