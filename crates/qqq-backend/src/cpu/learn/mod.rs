//! The operations of learning on the host, on all threads. Products are faer's; work is divided the same way for every number of
//! threads, so that results do not depend on it.

mod array;
mod attention;
mod number;
mod rows;
mod weights;

use std::{marker::PhantomData, ops::Range};

use faer::{Accum, MatMut, Par, linalg::matmul::matmul};

pub use self::array::Array;
pub use self::number::Real;
use crate::{
    AttentionKind, Gate, HeadLayout, Result,
    learn::{
        ADAM_DECAY, ADAM_EPSILON, ADAM_SQUARE_DECAY, AdamStep, Learn, Parameter, Rotary, Turn,
        WeightGradients, WeightGrid,
    },
    pool::parallel_chunks_mut,
};

/// Rows of a product that a task computes.
const ROWS_PER_PRODUCT: usize = 128;

/// The host, in numbers of a type.
#[derive(Clone, Copy, Debug)]
pub struct CpuLearner<T>(PhantomData<fn() -> T>);

impl<T> CpuLearner<T> {
    /// On the project's threads.
    pub fn new() -> Self {
        Self(PhantomData)
    }
}

impl<T> Default for CpuLearner<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Real> Learn for CpuLearner<T> {
    type Array = Array<T>;

    fn array(&self, rows: usize, cols: usize, values: &[f32]) -> Result<Array<T>> {
        assert_eq!(rows * cols, values.len(), "values of a matrix");
        Ok(Array { rows, cols, data: values.iter().map(|&x| T::of(f64::from(x))).collect() })
    }

    fn read(&self, x: &Array<T>) -> Result<Vec<f32>> {
        Ok(x.data.iter().map(|x| x.narrow()).collect())
    }

    fn zeros_like(&self, x: &Array<T>) -> Result<Array<T>> {
        Ok(Array::zeros(x.rows, x.cols))
    }

    fn copy(&self, x: &Array<T>) -> Result<Array<T>> {
        Ok(x.clone())
    }

    fn product(&self, x: &Array<T>, w: &Array<T>, bias: Option<&Array<T>>) -> Result<Array<T>> {
        let n = w.rows;
        let mut out = Array::zeros(x.rows, n);
        parallel_chunks_mut(&mut out.data, ROWS_PER_PRODUCT * n, |task, out| {
            let rows = out.len() / n;
            let x = x.view().subrows(task * ROWS_PER_PRODUCT, rows);
            let accum = match bias {
                Some(bias) => {
                    out.chunks_exact_mut(n).for_each(|row| row.copy_from_slice(&bias.data));
                    Accum::Add
                }
                None => Accum::Replace,
            };
            let out = MatMut::from_row_major_slice_mut(out, rows, n);
            matmul(out, accum, x, w.view().transpose(), T::ONE, Par::Seq);
        });
        Ok(out)
    }

    fn product_back_x(&self, dy: &Array<T>, w: &Array<T>) -> Result<Array<T>> {
        let k = w.cols;
        let mut out = Array::zeros(dy.rows, k);
        parallel_chunks_mut(&mut out.data, ROWS_PER_PRODUCT * k, |task, out| {
            let rows = out.len() / k;
            let dy = dy.view().subrows(task * ROWS_PER_PRODUCT, rows);
            let out = MatMut::from_row_major_slice_mut(out, rows, k);
            matmul(out, Accum::Replace, dy, w.view(), T::ONE, Par::Seq);
        });
        Ok(out)
    }

    fn product_back_w(&self, dy: &Array<T>, x: &Array<T>) -> Result<Array<T>> {
        let k = x.cols;
        let mut out = Array::zeros(dy.cols, k);
        parallel_chunks_mut(&mut out.data, ROWS_PER_PRODUCT * k, |task, out| {
            let rows = out.len() / k;
            let dy = dy.view().subcols(task * ROWS_PER_PRODUCT, rows);
            let out = MatMut::from_row_major_slice_mut(out, rows, k);
            matmul(out, Accum::Replace, dy.transpose(), x.view(), T::ONE, Par::Seq);
        });
        Ok(out)
    }

    fn norm(&self, x: &Array<T>, weight: &Array<T>, eps: f64) -> Result<Array<T>> {
        Ok(Array::filled(x.rows, x.cols, |i, out| {
            out.copy_from_slice(x.row(i));
            rows::norm(out, &weight.data, eps);
        }))
    }

