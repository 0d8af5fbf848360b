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

/// Smooths the input of o. Channels that one of v feeds (of query heads that share values) must have equal divisors.
///
/// # Errors
/// Those of the backend.
pub fn smooth_o<B: Calibrate>(b: &B, block: &mut FloatBlock<B>, s: &[f32], heads: HeadLayout) -> Result<()> {
    let values = of_values(s, heads);
    block.layers[Site::Qkv].divide_outputs(b, heads.q_width() + heads.kv_width(), &values)?;
    block.layers[Site::O].scale_inputs(b, s)
}

/// What the input channels of o have, by the channels of v that feed them.
fn of_values(channels: &[f32], heads: HeadLayout) -> Vec<f32> {
    let group = heads.q_width() / heads.num_kv_heads.max(1);
    channels.chunks(group.max(1)).flat_map(|heads_of_one| &heads_of_one[..heads.head_dim]).copied().collect()
}

/// Subtracts `z` from the input of o, and smooths it. What attention gives is an average of values with weights that sum to 1,
/// so v's bias takes the shift, and o's gives `W z` back; both layers get a bias where they have none. v's new bias is rounded to
/// the type it will be stored in, and what o gives back is what that really takes away. As in [`smooth_o`], channels that one of
/// v feeds must have equal shifts and divisors.
///
/// # Errors
/// Those of the backend.
pub fn shift_o<B: Calibrate>(
    b: &B,
    block: &mut FloatBlock<B>,
    z: &[f32],
    s: &[f32],
    heads: HeadLayout,
    half: HalfType,
) -> Result<()> {
    let first = heads.q_width() + heads.kv_width();
    let (shifts, divisors) = (of_values(z, heads), of_values(s, heads));
    let values = &mut block.layers[Site::Qkv];
    let bias = values.bias.get_or_insert_with(|| vec![0.0; values.n]);
    let taken: Vec<f32> = bias[first..]
        .iter_mut()
        .zip(shifts.iter().zip(&divisors))
        .map(|(bias, (z, s))| {
            let (old, new) = (*bias, half.round((*bias - z) / s));
            // The division of v's outputs comes below.
            *bias = new * s;
            old - new * s
        })
        .collect();
    let each = heads.num_heads / heads.num_kv_heads.max(1);
    let taken: Vec<f32> = taken
        .chunks(heads.head_dim)
        .flat_map(|head| std::iter::repeat_n(head, each))
        .flatten()
        .copied()
        .collect();
    let o = &mut block.layers[Site::O];
    let bias = o.bias.get_or_insert_with(|| vec![0.0; o.n]);
    for (bias, row) in bias.iter_mut().zip(b.read_weights(&o.weights)?.chunks_exact(o.k)) {
        let back: f64 = row.iter().zip(&taken).map(|(w, z)| f64::from(*w) * f64::from(*z)).sum();
        *bias = (f64::from(*bias) + back) as f32;
    }
    smooth_o(b, block, s, heads)
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
