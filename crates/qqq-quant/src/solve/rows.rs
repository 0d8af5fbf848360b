//! A chunk of rows: scales, rounding to nearest, compensation, losses.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use half::f16;
use qqq_formats::{QuantizedWeight, Scales};

use super::{SolveOptions, factor::Factor};
use crate::Clip;
use crate::clip::{self, Grid, round};

/// Rows that a task solves together: they share the products with the Hessian and its factor.
pub(super) const ROWS_PER_TASK: usize = 96;
/// Rows that go through the inner loops side by side, one a SIMD lane.
const LANES: usize = 32;
/// Columns between two products with the factor.
const BLOCK: usize = 64;

/// What all rows share.
pub(super) struct Task<'a> {
    pub weights: &'a [f32],
    pub k: usize,
    pub hessian: &'a [f32],
    pub diagonal: &'a [f32],
    pub factor: Option<&'a Factor>,
    pub options: &'a SolveOptions,
}

/// Solved rows and their losses: `w H w^T`, and `(w-q) H (w-q)^T` rounded to nearest and as solved, summed.
pub(super) struct RowSolution {
    pub weight: QuantizedWeight,
    pub energy: f64,
    pub error_nearest: f64,
    pub error: f64,
}

/// Solves some rows; `None` if compensation overflows.
pub(super) fn solve(task: &Task<'_>, weights: &[f32]) -> Option<RowSolution> {
    let k = task.k;
    let rows = weights.len() / k;
    let group = task.options.group_size.unwrap_or(k);
    let groups = k / group;
    let grid = if task.options.group_size.is_some() { Grid::GROUP } else { Grid::CHANNEL };

    let importance = importance(task);
    let scales =
        clip::scales(weights, k, group, grid, task.options.clip, &importance, task.options.scale_dtype);
    let nearest = Candidate::new(task, weights, round_to_nearest(task, weights, &scales, grid), scales);
    let energy: f64 = quadratic_forms(weights, task.hessian, k).iter().sum();
    let error_nearest = nearest.errors.iter().sum();
    let mut best = nearest;
    if let Some(factor) = task.factor {
        let levels = Levels::new(task, &best, rows, group);
        let codes = compensate(factor, weights, &levels, grid)?;
        let solved = Candidate::new(task, weights, codes, best.scales.clone());
        best.take_better(solved, k, groups);
    }
    let error = best.errors.iter().sum();
    let weight = best.weight(task);
    Some(RowSolution { weight, energy, error_nearest, error })
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
        let effective = candidate.weight(task).dequantize();
        let difference: Vec<f32> = weights.iter().zip(&effective).map(|(w, q)| w - q).collect();
        candidate.errors = quadratic_forms(&difference, task.hessian, task.k);
        candidate
    }

    /// The weight as the kernel will see it.
    fn weight(&self, task: &Task<'_>) -> QuantizedWeight {
        let (rows, k) = (self.codes.len() / task.k, task.k);
        let scales = match task.options.group_size {
            None => Scales::PerChannel(self.scales.clone()),
            Some(group) => Scales::from_effective(&self.codes, rows, k, group, &self.scales),
        };
        QuantizedWeight { out_features: rows, in_features: k, codes: self.codes.clone(), scales }
    }

    /// Row by row, keeps the one with the smaller loss.
    fn take_better(&mut self, other: Candidate, k: usize, groups: usize) {
        for row in 0..self.errors.len() {
            if other.errors[row] < self.errors[row] {
                self.errors[row] = other.errors[row];
                self.codes[row * k..][..k].copy_from_slice(&other.codes[row * k..][..k]);
                self.scales[row * groups..][..groups].copy_from_slice(&other.scales[row * groups..][..groups]);
            }
        }
    }
}

