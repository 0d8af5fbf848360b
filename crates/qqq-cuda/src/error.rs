//! What can go wrong on the way to a GPU.

use std::path::PathBuf;

use cudarc::driver::DriverError;

use crate::jit::JitError;

/// Result with a [`CudaError`].
pub type Result<T, E = CudaError> = std::result::Result<T, E>;

/// What the GPU, its driver or a shape can refuse.
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
        source: DriverError,
    },
    /// Tuned choices that cannot be kept.
    #[error("tuned choices cannot be kept in {}: {source}; QQQ_KERNEL_CACHE names another folder", path.display())]
    Tuned {
        /// The file that was to hold them.
        path: PathBuf,
        /// What the file system said.
        source: std::io::Error,
    },
    /// A kernel's machine code cannot be had.
    #[error(transparent)]
    Jit(#[from] JitError),
}

/// Turns an error of the driver into ours; `what` is what was asked of it.
pub fn driver(what: &str) -> impl FnOnce(DriverError) -> CudaError + '_ {
    move |source| CudaError::Driver { what: what.to_owned(), source }
}
