//! Scales of quantized weights, and how those that kernels run come of those that are stored.

use half::f16;

/// Scales of a [`QuantizedWeight`](crate::QuantizedWeight).
#[derive(Clone, Debug, PartialEq)]
pub enum Scales {
    /// One scale per output channel, shape `N`: effective weight = code * scale; the kernel
    /// multiplies the codes themselves.
    PerChannel(Vec<f32>),
    /// Two levels: the kernel multiplies the int8 weight `round_half_even(code * group)`, and the
    /// channel scale is applied to the accumulator. Holds the invariant |int8 weight| <= 127.
    PerGroup {
        /// Input channels that share a group scale: 32, 64 or 128.
        group_size: usize,
        /// Scales of the output channels, shape `N`.
        channel: Vec<f32>,
        /// Shape `N x (K / group_size)`, row-major.
        group: Vec<f16>,
    },
}

impl Scales {
    /// Input channels that share a scale; `None`: all of an output channel.
    pub fn group_size(&self) -> Option<usize> {
        match self {
            Self::PerChannel(_) => None,
            Self::PerGroup { group_size, .. } => Some(*group_size),
        }
    }

    /// Two-level scales from one effective scale per group, where the float weight that a reader
    /// sees is `code * effective`.
    ///
    /// Shapes: `codes` `n x k`, `effective` `n x (k / group_size)`, both row-major; `group_size`
    /// divides `k`. A row whose effective scales are exact multiples, by integers of 1 to 16, of one f32 keeps these:
    /// `channel` is the largest such f32, `group` the integer, and int8 weights are exact products. For any other row,
    /// in f32: `channel = max |code * effective| / 127` over the row, and `group = f16(effective / channel)`. A rounding of f16 moves `127` by at most `0.07`, so
    /// `|round(code * group)| <= 127` holds. A row without a nonzero weight gets channel scale 1; a group
    /// of zero codes gets group scale 0, whatever its effective scale.
    ///
    /// The quantizer and the reader of compressed-tensors both derive their int8 weights here, from
    /// the effective scales as stored, so a checkpoint runs after loading as it did before
    /// writing. The QQQ reference takes the maximum over the *float16* fake-quantized weight instead
    /// (`s_extra` of its packer), which differs by a rounding; its format stores both
    /// levels, so nothing is derived when it is read.
    ///
    /// # Panics
    /// If the lengths do not agree.
    pub fn from_effective(codes: &[i8], n: usize, k: usize, group_size: usize, effective: &[f32]) -> Scales {
        assert!(group_size > 0 && k.is_multiple_of(group_size), "groups of {group_size} in {k} channels");
        let groups = k / group_size;
        assert_eq!(codes.len(), n * k);
        assert_eq!(effective.len(), n * groups);
        let mut channel = Vec::with_capacity(n);
        let mut group = Vec::with_capacity(n * groups);
        if k == 0 {
            return Scales::PerGroup { group_size, channel: vec![1.0; n], group };
        }
        // Looked at many times below.
        let mut largest = vec![0f32; groups];
        for (codes, effective) in codes.chunks_exact(k).zip(effective.chunks_exact(groups)) {
            for (largest, codes) in largest.iter_mut().zip(codes.chunks_exact(group_size)) {
                *largest = largest_code(codes);
            }
            let largest = largest.iter().copied();
            let c = common_scale(largest.clone().zip(effective.iter().copied())).unwrap_or_else(|| {
                let max = largest.clone().zip(effective).fold(0f32, |m, (c, s)| m.max((c * s).abs()));
                // Below the normal range the division would lose the digits that the bound rests on.
                if max > 0.0 { (max / 127.0).max(f32::MIN_POSITIVE) } else { 1.0 }
            });
            channel.push(c);
            group.extend(
                largest.zip(effective).map(
                    |(largest, s)| {
                        if largest == 0.0 { f16::ZERO } else { f16::from_f32(s / c) }
                    },
                ),
            );
        }
        Scales::PerGroup { group_size, channel, group }
    }

