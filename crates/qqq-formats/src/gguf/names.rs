//! GGUF's tensor names, and those of Hugging Face.

/// Modules of a block: GGUF's name and Hugging Face's.
const BLOCK: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Modules outside the blocks.
const OUTSIDE: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// Llama 3.1's rotary frequency factors: kept under this name.
pub(super) const ROPE_FREQS: &str = "rope_freqs.weight";

/// The Hugging Face name of a GGUF tensor (`blk.3.attn_q.weight` is
/// `model.layers.3.self_attn.q_proj.weight`); `None` for tensors that have none. `own` are modules of a block that the
/// architecture has under other names.
pub(super) fn hugging_face(gguf: &str, own: &[(&str, &'static str)]) -> Option<String> {
    let (module, suffix) = gguf.rsplit_once('.')?;
    if suffix != "weight" && suffix != "bias" {
        return None;
    }
    if let Some(rest) = module.strip_prefix("blk.") {
        let (block, module) = rest.split_once('.')?;
        // `+3` and `03` would parse as numbers, and could hide a second tensor of the same name.
        if block.parse::<usize>().ok()?.to_string() != block {
            return None;
        }
        let (_, name) = own.iter().chain(&BLOCK).find(|(from, _)| *from == module)?;
        return Some(format!("model.layers.{block}.{name}.{suffix}"));
    }
    let (_, name) = OUTSIDE.iter().find(|(from, _)| *from == module)?;
    Some(format!("{name}.{suffix}"))
}

#[cfg(test)]
mod tests {
    use super::hugging_face;

    #[test]
    fn names_are_those_of_hugging_face() {
        for (gguf, hf) in [
            ("token_embd.weight", Some("model.embed_tokens.weight")),
            ("output_norm.weight", Some("model.norm.weight")),
            ("output.weight", Some("lm_head.weight")),
            ("blk.12.attn_q.weight", Some("model.layers.12.self_attn.q_proj.weight")),
            ("blk.0.attn_k.bias", Some("model.layers.0.self_attn.k_proj.bias")),
            ("blk.0.attn_output.weight", Some("model.layers.0.self_attn.o_proj.weight")),
            ("blk.7.attn_k_norm.weight", Some("model.layers.7.self_attn.k_norm.weight")),
            ("blk.7.ffn_norm.weight", Some("model.layers.7.post_attention_layernorm.weight")),
            ("blk.7.ffn_down.weight", Some("model.layers.7.mlp.down_proj.weight")),
            ("blk.07.ffn_down.weight", None),
            ("blk.7.ffn_gate_exps.weight", None),
            ("rope_freqs.weight", None),
            ("blk.x.attn_q.weight", None),
            ("weight", None),
        ] {
            assert_eq!(hugging_face(gguf, &[]).as_deref(), hf, "{gguf}");
        }
    }
}