/// `v H v^T` of each row `v`.
fn quadratic_forms(rows: &[f32], hessian: &[f32], k: usize) -> Vec<f64> {
    let count = rows.len() / k;
    let mut product = vec![0.0f32; rows.len()];
    matmul(
        MatMut::from_row_major_slice_mut(&mut product, count, k),
        Accum::Replace,
        MatRef::from_row_major_slice(rows, count, k),
        MatRef::from_row_major_slice(hessian, k, k),
        1.0,
        Par::Seq,
    );
    product
        .chunks_exact(k)
        .zip(rows.chunks_exact(k))
        .map(|(a, b)| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>().max(0.0))
        .collect()
}

/// Nearest codes.
fn round_to_nearest(task: &Task<'_>, weights: &[f32], scales: &[f32], grid: Grid) -> Vec<i8> {
    let group = task.options.group_size.unwrap_or(task.k);
    weights
        .chunks_exact(group)
        .zip(scales)
        .flat_map(|(w, &scale)| {
            let inverse = 1.0 / scale;
            w.iter().map(move |w| round((w * inverse).clamp(grid.low, grid.high)) as i32 as i8)
        })
        .collect()
}

/// Scales of a chunk, `groups x padded rows`, one row of the chunk a lane.
struct Levels {
    rows: usize,
    /// Rows rounded up to whole lanes.
    padded: usize,
    group: usize,
    /// Inverse of the effective scale.
    inverse: Vec<f32>,
    /// What the kernel multiplies codes by before it rounds them to int8 (1 per channel) ...
    inner: Vec<f32>,
    /// ... and the scale of the int8 weight.
    outer: Vec<f32>,
    two_level: bool,
}

impl Levels {
    /// Per group, the levels depend on the channel's scale and so on all its codes, which are not there yet: those
    /// rounded to nearest stand in. The final codes nearly always have the same largest magnitude in the group that
    /// decides; where they do not, all levels move by less than a rounding of int8.
    fn new(task: &Task<'_>, nearest: &Candidate, rows: usize, group: usize) -> Self {
        let groups = task.k / group;
        let padded = rows.next_multiple_of(LANES);
        let two_level = task.options.group_size.is_some();
        let mut levels = Levels {
            rows,
            padded,
            group,
            inverse: vec![1.0; groups * padded],
            inner: vec![1.0; groups * padded],
            outer: vec![1.0; groups * padded],
            two_level,
        };
        for row in 0..rows {
            let scales = &nearest.scales[row * groups..][..groups];
            let channel = nearest.codes[row * task.k..][..task.k]
                .chunks_exact(group)
                .zip(scales)
                .map(|(codes, s)| f32::from(codes.iter().fold(0, |m: u8, c| m.max(c.unsigned_abs()))) * s)
                .fold(0.0f32, f32::max)
                / 127.0;
            let channel = if channel >= f32::MIN_POSITIVE { channel } else { 1.0 };
            for (g, &scale) in scales.iter().enumerate() {
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
        let mut block = Block { factor, levels, grid, start, columns: &columns, targets, errors: &mut errors, codes: &mut codes };
        if levels.two_level { block.run::<true>() } else { block.run::<false>() }
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

impl Block<'_> {
    fn run<const TWO_LEVEL: bool>(&mut self) {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                // SAFETY: the machine has AVX-512F.
                return unsafe { self.run_avx512::<TWO_LEVEL>() };
            }
            if is_x86_feature_detected!("avx2") {
                // SAFETY: the machine has AVX2.
                return unsafe { self.run_avx2::<TWO_LEVEL>() };
            }
        }
        self.run_lanes::<TWO_LEVEL>();
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    fn run_avx512<const TWO_LEVEL: bool>(&mut self) {
        self.run_lanes::<TWO_LEVEL>();
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn run_avx2<const TWO_LEVEL: bool>(&mut self) {
        self.run_lanes::<TWO_LEVEL>();
    }

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

/// Codes whose values are the nearest to the targets, and these values. Per group, the kernel's int8 weights are not
/// evenly spaced: the neighbours of the rounded code are tried as well.
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

#[allow(unused)]
fn unused(_: Clip) {}
