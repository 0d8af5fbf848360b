//! Checkpoints written to disk and read back.

mod common;

use std::{fs, path::Path};

use common::message;
use half::{bf16, f16};
use qqq_formats::{
    Activations, Checkpoint, CheckpointFormat, CodeBits, CodeLayout, DType, LayerScheme, LinearWeight,
    QuantizationConfig, QuantizedWeight, Scales, TensorSource, WeightData, WeightKind,
    safetensors::Safetensors, writer::CheckpointWriter,
};
use serde_json::Value;

const LAYER: &str = "model.layers.0.mlp.down_proj";

/// A 128 x 256 weight whose effective scales are bf16 numbers.
fn weight(group_size: Option<usize>) -> QuantizedWeight {
    let (n, k) = (128, 256);
    let codes: Vec<i8> = (0..n * k).map(|i| ((i * 7 + i / 13) % 15) as i8 - 7).collect();
    let scale = |i: usize| bf16::from_f32(0.001 * (1 + i % 17) as f32).to_f32();
    let scales = match group_size {
        None => Scales::PerChannel((0..n).map(scale).collect()),
        Some(g) => {
            let effective: Vec<f32> = (0..n * (k / g)).map(scale).collect();
            Scales::from_effective(&codes, n, k, g, &effective)
        }
    };
    QuantizedWeight { bits: CodeBits::Four, out_features: n, in_features: k, codes, scales }
}

/// A directory with one quantized layer, a bias and a float head.
fn write(dir: &Path, weight: &QuantizedWeight, format: CheckpointFormat, group_size: Option<usize>) {
    let mut writer = CheckpointWriter::create(dir).unwrap();
    let mut config = common::llama();
    config["quantization_config"] = QuantizationConfig::uniform(format, group_size).to_value();
    fs::write(writer.staging().join("config.json"), config.to_string()).unwrap();
    writer.add_linear(LAYER, weight, LayerScheme::w4a8(format, group_size)).unwrap();
    let bias = vec![f16::from_f32(0.5); 128];
    writer.add_float(&format!("{LAYER}.bias"), &[128], &WeightData::F16(bias)).unwrap();
    let head = (0..64).map(|i| bf16::from_f32(i as f32)).collect();
    writer.add_float("lm_head.weight", &[4, 16], &WeightData::BF16(head)).unwrap();
    writer.finish().unwrap();
}

#[test]
fn what_is_written_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    for (format, group_size) in [
        (CheckpointFormat::Qqq, None),
        (CheckpointFormat::Qqq, Some(128)),
        (CheckpointFormat::CompressedTensors, None),
        (CheckpointFormat::CompressedTensors, Some(32)),
        (CheckpointFormat::CompressedTensors, Some(64)),
        (CheckpointFormat::CompressedTensors, Some(128)),
    ] {
        let out = dir.path().join(format!("{}-{group_size:?}", format.name()));
        let weight = weight(group_size);
        write(&out, &weight, format, group_size);
        let mut names: Vec<_> =
            fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["config.json", "model.safetensors"]);

        let checkpoint = Checkpoint::open(&out).unwrap();
        match checkpoint.linear(LAYER, 128, 256).unwrap() {
            LinearWeight::Quantized(read) => assert!(read == weight, "{format:?} {group_size:?}"),
            _ => panic!("float"),
        }
        assert_eq!(checkpoint.bias(LAYER, 128).unwrap(), Some(vec![0.5; 128]));

        // By rows it is the same weight.
        let layer = checkpoint.layer(LAYER, 128, 256).unwrap();
        assert_eq!(layer.kind(), WeightKind::Quantized { bits: CodeBits::Four, group_size });
        let cuts = if format == CheckpointFormat::Qqq { [0, 64, 128] } else { [0, 33, 128] };
        let parts: Vec<QuantizedWeight> = cuts
            .windows(2)
            .map(|cut| match layer.rows(cut[0]..cut[1]).unwrap() {
                LinearWeight::Quantized(part) => part,
                _ => panic!("float"),
            })
            .collect();
        assert!(QuantizedWeight::concat(&parts.iter().collect::<Vec<_>>()).unwrap() == weight);
        assert!(layer.rows(64..129).is_err());
        assert_eq!(layer.rows(1..2).is_ok(), layer.row_step() == 1);
        assert_eq!(checkpoint.bias("lm_head", 4).unwrap(), None);
        let LinearWeight::Float { data: WeightData::BF16(head), .. } =
            checkpoint.linear("lm_head", 4, 16).unwrap()
        else {
            panic!("the head is bf16")
        };
        assert_eq!(head[63], bf16::from_f32(63.0));
        assert!(message(checkpoint.linear(LAYER, 256, 256)).contains(LAYER));
        assert!(message(checkpoint.linear("model.layers.1.mlp.down_proj", 128, 256)).contains("layers.1"));
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 6, "no staging directory is left");
}

