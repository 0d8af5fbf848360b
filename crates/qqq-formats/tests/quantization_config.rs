//! `quantization_config`: both formats there and back, and what would run as something else.

mod common;

use std::path::Path;

use qqq_formats::{
    Activations, CheckpointFormat, CodeBits, CodeLayout, FormatError, LayerScheme, ModelConfig,
    QuantizationConfig,
};
use serde_json::{Value, json};

#[test]
fn both_quantization_formats_come_back_as_written() {
    for (format, group_size) in [
        (CheckpointFormat::Qqq, None),
        (CheckpointFormat::Qqq, Some(128)),
        (CheckpointFormat::CompressedTensors, None),
        (CheckpointFormat::CompressedTensors, Some(32)),
        (CheckpointFormat::CompressedTensors, Some(64)),
        (CheckpointFormat::CompressedTensors, Some(128)),
    ] {
        let config = QuantizationConfig::uniform(format, group_size);
        assert_eq!(QuantizationConfig::from_value(&config.to_value()).unwrap(), config);
        let layout = if format == CheckpointFormat::Qqq { CodeLayout::Tiles } else { CodeLayout::Packed };
        assert_eq!(
            config.schemes(),
            [LayerScheme { bits: CodeBits::Four, activations: Activations::Int8, group_size, layout }]
        );
        assert!(config.ignores("lm_head") && !config.ignores("model.layers.0.mlp.down_proj"));
        let mut model = common::llama();
        model["quantization_config"] = config.to_value();
        let model = ModelConfig::from_value(Path::new("config.json"), model).unwrap();
        assert_eq!(model.quantization, Some(config));
    }
    let value = QuantizationConfig::uniform(CheckpointFormat::Qqq, None).to_value();
    assert_eq!(value, json!({"quant_method": "qqq", "wbits": 4, "group_size": -1}));
    // Without it, compressed-tensors since 0.15 takes the weights for int-quantized.
    let value = QuantizationConfig::uniform(CheckpointFormat::CompressedTensors, None).to_value();
    assert_eq!(value.pointer("/config_groups/group_0/format"), Some(&json!("pack-quantized")));
    assert_eq!(value["ignore"], json!(["lm_head"]));
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
    assert_eq!((config.format, sizes(&config)), (CheckpointFormat::Qqq, vec![Some(128)]));
    for (key, value) in [
        ("true_sequential", json!(true)),
        ("static_groups", json!(false)),
        ("damp_percent", json!(0.05)),
        ("method", json!("qqq")),
        ("rotation", json!(null)),
        ("adapter", json!({})),
        ("zero_point", json!(false)),
    ] {
        let mut good = gptqmodel();
        good[key] = value;
        assert_eq!(QuantizationConfig::from_value(&good).unwrap(), config, "{key}");
    }
    for (key, value) in [
        ("rotation", json!("hadamard")),
        ("adapter", json!({"name": "lora", "path": "x", "rank": 64})),
        ("activation", json!({"bits": 8})),
        ("pack_dtype", json!("int16")),
        ("zero_point", json!(true)),
        ("weight_bits", json!(3)),
        ("version", json!("gemm")),
        ("wbits", json!(8)),
        ("modules_in_block_to_quantize", json!([["self_attn.q_proj"]])),
        ("bits", json!(8)),
        ("sym", json!(false)),
        ("lm_head", json!(true)),
        ("checkpoint_format", json!("gptq")),
        ("dynamic", json!({"-:(.*down": {}})),
        ("dynamic", json!({"+:.*down.*": {"bits": 8}})),
        ("dynamic", json!({".*down.*": {"group_size": 64}})),
        ("dynamic", json!({".*down.*": {"adapter": {"rank": 8}}})),
        ("dynamic", json!([".*down.*"])),
        ("group_size", json!(64)),
    ] {
        let mut bad = gptqmodel();
        bad[key] = value;
        let error = QuantizationConfig::from_value(&bad).unwrap_err();
        assert!(error.to_string().contains(key), "{error}");
    }
}

fn sizes(config: &QuantizationConfig) -> Vec<Option<usize>> {
    config.schemes().iter().map(|s| s.group_size).collect()
}

/// The group size of a layer; "float" for one that is not quantized.
fn size(config: &QuantizationConfig, module: &str) -> String {
    config.scheme(module).unwrap().map_or("float".into(), |s| format!("{:?} {:?}", s.layout, s.group_size))
}

