//! Running windows through a decoder, and its logits in chunks of rows.

use std::borrow::Cow;

use qqq_backend::{Backend, BatchPlan, pages_for, pool::parallel_each_mut};
use qqq_model::{Decoder, NotFinite, RopeChoice, Runner, names, scores::score};

use crate::{EvalError, Progress, Result, Window, WindowOptions, windows::check_tokens};

/// Tokens that go through the blocks at a time, if a window is not longer: keeps the GEMMs large.
pub(crate) const BATCH_TOKENS: usize = 2048;

/// Windows that run together.
pub(crate) struct Batch<'w> {
    /// Index of the first one.
    first: usize,
    windows: &'w [Window],
    /// Tokens of the windows, concatenated.
    tokens: Vec<u32>,
}

/// A row of logits to be scored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Row {
    /// Row of the batch whose logits predict the target.
    pub row: usize,
    /// The token that follows in the text.
    pub target: u32,
    /// Index of the target in the text's tokens.
    pub position: usize,
    /// Index of its window.
    pub window: usize,
    /// Tokens of the window before the target.
    pub context: usize,
}

impl Batch<'_> {
    /// The rows to be scored, in order.
    fn rows(&self, text: &[u32]) -> Vec<Row> {
        let mut rows = Vec::new();
        let mut first = 0;
        for (window, w) in self.windows.iter().enumerate() {
            rows.extend(w.scored.clone().map(|position| Row {
                row: first + position - 1 - w.tokens.start,
                target: text[position],
                position,
                window: self.first + window,
                context: position - w.tokens.start,
            }));
            first += w.tokens.len();
        }
        rows
    }

    /// Runs its windows.
    pub fn run<B: Backend>(&self, runner: &mut Runner<'_, B>) -> Result<()> {
        let mut first = 0;
        let windows = self.windows.iter().map(|w| {
            let tokens = &self.tokens[first..first + w.tokens.len()];
            first += tokens.len();
            tokens
        });
        Ok(runner.step(&BatchPlan::sequences(windows))?)
    }

    /// The error of a row whose logits are not finite; `model` says whose they are.
    pub fn not_finite<B: Backend>(&self, decoder: &Decoder<B>, model: &'static str, row: &Row) -> EvalError {
        // The whole window: what is not finite behind a token spoils its attention as well, for 0 times it is NaN.
        let start = row.row + 1 - row.context;
        let sequence = &self.tokens[start..start + self.windows[row.window - self.first].tokens.len()];
        match where_not_finite(decoder, sequence, row.context - 1) {
            Ok(place) => EvalError::NotFinite { model, position: row.position, place },
            Err(e) => e,
        }
    }
}

/// Where what is not finite begins in a sequence whose token at `position` has such logits.
pub(crate) fn where_not_finite<B: Backend>(
    decoder: &Decoder<B>,
    sequence: &[u32],
    position: usize,
) -> Result<NotFinite> {
    let rope = RopeChoice::new(&decoder.config, sequence.len());
    Ok(match decoder.first_not_finite(sequence, rope)? {
        // The search looks at the last token's logits alone.
        Some(place) if place.module != names::LM_HEAD_MODULE => place,
        _ => NotFinite { module: names::LM_HEAD_MODULE.into(), position },
    })
}

/// A text cut into windows, as they will run.
pub(crate) struct Cut<'t> {
    tokens: &'t [u32],
    windows: Vec<Window>,
    /// Tokens of a window.
    window: usize,
    /// Windows that run together.
    together: usize,
    first_token: Option<u32>,
}

/// How many windows were scored, of how many.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scored {
    pub windows: usize,
    pub planned: usize,
}

impl<'t> Cut<'t> {
    /// Of tokens of a vocabulary.
    ///
    /// # Errors
    /// Tokens outside the vocabulary, options that leave nothing to score.
    pub fn new(tokens: &'t [u32], options: &WindowOptions, vocab: usize) -> Result<Self> {
        check_tokens(tokens, vocab)?;
        Ok(Self {
            tokens,
            windows: options.cut(tokens.len())?,
            window: options.window,
            together: (BATCH_TOKENS / options.window).max(1),
            first_token: options.first_token,
        })
    }

    /// A runner for its batches.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn runner<'d, B: Backend>(&self, decoder: &'d Decoder<B>) -> Result<Runner<'d, B>> {
        let (pages, rows) = (self.together * pages_for(self.window), self.together * self.window);
        let mut runner = Runner::new(decoder, decoder.backend.finest_kv(), pages, rows)?;
        runner.choose_rope(RopeChoice::new(&decoder.config, self.window))?;
        Ok(runner)
    }

    /// Calls `run` with every batch and the rows it scores, until `progress` stops it.
    ///
    /// # Errors
    /// As those of `run`, and being stopped before anything was scored.
    pub fn for_each_batch(
        &self,
        progress: &mut Progress<'_>,
        mut run: impl FnMut(&Batch<'_>, &[Row]) -> Result<()>,
    ) -> Result<Scored> {
        let planned = self.windows.len();
        let mut done = 0;
        if !progress(0, planned) {
            return Err(EvalError::Interrupted);
        }
        for windows in self.windows.chunks(self.together) {
            let mut batch = Batch { first: done, windows, tokens: Vec::new() };
            for w in windows {
                let start = batch.tokens.len();
                batch.tokens.extend_from_slice(&self.tokens[w.tokens.clone()]);
                if let Some(first) = self.first_token {
                    batch.tokens[start] = first;
                }
            }
            run(&batch, &batch.rows(self.tokens))?;
            done += windows.len();
            if !progress(done, planned) {
                break;
            }
        }
        Ok(Scored { windows: done, planned })
    }
}

/// The negative log-likelihood of each token, predicted by its row of the last step. A row may be named several times in a
/// run: its logits are made once.
pub(crate) fn losses<B: Backend>(
    runner: &mut Runner<'_, B>,
    rows: &[usize],
    targets: &[u32],
    vocab: usize,
) -> Result<Vec<f64>> {
    if let Some(losses) = runner.losses(rows, targets)? {
        return Ok(losses);
    }
    let mut made = rows.to_vec();
    made.dedup();
    let mut at = 0;
    let places: Vec<usize> = rows
        .iter()
        .map(|row| {
            at += usize::from(made[at] != *row);
            at
        })
        .collect();
    let logits: Cow<'_, [f32]> = runner.logits(&made)?;
    let mut losses = vec![0.0; rows.len()];
    parallel_each_mut(&mut losses, |i, out| {
        *out = score(&logits[places[i] * vocab..(places[i] + 1) * vocab], targets[i]);
    });
    Ok(losses)
}

/// Logits of some rows of the last batch, where the backend has them.
pub(crate) fn made_logits<'r, B: Backend>(
    runner: &'r mut Runner<'_, B>,
    rows: &[Row],
) -> Result<&'r B::Tensor> {
    Ok(runner.make_logits(&of_batch(rows))?)
}

/// Rows of a batch.
fn of_batch(rows: &[Row]) -> Vec<usize> {
    rows.iter().map(|r| r.row).collect()
}
