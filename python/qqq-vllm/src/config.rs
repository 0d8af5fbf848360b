//! `quantization_config` of a checkpoint.

use std::collections::BTreeSet;

use pyo3::prelude::*;
use qqq_formats::QuantizationConfig;

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
        if let Some(simulated) = config.simulated() {
            return Err(value_error(format!(
                "a checkpoint that simulates {} with 16-bit weights: vLLM has no kernels for its arithmetic; `qqq eval` and \
                 `qqq generate` run it",
                simulated.method.name()
            )));
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

    /// How a module is quantized: bits of its codes, those of its activations, and input channels of a group (None per
    /// channel); None where it stays in float.
    fn scheme(&self, name: &str) -> PyResult<Option<(usize, usize, Option<usize>)>> {
        let scheme = self.config.scheme(name).map_err(value_error)?;
        Ok(scheme.map(|s| (s.bits.get(), s.activations.bits(), s.group_size)))
    }

    /// All schemes, as `W4A8 g64`, each once.
    #[getter]
    fn schemes(&self) -> Vec<String> {
        let mut names: Vec<String> = self.config.schemes().iter().map(ToString::to_string).collect();
        // Some differ in how they lie in the file alone.
        let mut seen = BTreeSet::new();
        names.retain(|name| seen.insert(name.clone()));
        names
    }

    /// Whether a module stays in float.
    fn ignores(&self, name: &str) -> bool {
        self.config.ignores(name)
    }
}
