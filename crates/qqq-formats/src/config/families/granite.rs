//! Granite 3, dense: Llama with factors on embeddings, attention, residual stream and logits (IBM, "Granite 3.0 Language
//! Models"; transformers' `modeling_granite`).

use super::{Defaults, Family, Graph, factor, same_layers};

pub(super) const GRANITE: Family = Family {
    class: "GraniteForCausalLM",
    model_type: "granite",
    own_keys: &["attention_multiplier", "embedding_multiplier", "logits_scaling", "residual_multiplier"],
    defaults: Defaults::PLAIN,
    graph: |f, layers| {
        let bias = f.flag("attention_bias", false)?;
        Ok(Graph {
            qkv_bias: bias,
            o_bias: bias,
            mlp_bias: f.flag("mlp_bias", false)?,
            windows: same_layers(f, layers, None)?,
            attention_scale: Some(factor(f, "attention_multiplier")?),
            embedding_scale: factor(f, "embedding_multiplier")?,
            residual_scale: factor(f, "residual_multiplier")?,
            logit_divisor: factor(f, "logits_scaling")?,
            ..Graph::plain(layers)
        })
    },
    ..Family::PLAIN
};
