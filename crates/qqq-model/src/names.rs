//! Names of a decoder's tensors.

/// The linear layers of block `i`, as module prefixes (`model.layers.3.mlp.down_proj`).
pub fn linear(block: usize, module: &str) -> String {
    format!("model.layers.{block}.{module}")
}

/// Whether a module (`model.layers.3.mlp.down_proj`) is one of the linear layers of the blocks.
pub fn is_block_linear(module: &str) -> bool {
    module.starts_with("model.layers.") && LINEARS.iter().any(|linear| module.ends_with(linear))
}

/// Embedding table, `vocab x hidden`.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// Norm before the output head.
pub const FINAL_NORM: &str = "model.norm.weight";
/// Output head, `vocab x hidden`.
pub const LM_HEAD: &str = "lm_head.weight";
/// Output head, as a module.
pub const LM_HEAD_MODULE: &str = "lm_head";
/// Queries, keys and values in one.
pub const QKV: &str = "self_attn.qkv_proj";
/// gate and up in one.
pub const GATE_UP: &str = "mlp.gate_up_proj";
/// Projection to queries, within a block.
pub const Q: &str = "self_attn.q_proj";
/// Projection to keys, within a block.
pub const K: &str = "self_attn.k_proj";
/// Projection to values, within a block.
pub const V: &str = "self_attn.v_proj";
/// Output projection of attention.
pub const O: &str = "self_attn.o_proj";
/// Gate of the MLP.
pub const GATE: &str = "mlp.gate_proj";
/// Up projection of the MLP.
pub const UP: &str = "mlp.up_proj";
/// Down projection of the MLP.
pub const DOWN: &str = "mlp.down_proj";
/// Modules of a block that are linear layers in some family, in the order of computation.
pub const LINEARS: [&str; 9] = [QKV, Q, K, V, O, GATE_UP, GATE, UP, DOWN];
/// Norm before attention.
pub const INPUT_NORM: &str = "input_layernorm";
/// Norm before the MLP.
pub const POST_NORM: &str = "post_attention_layernorm";
/// Norm before the MLP, where there is one behind attention.
pub const PRE_MLP_NORM: &str = "pre_feedforward_layernorm";
/// Norm behind the MLP.
pub const AFTER_MLP_NORM: &str = "post_feedforward_layernorm";
/// Norm of the query heads (Qwen3).
pub const Q_NORM: &str = "self_attn.q_norm";
/// Norm of the key heads (Qwen3).
pub const K_NORM: &str = "self_attn.k_norm";
