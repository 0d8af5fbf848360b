//! Gradients against differences of a plain reference, and what learning does.

mod gradients;
mod learning;
mod pytorch;
mod reference;

use qqq_backend::{
    AttentionKind, Gate, HeadLayout,
    cpu::learn::{Array, CpuLearner, Real},
    learn::{Rotary, WeightGrid},
    solve::Grid,
};
use qqq_model::Sites;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use self::reference::{Layer, Point, Problem};
use super::block::{Learned, LearnedBlock, Linear, Norms, Scales};
use crate::solve::ScaleDType;

/// What kind of block.
#[derive(Clone, Copy, Debug)]
struct Shape {
    heads: HeadLayout,
    hidden: usize,
    inner: usize,
    tokens: usize,
    group: Option<usize>,
    /// Int8 activations and learned scales.
    both: bool,
    /// Norms of heads and behind halves, biases, a window, GELU, a partial rotary embedding with scaled queries.
    is_rich: bool,
}

const PLAIN: Shape = Shape {
    heads: HeadLayout { num_heads: 4, num_kv_heads: 2, head_dim: 4 },
    hidden: 12,
    inner: 16,
    tokens: 6,
    group: None,
    both: true,
    is_rich: false,
};

struct Random(ChaCha8Rng);

impl Random {
    fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    fn number(&mut self, low: f64, high: f64) -> f64 {
        self.0.random_range(low..high)
    }

    fn numbers(&mut self, len: usize, low: f64, high: f64) -> Vec<f64> {
        (0..len).map(|_| self.number(low, high)).collect()
    }

    fn rows(&mut self, rows: usize, cols: usize, size: f64) -> Vec<Vec<f64>> {
        (0..rows).map(|_| self.numbers(cols, -size, size)).collect()
    }
}

/// A random block with a window; channels 1 and 3 of the residual stream are large, as in real models.
fn problem(shape: Shape, seed: u64) -> Problem {
    let Shape { heads, hidden, inner, tokens, group, both, is_rich } = shape;
    let random = &mut Random::new(seed);
    let grid = if group.is_some() { Grid::GROUP } else { Grid::CHANNEL };
    let shapes =
        [(heads.qkv_width(), hidden), (hidden, heads.q_width()), (2 * inner, hidden), (hidden, inner)];
    let layers = shapes.map(|(n, k)| Layer {
        weights: random.rows(n, k, 0.8 / (k as f64).sqrt()),
        bias: is_rich.then(|| random.numbers(n, -0.2, 0.2)),
        grid: Some((f64::from(grid.low), f64::from(grid.high), f64::from(grid.reach), group.unwrap_or(k))),
        is_int8: both,
    });
    let mut x = random.rows(tokens, hidden, 1.0);
    x.iter_mut().for_each(|row| {
        row[1] *= 8.0;
        row[3] *= 20.0;
    });
    let half = if is_rich { heads.head_dim / 4 } else { heads.head_dim / 2 };
    let angle = |t: usize, i: usize| t as f64 * 0.7f64.powi(i as i32);
    let table = |of: fn(f64) -> f64| {
        (0..tokens).map(|t| (0..half).map(|i| of(angle(t, i))).collect()).collect::<Vec<Vec<f64>>>()
    };
    let rotary = Some((
        table(f64::cos),
        table(f64::sin),
        is_rich.then(|| (0..tokens).map(|t| 1.0 + 0.1 * t as f64).collect()),
    ));
    Problem {
        target: random.rows(tokens, hidden, 1.0),
        x,
        layers,
        input_norm: random.numbers(hidden, 0.5, 1.5),
        post_norm: random.numbers(hidden, 0.5, 1.5),
        qk_norm: is_rich
            .then(|| (random.numbers(heads.head_dim, 0.5, 1.5), random.numbers(heads.head_dim, 0.5, 1.5))),
        after: is_rich.then(|| (random.numbers(hidden, 0.5, 1.5), random.numbers(hidden, 0.5, 1.5))),
        eps: 1e-5,
        kind: AttentionKind::causal(heads, is_rich.then_some(3)),
        rotary,
        gate: if is_rich { Gate::GeluTanh } else { Gate::Silu },
        residual_scale: if is_rich { 0.7 } else { 1.0 },
    }
}

/// A random point to learn from.
fn point(shape: Shape, problem: &Problem, seed: u64) -> Point {
    let random = &mut Random::new(seed ^ 0x5eed);
    let clips = [0, 1, 2, 3].map(|i| {
        let Layer { weights, grid, .. } = &problem.layers[i];
        let groups = grid.map(|(.., group)| weights[0].len() / group)?;
        // From little to half of the range clipped.
        Some(random.numbers(2 * weights.len() * groups, 0.0, 4.0))
    });
    let mut of = |len: usize| random.numbers(len, 0.4, 2.5);
    let scales = shape.both.then(|| [of(shape.hidden), of(shape.heads.kv_width()), of(shape.hidden)]);
    Point { clips, scales }
}

/// A matrix of numbers.
fn array<T: Real>(rows: &[Vec<f64>]) -> Array<T> {
    let data = rows.iter().flatten().map(|x| T::of(*x)).collect();
    Array { rows: rows.len(), cols: rows[0].len(), data }
}

fn row<T: Real>(values: &[f64]) -> Array<T> {
    array(&[values.to_vec()])
}

/// The same block for learning.
fn block<T: Real>(problem: &Problem) -> LearnedBlock<Array<T>> {
    let layer = |i: usize| {
        let Layer { weights, bias, grid, is_int8 } = &problem.layers[i];
        Linear {
            weights: array(weights),
            bias: bias.as_deref().map(row),
            grid: grid.map(|(low, high, reach, group)| WeightGrid {
                grid: Grid { low: low as f32, high: high as f32, reach: reach as f32 },
                group,
                dtype: ScaleDType::F32,
            }),
            is_int8: *is_int8,
        }
    };
    let pair = |pair: &Option<(Vec<f64>, Vec<f64>)>| pair.as_ref().map(|(a, b)| (row(a), row(b)));
    LearnedBlock {
        norms: Norms {
            input: row(&problem.input_norm),
            post: row(&problem.post_norm),
            qk: pair(&problem.qk_norm),
            after: pair(&problem.after),
            eps: problem.eps,
        },
        layers: Sites::new([0, 1, 2, 3].map(layer)),
        attention: problem.kind,
        rotary: problem.rotary.as_ref().map(|(cos, sin, queries)| Rotary {
            cos: array(cos),
            sin: array(sin),
            queries: queries
                .as_ref()
                .map(|queries| array(&queries.iter().map(|q| vec![*q]).collect::<Vec<_>>())),
        }),
        gate: problem.gate,
        residual_scale: problem.residual_scale,
    }
}

/// The same point.
fn learned<T: Real>(point: &Point) -> Learned<Array<T>> {
    let clip = |clip: &Option<Vec<f64>>| {
        clip.as_ref().map(|clip| {
            let (upper, lower) = clip.split_at(clip.len() / 2);
            array(&[upper.to_vec(), lower.to_vec()])
        })
    };
    let [a, b, c, d] = &point.clips;
    Learned {
        clips: Sites::new([clip(a), clip(b), clip(c), clip(d)]),
        scales: point.scales.as_ref().map(|[qkv, values, gate_up]| Scales {
            qkv: row(qkv),
            values: row(values),
            gate_up: row(gate_up),
        }),
    }
}

fn ops<T: Real>() -> CpuLearner<T> {
    CpuLearner::new()
}
