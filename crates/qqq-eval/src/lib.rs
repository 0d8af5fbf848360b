//! Perplexity and KL divergence of language models.

pub mod kld;
pub mod perplexity;
pub mod windows;

pub use kld::{KldReport, kl_divergence};
pub use perplexity::{PerplexityReport, perplexity};
pub use windows::{Scoring, WindowOptions};
