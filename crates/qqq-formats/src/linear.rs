//! The weight of a linear layer in the neutral form that every backend prepacks from.

use std::ops::Range;

use bytemuck::allocation::zeroed_vec;
use half::{bf16, f16};

use crate::{CodeBits, DType, FormatError, Result, Scales, SimulatedWeight, scales::largest_code};

/// Float weights in their stored precision, row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum WeightData {
    /// IEEE binary32, 4 bytes a value.
    F32(Vec<f32>),
    /// IEEE half precision.
    F16(Vec<f16>),
    /// bfloat16: the upper half of binary32.
    BF16(Vec<bf16>),
}

impl WeightData {
    /// `len` zeros of the type that tensors of type `stored` are read as.
    pub fn zeros(stored: crate::DType, len: usize) -> Self {
        match stored {
            crate::DType::F16 => WeightData::F16(zeroed_vec(len)),
            crate::DType::BF16 => WeightData::BF16(zeroed_vec(len)),
            _ => WeightData::F32(zeroed_vec(len)),
        }
    }

    /// The type of the values.
    pub fn dtype(&self) -> crate::DType {
        match self {
            Self::F32(_) => crate::DType::F32,
            Self::F16(_) => crate::DType::F16,
            Self::BF16(_) => crate::DType::BF16,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            WeightData::F32(v) => v.len(),
            WeightData::F16(v) => v.len(),
            WeightData::BF16(v) => v.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values as they lie in memory.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            WeightData::F32(v) => bytemuck::cast_slice_mut(v),
            WeightData::F16(v) => bytemuck::cast_slice_mut(v),
            WeightData::BF16(v) => bytemuck::cast_slice_mut(v),
        }
    }

    /// Some of the values.
    pub fn part(&self, range: Range<usize>) -> Self {
        match self {
            WeightData::F32(v) => WeightData::F32(v[range].to_vec()),
            WeightData::F16(v) => WeightData::F16(v[range].to_vec()),
            WeightData::BF16(v) => WeightData::BF16(v[range].to_vec()),
        }
    }

    /// Values rounded to the type that tensors of type `stored` are read as.
    pub fn of_f32(stored: DType, values: &[f32]) -> Self {
        match stored {
            DType::F16 => WeightData::F16(values.iter().map(|v| f16::from_f32(*v)).collect()),
            DType::BF16 => WeightData::BF16(values.iter().map(|v| bf16::from_f32(*v)).collect()),
            _ => WeightData::F32(values.to_vec()),
        }
    }

    /// The values widened to f32 (exact).
    pub fn into_f32(self) -> Vec<f32> {
        match self {
            WeightData::F32(v) => v,
            WeightData::F16(v) => v.into_iter().map(f32::from).collect(),
            WeightData::BF16(v) => v.into_iter().map(f32::from).collect(),
        }
    }
}

/// Columns of a row-major matrix.
pub(crate) fn columns<T: Copy>(values: &[T], width: usize, range: Range<usize>) -> Vec<T> {
    values.chunks_exact(width.max(1)).flat_map(|row| row[range.clone()].iter().copied()).collect()
}

/// Where the first code is that is none of so many bits.
pub(crate) fn first_beyond(bits: CodeBits, codes: &[i8]) -> Option<usize> {
    // Without an early exit, so that it is vectorized.
    if bits == CodeBits::Eight || !codes.iter().fold(false, |bad, c| bad | !(-8..=7).contains(c)) {
        return None;
    }
    codes.iter().position(|c| !bits.range().contains(c))
}

/// A symmetric weight of 4 or 8 bits: codes and their scales. Codes are in [`CodeBits::range`]; per channel our quantizer makes
/// `-7..=7` and `-127..=127`, but checkpoints of other tools may hold `-8` and `-128` there as well.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedWeight {
    /// Bits of the codes; 8 go with [`Scales::PerChannel`] alone.
    pub bits: CodeBits,
    /// `N`, the number of output channels.
    pub out_features: usize,
    /// `K`, the number of input channels.
    pub in_features: usize,
    /// Shape `N x K`, row-major.
    pub codes: Vec<i8>,
    /// Scales, per channel or per group.
    pub scales: Scales,
}

