//! Transformations that are absorbed into the weights: the float model computes the same function afterwards.
//!
//! Smoothing divides an input channel by `s_j` where it is made, and multiplies it where it is used. Rotation is in
//! [`rotations`](crate::rotations).

use qqq_backend::{Calibrate, HeadLayout};
use qqq_model::{BlockNorms, Site};

use crate::{Result, float_linear::FloatBlock, half_type::HalfType};

/// Divides the output of a norm by `s`. The new norm weight, to which `offset` is added, is rounded to the type it will be
/// stored in; the returned factors, to be multiplied into the next layer, undo exactly what the rounded weight does.
fn smooth_norm(norm: &mut [f32], offset: f32, s: &[f32], half: HalfType) -> Vec<f32> {
    norm.iter_mut()
        .zip(s)
        .map(|(w, &s)| {
            let old = *w + offset;
            let rounded = half.round(old / s - offset);
            let factor = old / (rounded + offset);
            if s == 1.0 || !factor.is_normal() {
                return 1.0;
            }
            *w = rounded;
            factor
        })
        .collect()
}

/// Smooths the input of q, k and v.
///
/// # Errors
/// Those of the backend, as of the others.
pub fn smooth_qkv<B: Calibrate>(b: &B, block: &mut FloatBlock<B>, s: &[f32], half: HalfType) -> Result<()> {
    let factors = smooth_norm(&mut block.norms.input, block.norms.offset, s, half);
    block.layers[Site::Qkv].scale_inputs(b, &factors)
}

/// Smooths the input of o. Only for models with as many key-value heads as query heads: otherwise a channel of v
/// feeds several input channels of o.
///
/// # Errors
/// Those of the backend.
pub fn smooth_o<B: Calibrate>(b: &B, block: &mut FloatBlock<B>, s: &[f32], heads: HeadLayout) -> Result<()> {
    block.layers[Site::Qkv].divide_outputs(b, heads.q_width() + heads.kv_width(), s)?;
    block.layers[Site::O].scale_inputs(b, s)
}

/// Smooths the input of gate and up.
///
/// # Errors
/// Those of the backend.
pub fn smooth_gate_up<B: Calibrate>(
    b: &B,
    block: &mut FloatBlock<B>,
    s: &[f32],
    half: HalfType,
) -> Result<()> {
    let factors = smooth_norm(&mut block.norms.post, block.norms.offset, s, half);
    block.layers[Site::GateUp].scale_inputs(b, &factors)
}

/// Smooths the input of down: `silu(gate) * up` is linear in up.
///
/// # Errors
/// Those of the backend.
pub fn smooth_down<B: Calibrate>(b: &B, block: &mut FloatBlock<B>, s: &[f32]) -> Result<()> {
    let width = block.layers[Site::Down].k;
    block.layers[Site::GateUp].divide_outputs(b, width, s)?;
    block.layers[Site::Down].scale_inputs(b, s)
}

/// Rounds norms as they are stored in 16 bits, so that calibration sees the stored values.
pub fn round_norms(norms: &mut BlockNorms, half: HalfType) {
    norms.each_mut().for_each(|weight| half.round_all(weight));
}

/// The same for a layer's bias.
pub fn round_bias(bias: Option<&mut [f32]>, half: HalfType) {
    if let Some(bias) = bias {
        half.round_all(bias);
    }
}
