//! The float operations of the CPU backend against their definitions in f64, on every instruction set;
//! those that this machine lacks are reported as ignored. Tolerances are bounds on float32 rounding: a sum of `n` products in any order
//! is within `n * 2^-24 * sum |a_i b_i|` of the exact one.

#[path = "common/backend.rs"]
mod backend;

use std::process::ExitCode;

use half::{bf16, f16};
use qqq_backend::cpu::{
    CpuActivation, CpuBackend, CpuLinear, FloatIsa, matrix::Matrix, w4a8::Int8Activations,
};
use qqq_backend::{Backend, InputKind};
use qqq_formats::{LinearWeight, WeightData};
use qqq_testing::{Suite, tests, values};

const EPSILON: f64 = 1.0 / (1 << 24) as f64;

fn main() -> ExitCode {
    let mut suite =
        Suite::new().tests(tests![no_rows, wrong_lengths_are_refused, rows_are_selected_in_order]);
    for isa in FloatIsa::ALL {
        suite = suite.on(
            &format!("{isa:?}"),
            move || backend::on_isa(isa),
            tests![
                linear_with_few_rows,
                linear_with_many_rows,
                linear_in_column_blocks,
                nan_reaches_the_output,
                embedding_and_tied_head,
                rms_norm_float_and_int8,
                silu_mul_float_and_int8
            ],
        );
    }
    suite.run()
}

fn weights(len: usize, seed: u64) -> [WeightData; 3] {
    let w = values(len, seed);
    [
        WeightData::F16(w.iter().map(|&v| f16::from_f32(v)).collect()),
        WeightData::BF16(w.iter().map(|&v| bf16::from_f32(v)).collect()),
        WeightData::F32(w),
    ]
}

fn float(x: CpuActivation) -> Matrix {
    match x {
        CpuActivation::Float(x) => x,
        CpuActivation::Int8(_) => panic!("int8 where float was asked for"),
    }
}

fn int8(x: CpuActivation) -> Int8Activations {
    match x {
        CpuActivation::Int8(x) => x,
        CpuActivation::Float(_) => panic!("float where int8 was asked for"),
    }
}

fn linear_weight(b: &CpuBackend, n: usize, k: usize, data: WeightData, bias: Option<Vec<f32>>) -> CpuLinear {
    b.linear_weight(LinearWeight::Float { out_features: n, in_features: k, data }, bias).unwrap()
}

/// Checks `linear`, with and without bias, and `linear_add` for one shape.
fn check_linear(b: &CpuBackend, m: usize, n: usize, k: usize) {
    let x = Matrix { rows: m, cols: k, data: values(m * k, 1) };
    let bias = values(n, 2);
    let start = values(m * n, 3);
    for data in weights(n * k, 4) {
        let wide = data.clone().into_f32();
        let plain = linear_weight(b, n, k, data.clone(), None);
        let biased = linear_weight(b, n, k, data.clone(), Some(bias.clone()));
        let input = CpuActivation::Float(x.clone());
        let product = b.linear(&input, &plain);
        let with_bias = b.linear(&input, &biased);
        let mut sum = Matrix { rows: m, cols: n, data: start.clone() };
        b.linear_add(&mut sum, &input, &biased);
        assert_eq!((product.rows, product.cols), (m, n));
        for i in 0..m {
            for j in 0..n {
                let terms =
                    || x.row(i).iter().zip(&wide[j * k..]).map(|(&x, &w)| f64::from(x) * f64::from(w));
                let (want, size): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
                let at = i * n + j;
                let (bias, start) = (f64::from(bias[j]), f64::from(start[at]));
                let bound = (k + 3) as f64 * EPSILON * (size + bias.abs() + start.abs());
                for (got, want) in [(&product, want), (&with_bias, want + bias), (&sum, want + bias + start)]
                {
                    let got = f64::from(got.data[at]);
                    let level = b.simd_level();
                    assert!(
                        (got - want).abs() <= bound,
                        "{level:?} {m}x{n}x{k} ({i}, {j}): {got}, not {want}"
                    );
                }
            }
        }
    }
}

fn linear_with_few_rows(b: CpuBackend) {
    for m in 1..=9 {
        check_linear(&b, m, 37, 48);
    }
    check_linear(&b, 1, 300, 577);
    check_linear(&b, 3, 5, 7);
    check_linear(&b, 7, 1, 1);
    check_linear(&b, 32, 66, 129);
}

fn linear_with_many_rows(b: CpuBackend) {
    check_linear(&b, 33, 64, 48);
    check_linear(&b, 47, 31, 16);
    check_linear(&b, 113, 97, 33);
    check_linear(&b, 40, 1000, 5);
    // The inner dimension in three pieces; more jobs than one.
    check_linear(&b, 230, 70, 1300);
}

/// More weights than are packed at a time.
fn linear_in_column_blocks(b: CpuBackend) {
    let (m, n, k) = (34, 4500, 512);
    // One-hot rows pick columns of the weight: exact, and sensitive to any misplaced block.
    let mut x = Matrix::zeros(m, k);
    for i in 0..m {
        x.row_mut(i)[(i * 97) % k] = 1.0;
    }
    let w = values(n * k, 5);
    let weight = linear_weight(&b, n, k, WeightData::F32(w.clone()), None);
    let y = b.linear(&CpuActivation::Float(x), &weight);
    for i in 0..m {
        for j in 0..n {
            assert_eq!(y.row(i)[j], w[j * k + (i * 97) % k], "({i}, {j})");
        }
    }
}

