//! Calibration and the solver, with products of matrices on the host.

use std::ffi::OsString;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use qqq_backend::pool::parallel_for;
use qqq_backend::solve::{Grid, Scheme};
use qqq_cuda::decoder::calibrate::kernels::{CalibrationKernel as Kernel, FACTOR_BLOCK, SOLVE_BLOCK};
use qqq_cuda::decoder::calibrate::parameters::{
    CodeParameters, ColumnParameters, DampParameters, DiagonalParameters, FactorParameters,
    FeedbackParameters, FloatsParameters, FormParameters, KeepParameters, MirrorParameters,
    NotFiniteParameters, ProbabilityParameters, ScaleParameters, SolveParameters, WidenParameters,
};
use qqq_cuda::{DType, KernelType};
use qqq_formats::{Activations, CodeBits, Scales};

use crate::emulator::{Emulator, Memory, Region, Shape};
use crate::uniform::uniform;

/// What a check found wrong.
pub type Check = Result<(), String>;

/// Numbers in (-size, size).
pub fn numbers(seed: u64, count: usize, size: f32) -> Vec<f32> {
    (0..count).map(|i| (uniform(seed, i) * 2.0 - 1.0) * size).collect()
}

pub fn close(got: f64, want: f64, relative: f64, absolute: f64, what: &str) -> Check {
    match (got - want).abs() <= relative * want.abs() + absolute {
        true => Ok(()),
        false => Err(format!("{what}: {got} instead of {want}")),
    }
}

pub fn alike<T: PartialEq + std::fmt::Debug>(got: &T, want: &T, what: &str) -> Check {
    if got == want { Ok(()) } else { Err(format!("{what}: {got:?} instead of {want:?}")) }
}

pub fn launch<T>(emulator: &Emulator, kernel: Kernel, units: usize, parameters: T, memory: &Memory) -> Check {
    let shape = Shape {
        blocks: kernel.ctas(units),
        threads: kernel.threads(),
        cluster: 1,
        shared_bytes: 0,
        together: false,
    };
    let raw = ((&raw const parameters).cast(), size_of::<T>());
    emulator.launch(&kernel.source(), shape, raw, memory, &[], units as u64)
}

pub fn inputs_and_moments(compiler: OsString) {
    let halves = [DType::F16, DType::BF16];
    let mut kernels =
        vec![Kernel::Widen, Kernel::Floats, Kernel::Mirror, Kernel::Diagonal, Kernel::NotFinite];
    kernels.extend(halves.map(|half| Kernel::Probabilities { half, out: DType::BF16 }));
    kernels.push(Kernel::Probabilities { half: DType::F16, out: DType::F16 });
    let emulator = Emulator::new(&compiler, kernels.iter().map(|k| k.source()).collect());
    rows(&emulator).unwrap();
    matrices(&emulator).unwrap();
    for (half, out, window) in
        [(DType::F16, DType::BF16, 0), (DType::BF16, DType::BF16, 7), (DType::F16, DType::F16, 1)]
    {
        probabilities(&emulator, half, out, window).unwrap();
    }
}

fn rows(emulator: &Emulator) -> Check {
    let (m, k) = (5, 48);
    let codes: Vec<i8> = (0..m * k).map(|i| (i as i32 * 37 % 256 - 128) as i8).collect();
    let scales = numbers(1, m, 3.0);
    let mut memory = Memory::default();
    let (codes_at, scales_at) = (memory.upload(&codes), memory.upload(&scales));
    let out = memory.upload(&vec![0x7FABu16; m * k]);
    let parameters = WidenParameters {
        codes: codes_at.address,
        scales: scales_at.address,
        out: out.address,
        count: (m * k / 4) as i64,
        row_count: (k / 4) as i32,
    };
    launch(emulator, Kernel::Widen, m * k / 4, parameters, &memory)?;
    for (i, bits) in memory.download::<u16>(out).into_iter().enumerate() {
        let want = DType::BF16.encode(f32::from(codes[i]) * scales[i / k]);
        alike(&bits, &want, &format!("widened {i}"))?;
    }
    for dtype in [DType::F16, DType::BF16, DType::F32] {
        for scaled in [false, true] {
            let x = numbers(2, m * k, 9.0);
            let mut memory = Memory::default();
            let x_at = match dtype {
                DType::F32 => memory.upload(&x),
                half => memory.upload(&x.iter().map(|v| half.encode(*v)).collect::<Vec<_>>()),
            };
            let factors = numbers(3, k, 2.0);
            let factors_at = memory.upload(&factors);
            let out = memory.upload(&vec![f32::NAN; m * k]);
            let parameters = FloatsParameters {
                x: x_at.address,
                factors: if scaled { factors_at.address } else { 0 },
                out: out.address,
                count: (m * k) as i64,
                columns: k as i32,
                value_type: [DType::F16, DType::BF16, DType::F32].iter().position(|d| *d == dtype).unwrap()
                    as i32,
            };
            launch(emulator, Kernel::Floats, m * k, parameters, &memory)?;
            for (i, got) in memory.download::<f32>(out).into_iter().enumerate() {
                let value = if dtype == DType::F32 { x[i] } else { dtype.decode(dtype.encode(x[i])) };
                let want = if scaled { value * factors[i % k] } else { value };
                alike(&got, &want, &format!("{dtype} {i}"))?;
            }
        }
    }
    Ok(())
}

