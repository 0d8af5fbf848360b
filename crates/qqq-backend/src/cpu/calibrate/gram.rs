//! Second moments of a layer's inputs.

use faer::linalg::matmul::triangular::{BlockStructure, matmul};
use faer::{Accum, MatMut, MatRef, Par};

use crate::cpu::integer::Int8Activations;
use crate::cpu::integer::gram::{self, GRAM_TOKENS, GramScratch, add_gram};
use crate::cpu::matrix::Matrix;
use crate::pool::parallel_each_mut;

/// Tokens that are widened at a time by [`CpuGram::add_int8`]: enough to keep the rank-k update at its full speed,
/// few enough for the copy to stay in cache.
const INT8_CHUNK: usize = 256;

/// Largest ratio of the scales of tokens whose codes are summed as integers (see [`CpuGram::of_int8`]).
const SCALE_SPREAD: f32 = 1.04;
/// Fewest tokens worth an integer sum: each passes over the whole Hessian.
const MIN_GRAM_TOKENS: usize = 16;
/// Partial sums of [`CpuGram::of_int8`] where it runs in float32; fixed, so that results do not depend on the threads.
const FLOAT_LANES: usize = 4;
/// Rows of the sum that are one task there, with all partial sums: of these no more exists than the threads work on.
pub(super) const PANEL_ROWS: usize = 256;

/// `H = 2/n sum x x^T` over `n` tokens, kept as a running sum (lower triangle, f32).
///
/// Accuracy: one `add` sums its tokens in the registers of a blocked GEMM, and the running total takes one rounding a
/// call, so 65,536 tokens in windows of 2,048 leave errors of some 1e-6 of `sqrt(H_ii H_jj)`: four orders of magnitude
/// below the usual damping, and below the sampling error of the calibration data by more. A total in f64 would double
/// the memory of every thread's copy for nothing.
///
/// The sum depends on the order of the calls in its last bits. To be reproducible, give every thread its own sum
/// over a fixed share of the data and [`CpuGram::merge`] them in a fixed order.
#[derive(Clone, Debug)]
pub struct CpuGram {
    /// Values of a row, `K`; the matrix is `K x K`.
    pub width: usize,
    /// Tokens so far.
    pub tokens: usize,
    /// Running `sum x x^T`, `K x K` row-major, lower triangle valid.
    pub sum: Vec<f32>,
}

impl CpuGram {
    /// A sum over no tokens, for inputs of `width` channels.
    pub fn new(width: usize) -> Self {
        Self { width, tokens: 0, sum: vec![0.0; width * width] }
    }

    /// Adds the rows of `x` (symmetric rank-k update on the calling thread).
    ///
    /// # Panics
    /// If `x` is not `width` wide.
    pub fn add(&mut self, x: &Matrix) {
        assert_eq!(x.cols, self.width, "columns of x against the width of the sum");
        self.add_rows(&x.data, x.rows);
    }

    /// Adds the rows of quantized activations, at their dequantized values: what a W4A8 layer really multiplies.
    ///
    /// # Panics
    /// If `x` is not `width` wide.
    pub fn add_int8(&mut self, x: &Int8Activations) {
        assert_eq!(x.cols, self.width, "columns of x against the width of the sum");
        if self.width == 0 {
            return;
        }
        for (codes, scales) in x.codes.chunks(INT8_CHUNK * self.width).zip(x.scales.chunks(INT8_CHUNK)) {
            self.add_codes(scales.iter().copied().zip(codes.chunks_exact(self.width)));
        }
    }

    /// The Hessian of quantized activations.
    ///
    /// Where the backend has integer kernels for it, tokens are sorted by their scale, neighbours are summed as integers,
    /// and the sum is weighted by the mean of their squared scales: a token's weight is then off by 4% at most, which is
    /// as if the calibration text held it 0.96 to 1.04 times. Tokens with few neighbours are added in float32.
    ///
    /// # Panics
    /// If a part is not `width` wide.
    pub fn of_int8(width: usize, parts: &[&Int8Activations]) -> Self {
        assert!(parts.iter().all(|p| p.cols == width), "columns of the parts against the width of the sum");
        if gram::is_fast(width) {
            Self::of_int8_in_integers(width, parts)
        } else {
            Self::of_int8_in_float(width, parts)
        }
    }

