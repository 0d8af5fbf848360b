//! `quantization_config` of compressed-tensors (llm-compressor's checkpoints).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{
    CheckpointFormat, CodeLayout, GROUP_SIZES, QuantizationConfig, Rule, expect, expect_known, found,
    unsupported,
};
use crate::{
    Activations, CodeBits, LayerScheme, Result,
    keys::{KnownKeys, Neutral},
    module_pattern::ModulePattern,
};

const KEYS: KnownKeys = KnownKeys {
    read: &[&[
        "config_groups",
        "format",
        "ignore",
        "kv_cache_scheme",
        "quant_method",
        "quantization_status",
        "sparsity_config",
        "transform_config",
    ]],
    // What wrote the file and how much smaller it became; how transformers is asked to hold the weights.
    harmless: &[&[
        "autoround_version",
        "provider",
        "version",
        "global_compression_ratio",
        "run_compressed",
        "dequantize",
        "use_optimized_inference",
    ]],
    neutral: &[],
};

const GROUP_KEYS: KnownKeys = KnownKeys {
    read: &[&["targets", "format", "weights", "input_activations", "output_activations"]],
    harmless: &[],
    neutral: &[],
};

/// Keys of the arguments of weights and of activations.
const ARGUMENT_KEYS: KnownKeys = KnownKeys {
    read: &[&["num_bits", "type", "symmetric", "group_size", "strategy", "dynamic", "actorder"]],
    // How scales were found; the type of zero points, of which symmetric codes have none.
    harmless: &[&["observer", "observer_kwargs", "zp_dtype"]],
    neutral: &[("scale_dtype", Neutral::Names(&["torch.float32", "torch.float16", "torch.bfloat16"]))],
};

/// Types of numbers that a key `sparsity_config.format` may name for weights that are not sparse.
const DENSE: &str = "dense";

/// Presets of llm-compressor, after which a group may be named instead of holding arguments.
fn preset(name: &str) -> Option<(CodeBits, Activations, Option<usize>)> {
    match name.to_ascii_uppercase().as_str() {
        "W4A8" => Some((CodeBits::Four, Activations::Int8, Some(128))),
        "W8A8" | "INT8" => Some((CodeBits::Eight, Activations::Int8, None)),
        "W4A16" => Some((CodeBits::Four, Activations::Half, Some(128))),
        _ => None,
    }
}

fn layout(name: &str) -> Option<CodeLayout> {
    match name {
        "pack-quantized" => Some(CodeLayout::Packed),
        // The second is the first without its check of types.
        "int-quantized" | "naive-quantized" => Some(CodeLayout::Bytes),
        _ => None,
    }
}

fn layout_name(layout: CodeLayout) -> &'static str {
    match layout {
        CodeLayout::Packed | CodeLayout::Tiles => "pack-quantized",
        CodeLayout::Bytes => "int-quantized",
    }
}

/// What a configuration is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// To run as it is.
    Run,
    /// To make 4-bit weights alone into others: they may have zero points, and groups in another order.
    Convert,
}

pub(super) fn read(map: &Map<String, Value>) -> Result<QuantizationConfig> {
    read_for(map, Use::Run)
}

/// Reads the configuration of 4-bit weights that are quantized alone (W4A16). Also returns whether all of them are symmetric.
///
/// # Errors
/// As [`QuantizationConfig::from_value`]; quantized activations; other bits; another format than pack-quantized.
pub(crate) fn weight_only(map: &Map<String, Value>) -> Result<(QuantizationConfig, bool)> {
    let config = read_for(map, Use::Convert)?;
    if let Some(other) = config.schemes().iter().find(|scheme| scheme.layout != CodeLayout::Packed) {
        return Err(unsupported(format_args!("format is {:?}", layout_name(other.layout))));
    }
    let groups = map.get("config_groups").and_then(Value::as_object);
    let is_asymmetric = |group: &Value| group["weights"].get("symmetric") == Some(&Value::Bool(false));
    let symmetric = !groups.is_some_and(|groups| groups.values().any(is_asymmetric));
    Ok((config, symmetric))
}

