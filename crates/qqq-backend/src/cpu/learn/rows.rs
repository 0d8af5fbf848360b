//! What is done to one row: norms, rotation, gates, int8.

use super::{Array, Real};
use crate::{
    Gate, HeadLayout,
    learn::{Rotary, Turn},
};

fn inverse_rms<T: Real>(x: &[T], eps: f64) -> T {
    let squares: T = x.iter().map(|x| *x * *x).sum();
    T::ONE / (squares / T::of(x.len() as f64) + T::of(eps)).root()
}

/// `x / rms(x) weight`, in place.
pub(super) fn norm<T: Real>(x: &mut [T], weight: &[T], eps: f64) {
    let inverse = inverse_rms(x, eps);
    x.iter_mut().zip(weight).for_each(|(x, w)| *x = *w * (*x * inverse));
}

/// `dx = (w dy - x mean(w dy x) / rms^2) / rms`; `dy` becomes it.
pub(super) fn norm_back<T: Real>(dy: &mut [T], x: &[T], weight: &[T], eps: f64) {
    let inverse = inverse_rms(x, eps);
    let mut sum = T::ZERO;
    for ((dy, x), w) in dy.iter_mut().zip(x).zip(weight) {
        *dy *= *w;
        sum += *dy * *x;
    }
    let factor = sum / T::of(x.len() as f64) * inverse * inverse;
    dy.iter_mut().zip(x).for_each(|(dy, x)| *dy = (*dy - *x * factor) * inverse);
}

/// Turns the queries and keys of the row at a position.
pub(super) fn rotate<T: Real>(
    row: &mut [T],
    heads: HeadLayout,
    rotary: &Rotary<Array<T>>,
    position: usize,
    turn: Turn,
) {
    let (cos, sin) = (rotary.cos.row(position), rotary.sin.row(position));
    let turned = heads.q_width() + heads.kv_width();
    for head in row[..turned].chunks_exact_mut(heads.head_dim) {
        let (a, b) = head[..2 * cos.len()].split_at_mut(cos.len());
        for (((a, b), c), s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
            let s = if turn == Turn::Forward { *s } else { -*s };
            (*a, *b) = (*a * *c - *b * s, *b * *c + *a * s);
        }
    }
    if let Some(factors) = &rotary.queries {
        let factor = factors.row(position)[0];
        row[..heads.q_width()].iter_mut().for_each(|x| *x *= factor);
    }
}

/// `2 sqrt(2/pi)`, and the cube's factor, of the approximated GELU: `g sigmoid(TWICE_ROOT (g + CUBE g^3))`.
const TWICE_ROOT: f64 = 1.595_769_121_605_730_7;
const CUBE: f64 = 0.044_715;

/// `1 / (1 + e^-t)` for the argument `t` of a gate's sigmoid, of every value: both gates are `g sigmoid(t(g))`.
fn sigmoids<T: Real>(g: &[T], gate: Gate) -> Vec<T> {
    let (root, cube) = (T::of(TWICE_ROOT), T::of(CUBE));
    let mut s: Vec<T> = match gate {
        Gate::Silu => g.iter().map(|g| -*g).collect(),
        Gate::GeluTanh => g.iter().map(|g| -(root * (*g + cube * *g * *g * *g))).collect(),
    };
    T::exp_all(&mut s);
    s.iter_mut().for_each(|s| *s = T::ONE / (T::ONE + *s));
    s
}

/// `gate(g) u` of `[g | u]`.
pub(super) fn gated<T: Real>(row: &[T], gate: Gate, out: &mut [T]) {
    let (g, u) = row.split_at(out.len());
    let s = sigmoids(g, gate);
    for (((out, g), u), s) in out.iter_mut().zip(g).zip(u).zip(s) {
        *out = *g * s * *u;
    }
}

/// The gradient by `[g | u]`. Of `g sigmoid(t)` it is `s + g s (1 - s) t'`.
pub(super) fn gated_back<T: Real>(dy: &[T], row: &[T], gate: Gate, out: &mut [T]) {
    let inner = dy.len();
    let (g, u) = row.split_at(inner);
    let (dg, du) = out.split_at_mut(inner);
    let s = sigmoids(g, gate);
    let (root, cube) = (T::of(TWICE_ROOT), T::of(3.0 * CUBE));
    for j in 0..inner {
        let slope = match gate {
            Gate::Silu => T::ONE,
            Gate::GeluTanh => root * (T::ONE + cube * g[j] * g[j]),
        };
        dg[j] = dy[j] * u[j] * (s[j] + g[j] * s[j] * (T::ONE - s[j]) * slope);
        du[j] = dy[j] * g[j] * s[j];
    }
}

/// The largest magnitude and where it stands.
fn largest<T: Real>(x: &[T]) -> (T, usize) {
    let mut largest = (T::ZERO, 0);
    for (j, x) in x.iter().enumerate() {
        if x.magnitude() > largest.0 {
            largest = (x.magnitude(), j);
        }
    }
    largest
}

/// To int8 and back.
pub(super) fn int8<T: Real>(x: &[T], out: &mut [T]) {
    let scale = largest(x).0 / T::of(127.0);
    match scale > T::ZERO {
        true => out.iter_mut().zip(x).for_each(|(out, x)| *out = (*x / scale).nearest() * scale),
        false => out.fill(T::ZERO),
    }
}

/// Rounding passes `dy`. The scale is `|x_m| / 127` of the largest value, which gets the sum of `dy (code - x / scale)`.
pub(super) fn int8_back<T: Real>(dy: &[T], x: &[T], out: &mut [T]) {
    out.copy_from_slice(dy);
    let (most, at) = largest(x);
    let scale = most / T::of(127.0);
    if scale > T::ZERO {
        let sum: T = dy.iter().zip(x).map(|(dy, x)| *dy * ((*x / scale).nearest() - *x / scale)).sum();
        let share = sum / T::of(127.0);
        out[at] += if x[at] < T::ZERO { -share } else { share };
    }
}