    /// Scales of groups for weights that stand for 16-bit ones ([`LinearWeight::WeightOnly`](crate::LinearWeight::WeightOnly)): a power of two a channel, so
    /// that `code * group * channel` is exactly `code * effective` for scales that are 16-bit numbers.
    ///
    /// `effective` has shape `n x groups`, row-major. Groups come to less than 8, within the range of f16 but for scales
    /// smaller than 2^-17 of the row's largest; scales that are float32 numbers are rounded to f16's 11 bits.
    ///
    /// # Panics
    /// If the lengths do not agree.
    pub fn weight_only(n: usize, group_size: usize, effective: &[f32]) -> Scales {
        let groups = effective.len().checked_div(n).unwrap_or(0);
        assert_eq!(effective.len(), n * groups);
        let mut channel = Vec::with_capacity(n);
        let mut group = Vec::with_capacity(n * groups);
        for effective in effective.chunks_exact(groups.max(1)) {
            let max = effective.iter().fold(0f32, |m, s| m.max(s.abs()));
            // The power of two below the largest, less two.
            let power = f32::from_bits(max.to_bits() & f32::INFINITY.to_bits()) / 4.0;
            let c = if power.is_normal() { power } else { 1.0 };
            channel.push(c);
            group.extend(effective.iter().map(|s| f16::from_f32(s / c)));
        }
        Scales::PerGroup { group_size, channel, group }
    }
}

/// The largest number of which all scales of a row are exact multiples by integers of 1 to 16, if there is one. `groups`
/// are the largest code and the scale of each; a group of zero codes may have any scale.
fn common_scale(groups: impl Iterator<Item = (f32, f32)> + Clone) -> Option<f32> {
    let groups = groups.filter(|(largest, _)| *largest > 0.0);
    let top = groups.clone().fold(0f32, |m, (_, s)| m.max(s));
    (1..=16u8).map(|most| top / f32::from(most)).find(|c| {
        c.is_normal()
            && groups.clone().all(|(largest, s)| {
                let multiple = (s / c).round();
                multiple >= 1.0 && multiple * c == s && multiple * largest <= 127.0
            })
    })
}

/// Largest magnitude among codes.
pub(crate) fn largest_code(codes: &[i8]) -> f32 {
    f32::from(codes.iter().fold(0, |m: u8, c| m.max(c.unsigned_abs())))
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::{CodeBits, QuantizedWeight};

    #[test]
    fn scales_of_weights_alone_are_exact() {
        let (n, k, group) = (3, 64, 32);
        let codes: Vec<i8> = (0..n * k).map(|i| (i * 7 % 16) as i8 - 8).collect();
        // 16-bit numbers of either kind, far apart and of both signs; a row of zeros.
        let effective = [0.01, 3e-6].map(|s| bf16::from_f32(s).to_f32());
        let effective = [
            &effective[..],
            &[f16::from_f32(-0.37).to_f32(), 1e-3f32].map(|s| f16::from_f32(s).to_f32()),
            &[0.0; 2],
        ]
        .concat();
        let scales = Scales::weight_only(n, group, &effective);
        let weight = QuantizedWeight { bits: CodeBits::Four, out_features: n, in_features: k, codes, scales };
        weight.check("w").unwrap();
        for row in 0..n {
            let expected: Vec<f32> = (0..k)
                .map(|j| f32::from(weight.codes[row * k + j]) * effective[row * 2 + j / group])
                .collect();
            assert_eq!(weight.row_values(row).collect::<Vec<_>>(), expected, "{row}");
        }
        assert!(weight.channel_scales().iter().all(|c| c.log2().fract() == 0.0));
        for bad in [f32::NAN, f32::INFINITY] {
            let scales = Scales::weight_only(n, group, &[bad; 6]);
            assert!(QuantizedWeight { scales, ..weight.clone() }.check("w").is_err());
        }
    }
}
