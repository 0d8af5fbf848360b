//! `quantization_config` of QQQ tiles, as the reference (`wbits`, `group_size`) and GPTQModel write it.

use serde_json::{Map, Value, json};

use super::{CheckpointFormat, HEAD, QuantizationConfig, Rule, expect, expect_known, found, unsupported};
use crate::{
    LayerScheme, Result,
    keys::{KnownKeys, Neutral},
    module_pattern::ModulePattern,
    qqq::GROUP_SIZE,
};

/// How GPTQModel came to the weights, and on which machine: it leaves no trace in them. Its order of columns
/// (`desc_act`) leaves none in the layout.
pub(crate) const PROVENANCE: &[&str] = &[
    "act_group_aware",
    "auto_forward_data_parallel",
    "damp_auto_increment",
    "damp_percent",
    "dense_vram_strategy",
    "dense_vram_strategy_devices",
    "desc_act",
    "device",
    "failsafe",
    "fallback",
    "foem",
    "gc_mode",
    "gptaq",
    "hessian",
    "hyb_act",
    "meta",
    "model_file_base_name",
    "model_name_or_path",
    "moe",
    "moe_vram_strategy",
    "moe_vram_strategy_devices",
    "mse",
    "offload_to_disk",
    "offload_to_disk_path",
    "pack_impl",
    "parallel_packing",
    "static_groups",
    "true_sequential",
    "v2",
    "v2_alpha",
    "v2_memory_device",
    "vram_strategy",
    "wait_for_submodule_finalizers",
];

const KEYS: KnownKeys = KnownKeys {
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
        "w_bit",
        "wbits",
    ]],
    harmless: &[PROVENANCE],
    // AutoGPTQ's names for what is said by others here.
    neutral: &[("version", Neutral::Names(&["qqq"]))],
};

/// Keys of an override of `dynamic`.
const OVERRIDE_KEYS: KnownKeys =
    KnownKeys { read: &[&["bits", "group_size", "sym"]], harmless: &[PROVENANCE], neutral: &[] };

pub(super) fn read(map: &Map<String, Value>) -> Result<QuantizationConfig> {
    expect_known(map, "", &KEYS)?;
    let names = ["wbits", "bits", "w_bit"];
    if !names.iter().any(|name| map.contains_key(*name)) {
        return Err(unsupported(format_args!("bits is missing")));
    }
    let (null, four) = (Value::Null, json!(4));
    for name in names {
        expect(map, "", name, std::slice::from_ref(&four), Some(&four))?;
    }
    expect(map, "", "sym", &[null.clone(), json!(true)], Some(&null))?;
    expect(map, "", "lm_head", &[null.clone(), json!(false)], Some(&null))?;
    for key in ["format", "checkpoint_format", "method"] {
        expect(map, "", key, &[null.clone(), json!("qqq")], Some(&null))?;
    }
    expect(map, "", "pack_dtype", &[null.clone(), json!("int32"), json!("torch.int32")], Some(&null))?;

    let default = group_size(map, "")?;
    let mut rules = vec![Rule { pattern: ModulePattern::name(HEAD), scheme: None }];
    match map.get("dynamic") {
        None | Some(Value::Null) => {}
        Some(Value::Object(dynamic)) => {
            for (entry, overrides) in dynamic {
                rules.push(override_of(entry, overrides, default)?);
            }
        }
        Some(_) => return Err(unsupported(format_args!("dynamic is {}", found(map, "dynamic")))),
    }
    rules.push(Rule { pattern: ModulePattern::every_linear(), scheme: Some(tiles(default)) });
    Ok(QuantizationConfig { format: CheckpointFormat::Qqq, rules, simulated: None })
}

fn tiles(group_size: Option<usize>) -> LayerScheme {
    LayerScheme::w4a8(CheckpointFormat::Qqq, group_size)
}

fn group_size(map: &Map<String, Value>, at: &str) -> Result<Option<usize>> {
    match map.get("group_size").and_then(Value::as_i64) {
        Some(-1) => Ok(None),
        Some(size) if usize::try_from(size) == Ok(GROUP_SIZE) => Ok(Some(GROUP_SIZE)),
        _ => Err(unsupported(format_args!("{at}group_size is {}", found(map, "group_size")))),
    }
}

/// An entry of `dynamic`: an expression after `-:` keeps modules in float, one after `+:` (or nothing) changes how they
/// are quantized.
fn override_of(entry: &str, overrides: &Value, default: Option<usize>) -> Result<Rule> {
    let pattern = |regex: &str| {
        ModulePattern::regex(regex, entry)
            .map_err(|e| unsupported(format_args!("dynamic holds the expression {entry:?}: {e}")))
    };
    if let Some(regex) = entry.strip_prefix("-:") {
        return Ok(Rule { pattern: pattern(regex)?, scheme: None });
    }
    let at = format!("dynamic.{entry}.");
    let Value::Object(map) = overrides else {
        return Err(unsupported(format_args!("dynamic.{entry} is {overrides}")));
    };
    expect_known(map, &at, &OVERRIDE_KEYS)?;
    expect(map, &at, "bits", &[json!(4)], Some(&json!(4)))?;
    expect(map, &at, "sym", &[json!(true), Value::Null], Some(&Value::Null))?;
    let size = if map.contains_key("group_size") { group_size(map, &at)? } else { default };
    let regex = entry.strip_prefix("+:").unwrap_or(entry);
    Ok(Rule { pattern: pattern(regex)?, scheme: Some(tiles(size)) })
}

pub(super) fn write(rules: &[Rule]) -> Value {
    let size = |scheme: LayerScheme| scheme.group_size.map_or(json!(-1), |g| json!(g));
    let default = rules.last().and_then(|rule| rule.scheme).map_or(json!(-1), size);
    let mut value = json!({"quant_method": "qqq", "wbits": 4, "group_size": default});
    // Between the head's rule, which the format implies, and the last one.
    let overrides = rules.get(1..rules.len().saturating_sub(1)).unwrap_or_default();
    let dynamic: Map<String, Value> = overrides
        .iter()
        .map(|rule| {
            let change = rule.scheme.map_or(json!({}), |scheme| json!({"group_size": size(scheme)}));
            (rule.pattern.text().to_owned(), change)
        })
        .collect();
    if !dynamic.is_empty() {
        value["dynamic"] = dynamic.into();
    }
    value
}
