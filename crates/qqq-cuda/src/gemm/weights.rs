//! Weights of a layer, prepacked.

use qqq_formats::{QuantizedWeight, Scales};

use super::weight_kind::WEIGHT_TILE_ROWS;
use super::{GemmTypes, WeightKind, pack8, pack16};
use crate::{CudaError, DType, Result};

/// Largest K whose int32 sums cannot overflow: operands are at most 128 in magnitude on both sides.
const MAX_IN_FEATURES: usize = 65536;

/// Weights of a layer in the order in which the kernels read them.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedWeights {
    /// How they are stored.
    pub kind: WeightKind,
    /// The activations that they are packed for.
    pub activation: DType,
    /// `N`, output channels.
    pub out_features: usize,
    /// `K`, input channels.
    pub in_features: usize,
    /// Weight tiles, shape `ceil(N / 64) x ceil(K / 128)` for int8 activations and `ceil(N / 64) x ceil(K / 64)` for
    /// 16-bit ones, padded with code 0.
    pub weight_tiles: Vec<u8>,
    /// Factor of each channel's sum, `ceil(N / 64) * 64` values, padded with 0.
    pub channel_scale: Vec<f32>,
}

impl PackedWeights {
    /// Packs a weight in the neutral form for int8 activations, stored as [`WeightKind::of`] says.
    ///
    /// # Errors
    /// [`CudaError::Shape`] when K or N is no multiple of 16, K exceeds 65,536, or the group size is none of 32, 64,
    /// 128.
    pub fn new(weight: &QuantizedWeight) -> Result<Self> {
        Self::of_kind(weight, WeightKind::of(weight), DType::I8)
    }

    /// Packs a weight in the neutral form for activations of this type. Group scales for 16-bit ones are stored in the
    /// activations' type, to which the kernel rounds their products with the codes too.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn for_activation(weight: &QuantizedWeight, activation: DType) -> Result<Self> {
        let kind = match &weight.scales {
            _ if activation == DType::I8 => WeightKind::of(weight),
            Scales::PerChannel(_) => WeightKind::of(weight),
            Scales::PerGroup { group_size, .. } => WeightKind::GroupHalf4(*group_size),
        };
        Self::of_kind(weight, kind, activation)
    }

    /// Packs a weight in the neutral form, stored so.
    ///
    /// # Errors
    /// As [`new`](Self::new); [`CudaError::Types`] for scales that such weights do not have, and for activations that
    /// they do not go with.
    pub fn of_kind(weight: &QuantizedWeight, kind: WeightKind, activation: DType) -> Result<Self> {
        check(weight)?;
        // The output's type is of no concern: any, or the activations' own.
        let output = if activation == DType::I8 { DType::F16 } else { activation };
        GemmTypes::new(kind, activation, output)?;
        let (n, k) = (weight.out_features, weight.in_features);
        let groups = match &weight.scales {
            Scales::PerChannel(_) => None,
            Scales::PerGroup { group, .. } => Some(group.as_slice()),
        };
        let best = WeightKind::of(weight);
        // Integer scales are 16-bit numbers too.
        let fits = kind == best || matches!(kind, WeightKind::GroupHalf4(g) if Some(g) == best.group_size());
        if !fits {
            return Err(CudaError::Types(format!("weights {best} cannot be stored as {kind}")));
        }
        // With int8 activations and no groups the kernel multiplies 16 x code.
        let factor = if (kind, activation) == (WeightKind::Channel4, DType::I8) { 1.0 / 16.0 } else { 1.0 };
        Ok(Self {
            kind,
            activation,
            out_features: n,
            in_features: k,
            weight_tiles: match activation {
                DType::I8 => pack8::pack(kind, n, k, &weight.codes, groups),
                half => pack16::pack(kind, weight, half),
            },
            channel_scale: padded_scales(weight.channel_scales(), factor),
        })
    }

    /// Packs int8 weights for int8 activations (`codes` of shape `N x K`) with a scale a channel.
    ///
    /// # Errors
    /// As [`new`](Self::new); also when the lengths do not agree.
    pub fn from_int8(codes: &[i8], channel_scale: &[f32], in_features: usize) -> Result<Self> {
        let n = channel_scale.len();
        check_shape(n, in_features)?;
        if codes.len() != n * in_features {
            return Err(CudaError::Shape(format!("{} codes for {n} x {in_features} weights", codes.len())));
        }
        Ok(Self {
            kind: WeightKind::Channel8,
            activation: DType::I8,
            out_features: n,
            in_features,
            weight_tiles: pack8::pack(WeightKind::Channel8, n, in_features, codes, None),
            channel_scale: padded_scales(channel_scale, 1.0),
        })
    }
}

/// Whether there are kernels for the weight.
pub(super) fn check(weight: &QuantizedWeight) -> Result<()> {
    weight.check("weight").map_err(|e| CudaError::Shape(e.to_string()))?;
    check_shape(weight.out_features, weight.in_features)?;
    match &weight.scales {
        Scales::PerGroup { group_size, .. } if ![32, 64, 128].contains(group_size) => Err(CudaError::Shape(
            format!("groups of {group_size} input channels: the GPU kernels take 32, 64 or 128"),
        )),
        _ => Ok(()),
    }
}

/// That the kernels take `n` output and `k` input channels.
///
/// # Errors
/// [`CudaError::Shape`].
pub fn check_shape(n: usize, k: usize) -> Result<()> {
    if n == 0 || k == 0 || !n.is_multiple_of(16) || !k.is_multiple_of(16) || k > MAX_IN_FEATURES {
        return Err(CudaError::Shape(format!(
            "{n} output and {k} input channels: the GPU kernels take multiples of 16, and at most {MAX_IN_FEATURES} input \
             channels"
        )));
    }
    Ok(())
}

fn padded_scales(scales: &[f32], factor: f32) -> Vec<f32> {
    let mut out = vec![0.0; scales.len().next_multiple_of(WEIGHT_TILE_ROWS)];
    for (o, s) in out.iter_mut().zip(scales) {
        *o = s * factor;
    }
    out
}

#[cfg(test)]
mod tests16;
#[cfg(test)]
mod tests8;
