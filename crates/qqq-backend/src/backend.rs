//! The operations of a decoder.

use qqq_formats::{LinearWeight, WeightData};

use crate::Result;

/// What a linear layer takes as its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputKind {
    /// Float activations.
    Float,
    /// int8 activations with one float32 scale per token.
    Int8,
}

/// New tokens of one sequence: rows of the batch in order of the spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Slot of the KV cache that holds the sequence.
    pub slot: usize,
    /// Position of the first new token; the slot already holds `start` positions.
    pub start: usize,
    /// Number of new tokens, at least 1.
    pub len: usize,
}

/// Heads of an attention layer. A row of `qkv` is `num_heads` query heads, then `num_kv_heads` key
/// heads, then `num_kv_heads` value heads, `head_dim` values each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLayout {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl HeadLayout {
    /// Columns of a `qkv` row.
    pub fn qkv_width(&self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }

    /// Columns of the queries and of the attention output.
    pub fn q_width(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Columns of the keys, and of the values.
    pub fn kv_width(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }
}

/// Causal mask, optionally limited to the last `window` positions (the token itself included).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowedCausal {
    /// Sliding window, if any.
    pub window: Option<usize>,
}

/// Element type of cached keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvDType {
    /// 32-bit.
    F32,
    /// IEEE half. What it cannot stand for (numbers beyond its range, keys so large that their rounding would be felt, heads
    /// so small that it loses their digits) is kept in 32 bits.
    F16,
}

/// Shape of a KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Blocks of the decoder.
    pub num_layers: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Element type.
    pub dtype: KvDType,
}

/// The operations of a decoder. A `Tensor` is a matrix of activations, one row a token.
pub trait Backend: Clone + Send + Sync + 'static {
    /// Activations, shape `rows x cols`.
    type Tensor: Send + Sync;
    /// Input of linear layers: float or int8 with per-token scales.
    type Activation: Send + Sync;
    /// Prepacked weight of a linear layer with its bias.
    type Linear: Send + Sync;
    /// Embedding table.
    type Embedding: Send + Sync;
    /// A vector of parameters (norm weights).
    type Vector: Send + Sync;
    /// Cosines and sines by position.
    type Rope: Send + Sync;
    /// Keys and values of several sequences (slots), all layers.
    type KvCache: Send;

    /// Copies `rows x cols` values, row-major, to the backend.
    fn tensor(&self, rows: usize, cols: usize, data: Vec<f32>) -> Self::Tensor;
    /// Copies a tensor to the host, row-major.
    fn to_host(&self, x: &Self::Tensor) -> Vec<f32>;
    /// Number of rows.
    fn rows(&self, x: &Self::Tensor) -> usize;
    /// A parameter vector.
    fn vector(&self, data: Vec<f32>) -> Self::Vector;
    /// Prepacks a weight (`N x K`); `bias` has length `N`.
    fn linear_weight(&self, weight: LinearWeight, bias: Option<Vec<f32>>) -> Result<Self::Linear>;
    /// What `weight` takes as its input.
    fn input_kind(&self, weight: &Self::Linear) -> InputKind;
    /// An embedding table of shape `vocab x hidden`.
    fn embedding(&self, vocab: usize, hidden: usize, data: WeightData) -> Result<Self::Embedding>;
    /// The output head that shares its values with an embedding (no second copy).
    fn tied_head(&self, embedding: &Self::Embedding) -> Result<Self::Linear>;
    /// Rotary embedding for inverse frequencies of length `head_dim / 2`, half-split ("neox")
    /// pairing: component `i` turns with component `i + head_dim / 2`.
    fn rope(&self, inv_freq: &[f32], max_positions: usize) -> Self::Rope {
        self.scaled_rope(inv_freq, 1.0, max_positions)
    }
    /// Like [`Backend::rope`], with cosines and sines multiplied by `factor`, which makes queries and keys longer.
    fn scaled_rope(&self, inv_freq: &[f32], factor: f32, max_positions: usize) -> Self::Rope;
    /// An empty cache without slots.
    fn kv_cache(&self, layout: KvLayout) -> Self::KvCache;
    /// Adds an empty slot and returns its index (indices of removed slots are reused).
    fn kv_add_slot(&self, kv: &mut Self::KvCache) -> usize;
    /// Frees a slot.
    fn kv_remove_slot(&self, kv: &mut Self::KvCache, slot: usize);
    /// Forgets all positions of a slot from `len` on.
    fn kv_truncate(&self, kv: &mut Self::KvCache, slot: usize, len: usize);

    /// Rows of the embedding for token ids; shape `ids.len() x hidden`. Ids must be in range.
    fn embed(&self, table: &Self::Embedding, ids: &[u32]) -> Self::Tensor;
    /// `x / rms(x) * weight`, as the input of a linear layer.
    fn rms_norm(
        &self,
        x: &Self::Tensor,
        weight: &Self::Vector,
        eps: f32,
        kind: InputKind,
    ) -> Self::Activation;
    /// A tensor as the input of a linear layer (quantized per token where asked).
    fn activation(&self, x: Self::Tensor, kind: InputKind) -> Self::Activation;
    /// `x W^T + bias`; shape `rows x N`.
    fn linear(&self, x: &Self::Activation, weight: &Self::Linear) -> Self::Tensor;
    /// The `count` largest elements of each row of [`linear`](Self::linear), largest first, with their columns: exactly
    /// those, in the order of [`descending`](crate::descending). Of a row with elements that are not finite, the first of
    /// these alone.
    fn linear_top(&self, x: &Self::Activation, weight: &Self::Linear, count: usize) -> Vec<Vec<(f32, u32)>>;
    /// `acc += x W^T + bias`.
    fn linear_add(&self, acc: &mut Self::Tensor, x: &Self::Activation, weight: &Self::Linear);
    /// `silu(gate) * up` of rows `[gate | up]` of width `2 * I`; shape `rows x I`.
    fn silu_mul(&self, gate_up: Self::Tensor, kind: InputKind) -> Self::Activation;
    /// Applies per-head RMS norms to q and k (if given), then rotary embedding, in place, and
    /// appends keys and values of `layer` to the slots of the spans.
    #[allow(clippy::too_many_arguments)]
    fn rope_append_kv(
        &self,
        qkv: &mut Self::Tensor,
        heads: HeadLayout,
        qk_norm: Option<(&Self::Vector, &Self::Vector, f32)>,
        rope: &Self::Rope,
        kv: &mut Self::KvCache,
        layer: usize,
        spans: &[Span],
    );
    /// Attention of the (rotated) queries in `qkv` over the cache, softmax scale `head_dim^-1/2`;
    /// shape `rows x (num_heads * head_dim)`.
    fn attention(
        &self,
        qkv: &Self::Tensor,
        heads: HeadLayout,
        mask: WindowedCausal,
        kv: &Self::KvCache,
        layer: usize,
        spans: &[Span],
    ) -> Self::Tensor;
    /// The given rows, in order; shape `rows.len() x cols`.
    fn select_rows(&self, x: &Self::Tensor, rows: &[usize]) -> Self::Tensor;
}