#[test]
fn overrides_of_gptqmodel_hold_for_the_modules_that_they_name() {
    let mut value = gptqmodel();
    value["dynamic"] = json!({
        "-:model\\.layers\\.0\\.mlp\\.down": {},
        "+:.*down_proj": {"group_size": -1, "desc_act": false},
        ".*mlp": {"bits": 4, "sym": true}
    });
    let config = QuantizationConfig::from_value(&value).unwrap();
    for (module, expected) in [
        ("model.layers.0.mlp.down_proj", "float"),
        ("model.layers.1.mlp.down_proj", "Tiles None"),
        ("model.layers.0.mlp.up_proj", "Tiles Some(128)"),
        ("model.layers.0.self_attn.q_proj", "Tiles Some(128)"),
        ("lm_head", "float"),
    ] {
        assert_eq!(size(&config, module), expected, "{module}");
    }
    assert_eq!(QuantizationConfig::from_value(&config.to_value()).unwrap(), config);
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
    assert_eq!(sizes(&config), [Some(128)]);
    assert!(config.ignores("lm_head") && !config.ignores("model.layers.0.mlp.down_proj"));
}

/// As llm-compressor writes it since compressed-tensors 0.15: `int-quantized`, fewer fields.
#[test]
fn a_code_in_a_byte() {
    let group = |format: Value| {
        json!({
            "targets": ["Linear"], "format": format, "output_activations": null,
            "input_activations": {
                "dynamic": true, "group_size": null, "num_bits": 8, "strategy": "token", "symmetric": true, "type": "int"
            },
            "weights": {
                "dynamic": false, "group_size": 128, "num_bits": 4, "strategy": "group", "symmetric": true, "type": "int"
            }
        })
    };
    for (format, own) in [
        ("int-quantized", json!("int-quantized")),
        ("int-quantized", json!(null)),
        ("mixed-precision", json!("int-quantized")),
        ("naive-quantized", json!("naive-quantized")),
    ] {
        let value = json!({
            "quant_method": "compressed-tensors", "format": format, "quantization_status": "compressed",
            "config_groups": {"group_0": group(own)}, "ignore": ["lm_head"], "version": "0.20.0",
            "sparsity_config": {"format": "dense", "global_sparsity": 0.1}, "transform_config": {"config_groups": {}},
            "moe_sparsity_config": null
        });
        let config = QuantizationConfig::from_value(&value).unwrap();
        assert_eq!(size(&config, "model.layers.0.mlp.up_proj"), "Bytes Some(128)", "{format}");
        assert_eq!(QuantizationConfig::from_value(&config.to_value()).unwrap(), config);
    }
    let preset = json!({
        "quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"W4A8": ["Linear"]},
    });
    let config = QuantizationConfig::from_value(&preset).unwrap();
    assert_eq!(size(&config, "lm_head"), "Packed Some(128)", "nothing is ignored");
}

/// Which group counts, as `match_targets` of compressed-tensors 0.20 finds it: names before expressions (in the order of
/// their texts) before classes; nothing for modules that no group targets.
#[test]
fn groups_of_layers() {
    let group = |targets: Value, format: &str, size: Value| {
        let mut group = llm_compressor()["config_groups"]["group_0"].clone();
        group["targets"] = targets;
        group["format"] = json!(format);
        group["weights"]["strategy"] = json!(if size.is_null() { "channel" } else { "group" });
        group["weights"]["group_size"] = size;
        group
    };
    let mut value = llm_compressor();
    value["format"] = json!("mixed-precision");
    value["ignore"] = json!(["lm_head", "re:.*layers\\.(2|3)\\.mlp"]);
    value["config_groups"] = json!({
        "group_0": group(json!(["re:.*self_attn.*", "re:.*layers.1.*"]), "pack-quantized", json!(32)),
        "group_1": group(json!(["model.layers.0.self_attn.o_proj", "re:.*down_proj"]), "int-quantized", json!(null)),
        "group_2": group(json!(["re:.*(up|gate)_proj$"]), "int-quantized", json!(64)),
    });
    let config = QuantizationConfig::from_value(&value).unwrap();
    for (module, expected) in [
        ("model.layers.0.self_attn.q_proj", "Packed Some(32)"),
        ("model.layers.0.self_attn.o_proj", "Bytes None"),
        ("model.layers.0.mlp.up_proj", "Bytes Some(64)"),
        ("model.layers.0.mlp.down_proj", "Bytes None"),
        // "re:.*(" comes before "re:.*d" and that before "re:.*l".
        ("model.layers.1.mlp.up_proj", "Bytes Some(64)"),
        ("model.layers.1.mlp.down_proj", "Bytes None"),
        ("model.layers.2.mlp.down_proj", "float"),
        ("model.layers.2.self_attn.k_proj", "Packed Some(32)"),
        ("lm_head", "float"),
        ("other", "float"),
    ] {
        assert_eq!(size(&config, module), expected, "{module}");
    }
    assert_eq!(QuantizationConfig::from_value(&config.to_value()).unwrap(), config);
    value["config_groups"]["group_3"] = group(json!(["Linear"]), "pack-quantized", json!(128));
    let config = QuantizationConfig::from_value(&value).unwrap();
    assert_eq!(size(&config, "other"), "Packed Some(128)");
}

