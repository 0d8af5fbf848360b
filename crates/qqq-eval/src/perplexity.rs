//! Perplexity.

use qqq_backend::Backend;
use qqq_model::{Decoder, Result};

use crate::WindowOptions;

/// Result of [`perplexity`].
#[derive(Clone, Debug, serde::Serialize)]
pub struct PerplexityReport {
    /// exp of the mean negative log-likelihood.
    pub perplexity: f64,
    /// Standard error of the perplexity, from the spread between windows.
    pub standard_error: f64,
    /// Windows.
    pub windows: usize,
    /// Scored tokens.
    pub tokens: usize,
    /// Seconds.
    pub seconds: f64,
}

/// Perplexity of `decoder` over `tokens`. `progress(done, total)` after each window; returning `false` stops with an error.
pub fn perplexity<B: Backend>(
    _decoder: &Decoder<B>,
    _tokens: &[u32],
    _options: &WindowOptions,
    _progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<PerplexityReport> {
    unimplemented!()
}
