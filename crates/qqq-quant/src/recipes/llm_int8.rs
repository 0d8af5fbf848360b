//! LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale (Dettmers et al., arXiv 2208.07339).
//!
//! Nothing is done to the weights before the layer runs: they are rounded to int8 by the largest magnitude of each output
//! channel, and which input channels are multiplied in 16 bits is seen in the inputs. So a simulated layer holds the weights as
//! they are. What is said of its loss is that of the int8 weights.

use qqq_formats::{SimulatedMethod, simulated::LlmInt8};

use super::{
    Entry, RecipeName, Setting,
    simulated::{Layer, Made, losses, rounded, widened},
};
use crate::{Recipe, half_type::HalfType};

/// W8A8 but for channels with outliers.
pub const ENTRY: Entry = Entry {
    name: RecipeName::LlmInt8,
    word: "llm-int8",
    source: "arXiv 2208.07339",
    what: "input channels with large values multiplied in 16 bits, found at run time",
    gives: "W8A8 simulated (--outlier-threshold)",
    recipe: || Recipe::simulating(SimulatedMethod::LlmInt8(LlmInt8::default())),
    settings: &[Setting::OutlierThreshold, Setting::Text, Setting::Seed],
};

/// Bits of a weight and of an output channel's scale.
const BITS: f64 = 8.0;
const SCALE_BITS: f64 = 16.0;

/// The layer as it is.
///
/// Bits: those of the int8 weights and of a scale an output channel. Outlier channels are kept in 16 bits as well; which they
/// are depends on the input, so that they are not counted (the paper: 0.1% at most).
pub fn quantize(layer: &Layer<'_>, half: HalfType) -> Made {
    let (n, k) = (layer.n as f64, layer.k as f64);
    let weights = rounded(layer.weights, half);
    let [loss] = losses(layer, [&int8(&widened(&weights), layer.k)]);
    Made { weights, quik: None, bits: BITS * n * k + SCALE_BITS * n, loss, loss_nearest: loss }
}

/// Weights as int8 codes stand for them: `round(127 w / max|w|)` of each row, and back.
pub(crate) fn int8(weights: &[f64], k: usize) -> Vec<f64> {
    let row = |row: &[f64]| {
        let scale = row.iter().fold(0.0f64, |m, w| m.max(w.abs())) / 127.0;
        let scale = if scale > 0.0 { scale } else { 1.0 };
        row.iter().map(|w| (w / scale).round_ties_even() * scale).collect::<Vec<_>>()
    };
    weights.chunks_exact(k).flat_map(row).collect()
}