fn matrices(emulator: &Emulator) -> Check {
    for k in [1, 31, 32, 70] {
        let matrix = numbers(4, k * k, 2.0);
        let mut memory = Memory::default();
        let at = memory.upload(&matrix);
        let parameters = MirrorParameters { matrix: at.address, width: k as i32, factor: 0.5 };
        launch(emulator, Kernel::Mirror, k, parameters, &memory)?;
        let got: Vec<f32> = memory.download(at);
        for (i, got) in got.iter().enumerate() {
            let (row, col) = (i / k, i % k);
            let want = 0.5 * matrix[row.max(col) * k + row.min(col)];
            alike(got, &want, &format!("mirrored [{row}, {col}] of {k}"))?;
        }
        let out = memory.upload(&vec![f32::NAN; k]);
        let parameters = DiagonalParameters { matrix: at.address, out: out.address, width: k as i32 };
        launch(emulator, Kernel::Diagonal, k, parameters, &memory)?;
        let diagonal: Vec<f32> = (0..k).map(|i| got[i * k + i]).collect();
        alike(&memory.download(out), &diagonal, "diagonal")?;
    }
    for (bad, want) in [(vec![], u32::MAX), (vec![700, 699], 699), (vec![0], 0)] {
        let mut x = numbers(5, 900, 2.0);
        bad.iter().zip([f32::NAN, f32::NEG_INFINITY]).for_each(|(i, v)| x[*i as usize] = v);
        let mut memory = Memory::default();
        let (x_at, first) = (memory.upload(&x), memory.upload(&[u32::MAX]));
        let parameters =
            NotFiniteParameters { values: x_at.address, count: 900, first: first.address, value_type: 2 };
        launch(emulator, Kernel::NotFinite, 900, parameters, &memory)?;
        alike(&memory.download(first), &vec![want], "the first that is not finite")?;
    }
    Ok(())
}

fn probabilities(emulator: &Emulator, half: DType, out: DType, window: usize) -> Check {
    let (rows, heads, kv_heads, d, queries, first, stride) = (43, 4, 2, 24, 5, 3, 9);
    let (width, pitch) = ((heads + 2 * kv_heads) * d, 48);
    let bits: Vec<u16> = numbers(6, rows * width, 1.5).iter().map(|v| half.encode(*v)).collect();
    let at = |row: usize, col: usize| f64::from(half.decode(bits[row * width + col]));
    let mut memory = Memory::default();
    let qkv = memory.upload(&bits);
    let out_at = memory.upload(&vec![0x7FABu16; heads * queries * pitch]);
    let scale = 0.3f32;
    let parameters = ProbabilityParameters {
        qkv: qkv.address,
        out: out_at.address,
        rows: rows as i32,
        num_heads: heads as i32,
        num_kv_heads: kv_heads as i32,
        head_dim: d as i32,
        queries: queries as i32,
        first: first as i32,
        stride: stride as i32,
        window: window as i32,
        pitch: pitch as i32,
        scale: scale * std::f32::consts::LOG2_E,
    };
    launch(emulator, Kernel::Probabilities { half, out }, heads * queries, parameters, &memory)?;
    let got: Vec<u16> = memory.download(out_at);
    let unit = if out == DType::BF16 { 1.0 / 256.0 } else { 1.0 / 2048.0 };
    for head in 0..heads {
        for query in 0..queries {
            let position = first + query * stride;
            let key = (heads + head / (heads / kv_heads)) * d;
            let sees = |t: usize| t <= position && (window == 0 || t + window > position);
            let score = |t: usize| {
                (0..d).map(|i| at(position, head * d + i) * at(t, key + i)).sum::<f64>() * f64::from(scale)
            };
            let sum: f64 = (0..rows).filter(|t| sees(*t)).map(|t| score(t).exp()).sum();
            for t in 0..pitch {
                let want = if t < rows && sees(t) { score(t).exp() / sum } else { 0.0 };
                let value = f64::from(out.decode(got[(head * queries + query) * pitch + t]));
                close(value, want, unit, 1e-6, &format!("head {head}, query {query}, key {t}"))?;
            }
        }
    }
    Ok(())
}

