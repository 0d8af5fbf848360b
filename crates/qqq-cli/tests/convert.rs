//! `qqq convert`: W4A8 checkpoints to other forms and back, and what is refused.

mod common;

use std::{fs, path::Path};

use common::Place;
use qqq_formats::{Checkpoint, DType, TensorSource, safetensors::Safetensors, writer::CheckpointWriter};
use serde_json::{Value, json};

/// The linear layers of the tiny model's blocks.
const LAYERS: [(&str, usize, usize); 7] = [
    ("self_attn.q_proj", 64, 64),
    ("self_attn.k_proj", 32, 64),
    ("self_attn.v_proj", 32, 64),
    ("self_attn.o_proj", 64, 64),
    ("mlp.gate_proj", 128, 64),
    ("mlp.up_proj", 128, 64),
    ("mlp.down_proj", 64, 128),
];

/// The same weights, codes and scales, as the integer kernels get them, and every other tensor the same.
#[track_caller]
fn assert_same(a: &Path, b: &Path) {
    let (a, b) = (Checkpoint::open(a).unwrap(), Checkpoint::open(b).unwrap());
    for block in 0..2 {
        for (module, n, k) in LAYERS {
            let name = format!("model.layers.{block}.{module}");
            assert!(a.linear(&name, n, k).unwrap() == b.linear(&name, n, k).unwrap(), "{name}");
        }
    }
    let others = |c: &Checkpoint| -> Vec<String> {
        let names = c.tensors.names().into_iter();
        names.filter(|name| name.ends_with("norm.weight") || !name.contains("layers")).collect()
    };
    assert_eq!(others(&a), others(&b));
    for name in others(&a) {
        assert_eq!(a.tensors.bytes(&name).unwrap(), b.tensors.bytes(&name).unwrap(), "{name}");
    }
}

#[test]
fn there_and_back_nothing_changes() {
    let place = Place::new();
    for (group_size, scales) in [("32", "half"), ("64", "integer"), ("channel", "")] {
        let scales = if scales.is_empty() { String::new() } else { format!("--group-scales {scales}") };
        place.quantize("w4a8", &format!("--format compressed-tensors --group-size {group_size} {scales}"));
        for form in ["gptq", "compressed-tensors"] {
            let there = place.run(&format!("convert w4a8 -o there --to {form} --json")).success().json();
            assert_eq!((&there["layers"], &there["scale_rounding"]), (&json!(14), &json!(0.0)), "{there}");
            let back = place.run("convert there -o back --json").success().json();
            assert_eq!((&back["recentred"], &back["negative"]), (&json!(0), &json!(0)), "{back}");
            // Per channel, and where scales are small multiples of one, int8 holds all weights.
            let exact = back["int8_rounding"]["largest"] == json!(0.0);
            assert_eq!(exact, group_size != "32", "{back}");
            assert_same(&place.path("w4a8"), &place.path("back"));
            let report: Value =
                serde_json::from_slice(&fs::read(place.path("back/conversion_report.json")).unwrap())
                    .unwrap();
            assert_eq!(report["from"], back["from"]);
            place.run("generate back --prompt Hello -n 4").success();
            let run = place.run("generate there --prompt Hello -n 4");
            if form == "gptq" {
                // A 4-bit checkpoint that is run by nothing here names the command.
                run.failure(2, "qqq convert");
            } else {
                run.success();
            }
            for name in ["there", "back"] {
                fs::remove_dir_all(place.path(name)).unwrap();
            }
        }
        fs::remove_dir_all(place.path("w4a8")).unwrap();
    }
}

#[test]
fn a_check_compares_with_float_activations() {
    let place = Place::new();
    place.quantize("w4a8", "--format compressed-tensors --group-size 32 --group-scales half");
    place.run("convert w4a8 -o gptq --to gptq").success();
    let line = "convert gptq -o back --check text.txt --window 128 --limit 4 --json";
    let check = &place.run(line).success().json()["check"];
    let divergence = check["kl_divergence"]["mean"].as_f64().unwrap();
    // Int8 activations move this model a little, and other weights would move it far.
    assert!(divergence > 1e-7 && divergence < 0.02, "{check}");
    assert_eq!((&check["windows"], &check["partial"]), (&json!(4), &json!(false)));
    place.run("convert gptq -o x --check text.txt --window 100000").failure(2, "context");
    place.run("convert gptq -o x --check none.txt").failure(2, "none.txt");
    place.run("convert gptq -o x --to gptq --check text.txt").failure(2, "int8 activations");
    assert!(!place.names().contains(&"x".to_owned()));
}

