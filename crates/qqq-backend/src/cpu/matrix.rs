//! Row-major matrices of activations.
//!
//! The memory of large matrices is kept for the next ones: a block makes half a dozen, and
//! fresh pages from the system for each cost a prefill a tenth of its time.

use std::sync::{Mutex, PoisonError};

/// Smallest buffer that is kept, in values: below it an allocator keeps memory at hand itself.
const MIN_KEPT: usize = 64 << 10;
/// Values kept at most (128 MiB); the oldest go first.
const MAX_KEPT: usize = 32 << 20;

static KEPT: Mutex<Buffers> = Mutex::new(Buffers(Vec::new()));

/// Buffers kept, oldest first.
struct Buffers(Vec<Vec<f32>>);

/// Shape `rows x cols`, row-major.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Matrix {
    /// Number of rows (tokens).
    pub rows: usize,
    /// Number of columns (channels).
    pub cols: usize,
    /// `rows * cols` values.
    pub data: Vec<f32>,
}

impl Matrix {
    /// Zeros.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Self { rows, cols, data: vec![0.0; rows * cols] }
    }

    /// Content unspecified (but initialised): for operations that write every value.
    pub fn unspecified(rows: usize, cols: usize) -> Self {
        Self { rows, cols, data: buffer(rows * cols) }
    }

    /// Row `i`.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.cols..(i + 1) * self.cols]
    }

    /// Row `i`, mutable.
    pub fn row_mut(&mut self, i: usize) -> &mut [f32] {
        &mut self.data[i * self.cols..(i + 1) * self.cols]
    }
}

impl Drop for Matrix {
    fn drop(&mut self) {
        if (MIN_KEPT..=MAX_KEPT).contains(&self.data.capacity()) {
            let buffer = std::mem::take(&mut self.data);
            let old = KEPT.lock().unwrap_or_else(PoisonError::into_inner).keep(buffer);
            // Large blocks go back to the system, which takes time: the lock is free by now.
            drop(old);
        }
    }
}

/// Gives the buffers that are kept back to the allocator: for a caller that goes on to something else, to which their memory
/// is of more use.
pub fn free_kept() {
    let kept = std::mem::take(&mut KEPT.lock().unwrap_or_else(PoisonError::into_inner).0);
    drop(kept);
}

/// A kept buffer of `len` values, or a new one.
fn buffer(len: usize) -> Vec<f32> {
    let kept =
        if len < MIN_KEPT { None } else { KEPT.lock().unwrap_or_else(PoisonError::into_inner).take(len) };
    match kept {
        Some(mut buffer) => {
            buffer.resize(len, 0.0);
            buffer
        }
        None => vec![0.0; len],
    }
}

impl Buffers {
    /// Adds a buffer; returns the oldest ones, where there are too many now.
    fn keep(&mut self, buffer: Vec<f32>) -> Vec<Vec<f32>> {
        self.0.push(buffer);
        let mut total: usize = self.0.iter().map(Vec::capacity).sum();
        let mut surplus = 0;
        while total > MAX_KEPT {
            total -= self.0[surplus].capacity();
            surplus += 1;
        }
        self.0.drain(..surplus).collect()
    }

    /// Takes the smallest buffer that holds `len` values, unless it is more than twice as large.
    fn take(&mut self, len: usize) -> Option<Vec<f32>> {
        let fitting = |i: &usize| (len..=2 * len).contains(&self.0[*i].capacity());
        let index = (0..self.0.len()).filter(fitting).min_by_key(|&i| self.0[i].capacity())?;
        Some(self.0.remove(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_fitting_buffer_is_taken() {
        let mut buffers = Buffers(Vec::new());
        for size in [300, 100, 150] {
            assert!(buffers.keep(vec![0.0; size]).is_empty());
        }
        assert_eq!(buffers.take(90).map(|b| b.capacity()), Some(100));
        assert_eq!(buffers.take(90).map(|b| b.capacity()), Some(150));
        assert_eq!(buffers.take(90), None);
        assert_eq!(buffers.take(301), None);
        assert_eq!(buffers.take(300).map(|b| b.capacity()), Some(300));
    }

    #[test]
    fn the_oldest_buffers_go_first() {
        let mut buffers = Buffers(Vec::new());
        let sizes = [MIN_KEPT, MAX_KEPT / 2, MAX_KEPT / 2 - MIN_KEPT];
        for size in sizes {
            assert!(buffers.keep(Vec::with_capacity(size)).is_empty());
        }
        let old = buffers.keep(Vec::with_capacity(MIN_KEPT + 1));
        assert_eq!(old.iter().map(Vec::capacity).collect::<Vec<_>>(), sizes[..2]);
        assert_eq!(buffers.0.len(), 2);
    }

    #[test]
    fn reused_memory_is_of_the_right_size() {
        for (rows, cols) in [(1, MIN_KEPT), (3, MIN_KEPT / 2), (2, MIN_KEPT), (1, 5), (0, 5)] {
            let mut x = Matrix::unspecified(rows, cols);
            assert_eq!(x.data.len(), rows * cols);
            x.data.fill(7.0);
            assert_eq!(Matrix::zeros(rows, cols).data, vec![0.0; rows * cols]);
        }
    }
}
