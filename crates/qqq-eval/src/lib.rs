//! Perplexity and KL divergence of language models.
//!
//! A text is cut into windows ([`windows`]); a decoder runs over each, and the logits of the scored tokens are made in
//! chunks of rows, so that memory stays small however large the vocabulary is.

pub mod error;
mod forward;
pub mod kld;
pub mod perplexity;
mod softmax;
pub mod statistics;
pub mod tokens;
pub mod windows;

pub use error::{EvalError, Result};
pub use kld::{KldReport, kl_divergence};
pub use perplexity::{PerplexityReport, perplexity};
pub use statistics::Estimate;
pub use tokens::{Text, first_tokens};
pub use windows::{Scoring, Window, WindowOptions};

/// Told before the first and after each batch of windows how many are done and how many there are; returning `false` stops
/// with what was scored until then, or with [`EvalError::Interrupted`] if that is nothing.
pub type Progress<'a> = dyn FnMut(usize, usize) -> bool + 'a;
