//! 4-bit weights as the formats of weight-only quantization store them: codes, and one scale per group.

use std::ops::Range;

use half::{bf16, f16};

use crate::{
    Activations, CodeBits, DType, FormatError, QuantizedWeight, Result, Scales, WeightData,
    compressed_tensors, scales::largest_code,
};

/// A symmetric 4-bit weight whose float weight is `code * scale`, exactly, with scales in their stored type.
///
/// [`QuantizedWeight`] is what the integer kernels multiply; this is what is stored. Per channel they are the same. Per group
/// the kernels have two levels of scales, which [`quantized`](Self::quantized) derives.
#[derive(Clone, Debug, PartialEq)]
pub struct Int4Weight {
    /// `N`, the number of output channels.
    pub out_features: usize,
    /// `K`, the number of input channels.
    pub in_features: usize,
    /// Shape `N x K`, row-major, in `-8..=7`.
    pub codes: Vec<i8>,
    /// Consecutive input channels that share a scale; `None`: all of an output channel.
    pub group_size: Option<usize>,
    /// Shape `N x G`, row-major (`N x 1` per channel).
    pub scales: WeightData,
}

impl Int4Weight {
    /// `G`, the groups of an output channel.
    pub fn groups(&self) -> usize {
        groups(self.in_features, self.group_size)
    }

    /// Float weights, shape `N x K`: a code of 4 bits times a 16-bit scale is exact in f32, times an f32 it is rounded once.
    pub fn dequantize(&self) -> Vec<f32> {
        let scales = self.scales.clone().into_f32();
        let width = self.in_features / self.groups().max(1);
        let groups = self.codes.chunks_exact(width.max(1)).zip(&scales);
        groups.flat_map(|(codes, s)| codes.iter().map(move |c| f32::from(*c) * s)).collect()
    }

    /// The weight that integer kernels run, as a reader of compressed-tensors derives it from the stored scales
    /// ([`Scales::from_effective`]).
    ///
    /// # Errors
    /// Lengths that do not agree, codes that are no signed 4-bit numbers, scales that are not finite; beginning with `name`.
    pub fn quantized(&self, name: &str) -> Result<QuantizedWeight> {
        let (n, k, scales) = (self.out_features, self.in_features, self.scales.clone().into_f32());
        let kind = (CodeBits::Four, Activations::Int8, self.group_size);
        compressed_tensors::from_codes(name, self.codes.clone(), scales, (n, k), kind)
    }

    /// The stored form from which exactly this weight is derived.
    ///
    /// # Errors
    /// As [`compressed_tensors::effective_scales`]; 8 bits.
    pub fn of_quantized(weight: QuantizedWeight, name: &str) -> Result<Self> {
        if weight.bits != CodeBits::Four {
            return Err(FormatError::Unsupported(format!("{name}: its codes have 8 bits, not 4")));
        }
        let scales = compressed_tensors::effective_scales(&weight, Activations::Int8, name)?;
        let QuantizedWeight { out_features, in_features, codes, scales: levels, .. } = weight;
        Ok(Self { out_features, in_features, codes, group_size: levels.group_size(), scales })
    }

    /// The same weight with float16 scales, else bfloat16 ones, of which the integer kernels' two levels come out as of these.
    /// Scales of quantized groups are 16-bit numbers, and need float32 only since they were stored as two levels. `None` where
    /// there are none, and per channel.
    ///
    /// # Errors
    /// As [`quantized`](Self::quantized).
    pub fn with_half_scales(&self, name: &str) -> Result<Option<Self>> {
        let Some(group_size) = self.group_size else { return Ok(None) };
        let (target, scales) = (self.quantized(name)?, self.scales.clone().into_f32());
        let halves = nearby(&target, group_size, &scales, &|s| f16::from_f32(s).to_bits(), &|bits| {
            f16::from_bits(bits).to_f32()
        });
        if let Some(found) = halves {
            let scales = WeightData::F16(found.into_iter().map(f16::from_f32).collect());
            return Ok(Some(Self { codes: self.codes.clone(), scales, ..*self }));
        }
        let brains = nearby(&target, group_size, &scales, &|s| bf16::from_f32(s).to_bits(), &|bits| {
            bf16::from_bits(bits).to_f32()
        });
        Ok(brains.map(|found| {
            let scales = WeightData::BF16(found.into_iter().map(bf16::from_f32).collect());
            Self { codes: self.codes.clone(), scales, ..*self }
        }))
    }

