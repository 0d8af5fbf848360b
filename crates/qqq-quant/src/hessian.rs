//! Second moments of a layer's inputs.

use faer::linalg::matmul::triangular::{BlockStructure, matmul};
use faer::{Accum, MatMut, MatRef, Par};
use qqq_backend::cpu::matrix::Matrix;
use qqq_backend::cpu::w4a8::Int8Activations;

/// Tokens that are widened at a time by [`Hessian::add_int8`]: enough to keep the rank-k update at its full speed,
/// few enough for the copy to stay in cache.
const INT8_CHUNK: usize = 256;

/// `H = 2/n sum x x^T` over `n` tokens, kept as a running sum (lower triangle, f32).
///
/// Accuracy: one `add` sums its tokens in the registers of a blocked GEMM, and the running total takes one rounding a
/// call, so 65,536 tokens in windows of 2,048 leave errors of some 1e-6 of `sqrt(H_ii H_jj)`: four orders of magnitude
/// below the usual damping, and below the sampling error of the calibration data by more. A total in f64 would double
/// the memory of every thread's copy for nothing.
///
/// The sum depends on the order of the calls in its last bits. To be reproducible, give every thread its own Hessian
/// over a fixed share of the data and [`Hessian::merge`] them in a fixed order.
#[derive(Clone, Debug)]
pub struct Hessian {
    /// Width `K`.
    pub width: usize,
    /// Tokens so far.
    pub tokens: usize,
    /// Running `sum x x^T`, `K x K` row-major, lower triangle valid.
    pub sum: Vec<f32>,
}

impl Hessian {
    /// Zero.
    pub fn new(width: usize) -> Self {
        Self { width, tokens: 0, sum: vec![0.0; width * width] }
    }

    /// Adds the rows of `x` (symmetric rank-k update on the calling thread).
    ///
    /// # Panics
    /// If `x` is not `width` wide.
    pub fn add(&mut self, x: &Matrix) {
        assert_eq!(x.cols, self.width, "columns of x against the width of the Hessian");
        self.add_rows(&x.data, x.rows);
    }

    /// Adds the rows of quantized activations, at their dequantized values: what a W4A8 layer really multiplies.
    ///
    /// # Panics
    /// If `x` is not `width` wide.
    pub fn add_int8(&mut self, x: &Int8Activations) {
        assert_eq!(x.cols, self.width, "columns of x against the width of the Hessian");
        if self.width == 0 {
            return;
        }
        let mut scratch = vec![0.0; INT8_CHUNK.min(x.rows) * self.width];
        for (codes, scales) in x.codes.chunks(INT8_CHUNK * self.width).zip(x.scales.chunks(INT8_CHUNK)) {
            let scratch = &mut scratch[..codes.len()];
            for ((out, codes), &scale) in
                scratch.chunks_exact_mut(self.width).zip(codes.chunks_exact(self.width)).zip(scales)
            {
                for (out, &code) in out.iter_mut().zip(codes) {
                    *out = f32::from(code) * scale;
                }
            }
            self.add_rows(scratch, scales.len());
        }
    }

    fn add_rows(&mut self, rows: &[f32], count: usize) {
        let width = self.width;
        self.tokens += count;
        if width == 0 || count == 0 {
            return;
        }
        let x = MatRef::from_row_major_slice(rows, count, width);
        matmul(
            MatMut::from_row_major_slice_mut(&mut self.sum, width, width),
            BlockStructure::TriangularLower,
            Accum::Add,
            x.transpose(),
            BlockStructure::Rectangular,
            x,
            BlockStructure::Rectangular,
            1.0,
            Par::Seq,
        );
    }

    /// Adds another sum.
    ///
    /// # Panics
    /// If the widths differ.
    pub fn merge(&mut self, other: &Hessian) {
        assert_eq!(other.width, self.width, "widths of the Hessians");
        self.tokens += other.tokens;
        for (a, b) in self.sum.iter_mut().zip(&other.sum) {
            *a += b;
        }
    }

