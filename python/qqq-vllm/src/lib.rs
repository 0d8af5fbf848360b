//! The native part of the vLLM plugin: formats and kernels, for Python. Tensors cross the border as addresses; the Python
//! side (`ops.py`, `weights.py`) checks their types, shapes and devices and keeps them alive, so every address here is that of
//! memory as large as the call says.

mod address;
mod config;
mod cpu;
mod gpu;
mod stored;
mod weight;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

/// Kernels and formats of qqq.
#[pymodule]
mod _native {
    #[pymodule_export]
    use super::config::Config;
    #[pymodule_export]
    use super::cpu::{CpuLinear, use_openmp};
    #[pymodule_export]
    use super::gpu::{Gemm, Gpu, Prepack, Quantize};
    #[pymodule_export]
    use super::stored::Stored;
    #[pymodule_export]
    use super::weight::{Weight, copy_bytes, random_words, read_scales};
}

/// What a user can mend: bad files, shapes and values.
fn value_error(error: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// What lies with the machine: drivers, compilers, memory.
fn runtime_error(error: impl std::fmt::Display) -> PyErr {
    PyRuntimeError::new_err(error.to_string())
}
