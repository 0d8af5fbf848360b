//! The next tokens of several sequences: on the device where it can choose, else from logits that are read.

use qqq_backend::{Backend, Pick};
use qqq_model::{Result, Runner};

use crate::{BadLogit, Sampler, sampling::Need};

/// Largest logits that are read first where top-p or min-p decide: mostly all that they leave over is among these.
const LIKELIEST: usize = 256;

/// The next token of each of some rows of the last step, by a sampler each, with the sequence's tokens so far. All samplers have
/// the same options.
///
/// # Errors
/// Those of the backend.
pub(crate) fn tokens<B: Backend>(
    runner: &mut Runner<'_, B>,
    rows: &[usize],
    samplers: &mut [(&mut Sampler, &[u32])],
) -> Result<Vec<Result<u32, BadLogit>>> {
    let vocab = runner.decoder().config.vocab_size;
    let need = samplers.first().map_or(Need::All, |(sampler, _)| sampler.need());
    match need {
        Need::Top(count) => {
            let top = runner.top_logits(rows, count)?;
            return Ok(samplers.iter_mut().zip(top).map(|((s, _), top)| s.sample_top(&top)).collect());
        }
        Need::Draw(temperature) if B::DRAWS => {
            let chances: Vec<f64> = samplers.iter_mut().map(|(s, _)| s.chance()).collect();
            // The largest tells which logit is not finite.
            let pick = Pick { largest: 1, temperature: Some(temperature) };
            let token = |picked: qqq_backend::Picked| {
                let (value, token) = picked.largest.first().copied().unwrap_or((f32::NAN, 0));
                picked.drawn.and_then(|drawn| drawn.column).ok_or(BadLogit { token, value })
            };
            return Ok(runner.pick(rows, pick, &chances)?.into_iter().map(token).collect());
        }
        Need::Likeliest(temperature) if B::DRAWS => {
            // What is drawn of all is of no use here; the sum of all probabilities is.
            let pick = Pick { largest: LIKELIEST.min(vocab), temperature: Some(temperature) };
            let picked = runner.pick(rows, pick, &vec![0.0; rows.len()])?;
            let chosen = samplers.iter_mut().zip(picked).map(|((s, _), picked)| {
                let total = picked.drawn.map_or(f64::INFINITY, |drawn| drawn.total);
                s.sample_likeliest(&picked.largest, total)
            });
            let chosen: Vec<Option<_>> = chosen.collect();
            if chosen.iter().all(Option::is_some) {
                return Ok(chosen.into_iter().flatten().collect());
            }
            let logits = runner.logits(rows)?;
            let rows = samplers.iter_mut().zip(logits.chunks_exact(vocab)).zip(chosen);
            return Ok(rows
                .map(|(((s, history), row), chosen)| chosen.unwrap_or_else(|| s.sample(row, history)))
                .collect());
        }
        Need::Draw(_) | Need::Likeliest(_) | Need::All => {}
    }
    let logits = runner.logits(rows)?;
    let rows = samplers.iter_mut().zip(logits.chunks_exact(vocab));
    Ok(rows.map(|((s, history), row)| s.sample(row, history)).collect())
}
