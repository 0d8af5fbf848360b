//! RMS norm and the gated activation: the element-wise operations in front of linear layers. With
//! int8 input, rows are quantized as they are made.

use super::{
    CpuActivation,
    matrix::Matrix,
    shared::{SharedMut, for_row_ranges},
    simd::{SimdLevel, exp, multiversion, sum_of_squares},
    w4a8::Int8Activations,
};
use crate::InputKind;

/// Makes an activation of shape `rows x cols` from a function that writes a row, which costs about
/// `cost` element operations.
fn activation(
    rows: usize,
    cols: usize,
    cost: usize,
    kind: InputKind,
    fill: impl Fn(usize, &mut [f32]) + Sync,
) -> CpuActivation {
    match kind {
        InputKind::Int8 => CpuActivation::Int8(Int8Activations::from_rows(rows, cols, fill)),
        InputKind::Float => {
            let mut out = Matrix::unspecified(rows, cols);
            let shared = SharedMut::new(&mut out.data);
            for_row_ranges(rows, cost, |range| {
                for i in range {
                    // SAFETY: jobs have different rows.
                    fill(i, unsafe { shared.slice(i * cols..(i + 1) * cols) });
                }
            });
            CpuActivation::Float(out)
        }
    }
}

/// `x / sqrt(mean(x^2) + eps) * weight` per row.
pub(crate) fn rms_norm(
    level: SimdLevel,
    x: &Matrix,
    weight: &[f32],
    eps: f32,
    kind: InputKind,
) -> CpuActivation {
    assert_eq!(x.cols, weight.len(), "length of the norm weight");
    activation(x.rows, x.cols, x.cols, kind, |i, out| norm_row(level, x.row(i), weight, eps, out))
}

fn norm_row(level: SimdLevel, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    scale_row(level, x, weight, inverse_rms(level, x, eps), out);
}

/// [`norm_row`] in place.
pub(crate) fn norm_in_place(level: SimdLevel, x: &mut [f32], weight: &[f32], eps: f32) {
    let scale = inverse_rms(level, x, eps);
    for (v, &w) in x.iter_mut().zip(weight) {
        *v = w * (*v * scale);
    }
}

multiversion! {
    fn scale_row(x: &[f32], weight: &[f32], scale: f32, out: &mut [f32]) {
        for ((out, &v), &w) in out.iter_mut().zip(x).zip(weight) {
            // The order of the products is that of transformers.
            *out = w * (v * scale);
        }
    }
}

fn inverse_rms(level: SimdLevel, x: &[f32], eps: f32) -> f32 {
    1.0 / (sum_of_squares(level, x) / x.len() as f32 + eps).sqrt()
}

/// `silu(gate) * up` of rows `[gate | up]`.
pub(crate) fn silu_mul(level: SimdLevel, gate_up: &Matrix, kind: InputKind) -> CpuActivation {
    assert!(gate_up.cols.is_multiple_of(2), "rows of gate and up");
    let cols = gate_up.cols / 2;
    activation(gate_up.rows, cols, 4 * cols, kind, |i, out| {
        let (gate, up) = gate_up.row(i).split_at(cols);
        silu_mul_row(level, gate, up, out);
    })
}

multiversion! {
    /// `out = gate / (1 + e^-gate) * up`, to a few 1e-7 relative.
    fn silu_mul_row(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, &g), &u) in out.iter_mut().zip(gate).zip(up) {
            *out = g / (1.0 + exp::<FMA>(-g)) * u;
        }
    }
}

multiversion! {
    /// One step of softmax over keys seen in pieces: turns the scores `s[range]` into `e^(s - max)` with
    /// the new running maximum, the others into 0. Returns the new maximum and the sum of the results.
    pub(crate) fn softmax_piece(s: &mut [f32], from: usize, to: usize, max: f32) -> (f32, f32) {
        s[..from].fill(0.0);
        s[to..].fill(0.0);
        let s = &mut s[from..to];
        let mut tops = [max; 32];
        let chunks = s.chunks_exact(32);
        for (top, &v) in tops.iter_mut().zip(chunks.remainder()) {
            *top = if v > *top { v } else { *top };
        }
        for chunk in chunks {
            for (top, &v) in tops.iter_mut().zip(chunk) {
                *top = if v > *top { v } else { *top };
            }
        }
        let max = tops.iter().fold(max, |a, &b| if b > a { b } else { a });
        // Nothing but -inf: the results are 0 (e^-inf), not NaN.
        let shift = if max == f32::NEG_INFINITY { 0.0 } else { max };
        let mut sums = [0.0f32; 16];
        let mut chunks = s.chunks_exact_mut(16);
        for chunk in &mut chunks {
            for (sum, v) in sums.iter_mut().zip(chunk) {
                *v = exp::<FMA>(*v - shift);
                *sum += *v;
            }
        }
        let mut sum = 0.0;
        for v in chunks.into_remainder() {
            *v = exp::<FMA>(*v - shift);
            sum += *v;
        }
        (max, sum + sums.iter().sum::<f32>())
    }
}
