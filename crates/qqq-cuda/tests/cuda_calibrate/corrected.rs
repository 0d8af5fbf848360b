//! Weights that are corrected for what the layers before have done to their inputs: sums against float64, and steps and solved
//! layers beside the CPU's.

use qqq_backend::solve::{Correction, ErrorPower, Problem, RIDGE, ScaleChoice, Scheme};
use qqq_backend::{AttentionKind, Backend, Calibrate, CpuBackend, DeviationValues, HeadLayout, InputKind};
use qqq_cuda::{CudaBackend, DType};
use qqq_quant::{
    Calibration, Clip, GroupScales, Recipe, Report, Transform,
    solve::{self, SolveOptions, Solved, solve_corrected, solve_corrected_on},
};
use qqq_testing::{TinyModel, values};

use super::{activations, assert_alike, input, on, options, relative, tiny::quantized, weights};

/// The moved weights themselves differ in their last bits, so more groups than of the same weights may take another integer scale:
/// an H100 was off by 0.57%.
const MOVED_WEIGHTS: f64 = 1e-2;

type Input = <CudaBackend as Backend>::Input;
type Hessian = <CudaBackend as Calibrate>::Hessian;
type Deviation = <CudaBackend as Calibrate>::Deviation;

/// Inputs of a quantized model, and those of the float model, of which they are a part with noise. The last channel of the former is
/// always zero if `dead`.
fn pair(b: &CudaBackend, rows: usize, k: usize, seed: u64, kind: InputKind, dead: bool) -> (Input, Input) {
    let mut y = activations(rows, k, seed);
    for row in y.chunks_exact_mut(k) {
        for j in 1..k {
            row[j] += 0.6 * row[j - 1].clamp(-2.0, 2.0);
        }
    }
    let mut x = activations(rows, k, seed + 100);
    x.iter_mut().zip(&y).enumerate().for_each(|(i, (x, y))| {
        *x = if dead && i % k == k - 1 { 0.0 } else { 0.7 * y + 0.2 * *x };
    });
    (input(b, rows, k, x, kind), input(b, rows, k, y, InputKind::Float))
}

fn read(b: &CudaBackend, x: &Input) -> Vec<f32> {
    b.read_input(x).unwrap().into_owned()
}

/// `2/n sum a b^T` of rows in float64.
fn products(a: &[f64], b: &[f64], k: usize) -> Vec<f64> {
    let n = a.len() / k;
    let mut out = vec![0.0; k * k];
    for (a, b) in a.chunks_exact(k).zip(b.chunks_exact(k)) {
        for (out, a) in out.chunks_exact_mut(k).zip(a) {
            out.iter_mut().zip(b).for_each(|(out, b)| *out += a * b * 2.0 / n as f64);
        }
    }
    out
}

/// Inputs and differences of pairs in float64.
fn rows(b: &CudaBackend, pairs: &[(Input, Input)]) -> (Vec<f64>, Vec<f64>) {
    let all = |which: fn(&(Input, Input)) -> &Input| -> Vec<f64> {
        pairs.iter().flat_map(|pair| read(b, which(pair))).map(f64::from).collect()
    };
    let (x, y) = (all(|pair| &pair.0), all(|pair| &pair.1));
    let d = x.iter().zip(&y).map(|(x, y)| y - x).collect();
    (x, d)
}

/// Both matrices against float64, by units of what their rows and columns are.
fn assert_deviation(got: &DeviationValues<'_>, x: &[f64], d: &[f64], k: usize, bound: f64, what: &str) {
    let (h, s, cross) = (products(x, x, k), products(d, d, k), products(x, d, k));
    for i in 0..k {
        for j in 0..k {
            let at = i * k + j;
            for (name, got, want, left) in
                [("cross", &got.cross, cross[at], h[i * k + i]), ("square", &got.square, s[at], s[i * k + i])]
            {
                let unit = (left * s[j * k + j]).sqrt();
                let error = (f64::from(got[at]) - want).abs();
                assert!(
                    error <= bound * unit + 1e-30,
                    "{what}: {name}[{i}, {j}] is off by {error:e} of {unit:e}"
                );
            }
        }
    }
}

