//! Reading named tensors, whatever the container.

use std::borrow::Cow;

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

    /// The stored bytes, little-endian. Errors if the tensor is missing.
    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>>;

    /// A float tensor in its stored precision; block-quantized GGUF types come as `F32`, with
    /// llama.cpp's row permutation of q and k undone.
    ///
    /// # Errors
    /// A missing tensor, a shape other than `shape`, an integer type, NaN or infinite values.
    fn float(&self, name: &str, shape: &[usize]) -> Result<WeightData>;

    /// Like [`TensorSource::float`], widened to f32.
    fn f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        Ok(self.float(name, shape)?.into_f32())
    }

    /// Where the tensors come from, for messages.
    fn location(&self) -> String;

    /// The tensor of this name will not be read for a while: what it takes of this process's memory may be given back. A
    /// hint, and no error for a name that is not there.
    fn release(&self, _name: &str) {}
}

/// A source shared with others (the GGUF file whose metadata the tokenizer reads as well).
impl<T: TensorSource + ?Sized> TensorSource for std::sync::Arc<T> {
    fn names(&self) -> Vec<String> {
        (**self).names()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        (**self).info(name)
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>> {
        (**self).bytes(name)
    }

    fn float(&self, name: &str, shape: &[usize]) -> Result<WeightData> {
        (**self).float(name, shape)
    }

    fn location(&self) -> String {
        (**self).location()
    }

    fn release(&self, name: &str) {
        (**self).release(name);
    }
}
