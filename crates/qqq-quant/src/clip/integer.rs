//! Group scales that are small multiples of their row's channel scale: the int8 weight is then `code x integer`, exact
//! without rounding, and a GPU makes four of them with one multiply-add.

use super::{Grid, error, live};
use crate::{Clip, solve::ScaleDType};

/// Largest multiple: `-8 x 15` still fits int8.
const MOST: i32 = 15;
/// Ratios of the channel scale to the one at which the row's largest scale is [`MOST`] times it, in hundredths: each moves
/// where the scales of all groups round to.
const RATIOS: [u8; 8] = [100, 103, 97, 106, 94, 110, 90, 86];

/// Replaces each scale of `rows x k` weights (scales: `rows x (k / group_size)`) by an integer of 1 to 15 times a scale of
/// its row, such that the products are exact in `dtype`. Of a few scales for the row, the one of least error is taken, and
/// for each group the better of the two integers beside its scale. `importance` and `clip` as for
/// [`scales`](super::scales); [`Clip::None`] compares squared errors.
pub fn snap(
    weights: &[f32],
    k: usize,
    group_size: usize,
    clip: Clip,
    importance: &[f32],
    dtype: ScaleDType,
    scales: &mut [f32],
) {
    let live = live(importance);
    let (measure, importance) = match clip {
        Clip::Output => (Clip::Output, importance),
        Clip::Weight => (Clip::Weight, &live[..]),
        Clip::None | Clip::GroupOutput | Clip::Learned => (Clip::Output, &live[..]),
    };
    let groups = k / group_size;
    for (row, scales) in weights.chunks_exact(k).zip(scales.chunks_exact_mut(groups)) {
        let top = scales.iter().copied().fold(0.0, f32::max) / MOST as f32;
        let mut best = (f32::INFINITY, Vec::new());
        let mut tried = Vec::new();
        for ratio in RATIOS {
            let channel = coarse(top * f32::from(ratio) / 100.0, dtype);
            if tried.contains(&channel) {
                continue;
            }
            tried.push(channel);
            let candidate = multiples(row, group_size, importance, measure, channel, scales, best.0);
            if let Some(candidate) = candidate {
                best = candidate;
            }
        }
        // Errors that overflow compare with nothing: the plain choice is left.
        if best.1.is_empty() {
            let channel = coarse(top, dtype);
            best.1 = scales.iter().map(|s| (s / channel).round().clamp(1.0, MOST as f32) * channel).collect();
        }
        scales.copy_from_slice(&best.1);
    }
}

/// The error and the scales for one channel scale; `None` if the error is not below `limit`.
fn multiples(
    row: &[f32],
    group_size: usize,
    importance: &[f32],
    measure: Clip,
    channel: f32,
    scales: &[f32],
    limit: f32,
) -> Option<(f32, Vec<f32>)> {
    let mut total = 0.0;
    let mut out = Vec::with_capacity(scales.len());
    for ((w, importance), scale) in row.chunks(group_size).zip(importance.chunks(group_size)).zip(scales) {
        let below = ((scale / channel) as i32).clamp(1, MOST);
        let above = (below + 1).min(MOST);
        let at = |multiple: i32| {
            let scale = multiple as f32 * channel;
            (error(w, importance, scale, Grid::GROUP, measure), scale)
        };
        let (low, high) = (at(below), at(above));
        let chosen = if high.0 < low.0 { high } else { low };
        total += chosen.0;
        // Not below, or no number.
        if !matches!(total.partial_cmp(&limit), Some(std::cmp::Ordering::Less)) {
            return None;
        }
        out.push(chosen.1);
    }
    Some((total, out))
}