    /// Rows in another order: row `i` of the result is row `order[i]` of this.
    ///
    /// # Errors
    /// `order` is no permutation of the rows.
    pub fn with_rows(&self, order: &[usize]) -> Result<Self> {
        check_permutation(order, self.out_features)?;
        let rows = |width: usize| order.iter().map(move |row| row * width..(row + 1) * width);
        let codes = rows(self.in_features).flat_map(|range| self.codes[range].iter().copied()).collect();
        let scales = gathered(&self.scales, rows(self.groups()));
        Ok(Self { codes, scales, ..*self })
    }

    /// The float type of the scales.
    pub fn scale_type(&self) -> DType {
        self.scales.dtype()
    }
}

/// 16-bit scales, given and read by their bits, of which the two levels of `target` come out: for every group the number
/// nearest to `scales`, or one of its neighbours. `None` where there are none.
fn nearby(
    target: &QuantizedWeight,
    group_size: usize,
    scales: &[f32],
    bits: &dyn Fn(f32) -> u16,
    value: &dyn Fn(u16) -> f32,
) -> Option<Vec<f32>> {
    let per_row = target.in_features / group_size;
    let mut found = Vec::with_capacity(scales.len());
    for (row, scales) in scales.chunks_exact(per_row).enumerate() {
        let target = target.rows(row..row + 1)?;
        let Scales::PerGroup { channel, group, .. } = &target.scales else { return None };
        let groups = target.codes.chunks_exact(group_size).zip(scales).zip(group);
        let choices: Vec<Vec<f32>> = groups
            .map(|((codes, scale), level)| {
                let (largest, nearest) = (largest_code(codes), bits(*scale));
                let reach = |s: &f32| (largest * s).abs() / 127.0;
                let fits = |s: &f32| {
                    largest == 0.0 || reach(s) <= channel[0] && f16::from_f32(*s / channel[0]) == *level
                };
                let near = [nearest, nearest.wrapping_add(1), nearest.wrapping_sub(1)].map(value);
                let mut near: Vec<f32> = near.into_iter().filter(fits).collect();
                // What the channel's scale can have come from goes first.
                near.sort_by_key(|s| reach(s) != channel[0]);
                near
            })
            .collect();
        let first: Vec<f32> = choices.iter().map(|near| near.first().copied()).collect::<Option<_>>()?;
        let derives = |scales: &[f32]| {
            let levels = Scales::from_effective(&target.codes, 1, target.in_features, group_size, scales);
            compressed_tensors::same_weights(&target, &levels)
        };
        if derives(&first) {
            found.extend(first);
            continue;
        }
        // Scales that by chance have a common divisor are taken for integers: another one has not.
        let others =
            choices.iter().enumerate().flat_map(|(g, near)| near.iter().skip(1).map(move |s| (g, *s)));
        let mut rows = others.map(|(g, scale)| {
            let mut row = first.clone();
            row[g] = scale;
            row
        });
        found.extend(rows.find(|row| derives(row))?);
    }
    Some(found)
}

/// Groups of an output channel of `k` input channels.
pub(crate) fn groups(k: usize, group_size: Option<usize>) -> usize {
    group_size.map_or(1, |g| k / g.max(1))
}

/// Checks that `order` holds every number below `len` once.
///
/// # Errors
/// What it is instead.
pub(crate) fn check_permutation(order: &[usize], len: usize) -> Result<()> {
    let mut seen = vec![false; len];
    let fresh = |i: &usize| seen.get_mut(*i).is_some_and(|seen| !std::mem::replace(seen, true));
    if order.len() == len && order.iter().all(fresh) {
        return Ok(());
    }
    Err(FormatError::Layout(format!("{} numbers are no order of {len} channels", order.len())))
}

/// Values at `ranges`, one range behind the other.
pub(crate) fn gathered(values: &WeightData, ranges: impl Iterator<Item = Range<usize>>) -> WeightData {
    fn of<T: Copy>(values: &[T], ranges: impl Iterator<Item = Range<usize>>) -> Vec<T> {
        ranges.flat_map(|range| values[range].iter().copied()).collect()
    }
    match values {
        WeightData::F32(v) => WeightData::F32(of(v, ranges)),
        WeightData::F16(v) => WeightData::F16(of(v, ranges)),
        WeightData::BF16(v) => WeightData::BF16(of(v, ranges)),
    }
}

/// `rows x cols` values to `cols x rows`.
pub(crate) fn transposed(values: &WeightData, rows: usize, cols: usize) -> WeightData {
    debug_assert_eq!(values.len(), rows * cols);
    gathered(values, (0..rows * cols).map(|i| i % rows * cols + i / rows).map(|i| i..i + 1))
}
