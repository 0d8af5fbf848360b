//! Transformations that are absorbed into the weights: the float model computes the same function afterwards.
//!
//! Rotation is the offline part of QuaRot (arXiv 2404.00456): norm weights are folded into the linear layers that
//! follow, the residual stream is turned by an orthogonal matrix `Q`, and the heads of v by a Hadamard matrix.
//! Activations are row vectors: the stream becomes `h Q`, so layers that read it take `W Q` and layers that write it
//! `Q^T W`. Smoothing divides an input channel by `s_j` where it is made, and multiplies it where it is used.

use qqq_backend::HeadLayout;
use qqq_model::{BlockNorms, Site};

use crate::{
    float_linear::{FloatBlock, FloatLinear},
    half_type::HalfType,
    rotation::Rotation,
};

/// Folds the norm weights of a block into its linear layers; the norms become 1.
pub fn fold_norms(block: &mut FloatBlock) {
    let FloatBlock { norms, layers } = block;
    for (site, norm) in [(Site::Qkv, &mut norms.input), (Site::GateUp, &mut norms.post)] {
        layers[site].scale_inputs(norm);
        norm.fill(1.0);
    }
}

/// Rotates a block whose norms are folded: the residual stream by `stream`, the heads of v by `head`.
pub fn rotate(block: &mut FloatBlock, stream: &Rotation, head: &Rotation, heads: HeadLayout) {
    for site in Site::ALL {
        rotate_linear(site, &mut block.layers[site], stream, head, heads);
    }
}

/// Rotates one layer of a block, with the norm before it folded.
pub fn rotate_linear(
    site: Site,
    weights: &mut FloatLinear,
    stream: &Rotation,
    head: &Rotation,
    heads: HeadLayout,
) {
    let FloatLinear { k, weight, bias, .. } = weights;
    match site {
        Site::Qkv | Site::GateUp => stream.apply_rows(weight),
        Site::O | Site::Down => {
            stream.apply_outputs(weight, *k);
            if let Some(bias) = bias {
                stream.apply_rows(bias);
            }
        }
    }
    match site {
        Site::Qkv => {
            let first_v = heads.q_width() + heads.kv_width();
            for v in weight[first_v * *k..].chunks_exact_mut(heads.head_dim * *k) {
                head.apply_outputs(v, *k);
            }
            if let Some(bias) = bias {
                head.apply_rows(&mut bias[first_v..]);
            }
        }
        // A row of o is a row of `head_dim` values for every query head.
        Site::O => head.apply_rows(weight),
        Site::GateUp | Site::Down => {}
    }
}

/// Divides the output of a norm by `s`. The new norm weight is rounded to the type it will be stored in; the returned
/// factors, to be multiplied into the next layer, undo exactly what the rounded weight does.
fn smooth_norm(norm: &mut [f32], s: &[f32], half: HalfType) -> Vec<f32> {
    norm.iter_mut()
        .zip(s)
        .map(|(w, &s)| {
            let old = *w;
            let rounded = half.round(old / s);
            let factor = old / rounded;
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
    let factors = smooth_norm(&mut block.norms.input, s, half);
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
    let factors = smooth_norm(&mut block.norms.post, s, half);
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
    half.round_all(&mut norms.input);
    half.round_all(&mut norms.post);
    if let Some((q, k)) = &mut norms.qk {
        half.round_all(q);
        half.round_all(k);
    }
}

/// The same for a layer's bias.
pub fn round_bias(linear: &mut FloatLinear, half: HalfType) {
    if let Some(bias) = &mut linear.bias {
        half.round_all(bias);
    }
}
