//! Calibration text to windows of tokens.

/// Where the text comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// Text or jsonl or parquet files (`text` field).
    Files(Vec<std::path::PathBuf>),
    /// The model's own samples.
    SelfSamples,
}