    fn norm_back(&self, dy: &Array<T>, x: &Array<T>, weight: &Array<T>, eps: f64) -> Result<Array<T>> {
        Ok(Array::filled(x.rows, x.cols, |i, out| {
            out.copy_from_slice(dy.row(i));
            rows::norm_back(out, x.row(i), &weight.data, eps);
        }))
    }

    fn norm_heads(&self, x: &mut Array<T>, columns: Range<usize>, weight: &Array<T>, eps: f64) -> Result<()> {
        x.each_row(|_, row| {
            let heads = row[columns.clone()].chunks_exact_mut(weight.cols);
            heads.for_each(|head| rows::norm(head, &weight.data, eps));
        });
        Ok(())
    }

    fn norm_heads_back(
        &self,
        dy: &mut Array<T>,
        x: &Array<T>,
        columns: Range<usize>,
        weight: &Array<T>,
        eps: f64,
    ) -> Result<()> {
        dy.each_row(|i, row| {
            let heads = row[columns.clone()].chunks_exact_mut(weight.cols);
            let before = x.row(i)[columns.clone()].chunks_exact(weight.cols);
            heads.zip(before).for_each(|(dy, x)| rows::norm_back(dy, x, &weight.data, eps));
        });
        Ok(())
    }

    fn rotate(
        &self,
        qkv: &mut Array<T>,
        heads: HeadLayout,
        rotary: &Rotary<Array<T>>,
        turn: Turn,
    ) -> Result<()> {
        qkv.each_row(|i, row| rows::rotate(row, heads, rotary, i, turn));
        Ok(())
    }

    fn attention(&self, qkv: &Array<T>, kind: &AttentionKind) -> Result<Array<T>> {
        Ok(attention::forward(qkv, kind))
    }

    fn attention_back(
        &self,
        dy: &Array<T>,
        y: &Array<T>,
        qkv: &Array<T>,
        kind: &AttentionKind,
    ) -> Result<Array<T>> {
        Ok(attention::back(dy, y, qkv, kind))
    }

    fn gated(&self, gate_up: &Array<T>, gate: Gate) -> Result<Array<T>> {
        let inner = gate_up.cols / 2;
        Ok(Array::filled(gate_up.rows, inner, |i, out| rows::gated(gate_up.row(i), gate, out)))
    }

    fn gated_back(&self, dy: &Array<T>, gate_up: &Array<T>, gate: Gate) -> Result<Array<T>> {
        Ok(Array::filled(gate_up.rows, gate_up.cols, |i, out| {
            rows::gated_back(dy.row(i), gate_up.row(i), gate, out);
        }))
    }

    fn add(&self, sum: &mut Array<T>, x: &Array<T>, factor: f64) -> Result<()> {
        let factor = T::of(factor);
        sum.each_row(|i, sum| sum.iter_mut().zip(x.row(i)).for_each(|(sum, x)| *sum += factor * *x));
        Ok(())
    }

    fn scaled(&self, x: &Array<T>, factor: f64) -> Result<Array<T>> {
        let factor = T::of(factor);
        Ok(Array::filled(x.rows, x.cols, |i, out| {
            out.iter_mut().zip(x.row(i)).for_each(|(out, x)| *out = factor * *x);
        }))
    }

    fn difference(&self, a: &Array<T>, b: &Array<T>, factor: f64) -> Result<Array<T>> {
        let factor = T::of(factor);
        Ok(Array::filled(a.rows, a.cols, |i, out| {
            let pairs = a.row(i).iter().zip(b.row(i));
            out.iter_mut().zip(pairs).for_each(|(out, (a, b))| *out = factor * (*a - *b));
        }))
    }

    fn squared_distance(&self, a: &Array<T>, b: Option<&Array<T>>) -> Result<f64> {
        let mut of_rows = vec![0.0f64; a.rows];
        let together = a.rows_per_task();
        parallel_chunks_mut(&mut of_rows, together, |task, sums| {
            for (i, sum) in sums.iter_mut().enumerate() {
                let row = task * together + i;
                *sum = match b {
                    Some(b) => {
                        let pairs = a.row(row).iter().zip(b.row(row));
                        pairs.map(|(a, b)| (a.wide() - b.wide()).powi(2)).sum()
                    }
                    None => a.row(row).iter().map(|a| a.wide().powi(2)).sum(),
                };
            }
        });
        Ok(of_rows.iter().sum())
    }

    fn divide_columns(&self, x: &mut Array<T>, first: usize, s: &Array<T>) -> Result<()> {
        x.each_row(|_, row| row[first..].iter_mut().zip(&s.data).for_each(|(x, s)| *x /= *s));
        Ok(())
    }

