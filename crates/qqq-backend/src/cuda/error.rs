//! What can go wrong on the way to a GPU.

use std::path::PathBuf;

/// Result with a [`CudaError`].
pub type Result<T, E = CudaError> = std::result::Result<T, E>;

/// Errors of the CUDA backend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// The driver's library cannot be loaded.
    #[error(
        "no NVIDIA driver on this machine (libcuda.so cannot be loaded): install one (`nvidia-smi` must list the GPU), or use \
         the CPU"
    )]
    NoDriver,
    /// A GPU without kernels.
    #[error("{0}")]
    Device(String),
    /// A shape that no kernel takes.
    #[error("{0}")]
    Shape(String),
    /// Operands whose types no kernel takes together.
    #[error("{0}")]
    Types(String),
    /// The driver refused something.
    #[error("{what}: {source}")]
    Driver {
        /// What was asked.
        what: String,
        /// The driver's error.
        source: cudarc::driver::DriverError,
    },
    /// No NVRTC anywhere.
    #[error(
        "NVRTC, which compiles the kernels, was not found. Looked at:\n{}\nInstall a CUDA toolkit, or `pip install \
         nvidia-cuda-nvrtc`, or set QQQ_NVRTC to the library's path",
        searched.iter().map(|p| format!("  {p}")).collect::<Vec<_>>().join("\n")
    )]
    NvrtcNotFound {
        /// Every place, with what was wrong there.
        searched: Vec<String>,
    },
    /// A library that is not a usable NVRTC.
    #[error("{path}: not a usable NVRTC: {reason}", path = path.display())]
    NvrtcUnusable {
        /// The library.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The kernel did not compile.
    #[error("compiling {name} for {arch} with NVRTC {version} failed:\n{log}")]
    Compile {
        /// The kernel.
        name: String,
        /// The architecture.
        arch: String,
        /// NVRTC's version and path.
        version: String,
        /// What NVRTC printed.
        log: String,
    },
}
