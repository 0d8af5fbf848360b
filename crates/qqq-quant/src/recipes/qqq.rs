//! QQQ: Quality Quattuor-Bit Quantization for Large Language Models (Zhang, Zhang, Zhou, Chen, Zhang, Cheng, Xie;
//! [arXiv 2406.09904](https://arxiv.org/abs/2406.09904)), and what its authors have put beside it since.
//!
//! Adaptive smoothing shrinks channels beyond a threshold that is searched by the site's output (section 3.2; `smooth`,
//! `smooth_sites`); then GPTQ rounds the weights (section 3.3). Nothing is clipped, nothing corrected. The later recipe has a
//! rotation (QuaRot's, arXiv 2404.00456, absorbed into the weights) in the place of smoothing, and scales that make the weights'
//! own error least: their scripts turn that search on for rotation, and off for smoothing. Later layers are calibrated on what
//! the quantized layers before give.

use super::{Entry, RecipeName, Setting, plain};
use crate::{Calibration, Clip, Propagation, Recipe, Transform};

const SETTINGS: &[Setting] =
    &[Setting::ActOrder, Setting::Damping, Setting::SmoothTokens, Setting::Text, Setting::Seed];

fn smoothed() -> Recipe {
    Recipe {
        name: RecipeName::Qqq,
        transform: Transform::Smooth,
        compensate: true,
        propagation: Propagation::Quantized,
        calibration: Calibration { windows: 128, window: 2048, ..Recipe::DEFAULT.calibration },
        ..plain()
    }
}

fn in_groups() -> Recipe {
    Recipe { name: RecipeName::QqqG128, group_size: Some(128), ..smoothed() }
}

fn rotated() -> Recipe {
    Recipe { name: RecipeName::QqqRot, transform: Transform::Rotate, clip: Clip::Weight, ..smoothed() }
}

/// Per channel.
pub const CHANNEL: Entry = Entry {
    name: RecipeName::Qqq,
    word: "qqq",
    source: "arXiv 2406.09904",
    what: "adaptive smoothing, then GPTQ",
    gives: "W4A8 per channel",
    recipe: smoothed,
    settings: SETTINGS,
};

/// In groups of 128, whose scales are float16.
pub const G128: Entry = Entry {
    name: RecipeName::QqqG128,
    word: "qqq-g128",
    gives: "W4A8 in groups of 128",
    recipe: in_groups,
    ..CHANNEL
};

/// With rotation.
pub const ROTATED: Entry = Entry {
    name: RecipeName::QqqRot,
    word: "qqq-rot",
    source: "the QQQ repository, with arXiv 2404.00456",
    what: "rotation, then GPTQ with clipped weights",
    gives: "W4A8 per channel, or in groups of 128 (--group-size)",
    recipe: rotated,
    settings: &[
        Setting::GroupSize,
        Setting::Rotation,
        Setting::ActOrder,
        Setting::Damping,
        Setting::Text,
        Setting::Seed,
    ],
};