/// A layer to be solved.
#[derive(Clone, Copy)]
struct Layer {
    n: usize,
    k: usize,
    scheme: Scheme,
    integer: bool,
    steep: bool,
    act_order: bool,
}

impl Layer {
    /// Whether its scales have two levels.
    fn two_levels(&self) -> bool {
        self.scheme.has_two_levels()
    }
}

const fn w4a8(n: usize, k: usize, group_size: Option<usize>) -> Layer {
    Layer { n, k, scheme: Scheme::w4a8(group_size), integer: false, steep: false, act_order: true }
}

/// Per channel, in groups of which int8 weights are made and of which none are, and 8 bits.
const LAYERS: [Layer; 6] = [
    w4a8(40, 96, None),
    Layer { steep: true, act_order: false, ..w4a8(130, 64, None) },
    w4a8(33, 160, Some(32)),
    Layer { integer: true, ..w4a8(20, 128, Some(64)) },
    Layer {
        scheme: Scheme { bits: CodeBits::Four, activations: Activations::Half, group_size: Some(32) },
        ..w4a8(24, 96, None)
    },
    Layer {
        scheme: Scheme { bits: CodeBits::Eight, activations: Activations::Int8, group_size: None },
        ..w4a8(36, 96, None)
    },
];

fn solver() -> Vec<Kernel> {
    let mut kernels = Kernel::all();
    // The others are tested alone.
    kernels.retain(|k| {
        let of_inputs = [Kernel::Widen, Kernel::Floats, Kernel::Mirror, Kernel::Diagonal, Kernel::NotFinite];
        let of_smoothing = [Kernel::ChannelRange, Kernel::Distances, Kernel::DivideRows];
        let of_correction = [Kernel::Doubles, Kernel::MoveWeights];
        let several = matches!(
            k,
            Kernel::Probabilities { .. }
                | Kernel::RoundScaled { .. }
                | Kernel::SmoothRows(_)
                | Kernel::Halves(_)
                | Kernel::Deviate(_)
        );
        let alone = [&of_inputs[..], &of_smoothing, &of_correction].concat();
        !several && !alone.contains(k)
    });
    kernels
}

pub fn layers_are_solved(compiler: OsString) {
    let emulator = Emulator::new(&compiler, solver().into_iter().map(Kernel::source).collect());
    parallel_for(LAYERS.len(), |i| solve(&emulator, LAYERS[i], i as u64).unwrap());
}

/// `C = A B` in float64 over column-major matrices with pitches.
fn product(
    (m, n, k): (usize, usize, usize),
    a: impl Fn(usize, usize) -> f64,
    b: impl Fn(usize, usize) -> f64,
    mut c: impl FnMut(usize, usize, f64),
) {
    for col in 0..n {
        for row in 0..m {
            c(row, col, (0..k).map(|i| a(row, i) * b(i, col)).sum());
        }
    }
}

struct Factor {
    order: Vec<i32>,
    feedback: Vec<f32>,
    cost: Vec<f32>,
}

