//! What rows of logits say: the loss of a token, how far two models' predictions are from each other, means with standard
//! errors.

mod softmax;
mod statistics;

use qqq_backend::{Backend, pool::parallel_each_mut};
use serde::{Deserialize, Serialize};

pub use self::{
    softmax::{compare, score},
    statistics::{Estimate, WindowSum, estimate},
};
use crate::Result;
pub use qqq_backend::PairScore;

/// Bytes of logits that are made at a time.
const LOGITS_BYTES: usize = 64 << 20;

/// Rows of logits that are made at a time, for a vocabulary.
pub fn rows_at_a_time(vocab: usize) -> usize {
    (LOGITS_BYTES / (4 * vocab)).clamp(16, 512)
}

/// Compares as many rows of logits as there are `targets`, row-major, on all threads.
///
/// # Panics
/// If there are fewer rows, or a target is none of their tokens.
pub fn compare_rows(baseline: &[f32], model: &[f32], targets: &[u32]) -> Vec<PairScore> {
    let vocab = baseline.len() / targets.len().max(1);
    let mut pairs: Vec<Option<PairScore>> = vec![None; targets.len()];
    parallel_each_mut(&mut pairs, |i, out| {
        let row = i * vocab..(i + 1) * vocab;
        *out = Some(compare(&baseline[row.clone()], &model[row], targets[i]));
    });
    pairs.into_iter().flatten().collect()
}

/// Compares the logits of two models that a backend has made: on its device where that can, else as [`compare_rows`].
///
/// # Errors
/// Those of the backend.
pub fn compare_logits<B: Backend>(
    b: &B,
    baseline: &B::Tensor,
    model: &B::Tensor,
    targets: &[u32],
) -> Result<Vec<PairScore>> {
    match b.compare(baseline, model, targets)? {
        Some(pairs) => Ok(pairs),
        None => Ok(compare_rows(&b.read(baseline)?, &b.read(model)?, targets)),
    }
}

/// How far a model's predictions are from a baseline's. Standard errors come from the spread between windows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
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
}

/// Sums for a [`Divergence`], of each window.
#[derive(Clone, Debug, Default)]
pub struct DivergenceSums {
    kl: Vec<WindowSum>,
    agree: Vec<WindowSum>,
    log_ratio: Vec<WindowSum>,
    baseline_nll: Vec<WindowSum>,
}

impl DivergenceSums {
    /// Adds what a token of window `window` says; windows come in order.
    pub fn add(&mut self, window: usize, pair: &PairScore) {
        WindowSum::add(&mut self.kl, window, pair.kl);
        WindowSum::add(&mut self.agree, window, f64::from(u8::from(pair.agree)));
        WindowSum::add(&mut self.log_ratio, window, pair.model_nll - pair.baseline_nll);
        WindowSum::add(&mut self.baseline_nll, window, pair.baseline_nll);
    }

    /// Tokens that were added.
    pub fn tokens(&self) -> usize {
        self.kl.iter().map(|window| window.tokens).sum()
    }

    /// Mean negative log-likelihoods of a token, in nats: the baseline's, and the model's.
    pub fn losses(&self) -> (f64, f64) {
        let baseline = estimate(&self.baseline_nll).mean;
        (baseline, baseline + estimate(&self.log_ratio).mean)
    }

    /// Perplexity of the model, with the spread between its windows.
    pub fn model_perplexity(&self) -> Estimate {
        let windows = self.baseline_nll.iter().zip(&self.log_ratio);
        let sums: Vec<_> = windows.map(|(a, b)| WindowSum { sum: a.sum + b.sum, tokens: a.tokens }).collect();
        estimate(&sums).exp()
    }

    /// What all tokens together say. Perplexities may be beyond any number.
    pub fn divergence(&self) -> Divergence {
        let baseline_perplexity = estimate(&self.baseline_nll).exp().mean;
        let perplexity_ratio = estimate(&self.log_ratio).exp();
        Divergence {
            kl_divergence: estimate(&self.kl),
            top1_agreement: estimate(&self.agree),
            perplexity_ratio,
            baseline_perplexity,
            perplexity: baseline_perplexity * perplexity_ratio.mean,
        }
    }
}
