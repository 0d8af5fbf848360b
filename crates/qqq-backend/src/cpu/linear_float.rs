//! Linear layers with float weights, kept in their stored precision.

use std::sync::{Arc, OnceLock};

use qqq_formats::WeightData;

use super::{element::Element, gemm, gemv, matrix::Matrix, shortlist::Shortlist};
use crate::{BackendError, Result, shared::SharedMut, simd::SimdLevel};

/// Up to this number of rows the weights are read as they are; above it they are packed.
const SKINNY_ROWS: usize = 32;

/// A float weight of shape `N x K` with its bias.
#[derive(Clone, Debug)]
pub struct FloatLinear {
    out_features: usize,
    in_features: usize,
    data: Arc<WeightData>,
    bias: Option<Vec<f32>>,
    /// Made when it is first asked for; `None` if it cannot be had.
    shortlist: Arc<OnceLock<Option<Shortlist>>>,
}

impl FloatLinear {
    /// Takes a row-major weight; its values may be shared (a tied output head).
    ///
    /// # Errors
    /// The number of values is not `out_features * in_features`, a dimension is 0, or the bias has not
    /// `out_features` values.
    pub fn new(
        out_features: usize,
        in_features: usize,
        data: Arc<WeightData>,
        bias: Option<Vec<f32>>,
    ) -> Result<Self> {
        check_weight("linear weight", out_features, in_features, data.len())?;
        check_bias(out_features, bias.as_deref())?;
        Ok(Self { out_features, in_features, data, bias, shortlist: Arc::default() })
    }

    /// `N`, the rows of the weight.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// `K`, the columns of the weight.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// The values, row-major.
    pub fn data(&self) -> &WeightData {
        &self.data
    }

    /// The bias, of length `N`, where the layer has one.
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// `x W^T + bias`, shape `x.rows x N`.
    ///
    /// # Panics
    /// If `x` has not `K` columns.
    pub(crate) fn matmul(&self, level: SimdLevel, x: &Matrix, out: &mut Matrix) {
        assert_eq!(x.cols, self.in_features, "input channels");
        out.reshape(x.rows, self.out_features);
        let out = SharedMut::new(&mut out.data);
        // SAFETY: `out` has the product's shape.
        unsafe {
            match &*self.data {
                WeightData::F32(w) => self.run(level, x, w, &out),
                WeightData::F16(w) => self.run(level, x, w, &out),
                WeightData::BF16(w) => self.run(level, x, w, &out),
            }
        }
    }

    /// The `count` largest outputs of each row; see [`Shortlist::top`]. The first call makes a copy of the weights in 8
    /// bits.
    ///
    /// # Panics
    /// If `x` has not `K` columns.
    pub(crate) fn top(&self, level: SimdLevel, x: &Matrix, count: usize) -> Option<Vec<Vec<(f32, u32)>>> {
        assert_eq!(x.cols, self.in_features, "input channels");
        match &*self.data {
            WeightData::F32(w) => self.top_typed(level, x, w, count),
            WeightData::F16(w) => self.top_typed(level, x, w, count),
            WeightData::BF16(w) => self.top_typed(level, x, w, count),
        }
    }

    fn top_typed<W: Element>(
        &self,
        level: SimdLevel,
        x: &Matrix,
        w: &[W],
        count: usize,
    ) -> Option<Vec<Vec<(f32, u32)>>> {
        if x.rows > SKINNY_ROWS || self.bias.is_some() {
            return None;
        }
        let shortlist = self.shortlist.get_or_init(|| Shortlist::new(level, w, self.out_features));
        shortlist.as_ref()?.top(level, x, w, count)
    }

    /// # Safety
    /// `out` must be a matrix of shape `x.rows x N` that nothing else uses.
    unsafe fn run<W: Element>(&self, level: SimdLevel, x: &Matrix, w: &[W], out: &SharedMut<f32>) {
        let (n, bias) = (self.out_features, self.bias());
        // SAFETY: the caller's promise.
        unsafe {
            if x.rows <= SKINNY_ROWS {
                gemv::skinny(level, x, w, n, bias, out);
            } else {
                gemm::wide(level, x, w, n, bias, out);
            }
        }
    }
}

/// Checks the number of values of a matrix of parameters.
pub(crate) fn check_weight(what: &str, rows: usize, cols: usize, len: usize) -> Result<()> {
    if rows == 0 || cols == 0 || rows.checked_mul(cols) != Some(len) {
        return Err(BackendError::Shape(format!("{what} of shape {rows} x {cols} cannot hold {len} values")));
    }
    Ok(())
}

/// Checks the length of a bias.
pub(crate) fn check_bias(out_features: usize, bias: Option<&[f32]>) -> Result<()> {
    match bias {
        Some(b) if b.len() != out_features => Err(BackendError::Shape(format!(
            "bias of a linear layer with {out_features} outputs has {} values",
            b.len()
        ))),
        _ => Ok(()),
    }
}
