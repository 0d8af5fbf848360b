//! What a configuration declares of all layers, and their tensors must bear out: readers go by one or the other, so where the
//! two disagree the weights are not known.

use serde_json::{Map, Value};

use super::RawWeight;
use crate::{
    Result, int4,
    layer::Source,
    quantization_config::{found, unsupported},
};

/// What is declared of the groups of all layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Declared {
    /// All zero points are 8 (`sym`, AWQ's `zero_point: false`).
    pub symmetric: bool,
    /// Groups follow the order in which GPTQ has gone through the input channels, so that each layer must have a `g_idx`.
    pub act_order: bool,
}

impl Declared {
    /// Of the value of `quantization_config`.
    ///
    /// # Errors
    /// Flags that are neither true nor false.
    pub fn read(map: &Map<String, Value>) -> Result<Self> {
        if map.get("quant_method").and_then(Value::as_str) == Some("compressed-tensors") {
            // Whether its layers are symmetric is read with its rules.
            let groups = map.get("config_groups").and_then(Value::as_object);
            let ordered = |group: &Value| match group["weights"].get("actorder") {
                Some(Value::Bool(ordered)) => *ordered,
                Some(Value::String(order)) => ["group", "dynamic"].contains(&order.as_str()),
                _ => false,
            };
            let act_order = groups.is_some_and(|groups| groups.values().any(ordered));
            return Ok(Self { symmetric: false, act_order });
        }
        // A layer that is declared another way makes it a matter of each layer.
        let of_a_layer = |scheme: &Value| scheme.get("sym") == Some(&Value::Bool(false));
        let extra = map.get("extra_config").and_then(Value::as_object);
        let alike = !extra.is_some_and(|extra| extra.values().any(of_a_layer));
        let symmetric = match (flag(map, "zero_point")?, flag(map, "sym")?) {
            // AWQ's own key goes before the one that some writers add.
            (Some(zero_points), _) => !zero_points,
            (None, symmetric) => symmetric == Some(true) && alike,
        };
        let mut act_order = flag(map, "desc_act")? == Some(true);
        // Groups of neighbours, whatever the order; the last is an old name of the second.
        for neighbours in ["static_groups", "act_group_aware", "hyb_act"] {
            act_order &= flag(map, neighbours)? != Some(true);
        }
        Ok(Self { symmetric, act_order })
    }

    /// Checks that a layer has the `g_idx` that act-order needs (`tensor` is its name).
    ///
    /// # Errors
    /// It has none, and more groups than one.
    pub fn check_order(self, source: &Source<'_>, raw: &RawWeight, stored: bool, tensor: &str) -> Result<()> {
        if !self.act_order || stored || int4::groups(raw.k, raw.group_size) <= 1 {
            return Ok(());
        }
        Err(source.at(&format!(
            "its configuration says that groups follow the order of activations (desc_act true, actorder group), but there is \
             no {tensor}, which says what group each input channel belongs to; without it the weights are not known. Take a \
             complete checkpoint, or, if it was made without act-order or with static groups, correct desc_act or actorder"
        )))
    }

    /// Checks that the zero points of a symmetric layer are 8. `less_one`: the version in which GPTQ's layout was read, if it
    /// is that layout.
    ///
    /// # Errors
    /// Another zero point, with its place.
    pub fn check_zeros(self, source: &Source<'_>, raw: &RawWeight, less_one: Option<bool>) -> Result<()> {
        let groups = int4::groups(raw.k, raw.group_size).max(1);
        let Some(i) = raw.zeros.iter().position(|zero| *zero != 8).filter(|_| self.symmetric) else {
            return Ok(());
        };
        let (zero, row, group) = (raw.zeros[i], i / groups, i % groups);
        let why = match less_one {
            None => "correct sym or zero_point if the weights are asymmetric".to_owned(),
            Some(less_one) => {
                let (read, other) = if less_one { ("gptq", "gptq_v2") } else { ("gptq_v2", "gptq") };
                format!(
                    "it was read as the version {read}, and the checkpoint_format (AutoRound: packing_format) is probably the \
                     other one, {other}: gptq (auto_round:auto_gptq) stores the zero point less one, gptq_v2 (auto_round) the \
                     zero point. Correct that, or sym if the weights are asymmetric"
                )
            }
        };
        Err(source.at(&format!(
            "its configuration says that it is symmetric, with zero points of 8, but that of group {group} of output channel \
             {row} is {zero}; {why}"
        )))
    }
}

/// A flag, if it is there.
fn flag(map: &Map<String, Value>, key: &str) -> Result<Option<bool>> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(_) => Err(unsupported(format_args!("{key} is {}", found(map, key)))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn declarations_of_all_methods_are_read() {
        let of = |value: &Value| Declared::read(value.as_object().unwrap()).unwrap();
        let packed = |order: &Value| json!({"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"actorder": order}}}});
        for (value, symmetric, act_order) in [
            (json!({"sym": true, "desc_act": true}), true, true),
            (json!({"sym": false, "desc_act": false}), false, false),
            (json!({"sym": null, "desc_act": null}), false, false),
            (json!({"desc_act": true, "static_groups": true}), false, false),
            (json!({"desc_act": true, "static_groups": false, "act_group_aware": true}), false, false),
            (json!({"sym": true, "extra_config": {"x": {"sym": false}}}), false, false),
            (json!({"sym": true, "extra_config": {"x": {"bits": 16}}}), true, false),
            (json!({"zero_point": false}), true, false),
            (json!({"zero_point": true, "sym": true}), false, false),
            (packed(&json!("group")), false, true),
            (packed(&json!("dynamic")), false, true),
            (packed(&json!(true)), false, true),
            (packed(&json!("weight")), false, false),
            (packed(&json!("static")), false, false),
            (packed(&Value::Null), false, false),
        ] {
            assert_eq!(of(&value), Declared { symmetric, act_order }, "{value}");
        }
        let wrong = json!({"desc_act": "yes"});
        let error = Declared::read(wrong.as_object().unwrap()).unwrap_err().to_string();
        assert!(error.contains("desc_act is \"yes\""), "{error}");
    }
}
