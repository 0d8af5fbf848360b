//! Seed-OSS: Llama's graph with biases on q, k and v (ByteDance, Seed-OSS-36B; transformers' `modeling_seed_oss`).

use super::{Defaults, Family, Graph, same_layers};

pub(super) const SEED_OSS: Family = Family {
    class: "SeedOssForCausalLM",
    model_type: "seed_oss",
    defaults: Defaults {
        num_kv_heads: Some(8),
        head_dim: Some(128),
        max_position_embeddings: 524_288,
        sizes: [4096, 27_648, 64, 80, 155_136],
        ..Defaults::PLAIN
    },
    graph: |f, layers| {
        Ok(Graph {
            qkv_bias: f.flag("attention_bias", true)?,
            o_bias: f.flag("attention_out_bias", false)?,
            mlp_bias: f.flag("mlp_bias", false)?,
            windows: same_layers(f, layers, None)?,
            ..Graph::plain(layers)
        })
    },
    ..Family::PLAIN
};
