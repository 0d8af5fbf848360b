//! Files that are truncated, that lie, or that are no model.

mod common;

use std::{collections::BTreeMap, fs, path::Path};

use common::{f32s, message, safetensors, with_header};
use qqq_formats::{
    Checkpoint, CheckpointFormat, FormatError, LinearWeight, QuantizationConfig, TensorSource,
    safetensors::Safetensors,
};
use serde_json::{Value, json};

fn parse(bytes: Vec<u8>) -> qqq_formats::Result<Safetensors> {
    Safetensors::from_bytes(Path::new("x.safetensors"), bytes)
}

fn one_tensor() -> Vec<u8> {
    safetensors(&[("w", "F32", &[2, 3], f32s(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))])
}

#[test]
fn truncated_at_every_byte() {
    let whole = one_tensor();
    parse(whole.clone()).unwrap();
    for length in 0..whole.len() {
        let text = message(parse(whole[..length].to_vec()));
        assert!(text.contains("truncated"), "{length}: {text}");
    }
    let dir = tempfile::tempdir().unwrap();
    for (length, words) in [(0, "truncated: 0 bytes"), (whole.len() - 1, "truncated")] {
        common::model_dir(dir.path(), &common::llama(), &[("model.safetensors", &whole[..length])]);
        let text = message(Checkpoint::open(dir.path()));
        assert!(text.contains(words) && text.contains("model.safetensors"), "{text}");
    }
}

#[test]
fn headers_that_lie() {
    let tensor = |dtype: &str, shape: Value, begin: u64, end: u64| json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, end]});
    let file = |tensors: Value, bytes: usize| parse(with_header(&tensors.to_string(), &vec![0; bytes]));
    file(json!({"a": tensor("F32", json!([2]), 0, 8), "b": tensor("F16", json!([0, 4]), 8, 8)}), 8).unwrap();
    file(json!({"__metadata__": {"format": "pt"}}), 0).unwrap();
    for (tensors, bytes, words) in [
        (json!({"a": tensor("F32", json!([3]), 0, 8)}), 8, "takes 12 bytes"),
        (json!({"a": tensor("F32", json!([1u64 << 63, 4]), 0, 8)}), 8, "impossible size"),
        (json!({"a": tensor("F4", json!([3]), 0, 1)}), 1, "impossible size"),
        (json!({"a": tensor("F32", json!([2]), 8, 0)}), 8, "before its start"),
        (json!({"a": tensor("F32", json!([2]), 0, 8)}), 7, "truncated"),
        (json!({"a": tensor("U8", json!([8]), u64::MAX - 7, u64::MAX)}), 8, "only 8 bytes"),
        (json!({"a": tensor("U8", json!([4]), 0, 4), "b": tensor("U8", json!([4]), 2, 6)}), 6, "overlap"),
        (json!({"a": tensor("U8", json!([4]), 0, 4), "b": tensor("U8", json!([4]), 0, 4)}), 4, "overlap"),
        (json!({"a": tensor("U8", json!([4]), 2, 6)}), 6, "belong to no tensor"),
        (json!({"a": tensor("U8", json!([4]), 0, 4)}), 6, "2 bytes after the last tensor"),
        (json!({"a": tensor("Q4", json!([4]), 0, 4)}), 4, "Q4"),
        (json!({"a": {"shape": [4]}}), 4, "missing field"),
        (json!({"a": 7}), 4, "\"a\""),
        (json!([1]), 4, "header"),
    ] {
        let text = message(file(tensors, bytes));
        assert!(text.contains(words), "{text:?} does not contain {words:?}");
        assert!(text.contains("x.safetensors"), "{text}");
    }
    let entry = tensor("U8", json!([4]), 0, 4);
    let text = message(parse(with_header(&format!("{{\"a\":{entry},\"a\":{entry}}}"), &[0; 4])));
    assert!(text.contains("\"a\" is named twice"), "{text}");
    assert!(message(parse(with_header("{", &[]))).contains("header is not valid"));
    assert!(
        message(parse([u64::MAX.to_le_bytes().to_vec(), vec![b'{'; 50]].concat()))
            .contains("not a safetensors")
    );
    assert!(message(parse([1000u64.to_le_bytes().to_vec(), vec![b'{'; 50]].concat())).contains("truncated"));
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n".to_vec();
    assert!(message(parse(pointer)).contains("git lfs pull"));
}

