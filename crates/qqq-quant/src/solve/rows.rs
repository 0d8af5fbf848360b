//! A chunk of rows: scales, rounding to nearest, compensation, losses.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, MatMut, MatRef, Par};
use half::f16;
use qqq_backend::simd::{SimdLevel, multiversion};
use qqq_formats::{QuantizedWeight, Scales};

use super::{SolveOptions, correction::Correction, factor::Factor};
use crate::clip::{self, Grid, round};
use crate::{Clip, GroupScales};

/// Rows that a task solves together: they share the products with the Hessian and its factor.
pub(crate) const ROWS_PER_TASK: usize = 96;
/// Rows that go through the inner loops side by side, one a SIMD lane.
const LANES: usize = 32;
/// Columns between two products with the factor.
const BLOCK: usize = 64;
/// Times that a row is solved while its channel scale moves.
const CHANNEL_SCALE_ROUNDS: usize = 2;

/// What all rows share.
pub(super) struct Task<'a> {
    /// What is rounded.
    pub weights: &'a [f32],
    pub k: usize,
    /// `None`: every input counts the same.
    pub hessian: Option<&'a [f32]>,
    /// That of the Hessian; ones where there is none.
    pub diagonal: &'a [f32],
    pub factor: Option<&'a Factor>,
    /// Where weights were corrected: how, and the weights of the float model, whose output losses are then against.
    pub float: Option<(Correction<'a>, &'a [f32])>,
    /// Those of each group of all rows, where they are not to be chosen.
    pub scales: Option<&'a [f32]>,
    pub options: &'a SolveOptions,
}

/// Solved rows and their losses: `w H w^T`, and `(w-q) H (w-q)^T` rounded to nearest and as solved, summed.
pub(super) struct RowSolution {
    pub weight: QuantizedWeight,
    pub energy: f64,
    pub error_nearest: f64,
    pub error: f64,
    /// `w w^T` and `(w-q) (w-q)^T` as solved, of the weights before they were corrected.
    pub weight_energy: f64,
    pub weight_error: f64,
}

/// Solves some rows; `None` if compensation overflows.
pub(super) fn solve(task: &Task<'_>, rows: Range<usize>) -> Option<RowSolution> {
    let k = task.k;
    let values = rows.start * k..rows.end * k;
    let weights = &task.weights[values.clone()];
    let group = task.options.group_size.unwrap_or(k);
    let scheme = task.options.scheme();
    let grid = scheme.grid();

    let importance = importance(task);
    let SolveOptions { clip, scale_dtype, .. } = *task.options;
    let mut scales = match task.scales {
        Some(scales) => scales[rows.start * (k / group)..rows.end * (k / group)].to_vec(),
        None => clip::scales(weights, k, group, grid, clip, &importance, scale_dtype),
    };
    if let (Clip::GroupOutput, Some(hessian)) = (clip, task.hessian) {
        clip::group_output::shrink(weights, k, group, grid, hessian, scale_dtype, &mut scales);
    }
    if scheme.has_two_levels() && task.options.group_scales == GroupScales::Integer {
        clip::integer::snap(weights, k, group, clip, &importance, scale_dtype, &mut scales);
    }
    let codes = round_to_nearest(task, weights, &scales, grid);
    let mut best = Candidate::new(task, weights, codes, scales);
    let energies = quadratic_forms(weights, task.hessian, k);
    let mut error_nearest = best.errors.iter().sum();
    let nearest = task.float.map(|_| best.clone());
    if let Some(factor) = task.factor {
        best.compensate(task, weights, factor, grid)?;
    }
    if task.options.clip == Clip::Output && task.options.group_size.is_none() {
        best.fit_scales(task, weights, &energies);
    }
    let mut error = best.errors.iter().sum();
    let mut energy = energies.iter().sum();
    let weight = best.weight(task);
    let float = task.float.map_or(weights, |(_, float)| &float[values]);
    let difference = best.difference(task, float);
    let [weight_energy, weight_error] = [float, &difference].map(sum_of_squares);
    if let (Some((correction, _)), Some(hessian), Some(nearest)) = (task.float, task.hessian, nearest) {
        let target = correction.target(float, k);
        energy = target.energy(hessian);
        error_nearest = target.error(&nearest.difference(task, float), hessian);
        error = target.error(&difference, hessian);
    }
    Some(RowSolution { weight, energy, error_nearest, error, weight_energy, weight_error })
}

