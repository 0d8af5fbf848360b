//! Weights with learned clipping: rounded to their grid, and gradients through that.
//!
//! The step of a group is `max(sigmoid(a) max(w), -sigmoid(b) min(w)) / reach` with its two strengths `a`, `b` (equation 2 of the
//! paper, for codes without zero points). Codes are whole steps within the grid. Where the code is at the grid's end, the rounded
//! weight follows the step alone; elsewhere it follows the weight, and the step by what rounding has left.

use super::{Array, Real};
use crate::{
    learn::{WeightGradients, WeightGrid, fill_steps},
    pool::parallel_each_mut,
};

/// Rows of a weight that a task works on.
const ROWS: usize = 32;

/// How far a group reaches, and what that follows.
struct Bound<T> {
    /// Of both sides the one that reaches further, clipped.
    reach: T,
    /// Whether that is the upper one.
    is_upper: bool,
    /// The weight that it is made of.
    at: usize,
    /// Its magnitude, unclipped.
    full: T,
    /// What it is multiplied by.
    strength: T,
}

impl<T: Real> Bound<T> {
    fn new(w: &[T], [upper, lower]: [T; 2]) -> Self {
        let (mut high, mut low) = (0, 0);
        for (j, w_j) in w.iter().enumerate() {
            if *w_j > w[high] {
                high = j;
            }
            if *w_j < w[low] {
                low = j;
            }
        }
        let (upper, lower) = (sigmoid(upper), sigmoid(lower));
        let (full_upper, full_lower) = (w[high], -w[low]);
        match upper * full_upper >= lower * full_lower {
            true => Self {
                reach: upper * full_upper,
                is_upper: true,
                at: high,
                full: full_upper,
                strength: upper,
            },
            false => Self {
                reach: lower * full_lower,
                is_upper: false,
                at: low,
                full: full_lower,
                strength: lower,
            },
        }
    }

    /// The step; `None` for a group of zeros.
    fn step(&self, grid: WeightGrid) -> Option<T> {
        let step = self.reach / T::of(f64::from(grid.grid.reach));
        (step.wide() >= f64::from(f32::MIN_POSITIVE)).then(|| step.stored(grid.dtype))
    }
}

fn sigmoid<T: Real>(x: T) -> T {
    T::of(1.0 / (1.0 + (-x.wide()).exp()))
}

/// A code, and whether it is within the grid by itself.
fn code<T: Real>(w: T, step: T, (low, high): (T, T)) -> (T, bool) {
    let code = (w / step).within(low - T::ONE, high + T::ONE).nearest();
    (code.within(low, high), code >= low && code <= high)
}

fn ends<T: Real>(grid: WeightGrid) -> (T, T) {
    (T::of(f64::from(grid.grid.low)), T::of(f64::from(grid.grid.high)))
}

/// The strengths of a group.
fn strengths<T: Real>(clip: &Array<T>, group: usize) -> [T; 2] {
    [clip.data[group], clip.data[clip.cols + group]]
}

fn scaled<T: Real>(row: &[T], scales: Option<&Array<T>>) -> Vec<T> {
    match scales {
        Some(scales) => row.iter().zip(&scales.data).map(|(w, s)| *w * *s).collect(),
        None => row.to_vec(),
    }
}

pub(super) fn rounded<T: Real>(
    w: &Array<T>,
    scales: Option<&Array<T>>,
    clip: Option<(&Array<T>, WeightGrid)>,
) -> Array<T> {
    Array::filled(w.rows, w.cols, |i, out| {
        out.copy_from_slice(&scaled(w.row(i), scales));
        let Some((clip, grid)) = clip else { return };
        let (groups, ends) = (w.cols / grid.group, ends(grid));
        for (g, w) in out.chunks_exact_mut(grid.group).enumerate() {
            match Bound::new(w, strengths(clip, i * groups + g)).step(grid) {
                Some(step) => w.iter_mut().for_each(|w| *w = code(*w, step, ends).0 * step),
                None => w.fill(T::ZERO),
            }
        }
    })
}

