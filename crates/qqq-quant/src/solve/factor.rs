//! The factor of the Hessian that carries errors from column to column.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::{MatMut, Par};

use crate::scratch::Zeros;

/// Columns of the factorised matrix that are given back at once.
const FORGOTTEN_COLUMNS: usize = 64;

/// `H = R R^T` with `R` upper triangular, of the permuted and damped Hessian.
///
/// GPTQ takes the upper Cholesky factor `U` of `H^-1 = U^T U` and, column by column, spreads an error over all later
/// columns by a row of `U`. `U = R^-1`, and the loss of a row of errors `e = w - q` is
/// `e H e^T = sum_j ((e R)_j)^2`, where term `j` knows the errors of columns up to `j` only: the code of column `j` that
/// makes it least is the nearest to `w_j + sum_{i<j} e_i R_ij / R_jj`. This is GPTQ's result without the inverse, and
/// it reads the original weights: a block of columns takes all earlier errors by one matrix product.
pub(super) struct Factor {
    /// Original channel of each column.
    pub order: Vec<usize>,
    /// `R_ij / R_jj` for `i < j` at `[j * k + i]`: one row holds the coefficients of column `j`.
    pub feedback: Zeros<f32>,
    /// `R_jj^2`: what a squared error of column `j` costs when later columns compensate for it.
    pub cost: Vec<f32>,
}

impl Factor {
    /// Factorises `hessian` with `damping` times the mean of its diagonal added. Columns come in order of falling
    /// diagonal if `act_order`. Dead channels (diagonal 0) get the mean as their diagonal.
    ///
    /// Of either matrix only the written triangle takes memory: `4 k^2` bytes of the float64 one while this runs, `2 k^2` of
    /// what stays and takes its place.
    ///
    /// # Errors
    /// Why the factorisation failed.
    pub fn new(hessian: &[f32], diagonal: &[f32], damping: f64, act_order: bool) -> Result<Self, String> {
        let k = diagonal.len();
        let mean = live_mean(diagonal);
        let mut order: Vec<usize> = (0..k).collect();
        if act_order {
            order.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]));
        }
        // Reversed, the upper factor is the lower factor of the usual decomposition.
        let channel = |i: usize| order[k - 1 - i];
        let dead = |j: usize| diagonal[j] <= 0.0;
        let mut a = square::<f64>(k)?;
        for (col, column) in a.chunks_exact_mut(k.max(1)).enumerate() {
            let c = channel(col);
            let row_of_h = &hessian[c * k..(c + 1) * k];
            for (row, value) in column.iter_mut().enumerate().skip(col) {
                let r = channel(row);
                if !(dead(c) || dead(r)) {
                    *value = f64::from(row_of_h[r]);
                }
            }
            column[col] = if dead(c) { mean } else { column[col] } + damping * mean;
        }
        if !factorise(&mut a, k) {
            return Err("the Hessian is not positive definite".to_owned());
        }

        let mut feedback = square::<f32>(k)?;
        let mut cost = vec![0.0f32; k];
        // From the longest column on, each of which is given back soon: so both triangles are never there together.
        for (first, j) in (0..k).rev().enumerate() {
            let column = &a[first * k..(first + 1) * k];
            let pivot = column[first];
            cost[j] = (pivot * pivot) as f32;
            let coefficients = &mut feedback[j * k..j * k + j];
            for (out, value) in coefficients.iter_mut().zip(column.iter().rev()) {
                *out = (value / pivot) as f32;
            }
            if !(cost[j] > 0.0 && cost[j].is_finite() && coefficients.iter().all(|v| v.is_finite())) {
                return Err("the Hessian is numerically singular".to_owned());
            }
            if (first + 1).is_multiple_of(FORGOTTEN_COLUMNS) {
                a.forget((first + 1 - FORGOTTEN_COLUMNS) * k..(first + 1) * k);
            }
        }
        Ok(Self { order, feedback, cost })
    }
}

/// The mean of a Hessian's diagonal over channels that are not dead; 1 if all are.
pub(super) fn live_mean(diagonal: &[f32]) -> f64 {
    match diagonal.iter().filter(|d| **d > 0.0).count() {
        0 => 1.0,
        live => diagonal.iter().map(|&d| f64::from(d.max(0.0))).sum::<f64>() / live as f64,
    }
}

/// A matrix of zeros, `k x k`.
///
/// # Errors
/// Why there is none.
pub(super) fn square<T: bytemuck::Pod>(k: usize) -> Result<Zeros<T>, String> {
    Zeros::new(k * k).map_err(|e| format!("there is no memory for a matrix of width {k} ({e})"))
}

/// Replaces the lower triangle of a symmetric matrix, `k x k` column-major, by its Cholesky factor; `false` if it is not
/// positive definite.
pub(crate) fn factorise(a: &mut [f64], k: usize) -> bool {
    let mut memory = MemBuffer::new(cholesky_in_place_scratch::<f64>(k, Par::Seq, Default::default()));
    let factor = cholesky_in_place(
        MatMut::from_column_major_slice_mut(a, k, k),
        Default::default(),
        Par::Seq,
        MemStack::new(&mut memory),
        Default::default(),
    );
    factor.is_ok()
}