fn sum_of_squares(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v).powi(2)).sum()
}

/// What a squared error of each channel costs: with compensation only the part that later columns cannot take.
fn importance(task: &Task<'_>) -> Vec<f32> {
    let Some(factor) = task.factor else { return task.diagonal.to_vec() };
    let mut out = vec![0.0; task.k];
    for (&channel, &cost) in factor.order.iter().zip(&factor.cost) {
        out[channel] = if task.diagonal[channel] > 0.0 { cost } else { 0.0 };
    }
    out
}

/// Codes of some rows with their scales and losses.
#[derive(Clone)]
struct Candidate {
    codes: Vec<i8>,
    /// Effective scales, `rows x groups`.
    scales: Vec<f32>,
    /// `(w-q) H (w-q)^T` of each row.
    errors: Vec<f64>,
}

impl Candidate {
    fn new(task: &Task<'_>, weights: &[f32], codes: Vec<i8>, scales: Vec<f32>) -> Self {
        let mut candidate = Candidate { codes, scales, errors: Vec::new() };
        let difference = candidate.difference(task, weights);
        candidate.errors = quadratic_forms(&difference, task.hessian, task.k);
        candidate
    }

    /// The weight as the kernel will see it.
    fn weight(&self, task: &Task<'_>) -> QuantizedWeight {
        let (rows, k) = (self.codes.len() / task.k, task.k);
        let scheme = task.options.scheme();
        scheme.weight((rows, k), self.codes.clone(), self.scales.clone())
    }

    /// Weights minus what the kernel multiplies for them.
    fn difference(&self, task: &Task<'_>, weights: &[f32]) -> Vec<f32> {
        if task.options.scheme().has_two_levels() {
            return difference(weights, &self.weight(task));
        }
        let group = task.options.group_size.unwrap_or(task.k);
        let mut out = weights.to_vec();
        let groups = out.chunks_exact_mut(group).zip(self.codes.chunks_exact(group)).zip(&self.scales);
        for ((out, codes), &scale) in groups {
            for (out, &code) in out.iter_mut().zip(codes) {
                *out -= f32::from(code) * scale;
            }
        }
        out
    }

    /// Replaces the codes of each row by compensated ones where these have the smaller loss; `None` on overflow.
    ///
    /// With two levels of scales, the int8 weights depend on the channel's scale, and so on the largest of the codes that are
    /// sought. The scale of the codes so far stands in; rows that end at another one are solved again with that.
    fn compensate(&mut self, task: &Task<'_>, weights: &[f32], factor: &Factor, grid: Grid) -> Option<()> {
        let (k, groups) = (task.k, task.k / task.options.group_size.unwrap_or(task.k));
        let mut rows: Vec<usize> = (0..self.errors.len()).collect();
        // Where there is one level of scales, these are not looked at, and never move.
        let reached = |candidate: &Candidate| match task.options.scheme().has_two_levels() {
            true => candidate.weight(task).channel_scales().to_vec(),
            false => vec![1.0; candidate.errors.len()],
        };
        let mut channels = reached(self);
        for _ in 0..CHANNEL_SCALE_ROUNDS {
            let weights: Vec<f32> = gather(weights, &rows, k);
            let scales = gather(&self.scales, &rows, groups);
            let levels = Levels::new(task, &scales, &channels);
            let codes = compensate(factor, &weights, &levels, grid)?;
            let solved = Candidate::new(task, &weights, codes, scales);
            let reached = reached(&solved);
            for (i, &row) in rows.iter().enumerate() {
                if solved.errors[i] < self.errors[row] {
                    self.errors[row] = solved.errors[i];
                    self.codes[row * k..][..k].copy_from_slice(&solved.codes[i * k..][..k]);
                }
            }
            let moved: Vec<usize> = (0..rows.len()).filter(|&i| reached[i] != channels[i]).collect();
            if moved.is_empty() {
                break;
            }
            channels = gather(&reached, &moved, 1);
            rows = gather(&rows, &moved, 1);
        }
        Some(())
    }
}

