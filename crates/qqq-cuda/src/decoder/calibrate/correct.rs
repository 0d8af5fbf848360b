//! Moving weights towards the float model's output before they are rounded: `W + a W D^T (H + r I)^-1`, in float64. What that
//! minimizes, and where it comes from (QEP, arXiv 2504.09629; Qronos, 2505.11695), is told with the host's solver.
//!
//! With the Cholesky factor `L L^T = H + r I`, a row `p` of `W D^T` becomes its step `s` by two triangular systems, `L y = p`
//! and `L^T s = y`. Each is solved by halves: one half of the unknowns, what is left of the other half without them, then
//! that. At the end of it are squares on the diagonal, whose inverses are there from the factorization; so all of it is
//! products. This is the blocked substitution of any dense linear algebra (Golub and Van Loan, Matrix Computations, 3.1.4).

use std::ops::Range;

use qqq_backend::solve::{Correction, RIDGE, Unsolved};
use qqq_backend::{BackendError, Result};

use super::super::CudaBackend;
use super::super::blas::{Matrix, Number, Operands, Product};
use super::super::memory::Buffer;
use super::factor::{Cholesky, F64, INVERSE_BYTES, cholesky};
use super::kernels::{CalibrationKernel as Kernel, FACTOR_BLOCK};
use super::parameters::{DoublesParameters, MoveParameters};
use super::solve::CudaProblem;
use super::{CudaDeviation, CudaHessian};
use crate::DType;

/// Rows of weights that are moved at a time: each takes 20 bytes an input channel.
const MOVED_ROWS: usize = 2048;

impl CudaBackend {
    /// The weights of a problem, corrected: `n x k` float32. `diagonal` is that of the Hessian.
    ///
    /// # Errors
    /// A deviation that is not finite; those of the device. Why weights cannot be moved is the inner error.
    pub(super) fn moved(
        &self,
        problem: &CudaProblem<'_>,
        &Correction { deviation, strength }: &Correction<'_, CudaDeviation>,
        hessian: &CudaHessian,
        diagonal: &[f32],
    ) -> Result<std::result::Result<Buffer, Unsolved>> {
        let (n, k) = (problem.rows.len(), problem.k);
        for matrix in [&deviation.cross, &deviation.square] {
            if let Some(i) = self.position_not_finite(matrix.address(), k * k, DType::F32)? {
                return Err(BackendError::NotFinite(format!(
                    "the deviation of its inputs [{}, {}] is not finite: they overflowed during calibration",
                    i / k,
                    i % k
                )));
            }
        }
        let device = self.device();
        // Of this order the reverse is that of the channels.
        let order: Vec<i32> = (0..k as i32).rev().collect();
        let order = Buffer::of(device, &order)?;
        let Some(factor) = cholesky(self, hessian, diagonal, &order, RIDGE)? else {
            let reason = "the Hessian with its ridge is not positive definite";
            return Ok(Err(Unsolved::Correction(reason.into())));
        };
        let moved = Buffer::new(device, 4 * n * k)?;
        let on_device = Buffer::of(device, diagonal)?;
        let most = MOVED_ROWS.min(n);
        let products = Buffer::new(device, 4 * most * k)?;
        let (from, to) = (Buffer::new(device, F64 * most * k)?, Buffer::new(device, F64 * most * k)?);
        for first in (0..n).step_by(most) {
            let rows = most.min(n - first);
            let (weights, count) = (problem.weights.row(problem.rows.start + first), rows * k);
            self.deviated(weights, deviation, rows, &products)?;
            let widen = DoublesParameters { x: products.address(), out: from.address(), count: count as i64 };
            // SAFETY: both have room for as many rows.
            unsafe { self.calibrate(Kernel::Doubles, count, widen) }?;
            let (from, to) = (from.address(), to.address());
            let triangles = Triangles { b: self, factor: &factor, k, rows, from, to };
            triangles.forward(0..k)?;
            triangles.backward(0..k)?;
            let parameters = MoveParameters {
                weights,
                steps: from,
                diagonal: on_device.address(),
                out: moved.address() + (4 * first * k) as u64,
                count: count as i64,
                k: k as i32,
                strength,
            };
            // SAFETY: all have these rows.
            unsafe { self.calibrate(Kernel::MoveWeights, count, parameters) }?;
        }
        match self.position_not_finite(moved.address(), n * k, DType::F32)? {
            None => Ok(Ok(moved)),
            Some(_) => Ok(Err(Unsolved::Correction("the corrected weights overflow".into()))),
        }
    }

    /// `W D^T` of some rows of weights, float32.
    pub(super) fn deviated(
        &self,
        weights: u64,
        deviation: &CudaDeviation,
        rows: usize,
        out: &Buffer,
    ) -> Result<()> {
        let k = deviation.width;
        let matrix = Matrix::new(Number::F32, k);
        // Row-major `W D^T` is the library's `D W^T`, where D lies as its transpose.
        let product = Product {
            m: k,
            n: rows,
            k,
            a: Matrix::transposed(Number::F32, k),
            b: matrix,
            c: matrix,
            d: matrix,
            bias: false,
        };
        let operands = Operands {
            a: deviation.cross.address(),
            b: weights,
            c: out.address(),
            d: out.address(),
            bias: 0,
            alpha: 1.0,
            beta: 0.0,
        };
        // SAFETY: the callers give as many rows of weights, and room for as many.
        Ok(unsafe { self.product(&product, &operands) }?)
    }
}