    /// [`of_int8`](Self::of_int8) by integer products.
    pub(super) fn of_int8_in_integers(width: usize, parts: &[&Int8Activations]) -> Self {
        let mut tokens: Vec<(f32, &[i8])> =
            parts.iter().flat_map(|p| p.scales.iter().copied().zip(p.codes.chunks_exact(width))).collect();
        let mut sum = Self::new(width);
        let mut scratch = GramScratch::default();
        let mut few = Vec::new();
        for (bucket, power) in buckets(&mut tokens) {
            let Some(power) = power else {
                few.extend_from_slice(bucket);
                continue;
            };
            let codes: Vec<&[i8]> = bucket.iter().map(|&(_, codes)| codes).collect();
            add_gram(&codes, width, power as f32, &mut sum.sum, &mut scratch);
            sum.tokens += bucket.len();
        }
        for tokens in few.chunks(INT8_CHUNK) {
            sum.add_codes(tokens.iter().copied());
        }
        sum
    }

    /// [`of_int8`](Self::of_int8) by float32 products.
    fn of_int8_in_float(width: usize, parts: &[&Int8Activations]) -> Self {
        let tokens = parts.iter().map(|part| part.rows).sum();
        Self::by_panels(width, tokens, parts, |sum, first, part| add_panel(sum, first, width, part))
    }

    /// The Hessian of float activations.
    ///
    /// # Panics
    /// If a part is not `width` wide.
    pub fn of_float(width: usize, parts: &[&Matrix]) -> Self {
        assert!(parts.iter().all(|p| p.cols == width), "columns of the parts against the width of the sum");
        let tokens = parts.iter().map(|part| part.rows).sum();
        Self::by_panels(width, tokens, parts, |sum, first, part| {
            let end = first + sum.len() / width;
            for rows in part.data.chunks(INT8_CHUNK * width) {
                let rows = MatRef::from_row_major_slice(rows, rows.len() / width, width);
                add_panel_rows(sum, first, width, rows.subcols(0, end));
            }
        })
    }

    /// A sum over parts of `tokens` tokens, which `add` adds to the rows from one on, up to the diagonal.
    fn by_panels<P: Sync>(
        width: usize,
        tokens: usize,
        parts: &[&P],
        add: impl Fn(&mut [f32], usize, &P) + Sync,
    ) -> Self {
        let mut all = Self::new(width);
        all.tokens = tokens;
        if width == 0 {
            return all;
        }
        let mut panels: Vec<&mut [f32]> = all.sum.chunks_mut(PANEL_ROWS * width).collect();
        // The lowest have the longest rows, and are begun first.
        let last = panels.len() - 1;
        panels.reverse();
        parallel_each_mut(&mut panels, |i, panel| {
            let first = (last - i) * PANEL_ROWS;
            let lane = |lane: usize, sum: &mut [f32]| {
                parts.iter().skip(lane).step_by(FLOAT_LANES).for_each(|part| add(sum, first, part));
            };
            lane(0, panel);
            let mut other = Vec::new();
            for number in 1..FLOAT_LANES.min(parts.len()) {
                other.clear();
                other.resize(panel.len(), 0.0);
                lane(number, &mut other);
                panel.iter_mut().zip(&other).for_each(|(a, b)| *a += b);
            }
        });
        all
    }

    /// Adds tokens, given by scales and codes, at their dequantized values.
    fn add_codes<'a>(&mut self, tokens: impl ExactSizeIterator<Item = (f32, &'a [i8])>) {
        let count = tokens.len();
        let mut rows = Vec::with_capacity(count * self.width);
        for (scale, codes) in tokens {
            rows.extend(codes.iter().map(|&code| f32::from(code) * scale));
        }
        self.add_rows(&rows, count);
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
    pub fn merge(&mut self, other: &CpuGram) {
        assert_eq!(other.width, self.width, "widths of the sums");
        self.tokens += other.tokens;
        for (a, b) in self.sum.iter_mut().zip(&other.sum) {
            *a += b;
        }
    }

    /// `2/n sum`, full symmetric `K x K`, in the memory of the sum; zero when there were no tokens.
    pub fn finish(mut self) -> Vec<f32> {
        /// Side of the square tiles of the transposition: two of them fit the first-level cache.
        const TILE: usize = 32;
        let width = self.width;
        let factor = if self.tokens == 0 { 0.0 } else { 2.0 / self.tokens as f64 };
        let full = &mut self.sum;
        for i0 in (0..width).step_by(TILE) {
            for j0 in (0..=i0).step_by(TILE) {
                for i in i0..(i0 + TILE).min(width) {
                    for j in j0..(j0 + TILE).min(i + 1) {
                        let value = (f64::from(full[i * width + j]) * factor) as f32;
                        full[i * width + j] = value;
                        full[j * width + i] = value;
                    }
                }
            }
        }
        self.sum
    }
}