impl Candidate {
    /// Per channel: the scale of least loss for the codes as they are, `s = (w H q) / (q H q)` with `q` the codes; kept
    /// where the loss falls. `energies` are `w H w^T`.
    fn fit_scales(&mut self, task: &Task<'_>, weights: &[f32], energies: &[f64]) {
        let codes: Vec<f32> = self.codes.iter().map(|&c| f32::from(c)).collect();
        let squares = quadratic_forms(&codes, task.hessian, task.k);
        let fitted = (0..energies.len()).map(|row| {
            // (w - s q) H (w - s q)^T = w H w^T - 2 s w H q^T + s^2 q H q^T
            let s = f64::from(self.scales[row]);
            let mixed = (energies[row] + s * s * squares[row] - self.errors[row]) / (2.0 * s);
            let fit = (mixed / squares[row]) as f32;
            if fit.is_normal() && fit > 0.0 { task.options.scale_dtype.round(fit) } else { self.scales[row] }
        });
        let fitted = Candidate::new(task, weights, self.codes.clone(), fitted.collect());
        for row in 0..energies.len() {
            if fitted.errors[row] < self.errors[row] {
                (self.errors[row], self.scales[row]) = (fitted.errors[row], fitted.scales[row]);
            }
        }
    }
}

/// Some rows of a matrix with `cols` columns.
fn gather<T: Copy>(matrix: &[T], rows: &[usize], cols: usize) -> Vec<T> {
    let mut out = Vec::with_capacity(rows.len() * cols);
    rows.iter().for_each(|&row| out.extend_from_slice(&matrix[row * cols..][..cols]));
    out
}

/// Weights minus what the kernel multiplies for them, where scales have two levels.
fn difference(weights: &[f32], quantized: &QuantizedWeight) -> Vec<f32> {
    let k = quantized.in_features;
    let mut out = weights.to_vec();
    let Scales::PerGroup { group_size, group, .. } = &quantized.scales else { return out };
    let rows = out.chunks_exact_mut(k).zip(quantized.codes.chunks_exact(k)).zip(quantized.channel_scales());
    for (((out, codes), &scale), inner) in rows.zip(group.chunks_exact(k / group_size)) {
        let groups = out.chunks_exact_mut(*group_size).zip(codes.chunks_exact(*group_size)).zip(inner);
        for ((out, codes), inner) in groups {
            let inner = inner.to_f32();
            for (out, &code) in out.iter_mut().zip(codes) {
                *out -= round(f32::from(code) * inner) * scale;
            }
        }
    }
    out
}

/// `v H v^T` of each row `v`: twice the product with the lower triangle of the symmetric `H`, whose diagonal counts once.
/// Without `H`, `v v^T`.
pub(super) fn quadratic_forms(rows: &[f32], hessian: Option<&[f32]>, k: usize) -> Vec<f64> {
    let Some(hessian) = hessian else {
        let (zeros, ones) = (vec![0.0; k], vec![1.0; k]);
        return rows.chunks_exact(k).map(|v| weighted_dot(&zeros, v, &ones)).collect();
    };
    let count = rows.len() / k;
    let mut product = vec![0.0f32; rows.len()];
    triangular::matmul(
        MatMut::from_row_major_slice_mut(&mut product, count, k),
        BlockStructure::Rectangular,
        Accum::Replace,
        MatRef::from_row_major_slice(rows, count, k),
        BlockStructure::Rectangular,
        MatRef::from_row_major_slice(hessian, k, k),
        BlockStructure::StrictTriangularLower,
        1.0,
        Par::Seq,
    );
    let diagonal: Vec<f64> = (0..k).map(|j| f64::from(hessian[j * k + j])).collect();
    product
        .chunks_exact(k)
        .zip(rows.chunks_exact(k))
        .map(|(p, v)| {
            let form = weighted_dot(p, v, &diagonal);
            // Not `max`, to which NaN is less than 0.
            if form < 0.0 { 0.0 } else { form }
        })
        .collect()
}