/// The factor of a Hessian, and that it is one.
fn factorize(emulator: &Emulator, h: &[f32], k: usize, act_order: bool) -> Result<Factor, String> {
    let diagonal: Vec<f32> = h.iter().step_by(k + 1).copied().collect();
    let mut order: Vec<i32> = (0..k as i32).collect();
    if act_order {
        order.sort_by(|&a, &b| diagonal[b as usize].total_cmp(&diagonal[a as usize]));
    }
    let live = diagonal.iter().filter(|d| **d > 0.0);
    let mean = live.clone().map(|d| f64::from(*d)).sum::<f64>() / live.count() as f64;
    let added = 0.01 * mean;
    let mut memory = Memory::default();
    let [h_at, diagonal_at] = [h, &diagonal].map(|v| memory.upload(v));
    let order_at = memory.upload(&order);
    let matrix = memory.upload(&vec![0.0f64; k * k]);
    let failed = memory.upload(&[0i32]);
    let parameters = DampParameters {
        hessian: h_at.address,
        diagonal: diagonal_at.address,
        order: order_at.address,
        out: matrix.address,
        k: k as i32,
        mean,
        added,
    };
    launch(emulator, Kernel::Damp, k * k, parameters, &memory)?;
    let rest = memory.upload(&vec![0.0f64; k * FACTOR_BLOCK]);
    let inverse = memory.upload(&vec![f64::NAN; FACTOR_BLOCK * FACTOR_BLOCK]);
    for start in (0..k).step_by(FACTOR_BLOCK) {
        let width = FACTOR_BLOCK.min(k - start);
        let mut a: Vec<f64> = memory.download(matrix);
        let mut left = vec![0.0f64; k * FACTOR_BLOCK];
        product(
            (k - start, width, start),
            |r, i| a[i * k + start + r],
            |i, c| a[i * k + start + c],
            |r, c, v| left[c * k + r] = a[(start + c) * k + start + r] - v,
        );
        memory.fill(rest, &left);
        let parameters = FactorParameters {
            rest: rest.address,
            out: matrix.address + (8 * (start * k + start)) as u64,
            inverse: inverse.address,
            failed: failed.address,
            rest_pitch: k as i32,
            out_pitch: k as i32,
            width: width as i32,
        };
        launch(emulator, Kernel::FactorSquare, 1, parameters, &memory)?;
        a = memory.download(matrix);
        let inverse: Vec<f64> = memory.download(inverse);
        product(
            (k - start - width, width, width),
            |r, i| left[i * k + width + r],
            |i, c| inverse[c * FACTOR_BLOCK + i],
            |r, c, v| a[(start + c) * k + start + width + r] = v,
        );
        memory.fill(matrix, &a);
    }
    let feedback = memory.upload(&vec![0.0f32; k * k]);
    let cost = memory.upload(&vec![f32::NAN; k]);
    let parameters = FeedbackParameters {
        factor: matrix.address,
        feedback: feedback.address,
        cost: cost.address,
        failed: failed.address,
        k: k as i32,
    };
    launch(emulator, Kernel::Feedback, k * k, parameters, &memory)?;
    alike(&memory.download(failed), &vec![0i32], "failure")?;
    let factor = Factor { order, feedback: memory.download(feedback), cost: memory.download(cost) };
    // R R^T with R_ij = feedback[j, i] R_jj.
    let r = |i: usize, j: usize| match i.cmp(&j) {
        std::cmp::Ordering::Less => f64::from(factor.feedback[j * k + i]) * f64::from(factor.cost[j]).sqrt(),
        std::cmp::Ordering::Equal => f64::from(factor.cost[j]).sqrt(),
        std::cmp::Ordering::Greater => 0.0,
    };
    for a in 0..k {
        for b in 0..=a {
            let (ca, cb) = (factor.order[a] as usize, factor.order[b] as usize);
            let dead = diagonal[ca] <= 0.0 || diagonal[cb] <= 0.0;
            let mut want = if dead { 0.0 } else { f64::from(h[ca * k + cb]) };
            if a == b {
                want = if dead { mean } else { want } + added;
            }
            let got: f64 = (0..k).map(|j| r(a, j) * r(b, j)).sum();
            close(got, want, 1e-5, 1e-5 * mean, &format!("factor [{a}, {b}] of {k}"))?;
        }
    }
    Ok(factor)
}

/// A problem in emulated memory.
struct Solving<'e> {
    emulator: &'e Emulator,
    layer: Layer,
    memory: Memory,
    weights: Vec<f32>,
    weights_at: Region,
    scales: Region,
    channels: Region,
    codes: Region,
    out: Region,
    grid: Grid,
}

impl Solving<'_> {
    fn group(&self) -> usize {
        self.layer.scheme.group_size.unwrap_or(self.layer.k)
    }

    fn groups(&self) -> usize {
        self.layer.k / self.group()
    }

    fn run(&self, kernel: Kernel, units: usize) -> Check {
        let parameters = CodeParameters {
            weights: self.weights_at.address,
            scales: self.scales.address,
            channels: if self.layer.two_levels() { self.channels.address } else { self.scales.address },
            codes: self.codes.address,
            out: self.out.address,
            n: self.layer.n as i32,
            k: self.layer.k as i32,
            group: self.group() as i32,
            low: self.grid.low,
            high: self.grid.high,
        };
        launch(self.emulator, kernel, units, parameters, &self.memory)
    }

    /// The scale of a weight's group, and what a code stands for by the channel scales that are there.
    fn value(&self, scales: &[f32], channels: &[f32], row: usize, col: usize, code: f32) -> f64 {
        let scale = scales[row * self.groups() + col / self.group()];
        if !self.layer.two_levels() {
            return f64::from(code * scale);
        }
        let inner = DType::F16.decode(DType::F16.encode(scale / channels[row]));
        f64::from((code * inner).round_ties_even() * channels[row])
    }
}