/// What a task finds of its rows.
struct Part<T> {
    /// By the strengths of its groups.
    clip: Vec<[T; 2]>,
    /// By the scales of all input channels.
    scales: Vec<T>,
}

pub(super) fn back<T: Real>(
    dw: &Array<T>,
    w: &Array<T>,
    scales: Option<&Array<T>>,
    clip: Option<(&Array<T>, WeightGrid)>,
) -> WeightGradients<Array<T>> {
    let mut parts: Vec<Part<T>> = Vec::new();
    parts.resize_with(w.rows.div_ceil(ROWS), || Part {
        clip: Vec::new(),
        scales: vec![T::ZERO; scales.map_or(0, |s| s.cols)],
    });
    parallel_each_mut(&mut parts, |task, part| {
        for i in task * ROWS..w.rows.min((task + 1) * ROWS) {
            let mut gradient = dw.row(i).to_vec();
            if let Some((clip, grid)) = clip {
                let (groups, row) = (w.cols / grid.group, scaled(w.row(i), scales));
                let pairs = gradient.chunks_exact_mut(grid.group).zip(row.chunks_exact(grid.group));
                for (g, (gradient, w)) in pairs.enumerate() {
                    part.clip.push(group_back(gradient, w, strengths(clip, i * groups + g), grid));
                }
            }
            let by_scales = part.scales.iter_mut().zip(gradient).zip(w.row(i));
            by_scales.for_each(|((sum, dw), w)| *sum += dw * *w);
        }
    });
    let clip = clip.map(|(clip, _)| {
        let of_groups = parts.iter().flat_map(|part| &part.clip);
        let (upper, lower): (Vec<T>, Vec<T>) = of_groups.map(|[upper, lower]| (*upper, *lower)).unzip();
        Array { rows: 2, cols: clip.cols, data: [upper, lower].concat() }
    });
    let scales = scales.map(|scales| {
        let mut sum = Array::zeros(1, scales.cols);
        for part in &parts {
            sum.data.iter_mut().zip(&part.scales).for_each(|(sum, x)| *sum += *x);
        }
        sum
    });
    WeightGradients { clip, scales }
}

/// Turns the gradient by the rounded weights of a group into that by the weights; gives those by the strengths.
fn group_back<T: Real>(gradient: &mut [T], w: &[T], strengths: [T; 2], grid: WeightGrid) -> [T; 2] {
    let bound = Bound::new(w, strengths);
    let Some(step) = bound.step(grid) else {
        gradient.fill(T::ZERO);
        return [T::ZERO; 2];
    };
    let ends = ends(grid);
    let mut by_step = T::ZERO;
    for (gradient, w) in gradient.iter_mut().zip(w) {
        let (code, is_within) = code(*w, step, ends);
        by_step += *gradient * if is_within { code - *w / step } else { code };
        if !is_within {
            *gradient = T::ZERO;
        }
    }
    let by_reach = by_step / T::of(f64::from(grid.grid.reach));
    let by_extreme = by_reach * bound.strength;
    gradient[bound.at] += if bound.is_upper { by_extreme } else { -by_extreme };
    let by_strength = by_reach * bound.full * bound.strength * (T::ONE - bound.strength);
    if bound.is_upper { [by_strength, T::ZERO] } else { [T::ZERO, by_strength] }
}

/// The steps of all groups; one of zeros has the least of its row, a row of zeros 1.
pub(super) fn steps<T: Real>(w: &Array<T>, clip: &Array<T>, grid: WeightGrid) -> Vec<f32> {
    let groups = w.cols / grid.group;
    let steps = Array::<T>::filled(w.rows, groups, |i, out| {
        for (g, (out, w)) in out.iter_mut().zip(w.row(i).chunks_exact(grid.group)).enumerate() {
            *out = Bound::new(w, strengths(clip, i * groups + g)).step(grid).unwrap_or(T::ZERO);
        }
    });
    let mut steps: Vec<f32> = steps.data.iter().map(|step| step.narrow()).collect();
    fill_steps(&mut steps, groups);
    steps
}