/// `sum v (2 p + d v)`, in eight lanes.
fn weighted_dot(p: &[f32], v: &[f32], d: &[f64]) -> f64 {
    const SUMS: usize = 8;
    let mut sums = [0.0f64; SUMS];
    for ((p, v), d) in p.chunks(SUMS).zip(v.chunks(SUMS)).zip(d.chunks(SUMS)) {
        for (((sum, &p), &v), &d) in sums.iter_mut().zip(p).zip(v).zip(d) {
            let v = f64::from(v);
            *sum += v * (2.0 * f64::from(p) + d * v);
        }
    }
    sums.iter().sum()
}

/// The codes nearest to `w / scale`, within the grid; shape of the weights.
fn round_to_nearest(task: &Task<'_>, weights: &[f32], scales: &[f32], grid: Grid) -> Vec<i8> {
    let group = task.options.group_size.unwrap_or(task.k);
    let mut out = vec![0i8; weights.len()];
    for ((w, codes), &scale) in weights.chunks_exact(group).zip(out.chunks_exact_mut(group)).zip(scales) {
        let inverse = 1.0 / scale;
        for (w, code) in w.iter().zip(codes) {
            *code = round((w * inverse).clamp(grid.low, grid.high)) as i32 as i8;
        }
    }
    out
}

/// Scales of a chunk, `groups x padded rows`, one row of the chunk a lane.
struct Levels {
    rows: usize,
    /// Rows rounded up to whole lanes.
    padded: usize,
    group: usize,
    /// Inverse of the effective scale.
    inverse: Vec<f32>,
    /// What the kernel multiplies codes by before it rounds them to int8 (1 where it does not) ...
    inner: Vec<f32>,
    /// ... and the scale of what comes of it.
    outer: Vec<f32>,
    two_level: bool,
}

impl Levels {
    fn new(task: &Task<'_>, scales: &[f32], channels: &[f32]) -> Self {
        let group = task.options.group_size.unwrap_or(task.k);
        let groups = task.k / group;
        let rows = channels.len();
        let padded = rows.next_multiple_of(LANES);
        let two_level = task.options.scheme().has_two_levels();
        let ones = vec![1.0; groups * padded];
        let mut levels = Levels {
            rows,
            padded,
            group,
            inverse: ones.clone(),
            inner: ones.clone(),
            outer: ones,
            two_level,
        };
        for (row, &channel) in channels.iter().enumerate() {
            for (g, &scale) in scales[row * groups..][..groups].iter().enumerate() {
                let at = g * padded + row;
                levels.inverse[at] = 1.0 / scale;
                if two_level {
                    levels.inner[at] = f16::from_f32(scale / channel).to_f32();
                    levels.outer[at] = channel;
                } else {
                    levels.outer[at] = scale;
                }
            }
        }
        levels
    }
}

/// GPTQ's codes (see [`Factor`] for the recurrence); `None` on overflow.
fn compensate(factor: &Factor, weights: &[f32], levels: &Levels, grid: Grid) -> Option<Vec<i8>> {
    let k = factor.order.len();
    let (rows, padded) = (levels.rows, levels.padded);
    // Column by column, the rows side by side.
    let mut columns = vec![0.0f32; k * padded];
    for (row, w) in weights.chunks_exact(k).enumerate() {
        for (j, &channel) in factor.order.iter().enumerate() {
            columns[j * padded + row] = w[channel];
        }
    }
    let mut errors = vec![0.0f32; k * padded];
    let mut codes = vec![0.0f32; k * padded];
    let mut targets = vec![0.0f32; BLOCK * padded];
    for start in (0..k).step_by(BLOCK) {
        let width = BLOCK.min(k - start);
        let targets = &mut targets[..width * padded];
        targets.copy_from_slice(&columns[start * padded..][..width * padded]);
        if start > 0 {
            let feedback = &factor.feedback[start * k..(start + width) * k];
            matmul(
                MatMut::from_column_major_slice_mut(targets, padded, width),
                Accum::Add,
                MatRef::from_column_major_slice(&errors[..start * padded], padded, start),
                MatRef::from_column_major_slice_with_stride(feedback, start, width, k),
                1.0,
                Par::Seq,
            );
        }
        let mut block = Block {
            factor,
            levels,
            grid,
            start,
            columns: &columns,
            targets,
            errors: &mut errors,
            codes: &mut codes,
        };
        run(SimdLevel::detect(), &mut block);
    }
    let mut out = vec![0i8; rows * k];
    for (row, out) in out.chunks_exact_mut(k).enumerate() {
        for (j, &channel) in factor.order.iter().enumerate() {
            out[channel] = codes[j * padded + row] as i32 as i8;
        }
    }
    errors.iter().all(|e| e.is_finite()).then_some(out)
}

