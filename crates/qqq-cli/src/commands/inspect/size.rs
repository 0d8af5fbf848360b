//! How large a checkpoint is, for tables of several.

use qqq_formats::Checkpoint;
use qqq_report::figure::distinct;
use serde::Serialize;

use super::{modules, totals};

/// Kinds of layers, and what they take.
#[derive(Clone, Debug, Serialize)]
pub struct Size {
    /// Its layers' kinds, as `W4A8 g64`; `float` for 16 bits.
    pub schemes: Vec<String>,
    /// Of the linear layers of the blocks, as they are stored.
    pub bits_per_weight: f64,
    /// Of all tensors, as they are stored.
    pub bytes: u64,
}

impl Size {
    /// Of what a checkpoint holds.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of(checkpoint: &Checkpoint) -> anyhow::Result<Self> {
        let modules = modules(checkpoint)?;
        let kinds = modules.iter().filter(|module| module.block_linear);
        let kinds = kinds.map(|module| module.scheme.clone().unwrap_or_else(|| "float".into()));
        let (schemes, totals) = (distinct(kinds), totals(&modules));
        Ok(Self { schemes, bits_per_weight: totals.block_linear_bits_per_weight, bytes: totals.bytes })
    }
}
