//! `quantization_config` of weight-only 4-bit checkpoints. Which layers are quantized shows in their tensors; what is read here
//! is how they are stored, and that nothing else is to be done at run time.

use serde_json::{Map, Value, json};

use crate::{
    FormatError, QuantizationConfig, Result,
    keys::KnownKeys,
    quantization_config::{
        GROUP_SIZES, PROVENANCE, SUPPORTED, expect, expect_known, found, unsupported, weight_only,
    },
};

/// What has made a checkpoint, by the name in its configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// This program, or another one that writes W4A8.
    W4a8,
    /// GPTQ (AutoGPTQ, GPTQModel).
    Gptq,
    /// AWQ (AutoAWQ).
    Awq,
    /// AutoRound.
    AutoRound,
    /// compressed-tensors (llm-compressor), weights alone.
    CompressedTensors,
}

impl Method {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Method::W4a8 => "W4A8",
            Method::Gptq => "GPTQ",
            Method::Awq => "AWQ",
            Method::AutoRound => "AutoRound",
            Method::CompressedTensors => "compressed-tensors W4A16",
        }
    }
}

/// How all layers lie in the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// `less_one`: zero points are stored less one.
    Gptq {
        group_size: Option<usize>,
        less_one: bool,
    },
    Awq {
        group_size: Option<usize>,
    },
    /// compressed-tensors' `pack-quantized`, by its rules.
    Packed {
        rules: QuantizationConfig,
        symmetric: bool,
    },
}

/// What the error messages say is possible.
const CONVERTIBLE: &str = "converted are 4-bit weights of quant_method \"gptq\" (checkpoint_format gptq or gptq_v2), \"awq\" \
    (version gemm), \"auto-round\" (packing_format auto_round, auto_round:auto_gptq or auto_round:auto_awq) and \
    \"compressed-tensors\" (pack-quantized), per channel or in groups of 32, 64 or 128; otherwise quantize the float model \
    (qqq quantize)";

/// What transformers keeps of how a model was or is to be quantized or run.
const TRANSFORMERS: &[&str] = &[
    "backend",
    "batch_size",
    "block_name_to_quantize",
    "cache_block_outputs",
    "dataset",
    "do_fuse",
    "exllama_config",
    "fuse_max_seq_len",
    "max_input_length",
    "model_seqlen",
    "module_name_preceding_first_block",
    "modules_in_block_to_quantize",
    "modules_to_fuse",
    "modules_to_not_convert",
    "pad_token_id",
    "tokenizer",
    "use_cuda_fp16",
    "use_exllama",
    "disable_exllama",
];

const GPTQ: KnownKeys = KnownKeys {
    read: &[&[
        "bits",
        "checkpoint_format",
        "dynamic",
        "format",
        "group_size",
        "lm_head",
        "method",
        "pack_dtype",
        "quant_method",
        "sym",
    ]],
    harmless: &[PROVENANCE, TRANSFORMERS],
    neutral: &[],
};

const AWQ: KnownKeys = KnownKeys {
    read: &[&[
        "backend",
        "bits",
        "checkpoint_format",
        "format",
        "group_size",
        "method",
        "pack_dtype",
        "q_group_size",
        "quant_method",
        "sym",
        "version",
        "w_bit",
        "zero_point",
    ]],
    harmless: &[PROVENANCE, TRANSFORMERS],
    neutral: &[],
};

/// How AutoRound came to the weights.
const TUNING: &[&str] = &[
    "amp",
    "autoround_version",
    "disable_opt_rtn",
    "enable_alg_ext",
    "enable_minmax_tuning",
    "enable_norm_bias_tuning",
    "enable_quanted_input",
    "enable_torch_compile",
    "gradient_accumulate_steps",
    "iters",
    "low_cpu_mem_usage",
    "low_gpu_mem_usage",
    "lr",
    "minmax_lr",
    "nsamples",
    "quant_block_list",
    "scale_dtype",
    "seed",
    "seqlen",
    "to_quant_block_names",
];

const AUTO_ROUND: KnownKeys = KnownKeys {
    read: &[&[
        "act_bits",
        "backend",
        "bits",
        "data_type",
        "extra_config",
        "group_size",
        "packing_format",
        "quant_method",
        "sym",
    ]],
    harmless: &[TUNING, TRANSFORMERS, &["act_data_type", "act_dynamic", "act_group_size", "act_sym"]],
    neutral: &[],
};

/// Keys of a layer of `extra_config`.
const EXTRA: KnownKeys = KnownKeys {
    read: &[&["bits", "data_type", "group_size", "sym", "act_bits"]],
    harmless: &[
        TUNING,
        &["act_data_type", "act_dynamic", "act_group_size", "act_sym", "in_blocks", "fixed_by_user"],
    ],
    neutral: &[],
};

