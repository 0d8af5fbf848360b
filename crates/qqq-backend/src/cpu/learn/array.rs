//! Matrices in the host's memory, and what is done to all rows of one.

use faer::MatRef;

use super::number::Real;
use crate::pool::{parallel_chunks_mut, parallel_each_mut};

/// Values of a task, about: enough to be worth handing over.
const VALUES_PER_TASK: usize = 16_384;

/// Row-major, `rows x cols`.
#[derive(Clone, Debug, PartialEq)]
pub struct Array<T> {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// `rows * cols` values.
    pub data: Vec<T>,
}

impl<T: Real> Array<T> {
    /// Zeros.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Self { rows, cols, data: vec![T::ZERO; rows * cols] }
    }

    /// A row.
    pub fn row(&self, i: usize) -> &[T] {
        &self.data[i * self.cols..][..self.cols]
    }

    /// For products.
    pub fn view(&self) -> MatRef<'_, T> {
        MatRef::from_row_major_slice(&self.data, self.rows, self.cols)
    }

    /// Rows of a task. That does not depend on the number of threads: nor do sums.
    pub fn rows_per_task(&self) -> usize {
        (VALUES_PER_TASK / self.cols.max(1)).max(1)
    }

    /// Has `job(i, row)` change every row.
    pub fn each_row(&mut self, job: impl Fn(usize, &mut [T]) + Sync) {
        let (cols, together) = (self.cols.max(1), self.rows_per_task());
        parallel_chunks_mut(&mut self.data, together * cols, |task, rows| {
            for (i, row) in rows.chunks_exact_mut(cols).enumerate() {
                job(task * together + i, row);
            }
        });
    }

    /// A matrix of as many rows whose rows `job(i, row)` fills.
    pub fn filled(rows: usize, cols: usize, job: impl Fn(usize, &mut [T]) + Sync) -> Self {
        let mut out = Self::zeros(rows, cols);
        out.each_row(job);
        out
    }

    /// The sum over rows of what `job(i, sum)` adds to a row of `width` values. Parts are merged in their order.
    pub fn sum_rows(&self, width: usize, job: impl Fn(usize, &mut [T]) + Sync) -> Vec<T> {
        let together = self.rows_per_task();
        let mut parts: Vec<Vec<T>> = Vec::new();
        parts.resize_with(self.rows.div_ceil(together), || vec![T::ZERO; width]);
        parallel_each_mut(&mut parts, |task, sum| {
            for i in task * together..self.rows.min((task + 1) * together) {
                job(i, sum);
            }
        });
        let mut sum = vec![T::ZERO; width];
        for part in parts {
            sum.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
        }
        sum
    }
}