/// The weight of a linear layer as read from a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub enum LinearWeight {
    /// Shape `N x K`, row-major.
    Float {
        /// Output channels, `N`.
        out_features: usize,
        /// Input channels, `K`.
        in_features: usize,
        /// `N K` values.
        data: WeightData,
    },
    /// Codes and scales, for activations that are quantized to int8.
    Quantized(QuantizedWeight),
    /// Codes and scales that stand for 16-bit weights ([`QuantizedWeight::row_values`]), for 16-bit activations.
    WeightOnly {
        /// Groups have the scales of [`Scales::weight_only`].
        weight: QuantizedWeight,
        /// Type of the weights that they stand for, where a device multiplies these: that of the model's other weights.
        dtype: DType,
    },
    /// Weights of 16 bits, for the arithmetic of a method that is simulated.
    Simulated(SimulatedWeight),
}

impl QuantizedWeight {
    /// Checks what the fields promise: lengths, the range of codes, finite scales, and int8 weights within
    /// `-127..=127` where there are groups.
    ///
    /// # Errors
    /// [`FormatError::Layout`], beginning with `name`.
    pub fn check(&self, name: &str) -> Result<()> {
        let fail = |reason: String| Err(FormatError::Layout(format!("{name}: {reason}")));
        let (n, k) = (self.out_features, self.in_features);
        if n.checked_mul(k) != Some(self.codes.len()) || self.codes.is_empty() {
            return fail(format!("{} codes for {n} output and {k} input channels", self.codes.len()));
        }
        if let Some(i) = first_beyond(self.bits, &self.codes) {
            return fail(format!("code {} at index {i} is not a signed 4-bit number", self.codes[i]));
        }
        let channel = self.channel_scales();
        if channel.len() != n {
            return fail(format!("{} channel scales for {n} output channels", channel.len()));
        }
        if let Some(i) = channel.iter().position(|s| !s.is_finite()) {
            return fail(format!("the scale of output channel {i} is {}", channel[i]));
        }
        let Scales::PerGroup { group_size, group, .. } = &self.scales else {
            return Ok(());
        };
        if self.bits == CodeBits::Eight {
            return fail(format!(
                "8-bit codes with groups of {group_size}; they have one scale an output channel"
            ));
        }
        if *group_size == 0 || !k.is_multiple_of(*group_size) {
            return fail(format!("{k} input channels are not a multiple of the group size {group_size}"));
        }
        if group.len() != n * (k / group_size) {
            return fail(format!("{} group scales for {n} x {} groups", group.len(), k / group_size));
        }
        for (i, (codes, s)) in self.codes.chunks_exact(*group_size).zip(group).enumerate() {
            let s = f32::from(*s);
            // Whatever the codes are: a large layer has millions of groups.
            if (8.0 * s).abs() <= 127.0 {
                continue;
            }
            let (row, g) = (i / (k / group_size), i % (k / group_size));
            if !s.is_finite() {
                return fail(format!("the scale of output channel {row}, group {g} is {s}"));
            }
            if (largest_code(codes) * s).abs().round_ties_even() > 127.0 {
                return fail(format!(
                    "group scale {s} of output channel {row}, group {g} makes weights beyond int8"
                ));
            }
        }
        Ok(())
    }

    /// The int8 weights that the kernel multiplies, shape `N x K`.
    pub fn int8_weights(&self) -> Vec<i8> {
        match &self.scales {
            Scales::PerChannel(_) => self.codes.clone(),
            Scales::PerGroup { group_size, group, .. } => self
                .codes
                .chunks_exact(*group_size)
                .zip(group)
                .flat_map(|(codes, s)| {
                    let s = f32::from(*s);
                    // code * s is exact in f32 (4 + 11 bits), so this rounds once.
                    codes.iter().map(move |&c| (f32::from(c) * s).round_ties_even() as i8)
                })
                .collect(),
        }
    }

    /// The scale applied to each output channel's accumulator, shape `N`.
    pub fn channel_scales(&self) -> &[f32] {
        match &self.scales {
            Scales::PerChannel(s) => s,
            Scales::PerGroup { channel, .. } => channel,
        }
    }

    /// The weights as the kernel sees them, shape `N x K`: int8 weight times channel scale.
    pub fn dequantize(&self) -> Vec<f32> {
        let scales = self.channel_scales();
        self.int8_weights()
            .chunks_exact(self.in_features)
            .zip(scales)
            .flat_map(|(row, &s)| row.iter().map(move |&w| f32::from(w) * s))
            .collect()
    }