#[test]
fn an_index_that_lies() {
    let shard = one_tensor();
    let open = |index: &str| {
        let shards = BTreeMap::from([("a.safetensors".to_owned(), shard.clone())]);
        Safetensors::from_shards(Path::new("dir"), index.as_bytes(), &shards)
    };
    assert_eq!(open(r#"{"weight_map": {"w": "a.safetensors"}}"#).unwrap().names(), ["w"]);
    for (index, words) in [
        (r#"{"weight_map": {"v": "a.safetensors"}}"#, "says that tensor \"v\" is in this shard"),
        (r#"{"weight_map": {"w": "b.safetensors"}}"#, "\"b.safetensors\" is missing"),
        (r#"{"weight_map": {"w": "../a.safetensors"}}"#, "leads out of"),
        (r#"{"weight_map": {"w": "/etc/passwd"}}"#, "leads out of"),
        (r#"{"weight_map": {"w": ""}}"#, "leads out of"),
        (r#"{"weight_map": {"w": "a.safetensors", "w": "b.safetensors"}}"#, "named twice"),
        (r#"{"weight_map": {}}"#, "no tensors"),
        (r#"{"weight_map": 3}"#, "not a valid index"),
        ("", "not a valid index"),
    ] {
        let text = message(open(index));
        assert!(text.contains(words), "{text:?} does not contain {words:?}");
    }
}

#[test]
fn tensors_that_do_not_serve() {
    let file = parse(safetensors(&[
        ("good", "F32", &[2], f32s(&[1.0, -1.0])),
        ("nan", "F32", &[2, 2], f32s(&[1.0, f32::NAN, 3.0, f32::INFINITY])),
        ("ints", "I64", &[1], vec![0; 8]),
        ("flags", "BOOL", &[3], vec![1; 3]),
    ]))
    .unwrap();
    assert_eq!(file.f32("good", &[2]).unwrap(), [1.0, -1.0]);
    assert!(matches!(file.float("none", &[2]), Err(FormatError::MissingTensor { .. })));
    assert!(matches!(file.bytes("none"), Err(FormatError::MissingTensor { .. })));
    match file.float("good", &[1, 2]) {
        Err(FormatError::Shape { found, expected, .. }) => {
            assert_eq!((found, expected), (vec![2], vec![1, 2]))
        }
        other => panic!("{other:?}"),
    }
    match file.float("nan", &[2, 2]) {
        Err(FormatError::NotFinite { count, first, .. }) => assert_eq!((count, first), (2, 1)),
        other => panic!("{other:?}"),
    }
    assert!(matches!(file.float("ints", &[1]), Err(FormatError::Type { .. })));
    assert!(message(file.float("flags", &[3])).contains("BOOL"));
    assert_eq!(&*file.bytes("flags").unwrap(), [1; 3]);
}

#[test]
fn paths_that_are_no_model() {
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &Path| message(Checkpoint::open(path));
    assert!(open(&dir.path().join("nowhere")).contains("nowhere"));
    assert!(open(dir.path()).contains("no config.json"));
    fs::write(dir.path().join("m.gguf"), b"GGUF").unwrap();
    assert!(open(dir.path()).contains("m.gguf"));
    assert!(open(&dir.path().join("m.gguf")).contains("m.gguf"), "a truncated GGUF file");

    let model = dir.path().join("model");
    common::model_dir(&model, &common::llama(), &[]);
    assert!(open(&model).contains("no safetensors file"));
    fs::write(model.join("pytorch_model.bin"), b"PK").unwrap();
    let text = open(&model);
    assert!(text.contains("convert") && text.contains("save_pretrained"), "{text}");

    fs::write(model.join("weights.safetensors"), one_tensor()).unwrap();
    assert_eq!(Checkpoint::open(&model).unwrap().tensors.names(), ["w"]);
    assert!(open(&model.join("weights.safetensors")).contains("name its directory"));
    fs::write(model.join("others.safetensors"), one_tensor()).unwrap();
    assert!(open(&model).contains("2 safetensors files"));

    let mut config = common::llama();
    config["architectures"] = json!(["BloomForCausalLM"]);
    common::model_dir(&model, &config, &[]);
    assert!(open(&model).contains("BloomForCausalLM"));
    fs::write(model.join("config.json"), "{").unwrap();
    assert!(open(&model).contains("not valid JSON"));
}

/// One compressed-tensors layer of 2 x 32 with one tensor replaced or added.
fn compressed(name: &str, dtype: &str, shape: &[usize], bytes: Vec<u8>) -> Checkpoint {
    let defaults: [(&str, &str, &[usize], Vec<u8>); 3] = [
        ("l.weight_packed", "I32", &[2, 4], vec![0x99; 32]),
        ("l.weight_scale", "F32", &[2, 1], f32s(&[0.5, 0.25])),
        ("l.weight_shape", "I64", &[2], [2i64.to_le_bytes(), 32i64.to_le_bytes()].concat()),
    ];
    let mut tensors: Vec<_> = defaults.into_iter().filter(|t| t.0 != name).collect();
    if !shape.is_empty() {
        tensors.push((name, dtype, shape, bytes));
    }
    let quantization = QuantizationConfig::uniform(CheckpointFormat::CompressedTensors, Some(32));
    let mut config = common::llama();
    config["quantization_config"] = quantization.to_value();
    let dir = tempfile::tempdir().unwrap();
    common::model_dir(dir.path(), &config, &[("model.safetensors", &safetensors(&tensors))]);
    Checkpoint::open(dir.path()).unwrap()
}

#[test]
fn compressed_layers_that_lie() {
    let good = compressed("l.extra", "U8", &[1], vec![0]);
    let LinearWeight::Quantized(weight) = good.linear("l", 2, 32).unwrap() else { panic!("float") };
    assert_eq!(weight.codes, [1; 64]);
    assert_eq!(weight.dequantize(), [[0.5; 32], [0.25; 32]].concat());

    for (name, dtype, shape, bytes, words) in [
        ("l.weight_packed", "I32", &[][..], vec![], "no tensor \"l.weight_packed\""),
        ("l.weight_packed", "I32", &[4, 2][..], vec![0; 32], "[4, 2]"),
        ("l.weight_packed", "U8", &[2, 4][..], vec![0; 8], "U8"),
        ("l.weight_scale", "F32", &[2, 1][..], f32s(&[0.5, f32::NAN]), "NaN"),
        ("l.weight_scale", "F32", &[2, 2][..], f32s(&[0.5; 4]), "[2, 2]"),
        ("l.weight_shape", "I64", &[2][..], [2i64.to_le_bytes(), (-32i64).to_le_bytes()].concat(), "-32"),
        ("l.weight_g_idx", "I32", &[32][..], vec![0; 128], "weight_g_idx"),
        ("l.weight_zero_point", "I8", &[2, 1][..], vec![0, 1], "weight_zero_point"),
    ] {
        let checkpoint = compressed(name, dtype, shape, bytes);
        match checkpoint.linear("l", 2, 32) {
            Err(e) => assert!(e.to_string().contains(words), "{e} does not contain {words:?}"),
            Ok(_) => panic!("{name} {words}: accepted"),
        }
    }
    assert!(message(good.linear("l", 2, 48)).contains("[2, 48]"));
}
