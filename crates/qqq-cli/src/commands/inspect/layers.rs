//! The modules of a checkpoint: tensors that belong together, as the linear layer of a name.

use std::collections::BTreeMap;

use qqq_formats::{Activations, Checkpoint, CodeBits, CodeLayout, FormatError, TensorInfo};
use qqq_model::names;
use serde::Serialize;

/// A module of the model and how its weight is stored.
#[derive(Debug, Serialize)]
pub struct Module {
    /// `model.layers.3.mlp.down_proj`.
    pub name: String,
    /// Stored type: `F16`, `Q4_1`, `int4, groups of 64, int8 inputs`.
    pub storage: String,
    /// How a quantized one is multiplied: `W4A8 g64`, `W8A8`, `W4A16`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// Shape of its weight, output channels first.
    pub shape: Vec<usize>,
    /// Weights and biases.
    pub parameters: u64,
    /// Bytes on disk, scales included.
    pub bytes: u64,
    /// Smallest and largest scale, if it is quantized.
    pub scale_range: Option<(f32, f32)>,
    /// Whether it is one of the linear layers of the blocks.
    pub block_linear: bool,
}

type Parts = BTreeMap<String, TensorInfo>;

/// All modules, in the model's order: embedding, blocks, norm, head.
///
/// # Errors
/// Quantized layers whose scales are missing or not finite.
pub fn modules(checkpoint: &Checkpoint) -> Result<Vec<Module>, FormatError> {
    modules_told(checkpoint, &mut |_, _| {})
}

/// As [`modules`]; `on_module` is told how many are done, and of how many.
///
/// # Errors
/// As [`modules`].
pub fn modules_told(
    checkpoint: &Checkpoint,
    on_module: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Module>, FormatError> {
    let mut parts: BTreeMap<String, Parts> = BTreeMap::new();
    for name in checkpoint.tensors.names() {
        let Some(info) = checkpoint.tensors.info(&name) else { continue };
        let (module, part) = name.rsplit_once('.').unwrap_or((&name, "weight"));
        parts.entry(module.to_owned()).or_default().insert(part.to_owned(), info);
    }
    let each = parts.iter().enumerate().map(|(done, (name, of_name))| {
        on_module(done, parts.len());
        module(checkpoint, name, of_name)
    });
    let mut modules = each.collect::<Result<Vec<_>, _>>()?;
    modules.sort_by_key(|m| order(&m.name));
    Ok(modules)
}

fn module(checkpoint: &Checkpoint, name: &str, parts: &Parts) -> Result<Module, FormatError> {
    let config = checkpoint.config.quantization.as_ref();
    let scheme = config.map(|q| q.scheme(name)).transpose()?.flatten();
    let stored = |layout| scheme.is_some_and(|s| s.layout == layout);
    let group = scheme.and_then(|s| s.group_size);
    let tensors = &checkpoint.tensors;
    let bits = scheme.map_or(CodeBits::Four, |s| s.bits);
    let mut storage = format!("{bits}, {}", group.map_or("per channel".into(), |g| format!("groups of {g}")));
    let (shape, scales) = if let (true, Some(b)) = (stored(CodeLayout::Tiles), parts.get("B")) {
        // K / 16 rows of 2 N words.
        let shape = match b.shape[..] {
            [rows, words] => vec![words / 2, rows * 16],
            _ => b.shape.clone(),
        };
        let scale = format!("{name}.s_channel");
        let stored = parts.get("s_channel").map(|i| i.shape.clone()).unwrap_or_default();
        let mut scales = tensors.f32(&scale, &stored)?;
        if group.is_none() {
            // The kernel sees 16 times the code, so a sixteenth of the scale is stored.
            scales.iter_mut().for_each(|s| *s *= 16.0);
        }
        (shape, Some(scales))
    } else if let (true, Some(codes), Some(scale)) =
        (stored(CodeLayout::Bytes), parts.get("weight"), parts.get("weight_scale"))
    {
        if bits == CodeBits::Four {
            storage += ", a byte each";
        }
        (codes.shape.clone(), Some(tensors.f32(&format!("{name}.weight_scale"), &scale.shape)?))
    } else if let (true, Some(words)) = (stored(CodeLayout::Packed), parts.get("weight_packed")) {
        let stored = parts.get("weight_scale").map(|i| i.shape.clone()).unwrap_or_default();
        let scales = tensors.f32(&format!("{name}.weight_scale"), &stored)?;
        let shape = match &unpacked_shape(checkpoint, name, parts)?[..] {
            [] => words
                .shape
                .iter()
                .enumerate()
                .map(|(i, d)| if i == 1 { d * 32 / bits.get() } else { *d })
                .collect(),
            shape => shape.to_vec(),
        };
        (shape, Some(scales))
    } else {
        let weight = parts.get("weight").or_else(|| parts.values().next());
        storage = weight.map_or(String::new(), |w| w.dtype.name().to_owned());
        (weight.map(|w| w.shape.clone()).unwrap_or_default(), None)
    };
    if let Some(scheme) = scheme.filter(|_| scales.is_some()) {
        storage += match scheme.activations {
            Activations::Int8 => ", int8 inputs",
            Activations::Half => ", 16-bit inputs",
        };
    }
    let bias = parts.get("bias").map_or(0, |b| b.shape.iter().product::<usize>());
    let range =
        |s: Vec<f32>| s.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), &v| (l.min(v), h.max(v)));
    Ok(Module {
        name: name.to_owned(),
        scheme: scheme.filter(|_| scales.is_some()).map(|s| s.to_string()),
        storage,
        parameters: (shape.iter().product::<usize>() + bias) as u64,
        shape,
        bytes: parts.values().map(|p| p.bytes).sum(),
        scale_range: scales.filter(|s| !s.is_empty()).map(range),
        block_linear: names::is_block_linear(name),
    })
}