/// Reads the value of `quantization_config` of a checkpoint that is to be converted.
///
/// # Errors
/// [`FormatError::Unsupported`] for everything that is not stored as this module reads it, keys that are not known among it.
pub(super) fn read(map: &Map<String, Value>) -> Result<(Method, Layout)> {
    let read = match map.get("quant_method").and_then(Value::as_str) {
        Some("gptq") => gptq(map).map(|layout| (Method::Gptq, layout)),
        Some("awq") => awq(map).map(|layout| (Method::Awq, layout)),
        Some("auto-round" | "intel/auto-round") => auto_round(map).map(|layout| (Method::AutoRound, layout)),
        Some("compressed-tensors") => weight_only(map)
            .map(|(rules, symmetric)| (Method::CompressedTensors, Layout::Packed { rules, symmetric })),
        Some(other) => Err(unsupported(format_args!("quant_method is {other:?}"))),
        None => Err(unsupported(format_args!("it names no quant_method"))),
    };
    // The same reader tells what runs as it is.
    read.map_err(|e| match e {
        FormatError::Unsupported(text) => FormatError::Unsupported(text.replace(SUPPORTED, CONVERTIBLE)),
        other => other,
    })
}

fn gptq(map: &Map<String, Value>) -> Result<Layout> {
    expect_known(map, "", &GPTQ)?;
    four_bits(map, &["bits"])?;
    packed_in_int32(map)?;
    let null = Value::Null;
    expect(map, "", "method", &[null.clone(), json!("gptq")], Some(&null))?;
    // The zero points that are stored must say the same, if it is true.
    expect(map, "", "sym", &[null.clone(), json!(true), json!(false)], Some(&null))?;
    expect(map, "", "lm_head", &[null.clone(), json!(false)], Some(&null))?;
    dynamic(map)?;
    let group_size = group_size(map, "", "group_size")?;
    let mut less_one = None;
    for key in ["checkpoint_format", "format"] {
        let this = match map.get(key).filter(|v| !v.is_null()).map(|v| v.as_str().map(str::to_lowercase)) {
            None => continue,
            Some(Some(name)) if name == "gptq" => true,
            Some(Some(name)) if name == "gptq_v2" => false,
            Some(_) => return Err(unsupported(format_args!("{key} is {}", found(map, key)))),
        };
        if less_one.is_some_and(|other| other != this) {
            return Err(unsupported(format_args!("checkpoint_format and format disagree")));
        }
        less_one = Some(this);
    }
    // Before there were two, there was the first.
    Ok(Layout::Gptq { group_size, less_one: less_one.unwrap_or(true) })
}

/// GPTQModel's rules for single modules: those that leave modules in float show in the tensors.
fn dynamic(map: &Map<String, Value>) -> Result<()> {
    match map.get("dynamic") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Object(rules)) => match rules.keys().find(|rule| !rule.starts_with("-:")) {
            None => Ok(()),
            Some(rule) => Err(unsupported(format_args!(
                "dynamic.{rule} quantizes some modules in another way, which is not converted"
            ))),
        },
        Some(_) => Err(unsupported(format_args!("dynamic is {}", found(map, "dynamic")))),
    }
}

fn awq(map: &Map<String, Value>) -> Result<Layout> {
    expect_known(map, "", &AWQ)?;
    four_bits(map, &["bits", "w_bit"])?;
    packed_in_int32(map)?;
    let null = Value::Null;
    for key in ["zero_point", "sym"] {
        expect(map, "", key, &[null.clone(), json!(true), json!(false)], Some(&null))?;
    }
    for key in ["version", "format", "checkpoint_format"] {
        let gemm = ["gemm", "GEMM"].map(|name| json!(name));
        match map.get(key).filter(|v| !v.is_null()) {
            Some(value) if !gemm.contains(value) => {
                return Err(unsupported(format_args!("{key} is {value}: another layout of AWQ's")));
            }
            _ => {}
        }
    }
    expect(map, "", "method", &[null.clone(), json!("awq")], Some(&null))?;
    let backends = ["autoawq", "auto", "legacy_awq"].map(|name| json!(name));
    match map.get("backend").filter(|v| !v.is_null()) {
        Some(backend) if !backends.contains(backend) => {
            return Err(unsupported(format_args!("backend is {backend}: another layout of AWQ's")));
        }
        _ => {}
    }
    let key = if map.contains_key("group_size") { "group_size" } else { "q_group_size" };
    Ok(Layout::Awq { group_size: group_size(map, "", key)? })
}