fn solve(emulator: &Emulator, layer: Layer, seed: u64) -> Check {
    let Layer { n, k, scheme, integer, steep, act_order } = layer;
    // Second moments of inputs of which neighbours are alike, and one is always zero.
    let mut x = numbers(seed + 10, 3 * k * k, 1.0);
    for row in x.chunks_exact_mut(k) {
        (1..k).for_each(|j| row[j] = row[j] * (0.2 + (j % 5) as f32) + 0.5 * row[j - 1]);
        row[k / 2] = 0.0;
    }
    let mut h = vec![0.0f32; k * k];
    product(
        (k, k, 3 * k),
        |r, i| f64::from(x[i * k + r]),
        |i, c| f64::from(x[i * k + c]),
        |r, c, v| h[r * k + c] = (v * 2.0 / (3 * k) as f64) as f32,
    );
    let factor = factorize(emulator, &h, k, act_order)?;

    let mut weights = numbers(seed + 20, n * k, 0.1);
    weights.iter_mut().enumerate().filter(|(i, _)| i % 37 == 5).for_each(|(_, w)| *w *= 6.0);
    weights[k..2 * k].fill(0.0);
    weights[2 * k..2 * k + 32].fill(0.0);
    let grid = scheme.grid();
    let groups = k / scheme.group_size.unwrap_or(k);
    let mut memory = Memory::default();
    let weights_at = memory.upload(&weights);
    let scales = memory.upload(&vec![f32::NAN; n * groups]);
    let channels = memory.upload(&vec![f32::NAN; n]);
    let codes = memory.upload(&vec![99i8; n * k]);
    let out = memory.upload(&vec![f32::NAN; n * k]);
    let mut s = Solving { emulator, layer, memory, weights, weights_at, scales, channels, codes, out, grid };
    let mut importance = vec![0.0f32; k];
    for (&channel, &cost) in factor.order.iter().zip(&factor.cost) {
        let live = h[channel as usize * (k + 1)] > 0.0;
        importance[channel as usize] = if !live {
            0.0
        } else if steep {
            1.0
        } else {
            cost
        };
    }
    let chosen = choose_scales(&mut s, &importance, integer, steep)?;
    let nearest = round(&s, &chosen)?;
    forms(&mut s, &h)?;
    compensate(&mut s, &factor, &chosen, &nearest)
}

