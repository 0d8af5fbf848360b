//! Each method against the same one written in Python from its paper (`scripts/make_recipe_vectors.py`), and against what must
//! hold of it.

use std::sync::OnceLock;

use qqq_formats::simulated::{LlmInt8, Quik, Quip, SpQr};
use serde::Deserialize;

use super::{super::factor, *};

#[derive(Deserialize)]
struct Vectors {
    n: usize,
    k: usize,
    weights: Vec<f64>,
    hessian: Vec<f64>,
    largest: Vec<f32>,
    turns: Vec<Turn>,
    llm_int8: Vec<f64>,
    quik: Vec<f64>,
    quik_outliers: Vec<usize>,
    quik_8: Vec<f64>,
    spqr: Vec<f64>,
    spqr_outliers: usize,
    quip: Vec<f64>,
    quip_greedy: Vec<f64>,
    quip_plain: Vec<f64>,
}

#[derive(Deserialize)]
struct Turn {
    left: Vec<f64>,
    right: Vec<f64>,
    order: Vec<usize>,
}

fn vectors() -> &'static Vectors {
    static VECTORS: OnceLock<Vectors> = OnceLock::new();
    VECTORS.get_or_init(|| {
        serde_json::from_str(include_str!("../../../tests/data/recipes.json")).expect("what the script wrote")
    })
}

impl Vectors {
    fn layer(&self) -> Layer<'_> {
        Layer {
            name: "model.layers.0.mlp.up_proj",
            weights: &self.weights,
            n: self.n,
            k: self.k,
            hessian: Some(&self.hessian),
            largest: Some(&self.largest),
        }
    }

    fn turns(&self) -> (quip::Turn, quip::Turn) {
        let [outputs, inputs] = [0, 1].map(|i| {
            let Turn { left, right, order } = &self.turns[i];
            quip::Turn { left: left.clone(), right: right.clone(), order: order.clone() }
        });
        (outputs, inputs)
    }

    fn quip(&self, options: Quip, rounding: quip::Rounding) -> Vec<f64> {
        let turns = self.turns();
        let h = damped(&self.hessian, self.k, options.damping);
        let turns = options.incoherence.then_some(&turns);
        let problem =
            quip::Problem { w: &self.weights, h: &h, n: self.n, k: self.k, options: &options, turns };
        problem.solve(rounding).unwrap()
    }
}

fn assert_close(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance, "value {i} is {g}, not {w}");
    }
}

fn made(method: SimulatedMethod) -> Made {
    quantize(&method, &vectors().layer(), HalfType::F16, 7).unwrap()
}

#[test]
fn llm_int8_rounds_as_the_paper_says_and_keeps_the_weights() {
    let v = vectors();
    assert_close(&llm_int8::int8(&v.weights, v.k), &v.llm_int8, 1e-9);
    let made = made(SimulatedMethod::LlmInt8(LlmInt8::default()));
    let stored: Vec<f64> = v.weights.iter().map(|w| f64::from(HalfType::F16.round(*w as f32))).collect();
    assert_close(&widened(&made.weights), &stored, 0.0);
    assert_eq!(made.bits, 8.0 * (v.n * v.k) as f64 + 16.0 * v.n as f64);
    assert_close(&[made.loss], &losses(&v.layer(), [&llm_int8::int8(&stored, v.k)]), 1e-15);
    // In plain words.
    let energy = |e: &[f64]| -> f64 {
        let row = |e: &[f64]| -> f64 { (0..v.k * v.k).map(|i| e[i / v.k] * v.hessian[i] * e[i % v.k]).sum() };
        e.chunks(v.k).map(row).sum()
    };
    let errors: Vec<f64> = v.weights.iter().zip(llm_int8::int8(&stored, v.k)).map(|(w, q)| w - q).collect();
    let want = energy(&errors) / energy(&v.weights);
    assert!((made.loss / want - 1.0).abs() < 1e-12, "{} {want}", made.loss);
}