pub fn deviations_are_those_of_the_definition(b: CudaBackend) {
    for k in [64, 576, 2064] {
        for kind in [InputKind::Float, InputKind::Int8] {
            let pairs = [(300, 1), (1, 2), (77, 3)].map(|(rows, seed)| pair(&b, rows, k, seed, kind, false));
            let together: Vec<_> = pairs.iter().map(|(x, _)| x).collect();
            let of = || {
                let mut sums = b.deviations(k, &together).unwrap();
                // In two calls, as waves of windows come.
                b.deviations_add(&mut sums, 0, &[(&pairs[0].0, &pairs[0].1)]).unwrap();
                let rest: Vec<_> = pairs[1..].iter().map(|(x, y)| (x, y)).collect();
                b.deviations_add(&mut sums, 1, &rest).unwrap();
                b.deviation(sums).unwrap()
            };
            let (first, again) = (of(), of());
            let (got, again) = (b.read_deviation(&first).unwrap(), b.read_deviation(&again).unwrap());
            assert!(got.cross == again.cross && got.square == again.square, "another time others");
            let (x, d) = rows(&b, &pairs);
            // Differences are rounded to 16 bits, 2^-9 of a value at most; int8 rows as well.
            assert_deviation(&got, &x, &d, k, 1.1 / 256.0, &format!("{k} channels, {kind:?}"));
        }
    }
}

pub fn models_that_agree_deviate_by_nothing(b: CudaBackend) {
    let (rows, k) = (200, 96);
    // Rows whose largest value is 127/8: their int8 scale is 1/8, and codes stand for what is in every 16-bit type.
    let mut x: Vec<f32> = values(rows * k, 5).into_iter().map(|v| (v * 126.0).round() / 8.0).collect();
    x.chunks_exact_mut(k).for_each(|row| row[3] = 127.0 / 8.0);
    let y = input(&b, rows, k, x.clone(), InputKind::Float);
    for kind in [InputKind::Int8, InputKind::Float] {
        let x = input(&b, rows, k, x.clone(), kind);
        assert_eq!(read(&b, &x), read(&b, &y));
        let mut sums = b.deviations(k, &[&x]).unwrap();
        b.deviations_add(&mut sums, 0, &[(&x, &y)]).unwrap();
        let deviation = b.deviation(sums).unwrap();
        let DeviationValues { cross, square } = b.read_deviation(&deviation).unwrap();
        assert!(cross.iter().chain(square.iter()).all(|v| *v == 0.0), "{kind:?}");
    }
    let nothing = b.deviation(b.deviations(k, &[]).unwrap()).unwrap();
    let DeviationValues { cross, square } = b.read_deviation(&nothing).unwrap();
    assert!(cross.len() == k * k && cross.iter().chain(square.iter()).all(|v| *v == 0.0));
}

pub fn shares_are_added_and_what_does_not_fit_is_refused(b: CudaBackend) {
    let k = 80;
    let of = |seed| deviation_of(&b, &[pair(&b, 100, k, seed, InputKind::Int8, false)], k);
    let (mut sum, other) = (of(1), of(2));
    let DeviationValues { cross, square } = b.read_deviation(&sum).unwrap();
    let before = [cross.into_owned(), square.into_owned()];
    b.deviation_add(&mut sum, &other, 0.25).unwrap();
    let (got, added) = (b.read_deviation(&sum).unwrap(), b.read_deviation(&other).unwrap());
    for (got, before, added) in
        [(&got.cross, &before[0], &added.cross), (&got.square, &before[1], &added.square)]
    {
        for ((got, before), added) in got.iter().zip(before.iter()).zip(added.iter()) {
            let want = before + 0.25 * added;
            assert!((got - want).abs() <= 1e-6 * (before.abs() + added.abs()), "{got} instead of {want}");
        }
    }
    let narrow = deviation_of(&b, &[pair(&b, 10, 64, 1, InputKind::Int8, false)], 64);
    assert!(b.deviation_add(&mut sum, &narrow, 1.0).is_err());
    let mut sums = b.deviations(k, &[]).unwrap();
    let (x, y) = pair(&b, 10, k, 1, InputKind::Int8, false);
    let (_, more) = pair(&b, 11, k, 1, InputKind::Int8, false);
    for (x, y) in [(&x, &more), (&more, &y), (&x, &x)] {
        let error = b.deviations_add(&mut sums, 0, &[(x, y)]).unwrap_err().to_string();
        assert!(error.contains("beside") && error.contains("80 channels"), "{error}");
    }
    assert!(b.deviations(64, &[&x]).is_err());
}

