use super::*;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Mostly small values and a few large ones.
fn heavy_tailed(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| (rng.random::<f32>() - 0.5) / (rng.random::<f32>() + 0.05)).collect()
}

/// `sum importance |w - q|^p` by the definition.
fn naive_error(w: &[f32], importance: &[f32], scale: f32, grid: Grid, power: f64) -> f64 {
    w.iter()
        .zip(importance)
        .map(|(&w, &importance)| {
            let code = (w * (1.0 / scale)).clamp(grid.low, grid.high).round_ties_even();
            f64::from(importance) * (f64::from(w) - f64::from(code) * f64::from(scale)).abs().powf(power)
        })
        .sum()
}

#[test]
fn errors_follow_their_definition() {
    for len in [1, 16, 40, 64, 129] {
        let (w, importance) =
            (heavy_tailed(len, 1), heavy_tailed(len, 2).iter().map(|v| v.abs()).collect::<Vec<_>>());
        for (grid, scale) in [(Grid::CHANNEL, 0.3), (Grid::GROUP, 0.01), (Grid::GROUP, 2.0)] {
            for (clip, power) in [(Clip::Output, 2.0), (Clip::Weight, 2.4)] {
                let got = f64::from(error(&w, &importance, scale, grid, clip));
                let want = naive_error(&w, &importance, scale, grid, power);
                assert!(
                    (got - want).abs() <= 5e-3 * want + 1e-9,
                    "{len} {scale} {clip:?}: {got} against {want}"
                );
            }
        }
    }
}

#[test]
fn all_instruction_sets_agree() {
    let (w, importance) = (heavy_tailed(200, 3), vec![0.7; 200]);
    for clip in [Clip::Weight, Clip::Output] {
        let at = |level| error_at(level, &w, &importance, 0.2, Grid::GROUP, clip).to_bits();
        assert!(SimdLevel::all().all(|level| at(level) == at(SimdLevel::PORTABLE)), "{clip:?}");
    }
}

#[test]
fn fifth_roots() {
    for i in -60..40 {
        for step in 0..50 {
            let x = 2f32.powi(i) * (1.0 + step as f32 / 50.0);
            let want = f64::from(x).powf(0.2);
            assert!((f64::from(fifth_root(x)) - want).abs() < 3e-3 * want, "{x}");
        }
    }
    assert!(fifth_root(0.0) < 1e-6);
}

#[test]
fn rounding_is_half_to_even() {
    for i in -40..=40 {
        let x = i as f32 / 4.0;
        assert_eq!(round(x), x.round_ties_even());
    }
}

#[test]
fn unclipped_scales_reach_the_largest_weight() {
    let w = [0.1, -1.4, 0.2, 0.0, 3.0, 0.0, -0.5, 1.0];
    let live = [1.0; 4];
    assert_eq!(scales(&w, 4, 4, Grid::CHANNEL, Clip::None, &live, ScaleDType::F32), [1.4 / 7.0, 3.0 / 7.0]);
    assert_eq!(
        scales(&w, 4, 2, Grid::GROUP, Clip::None, &live, ScaleDType::F32),
        [1.4 / 7.5, 0.2 / 7.5, 3.0 / 7.5, 1.0 / 7.5]
    );
}

#[test]
fn empty_groups_and_dead_channels() {
    // Group 1 of row 0 is empty; row 1 is empty; channel 3 is dead.
    let w = [1.0, 2.0, 0.0, 9.0, 0.0, 0.0, 0.0, 9.0];
    let live = [1.0, 1.0, 1.0, 0.0];
    for clip in [Clip::None, Clip::Weight, Clip::Output] {
        let s = scales(&w, 4, 2, Grid::GROUP, clip, &live, ScaleDType::F32);
        assert!(s[0] > 0.0 && s[0] <= 1.11 * 2.0 / 7.5, "{clip:?} {s:?}");
        assert_eq!(s[1..], [s[0], 1.0, 1.0], "{clip:?}");
    }
}

#[test]
fn scales_are_what_the_checkpoint_stores() {
    let w = heavy_tailed(128 * 4, 5);
    for dtype in [ScaleDType::F16, ScaleDType::BF16] {
        for s in scales(&w, 128, 32, Grid::GROUP, Clip::Output, &[1.0; 128], dtype) {
            assert_eq!(dtype.round(s), s);
        }
    }
    assert!(ScaleDType::F16.round(1e-30) > 0.0);
    assert!(ScaleDType::F16.round(1e30).is_finite());
}

proptest! {
    #[test]
    fn never_worse_than_unclipped(seed in any::<u64>(), group in prop::sample::select(vec![7usize, 32, 64, 128]), size in -20i32..20) {
        let w: Vec<f32> = heavy_tailed(2 * group, seed).iter().map(|v| v * 2f32.powi(size)).collect();
        let importance: Vec<f32> = heavy_tailed(2 * group, seed ^ 1).iter().map(|v| v * v).collect();
        for grid in [Grid::CHANNEL, Grid::GROUP] {
            for (clip, importance) in [(Clip::Weight, vec![1.0; 2 * group]), (Clip::Output, importance.clone())] {
                let plain = scales(&w, 2 * group, group, grid, Clip::None, &importance, ScaleDType::F32);
                let shrunk = scales(&w, 2 * group, group, grid, clip, &importance, ScaleDType::F32);
                for g in 0..2 {
                    let (w, importance) = (&w[g * group..][..group], &importance[g * group..][..group]);
                    let (before, after) =
                        (error(w, importance, plain[g], grid, clip), error(w, importance, shrunk[g], grid, clip));
                    prop_assert!(after <= before, "{clip:?}: {after} after {before}");
                    prop_assert!(shrunk[g] >= 0.19 * plain[g] && shrunk[g] <= 1.11 * plain[g]);
                }
            }
        }
    }
}
