//! Safetensors files and shards, and quantized layers read from them. The first byte chooses what the rest
//! is: a file; an index (two bytes of length, JSON) and its shard `a.safetensors`; or a file with a layer `l`
//! in one of the quantized forms.
#![no_main]

use std::{collections::BTreeMap, path::Path};

use libfuzzer_sys::fuzz_target;
use qqq_formats::{
    Checkpoint, CheckpointFormat, LinearWeight, ModelConfig, QuantizationConfig, TensorSource,
    safetensors::Safetensors,
};
use serde_json::json;

/// Reads every tensor in every way.
fn read_all(file: &Safetensors) {
    for name in file.names() {
        let info = file.info(&name).unwrap();
        assert_eq!(info.bytes, file.bytes(&name).unwrap().len() as u64);
        if let Ok(data) = file.float(&name, &info.shape) {
            assert_eq!(data.len(), info.shape.iter().product::<usize>());
            assert!(data.into_f32().iter().all(|x| x.is_finite()));
        }
    }
}

/// Reads layer `l`, which must keep the promises of its type.
fn read_layer(file: Safetensors, format: CheckpointFormat, group_size: Option<usize>, n: usize, k: usize) {
    let quantization = QuantizationConfig::uniform(format, group_size);
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 1, "vocab_size": 8, "quantization_config": quantization.to_value()
    });
    let path = Path::new("fuzz");
    let config = ModelConfig::from_value(path, config).unwrap();
    let checkpoint = Checkpoint { path: path.into(), config, tensors: Box::new(file), gguf: None };
    let _ = checkpoint.bias("l", n);
    if let Ok(LinearWeight::Quantized(weight)) = checkpoint.linear("l", n, k) {
        weight.check("l").unwrap();
        assert_eq!(weight.int8_weights().len(), n * k);
        assert!(weight.channel_scales().iter().all(|s| s.is_finite()));
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((mode, rest)) = data.split_first() else { return };
    let name = Path::new("fuzz");
    if mode % 6 == 1 {
        let Some((length, rest)) = rest.split_first_chunk::<2>() else { return };
        let Some((index, shard)) = rest.split_at_checked(u16::from_le_bytes(*length).into()) else { return };
        let shards = BTreeMap::from([("a.safetensors".to_owned(), shard.to_vec())]);
        if let Ok(file) = Safetensors::from_shards(name, index, &shards) {
            read_all(&file);
        }
        return;
    }
    let Ok(file) = Safetensors::from_bytes(name, rest.to_vec()) else { return };
    match mode % 6 {
        2 => read_layer(file, CheckpointFormat::Qqq, None, 64, 128),
        3 => read_layer(file, CheckpointFormat::Qqq, Some(128), 64, 256),
        4 => read_layer(file, CheckpointFormat::CompressedTensors, None, 3, 20),
        5 => read_layer(file, CheckpointFormat::CompressedTensors, Some(32), 2, 64),
        _ => read_all(&file),
    }
});
