//! QuIP: 2-Bit Quantization of Large Language Models With Guarantees (Chee et al., arXiv 2307.13304).
//!
//! Weights and Hessian are made incoherent (Algorithm 1): rescaled, and turned by random orthogonal matrices from both sides, which
//! are Kronecker products of two small ones behind a random permutation. The weights then have no outliers, so that one range
//! serves all of them. LDLQ rounds them (Algorithm 3), greedy passes may follow (Algorithm 4), and everything is turned back (Algorithm
//! 2). At run time the matrices would be made again from their seed; what is stored here are the weights turned back.

use qqq_formats::{SimulatedMethod, simulated::Quip};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{
    Entry, RecipeName, Setting, factor,
    simulated::{
        Layer, Made, damped, dot, each_rows, failed, hessian, losses, nearest_code, rounded, widened,
    },
};
use crate::{Recipe, Result, half_type::HalfType, rotation::random_orthogonal};

/// W2A16 behind random orthogonal matrices.
pub const ENTRY: Entry = Entry {
    name: RecipeName::Quip,
    word: "quip",
    source: "arXiv 2307.13304",
    what: "weights turned by random matrices from both sides, then rounded with linear feedback",
    gives: "W2A16 simulated (--bits, --greedy, --rho, --no-incoherence)",
    recipe: || Recipe::simulating(SimulatedMethod::Quip(Quip::default())),
    settings: &[
        Setting::Bits,
        Setting::Greedy,
        Setting::Rho,
        Setting::Incoherence,
        Setting::Damping,
        Setting::Text,
        Setting::Seed,
    ],
};

/// Bits of the range of a layer's codes, of an input channel's factor, and of a seed.
const RANGE_BITS: f64 = 16.0;
const FACTOR_BITS: f64 = 16.0;
const SEED_BITS: f64 = 64.0;
/// Rows that a task solves together.
const ROWS: usize = 8;

/// Quantizes a layer.
///
/// Bits: codes, the range, and with incoherence a seed and a factor for each input channel.
///
/// # Errors
/// No Hessian, or one that is not positive definite.
pub fn quantize(layer: &Layer<'_>, options: &Quip, half: HalfType, seed: u64) -> Result<Made> {
    let (n, k) = (layer.n, layer.k);
    let h = damped(hessian(layer)?, k, options.damping);
    let turns = options.incoherence.then(|| {
        // Layers have matrices of their own.
        let name = layer.name.bytes().fold(seed, |s, b| s.wrapping_mul(0x0100_0000_01b3) ^ u64::from(b));
        let mut rng = ChaCha8Rng::seed_from_u64(name);
        (Turn::random(n, &mut rng), Turn::random(k, &mut rng))
    });
    let problem = Problem { w: layer.weights, h: &h, n, k, options, turns: turns.as_ref() };
    let solved = problem.solve(Rounding::Ldlq).map_err(|e| failed(layer, e))?;
    let nearest = problem.solve(Rounding::Nearest).map_err(|e| failed(layer, e))?;
    let weights = rounded(&solved, half);
    let extra = if options.incoherence { SEED_BITS + FACTOR_BITS * k as f64 } else { 0.0 };
    let [loss, loss_nearest] = losses(layer, [&widened(&weights), &nearest]);
    Ok(Made {
        bits: f64::from(options.bits) * (n * k) as f64 + RANGE_BITS + extra,
        quik: None,
        loss,
        loss_nearest,
        weights,
    })
}

/// How the processed weights are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rounding {
    /// Each for itself.
    Nearest,
    /// With feedback of the errors before, and the greedy passes that were asked for.
    Ldlq,
}

/// A random orthogonal matrix `(left x right) P`, with the Kronecker product of two and a permutation.
#[derive(Clone, Debug)]
pub(super) struct Turn {
    /// Row-major, `p x p`.
    pub left: Vec<f64>,
    /// `q x q`.
    pub right: Vec<f64>,
    /// Where entry `i` of a permuted vector comes from.
    pub order: Vec<usize>,
}

