//! Mistral, dense: its window always slides unless the field is null (Jiang et al., arXiv 2310.06825; transformers'
//! `modeling_mistral`).

use super::{Defaults, Family, Graph, same_layers, window};

pub(super) const MISTRAL: Family = Family {
    class: "MistralForCausalLM",
    model_type: "mistral",
    defaults: Defaults {
        num_kv_heads: Some(8),
        max_position_embeddings: 131_072,
        sizes: [4096, 14_336, 32, 32, 32_000],
        ..Defaults::PLAIN
    },
    graph: |f, layers| {
        let windows = same_layers(f, layers, window(f, Some(4096))?)?;
        Ok(Graph { windows, ..Graph::plain(layers) })
    },
    ..Family::PLAIN
};
