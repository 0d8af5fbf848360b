//! The operations of learning on a device beside the host's, whose gradients have tests of their own.

use std::error::Error;

use qqq_backend::{
    AttentionKind, Gate, HeadLayout, Learn,
    cpu::learn::{Array, CpuLearner},
    learn::{AdamStep, Parameter, Rotary, Turn, WeightGrid},
    solve::{Grid, ScaleDType},
};

use crate::uniform::uniform;

/// What an operation does otherwise than the host.
pub type Check = Result<(), Box<dyn Error>>;

/// By what results may differ, as a share of the largest.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Of what is summed in another order, or has exponentials.
    pub sums: f64,
    /// Of products of gradients, whose factors may be rounded.
    pub gradients: f64,
}

/// To the last bit.
const EXACT: f64 = 0.0;
const EPS: f64 = 1e-5;

/// A device and the host.
struct Both<'a, O> {
    ops: &'a O,
    host: CpuLearner<f32>,
    bounds: Bounds,
}

/// A matrix on both.
struct Pair<A> {
    there: A,
    here: Array<f32>,
}

/// All operations.
pub fn check<O: Learn>(ops: &O, bounds: Bounds) -> Check {
    let both = Both { ops, host: CpuLearner::new(), bounds };
    both.elements()?;
    both.columns()?;
    both.products()?;
    both.norms()?;
    for (heads, tokens) in [
        (HeadLayout { num_heads: 4, num_kv_heads: 2, head_dim: 8 }, 45),
        (HeadLayout { num_heads: 3, num_kv_heads: 3, head_dim: 16 }, 70),
    ] {
        both.heads(heads)?;
        both.rotation(heads, tokens)?;
        for window in [None, Some(1), Some(9), Some(1000)] {
            both.attention(heads, tokens, window)?;
        }
    }
    both.gates()?;
    both.int8()?;
    for (k, group, grid) in
        [(600, 600, Grid::CHANNEL), (96, 32, Grid::GROUP), (70, 70, Grid::BYTE), (288, 96, Grid::GROUP)]
    {
        for dtype in [ScaleDType::F32, ScaleDType::F16, ScaleDType::BF16] {
            both.weights(k, WeightGrid { grid, group, dtype })?;
        }
    }
    both.float_weights()?;
    both.adam()
}

/// Numbers in (-1, 1), of which some are much larger.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let number = |i: usize| (uniform(seed, i) * 2.0 - 1.0) * if i % 53 == 11 { 20.0 } else { 1.0 };
    (0..count).map(number).collect()
}

fn positive(seed: u64, count: usize) -> Vec<f32> {
    (0..count).map(|i| 0.3 + 2.0 * uniform(seed, i)).collect()
}