/// A positive scale to the nearest of which every multiple up to 16 is exact in `dtype`: with four bits less of precision.
fn coarse(scale: f32, dtype: ScaleDType) -> f32 {
    let bits = match dtype {
        ScaleDType::F32 => 20,
        ScaleDType::F16 => 7,
        ScaleDType::BF16 => 4,
    };
    let unit = 1u32 << (24 - bits);
    let rounded = f32::from_bits((scale.max(f32::MIN_POSITIVE).to_bits() + unit / 2) & !(unit - 1));
    if dtype != ScaleDType::F16 {
        return rounded;
    }
    // Below the normal numbers of binary16 its steps are 2^-24; at its end, 65504 must hold the largest multiple.
    const STEP: f32 = 1.0 / (1 << 24) as f32;
    let stepped = (rounded / STEP).round().max(1.0) * STEP;
    if rounded < 64.0 * STEP { stepped } else { rounded.min(4064.0) }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
    use proptest::prelude::*;

    use super::*;

    /// The multiples of a row's scales: their largest common scale and the integers.
    fn integers(scales: &[f32]) -> Vec<u32> {
        let top = scales.iter().copied().fold(0.0, f32::max);
        (1..=15u32)
            .map(|most| top / most as f32)
            .find_map(|channel| {
                let multiple = |s: &f32| {
                    let i = (s / channel).round();
                    (i * channel == *s && i >= 1.0).then_some(i as u32)
                };
                scales.iter().map(multiple).collect()
            })
            .expect("no common scale")
    }

    #[test]
    fn coarse_scales_have_exact_multiples() {
        for exponent in -30..=14 {
            for fraction in 0..50 {
                let scale = (1.0 + fraction as f32 / 50.0) * 2f32.powi(exponent);
                for dtype in [ScaleDType::F32, ScaleDType::F16, ScaleDType::BF16] {
                    let c = coarse(scale, dtype);
                    assert!(c > 0.0);
                    for i in 1..=16 {
                        let exact = f64::from(c) * f64::from(i);
                        let stored = match dtype {
                            ScaleDType::F32 => i as f32 * c,
                            ScaleDType::F16 => f16::from_f64(exact).to_f32(),
                            ScaleDType::BF16 => bf16::from_f64(exact).to_f32(),
                        };
                        assert_eq!(f64::from(stored), exact, "{dtype:?} {scale} {i}");
                    }
                    let bound = if dtype == ScaleDType::BF16 { 1.0 / 16.0 } else { 1.0 / 128.0 };
                    if dtype != ScaleDType::F16 || (1e-5..4000.0).contains(&scale) {
                        assert!((c / scale - 1.0).abs() <= bound, "{dtype:?} {scale} {c}");
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn scales_become_multiples_that_lose_little(
            seed in any::<u32>(), groups in 1usize..6, dtype in 0usize..3, clip in 0usize..3,
        ) {
            let (group_size, rows) = (32, 3);
            let k = groups * group_size;
            let mut state = seed;
            let mut uniform = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 24) as f32 - 0.5
            };
            let weights: Vec<f32> = (0..rows * k).map(|i| uniform() * (1 + i / 32 % 4) as f32).collect();
            let importance: Vec<f32> = (0..k).map(|_| uniform().abs() + 0.01).collect();
            let dtype = [ScaleDType::F32, ScaleDType::F16, ScaleDType::BF16][dtype];
            let clip = [Clip::None, Clip::Weight, Clip::Output][clip];
            let plain = super::super::scales(&weights, k, group_size, Grid::GROUP, clip, &importance, dtype);
            let mut snapped = plain.clone();
            snap(&weights, k, group_size, clip, &importance, dtype, &mut snapped);
            for (row, (a, b)) in snapped.chunks(groups).zip(plain.chunks(groups)).enumerate() {
                prop_assert!(integers(a).iter().all(|i| *i <= 15));
                let sum = |scales: &[f32]| -> f32 {
                    let w = weights[row * k..][..k].chunks(group_size);
                    w.zip(importance.chunks(group_size)).zip(scales)
                        .map(|((w, i), s)| error(w, i, *s, Grid::GROUP, Clip::Output)).sum()
                };
                // Groups differ by four here: scales move by an eighth at most, in bfloat16 somewhat more.
                prop_assert!(sum(a) < 1.6 * sum(b) + 1e-6, "{} {}", sum(a), sum(b));
            }
        }
    }
}
