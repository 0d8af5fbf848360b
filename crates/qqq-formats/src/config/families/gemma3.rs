//! Gemma 3, text: norms before and after both halves of a block with weights around zero, a GELU gate, heads with norms, and
//! windows in five layers of six, which have a rotary embedding of their own (Gemma Team, arXiv 2503.19786; transformers'
//! `modeling_gemma3`).

use super::{Defaults, Family, GateFunction, Graph, SLIDING, layer_types, window};

pub(super) const GEMMA3: Family = Family {
    class: "Gemma3ForCausalLM",
    model_type: "gemma3_text",
    own_keys: &[
        "hidden_activation",
        "query_pre_attn_scalar",
        "rope_local_base_freq",
        "sliding_window_pattern",
        "_sliding_window_pattern",
    ],
    gate: GateFunction::GeluTanh,
    local_rope_theta: Some(10_000.0),
    defaults: Defaults {
        num_kv_heads: Some(4),
        head_dim: Some(256),
        null_head_dim: false,
        max_position_embeddings: 131_072,
        rope_theta: 1_000_000.0,
        tie_word_embeddings: true,
        sizes: [2304, 9216, 26, 8, 262_208],
        ..Defaults::PLAIN
    },
    graph: |f, layers| {
        let hidden = f.size("hidden_size", None, super::limit::WIDTH)?;
        let scalar = match f.number("query_pre_attn_scalar")?.unwrap_or(256.0) {
            scalar if scalar > 0.0 => scalar,
            scalar => return Err(f.malformed(&format!("query_pre_attn_scalar is {scalar}"))),
        };
        let window = window(f, Some(4096))?;
        let pattern = match f.is_there("sliding_window_pattern") {
            true => f.size("sliding_window_pattern", None, usize::MAX)?,
            false => f.size("_sliding_window_pattern", Some(6), usize::MAX)?,
        };
        let types = layer_types(f, layers)?;
        let slides = |layer: usize| match types.get(layer) {
            Some(kind) => *kind == SLIDING,
            None => !(layer + 1).is_multiple_of(pattern),
        };
        if window.is_none() && (0..layers).any(slides) {
            return Err(f.malformed("sliding_window is null, but some layers slide"));
        }
        let bias = f.flag("attention_bias", false)?;
        Ok(Graph {
            qkv_bias: bias,
            o_bias: bias,
            qk_norm: true,
            norm_offset: 1.0,
            norms_after: true,
            gate: GateFunction::GeluTanh,
            windows: (0..layers).map(|layer| window.filter(|_| slides(layer))).collect(),
            attention_scale: Some(scalar.powf(-0.5)),
            embedding_scale: (hidden as f64).sqrt(),
            ..Graph::plain(layers)
        })
    },
    ..Family::PLAIN
};