fn deviation_of(b: &CudaBackend, pairs: &[(Input, Input)], k: usize) -> Deviation {
    let together: Vec<_> = pairs.iter().map(|(x, _)| x).collect();
    let mut sums = b.deviations(k, &together).unwrap();
    let pairs: Vec<_> = pairs.iter().map(|(x, y)| (x, y)).collect();
    b.deviations_add(&mut sums, 0, &pairs).unwrap();
    b.deviation(sums).unwrap()
}

/// Second moments of a layer's int8 inputs, and what the float model's deviate.
fn moments(b: &CudaBackend, k: usize, dead: bool) -> (Hessian, Deviation) {
    let pairs = [pair(b, 3 * k, k, 11, InputKind::Int8, dead)];
    let hessian = b.hessian(b.gram_of(k, &[&pairs[0].0]).unwrap()).unwrap();
    (hessian, deviation_of(b, &pairs, k))
}

/// What a row of the right-hand side becomes by the inverse of a matrix that is positive definite: by its Cholesky factor.
fn solved(a: &[f64], rhs: &[f64], k: usize) -> Vec<f64> {
    let mut l = a.to_vec();
    for j in 0..k {
        for i in j..k {
            let sum: f64 = (0..j).map(|t| l[i * k + t] * l[j * k + t]).sum();
            let rest = l[i * k + j] - sum;
            l[i * k + j] = if i == j { rest.sqrt() } else { rest / l[j * k + j] };
        }
    }
    let mut out = rhs.to_vec();
    for row in out.chunks_exact_mut(k) {
        for i in 0..k {
            let sum: f64 = (0..i).map(|t| l[i * k + t] * row[t]).sum();
            row[i] = (row[i] - sum) / l[i * k + i];
        }
        for i in (0..k).rev() {
            let sum: f64 = (i + 1..k).map(|t| l[t * k + i] * row[t]).sum();
            row[i] = (row[i] - sum) / l[i * k + i];
        }
    }
    out
}

/// Groups of one weight each have scales that say what the weight was.
pub fn weights_are_moved_as_in_float64(b: CudaBackend) {
    let strength = 0.7;
    // A square on the diagonal that is not whole, several of them, and more rows than are moved at a time.
    for (n, k, dead) in [(40, 48, false), (37, 320, true), (2100, 144, false)] {
        let what = format!("{n} x {k}");
        let mut w = values(n * k, 21);
        // None is zero.
        w.iter_mut().for_each(|w| *w = 0.05 * *w + 0.01f32.copysign(*w));
        let (hessian, deviation) = moments(&b, k, dead);
        let scales = ScaleChoice {
            search: None,
            power: ErrorPower::Square,
            weighted: false,
            integer: false,
            dtype: DType::F32,
            fit: false,
        };
        let weights = on(&b, &w, k);
        // Not from the first row on.
        let first = 3;
        let problem = Problem {
            weights: &weights,
            rows: first..n,
            k,
            hessian: Some(&hessian),
            scheme: Scheme::w4a8(Some(1)),
            scales,
            compensation: None,
            correction: Some(Correction { deviation: &deviation, strength }),
        };
        let solution = b.solve(&problem).unwrap().unwrap();
        let h: Vec<f64> = b.read_hessian(&hessian).unwrap().iter().map(|v| f64::from(*v)).collect();
        let cross = b.read_deviation(&deviation).unwrap().cross;
        let diagonal: Vec<f64> = h.iter().step_by(k + 1).copied().collect();
        let live = diagonal.iter().filter(|d| **d > 0.0).count();
        assert_eq!(live, k - usize::from(dead));
        let mean = diagonal.iter().sum::<f64>() / live as f64;
        let mut a = h.clone();
        a.iter_mut().step_by(k + 1).for_each(|d| *d += RIDGE * mean);
        let of_rows = &w[first * k..];
        let mut products = vec![0.0f64; of_rows.len()];
        for (out, w) in products.chunks_exact_mut(k).zip(of_rows.chunks_exact(k)) {
            for (out, row) in out.iter_mut().zip(cross.chunks_exact(k)) {
                *out = row.iter().zip(w).map(|(d, w)| f64::from(*d) * f64::from(*w)).sum();
            }
        }
        let steps = solved(&a, &products, k);
        let largest = steps.iter().fold(0.0f64, |most, s| most.max(s.abs()));
        assert!(largest > 0.01, "{what}: {largest}");
        for (i, step) in steps.iter().enumerate() {
            let w = f64::from(of_rows[i]);
            let is_dead = diagonal[i % k] == 0.0;
            let want = if is_dead { w } else { w + strength * step };
            let got = 7.5 * f64::from(solution.scales[i]) * f64::from(solution.codes[i].signum());
            // A channel that is always zero has the scale of another weight.
            if !is_dead {
                let error = (got - want).abs();
                assert!(error <= 1e-4 * largest, "{what}: weight {i} is {got} instead of {want} ({w})");
            }
        }
        let again = b.solve(&problem).unwrap().unwrap();
        assert!(
            again.scales == solution.scales && again.codes == solution.codes,
            "{what}: another time others"
        );
    }
}