#[test]
fn the_safetensors_crate_reads_our_files() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("m");
    write(&out, &weight(Some(64)), CheckpointFormat::CompressedTensors, Some(64));
    let bytes = fs::read(out.join("model.safetensors")).unwrap();
    let theirs = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let (_, header) = ::safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
    let ours = Safetensors::open(&out).unwrap();
    assert_eq!(ours.names().len(), theirs.len());
    for name in ours.names() {
        let tensor = theirs.tensor(&name).unwrap();
        assert_eq!(&*ours.bytes(&name).unwrap(), tensor.data());
        assert_eq!(ours.info(&name).unwrap().shape, tensor.shape());
    }
    let scale = ours.info(&format!("{LAYER}.weight_scale")).unwrap();
    assert_eq!((scale.dtype, scale.shape), (DType::BF16, vec![128, 4]));
}

#[test]
fn shards_with_an_index() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("m");
    let mut writer = CheckpointWriter::with_shard_size(&out, 100).unwrap();
    for i in 0..5u8 {
        writer.add(&format!("t{i}"), DType::U8, &[40], &[i; 40]).unwrap();
    }
    writer.add("large", DType::U8, &[300], &[9; 300]).unwrap();
    writer.finish().unwrap();
    for i in 1..=4 {
        assert!(out.join(format!("model-{i:05}-of-00004.safetensors")).exists());
    }
    let index: Value =
        serde_json::from_slice(&fs::read(out.join("model.safetensors.index.json")).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_size"], 500);
    assert_eq!(index["weight_map"]["t2"], "model-00002-of-00004.safetensors");
    let read = Safetensors::open(&out).unwrap();
    assert_eq!(read.names(), ["large", "t0", "t1", "t2", "t3", "t4"]);
    assert_eq!(&*read.bytes("t4").unwrap(), [4; 40]);

    fs::remove_file(out.join("model-00003-of-00004.safetensors")).unwrap();
    let text = message(Safetensors::open(&out));
    assert!(text.contains("model-00003-of-00004") && text.contains("missing"), "{text}");
}

#[test]
fn many_tensors_fill_the_header_of_a_shard() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("m");
    let mut writer = CheckpointWriter::create(&out).unwrap();
    for i in 0..3000 {
        writer.add(&format!("model.layers.{i}.self_attn.q_proj.weight"), DType::U8, &[1], &[7]).unwrap();
    }
    writer.finish().unwrap();
    assert_eq!(Safetensors::open(&out).unwrap().names().len(), 3000);
    assert!(out.join("model.safetensors.index.json").exists());
}

#[test]
fn the_output_appears_complete_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("m");
    let mut writer = CheckpointWriter::create(&out).unwrap();
    writer.add("t", DType::U8, &[3], &[1, 2, 3]).unwrap();
    assert!(!out.exists());
    drop(writer);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");

    fs::create_dir(&out).unwrap();
    assert!(message(CheckpointWriter::create(&out)).contains("exists already"));
    fs::remove_dir(&out).unwrap();
    for other in ["m.finished", "m.finished-2"] {
        let mut writer = CheckpointWriter::create(&out).unwrap();
        writer.add("t", DType::U8, &[3], &[1, 2, 3]).unwrap();
        fs::create_dir(&out).unwrap();
        let told = message(writer.finish());
        assert!(told.contains("exists already") && told.contains(other), "made meanwhile: {told}");
        assert_eq!(Safetensors::open(&dir.path().join(other)).unwrap().names(), ["t"]);
        fs::remove_dir(&out).unwrap();
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);

    assert!(message(CheckpointWriter::create(&dir.path().join("no/such/parent"))).contains("no/such"));
    assert!(CheckpointWriter::create(Path::new("/")).is_err());
    assert!(CheckpointWriter::create(Path::new("")).is_err());
}

#[test]
fn what_cannot_be_written_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = CheckpointWriter::create(&dir.path().join("m")).unwrap();
    writer.add("t", DType::U8, &[3], &[1, 2, 3]).unwrap();
    assert!(message(writer.add("t", DType::U8, &[3], &[1, 2, 3])).contains("twice"));
    assert!(message(writer.add("u", DType::F32, &[3], &[0; 8])).contains("8 bytes"));
    assert!(message(writer.add("q", DType::Gguf("Q4_1"), &[3], &[0; 8])).contains("Q4_1"));
    let mut odd = weight(Some(64));
    let scheme = |format| LayerScheme::w4a8(format, Some(64));
    assert!(message(writer.add_linear("l", &odd, scheme(CheckpointFormat::Qqq))).contains("groups of 64"));
    odd.codes[0] = 8;
    assert!(
        message(writer.add_linear("l", &odd, scheme(CheckpointFormat::CompressedTensors))).contains("code 8")
    );
}

