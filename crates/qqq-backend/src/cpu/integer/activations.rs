//! Per-token int8 activations.

use std::ops::Range;

use crate::cpu::matrix::Matrix;
use crate::pool::parallel_each_mut;
use crate::simd::{SimdLevel, multiversion};

/// Per-token int8 activations: value = code * scale.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Int8Activations {
    /// Tokens, each with a scale of its own.
    pub rows: usize,
    /// Channels of a token: `K` of the layers that take it.
    pub cols: usize,
    /// Shape `rows x cols`, row-major.
    pub codes: Vec<i8>,
    /// What a code of 1 stands for in each token; shape `rows`.
    pub scales: Vec<f32>,
    /// Sum of each row's codes (kernels that take weights with an offset subtract a multiple).
    pub sums: Vec<i32>,
}

/// Values that a parallel task should at least have, so that it is worth handing over.
const VALUES_PER_TASK: usize = 4096;

impl Int8Activations {
    /// Quantizes rows: scale = max|x| / 127 in float32, code = round-half-to-even(x / scale). A row of zeros
    /// gets scale 1. A row that holds a NaN or an infinity gets it as its scale (and codes 0), so that
    /// every product of the row is NaN.
    pub fn quantize(x: &Matrix) -> Self {
        let mut out = Self::default();
        out.quantize_from(x);
        out
    }

    /// As [`quantize`](Self::quantize), in the memory it has.
    pub(crate) fn quantize_from(&mut self, x: &Matrix) {
        self.reshape(x.rows, x.cols);
        self.make(0..x.rows, |i, codes| quantize_row(x.row(i), codes));
    }

    /// Gives it another shape, in the memory it has. The content is unspecified.
    pub fn reshape(&mut self, rows: usize, cols: usize) {
        let len = rows * cols;
        if len > self.codes.capacity() {
            // What is there is not worth copying.
            self.codes = Vec::new();
        }
        self.codes.resize(len, 0);
        self.scales.resize(rows, 0.0);
        self.sums.resize(rows, 0);
        (self.rows, self.cols) = (rows, cols);
    }

    /// At most `count` rows from `first` on.
    pub fn rows(&self, first: usize, count: usize) -> Self {
        let range = first..self.rows.min(first + count);
        Self {
            rows: range.len(),
            cols: self.cols,
            codes: self.codes[range.start * self.cols..range.end * self.cols].to_vec(),
            scales: self.scales[range.clone()].to_vec(),
            sums: self.sums[range].to_vec(),
        }
    }

    /// Quantizes rows as [`quantize`](Self::quantize) does while they are made: `fill(i, row)` writes
    /// row `i` into a buffer of length `cols` (content unspecified on entry). Parallel over rows; the others stay.
    ///
    /// # Panics
    /// If the rows are not there.
    pub fn fill(&mut self, rows: Range<usize>, fill: impl Fn(usize, &mut [f32]) + Sync) {
        thread_local! {
            static BUFFER: std::cell::Cell<Vec<f32>> = const { std::cell::Cell::new(Vec::new()) };
        }
        let cols = self.cols;
        self.make(rows, |i, codes| {
            // Taken out for the call, so a nested use of this function gets a buffer of its own.
            let mut buffer = BUFFER.take();
            buffer.resize(cols, 0.0);
            fill(i, &mut buffer);
            let quantized = quantize_row(&buffer, codes);
            BUFFER.set(buffer);
            quantized
        })
    }

    fn make(&mut self, rows: Range<usize>, quantize: impl Fn(usize, &mut [i8]) -> (f32, i32) + Sync) {
        let (cols, first) = (self.cols, rows.start);
        let rows_per_task = VALUES_PER_TASK.div_ceil(cols.max(1));
        let mut codes = &mut self.codes[rows.start * cols..rows.end * cols];
        let scales = self.scales[rows.clone()].chunks_mut(rows_per_task);
        let mut tasks: Vec<_> = scales
            .zip(self.sums[rows].chunks_mut(rows_per_task))
            .map(|(scales, sums)| {
                (codes.split_off_mut(..scales.len() * cols).unwrap_or_default(), scales, sums)
            })
            .collect();
        parallel_each_mut(&mut tasks, |task, (codes, scales, sums)| {
            for (i, (scale, sum)) in scales.iter_mut().zip(sums.iter_mut()).enumerate() {
                let codes = &mut codes[i * cols..(i + 1) * cols];
                (*scale, *sum) = quantize(first + task * rows_per_task + i, codes);
            }
        });
    }

    /// `code * scale`, shape `rows x cols`.
    pub fn dequantize(&self) -> Matrix {
        let mut out = Matrix::zeros(self.rows, self.cols);
        for i in 0..self.rows {
            let codes = &self.codes[i * self.cols..(i + 1) * self.cols];
            for (y, &q) in out.row_mut(i).iter_mut().zip(codes) {
                *y = f32::from(q) * self.scales[i];
            }
        }
        out
    }
}

