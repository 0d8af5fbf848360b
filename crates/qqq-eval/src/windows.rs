//! Cutting a text into windows.

/// Which tokens of a window are scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scoring {
    /// All but the first (the QQQ and GPTQ authors' way): windows do not overlap, a ragged end is dropped.
    All,
    /// The second half of each window, as llama.cpp's `perplexity` counts.
    SecondHalf,
}

/// How to cut.
#[derive(Clone, Debug, serde::Serialize)]
pub struct WindowOptions {
    /// Tokens of a window.
    pub window: usize,
    /// Tokens from one window's start to the next one's; below `window`, only tokens that no earlier window has scored
    /// are scored.
    pub stride: usize,
    /// Which tokens count.
    pub scoring: Scoring,
    /// Windows at most.
    pub limit: Option<usize>,
}
