//! Cutting a text into windows.

use std::ops::Range;

use qqq_formats::{ModelConfig, size};
use qqq_model::memory;

use crate::{EvalError, Result};

/// Which tokens of a window are scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Scoring {
    /// Every token of a window but the first, as the QQQ and GPTQ authors count
    ///
    /// Nothing predicts the first one.
    All,
    /// Second halves of windows, as llama.cpp's perplexity tool counts
    ///
    /// The logits at positions `window / 2` to `window - 2` score the tokens after them, so `window - 1 - window / 2` tokens
    /// count.
    SecondHalf,
}

/// How to cut. Windows are full: what is left at the end of the text is dropped.
#[derive(Clone, Debug, serde::Serialize)]
pub struct WindowOptions {
    /// Tokens of a window, at least 2.
    pub window: usize,
    /// Tokens from one window's start to the next one's, at least 1. Below `window` only tokens that no earlier window
    /// has scored are scored; above it, the tokens between windows are left out.
    pub stride: usize,
    /// Which tokens count.
    pub scoring: Scoring,
    /// Windows at most.
    pub limit: Option<usize>,
    /// Token that takes the place of each window's first one. llama.cpp does this with BOS where the model's tokenizer
    /// adds one; the QQQ and GPTQ authors do not.
    pub first_token: Option<u32>,
}

impl WindowOptions {
    /// Windows side by side, all tokens scored: the QQQ and GPTQ authors' way.
    pub fn new(window: usize) -> Self {
        Self { window, stride: window, scoring: Scoring::All, limit: None, first_token: None }
    }
}

/// A window of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Its tokens, as indices into the text's.
    pub tokens: Range<usize>,
    /// The tokens it scores, as indices into the text's; not empty.
    pub scored: Range<usize>,
}

impl WindowOptions {
    /// The least number of tokens before a target of [`Scoring::SecondHalf`].
    pub(crate) fn second_half(&self) -> usize {
        self.window / 2 + 1
    }

    /// Tokens of a text that [`cut`](Self::cut) looks at; `usize::MAX` for all.
    pub fn tokens_needed(&self) -> usize {
        match self.limit {
            None => usize::MAX,
            Some(limit) => limit.saturating_sub(1).saturating_mul(self.stride).saturating_add(self.window),
        }
    }

    /// Checks the options, and whether a window fits a model and this machine's memory.
    ///
    /// # Errors
    /// Options that make no sense, a window beyond the model's context, or one that takes more memory than is free.
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        self.first_target()?;
        let fail = |text: String| Err(EvalError::Windows(text));
        let context = config.max_position_embeddings;
        if self.window > context {
            return fail(format!(
                "a window of {} tokens is longer than the model's context of {context}; ask for shorter windows",
                self.window
            ));
        }
        // Keys and values of all layers, hidden states, and what lies between the layers of a block, in float32.
        let kv = 2 * config.num_layers * config.num_kv_heads * config.head_dim;
        let states = 2 * config.hidden_size + 2 * config.intermediate_size;
        let needed = 4 * self.window as u128 * (kv + states) as u128;
        match memory::available() {
            Some(available) if needed > available.into() => fail(format!(
                "a window of {} tokens takes at least {} of memory, but only {} are free; ask for shorter windows",
                self.window,
                size::bytes(u64::try_from(needed).unwrap_or(u64::MAX)),
                size::bytes(available)
            )),
            _ => Ok(()),
        }
    }

    /// The first token of a window that is scored.
    fn first_target(&self) -> Result<usize> {
        let fail = |text: String| Err(EvalError::Windows(text));
        if self.window < 2 {
            return fail(format!(
                "a window has {} tokens, but nothing predicts the first: give at least 2",
                self.window
            ));
        }
        if self.stride == 0 {
            return fail("the stride is 0 tokens: give at least 1".into());
        }
        if self.limit == Some(0) {
            return fail("a limit of 0 windows leaves nothing to score".into());
        }
        let first = match self.scoring {
            Scoring::All => 1,
            Scoring::SecondHalf => self.second_half(),
        };
        if first >= self.window {
            return fail(format!(
                "the second half of a window of {} tokens holds nothing to score",
                self.window
            ));
        }
        Ok(first)
    }

    /// Cuts a text of `len` tokens.
    ///
    /// # Errors
    /// Options that make no sense, or a text without a full window.
    pub fn cut(&self, len: usize) -> Result<Vec<Window>> {
        let first = self.first_target()?;
        if len < self.window {
            return Err(EvalError::Windows(format!(
                "the text has {len} tokens, but a window needs {}; give more text or a shorter window",
                self.window
            )));
        }
        let mut scored_to = 0;
        let windows = (0..=len - self.window)
            .step_by(self.stride)
            .take(self.limit.unwrap_or(usize::MAX))
            .map(|start| {
                let end = start + self.window;
                let scored = (start + first).max(scored_to)..end;
                scored_to = end;
                Window { tokens: start..end, scored }
            })
            .collect();
        Ok(windows)
    }
}