/// As `solve_corrected` does it on the host, with the device's moments.
fn on_cpu(
    b: &CudaBackend,
    w: &[f32],
    k: usize,
    (hessian, deviation): &(Hessian, Deviation),
    strength: f64,
    options: &SolveOptions,
) -> Solved {
    let hessian = b.read_hessian(hessian).unwrap();
    let DeviationValues { cross, square } = b.read_deviation(deviation).unwrap();
    let correction = solve::Correction { cross: &cross, square: &square, strength };
    solve_corrected("layer", w, w.len() / k, k, Some(&hessian), Some(correction), options).unwrap()
}

fn on_gpu(
    b: &CudaBackend,
    w: &[f32],
    k: usize,
    (hessian, deviation): &(Hessian, Deviation),
    strength: f64,
    options: &SolveOptions,
) -> Solved {
    let correction = Correction { deviation, strength };
    let (weights, rows) = (on(b, w, k), 0..w.len() / k);
    solve_corrected_on(b, "layer", &weights, rows, k, Some(hessian), Some(correction), options).unwrap()
}

pub fn corrected_layers_are_solved_as_on_the_cpu(b: CudaBackend) {
    let (n, k) = (150, 320);
    let w = weights(n, k);
    for dead in [false, true] {
        let moments = moments(&b, k, dead);
        for options in options() {
            let want = on_cpu(&b, &w, k, &moments, 0.5, &options);
            let got = on_gpu(&b, &w, k, &moments, 0.5, &options);
            assert_alike(&got, &want, &options, MOVED_WEIGHTS);
            assert_eq!(on_gpu(&b, &w, k, &moments, 0.5, &options).weight, got.weight, "{options:?}");
        }
        // The step is worth something against the float model's output, which losses are against.
        let options = SolveOptions::default();
        let [none, half, full] = [0.0, 0.5, 1.0].map(|a| on_gpu(&b, &w, k, &moments, a, &options).loss);
        assert!(half < 0.95 * none && full < half, "{none} {half} {full}");
        let plain =
            solve::solve_on(&b, "layer", &on(&b, &w, k), 0..n, k, Some(&moments.0), &options).unwrap();
        let unmoved = on_gpu(&b, &w, k, &moments, 0.0, &options);
        assert_eq!(unmoved.weight, plain.weight);
        assert!(relative(unmoved.loss, plain.loss) > 0.1, "{} {}", unmoved.loss, plain.loss);
    }
}

pub fn large_layers_are_corrected(b: CudaBackend) {
    let (n, k) = (1040, 2064);
    let (w, moments) = (weights(n, k), moments(&b, k, true));
    for (group_size, group_scales) in [(None, GroupScales::Half), (Some(16), GroupScales::Integer)] {
        let options =
            SolveOptions { group_size, group_scales, clip: Clip::Output, ..SolveOptions::default() };
        let want = on_cpu(&b, &w, k, &moments, 0.3, &options);
        assert_alike(&on_gpu(&b, &w, k, &moments, 0.3, &options), &want, &options, MOVED_WEIGHTS);
    }
}

