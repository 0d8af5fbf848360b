//! The Cholesky factor of a damped Hessian, in float64.
//!
//! Left-looking, a block of columns at a time: what is left of the block is a product of what was factorized before; its square
//! on the diagonal is factorized and inverted by one CTA, and the rows below are multiplied with the inverse.

use super::super::CudaBackend;
use super::super::blas::{Matrix, Number, Operands, Product};
use super::super::memory::{Buffer, copy, read_values};
use super::CudaHessian;
use super::kernels::{CalibrationKernel as Kernel, FACTOR_BLOCK};
use super::parameters::{DampParameters, FactorParameters, FeedbackParameters};
use crate::{DType, Result};

/// What carries errors from column to column; as the host's solver has it.
pub(super) struct Factor {
    /// `k x k` float32: at `[j, i]`, `i < j`, what an error of column `i` does to column `j`.
    pub feedback: Buffer,
    /// What a squared error of a column costs when later columns compensate for it.
    pub cost: Vec<f32>,
}

/// Bytes of a number here.
pub(super) const F64: usize = 8;

/// A lower Cholesky factor.
pub(super) struct Cholesky {
    /// `k x k` float64, column-major; above the diagonal there is anything.
    pub matrix: Buffer,
    /// The inverses of the squares of [`FACTOR_BLOCK`] columns on its diagonal, one after another: the transpose of each,
    /// column-major, `FACTOR_BLOCK` apart.
    pub inverses: Buffer,
}

/// Factorizes a Hessian whose diagonal is `diagonal` (on the host), with columns in the order of `order` (on the device, too).
///
/// # Errors
/// Those of the device; why there is no factor is the inner error.
pub(super) fn factorize(
    b: &CudaBackend,
    hessian: &CudaHessian,
    diagonal: &[f32],
    order: &Buffer,
    damping: f64,
) -> Result<std::result::Result<Factor, String>> {
    let k = hessian.width;
    let Some(Cholesky { matrix, .. }) = cholesky(b, hessian, diagonal, order, damping)? else {
        return Ok(Err("the Hessian is not positive definite".to_owned()));
    };
    let device = b.device();
    let feedback = Buffer::new(device, 4 * k * k)?;
    let cost = Buffer::new(device, 4 * k)?;
    let failed = Buffer::of(device, &[0i32])?;
    let parameters = FeedbackParameters {
        factor: matrix.address(),
        feedback: feedback.address(),
        cost: cost.address(),
        failed: failed.address(),
        k: k as i32,
    };
    // SAFETY: all have these sizes.
    unsafe { b.calibrate(Kernel::Feedback, k * k, parameters) }?;
    if is_set(&failed)? {
        return Ok(Err("the Hessian is numerically singular".to_owned()));
    }
    let cost = read_values(&cost, k, DType::F32)?;
    Ok(Ok(Factor { feedback, cost }))
}

/// The factor of a Hessian with `damping` times the mean of its diagonal added, its columns in the reverse of `order`; that
/// mean stands on the diagonal where it is 0. `None` if what comes of it is not positive definite.
///
/// # Errors
/// Those of the device.
pub(super) fn cholesky(
    b: &CudaBackend,
    hessian: &CudaHessian,
    diagonal: &[f32],
    order: &Buffer,
    damping: f64,
) -> Result<Option<Cholesky>> {
    let k = hessian.width;
    let live = diagonal.iter().filter(|d| **d > 0.0).count();
    let mean = match live {
        0 => 1.0,
        _ => diagonal.iter().map(|&d| f64::from(d.max(0.0))).sum::<f64>() / live as f64,
    };
    let device = b.device();
    let matrix = Buffer::new(device, F64 * k * k)?;
    let failed = Buffer::of(device, &[0i32])?;
    let on_device = Buffer::of(device, diagonal)?;
    let parameters = DampParameters {
        hessian: hessian.values.address(),
        diagonal: on_device.address(),
        order: order.address(),
        out: matrix.address(),
        k: k as i32,
        mean,
        added: damping * mean,
    };
    // SAFETY: all have these sizes.
    unsafe { b.calibrate(Kernel::Damp, k * k, parameters) }?;
    let inverses = columns(b, &matrix, k, &failed)?;
    Ok(if is_set(&failed)? { None } else { Some(Cholesky { matrix, inverses }) })
}

fn is_set(flag: &Buffer) -> Result<bool> {
    Ok(flag.read(4)?.iter().any(|b| *b != 0))
}

/// Bytes of the inverse of a square on the diagonal.
pub(super) const INVERSE_BYTES: usize = F64 * FACTOR_BLOCK * FACTOR_BLOCK;

/// Replaces the lower triangle by its factor, and gives the inverses of the squares on its diagonal.
fn columns(b: &CudaBackend, matrix: &Buffer, k: usize, failed: &Buffer) -> Result<Buffer> {
    let device = b.device();
    let rest = Buffer::new(device, F64 * k * FACTOR_BLOCK)?;
    let inverses = Buffer::new(device, INVERSE_BYTES * k.div_ceil(FACTOR_BLOCK))?;
    let at = |row: usize, col: usize| matrix.address() + (F64 * (col * k + row)) as u64;
    let whole = Matrix::new(Number::F64, k);
    for start in (0..k).step_by(FACTOR_BLOCK) {
        let width = FACTOR_BLOCK.min(k - start);
        let inverse = inverses.address() + (INVERSE_BYTES * (start / FACTOR_BLOCK)) as u64;
        // What is left: the block's columns minus the product of the columns before.
        if start == 0 {
            copy(b, matrix.address(), rest.address(), F64 * k * width)?;
        } else {
            let product = Product {
                m: k - start,
                n: width,
                k: start,
                a: whole,
                b: Matrix::transposed(Number::F64, k),
                c: whole,
                d: whole,
                bias: false,
            };
            let operands = Operands {
                a: at(start, 0),
                b: at(start, 0),
                c: at(start, start),
                d: rest.address(),
                bias: 0,
                alpha: -1.0,
                beta: 1.0,
            };
            // SAFETY: all lie in the matrix, or in the memory for what is left, whose columns are as far apart.
            unsafe { b.product(&product, &operands) }?;
        }
        let parameters = FactorParameters {
            rest: rest.address(),
            out: at(start, start),
            inverse,
            failed: failed.address(),
            rest_pitch: k as i32,
            out_pitch: k as i32,
            width: width as i32,
        };
        // SAFETY: as above.
        unsafe { b.calibrate(Kernel::FactorSquare, 1, parameters) }?;
        let end = start + width;
        if end == k {
            break;
        }
        let product = Product {
            m: k - end,
            n: width,
            k: width,
            a: whole,
            b: Matrix::new(Number::F64, FACTOR_BLOCK),
            c: whole,
            d: whole,
            bias: false,
        };
        let operands = Operands {
            a: rest.address() + (F64 * width) as u64,
            b: inverse,
            c: at(end, start),
            d: at(end, start),
            bias: 0,
            alpha: 1.0,
            beta: 0.0,
        };
        // SAFETY: as above.
        unsafe { b.product(&product, &operands) }?;
    }
    Ok(inverses)
}
