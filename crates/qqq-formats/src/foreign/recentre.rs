//! From unsigned codes and zero points to signed codes, where nothing is lost.

use half::{bf16, f16};

use super::RawWeight;
use crate::{FormatError, Int4Weight, Result, WeightData, int4};

/// What had to be done to a weight to give it signed codes and no zero points. Its float weights stay the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Groups of all output channels.
    pub groups: u64,
    /// Groups whose zero point was not 8, and whose codes fit around it.
    pub recentred: u64,
    /// Groups of which codes and scale have changed their signs: the scale was negative, or the codes fit only so.
    pub flipped: u64,
    /// Groups that keep a negative scale, since they use the code -8, which has no opposite.
    pub negative: u64,
}

impl Changes {
    /// Those of two weights together.
    pub fn and(self, other: Self) -> Self {
        Self {
            groups: self.groups + other.groups,
            recentred: self.recentred + other.recentred,
            flipped: self.flipped + other.flipped,
            negative: self.negative + other.negative,
        }
    }
}

/// The signed codes of a weight: `u - z`, or `z - u` with the opposite scale, in -8 to 7.
///
/// A positive scale is preferred; where both signs fit and the scale is zero, codes stay.
///
/// # Errors
/// Groups whose codes lie farther from their zero point than signed 4-bit codes reach, with their number.
pub(super) fn recentre(raw: RawWeight, name: &str) -> Result<(Int4Weight, Changes)> {
    let RawWeight { n, k, group_size, codes: unsigned, zeros, mut scales } = raw;
    let width = k / int4::groups(k, group_size).max(1);
    let mut codes = vec![0i8; n * k];
    let mut changes = Changes { groups: zeros.len() as u64, ..Changes::default() };
    let mut lost: Option<(usize, u8, u8, u8)> = None;
    let mut count = 0u64;
    for (i, ((from, to), zero)) in
        unsigned.chunks_exact(width).zip(codes.chunks_exact_mut(width)).zip(&zeros).enumerate()
    {
        let (low, high) = from.iter().fold((15, 0), |(low, high), u| (u.min(&low).to_owned(), *u.max(&high)));
        let (down, up) = (i16::from(low) - i16::from(*zero), i16::from(high) - i16::from(*zero));
        let (plain, opposite) = (down >= -8 && up <= 7, down >= -7 && up <= 8);
        let negative = is_negative(&scales, i);
        let flip = match (plain, opposite) {
            (false, false) => {
                count += 1;
                lost = lost.or(Some((i, *zero, low, high)));
                continue;
            }
            (true, true) => negative,
            (_, opposite) => opposite,
        };
        if flip {
            negate(&mut scales, i);
        }
        changes.recentred += u64::from(*zero != 8);
        changes.flipped += u64::from(flip);
        changes.negative += u64::from(negative != flip);
        let (zero, sign) = (*zero as i8, if flip { -1 } else { 1 });
        for (code, u) in to.iter_mut().zip(from) {
            // Within -15..=15, and in the range of a code as was looked at.
            *code = sign * (*u as i8 - zero);
        }
    }
    if let Some((i, zero, low, high)) = lost {
        let per_row = zeros.len() / n.max(1);
        return Err(FormatError::Unsupported(format!(
            "{name}: {count} of {} groups have codes too far from their zero points for signed 4-bit codes (-8 to 7), the \
             first of them group {} of output channel {}: zero point {zero}, codes {low} to {high}. Asymmetric weights like \
             these cannot be converted without a change: quantize the float model instead, or take a symmetric checkpoint \
             of it",
            zeros.len(),
            i % per_row.max(1),
            i / per_row.max(1),
        )));
    }
    Ok((Int4Weight { out_features: n, in_features: k, codes, group_size, scales }, changes))
}

fn is_negative(scales: &WeightData, i: usize) -> bool {
    match scales {
        WeightData::F32(v) => v[i] < 0.0,
        WeightData::F16(v) => v[i] < f16::ZERO,
        WeightData::BF16(v) => v[i] < bf16::ZERO,
    }
}

fn negate(scales: &mut WeightData, i: usize) {
    match scales {
        WeightData::F32(v) => v[i] = -v[i],
        WeightData::F16(v) => v[i] = -v[i],
        WeightData::BF16(v) => v[i] = -v[i],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One output channel of groups of 32, each of which has these codes (over and over), zero point and scale.
    fn raw(groups: &[(&[u8], u8, f32)]) -> RawWeight {
        RawWeight {
            n: 1,
            k: 32 * groups.len(),
            group_size: Some(32),
            codes: groups.iter().flat_map(|(codes, ..)| codes.iter().cycle().take(32).copied()).collect(),
            zeros: groups.iter().map(|(_, zero, _)| *zero).collect(),
            scales: WeightData::F16(groups.iter().map(|(.., s)| f16::from_f32(*s)).collect()),
        }
    }

    /// `(u - z) * s`.
    fn float(raw: &RawWeight) -> Vec<f32> {
        let scales = raw.scales.clone().into_f32();
        let weight = |(i, u): (usize, &u8)| (f32::from(*u) - f32::from(raw.zeros[i / 32])) * scales[i / 32];
        raw.codes.iter().enumerate().map(weight).collect()
    }

    #[test]
    fn what_fits_keeps_its_weights() {
        // Codes, zero point, scale; groups recentred, flipped, negative; the scale afterwards.
        type Case = (&'static [u8], u8, f32, [u64; 3], f32);
        let cases: [Case; 9] = [
            (&[0, 15, 8], 8, 0.5, [0, 0, 0], 0.5),
            (&[1, 15, 8], 8, -0.5, [0, 1, 0], 0.5),
            // -8 has no opposite: the scale stays negative.
            (&[0, 15, 8], 8, -0.5, [0, 0, 1], -0.5),
            (&[0, 7], 0, 0.5, [1, 0, 0], 0.5),
            (&[7, 15], 15, 0.5, [1, 0, 0], 0.5),
            // Up to 8 above the zero point: only with the opposite signs.
            (&[0, 15], 7, 0.5, [1, 1, 1], -0.5),
            (&[0, 15], 7, -0.5, [1, 1, 0], 0.5),
            (&[3, 11], 3, 0.25, [1, 1, 1], -0.25),
            (&[5], 5, -0.25, [1, 1, 0], 0.25),
        ];
        for (codes, zero, scale, [recentred, flipped, negative], after) in cases {
            let raw = raw(&[(codes, zero, scale)]);
            let expected = float(&raw);
            let (weight, changes) = recentre(raw, "layer").unwrap();
            assert_eq!(weight.dequantize(), expected, "{codes:?} {zero} {scale}");
            assert_eq!(
                changes,
                Changes { groups: 1, recentred, flipped, negative },
                "{codes:?} {zero} {scale}"
            );
            assert_eq!(weight.scales.into_f32(), [after]);
            assert!(weight.codes.iter().all(|c| (-8..=7).contains(c)));
        }
    }

    #[test]
    fn what_does_not_is_refused_with_its_place() {
        for (codes, zero) in [([0u8, 9], 0u8), ([6, 15], 15), ([0, 15], 6), ([0, 15], 9)] {
            let raw = raw(&[(&[8], 8, 1.0), (&codes, zero, 1.0), (&codes, zero, -1.0)]);
            let error = recentre(raw, "the layer").unwrap_err().to_string();
            assert!(
                error.contains("the layer: 2 of 3 groups") && error.contains("group 1 of output channel 0"),
                "{error}"
            );
            assert!(
                error.contains(&format!("zero point {zero}, codes {} to {}", codes[0], codes[1])),
                "{error}"
            );
        }
    }
}
