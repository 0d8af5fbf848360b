//! A block of the decoder: attention and gated MLP, each behind a norm and beside a residual connection.

use qqq_backend::{Backend, BackendError, HeadLayout, Span, WindowedCausal};
use qqq_formats::{LinearWeight, ModelConfig};

use crate::{BlockWeights, ModelError, Result, names};

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
    ///
    /// # Errors
    /// A weight that the backend refuses.
    pub fn new(backend: &B, config: &ModelConfig, index: usize, weights: BlockWeights) -> Result<Self> {
        let linear = |modules: &[&str], (weight, bias): (LinearWeight, Option<Vec<f32>>)| {
            backend
                .linear_weight(weight, bias)
                .map_err(|source| at(&names::linear(index, &modules.join("+")), source))
        };
        Ok(Self {
            input_norm: backend.vector(weights.input_norm),
            post_norm: backend.vector(weights.post_norm),
            qk_norm: weights.qk_norm.map(|(q, k)| (backend.vector(q), backend.vector(k))),
            qkv: linear(&[names::Q, names::K, names::V], weights.qkv)?,
            o: linear(&[names::O], weights.o)?,
            gate_up: linear(&[names::GATE, names::UP], weights.gate_up)?,
            down: linear(&[names::DOWN], weights.down)?,
            eps: config.rms_norm_eps,
            heads: HeadLayout {
                num_heads: config.num_heads,
                num_kv_heads: config.num_kv_heads,
                head_dim: config.head_dim,
            },
            mask: WindowedCausal { window: config.sliding_window },
        })
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
        self.rope_append_kv(b, &mut qkv, rope, kv, layer, spans);
        b.attention(&qkv, self.heads, self.mask, kv, layer, spans)
    }

    /// Head norms and rotary embedding of the output of `qkv`, in place, and cache append.
    pub fn rope_append_kv(
        &self,
        b: &B,
        qkv: &mut B::Tensor,
        rope: &B::Rope,
        kv: &mut B::KvCache,
        layer: usize,
        spans: &[Span],
    ) {
        let norms = self.qk_norm.as_ref().map(|(q, k)| (q, k, self.eps));
        b.rope_append_kv(qkv, self.heads, norms, rope, kv, layer, spans);
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

/// A backend's error with the layer it concerns.
pub(crate) fn at(name: &str, source: BackendError) -> ModelError {
    ModelError::Backend { name: name.into(), source }
}
