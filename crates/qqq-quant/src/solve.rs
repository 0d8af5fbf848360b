//! Rounding a layer's weights: to nearest, or with Hessian-based compensation (GPTQ).

use qqq_formats::QuantizedWeight;

use crate::{Clip, Result};

/// How to solve a layer.
#[derive(Clone, Debug)]
pub struct SolveOptions {
    /// `None`: per channel.
    pub group_size: Option<usize>,
    /// GPTQ, else rounding to nearest.
    pub compensate: bool,
    /// How scales are chosen.
    pub clip: Clip,
    /// Columns in order of falling Hessian diagonal, static groups.
    pub act_order: bool,
    /// Initial damping, as a share of the mean diagonal.
    pub damping: f64,
}

/// A solved layer.
#[derive(Clone, Debug)]
pub struct Solved {
    /// Codes and scales.
    pub weight: QuantizedWeight,
    /// `tr((W-Q) H (W-Q)^T) / tr(W H W^T)`, relative output error, of rounding to nearest with the same scales.
    pub loss_nearest: f64,
    /// The same of the result, as the kernel sees it (int8-rounded group scales included).
    pub loss: f64,
    /// Damping that was needed.
    pub damping: f64,
    /// Channels whose inputs are always zero.
    pub dead_channels: usize,
}

/// Quantizes `weights` (`n x k`, row-major) for inputs with Hessian `hessian` (`k x k`, full). `layer` names the layer in errors.
/// Rows are independent: several layers that share an input may be stacked.
pub fn solve(
    _layer: &str,
    _weights: &[f32],
    _n: usize,
    _k: usize,
    _hessian: &[f32],
    _options: &SolveOptions,
) -> Result<Solved> {
    unimplemented!()
}
