//! Layers whose inputs come in another order (act-order), resolved in the layer that makes these inputs.
//!
//! The input of `down_proj` is made channel by channel of the outputs of gate and up, so that these can be made in the order that
//! `down_proj` needs: their rows change places, and nothing that is computed changes. The inputs of q, k, v and of gate, up are
//! the residual stream, which all blocks share and whose channels have one order; the input of `o_proj` is bound to heads.

use qqq_formats::{FormatError, Int4Layer, ModelConfig};
use qqq_model::{Site, names};

use super::wrong;
use crate::Result;

/// The order in which gate and up make their channels.
pub(super) struct RowOrder(Vec<usize>);

impl RowOrder {
    /// That of the rows of layer `prefix`: where gate and up are one layer, each half's.
    pub fn of(&self, prefix: &str) -> Vec<usize> {
        let mut rows = self.0.clone();
        if prefix.ends_with(names::GATE_UP) {
            rows.extend(self.0.iter().map(|row| row + self.0.len()));
        }
        rows
    }
}

/// Resolves the orders of a block's quantized layers. Returns in which order gate and up make their channels, if it is
/// another one.
///
/// # Errors
/// An order that nothing before the layer can make.
pub(super) fn fold(
    layers: &mut [(Site, String, Int4Layer)],
    config: &ModelConfig,
) -> Result<Option<RowOrder>> {
    if let Some((site, prefix, _)) =
        layers.iter().find(|(site, _, layer)| *site != Site::Down && layer.order.is_some())
    {
        let why = match site {
            Site::O => "is the attention's output, whose channels are bound to heads",
            _ => "is the residual stream, whose channels all blocks share",
        };
        return Err(FormatError::Unsupported(format!(
            "{prefix}: its groups follow the order of activations (act-order: g_idx), and its input {why}, so no layer can \
             make it in that order; integer kernels need groups of neighbours. Take a checkpoint that was made with desc_act \
             false, or with static groups (static_groups, act_group_aware), or quantize the float model"
        ))
        .into());
    }
    let down = layers.iter_mut().find(|(site, ..)| *site == Site::Down);
    let Some(rows) = down.and_then(|(.., layer)| layer.order.take()) else { return Ok(None) };
    let rows = RowOrder(rows);
    let mut made = 0;
    for (_, prefix, layer) in layers.iter_mut().filter(|(site, ..)| *site == Site::GateUp) {
        layer.weight = layer.weight.with_rows(&rows.of(prefix)).map_err(|e| wrong(prefix, &e.to_string()))?;
        made += 1;
    }
    if made != Site::GateUp.modules(config).len() {
        return Err(FormatError::Unsupported(
            "mlp.down_proj: its groups follow the order of activations (act-order), and gate and up, which would have to make \
             their outputs in that order, are not quantized; quantize the float model"
                .into(),
        )
        .into());
    }
    Ok(Some(rows))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use qqq_formats::{Int4Weight, WeightData, foreign::Changes};
    use serde_json::json;

    use super::*;

    const HIDDEN: usize = 4;
    const WIDE: usize = 8;

    fn config(model_type: &str, class: &str) -> ModelConfig {
        let value = json!({
            "architectures": [class], "model_type": model_type, "hidden_act": "silu", "hidden_size": HIDDEN,
            "intermediate_size": WIDE, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 16,
            "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "pad_token_id": 0, "max_position_embeddings": 64,
        });
        ModelConfig::from_value(Path::new("config.json"), value).unwrap()
    }

    /// Groups of two channels with scales that are integers, so that sums of products are exact.
    fn layer(
        site: Site,
        name: &str,
        n: usize,
        k: usize,
        order: Option<Vec<usize>>,
    ) -> (Site, String, Int4Layer) {
        let codes = (0..n * k).map(|i| (i * 5 % 15) as i8 - 7).collect();
        let scales = WeightData::F32((0..n * k / 2).map(|i| 1.0 + (i % 3) as f32).collect());
        let weight = Int4Weight { out_features: n, in_features: k, codes, group_size: Some(2), scales };
        (site, format!("model.layers.0.{name}"), Int4Layer { weight, order, changes: Changes::default() })
    }

    fn product(layer: &Int4Layer, x: &[f32]) -> Vec<f32> {
        let weights = layer.weight.dequantize();
        weights
            .chunks(layer.weight.in_features)
            .map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum())
            .collect()
    }

    /// What a block's MLP computes, with products of gate and up as its gated activation; `order` are the channels that
    /// down's columns are for.
    fn mlp(layers: &[(Site, String, Int4Layer)], order: Option<&[usize]>) -> Vec<f32> {
        let x: Vec<f32> = (0..HIDDEN).map(|i| i as f32 - 1.0).collect();
        let all: Vec<f32> =
            layers[..layers.len() - 1].iter().flat_map(|(.., layer)| product(layer, &x)).collect();
        let gated: Vec<f32> = (0..WIDE).map(|i| all[i] * all[WIDE + i]).collect();
        let channels: Vec<f32> = match order {
            None => gated,
            Some(order) => order.iter().map(|channel| gated[*channel]).collect(),
        };
        product(&layers[layers.len() - 1].2, &channels)
    }

    const ORDER: [usize; WIDE] = [3, 0, 7, 1, 2, 6, 5, 4];

    #[test]
    fn an_order_of_down_goes_into_gate_and_up() {
        for (model_type, class, modules) in [
            ("llama", "LlamaForCausalLM", vec![(names::GATE, WIDE), (names::UP, WIDE)]),
            ("phi3", "Phi3ForCausalLM", vec![(names::GATE_UP, 2 * WIDE)]),
        ] {
            let mut layers: Vec<_> =
                modules.iter().map(|(name, n)| layer(Site::GateUp, name, *n, HIDDEN, None)).collect();
            layers.push(layer(Site::Down, names::DOWN, HIDDEN, WIDE, Some(ORDER.to_vec())));
            let expected = mlp(&layers, Some(&ORDER));
            assert_ne!(mlp(&layers, None), expected, "the order matters");
            let rows = fold(&mut layers, &config(model_type, class)).unwrap().unwrap();
            assert_eq!(mlp(&layers, None), expected, "{class}");
            assert!(layers.iter().all(|(.., layer)| layer.order.is_none()));
            assert_eq!(rows.of(&layers[0].1).len(), modules[0].1);
            // Done once, it is done.
            assert!(fold(&mut layers, &config(model_type, class)).unwrap().is_none());
        }
    }

    #[test]
    fn orders_that_nothing_can_make_are_refused() {
        let order = || Some((0..HIDDEN).rev().collect::<Vec<_>>());
        let config = config("llama", "LlamaForCausalLM");
        for (site, name, why) in [
            (Site::Qkv, names::Q, "residual stream"),
            (Site::GateUp, names::GATE, "residual stream"),
            (Site::O, names::O, "bound to heads"),
        ] {
            let mut layers = [layer(site, name, HIDDEN, HIDDEN, order())];
            let error = fold(&mut layers, &config).err().unwrap().to_string();
            assert!(error.contains(why) && error.contains(name) && error.contains("desc_act"), "{error}");
        }
        // Gate and up are float.
        let mut layers = [layer(Site::Down, names::DOWN, HIDDEN, WIDE, Some(ORDER.to_vec()))];
        let error = fold(&mut layers, &config).err().unwrap().to_string();
        assert!(error.contains("gate and up"), "{error}");
    }
}