fn no_rows() {
    let b = CpuBackend::default();
    let weight = linear_weight(&b, 4, 8, WeightData::F32(vec![1.0; 32]), None);
    assert_eq!(b.linear(&CpuActivation::Float(Matrix::zeros(0, 8)), &weight), Matrix::zeros(0, 4));
}

fn nan_reaches_the_output(b: CpuBackend) {
    for m in [1, 40] {
        let weight = linear_weight(&b, 3, 20, WeightData::F32(vec![0.0; 60]), None);
        let mut x = Matrix::zeros(m, 20);
        x.data[19] = f32::NAN;
        let y = b.linear(&CpuActivation::Float(x), &weight);
        assert!(y.row(0).iter().all(|v| v.is_nan()));
        assert!(y.data[3..].iter().all(|&v| v == 0.0));
    }
}

fn wrong_lengths_are_refused() {
    let b = CpuBackend::default();
    let weight = |n, k, len, bias: Option<usize>| {
        let data = WeightData::F16(vec![f16::ONE; len]);
        b.linear_weight(
            LinearWeight::Float { out_features: n, in_features: k, data },
            bias.map(|len| vec![0.0; len]),
        )
        .map(|_| ())
    };
    assert!(weight(2, 3, 6, Some(2)).is_ok());
    let error = weight(2, 3, 5, None).unwrap_err().to_string();
    assert!(error.contains("2 x 3") && error.contains('5'), "{error}");
    assert!(weight(2, 3, 6, Some(3)).unwrap_err().to_string().contains("bias"));
    assert!(weight(0, 3, 0, None).is_err());
    assert!(weight(usize::MAX, 2, 6, None).is_err());
    assert!(b.embedding(10, 4, WeightData::F32(vec![0.0; 39])).is_err());
}

fn embedding_and_tied_head(b: CpuBackend) {
    let (vocab, hidden) = (50, 24);
    for data in weights(vocab * hidden, 6) {
        let wide = data.clone().into_f32();
        let table = b.embedding(vocab, hidden, data.clone()).unwrap();
        let rows = b.embed(&table, &[3, 0, 49, 3]);
        for (row, id) in [3, 0, 49, 3].into_iter().enumerate() {
            assert_eq!(rows.row(row), &wide[id * hidden..(id + 1) * hidden]);
        }
        let head = b.tied_head(&table).unwrap();
        let CpuLinear::Float(float) = &head else { panic!("a tied head is float") };
        assert!(std::ptr::eq(float.data(), table.data()), "the head has values of its own");
        let logits = b.linear(&CpuActivation::Float(rows), &head);
        assert_eq!((logits.rows, logits.cols), (4, vocab));
        assert_eq!(logits.row(0), logits.row(3));
    }
}

fn rms_norm_float_and_int8(b: CpuBackend) {
    for (rows, cols) in [(1, 576), (5, 33), (300, 100), (2, 1)] {
        let x = Matrix { rows, cols, data: values(rows * cols, 7).iter().map(|v| v * 30.0).collect() };
        let w = values(cols, 8);
        let eps = 1e-5f32;
        let weight = b.vector(w.clone());
        let y = float(b.rms_norm(&x, &weight, eps, InputKind::Float));
        for i in 0..rows {
            let mean = x.row(i).iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / cols as f64;
            let scale = 1.0 / (mean + f64::from(eps)).sqrt();
            for ((&got, &x), &w) in y.row(i).iter().zip(x.row(i)).zip(&w) {
                let want = f64::from(x) * scale * f64::from(w);
                assert!((f64::from(got) - want).abs() <= 1e-6 * want.abs(), "{got}, not {want}");
            }
        }
        let q = int8(b.rms_norm(&x, &weight, eps, InputKind::Int8));
        assert_eq!(q, Int8Activations::quantize(&y));
        assert_eq!(int8(b.activation(y.clone(), InputKind::Int8)), q);
        assert_eq!(float(b.activation(y.clone(), InputKind::Float)), y);
    }
}

fn silu_mul_float_and_int8(b: CpuBackend) {
    for (rows, inner) in [(1, 1536), (9, 50), (200, 64)] {
        let mut data: Vec<f32> = values(rows * 2 * inner, 9).iter().map(|v| v * 20.0).collect();
        (data[0], data[1], data[2]) = (-200.0, 200.0, 0.0);
        let x = Matrix { rows, cols: 2 * inner, data };
        let y = float(b.silu_mul(x.clone(), InputKind::Float));
        assert_eq!((y.rows, y.cols), (rows, inner));
        for i in 0..rows {
            let (gate, up) = x.row(i).split_at(inner);
            for ((&got, &g), &u) in y.row(i).iter().zip(gate).zip(up) {
                let g = f64::from(g);
                let want = g / (1.0 + (-g).exp()) * f64::from(u);
                // e^200 is beyond f32: the result is tiny rather than exact.
                let bound = 1e-6 * want.abs() + 1e-33;
                assert!((f64::from(got) - want).abs() <= bound, "silu({g}) * {u} = {got}, not {want}");
            }
        }
        assert_eq!(int8(b.silu_mul(x.clone(), InputKind::Int8)), Int8Activations::quantize(&y));
    }
}

fn rows_are_selected_in_order() {
    let b = CpuBackend::default();
    let x = b.tensor(3, 2, vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    let y = b.select_rows(&x, &[2, 0, 2]);
    assert_eq!(b.to_host(&y), [4.0, 5.0, 0.0, 1.0, 4.0, 5.0]);
    assert_eq!(b.rows(&y), 3);
}