/// Whether a group's activations are quantized.
pub(crate) fn has_int8_activations(name: &str, group: &Value) -> bool {
    match group {
        Value::Array(_) => preset(name).is_none_or(|(_, activations, _)| activations == Activations::Int8),
        group => group.get("input_activations").is_some_and(Value::is_object),
    }
}

fn read_for(map: &Map<String, Value>, purpose: Use) -> Result<QuantizationConfig> {
    expect_known(map, "", &KEYS)?;
    let null = Value::Null;
    expect(map, "", "quantization_status", &[json!("compressed"), null.clone()], Some(&null))?;
    expect(map, "", "kv_cache_scheme", std::slice::from_ref(&null), Some(&null))?;
    sparsity(map)?;
    transforms(map)?;

    let groups = map
        .get("config_groups")
        .and_then(Value::as_object)
        .filter(|groups| !groups.is_empty())
        .ok_or_else(|| unsupported(format_args!("config_groups is {}", found(map, "config_groups"))))?;
    let general = general_layout(map)?;
    // The last group that names a target counts, as in the library's own map.
    let mut targets: BTreeMap<(u8, String), Rule> = BTreeMap::new();
    for (name, group) in groups {
        let at = format!("config_groups.{name}.");
        let (entries, scheme) = match (group, preset(name)) {
            (Value::Object(group), _) => {
                (list(group, &at, "targets")?, group_scheme(group, &at, general, purpose)?)
            }
            (Value::Array(_), Some((bits, activations, group_size)))
                if purpose == Use::Run || activations == Activations::Half =>
            {
                let layout =
                    general.ok_or_else(|| unsupported(format_args!("format is {}", found(map, "format"))))?;
                let scheme = LayerScheme { bits, activations, group_size, layout };
                (list(groups, "config_groups.", name)?, scheme)
            }
            (other, _) => return Err(unsupported(format_args!("config_groups.{name} is {other}"))),
        };
        for pattern in entries {
            let key = (pattern.rank(), pattern.text().to_owned());
            targets.insert(key, Rule { pattern, scheme: Some(scheme) });
        }
    }
    let ignored =
        if map.get("ignore").is_some_and(|v| !v.is_null()) { list(map, "", "ignore")? } else { vec![] };
    let float = ignored.into_iter().map(|pattern| Rule { pattern, scheme: None });
    let rules = float.chain(targets.into_values()).collect();
    Ok(QuantizationConfig { format: CheckpointFormat::CompressedTensors, rules, simulated: None })
}

/// The layout of groups that name none; `None` if every group has its own.
fn general_layout(map: &Map<String, Value>) -> Result<Option<CodeLayout>> {
    match map.get("format").and_then(Value::as_str) {
        Some("mixed-precision") => Ok(None),
        Some(name) if layout(name).is_some() => Ok(layout(name)),
        _ => Err(unsupported(format_args!("format is {}", found(map, "format")))),
    }
}

/// Sparse weights are not read.
fn sparsity(map: &Map<String, Value>) -> Result<()> {
    let dense = |config: &Map<String, Value>| {
        config.is_empty() || config.get("format").and_then(Value::as_str) == Some(DENSE)
    };
    match map.get("sparsity_config") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Object(config)) if dense(config) => Ok(()),
        Some(_) => Err(unsupported(format_args!("sparsity_config is {}", found(map, "sparsity_config")))),
    }
}

/// Rotations that would have to be applied at run time.
fn transforms(map: &Map<String, Value>) -> Result<()> {
    let none = |config: &Map<String, Value>| {
        config.iter().all(|(key, value)| {
            key == "config_groups" && (value.is_null() || value.as_object().is_some_and(Map::is_empty))
        })
    };
    match map.get("transform_config") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Object(config)) if none(config) => Ok(()),
        Some(_) => Err(unsupported(format_args!("transform_config is {}", found(map, "transform_config")))),
    }
}

