//! Perplexity and KL divergence of language models, and how well they answer questions ([`tasks`]).
//!
//! A text is cut into windows ([`windows`]); a decoder runs over each, and the logits of the scored tokens are made in
//! chunks of rows, so that memory stays small however large the vocabulary is.
//!
//! ```
//! use qqq_backend::CpuBackend;
//! use qqq_eval::{WindowOptions, kl_divergence, perplexity};
//! use qqq_formats::Checkpoint;
//! use qqq_model::{Decoder, Tokenizer};
//! # let tiny = qqq_testing::TinyModel::new();
//! # let (model, text) = (tiny.model(), std::fs::read_to_string(tiny.text())?);
//!
//! let checkpoint = Checkpoint::open(&model)?;
//! let tokens = Tokenizer::load(&checkpoint)?.encode(&text, true)?;
//! let decoder = Decoder::load(CpuBackend::new(), &checkpoint)?;
//! let options = WindowOptions { limit: Some(4), ..WindowOptions::new(128) };
//! let found = perplexity(&decoder, &tokens, &options, &mut |_, _| true)?;
//! println!("perplexity {:.2} of {} tokens", found.perplexity, found.tokens);
//!
//! // Nothing lies between a model and itself.
//! let other = Decoder::load(CpuBackend::new(), &checkpoint)?;
//! let found = kl_divergence(&decoder, &other, &tokens, &options, &mut |_, _| true)?;
//! assert!(found.kl_divergence.mean.abs() < 1e-9);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod data_sets;
pub mod error;
mod forward;
pub mod kld;
pub mod perplexity;
pub mod significance;
pub mod tasks;
pub mod tokens;
pub mod windows;

pub use data_sets::{DATA_SETS, DataSet};
pub use error::{EvalError, Result};
pub use kld::{KldReport, kl_divergence};
pub use perplexity::{PerplexityReport, perplexity};
pub use qqq_model::scores::Estimate;
pub use tokens::{Text, first_tokens};
pub use windows::{Scoring, Window, WindowOptions};

/// Told before the first and after each batch of windows how many are done and how many there are; returning `false` stops
/// with what was scored until then, or with [`EvalError::Interrupted`] if that is nothing.
pub type Progress<'a> = dyn FnMut(usize, usize) -> bool + 'a;