/// Scales of the least error, or nearly so.
fn choose_scales(
    s: &mut Solving<'_>,
    importance: &[f32],
    integer: bool,
    steep: bool,
) -> Result<Vec<f32>, String> {
    let (n, k, group, groups) = (s.layer.n, s.layer.k, s.group(), s.groups());
    let importance_at = s.memory.upload(importance);
    let (from, to, stride) = if steep { (100, 20, 4) } else { (110, 40, 5) };
    let parameters = ScaleParameters {
        weights: s.weights_at.address,
        importance: importance_at.address,
        scales: s.scales.address,
        n: n as i32,
        k: k as i32,
        group: group as i32,
        low: s.grid.low,
        high: s.grid.high,
        reach: s.grid.reach,
        from,
        to,
        stride,
        steep: i32::from(steep),
        value_type: if integer { 1 } else { 2 },
    };
    launch(
        s.emulator,
        Kernel::ChooseScales { grouped: s.layer.scheme.group_size.is_some() },
        n * groups,
        parameters,
        &s.memory,
    )?;
    launch(s.emulator, Kernel::FillScales, n, parameters, &s.memory)?;
    let chosen: Vec<f32> = s.memory.download(s.scales);
    let power = if steep { 2.4 } else { 2.0 };
    let error = |row: usize, g: usize, scale: f32| -> f64 {
        (g * group..(g + 1) * group)
            .map(|j| {
                let w = f64::from(s.weights[row * k + j]);
                let code = (w / f64::from(scale))
                    .clamp(f64::from(s.grid.low), f64::from(s.grid.high))
                    .round_ties_even();
                f64::from(importance[j]) * (w - code * f64::from(scale)).abs().powf(power)
            })
            .sum()
    };
    let largest = |row: usize, g: usize| {
        let columns = (g * group..(g + 1) * group).filter(|j| importance[*j] > 0.0);
        columns.fold(0.0f32, |m, j| m.max(s.weights[row * k + j].abs()))
    };
    for row in 0..n {
        let of_row = &chosen[row * groups..][..groups];
        for (g, scale) in of_row.iter().enumerate() {
            let full = largest(row, g) / s.grid.reach;
            if full == 0.0 {
                let others = (0..groups).filter(|g| largest(row, *g) > 0.0).map(|g| of_row[g]);
                let least = others.fold(f32::INFINITY, f32::min);
                alike(scale, &if least.is_finite() { least } else { 1.0 }, "a group of zeros")?;
                continue;
            }
            let coarse =
                (to..=from).rev().step_by(stride as usize).map(|h| error(row, g, full * h as f32 / 100.0));
            let best = coarse.fold(error(row, g, full), f64::min);
            // Scales in 16 bits may have moved by 2^-9.
            let slack = if integer { 1.05 } else { 1.001 };
            if error(row, g, *scale) > slack * best + 1e-12 {
                return Err(format!(
                    "the scale of row {row}, group {g} has an error of {}, not {best}",
                    error(row, g, *scale)
                ));
            }
        }
    }
    if !integer {
        return Ok(chosen);
    }
    launch(s.emulator, Kernel::IntegerScales, n, parameters, &s.memory)?;
    let snapped: Vec<f32> = s.memory.download(s.scales);
    for row in 0..n {
        let of_row = &snapped[row * groups..][..groups];
        let top = of_row.iter().copied().fold(0.0, f32::max);
        let exact = |c: f32| of_row.iter().all(|v| (v / c).round() * c == *v && (v / c).round() <= 15.0);
        if !(1..=15).any(|m| exact(top / m as f32)) {
            return Err(format!("{of_row:?} of row {row} are no small multiples of one scale"));
        }
        let sum = |scales: &[f32]| (0..groups).map(|g| error(row, g, scales[row * groups + g])).sum::<f64>();
        if sum(&snapped) > 1.7 * sum(&chosen) + 1e-9 {
            return Err(format!("row {row} loses {}, and {} before", sum(&snapped), sum(&chosen)));
        }
    }
    Ok(snapped)
}

/// Codes, channel scales and differences of rounding to nearest.
fn round(s: &Solving<'_>, scales: &[f32]) -> Result<Vec<i8>, String> {
    let (n, k, group, groups) = (s.layer.n, s.layer.k, s.group(), s.groups());
    s.run(Kernel::RoundCodes, n * k)?;
    let codes: Vec<i8> = s.memory.download(s.codes);
    for i in 0..n * k {
        let scale = scales[i / k * groups + i % k / group];
        let want = (s.weights[i] * (1.0 / scale)).clamp(s.grid.low, s.grid.high).round_ties_even();
        alike(&f32::from(codes[i]), &want, &format!("code {i}"))?;
    }
    if s.layer.two_levels() {
        s.run(Kernel::ChannelScales, n)?;
        let Scales::PerGroup { channel, .. } = Scales::from_effective(&codes, n, k, group, scales) else {
            return Err("no groups".into());
        };
        alike(&s.memory.download(s.channels), &channel, "channel scales")?;
    }
    s.run(Kernel::Differences { grouped: s.layer.two_levels() }, n * k)?;
    let (got, channels): (Vec<f32>, Vec<f32>) = (s.memory.download(s.out), s.memory.download(s.channels));
    for i in 0..n * k {
        let want = f64::from(s.weights[i]) - s.value(scales, &channels, i / k, i % k, f32::from(codes[i]));
        close(f64::from(got[i]), want, 1e-6, 1e-7, &format!("difference {i}"))?;
    }
    Ok(codes)
}

