//! The inputs of the value projection as attention averages them.
//!
//! A query's output is `sum_t p_t V x_t`, so that an error `D` of `V` costs `|D z|^2` with `z = sum_t p_t x_t`: what
//! counts is the second moment of `z`, not that of `x`. The two differ much. Attention sinks (Xiao et al., arXiv
//! 2309.17453) put half of all weight on one token of thousands, whose input is unlike all others, and errors at tokens
//! that are averaged cancel. On SmolLM2-135M a `V` solved for `x` has 0.013 of relative error on `x` but 0.108 on `z`;
//! solved for `z`, it has 0.016 and 0.006.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use qqq_backend::{CpuBackend, HeadLayout, WindowedCausal, cpu::matrix::Matrix};

use crate::hessian::Hessian;

/// Queries of a window and head that are looked at, evenly spaced: neighbours attend to nearly the same.
pub const QUERIES: usize = 32;
/// Queries that share the range of keys they are multiplied with.
pub(crate) const BLOCK: usize = 16;
/// Weight of the second moment of `x` itself, relative to that of `z`: it speaks for tokens that some other text
/// attends to.
const INPUT_SHARE: f64 = 0.3;

/// Averages `z` of the rows of `x` (one sequence from its start), one for each sampled query of every head, for queries
/// and keys as they stand in `qkv` after the rotary embedding.
///
/// # Panics
/// If `x` and `qkv` differ in their rows, or `qkv` has not the width of `heads`.
pub fn attended(b: &CpuBackend, x: &Matrix, qkv: &Matrix, heads: HeadLayout, mask: WindowedCausal) -> Matrix {
    assert_eq!(x.rows, qkv.rows, "tokens");
    assert_eq!(qkv.cols, heads.qkv_width(), "width of a qkv row");
    let d = heads.head_dim;
    let stride = x.rows.div_ceil(QUERIES).max(1);
    let sampled: Vec<usize> = (stride / 2..x.rows).step_by(stride).collect();
    let mut out = Matrix::unspecified(heads.num_heads * sampled.len(), x.cols);
    let mut queries = Vec::new();
    let mut rest = out.data.as_mut_slice();
    for block in sampled.chunks(BLOCK) {
        // Position p sees the positions from p + 1 - window to p.
        let sees = |p: usize| mask.window.map_or(0, |window| (p + 1).saturating_sub(window))..p + 1;
        let (first, last) = (sees(block[0]).start, block[block.len() - 1]);
        let keys = last + 1 - first;
        let count = heads.num_heads * block.len();
        let mut weights = Matrix::unspecified(count, keys);
        for (head, weights) in weights.data.chunks_exact_mut(block.len() * keys).enumerate() {
            let key = heads.q_width() + head / (heads.num_heads / heads.num_kv_heads) * d;
            queries.clear();
            block.iter().for_each(|&p| queries.extend_from_slice(&qkv.row(p)[head * d..(head + 1) * d]));
            let keys_of_head = &qkv.data[first * qkv.cols + key..];
            matmul(
                MatMut::from_row_major_slice_mut(weights, block.len(), keys),
                Accum::Replace,
                MatRef::from_row_major_slice(&queries, block.len(), d),
                MatRef::from_row_major_slice_with_stride(keys_of_head, keys, d, qkv.cols).transpose(),
                (d as f32).sqrt().recip(),
                Par::Seq,
            );
            for (&p, weights) in block.iter().zip(weights.chunks_exact_mut(keys)) {
                let seen = sees(p);
                b.softmax(weights, seen.start - first..seen.end - first);
            }
        }
        // One product for all heads.
        let (averages, after) = rest.split_at_mut(count * x.cols);
        rest = after;
        matmul(
            MatMut::from_row_major_slice_mut(averages, count, x.cols),
            Accum::Replace,
            MatRef::from_row_major_slice(&weights.data, count, keys),
            MatRef::from_row_major_slice(&x.data[first * x.cols..(last + 1) * x.cols], keys, x.cols),
            1.0,
            Par::Seq,
        );
    }
    out
}

