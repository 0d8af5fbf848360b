//! Row-major matrices of activations.

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
    /// A matrix of shape `rows x cols` that is 0 everywhere.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Self { rows, cols, data: vec![0.0; rows * cols] }
    }

    /// Gives it another shape, in the memory it has. The values are unspecified (but initialised): for operations that write
    /// every one.
    pub fn reshape(&mut self, rows: usize, cols: usize) {
        let len = rows * cols;
        if len > self.data.capacity() {
            // What is there is not worth copying.
            self.data = Vec::new();
        }
        self.data.resize(len, 0.0);
        (self.rows, self.cols) = (rows, cols);
    }

    /// Row `i`, `cols` values. Panics beyond the last row.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.cols..(i + 1) * self.cols]
    }

    /// Row `i`, mutable.
    pub fn row_mut(&mut self, i: usize) -> &mut [f32] {
        &mut self.data[i * self.cols..(i + 1) * self.cols]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_shape_is_in_the_same_memory_where_it_fits() {
        let mut x = Matrix::zeros(4, 6);
        let start = x.data.as_ptr();
        for (rows, cols) in [(1, 6), (8, 3), (0, 5), (4, 6)] {
            x.reshape(rows, cols);
            assert_eq!((x.rows, x.cols, x.data.len()), (rows, cols, rows * cols));
            assert_eq!(x.data.as_ptr(), start);
        }
        x.reshape(5, 5);
        assert_eq!(x.row(4).len(), 5);
    }
}
