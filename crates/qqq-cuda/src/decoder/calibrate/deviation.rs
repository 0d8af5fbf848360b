//! How the float model's inputs of a layer deviate from those of the quantized model: sums over tokens on tensor cores.
//!
//! The difference of each token is made in float32 and rounded to 16 bits, as its input is for second moments; so sums are
//! exactly 0 where both models agree, which differences of second moments would not be.

use std::borrow::Cow;
use std::sync::PoisonError;

use qqq_backend::{BackendError, DeviationValues, Result};

use super::super::CudaBackend;
use super::super::blas::{Matrix, Number, Operands, Product};
use super::super::memory::{Buffer, CudaInput, Elements, read_values};
use super::super::steps::value_type;
use super::kernels::CalibrationKernel as Kernel;
use super::parameters::{DeviateParameters, MirrorParameters};
use crate::{CudaError, DType};

/// Running sums of `x (y - x)^T` and of `(y - x) (y - x)^T` on a device, which hold something once there were tokens.
#[derive(Debug)]
pub struct CudaDeviations {
    width: usize,
    tokens: usize,
    cross: Buffer,
    /// Its lower triangle is valid.
    square: Buffer,
    /// `y - x` of a pair of inputs, in 16 bits.
    differences: Buffer,
}

/// `2/n` times these sums, `width x width` float32 each.
#[derive(Debug)]
pub struct CudaDeviation {
    pub(super) width: usize,
    pub(super) cross: Buffer,
    /// Full and symmetric.
    pub(super) square: Buffer,
}

impl CudaBackend {
    pub(super) fn no_deviations(&self, width: usize, together: &[&CudaInput]) -> Result<CudaDeviations> {
        if let Some(x) = together.iter().find(|x| x.cols != width) {
            return Err(BackendError::Shape(format!("inputs of {} channels for sums of {width}", x.cols)));
        }
        let device = self.device();
        let sum = || Buffer::new(device, 4 * width * width);
        let (cross, square, differences) = (sum()?, sum()?, Buffer::new(device, 0)?);
        Ok(CudaDeviations { width, tokens: 0, cross, square, differences })
    }

    pub(super) fn add_deviations(
        &self,
        sums: &mut CudaDeviations,
        pairs: &[(&CudaInput, &CudaInput)],
    ) -> Result<()> {
        pairs.iter().try_for_each(|(x, y)| self.add_pair(sums, x, y))
    }

    fn add_pair(&self, sums: &mut CudaDeviations, x: &CudaInput, y: &CudaInput) -> Result<()> {
        let (rows, k) = (x.rows, sums.width);
        if (rows, x.cols) != (y.rows, y.cols) || x.cols != k || y.elements != Elements::Half {
            return Err(BackendError::Shape(format!(
                "{} x {} inputs of the float model ({:?}) beside {rows} x {}, for sums of {k} channels",
                y.rows, y.cols, y.elements, x.cols
            )));
        }
        if rows == 0 || k == 0 {
            return Ok(());
        }
        if !k.is_multiple_of(4) {
            let error = CudaError::Shape(format!("deviations of rows of {k} channels: multiples of 4"));
            return Err(error.into());
        }
        let mut widened = self.shared.widened.lock().unwrap_or_else(PoisonError::into_inner);
        let (inputs, half) = self.half_rows(x, &mut widened)?;
        let count = rows * k / 4;
        sums.differences.reserve(2 * rows * k)?;
        let differences = sums.differences.address();
        let parameters = DeviateParameters {
            x: x.buffer.address(),
            scales: if x.elements == Elements::Int8 { x.scales.address() } else { 0 },
            y: y.buffer.address(),
            out: differences,
            count: count as i64,
            row_count: (k / 4) as i32,
            x_type: value_type(x.half)?,
            y_type: value_type(y.half)?,
        };
        // SAFETY: inputs and differences have these sizes.
        unsafe { self.calibrate(Kernel::Deviate(half), count, parameters) }?;
        let beta = if sums.tokens == 0 { 0.0 } else { 1.0 };
        let sum = Matrix::new(Number::F32, k);
        // Row-major `x^T d` is the library's `d^T x`, whose matrices are the transposes of these.
        let product = Product {
            m: k,
            n: k,
            k: rows,
            a: Matrix::new(half.into(), k),
            b: Matrix::transposed(half.into(), k),
            c: sum,
            d: sum,
            bias: false,
        };
        let out = sums.cross.address();
        let operands = Operands { a: differences, b: inputs, c: out, d: out, bias: 0, alpha: 1.0, beta };
        // SAFETY: inputs, differences and sums have these sizes.
        unsafe {
            self.product(&product, &operands)?;
            self.add_squares(sums.square.address(), differences, half, (rows, k), beta)?;
        }
        sums.tokens += rows;
        Ok(())
    }

    pub(super) fn mean_deviation(&self, sums: CudaDeviations) -> Result<CudaDeviation> {
        let CudaDeviations { width, tokens, cross, square, .. } = sums;
        if tokens == 0 || width == 0 {
            let zeros = || Buffer::of(self.device(), &vec![0.0f32; width * width]);
            return Ok(CudaDeviation { width, cross: zeros()?, square: zeros()? });
        }
        let factor = (2.0 / tokens as f64) as f32;
        let factors = Buffer::of(self.device(), &vec![factor; width])?;
        let count = width * width;
        self.floats(cross.address(), DType::F32, factors.address(), &cross, count, width)?;
        let parameters = MirrorParameters { matrix: square.address(), width: width as i32, factor };
        // SAFETY: the matrix has this size.
        unsafe { self.calibrate(Kernel::Mirror, width, parameters) }?;
        Ok(CudaDeviation { width, cross, square })
    }

    pub(super) fn add_deviation(
        &self,
        deviation: &CudaDeviation,
        other: &CudaDeviation,
        factor: f64,
    ) -> Result<()> {
        if deviation.width != other.width {
            return Err(BackendError::Shape(format!(
                "deviations of {} and of {} channels",
                deviation.width, other.width
            )));
        }
        let count = deviation.width * deviation.width;
        if count == 0 {
            return Ok(());
        }
        self.add_matrix(&deviation.cross, &other.cross, count, factor as f32)?;
        Ok(self.add_matrix(&deviation.square, &other.square, count, factor as f32)?)
    }

    pub(super) fn deviation_values(&self, deviation: &CudaDeviation) -> Result<DeviationValues<'static>> {
        let read = |matrix: &Buffer| read_values(matrix, deviation.width * deviation.width, DType::F32);
        Ok(DeviationValues {
            cross: Cow::Owned(read(&deviation.cross)?),
            square: Cow::Owned(read(&deviation.square)?),
        })
    }
}
