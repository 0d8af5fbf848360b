//! Reading named tensors, whatever the container.

use std::borrow::Cow;
use std::ops::Range;

use crate::{DType, Result, WeightData};

/// Type and shape of a tensor on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Stored element type.
    pub dtype: DType,
    /// Row-major shape, outermost dimension first (GGUF's order is reversed on reading).
    pub shape: Vec<usize>,
    /// Bytes the tensor takes on disk.
    pub bytes: u64,
}

/// Named tensors under their Hugging Face names (`model.layers.0.self_attn.q_proj.weight`).
pub trait TensorSource: Send + Sync {
    /// All names, sorted.
    fn names(&self) -> Vec<String>;

    /// Type and shape of a tensor, `None` if there is none of that name.
    fn info(&self, name: &str) -> Option<TensorInfo>;

    /// Some of the stored bytes, little-endian, with llama.cpp's row permutation of q and k undone. Several threads may read
    /// at a time.
    ///
    /// # Errors
    /// A missing tensor, a range that does not lie within it, a file that cannot be read or was changed.
    fn bytes_at(&self, name: &str, range: Range<usize>) -> Result<Cow<'_, [u8]>>;

    /// Fills `out` with the stored bytes from `offset` on, as [`TensorSource::bytes_at`] gives them.
    ///
    /// # Errors
    /// As [`TensorSource::bytes_at`].
    fn read_into(&self, name: &str, offset: usize, out: &mut [u8]) -> Result<()> {
        out.copy_from_slice(&self.bytes_at(name, offset..offset + out.len())?);
        Ok(())
    }

    /// All of the stored bytes, as [`TensorSource::bytes_at`].
    ///
    /// # Errors
    /// A missing tensor, a file that cannot be read or was changed.
    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>> {
        self.bytes_at(name, 0..self.info(name).map_or(0, |info| info.bytes as usize))
    }

    /// Rows (the outermost dimension) of a float tensor of shape `shape`, in its stored precision; block-quantized GGUF types
    /// come as `F32`, with llama.cpp's row permutation of q and k undone. Several threads may read at a time.
    ///
    /// # Errors
    /// A missing tensor, a shape other than `shape`, rows beyond it, an integer type, NaN or infinite values (counted in
    /// these rows alone), a file that cannot be read or was changed.
    fn float_rows(&self, name: &str, shape: &[usize], rows: Range<usize>) -> Result<WeightData>;

    /// A whole float tensor, as [`TensorSource::float_rows`].
    ///
    /// # Errors
    /// As [`TensorSource::float_rows`].
    fn float(&self, name: &str, shape: &[usize]) -> Result<WeightData> {
        self.float_rows(name, shape, 0..shape.first().copied().unwrap_or(1))
    }

    /// Like [`TensorSource::float`], widened to f32.
    fn f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        Ok(self.float(name, shape)?.into_f32())
    }

    /// Where the tensors come from, for messages.
    fn location(&self) -> String;
}

/// A source shared with others (the GGUF file whose metadata the tokenizer reads as well).
impl<T: TensorSource + ?Sized> TensorSource for std::sync::Arc<T> {
    fn names(&self) -> Vec<String> {
        (**self).names()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        (**self).info(name)
    }

    fn bytes_at(&self, name: &str, range: Range<usize>) -> Result<Cow<'_, [u8]>> {
        (**self).bytes_at(name, range)
    }

    fn read_into(&self, name: &str, offset: usize, out: &mut [u8]) -> Result<()> {
        (**self).read_into(name, offset, out)
    }

    fn float_rows(&self, name: &str, shape: &[usize], rows: Range<usize>) -> Result<WeightData> {
        (**self).float_rows(name, shape, rows)
    }

    fn location(&self) -> String {
        (**self).location()
    }
}

/// The bytes of rows `rows` of a tensor of this shape that takes `bytes`; `None` if there are not so many rows, or a part
/// begins within a byte or block. What has no dimensions is one row.
pub(crate) fn row_range(shape: &[usize], bytes: usize, rows: &Range<usize>) -> Option<Range<usize>> {
    let count = shape.first().copied().unwrap_or(1);
    if rows.start > rows.end || rows.end > count {
        return None;
    }
    if *rows == (0..count) {
        return Some(0..bytes);
    }
    let row = bytes.checked_div(count).unwrap_or(0);
    (rows.is_empty() || row * count == bytes).then_some(rows.start * row..rows.end * row)
}

/// The error of a part that a tensor does not have.
pub(crate) fn beyond(location: &str, name: &str, part: &Range<usize>) -> crate::FormatError {
    crate::FormatError::Layout(format!("{location}: tensor {name:?} has no part {part:?}"))
}
