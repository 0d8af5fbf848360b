//! KL divergence of a model from a baseline.

use std::time::Instant;

use qqq_backend::Backend;
use qqq_model::{
    Decoder,
    scores::{Divergence, DivergenceSums, compare_logits, rows_at_a_time},
};

use crate::{
    Estimate, EvalError, Progress, Result, WindowOptions,
    forward::{Cut, made_logits},
};

/// Result of [`kl_divergence`]. Standard errors come from the spread between windows.
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
    /// Standard error of that; `None` for a single window. What the models have in common is in it: the ratio's is smaller.
    pub perplexity_error: Option<f64>,
    /// Windows that were scored.
    pub windows: usize,
    /// Windows that were to be scored: more where `progress` stopped it.
    pub planned_windows: usize,
    /// Whether it was stopped: the figures are those of the first windows only.
    pub partial: bool,
    /// Tokens whose distributions were compared.
    pub tokens: usize,
    /// Seconds that the comparison took.
    pub seconds: f64,
}

/// Compares `model` with `baseline` over `tokens`. Both are on one device, which compares their logits where it can.
///
/// # Errors
/// As [`perplexity`](crate::perplexity()); and vocabularies of different sizes.
pub fn kl_divergence<B: Backend>(
    baseline: &Decoder<B>,
    model: &Decoder<B>,
    tokens: &[u32],
    options: &WindowOptions,
    progress: &mut Progress<'_>,
) -> Result<KldReport> {
    let start = Instant::now();
    let vocab = model.config.vocab_size;
    if baseline.config.vocab_size != vocab {
        return Err(EvalError::Mismatch(format!(
            "the baseline has a vocabulary of {} tokens and the model one of {vocab}: their predictions cannot be compared",
            baseline.config.vocab_size
        )));
    }
    let cut = Cut::new(tokens, options, vocab)?;
    let (mut of_baseline, mut of_model) = (cut.runner(baseline)?, cut.runner(model)?);
    let mut sums = DivergenceSums::default();
    let scored = cut.for_each_batch(progress, |batch, rows| {
        batch.run(&mut of_baseline)?;
        batch.run(&mut of_model)?;
        for rows in rows.chunks(rows_at_a_time(vocab)) {
            let targets: Vec<u32> = rows.iter().map(|row| row.target).collect();
            let (p, q) = (made_logits(&mut of_baseline, rows)?, made_logits(&mut of_model, rows)?);
            for (row, pair) in rows.iter().zip(compare_logits(&model.backend, p, q, &targets)?) {
                if !pair.baseline_nll.is_finite() {
                    return Err(batch.not_finite(baseline, "baseline", row));
                }
                if !pair.is_finite() {
                    return Err(batch.not_finite(model, "model", row));
                }
                sums.add(row.window, &pair);
            }
        }
        Ok(())
    })?;
    let Divergence { kl_divergence, top1_agreement, perplexity_ratio, baseline_perplexity, perplexity } =
        sums.divergence();
    let (baseline_nll, model_nll) = sums.losses();
    if !baseline_perplexity.is_finite() {
        return Err(EvalError::Overflow { model: "baseline", nll: baseline_nll });
    }
    if !perplexity.is_finite() {
        return Err(EvalError::Overflow { model: "model", nll: model_nll });
    }
    Ok(KldReport {
        kl_divergence,
        top1_agreement,
        perplexity_ratio,
        baseline_perplexity,
        perplexity,
        perplexity_error: sums.model_perplexity().standard_error,
        windows: scored.windows,
        planned_windows: scored.planned,
        partial: scored.windows < scored.planned,
        tokens: sums.tokens(),
        seconds: start.elapsed().as_secs_f64(),
    })
}