/// A tensor as it is stored.
type Stored = (DType, Vec<usize>, Vec<u8>);

/// Copies a checkpoint with changed tensors: `change` gives what becomes of each, `None` leaves it out.
fn rewrite(from: &Path, to: &Path, mut change: impl FnMut(&str, Stored) -> Option<Stored>) {
    let source = Safetensors::open(from).unwrap();
    let mut writer = CheckpointWriter::create(to).unwrap();
    for name in source.names() {
        let info = source.info(&name).unwrap();
        let bytes = source.bytes(&name).unwrap().into_owned();
        if let Some((dtype, shape, bytes)) = change(&name, (info.dtype, info.shape, bytes)) {
            writer.add(&name, dtype, &shape, &bytes).unwrap();
        }
    }
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(from.join(file), writer.staging().join(file)).unwrap();
    }
    writer.finish().unwrap();
}

/// Copies a GPTQ checkpoint with another order of groups in the layers whose names end so.
fn reorder(from: &Path, to: &Path, module: &str) {
    rewrite(from, to, |name, (dtype, shape, mut bytes)| {
        if name.ends_with(&format!("{module}.g_idx")) {
            // Multiples of an odd number come in another order, each once.
            let g_idx: Vec<[u8; 4]> = bytes.as_chunks().0.to_vec();
            bytes = (0..g_idx.len()).flat_map(|i| g_idx[i * 37 % g_idx.len()]).collect();
        }
        Some((dtype, shape, bytes))
    });
}

#[test]
fn act_order_goes_into_gate_and_up_or_is_refused() {
    let place = Place::new();
    place.quantize("w4a8", "--format compressed-tensors --group-size 32 --group-scales half");
    place.run("convert w4a8 -o gptq --to gptq").success();
    reorder(&place.path("gptq"), &place.path("down"), "down_proj");
    let line = "convert down -o out --check text.txt --window 128 --limit 2 --json";
    let converted = place.run(line).success().json();
    assert_eq!(converted["reordered"].as_array().unwrap().len(), 2, "{converted}");
    // The source's weights stand at their own channels in the model that this is compared with.
    let divergence = converted["check"]["kl_divergence"]["mean"].as_f64().unwrap();
    assert!(divergence < 0.02, "{divergence}");
    reorder(&place.path("gptq"), &place.path("query"), "q_proj");
    place.run("convert query -o x").failure(2, "model.layers.0.self_attn.q_proj: its groups follow");
    assert!(
        !place.names().iter().any(|name| name.contains('x') && name != "text.txt"),
        "{:?}",
        place.names()
    );
}

#[test]
fn what_cannot_be_converted_is_refused() {
    let place = Place::new();
    place.run("convert model -o x").failure(2, "nothing to convert");
    place.run("convert none -o x").failure(2, "no such file");
    place.quantize("w4a8", "--format compressed-tensors --group-size 64");
    place.run("convert w4a8 -o gptq --to gptq").success();
    place.run("convert gptq -o w4a8").failure(2, "exists already");
    let config = place.path("gptq/config.json");
    let good: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    for (key, value, says) in [
        ("bits", json!(8), "bits is 8"),
        ("group_size", json!(16), "group_size is 16"),
        ("checkpoint_format", json!("marlin"), "checkpoint_format"),
        ("dynamic", json!({"+:.*v_proj": {"bits": 8}}), "dynamic"),
        ("unheard_of", json!(3), "unheard_of"),
    ] {
        let mut bad = good.clone();
        bad["quantization_config"][key] = value;
        fs::write(&config, bad.to_string()).unwrap();
        place.run("convert gptq -o x").failure(2, says);
    }
    // More blocks than it has, and fewer.
    for (layers, says) in [(3, "no tensor"), (1, "has no tensor model.layers.1")] {
        let mut bad = good.clone();
        bad["num_hidden_layers"] = json!(layers);
        fs::write(&config, bad.to_string()).unwrap();
        place.run("convert gptq -o x").failure(2, says);
    }
    assert_eq!(place.names(), ["gptq", "model", "text.txt", "w4a8"]);
}

/// Changes a checkpoint's config.json.
fn configure(dir: &Path, change: impl FnOnce(&mut Value)) {
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(path, config.to_string()).unwrap();
}

