//! Writing a checkpoint directory: staged beside its final name and renamed when complete.

use std::path::{Path, PathBuf};

use crate::{CheckpointFormat, DType, QuantizedWeight, Result};

/// Writes a Hugging Face directory. Nothing appears under the final name before
/// [`CheckpointWriter::finish`]; dropping the writer removes what was staged.
pub struct CheckpointWriter {
    staging: PathBuf,
}

impl CheckpointWriter {
    /// Starts a directory that will be called `out`.
    ///
    /// # Errors
    /// `out` exists, or its parent is missing or not writable.
    pub fn create(_out: &Path) -> Result<Self> {
        unimplemented!()
    }

    /// Where other files (config.json, tokenizer.json, ...) are to be put.
    pub fn staging(&self) -> &Path {
        &self.staging
    }

    /// Adds a tensor; the bytes go to disk at once.
    pub fn add(&mut self, _name: &str, _dtype: DType, _shape: &[usize], _bytes: &[u8]) -> Result<()> {
        unimplemented!()
    }

    /// Adds the tensors of the quantized linear layer `prefix` in a format.
    ///
    /// # Errors
    /// The shape does not fit the format.
    pub fn add_linear(
        &mut self,
        _prefix: &str,
        _weight: &QuantizedWeight,
        _format: CheckpointFormat,
    ) -> Result<()> {
        unimplemented!()
    }

    /// Writes headers and index, syncs, and gives the directory its final name.
    pub fn finish(self) -> Result<()> {
        unimplemented!()
    }
}
