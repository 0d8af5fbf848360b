//! The model as it is, in 16 bits: what the others are measured against.

use qqq_formats::Activations;

use super::{Entry, RecipeName, plain};
use crate::{Calibration, Recipe};

/// Every layer stays float; see [`Schemes::of`](crate::Schemes::of).
pub const ENTRY: Entry = Entry {
    name: RecipeName::Fp16,
    word: "fp16",
    source: "baseline",
    what: "every layer in 16 bits",
    gives: "float16 or bfloat16, as the model is",
    recipe,
    settings: &[],
};

fn recipe() -> Recipe {
    Recipe {
        name: RecipeName::Fp16,
        activations: Activations::Half,
        calibration: Calibration { windows: 0, ..Recipe::DEFAULT.calibration },
        ..plain()
    }
}
