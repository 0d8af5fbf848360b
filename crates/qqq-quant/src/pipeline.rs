//! Quantizing a checkpoint, block by block.

use std::path::Path;

use qqq_formats::Checkpoint;
use qqq_model::Tokenizer;

use crate::{OutputFormat, Recipe, Report, Result, calibration::Source};

/// Told what happens; returning `false` from [`Progress::step`] interrupts.
pub trait Progress {
    /// A stage of a block is done: `done` of `total` units of work, and what comes next.
    fn step(&mut self, done: f64, total: f64, next: &str) -> bool;
    /// A warning.
    fn warn(&mut self, message: &str);
}

/// Where the result goes.
#[derive(Clone, Debug)]
pub struct Output<'a> {
    /// Directory to be made.
    pub path: &'a Path,
    /// Form.
    pub format: OutputFormat,
    /// How the user named the model (for model card and report).
    pub model_name: &'a str,
}

/// Quantizes `checkpoint` and writes the result.
pub fn quantize(
    _checkpoint: &Checkpoint,
    _tokenizer: &Tokenizer,
    _recipe: &Recipe,
    _calibration: &Source,
    _output: &Output<'_>,
    _progress: &mut dyn Progress,
) -> Result<Report> {
    unimplemented!()
}
