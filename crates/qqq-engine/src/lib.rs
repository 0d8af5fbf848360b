//! Sequences, sampling and generation over a decoder.

pub mod generate;
pub mod sampling;

pub use generate::{FinishReason, Generation, GenerateOptions, generate};
pub use sampling::{Sampler, SamplingOptions};
