//! The largest outputs of a wide float layer without reading all of its weights.
//!
//! The output head is the widest layer of a model and stays in 16 bits, so that at a batch of one it is half of what a
//! 4-bit model reads for a token. Greedy and top-k sampling ask for its largest outputs only. An int8 copy of the weights
//! gives every output up to a known error; the outputs that may be among the largest are computed again from the weights
//! themselves. The result is that of the whole product, bit for bit.
//!
//! With `w = s c + d` (codes `c`, remainder `d`) the error of an output is `|d x| <= |d| |x|` (Cauchy and Schwarz), plus
//! the rounding of float32 sums of `K` products in any order, at most `K 2^-24 |w| |x|` each for the copy and for the
//! weights.

use super::{element::Element, gemv, matrix::Matrix};
use crate::{
    pool,
    ranking::descending,
    shared::{SharedMut, with_shared_scratch},
    simd::{SimdLevel, multiversion},
};

/// Rows of the weight that one job encodes.
const ROWS_PER_JOB: usize = 256;
/// Above this share of all outputs (its inverse), computing the candidates again one by one takes longer than all.
const LEAST_SAVING: usize = 8;
/// Outputs that are computed again by one job.
const PRODUCTS_PER_JOB: usize = 64;
/// Bounds that are looked at together.
const CHUNK: usize = 64;
/// Products of norms beyond this may overflow in float32 sums.
const LARGEST_PRODUCT: f32 = 1e30;

/// An int8 copy of a weight of shape `N x K`, with error bounds.
#[derive(Debug)]
pub(crate) struct Shortlist {
    /// `N x K`, row-major.
    codes: Vec<i8>,
    /// One for each output.
    scales: Vec<f32>,
    /// The error of each output is at most this times the norm of the input.
    radii: Vec<f32>,
    /// The largest norm of a row of the weight.
    largest_norm: f32,
}

impl Shortlist {
    /// The copy of a weight with `n` rows; `None` if a value is not finite.
    pub(crate) fn new<W: Element>(level: SimdLevel, w: &[W], n: usize) -> Option<Self> {
        let k = w.len() / n;
        let (mut codes, mut scales) = (vec![0i8; n * k], vec![0.0f32; n]);
        let (mut radii, mut norms) = (vec![0.0f32; n], vec![0.0f32; n]);
        let outputs = scales
            .chunks_mut(ROWS_PER_JOB)
            .zip(radii.chunks_mut(ROWS_PER_JOB))
            .zip(norms.chunks_mut(ROWS_PER_JOB));
        let mut jobs: Vec<_> = codes.chunks_mut(ROWS_PER_JOB * k).zip(outputs).collect();
        pool::parallel_each_mut(&mut jobs, |job, (codes, ((scales, radii), norms))| {
            let mut wide = vec![0.0f32; k];
            for (i, codes) in codes.chunks_exact_mut(k).enumerate() {
                let row = job * ROWS_PER_JOB + i;
                W::widen(level, &w[row * k..(row + 1) * k], &mut wide);
                [scales[i], radii[i], norms[i]] = encode(&wide, codes);
            }
        });
        if norms.iter().any(|norm| !norm.is_finite()) {
            return None;
        }
        let largest_norm = norms.into_iter().fold(0.0f32, f32::max);
        Some(Self { codes, scales, radii, largest_norm })
    }

    /// The `count` largest elements of each row of `x w^T`, largest first, as [`gemv::skinny`] computes them, with
    /// their columns; among equals the first column comes first. `w` is the weight that the copy was made of.
    ///
    /// `None` where this way does not pay or its bounds do not hold: compute all then.
    pub(crate) fn top<W: Element>(
        &self,
        level: SimdLevel,
        x: &Matrix,
        w: &[W],
        count: usize,
    ) -> Option<Vec<Vec<(f32, u32)>>> {
        let n = self.scales.len();
        let norms: Vec<f32> = (0..x.rows).map(|row| norm(x.row(row))).collect();
        // A comparison that NaN fails.
        let holds = |norm: &f32| norm * self.largest_norm < LARGEST_PRODUCT;
        if count == 0 || count > n / LEAST_SAVING || !norms.iter().all(holds) {
            return None;
        }
        with_shared_scratch(x.rows * n, |products| {
            // SAFETY: the output is a matrix of this shape.
            unsafe { gemv::skinny(level, x, &self.codes, n, None, &SharedMut::new(products)) };
            let rows =
                products.chunks_exact_mut(n).zip(&norms).enumerate().map(|(row, (products, &norm))| {
                    let columns = self.candidates(level, products, norm, count)?;
                    let mut exact = vec![0.0f32; columns.len()];
                    pool::parallel_chunks_mut(&mut exact, PRODUCTS_PER_JOB, |job, exact| {
                        for (out, &column) in exact.iter_mut().zip(&columns[job * PRODUCTS_PER_JOB..]) {
                            let at = column as usize * x.cols;
                            *out = gemv::product(level, x.row(row), &w[at..at + x.cols]);
                        }
                    });
                    let mut top: Vec<(f32, u32)> = exact.into_iter().zip(columns).collect();
                    top.sort_unstable_by(descending);
                    top.truncate(count);
                    Some(top)
                });
            rows.collect()
        })
    }

