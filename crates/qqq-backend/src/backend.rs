//! The operations of a decoder.

use std::borrow::Cow;

use qqq_formats::{LinearWeight, WeightData};

use crate::{BackendError, BatchPlan, PairScore, Pick, Picked, Result, first_not_finite};

/// What a linear layer takes as its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputKind {
    /// float32 activations, as they are.
    Float,
    /// int8 activations with one float32 scale per token.
    Int8,
}

/// Heads of an attention layer. A row of `qkv` is `num_heads` query heads, then `num_kv_heads` key
/// heads, then `num_kv_heads` value heads, `head_dim` values each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLayout {
    /// Query heads; a multiple of the key-value heads.
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

/// Which positions a query sees, and how scores are scaled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionKind {
    /// How many heads there are, and how wide each is.
    pub heads: HeadLayout,
    /// A query sees its own position and the `window - 1` before it; `None`: all before it.
    pub window: Option<usize>,
    /// Factor of `query . key` before the softmax, usually `head_dim^-1/2`.
    pub scale: f32,
}

impl AttentionKind {
    /// Causal attention with scores scaled by `head_dim^-1/2`.
    pub fn causal(heads: HeadLayout, window: Option<usize>) -> Self {
        Self { heads, window, scale: 1.0 / (heads.head_dim as f32).sqrt() }
    }
}

/// The function of the gate in a gated MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// `x / (1 + e^-x)` (SiLU, swish).
    Silu,
    /// `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`: the approximation of GELU that models are trained with
    /// (Hendrycks and Gimpel, arXiv 1606.08415).
    GeluTanh,
}

/// An RMS norm: `x / sqrt(mean(x^2) + eps) * weight`.
pub struct Norm<B: Backend> {
    /// Length of a row.
    pub weight: B::Vector,
    /// Added to the mean of the squares.
    pub eps: f32,
}

/// Queries that grow with their position: a query at position `p` is multiplied by `1 + beta ln(1 + floor(p / period))`
/// (Nakanishi, arXiv 2501.19399, in the form of Llama 4).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueryScale {
    /// How fast they grow.
    pub beta: f32,
    /// Positions that share a factor; up to the first `period` ones it is 1.
    pub period: usize,
}

impl QueryScale {
    /// The factor at a position.
    pub fn at(self, position: usize) -> f32 {
        let periods = position.checked_div(self.period).unwrap_or(0);
        1.0 + self.beta * (1.0 + periods as f32).ln()
    }
}

/// Element type of cached keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvDType {
    /// IEEE binary32: 4 bytes a value, keys and values as they were computed.
    F32,
    /// 16-bit. On a CPU IEEE half; what that cannot stand for (numbers beyond its range, keys so large that their rounding
    /// would be felt, heads so small that it loses their digits) is kept in 32 bits. On a GPU the type of its activations.
    F16,
}

/// Shape of a KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Layers of attention.
    pub num_layers: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Type in which keys and values are kept.
    pub dtype: KvDType,
}

