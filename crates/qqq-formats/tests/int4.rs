//! Layers of weight-only 4-bit checkpoints: against float weights that Python has made of the formats' definitions
//! (scripts/make_int4_vectors.py, which compares them with the formats' own libraries), and there and back.

use std::{fs, path::Path};

use half::{bf16, f16};
use qqq_formats::{
    CheckpointFormat, CodeBits, Int4Checkpoint, Int4Layer, Int4Weight, QuantizationConfig, QuantizedWeight,
    Scales, TensorSource, WeightData,
    foreign::{Changes, Method, gptq_value, packed_value, write_gptq, write_packed},
    safetensors::Safetensors,
    writer::CheckpointWriter,
};
use serde_json::{Value, json};

const LAYER: &str = "model.layers.0.mlp.down_proj";
/// The vectors' shape.
const N: usize = 16;
const K: usize = 64;

fn vectors() -> Safetensors {
    Safetensors::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/int4.safetensors")).unwrap()
}

/// Writes a directory of one layer, with this `quantization_config`.
fn write(dir: &Path, quantization: &Value, add: impl FnOnce(&mut CheckpointWriter)) {
    let mut writer = CheckpointWriter::create(dir).unwrap();
    add(&mut writer);
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 64,
        "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 96, "rms_norm_eps": 1e-5, "quantization_config": quantization,
    });
    fs::write(writer.staging().join("config.json"), config.to_string()).unwrap();
    writer.finish().unwrap();
}

/// Copies the tensors of a layer of the vectors, but its float weight.
fn copy(writer: &mut CheckpointWriter, vectors: &Safetensors, name: &str) {
    for tensor in vectors.names() {
        let Some(part) = tensor.strip_prefix(&format!("{name}.")).filter(|part| *part != "float") else {
            continue;
        };
        let info = vectors.info(&tensor).unwrap();
        let bytes = vectors.bytes(&tensor).unwrap();
        writer.add(&format!("{LAYER}.{part}"), info.dtype, &info.shape, &bytes).unwrap();
    }
}

/// A layer of the vectors as a checkpoint's, and its float weight.
fn layer(name: &str, quantization: &Value) -> (Result<Int4Layer, String>, Vec<f32>, Method) {
    let vectors = vectors();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    write(&path, quantization, |writer| copy(writer, &vectors, name));
    let checkpoint = Int4Checkpoint::open(&path).unwrap();
    assert!(checkpoint.is_quantized(LAYER).unwrap());
    let layer = checkpoint.layer(LAYER, N, K).map_err(|e| e.to_string());
    (layer, vectors.f32(&format!("{name}.float"), &[N, K]).unwrap(), checkpoint.method)
}

fn gptq(group_size: i32, version: &str) -> Value {
    json!({"quant_method": "gptq", "bits": 4, "group_size": group_size, "checkpoint_format": version, "sym": false})
}

/// The same with another entry.
fn with(base: &Value, key: &str, value: Value) -> Value {
    let mut changed = base.clone();
    changed[key] = value;
    changed
}

fn packed(symmetric: bool, actorder: &Value) -> Value {
    let mut value = packed_value(Some(32), &[]);
    value["config_groups"]["group_0"]["weights"]["symmetric"] = json!(symmetric);
    value["config_groups"]["group_0"]["weights"]["actorder"] = actorder.clone();
    value
}

