//! Phi-3 and Phi-4: projections that are fused on disk, a rotary embedding of a part of each head (Abdin et al., arXiv
//! 2404.14219; transformers' `modeling_phi3`).

use super::{Defaults, Family, Graph, same_layers, window};

pub(super) const PHI3: Family = Family {
    class: "Phi3ForCausalLM",
    model_type: "phi3",
    partial_rotary: true,
    defaults: Defaults {
        max_position_embeddings: 4096,
        rms_norm_eps: 1e-5,
        sizes: [3072, 8192, 32, 32, 32_064],
        ..Defaults::PLAIN
    },
    graph: |f, layers| {
        let windows = same_layers(f, layers, window(f, None)?)?;
        Ok(Graph { fused: true, windows, ..Graph::plain(layers) })
    },
    ..Family::PLAIN
};