/// Schemes of several kinds in one checkpoint, as llm-compressor writes W8A8 and W4A16 beside W4A8; presets by their names.
#[test]
fn schemes_side_by_side() {
    let mut value = llm_compressor();
    let (mut w8a8, mut w4a16) = (value["config_groups"]["group_0"].clone(), json!(null));
    w8a8["targets"] = json!(["re:.*down_proj"]);
    w8a8["format"] = json!("int-quantized");
    w8a8["weights"]["num_bits"] = json!(8);
    w8a8["weights"]["strategy"] = json!("channel");
    w8a8["weights"]["group_size"] = json!(null);
    std::mem::swap(&mut w4a16, &mut value["config_groups"]["group_0"]);
    let mut w8a16 = w8a8.clone();
    w8a16["targets"] = json!(["re:.*o_proj"]);
    w8a16["format"] = json!("pack-quantized");
    let mut w4a8 = w4a16.clone();
    for group in [&mut w4a16, &mut w8a16] {
        group["input_activations"] = json!(null);
    }
    w4a8["targets"] = json!(["re:.*gate_proj"]);
    value["config_groups"] = json!({"group_0": w4a16, "group_1": w8a8, "group_2": w8a16, "group_3": w4a8});
    value["format"] = json!("mixed-precision");
    let config = QuantizationConfig::from_value(&value).unwrap();
    let scheme = |module: &str| {
        let scheme = config.scheme(module).unwrap();
        scheme.map_or("float".into(), |s| format!("{s} {:?}", s.layout))
    };
    for (module, expected) in [
        ("model.layers.0.self_attn.q_proj", "W4A16 g128 Packed"),
        ("model.layers.0.self_attn.o_proj", "W8A16 Packed"),
        ("model.layers.0.mlp.down_proj", "W8A8 Bytes"),
        ("model.layers.0.mlp.gate_proj", "W4A8 g128 Packed"),
        ("lm_head", "float"),
    ] {
        assert_eq!(scheme(module), expected, "{module}");
    }
    let written = config.to_value();
    assert_eq!(written["format"], "mixed-precision");
    assert_eq!(QuantizationConfig::from_value(&written).unwrap(), config);

    for (name, expected) in
        [("W4A8", "W4A8 g128"), ("W8A8", "W8A8"), ("INT8", "W8A8"), ("w4a16", "W4A16 g128")]
    {
        let preset = json!({
            "quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {name: ["Linear"]},
        });
        let schemes = QuantizationConfig::from_value(&preset).unwrap().schemes();
        assert_eq!(schemes.iter().map(ToString::to_string).collect::<Vec<_>>(), [expected], "{name}");
    }
    let preset = json!({
        "quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"W8A16": ["Linear"]},
    });
    let error = QuantizationConfig::from_value(&preset).unwrap_err().to_string();
    assert!(error.contains("config_groups.W8A16 is"), "{error}");
}

