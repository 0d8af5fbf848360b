//! Calibration on a GPU against the CPU's, which has tests of its own. Needs a GPU that there are kernels for: the tests are
//! reported as ignored without one.

#[path = "common/backend.rs"]
mod backend;
#[path = "cuda_calibrate/corrected.rs"]
mod corrected;
#[path = "cuda_calibrate/resumed.rs"]
mod resumed;
#[path = "cuda_calibrate/simulated.rs"]
mod simulated;
#[path = "cuda_calibrate/smooth.rs"]
mod smooth;
#[path = "cuda_calibrate/tiny.rs"]
mod tiny;

use std::process::ExitCode;

use qqq_backend::{AttentionKind, Backend, Calibrate, CpuBackend, HeadLayout, InputKind};
use qqq_cuda::{CudaBackend, DType, KernelType};
use qqq_formats::WeightData;
use qqq_quant::{
    Clip, GroupScales, RotationKind,
    rotation::Rotation,
    solve::{ScaleDType, SolveOptions, Solved, solve, solve_on},
};
use qqq_testing::{Suite, tests, values};

use backend::backend;

fn main() -> ExitCode {
    let mut suite = Suite::new();
    for half in [DType::BF16, DType::F16] {
        suite = suite.on(
            half.kernel_name(),
            move || backend(half),
            tests![
                second_moments,
                averages_of_attention,
                weights_are_turned_as_on_the_cpu,
                layers_are_solved_as_on_the_cpu,
                large_layers,
                what_cannot_be_solved,
                numbers_that_are_not_finite,
                corrected::deviations_are_those_of_the_definition,
                corrected::models_that_agree_deviate_by_nothing,
                corrected::shares_are_added_and_what_does_not_fit_is_refused,
                corrected::weights_are_moved_as_in_float64,
                corrected::corrected_layers_are_solved_as_on_the_cpu,
                corrected::large_layers_are_corrected,
                corrected::what_cannot_be_corrected,
                corrected::averages_of_attention_have_deviations,
                corrected::models_are_corrected_as_on_the_cpu,
                resumed::bytes_are_those_of_one_run,
                simulated::models_are_simulated_as_on_the_cpu,
                smooth::candidates_are_those_of_the_cpu,
                smooth::weights_are_divided_as_on_the_cpu,
                smooth::thresholds_are_as_good_as_the_cpus,
                smooth::inputs_that_are_not_finite_are_found,
                smooth::blocks_are_smoothed_as_on_the_cpu,
                smooth::runs_that_smooth_give_the_same_bytes
            ],
        );
    }
    suite.run()
}

/// Channels of very different size, as in a language model.
fn activations(rows: usize, k: usize, seed: u64) -> Vec<f32> {
    let size = |j: usize| match j {
        3 => 60.0,
        j if j % 17 == 5 => 0.01,
        j => 0.5 + (j % 7) as f32 / 4.0,
    };
    let mut x: Vec<f32> = values(rows * k, seed);
    x.iter_mut().enumerate().for_each(|(i, v)| *v *= size(i % k));
    x
}

fn input<B: Backend>(b: &B, rows: usize, k: usize, x: Vec<f32>, kind: InputKind) -> B::Input {
    let (mut x, mut input) = (b.upload(rows, k, x).unwrap(), b.input(0, 0).unwrap());
    b.to_input(&mut x, kind, &mut input).unwrap();
    input
}

/// `2/n sum x x^T` in float64.
fn moments(x: &[f32], k: usize) -> Vec<f64> {
    let n = x.len() / k;
    let mut h = vec![0.0f64; k * k];
    for row in x.chunks_exact(k) {
        for (h, a) in h.chunks_exact_mut(k).zip(row) {
            h.iter_mut().zip(row).for_each(|(h, b)| *h += f64::from(*a) * f64::from(*b) * 2.0 / n as f64);
        }
    }
    h
}

fn assert_moments(got: &[f32], want: &[f64], k: usize, bound: f64, what: &str) {
    for i in 0..k {
        for j in 0..k {
            let unit = (want[i * k + i] * want[j * k + j]).sqrt();
            let error = (f64::from(got[i * k + j]) - want[i * k + j]).abs();
            assert!(error <= bound * unit + 1e-30, "{what}: H[{i}, {j}] is off by {error:e} of {unit:e}");
            assert_eq!(got[i * k + j], got[j * k + i], "{what}: [{i}, {j}]");
        }
    }
}

