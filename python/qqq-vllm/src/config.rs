//! `quantization_config` of a checkpoint.

use std::collections::BTreeSet;

use pyo3::prelude::*;
use qqq_formats::{Activations, CodeBits, QuantizationConfig};

use crate::value_error;

/// How the linear layers of a checkpoint are stored.
#[pyclass(frozen, module = "qqq_vllm._native")]
pub struct Config {
    json: String,
    config: QuantizationConfig,
}

#[pymethods]
impl Config {
    /// Reads the JSON text of `quantization_config`; ValueError for everything that would not run exactly as it says.
    #[new]
    fn new(json: &str) -> PyResult<Self> {
        let value = serde_json::from_str(json).map_err(value_error)?;
        let config = QuantizationConfig::from_value(&value).map_err(value_error)?;
        let w4a8 = (CodeBits::Four, Activations::Int8);
        if let Some(other) = config.schemes().iter().find(|s| (s.bits, s.activations) != w4a8) {
            return Err(value_error(format!(
                "quantization_config: qqq-vllm runs W4A8 layers, and there are {other} ones (the qqq binary runs them)"
            )));
        }
        // The Python side reads all layers alike; whether codes are packed, it sees by their tensors.
        let groups = config.schemes().iter().map(|s| s.group_size).collect::<BTreeSet<_>>();
        if groups.len() > 1 {
            return Err(value_error(
                "quantization_config: qqq-vllm reads checkpoints whose layers all have groups of one size; these differ \
                 from layer to layer (the qqq binary runs them)",
            ));
        }
        Ok(Self { json: json.to_owned(), config })
    }

    /// For pickle: vLLM hands its configuration to other processes.
    fn __getnewargs__(&self) -> (&str,) {
        (&self.json,)
    }

    /// "qqq" or "compressed-tensors".
    #[getter]
    fn format(&self) -> &'static str {
        self.config.format.name()
    }

    /// Input channels of a group; None per channel.
    #[getter]
    fn group_size(&self) -> Option<usize> {
        self.config.schemes().first().and_then(|s| s.group_size)
    }

    /// Whether a module stays in float.
    fn ignores(&self, name: &str) -> bool {
        self.config.ignores(name)
    }
}
