//! How the float model's inputs of a layer deviate from those of the quantized model.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

use super::gram;
use crate::{
    BackendError, Result,
    cpu::{CpuInput, integer::Int8Activations},
    pool::parallel_each_mut,
};

/// Tokens whose rows are widened at a time.
const CHUNK: usize = 512;
/// Of these, the tokens of a task.
const CHUNK_ROWS: usize = 32;
/// Rows of the sums that are one task.
const PANEL_ROWS: usize = 128;

/// Sums over tokens of `x (y - x)^T` and of `(y - x) (y - x)^T`, float32; `x` of the quantized model, `y` of the float
/// model.
///
/// The second factor of both is a difference that is made of each token: where the two models agree, the sums are exactly
/// 0, which differences of second moments would not be.
#[derive(Clone, Debug)]
pub struct CpuDeviation {
    width: usize,
    tokens: usize,
    /// Roots of the weights of the tokens of each input; where there are none, 1.
    factors: Vec<Vec<f32>>,
    /// `x (y - x)^T`, `K x K` row-major.
    cross: Vec<f32>,
    /// `(y - x) (y - x)^T`, `K x K` row-major, lower triangle valid.
    square: Vec<f32>,
}

impl CpuDeviation {
    /// Over no tokens. `together`: as [`Calibrate::deviations`](crate::Calibrate::deviations) has it.
    pub(super) fn new(width: usize, together: &[&CpuInput]) -> Self {
        let parts: Vec<&Int8Activations> = together
            .iter()
            .filter_map(|x| match x {
                CpuInput::Int8(x) => Some(x),
                CpuInput::Float(_) => None,
            })
            .collect();
        let values = vec![0.0; width * width];
        Self {
            width,
            tokens: 0,
            factors: gram::token_factors(width, &parts),
            cross: values.clone(),
            square: values,
        }
    }

    /// Adds pairs of inputs, from the input `first` of those with weights on.
    ///
    /// # Errors
    /// Inputs that are not as wide as the sums, or of different lengths.
    pub(super) fn add(&mut self, first: usize, pairs: &[(&CpuInput, &CpuInput)]) -> Result<()> {
        let Self { width: k, tokens, factors, cross, square } = self;
        let k = *k;
        for (i, &(x, y)) in pairs.iter().enumerate() {
            if (x.rows(), x.cols()) != (y.rows(), y.cols()) || x.cols() != k {
                return Err(BackendError::Shape(format!(
                    "{} x {} inputs of the float model beside {} x {}, for sums of {k} channels",
                    y.rows(),
                    y.cols(),
                    x.rows(),
                    x.cols()
                )));
            }
            let factors = factors.get(first + i);
            if factors.is_some_and(|factors| factors.len() != x.rows()) {
                return Err(BackendError::Shape(format!("{} rows that have weights for others", x.rows())));
            }
            *tokens += x.rows();
            if k == 0 {
                continue;
            }
            let count = CHUNK.min(x.rows());
            let (mut inputs, mut deviations) = (vec![0.0; count * k], vec![0.0; count * k]);
            for start in (0..x.rows()).step_by(CHUNK) {
                let count = CHUNK.min(x.rows() - start);
                let (inputs, deviations) = (&mut inputs[..count * k], &mut deviations[..count * k]);
                let pieces = inputs.chunks_mut(CHUNK_ROWS * k).zip(deviations.chunks_mut(CHUNK_ROWS * k));
                parallel_each_mut(&mut pieces.collect::<Vec<_>>(), |piece, (inputs, deviations)| {
                    let rows = inputs.chunks_exact_mut(k).zip(deviations.chunks_exact_mut(k));
                    for (row, (input, deviation)) in (start + piece * CHUNK_ROWS..).zip(rows) {
                        let factor = factors.map_or(1.0, |factors| factors[row]);
                        read_row(x, row, input);
                        read_row(y, row, deviation);
                        for (x, d) in input.iter_mut().zip(deviation) {
                            (*x, *d) = (*x * factor, (*d - *x) * factor);
                        }
                    }
                });
                add_rows(cross, square, inputs, deviations, k);
            }
        }
        Ok(())
    }

    /// `2/n` times the sums, after which nothing is added to them but [others like them](Self::add_other).
    pub(super) fn finish(mut self) -> Self {
        let factor = if self.tokens == 0 { 0.0 } else { 2.0 / self.tokens as f64 };
        for values in [&mut self.cross, &mut self.square] {
            values.iter_mut().for_each(|v| *v = (f64::from(*v) * factor) as f32);
        }
        self.factors = Vec::new();
        self
    }

