//! The weight of a linear layer in the neutral form that every backend prepacks from.

use half::{bf16, f16};

/// Float weights in their stored precision, row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum WeightData {
    /// 32-bit values.
    F32(Vec<f32>),
    /// IEEE half precision.
    F16(Vec<f16>),
    /// bfloat16.
    BF16(Vec<bf16>),
}

impl WeightData {
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

    /// The values widened to f32 (exact).
    pub fn into_f32(self) -> Vec<f32> {
        match self {
            WeightData::F32(v) => v,
            WeightData::F16(v) => v.into_iter().map(f32::from).collect(),
            WeightData::BF16(v) => v.into_iter().map(f32::from).collect(),
        }
    }
}

/// Scales of a [`QuantizedWeight`].
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
        /// Shape `N`.
        channel: Vec<f32>,
        /// Shape `N x (K / group_size)`, row-major.
        group: Vec<f16>,
    },
}

/// A symmetric 4-bit weight: codes in `-8..=7` (per channel `-7..=7`) and their scales.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedWeight {
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
        /// `N`.
        out_features: usize,
        /// `K`.
        in_features: usize,
        /// Values.
        data: WeightData,
    },
    /// 4-bit codes and scales.
    Quantized(QuantizedWeight),
}

impl QuantizedWeight {
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

    /// Joins weights along the output dimension (`q`, `k`, `v` into one). All must have the same
    /// `in_features` and kind of scales; returns `None` otherwise or when `parts` is empty.
    pub fn concat(parts: &[&QuantizedWeight]) -> Option<QuantizedWeight> {
        let mut out = (*parts.first()?).clone();
        for p in &parts[1..] {
            if p.in_features != out.in_features {
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
