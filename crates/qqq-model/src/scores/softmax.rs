//! Sums over a row of logits: negative log-likelihood, KL divergence, the likeliest token.
//!
//! Rows are long (the vocabulary), so the loops are written to be vectorised: `exp` is a polynomial in f32, and sums
//! run in f32 over [`LANES`] lanes of a [`BLOCK`] and in f64 beyond. Nothing is fused: every instruction set gives the same
//! bits.

use qqq_backend::{
    PairScore,
    simd::{SimdLevel, exp, multiversion},
};

const LANES: usize = 16;
const BLOCK: usize = 1024;

multiversion! {
    /// Largest value. NaN is not seen here; the sums of [`log_sum_exp`] become NaN instead.
    fn max(x: &[f32]) -> f32 {
        let (chunks, rest) = x.as_chunks::<LANES>();
        let mut lanes = [f32::NEG_INFINITY; LANES];
        for chunk in chunks {
            for (m, &v) in lanes.iter_mut().zip(chunk) {
                *m = if v > *m { v } else { *m };
            }
        }
        lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m })
    }
}

/// Sum of `f(x_i, y_i)` over two rows of one length.
#[inline(always)]
fn sum2(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> f64 {
    let mut total = 0.0;
    for (x, y) in x.chunks(BLOCK).zip(y.chunks(BLOCK)) {
        let ((xs, x_rest), (ys, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
        let mut lanes = [0f32; LANES];
        for (x, y) in xs.iter().zip(ys) {
            for (sum, (&x, &y)) in lanes.iter_mut().zip(x.iter().zip(y)) {
                *sum += f(x, y);
            }
        }
        total += lanes.iter().map(|&v| f64::from(v)).sum::<f64>();
        total += x_rest.iter().zip(y_rest).map(|(&x, &y)| f64::from(f(x, y))).sum::<f64>();
    }
    total
}

multiversion! {
    /// `sum(exp(x - max))`; not finite if a logit is not (the exponential of -infinity would be 0; 0 * v is 0 for every
    /// finite v).
    fn sum_exp(x: &[f32], max: f32) -> f64 {
        sum2(x, x, |v, _| exp::<false>(v - max) + 0.0 * v)
    }
}

multiversion! {
    /// `sum(exp(a) (a - b))`, of rows whose largest values are subtracted first.
    fn sum_weighted(a: &[f32], b: &[f32], max_a: f32, max_b: f32) -> f64 {
        sum2(a, b, |a, b| {
            let (a, b) = (a - max_a, b - max_b);
            exp::<false>(a) * (a - b)
        })
    }
}

/// The largest logit and `ln(sum(exp(x - max)))`.
fn log_sum_exp(level: SimdLevel, x: &[f32]) -> (f32, f64) {
    let max = max(level, x);
    (max, sum_exp(level, x, max).ln())
}

/// Negative log-likelihood of `target` under a row of logits, nats; not finite if a logit is not.
pub fn score(logits: &[f32], target: u32) -> f64 {
    let (max, lse) = log_sum_exp(SimdLevel::detect(), logits);
    lse - f64::from(logits[target as usize] - max)
}

/// Compares two rows of logits of one length.
pub fn compare(baseline: &[f32], model: &[f32], target: u32) -> PairScore {
    let level = SimdLevel::detect();
    let (max_p, lse_p) = log_sum_exp(level, baseline);
    let (max_q, lse_q) = log_sum_exp(level, model);
    let t = target as usize;
    // sum p (ln p - ln q), with ln p = (a - max_p) - lse_p. Equal rows give exactly 0.
    let kl = sum_weighted(level, baseline, model, max_p, max_q) / lse_p.exp() - (lse_p - lse_q);
    let first = |x: &[f32], max: f32| x.iter().position(|&v| v == max);
    PairScore {
        baseline_nll: lse_p - f64::from(baseline[t] - max_p),
        model_nll: lse_q - f64::from(model[t] - max_q),
        // Rounding may leave -1e-8 where the true value is 0 or just above it.
        kl: if kl < 0.0 { 0.0 } else { kl },
        agree: first(baseline, max_p) == first(model, max_q),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Deterministic values in `[-scale, scale]`.
    fn values(n: usize, scale: f32, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        (0..n)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * scale
            })
            .collect()
    }

    fn log_softmax(x: &[f32]) -> Vec<f64> {
        let max = x.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(f64::from(v)));
        let sum: f64 = x.iter().map(|&v| (f64::from(v) - max).exp()).sum();
        x.iter().map(|&v| f64::from(v) - max - sum.ln()).collect()
    }

    #[test]
    fn every_level_gives_the_same_bits() {
        let (a, b) = (values(5000, 30.0, 8), values(5000, 30.0, 9));
        let bits = |level| {
            let (max, lse) = log_sum_exp(level, &a);
            (lse.to_bits(), sum_weighted(level, &a, &b, max, max).to_bits())
        };
        for level in SimdLevel::all() {
            assert_eq!(bits(level), bits(SimdLevel::PORTABLE), "{level:?}");
        }
    }

    #[test]
    fn scores_match_the_definition() {
        for (n, scale) in [(1, 1.0), (7, 3.0), (100, 20.0), (5000, 8.0), (49_152, 15.0)] {
            let (a, b) = (values(n, scale, 1), values(n, scale, 2));
            let (p, q) = (log_softmax(&a), log_softmax(&b));
            let kl: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
            let target = (n / 2) as u32;
            let pair = compare(&a, &b, target);
            assert!((score(&a, target) + p[n / 2]).abs() < 2e-6 * scale as f64);
            assert!((pair.baseline_nll + p[n / 2]).abs() < 2e-6 * scale as f64);
            assert!((pair.model_nll + q[n / 2]).abs() < 2e-6 * scale as f64);
            assert!((pair.kl - kl).abs() < 2e-6 * scale as f64, "{} {kl}", pair.kl);
        }
    }

    #[test]
    fn small_divergences_are_resolved() {
        // A disturbance of 1e-2 gives KL near 0.5e-4 times the variance.
        let a = values(5000, 10.0, 3);
        let b: Vec<f32> = a.iter().zip(values(5000, 1e-2, 4)).map(|(a, e)| a + e).collect();
        let (p, q) = (log_softmax(&a), log_softmax(&b));
        let kl: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
        let got = compare(&a, &b, 0).kl;
        assert!(kl > 1e-6 && (got - kl).abs() < 0.01 * kl + 1e-7, "{got} {kl}");
    }

    #[test]
    fn a_row_has_no_divergence_from_itself() {
        let a = values(3000, 30.0, 5);
        let same = compare(&a, &a, 17);
        assert_eq!((same.kl, same.agree), (0.0, true));
        assert_eq!(same.baseline_nll, same.model_nll);
        // A constant added to all logits changes nothing.
        let shifted: Vec<f32> = a.iter().map(|v| v + 4.0).collect();
        assert!(compare(&a, &shifted, 17).kl < 1e-6);
    }

    #[test]
    fn uniform_logits_give_the_logarithm_of_the_vocabulary() {
        for n in [2, 1000, 49_152] {
            assert!((score(&vec![3.5; n], 1) - (n as f64).ln()).abs() < 1e-9);
        }
    }

    #[test]
    fn ties_go_to_the_first_token() {
        assert!(compare(&[1.0, 1.0, 0.0], &[2.0, 1.0, 0.0], 0).agree);
        assert!(!compare(&[1.0, 1.0, 0.0], &[1.0, 2.0, 0.0], 0).agree);
    }

    #[test]
    fn what_is_not_finite_stays_visible() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 20, 1030] {
                let mut a = values(1031, 1.0, 6);
                a[at] = bad;
                assert!(!score(&a, 5).is_finite(), "{bad} at {at}");
                assert!(!compare(&a, &values(1031, 1.0, 7), 5).is_finite());
                assert!(!compare(&values(1031, 1.0, 7), &a, 5).is_finite());
            }
        }
    }
}