impl Turn {
    /// For vectors of `width = p q` entries, `p` the largest factor that is at most `q`.
    fn random(width: usize, rng: &mut ChaCha8Rng) -> Self {
        let p = (1..=width).take_while(|p| p * p <= width).filter(|p| width.is_multiple_of(*p)).last();
        let p = p.unwrap_or(1);
        let left = random_orthogonal(p, rng);
        let right = random_orthogonal(width / p, rng);
        let mut order: Vec<usize> = (0..width).collect();
        for i in (1..width).rev() {
            order.swap(i, rng.random_range(0..=i));
        }
        Self { left, right, order }
    }

    /// What gives `M x` for a vector `x`.
    fn forward(&self) -> impl Fn(&mut [f64]) + Sync {
        let q = self.right.len().isqrt();
        let product = Kronecker { left: self.left.clone(), right_transposed: transpose(&self.right, q, q) };
        move |x: &mut [f64]| {
            let permuted: Vec<f64> = self.order.iter().map(|i| x[*i]).collect();
            product.apply(&permuted, x);
        }
    }

    /// What gives `M^T x`.
    fn back(&self) -> impl Fn(&mut [f64]) + Sync {
        let p = self.left.len().isqrt();
        // The transpose of the transpose.
        let product = Kronecker { left: transpose(&self.left, p, p), right_transposed: self.right.clone() };
        move |x: &mut [f64]| {
            let mut turned = vec![0.0; x.len()];
            product.apply(x, &mut turned);
            self.order.iter().zip(&turned).for_each(|(i, v)| x[*i] = *v);
        }
    }
}

/// The Kronecker product of two square matrices.
struct Kronecker {
    /// `A`, row-major, `p x p`.
    left: Vec<f64>,
    /// `B^T`, `q x q`.
    right_transposed: Vec<f64>,
}

impl Kronecker {
    /// `(A x B) x`.
    fn apply(&self, x: &[f64], out: &mut [f64]) {
        let (p, q) = (self.left.len().isqrt(), self.right_transposed.len().isqrt());
        let mut half = vec![0.0; p * q];
        // Rows of the p x q matrix that the vector is, times B^T; then A times columns.
        for (half, x) in half.chunks_exact_mut(q).zip(x.chunks_exact(q)) {
            for (x, b) in x.iter().zip(self.right_transposed.chunks_exact(q)) {
                half.iter_mut().zip(b).for_each(|(y, b)| *y += x * b);
            }
        }
        for (out, a) in out.chunks_exact_mut(q).zip(self.left.chunks_exact(p)) {
            out.fill(0.0);
            for (a, half) in a.iter().zip(half.chunks_exact(q)) {
                out.iter_mut().zip(half).for_each(|(y, v)| *y += a * v);
            }
        }
    }
}

pub(super) struct Problem<'a> {
    /// `N x K`.
    pub w: &'a [f64],
    /// `K x K`, with its damping.
    pub h: &'a [f64],
    pub n: usize,
    pub k: usize,
    pub options: &'a Quip,
    /// Of output and of input channels; `None` without incoherence.
    pub turns: Option<&'a (Turn, Turn)>,
}

