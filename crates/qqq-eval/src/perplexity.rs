//! Perplexity.

use std::time::Instant;

use qqq_backend::Backend;
use qqq_model::{
    Decoder,
    scores::{WindowSum, estimate, rows_at_a_time},
};

use crate::{
    EvalError, Progress, Result, Scoring, WindowOptions,
    forward::{Cut, losses},
};

/// Result of [`perplexity`].
#[derive(Clone, Debug, serde::Serialize)]
pub struct PerplexityReport {
    /// exp of the mean negative log-likelihood per token. Windows that score equally many tokens weigh equally, so this
    /// is the figure of the QQQ and GPTQ authors as well, who average windows.
    pub perplexity: f64,
    /// Standard error of the perplexity, from the spread between windows; `None` for a single window.
    pub standard_error: Option<f64>,
    /// Where whole windows are scored: the perplexity of their second halves, which is that of
    /// [`Scoring::SecondHalf`] (with the same first tokens).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub second_half_perplexity: Option<f64>,
    /// Windows that were scored.
    pub windows: usize,
    /// Windows that were to be scored: more where `progress` stopped it.
    pub planned_windows: usize,
    /// Whether it was stopped: the figures are those of the first windows only.
    pub partial: bool,
    /// Tokens that the perplexity is the mean over.
    pub tokens: usize,
    /// Seconds that the scoring took.
    pub seconds: f64,
}

/// Perplexity of `decoder` over `tokens`.
///
/// # Errors
/// Options that leave nothing to score, a window beyond the model's context, tokens outside its vocabulary, logits that
/// are not finite, a perplexity that is not, or `progress` returned `false` before anything was scored. Stopped later, it
/// gives what was scored until then.
pub fn perplexity<B: Backend>(
    decoder: &Decoder<B>,
    tokens: &[u32],
    options: &WindowOptions,
    progress: &mut Progress<'_>,
) -> Result<PerplexityReport> {
    let start = Instant::now();
    let vocab = decoder.config.vocab_size;
    let cut = Cut::new(tokens, options, vocab)?;
    let mut runner = cut.runner(decoder)?;
    let (mut sums, mut halves) = (Vec::new(), Vec::new());
    // Windows that overlap score parts that say nothing about halves.
    let whole = options.scoring == Scoring::All && options.stride >= options.window;
    let scored = cut.for_each_batch(progress, |batch, rows| {
        batch.run(&mut runner)?;
        for rows in rows.chunks(rows_at_a_time(vocab)) {
            let (of_batch, targets): (Vec<_>, Vec<_>) = rows.iter().map(|r| (r.row, r.target)).unzip();
            let nll = losses(&mut runner, &of_batch, &targets, vocab)?;
            for (row, nll) in rows.iter().zip(nll) {
                if !nll.is_finite() {
                    return Err(batch.not_finite(decoder, "model", row));
                }
                WindowSum::add(&mut sums, row.window, nll);
                if whole && row.context >= options.second_half() {
                    WindowSum::add(&mut halves, row.window, nll);
                }
            }
        }
        Ok(())
    })?;
    let nll = estimate(&sums);
    let mean = nll.exp();
    if !mean.mean.is_finite() {
        return Err(EvalError::Overflow { model: "model", nll: nll.mean });
    }
    Ok(PerplexityReport {
        perplexity: mean.mean,
        standard_error: mean.standard_error,
        second_half_perplexity: (!halves.is_empty()).then(|| estimate(&halves).mean.exp()),
        windows: scored.windows,
        planned_windows: scored.planned,
        partial: scored.windows < scored.planned,
        tokens: sums.iter().map(|w| w.tokens).sum(),
        seconds: start.elapsed().as_secs_f64(),
    })
}
