//! Measuring the kernels on a GPU.
//!
//! Times are medians of short bursts of launches in a CUDA graph, after a pause each: a long run would measure how far the
//! GPU's power limit lowers the clock. Weights are rotated among copies that together exceed the L2 cache several times, so
//! that they come from memory, as they do in a model. All data is random.

mod ceilings;
mod data;
mod gemm;
mod peer;
mod problem;
mod timing;

pub use ceilings::Ceilings;
pub use gemm::{Choosing, Extent, GemmBench, Measurement};
