//! GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers (Frantar, Ashkboos, Hoefler, Alistarh;
//! [arXiv 2210.17323](https://arxiv.org/abs/2210.17323)).
//!
//! Weights alone are quantized. Columns are rounded one after the other, and those still to come make up for the error, by the
//! inverse Hessian of the layer's inputs, `H = 2 X X^T` with 1% of its mean diagonal added (section 3.3; `solve`). Columns come
//! in the order of falling diagonal, and each keeps the group that it has in the natural order ("act-order with static groups" in
//! the authors' code, which came after the paper). Scales are those of the largest weight.
//!
//! Calibration is theirs: 128 windows of 2048 tokens; a layer's inputs come from the quantized layers before, with 16-bit
//! activations (in their code `--true-sequential`, which they use for LLaMA). Codes are symmetric, -8 to 7, where the paper's have
//! zero points.

use qqq_formats::Activations;

use super::{Entry, RecipeName, Setting, plain};
use crate::{Calibration, Propagation, Recipe};

/// W4A16 in groups of 128.
pub const ENTRY: Entry = Entry {
    name: RecipeName::Gptq,
    word: "gptq",
    source: "arXiv 2210.17323",
    what: "Hessian-based compensation, act-order with static groups",
    gives: "W4A16 in groups of 128 (--bits, --group-size)",
    recipe,
    settings: &[
        Setting::Bits,
        Setting::GroupSize,
        Setting::ActOrder,
        Setting::Damping,
        Setting::Text,
        Setting::Seed,
    ],
};

fn recipe() -> Recipe {
    Recipe {
        name: RecipeName::Gptq,
        activations: Activations::Half,
        group_size: Some(128),
        compensate: true,
        propagation: Propagation::Quantized,
        calibration: Calibration { windows: 128, window: 2048, ..Recipe::DEFAULT.calibration },
        ..plain()
    }
}