/// The Hessian of the value projection, full: that of the averages, plus a share of that of the `inputs` (full, `K x K`) at
/// equal trace.
///
/// # Panics
/// If the widths differ.
pub fn value_hessian(averages: Hessian, inputs: &[f32]) -> Vec<f32> {
    let width = averages.width;
    assert_eq!(width * width, inputs.len(), "widths of the Hessians");
    let mut sum = averages.finish();
    let trace = |h: &[f32]| h.iter().step_by(width + 1).map(|&d| f64::from(d)).sum::<f64>();
    let (of_z, of_x) = (trace(&sum), trace(inputs));
    let factor = if of_x > 0.0 { INPUT_SHARE * of_z / of_x } else { 0.0 };
    sum.iter_mut().zip(inputs).for_each(|(z, x)| *z = (f64::from(*z) + factor * f64::from(*x)) as f32);
    sum
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::solve::{SolveOptions, solve};

    const HEADS: HeadLayout = HeadLayout { num_heads: 4, num_kv_heads: 2, head_dim: 8 };

    fn random(rows: usize, cols: usize, seed: u64) -> Matrix {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        Matrix { rows, cols, data: (0..rows * cols).map(|_| 4.0 * rng.random::<f32>() - 2.0).collect() }
    }

    /// The average of one query, in f64.
    fn naive(x: &Matrix, qkv: &Matrix, head: usize, query: usize, window: Option<usize>) -> Vec<f64> {
        let HeadLayout { num_heads, num_kv_heads, head_dim: d } = HEADS;
        let key = num_heads * d + head / (num_heads / num_kv_heads) * d;
        let first = window.map_or(0, |w| (query + 1).saturating_sub(w));
        let score = |t: usize| {
            let dot: f64 = (0..d)
                .map(|i| f64::from(qkv.row(query)[head * d + i]) * f64::from(qkv.row(t)[key + i]))
                .sum();
            (dot / (d as f64).sqrt()).exp()
        };
        let weights: Vec<f64> = (first..=query).map(score).collect();
        let sum: f64 = weights.iter().sum();
        let average =
            |c: usize| weights.iter().zip(first..).map(|(w, t)| w / sum * f64::from(x.row(t)[c])).sum();
        (0..x.cols).map(average).collect()
    }

    #[test]
    fn averages_are_those_of_attention() {
        // Fewer tokens than queries, as many, more, and numbers that no block divides.
        for (rows, window) in
            [(1, None), (5, None), (32, Some(3)), (33, None), (500, None), (500, Some(70)), (300, Some(1))]
        {
            let (x, qkv) = (random(rows, 10, 1), random(rows, HEADS.qkv_width(), 2));
            let found = attended(&CpuBackend::default(), &x, &qkv, HEADS, WindowedCausal { window });
            let stride = rows.div_ceil(QUERIES);
            let sampled: Vec<usize> = (stride / 2..rows).step_by(stride).collect();
            assert_eq!((found.rows, found.cols), (4 * sampled.len(), 10));
            let expected: Vec<Vec<f64>> = sampled
                .chunks(BLOCK)
                .flat_map(|block| (0..4).flat_map(|head| block.iter().map(move |&query| (head, query))))
                .map(|(head, query)| naive(&x, &qkv, head, query, window))
                .collect();
            for (row, expected) in expected.iter().enumerate() {
                for (a, b) in found.row(row).iter().zip(expected) {
                    assert!((f64::from(*a) - b).abs() < 1e-5, "{rows} tokens, window {window:?}, row {row}");
                }
            }
        }
    }

    #[test]
    fn a_value_projection_solved_for_averages_has_the_better_output() {
        // Every query looks at the first token most, whose input is unlike the others.
        let (tokens, k, n) = (512, 64, 32);
        let mut x = random(tokens, k, 3);
        x.row_mut(0).iter_mut().enumerate().for_each(|(j, v)| *v = if j % 9 == 0 { 12.0 } else { 0.0 });
        let mut qkv = random(tokens, HEADS.qkv_width(), 4);
        for t in 0..tokens {
            qkv.row_mut(t)[..32].iter_mut().for_each(|q| *q += 2.0);
        }
        qkv.row_mut(0)[32..48].fill(2.0);
        let z = attended(&CpuBackend::default(), &x, &qkv, HEADS, WindowedCausal { window: None });
        let (mut of_x, mut of_z) = (Hessian::new(k), Hessian::new(k));
        of_x.add(&x);
        of_z.add(&z);
        let weight = random(n, k, 5).data.clone();
        let error = |h: &[f32]| {
            let solved = solve("v", &weight, n, k, h, &SolveOptions::default()).unwrap().weight;
            let value = |row: usize, j: usize| {
                f64::from(solved.codes[row * k + j]) * f64::from(solved.channel_scales()[row])
            };
            let of = |row: usize, z: &[f32]| {
                let terms =
                    (0..k).map(|j| (f64::from(weight[row * k + j]) - value(row, j)) * f64::from(z[j]));
                terms.sum::<f64>().powi(2)
            };
            z.data.chunks_exact(k).map(|z| (0..n).map(|row| of(row, z)).sum::<f64>()).sum::<f64>()
        };
        let inputs = of_x.finish();
        let (plain, averaged) = (error(&inputs), error(&value_hessian(of_z, &inputs)));
        assert!(averaged < 0.5 * plain, "{averaged} against {plain}");
    }

    #[test]
    fn inputs_have_their_share_of_the_trace() {
        let (mut z, mut x) = (Hessian::new(6), Hessian::new(6));
        z.add(&random(40, 6, 6));
        x.add(&random(90, 6, 7));
        let trace = |h: &[f32]| h.iter().step_by(7).map(|&d| f64::from(d)).sum::<f64>();
        let ratio = trace(&value_hessian(z.clone(), &x.finish())) / trace(&z.clone().finish());
        assert!((ratio - 1.0 - INPUT_SHARE).abs() < 1e-6, "{ratio}");
        assert_eq!(value_hessian(z.clone(), &Hessian::new(6).finish()), z.finish());
    }
}