    /// Columns that may hold one of the `count` largest outputs; `None` if there are too many. The products with the
    /// codes become upper bounds of the outputs.
    fn candidates(
        &self,
        level: SimdLevel,
        products: &mut [f32],
        norm: f32,
        count: usize,
    ) -> Option<Vec<u32>> {
        // At least `count` outputs are not below this.
        let threshold = if count == 1 {
            largest_low(level, products, &self.scales, &self.radii, norm)
        } else {
            let terms = products.iter().zip(&self.scales).zip(&self.radii);
            let mut lows: Vec<f32> = terms.map(|((p, scale), radius)| p * scale - radius * norm).collect();
            *lows.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a)).1
        };
        bound(level, products, &self.scales, &self.radii, norm);
        let mut found = Vec::new();
        for (chunk, highs) in products.chunks(CHUNK).enumerate() {
            // One test without branches for all: nearly every chunk has none.
            if highs.iter().fold(false, |any, high| any | (*high >= threshold)) {
                let columns = (chunk * CHUNK..).zip(highs).filter(|(_, high)| **high >= threshold);
                found.extend(columns.map(|(column, _)| column as u32));
            }
        }
        (found.len() <= products.len() / LEAST_SAVING).then_some(found)
    }
}

multiversion! {
    /// The largest lower bound of an output.
    fn largest_low(products: &[f32], scales: &[f32], radii: &[f32], norm: f32) -> f32 {
        const LANES: usize = 32;
        let mut tops = [f32::NEG_INFINITY; LANES];
        for ((products, scales), radii) in products.chunks(LANES).zip(scales.chunks(LANES)).zip(radii.chunks(LANES)) {
            for (((top, product), scale), radius) in tops.iter_mut().zip(products).zip(scales).zip(radii) {
                let low = product * scale - radius * norm;
                *top = if low > *top { low } else { *top };
            }
        }
        tops.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

multiversion! {
    /// Turns products with codes into upper bounds of the outputs.
    fn bound(products: &mut [f32], scales: &[f32], radii: &[f32], norm: f32) {
        for ((product, scale), radius) in products.iter_mut().zip(scales).zip(radii) {
            *product = *product * scale + radius * norm;
        }
    }
}

/// Codes of a row; returns its scale, the error bound for an input of norm 1, and its norm.
fn encode(w: &[f32], codes: &mut [i8]) -> [f32; 3] {
    if !w.iter().all(|v| v.is_finite()) {
        return [f32::NAN; 3];
    }
    let largest = w.iter().fold(0.0f32, |max, v| max.max(v.abs()));
    let scale = largest / 127.0;
    let inverse = if scale > 0.0 { 127.0 / largest } else { 0.0 };
    let (mut remainder, mut of_codes, mut of_weights) = (0.0f64, 0.0f64, 0.0f64);
    for (code, &w) in codes.iter_mut().zip(w) {
        // Saturates, should the inverse of a subnormal scale be infinite. What is lost is part of the remainder.
        *code = (w * inverse).round_ties_even() as i8;
        let (w, value) = (f64::from(w), f64::from(*code) * f64::from(scale));
        remainder += (w - value) * (w - value);
        of_codes += value * value;
        of_weights += w * w;
    }
    // Some units more than the sums need: for the products and sums around them.
    let unit = (w.len() + 16) as f64 * f64::from(f32::EPSILON) / 2.0;
    let radius = remainder.sqrt() + unit * (of_codes.sqrt() + of_weights.sqrt());
    [scale, up(radius), up(of_weights.sqrt())]
}

/// Norm of a vector, rounded upwards.
fn norm(x: &[f32]) -> f32 {
    up(x.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt())
}

/// An f32 that is surely not below `x`.
fn up(x: f64) -> f32 {
    (x * (1.0 + 1e-6)) as f32 + f32::MIN_POSITIVE
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::ranking::largest;

    fn levels() -> impl Iterator<Item = SimdLevel> {
        SimdLevel::all()
    }

    fn random(count: usize, seed: u64) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..count).map(|_| (0..4).map(|_| rng.random::<f32>() - 0.5).sum()).collect()
    }

    /// The largest of the whole product.
    fn expected<W: Element>(
        level: SimdLevel,
        x: &Matrix,
        w: &[W],
        n: usize,
        count: usize,
    ) -> Vec<Vec<(f32, u32)>> {
        let mut out = Matrix::zeros(x.rows, n);
        // SAFETY: the output is a matrix of this shape.
        unsafe { gemv::skinny(level, x, w, n, None, &SharedMut::new(&mut out.data)) };
        (0..x.rows).map(|row| largest(out.row(row), count)).collect()
    }

    fn bits(rows: &[Vec<(f32, u32)>]) -> Vec<Vec<(u32, u32)>> {
        rows.iter().map(|r| r.iter().map(|(v, i)| (v.to_bits(), *i)).collect()).collect()
    }

    fn check<W: Element>(x: &Matrix, w: &[W], n: usize, count: usize) {
        for level in levels() {
            let shortlist = Shortlist::new(level, w, n).expect("finite weights");
            let found = shortlist.top(level, x, w, count).expect("few candidates");
            assert_eq!(bits(&found), bits(&expected(level, x, w, n, count)), "{level:?}, {count} of {n}");
        }
    }

    #[test]
    fn gives_what_the_whole_product_gives() {
        let (n, k) = (3000, 200);
        let w = random(n * k, 1);
        let x = Matrix { rows: 3, cols: k, data: random(3 * k, 2) };
        for count in [1, 2, 17] {
            check(&x, &w, n, count);
            check(&x, &w.iter().map(|&v| f16::from_f32(v)).collect::<Vec<_>>(), n, count);
            check(&x, &w.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>(), n, count);
        }
    }

    #[test]
    fn few_outputs_are_computed_again() {
        let (n, k) = (20_000, 256);
        let w = random(n * k, 3);
        let x = Matrix { rows: 1, cols: k, data: random(k, 4) };
        let level = SimdLevel::detect();
        let shortlist = Shortlist::new(level, &w, n).expect("finite weights");
        let mut products = Matrix::zeros(1, n);
        // SAFETY: the output is a matrix of this shape.
        unsafe {
            gemv::skinny(level, &x, &shortlist.codes, n, None, &SharedMut::new(&mut products.data));
        }
        let found =
            shortlist.candidates(level, &mut products.data, norm(&x.data), 1).expect("few candidates");
        assert!(found.len() < 20, "{} candidates of {n}", found.len());
    }

    #[test]
    fn ties_and_near_ties_are_told_apart() {
        // Rows that differ by less than the copy can hold, in all orders, and some that are equal.
        let (n, k) = (4000, 64);
        let mut w = random(n * k, 5);
        let best: Vec<f32> = random(k, 6).iter().map(|v| 4.0 * v).collect();
        for (i, row) in [900usize, 17, 3999, 18, 0, 2000].into_iter().enumerate() {
            w[row * k..(row + 1) * k].copy_from_slice(&best);
            w[row * k + 3] += [3e-7, 0.0, 2e-6, 0.0, 1e-6, -1e-6][i];
        }
        let x = Matrix { rows: 1, cols: k, data: best };
        for count in 1..8 {
            check(&x, &w, n, count);
        }
    }

    #[test]
    fn rows_of_zeros_and_extreme_sizes() {
        let (n, k) = (800, 48);
        let mut w = random(n * k, 7);
        for row in 0..n {
            let factor = [0.0, 1e-42, 1e-20, 1.0, 1e6][row % 5];
            w[row * k..(row + 1) * k].iter_mut().for_each(|v| *v *= factor);
        }
        check(&Matrix { rows: 1, cols: k, data: random(k, 8) }, &w, n, 3);
    }

    #[test]
    fn what_the_bounds_do_not_hold_for_is_left_to_the_whole_product() {
        let level = SimdLevel::detect();
        let w = random(800 * 16, 9);
        let shortlist = Shortlist::new(level, &w, 800).expect("finite weights");
        for bad in [f32::NAN, f32::INFINITY, 1e31] {
            assert!(
                shortlist.top(level, &Matrix { rows: 1, cols: 16, data: vec![bad; 16] }, &w, 1).is_none()
            );
        }
        // Of an input of zeros all outputs are equal.
        assert!(shortlist.top(level, &Matrix::zeros(1, 16), &w, 1).is_none());
        let x = Matrix { rows: 1, cols: 16, data: random(16, 10) };
        assert!(shortlist.top(level, &x, &w, 101).is_none());
        for bad in [f32::NAN, f32::NEG_INFINITY] {
            let mut w = w.clone();
            w[1234] = bad;
            assert!(Shortlist::new(level, &w, 800).is_none());
        }
    }

    proptest! {
        #[test]
        fn any_shape(n in 8usize..400, k in 1usize..90, rows in 1usize..4, count in 1usize..4, seed in any::<u64>()) {
            let level = SimdLevel::detect();
            let w = random(n * k, seed);
            let x = Matrix { rows, cols: k, data: random(rows * k, !seed) };
            let shortlist = Shortlist::new(level, &w, n).expect("finite weights");
            if let Some(found) = shortlist.top(level, &x, &w, count) {
                prop_assert_eq!(bits(&found), bits(&expected(level, &x, &w, n, count)));
            }
        }
    }
}
