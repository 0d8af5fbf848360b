//! Triangular factors of a Hessian and of its inverse, in float64.

use qqq_backend::pool::parallel_each_mut;

use super::simulated::dot;
use crate::solve::factorise;

/// The matrix is not positive definite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failure;

/// `R`, upper triangular with `H = R R^T`, row-major; below the diagonal are zeros.
pub(super) fn upper(h: &[f64], k: usize) -> Result<Vec<f64>, Failure> {
    // Reversed, it is the lower factor of the usual decomposition.
    let mut a: Vec<f64> = h.iter().rev().copied().collect();
    if !factorise(&mut a, k) {
        return Err(Failure);
    }
    let mut r = vec![0.0; k * k];
    for (i, row) in r.chunks_exact_mut(k).enumerate() {
        for (j, value) in row.iter_mut().enumerate().skip(i) {
            // Column-major.
            *value = a[(k - 1 - j) * k + (k - 1 - i)];
        }
    }
    match r.iter().all(|v| v.is_finite()) && r.iter().step_by(k + 1).all(|d| *d > 0.0) {
        true => Ok(r),
        false => Err(Failure),
    }
}

/// `U`, upper triangular with `H^-1 = U^T U`, row-major: the inverse of [`upper`].
pub(super) fn inverse(h: &[f64], k: usize) -> Result<Vec<f64>, Failure> {
    let r = upper(h, k)?;
    // Columns of the inverse, each by itself.
    let mut columns: Vec<Vec<f64>> = vec![Vec::new(); k];
    parallel_each_mut(&mut columns, |j, x| {
        x.resize(j + 1, 0.0);
        x[j] = 1.0 / r[j * k + j];
        for i in (0..j).rev() {
            let row = &r[i * k..(i + 1) * k];
            x[i] = -dot(&row[i + 1..=j], &x[i + 1..=j]) / row[i];
        }
    });
    let mut u = vec![0.0; k * k];
    for (j, x) in columns.iter().enumerate() {
        for (i, value) in x.iter().enumerate() {
            u[i * k + j] = *value;
        }
    }
    Ok(u)
}
