//! Ministral 3: Mistral with a rotary embedding scaled by YaRN, and queries that grow with the position as in Llama 4
//! (transformers' `modeling_ministral3`; the scaling is that of Nakanishi, "Scalable-Softmax Is Superior for Attention",
//! arXiv 2501.19399).

use super::{Defaults, Family, Graph, QueryScale, limit, same_layers, window};

pub(super) const MINISTRAL3: Family = Family {
    class: "Ministral3ForCausalLM",
    model_type: "ministral3",
    // The second is a copy of the one beside the parameters.
    own_rope_keys: &["llama_4_scaling_beta", "max_position_embeddings"],
    defaults: Defaults {
        num_kv_heads: Some(8),
        head_dim: Some(128),
        null_head_dim: false,
        max_position_embeddings: 262_144,
        rms_norm_eps: 1e-5,
        sizes: [4096, 14_336, 34, 32, 131_072],
        ..Defaults::PLAIN
    },
    graph: |f, layers| {
        let own = match f.object("rope_scaling")? {
            Some(own) => own,
            None => f.object("rope_parameters")?.ok_or_else(|| {
                f.malformed("rope_parameters is missing, which this class scales queries by")
            })?,
        };
        let Some(beta) = own.number("llama_4_scaling_beta")? else {
            return Err(f.malformed("rope_parameters.llama_4_scaling_beta is missing"));
        };
        let period = own.size("original_max_position_embeddings", None, limit::POSITIONS)?;
        Ok(Graph {
            windows: same_layers(f, layers, window(f, None)?)?,
            query_scale: Some(QueryScale { beta, period }),
            ..Graph::plain(layers)
        })
    },
    ..Family::PLAIN
};
