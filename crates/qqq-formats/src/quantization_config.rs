//! `quantization_config` of `config.json`.

use std::slice;

use serde_json::{Map, Value, json};

use crate::{FormatError, Result, module_pattern::ModulePattern};

/// On-disk form of a W4A8 checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointFormat {
    /// The QQQ reference's tiles (`B`, `s_channel`, `s_group`).
    Qqq,
    /// compressed-tensors `pack-quantized` int4 weights with dynamic per-token int8 activations.
    CompressedTensors,
}

impl CheckpointFormat {
    /// Name on the command line and in reports; `quant_method` in config.json.
    pub fn name(self) -> &'static str {
        match self {
            CheckpointFormat::Qqq => "qqq",
            CheckpointFormat::CompressedTensors => "compressed-tensors",
        }
    }
}

/// How the linear layers of the blocks are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuantizationConfig {
    /// On-disk form.
    pub format: CheckpointFormat,
    /// `None`: per channel.
    pub group_size: Option<usize>,
    /// Modules kept in float (`lm_head`): full names, or regular expressions after `re:`.
    pub ignore: Vec<String>,
}

/// Group sizes that the kernels take.
const GROUP_SIZES: [u64; 3] = [32, 64, 128];

/// What the error messages say is possible.
const SUPPORTED: &str = "supported are quant_method \"qqq\" (wbits or bits 4, group_size -1 or 128) and \
    \"compressed-tensors\" in the form pack-quantized with symmetric int4 weights (per channel, or groups of 32, 64 \
    or 128) and dynamic symmetric per-token int8 input activations";

impl QuantizationConfig {
    /// Reads the value of `quantization_config`.
    ///
    /// # Errors
    /// [`FormatError::Unsupported`] for everything that would not run exactly as it says.
    pub fn from_value(value: &Value) -> Result<Self> {
        let map =
            value.as_object().ok_or_else(|| unsupported(format_args!("it is not an object: {value}")))?;
        match map.get("quant_method").and_then(Value::as_str) {
            Some("qqq") => Self::from_qqq(map),
            Some("compressed-tensors") => Self::from_compressed_tensors(map),
            Some(other) => Err(unsupported(format_args!("quant_method is {other:?}"))),
            None => Err(unsupported(format_args!("it names no quant_method"))),
        }
    }

    fn from_qqq(map: &Map<String, Value>) -> Result<Self> {
        // GPTQModel's name for it, and what else its configuration may ask for. Its order of columns (desc_act) leaves no
        // trace in the layout.
        let bits = if map.contains_key("wbits") { "wbits" } else { "bits" };
        expect(map, "", bits, &[json!(4)], None)?;
        let (null, no, yes) = (Value::Null, json!(false), json!(true));
        expect(map, "", "sym", &[null.clone(), yes], Some(&null))?;
        expect(map, "", "lm_head", &[null.clone(), no], Some(&null))?;
        for key in ["format", "checkpoint_format"] {
            expect(map, "", key, &[null.clone(), json!("qqq")], Some(&null))?;
        }
        expect(map, "", "dynamic", &[null.clone(), json!({})], Some(&null))?;
        let group_size = match map.get("group_size").and_then(Value::as_i64) {
            Some(-1) => None,
            Some(128) => Some(128),
            _ => {
                return Err(unsupported(format_args!("group_size is {}", found(map, "group_size"))));
            }
        };
        Ok(Self { format: CheckpointFormat::Qqq, group_size, ignore: vec!["lm_head".into()] })
    }