fn auto_round(map: &Map<String, Value>) -> Result<Layout> {
    expect_known(map, "", &AUTO_ROUND)?;
    four_bits(map, &["bits"])?;
    integers_alone(map, "")?;
    let group_size = group_size(map, "", "group_size")?;
    match map.get("extra_config") {
        None | Some(Value::Null) => {}
        Some(Value::Object(extra)) => {
            for (module, scheme) in extra {
                like_the_others(module, scheme, group_size)?;
            }
        }
        Some(_) => return Err(unsupported(format_args!("extra_config is {}", found(map, "extra_config")))),
    }
    // The second is what old versions call the first.
    let key = if map.contains_key("packing_format") { "packing_format" } else { "backend" };
    let format = map.get(key).and_then(Value::as_str).unwrap_or_default();
    match format.strip_prefix("auto_round") {
        Some(":auto_gptq" | ":gptq") => Ok(Layout::Gptq { group_size, less_one: true }),
        Some("" | ":gptqmodel" | ":exllamav2" | ":tritonv2" | ":triton") => {
            Ok(Layout::Gptq { group_size, less_one: false })
        }
        Some(":auto_awq" | ":awq") => Ok(Layout::Awq { group_size }),
        _ => Err(unsupported(format_args!("{key} is {}", found(map, key)))),
    }
}

/// A layer that is quantized in another way than the others, unless it is float.
fn like_the_others(module: &str, scheme: &Value, group_size_of_all: Option<usize>) -> Result<()> {
    let at = format!("extra_config.{module}.");
    let Value::Object(map) = scheme else {
        return Err(unsupported(format_args!("extra_config.{module} is {scheme}")));
    };
    if map.get("bits").and_then(Value::as_u64).is_some_and(|bits| bits >= 16) {
        return Ok(());
    }
    expect_known(map, &at, &EXTRA)?;
    expect(map, &at, "bits", &[json!(4)], Some(&json!(4)))?;
    integers_alone(map, &at)?;
    if map.contains_key("group_size") && group_size(map, &at, "group_size")? != group_size_of_all {
        return Err(unsupported(format_args!(
            "{at}group_size is {}, not that of the other layers",
            found(map, "group_size")
        )));
    }
    Ok(())
}

/// Integer weights, and activations that are not quantized.
fn integers_alone(map: &Map<String, Value>, at: &str) -> Result<()> {
    let null = Value::Null;
    let flag = [null.clone(), json!(true), json!(false)];
    expect(map, at, "sym", &flag, Some(&null))?;
    // A class's name is what some versions write for the default.
    expect(map, at, "data_type", &[null.clone(), json!("int")], Some(&null))?;
    match map.get("act_bits").filter(|v| !v.is_null()) {
        Some(bits) if bits.as_u64().is_none_or(|bits| bits < 16) => Err(unsupported(format_args!(
            "{at}act_bits is {bits}: activations were quantized when it was tuned"
        ))),
        _ => Ok(()),
    }
}

fn four_bits(map: &Map<String, Value>, names: &[&str]) -> Result<()> {
    if !names.iter().any(|name| map.contains_key(*name)) {
        return Err(unsupported(format_args!("bits is missing")));
    }
    names.iter().try_for_each(|name| expect(map, "", name, &[json!(4)], Some(&json!(4))))
}

fn packed_in_int32(map: &Map<String, Value>) -> Result<()> {
    let null = Value::Null;
    expect(map, "", "pack_dtype", &[null.clone(), json!("int32"), json!("torch.int32")], Some(&null))
}

