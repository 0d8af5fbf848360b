//! The decoder: embedding, blocks of attention and gated MLP, norm, output head.

use std::sync::Arc;

use qqq_backend::{Backend, HeadLayout, KvDType, Span, WindowedCausal};
use qqq_formats::{Checkpoint, LinearWeight, ModelConfig};

use crate::Result;

/// The weights of one block, as read from a checkpoint or as the quantizer has made them.
/// q, k and v are joined into one layer, and so are gate and up (gate first).
#[derive(Clone, Debug)]
pub struct BlockWeights {
    /// Weight of the norm before attention, length `hidden`.
    pub input_norm: Vec<f32>,
    /// Weight of the norm before the MLP, length `hidden`.
    pub post_norm: Vec<f32>,
    /// Head norms of q and k (Qwen3), length `head_dim` each.
    pub qk_norm: Option<(Vec<f32>, Vec<f32>)>,
    /// q, k and v joined, with bias.
    pub qkv: (LinearWeight, Option<Vec<f32>>),
    /// Output projection of attention.
    pub o: (LinearWeight, Option<Vec<f32>>),
    /// gate and up joined.
    pub gate_up: (LinearWeight, Option<Vec<f32>>),
    /// Down projection.
    pub down: (LinearWeight, Option<Vec<f32>>),
}

impl BlockWeights {
    /// Reads block `index` of a checkpoint, float or quantized.
    pub fn read(_checkpoint: &Checkpoint, _index: usize) -> Result<Self> {
        unimplemented!()
    }
}

/// One block on a backend. The stage methods are what [`Block::forward`] is made of; the quantizer
/// calls them one by one.
pub struct Block<B: Backend> {
    /// Norm before attention.
    pub input_norm: B::Vector,
    /// Norm before the MLP.
    pub post_norm: B::Vector,
    /// Head norms of q and k with their epsilon.
    pub qk_norm: Option<(B::Vector, B::Vector)>,
    /// q, k, v joined.
    pub qkv: B::Linear,
    /// Output projection of attention.
    pub o: B::Linear,
    /// gate and up joined.
    pub gate_up: B::Linear,
    /// Down projection.
    pub down: B::Linear,
    /// Epsilon of the norms.
    pub eps: f32,
    /// Heads.
    pub heads: HeadLayout,
    /// Mask.
    pub mask: WindowedCausal,
}

impl<B: Backend> Block<B> {
    /// Prepares weights on a backend. `index` is for error messages.
    pub fn new(_backend: &B, _config: &ModelConfig, _index: usize, _weights: BlockWeights) -> Result<Self> {
        unimplemented!()
    }

    /// Norm before attention: the input of `qkv`.
    pub fn attention_input(&self, b: &B, hidden: &B::Tensor) -> B::Activation {
        b.rms_norm(hidden, &self.input_norm, self.eps, b.input_kind(&self.qkv))
    }

    /// qkv, rotary embedding, cache append, attention: what `o` multiplies (not yet quantized).
    /// `layer` is the layer's index in the cache.
    pub fn attention(
        &self,
        b: &B,
        x: &B::Activation,
        rope: &B::Rope,
        kv: &mut B::KvCache,
        layer: usize,
        spans: &[Span],
    ) -> B::Tensor {
        let mut qkv = b.linear(x, &self.qkv);
        let norms = self.qk_norm.as_ref().map(|(q, k)| (q, k, self.eps));
        b.rope_append_kv(&mut qkv, self.heads, norms, rope, kv, layer, spans);
        b.attention(&qkv, self.heads, self.mask, kv, layer, spans)
    }

    /// Norm before the MLP: the input of `gate_up`.
    pub fn mlp_input(&self, b: &B, hidden: &B::Tensor) -> B::Activation {
        b.rms_norm(hidden, &self.post_norm, self.eps, b.input_kind(&self.gate_up))
    }

    /// `silu(gate) * up`: the input of `down`.
    pub fn mlp_hidden(&self, b: &B, x: &B::Activation) -> B::Activation {
        let gate_up = b.linear(x, &self.gate_up);
        b.silu_mul(gate_up, b.input_kind(&self.down))
    }

    /// The whole block; `hidden` is updated in place.
    pub fn forward(
        &self,
        b: &B,
        hidden: &mut B::Tensor,
        rope: &B::Rope,
        kv: &mut B::KvCache,
        layer: usize,
        spans: &[Span],
    ) {
        let x = self.attention_input(b, hidden);
        let attn = self.attention(b, &x, rope, kv, layer, spans);
        let attn = b.activation(attn, b.input_kind(&self.o));
        b.linear_add(hidden, &attn, &self.o);
        let x = self.mlp_input(b, hidden);
        let h = self.mlp_hidden(b, &x);
        b.linear_add(hidden, &h, &self.down);
    }
}

/// A whole decoder.
pub struct Decoder<B: Backend> {
    /// Backend it runs on.
    pub backend: B,
    /// Configuration.
    pub config: Arc<ModelConfig>,
    /// Embedding.
    pub embedding: B::Embedding,
    /// Blocks in order.
    pub blocks: Vec<Block<B>>,
    /// Norm before the head.
    pub final_norm: B::Vector,
    /// Output head.
    pub head: B::Linear,
    /// Rotary embedding.
    pub rope: B::Rope,
}

impl<B: Backend> Decoder<B> {
    /// Reads all weights of a checkpoint.
    pub fn load(_backend: B, _checkpoint: &Checkpoint) -> Result<Self> {
        unimplemented!()
    }

    /// An empty cache for this decoder.
    pub fn kv_cache(&self, _dtype: KvDType) -> B::KvCache {
        unimplemented!()
    }

    /// Runs new tokens (`tokens` are the spans' tokens, concatenated) and returns the final hidden
    /// states before the last norm, one row per token.
    ///
    /// # Errors
    /// A token id outside the vocabulary, or a span beyond `max_position_embeddings`.
    pub fn hidden(&self, _tokens: &[u32], _spans: &[Span], _kv: &mut B::KvCache) -> Result<B::Tensor> {
        unimplemented!()
    }

    /// Final norm and output head for rows of hidden states; shape `rows x vocab`.
    pub fn logits(&self, hidden: &B::Tensor) -> B::Tensor {
        let x = self.backend.rms_norm(
            hidden,
            &self.final_norm,
            self.config.rms_norm_eps,
            self.backend.input_kind(&self.head),
        );
        self.backend.linear(&x, &self.head)
    }
}