    /// `2/n sum`, full symmetric `K x K`; zero when there were no tokens.
    pub fn finish(&self) -> Vec<f32> {
        /// Side of the square tiles of the transposition: two of them fit the first-level cache.
        const TILE: usize = 32;
        let width = self.width;
        let factor = if self.tokens == 0 { 0.0 } else { 2.0 / self.tokens as f64 };
        let mut full = vec![0.0f32; width * width];
        for i0 in (0..width).step_by(TILE) {
            for j0 in (0..=i0).step_by(TILE) {
                for i in i0..(i0 + TILE).min(width) {
                    for j in j0..(j0 + TILE).min(i + 1) {
                        let value = (f64::from(self.sum[i * width + j]) * factor) as f32;
                        full[i * width + j] = value;
                        full[j * width + i] = value;
                    }
                }
            }
        }
        full
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn random(rows: usize, cols: usize, seed: u64) -> Matrix {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // Channels of very different size, as in a language model.
        let data = (0..rows * cols)
            .map(|i| {
                (rng.random::<f32>() - 0.4) * if i % cols == 3 { 1000.0 } else { 1.0 + (i % cols) as f32 }
            })
            .collect();
        Matrix { rows, cols, data }
    }

    /// `2/n sum x x^T` in f64.
    fn naive(parts: &[&Matrix]) -> Vec<f64> {
        let k = parts[0].cols;
        let n: usize = parts.iter().map(|p| p.rows).sum();
        let mut h = vec![0.0; k * k];
        for x in parts {
            for row in x.data.chunks_exact(k) {
                for i in 0..k {
                    for j in 0..k {
                        h[i * k + j] += f64::from(row[i]) * f64::from(row[j]) * 2.0 / n as f64;
                    }
                }
            }
        }
        h
    }

    fn assert_close(h: &[f32], want: &[f64], k: usize) {
        for i in 0..k {
            for j in 0..k {
                let unit = (want[i * k + i] * want[j * k + j]).sqrt();
                let error = (f64::from(h[i * k + j]) - want[i * k + j]).abs();
                assert!(error <= 2e-6 * unit, "H[{i},{j}]: error {error:e} of {unit:e}");
                assert_eq!(h[i * k + j], h[j * k + i]);
            }
        }
    }

    #[test]
    fn equals_the_definition() {
        for k in [1, 5, 33, 64, 80] {
            let (a, b) = (random(300, k, 1), random(77, k, 2));
            let mut first = Hessian::new(k);
            first.add(&a);
            let mut second = Hessian::new(k);
            second.add(&b);
            first.merge(&second);
            assert_eq!(first.tokens, 377);
            assert_close(&first.finish(), &naive(&[&a, &b]), k);
        }
    }

    #[test]
    fn many_small_additions_lose_little() {
        let k = 24;
        let parts: Vec<_> = (0..400).map(|i| random(16, k, i)).collect();
        let mut h = Hessian::new(k);
        parts.iter().for_each(|p| h.add(p));
        assert_close(&h.finish(), &naive(&parts.iter().collect::<Vec<_>>()), k);
    }

    #[test]
    fn int8_activations_count_at_their_dequantized_values() {
        let (rows, k) = (INT8_CHUNK + 44, 40);
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let codes: Vec<i8> = (0..rows * k).map(|_| rng.random()).collect();
        let scales: Vec<f32> = (0..rows).map(|_| rng.random::<f32>() + 0.01).collect();
        let data = codes.iter().enumerate().map(|(i, &c)| f32::from(c) * scales[i / k]).collect();
        let sums = codes.chunks_exact(k).map(|r| r.iter().map(|&c| i32::from(c)).sum()).collect();
        let mut h = Hessian::new(k);
        h.add_int8(&Int8Activations { rows, cols: k, codes, scales, sums });
        assert_eq!(h.tokens, rows);
        assert_close(&h.finish(), &naive(&[&Matrix { rows, cols: k, data }]), k);
    }

    #[test]
    fn nothing_gives_zero() {
        let mut h = Hessian::new(4);
        h.add(&Matrix::zeros(0, 4));
        assert_eq!(h.finish(), vec![0.0; 16]);
        assert!(Hessian::new(0).finish().is_empty());
    }
}
