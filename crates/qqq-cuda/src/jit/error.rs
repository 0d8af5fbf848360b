//! What can go wrong between a kernel's source and its machine code.

use std::path::PathBuf;

use super::archive::ArchiveError;

/// Result with a [`JitError`].
pub type Result<T, E = JitError> = std::result::Result<T, E>;

/// Why there is no machine code.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JitError {
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
        /// The library that was tried.
        path: PathBuf,
        /// What opening it came to.
        reason: String,
    },
    /// A kernel that is neither there nor can be compiled.
    #[error(
        "the kernel {name} for {arch} is not there and cannot be compiled:\n{}\n{nvrtc}\nOr name an archive of `qqq kernels \
         build` in QQQ_KERNELS",
        places.iter().map(|p| format!("  {p}")).collect::<Vec<_>>().join("\n")
    )]
    NoKernel {
        /// Name of the kernel's instance.
        name: String,
        /// Architecture that it is for, as `sm_90a`.
        arch: String,
        /// Every place where it could have been, with what was found.
        places: Vec<String>,
        /// What is wrong with NVRTC.
        nvrtc: Box<JitError>,
    },
    /// An archive of kernels that cannot be used.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// Machine code that is right and slow.
    #[error(
        "this NVRTC makes slow code of {name} for {arch}, which is not for an archive: {warnings}. NVRTC {}.{} or newer is \
         needed (QQQ_NVRTC names one)",
        needed.0,
        needed.1
    )]
    SlowCode {
        /// Name of the kernel's instance.
        name: String,
        /// Architecture that it is for, as `sm_90a`.
        arch: String,
        /// What the compiler said.
        warnings: String,
        /// Major and minor version that is new enough.
        needed: (u32, u32),
    },
    /// The kernel did not compile.
    #[error("compiling {name} for {arch} with NVRTC {version} failed:\n{log}")]
    Compile {
        /// Name of the kernel's instance.
        name: String,
        /// Architecture that it is for, as `sm_90a`.
        arch: String,
        /// NVRTC's version and path.
        version: String,
        /// What NVRTC printed.
        log: String,
    },
}