/// Quadratic forms of the differences, and of the codes; the better of two tries.
fn forms(s: &mut Solving<'_>, h: &[f32]) -> Check {
    let (n, k) = (s.layer.n, s.layer.k);
    let v: Vec<f32> = s.memory.download(s.out);
    let mut p = vec![0.0f32; n * k];
    product(
        (n, k, k),
        |r, i| f64::from(v[r * k + i]),
        |i, c| f64::from(h[i * k + c]),
        |r, c, x| p[r * k + c] = x as f32,
    );
    let product_at = s.memory.upload(&p);
    let forms = s.memory.upload(&vec![f64::NAN; n]);
    let added = numbers(30, n, 0.01).into_iter().map(f64::from).collect::<Vec<_>>();
    let added_at = s.memory.upload(&added);
    for (product, adds) in [(product_at.address, false), (0, false), (product_at.address, true)] {
        let parameters = FormParameters {
            rows: s.out.address,
            product,
            added: if adds { added_at.address } else { 0 },
            out: forms.address,
            k: k as i32,
        };
        launch(s.emulator, Kernel::Forms, n, parameters, &s.memory)?;
        for (row, got) in s.memory.download::<f64>(forms).into_iter().enumerate() {
            let own = row * k..(row + 1) * k;
            let by = if product == 0 { &v } else { &p };
            let want: f64 =
                v[own.clone()].iter().zip(&by[own]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let want = if adds { want + added[row] } else { want };
            close(got, want.max(0.0), 1e-9, 1e-15, &format!("form of row {row}"))?;
        }
    }
    s.run(Kernel::CodeValues, n * k)?;
    let (codes, values): (Vec<i8>, Vec<f32>) = (s.memory.download(s.codes), s.memory.download(s.out));
    alike(&values, &codes.iter().map(|c| f32::from(*c)).collect(), "codes as numbers")?;

    let other: Vec<i8> = codes.iter().map(|c| c / 2).collect();
    let errors: Vec<f64> = (0..n).map(|row| (row % 3) as f64).collect();
    let (best, least) = (s.memory.upload(&other), s.memory.upload(&vec![1.0f64; n]));
    let errors_at = s.memory.upload(&errors);
    let parameters = KeepParameters {
        codes: s.codes.address,
        best: best.address,
        errors: errors_at.address,
        least: least.address,
        k: k as i32,
    };
    launch(s.emulator, Kernel::KeepBetter, n, parameters, &s.memory)?;
    let want: Vec<i8> = (0..n * k).map(|i| if errors[i / k] < 1.0 { codes[i] } else { other[i] }).collect();
    alike(&s.memory.download(best), &want, "the better codes")?;
    alike(&s.memory.download(least), &errors.iter().map(|e| e.min(1.0)).collect(), "the lesser errors")
}

/// Each code is the nearest to its weight and what the errors of the columns before feed back.
fn compensate(s: &mut Solving<'_>, factor: &Factor, scales: &[f32], nearest: &[i8]) -> Check {
    let (n, k, group, groups) = (s.layer.n, s.layer.k, s.group(), s.groups());
    let order_at = s.memory.upload(&factor.order);
    let feedback = s.memory.upload(&factor.feedback);
    let columns = s.memory.upload(&vec![f32::NAN; n * k]);
    let column_codes = s.memory.upload(&vec![99i8; n * k]);
    let errors = s.memory.upload(&vec![0.0f32; n * k]);
    let targets = s.memory.upload(&vec![f32::NAN; SOLVE_BLOCK * n]);
    let parameters = ColumnParameters {
        weights: s.weights_at.address,
        codes: s.codes.address,
        order: order_at.address,
        columns: columns.address,
        column_codes: column_codes.address,
        n: n as i32,
        k: k as i32,
    };
    launch(s.emulator, Kernel::ToColumns, n * k, parameters, &s.memory)?;
    let own: Vec<f32> = s.memory.download(columns);
    for start in (0..k).step_by(SOLVE_BLOCK) {
        let width = SOLVE_BLOCK.min(k - start);
        let e: Vec<f32> = s.memory.download(errors);
        let mut t = vec![f32::NAN; SOLVE_BLOCK * n];
        product(
            (n, width, start),
            |r, i| f64::from(e[i * n + r]),
            |i, c| f64::from(factor.feedback[(start + c) * k + i]),
            |r, c, v| t[c * n + r] = (f64::from(own[(start + c) * n + r]) + v) as f32,
        );
        s.memory.fill(targets, &t);
        let parameters = SolveParameters {
            feedback: feedback.address,
            order: order_at.address,
            scales: s.scales.address,
            channels: if s.layer.two_levels() { s.channels.address } else { s.scales.address },
            columns: columns.address,
            targets: targets.address,
            errors: errors.address,
            codes: column_codes.address,
            n: n as i32,
            k: k as i32,
            group: group as i32,
            groups: groups as i32,
            start: start as i32,
            width: width as i32,
            low: s.grid.low,
            high: s.grid.high,
        };
        launch(s.emulator, Kernel::SolveBlock { grouped: s.layer.two_levels() }, n, parameters, &s.memory)?;
    }
    launch(s.emulator, Kernel::FromColumns, n * k, parameters, &s.memory)?;
    let codes: Vec<i8> = s.memory.download(s.codes);
    let channels: Vec<f32> = s.memory.download(s.channels);
    let mut moved = 0;
    for row in 0..n {
        let mut errors = vec![0.0f64; k];
        for j in 0..k {
            let channel = factor.order[j] as usize;
            let w = f64::from(s.weights[row * k + channel]);
            let target: f64 =
                w + (0..j).map(|i| errors[i] * f64::from(factor.feedback[j * k + i])).sum::<f64>();
            let value = |code: f32| s.value(scales, &channels, row, channel, code);
            let code = f32::from(codes[row * k + channel]);
            let distance = |code: f32| (value(code) - target).abs();
            let best = (s.grid.low as i32..=s.grid.high as i32)
                .map(|c| distance(c as f32))
                .fold(f64::INFINITY, f64::min);
            let scale = f64::from(scales[row * groups + channel / group]);
            // Two codes may be equally far but for the last digits of the sums.
            if distance(code) > best + 1e-4 * scale + 1e-4 * best {
                return Err(format!(
                    "row {row}, column {j}: code {code} is {} away, another {best}",
                    distance(code)
                ));
            }
            errors[j] = w - value(code);
            moved += usize::from(codes[row * k + channel] != nearest[row * k + channel]);
        }
    }
    // Where nothing moved nothing was fed back.
    if moved < n * k / 50 { Err(format!("{moved} of {} codes are compensated", n * k)) } else { Ok(()) }
}

/// Mistakes that the tests of the solver must find: text of `factor.cuh` or `solve.cuh`, and what is there instead.
const MISTAKES: [(&str, &str); 17] = [
    ("value = (dead ? p.mean : value) + p.added", "value = (dead ? p.mean : value)"),
    ("p.order[p.k - 1 - row]", "p.order[row]"),
    (
        "if (row >= col) a[row][col] -= a[row][j] * a[col][j]",
        "if (row > col) a[row][col] -= a[row][j] * a[col][j]",
    ),
    ("for (int i = col; i < row; ++i) sum -=", "for (int i = col + 1; i < row; ++i) sum -="),
    ("pivot * pivot : column", "pivot : column"),
    ("importance[i] > 0.0f ? fabsf(w[i]) : 0.0f", "fabsf(w[i])"),
    ("if (e < least) {", "if (e > least) {"),
    ("if (scales[g] == 0.0f) scales[g] = least", "if (scales[g] == 0.0f) scales[g] = 1.0f"),
    ("return high < low ? above : below", "return above + 1"),
    ("__fdiv_rn(weight, 127.0f)", "__fdiv_rn(weight, 128.0f)"),
    ("sum += (double)row[i] * (double)product[i]", "sum += (double)row[i] * (double)row[i]"),
    ("if (p.added) sum += p.added[blockIdx.x]", ""),
    ("p.errors[row] < p.least[row]", "p.errors[row] <= p.least[row]"),
    ("p.weights[i % p.n * p.k + p.order[i / p.n]]", "p.weights[i % p.n * p.k + i / p.n]"),
    ("targets[j] = __fmaf_rn(errors[i], factors[i][kSolveHalf + j], targets[j])", "targets[j] += 0.0f"),
    ("for (int j = i + 1; j < kSolveHalf; ++j)", "for (int j = i + 2; j < kSolveHalf; ++j)"),
    ("if (d < distance) best = other, distance = d", "if (d > distance) best = other, distance = d"),
];

pub fn mistakes_in_calibration_are_found(compiler: OsString) {
    let missed = Mutex::new(Vec::new());
    parallel_for(MISTAKES.len(), |i| {
        let (text, replacement) = MISTAKES[i];
        let sources = solver().into_iter().map(Kernel::source).collect();
        let found = AtomicUsize::new(0);
        let emulator = Emulator::with_headers(&compiler, sources, |name, header| {
            if !["factor.cuh", "solve.cuh"].contains(&name) {
                return header.to_owned();
            }
            found.fetch_add(header.matches(text).count(), Ordering::Relaxed);
            header.replace(text, replacement)
        });
        assert_eq!(found.into_inner(), 1, "how often there is {text:?}");
        if !(0..LAYERS.len()).any(|i| solve(&emulator, LAYERS[i], i as u64).is_err()) {
            missed.lock().unwrap().push(text);
        }
    });
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "not found: {missed:#?}");
}