/// What is copied is looked at as if the model was to be run: nothing is written that could not be.
#[test]
fn copied_tensors_are_looked_at() {
    let place = Place::new();
    place.quantize("w4a8", "--format compressed-tensors --group-size 64");
    place.run("convert w4a8 -o gptq --to gptq").success();
    let short = |(dtype, mut shape, mut bytes): Stored| {
        let row = bytes.len() / shape[0];
        shape[0] -= 1;
        bytes.truncate(shape[0] * row);
        Some((dtype, shape, bytes))
    };
    // An exponent of ones is no number, in every type and byte order.
    let damaged = |(dtype, shape, bytes): Stored| Some((dtype, shape, vec![0xff; bytes.len()]));
    let integers = |(_, shape, _): Stored| {
        let bytes = vec![1; 4 * shape.iter().product::<usize>()];
        Some((DType::I32, shape, bytes))
    };
    type Change<'a> = &'a dyn Fn(Stored) -> Option<Stored>;
    let cases: [(&str, Change<'_>, &str); 7] = [
        ("model.norm.weight", &short, "[63]"),
        ("model.norm.weight", &damaged, "NaN or infinite"),
        ("model.norm.weight", &integers, "expected F32, F16 or BF16"),
        ("model.embed_tokens.weight", &short, "[271, 64]"),
        ("lm_head.weight", &damaged, "NaN or infinite"),
        ("model.layers.1.post_attention_layernorm.weight", &short, "[63]"),
        ("model.layers.1.input_layernorm.weight", &damaged, "NaN or infinite"),
    ];
    for (tensor, change, says) in cases {
        let bad = place.path("bad");
        rewrite(&place.path("gptq"), &bad, |name, t| if name == tensor { change(t) } else { Some(t) });
        let run = place.run("convert bad -o x").failure(2, says);
        assert!(run.stderr.contains(tensor), "{}", run.stderr);
        fs::remove_dir_all(bad).unwrap();
    }
    assert_eq!(place.names(), ["gptq", "model", "text.txt", "w4a8"]);
}

#[test]
fn biases_are_those_of_the_configuration() {
    let place = Place::new();
    place.quantize("w4a8", "--format compressed-tensors --group-size 32 --group-scales half");
    place.run("convert w4a8 -o gptq --to gptq").success();
    reorder(&place.path("gptq"), &place.path("down"), "down_proj");
    let with_bias = |values: usize, value: f32, promised: bool| {
        let bad = place.path("bad");
        if bad.exists() {
            fs::remove_dir_all(&bad).unwrap();
        }
        let source = Safetensors::open(&place.path("down")).unwrap();
        let mut writer = CheckpointWriter::create(&bad).unwrap();
        for name in source.names() {
            let info = source.info(&name).unwrap();
            writer.add(&name, info.dtype, &info.shape, &source.bytes(&name).unwrap()).unwrap();
        }
        for block in 0..2 {
            for (module, n) in [("gate_proj", 128), ("up_proj", values), ("down_proj", 64)] {
                let bytes: Vec<u8> = (0..n).flat_map(|i| (value * i as f32).to_le_bytes()).collect();
                let name = format!("model.layers.{block}.mlp.{module}.bias");
                writer.add(&name, DType::F32, &[n], &bytes).unwrap();
            }
        }
        for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
            fs::copy(place.path("down").join(file), writer.staging().join(file)).unwrap();
        }
        writer.finish().unwrap();
        configure(&bad, |config| config["mlp_bias"] = json!(promised));
    };
    // Act-order moves the biases of gate and up: one of another length has no such places.
    with_bias(3, 0.0, true);
    let run = place.run("convert bad -o x").failure(2, "model.layers.0.mlp.up_proj.bias");
    assert!(run.stderr.contains("[3]"), "{}", run.stderr);
    with_bias(3, 0.0, false);
    place.run("convert bad -o x").failure(2, "model.layers.0.mlp.up_proj.bias");
    with_bias(128, 0.01, false);
    place.run("convert bad -o x").failure(2, "promises no bias");
    with_bias(128, f32::NAN, true);
    place.run("convert bad -o x").failure(2, "NaN or infinite");
    // Those that fit move with their channels.
    with_bias(128, 0.01, true);
    let line = "convert bad -o out --check text.txt --window 128 --limit 2 --json";
    let check = &place.run(line).success().json()["check"];
    let divergence = check["kl_divergence"]["mean"].as_f64().unwrap();
    assert!(divergence < 0.02, "{divergence}");
    // Some that the architecture needs are not there.
    configure(&place.path("gptq"), |config| config["attention_bias"] = json!(true));
    place.run("convert gptq -o x").failure(2, "self_attn.q_proj.bias");
    assert!(!place.names().contains(&"x".to_owned()));
}
