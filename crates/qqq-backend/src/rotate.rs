//! Products with an orthogonal matrix, in place, on the host.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

use crate::pool::parallel_chunks_mut;

/// Rows that one task multiplies.
const ROWS_PER_TASK: usize = 128;

/// An orthogonal matrix `Q`.
#[derive(Clone, Copy, Debug)]
pub struct Turn<'a> {
    /// Channels that are turned together: the order of the matrix.
    pub width: usize,
    /// `width x width`, row-major.
    pub matrix: &'a [f32],
}

impl Turn<'_> {
    /// `x <- x Q` for every row of `width` values.
    ///
    /// # Panics
    /// If `x` does not hold whole rows.
    pub fn apply_rows(&self, x: &mut [f32]) {
        let width = self.width;
        assert_eq!(x.len() % width, 0, "values that are not whole rows of {width}");
        parallel_chunks_mut(x, ROWS_PER_TASK * width, |_, rows| {
            let count = rows.len() / width;
            let input = rows.to_vec();
            matmul(
                MatMut::from_row_major_slice_mut(rows, count, width),
                Accum::Replace,
                MatRef::from_row_major_slice(&input, count, width),
                self.view(),
                1.0,
                Par::Seq,
            );
        });
    }

    /// `W <- Q^T W` for a matrix of shape `width x cols`, row-major, or for each of several such blocks that follow one another.
    ///
    /// # Panics
    /// If `w` does not hold whole blocks.
    pub fn apply_outputs(&self, w: &mut [f32], cols: usize) {
        let block = self.width * cols;
        assert!(
            block > 0 && w.len().is_multiple_of(block),
            "values that are not whole blocks of {} x {cols}",
            self.width
        );
        for w in w.chunks_exact_mut(block) {
            let input = w.to_vec();
            let input = MatRef::from_row_major_slice(&input, self.width, cols);
            parallel_chunks_mut(w, ROWS_PER_TASK * cols, |i, rows| {
                let count = rows.len() / cols;
                matmul(
                    MatMut::from_row_major_slice_mut(rows, count, cols),
                    Accum::Replace,
                    self.view().subcols(i * ROWS_PER_TASK, count).transpose(),
                    input,
                    1.0,
                    Par::Seq,
                );
            });
        }
    }

    fn view(&self) -> MatRef<'_, f32> {
        MatRef::from_row_major_slice(self.matrix, self.width, self.width)
    }
}
