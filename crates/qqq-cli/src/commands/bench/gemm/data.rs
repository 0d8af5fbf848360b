//! Random data that looks like a model's.

use half::f16;
use qqq_backend::pool::parallel_chunks_mut;
use qqq_formats::{CodeBits, QuantizedWeight, Scales};

/// A number that is nearly normally distributed (the sum of eight uniform bytes), from a counter.
pub(super) fn normal(seed: u64, index: usize) -> f32 {
    // splitmix64
    let mut z = seed
        .wrapping_mul(0xD134_2543_DE82_EF95)
        .wrapping_add((index as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    let sum: u32 = z.to_le_bytes().iter().map(|b| u32::from(*b)).sum();
    // Mean 8 * 127.5, variance 8 * (256^2 - 1) / 12.
    (sum as f32 - 1020.0) / 209.0
}

/// A uniform number in `[0, 1)`.
pub(super) fn uniform(seed: u64, index: usize) -> f32 {
    let z =
        (seed ^ 0xA076_1D64_78BD_642F).wrapping_add((index as u64 + 1).wrapping_mul(0xE703_7ED1_A0B4_28DB));
    let z = (z ^ (z >> 32)).wrapping_mul(0x8EBC_6AF0_9C88_C6E3);
    (z >> 40) as f32 / (1u64 << 24) as f32
}

/// `count` normal numbers as integers, the largest expected magnitude at `limit`.
pub(super) fn normal_integers(seed: u64, count: usize, limit: i8) -> Vec<i8> {
    let mut out = vec![0i8; count];
    // The largest of some ten thousand normal numbers is about four standard deviations.
    let step = f32::from(limit) / 4.2;
    parallel_chunks_mut(&mut out, 1 << 16, |chunk, values| {
        for (i, v) in values.iter_mut().enumerate() {
            let x = normal(seed, (chunk << 16) + i) * step;
            *v = x.round_ties_even().clamp(-f32::from(limit), f32::from(limit)) as i8;
        }
    });
    out
}

/// A 4-bit weight with random codes and scales; `group` is the group size, and whether its scales are integers.
pub(super) fn weight(seed: u64, n: usize, k: usize, group: Option<(usize, bool)>) -> QuantizedWeight {
    let channel: Vec<f32> = (0..n).map(|i| 1e-5 + 1e-4 * uniform(seed, i)).collect();
    let scales = match group {
        None => Scales::PerChannel(channel),
        Some((group_size, integer)) => {
            let scale = |i| {
                let s = 1.0 + 15.0 * uniform(seed + 1, i);
                f16::from_f32(if integer { s.round() } else { s })
            };
            Scales::PerGroup { group_size, channel, group: (0..n * (k / group_size)).map(scale).collect() }
        }
    };
    QuantizedWeight {
        bits: CodeBits::Four,
        out_features: n,
        in_features: k,
        codes: normal_integers(seed + 2, n * k, 7),
        scales,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_numbers_have_mean_zero_and_variance_one() {
        let n = 100_000;
        let (sum, squares) = (0..n).fold((0.0, 0.0), |(s, q), i| {
            let x = f64::from(normal(1, i));
            (s + x, q + x * x)
        });
        assert!(
            (sum / f64::from(n as u32)).abs() < 0.02 && (squares / f64::from(n as u32) - 1.0).abs() < 0.02
        );
    }

    #[test]
    fn weights_are_valid() {
        for group in [None, Some((64, true)), Some((128, false))] {
            weight(3, 32, 256, group).check("w").unwrap();
        }
    }
}
