//! Sequences, sampling and generation over a decoder.

mod batch;
pub mod generate;
pub mod sampling;
pub mod session;
mod stop;
pub mod text;

pub use generate::{FinishReason, GenerateOptions, Generation, generate};
pub use sampling::{BadLogit, Sampler, SamplingOptions};
pub use session::Session;
pub use stop::StopStrings;
pub use text::{Prompt, TextEvent, TextGeneration, TextRun};
