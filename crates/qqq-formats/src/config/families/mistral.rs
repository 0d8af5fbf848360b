//! Mistral, dense: its window always slides unless the field is null (Jiang et al., arXiv 2310.06825; transformers'
//! `modeling_mistral`).

use super::{Defaults, Family, GateFunction, Graph, same_layers, window};

pub(super) const MISTRAL: Family = Family {
    class: "MistralForCausalLM",
    model_type: "mistral",
    own_keys: &[],
    gate: GateFunction::Silu,
    partial_rotary: false,
    local_rope_theta: None,
    defaults: Defaults { num_kv_heads: Some(8), max_position_embeddings: 131_072, ..Defaults::PLAIN },
    graph: |f, layers| {
        let windows = same_layers(f, layers, window(f, Some(4096))?)?;
        Ok(Graph { windows, ..Graph::plain(layers) })
    },
};
