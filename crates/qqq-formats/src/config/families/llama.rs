//! Llama 1, 2, 3, 3.1, and models of the same graph such as SmolLM2 and TinyLlama (Touvron et al., arXiv 2302.13971;
//! transformers' `modeling_llama`).

use super::{Defaults, Family, Graph, same_layers};

pub(super) const LLAMA: Family = Family {
    class: "LlamaForCausalLM",
    model_type: "llama",
    defaults: Defaults::PLAIN,
    graph: |f, layers| {
        let bias = f.flag("attention_bias", false)?;
        let windows = same_layers(f, layers, None)?;
        let mlp_bias = f.flag("mlp_bias", false)?;
        Ok(Graph { qkv_bias: bias, o_bias: bias, mlp_bias, windows, ..Graph::plain(layers) })
    },
    ..Family::PLAIN
};