/// As llm-compressor writes W4A8 today: int8 `weight` that holds 4-bit codes.
#[test]
fn a_code_in_a_byte_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let (n, k) = (3, 64);
    let codes: Vec<i8> = (0..n * k).map(|i| (i * 5 % 16) as i8 - 8).collect();
    let scale = |i: usize| 0.25 * (1 + i % 5) as f32;
    let config = |size: Option<usize>| {
        let mut value = QuantizationConfig::uniform(CheckpointFormat::CompressedTensors, size).to_value();
        value["format"] = "int-quantized".into();
        value["config_groups"]["group_0"]["format"] = Value::Null;
        let read = QuantizationConfig::from_value(&value).unwrap();
        assert_eq!(
            read.schemes(),
            [LayerScheme {
                layout: CodeLayout::Bytes,
                ..LayerScheme::w4a8(CheckpointFormat::CompressedTensors, size)
            }]
        );
        let mut config = common::llama();
        config["quantization_config"] = value;
        config
    };
    let open = |name: &str, size: Option<usize>, codes: &[i8], zero: Option<u8>| {
        let groups = size.map_or(1, |g| k / g);
        let shape = [n, groups];
        let bytes = codes.iter().map(|c| c.cast_unsigned()).collect();
        let scales: Vec<f32> = (0..n * groups).map(scale).collect();
        let weight = format!("{LAYER}.weight");
        let (scale, zero_point) = (format!("{LAYER}.weight_scale"), format!("{LAYER}.weight_zero_point"));
        let mut tensors = vec![
            (weight.as_str(), "I8", &[3, 64][..], bytes),
            (scale.as_str(), "F32", &shape[..], common::f32s(&scales)),
        ];
        if let Some(zero) = zero {
            tensors.push((zero_point.as_str(), "I8", &shape[..], vec![zero; n * groups]));
        }
        let file = common::safetensors(&tensors);
        let out = dir.path().join(name);
        common::model_dir(&out, &config(size), &[("model.safetensors", &file)]);
        Checkpoint::open(&out).unwrap()
    };
    for (name, size) in [("channel", None), ("groups", Some(32))] {
        let LinearWeight::Quantized(weight) = open(name, size, &codes, Some(0)).linear(LAYER, n, k).unwrap()
        else {
            panic!("float")
        };
        let group = size.unwrap_or(k);
        let expected: Vec<f32> =
            codes.iter().enumerate().map(|(i, c)| f32::from(*c) * scale(i / group)).collect();
        assert_eq!(weight.codes, codes);
        assert_eq!(weight.dequantize(), expected, "{name}: these scales have a common divisor");
    }
    let mut wide = codes.clone();
    wide[70] = 8;
    assert!(message(open("wide", None, &wide, None).linear(LAYER, n, k)).contains("code 8 at index 70"));
    assert!(message(open("zero", None, &codes, Some(1)).linear(LAYER, n, k)).contains("weight_zero_point"));
    let other = open("shape", None, &codes, None);
    assert!(message(other.linear(LAYER, n, 32)).contains("[3, 64]"));
    assert!(message(other.linear("model.layers.1.mlp.up_proj", n, k)).contains("no tensor"));
}

