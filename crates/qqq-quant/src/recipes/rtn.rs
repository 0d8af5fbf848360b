//! Rounding to nearest: the scale of a channel or group is that of its largest weight, and nothing looks at data.

use super::{Entry, RecipeName, Setting, plain};
use crate::{Calibration, Recipe};

/// W4A8 per channel unless asked otherwise.
pub const ENTRY: Entry = Entry {
    name: RecipeName::Rtn,
    word: "rtn",
    source: "baseline",
    what: "weights to nearest, scales of the largest weight",
    gives: "W4A8 (--bits, --activations, --group-size)",
    recipe,
    settings: &[Setting::Bits, Setting::Activations, Setting::GroupSize, Setting::Text, Setting::Seed],
};

fn recipe() -> Recipe {
    Recipe {
        name: RecipeName::Rtn,
        calibration: Calibration { windows: 0, ..Recipe::DEFAULT.calibration },
        ..plain()
    }
}