#[test]
fn quik_is_what_python_makes_of_its_paper() {
    let v = vectors();
    let made = made(SimulatedMethod::Quik(Quik::default()));
    let quik::Codes { scales, outliers, .. } = made.quik.as_ref().unwrap();
    assert_eq!(outliers, &v.quik_outliers);
    // What is stored is rounded to float16.
    let want: Vec<f64> = v.quik.iter().map(|w| f64::from(HalfType::F16.round(*w as f32))).collect();
    assert_close(&widened(&made.weights), &want, 1e-6);
    assert!(made.loss < made.loss_nearest, "{} {}", made.loss, made.loss_nearest);
    // As the arithmetic reads them.
    let weight = qqq_formats::SimulatedWeight {
        out_features: v.n,
        in_features: v.k,
        data: qqq_formats::WeightData::of_f32(qqq_formats::DType::F16, &made.weights),
        arithmetic: qqq_formats::simulated::Arithmetic::Quik {
            bits: 4,
            scales: scales.clone(),
            outliers: outliers.clone(),
            outlier_scales: None,
        },
    };
    let codes = weight.codes().unwrap().unwrap();
    for (i, w) in v.quik.iter().enumerate().filter(|(i, _)| !outliers.contains(&(i % v.k))) {
        assert!((f64::from(codes[i]) * f64::from(scales[i / v.k]) - w).abs() < 1e-9);
    }
}

#[test]
fn outliers_of_8_bits_are_what_python_makes_of_them() {
    let v = vectors();
    let options = Quik { outliers: 0.125, outlier_bits: 8, ..Quik::default() };
    let eight = made(SimulatedMethod::Quik(options));
    let want: Vec<f64> = v.quik_8.iter().map(|w| f64::from(HalfType::F16.round(*w as f32))).collect();
    assert_close(&widened(&eight.weights), &want, 1e-6);
    let quik::Codes { scales, outliers, outlier_scales } = eight.quik.unwrap();
    let outlier_scales = outlier_scales.unwrap();
    let weight = qqq_formats::SimulatedWeight {
        out_features: v.n,
        in_features: v.k,
        data: qqq_formats::WeightData::of_f32(qqq_formats::DType::F16, &eight.weights),
        arithmetic: qqq_formats::simulated::Arithmetic::Quik {
            bits: 4,
            scales,
            outliers: outliers.clone(),
            outlier_scales: Some(outlier_scales.clone()),
        },
    };
    let codes = weight.outlier_codes().unwrap().unwrap();
    for (i, w) in v.quik_8.iter().enumerate().filter(|(i, _)| outliers.contains(&(i % v.k))) {
        assert!((f64::from(codes[i]) * f64::from(outlier_scales[i / v.k]) - w).abs() < 1e-9);
    }
    let sixteen = made(SimulatedMethod::Quik(Quik { outlier_bits: 16, ..options }));
    assert!(sixteen.loss < eight.loss && eight.loss < eight.loss_nearest, "{} {}", sixteen.loss, eight.loss);
    // Half of the bits of the outliers, and a scale and a sum of codes more an output channel.
    let (rows, count) = (v.n as f64, outliers.len() as f64);
    assert_eq!(sixteen.bits - eight.bits, 8.0 * rows * count - 32.0 * rows);
}

/// Without outliers QUIK is GPTQ per channel in natural order. Here in the form of the solver, from the factor of `H` itself.
#[test]
fn quik_without_outliers_is_gptq() {
    let v = vectors();
    let k = v.k;
    let made = made(SimulatedMethod::Quik(Quik { outliers: 0.0, ..Quik::default() }));
    let quik::Codes { scales, outliers, .. } = made.quik.unwrap();
    assert!(outliers.is_empty());
    let r = factor::upper(&damped(&v.hessian, k, Quik::default().damping), k).unwrap();
    for (row, w) in v.weights.chunks(k).enumerate() {
        let scale = f64::from(scales[row]);
        let mut q: Vec<f64> = vec![];
        for j in 0..k {
            let errors: f64 = (0..j).map(|i| (w[i] - q[i]) * r[i * k + j]).sum();
            let target = w[j] + errors / r[j * k + j];
            q.push((target / scale).round_ties_even().clamp(-8.0, 7.0) * scale);
        }
        let stored: Vec<f64> = q.iter().map(|q| f64::from(HalfType::F16.round(*q as f32))).collect();
        assert_close(&widened(&made.weights[row * k..(row + 1) * k]), &stored, 1e-9);
    }
}

