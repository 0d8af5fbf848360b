//! What computes. [`Backend`] lists the operations that a decoder needs, each named for what the
//! decoder does with it; [`cpu::CpuBackend`] implements them.

pub mod backend;
pub mod cpu;
pub mod cuda;
pub mod error;
pub mod finite;
pub mod ranking;

pub use backend::{Backend, HeadLayout, InputKind, KvDType, KvLayout, Span, WindowedCausal};
pub use cpu::CpuBackend;
pub use error::{BackendError, Result};
pub use finite::first_not_finite;
pub use ranking::{descending, largest};
