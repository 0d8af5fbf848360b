//! The dense operations of learning: all that a device has to give for it. The algorithm is written over these alone.
//!
//! Each operation that is differentiated stands beside its backward pass, which takes the gradient of the loss by the output and
//! what went in, and gives the gradient by what went in. Arrays are matrices, row-major.

use std::ops::Range;

use qqq_backend::{AttentionKind, Gate, HeadLayout, Result, solve::Grid};

use crate::solve::ScaleDType;

/// How the weights of a layer are rounded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct WeightGrid {
    /// Codes.
    pub grid: Grid,
    /// Input channels that share a scale.
    pub group: usize,
    /// Type of the scales as they are stored; gradients pass its rounding as if it were not there.
    pub dtype: ScaleDType,
}

/// The rotary embedding of the positions of a window.
pub(crate) struct Rotary<A> {
    /// Cosines, `positions x half`.
    pub cos: A,
    /// Sines, the same.
    pub sin: A,
    /// What whole queries are multiplied by, `positions x 1`, where that is not 1.
    pub queries: Option<A>,
}

/// Which way a rotary embedding turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// As in a forward pass.
    Forward,
    /// The transposed matrix: gradients.
    Back,
}

/// A step of Adam (Kingma and Ba, arXiv 1412.6980).
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdamStep {
    /// Learning rate.
    pub rate: f64,
    /// Number of the step, from 1.
    pub step: i32,
    /// What no value may be below, where there is such.
    pub least: Option<f64>,
}

/// A parameter with its running moments.
pub(crate) struct Parameter<A> {
    /// Its values.
    pub value: A,
    /// Running mean of gradients.
    pub mean: A,
    /// Running mean of their squares.
    pub square: A,
}

/// Gradients by what a quantized weight is made of.
pub(crate) struct WeightGradients<A> {
    /// By the clipping strengths, `2 x (n groups)`, where the weight is quantized.
    pub clip: Option<A>,
    /// By the scales of input channels, `1 x k`, where it has such.
    pub scales: Option<A>,
}

/// A device on which a block can learn.
///
/// # Errors
/// Those of the device.
pub(crate) trait Ops: Sync {
    /// A matrix there.
    type Array: Send + Sync;

    /// Brings a matrix there.
    fn array(&self, rows: usize, cols: usize, values: &[f32]) -> Result<Self::Array>;
    /// Brings it back.
    fn read(&self, x: &Self::Array) -> Result<Vec<f32>>;
    /// Zeros of the shape of another.
    fn zeros_like(&self, x: &Self::Array) -> Result<Self::Array>;
    /// A copy.
    fn copy(&self, x: &Self::Array) -> Result<Self::Array>;

    /// `x w^T + bias`; shapes `rows x k`, `n x k`, `1 x n`.
    fn product(&self, x: &Self::Array, w: &Self::Array, bias: Option<&Self::Array>) -> Result<Self::Array>;
    /// By `x`: `dy w`.
    fn product_back_x(&self, dy: &Self::Array, w: &Self::Array) -> Result<Self::Array>;
    /// By `w`: `dy^T x`.
    fn product_back_w(&self, dy: &Self::Array, x: &Self::Array) -> Result<Self::Array>;

