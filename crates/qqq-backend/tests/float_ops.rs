//! The float operations of the CPU backend against their definitions in f64, on every instruction set;
//! those that this machine lacks are reported as ignored. Tolerances are bounds on float32 rounding: a sum of `n` products in any order
//! is within `n * 2^-24 * sum |a_i b_i|` of the exact one.

#[path = "common/backend.rs"]
mod backend;

use std::process::ExitCode;

use half::{bf16, f16};
use qqq_backend::cpu::{CpuBackend, CpuInput, CpuLinear, FloatIsa, integer::Int8Activations, matrix::Matrix};
use qqq_backend::{Backend, BatchPlan, Gate, InputKind, Norm};
use qqq_formats::{CodeBits, LinearWeight, QuantizedWeight, Scales, WeightData};
use qqq_testing::{Suite, tests, values};

const EPSILON: f64 = 1.0 / (1 << 24) as f64;

fn main() -> ExitCode {
    let mut suite = Suite::new().tests(tests![
        no_rows,
        wrong_lengths_are_refused,
        contradictions_are_errors,
        rows_are_selected_in_order
    ]);
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
                norms_float_and_int8,
                gates_float_and_int8,
                a_gated_layer_is_a_product_and_a_gate
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

fn float(x: CpuInput) -> Matrix {
    match x {
        CpuInput::Float(x) => x,
        CpuInput::Int8(_) => panic!("int8 where float was asked for"),
    }
}

fn int8(x: CpuInput) -> Int8Activations {
    match x {
        CpuInput::Int8(x) => x,
        CpuInput::Float(_) => panic!("float where int8 was asked for"),
    }
}

fn linear_weight(b: &CpuBackend, n: usize, k: usize, data: WeightData, bias: Option<Vec<f32>>) -> CpuLinear {
    b.linear_weight(LinearWeight::Float { out_features: n, in_features: k, data }, bias).unwrap()
}

fn linear(b: &CpuBackend, x: &CpuInput, weight: &CpuLinear) -> Matrix {
    let mut out = b.tensor(0, 0).unwrap();
    b.linear(x, weight, &mut out).unwrap();
    out
}

/// Checks `linear`, with and without bias, for one shape.
fn check_linear(b: &CpuBackend, m: usize, n: usize, k: usize) {
    let x = Matrix { rows: m, cols: k, data: values(m * k, 1) };
    let bias = values(n, 2);
    for data in weights(n * k, 4) {
        let wide = data.clone().into_f32();
        let plain = linear_weight(b, n, k, data.clone(), None);
        let biased = linear_weight(b, n, k, data.clone(), Some(bias.clone()));
        let input = CpuInput::Float(x.clone());
        let product = linear(b, &input, &plain);
        let with_bias = linear(b, &input, &biased);
        assert_eq!((product.rows, product.cols), (m, n));
        for i in 0..m {
            for j in 0..n {
                let terms =
                    || x.row(i).iter().zip(&wide[j * k..]).map(|(&x, &w)| f64::from(x) * f64::from(w));
                let (want, size): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
                let at = i * n + j;
                let bias = f64::from(bias[j]);
                let bound = (k + 2) as f64 * EPSILON * (size + bias.abs());
                for (got, want) in [(&product, want), (&with_bias, want + bias)] {
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
    let y = linear(&b, &CpuInput::Float(x), &weight);
    for i in 0..m {
        for j in 0..n {
            assert_eq!(y.row(i)[j], w[j * k + (i * 97) % k], "({i}, {j})");
        }
    }
}

fn no_rows() {
    let b = CpuBackend::default();
    let weight = linear_weight(&b, 4, 8, WeightData::F32(vec![1.0; 32]), None);
    assert_eq!(linear(&b, &CpuInput::Float(Matrix::zeros(0, 8)), &weight), Matrix::zeros(0, 4));
}

fn nan_reaches_the_output(b: CpuBackend) {
    for m in [1, 40] {
        let weight = linear_weight(&b, 3, 20, WeightData::F32(vec![0.0; 60]), None);
        let mut x = Matrix::zeros(m, 20);
        x.data[19] = f32::NAN;
        let y = linear(&b, &CpuInput::Float(x), &weight);
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
        let batch = b.batch(&BatchPlan::sequences([[3, 0, 49, 3].as_slice()])).unwrap();
        let (mut rows, mut doubled) = (Matrix::default(), Matrix::default());
        b.embed(&table, &batch, 1.0, &mut rows).unwrap();
        b.embed(&table, &batch, 2.0, &mut doubled).unwrap();
        assert!(rows.data.iter().zip(&doubled.data).all(|(a, b)| 2.0 * a == *b));
        for (row, id) in [3, 0, 49, 3].into_iter().enumerate() {
            assert_eq!(rows.row(row), &wide[id * hidden..(id + 1) * hidden]);
        }
        let head = b.tied_head(&table).unwrap();
        let CpuLinear::Float(float) = &head else { panic!("a tied head is float") };
        assert!(std::ptr::eq(float.data(), table.data()), "the head has values of its own");
        let logits = linear(&b, &CpuInput::Float(rows), &head);
        assert_eq!((logits.rows, logits.cols), (4, vocab));
        assert_eq!(logits.row(0), logits.row(3));
    }
}

fn norms_float_and_int8(b: CpuBackend) {
    for (rows, cols) in [(1, 576), (5, 33), (300, 100), (2, 1)] {
        let x = Matrix { rows, cols, data: values(rows * cols, 7).iter().map(|v| v * 30.0).collect() };
        let w = values(cols, 8);
        let eps = 1e-5f32;
        let norm = Norm { weight: b.vector(w.clone()).unwrap(), eps };
        let normed = |x: &Matrix, add: Option<&Matrix>, kind| {
            let (mut residual, mut out) = (x.clone(), b.input(0, 0).unwrap());
            b.add_norm(&mut residual, add.map(|x| (x, 1.0)), &norm, kind, &mut out).unwrap();
            (residual, out)
        };
        let (residual, y) = normed(&x, None, InputKind::Float);
        assert_eq!(residual, x);
        let y = float(y);
        for i in 0..rows {
            let mean = x.row(i).iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / cols as f64;
            let scale = 1.0 / (mean + f64::from(eps)).sqrt();
            for ((&got, &x), &w) in y.row(i).iter().zip(x.row(i)).zip(&w) {
                let want = f64::from(x) * scale * f64::from(w);
                assert!((f64::from(got) - want).abs() <= 1e-6 * want.abs(), "{got}, not {want}");
            }
        }
        let q = int8(normed(&x, None, InputKind::Int8).1);
        assert_eq!(q, Int8Activations::quantize(&y));
        for kind in [InputKind::Int8, InputKind::Float] {
            let mut out = b.input(0, 0).unwrap();
            b.to_input(&mut y.clone(), kind, &mut out).unwrap();
            match kind {
                InputKind::Int8 => assert_eq!(int8(out), q),
                InputKind::Float => assert_eq!(float(out), y),
            }
        }
        let mut in_place = x.clone();
        b.norm(&mut in_place, &norm).unwrap();
        assert_eq!(in_place, y);
        // The sum first, then its norm.
        let parts = [0.25f32, 0.75].map(|part| Matrix {
            rows,
            cols,
            data: x.data.iter().map(|v| v * part).collect(),
        });
        let mut sum = parts[0].clone();
        b.add(&mut sum, &parts[1], 1.0).unwrap();
        assert!(sum.data.iter().zip(&x.data).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs()));
        let mut scaled = parts[0].clone();
        b.add(&mut scaled, &parts[1], 0.5).unwrap();
        let want = parts[0].data.iter().zip(&parts[1].data).map(|(a, b)| a + b * 0.5);
        assert!(scaled.data.iter().zip(want).all(|(a, b)| *a == b));
        for kind in [InputKind::Float, InputKind::Int8] {
            let (residual, out) = normed(&parts[0], Some(&parts[1]), kind);
            assert_eq!((residual, out), normed(&sum, None, kind));
        }
    }
}

fn gates_float_and_int8(b: CpuBackend) {
    for (rows, inner) in [(1, 1536), (9, 50), (200, 64)] {
        let mut data: Vec<f32> = values(rows * 2 * inner, 9).iter().map(|v| v * 20.0).collect();
        (data[0], data[1], data[2]) = (-200.0, 200.0, 0.0);
        let x = Matrix { rows, cols: 2 * inner, data };
        let gated = |gate, kind| {
            let mut out = b.input(0, 0).unwrap();
            b.gated(&x, gate, kind, &mut out).unwrap();
            out
        };
        let y = float(gated(Gate::Silu, InputKind::Float));
        assert_eq!((y.rows, y.cols), (rows, inner));
        let gelu = float(gated(Gate::GeluTanh, InputKind::Float));
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
        for i in 0..rows {
            let (gate, up) = x.row(i).split_at(inner);
            for ((&got, &g), &u) in gelu.row(i).iter().zip(gate).zip(up) {
                let (g, u) = (f64::from(g), f64::from(u));
                let t = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044_715 * g.powi(3));
                // (1 + tanh(t)) / 2 without cancellation; an error of t goes into the power as a relative one.
                let want = g / (1.0 + (-2.0 * t).exp()) * u;
                let bound = 1e-6 * (1.0 + t.abs()) * want.abs() + 1e-33;
                assert!((f64::from(got) - want).abs() <= bound, "gelu({g}) * {u} = {got}, not {want}");
            }
        }
        assert_eq!(int8(gated(Gate::Silu, InputKind::Int8)), Int8Activations::quantize(&y));
        assert_eq!(int8(gated(Gate::GeluTanh, InputKind::Int8)), Int8Activations::quantize(&gelu));
    }
}

/// Also where the rows go through in parts.
fn a_gated_layer_is_a_product_and_a_gate(b: CpuBackend) {
    let (inner, k) = (48, 64);
    let codes = values(2 * inner * k, 12).iter().map(|v| (v * 7.0) as i8).collect();
    let scales = Scales::PerChannel(vec![0.02; 2 * inner]);
    let w4a8 =
        QuantizedWeight { bits: CodeBits::Four, out_features: 2 * inner, in_features: k, codes, scales };
    let quantized = b.linear_weight(LinearWeight::Quantized(w4a8), Some(values(2 * inner, 13))).unwrap();
    let float = linear_weight(&b, 2 * inner, k, WeightData::F32(values(2 * inner * k, 14)), None);
    for rows in [1, 512, 513, 1200] {
        for weight in [&quantized, &float] {
            let mut x = b.upload(rows, k, values(rows * k, 15)).unwrap();
            let mut input = b.input(0, 0).unwrap();
            b.to_input(&mut x, b.input_kind(weight), &mut input).unwrap();
            for kind in [InputKind::Float, InputKind::Int8] {
                let (mut memory, mut fused, mut apart) =
                    (Matrix::default(), CpuInput::default(), CpuInput::default());
                b.gated_linear(&input, weight, Gate::Silu, kind, &mut memory, &mut fused).unwrap();
                b.gated(&linear(&b, &input, weight), Gate::Silu, kind, &mut apart).unwrap();
                assert_eq!(fused, apart, "{rows} rows");
            }
        }
    }
}

fn contradictions_are_errors() {
    let b = CpuBackend::default();
    let weight = linear_weight(&b, 4, 8, WeightData::F32(vec![1.0; 32]), None);
    let norm = Norm { weight: vec![1.0; 8], eps: 1e-5 };
    let x = |rows, cols| Matrix::zeros(rows, cols);
    let (mut out, mut input) = (Matrix::default(), CpuInput::default());
    let int8 = CpuInput::Int8(Int8Activations::quantize(&x(2, 8)));
    let table = b.embedding(10, 4, WeightData::F32(vec![0.0; 40])).unwrap();
    let batch = |id: u32| b.batch(&BatchPlan::sequences([[id].as_slice()])).unwrap();
    let plain = InputKind::Float;
    for (result, what) in [
        (b.linear(&CpuInput::Float(x(2, 7)), &weight, &mut out), "7 channels"),
        (b.linear(&int8, &weight, &mut out), "takes Float was given Int8"),
        (b.add_norm(&mut x(2, 7), None, &norm, plain, &mut input), "a norm of 8 for rows of 7"),
        (b.add_norm(&mut x(2, 8), Some((&x(1, 8), 1.0)), &norm, plain, &mut input), "1 x 8"),
        (b.add(&mut x(2, 8), &x(2, 7), 1.0), "2 x 7"),
        (b.norm(&mut x(2, 7), &norm), "rows of 7"),
        (b.gated(&x(1, 3), Gate::Silu, plain, &mut input), "rows of 3"),
        (b.embed(&table, &batch(10), 1.0, &mut out), "token 10"),
        (b.embed(&table, &BatchPlan::whole(3), 1.0, &mut out), "without tokens"),
        (b.gather(&x(2, 8), &[1, 2], &mut out), "row 2 of 2"),
        (b.upload(2, 2, vec![0.0; 3]).map(|_| ()), "3 values"),
        (b.batch(&BatchPlan::default()).map(|_| ()), "without sequences"),
    ] {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
}

fn rows_are_selected_in_order() {
    let b = CpuBackend::default();
    let x = b.upload(3, 2, vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
    let mut y = b.tensor(3, 2).unwrap();
    b.gather(&x, &[2, 0, 2], &mut y).unwrap();
    assert_eq!(*b.read(&y).unwrap(), [4.0, 5.0, 0.0, 1.0, 4.0, 5.0]);
}
