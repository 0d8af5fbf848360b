//! How much of a checkpoint is what.

use qqq_formats::TensorSource;
use serde::{Deserialize, Serialize};

use crate::names;

/// Bytes of a checkpoint's tensors as they are stored, headers of files not included: the one way in which they are counted,
/// of sources as of results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorBytes {
    /// The linear layers of the blocks: weights or codes, scales, recorded shapes, biases.
    pub linear: u64,
    /// Embedding and output head; a head that is tied to the embedding has no bytes of its own.
    pub ends: u64,
    /// Bytes of all tensors, norms and biases among them.
    pub total: u64,
}

impl TensorBytes {
    /// Those of all tensors.
    pub fn of(tensors: &dyn TensorSource) -> Self {
        let mut sum = Self::default();
        for name in tensors.names() {
            sum.add(&name, tensors.info(&name).map_or(0, |info| info.bytes));
        }
        sum
    }

    /// Adds a tensor.
    pub fn add(&mut self, name: &str, bytes: u64) {
        self.total += bytes;
        let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
        if names::is_block_linear(module) {
            self.linear += bytes;
        } else if [names::EMBEDDING, names::LM_HEAD]
            .iter()
            .any(|end| end.strip_suffix(".weight") == Some(module))
        {
            self.ends += bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_belong_to_layers_and_ends() {
        let mut sum = TensorBytes::default();
        for (name, bytes) in [
            ("model.embed_tokens.weight", 1000),
            ("lm_head.weight", 2000),
            ("lm_head.bias", 1),
            ("model.norm.weight", 20),
            ("model.layers.0.input_layernorm.weight", 20),
            ("model.layers.0.self_attn.q_norm.weight", 20),
            ("model.layers.0.self_attn.q_proj.weight_packed", 64),
            ("model.layers.0.self_attn.q_proj.weight_scale", 8),
            ("model.layers.0.self_attn.q_proj.weight_shape", 16),
            ("model.layers.11.mlp.down_proj.bias", 4),
            ("model.layers.11.mlp.down_proj.s_group", 2),
            ("other.layers.1.mlp.down_proj.weight", 10),
        ] {
            sum.add(name, bytes);
        }
        assert_eq!(sum, TensorBytes { linear: 94, ends: 3001, total: 3165 });
    }
}
