//! Checkpoints whose layers are rounded to nearest, each by a scheme of its own.

use std::{fs, path::Path};

use half::bf16;
use qqq_formats::{
    Activations, Checkpoint, CodeBits, LayerScheme, QuantizationConfig, QuantizedWeight, Scales, WeightData,
    writer::CheckpointWriter,
};
use serde_json::json;

/// Writes the model in `source` to `out` in compressed-tensors' form. `scheme` says of each linear layer of the blocks how it is
/// quantized, `None`: not at all. What is not quantized becomes bfloat16.
///
/// # Panics
/// If something cannot be read or written, or no layer is quantized.
pub fn write_rounded(source: &Path, out: &Path, scheme: &dyn Fn(&str) -> Option<LayerScheme>) {
    let checkpoint = Checkpoint::open(source).expect("a model");
    let tensors = checkpoint.tensors.as_ref();
    let mut writer = CheckpointWriter::create(out).expect("a directory for the checkpoint");
    let mut rules = Vec::new();
    for name in tensors.names() {
        let shape = tensors.info(&name).expect("a tensor").shape;
        let values = tensors.f32(&name, &shape).expect("floats");
        if let Some(module) = linear_layer(&name) {
            let scheme = scheme(module);
            rules.push((module.to_owned(), scheme));
            if let Some(scheme) = scheme {
                let weight = rounded(&values, (shape[0], shape[1]), scheme);
                writer.add_linear(module, &weight, scheme).expect("a weight that the format holds");
                continue;
            }
        }
        let data = WeightData::BF16(values.iter().map(|v| bf16::from_f32(*v)).collect());
        writer.add_float(&name, &shape, &data).expect("a tensor");
    }
    let others = rules.iter().find_map(|(_, scheme)| *scheme).expect("a layer that is quantized");
    let named = rules.iter().map(|(module, scheme)| (module.as_str(), *scheme));
    let quantization = QuantizationConfig::by_module(others, named).expect("schemes of the format");
    let mut config = checkpoint.config.raw.clone();
    config.insert("quantization_config".into(), quantization.to_value());
    config.remove("dtype");
    config.insert("torch_dtype".into(), json!("bfloat16"));
    let text = serde_json::Value::Object(config).to_string();
    fs::write(writer.staging().join("config.json"), text).expect("config.json");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        if source.join(file).exists() {
            fs::copy(source.join(file), writer.staging().join(file)).expect("a file of the tokenizer");
        }
    }
    writer.finish().expect("a checkpoint");
}

/// The name of the linear layer of a block whose weight has this name.
fn linear_layer(tensor: &str) -> Option<&str> {
    tensor
        .strip_suffix(".weight")
        .filter(|module| module.starts_with("model.layers.") && module.ends_with("_proj"))
}

/// `N x K` weights rounded to nearest, with the largest weight as the largest code and scales that are bfloat16 numbers.
pub fn rounded(values: &[f32], (n, k): (usize, usize), scheme: LayerScheme) -> QuantizedWeight {
    let LayerScheme { bits, activations, group_size, .. } = scheme;
    let width = group_size.unwrap_or(k);
    let largest = f32::from(bits.largest());
    let mut codes = Vec::with_capacity(n * k);
    let mut scales = Vec::with_capacity(n * k / width);
    for group in values.chunks_exact(width) {
        let max = group.iter().fold(0f32, |m, v| m.max(v.abs()));
        let scale = bf16::from_f32(if max > 0.0 { max / largest } else { 1.0 }).to_f32();
        scales.push(scale);
        codes.extend(group.iter().map(|v| (v / scale).round_ties_even().clamp(-largest, largest) as i8));
    }
    let scales = match (group_size, activations) {
        (None, _) => Scales::PerChannel(scales),
        (Some(g), Activations::Int8) => Scales::from_effective(&codes, n, k, g, &scales),
        (Some(g), Activations::Half) => Scales::weight_only(n, g, &scales),
    };
    QuantizedWeight { bits, out_features: n, in_features: k, codes, scales }
}

/// A scheme by its name, as it is shown: `W4A8 g64`, `W8A8`, `W4A16`; `None` for `float`.
///
/// # Panics
/// If there is no such scheme.
pub fn scheme_named(name: &str) -> Option<LayerScheme> {
    use qqq_formats::CheckpointFormat::CompressedTensors;
    let group_sizes = [None, Some(32), Some(64), Some(128)];
    if name == "float" {
        return None;
    }
    for bits in [CodeBits::Four, CodeBits::Eight] {
        for activations in [Activations::Int8, Activations::Half] {
            for scheme in group_sizes.map(|g| LayerScheme::new(CompressedTensors, bits, activations, g)) {
                if let Some(scheme) = scheme.ok().filter(|s| s.to_string() == name) {
                    return Some(scheme);
                }
            }
        }
    }
    panic!("no scheme is named {name:?}");
}