/// Quantizes one row into `codes`, by the rule of [`Int8Activations::quantize`]; returns its scale and
/// the sum of its codes.
///
/// # Panics
/// If the lengths differ.
pub fn quantize_row(x: &[f32], codes: &mut [i8]) -> (f32, i32) {
    assert_eq!(x.len(), codes.len());
    quantize_slice(SimdLevel::detect(), x, codes)
}

multiversion! {
    fn quantize_slice(x: &[f32], codes: &mut [i8]) -> (f32, i32) {
        // Magnitudes compare as their bits do, infinities and NaNs above all numbers.
        let amax = f32::from_bits(x.iter().fold(0, |max, v| max.max(v.to_bits() & 0x7fff_ffff)));
        let scale = amax / 127.0;
        if scale == 0.0 || !scale.is_finite() {
            codes.fill(0);
            return (if scale == 0.0 { 1.0 } else { scale }, 0);
        }
        // Adding 1.5 * 2^23 rounds a small number to an integer, half to even, and leaves it in the low
        // bits. The quotient is at most 127 and a little, or 190 where the scale is subnormal.
        const MAGIC: f32 = 12_582_912.0;
        let mut sum = 0;
        for (code, &v) in codes.iter_mut().zip(x) {
            let q = ((v / scale + MAGIC).to_bits() as i32 - MAGIC.to_bits() as i32).clamp(-128, 127);
            *code = q as i8;
            sum += q;
        }
        (scale, sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, in plain words.
    fn reference(x: &[f32]) -> (f32, Vec<i8>) {
        let amax = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let scale = if amax / 127.0 == 0.0 { 1.0 } else { amax / 127.0 };
        (scale, x.iter().map(|v| (v / scale).round_ties_even().clamp(-128.0, 127.0) as i8).collect())
    }

    fn check(x: &[f32]) {
        let (scale, codes) = reference(x);
        let mut got = vec![1; x.len()];
        let (got_scale, sum) = quantize_row(x, &mut got);
        assert_eq!(got_scale.to_bits(), scale.to_bits());
        assert_eq!(got, codes);
        assert_eq!(sum, codes.iter().map(|&c| i32::from(c)).sum::<i32>());
        for level in SimdLevel::all() {
            let mut got = vec![1; x.len()];
            assert_eq!(quantize_slice(level, x, &mut got), (scale, sum));
            assert_eq!(got, codes);
        }
    }

    #[test]
    fn ties_zeros_and_subnormals() {
        // Scale 1, then 2^-3: every half is a tie.
        let ties: Vec<f32> = (-254..=254).map(|i| i as f32 / 2.0).collect();
        check(&ties);
        check(&ties.iter().map(|v| v / 8.0).collect::<Vec<_>>());
        check(&[0.0; 16]);
        check(&[]);
        check(&[-0.0, 0.0, 1e-45]);
        // The scale rounds to the smallest subnormal, so quotients go beyond 127.
        check(&(0..200).map(|i| f32::from_bits(i) * if i % 2 == 0 { 1.0 } else { -1.0 }).collect::<Vec<_>>());
        check(&[f32::MAX, f32::MIN, 1.0, f32::MIN_POSITIVE]);
    }

    #[test]
    fn a_row_that_is_not_finite_stays_visible() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![1.0; 48];
            x[17] = bad;
            let q = Int8Activations::quantize(&Matrix { rows: 1, cols: 48, data: x });
            assert!(!q.scales[0].is_finite() && q.codes.iter().all(|&c| c == 0));
            assert!(q.dequantize().data.iter().all(|v| v.is_nan()));
        }
    }

    proptest::proptest! {
        #[test]
        fn rows_match_the_definition(
            x in proptest::collection::vec(-10.0f32..10.0, 1..200),
            exponent in -60i32..60,
        ) {
            check(&x.iter().map(|v| v * 2f32.powi(exponent)).collect::<Vec<_>>());
        }

        #[test]
        fn both_ways_of_making_rows_agree(rows in 0usize..70, cols in 1usize..300, seed in 0u32..1000) {
            let value = |i: usize, j: usize| ((i * 31 + j * 17 + seed as usize) % 101) as f32 - 50.3;
            let data = (0..rows * cols).map(|p| value(p / cols, p % cols)).collect();
            let a = Int8Activations::quantize(&Matrix { rows, cols, data });
            let mut b = Int8Activations::default();
            b.reshape(rows, cols);
            // In two parts.
            for part in [0..rows / 3, rows / 3..rows] {
                b.fill(part, |i, row| row.iter_mut().enumerate().for_each(|(j, v)| *v = value(i, j)));
            }
            assert_eq!(a, b);
            assert_eq!(a.codes.len(), rows * cols);
        }
    }
}
