//! Safetensors files and shards, and quantized layers read from them. The first byte chooses what the rest
//! is: a file; an index (two bytes of length, JSON) and its shard `a.safetensors`; or a file with a layer `l`
//! in one of the quantized forms.

use std::{collections::BTreeMap, path::Path};

use qqq_formats::{
    Checkpoint, CheckpointFormat, FormatError, LinearWeight, ModelConfig, QuantizationConfig, TensorSource,
    safetensors::Safetensors,
};
use serde_json::json;

use crate::{Outcome, text};

/// Reads every tensor in every way.
fn read_all(file: &Safetensors) -> Outcome {
    let mut outcome = Ok(());
    for name in file.names() {
        let info = file.info(&name).unwrap();
        assert_eq!(info.bytes, file.bytes(&name).unwrap().len() as u64);
        match file.float(&name, &info.shape) {
            Ok(data) => {
                assert_eq!(data.len(), info.shape.iter().product::<usize>());
                assert!(data.into_f32().iter().all(|x| x.is_finite()));
            }
            Err(FormatError::Type { .. }) => {}
            Err(error) => outcome = Err(text(error)),
        }
    }
    outcome
}

/// Reads layer `l`, which must keep the promises of its type.
fn read_layer(
    file: Safetensors,
    format: CheckpointFormat,
    group_size: Option<usize>,
    n: usize,
    k: usize,
) -> Outcome {
    let quantization = QuantizationConfig::uniform(format, group_size);
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 1, "vocab_size": 8, "quantization_config": quantization.to_value()
    });
    let path = Path::new("fuzz");
    let config = ModelConfig::from_value(path, config).unwrap();
    let checkpoint = Checkpoint {
        path: path.into(),
        config,
        tensors: Box::new(file),
        gguf: None,
        inputs: Default::default(),
    };
    let bias = checkpoint.bias("l", n).map(drop).map_err(text);
    if let LinearWeight::Quantized(weight) = checkpoint.linear("l", n, k).map_err(text)? {
        weight.check("l").unwrap();
        assert_eq!(weight.int8_weights().len(), n * k);
        assert!(weight.channel_scales().iter().all(|s| s.is_finite()));
    }
    bias
}

/// Reads a file, shards or a layer.
///
/// # Errors
/// They are not what they should be.
pub fn safetensors(bytes: &[u8]) -> Outcome {
    let (mode, rest) = bytes.split_first().ok_or("no bytes")?;
    let name = Path::new("fuzz");
    if mode % 6 == 1 {
        let (length, rest) = rest.split_first_chunk::<2>().ok_or("no length of an index")?;
        let (index, shard) =
            rest.split_at_checked(u16::from_le_bytes(*length).into()).ok_or("an index that is too short")?;
        let shards = BTreeMap::from([("a.safetensors".to_owned(), shard.to_vec())]);
        return read_all(&Safetensors::from_shards(name, index, &shards).map_err(text)?);
    }
    let file = Safetensors::from_bytes(name, rest.to_vec()).map_err(text)?;
    match mode % 6 {
        2 => read_layer(file, CheckpointFormat::Qqq, None, 64, 128),
        3 => read_layer(file, CheckpointFormat::Qqq, Some(128), 64, 256),
        4 => read_layer(file, CheckpointFormat::CompressedTensors, None, 3, 20),
        5 => read_layer(file, CheckpointFormat::CompressedTensors, Some(32), 2, 64),
        _ => read_all(&file),
    }
}