/// `weight_shape` of compressed-tensors; empty if there is none.
fn unpacked_shape(checkpoint: &Checkpoint, name: &str, parts: &Parts) -> Result<Vec<usize>, FormatError> {
    let Some(info) = parts.get("weight_shape") else { return Ok(Vec::new()) };
    if info.dtype != qqq_formats::DType::I64 || info.shape != [2] {
        return Ok(Vec::new());
    }
    let bytes = checkpoint.tensors.bytes(&format!("{name}.weight_shape"))?;
    Ok(bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b).max(0) as usize).collect())
}

/// Embedding, blocks by number (in the order of computation), norm, head, anything else.
fn order(name: &str) -> (usize, usize, usize, String) {
    let block = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    let numbered = block.and_then(|(n, module)| Some((n.parse::<usize>().ok()?, module)));
    let (room, block, place) = match numbered {
        Some((n, module)) => {
            (1, n, names::LINEARS.iter().position(|l| *l == module).unwrap_or(names::LINEARS.len()))
        }
        None => match name {
            "model.embed_tokens" => (0, 0, 0),
            "model.norm" => (2, 0, 0),
            "lm_head" => (3, 0, 0),
            _ => (4, 0, 0),
        },
    };
    (room, block, place, name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_in_the_order_of_computation() {
        let mut names = vec![
            "lm_head",
            "model.layers.10.mlp.down_proj",
            "model.layers.2.input_layernorm",
            "model.layers.2.mlp.down_proj",
            "model.layers.2.self_attn.q_proj",
            "model.norm",
            "model.embed_tokens",
        ];
        names.sort_by_key(|n| order(n));
        assert_eq!(
            names,
            [
                "model.embed_tokens",
                "model.layers.2.self_attn.q_proj",
                "model.layers.2.mlp.down_proj",
                "model.layers.2.input_layernorm",
                "model.layers.10.mlp.down_proj",
                "model.norm",
                "lm_head",
            ]
        );
    }
}