/// What the quantizer's rules become; the rules of a file mean the same when it is read.
#[test]
fn rules_by_module() {
    let format = CheckpointFormat::CompressedTensors;
    let new = |bits, activations, size| LayerScheme::new(format, bits, activations, size).unwrap();
    let w4a8 = LayerScheme::w4a8(format, Some(64));
    let w8a8 = new(CodeBits::Eight, Activations::Int8, None);
    let w4a16 = new(CodeBits::Four, Activations::Half, Some(32));
    let rules = [
        ("re:.*down_proj", Some(w8a8)),
        ("model.layers.1.mlp.down_proj", Some(w4a16)),
        ("model.layers.2.mlp.down_proj", None),
        ("re:.*layers\\.3\\.", None),
    ];
    let config = QuantizationConfig::by_module(w4a8, rules).unwrap();
    let shown = |config: &QuantizationConfig, module: &str| {
        config.scheme(module).unwrap().map_or("float".into(), |s| s.to_string())
    };
    for (module, expected) in [
        ("model.layers.0.mlp.up_proj", "W4A8 g64"),
        ("model.layers.0.mlp.down_proj", "W8A8"),
        ("model.layers.1.mlp.down_proj", "W4A16 g32"),
        ("model.layers.2.mlp.down_proj", "float"),
        ("model.layers.3.mlp.down_proj", "float"),
        ("lm_head", "float"),
    ] {
        assert_eq!(shown(&config, module), expected, "{module}");
    }
    let written = config.to_value();
    assert_eq!(QuantizationConfig::from_value(&written).unwrap(), config);
    assert_eq!(written["format"], "mixed-precision");
    assert_eq!(
        QuantizationConfig::by_module(w4a8, []).unwrap(),
        QuantizationConfig::uniform(format, Some(64))
    );
    let head = QuantizationConfig::by_module(w4a8, [("lm_head", Some(w8a8))]).unwrap();
    assert_eq!(shown(&head, "lm_head"), "W8A8");
    assert_eq!((head.schemes(), head.block_schemes()), (vec![w8a8, w4a8], vec![w4a8]));
    // A group of its own, and nothing is ignored.
    let value = head.to_value();
    assert_eq!(value["config_groups"]["group_0"]["targets"], json!(["lm_head"]));
    assert_eq!(value["ignore"], json!([]));
    assert_eq!(QuantizationConfig::from_value(&value).unwrap(), head);
    let mut reversed = rules;
    reversed.reverse();
    assert_eq!(QuantizationConfig::by_module(w4a8, reversed).unwrap(), config, "in whatever order");

    let fails = |others, rules: &[(&str, Option<LayerScheme>)]| {
        QuantizationConfig::by_module(others, rules.iter().copied()).unwrap_err().to_string()
    };
    assert!(fails(w4a8, &[("re:(a", None)]).contains("re:(a"));
    let twice = fails(w4a8, &[("re:a", Some(w8a8)), ("re:a", Some(w4a16))]);
    assert!(twice.contains("\"re:a\" is to be both W8A8 and W4A16 g32"), "{twice}");
    let tiles = LayerScheme::w4a8(CheckpointFormat::Qqq, None);
    assert!(fails(tiles, &[]).contains("compressed-tensors"));
    let groups = LayerScheme { group_size: Some(64), ..w8a8 };
    assert!(fails(w4a8, &[("re:a", Some(groups))]).contains("no groups of 64"));
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
        ("/format", json!("marlin-24"), "format is \"marlin-24\""),
        ("/format", json!("float-quantized"), "format is \"float-quantized\""),
        ("/format", json!("nvfp4-pack-quantized"), "format is \"nvfp4-pack-quantized\""),
        ("/quantization_status", json!("frozen"), "quantization_status"),
        ("/kv_cache_scheme", json!({"num_bits": 8}), "kv_cache_scheme"),
        ("/transform_config", json!({"config_groups": {"u": {}}}), "transform_config"),
        ("/sparsity_config", json!({"format": "sparse-24-bitmask"}), "sparsity_config"),
        ("/config_groups", json!({}), "config_groups"),
        ("/ignore", json!(["re:(a|b"]), "re:(a|b"),
        ("/ignore", json!("lm_head"), "ignore is \"lm_head\""),
        (&format!("{group}/targets"), json!(["re:*"]), "targets"),
        (&format!("{group}/targets"), json!([3]), "targets"),
        (&format!("{group}/format"), json!("float-quantized"), "group_0.format is \"float-quantized\""),
        (&format!("{group}/weights/block_structure"), json!([16, 16]), "weights.block_structure is [16,16]"),
        (
            &format!("{group}/input_activations/dynamic"),
            json!("local"),
            "input_activations.dynamic is \"local\"",
        ),
        (&format!("{group}/input_activations"), json!(8), "input_activations is 8"),
        (&format!("{group}/output_activations"), json!({"num_bits": 8}), "output_activations"),
        (&format!("{group}/weights"), json!(null), "weights"),
        (
            &format!("{group}/weights/num_bits"),
            json!(8),
            "weights.num_bits is 8: 8-bit weights have one scale an output channel here, no groups of 128",
        ),
        (&format!("{group}/weights/num_bits"), json!(3), "weights.num_bits is 3"),
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
    for (at, key) in
        [("", "rotation"), (group, "input_transform"), (&format!("{group}/weights"), "zero_points")]
    {
        let mut value = llm_compressor();
        value.pointer_mut(at).unwrap()[key] = json!("x");
        let error = QuantizationConfig::from_value(&value).unwrap_err().to_string();
        assert!(error.contains(&format!("{key} is \"x\"")), "{error}");
    }
    let mut two = llm_compressor();
    two["config_groups"]["group_1"] = two["config_groups"]["group_0"].clone();
    two["config_groups"]["group_1"]["weights"]["num_bits"] = json!(8);
    let error = QuantizationConfig::from_value(&two).unwrap_err().to_string();
    assert!(error.contains("config_groups.group_1.weights.num_bits is 8"), "{error}");
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
