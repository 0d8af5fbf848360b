//! What the smoothing search asks of activations on the CPU.

use crate::{
    cpu::{CpuInput, matrix::Matrix},
    pool::parallel_chunks_mut,
};

/// Rows that a task works on.
const ROWS: usize = 32;
const DISTANCE_ROWS: usize = 16;

/// Largest and smallest value of every channel.
pub(super) fn channel_range(x: &Matrix) -> (Vec<f32>, Vec<f32>) {
    let k = x.cols;
    let (mut max, mut min) = (vec![f32::NEG_INFINITY; k], vec![f32::INFINITY; k]);
    for row in x.data.chunks_exact(k.max(1)) {
        for ((max, min), &x) in max.iter_mut().zip(&mut min).zip(row) {
            *max = max.max(x);
            *min = min.min(x);
        }
    }
    (max, min)
}

/// Rows whose channel `j` is divided by `s[j]`.
pub(super) fn divided(x: &Matrix, s: &[f32]) -> Matrix {
    let inverse: Vec<f32> = s.iter().map(|s| 1.0 / s).collect();
    let mut scaled = x.clone();
    let k = x.cols;
    parallel_chunks_mut(&mut scaled.data, ROWS * k.max(1), |_, rows| {
        for row in rows.chunks_exact_mut(k) {
            row.iter_mut().zip(&inverse).for_each(|(x, i)| *x *= i);
        }
    });
    scaled
}

/// The sum of squared differences; without `b` that of squares.
pub(super) fn squared_distance(a: &CpuInput, b: Option<&CpuInput>) -> f64 {
    let rows = a.rows();
    let a = a.values();
    match b {
        Some(b) => difference(&a, &b.values(), rows),
        None => a.iter().map(|&y| f64::from(y) * f64::from(y)).sum(),
    }
}

/// Summed by rows, then over rows in their order, so that the result does not depend on the number of threads.
fn difference(a: &[f32], b: &[f32], rows: usize) -> f64 {
    let cols = a.len() / rows.max(1);
    let mut sums = vec![0.0f64; rows];
    parallel_chunks_mut(&mut sums, DISTANCE_ROWS, |chunk, sums| {
        for (i, sum) in sums.iter_mut().enumerate() {
            let row = (chunk * DISTANCE_ROWS + i) * cols..(chunk * DISTANCE_ROWS + i + 1) * cols;
            let (a, b) = (&a[row.clone()], &b[row]);
            // Eight partial sums, so that it is vectorized.
            let mut parts = [0.0f64; 8];
            for (a, b) in a.chunks(8).zip(b.chunks(8)) {
                for ((part, &a), &b) in parts.iter_mut().zip(a).zip(b) {
                    *part += f64::from(a - b) * f64::from(a - b);
                }
            }
            *sum = parts.iter().sum();
        }
    });
    sums.iter().sum()
}
