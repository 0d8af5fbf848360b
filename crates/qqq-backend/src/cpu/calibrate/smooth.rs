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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Backend, Calibrate, CpuBackend, InputKind};

    /// 40 rows of three channels, so that tasks of both kinds are several.
    fn matrix() -> Matrix {
        let (rows, cols) = (40, 3);
        let data = (0..rows * cols).map(|i| (i * 37 % 101) as f32 / 10.0 - 4.0).collect();
        Matrix { rows, cols, data }
    }

    #[test]
    fn ranges_are_those_of_the_columns() {
        let x = matrix();
        let (max, min) = channel_range(&x);
        for j in 0..3 {
            let column = || x.data.iter().skip(j).step_by(3).copied();
            assert_eq!(max[j], column().fold(f32::NEG_INFINITY, f32::max));
            assert_eq!(min[j], column().fold(f32::INFINITY, f32::min));
        }
    }

    #[test]
    fn distances_are_sums_of_squares() {
        let a = matrix();
        let mut b = a.clone();
        b.data.iter_mut().step_by(7).for_each(|v| *v += 2.0);
        let moved = a.data.len().div_ceil(7) as f64;
        let [a, b] = [a, b].map(CpuInput::Float);
        let cpu = CpuBackend::default();
        assert!((cpu.squared_distance(&a, Some(&b)).unwrap() - 4.0 * moved).abs() < 1e-4);
        let squares: f64 = a.values().iter().map(|v| f64::from(*v).powi(2)).sum();
        assert_eq!(cpu.squared_distance(&a, None).unwrap(), squares);
        let other = CpuInput::Float(Matrix::zeros(40, 4));
        assert!(cpu.squared_distance(&a, Some(&other)).is_err());
    }

    #[test]
    fn smoothed_rows_are_divided_and_quantized() {
        let (cpu, x) = (CpuBackend::default(), matrix());
        let s = [1.0, 2.0, 4.0];
        let mut out = CpuInput::default();
        cpu.smooth_input(&CpuInput::Float(x.clone()), &s, InputKind::Int8, &mut out).unwrap();
        assert_eq!(out.kind(), InputKind::Int8);
        for (got, want) in cpu.read_input(&out).unwrap().chunks(3).zip(x.data.chunks(3)) {
            let want: Vec<f32> = want.iter().zip(s).map(|(x, s)| x / s).collect();
            let step = want.iter().fold(0.0f32, |max, v| max.max(v.abs())) / 127.0;
            assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() <= 0.5001 * step), "{got:?} {want:?}");
        }
        assert!(cpu.smooth_input(&CpuInput::Float(x.clone()), &s[..2], InputKind::Int8, &mut out).is_err());
        assert!(cpu.channel_range(&out).is_err());
        cpu.smooth_input(&CpuInput::Float(x.clone()), &s, InputKind::Float, &mut out).unwrap();
        let divided: Vec<f32> = x.data.iter().zip(s.iter().cycle()).map(|(x, s)| x * (1.0 / s)).collect();
        assert_eq!(cpu.read_input(&out).unwrap()[..], divided);
    }
}
