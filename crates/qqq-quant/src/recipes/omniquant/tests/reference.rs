//! The block again in plain float64 loops: what it loses as a function of all that is learned.
//!
//! Rounding has no derivative. Learning takes it for a constant offset, with weights beyond the grid held at its end; the reference
//! records offsets at one point and keeps them around it. Its differences are then what gradients have to be.

use qqq_backend::{AttentionKind, Gate};
use qqq_model::Site;

/// Offsets of rounding, in the order in which numbers are rounded.
#[derive(Default)]
pub(super) struct Rounding {
    /// What was recorded: the offset of a number within the grid, or the end at which it is held.
    tape: Vec<Result<f64, f64>>,
    /// The next one; `None` while recording.
    next: Option<usize>,
}

impl Rounding {
    /// Offsets are kept from now on.
    pub fn freeze(&mut self) {
        self.next = Some(0);
    }

    fn round(&mut self, t: f64, low: f64, high: f64) -> f64 {
        let Some(next) = &mut self.next else {
            let code = t.round_ties_even();
            let held = (code < low).then_some(low).or((code > high).then_some(high));
            self.tape.push(held.map_or(Ok(code - t), Err));
            return code.clamp(low, high);
        };
        *next += 1;
        match self.tape[*next - 1] {
            Ok(offset) => t + offset,
            Err(end) => end,
        }
    }
}

type Rows = Vec<Vec<f64>>;

/// A layer.
#[derive(Clone)]
pub(super) struct Layer {
    pub weights: Rows,
    pub bias: Option<Vec<f64>>,
    /// Grid (low, high, reach) and channels of a group.
    pub grid: Option<(f64, f64, f64, usize)>,
    pub is_int8: bool,
}

/// A block and a window that goes through it.
#[derive(Clone)]
pub(super) struct Problem {
    pub x: Rows,
    pub target: Rows,
    pub layers: [Layer; 4],
    pub input_norm: Vec<f64>,
    pub post_norm: Vec<f64>,
    pub qk_norm: Option<(Vec<f64>, Vec<f64>)>,
    pub after: Option<(Vec<f64>, Vec<f64>)>,
    pub eps: f64,
    pub kind: AttentionKind,
    /// Cosines and sines by position, and factors of queries.
    pub rotary: Option<(Rows, Rows, Option<Vec<f64>>)>,
    pub gate: Gate,
    pub residual_scale: f64,
}

/// What is learned, flat: clipping strengths by site (above, then below), scales of qkv, values, gate and up.
#[derive(Clone, Debug)]
pub(super) struct Point {
    pub clips: [Option<Vec<f64>>; 4],
    pub scales: Option<[Vec<f64>; 3]>,
}

impl Point {
    /// All numbers, to be moved one by one.
    pub fn numbers(&mut self) -> Vec<&mut f64> {
        let clips = self.clips.iter_mut().flatten().flatten();
        clips.chain(self.scales.iter_mut().flatten().flatten()).collect()
    }
}

fn norm(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(weight).map(|(x, w)| x * w / (mean + eps).sqrt()).collect()
}

fn int8(x: &[f64], rounding: &mut Rounding) -> Vec<f64> {
    let scale = x.iter().fold(0.0f64, |most, x| most.max(x.abs())) / 127.0;
    x.iter().map(|x| rounding.round(x / scale, -1e9, 1e9) * scale).collect()
}

fn weights(layer: &Layer, columns: Option<&[f64]>, clip: Option<&[f64]>, rounding: &mut Rounding) -> Rows {
    let mut w = layer.weights.clone();
    if let Some(columns) = columns {
        w.iter_mut().for_each(|row| row.iter_mut().zip(columns).for_each(|(w, s)| *w *= s));
    }
    let (Some((low, high, reach, group)), Some(clip)) = (layer.grid, clip) else { return w };
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let mut index = 0;
    for row in &mut w {
        for w in row.chunks_mut(group) {
            let most = w.iter().copied().fold(f64::MIN, f64::max) * sigmoid(clip[index]);
            let least = -w.iter().copied().fold(f64::MAX, f64::min) * sigmoid(clip[clip.len() / 2 + index]);
            let step = most.max(least) / reach;
            w.iter_mut().for_each(|w| *w = rounding.round(*w / step, low, high) * step);
            index += 1;
        }
    }
    w
}

fn product(x: &Rows, w: &Rows, bias: Option<&Vec<f64>>) -> Rows {
    let of_row = |x: &Vec<f64>| {
        let dot = |(n, w): (usize, &Vec<f64>)| {
            x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>() + bias.map_or(0.0, |bias| bias[n])
        };
        w.iter().enumerate().map(dot).collect()
    };
    x.iter().map(of_row).collect()
}