    /// `x / sqrt(mean(x^2) + eps) weight` of every row; `weight` is `1 x cols`.
    fn norm(&self, x: &Self::Array, weight: &Self::Array, eps: f64) -> Result<Self::Array>;
    /// By `x`.
    fn norm_back(
        &self,
        dy: &Self::Array,
        x: &Self::Array,
        weight: &Self::Array,
        eps: f64,
    ) -> Result<Self::Array>;
    /// The norm of each head (as wide as `weight`) in some columns, in place.
    fn norm_heads(
        &self,
        x: &mut Self::Array,
        columns: Range<usize>,
        weight: &Self::Array,
        eps: f64,
    ) -> Result<()>;
    /// By `x`, whose values before the norm are given; `dy` becomes it.
    fn norm_heads_back(
        &self,
        dy: &mut Self::Array,
        x: &Self::Array,
        columns: Range<usize>,
        weight: &Self::Array,
        eps: f64,
    ) -> Result<()>;
    /// Turns queries and keys of rows of `qkv`, which are at the positions from 0 on.
    fn rotate(
        &self,
        qkv: &mut Self::Array,
        heads: HeadLayout,
        rotary: &Rotary<Self::Array>,
        turn: Turn,
    ) -> Result<()>;
    /// Attention over one sequence from its start.
    fn attention(&self, qkv: &Self::Array, kind: &AttentionKind) -> Result<Self::Array>;
    /// By `qkv`; `y` is what it gave.
    fn attention_back(
        &self,
        dy: &Self::Array,
        y: &Self::Array,
        qkv: &Self::Array,
        kind: &AttentionKind,
    ) -> Result<Self::Array>;
    /// `gate(g) u` of rows `[g | u]`.
    fn gated(&self, gate_up: &Self::Array, gate: Gate) -> Result<Self::Array>;
    /// By `[g | u]`.
    fn gated_back(&self, dy: &Self::Array, gate_up: &Self::Array, gate: Gate) -> Result<Self::Array>;

    /// `sum += factor x`.
    fn add(&self, sum: &mut Self::Array, x: &Self::Array, factor: f64) -> Result<()>;
    /// `factor (a - b)`.
    fn difference(&self, a: &Self::Array, b: &Self::Array, factor: f64) -> Result<Self::Array>;
    /// `sum (a - b)^2`.
    fn squared_distance(&self, a: &Self::Array, b: &Self::Array) -> Result<f64>;
    /// Divides column `first + j` by `s[j]`.
    fn divide_columns(&self, x: &mut Self::Array, first: usize, s: &Self::Array) -> Result<()>;
    /// By the divisors: adds `-sum dy y / s` over rows, with the quotients `y`, to `ds`.
    fn divide_columns_back(
        &self,
        ds: &mut Self::Array,
        dy: &Self::Array,
        y: &Self::Array,
        first: usize,
        s: &Self::Array,
    ) -> Result<()>;
    /// The largest magnitude of every column.
    fn largest_of_columns(&self, x: &Self::Array) -> Result<Vec<f32>>;
    /// What the channels of the values have, for the channels of attention's output that they feed.
    fn repeat_heads(&self, s: &Self::Array, heads: HeadLayout) -> Result<Self::Array>;
    /// By what the channels of the values have.
    fn repeat_heads_back(&self, ds: &Self::Array, heads: HeadLayout) -> Result<Self::Array>;

    /// Rows to int8 and back, each with the scale of its largest magnitude; as the kernels round.
    fn int8(&self, x: &Self::Array) -> Result<Self::Array>;
    /// By `x`: rounding passes gradients, and the scale follows the largest magnitude.
    fn int8_back(&self, dy: &Self::Array, x: &Self::Array) -> Result<Self::Array>;
    /// `w` with columns times `scales`, rounded to codes with clipped scales, and back. Without `clip` nothing is rounded.
    fn weight(
        &self,
        w: &Self::Array,
        scales: Option<&Self::Array>,
        clip: Option<(&Self::Array, WeightGrid)>,
    ) -> Result<Self::Array>;
    /// By clipping strengths and scales: rounding passes gradients, and clipped weights follow the scale.
    fn weight_back(
        &self,
        dw: &Self::Array,
        w: &Self::Array,
        scales: Option<&Self::Array>,
        clip: Option<(&Self::Array, WeightGrid)>,
    ) -> Result<WeightGradients<Self::Array>>;
    /// The steps of the grids with which `weight` rounds, `n x groups`.
    fn steps(&self, w: &Self::Array, clip: &Self::Array, grid: WeightGrid) -> Result<Vec<f32>>;

    /// A step of Adam down a gradient.
    fn adam(
        &self,
        parameter: &mut Parameter<Self::Array>,
        gradient: &Self::Array,
        step: AdamStep,
    ) -> Result<()>;
}