/// The columns between two products with the factor.
struct Block<'a> {
    factor: &'a Factor,
    levels: &'a Levels,
    grid: Grid,
    start: usize,
    columns: &'a [f32],
    /// Weights plus the feedback of all columns before the block.
    targets: &'a [f32],
    errors: &'a mut [f32],
    codes: &'a mut [f32],
}

multiversion! {
    /// Solves a block.
    fn run(block: &mut Block<'_>) {
        if block.levels.two_level { block.run_lanes::<true>() } else { block.run_lanes::<false>() }
    }
}

impl Block<'_> {
    /// Plain loops over lanes, never fused: all instruction sets give the same bits.
    #[inline(always)]
    fn run_lanes<const TWO_LEVEL: bool>(&mut self) {
        let padded = self.levels.padded;
        let width = self.targets.len() / padded;
        let k = self.factor.order.len();
        for lane in (0..padded).step_by(LANES) {
            for column in 0..width {
                let j = self.start + column;
                let mut target: [f32; LANES] = *lanes(self.targets, column * padded + lane);
                for (i, &f) in self.factor.feedback[j * k + self.start..j * k + j].iter().enumerate() {
                    let error = lanes(self.errors, (self.start + i) * padded + lane);
                    for (t, e) in target.iter_mut().zip(error) {
                        *t += e * f;
                    }
                }
                let scale_at = self.factor.order[j] / self.levels.group * padded + lane;
                let (codes, values) = nearest_levels::<TWO_LEVEL>(
                    &target,
                    lanes(&self.levels.inverse, scale_at),
                    lanes(&self.levels.inner, scale_at),
                    lanes(&self.levels.outer, scale_at),
                    self.grid,
                );
                let at = j * padded + lane;
                let weights = lanes(self.columns, at);
                let errors = &mut self.errors[at..at + LANES];
                for l in 0..LANES {
                    errors[l] = weights[l] - values[l];
                }
                self.codes[at..at + LANES].copy_from_slice(&codes);
            }
        }
    }
}

/// The lanes from `at` on.
#[inline(always)]
fn lanes(values: &[f32], at: usize) -> &[f32; LANES] {
    values[at..].first_chunk().expect("all buffers are padded to whole lanes")
}

/// Codes whose values are the nearest to the targets, and these values. With two levels of scales, the kernel's int8 weights
/// are not evenly spaced: the neighbours of the rounded code are tried as well.
#[inline(always)]
fn nearest_levels<const TWO_LEVEL: bool>(
    target: &[f32; LANES],
    inverse: &[f32; LANES],
    inner: &[f32; LANES],
    outer: &[f32; LANES],
    grid: Grid,
) -> ([f32; LANES], [f32; LANES]) {
    let mut codes = [0.0; LANES];
    let mut values = [0.0; LANES];
    for l in 0..LANES {
        let code = round((target[l] * inverse[l]).clamp(grid.low, grid.high));
        if !TWO_LEVEL {
            codes[l] = code;
            values[l] = code * outer[l];
            continue;
        }
        let value = |code: f32| round(code * inner[l]) * outer[l];
        let mut best = (code, value(code));
        for other in [(code - 1.0).max(grid.low), (code + 1.0).min(grid.high)] {
            let v = value(other);
            let nearer = (v - target[l]).abs() < (best.1 - target[l]).abs();
            best = if nearer { (other, v) } else { best };
        }
        (codes[l], values[l]) = best;
    }
    (codes, values)
}
