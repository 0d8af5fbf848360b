//! NVIDIA GPUs: the driver (loaded at run time, so that one binary serves machines with and without a GPU), kernels
//! written in CUDA C++ (`kernels/`, part of the binary), their compilation by NVRTC on first use or ahead of time, and a
//! cache of what was compiled.

pub mod arch;
pub mod archive;
pub mod bench;
pub mod cache;
mod compiler;
pub mod cubin;
pub mod device;
pub mod error;
pub mod gemm;
pub mod nvrtc;
pub mod prebuild;
pub mod quantize;
pub mod resources;
pub mod source;
pub mod tensor_map;

pub use arch::Arch;
pub use archive::Archive;
pub use compiler::{Compiler, embedded};
pub use device::Device;
pub use error::{CudaError, Result};
pub use nvrtc::Nvrtc;
pub use resources::Resources;
pub use source::Source;
