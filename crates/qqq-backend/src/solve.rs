//! What a device is asked that solves the rows of a layer itself.

use std::ops::Range;

use half::{bf16, f16};
use qqq_formats::{Activations, CodeBits, DType, LinearWeight, QuantizedWeight, Scales};

use crate::InputKind;

/// A grid of codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    /// Least code of the grid, a whole number.
    pub low: f32,
    /// Largest code of the grid, a whole number.
    pub high: f32,
    /// The unclipped scale is the largest |weight| over this.
    pub reach: f32,
}

impl Grid {
    /// Per channel: codes -7..=7, scale max|w| / 7.
    pub const CHANNEL: Grid = Grid { low: -7.0, high: 7.0, reach: 7.0 };
    /// Per group: codes -8..=7, scale 2 max|w| / 15 (both ends half a step short).
    pub const GROUP: Grid = Grid { low: -8.0, high: 7.0, reach: 7.5 };

    /// 8 bits, per channel: codes -127..=127, scale max|w| / 127.
    pub const BYTE: Grid = Grid { low: -127.0, high: 127.0, reach: 127.0 };
}

/// What the weights of a layer become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheme {
    /// Bits of a code.
    pub bits: CodeBits,
    /// What the layer multiplies: for int8 activations, weights of groups are rounded to int8 of their channel.
    pub activations: Activations,
    /// Input channels that share a scale; `None`: all of an output channel, as with 8 bits always.
    pub group_size: Option<usize>,
}

impl Scheme {
    /// 4-bit weights for int8 activations.
    pub const fn w4a8(group_size: Option<usize>) -> Self {
        Self { bits: CodeBits::Four, activations: Activations::Int8, group_size }
    }

    /// The codes that it has.
    pub const fn grid(self) -> Grid {
        match (self.bits, self.group_size) {
            (CodeBits::Eight, _) => Grid::BYTE,
            (CodeBits::Four, Some(_)) => Grid::GROUP,
            (CodeBits::Four, None) => Grid::CHANNEL,
        }
    }

    /// Whether scales have two levels, of groups and of channels, between which weights are int8.
    pub fn has_two_levels(self) -> bool {
        self.group_size.is_some() && self.activations == Activations::Int8
    }

    /// What a layer of this kind takes.
    pub const fn input_kind(self) -> InputKind {
        match self.activations {
            Activations::Int8 => InputKind::Int8,
            Activations::Half => InputKind::Float,
        }
    }

    /// The weight of codes, `n x k`, and effective scales, `n x groups` (one of a channel without groups), with the scales
    /// that such a layer is multiplied with.
    ///
    /// # Panics
    /// If the lengths do not agree.
    pub fn weight(self, (n, k): (usize, usize), codes: Vec<i8>, effective: Vec<f32>) -> QuantizedWeight {
        let scales = match self.group_size {
            None => Scales::PerChannel(effective),
            Some(group) if self.has_two_levels() => Scales::from_effective(&codes, n, k, group, &effective),
            Some(group) => Scales::weight_only(n, group, &effective),
        };
        QuantizedWeight { bits: self.bits, out_features: n, in_features: k, codes, scales }
    }

    /// Codes and scales as a layer that takes such activations. `dtype` is the type of the scales as they are stored, which
    /// weights of 16-bit activations are multiplied in.
    pub fn layer(self, weight: QuantizedWeight, dtype: DType) -> LinearWeight {
        match self.activations {
            Activations::Int8 => LinearWeight::Quantized(weight),
            Activations::Half => LinearWeight::WeightOnly { weight, dtype },
        }
    }

    /// That there are such weights of `k` input channels; else why not.
    ///
    /// # Errors
    /// Groups that do not divide `k`, and 8 bits with groups.
    pub fn check(self, k: usize) -> Result<(), String> {
        match (self.bits, self.group_size) {
            (_, Some(group)) if group == 0 || !k.is_multiple_of(group) => {
                Err(format!("groups of {group} do not divide its {k} input channels"))
            }
            (CodeBits::Eight, Some(group)) => {
                Err(format!("8-bit weights have one scale an output channel, no groups of {group}"))
            }
            _ => Ok(()),
        }
    }
}

/// Precision in which a checkpoint stores effective scales. Scales are rounded to it before weights are, so that writing
/// and loading change nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScaleDType {
    /// IEEE binary32: no rounding.
    #[default]
    F32,
    /// IEEE binary16, as checkpoints of float16 models store scales.
    F16,
    /// bfloat16, as checkpoints of bfloat16 models store scales.
    BF16,
}

impl ScaleDType {
    /// As a type of tensors.
    pub const fn dtype(self) -> DType {
        match self {
            ScaleDType::F32 => DType::F32,
            ScaleDType::F16 => DType::F16,
            ScaleDType::BF16 => DType::BF16,
        }
    }

