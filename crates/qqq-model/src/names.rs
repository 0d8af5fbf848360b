//! Names of a decoder's tensors.

/// The linear layers of block `i`, as module prefixes (`model.layers.3.mlp.down_proj`).
pub fn linear(block: usize, module: &str) -> String {
    format!("model.layers.{block}.{module}")
}

/// Embedding table.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// Norm before the output head.
pub const FINAL_NORM: &str = "model.norm.weight";
/// Output head.
pub const LM_HEAD: &str = "lm_head.weight";
/// Modules of a block that are linear layers, in the order of computation.
pub const LINEARS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];