/// A device: its memory, one stream of work, and the operations of a decoder.
///
/// Operations write into what the caller owns, so that a step touches the same memory each time, and allocate nothing but
/// what an output has outgrown. They may return before they have run; only those wait that give what they have found to the
/// host. An output takes the shape that its operation gives it.
///
/// # Errors
/// An operation fails where arguments contradict each other ([`BackendError::Batch`] and
/// [`BackendError::Shape`]), or the device does.
pub trait Backend: Clone + Send + Sync + 'static {
    /// Activations, shape `rows x cols`, one row a token.
    type Tensor: Send + Sync;
    /// The input of linear layers: float rows, or int8 rows with per-token scales.
    type Input: Send + Sync;
    /// Prepacked weight of a linear layer with its bias.
    type Linear: Send + Sync;
    /// Embedding table.
    type Embedding: Send + Sync;
    /// A vector of parameters (norm weights).
    type Vector: Send + Sync;
    /// Cosines and sines by position.
    type Rope: Send + Sync;
    /// Pages of keys and values, all layers.
    type KvPool: Send;
    /// What a step's operations must know of its rows: made once, read by every layer.
    type Batch: Send + Sync;
    /// A recorded step.
    type Graph: Send;
    /// Memory for what is found in rows of logits.
    type Picks: Send;

    /// Tokens of a step with which its products run about as fast as they can; more take more memory alone.
    const STEP_TOKENS: usize = 512;
    /// Whether [`losses`](Self::losses) may take less time than to read rows.
    const SUMS_LOSSES: bool = false;
    /// Whether [`pick`](Self::pick) can draw.
    const DRAWS: bool = false;

    /// A tensor with room for `rows x cols` values; it has no rows yet.
    fn tensor(&self, rows: usize, cols: usize) -> Result<Self::Tensor>;
    /// An input with room for `rows x cols` values; it has no rows yet.
    fn input(&self, rows: usize, cols: usize) -> Result<Self::Input>;
    /// `rows x cols` values, row-major, as a tensor.
    fn upload(&self, rows: usize, cols: usize, values: Vec<f32>) -> Result<Self::Tensor>;
    /// Waits, and gives the values of a tensor, row-major.
    fn read<'t>(&self, x: &'t Self::Tensor) -> Result<Cow<'t, [f32]>>;
    /// Waits, and gives the first value of a tensor that is NaN or infinite, with its index in row-major order.
    fn first_not_finite(&self, x: &Self::Tensor) -> Result<Option<(usize, f32)>> {
        let values = self.read(x)?;
        Ok(first_not_finite(&values).map(|i| (i, values[i])))
    }
    /// Waits, and gives the values of a linear layer's input, row-major; int8 rows at what they stand for.
    fn read_input<'t>(&self, x: &'t Self::Input) -> Result<Cow<'t, [f32]>>;
    /// A parameter vector.
    fn vector(&self, values: Vec<f32>) -> Result<Self::Vector>;
    /// Prepacks a weight (`N x K`); `bias` has length `N`.
    fn linear_weight(&self, weight: LinearWeight, bias: Option<Vec<f32>>) -> Result<Self::Linear>;
    /// Prepacks the weight of an output head (`N x K`): as [`linear_weight`](Self::linear_weight), but its products keep
    /// more digits than those between two layers, where these have 16 bits.
    fn head_weight(&self, weight: LinearWeight) -> Result<Self::Linear> {
        self.linear_weight(weight, None)
    }
    /// What `weight` takes as its input.
    fn input_kind(&self, weight: &Self::Linear) -> InputKind;
    /// An embedding table of shape `vocab x hidden`.
    fn embedding(&self, vocab: usize, hidden: usize, data: WeightData) -> Result<Self::Embedding>;
    /// The output head that shares its values with an embedding (no second copy).
    fn tied_head(&self, embedding: &Self::Embedding) -> Result<Self::Linear>;
    /// Rotary embedding of the first `2 * inv_freq.len()` components of a head, half-split ("neox") pairing: component `i`
    /// turns with component `i + inv_freq.len()`. Cosines and sines are multiplied by `factor`, which makes what is turned
    /// longer. `query_scale` multiplies whole queries; a table of cosines and sines for queries alone may hold it where all
    /// of a head turns. Positions are below `max_positions`.
    fn rope(
        &self,
        inv_freq: &[f32],
        factor: f32,
        query_scale: Option<QueryScale>,
        max_positions: usize,
    ) -> Result<Self::Rope>;
    /// The element type that keeps keys and values most exactly here.
    fn finest_kv(&self) -> KvDType {
        KvDType::F32
    }
    /// A pool of `pages` pages, [`PAGE`](crate::PAGE) positions each. Who has which page is for the caller to say, in a
    /// [`BatchPlan`].
    fn kv_pool(&self, layout: KvLayout, pages: usize) -> Result<Self::KvPool>;
    /// Gives a pool room for `pages` pages, if it has less; those that it has keep what they hold.
    fn grow_kv(&self, pool: &mut Self::KvPool, pages: usize) -> Result<()>;
    /// Prepares a step.
    fn batch(&self, plan: &BatchPlan) -> Result<Self::Batch>;
    /// Prepares the next step in the memory of one before.
    fn refill(&self, batch: &mut Self::Batch, plan: &BatchPlan) -> Result<()>;

    /// Records the operations of `step`, which work on `batch`, to be [replayed](Self::replay) in less time than it takes to
    /// ask for each; they do not run. `None`, and `step` is not called, where a device has no use for that, or cannot: what the step
    /// needs must have its place from one before.
    ///
    /// # Errors
    /// Those of `step`, and of the device.
    fn record<E: From<BackendError>>(
        &self,
        _batch: &Self::Batch,
        _step: &mut dyn FnMut() -> std::result::Result<(), E>,
    ) -> std::result::Result<Option<Self::Graph>, E> {
        Ok(None)
    }
    /// Runs a recorded step on what its memory holds by now. `false`, and nothing runs, if that cannot be done any more:
    /// memory has moved, or the batch has been refilled with another kind of step.
    fn replay(&self, _graph: &Self::Graph, _batch: &Self::Batch) -> Result<bool> {
        Ok(false)
    }

    /// Rows of the embedding for the batch's tokens, times `scale`; shape `tokens x hidden`.
    fn embed(
        &self,
        table: &Self::Embedding,
        batch: &Self::Batch,
        scale: f32,
        out: &mut Self::Tensor,
    ) -> Result<()>;
    /// `residual += scale x` if there is an `x` with its scale; then the norm of `residual`, as the input of a linear layer.
    fn add_norm(
        &self,
        residual: &mut Self::Tensor,
        x: Option<(&Self::Tensor, f32)>,
        norm: &Norm<Self>,
        kind: InputKind,
        out: &mut Self::Input,
    ) -> Result<()>
    where
        Self: Sized;
    /// `residual += scale x`.
    fn add(&self, residual: &mut Self::Tensor, x: &Self::Tensor, scale: f32) -> Result<()>;
    /// The norm of every row, in place.
    fn norm(&self, x: &mut Self::Tensor, norm: &Norm<Self>) -> Result<()>
    where
        Self: Sized;
    /// A tensor as the input of a linear layer (quantized per token where asked). The values of `x` are unspecified
    /// afterwards.
    fn to_input(&self, x: &mut Self::Tensor, kind: InputKind, out: &mut Self::Input) -> Result<()>;
    /// `x W^T + bias`; shape `rows x N`.
    fn linear(&self, x: &Self::Input, weight: &Self::Linear, out: &mut Self::Tensor) -> Result<()>;
    /// The first half of a gated MLP: `gate(g) * u` for the rows `[g | u]` of `x W^T + bias`, as the input of a linear layer;
    /// shape `rows x N/2`. `gate_up` is memory for the product, whose values are unspecified afterwards.
    fn gated_linear(
        &self,
        x: &Self::Input,
        weight: &Self::Linear,
        gate: Gate,
        kind: InputKind,
        gate_up: &mut Self::Tensor,
        out: &mut Self::Input,
    ) -> Result<()>;
    /// `gate(g) * u` of rows `[g | u]`, as the input of a linear layer.
    fn gated(&self, gate_up: &Self::Tensor, gate: Gate, kind: InputKind, out: &mut Self::Input)
    -> Result<()>;
    /// Applies per-head RMS norms to q and k (if given), then rotary embedding (if given), in place, and writes keys and
    /// values of `layer` to the batch's pages.
    #[allow(clippy::too_many_arguments)]
    fn rope_append(
        &self,
        qkv: &mut Self::Tensor,
        heads: HeadLayout,
        qk_norm: Option<(&Norm<Self>, &Norm<Self>)>,
        rope: Option<&Self::Rope>,
        kv: &mut Self::KvPool,
        layer: usize,
        batch: &Self::Batch,
    ) -> Result<()>
    where
        Self: Sized;
    /// Attention of the (rotated) queries in `qkv` over the pool's pages; shape `rows x (num_heads * head_dim)`.
    fn attention(
        &self,
        qkv: &Self::Tensor,
        kind: &AttentionKind,
        kv: &Self::KvPool,
        layer: usize,
        batch: &Self::Batch,
        out: &mut Self::Tensor,
    ) -> Result<()>;
    /// The given rows, in order; shape `rows.len() x cols`.
    fn gather(&self, x: &Self::Tensor, rows: &[usize], out: &mut Self::Tensor) -> Result<()>;
    /// Waits, and gives `log(sum(exp(y))) - y_t` for each row `y` of [`linear`](Self::linear) and its column `t`: what a model
    /// loses that predicts this token; not finite where the row is not. `None`, and nothing is computed, where the caller reads
    /// the rows as fast. `out` is memory for the product, whose values are unspecified afterwards.
    fn losses(
        &self,
        _x: &Self::Input,
        _weight: &Self::Linear,
        _columns: &[u32],
        _out: &mut Self::Tensor,
    ) -> Result<Option<Vec<f64>>> {
        Ok(None)
    }
    /// Waits, and compares two models' logits row by row (float32, of one shape); of each row a column is the target. A score
    /// of a row that is not finite is not finite. `None` where the caller reads the rows as fast.
    fn compare(
        &self,
        _baseline: &Self::Tensor,
        _model: &Self::Tensor,
        _columns: &[u32],
    ) -> Result<Option<Vec<PairScore>>> {
        Ok(None)
    }
    /// Memory for what is picked.
    fn picks(&self) -> Result<Self::Picks>;
    /// Sets what the next draws are made by: a number in [0, 1) for each row. The same number and row give the same column.
    fn set_chances(&self, _picks: &mut Self::Picks, _chances: &[f64]) -> Result<()> {
        Err(BackendError::Unavailable("draws are made by the caller here, of rows that are read".into()))
    }
    /// Finds what is asked of each row of [`linear`](Self::linear), for [`read_picks`](Self::read_picks) to give. `out` is
    /// memory for the product, whose values are unspecified afterwards.
    ///
    /// The largest elements are exactly those of one arithmetic, whatever was left out to find them. Where only they are asked
    /// for, a device may sum in another order than [`linear`](Self::linear) does; elements of both agree within the rounding of
    /// float32 sums. A column is drawn where the sum of the probabilities of those before it first exceeds the row's chance;
    /// at the border of two columns sums of another order decide otherwise.
    fn pick(
        &self,
        x: &Self::Input,
        weight: &Self::Linear,
        pick: Pick,
        out: &mut Self::Tensor,
        picks: &mut Self::Picks,
    ) -> Result<()>;
    /// Waits, and gives what was found in each row.
    fn read_picks(&self, picks: &Self::Picks) -> Result<Vec<Picked>>;
}
