//! Float weights on their way to codes, and the matrices that turn them.

use std::ops::Range;

use qqq_backend::{BackendError, Result};
use qqq_formats::WeightData;

use super::super::CudaBackend;
use super::super::blas::{Matrix, Number, Operands, Product};
use super::super::memory::{Buffer, copy, read_values};
use super::super::steps::value_type;
use super::kernels::CalibrationKernel as Kernel;
use super::parameters::FloatsParameters;
use crate::DType;

/// Weights of a layer on a device, `n x k` float32.
#[derive(Debug)]
pub struct CudaWeights {
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) values: Buffer,
}

/// An orthogonal matrix on a device, `width x width` float32, row-major.
#[derive(Debug)]
pub struct CudaRotation {
    width: usize,
    matrix: Buffer,
}

impl CudaWeights {
    /// Address of the rows from one on.
    pub(super) fn row(&self, row: usize) -> u64 {
        self.values.address() + (4 * row * self.k) as u64
    }

    /// Whether there are these rows.
    pub(super) fn has(&self, rows: &Range<usize>) -> bool {
        rows.start <= rows.end && rows.end <= self.n
    }
}

impl CudaBackend {
    pub(super) fn upload_weights(&self, n: usize, k: usize, data: WeightData) -> Result<CudaWeights> {
        let count = data.len();
        if n.checked_mul(k) != Some(count) {
            return Err(BackendError::Shape(format!("{count} values for a weight of {n} x {k}")));
        }
        let device = self.device();
        let (stored, dtype) = match &data {
            WeightData::F32(v) => {
                let values = Buffer::of(device, v)?;
                return Ok(CudaWeights { n, k, values });
            }
            WeightData::F16(v) => (Buffer::of(device, v)?, DType::F16),
            WeightData::BF16(v) => (Buffer::of(device, v)?, DType::BF16),
        };
        let values = Buffer::new(device, 4 * count)?;
        self.floats(stored.address(), dtype, 0, &values, count, k)?;
        Ok(CudaWeights { n, k, values })
    }

    /// `out = x`, times a factor a column if there is an address of `columns` factors.
    pub(in crate::decoder) fn floats(
        &self,
        x: u64,
        dtype: DType,
        factors: u64,
        out: &Buffer,
        count: usize,
        columns: usize,
    ) -> crate::Result<()> {
        let parameters = FloatsParameters {
            x,
            factors,
            out: out.address(),
            count: count as i64,
            columns: columns as i32,
            value_type: value_type(dtype)?,
        };
        // SAFETY: the callers give memory of these sizes.
        unsafe { self.calibrate(Kernel::Floats, count, parameters) }
    }

    pub(super) fn scale_weights(&self, weights: &mut CudaWeights, s: &[f32]) -> Result<()> {
        let (n, k) = (weights.n, weights.k);
        if s.len() != k {
            return Err(BackendError::Shape(format!("{} factors for {k} channels", s.len())));
        }
        let factors = Buffer::of(self.device(), s)?;
        let values = &weights.values;
        Ok(self.floats(values.address(), DType::F32, factors.address(), values, n * k, k)?)
    }

    pub(super) fn upload_rotation(&self, width: usize, matrix: &[f32]) -> Result<CudaRotation> {
        if width == 0 || width.checked_mul(width) != Some(matrix.len()) {
            return Err(BackendError::Shape(format!(
                "{} values for a matrix of width {width}",
                matrix.len()
            )));
        }
        Ok(CudaRotation { width, matrix: Buffer::of(self.device(), matrix)? })
    }

    /// `W <- W Q` for every `width` columns: the rows of `n k / width` pieces.
    pub(super) fn rotate_columns(&self, weights: &mut CudaWeights, q: &CudaRotation) -> Result<()> {
        let (count, width) = (weights.n * weights.k, q.width);
        if !weights.k.is_multiple_of(width) {
            return Err(turned(weights.k, width));
        }
        let turned = Buffer::new(self.device(), 4 * count)?;
        // Row-major `y = x Q` is the library's `y^T = Q^T x^T`.
        let matrix = Matrix::new(Number::F32, width);
        let product = Product {
            m: width,
            n: count / width,
            k: width,
            a: matrix,
            b: matrix,
            c: matrix,
            d: matrix,
            bias: false,
        };
        let operands = Operands {
            a: q.matrix.address(),
            b: weights.values.address(),
            c: turned.address(),
            d: turned.address(),
            bias: 0,
            alpha: 1.0,
            beta: 0.0,
        };
        // SAFETY: all have these sizes.
        unsafe { self.product(&product, &operands) }?;
        weights.values = turned;
        Ok(())
    }

    /// `W <- Q^T W` for every `width` rows from `first` on.
    pub(super) fn rotate_rows(
        &self,
        weights: &mut CudaWeights,
        first: usize,
        q: &CudaRotation,
    ) -> Result<()> {
        let (k, width) = (weights.k, q.width);
        let rows = weights.n.saturating_sub(first);
        if !rows.is_multiple_of(width) {
            return Err(turned(rows, width));
        }
        let input = Buffer::new(self.device(), 4 * rows * k)?;
        copy(self, weights.row(first), input.address(), 4 * rows * k)?;
        // Row-major `y = Q^T x` is the library's `y^T = x^T Q`, where Q lies as its transpose.
        let matrix = Matrix::new(Number::F32, k);
        let product = Product {
            m: k,
            n: width,
            k: width,
            a: matrix,
            b: Matrix::transposed(Number::F32, width),
            c: matrix,
            d: matrix,
            bias: false,
        };
        for block in (0..rows).step_by(width) {
            let out = weights.row(first + block);
            let operands = Operands {
                a: input.address() + (4 * block * k) as u64,
                b: q.matrix.address(),
                c: out,
                d: out,
                bias: 0,
                alpha: 1.0,
                beta: 0.0,
            };
            // SAFETY: all have these sizes.
            unsafe { self.product(&product, &operands) }?;
        }
        Ok(())
    }

    pub(super) fn download_weights(&self, weights: &CudaWeights) -> Result<Vec<f32>> {
        Ok(read_values(&weights.values, weights.n * weights.k, DType::F32)?)
    }
}

fn turned(channels: usize, width: usize) -> BackendError {
    BackendError::Shape(format!("{channels} channels are turned by a matrix of width {width}"))
}