fn second_moments(b: CudaBackend) {
    for k in [64, 576, 2064] {
        for kind in [InputKind::Float, InputKind::Int8] {
            let parts: Vec<_> = [(300, 1), (1, 2), (77, 3)]
                .map(|(rows, seed)| input(&b, rows, k, activations(rows, k, seed), kind))
                .into();
            let all: Vec<f32> = parts.iter().flat_map(|x| b.read_input(x).unwrap().into_owned()).collect();
            let want = moments(&all, k);
            // int8 rows are rounded to bfloat16: by 2^-8 of a value at most.
            let bound = if kind == InputKind::Int8 { 2.02 / 256.0 } else { 2e-5 };
            let what = format!("{k} channels, {kind:?}");
            let refs: Vec<_> = parts.iter().collect();
            let whole = b.hessian(b.gram_of(k, &refs).unwrap()).unwrap();
            assert_moments(&b.read_hessian(&whole).unwrap(), &want, k, bound, &what);
            let (mut first, mut second) = (b.gram(k).unwrap(), b.gram(k).unwrap());
            b.gram_add(&mut first, &parts[0]).unwrap();
            parts[1..].iter().for_each(|x| b.gram_add(&mut second, x).unwrap());
            b.gram_merge(&mut first, &second).unwrap();
            let merged = b.hessian(first).unwrap();
            assert_moments(&b.read_hessian(&merged).unwrap(), &want, k, bound, &what);
            // A share at equal trace.
            let mut sum = b.hessian(b.gram_of(k, &refs[..1]).unwrap()).unwrap();
            let before = b.read_hessian(&sum).unwrap().into_owned();
            b.hessian_add(&mut sum, &whole, 0.5).unwrap();
            let trace = |h: &[f32]| h.iter().step_by(k + 1).map(|d| f64::from(*d)).sum::<f64>();
            let ratio = trace(&b.read_hessian(&sum).unwrap()) / trace(&before);
            assert!((ratio - 1.5).abs() < 1e-4, "{what}: {ratio}");
        }
        let nothing = b.hessian(b.gram(k).unwrap()).unwrap();
        assert!(b.read_hessian(&nothing).unwrap().iter().all(|v| *v == 0.0));
    }
}

fn averages_of_attention(b: CudaBackend) {
    let cpu = CpuBackend::default();
    for (heads, rows, window) in [
        ((4, 2, 64), 300, None),
        ((3, 1, 128), 2048, None),
        ((2, 2, 80), 500, Some(70)),
        ((4, 4, 64), 20, None),
    ] {
        let heads = HeadLayout { num_heads: heads.0, num_kv_heads: heads.1, head_dim: heads.2 };
        let kind = AttentionKind::causal(heads, window);
        let k = 96;
        // Of the 16-bit type, so that both see the same.
        let round = |x: Vec<f32>| -> Vec<f32> {
            x.into_iter().map(|v| b.half().decode(b.half().encode(v))).collect()
        };
        let x = round(activations(rows, k, 5));
        let qkv = round(values(rows * heads.qkv_width(), 6).into_iter().map(|v| v * 1.5).collect());
        for input_kind in [InputKind::Float, InputKind::Int8] {
            let on_cpu = {
                let x = input(&cpu, rows, k, x.clone(), input_kind);
                let qkv = cpu.upload(rows, heads.qkv_width(), qkv.clone()).unwrap();
                let z = cpu.attended(&x, &qkv, &kind).unwrap();
                let z = cpu.read_input(&z).unwrap().into_owned();
                (z.len() / k, moments(&z, k))
            };
            let mut on_gpu = b.upload(rows, heads.qkv_width(), qkv.clone()).unwrap();
            b.to_input(&mut on_gpu, InputKind::Float, &mut b.input(0, 0).unwrap()).unwrap();
            let x = input(&b, rows, k, x.clone(), input_kind);
            let z = b.attended(&x, &on_gpu, &kind).unwrap();
            assert_eq!(b.read_input(&z).unwrap().len() / k, on_cpu.0);
            let h = b.hessian(b.gram_of(k, &[&z]).unwrap()).unwrap();
            let what = format!("{heads:?}, {rows} tokens, window {window:?}, {input_kind:?}");
            assert_moments(&b.read_hessian(&h).unwrap(), &on_cpu.1, k, 2e-2, &what);
        }
    }
}

/// Second moments of correlated inputs; the last channel is always zero if `dead`.
fn hessian(b: &CudaBackend, k: usize, dead: bool) -> <CudaBackend as Calibrate>::Hessian {
    let rows = 3 * k;
    let mut x = activations(rows, k, 11);
    for row in x.chunks_exact_mut(k) {
        for j in 1..k {
            row[j] += 0.6 * row[j - 1].clamp(-2.0, 2.0);
        }
        if dead {
            row[k - 1] = 0.0;
        }
    }
    b.hessian(b.gram_of(k, &[&input(b, rows, k, x, InputKind::Float)]).unwrap()).unwrap()
}