impl Problem<'_> {
    /// The weights that come out.
    pub fn solve(&self, rounding: Rounding) -> Result<Vec<f64>, factor::Failure> {
        let (n, k) = (self.n, self.k);
        let (mut w, mut h) = (self.w.to_vec(), self.h.to_vec());
        let factors = self.turns.map(|(outputs, inputs)| {
            let factors = self.rescale(&mut w, &mut h);
            turn(&mut w, n, k, outputs.forward(), inputs.forward());
            if rounding != Rounding::Nearest {
                turn(&mut h, k, k, inputs.forward(), inputs.forward());
            }
            factors
        });
        let square: f64 = w.iter().map(|w| w * w).sum();
        let range = self.options.rho * (square / (n * k) as f64).sqrt();
        if range > 0.0 {
            // From -range..range to codes, and back.
            let levels = f64::from((1u32 << self.options.bits) - 1);
            w.iter_mut().for_each(|w| *w = (*w / range + 1.0) / 2.0 * levels);
            self.round(&mut w, &h, levels, rounding)?;
            w.iter_mut().for_each(|w| *w = (*w / levels * 2.0 - 1.0) * range);
        }
        if let (Some((outputs, inputs)), Some(factors)) = (self.turns, factors) {
            turn(&mut w, n, k, outputs.back(), inputs.back());
            for row in w.chunks_exact_mut(k) {
                row.iter_mut().zip(&factors).for_each(|(w, f)| *w /= f);
            }
        }
        Ok(w)
    }

    /// Gives input channels the factors `(diag H / diag W^T W)^(1/4)`, by which both matrices become as even as they can; these
    /// are returned.
    fn rescale(&self, w: &mut [f64], h: &mut [f64]) -> Vec<f64> {
        let k = self.k;
        let mut squares = vec![0.0; k];
        for row in w.chunks_exact(k) {
            squares.iter_mut().zip(row).for_each(|(square, w)| *square += w * w);
        }
        let factor = |j: usize| (h[j * k + j] / squares[j]).sqrt().sqrt();
        let factors: Vec<f64> = (0..k).map(factor).map(|f| if f.is_normal() { f } else { 1.0 }).collect();
        for row in w.chunks_exact_mut(k) {
            row.iter_mut().zip(&factors).for_each(|(w, f)| *w *= f);
        }
        for (row, f) in h.chunks_exact_mut(k).zip(&factors) {
            row.iter_mut().zip(&factors).for_each(|(h, g)| *h /= f * g);
        }
        factors
    }

    /// Rounds weights in units of codes, in place.
    fn round(
        &self,
        w: &mut [f64],
        h: &[f64],
        levels: f64,
        rounding: Rounding,
    ) -> Result<(), factor::Failure> {
        let k = self.k;
        let nearest = |v: f64| nearest_code(v, 0.0, levels);
        if rounding == Rounding::Nearest {
            w.iter_mut().for_each(|w| *w = nearest(*w));
            return Ok(());
        }
        // H = (F + I) D (F + I)^T, F strictly upper triangular; here F^T, of which a row belongs to a column.
        let r = factor::upper(h, k)?;
        let mut feedback = vec![0.0; k * k];
        for j in 0..k {
            (0..j).for_each(|i| feedback[j * k + i] = r[i * k + j] / r[j * k + j]);
        }
        drop(r);
        let greedy = self.options.greedy;
        each_rows(w, k, ROWS, |_, rows| {
            // Column by column, so that a row of the matrices is read once for all rows of weights.
            let float = rows.to_vec();
            let mut errors = vec![0.0; rows.len()];
            let all = |j: usize, rows: &mut [f64], errors: &mut [f64], step: &dyn Fn(&[f64]) -> f64| {
                let rows =
                    rows.chunks_exact_mut(k).zip(errors.chunks_exact_mut(k)).zip(float.chunks_exact(k));
                for ((row, errors), float) in rows {
                    row[j] = nearest(float[j] + step(errors));
                    errors[j] = float[j] - row[j];
                }
            };
            for j in 0..k {
                let feedback = &feedback[j * k..j * k + j];
                all(j, rows, &mut errors, &|errors| dot(feedback, &errors[..j]));
            }
            // The best code of each column, given all others.
            for j in (0..greedy).flat_map(|_| 0..k) {
                let h = &h[j * k..(j + 1) * k];
                all(j, rows, &mut errors, &|errors| (dot(h, errors) - h[j] * errors[j]) / h[j]);
            }
        });
        Ok(())
    }
}

/// Applies orthogonal matrices to the rows and to the columns of a matrix, `rows x cols`.
fn turn(
    m: &mut [f64],
    rows: usize,
    cols: usize,
    of_columns: impl Fn(&mut [f64]) + Sync,
    of_rows: impl Fn(&mut [f64]) + Sync,
) {
    each_rows(m, cols, 1, |_, row| of_rows(row));
    let mut transposed = transpose(m, rows, cols);
    each_rows(&mut transposed, rows, 1, |_, column| of_columns(column));
    m.copy_from_slice(&transpose(&transposed, cols, rows));
}

fn transpose(m: &[f64], rows: usize, cols: usize) -> Vec<f64> {
    let mut out = vec![0.0; m.len()];
    for (i, row) in m.chunks_exact(cols).enumerate() {
        row.iter().enumerate().for_each(|(j, v)| out[j * rows + i] = *v);
    }
    out
}