    fn from_compressed_tensors(map: &Map<String, Value>) -> Result<Self> {
        let null = Value::Null;
        expect(map, "", "format", &[json!("pack-quantized")], None)?;
        expect(map, "", "quantization_status", &[json!("compressed"), null.clone()], Some(&null))?;
        expect(map, "", "kv_cache_scheme", slice::from_ref(&null), Some(&null))?;
        // Sparse weights, or rotations that would have to be applied at run time.
        for key in ["sparsity_config", "transform_config"] {
            expect(map, "", key, &[null.clone(), json!({})], Some(&null))?;
        }

        let groups = map.get("config_groups").and_then(Value::as_object);
        let (name, group) = match groups.map(|g| (g.len(), g.iter().next())) {
            Some((1, Some((name, Value::Object(group))))) => (name, group),
            _ => {
                return Err(unsupported(format_args!(
                    "config_groups must hold one group for all linear layers, but is {}",
                    found(map, "config_groups")
                )));
            }
        };
        let at = format!("config_groups.{name}.");
        expect(group, &at, "targets", &[json!(["Linear"])], None)?;
        expect(group, &at, "format", &[json!("pack-quantized"), null.clone()], Some(&null))?;
        expect(group, &at, "output_activations", slice::from_ref(&null), Some(&null))?;

        let weights = section(group, &at, "weights", "weights are not quantized")?;
        let at_weights = format!("{at}weights.");
        expect(weights, &at_weights, "num_bits", &[json!(4)], None)?;
        expect(weights, &at_weights, "type", &[json!("int")], Some(&json!("int")))?;
        expect(weights, &at_weights, "symmetric", &[json!(true)], Some(&json!(true)))?;
        expect(weights, &at_weights, "dynamic", &[json!(false)], Some(&json!(false)))?;
        // Act-order with static groups leaves columns where they were; the other kind permutes the groups.
        let orders = [null.clone(), json!(false), json!("weight"), json!("static")];
        expect(weights, &at_weights, "actorder", &orders, Some(&null))?;
        let size = weights.get("group_size").filter(|v| !v.is_null());
        let strategy = weights.get("strategy").filter(|v| !v.is_null());
        let per_group = match (strategy.and_then(Value::as_str), size.and_then(Value::as_i64)) {
            (Some("channel"), None | Some(-1)) | (None, Some(-1)) => false,
            (Some("group"), Some(1..)) | (None, Some(1..)) => true,
            _ => {
                return Err(unsupported(format_args!(
                    "{at_weights}strategy is {} with group_size {}",
                    found(weights, "strategy"),
                    found(weights, "group_size")
                )));
            }
        };
        let group_size = match size.and_then(Value::as_u64) {
            Some(g) if per_group && GROUP_SIZES.contains(&g) => Some(g as usize),
            _ if !per_group => None,
            _ => {
                return Err(unsupported(format_args!(
                    "{at_weights}group_size is {}",
                    found(weights, "group_size")
                )));
            }
        };

        let inputs = section(group, &at, "input_activations", "this is a weight-only (W4A16) checkpoint")?;
        let at_inputs = format!("{at}input_activations.");
        expect(inputs, &at_inputs, "num_bits", &[json!(8)], None)?;
        expect(inputs, &at_inputs, "type", &[json!("int")], Some(&json!("int")))?;
        expect(inputs, &at_inputs, "symmetric", &[json!(true)], Some(&json!(true)))?;
        expect(inputs, &at_inputs, "strategy", &[json!("token")], None)?;
        expect(inputs, &at_inputs, "dynamic", &[json!(true)], None)?;

        let mut ignore = Vec::new();
        if let Some(list) = map.get("ignore").filter(|v| !v.is_null()) {
            let list = list.as_array().ok_or_else(|| unsupported(format_args!("ignore is {list}")))?;
            for entry in list {
                let entry =
                    entry.as_str().ok_or_else(|| unsupported(format_args!("ignore holds {entry}")))?;
                if ModulePattern::parse(entry).is_none() {
                    return Err(unsupported(format_args!(
                        "ignore holds the regular expression {entry:?}; only literals, '.', '.*', '^' and '$' are \
                         understood"
                    )));
                }
                ignore.push(entry.to_owned());
            }
        }
        Ok(Self { format: CheckpointFormat::CompressedTensors, group_size, ignore })
    }

    /// The value of `quantization_config`, as other readers of the format expect it.
    pub fn to_value(&self) -> Value {
        match self.format {
            CheckpointFormat::Qqq => json!({
                "quant_method": "qqq",
                "wbits": 4,
                "group_size": self.group_size.map_or(json!(-1), |g| json!(g)),
            }),
            CheckpointFormat::CompressedTensors => json!({
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "quantization_status": "compressed",
                "config_groups": {
                    "group_0": {
                        "targets": ["Linear"],
                        "weights": {
                            "num_bits": 4,
                            "type": "int",
                            "symmetric": true,
                            "strategy": if self.group_size.is_some() { "group" } else { "channel" },
                            "group_size": self.group_size,
                            "dynamic": false,
                            "actorder": null,
                        },
                        "input_activations": {
                            "num_bits": 8,
                            "type": "int",
                            "symmetric": true,
                            "strategy": "token",
                            "group_size": null,
                            "dynamic": true,
                            "actorder": null,
                        },
                        "output_activations": null,
                    },
                },
                "ignore": self.ignore,
                "kv_cache_scheme": null,
            }),
        }
    }

    /// Whether the module `name` (`lm_head`, `model.layers.0.mlp.down_proj`) is kept in float.
    pub fn ignores(&self, name: &str) -> bool {
        self.ignore.iter().filter_map(|entry| ModulePattern::parse(entry)).any(|p| p.matches(name))
    }
}

fn unsupported(what: std::fmt::Arguments<'_>) -> FormatError {
    FormatError::Unsupported(format!("quantization_config is not supported: {what}; {SUPPORTED}"))
}

/// The value of `key` for a message.
fn found(map: &Map<String, Value>, key: &str) -> String {
    map.get(key).map_or_else(|| "missing".into(), Value::to_string)
}

/// Checks that `key` (or `default`, where it is missing) is one of `allowed`.
fn expect(
    map: &Map<String, Value>,
    at: &str,
    key: &str,
    allowed: &[Value],
    default: Option<&Value>,
) -> Result<()> {
    match map.get(key).or(default) {
        Some(value) if allowed.contains(value) => Ok(()),
        _ => Err(unsupported(format_args!("{at}{key} is {}", found(map, key)))),
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
