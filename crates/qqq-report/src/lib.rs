//! Reports to look at: what a quantization did, and how models compare, as a page each and as figures.
//!
//! The page is one file: it loads nothing, runs nothing, follows the reader's light or dark scheme, and every figure has its
//! numbers beside it, for readers that do not see it. plotters draws the figures, maud makes the page.

mod charts;
mod comparison;
pub mod figure;
mod page;
mod pieces;
mod table;
#[cfg(test)]
mod testing;

pub use charts::{Figure, figures};
pub use comparison::{Comparison, Scatter};
pub use page::page;
pub use table::{Cell, Table};

/// File of the page in a checkpoint.
pub const PAGE_FILE: &str = "report.html";

/// What a report says of a run besides its results.
#[derive(Clone, Debug, Default)]
pub struct Circumstances {
    /// The command, as a shell takes it.
    pub command: String,
    /// Device, processor, system: names and values.
    pub environment: Vec<(String, String)>,
}

/// A figure that cannot be drawn.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw {figure}: {reason}")]
pub struct DrawError {
    /// Its name.
    pub figure: String,
    /// Why.
    pub reason: String,
}

/// Blocks of a layer's name.
fn block_of(name: &str) -> Option<usize> {
    name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

/// Name of a layer in its block.
fn module_of(name: &str) -> &str {
    name.splitn(4, '.').nth(3).unwrap_or(name)
}