fn weights(n: usize, k: usize) -> Vec<f32> {
    let mut w = values(n * k, 21);
    // Some outliers, a row and a group of zeros.
    w.iter_mut().enumerate().for_each(|(i, v)| *v *= if i % 131 == 7 { 0.4 } else { 0.05 });
    w[k..2 * k].fill(0.0);
    w[2 * k..2 * k + 32].fill(0.0);
    w
}

/// Weights on the device.
fn on(b: &CudaBackend, w: &[f32], k: usize) -> <CudaBackend as Calibrate>::Weights {
    b.weights(w.len() / k, k, WeightData::F32(w.to_vec())).unwrap()
}

fn weights_are_turned_as_on_the_cpu(b: CudaBackend) {
    let cpu = CpuBackend::default();
    let (n, k) = (160, 96);
    let of = |width: usize| Rotation::new(RotationKind::Hadamard, width, 3).unwrap();
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let w = values(n * k, 8);
        let data = match dtype {
            DType::F16 => WeightData::F16(w.iter().map(|v| half::f16::from_f32(*v)).collect()),
            DType::BF16 => WeightData::BF16(w.iter().map(|v| half::bf16::from_f32(*v)).collect()),
            _ => WeightData::F32(w),
        };
        let (mut here, mut there) =
            (cpu.weights(n, k, data.clone()).unwrap(), b.weights(n, k, data).unwrap());
        let same = |here: &_, there: &_, bound: f32, what: &str| {
            let (here, there) = (cpu.read_weights(here).unwrap(), b.read_weights(there).unwrap());
            for (i, (a, b)) in here.iter().zip(there.iter()).enumerate() {
                assert!((a - b).abs() <= bound * (1.0 + a.abs()), "{dtype}, {what}: {i}: {b} instead of {a}");
            }
        };
        same(&here, &there, 0.0, "as stored");
        let s: Vec<f32> = (0..k).map(|j| 0.5 + j as f32 / 50.0).collect();
        cpu.scale_inputs(&mut here, &s).unwrap();
        b.scale_inputs(&mut there, &s).unwrap();
        same(&here, &there, 0.0, "scaled");
        for width in [96, 32] {
            let q = of(width);
            cpu.rotate_inputs(&mut here, &cpu.rotation(width, q.matrix()).unwrap()).unwrap();
            b.rotate_inputs(&mut there, &b.rotation(width, q.matrix()).unwrap()).unwrap();
            same(&here, &there, 1e-5, "inputs");
        }
        for (width, first) in [(160, 0), (32, 64)] {
            let q = of(width);
            cpu.rotate_outputs(&mut here, first, &cpu.rotation(width, q.matrix()).unwrap()).unwrap();
            b.rotate_outputs(&mut there, first, &b.rotation(width, q.matrix()).unwrap()).unwrap();
            same(&here, &there, 1e-5, "outputs");
        }
        let wrong = b.rotation(7, &[0.0; 49]).unwrap();
        assert!(
            b.rotate_inputs(&mut there, &wrong).is_err() && b.rotate_outputs(&mut there, 0, &wrong).is_err()
        );
    }
}

fn options() -> Vec<SolveOptions> {
    let mut all = Vec::new();
    for clip in [Clip::None, Clip::Weight, Clip::Output] {
        for (group_size, group_scales, scale_dtype) in [
            (None, GroupScales::Half, ScaleDType::F32),
            (None, GroupScales::Half, ScaleDType::BF16),
            (Some(32), GroupScales::Half, ScaleDType::F16),
            (Some(64), GroupScales::Integer, ScaleDType::BF16),
            (Some(64), GroupScales::Integer, ScaleDType::F16),
        ] {
            for (compensate, act_order) in [(true, true), (true, false), (false, true)] {
                let rest = SolveOptions::default();
                all.push(SolveOptions {
                    group_size,
                    group_scales,
                    clip,
                    compensate,
                    act_order,
                    scale_dtype,
                    ..rest
                });
            }
        }
    }
    all
}

fn relative(a: f64, b: f64) -> f64 {
    (a - b).abs() / b.abs().max(1e-12)
}

/// Sums of other orders may put the scale of a group at another step.
const SAME_WEIGHTS: f64 = 5e-3;

