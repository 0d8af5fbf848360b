//! Transformations that are absorbed into the weights: the float model computes the same function afterwards.
//!
//! Smoothing divides an input channel by `s_j` where it is made, and multiplies it where it is used. Rotation is in
//! [`rotations`](crate::rotations).

use qqq_backend::HeadLayout;
use qqq_model::{BlockNorms, Site};

use crate::{
    float_linear::{FloatBlock, FloatLinear},
    half_type::HalfType,
};

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
pub fn smooth_qkv(block: &mut FloatBlock, s: &[f32], half: HalfType) {
    let factors = smooth_norm(&mut block.norms.input, block.norms.offset, s, half);
    block.layers[Site::Qkv].scale_inputs(&factors);
}

/// Smooths the input of o. Only for models with as many key-value heads as query heads: otherwise a channel of v
/// feeds several input channels of o.
pub fn smooth_o(block: &mut FloatBlock, s: &[f32], heads: HeadLayout) {
    block.layers[Site::Qkv].divide_outputs(heads.q_width() + heads.kv_width(), s);
    block.layers[Site::O].scale_inputs(s);
}

/// Smooths the input of gate and up.
pub fn smooth_gate_up(block: &mut FloatBlock, s: &[f32], half: HalfType) {
    let factors = smooth_norm(&mut block.norms.post, block.norms.offset, s, half);
    block.layers[Site::GateUp].scale_inputs(&factors);
}

/// Smooths the input of down: `silu(gate) * up` is linear in up.
pub fn smooth_down(block: &mut FloatBlock, s: &[f32]) {
    let width = block.layers[Site::Down].k;
    block.layers[Site::GateUp].divide_outputs(width, s);
    block.layers[Site::Down].scale_inputs(s);
}

/// Rounds norms as they are stored in 16 bits, so that calibration sees the stored values.
pub fn round_norms(norms: &mut BlockNorms, half: HalfType) {
    norms.each_mut().for_each(|weight| half.round_all(weight));
}

/// The same for a layer's bias.
pub fn round_bias(linear: &mut FloatLinear, half: HalfType) {
    if let Some(bias) = &mut linear.bias {
        half.round_all(bias);
    }
}
