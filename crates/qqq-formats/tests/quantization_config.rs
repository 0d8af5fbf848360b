//! `quantization_config`: both formats there and back, and what would run as something else.

mod common;

use std::path::Path;

use qqq_formats::{CheckpointFormat, FormatError, ModelConfig, QuantizationConfig};
use serde_json::{Value, json};

#[test]
fn both_quantization_formats_come_back_as_written() {
    for (format, group_size, ignore) in [
        (CheckpointFormat::Qqq, None, vec!["lm_head".to_owned()]),
        (CheckpointFormat::Qqq, Some(128), vec!["lm_head".to_owned()]),
        (CheckpointFormat::CompressedTensors, None, vec!["lm_head".to_owned()]),
        (CheckpointFormat::CompressedTensors, Some(32), vec![]),
        (CheckpointFormat::CompressedTensors, Some(64), vec!["lm_head".into(), "re:.*up_proj".into()]),
        (CheckpointFormat::CompressedTensors, Some(128), vec!["lm_head".to_owned()]),
    ] {
        let config = QuantizationConfig { format, group_size, ignore };
        assert_eq!(QuantizationConfig::from_value(&config.to_value()).unwrap(), config);
        let mut model = common::llama();
        model["quantization_config"] = config.to_value();
        let model = ModelConfig::from_value(Path::new("config.json"), model).unwrap();
        assert_eq!(model.quantization, Some(config));
    }
    let value =
        QuantizationConfig { format: CheckpointFormat::Qqq, group_size: None, ignore: vec![] }.to_value();
    assert_eq!(value, json!({"quant_method": "qqq", "wbits": 4, "group_size": -1}));
}

/// What GPTQModel writes beside its QQQ tiles.
fn gptqmodel() -> Value {
    json!({
        "quant_method": "qqq", "checkpoint_format": "qqq", "bits": 4, "group_size": 128, "desc_act": true, "sym": true,
        "lm_head": false, "pack_dtype": "int32", "dynamic": null, "meta": {"quantizer": ["gptqmodel:2.1.0"]}
    })
}

#[test]
fn gptqmodels_configuration_is_read() {
    let config = QuantizationConfig::from_value(&gptqmodel()).unwrap();
    assert_eq!((config.format, config.group_size), (CheckpointFormat::Qqq, Some(128)));
    for (key, value) in [
        ("bits", json!(8)),
        ("sym", json!(false)),
        ("lm_head", json!(true)),
        ("checkpoint_format", json!("gptq")),
        ("dynamic", json!({"-:.*down.*": {}})),
        ("group_size", json!(64)),
    ] {
        let mut bad = gptqmodel();
        bad[key] = value;
        let error = QuantizationConfig::from_value(&bad).unwrap_err();
        assert!(error.to_string().contains(key), "{error}");
    }
}

/// What llm-compressor writes for its W4A8 preset, with all the fields of its pydantic models.
fn llm_compressor() -> Value {
    json!({
        "config_groups": {
            "group_0": {
                "format": "pack-quantized",
                "input_activations": {
                    "actorder": null, "block_structure": null, "dynamic": true, "group_size": null,
                    "num_bits": 8, "observer": null, "observer_kwargs": {}, "strategy": "token",
                    "symmetric": true, "type": "int"
                },
                "output_activations": null,
                "targets": ["Linear"],
                "weights": {
                    "actorder": "static", "block_structure": null, "dynamic": false, "group_size": 128,
                    "num_bits": 4, "observer": "minmax", "observer_kwargs": {}, "strategy": "group",
                    "symmetric": true, "type": "int"
                }
            }
        },
        "format": "pack-quantized",
        "global_compression_ratio": null,
        "ignore": ["lm_head"],
        "kv_cache_scheme": null,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": "0.12.2"
    })
}

#[test]
fn llm_compressor_checkpoints_are_read() {
    let config = QuantizationConfig::from_value(&llm_compressor()).unwrap();
    assert_eq!(config.group_size, Some(128));
    assert!(config.ignores("lm_head") && !config.ignores("model.layers.0.mlp.down_proj"));
}

#[test]
fn what_would_run_as_something_else_is_refused() {
    let at = |path: &str, value: Value| {
        let mut config = llm_compressor();
        *config.pointer_mut(path).unwrap_or_else(|| panic!("{path}")) = value;
        QuantizationConfig::from_value(&config)
    };
    let group = "/config_groups/group_0";
    for (path, value, words) in [
        ("/quant_method", json!("gptq"), "quant_method is \"gptq\""),
        ("/quant_method", json!("awq"), "quant_method is \"awq\""),
        ("/format", json!("int-quantized"), "format is \"int-quantized\""),
        ("/quantization_status", json!("frozen"), "quantization_status"),
        ("/kv_cache_scheme", json!({"num_bits": 8}), "kv_cache_scheme"),
        ("/transform_config", json!({"config_groups": {"u": {}}}), "transform_config"),
        ("/sparsity_config", json!({"format": "sparse-24-bitmask"}), "sparsity_config"),
        ("/config_groups", json!({}), "config_groups"),
        ("/ignore", json!(["re:(a|b)"]), "re:(a|b)"),
        (&format!("{group}/targets"), json!(["re:.*mlp.*"]), "targets"),
        (&format!("{group}/input_activations"), json!(null), "W4A16"),
        (&format!("{group}/output_activations"), json!({"num_bits": 8}), "output_activations"),
        (&format!("{group}/weights"), json!(null), "weights"),
        (&format!("{group}/weights/num_bits"), json!(8), "weights.num_bits is 8"),
        (&format!("{group}/weights/symmetric"), json!(false), "weights.symmetric is false"),
        (&format!("{group}/weights/type"), json!("float"), "weights.type"),
        (&format!("{group}/weights/actorder"), json!("group"), "weights.actorder"),
        (&format!("{group}/weights/group_size"), json!(16), "weights.group_size is 16"),
        (&format!("{group}/weights/group_size"), json!(null), "strategy"),
        (&format!("{group}/weights/strategy"), json!("tensor"), "strategy"),
        (&format!("{group}/weights/strategy"), json!("channel"), "strategy"),
        (&format!("{group}/input_activations/num_bits"), json!(4), "input_activations.num_bits"),
        (&format!("{group}/input_activations/symmetric"), json!(false), "input_activations.symmetric"),
        (&format!("{group}/input_activations/dynamic"), json!(false), "input_activations.dynamic"),
        (&format!("{group}/input_activations/strategy"), json!("tensor"), "input_activations.strategy"),
        (&format!("{group}/input_activations/type"), json!("float"), "input_activations.type"),
    ] {
        match at(path, value) {
            Err(FormatError::Unsupported(text)) => {
                assert!(text.contains(words), "{text:?} does not contain {words:?}");
                assert!(text.contains("pack-quantized"), "{text}");
            }
            other => panic!("{path}: {other:?}"),
        }
    }
    let mut two = llm_compressor();
    two["config_groups"]["group_1"] = two["config_groups"]["group_0"].clone();
    assert!(QuantizationConfig::from_value(&two).is_err());
    for value in [
        json!({"quant_method": "qqq", "wbits": 8, "group_size": -1}),
        json!({"quant_method": "qqq", "wbits": 4, "group_size": 64}),
        json!({"quant_method": "qqq", "wbits": 4}),
        json!({"wbits": 4}),
        json!("qqq"),
    ] {
        assert!(
            matches!(QuantizationConfig::from_value(&value), Err(FormatError::Unsupported(_))),
            "{value}"
        );
    }
}