    /// The same codes with the scales that integer kernels run ([`Scales::from_effective`]), of a weight with those of
    /// [`Scales::weight_only`].
    pub fn for_integers(&self) -> QuantizedWeight {
        let scales = match &self.scales {
            Scales::PerChannel(scales) => Scales::PerChannel(scales.clone()),
            Scales::PerGroup { group_size, channel, group } => {
                let groups = group.len() / channel.len().max(1);
                let rows = channel.iter().zip(group.chunks(groups.max(1)));
                let effective: Vec<f32> =
                    rows.flat_map(|(c, group)| group.iter().map(move |g| f32::from(*g) * c)).collect();
                Scales::from_effective(
                    &self.codes,
                    self.out_features,
                    self.in_features,
                    *group_size,
                    &effective,
                )
            }
        };
        QuantizedWeight { scales, ..self.clone() }
    }

    /// What the codes of output channel `row` stand for where nothing is rounded to int8: `code * scale`, `K` values. With
    /// scales of 16 bits per channel, or those of [`Scales::weight_only`], they are exact in f32.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row_values(&self, row: usize) -> impl Iterator<Item = f32> + '_ {
        let k = self.in_features;
        let channel = self.channel_scales()[row];
        let (width, groups) = match &self.scales {
            Scales::PerChannel(_) => (k, [].as_slice()),
            Scales::PerGroup { group_size, group, .. } => {
                (*group_size, &group[row * (k / group_size)..(row + 1) * (k / group_size)])
            }
        };
        self.codes[row * k..(row + 1) * k].chunks(width.max(1)).enumerate().flat_map(move |(g, codes)| {
            let group = groups.get(g).map_or(1.0, |s| f32::from(*s));
            // A code times a 16-bit number is exact.
            codes.iter().map(move |c| f32::from(*c) * group * channel)
        })
    }

    /// The rows of output channels `channels`: a shard of a layer that is split by its outputs. `None` if there are not so
    /// many.
    pub fn rows(&self, channels: Range<usize>) -> Option<QuantizedWeight> {
        if channels.start > channels.end || channels.end > self.out_features {
            return None;
        }
        let part = |row: usize| channels.start * row..channels.end * row;
        let scales = match &self.scales {
            Scales::PerChannel(scales) => Scales::PerChannel(scales[channels.clone()].to_vec()),
            Scales::PerGroup { group_size, channel, group } => Scales::PerGroup {
                group_size: *group_size,
                channel: channel[channels.clone()].to_vec(),
                group: group[part(self.in_features / group_size)].to_vec(),
            },
        };
        let codes = self.codes[part(self.in_features)].to_vec();
        Some(QuantizedWeight {
            bits: self.bits,
            out_features: channels.len(),
            in_features: self.in_features,
            codes,
            scales,
        })
    }

    /// The columns of input channels `channels`: a shard of a layer that is split by its inputs. Channel scales stay those of
    /// the whole rows, so that the shards' outputs add up to those of the whole layer. `None` if there are not so many, or a
    /// group would be cut.
    pub fn columns(&self, channels: Range<usize>) -> Option<QuantizedWeight> {
        let whole = |size: usize| channels.start.is_multiple_of(size) && channels.end.is_multiple_of(size);
        let scales = match &self.scales {
            _ if channels.start > channels.end || channels.end > self.in_features => return None,
            Scales::PerChannel(scales) => Scales::PerChannel(scales.clone()),
            Scales::PerGroup { group_size, channel, group } if whole(*group_size) => Scales::PerGroup {
                group_size: *group_size,
                channel: channel.clone(),
                group: columns(
                    group,
                    self.in_features / group_size,
                    channels.start / group_size..channels.end / group_size,
                ),
            },
            Scales::PerGroup { .. } => return None,
        };
        let codes = columns(&self.codes, self.in_features, channels.clone());
        Some(QuantizedWeight {
            bits: self.bits,
            out_features: self.out_features,
            in_features: channels.len(),
            codes,
            scales,
        })
    }

    /// Joins weights along the output dimension (`q`, `k`, `v` into one). All must have the same
    /// `in_features`, bits and kind of scales; returns `None` otherwise or when `parts` is empty.
    pub fn concat(parts: &[&QuantizedWeight]) -> Option<QuantizedWeight> {
        let mut out = (*parts.first()?).clone();
        for p in &parts[1..] {
            if (p.in_features, p.bits) != (out.in_features, out.bits) {
                return None;
            }
            match (&mut out.scales, &p.scales) {
                (Scales::PerChannel(a), Scales::PerChannel(b)) => a.extend_from_slice(b),
                (
                    Scales::PerGroup { group_size, channel, group },
                    Scales::PerGroup { group_size: g2, channel: c2, group: s2 },
                ) if group_size == g2 => {
                    channel.extend_from_slice(c2);
                    group.extend_from_slice(s2);
                }
                _ => return None,
            }
            out.codes.extend_from_slice(&p.codes);
            out.out_features += p.out_features;
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(group_size: Option<usize>) -> QuantizedWeight {
        let (n, k) = (6, 128);
        let codes: Vec<i8> = (0..n * k).map(|i| (i * 7 % 15) as i8 - 7).collect();
        let scales = match group_size {
            None => Scales::PerChannel((1..=n).map(|i| i as f32).collect()),
            Some(g) => {
                let effective: Vec<f32> =
                    (0..n * k / g).map(|i| 0.01 + (i * i % 13) as f32 * 0.001).collect();
                Scales::from_effective(&codes, n, k, g, &effective)
            }
        };
        QuantizedWeight { bits: CodeBits::Four, out_features: n, in_features: k, codes, scales }
    }

    #[test]
    fn group_scales_that_overflow_are_errors() {
        // 8 x 15.875 is 127; 8 x 15.9375 is 127.5, which rounds to 128.
        for (scale, code, reason) in [
            (15.875, -8, None),
            (15.9375, -8, Some("beyond int8")),
            (15.9375, 7, None),
            (18.25, 7, Some("beyond int8")),
            (-15.9375, -8, Some("beyond int8")),
            (f32::INFINITY, 0, Some("is inf")),
            (f32::NAN, 0, Some("is NaN")),
        ] {
            let mut weight = weight(Some(32));
            weight.codes[32..64].fill(0);
            weight.codes[40] = code;
            let Scales::PerGroup { group, .. } = &mut weight.scales else { panic!("no groups") };
            group[1] = f16::from_f32(scale);
            let error = weight.check("w").map_err(|e| e.to_string()).err();
            match reason {
                None => assert_eq!(error, None, "{scale} x {code}"),
                Some(reason) => {
                    let error = error.unwrap_or_default();
                    assert!(
                        error.contains(reason) && error.contains("channel 0, group 1"),
                        "{scale} x {code}: {error}"
                    );
                }
            }
        }
    }

    #[test]
    fn eight_bits_take_all_codes_and_no_groups() {
        let codes: Vec<i8> = (0..=255u8).map(u8::cast_signed).collect();
        let scales = Scales::PerChannel(vec![0.5, 0.25]);
        let weight =
            QuantizedWeight { bits: CodeBits::Eight, out_features: 2, in_features: 128, codes, scales };
        weight.check("w").unwrap();
        assert_eq!(weight.int8_weights(), weight.codes);
        assert_eq!(weight.dequantize()[255], -0.25);
        assert_eq!(weight.row_values(1).collect::<Vec<_>>(), weight.dequantize()[128..]);
        assert!(QuantizedWeight { bits: CodeBits::Four, ..weight.clone() }.check("w").is_err());
        let grouped = Scales::from_effective(&weight.codes, 2, 128, 32, &[0.1; 8]);
        let error = QuantizedWeight { scales: grouped, ..weight.clone() }.check("w").unwrap_err();
        assert!(error.to_string().contains("groups of 32"), "{error}");
        let four = QuantizedWeight { bits: CodeBits::Four, codes: vec![1; 256], ..weight.clone() };
        assert_eq!(QuantizedWeight::concat(&[&weight, &four]), None);
    }

    #[test]
    fn shards_are_parts_of_the_weight() {
        for group_size in [None, Some(32)] {
            let whole = weight(group_size);
            let dense = whole.dequantize();
            let rows = whole.rows(2..5).unwrap();
            rows.check("rows").unwrap();
            assert_eq!(rows.dequantize(), dense[2 * 128..5 * 128]);
            let columns = whole.columns(32..96).unwrap();
            columns.check("columns").unwrap();
            let expected: Vec<f32> = dense.chunks_exact(128).flat_map(|row| row[32..96].to_vec()).collect();
            assert_eq!(columns.dequantize(), expected);
            let parts = [whole.rows(0..1).unwrap(), whole.rows(1..6).unwrap()];
            assert_eq!(QuantizedWeight::concat(&parts.iter().collect::<Vec<_>>()), Some(whole.clone()));
            assert!(whole.rows(5..7).is_none() && whole.columns(64..160).is_none());
            assert_eq!(whole.columns(16..48).is_some(), group_size.is_none());
        }
    }
}
