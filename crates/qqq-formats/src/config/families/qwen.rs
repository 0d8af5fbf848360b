//! Qwen2 and Qwen2.5 (biases on q, k and v) and Qwen3 (norms on the heads of q and k), dense: Yang et al., arXiv 2412.15115
//! and arXiv 2505.09388; transformers' `modeling_qwen2` and `modeling_qwen3`.

use super::{Defaults, Family, Graph, SLIDING, layer_types, same_layers, window};
use crate::{Result, config::fields::Fields};

pub(super) const QWEN2: Family = Family {
    class: "Qwen2ForCausalLM",
    model_type: "qwen2",
    defaults: DEFAULTS,
    graph: |f, layers| Ok(Graph { qkv_bias: true, windows: windows(f, layers)?, ..Graph::plain(layers) }),
    ..Family::PLAIN
};

pub(super) const QWEN3: Family = Family {
    class: "Qwen3ForCausalLM",
    model_type: "qwen3",
    defaults: Defaults { head_dim: Some(128), null_head_dim: false, ..DEFAULTS },
    graph: |f, layers| {
        let bias = f.flag("attention_bias", false)?;
        let windows = windows(f, layers)?;
        Ok(Graph { qkv_bias: bias, o_bias: bias, qk_norm: true, windows, ..Graph::plain(layers) })
    },
    ..Family::PLAIN
};

const DEFAULTS: Defaults = Defaults {
    num_kv_heads: Some(32),
    max_position_embeddings: 32_768,
    sizes: [4096, 22_016, 32, 32, 151_936],
    ..Defaults::PLAIN
};

/// Windows slide where `layer_types` says so, or, without that list, from layer `max_window_layers` on.
fn windows(f: &Fields<'_>, layers: usize) -> Result<Vec<Option<usize>>> {
    let window = if f.flag("use_sliding_window", false)? { window(f, Some(4096))? } else { None };
    let types = layer_types(f, layers)?;
    if window.is_none() {
        return same_layers(f, layers, None);
    }
    let first = f.count("max_window_layers")?.unwrap_or(28);
    let slides = |layer: usize| types.get(layer).map_or(layer >= first, |kind| *kind == SLIDING);
    Ok((0..layers).map(|layer| window.filter(|_| slides(layer))).collect())
}