impl<O: Learn> Both<'_, O> {
    fn pair(&self, rows: usize, cols: usize, values: &[f32]) -> qqq_backend::Result<Pair<O::Array>> {
        Ok(Pair { there: self.ops.array(rows, cols, values)?, here: self.host.array(rows, cols, values)? })
    }

    fn random(&self, seed: u64, rows: usize, cols: usize) -> qqq_backend::Result<Pair<O::Array>> {
        self.pair(rows, cols, &numbers(seed, rows * cols))
    }

    fn same(&self, there: &O::Array, here: &Array<f32>, bound: f64, what: &str) -> Check {
        near(&self.ops.read(there)?, &here.data, bound, what)
    }

    fn elements(&self) -> Check {
        let (a, b) = (self.random(1, 37, 70)?, self.random(2, 37, 70)?);
        self.same(&self.ops.copy(&a.there)?, &a.here, EXACT, "copy")?;
        self.same(&self.ops.zeros_like(&a.there)?, &Array::zeros(37, 70), EXACT, "zeros")?;
        for factor in [1.0, -0.37] {
            let there = self.ops.difference(&a.there, &b.there, factor)?;
            self.same(&there, &self.host.difference(&a.here, &b.here, factor)?, EXACT, "difference")?;
            let there = self.ops.scaled(&a.there, factor)?;
            self.same(&there, &self.host.scaled(&a.here, factor)?, EXACT, "scaled")?;
            let (mut there, mut here) = (self.ops.copy(&a.there)?, a.here.clone());
            self.ops.add(&mut there, &b.there, factor)?;
            self.host.add(&mut here, &b.here, factor)?;
            // With one rounding there, and two here.
            self.same(&there, &here, 1e-7, "add")?;
        }
        for other in [None, Some(&b)] {
            let there = self.ops.squared_distance(&a.there, other.map(|b| &b.there))?;
            let here = self.host.squared_distance(&a.here, other.map(|b| &b.here))?;
            if (there - here).abs() > 1e-6 * here || !there.is_finite() {
                return Err(format!("squared distance: {there} instead of {here}").into());
            }
        }
        let largest = self.ops.largest_of_columns(&a.there)?;
        near(&largest, &self.host.largest_of_columns(&a.here)?, EXACT, "largest of columns")
    }

    fn columns(&self) -> Check {
        for (rows, cols, first, count) in [(300, 70, 0, 70), (5, 90, 40, 50), (129, 33, 1, 32)] {
            let (dy, y) = (self.random(3, rows, cols)?, self.random(4, rows, cols)?);
            let s = self.pair(1, count, &positive(5, count))?;
            let mut x = self.random(6, rows, cols)?;
            self.ops.divide_columns(&mut x.there, first, &s.there)?;
            self.host.divide_columns(&mut x.here, first, &s.here)?;
            self.same(&x.there, &x.here, EXACT, "divided columns")?;
            let mut ds = self.random(7, 1, count)?;
            self.ops.divide_columns_back(&mut ds.there, &dy.there, &y.there, first, &s.there)?;
            self.host.divide_columns_back(&mut ds.here, &dy.here, &y.here, first, &s.here)?;
            self.same(&ds.there, &ds.here, self.bounds.sums, "by divisors")?;
        }
        Ok(())
    }

    fn products(&self) -> Check {
        let Bounds { sums, gradients } = self.bounds;
        for (m, n, k) in [(48, 24, 16), (33, 70, 40), (300, 130, 64)] {
            let (x, w) = (self.random(8, m, k)?, self.random(9, n, k)?);
            let (dy, bias) = (self.random(10, m, n)?, self.random(11, 1, n)?);
            for bias in [None, Some(&bias)] {
                let there = self.ops.product(&x.there, &w.there, bias.map(|b| &b.there))?;
                let here = self.host.product(&x.here, &w.here, bias.map(|b| &b.here))?;
                self.same(&there, &here, sums, "product")?;
            }
            let there = self.ops.product_back_x(&dy.there, &w.there)?;
            self.same(&there, &self.host.product_back_x(&dy.here, &w.here)?, gradients, "product by x")?;
            let there = self.ops.product_back_w(&dy.there, &x.there)?;
            self.same(&there, &self.host.product_back_w(&dy.here, &x.here)?, gradients, "product by w")?;
        }
        Ok(())
    }

    fn norms(&self) -> Check {
        let bound = self.bounds.sums;
        for (rows, cols) in [(9, 70), (5, 600)] {
            let (x, dy) = (self.random(12, rows, cols)?, self.random(13, rows, cols)?);
            let weight = self.pair(1, cols, &positive(14, cols))?;
            let there = self.ops.norm(&x.there, &weight.there, EPS)?;
            self.same(&there, &self.host.norm(&x.here, &weight.here, EPS)?, bound, "norm")?;
            let there = self.ops.norm_back(&dy.there, &x.there, &weight.there, EPS)?;
            let here = self.host.norm_back(&dy.here, &x.here, &weight.here, EPS)?;
            self.same(&there, &here, bound, "norm back")?;
        }
        // Of heads in some columns.
        let (rows, width) = (11, 24);
        for columns in [0..3 * width, 3 * width..5 * width] {
            let x = self.random(15, rows, 6 * width)?;
            let weight = self.pair(1, width, &positive(16, width))?;
            let (mut there, mut here) = (self.ops.copy(&x.there)?, x.here.clone());
            self.ops.norm_heads(&mut there, columns.clone(), &weight.there, EPS)?;
            self.host.norm_heads(&mut here, columns.clone(), &weight.here, EPS)?;
            self.same(&there, &here, bound, "norm of heads")?;
            let mut dy = self.random(17, rows, 6 * width)?;
            self.ops.norm_heads_back(&mut dy.there, &x.there, columns.clone(), &weight.there, EPS)?;
            self.host.norm_heads_back(&mut dy.here, &x.here, columns, &weight.here, EPS)?;
            self.same(&dy.there, &dy.here, bound, "norm of heads back")?;
        }
        Ok(())
    }

    fn heads(&self, heads: HeadLayout) -> Check {
        let (s, ds) = (self.random(18, 1, heads.kv_width())?, self.random(19, 1, heads.q_width())?);
        let there = self.ops.repeat_heads(&s.there, heads)?;
        self.same(&there, &self.host.repeat_heads(&s.here, heads)?, EXACT, "repeated heads")?;
        let there = self.ops.repeat_heads_back(&ds.there, heads)?;
        self.same(&there, &self.host.repeat_heads_back(&ds.here, heads)?, EXACT, "summed heads")
    }

    fn rotation(&self, heads: HeadLayout, tokens: usize) -> Check {
        for half in [heads.head_dim / 2, heads.head_dim / 4] {
            for has_factors in [false, true] {
                let table = |of: fn(f32) -> f32| -> Vec<f32> {
                    (0..(tokens + 3) * half)
                        .map(|i| of((i / half) as f32 * 0.3 + (i % half) as f32))
                        .collect()
                };
                let [cos, sin] = [table(f32::cos), table(f32::sin)];
                let [cos, sin] = [self.pair(tokens + 3, half, &cos)?, self.pair(tokens + 3, half, &sin)?];
                let factors = match has_factors {
                    true => Some(self.pair(tokens + 3, 1, &positive(20, tokens + 3))?),
                    false => None,
                };
                let (there, here) = factors.map(|f| (f.there, f.here)).unzip();
                let there = Rotary { cos: cos.there, sin: sin.there, queries: there };
                let here = Rotary { cos: cos.here, sin: sin.here, queries: here };
                for turn in [Turn::Forward, Turn::Back] {
                    let mut qkv = self.random(21, tokens, heads.qkv_width())?;
                    self.ops.rotate(&mut qkv.there, heads, &there, turn)?;
                    self.host.rotate(&mut qkv.here, heads, &here, turn)?;
                    self.same(&qkv.there, &qkv.here, EXACT, &format!("{turn:?} of {half} pairs"))?;
                }
            }
        }
        Ok(())
    }

    fn attention(&self, heads: HeadLayout, tokens: usize, window: Option<usize>) -> Check {
        let kind = AttentionKind::causal(heads, window);
        let what = format!("attention of {} heads over {window:?}", heads.num_heads);
        let mut values = numbers(22, tokens * heads.qkv_width());
        // Scores of ordinary size.
        values.iter_mut().for_each(|v| *v = v.clamp(-2.0, 2.0));
        let qkv = self.pair(tokens, heads.qkv_width(), &values)?;
        let here = self.host.attention(&qkv.here, &kind)?;
        let there = self.ops.attention(&qkv.there, &kind)?;
        self.same(&there, &here, self.bounds.sums, &what)?;
        let dy = self.random(23, tokens, heads.q_width())?;
        let by_qkv = self.ops.attention_back(&dy.there, &there, &qkv.there, &kind)?;
        let expected = self.host.attention_back(&dy.here, &here, &qkv.here, &kind)?;
        self.same(&by_qkv, &expected, self.bounds.gradients, &format!("{what}, back"))
    }

    fn gates(&self) -> Check {
        let (rows, inner) = (9, 70);
        let (gate_up, dy) = (self.random(24, rows, 2 * inner)?, self.random(25, rows, inner)?);
        for gate in [Gate::Silu, Gate::GeluTanh] {
            let there = self.ops.gated(&gate_up.there, gate)?;
            self.same(
                &there,
                &self.host.gated(&gate_up.here, gate)?,
                self.bounds.sums,
                &format!("{gate:?}"),
            )?;
            let there = self.ops.gated_back(&dy.there, &gate_up.there, gate)?;
            let here = self.host.gated_back(&dy.here, &gate_up.here, gate)?;
            self.same(&there, &here, self.bounds.sums, &format!("{gate:?} back"))?;
        }
        Ok(())
    }

    fn int8(&self) -> Check {
        for cols in [70, 600] {
            let mut values = numbers(26, 7 * cols);
            values[2 * cols..3 * cols].fill(0.0);
            // Largest magnitudes of both signs: the first counts.
            (values[3 * cols + 65], values[3 * cols + 66], values[3 * cols + 3]) = (-30.0, 30.0, 29.0);
            let (x, dy) = (self.pair(7, cols, &values)?, self.random(27, 7, cols)?);
            self.same(&self.ops.int8(&x.there)?, &self.host.int8(&x.here)?, EXACT, "int8")?;
            let there = self.ops.int8_back(&dy.there, &x.there)?;
            self.same(&there, &self.host.int8_back(&dy.here, &x.here)?, self.bounds.sums, "int8 back")?;
        }
        Ok(())
    }

    fn weights(&self, k: usize, grid: WeightGrid) -> Check {
        let n = 10;
        let groups = n * (k / grid.group);
        let mut values = numbers(28, n * k);
        values[..k].fill(0.0);
        values[3 * k..3 * k + grid.group].fill(0.0);
        let mut factors = positive(30, k);
        let mut strengths: Vec<f32> = (0..2 * groups).map(|i| uniform(29, i) * 7.0 - 2.0).collect();
        // Largest and least weights that come again, scaled too: the first counts, whichever threads see them. In one row the upper
        // side reaches further, in another one the lower.
        for at in [1, 31, 33, 257].into_iter().filter(|at| at + 7 < k) {
            for row in [4, 5] {
                (values[row * k + at], values[row * k + at + 6]) = (25.0, -25.0);
            }
            (factors[at], factors[at + 6]) = (9.0, 9.0);
        }
        for group in 4 * groups / n..6 * groups / n {
            let upper = group < 5 * groups / n;
            (strengths[group], strengths[groups + group]) = if upper { (3.0, -1.0) } else { (-1.0, 3.0) };
        }
        let w = self.pair(n, k, &values)?;
        let clip = self.pair(2, groups, &strengths)?;
        let (s, dw) = (self.pair(1, k, &factors)?, self.random(31, n, k)?);
        for scales in [None, Some(&s)] {
            let what = format!("{grid:?}, scales: {}", scales.is_some());
            let (there_s, here_s) = (scales.map(|s| &s.there), scales.map(|s| &s.here));
            let there = self.ops.weight(&w.there, there_s, Some((&clip.there, grid)))?;
            let here = self.host.weight(&w.here, here_s, Some((&clip.here, grid)))?;
            self.same(&there, &here, EXACT, &what)?;
            let there = self.ops.weight_back(&dw.there, &w.there, there_s, Some((&clip.there, grid)))?;
            let here = self.host.weight_back(&dw.here, &w.here, here_s, Some((&clip.here, grid)))?;
            let (Some(by_there), Some(by_here)) = (&there.clip, &here.clip) else {
                return Err(format!("{what}: no gradient by strengths").into());
            };
            self.same(by_there, by_here, self.bounds.sums, &format!("{what}, by strengths"))?;
            match (&there.scales, &here.scales) {
                (Some(there), Some(here)) => {
                    self.same(there, here, self.bounds.sums, &format!("{what}, by scales"))?;
                }
                (None, None) => {}
                _ => return Err(format!("{what}: gradients by scales").into()),
            }
        }
        let steps = self.ops.steps(&w.there, &clip.there, grid)?;
        near(&steps, &self.host.steps(&w.here, &clip.here, grid)?, EXACT, &format!("{grid:?}: steps"))
    }

    /// Layers that stay float.
    fn float_weights(&self) -> Check {
        let (w, dw) = (self.random(32, 10, 70)?, self.random(33, 10, 70)?);
        let s = self.pair(1, 70, &positive(34, 70))?;
        for scales in [None, Some(&s)] {
            let there = self.ops.weight(&w.there, scales.map(|s| &s.there), None)?;
            let here = self.host.weight(&w.here, scales.map(|s| &s.here), None)?;
            self.same(&there, &here, EXACT, "float weights")?;
        }
        let there = self.ops.weight_back(&dw.there, &w.there, Some(&s.there), None)?;
        let here = self.host.weight_back(&dw.here, &w.here, Some(&s.here), None)?;
        match (there.clip, &there.scales, &here.scales) {
            (None, Some(there), Some(here)) => {
                self.same(there, here, self.bounds.sums, "float weights, by scales")
            }
            _ => Err("gradients of float weights".into()),
        }
    }

    fn adam(&self) -> Check {
        let parts = |seed: u64| self.random(seed, 2, 300);
        let (value, mean, square) = (parts(35)?, parts(36)?, self.pair(2, 300, &positive(37, 600))?);
        let mut there = Parameter { value: value.there, mean: mean.there, square: square.there };
        let mut here = Parameter { value: value.here, mean: mean.here, square: square.here };
        for (step, least) in [(1, None), (2, Some(0.01)), (500, Some(-0.5))] {
            let gradient = parts(40 + step as u64)?;
            let step = AdamStep { rate: 0.05, step, least };
            self.ops.adam(&mut there, &gradient.there, step)?;
            self.host.adam(&mut here, &gradient.here, step)?;
            self.same(&there.value, &here.value, EXACT, "Adam's values")?;
            self.same(&there.mean, &here.mean, EXACT, "Adam's means")?;
            self.same(&there.square, &here.square, EXACT, "Adam's squares")?;
        }
        Ok(())
    }
}

/// That values differ by no more than a share of the largest.
fn near(got: &[f32], want: &[f32], bound: f64, what: &str) -> Check {
    if got.len() != want.len() {
        return Err(format!("{what}: {} values instead of {}", got.len(), want.len()).into());
    }
    let most = want.iter().fold(0.0f64, |most, x| most.max(f64::from(x.abs())));
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let difference = (f64::from(*got) - f64::from(*want)).abs();
        // Not a number is none of these.
        if difference > bound * most || !difference.is_finite() {
            return Err(format!("{what}, value {i}: {got} instead of {want} (the largest is {most})").into());
        }
    }
    Ok(())
}
