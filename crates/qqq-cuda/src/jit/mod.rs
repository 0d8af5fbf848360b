//! From a kernel's source to machine code: what NVRTC compiles, where compiled kernels are kept and looked for, and
//! what they say about themselves. Nothing here needs a GPU or its driver.

mod arch;
pub mod archive;
pub mod cache;
mod compiler;
pub mod cubin;
mod error;
mod nvrtc;
mod resources;
pub mod source;

pub use arch::Arch;
pub use archive::{Archive, ArchiveError, ArchivedKernel};
pub use cache::Cache;
pub use compiler::{Compiler, embedded};
pub use error::{JitError, Result};
pub use nvrtc::Nvrtc;
pub use resources::Resources;
pub use source::Source;
