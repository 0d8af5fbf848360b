//! A model on disk.

use std::path::{Path, PathBuf};

use crate::{LinearWeight, ModelConfig, Result, TensorSource, gguf::GgufFile};

/// A model as it lies on disk: configuration and tensors.
pub struct Checkpoint {
    /// Directory or GGUF file.
    pub path: PathBuf,
    /// Configuration.
    pub config: ModelConfig,
    /// Tensors under their Hugging Face names.
    pub tensors: Box<dyn TensorSource>,
    /// Metadata of the GGUF file, if it is one: tokenizer and chat template come from there.
    pub gguf: Option<std::sync::Arc<GgufFile>>,
}

impl Checkpoint {
    /// Opens a Hugging Face directory or a `.gguf` file.
    pub fn open(_path: &Path) -> Result<Self> {
        unimplemented!()
    }

    /// Reads the linear layer `prefix` (`model.layers.0.mlp.down_proj`) of shape
    /// `out_features x in_features`, float or quantized as the configuration says.
    pub fn linear(&self, _prefix: &str, _out_features: usize, _in_features: usize) -> Result<LinearWeight> {
        unimplemented!()
    }

    /// The bias of linear layer `prefix`, if there is one, widened to f32.
    pub fn bias(&self, _prefix: &str, _out_features: usize) -> Result<Option<Vec<f32>>> {
        unimplemented!()
    }
}
