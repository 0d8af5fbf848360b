//! SmolLM3: Llama without the rotary embedding in every fourth layer (Yang et al., "Rope to Nope and Back Again", arXiv
//! 2501.18795; transformers' `modeling_smollm3`).

use super::{Defaults, Family, Graph, SLIDING, layer_types, window};

pub(super) const SMOLLM3: Family = Family {
    class: "SmolLM3ForCausalLM",
    model_type: "smollm3",
    own_keys: &["no_rope_layers", "no_rope_layer_interval"],
    defaults: Defaults {
        num_kv_heads: Some(4),
        max_position_embeddings: 32_768,
        rope_theta: 2_000_000.0,
        tie_word_embeddings: true,
        sizes: [2048, 11_008, 36, 16, 128_256],
        ..Defaults::PLAIN
    },
    graph: |f, layers| {
        let rotary: Vec<bool> = match f.is_there("no_rope_layers") {
            true => f.numbers("no_rope_layers")?.iter().map(|has| *has != 0.0).collect(),
            false => {
                let interval = f.size("no_rope_layer_interval", Some(4), usize::MAX)?;
                (1..=layers).map(|n| n % interval != 0).collect()
            }
        };
        if rotary.len() != layers {
            return Err(
                f.malformed(&format!("no_rope_layers has {} entries for {layers} layers", rotary.len()))
            );
        }
        let window = if f.flag("use_sliding_window", false)? { window(f, None)? } else { None };
        // Without a list, layers slide that have no rotary embedding.
        let types = layer_types(f, layers)?;
        let slides = |layer: usize| types.get(layer).map_or(!rotary[layer], |kind| *kind == SLIDING);
        let windows = match (window, types.contains(&SLIDING)) {
            (None, true) => return Err(f.malformed("layer_types has sliding layers, but no window slides")),
            (window, _) => (0..layers).map(|layer| window.filter(|_| slides(layer))).collect(),
        };
        let bias = f.flag("attention_bias", false)?;
        let mlp_bias = f.flag("mlp_bias", false)?;
        Ok(Graph { qkv_bias: bias, o_bias: bias, mlp_bias, windows, rotary, ..Graph::plain(layers) })
    },
    ..Family::PLAIN
};