/// Roots of the weights that [`CpuGram::of_int8`] gives the tokens of each part; none where all weights are 1.
pub(super) fn token_factors(width: usize, parts: &[&Int8Activations]) -> Vec<Vec<f32>> {
    if gram::is_fast(width) { integer_factors(parts) } else { Vec::new() }
}

/// Those of the integer products: a token's scale counts as the root of the mean square of its bucket's.
pub(super) fn integer_factors(parts: &[&Int8Activations]) -> Vec<Vec<f32>> {
    let mut factors: Vec<Vec<f32>> = parts.iter().map(|part| vec![1.0; part.rows]).collect();
    let tokens = |(p, part): (usize, &&Int8Activations)| {
        part.scales.iter().enumerate().map(move |(row, &scale)| (scale, (p, row))).collect::<Vec<_>>()
    };
    let mut tokens: Vec<(f32, (usize, usize))> = parts.iter().enumerate().flat_map(tokens).collect();
    for (bucket, power) in buckets(&mut tokens) {
        let Some(power) = power else { continue };
        for &(scale, (part, row)) in bucket.iter().filter(|(scale, _)| *scale != 0.0) {
            factors[part][row] = (f64::from(power as f32).sqrt() / f64::from(scale)) as f32;
        }
    }
    factors
}

/// Sorts tokens by their scale, and gives those that are summed together, with the mean square of their scales; `None` where
/// they are too few to be summed as integers.
fn buckets<T>(tokens: &mut [(f32, T)]) -> impl Iterator<Item = (&[(f32, T)], Option<f64>)> {
    // A stable sort: tokens of equal scale stay in the order of the text. NaN comes last.
    tokens.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut rest = &*tokens;
    std::iter::from_fn(move || {
        let smallest = rest.first()?.0;
        let alike = |&&(scale, _): &&(f32, T)| scale <= smallest * SCALE_SPREAD && scale.is_finite();
        let count = rest.iter().take(GRAM_TOKENS).take_while(alike).count().max(1);
        let (bucket, after) = rest.split_at(count);
        rest = after;
        let power = || bucket.iter().map(|&(s, _)| f64::from(s) * f64::from(s)).sum::<f64>() / count as f64;
        Some((bucket, (count >= MIN_GRAM_TOKENS).then(power)))
    })
}

/// Adds quantized activations to the rows from `first` on of a sum (those of `sum`, lower triangle).
fn add_panel(sum: &mut [f32], first: usize, width: usize, part: &Int8Activations) {
    let rows = sum.len() / width;
    let end = first + rows;
    let mut values = Vec::with_capacity(INT8_CHUNK.min(part.rows) * end);
    for (codes, scales) in part.codes.chunks(INT8_CHUNK * width).zip(part.scales.chunks(INT8_CHUNK)) {
        values.clear();
        for (codes, &scale) in codes.chunks_exact(width).zip(scales) {
            values.extend(codes[..end].iter().map(|&code| f32::from(code) * scale));
        }
        add_panel_rows(sum, first, width, MatRef::from_row_major_slice(&values, scales.len(), end));
    }
}

