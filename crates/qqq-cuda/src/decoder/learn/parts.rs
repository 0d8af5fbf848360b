//! What operations of learning share: room, and launches of a kernel for several of them.

use std::ops::Range;

use qqq_backend::{BackendError, HeadLayout, Result};

use super::kernels::{LearnKernel as Kernel, PRODUCT_ROWS, product_pieces};
use super::parameters::{
    ColumnProductParameters, ColumnTotalParameters, DifferenceParameters, LearnNormParameters,
    RepeatParameters,
};
use super::{DeviceLearner, DeviceMatrix, LearnDevice, alike, expect, has};
use crate::decoder::calibrate::parameters::FloatsParameters;
use crate::decoder::steps::value_type;
use crate::{CudaError, DType};

impl<D: LearnDevice> DeviceLearner<D> {
    /// On a device.
    pub fn new(device: D) -> Self {
        Self { device }
    }

    /// Room for a matrix.
    pub(super) fn matrix(&self, rows: usize, cols: usize) -> crate::Result<DeviceMatrix<D::Memory>> {
        if rows.max(cols) > i32::MAX as usize {
            return Err(CudaError::Shape(format!("a matrix of {rows} x {cols}: too large for the kernels")));
        }
        let (memory, address) = self.device.room(4 * rows * cols)?;
        Ok(DeviceMatrix { rows, cols, memory, address })
    }

    /// Values of a type at an address as float32, times a factor a column if there is an address of these.
    pub(super) fn floats(
        &self,
        (x, dtype): (u64, DType),
        factors: u64,
        out: &DeviceMatrix<D::Memory>,
    ) -> crate::Result<()> {
        let parameters = FloatsParameters {
            x,
            factors,
            out: out.at(0),
            count: out.len() as i64,
            columns: out.cols.max(1) as i32,
            value_type: value_type(dtype)?,
        };
        // SAFETY: the callers give as many values, and factors of all columns.
        unsafe { self.device.launch(Kernel::Floats, out.len(), parameters) }
    }

    /// `factor (a - b)`, or `factor a`.
    pub(super) fn scaled_difference(
        &self,
        a: &DeviceMatrix<D::Memory>,
        b: Option<&DeviceMatrix<D::Memory>>,
        factor: f64,
    ) -> Result<DeviceMatrix<D::Memory>> {
        b.map_or(Ok(()), |b| alike(a, b))?;
        let out = self.matrix(a.rows, a.cols)?;
        let parameters = DifferenceParameters {
            a: a.at(0),
            b: b.map_or(0, |b| b.at(0)),
            out: out.at(0),
            count: a.len() as i64,
            factor: factor as f32,
        };
        // SAFETY: all have this size.
        unsafe { self.device.launch(Kernel::Difference, a.len(), parameters) }?;
        Ok(out)
    }

    /// Norms of parts of rows as wide as `weight`, from `x` to `out`, or gradients by `x` from `dy`.
    ///
    /// # Safety
    /// `out` and `dy`, if there is one, must be device memory of the size of `x`.
    pub(super) unsafe fn norms(
        &self,
        x: &DeviceMatrix<D::Memory>,
        (dy, out): (Option<u64>, u64),
        columns: Range<usize>,
        weight: &DeviceMatrix<D::Memory>,
        eps: f64,
    ) -> Result<()> {
        let width = weight.cols;
        has(x, &columns)?;
        if weight.rows != 1 || width == 0 || !columns.len().is_multiple_of(width) {
            return Err(BackendError::Shape(format!("norms of {width} channels of columns {columns:?}")));
        }
        let segments = columns.len() / width;
        let parameters = LearnNormParameters {
            x: x.at(0),
            dy: dy.unwrap_or(0),
            weight: weight.at(0),
            out,
            count: (x.rows * segments) as i64,
            pitch: x.cols as i32,
            first: columns.start as i32,
            segments: segments as i32,
            width: width as i32,
            epsilon: eps as f32,
        };
        let kernel = Kernel::Norm { heads: width < x.cols, back: dy.is_some() };
        // SAFETY: the columns are there; the caller's promise.
        Ok(unsafe { self.device.launch(kernel, x.rows * segments, parameters) }?)
    }

    /// Adds up `a b` over rows, for columns from `first` on: to `out`, or, divided by `divisors`, taken from it.
    pub(super) fn column_sums(
        &self,
        (a, b): (&DeviceMatrix<D::Memory>, &DeviceMatrix<D::Memory>),
        first: usize,
        divisors: Option<&DeviceMatrix<D::Memory>>,
        out: &DeviceMatrix<D::Memory>,
    ) -> Result<()> {
        let columns = out.cols;
        alike(a, b)?;
        has(a, &(first..first + columns))?;
        expect(divisors.unwrap_or(out), (1, columns), "divisors of columns")?;
        let chunks = a.rows.div_ceil(PRODUCT_ROWS);
        let parts = self.matrix(chunks, columns)?;
        let products = ColumnProductParameters {
            a: a.at(0),
            b: b.at(0),
            out: parts.at(0),
            rows: a.rows as i32,
            pitch: a.cols as i32,
            first: first as i32,
            columns: columns as i32,
        };
        let totals = ColumnTotalParameters {
            parts: parts.at(0),
            divisors: divisors.map_or(0, |s| s.at(0)),
            out: out.at(0),
            chunks: chunks as i32,
            columns: columns as i32,
        };
        // SAFETY: all have these sizes.
        unsafe {
            self.device.launch(Kernel::ColumnProducts, product_pieces(a.rows, columns), products)?;
            self.device.launch(Kernel::ColumnTotals, columns, totals)?;
        }
        Ok(())
    }

    /// What channels of values have for those of attention's output, or the sums back.
    pub(super) fn over_heads(
        &self,
        kernel: Kernel,
        x: &DeviceMatrix<D::Memory>,
        heads: HeadLayout,
        columns: usize,
    ) -> Result<DeviceMatrix<D::Memory>> {
        let out = self.matrix(1, columns)?;
        let parameters = RepeatParameters {
            x: x.at(0),
            out: out.at(0),
            columns: columns as i32,
            width: heads.head_dim as i32,
            each: (heads.num_heads / heads.num_kv_heads) as i32,
        };
        // SAFETY: the callers give as many channels as the heads have.
        unsafe { self.device.launch(kernel, columns, parameters) }?;
        Ok(out)
    }
}
