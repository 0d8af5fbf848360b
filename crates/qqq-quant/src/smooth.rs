//! QQQ's adaptive smoothing: which channels of a site to scale down, and how far.
//!
//! Channel `j` is divided by `s_j = max(1, max_j / sigma, min_j / -sigma)`, so only channels beyond the threshold
//! `sigma` are touched (arXiv 2406.09904, section 3.2). [`search`] looks for the threshold with the least loss.

/// `s_j = max(1, max_j / sigma, min_j / -sigma)`.
///
/// `max` and `min` are the largest and smallest activation of each channel. `sigma` must be positive.
pub fn scales(max: &[f32], min: &[f32], sigma: f32) -> Vec<f32> {
    max.iter().zip(min).map(|(&max, &min)| (max / sigma).max(min / -sigma).max(1.0)).collect()
}

/// How far [`search`] looks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SearchOptions {
    /// Loss evaluations at most, the one without smoothing included; at least 1.
    pub evaluations: usize,
    /// Share of the evaluations that go to the coarse grid; the others refine around its best points.
    pub coarse: f64,
    /// No threshold below this share of the largest activation: scales stay below its inverse, which keeps smoothed
    /// weights and norms in the range of half precision.
    pub floor: f32,
}

impl Default for SearchOptions {
    /// 30 evaluations, two thirds of them coarse; thresholds down to 1e-4 of the largest activation.
    fn default() -> Self {
        Self { evaluations: 30, coarse: 2.0 / 3.0, floor: 1e-4 }
    }
}

/// What [`search`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct SmoothChoice {
    /// The threshold; the largest activation when smoothing does not pay.
    pub sigma: f32,
    /// What each input channel is divided by, 1 where it stays.
    pub scales: Vec<f32>,
    /// Loss with all scales 1.
    pub loss_before: f64,
    /// Loss with the scales chosen; never above `loss_before`.
    pub loss_after: f64,
    /// Evaluations of the loss.
    pub steps: usize,
    /// Thresholds that were tried, rising, with their losses, where these are finite.
    pub curve: Vec<(f32, f64)>,
}

/// Searches the threshold with the least `loss(scales)`.
///
/// The reference walks a linear grid from the largest activation downwards, thousands of steps for a site with massive
/// activations, nearly all of which change nothing but the one outlier's scale. The loss as a function of `log sigma` is
/// smooth but for rounding noise, so a logarithmic grid that is refined around its best points finds an equal optimum
/// in a few dozen evaluations. Below the smallest channel maximum a lower threshold only rescales all channels alike,
/// which per-token scales undo: the grid ends there.
///
/// A loss that is not finite counts as infinitely bad.
pub fn search(
    max: &[f32],
    min: &[f32],
    mut loss: impl FnMut(&[f32]) -> f64,
    options: &SearchOptions,
) -> SmoothChoice {
    let sizes =
        || max.iter().zip(min).map(|(&max, &min)| max.max(-min)).filter(|a| a.is_finite() && *a > 0.0);
    let top = sizes().fold(0.0f32, f32::max);
    let bottom = sizes().fold(top, f32::min).max(top * options.floor);

    let ones = vec![1.0; max.len()];
    let loss_before = loss(&ones);
    // (log sigma, loss), by rising log sigma once the grid is there.
    let mut seen: Vec<(f64, f64)> = vec![(f64::from(top).ln(), finite(loss_before))];
    let mut best = SmoothChoice {
        sigma: top,
        scales: ones,
        loss_before,
        loss_after: loss_before,
        steps: 1,
        curve: Vec::new(),
    };
    if bottom >= top {
        return best;
    }
    let budget = options.evaluations.max(1);
    let mut evaluate = |log_sigma: f64, seen: &mut Vec<(f64, f64)>| {
        let sigma = (log_sigma.exp() as f32).clamp(bottom, top);
        let scales = scales(max, min, sigma);
        let value = loss(&scales);
        best.steps += 1;
        let at = seen.partition_point(|(x, _)| *x < log_sigma);
        seen.insert(at, (log_sigma, finite(value)));
        if finite(value) < finite(best.loss_after) {
            (best.sigma, best.scales, best.loss_after) = (sigma, scales, value);
        }
    };

    let (low, high) = (f64::from(bottom).ln(), f64::from(top).ln());
    let coarse = ((budget as f64 * options.coarse) as usize).min(budget - 1);
    for i in 0..coarse {
        evaluate(low + (high - low) * i as f64 / coarse as f64, &mut seen);
    }
    let mut left = budget - 1 - coarse;
    // Each round halves the wider of the intervals beside the best point.
    while left > 0 && seen.len() > 1 {
        let mut at = 0;
        for (i, point) in seen.iter().enumerate() {
            // On equal losses the larger threshold, which touches fewer channels.
            if point.1 <= seen[at].1 {
                at = i;
            }
        }
        let below = if at > 0 { seen[at].0 - seen[at - 1].0 } else { 0.0 };
        let above = if at + 1 < seen.len() { seen[at + 1].0 - seen[at].0 } else { 0.0 };
        let x = if below >= above { seen[at].0 - below / 2.0 } else { seen[at].0 + above / 2.0 };
        if below.max(above) < 1e-3 {
            break;
        }
        evaluate(x, &mut seen);
        left -= 1;
    }
    let tried = seen.into_iter().filter(|(_, loss)| loss.is_finite());
    best.curve = tried.map(|(log_sigma, loss)| (log_sigma.exp() as f32, loss)).collect();
    best
}

