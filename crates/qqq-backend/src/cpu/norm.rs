//! RMS norm with the residual stream, and the gated activation: the element-wise operations in front of linear layers. With
//! int8 input, rows are quantized as they are made.

use super::{input::CpuInput, matrix::Matrix};
use crate::{
    Gate, InputKind,
    shared::{SharedMut, for_row_ranges},
    simd::{SimdLevel, exp, fma, multiversion, sum_of_squares},
};

/// `residual += scale x` if there is an `x`, then `residual / sqrt(mean(residual^2) + eps) * weight` per row.
pub(crate) fn add_norm(
    level: SimdLevel,
    residual: &mut Matrix,
    x: Option<(&Matrix, f32)>,
    (weight, eps): (&[f32], f32),
    kind: InputKind,
    out: &mut CpuInput,
) {
    let (rows, cols) = (residual.rows, residual.cols);
    out.reshape(kind, rows, cols);
    let Some((x, scale)) = x else {
        return out.fill(0..rows, cols, |i, out| norm_row(level, residual.row(i), weight, eps, out));
    };
    let shared = SharedMut::new(&mut residual.data);
    out.fill(0..rows, 2 * cols, |i, out| {
        // SAFETY: every row is made once, by one job.
        let row = unsafe { shared.slice(i * cols..(i + 1) * cols) };
        add_row(level, row, x.row(i), scale);
        norm_row(level, row, weight, eps, out);
    });
}

/// `residual += scale x`.
pub(crate) fn add(level: SimdLevel, residual: &mut Matrix, x: &Matrix, scale: f32) {
    let cols = residual.cols;
    let shared = SharedMut::new(&mut residual.data);
    for_row_ranges(residual.rows, cols, |range| {
        let part = range.start * cols..range.end * cols;
        // SAFETY: jobs have different rows.
        add_row(level, unsafe { shared.slice(part.clone()) }, &x.data[part], scale);
    });
}

/// The norm of every row, in place.
pub(crate) fn norm(level: SimdLevel, x: &mut Matrix, weight: &[f32], eps: f32) {
    let cols = x.cols;
    let shared = SharedMut::new(&mut x.data);
    for_row_ranges(x.rows, 2 * cols, |range| {
        for i in range {
            // SAFETY: jobs have different rows.
            norm_in_place(level, unsafe { shared.slice(i * cols..(i + 1) * cols) }, weight, eps);
        }
    });
}

multiversion! {
    /// Each product is rounded by itself, so that a scale of 1 changes no bit.
    fn add_row(sum: &mut [f32], x: &[f32], scale: f32) {
        for (sum, &x) in sum.iter_mut().zip(x) {
            *sum += x * scale;
        }
    }
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

/// `gate(g) * u` of rows `[g | u]`, into the rows of `out` from `first` on.
pub(crate) fn gated(level: SimdLevel, gate_up: &Matrix, gate: Gate, first: usize, out: &mut CpuInput) {
    let cols = gate_up.cols / 2;
    out.fill(first..first + gate_up.rows, 4 * cols, |i, out| {
        let (g, u) = gate_up.row(i - first).split_at(cols);
        match gate {
            Gate::Silu => silu_mul_row(level, g, u, out),
            Gate::GeluTanh => gelu_tanh_mul_row(level, g, u, out),
        }
    });
}

multiversion! {
    /// `out = g / (1 + e^-g) * u`, to a few 1e-7 relative.
    fn silu_mul_row(g: &[f32], u: &[f32], out: &mut [f32]) {
        for ((out, &g), &u) in out.iter_mut().zip(g).zip(u) {
            *out = g / (1.0 + exp::<FMA>(-g)) * u;
        }
    }
}

multiversion! {
    /// `out = g/2 (1 + tanh(t)) * u` with `t = sqrt(2/pi) (g + 0.044715 g^3)`: as `(1 + tanh(t)) / 2 = 1 / (1 + e^(-2t))`, to a
    /// few 1e-7 of `g u`.
    fn gelu_tanh_mul_row(g: &[f32], u: &[f32], out: &mut [f32]) {
        const TWO_ROOT: f32 = 1.595_769_2;
        for ((out, &g), &u) in out.iter_mut().zip(g).zip(u) {
            let t = TWO_ROOT * fma::<FMA>(0.044_715 * g * g, g, g);
            *out = g / (1.0 + exp::<FMA>(-t)) * u;
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
