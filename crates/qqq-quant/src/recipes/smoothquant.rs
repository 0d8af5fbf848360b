//! SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models (Xiao, Lin, Seznec, Wu, Demouth,
//! Han; [arXiv 2211.10438](https://arxiv.org/abs/2211.10438)).
//!
//! Activations have channels with outliers, weights have none. Channel `j` of a layer's input is divided by
//! `s_j = max|X_j|^a / max|W_j|^(1-a)`, and column `j` of its weights multiplied (equation 4): the migration strength `a` says how
//! much of the outliers the weights take over. `max|X_j|` is taken over the calibration windows in the float model, `max|W_j|`
//! over all layers that take the input. It is done where a norm makes the input, which the division is absorbed into: before q, k
//! and v, and before gate and up (section 4; figure 6). Weights have 8 bits per channel and activations 8 bits per token, all
//! rounded to nearest.
//!
//! The paper takes a = 0.5 for most models and more where outliers are larger; or `a` is searched for each site, by the
//! squared error of what comes of it: attention, or the gated activation. A channel whose input is always 0 stays as it is.

use qqq_backend::Calibrate;
use qqq_formats::CodeBits;
use qqq_model::Site;

use super::{Entry, RecipeName, Setting, plain};
use crate::{
    Calibration, Recipe, Result, Transform,
    report::SmoothReport,
    site_search::{Change, SiteSearch},
    windows::Workshop,
};

/// W8A8.
pub const ENTRY: Entry = Entry {
    name: RecipeName::SmoothQuant,
    word: "smoothquant",
    source: "arXiv 2211.10438",
    what: "outliers of activations migrate into the weights behind norms",
    gives: "W8A8 per channel",
    recipe,
    settings: &[Setting::MigrationStrength, Setting::Text, Setting::Seed],
};

fn recipe() -> Recipe {
    Recipe {
        name: RecipeName::SmoothQuant,
        transform: Transform::Migrate,
        migration_strength: Some(0.5),
        bits: CodeBits::Eight,
        calibration: Calibration { windows: 512, window: 512, ..Recipe::DEFAULT.calibration },
        ..plain()
    }
}

/// Least magnitude of weights, and least scale.
const LEAST: f32 = 1e-5;
/// Steps of the search from strength 0 to 1.
const STEPS: usize = 20;

/// `s_j = x_j^a / w_j^(1-a)` of the largest magnitudes of activations and weights; 1 where `x_j` is 0.
pub fn scales(activations: &[f32], weights: &[f32], strength: f64) -> Vec<f32> {
    let of = |(&x, &w): (&f32, &f32)| match x > 0.0 {
        true => {
            let w = f64::from(w.max(LEAST));
            ((f64::from(x).powf(strength) / w.powf(1.0 - strength)) as f32).max(LEAST)
        }
        false => 1.0,
    };
    activations.iter().zip(weights).map(of).collect()
}

/// Behind norms.
pub(crate) fn wanted(site: Site) -> bool {
    matches!(site, Site::Qkv | Site::GateUp)
}

/// The scales of a site at a strength, or at that of least loss.
///
/// # Errors
/// As [`SiteSearch::search`].
pub(crate) fn choose<B: Calibrate>(
    site: &SiteSearch<'_, B>,
    workshop: &mut Workshop<B>,
    strength: Option<f64>,
) -> Result<Change> {
    let (activations, weights) = (site.largest()?, site.largest_weights()?);
    let strengths: Vec<f64> = match strength {
        Some(strength) => vec![strength],
        None => (0..=STEPS).map(|i| i as f64 / STEPS as f64).collect(),
    };
    let (loss_before, best) = site.search(workshop, |loss| {
        let before = loss(&vec![1.0; activations.len()]);
        let mut best: Option<(f64, f64, Vec<f32>)> = None;
        for strength in strengths {
            let scales = scales(&activations, &weights, strength);
            let after = loss(&scales);
            if best.as_ref().is_none_or(|(least, ..)| after < *least) {
                best = Some((after, strength, scales));
            }
        }
        (before, best)
    })?;
    let (loss_after, strength, scales) = best.unwrap_or((loss_before, 0.0, vec![1.0; activations.len()]));
    site.check_losses([loss_before, loss_after])?;
    let report = SmoothReport {
        site: site.name.to_owned(),
        sigma: activations.iter().copied().fold(0.0, f32::max),
        strength: Some(strength),
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
    fn difficulty_is_shared_at_half_strength() {
        let (x, w) = ([8.0, 0.5, 2.0, 0.0], [0.5, 2.0, 0.0, 1.0]);
        let s = scales(&x, &w, 0.5);
        // Figure 5: afterwards activations and weights of a channel reach equally far.
        for j in 0..2 {
            assert!((x[j] / s[j] - w[j] * s[j]).abs() < 1e-6, "{j}: {s:?}");
        }
        assert!((f64::from(s[2]) - (2.0f64 / 1e-5).sqrt()).abs() < 0.01, "{s:?}");
        assert_eq!(s[3], 1.0, "never seen");
        let all = scales(&x, &w, 1.0);
        assert_eq!(all[..3], x[..3], "all of it");
        assert_eq!(scales(&x, &w, 0.0)[..2], [2.0, 0.5], "none of it");
    }
}