pub fn what_cannot_be_corrected(b: CudaBackend) {
    let (n, k) = (32, 64);
    let w = weights(n, k);
    let (hessian, deviation) = moments(&b, k, false);
    let error = |hessian, deviation, options: &SolveOptions| {
        let correction = Some(Correction { deviation, strength: 1.0 });
        solve_corrected_on(&b, "layer", &on(&b, &w, k), 0..n, k, hessian, correction, options)
            .unwrap_err()
            .to_string()
    };
    let nearest = SolveOptions { compensate: false, ..SolveOptions::default() };
    let said = error(None, &deviation, &nearest);
    assert!(said.contains("layer") && said.contains("there is none"), "{said}");
    // A deviation of another layer.
    let other = deviation_of(&b, &[pair(&b, 100, 80, 1, InputKind::Int8, false)], 80);
    assert!(error(Some(&hessian), &other, &nearest).contains("does not fit"));
    // Numbers that are not finite.
    let mut sum = deviation_of(&b, &[pair(&b, 100, k, 1, InputKind::Int8, false)], k);
    b.deviation_add(&mut sum, &deviation, f64::INFINITY).unwrap();
    let said = error(Some(&hessian), &sum, &SolveOptions::default());
    assert!(said.contains("layer") && said.contains("deviation of its inputs"), "{said}");
}

pub fn averages_of_attention_have_deviations(b: CudaBackend) {
    let heads = HeadLayout { num_heads: 4, num_kv_heads: 2, head_dim: 64 };
    let (count, k, kind) = (300, 96, AttentionKind::causal(heads, None));
    let (x, y) = pair(&b, count, k, 1, InputKind::Int8, false);
    let attended = |input: &Input, seed: u64| {
        let qkv = values(count * heads.qkv_width(), seed).into_iter().map(|v| v * 1.5).collect();
        let mut qkv = b.upload(count, heads.qkv_width(), qkv).unwrap();
        b.to_input(&mut qkv, InputKind::Float, &mut b.input(0, 0).unwrap()).unwrap();
        b.attended(input, &qkv, &kind).unwrap()
    };
    // Each model has its own attention; averages of int8 inputs are bfloat16, those of the float model of its own type.
    let pairs = [(attended(&x, 6), attended(&y, 7))];
    let deviation = deviation_of(&b, &pairs, k);
    let (x, d) = rows(&b, &pairs);
    let got = b.read_deviation(&deviation).unwrap();
    assert_deviation(&got, &x, &d, k, 1.1 / 256.0, "averages");
}

/// The mean of the logarithms of the losses of all layers.
pub fn mean_loss(report: &Report) -> f64 {
    report.layers.iter().map(|layer| layer.loss.ln()).sum::<f64>() / report.layers.len() as f64
}

pub fn models_are_corrected_as_on_the_cpu(b: CudaBackend) {
    let (cpu, tiny) = (CpuBackend::default(), TinyModel::new());
    for (transform, group_size, compensate) in [
        (Transform::Rotate, Some(32), true),
        (Transform::Rotate, None, false),
        (Transform::Smooth, Some(32), true),
        (Transform::None, None, true),
    ] {
        let recipe = |error_correction| Recipe {
            transform,
            group_size,
            compensate,
            error_correction,
            calibration: Calibration { windows: 8, window: 128, smooth_tokens: 128 },
            ..Recipe::DEFAULT
        };
        let what = format!("{transform:?}, groups of {group_size:?}, compensated {compensate}");
        let (report, bytes) = quantized(&b, &tiny, &recipe(0.5));
        assert!(quantized(&b, &tiny, &recipe(0.5)).1 == bytes, "{what}: another time other bytes");
        // A strength that moves nothing shows what the same weights lose against the float model.
        let (unmoved, of_unmoved) = quantized(&b, &tiny, &recipe(1e-12));
        assert!(quantized(&b, &tiny, &recipe(0.0)).1 == of_unmoved, "{what}: weights were moved by nothing");
        let want = mean_loss(&quantized(&cpu, &tiny, &recipe(0.5)).0);
        let (got, before) = (mean_loss(&report), mean_loss(&unmoved));
        println!("{what}: mean log loss {got}, on the CPU {want}; uncorrected {before}");
        assert!((got - want).abs() < 0.1, "{what}: {got} instead of {want}");
        assert!(got < before - 0.2, "{what}: {got} after {before}");
    }
}
