//! The embedding table.

use std::sync::Arc;

use qqq_formats::WeightData;

use super::{
    element::Element,
    linear_float::{FloatLinear, check_weight},
    matrix::Matrix,
};
use crate::{Result, simd::SimdLevel};

/// Table of shape `vocab x hidden`, in its stored precision.
#[derive(Clone, Debug)]
pub struct CpuEmbedding {
    vocab: usize,
    hidden: usize,
    data: Arc<WeightData>,
}

impl CpuEmbedding {
    /// Takes a row-major table.
    ///
    /// # Errors
    /// The number of values is not `vocab * hidden`, or one of them is 0.
    pub fn new(vocab: usize, hidden: usize, data: WeightData) -> Result<Self> {
        check_weight("embedding", vocab, hidden, data.len())?;
        Ok(Self { vocab, hidden, data: Arc::new(data) })
    }

    /// The values, row-major.
    pub fn data(&self) -> &WeightData {
        &self.data
    }

    /// The linear layer with the same values.
    pub(crate) fn tied_head(&self) -> Result<FloatLinear> {
        FloatLinear::new(self.vocab, self.hidden, self.data.clone(), None)
    }

    /// Width of a row.
    pub(crate) fn hidden(&self) -> usize {
        self.hidden
    }

    /// Number of rows.
    pub(crate) fn vocab(&self) -> usize {
        self.vocab
    }

    /// Rows of the table, widened, times `scale`.
    ///
    /// # Panics
    /// If an id is not below `vocab`.
    pub(crate) fn rows(&self, level: SimdLevel, ids: &[u32], scale: f32, out: &mut Matrix) {
        out.reshape(ids.len(), self.hidden);
        match &*self.data {
            WeightData::F32(t) => self.copy_rows(level, t, ids, out),
            WeightData::F16(t) => self.copy_rows(level, t, ids, out),
            WeightData::BF16(t) => self.copy_rows(level, t, ids, out),
        }
        if scale != 1.0 {
            out.data.iter_mut().for_each(|v| *v *= scale);
        }
    }

    fn copy_rows<T: Element>(&self, level: SimdLevel, table: &[T], ids: &[u32], out: &mut Matrix) {
        for (row, &id) in out.data.chunks_exact_mut(self.hidden).zip(ids) {
            let start = id as usize * self.hidden;
            T::widen(level, &table[start..start + self.hidden], row);
        }
    }
}