fn finite(loss: f64) -> f64 {
    if loss.is_finite() { loss } else { f64::INFINITY }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A site with a massive activation: most channels near 1, one at 3000.
    fn site() -> (Vec<f32>, Vec<f32>) {
        let mut max: Vec<f32> = (0..64).map(|j| 0.5 + (j % 7) as f32 / 5.0).collect();
        let min: Vec<f32> = max.iter().map(|m| -0.8 * m).collect();
        max[5] = 3000.0;
        max[9] = 40.0;
        (max, min)
    }

    #[test]
    fn scales_touch_only_channels_beyond_the_threshold() {
        assert_eq!(scales(&[1.0, 4.0, 0.5], &[-1.0, -2.0, -6.0], 2.0), [1.0, 2.0, 3.0]);
    }

    #[test]
    fn finds_the_optimum_of_a_smooth_loss() {
        let (max, min) = site();
        for target in [2500.0f32, 90.0, 12.0, 3.0, 1.2] {
            // Smooth in log sigma, which the loss recovers from the scale of the outlier.
            let loss = |s: &[f32]| ((3000.0 / f64::from(s[5])) / f64::from(target)).ln().powi(2) + 0.3;
            let found = search(&max, &min, loss, &SearchOptions::default());
            assert!(found.loss_after - 0.3 < 1e-3, "target {target}: {found:?}");
            assert!(found.steps <= 30);
            assert_eq!(found.scales, scales(&max, &min, found.sigma));
        }
    }

    #[test]
    fn keeps_the_site_when_smoothing_does_not_pay() {
        let (max, min) = site();
        let found = search(&max, &min, |s| s.iter().map(|&s| f64::from(s)).sum(), &SearchOptions::default());
        assert_eq!((found.sigma, found.loss_after), (3000.0, found.loss_before));
        assert!(found.scales.iter().all(|&s| s == 1.0));
    }

    #[test]
    fn respects_floor_and_budget() {
        let (max, min) = site();
        let options = SearchOptions { evaluations: 12, coarse: 0.5, floor: 0.01 };
        let mut calls = 0;
        let found = search(
            &max,
            &min,
            |s| {
                calls += 1;
                assert!(s.iter().all(|&s| (1.0..=100.1).contains(&s)));
                -f64::from(s[5])
            },
            &options,
        );
        assert_eq!((found.steps, calls), (12, 12));
        assert!((found.sigma - 30.0).abs() < 0.1, "{}", found.sigma);
    }

    #[test]
    fn degenerate_sites() {
        let zero = search(&[0.0; 4], &[0.0; 4], |_| 1.0, &SearchOptions::default());
        assert_eq!((zero.scales, zero.steps), (vec![1.0; 4], 1));
        let flat = search(&[2.0; 4], &[-1.0; 4], |_| 1.0, &SearchOptions::default());
        assert_eq!((flat.scales, flat.steps), (vec![1.0; 4], 1));
        // A loss that breaks down everywhere but without smoothing.
        let (max, min) = site();
        let broken = search(
            &max,
            &min,
            |s| if s.iter().all(|&s| s == 1.0) { 1.0 } else { f64::NAN },
            &SearchOptions::default(),
        );
        assert_eq!((broken.sigma, broken.loss_after), (3000.0, 1.0));
    }

    proptest! {
        #[test]
        fn never_worse_and_never_out_of_range(
            max in prop::collection::vec(0.0f32..1e4, 1..40),
            evaluations in 1usize..50,
            seed in any::<u32>(),
        ) {
            let min: Vec<f32> = max.iter().map(|m| -m / 2.0).collect();
            // An arbitrary, rough loss.
            let loss = |s: &[f32]| s.iter().map(|&s| f64::from(s.to_bits() ^ seed) % 1000.0).sum::<f64>();
            let found = search(&max, &min, loss, &SearchOptions { evaluations, ..SearchOptions::default() });
            prop_assert!(found.loss_after <= found.loss_before);
            prop_assert!(found.steps <= evaluations);
            prop_assert!(found.scales.iter().all(|s| *s >= 1.0 && s.is_finite()));
            prop_assert!(max.iter().zip(&found.scales).all(|(m, s)| m / s <= found.sigma * 1.000_001));
        }
    }
}