/// Layers of every scheme in one checkpoint, each from its own tensors.
#[test]
fn schemes_side_by_side() {
    let format = CheckpointFormat::CompressedTensors;
    let new = |bits, activations, size| LayerScheme::new(format, bits, activations, size).unwrap();
    let eight = |n: usize, k: usize| QuantizedWeight {
        bits: CodeBits::Eight,
        out_features: n,
        in_features: k,
        codes: (0..n * k).map(|i| (i * 31 % 255) as u8 as i8).collect(),
        scales: Scales::PerChannel((0..n).map(|i| f16::from_f32(0.001 * (i + 1) as f32).to_f32()).collect()),
    };
    let alone = {
        let weight = weight(Some(64));
        let effective: Vec<f32> =
            (0..128 * 4).map(|i| bf16::from_f32(0.003 * (1 + i % 29) as f32).to_f32()).collect();
        QuantizedWeight { scales: Scales::weight_only(128, 64, &effective), ..weight }
    };
    let bytes = LayerScheme { layout: CodeLayout::Bytes, ..LayerScheme::w4a8(format, None) };
    let packed8 = new(CodeBits::Eight, Activations::Half, None);
    let layers = [
        ("q_proj", weight(Some(32)), LayerScheme::w4a8(format, Some(32))),
        ("k_proj", weight(None), bytes),
        ("v_proj", eight(128, 258), new(CodeBits::Eight, Activations::Int8, None)),
        ("o_proj", eight(128, 258), packed8),
        ("up_proj", alone, new(CodeBits::Four, Activations::Half, Some(64))),
    ];
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("m");
    let mut writer = CheckpointWriter::create(&out).unwrap();
    let names = layers.each_ref().map(|(name, ..)| format!("model.layers.0.x.{name}"));
    let rules = names.iter().map(String::as_str).zip(layers.iter().map(|(.., scheme)| Some(*scheme)));
    let mut config = common::llama();
    config["quantization_config"] =
        QuantizationConfig::by_module(LayerScheme::w4a8(format, Some(128)), rules).unwrap().to_value();
    fs::write(writer.staging().join("config.json"), config.to_string()).unwrap();
    for (name, (_, weight, scheme)) in names.iter().zip(&layers) {
        writer.add_linear(name, weight, *scheme).unwrap();
        let other = LayerScheme::w4a8(format, Some(128));
        assert!(message(writer.add_linear("x", weight, other)).contains("to be written as W4A8 g128"));
    }
    let tiles = LayerScheme { layout: CodeLayout::Tiles, ..layers[2].2 };
    assert!(message(writer.add_linear("x", &layers[2].1, tiles)).contains("no W8A8"));
    writer.add_float("model.embed_tokens.weight", &[1, 1], &WeightData::F16(vec![f16::ONE])).unwrap();
    writer.finish().unwrap();

    let file = Safetensors::open(&out).unwrap();
    let stored = |name: &str| file.info(name).map(|info| (info.dtype, info.shape));
    assert_eq!(stored(&format!("{}.weight", names[2])), Some((DType::I8, vec![128, 258])));
    assert_eq!(stored(&format!("{}.weight_packed", names[3])), Some((DType::I32, vec![128, 65])));
    assert_eq!(stored(&format!("{}.weight_scale", names[4])), Some((DType::BF16, vec![128, 4])));
    let checkpoint = Checkpoint::open(&out).unwrap();
    for (name, (_, weight, scheme)) in names.iter().zip(&layers) {
        let layer = checkpoint.layer(name, weight.out_features, weight.in_features).unwrap();
        let (bits, group_size) = (scheme.bits, scheme.group_size);
        let read = match (layer.kind(), layer.rows(0..128).unwrap()) {
            (WeightKind::Quantized { bits: b, group_size: g }, LinearWeight::Quantized(read))
                if scheme.activations == Activations::Int8 && (b, g) == (bits, group_size) =>
            {
                read
            }
            (
                WeightKind::WeightOnly { bits: b, group_size: g, dtype: DType::F16 },
                LinearWeight::WeightOnly { weight: read, dtype: DType::F16 },
            ) if scheme.activations == Activations::Half && (b, g) == (bits, group_size) => read,
            (kind, _) => panic!("{name}: {kind:?}"),
        };
        assert!(read == *weight, "{name}");
    }
    // -128, of other tools.
    assert!(layers[2].1.codes.contains(&-128));
}

/// A tied model may be saved with either of its two equal tensors; the head alone goes by the embedding's name.
#[test]
fn a_tied_model_with_its_head_alone() {
    let dir = tempfile::tempdir().unwrap();
    let values: Vec<f32> = (0..8).map(|i| i as f32).collect();
    let open = |name: &str, tied: bool, tensors: &[&str]| {
        let mut config = common::llama();
        config["tie_word_embeddings"] = tied.into();
        let tensors: Vec<(&str, &str, &[usize], Vec<u8>)> =
            tensors.iter().map(|name| (*name, "F32", &[2, 4][..], common::f32s(&values))).collect();
        let out = dir.path().join(name);
        common::model_dir(&out, &config, &[("model.safetensors", &common::safetensors(&tensors))]);
        Checkpoint::open(&out).unwrap().tensors
    };
    let (head, embedding) = ("lm_head.weight", "model.embed_tokens.weight");
    let alone = open("alone", true, &["a", head]);
    assert_eq!(alone.names(), ["a", embedding]);
    assert_eq!(alone.f32(embedding, &[2, 4]).unwrap(), values);
    assert_eq!(&*alone.bytes(embedding).unwrap(), common::f32s(&values));
    assert_eq!(alone.info(embedding).unwrap().shape, [2, 4]);
    assert!(alone.info(head).is_none() && alone.f32(head, &[2, 4]).is_err());
    assert_eq!(alone.f32("a", &[2, 4]).unwrap(), values);

    assert_eq!(open("both", true, &[head, embedding]).names(), [head, embedding]);
    let untied = open("untied", false, &[head]);
    assert_eq!(untied.names(), [head]);
    assert!(message(untied.f32(embedding, &[2, 4])).contains(embedding));
}
