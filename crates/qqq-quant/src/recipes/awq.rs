//! AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration (Lin, Tang, Tang, Yang, Chen, Wang, Xiao, Dang,
//! Gan, Han; [arXiv 2306.00978](https://arxiv.org/abs/2306.00978)).
//!
//! Weights alone are quantized, in groups, to nearest. The few channels that matter are those with large activations; their
//! weights round more exactly when they are larger. Column `j` is multiplied by `s_j = mean|X_j|^r` and the input channel
//! divided (equations 4 and 5), with the exponent of the least squared error out of r = 0, 0.05, ... 0.95. Scales are divided by
//! the root of the product of the largest and the least, so that the weights keep their size. As in the authors' code, errors
//! are those of the block's part that a site begins: attention up to o for q, k and v, the MLP up to down for gate and up,
//! the layer itself for o (where each head has its own values) and for down. Float layers come behind.
//!
//! Then each group of an output channel is clipped: of ten ratios from 1 down to 0.55, that of the least squared error of what
//! the group adds to the output (`clip::group_output`); q and k are not, as their product is what counts.
//!
//! Inputs are those of the float model. Codes are symmetric, -8 to 7, where the authors' release has zero points: scales are
//! 2 max|w| / 15.

use qqq_backend::Calibrate;
use qqq_formats::Activations;
use qqq_model::{Site, block::head_layout};

use super::{Entry, RecipeName, Setting, plain};
use crate::{
    Calibration, Clip, Recipe, Result, Transform,
    report::SmoothReport,
    site_search::{Change, SiteSearch},
    windows::{Surroundings, Workshop},
};

/// W4A16 in groups of 128.
pub const ENTRY: Entry = Entry {
    name: RecipeName::Awq,
    word: "awq",
    source: "arXiv 2306.00978",
    what: "channels with large activations get larger weights; groups are clipped by their output",
    gives: "W4A16 in groups of 128 (--group-size)",
    recipe,
    settings: &[Setting::GroupSize, Setting::Text, Setting::Seed],
};

fn recipe() -> Recipe {
    Recipe {
        name: RecipeName::Awq,
        transform: Transform::Protect,
        activations: Activations::Half,
        group_size: Some(128),
        clip: Clip::GroupOutput,
        calibration: Calibration { windows: 128, window: 512, ..Recipe::DEFAULT.calibration },
        ..plain()
    }
}

/// Exponents of the search.
const STEPS: usize = 20;
/// Least scale before all are made to keep the weights' size.
const LEAST: f32 = 1e-4;

/// `x_j^r` of mean magnitudes, divided by the root of the product of the largest and the least.
pub fn scales(means: &[f32], exponent: f64) -> Vec<f32> {
    let raw: Vec<f32> = means.iter().map(|&x| (f64::from(x).powf(exponent) as f32).max(LEAST)).collect();
    let (least, most) =
        raw.iter().fold((f32::INFINITY, 0.0f32), |(least, most), &s| (least.min(s), most.max(s)));
    let middle = (least * most).sqrt();
    raw.iter().map(|s| s / middle).collect()
}

/// All sites, but o where a channel of v feeds several of its input channels.
pub(crate) fn wanted<B: Calibrate>(around: Surroundings<'_, B>, site: Site) -> bool {
    let heads = head_layout(around.config);
    site != Site::O || heads.num_heads == heads.num_kv_heads
}

/// The scales of least loss.
///
/// # Errors
/// As [`SiteSearch::search`].
pub(crate) fn choose<B: Calibrate>(site: &SiteSearch<'_, B>, workshop: &mut Workshop<B>) -> Result<Change> {
    let means = site.mean_magnitudes()?;
    let (loss_before, loss_after, exponent) = site.search(workshop, |loss| {
        let before = loss(&scales(&means, 0.0));
        let mut best = (before, 0.0);
        for exponent in (1..STEPS).map(|i| i as f64 / STEPS as f64) {
            let after = loss(&scales(&means, exponent));
            if after < best.0 {
                best = (after, exponent);
            }
        }
        (before, best.0, best.1)
    })?;
    site.check_losses([loss_before, loss_after])?;
    let scales = scales(&means, exponent);
    let report = SmoothReport {
        site: site.name.to_owned(),
        sigma: means.iter().copied().fold(0.0, f32::max),
        strength: Some(exponent),
        smoothed_channels: scales.iter().filter(|&&s| s > 1.0).count(),
        loss_before,
        loss_after,
        curve: Vec::new(),
    };
    Ok(Change { report, scales, shift: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_keep_the_middle() {
        let means = [0.01, 4.0, 1.0, 0.25];
        assert_eq!(scales(&means, 0.0), [1.0; 4]);
        let s = scales(&means, 0.5);
        let (least, most) = (0.1f64, 2.0f64);
        for (s, x) in s.iter().zip([0.1, 2.0, 1.0, 0.5]) {
            assert!((f64::from(*s) - x / (least * most).sqrt()).abs() < 1e-6, "{s} {x}");
        }
        // A channel that is never seen has the least scale there is.
        assert!(scales(&[0.0, 1.0], 0.5).iter().all(|s| s.is_normal()));
    }
}