fn group_size(map: &Map<String, Value>, at: &str, key: &str) -> Result<Option<usize>> {
    match map.get(key).and_then(Value::as_i64) {
        Some(-1) => Ok(None),
        Some(size) if GROUP_SIZES.iter().any(|g| i64::try_from(*g) == Ok(size)) => Ok(Some(size as usize)),
        Some(size) => Err(unsupported(format_args!(
            "{at}{key} is {size}, which the int8 kernels do not take (they take 32, 64, 128 and whole channels)"
        ))),
        None => Err(unsupported(format_args!("{at}{key} is {}", found(map, key)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &Value) -> Result<(Method, Layout), String> {
        read(value.as_object().unwrap()).map_err(|e| e.to_string())
    }

    fn with(base: &Value, key: &str, value: Value) -> Value {
        let mut changed = base.clone();
        changed[key] = value;
        changed
    }

    /// What the libraries write, with what they write beside it.
    #[test]
    fn configurations_of_the_libraries_are_read() {
        let gptqmodel = json!({
            "bits": 4, "checkpoint_format": "gptq", "desc_act": false, "dynamic": null, "group_size": 128,
            "lm_head": false, "meta": {"damp_percent": 0.01, "quantizer": ["gptqmodel:1.4.0"]},
            "pack_dtype": "int32", "quant_method": "gptq", "sym": true, "static_groups": false,
        });
        let optimum = json!({
            "batch_size": 1, "bits": 4, "block_name_to_quantize": "model.layers", "damp_percent": 0.1, "dataset": "c4",
            "desc_act": true, "group_size": -1, "modules_in_block_to_quantize": [["mlp.down_proj"]], "sym": false,
            "quant_method": "gptq", "use_exllama": true, "true_sequential": true, "pad_token_id": null,
        });
        let autoawq = json!({
            "bits": 4, "group_size": 64, "modules_to_not_convert": ["visual"], "quant_method": "awq",
            "version": "gemm", "zero_point": true,
        });
        let autoround = json!({
            "bits": 4, "group_size": 32, "sym": true, "data_type": "int", "quant_method": "auto-round",
            "packing_format": "auto_round:auto_gptq", "iters": 200, "autoround_version": "0.6.0", "act_bits": 16,
            "extra_config": {"model.layers.0.mlp.up_proj": {"bits": 16, "data_type": "float"}},
        });
        let gptq = |group_size, less_one| Layout::Gptq { group_size, less_one };
        for (value, expected) in [
            (gptqmodel.clone(), (Method::Gptq, gptq(Some(128), true))),
            (with(&gptqmodel, "checkpoint_format", json!("gptq_v2")), (Method::Gptq, gptq(Some(128), false))),
            (with(&gptqmodel, "dynamic", json!({"-:.*down.*": {}})), (Method::Gptq, gptq(Some(128), true))),
            (optimum, (Method::Gptq, gptq(None, true))),
            (autoawq.clone(), (Method::Awq, Layout::Awq { group_size: Some(64) })),
            (
                json!({"w_bit": 4, "q_group_size": 128, "zero_point": true, "version": "GEMM", "quant_method": "awq"}),
                (Method::Awq, Layout::Awq { group_size: Some(128) }),
            ),
            (autoround.clone(), (Method::AutoRound, gptq(Some(32), true))),
            (
                with(&autoround, "packing_format", json!("auto_round")),
                (Method::AutoRound, gptq(Some(32), false)),
            ),
            (
                with(&autoround, "packing_format", json!("auto_round:auto_awq")),
                (Method::AutoRound, Layout::Awq { group_size: Some(32) }),
            ),
        ] {
            assert_eq!(parse(&value), Ok(expected), "{value}");
        }
        for (base, key, value, says) in [
            (&gptqmodel, "bits", json!(8), "bits is 8"),
            (&gptqmodel, "group_size", json!(16), "group_size is 16, which the int8 kernels do not take"),
            (&gptqmodel, "group_size", json!("x"), "group_size is \"x\""),
            (&gptqmodel, "checkpoint_format", json!("marlin"), "checkpoint_format is \"marlin\""),
            (&gptqmodel, "format", json!("gptq_v2"), "disagree"),
            (
                &gptqmodel,
                "is_marlin_format",
                json!(true),
                "is_marlin_format is true, a key that is not known",
            ),
            (&gptqmodel, "lm_head", json!(true), "lm_head is true"),
            (&gptqmodel, "dynamic", json!({"+:.*v_proj": {"bits": 8}}), "dynamic.+:.*v_proj"),
            (&gptqmodel, "pack_dtype", json!("int16"), "pack_dtype"),
            (&gptqmodel, "rotation", json!("hadamard"), "rotation is \"hadamard\", a key that is not known"),
            (&autoawq, "version", json!("gemv"), "version is \"gemv\""),
            (&autoawq, "backend", json!("llm-awq"), "backend is \"llm-awq\""),
            (&autoround, "packing_format", json!("auto_round:llm_compressor"), "packing_format is"),
            (&autoround, "act_bits", json!(8), "act_bits is 8"),
            (&autoround, "data_type", json!("mx_fp"), "data_type is \"mx_fp\""),
            (&autoround, "extra_config", json!({"x": {"bits": 8}}), "extra_config.x.bits is 8"),
            (&autoround, "extra_config", json!({"x": {"group_size": 64}}), "extra_config.x.group_size is 64"),
            (&autoround, "rotation_config", json!({"a": 1}), "rotation_config"),
            (&autoawq, "quant_method", json!("bitsandbytes"), "quant_method is \"bitsandbytes\""),
        ] {
            let error = parse(&with(base, key, value)).unwrap_err();
            assert!(error.contains(says) && error.contains("qqq quantize"), "{says}: {error}");
        }
    }
}
