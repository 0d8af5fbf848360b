use proptest::prelude::*;
use qqq_backend::solve::RIDGE;

use super::super::{Correction, SolveOptions, Solved, solve, solve_corrected};
use crate::{Clip, GroupScales};

/// Tokens in both models, and their moments, by the definitions.
struct Tokens {
    k: usize,
    /// Of the quantized and of the float model, a token a row.
    x: Vec<f64>,
    y: Vec<f64>,
    hessian: Vec<f32>,
    cross: Vec<f32>,
    square: Vec<f32>,
}

impl Tokens {
    fn new(k: usize, count: usize, seed: u64) -> Self {
        let values = |seed| qqq_testing::values(count * k, seed).into_iter().map(f64::from);
        // Channels of different size that hang together, and deviations that hang together with them.
        let common = qqq_testing::values(count, seed + 1);
        let y: Vec<f64> = values(seed)
            .enumerate()
            .map(|(i, v)| (v + f64::from(common[i / k])) * (1.0 + (i % k % 5) as f64))
            .collect();
        let x: Vec<f64> = values(seed + 2)
            .enumerate()
            .map(|(i, v)| 0.9 * y[i] + 0.2 * y[i / k * k + (i + 1) % k] + 0.3 * v)
            .collect();
        let d: Vec<f64> = y.iter().zip(&x).map(|(y, x)| y - x).collect();
        let moment = |a: &[f64], b: &[f64]| {
            let mut m = vec![0.0; k * k];
            for (a, b) in a.chunks_exact(k).zip(b.chunks_exact(k)) {
                for i in 0..k {
                    for j in 0..k {
                        m[i * k + j] += 2.0 / count as f64 * a[i] * b[j];
                    }
                }
            }
            m.into_iter().map(|v| v as f32).collect::<Vec<f32>>()
        };
        Self { k, hessian: moment(&x, &x), cross: moment(&x, &d), square: moment(&d, &d), x, y }
    }

    fn correction(&self, strength: f64) -> Correction<'_> {
        Correction { cross: &self.cross, square: &self.square, strength }
    }

    fn moved(&self, weights: &[f32], strength: f64) -> Vec<f32> {
        let diagonal: Vec<f32> = self.hessian.iter().step_by(self.k + 1).copied().collect();
        self.correction(strength).moved(weights, &self.hessian, &diagonal).unwrap()
    }

    /// `sum (w y - q x)^2 / sum (w y)^2` over tokens and rows.
    fn loss(&self, w: &[f32], q: &[f32]) -> f64 {
        let dot = |w: &[f32], x: &[f64]| w.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum::<f64>();
        let (mut error, mut energy) = (0.0, 0.0);
        for (w, q) in w.chunks_exact(self.k).zip(q.chunks_exact(self.k)) {
            for (x, y) in self.x.chunks_exact(self.k).zip(self.y.chunks_exact(self.k)) {
                let output = dot(w, y);
                error += (output - dot(q, x)).powi(2);
                energy += output.powi(2);
            }
        }
        error / energy
    }
}

/// The step from `w` to the minimum of `sum (w y - v x)^2 2/n + ridge |v - w|^2` over `v`, by Gaussian elimination of the
/// normal equations in f64, straight from the tokens.
fn ridge_regression(tokens: &Tokens, w: &[f32]) -> Vec<f64> {
    let k = tokens.k;
    let count = tokens.x.len() / k;
    let mut a = vec![0.0; k * k];
    let mut b = vec![0.0; k];
    for (x, y) in tokens.x.chunks_exact(k).zip(tokens.y.chunks_exact(k)) {
        let rest: f64 = w.iter().zip(y.iter().zip(x)).map(|(w, (y, x))| f64::from(*w) * (y - x)).sum();
        for i in 0..k {
            b[i] += 2.0 / count as f64 * rest * x[i];
            for j in 0..k {
                a[i * k + j] += 2.0 / count as f64 * x[i] * x[j];
            }
        }
    }
    let mean = (0..k).map(|i| a[i * k + i]).sum::<f64>() / k as f64;
    (0..k).for_each(|i| a[i * k + i] += RIDGE * mean);
    for p in 0..k {
        for i in p + 1..k {
            let f = a[i * k + p] / a[p * k + p];
            (p..k).for_each(|j| a[i * k + j] -= f * a[p * k + j]);
            b[i] -= f * b[p];
        }
    }
    for p in (0..k).rev() {
        let known: f64 = (p + 1..k).map(|j| a[p * k + j] * b[j]).sum();
        b[p] = (b[p] - known) / a[p * k + p];
    }
    b
}