    fn divide_columns_back(
        &self,
        ds: &mut Array<T>,
        dy: &Array<T>,
        y: &Array<T>,
        first: usize,
        s: &Array<T>,
    ) -> Result<()> {
        let sums = dy.sum_rows(s.cols, |i, sums| {
            let pairs = dy.row(i)[first..].iter().zip(&y.row(i)[first..]);
            sums.iter_mut().zip(pairs).for_each(|(sum, (dy, y))| *sum += *dy * *y);
        });
        for ((ds, sum), s) in ds.data.iter_mut().zip(sums).zip(&s.data) {
            *ds -= sum / *s;
        }
        Ok(())
    }

    fn largest_of_columns(&self, x: &Array<T>) -> Result<Vec<f32>> {
        let mut largest = vec![T::ZERO; x.cols];
        for row in x.data.chunks_exact(x.cols) {
            largest.iter_mut().zip(row).for_each(|(most, x)| *most = most.larger(x.magnitude()));
        }
        Ok(largest.into_iter().map(Real::narrow).collect())
    }

    fn repeat_heads(&self, s: &Array<T>, heads: HeadLayout) -> Result<Array<T>> {
        let HeadLayout { num_heads, num_kv_heads, head_dim } = heads;
        let each = num_heads / num_kv_heads;
        let heads = s.data.chunks_exact(head_dim);
        let data: Vec<T> =
            heads.flat_map(|head| std::iter::repeat_n(head, each)).flatten().copied().collect();
        Ok(Array { rows: 1, cols: data.len(), data })
    }

    fn repeat_heads_back(&self, ds: &Array<T>, heads: HeadLayout) -> Result<Array<T>> {
        let HeadLayout { num_heads, num_kv_heads, head_dim } = heads;
        let mut out = Array::zeros(1, heads.kv_width());
        let each = num_heads / num_kv_heads;
        let of_values = out.data.chunks_exact_mut(head_dim).zip(ds.data.chunks_exact(each * head_dim));
        for (sum, parts) in of_values {
            for part in parts.chunks_exact(head_dim) {
                sum.iter_mut().zip(part).for_each(|(sum, x)| *sum += *x);
            }
        }
        Ok(out)
    }

    fn int8(&self, x: &Array<T>) -> Result<Array<T>> {
        Ok(Array::filled(x.rows, x.cols, |i, out| rows::int8(x.row(i), out)))
    }

    fn int8_back(&self, dy: &Array<T>, x: &Array<T>) -> Result<Array<T>> {
        Ok(Array::filled(x.rows, x.cols, |i, out| rows::int8_back(dy.row(i), x.row(i), out)))
    }

    fn weight(
        &self,
        w: &Array<T>,
        scales: Option<&Array<T>>,
        clip: Option<(&Array<T>, WeightGrid)>,
    ) -> Result<Array<T>> {
        Ok(weights::rounded(w, scales, clip))
    }

    fn weight_back(
        &self,
        dw: &Array<T>,
        w: &Array<T>,
        scales: Option<&Array<T>>,
        clip: Option<(&Array<T>, WeightGrid)>,
    ) -> Result<WeightGradients<Array<T>>> {
        Ok(weights::back(dw, w, scales, clip))
    }

    fn steps(&self, w: &Array<T>, clip: &Array<T>, grid: WeightGrid) -> Result<Vec<f32>> {
        Ok(weights::steps(w, clip, grid))
    }

    fn adam(&self, parameter: &mut Parameter<Array<T>>, gradient: &Array<T>, step: AdamStep) -> Result<()> {
        let (decay, decay_square) = (T::of(ADAM_DECAY), T::of(ADAM_SQUARE_DECAY));
        let (rest, rest_square) = (T::of(1.0 - ADAM_DECAY), T::of(1.0 - ADAM_SQUARE_DECAY));
        let (rate, correction) = (T::of(step.corrected_rate()), T::of(step.correction()));
        let Parameter { value, mean, square } = parameter;
        let moments = mean.data.iter_mut().zip(&mut square.data);
        for ((p, g), (m, v)) in value.data.iter_mut().zip(&gradient.data).zip(moments) {
            *m = decay * *m + rest * *g;
            *v = decay_square * *v + rest_square * *g * *g;
            *p -= rate * *m / (v.root() / correction + T::of(ADAM_EPSILON));
            if let Some(least) = step.least {
                *p = p.larger(T::of(least));
            }
        }
        Ok(())
    }
}