/// A list of classes, names and expressions.
fn list(map: &Map<String, Value>, at: &str, key: &str) -> Result<Vec<ModulePattern>> {
    let wrong = || unsupported(format_args!("{at}{key} is {}", found(map, key)));
    let entries = map.get(key).and_then(Value::as_array).ok_or_else(wrong)?;
    let parse = |entry: &Value| {
        let text = entry.as_str().ok_or_else(wrong)?;
        ModulePattern::entry(text)
            .map_err(|e| unsupported(format_args!("{at}{key} holds the expression {text:?}: {e}")))
    };
    entries.iter().map(parse).collect()
}

fn group_scheme(
    group: &Map<String, Value>,
    at: &str,
    general: Option<CodeLayout>,
    purpose: Use,
) -> Result<LayerScheme> {
    expect_known(group, at, &GROUP_KEYS)?;
    let named = match group.get("format").filter(|v| !v.is_null()) {
        Some(own) => own.as_str().and_then(layout),
        None => general,
    };
    let layout =
        named.ok_or_else(|| unsupported(format_args!("{at}format is {}", found(group, "format"))))?;
    expect(group, at, "output_activations", &[Value::Null], Some(&Value::Null))?;

    let null = Value::Null;
    let activations = match group.get("input_activations") {
        None | Some(Value::Null) => Activations::Half,
        Some(_) if purpose == Use::Convert => {
            return Err(unsupported(format_args!(
                "{at}input_activations is {}",
                found(group, "input_activations")
            )));
        }
        Some(_) => {
            int8_inputs(group, at)?;
            Activations::Int8
        }
    };

    let weights = section(group, at, "weights", "weights are not quantized")?;
    let at_weights = format!("{at}weights.");
    expect_known(weights, &at_weights, &ARGUMENT_KEYS)?;
    let convert = purpose == Use::Convert;
    let stored = weights.get("num_bits").and_then(Value::as_u64).and_then(CodeBits::of);
    let bits = stored.filter(|bits| !convert || *bits == CodeBits::Four).unwrap_or(CodeBits::Four);
    let symmetric = [json!(true), json!(!convert)];
    integers(weights, &at_weights, bits, &symmetric)?;
    expect(weights, &at_weights, "dynamic", &[json!(false)], Some(&json!(false)))?;
    // Act-order with static groups leaves columns where they were; the other kind permutes the groups, which is told by
    // each layer's own list.
    let orders = [
        null.clone(),
        json!(false),
        json!("weight"),
        json!("static"),
        json!("group"),
        json!(true),
        json!("dynamic"),
    ];
    expect(weights, &at_weights, "actorder", if convert { &orders } else { &orders[..4] }, Some(&null))?;
    let scheme = LayerScheme { bits, activations, group_size: group_size(weights, &at_weights)?, layout };
    scheme.check().map_err(|e| unsupported(format_args!("{at_weights}num_bits is {}: {e}", bits.get())))?;
    Ok(scheme)
}

/// Dynamic int8 activations with a scale a token.
fn int8_inputs(group: &Map<String, Value>, at: &str) -> Result<()> {
    let inputs = section(group, at, "input_activations", "they are not quantized")?;
    let at = format!("{at}input_activations.");
    expect_known(inputs, &at, &ARGUMENT_KEYS)?;
    integers(inputs, &at, CodeBits::Eight, &[json!(true)])?;
    expect(inputs, &at, "dynamic", &[json!(true)], None)?;
    expect(inputs, &at, "strategy", &[json!("token")], None)?;
    expect(inputs, &at, "group_size", &[Value::Null, json!(-1)], Some(&Value::Null))
}

