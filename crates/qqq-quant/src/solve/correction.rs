//! Moving weights towards the float model's output before they are rounded.
//!
//! Layers before have made other inputs `x` of what are `y` in the float model. What a quantized weight `q` should give is
//! the float model's `w y`, not `w x`. With `d = y - x`, `H = 2/n sum x x^T` and `D = 2/n sum x d^T`, the mean of
//! `|w y - q x|^2 = |w d + (w - q) x|^2` is least for `q = w + w D^T H^-1` (where `D = G - H`, with `G = 2/n sum x y^T`).
//! A part of that step, made with a ridge, is what QEP takes before any solver (arXiv 2504.09629, eq. 9); the whole step is
//! that with which Qronos begins (arXiv 2505.11695), and GPTAQ (2504.02692) makes it column by column. The solver then
//! rounds the moved weight for `H` as ever.
//!
//! The whole step fits what is particular to the calibration text as well, which other texts pay for.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::solve::{solve_in_place, solve_in_place_scratch};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use qqq_backend::{pool::parallel_each_mut, solve::RIDGE};

use super::factor::{factorise, live_mean, square};
use super::rows::{ROWS_PER_TASK, quadratic_forms};
use crate::scratch::Zeros;

/// How the float model's inputs of a layer deviate from those of the quantized model, and how far weights follow.
#[derive(Clone, Copy, Debug)]
pub struct Correction<'a> {
    /// `2/n sum x (y - x)^T`, `k x k` row-major, of inputs `x` of the quantized and `y` of the float model.
    pub cross: &'a [f32],
    /// `2/n sum (y - x) (y - x)^T`, `k x k` row-major; the lower triangle is read.
    pub square: &'a [f32],
    /// 0: weights stay; 1: least squares (with the ridge).
    pub strength: f64,
}

impl Correction<'_> {
    /// `W + strength W D^T (H + ridge mean(diag H) I)^-1` of `weights`, `n x k`, where `hessian` is `H` and `diagonal` its
    /// diagonal. Channels whose inputs are always zero keep their weights.
    ///
    /// # Errors
    /// Why the system cannot be solved.
    pub(super) fn moved(
        &self,
        weights: &[f32],
        hessian: &[f32],
        diagonal: &[f32],
    ) -> Result<Vec<f32>, String> {
        let k = diagonal.len();
        let factor = ridge_factor(hessian, diagonal)?;
        let factor = MatRef::from_column_major_slice(&factor, k, k);
        let mut moved = weights.to_vec();
        let mut chunks: Vec<&mut [f32]> = moved.chunks_mut(ROWS_PER_TASK * k).collect();
        parallel_each_mut(&mut chunks, |_, chunk| {
            let rows = chunk.len() / k;
            // A row of weights is a column of the system, which is symmetric.
            let mut steps: Vec<f64> = self.products(chunk, k).into_iter().map(f64::from).collect();
            let mut memory = MemBuffer::new(solve_in_place_scratch::<f64>(k, rows, Par::Seq));
            solve_in_place(
                factor,
                MatMut::from_column_major_slice_mut(&mut steps, k, rows),
                Par::Seq,
                MemStack::new(&mut memory),
            );
            for (weights, steps) in chunk.chunks_exact_mut(k).zip(steps.chunks_exact(k)) {
                for ((w, step), &diagonal) in weights.iter_mut().zip(steps).zip(diagonal) {
                    // Rounding alone would move what is multiplied by nothing.
                    if diagonal > 0.0 {
                        *w = (f64::from(*w) + self.strength * step) as f32;
                    }
                }
            }
        });
        match moved.iter().all(|w| w.is_finite()) {
            true => Ok(moved),
            false => Err("the corrected weights overflow".to_owned()),
        }
    }

    /// `W D^T` of some rows.
    fn products(&self, rows: &[f32], k: usize) -> Vec<f32> {
        let mut products = vec![0.0f32; rows.len()];
        let count = rows.len() / k;
        matmul(
            MatMut::from_row_major_slice_mut(&mut products, count, k),
            Accum::Replace,
            MatRef::from_row_major_slice(rows, count, k),
            MatRef::from_row_major_slice(self.cross, k, k).transpose(),
            1.0,
            Par::Seq,
        );
        products
    }

    /// What rows of weights give in the float model, as it is compared with.
    pub(super) fn target<'w>(&'w self, weights: &'w [f32], k: usize) -> Target<'w> {
        Target {
            weights,
            k,
            products: self.products(weights, k),
            own: quadratic_forms(weights, Some(self.square), k),
        }
    }
}

/// The outputs `w y` of some rows of weights in the float model.
pub(super) struct Target<'a> {
    weights: &'a [f32],
    k: usize,
    /// `w D^T`.
    products: Vec<f32>,
    /// `w S w^T`, with `S` the second moment of the deviation.
    own: Vec<f64>,
}

impl Target<'_> {
    /// The sum of the means of `(w y)^2`.
    pub fn energy(&self, hessian: &[f32]) -> f64 {
        self.sum(self.weights, hessian)
    }

    /// The sum of the means of `(w y - q x)^2`, where `differences` are `w - q`.
    pub fn error(&self, differences: &[f32], hessian: &[f32]) -> f64 {
        self.sum(differences, hessian)
    }

    /// `e H e^T + 2 e D w^T + w S w^T`, of all rows: `|e x + w d|^2`.
    fn sum(&self, rows: &[f32], hessian: &[f32]) -> f64 {
        let forms = quadratic_forms(rows, Some(hessian), self.k);
        let products = rows.chunks_exact(self.k).zip(self.products.chunks_exact(self.k));
        let mixed =
            products.map(|(e, p)| e.iter().zip(p).map(|(&e, &p)| f64::from(e) * f64::from(p)).sum::<f64>());
        let terms = forms.iter().zip(mixed).zip(&self.own);
        terms
            .map(|((form, mixed), own)| {
                let sum = form + 2.0 * mixed + own;
                // Not `max`, to which NaN is less than 0.
                if sum < 0.0 { 0.0 } else { sum }
            })
            .sum()
    }
}

/// The lower Cholesky factor of `H + ridge mean(diag H) I`, column-major; the mean is that of channels that are not dead.
fn ridge_factor(hessian: &[f32], diagonal: &[f32]) -> Result<Zeros<f64>, String> {
    let k = diagonal.len();
    let mean = live_mean(diagonal);
    let mut a = square::<f64>(k)?;
    for (col, column) in a.chunks_exact_mut(k.max(1)).enumerate() {
        let row_of_h = &hessian[col * k..(col + 1) * k];
        column[col..].iter_mut().zip(&row_of_h[col..]).for_each(|(a, &h)| *a = f64::from(h));
        column[col] += RIDGE * mean;
    }
    if !factorise(&mut a, k) {
        return Err("the Hessian with its ridge is not positive definite".to_owned());
    }
    Ok(a)
}

#[cfg(test)]
#[path = "correction_tests.rs"]
mod tests;