#[test]
fn weights_move_as_ridge_regression_has_it() {
    // More rows than one task has.
    for (n, k, strength) in [(3, 8, 1.0), (130, 24, 0.3), (1, 40, 0.75)] {
        let tokens = Tokens::new(k, 500, k as u64);
        let w = qqq_testing::values(n * k, 77);
        let moved = tokens.moved(&w, strength);
        for (row, (w, moved)) in w.chunks_exact(k).zip(moved.chunks_exact(k)).enumerate() {
            let steps = ridge_regression(&tokens, w);
            assert!(steps.iter().any(|s| s.abs() > 0.02), "nothing moves: {steps:?}");
            for (j, ((w, moved), step)) in w.iter().zip(moved).zip(steps).enumerate() {
                let want = f64::from(*w) + strength * step;
                assert!((f64::from(*moved) - want).abs() < 2e-5, "[{row}, {j}] of {k}: {moved}, not {want}");
            }
        }
    }
}

#[test]
fn losses_are_those_against_the_output_of_the_float_model() {
    let (n, k) = (100, 32);
    let tokens = Tokens::new(k, 400, 5);
    let w = qqq_testing::values(n * k, 6);
    for (strength, compensate, group_size) in
        [(0.0, true, None), (1.0, true, None), (0.5, true, Some(16)), (1.0, false, Some(16))]
    {
        let options = SolveOptions { compensate, group_size, clip: Clip::Output, ..SolveOptions::default() };
        let correction = Some(tokens.correction(strength));
        let solved = solve_corrected("layer", &w, n, k, Some(&tokens.hessian), correction, &options).unwrap();
        let want = tokens.loss(&w, &solved.weight.dequantize());
        assert!((solved.loss / want - 1.0).abs() < 1e-3, "{} instead of {want}", solved.loss);
        if compensate {
            assert!(solved.loss < solved.loss_nearest, "{solved:?}");
        }
    }
}

#[test]
fn correction_comes_nearer_to_the_float_model() {
    let (n, k) = (64, 32);
    let tokens = Tokens::new(k, 400, 8);
    let w = qqq_testing::values(n * k, 9);
    let loss = |correction| {
        let options = SolveOptions::default();
        let solved = solve_corrected("layer", &w, n, k, Some(&tokens.hessian), correction, &options).unwrap();
        tokens.loss(&w, &solved.weight.dequantize())
    };
    let [none, half, full] = [0.0, 0.5, 1.0].map(|strength| loss(Some(tokens.correction(strength))));
    assert_eq!(none, loss(None));
    assert!(half < 0.7 * none && full < 0.7 * half, "{none} {half} {full}");
}

#[test]
fn channels_that_are_always_zero_stay() {
    let k = 8;
    let mut tokens = Tokens::new(k, 300, 2);
    for j in 0..k {
        (tokens.hessian[3 * k + j], tokens.hessian[j * k + 3], tokens.cross[3 * k + j]) = (0.0, 0.0, 0.0);
    }
    let w = qqq_testing::values(2 * k, 3);
    let moved = tokens.moved(&w, 1.0);
    assert!(moved[3] == w[3] && moved[k + 3] == w[k + 3]);
    assert!((0..k).filter(|j| *j != 3).all(|j| moved[j] != w[j]), "{w:?} {moved:?}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let tokens = Tokens::new(8, 50, 1);
    let w = qqq_testing::values(16, 1);
    let error = |correction: Correction<'_>, hessian: Option<&[f32]>| {
        let options = SolveOptions { compensate: false, ..SolveOptions::default() };
        solve_corrected("layer", &w, 2, 8, hessian, Some(correction), &options).unwrap_err().to_string()
    };
    let good = tokens.correction(1.0);
    let hessian = Some(tokens.hessian.as_slice());
    assert!(error(good, None).contains("there is none"));
    assert!(error(Correction { cross: &tokens.cross[1..], ..good }, hessian).contains("not 8 x 8"));
    // With inputs so small the second makes weights beyond float32.
    let small: Vec<f32> = tokens.hessian.iter().map(|h| 1e-3 * h).collect();
    for (value, says) in [(f32::NAN, "[1, 1] is NaN"), (3e38, "correct less")] {
        let mut cross = tokens.cross.clone();
        cross[9] = value;
        let said = error(Correction { cross: &cross, ..good }, Some(&small));
        assert!(said.contains(says), "{said}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn strength_0_gives_the_bytes_of_no_correction(
        seed in any::<u64>(), n in 1usize..110, groups in 1usize..4, per_channel: bool, compensate: bool,
        clip in prop_oneof![Just(Clip::None), Just(Clip::Weight), Just(Clip::Output)], integer: bool,
    ) {
        let k = 16 * groups;
        let tokens = Tokens::new(k, 60, seed);
        let w = qqq_testing::values(n * k, seed ^ 1);
        let options = SolveOptions {
            group_size: (!per_channel).then_some(16),
            group_scales: if integer { GroupScales::Integer } else { GroupScales::Half },
            compensate,
            clip,
            ..SolveOptions::default()
        };
        let hessian = Some(tokens.hessian.as_slice());
        let Solved { weight: plain, .. } = solve("layer", &w, n, k, hessian, &options).unwrap();
        let correction = Some(tokens.correction(0.0));
        let Solved { weight, .. } = solve_corrected("layer", &w, n, k, hessian, correction, &options).unwrap();
        prop_assert!(weight == plain);
    }
}
