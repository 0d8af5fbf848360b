//! The input of linear layers.

use std::{borrow::Cow, ops::Range};

use super::{integer::Int8Activations, matrix::Matrix};
use crate::{
    InputKind,
    shared::{SharedMut, for_row_ranges},
};

/// Input of a linear layer.
#[derive(Clone, Debug, PartialEq)]
pub enum CpuInput {
    /// Float rows, `rows x K`, row-major.
    Float(Matrix),
    /// int8 rows with per-token scales.
    Int8(Int8Activations),
}

impl Default for CpuInput {
    fn default() -> Self {
        Self::Float(Matrix::default())
    }
}

impl CpuInput {
    /// Float or int8.
    pub fn kind(&self) -> InputKind {
        match self {
            Self::Float(_) => InputKind::Float,
            Self::Int8(_) => InputKind::Int8,
        }
    }

    /// Number of rows (tokens).
    pub fn rows(&self) -> usize {
        match self {
            Self::Float(x) => x.rows,
            Self::Int8(x) => x.rows,
        }
    }

    /// Number of columns (channels).
    pub fn cols(&self) -> usize {
        match self {
            Self::Float(x) => x.cols,
            Self::Int8(x) => x.cols,
        }
    }

    /// The values, row-major; int8 rows at what they stand for.
    pub fn values(&self) -> Cow<'_, [f32]> {
        match self {
            Self::Float(x) => Cow::Borrowed(&x.data),
            Self::Int8(x) => Cow::Owned(x.dequantize().data),
        }
    }

    /// Gives it a kind and a shape, in the memory it has if the kind stays.
    pub(crate) fn reshape(&mut self, kind: InputKind, rows: usize, cols: usize) {
        match (kind, &mut *self) {
            (InputKind::Float, Self::Float(x)) => x.reshape(rows, cols),
            (InputKind::Int8, Self::Int8(x)) => x.reshape(rows, cols),
            (InputKind::Float, _) => *self = Self::Float(Matrix::zeros(rows, cols)),
            (InputKind::Int8, _) => {
                let mut x = Int8Activations::default();
                x.reshape(rows, cols);
                *self = Self::Int8(x);
            }
        }
    }

    /// Makes rows: `fill(i, row)` writes row `i`, which costs about `cost` element operations. The other rows stay.
    pub(crate) fn fill(&mut self, rows: Range<usize>, cost: usize, fill: impl Fn(usize, &mut [f32]) + Sync) {
        match self {
            Self::Int8(x) => x.fill(rows, fill),
            Self::Float(x) => {
                let cols = x.cols;
                let shared = SharedMut::new(&mut x.data);
                for_row_ranges(rows.len(), cost, |range| {
                    for i in rows.start + range.start..rows.start + range.end {
                        // SAFETY: jobs have different rows.
                        fill(i, unsafe { shared.slice(i * cols..(i + 1) * cols) });
                    }
                });
            }
        }
    }
}