#[test]
fn spqr_is_what_python_makes_of_its_paper() {
    let v = vectors();
    let options = SpQr { statistics_group: 8, threshold: 0.1, damping: 0.1, ..SpQr::default() };
    let u = factor::inverse(&damped(&v.hessian, v.k, options.damping), v.k).unwrap();
    let solved = spqr::solve(&v.weights, v.n, v.k, &u, &options, true);
    assert_eq!(solved.outliers, v.spqr_outliers);
    assert_close(&solved.weights, &v.spqr, 1e-8);
    let made = made(SimulatedMethod::SpQr(options));
    let groups = (v.n * v.k / 16) as f64;
    let want =
        3.0 * (v.n * v.k) as f64 + 6.0 * groups + 64.0 * groups / 8.0 + 32.0 * (v.spqr_outliers + v.n) as f64;
    assert_eq!(made.bits, want);
}

/// With statistics of 16 bits and no outliers SpQR is GPTQ with asymmetric groups in natural order. Here from another side: in
/// the form of the solver, column by column from the factor of `H` itself.
#[test]
fn spqr_with_plain_statistics_is_gptq() {
    let v = vectors();
    let (n, k, group) = (v.n, v.k, 16);
    let options =
        SpQr { statistics_bits: 16, threshold: f64::INFINITY, damping: 0.01, group, ..SpQr::default() };
    let h = damped(&v.hessian, k, options.damping);
    let solved = spqr::solve(&v.weights, n, k, &factor::inverse(&h, k).unwrap(), &options, true);
    assert_eq!(solved.outliers, 0);
    let r = factor::upper(&h, k).unwrap();
    for (w, solved) in v.weights.chunks(k).zip(solved.weights.chunks(k)) {
        let mut q = vec![0.0; k];
        // What compensates best for the errors of the columns before `first`, in column j.
        let compensated = |q: &[f64], first: usize| -> Vec<f64> {
            let mut errors: Vec<f64> = (0..first).map(|i| w[i] - q[i]).collect();
            for j in first..k {
                let sum: f64 = errors.iter().enumerate().map(|(i, e)| e * r[i * k + j]).sum();
                errors.push(-sum / r[j * k + j]);
            }
            (0..k).map(|j| if j < first { q[j] } else { w[j] - errors[j] }).collect()
        };
        for first in (0..k).step_by(group) {
            let now = compensated(&q, first)[first..first + group].to_vec();
            let (low, high) = now.iter().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
            let scale = (high - low) / 7.0;
            for j in first..first + group {
                let target = compensated(&q, j)[j];
                q[j] = ((target - low) / scale).round_ties_even().clamp(0.0, 7.0) * scale + low;
            }
        }
        assert_close(solved, &q, 1e-9);
    }
}

#[test]
fn quip_is_what_python_makes_of_its_paper() {
    let v = vectors();
    let ldlq = quip::Rounding::Ldlq;
    assert_close(&v.quip(Quip::default(), ldlq), &v.quip, 1e-8);
    let greedy = Quip { bits: 3, greedy: 3, ..Quip::default() };
    assert_close(&v.quip(greedy, ldlq), &v.quip_greedy, 1e-8);
    let plain = Quip { bits: 4, incoherence: false, ..Quip::default() };
    assert_close(&v.quip(plain, ldlq), &v.quip_plain, 1e-8);
}