    /// Adds `factor` times another one.
    ///
    /// # Errors
    /// The widths differ.
    pub(super) fn add_other(&mut self, other: &Self, factor: f64) -> Result<()> {
        if self.width != other.width {
            return Err(BackendError::Shape(format!(
                "deviations of {} and of {} channels",
                self.width, other.width
            )));
        }
        for (own, others) in [(&mut self.cross, &other.cross), (&mut self.square, &other.square)] {
            let pairs = own.iter_mut().zip(others);
            pairs.for_each(|(a, b)| *a = (f64::from(*a) + factor * f64::from(*b)) as f32);
        }
        Ok(())
    }

    /// Both matrices.
    pub(super) fn values(&self) -> (&[f32], &[f32]) {
        (&self.cross, &self.square)
    }
}

/// Adds rows to both sums.
fn add_rows(cross: &mut [f32], square: &mut [f32], inputs: &[f32], deviations: &[f32], k: usize) {
    let inputs = MatRef::from_row_major_slice(inputs, inputs.len() / k, k);
    let deviations = MatRef::from_row_major_slice(deviations, deviations.len() / k, k);
    let panels = cross.chunks_mut(PANEL_ROWS * k).zip(square.chunks_mut(PANEL_ROWS * k));
    let mut panels: Vec<_> = panels.collect();
    // The lowest take longest, and are begun first.
    let last = panels.len() - 1;
    panels.reverse();
    parallel_each_mut(&mut panels, |i, (cross, square)| {
        let first = (last - i) * PANEL_ROWS;
        let rows = cross.len() / k;
        let to = MatMut::from_row_major_slice_mut(cross, rows, k);
        let own = inputs.get(.., first..first + rows).transpose();
        matmul(to, Accum::Add, own, deviations, 1.0, Par::Seq);
        gram::add_panel_rows(square, first, k, deviations.get(.., ..first + rows));
    });
}