pub(super) fn attention(qkv: &Rows, kind: &AttentionKind) -> Rows {
    let heads = kind.heads;
    let (d, each) = (heads.head_dim, heads.num_heads / heads.num_kv_heads);
    let of_token = |i: usize| {
        let mut out = Vec::new();
        for head in 0..heads.num_heads {
            let (key, value) =
                (heads.num_heads + head / each, heads.num_heads + heads.num_kv_heads + head / each);
            let q = &qkv[i][head * d..][..d];
            let first = kind.window.map_or(0, |window| (i + 1).saturating_sub(window));
            let scores: Vec<f64> = (first..=i)
                .map(|t| {
                    let dot: f64 = q.iter().zip(&qkv[t][key * d..]).map(|(q, k)| q * k).sum();
                    (dot * f64::from(kind.scale)).exp()
                })
                .collect();
            let sum: f64 = scores.iter().sum();
            out.extend((0..d).map(|c| {
                let values = scores.iter().zip(first..).map(|(p, t)| p * qkv[t][value * d + c]);
                values.sum::<f64>() / sum
            }));
        }
        out
    };
    (0..qkv.len()).map(of_token).collect()
}

impl Problem {
    fn input(&self, site: Site, x: Rows, rounding: &mut Rounding) -> Rows {
        match self.layers[site as usize].is_int8 {
            true => x.iter().map(|row| int8(row, rounding)).collect(),
            false => x,
        }
    }

    fn add(&self, x: &Rows, y: &Rows, norm_after: Option<&Vec<f64>>) -> Rows {
        let add = |(x, y): (&Vec<f64>, &Vec<f64>)| {
            let y = norm_after.map_or_else(|| y.clone(), |weight| norm(y, weight, self.eps));
            x.iter().zip(y).map(|(x, y)| x + self.residual_scale * y).collect()
        };
        x.iter().zip(y).map(add).collect()
    }

    /// The sum of the squared errors of what leaves the block.
    pub fn loss(&self, point: &Point, rounding: &mut Rounding) -> f64 {
        if let Some(next) = &mut rounding.next {
            *next = 0;
        }
        let heads = self.kind.heads;
        let (d, first_value) = (heads.head_dim, heads.q_width() + heads.kv_width());
        let scales = point.scales.as_ref();
        let each = heads.num_heads / heads.num_kv_heads;
        let of_o: Option<Vec<f64>> = scales
            .map(|[_, values, _]| (0..heads.q_width()).map(|j| values[j / (each * d) * d + j % d]).collect());
        let columns = [scales.map(|s| s[0].clone()), of_o, scales.map(|s| s[2].clone()), None];
        // As many rounded numbers, in the same order, whatever is learned.
        let w: Vec<Rows> = (0..4)
            .map(|i| weights(&self.layers[i], columns[i].as_deref(), point.clips[i].as_deref(), rounding))
            .collect();
        let normed = |x: &Rows, weight: &[f64], s: Option<&Vec<f64>>| -> Rows {
            let weight: Vec<f64> =
                weight.iter().enumerate().map(|(j, w)| w / s.map_or(1.0, |s| s[j])).collect();
            x.iter().map(|row| norm(row, &weight, self.eps)).collect()
        };
        let x = self.input(Site::Qkv, normed(&self.x, &self.input_norm, scales.map(|s| &s[0])), rounding);
        let mut qkv = product(&x, &w[0], self.layers[0].bias.as_ref());
        for (position, row) in qkv.iter_mut().enumerate() {
            for head in 0..heads.num_heads + heads.num_kv_heads {
                let is_query = head < heads.num_heads;
                let part = &mut row[head * d..][..d];
                if let Some((q, k)) = &self.qk_norm {
                    part.copy_from_slice(&norm(part, if is_query { q } else { k }, self.eps));
                }
                if let Some((cos, sin, queries)) = &self.rotary {
                    let half = cos[position].len();
                    for i in 0..half {
                        let (a, b) = (part[i], part[i + half]);
                        let (c, s) = (cos[position][i], sin[position][i]);
                        (part[i], part[i + half]) = (a * c - b * s, b * c + a * s);
                    }
                    if let Some(factors) = queries.as_ref().filter(|_| is_query) {
                        part.iter_mut().for_each(|x| *x *= factors[position]);
                    }
                }
            }
            if let Some([_, values, _]) = scales {
                row[first_value..].iter_mut().zip(values).for_each(|(v, s)| *v /= s);
            }
        }
        let x = self.input(Site::O, attention(&qkv, &self.kind), rounding);
        let y = product(&x, &w[1], self.layers[1].bias.as_ref());
        let middle = self.add(&self.x, &y, self.after.as_ref().map(|(a, _)| a));
        let x = normed(&middle, &self.post_norm, scales.map(|s| &s[2]));
        let x = self.input(Site::GateUp, x, rounding);
        let gate_up = product(&x, &w[2], self.layers[2].bias.as_ref());
        let gated = |row: &Vec<f64>| {
            let (g, u) = row.split_at(row.len() / 2);
            let gate = |g: f64| match self.gate {
                Gate::Silu => g / (1.0 + (-g).exp()),
                Gate::GeluTanh => {
                    g / 2.0
                        * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (g + 0.044_715 * g.powi(3))).tanh())
                }
            };
            g.iter().zip(u).map(|(g, u)| gate(*g) * u).collect()
        };
        let x = self.input(Site::Down, gate_up.iter().map(gated).collect(), rounding);
        let y = product(&x, &w[3], self.layers[3].bias.as_ref());
        let out = self.add(&middle, &y, self.after.as_ref().map(|(_, b)| b));
        let pairs = out.iter().flatten().zip(self.target.iter().flatten());
        pairs.map(|(y, t)| (y - t) * (y - t)).sum()
    }
}