    /// Rounds a positive scale to nearest, but never to zero or infinity.
    pub fn round(self, scale: f32) -> f32 {
        match self {
            ScaleDType::F32 => scale,
            ScaleDType::F16 => f16::from_f32(scale).clamp(f16::MIN_POSITIVE_SUBNORMAL, f16::MAX).to_f32(),
            ScaleDType::BF16 => bf16::from_f32(scale).clamp(bf16::MIN_POSITIVE_SUBNORMAL, bf16::MAX).to_f32(),
        }
    }
}

/// Round half to even, for |x| < 2^22; unlike the intrinsic it is vectorized on every instruction set.
#[inline(always)]
pub fn round(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0; // 1.5 * 2^23
    (x + SHIFT) - SHIFT
}

/// A search for the scale of least error: a coarse pass over ratios to the unclipped scale, then the steps between the
/// neighbours of its best. 1 is always among the candidates, and wins ties.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScaleSearch {
    /// The first ratio, in hundredths.
    pub from: i32,
    /// The last ratio, in hundredths; below the first.
    pub to: i32,
    /// Hundredths between two ratios of the coarse pass.
    pub stride: i32,
}

/// The error of a rounded weight: `|w - q|^p`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorPower {
    /// `p` is 2.
    Square,
    /// `p` is 2.4, as in GPTQ's `mse` option.
    Steep,
}

/// How the scales of a layer are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScaleChoice {
    /// `None`: the largest weight fits.
    pub search: Option<ScaleSearch>,
    /// What is compared.
    pub power: ErrorPower,
    /// Whether the error of a channel counts by what it costs the layer's output, or all alike. Channels whose inputs are
    /// always zero count never.
    pub weighted: bool,
    /// Whether the scales of groups are 1 to 15 times one scale of their channel.
    pub integer: bool,
    /// Type in which scales are stored: F32, F16 or BF16.
    pub dtype: DType,
    /// Whether a channel's scale is fitted once more to the codes as they have become; without groups alone.
    pub fit: bool,
}

/// Hessian-based compensation (GPTQ, arXiv 2210.17323).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Compensation {
    /// Share of the mean diagonal that is added to the Hessian.
    pub damping: f64,
    /// Whether columns come in the order of falling diagonal.
    pub act_order: bool,
}

/// Share of the Hessian's mean diagonal that is added to it where weights are [corrected](Correction).
pub const RIDGE: f64 = 0.1;

/// Weights are moved towards the float model's output before they are rounded:
/// `W + strength W D^T (H + RIDGE mean(diag H) I)^-1`, with `D` the first matrix of the
/// [deviation](crate::Calibrate::Deviation).
#[derive(Clone, Copy, Debug)]
pub struct Correction<'a, D> {
    /// How the float model's inputs deviate.
    pub deviation: &'a D,
    /// From 0 (not at all) to 1 (least squares).
    pub strength: f64,
}

/// Output channels of a layer, or of several that share their input.
#[derive(Clone, Debug)]
pub struct Problem<'a, W, H, D> {
    /// Weights of the layer.
    pub weights: &'a W,
    /// The output channels that are solved.
    pub rows: Range<usize>,
    /// Input channels: columns of the weights.
    pub k: usize,
    /// Second moments of the inputs; `None`: every input counts the same.
    pub hessian: Option<&'a H>,
    /// What the weights become.
    pub scheme: Scheme,
    /// How scales are chosen.
    pub scales: ScaleChoice,
    /// `None`: codes are rounded to nearest.
    pub compensation: Option<Compensation>,
    /// `None`: what is rounded are the weights as they are. Else losses are those against the float model's output.
    pub correction: Option<Correction<'a, D>>,
}

/// Why a [`Problem`] has no solution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unsolved {
    /// Not with this damping: a larger one may do.
    Damping(String),
    /// Its weights cannot be [corrected](Correction), with whatever damping.
    Correction(String),
}

/// What solving a [`Problem`] gives: codes, scales and what they cost.
#[derive(Clone, Debug)]
pub struct Solution {
    /// Codes, `rows x k`, row-major.
    pub codes: Vec<i8>,
    /// Effective scales, `rows x groups`, one of a channel without groups.
    pub scales: Vec<f32>,
    /// `tr(W H W^T)`.
    pub energy: f64,
    /// `tr((W-Q) H (W-Q)^T)` of rounding to nearest with the scales that were chosen first.
    pub error_nearest: f64,
    /// The same of the result, as the kernels see it.
    pub error: f64,
    /// `|W|^2`, of the weights before they were corrected.
    pub weight_energy: f64,
    /// `|W-Q|^2` of the result.
    pub weight_error: f64,
    /// Channels whose inputs are always zero.
    pub dead_channels: usize,
}