/// The same of float rows, of which `x` has the channels up to the last of the panel.
pub(super) fn add_panel_rows(sum: &mut [f32], first: usize, width: usize, x: MatRef<'_, f32>) {
    let rows = sum.len() / width;
    let (before, own) = x.split_at_col(first);
    // By its transpose: the constructor for rows with a stride mixes up the two strides (faer 0.24.4).
    let panel =
        MatMut::from_column_major_slice_with_stride_mut(sum, first + rows, rows, width).transpose_mut();
    let (left, diagonal) = panel.split_at_col_mut(first);
    let (full, lower) = (BlockStructure::Rectangular, BlockStructure::TriangularLower);
    for (to, structure, columns) in [(left, full, before), (diagonal, lower, own)] {
        matmul(to, structure, Accum::Add, own.transpose(), full, columns, full, 1.0, Par::Seq);
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
            let mut first = CpuGram::new(k);
            first.add(&a);
            let mut second = CpuGram::new(k);
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
        let mut h = CpuGram::new(k);
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
        let mut h = CpuGram::new(k);
        h.add_int8(&Int8Activations { rows, cols: k, codes, scales, sums });
        assert_eq!(h.tokens, rows);
        assert_close(&h.finish(), &naive(&[&Matrix { rows, cols: k, data }]), k);
    }

    /// Activations whose scales lie in `scale(random)`.
    fn int8(rows: usize, k: usize, seed: u64, scale: impl Fn(f32) -> f32) -> Int8Activations {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let codes: Vec<i8> = (0..rows * k).map(|_| rng.random()).collect();
        let scales = (0..rows).map(|_| scale(rng.random())).collect();
        let sums = codes.chunks_exact(k).map(|r| r.iter().map(|&c| i32::from(c)).sum()).collect();
        Int8Activations { rows, cols: k, codes, scales, sums }
    }

    #[test]
    fn integer_sums_are_the_hessian_of_nearly_equal_weights() {
        // 80 channels use the integer kernels where the machine has them, 40 never do.
        for k in [80, 40] {
            // Scales that lie close together, and a few outliers that have no neighbours.
            let close = int8(1500, k, 4, |u| 0.02 * (1.0 + u));
            let wide = int8(40, k, 5, |u| 0.01 * (u * 9.0).exp());
            let got = CpuGram::of_int8(k, &[&close, &wide]);
            assert_eq!(got.tokens, 1540);
            let want = naive(&[&close.dequantize(), &wide.dequantize()]);
            let got = got.finish();
            for i in 0..k {
                for j in 0..k {
                    let unit = (want[i * k + i] * want[j * k + j]).sqrt();
                    let error = (f64::from(got[i * k + j]) - want[i * k + j]).abs();
                    assert!(error <= 0.04 * unit, "H[{i},{j}]: error {error:e} of {unit:e}");
                }
            }
        }
    }

    #[test]
    fn equal_scales_make_integer_sums_exact() {
        let k = 64;
        let parts = [int8(700, k, 6, |_| 0.03), int8(10, k, 7, |_| 0.5), int8(33, k, 8, |_| 0.0071)];
        let refs: Vec<&Int8Activations> = parts.iter().collect();
        let floats: Vec<Matrix> = parts.iter().map(Int8Activations::dequantize).collect();
        let got = CpuGram::of_int8(k, &refs);
        assert_eq!(got.tokens, 743);
        assert_close(&got.finish(), &naive(&floats.iter().collect::<Vec<_>>()), k);
    }

    #[test]
    fn panels_give_the_bits_of_whole_partial_sums() {
        for k in [16, 40, 256, 300, 528, 1100] {
            let parts: Vec<_> =
                (0..6).map(|i| int8(100 + 97 * i, k, i as u64, |u| 0.01 * (u * 5.0).exp())).collect();
            let refs: Vec<&Int8Activations> = parts.iter().collect();
            let mut lanes: Vec<CpuGram> = (0..FLOAT_LANES).map(|_| CpuGram::new(k)).collect();
            parts.iter().enumerate().for_each(|(i, part)| lanes[i % FLOAT_LANES].add_int8(part));
            let mut want = lanes.remove(0);
            lanes.iter().for_each(|lane| want.merge(lane));
            let got = CpuGram::of_int8_in_float(k, &refs);
            assert_eq!(got.tokens, want.tokens);
            // Where faer's products of a panel sum in another order than those of the whole, checkpoints are no worse, but
            // there are none of an earlier version that they must equal.
            if cfg!(not(target_arch = "x86_64")) {
                let exact: Vec<Matrix> = parts.iter().map(Int8Activations::dequantize).collect();
                assert_close(&got.finish(), &naive(&exact.iter().collect::<Vec<_>>()), k);
                continue;
            }
            for i in 0..k {
                let row = i * k..=i * k + i;
                assert_eq!(got.sum[row.clone()], want.sum[row], "row {i} of {k}");
            }
        }
    }

    #[test]
    fn a_scale_that_is_not_finite_stays_visible() {
        let mut part = int8(64, 32, 9, |_| 0.1);
        part.scales[5] = f32::NAN;
        assert!(CpuGram::of_int8(32, &[&part]).finish().iter().all(|h| h.is_nan()));
    }

    #[test]
    fn nothing_gives_zero() {
        let mut h = CpuGram::new(4);
        h.add(&Matrix::zeros(0, 4));
        assert_eq!(h.finish(), vec![0.0; 16]);
        assert!(CpuGram::new(0).finish().is_empty());
    }
}
