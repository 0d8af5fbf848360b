//! KL divergence of a model from a baseline.

use qqq_backend::Backend;
use qqq_model::{Decoder, Result};

use crate::WindowOptions;

/// A mean with its standard error.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Estimate {
    /// Mean.
    pub mean: f64,
    /// Standard error, from the spread between windows.
    pub standard_error: f64,
}

/// Result of [`kl_divergence`].
#[derive(Clone, Debug, serde::Serialize)]
pub struct KldReport {
    /// KL(baseline || model), nats per token.
    pub kl_divergence: Estimate,
    /// Share of tokens whose likeliest successor agrees.
    pub top1_agreement: Estimate,
    /// Perplexity of the model over the baseline's.
    pub perplexity_ratio: Estimate,
    /// Perplexity of the baseline.
    pub baseline_perplexity: f64,
    /// Perplexity of the model.
    pub perplexity: f64,
    /// Windows.
    pub windows: usize,
    /// Scored tokens.
    pub tokens: usize,
    /// Seconds.
    pub seconds: f64,
}

/// Compares `model` with `baseline` over `tokens`.
pub fn kl_divergence<A: Backend, B: Backend>(
    _baseline: &Decoder<A>,
    _model: &Decoder<B>,
    _tokens: &[u32],
    _options: &WindowOptions,
    _progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<KldReport> {
    unimplemented!()
}
