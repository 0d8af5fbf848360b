//! How far the weights that the integer kernels multiply are from the stored ones.

use qqq_formats::Int4Weight;
use serde::Serialize;

use crate::Result;

/// Differences between `int8 * channel scale` and `code * scale`. Zero per channel, and where a row's scales are multiples of
/// one number by small integers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rounding {
    /// The largest difference, over the largest weight of its output channel: at most about 1/254.
    pub largest: f64,
    /// Sum of squared differences.
    #[serde(skip)]
    error: f64,
    /// Sum of squared weights.
    #[serde(skip)]
    weights: f64,
    /// Squared differences over squared weights, of all weights together.
    pub relative: f64,
}

impl Rounding {
    /// That of one weight.
    ///
    /// # Errors
    /// As [`Int4Weight::quantized`].
    pub fn of(weight: &Int4Weight, name: &str) -> Result<Self> {
        if weight.group_size.is_none() {
            let weights = squares(&weight.dequantize());
            return Ok(Self { weights, ..Self::default() });
        }
        let (stored, run) = (weight.dequantize(), weight.quantized(name)?.dequantize());
        let mut sum = Self::default();
        for (stored, run) in stored.chunks(weight.in_features).zip(run.chunks(weight.in_features)) {
            let (mut top, mut most, mut error) = (0f32, 0f32, 0f64);
            for (a, b) in stored.iter().zip(run) {
                let difference = (a - b).abs();
                top = top.max(a.abs());
                most = most.max(difference);
                error += f64::from(difference).powi(2);
            }
            if top > 0.0 {
                sum.largest = sum.largest.max(f64::from(most / top));
            }
            sum.error += error;
        }
        sum.weights = squares(&stored);
        Ok(sum.finished())
    }

    /// That of two weights together.
    pub fn and(self, other: Self) -> Self {
        let sum = Self {
            largest: self.largest.max(other.largest),
            error: self.error + other.error,
            weights: self.weights + other.weights,
            relative: 0.0,
        };
        sum.finished()
    }

    fn finished(mut self) -> Self {
        self.relative = if self.weights > 0.0 { self.error / self.weights } else { 0.0 };
        self
    }
}

fn squares(values: &[f32]) -> f64 {
    values.iter().map(|x| f64::from(*x).powi(2)).sum()
}

#[cfg(test)]
mod tests {
    use half::f16;
    use qqq_formats::WeightData;

    use super::*;

    fn weight(group_size: Option<usize>, scales: &[f32]) -> Int4Weight {
        let codes = (0..64).map(|i| (i % 16) as i8 - 8).collect();
        let scales = WeightData::F16(scales.iter().map(|s| f16::from_f32(*s)).collect());
        Int4Weight { out_features: 1, in_features: 64, codes, group_size, scales }
    }

    #[test]
    fn only_what_is_rounded_differs() {
        let of = |weight: &Int4Weight| Rounding::of(weight, "x").unwrap();
        assert_eq!((of(&weight(None, &[0.3])).largest, of(&weight(None, &[0.3])).relative), (0.0, 0.0));
        // Multiples of one scale by integers.
        assert_eq!(of(&weight(Some(32), &[0.25, 0.75])).relative, 0.0);
        let rounded = of(&weight(Some(32), &[0.25, 0.3]));
        assert!(rounded.largest > 1e-4 && rounded.largest < 0.51 / 127.0, "{rounded:?}");
        assert!(rounded.relative > 1e-7 && rounded.relative < 1e-4, "{rounded:?}");
        // Both together: the larger one, and less of more.
        let both = rounded.and(of(&weight(None, &[0.3])));
        assert!(both.largest == rounded.largest && both.relative < rounded.relative && both.relative > 0.0);
    }
}