/// Refuses tokens outside the vocabulary.
pub(crate) fn check_tokens(tokens: &[u32], vocab: usize) -> Result<()> {
    match tokens.iter().position(|&t| t as usize >= vocab) {
        None => Ok(()),
        Some(i) => Err(EvalError::Mismatch(format!(
            "token {} at index {i} is outside the model's vocabulary of {vocab}: the text was tokenized for another model",
            tokens[i]
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(window: usize, stride: usize, scoring: Scoring, len: usize) -> Vec<(Range<usize>, Range<usize>)> {
        let options = WindowOptions { stride, scoring, ..WindowOptions::new(window) };
        options.cut(len).unwrap().into_iter().map(|w| (w.tokens, w.scored)).collect()
    }

    #[test]
    fn side_by_side() {
        assert_eq!(cut(4, 4, Scoring::All, 11), [(0..4, 1..4), (4..8, 5..8)]);
        assert_eq!(cut(4, 4, Scoring::All, 12), [(0..4, 1..4), (4..8, 5..8), (8..12, 9..12)]);
        assert_eq!(cut(4, 4, Scoring::All, 4), [(0..4, 1..4)]);
    }

    #[test]
    fn second_halves_are_those_of_llama_cpp() {
        // first = n_ctx / 2; n_ctx - 1 - first targets, from first + 1 on.
        assert_eq!(cut(8, 8, Scoring::SecondHalf, 17), [(0..8, 5..8), (8..16, 13..16)]);
        assert_eq!(cut(2048, 2048, Scoring::SecondHalf, 2048), [(0..2048, 1025..2048)]);
        assert_eq!(cut(5, 5, Scoring::SecondHalf, 5), [(0..5, 3..5)]);
    }

    #[test]
    fn sliding_scores_every_token_once() {
        assert_eq!(cut(4, 2, Scoring::All, 9), [(0..4, 1..4), (2..6, 4..6), (4..8, 6..8)]);
        assert_eq!(cut(4, 1, Scoring::All, 6), [(0..4, 1..4), (1..5, 4..5), (2..6, 5..6)]);
        assert_eq!(cut(8, 4, Scoring::SecondHalf, 16), [(0..8, 5..8), (4..12, 9..12), (8..16, 13..16)]);
        assert_eq!(cut(8, 2, Scoring::SecondHalf, 10), [(0..8, 5..8), (2..10, 8..10)]);
        for (window, stride, len) in [(7, 3, 100), (16, 5, 64), (3, 1, 3)] {
            let windows = cut(window, stride, Scoring::All, len);
            let scored: Vec<usize> = windows.iter().flat_map(|(_, s)| s.clone()).collect();
            let end = windows.last().unwrap().0.end;
            assert_eq!(scored, (1..end).collect::<Vec<_>>());
            assert!(end + stride > len);
        }
    }

    #[test]
    fn a_stride_above_the_window_leaves_gaps() {
        assert_eq!(cut(4, 6, Scoring::All, 16), [(0..4, 1..4), (6..10, 7..10), (12..16, 13..16)]);
    }

    #[test]
    fn tokens_that_are_looked_at() {
        let options = |limit, stride| WindowOptions { limit, stride, ..WindowOptions::new(8) };
        for (limit, stride) in [(1, 8), (3, 8), (3, 2), (4, 20)] {
            let options = options(Some(limit), stride);
            let needed = options.tokens_needed();
            assert_eq!(options.cut(needed).unwrap(), options.cut(needed + 1000).unwrap());
            assert!(needed == 8 || options.cut(needed - 1).unwrap().len() < limit);
        }
        assert_eq!(options(None, 8).tokens_needed(), usize::MAX);
        assert_eq!(options(Some(usize::MAX), usize::MAX).tokens_needed(), usize::MAX);
    }

    #[test]
    fn limits_and_refusals() {
        let options = WindowOptions { limit: Some(2), ..WindowOptions::new(4) };
        assert_eq!(options.cut(100).unwrap().len(), 2);
        for (bad, len, says) in [
            (WindowOptions::new(1), 10, "at least 2"),
            (WindowOptions { stride: 0, ..WindowOptions::new(4) }, 10, "stride is 0"),
            (WindowOptions { limit: Some(0), ..WindowOptions::new(4) }, 10, "limit of 0"),
            (WindowOptions { scoring: Scoring::SecondHalf, ..WindowOptions::new(2) }, 10, "second half"),
            (WindowOptions::new(11), 10, "10 tokens, but a window needs 11"),
        ] {
            let error = bad.cut(len).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