/// `nearest`: by what part of it the loss of plain rounding may differ.
fn assert_alike(got: &Solved, want: &Solved, options: &SolveOptions, nearest: f64) {
    assert_eq!((got.damping, got.dead_channels), (want.damping, want.dead_channels), "{options:?}");
    assert!(
        relative(got.loss_nearest, want.loss_nearest) < nearest,
        "{options:?}: nearest loses {} instead of {}",
        got.loss_nearest,
        want.loss_nearest
    );
    // Sums of other orders end at other codes here and there.
    assert!(relative(got.loss, want.loss) < 0.02, "{options:?}: {} instead of {}", got.loss, want.loss);
    let same = got.weight.codes.iter().zip(&want.weight.codes).filter(|(a, b)| a == b).count();
    let share = same as f64 / want.weight.codes.len() as f64;
    assert!(
        share > if options.compensate { 0.85 } else { 0.995 },
        "{options:?}: {share} of the codes are the same"
    );
}

fn layers_are_solved_as_on_the_cpu(b: CudaBackend) {
    let (n, k) = (150, 320);
    let w = weights(n, k);
    for dead in [false, true] {
        let h = hessian(&b, k, dead);
        let on_host = b.read_hessian(&h).unwrap();
        for options in options() {
            let want = solve("layer", &w, n, k, Some(&on_host), &options).unwrap();
            let got = solve_on(&b, "layer", &on(&b, &w, k), 0..n, k, Some(&h), &options).unwrap();
            assert_alike(&got, &want, &options, SAME_WEIGHTS);
            let again = solve_on(&b, "layer", &on(&b, &w, k), 0..n, k, Some(&h), &options).unwrap();
            assert_eq!(again.weight, got.weight, "{options:?}");
        }
    }
    // Without data.
    for options in options().into_iter().filter(|o| !o.compensate && o.clip != Clip::Output) {
        let want = solve("layer", &w, n, k, None, &options).unwrap();
        let got = solve_on(&b, "layer", &on(&b, &w, k), 0..n, k, None, &options).unwrap();
        assert_alike(&got, &want, &options, SAME_WEIGHTS);
    }
}

fn large_layers(b: CudaBackend) {
    let (n, k) = (1040, 2064);
    let (w, h) = (weights(n, k), hessian(&b, k, true));
    let on_host = b.read_hessian(&h).unwrap();
    for (group_size, group_scales) in [(None, GroupScales::Half), (Some(16), GroupScales::Integer)] {
        let options =
            SolveOptions { group_size, group_scales, clip: Clip::Output, ..SolveOptions::default() };
        let want = solve("layer", &w, n, k, Some(&on_host), &options).unwrap();
        let got = solve_on(&b, "layer", &on(&b, &w, k), 0..n, k, Some(&h), &options).unwrap();
        assert_alike(&got, &want, &options, SAME_WEIGHTS);
    }
}

fn what_cannot_be_solved(b: CudaBackend) {
    let (n, k) = (32, 64);
    let w = weights(n, k);
    // Of rank 1: not positive definite without damping, solved with some.
    let x = activations(1, k, 3);
    let h = b.hessian(b.gram_of(k, &[&input(&b, 1, k, x, InputKind::Float)]).unwrap()).unwrap();
    let options = SolveOptions { damping: 0.0, ..SolveOptions::default() };
    let solved = solve_on(&b, "layer", &on(&b, &w, k), 0..n, k, Some(&h), &options).unwrap();
    assert!(solved.damping > 0.0, "{}", solved.damping);
    let error = solve_on(&b, "layer", &on(&b, &w, k), 0..n, k, None, &options).unwrap_err().to_string();
    assert!(error.contains("layer") && error.contains("Hessian"), "{error}");
}

fn numbers_that_are_not_finite(b: CudaBackend) {
    let (rows, k) = (40, 64);
    let mut x = activations(rows, k, 3);
    assert_eq!(b.first_not_finite(&b.upload(rows, k, x.clone()).unwrap()).unwrap(), None);
    x[7 * k + 9] = f32::INFINITY;
    x[8 * k] = f32::NAN;
    let found = b.first_not_finite(&b.upload(rows, k, x.clone()).unwrap()).unwrap();
    assert_eq!(found, Some((7 * k + 9, f32::INFINITY)));
    let h = b.hessian(b.gram_of(k, &[&input(&b, rows, k, x, InputKind::Float)]).unwrap()).unwrap();
    let w = weights(32, k);
    let error = solve_on(&b, "layer", &on(&b, &w, k), 0..32, k, Some(&h), &SolveOptions::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("layer") && error.contains("not finite"), "{error}");
}