/// A row at what it stands for.
fn read_row(x: &CpuInput, row: usize, out: &mut [f32]) {
    match x {
        CpuInput::Float(x) => out.copy_from_slice(x.row(row)),
        CpuInput::Int8(x) => {
            let (scale, codes) = (x.scales[row], &x.codes[row * x.cols..][..x.cols]);
            out.iter_mut().zip(codes).for_each(|(out, &code)| *out = f32::from(code) * scale);
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::cpu::matrix::Matrix;

    fn random(rows: usize, cols: usize, seed: u64) -> Matrix {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let data =
            (0..rows * cols).map(|i| (rng.random::<f32>() - 0.4) * (1.0 + (i % cols) as f32)).collect();
        Matrix { rows, cols, data }
    }

    /// Inputs of the float model, and as int8 activations of another one, which are off by a part of other numbers.
    fn pair(rows: usize, cols: usize, seed: u64) -> (CpuInput, CpuInput) {
        let y = random(rows, cols, seed);
        let mut x = random(rows, cols, seed + 100);
        x.data.iter_mut().zip(&y.data).for_each(|(x, y)| *x = y + 0.3 * *x);
        (CpuInput::Int8(Int8Activations::quantize(&x)), CpuInput::Float(y))
    }

    /// `2/n` times the sums of both products over rows, in f64, each row with a weight.
    fn naive(pairs: &[(CpuInput, CpuInput)], weight: impl Fn(usize, usize) -> f64) -> [Vec<f64>; 2] {
        let k = pairs[0].0.cols();
        let n: usize = pairs.iter().map(|(x, _)| x.rows()).sum();
        let mut out = [vec![0.0; k * k], vec![0.0; k * k]];
        for (part, (x, y)) in pairs.iter().enumerate() {
            let (x, y) = (x.values(), y.values());
            for (row, (x, y)) in x.chunks_exact(k).zip(y.chunks_exact(k)).enumerate() {
                let weight = weight(part, row) * 2.0 / n as f64;
                let d: Vec<f64> = x.iter().zip(y).map(|(x, y)| f64::from(*y) - f64::from(*x)).collect();
                for i in 0..k {
                    for j in 0..k {
                        out[0][i * k + j] += weight * f64::from(x[i]) * d[j];
                        out[1][i * k + j] += weight * d[i] * d[j];
                    }
                }
            }
        }
        out
    }

    #[track_caller]
    fn assert_close(got: &CpuDeviation, want: &[Vec<f64>; 2]) {
        let k = got.width;
        let (cross, square) = got.values();
        let largest = |values: &[f64]| values.iter().fold(0.0f64, |max, v| max.max(v.abs()));
        for (what, got, want) in [("cross", cross, &want[0]), ("square", square, &want[1])] {
            let unit = largest(want);
            for i in 0..k {
                // Above the diagonal the second matrix has nothing.
                for j in 0..if what == "square" { i + 1 } else { k } {
                    let error = (f64::from(got[i * k + j]) - want[i * k + j]).abs();
                    assert!(error <= 1e-5 * unit, "{what}[{i}, {j}] of {k}: error {error:e} of {unit:e}");
                }
            }
        }
    }

    #[test]
    fn sums_are_those_of_the_definition() {
        // Panels, and chunks of tokens, that are whole and that are not.
        for (k, lengths) in [(5, vec![3, 700]), (128, vec![512]), (150, vec![1, 1100, 40])] {
            let pairs: Vec<_> = lengths.iter().zip(1..).map(|(&rows, seed)| pair(rows, k, seed)).collect();
            let mut sums = CpuDeviation::new(k, &[]);
            for (x, y) in &pairs {
                sums.add(0, &[(x, y)]).unwrap();
            }
            assert_close(&sums.finish(), &naive(&pairs, |_, _| 1.0));
        }
    }

    #[test]
    fn tokens_weigh_as_they_do_in_the_hessian() {
        let k = 16;
        let mut pairs: Vec<_> = (1..4).map(|seed| pair(300, k, seed)).collect();
        for (i, (x, _)) in pairs.iter_mut().enumerate() {
            // Scales that lie close together, some that lie apart, and tokens that are zero.
            let CpuInput::Int8(x) = x else { panic!() };
            for (row, scale) in x.scales.iter_mut().enumerate() {
                *scale = match row {
                    0..5 => 0.0,
                    5..20 => 0.001 * 1.7f32.powi(row as i32 + i as i32),
                    _ => 0.02 + 1e-5 * (row * (i + 3) % 97) as f32,
                };
            }
        }
        let int8: Vec<&Int8Activations> = pairs
            .iter()
            .map(|(x, _)| match x {
                CpuInput::Int8(x) => x,
                CpuInput::Float(_) => panic!(),
            })
            .collect();
        let factors = gram::integer_factors(&int8);
        assert!(factors.iter().flatten().any(|f| *f != 1.0), "all weights are 1");
        // Of inputs that are all 0 in the float model the deviation is -x, and both sums are the Hessian's.
        let zero = CpuInput::Float(Matrix::zeros(300, k));
        let against_zero: Vec<_> = pairs.iter().map(|(x, _)| (x, &zero)).collect();
        let sums = |pairs: &[(&CpuInput, &CpuInput)]| {
            let mut sums = CpuDeviation::new(k, &[]);
            sums.factors = factors.clone();
            // In two calls, as waves of windows come.
            sums.add(0, &pairs[..1]).unwrap();
            sums.add(1, &pairs[1..]).unwrap();
            sums.finish()
        };
        let got = sums(&against_zero);
        let want: Vec<f64> =
            gram::CpuGram::of_int8_in_integers(k, &int8).finish().into_iter().map(f64::from).collect();
        assert_close(&got, &[want.iter().map(|h| -h).collect(), want]);
        let borrowed: Vec<_> = pairs.iter().map(|(x, y)| (x, y)).collect();
        assert_close(&sums(&borrowed), &naive(&pairs, |part, row| f64::from(factors[part][row]).powi(2)));
    }

    #[test]
    fn models_that_agree_deviate_by_nothing() {
        let (x, _) = pair(600, 40, 3);
        let y = CpuInput::Float(Matrix { rows: 600, cols: 40, data: x.values().into_owned() });
        let mut sums = CpuDeviation::new(40, &[&x]);
        sums.add(0, &[(&x, &y)]).unwrap();
        let sums = sums.finish();
        assert!(sums.values().0.iter().chain(sums.values().1).all(|v| *v == 0.0));
    }

    #[test]
    fn shares_are_added() {
        let pairs = [pair(50, 9, 1), pair(70, 9, 2)];
        let of = |(x, y): &(CpuInput, CpuInput)| {
            let mut sums = CpuDeviation::new(9, &[]);
            sums.add(0, &[(x, y)]).unwrap();
            sums.finish()
        };
        let mut sum = of(&pairs[0]);
        sum.add_other(&of(&pairs[1]), 0.25).unwrap();
        let [a, b] = [0, 1].map(|i| naive(&pairs[i..=i], |_, _| 1.0));
        let want = [0, 1].map(|m| a[m].iter().zip(&b[m]).map(|(a, b)| a + 0.25 * b).collect());
        assert_close(&sum, &want);
        assert!(sum.add_other(&CpuDeviation::new(8, &[]), 1.0).is_err());
    }

    #[test]
    fn inputs_that_do_not_fit_are_refused() {
        let ((x, _), (_, y)) = (pair(10, 8, 1), pair(11, 8, 1));
        let mut sums = CpuDeviation::new(8, &[]);
        assert!(matches!(sums.add(0, &[(&x, &y)]), Err(BackendError::Shape(_))));
        let (x, y) = pair(10, 9, 1);
        assert!(matches!(sums.add(0, &[(&x, &y)]), Err(BackendError::Shape(_))));
        assert!(CpuDeviation::new(4, &[]).finish().values().0.iter().all(|v| *v == 0.0));
    }
}
