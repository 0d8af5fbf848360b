//! What learning asks of a device: the dense operations of a block that is differentiated. The algorithm is written over these
//! alone.
//!
//! Each operation that is differentiated stands beside its backward pass, which takes the gradient of the loss by the output and
//! what went in, and gives the gradient by what went in. Arrays are matrices, row-major.

use std::ops::Range;

use crate::{
    AttentionKind, Gate, HeadLayout, Result,
    solve::{Grid, ScaleDType},
};

/// What is left of Adam's running mean of gradients in a step.
pub const ADAM_DECAY: f64 = 0.9;
/// The same of the mean of their squares.
pub const ADAM_SQUARE_DECAY: f64 = 0.999;
/// What keeps Adam's divisor from 0, as in PyTorch.
pub const ADAM_EPSILON: f64 = 1e-8;

/// How the weights of a layer are rounded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WeightGrid {
    /// Codes.
    pub grid: Grid,
    /// Input channels that share a scale.
    pub group: usize,
    /// Type of the scales as they are stored; gradients pass its rounding as if it were not there.
    pub dtype: ScaleDType,
}

/// The rotary embedding of the positions of a window.
pub struct Rotary<A> {
    /// Cosines, `positions x half`.
    pub cos: A,
    /// Sines, the same.
    pub sin: A,
    /// What whole queries are multiplied by, `positions x 1`, where that is not 1.
    pub queries: Option<A>,
}

/// Which way a rotary embedding turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// As in a forward pass.
    Forward,
    /// The transposed matrix: gradients.
    Back,
}

/// A step of Adam (Kingma and Ba, arXiv 1412.6980).
#[derive(Clone, Copy, Debug)]
pub struct AdamStep {
    /// Learning rate.
    pub rate: f64,
    /// Number of the step, from 1.
    pub step: i32,
    /// What no value may be below, where there is such.
    pub least: Option<f64>,
}

impl AdamStep {
    /// The learning rate, corrected for the running mean's beginning at 0.
    pub fn corrected_rate(&self) -> f64 {
        self.rate / (1.0 - ADAM_DECAY.powi(self.step))
    }

    /// What the root of the mean square is divided by for the same reason.
    pub fn correction(&self) -> f64 {
        (1.0 - ADAM_SQUARE_DECAY.powi(self.step)).sqrt()
    }
}

/// A parameter with its running moments.
pub struct Parameter<A> {
    /// Its values.
    pub value: A,
    /// Running mean of gradients.
    pub mean: A,
    /// Running mean of their squares.
    pub square: A,
}

/// Gradients by what a quantized weight is made of.
pub struct WeightGradients<A> {
    /// By the clipping strengths, `2 x (n groups)`, where the weight is quantized.
    pub clip: Option<A>,
    /// By the scales of input channels, `1 x k`, where it has such.
    pub scales: Option<A>,
}

/// A device on which a block can learn.
///
/// # Errors
/// Those of the device.
pub trait Learn: Sync {
    /// A matrix there.
    type Array: Send + Sync;

    /// Brings a matrix there.
    fn array(&self, rows: usize, cols: usize, values: &[f32]) -> Result<Self::Array>;
    /// Waits, and brings it back.
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
    /// `factor x`.
    fn scaled(&self, x: &Self::Array, factor: f64) -> Result<Self::Array>;
    /// `factor (a - b)`.
    fn difference(&self, a: &Self::Array, b: &Self::Array, factor: f64) -> Result<Self::Array>;
    /// Waits, and gives `sum (a - b)^2`; without `b` the sum of the squares.
    fn squared_distance(&self, a: &Self::Array, b: Option<&Self::Array>) -> Result<f64>;
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
    /// Waits, and gives the largest magnitude of every column.
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
    /// Waits, and gives the steps of the grids with which [`weight`](Self::weight) rounds, `n x groups`; those of groups of zeros
    /// as [`fill_steps`] has them.
    fn steps(&self, w: &Self::Array, clip: &Self::Array, grid: WeightGrid) -> Result<Vec<f32>>;

    /// A step of Adam down a gradient.
    fn adam(
        &self,
        parameter: &mut Parameter<Self::Array>,
        gradient: &Self::Array,
        step: AdamStep,
    ) -> Result<()>;
}

/// Gives each group without a step, which has 0, the least of its row, and rows without any 1. `groups` are those of a row.
pub fn fill_steps(steps: &mut [f32], groups: usize) {
    for row in steps.chunks_exact_mut(groups.max(1)) {
        let least = row.iter().copied().filter(|step| *step > 0.0).fold(f32::INFINITY, f32::min);
        let least = if least.is_finite() { least } else { 1.0 };
        row.iter_mut().filter(|step| **step == 0.0).for_each(|step| *step = least);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_zeros_have_the_least_step_of_their_row() {
        let mut steps = [0.5, 0.0, 0.25, 0.0, 0.0, 0.0];
        fill_steps(&mut steps, 3);
        assert_eq!(steps, [0.5, 0.25, 0.25, 1.0, 1.0, 1.0]);
    }
}