fn cases() -> Vec<(&'static str, Value, Method)> {
    let auto_round = |format: &str| json!({"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": false, "packing_format": format});
    let awq =
        json!({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": true});
    vec![
        // Act-order of one group needs no g_idx.
        ("gptq_channel", with(&gptq(-1, "gptq"), "desc_act", json!(true)), Method::Gptq),
        ("gptq_group", with(&gptq(32, "gptq"), "sym", json!(true)), Method::Gptq),
        ("gptq_asymmetric", gptq(32, "gptq"), Method::Gptq),
        ("gptq_v2", gptq(32, "gptq_v2"), Method::Gptq),
        ("gptq_act_order", with(&gptq(32, "gptq"), "desc_act", json!(true)), Method::Gptq),
        ("gptq_renumbered", gptq(32, "gptq"), Method::Gptq),
        ("gptq_asymmetric", auto_round("auto_round:auto_gptq"), Method::AutoRound),
        ("gptq_v2", auto_round("auto_round"), Method::AutoRound),
        ("awq", auto_round("auto_round:auto_awq"), Method::AutoRound),
        ("awq", awq, Method::Awq),
        ("packed", packed(true, &Value::Null), Method::CompressedTensors),
        ("packed_asymmetric", packed(false, &Value::Null), Method::CompressedTensors),
        ("packed_act_order", packed(true, &json!("group")), Method::CompressedTensors),
    ]
}

#[test]
fn every_layout_stands_for_the_weights_of_its_definition() {
    for (name, quantization, method) in cases() {
        let (layer, expected, found) = layer(name, &quantization);
        let layer = layer.unwrap();
        assert_eq!(found, method, "{name}");
        assert_eq!(layer.order.is_some(), name.ends_with("act_order"), "{name}");
        let order = layer.order.clone().unwrap_or_else(|| (0..K).collect());
        let mut weights = vec![0.0; N * K];
        for (i, weight) in layer.weight.dequantize().into_iter().enumerate() {
            weights[i / K * K + order[i % K]] = weight;
        }
        assert!(weights == expected, "{name}");
        // The vectors' scales are of both signs, and their zero points all over.
        let asymmetric = ["asymmetric", "v2", "awq", "renumbered"].iter().any(|part| name.contains(part));
        assert_eq!(layer.changes.recentred > 0, asymmetric, "{name}: {:?}", layer.changes);
        assert!(layer.changes.flipped + layer.changes.negative > 0, "{name}: {:?}", layer.changes);
        layer.weight.quantized(name).unwrap();
    }
}

/// The other version's zero points make other weights, or codes that do not fit.
#[test]
fn versions_are_told_apart() {
    for (name, other) in [("gptq_asymmetric", "gptq_v2"), ("gptq_v2", "gptq"), ("gptq_group", "gptq_v2")] {
        let (layer, expected, _) = layer(name, &gptq(32, other));
        assert!(layer.is_err() || layer.unwrap().weight.dequantize() != expected, "{name} as {other}");
    }
}

#[test]
fn damaged_layers_are_refused() {
    let vectors = vectors();
    let dir = tempfile::tempdir().unwrap();
    let refused = |case: usize, quantization: &Value, add: &dyn Fn(&mut CheckpointWriter), says: &str| {
        let path = dir.path().join(case.to_string());
        write(&path, quantization, add);
        let read = Int4Checkpoint::open(&path).and_then(|checkpoint| {
            checkpoint.is_quantized(LAYER)?;
            checkpoint.layer(LAYER, N, K)
        });
        let error = read.unwrap_err().to_string();
        assert!(error.contains(says), "{error} does not say {says}");
    };
    let zeros = |stored: u8| {
        move |writer: &mut CheckpointWriter| {
            let vectors = self::vectors();
            for part in ["qweight", "scales", "g_idx"] {
                let tensor = format!("gptq_group.{part}");
                let info = vectors.info(&tensor).unwrap();
                let bytes = vectors.bytes(&tensor).unwrap();
                writer.add(&format!("{LAYER}.{part}"), info.dtype, &info.shape, &bytes).unwrap();
            }
            let words = [stored << 4 | stored; 4].repeat(2 * 2);
            writer.add(&format!("{LAYER}.qzeros"), qqq_formats::DType::I32, &[2, 2], &words).unwrap();
        }
    };
    refused(0, &gptq(32, "gptq"), &zeros(15), "16 or for 0");
    refused(1, &gptq(32, "gptq_v2"), &zeros(2), "too far from their zero points");
    refused(2, &gptq(64, "gptq"), &|w| copy(w, &vectors, "gptq_group"), "shape");
    refused(3, &packed(false, &Value::Null), &|w| copy(w, &vectors, "packed"), "weight_zero_point");
    refused(4, &packed(true, &Value::Null), &|w| copy(w, &vectors, "packed_asymmetric"), "symmetric");
    let both = |w: &mut CheckpointWriter| {
        copy(w, &vectors, "gptq_group");
        w.add_float(&format!("{LAYER}.weight"), &[N, K], &WeightData::F16(vec![f16::ONE; N * K])).unwrap();
    };
    refused(5, &gptq(32, "gptq"), &both, "both qweight and a float weight");
    let float = |w: &mut CheckpointWriter| {
        w.add_float(&format!("{LAYER}.weight"), &[N, K], &WeightData::F16(vec![f16::ONE; N * K])).unwrap();
    };
    refused(6, &packed(true, &Value::Null), &float, "do not agree on whether it is quantized");
    refused(7, &Value::Null, &float, "nothing to convert");
}

/// A layer of the vectors without one of its tensors, or with one more.
fn changed(name: &str, quantization: &Value, without: &str, with: Option<&str>) -> Result<Int4Layer, String> {
    let vectors = vectors();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    write(&path, quantization, |writer| {
        let parts = ["qweight", "qzeros", "scales", "g_idx", "weight_packed", "weight_scale", "weight_shape"];
        for part in parts.iter().chain(&["weight_g_idx"]).filter(|part| **part != without) {
            let tensor = format!("{name}.{part}");
            let Some(info) = vectors.info(&tensor) else { continue };
            let bytes = vectors.bytes(&tensor).unwrap();
            writer.add(&format!("{LAYER}.{part}"), info.dtype, &info.shape, &bytes).unwrap();
        }
        if let Some(part) = with {
            let bytes = vectors.bytes("gptq_act_order.g_idx").unwrap();
            writer.add(&format!("{LAYER}.{part}"), qqq_formats::DType::I32, &[K], &bytes).unwrap();
        }
    });
    let checkpoint = Int4Checkpoint::open(&path).unwrap();
    checkpoint.layer(LAYER, N, K).map_err(|e| e.to_string())
}

#[test]
fn act_order_without_its_groups_is_refused() {
    let ordered = with(&gptq(32, "gptq"), "desc_act", json!(true));
    for (name, quantization, tensor) in [
        ("gptq_act_order", &ordered, "g_idx"),
        ("packed_act_order", &packed(true, &json!("group")), "weight_g_idx"),
        ("packed_act_order", &packed(true, &json!("dynamic")), "weight_g_idx"),
        ("packed_act_order", &packed(true, &json!(true)), "weight_g_idx"),
    ] {
        let error = changed(name, quantization, tensor, None).unwrap_err();
        let says = [LAYER, &format!("there is no {tensor}"), "Take a complete checkpoint"];
        assert!(says.iter().all(|part| error.contains(part)), "{error}");
        assert!(changed(name, quantization, "", None).unwrap().order.is_some(), "{name}");
    }
    // Groups of neighbours, and no act-order at all, need none.
    for quantization in [
        with(&ordered, "static_groups", json!(true)),
        with(&ordered, "act_group_aware", json!(true)),
        gptq(32, "gptq"),
    ] {
        let layer = changed("gptq_group", &quantization, "g_idx", None).unwrap();
        assert_eq!(layer.order, None, "{quantization}");
    }
    let awq = json!({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"});
    assert!(changed("awq", &awq, "", None).is_ok());
    let error = changed("awq", &awq, "", Some("g_idx")).unwrap_err();
    assert!(error.contains(LAYER) && error.contains("it has a g_idx"), "{error}");
}

#[test]
fn symmetric_weights_have_zero_points_of_8() {
    let symmetric = |version: &str| with(&gptq(32, version), "sym", json!(true));
    let awq =
        json!({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": false});
    let auto_round = json!({"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": true, "packing_format": "auto_round"});
    for (name, quantization, says) in [
        // Of the first version, read as the second: all are 7.
        ("gptq_group", symmetric("gptq_v2"), "output channel 0 is 7"),
        ("gptq_group", symmetric("gptq_v2"), "the other one, gptq: gptq (auto_round:auto_gptq) stores"),
        ("gptq_group", auto_round, "the other one, gptq:"),
        ("gptq_asymmetric", symmetric("gptq"), "the other one, gptq_v2:"),
        ("awq", awq, "correct sym or zero_point"),
    ] {
        let error = changed(name, &quantization, "", None).unwrap_err();
        assert!(error.contains(LAYER) && error.contains(says), "{error}");
    }
    assert!(changed("gptq_group", &symmetric("gptq"), "", None).is_ok());
}

/// What is written has, for a symmetric layer with positive scales, the very bytes that Python has packed.
#[test]
fn written_tensors_are_those_of_the_definitions() {
    let vectors = vectors();
    let dir = tempfile::tempdir().unwrap();
    for (name, quantization, to_gptq) in
        [("gptq_positive", gptq(32, "gptq"), true), ("packed_positive", packed(true, &Value::Null), false)]
    {
        let weight = layer(name, &quantization).0.unwrap().weight;
        let path = dir.path().join(name);
        let value = if to_gptq { gptq_value(Some(32), &[]) } else { packed_value(Some(32), &[]) };
        write(&path, &value, |writer| {
            if to_gptq {
                assert_eq!(write_gptq(writer, LAYER, &weight).unwrap().moved, 0.0);
            } else {
                write_packed(writer, LAYER, &weight).unwrap();
            }
        });
        let written = Safetensors::open(&path).unwrap();
        for tensor in vectors.names() {
            let Some(part) = tensor.strip_prefix(&format!("{name}.")).filter(|part| *part != "float") else {
                continue;
            };
            let ours = format!("{LAYER}.{part}");
            assert_eq!(written.info(&ours), vectors.info(&tensor), "{tensor}");
            assert_eq!(written.bytes(&ours).unwrap(), vectors.bytes(&tensor).unwrap(), "{tensor}");
        }
    }
}

fn some_weight(group_size: Option<usize>, bf16_scales: bool) -> Int4Weight {
    let codes = (0..N * K).map(|i| (i * 7 % 16) as i8 - 8).collect();
    let count = N * group_size.map_or(1, |g| K / g);
    let scale = |i: usize| 0.001 + (i * i % 31) as f32 * 0.0013;
    let scales = match bf16_scales {
        false => WeightData::F16((0..count).map(|i| f16::from_f32(scale(i))).collect()),
        // Beyond float16.
        true => WeightData::BF16((0..count).map(|i| bf16::from_f32(scale(i) * 1e-9)).collect()),
    };
    Int4Weight { out_features: N, in_features: K, codes, group_size, scales }
}

#[test]
fn every_form_comes_back_exactly() {
    let dir = tempfile::tempdir().unwrap();
    for (i, group_size) in [None, Some(32), Some(64)].into_iter().enumerate() {
        for bf16_scales in [false, true] {
            let weight = some_weight(group_size, bf16_scales);
            let ours =
                QuantizationConfig::uniform(CheckpointFormat::CompressedTensors, group_size).to_value();
            let forms = [
                ("gptq", gptq_value(group_size, &[])),
                ("packed", packed_value(group_size, &[])),
                ("w4a8", ours),
            ];
            for (form, value) in forms {
                let path = dir.path().join(format!("{form}-{i}-{bf16_scales}"));
                write(&path, &value, |writer| match form {
                    "gptq" => assert_eq!(write_gptq(writer, LAYER, &weight).unwrap().moved, 0.0),
                    _ => write_packed(writer, LAYER, &weight).unwrap(),
                });
                let checkpoint = Int4Checkpoint::open(&path).unwrap();
                let back = checkpoint.layer(LAYER, N, K).unwrap();
                assert!(back.weight == weight, "{form} {group_size:?} {bf16_scales}");
                let groups = weight.scales.len() as u64;
                assert_eq!(back.changes, Changes { groups, ..Changes::default() }, "{form}");
            }
        }
    }
}

#[test]
fn configurations_beside_config_json_are_read() {
    let vectors = vectors();
    let dir = tempfile::tempdir().unwrap();
    for (file, name, value) in [
        (
            "quantize_config.json",
            "gptq_group",
            json!({"bits": 4, "group_size": 32, "desc_act": false, "sym": true}),
        ),
        (
            "quant_config.json",
            "awq",
            json!({"w_bit": 4, "q_group_size": 32, "zero_point": true, "version": "GEMM"}),
        ),
    ] {
        let path = dir.path().join(name);
        write(&path, &Value::Null, |writer| {
            copy(writer, &vectors, name);
            fs::write(writer.staging().join(file), value.to_string()).unwrap();
        });
        let layer = Int4Checkpoint::open(&path).unwrap().layer(LAYER, N, K).unwrap();
        assert!(layer.weight.dequantize() == vectors.f32(&format!("{name}.float"), &[N, K]).unwrap());
    }
}

#[test]
fn two_configurations_must_agree() {
    let vectors = vectors();
    let dir = tempfile::tempdir().unwrap();
    let read = |case: usize, name: &str, config: &Value, file: &str, beside: &Value| {
        let path = dir.path().join(case.to_string());
        write(&path, config, |writer| {
            copy(writer, &vectors, name);
            fs::write(writer.staging().join(file), beside.to_string()).unwrap();
        });
        let checkpoint = Int4Checkpoint::open(&path).map_err(|e| e.to_string())?;
        let layer = checkpoint.layer(LAYER, N, K).map_err(|e| e.to_string())?;
        assert!(layer.weight.dequantize() == vectors.f32(&format!("{name}.float"), &[N, K]).unwrap());
        Ok::<(), String>(())
    };
    let silent = json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": null});
    let awq =
        json!({"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": true, "version": "gemm"});
    let old = json!({"w_bit": 4, "q_group_size": 32, "zero_point": true, "version": "GEMM", "unheard_of": 1});
    // What only the second file says counts; other names and capitals say the same.
    read(0, "gptq_v2", &silent, "quantize_config.json", &gptq(32, "gptq_v2")).unwrap();
    read(1, "awq", &awq, "quant_config.json", &old).unwrap();
    for (case, name, config, file, beside, says) in [
        (2, "gptq_v2", &gptq(32, "gptq_v2"), "quantize_config.json", gptq(32, "gptq"), "checkpoint_format"),
        (3, "gptq_v2", &silent, "quantize_config.json", gptq(64, "gptq_v2"), "group_size is 64"),
        (4, "awq", &awq, "quant_config.json", with(&old, "q_group_size", json!(64)), "q_group_size is 64"),
    ] {
        let error = read(case, name, config, file, &beside).unwrap_err();
        assert!([file, says, "config.json"].iter().all(|part| error.contains(part)), "{error}");
    }
    // A second file that is not sound is told of.
    let error = read(5, "gptq_v2", &silent, "quantize_config.json", &json!([1])).unwrap_err();
    assert!(error.contains("not a JSON object"), "{error}");
}

/// Groups' scales of 16 bits that were stored as two levels: GPTQ's give the same two levels.
#[test]
fn two_levels_survive_16_bits() {
    let dir = tempfile::tempdir().unwrap();
    let n = 64;
    let mut wide = 0;
    for seed in 0..100u32 {
        // Two groups of a channel often have a common divisor by chance.
        let k = if seed % 2 == 0 { 64 } else { 256 };
        for brain in [false, true] {
            // Any spread will do.
            let hash =
                |i: usize| (i as u32).wrapping_add(seed << 20).wrapping_mul(0x9E37_79B1).rotate_left(15) >> 9;
            let codes: Vec<i8> = (0..n * k).map(|i| (hash(i) % 15) as i8 - 7).collect();
            let scale = |i: usize| 0.003 + (hash(7 * i) % 30011) as f32 * 1e-6;
            let round = |s: f32| if brain { bf16::from_f32(s).to_f32() } else { f16::from_f32(s).to_f32() };
            let effective: Vec<f32> = (0..n * k / 32).map(|i| round(scale(i))).collect();
            let scales = Scales::from_effective(&codes, n, k, 32, &effective);
            let ours =
                QuantizedWeight { bits: CodeBits::Four, out_features: n, in_features: k, codes, scales };
            let stored = Int4Weight::of_quantized(ours.clone(), LAYER).unwrap();
            wide += usize::from(matches!(stored.scales, WeightData::F32(_)));
            let path = dir.path().join(format!("{seed}-{brain}"));
            write(&path, &gptq_value(Some(32), &[]), |writer| {
                assert_eq!(write_gptq(writer, LAYER, &stored).unwrap().moved, 0.0, "{seed} {brain}");
            });
            let back = Int4Checkpoint::open(&path).unwrap().layer(LAYER, n, k).unwrap().weight;
            assert!(back.quantized(LAYER).unwrap() == ours, "{seed} {brain}");
        }
    }
    assert!(wide > 2, "only {wide} had to be looked for");
}

/// Float32 scales that float16 has not the range for would take the weights with them.
#[test]
fn scales_beyond_float16_are_not_rounded_away() {
    let dir = tempfile::tempdir().unwrap();
    for (case, factor, says) in [(0, 1e-6, "too small"), (1, 1e8, "too large"), (2, 1.0, "")] {
        let weight = some_weight(None, false);
        let scales: Vec<f32> = weight.scales.into_f32().iter().map(|s| s * factor * 1.0001).collect();
        let weight = Int4Weight { scales: WeightData::F32(scales), ..some_weight(None, false) };
        write(&dir.path().join(case.to_string()), &Value::Null, |writer| {
            let written = write_gptq(writer, LAYER, &weight).map_err(|e| e.to_string());
            match (says, written) {
                ("", Ok(scales)) => {
                    assert_eq!(scales.dtype, qqq_formats::DType::F16);
                    assert!(scales.moved > 0.0 && scales.moved < 1.0 / 2048.0, "{scales:?}");
                }
                (_, Err(error)) => {
                    let parts = [LAYER, says, "--to compressed-tensors"];
                    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
                }
                (_, written) => panic!("{factor}: {written:?}"),
            }
            // The way out keeps them.
            if !says.is_empty() {
                write_packed(writer, "other", &weight).unwrap();
            }
        });
    }
}