/// Right-hand sides of a triangular system and its solutions: columns of two `k x rows` float64 matrices, column-major.
struct Triangles<'a> {
    b: &'a CudaBackend,
    factor: &'a Cholesky,
    k: usize,
    rows: usize,
    from: u64,
    to: u64,
}

impl Triangles<'_> {
    /// Some unknowns of `L y = p`: `p` is in `from`, without those before; they go to `to`.
    fn forward(&self, unknowns: Range<usize>) -> Result<()> {
        let Some(middle) = middle(&unknowns) else {
            return self.square(&unknowns, false);
        };
        let (first, second) = (unknowns.start..middle, middle..unknowns.end);
        self.forward(first.clone())?;
        let triangle = Matrix::new(Number::F64, self.k);
        self.subtract((triangle, second.start, first.start), (self.to, &first), (self.from, &second))?;
        self.forward(second)
    }

    /// Some unknowns of `L^T s = y`: `y` is in `to`, without those behind; they go to `from`.
    fn backward(&self, unknowns: Range<usize>) -> Result<()> {
        let Some(middle) = middle(&unknowns) else {
            return self.square(&unknowns, true);
        };
        let (first, second) = (unknowns.start..middle, middle..unknowns.end);
        self.backward(second.clone())?;
        let triangle = Matrix::transposed(Number::F64, self.k);
        self.subtract((triangle, second.start, first.start), (self.from, &second), (self.to, &first))?;
        self.backward(first)
    }

    /// Subtracts from the rows `left` of one matrix the product of a part of the factor, from row and column on, with the
    /// rows `known` of another.
    fn subtract(
        &self,
        (part, row, col): (Matrix, usize, usize),
        (solved, known): (u64, &Range<usize>),
        (rest, left): (u64, &Range<usize>),
    ) -> Result<()> {
        let sides = Matrix::new(Number::F64, self.k);
        let product = Product {
            m: left.len(),
            n: self.rows,
            k: known.len(),
            a: part,
            b: sides,
            c: sides,
            d: sides,
            bias: false,
        };
        let rest = rest + (F64 * left.start) as u64;
        let operands = Operands {
            a: self.factor.matrix.address() + (F64 * (col * self.k + row)) as u64,
            b: solved + (F64 * known.start) as u64,
            c: rest,
            d: rest,
            bias: 0,
            alpha: -1.0,
            beta: 1.0,
        };
        // SAFETY: all lie in the factor and in the two matrices.
        Ok(unsafe { self.b.product(&product, &operands) }?)
    }

    /// The unknowns of a square on the diagonal, by its inverse, or by the transpose of that.
    fn square(&self, unknowns: &Range<usize>, transposed: bool) -> Result<()> {
        let (width, sides) = (unknowns.len(), Matrix::new(Number::F64, self.k));
        // What is kept is the inverse's transpose.
        let inverse = match transposed {
            false => Matrix::transposed(Number::F64, FACTOR_BLOCK),
            true => Matrix::new(Number::F64, FACTOR_BLOCK),
        };
        let product = Product {
            m: width,
            n: self.rows,
            k: width,
            a: inverse,
            b: sides,
            c: sides,
            d: sides,
            bias: false,
        };
        let (from, to) = if transposed { (self.to, self.from) } else { (self.from, self.to) };
        let at = (F64 * unknowns.start) as u64;
        let operands = Operands {
            a: self.factor.inverses.address() + (INVERSE_BYTES * (unknowns.start / FACTOR_BLOCK)) as u64,
            b: from + at,
            c: to + at,
            d: to + at,
            bias: 0,
            alpha: 1.0,
            beta: 0.0,
        };
        // SAFETY: all lie in the inverses and in the two matrices.
        Ok(unsafe { self.b.product(&product, &operands) }?)
    }
}

/// Where unknowns are divided, between two squares on the diagonal; `None` within one.
fn middle(unknowns: &Range<usize>) -> Option<usize> {
    let squares = unknowns.len().div_ceil(FACTOR_BLOCK);
    (squares > 1).then(|| unknowns.start + squares / 2 * FACTOR_BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknowns_are_divided_down_to_squares() {
        fn squares(unknowns: Range<usize>) -> Vec<Range<usize>> {
            match middle(&unknowns) {
                None => vec![unknowns],
                Some(middle) => [squares(unknowns.start..middle), squares(middle..unknowns.end)].concat(),
            }
        }
        for k in [1, 64, 65, 128, 576, 1000, 11008] {
            let got = squares(0..k);
            let want: Vec<_> =
                (0..k).step_by(FACTOR_BLOCK).map(|start| start..(start + FACTOR_BLOCK).min(k)).collect();
            assert_eq!(got, want, "{k}");
        }
    }
}