/// Integers of so many bits, symmetric or as `symmetric` allows.
fn integers(arguments: &Map<String, Value>, at: &str, bits: CodeBits, symmetric: &[Value]) -> Result<()> {
    expect(arguments, at, "num_bits", &[json!(bits.get())], None)?;
    expect(arguments, at, "type", &[json!("int")], Some(&json!("int")))?;
    expect(arguments, at, "symmetric", symmetric, Some(&json!(true)))
}

fn group_size(weights: &Map<String, Value>, at: &str) -> Result<Option<usize>> {
    let size = weights.get("group_size").filter(|v| !v.is_null());
    let strategy = weights.get("strategy").filter(|v| !v.is_null());
    let per_group = match (strategy.and_then(Value::as_str), size.and_then(Value::as_i64)) {
        (Some("channel"), None | Some(-1)) | (None, Some(-1)) => false,
        (Some("group"), Some(1..)) | (None, Some(1..)) => true,
        _ => {
            return Err(unsupported(format_args!(
                "{at}strategy is {} with group_size {}",
                found(weights, "strategy"),
                found(weights, "group_size")
            )));
        }
    };
    match size.and_then(Value::as_u64) {
        Some(g) if per_group && GROUP_SIZES.contains(&g) => Ok(Some(g as usize)),
        _ if !per_group => Ok(None),
        _ => Err(unsupported(format_args!("{at}group_size is {}", found(weights, "group_size")))),
    }
}

/// The object under `key`; `missing` says what it means that there is none.
fn section<'a>(
    map: &'a Map<String, Value>,
    at: &str,
    key: &str,
    missing: &str,
) -> Result<&'a Map<String, Value>> {
    match map.get(key) {
        Some(Value::Object(section)) => Ok(section),
        None | Some(Value::Null) => Err(unsupported(format_args!("{at}{key} is missing: {missing}"))),
        Some(other) => Err(unsupported(format_args!("{at}{key} is {other}"))),
    }
}

pub(super) fn write(rules: &[Rule]) -> Value {
    let texts = |wanted: Option<LayerScheme>| -> Vec<&str> {
        rules.iter().filter(|rule| rule.scheme == wanted).map(|rule| rule.pattern.text()).collect()
    };
    let mut schemes: Vec<LayerScheme> = Vec::new();
    for scheme in rules.iter().filter_map(|rule| rule.scheme) {
        if !schemes.contains(&scheme) {
            schemes.push(scheme);
        }
    }
    let groups: Map<String, Value> = schemes
        .iter()
        .enumerate()
        .map(|(i, scheme)| (format!("group_{i}"), group(*scheme, &texts(Some(*scheme)))))
        .collect();
    let one = schemes.iter().all(|s| Some(s.layout) == schemes.first().map(|first| first.layout));
    let format = match schemes.first() {
        Some(scheme) if one => layout_name(scheme.layout),
        _ => "mixed-precision",
    };
    json!({
        "quant_method": "compressed-tensors",
        "format": format,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": texts(None),
        "kv_cache_scheme": null,
    })
}

/// A group. It names its format itself: readers since version 0.15 look for it there, and infer another one if it is missing.
fn group(scheme: LayerScheme, targets: &[&str]) -> Value {
    let inputs = match scheme.activations {
        Activations::Half => Value::Null,
        Activations::Int8 => json!({
            "num_bits": 8,
            "type": "int",
            "symmetric": true,
            "strategy": "token",
            "group_size": null,
            "dynamic": true,
            "actorder": null,
        }),
    };
    json!({
        "targets": targets,
        "weights": {
            "num_bits": scheme.bits.get(),
            "type": "int",
            "symmetric": true,
            "strategy": if scheme.group_size.is_some() { "group" } else { "channel" },
            "group_size": scheme.group_size,
            "dynamic": false,
            "actorder": null,
        },
        "input_activations": inputs,
        "output_activations": null,
        "format": layout_name(scheme.layout),
    })
}