/// What the paper proves: LDLQ without incoherence processing is GPTQ (OPTQ) in natural order, on the same grid.
#[test]
fn ldlq_without_incoherence_is_optq() {
    let v = vectors();
    let (k, options) = (v.k, Quip { bits: 3, incoherence: false, ..Quip::default() });
    let ldlq = v.quip(options, quip::Rounding::Ldlq);
    let u = factor::inverse(&damped(&v.hessian, k, options.damping), k).unwrap();
    let square: f64 = v.weights.iter().map(|w| w * w).sum();
    let range = options.rho * (square / v.weights.len() as f64).sqrt();
    let step = 2.0 * range / 7.0;
    for (w, ldlq) in v.weights.chunks(k).zip(ldlq.chunks(k)) {
        let mut w = w.to_vec();
        for j in 0..k {
            let q = ((w[j] + range) / step).round_ties_even().clamp(0.0, 7.0) * step - range;
            let error = (w[j] - q) / u[j * k + j];
            (j..k).for_each(|i| w[i] -= error * u[j * k + i]);
            w[j] = q;
        }
        assert_close(ldlq, &w, 1e-9);
    }
}

#[test]
fn quip_of_16_bits_changes_nothing() {
    let v = vectors();
    let options = Quip { bits: 16, rho: 64.0, ..Quip::default() };
    assert_close(&v.quip(options, quip::Rounding::Nearest), &v.weights, 2e-3);
    assert_close(&v.quip(options, quip::Rounding::Ldlq), &v.weights, 2e-3);
    let made = quantize(&SimulatedMethod::Quip(options), &v.layer(), HalfType::F16, 7).unwrap();
    assert!(made.loss < 1e-6, "{}", made.loss);
}

#[test]
fn adaptive_rounding_pays_and_seeds_decide() {
    let v = vectors();
    for bits in [2, 3, 4] {
        let method = SimulatedMethod::Quip(Quip { bits, ..Quip::default() });
        let one = quantize(&method, &v.layer(), HalfType::F16, 1).unwrap();
        assert!(one.loss < one.loss_nearest, "{bits} bits: {} {}", one.loss, one.loss_nearest);
        assert_eq!(one, quantize(&method, &v.layer(), HalfType::F16, 1).unwrap());
        assert_ne!(one.weights, quantize(&method, &v.layer(), HalfType::F16, 2).unwrap().weights);
        let greedy = SimulatedMethod::Quip(Quip { bits, greedy: 10, ..Quip::default() });
        let greedy = quantize(&greedy, &v.layer(), HalfType::F16, 1).unwrap();
        // Each step lowers the loss with the damped Hessian, of which the loss is told without the damping.
        assert!(greedy.loss < 1.02 * one.loss, "{bits} bits: {} {}", greedy.loss, one.loss);
    }
    let spqr = made(SimulatedMethod::SpQr(SpQr::default()));
    assert!(spqr.loss < spqr.loss_nearest, "{} {}", spqr.loss, spqr.loss_nearest);
}

#[test]
fn what_is_missing_is_refused() {
    let v = vectors();
    let refused = |method: SimulatedMethod, layer: &Layer<'_>| {
        quantize(&method, layer, HalfType::F16, 0).unwrap_err().to_string()
    };
    let blind = Layer { hessian: None, largest: None, ..v.layer() };
    for method in [
        SimulatedMethod::Quik(Quik::default()),
        SimulatedMethod::SpQr(SpQr::default()),
        SimulatedMethod::Quip(Quip::default()),
    ] {
        assert!(refused(method, &blind).contains("looks at calibration text"));
    }
    let without = Layer { largest: None, ..v.layer() };
    assert!(refused(SimulatedMethod::Quik(Quik::default()), &without).contains("largest inputs"));
    let singular = vec![1.0; v.k * v.k];
    let layer = Layer { hessian: Some(&singular), ..v.layer() };
    let method = SimulatedMethod::Quip(Quip { damping: 0.0, incoherence: false, ..Quip::default() });
    assert!(refused(method, &layer).contains("positive definite"));
    let mut weights = v.weights.clone();
    weights[3] = f64::NAN;
    let layer = Layer { weights: &weights, ..v.layer() };
    assert!(refused(SimulatedMethod::LlmInt8(LlmInt8::default()), &layer).contains("NaN"));
}
