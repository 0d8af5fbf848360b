//! A decoder's operations on a GPU against those of the CPU, and attention against float64. Needs a GPU that there are
//! kernels for: the tests are reported as ignored without one.

#[path = "common/attending.rs"]
mod attending;
#[path = "common/backend.rs"]
mod backend;
#[path = "common/growing.rs"]
mod growing;
#[path = "common/picks.rs"]
mod picks;
#[path = "common/simulated.rs"]
mod simulated;
#[path = "common/simulating.rs"]
mod simulating;
#[path = "common/uniform.rs"]
mod uniform;

use std::process::ExitCode;

use qqq_backend::{
    Backend, BatchPlan, CpuBackend, Gate, HeadLayout, InputKind, KvDType, KvLayout, Norm, PAGE, QueryScale,
    largest,
};
use qqq_cuda::{CudaBackend, DType, KernelType};
use qqq_formats::{CodeBits, LinearWeight, QuantizedWeight, Scales, WeightData};
use qqq_model::scores::compare_rows;
use qqq_testing::{Random, Suite, tests, values};

use attending::Attending;
use backend::backend;

fn main() -> ExitCode {
    let mut suite = Suite::new();
    for half in [DType::BF16, DType::F16] {
        suite = suite.on(
            half.kernel_name(),
            move || backend(half),
            tests![
                attention_is_that_of_float64,
                norms_and_gates,
                rotated_heads,
                embeddings_sums_and_rows,
                the_largest_logits,
                picks::the_largest_of_a_wide_head,
                picks::drawn_columns,
                picks::recorded_picks,
                picks::picks_of_a_quantized_head,
                growing::a_pool_that_grows,
                linear_layers,
                simulating::simulated_layers,
                recorded_steps
            ],
        );
    }
    // Tests share a stream, on which some of them record.
    suite.run_in_turn()
}

/// Half of a unit in the last place of a number near 1.
fn unit(b: &CudaBackend) -> f32 {
    if b.half() == DType::BF16 { 1.0 / 256.0 } else { 1.0 / 2048.0 }
}

/// Values of the 16-bit type.
fn rounded(b: &CudaBackend, values: Vec<f32>) -> Vec<f32> {
    values.into_iter().map(|v| b.half().decode(b.half().encode(v))).collect()
}

/// A tensor of the 16-bit type with these values, which must be of it: as a product with the identity gives it.
fn half_tensor(
    b: &CudaBackend,
    rows: usize,
    cols: usize,
    values: Vec<f32>,
) -> <CudaBackend as Backend>::Tensor {
    let mut x = b.upload(rows, cols, values).unwrap();
    let mut input = b.input(rows, cols).unwrap();
    b.to_input(&mut x, InputKind::Float, &mut input).unwrap();
    x
}

fn close(got: &[f32], want: &[f32], relative: f32, absolute: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= relative * w.abs() + absolute, "{what}: element {i}: {g} instead of {w}");
    }
}

fn attention_is_that_of_float64(b: CudaBackend) {
    let half = b.half();
    let case = |heads, window, spans: &[(usize, usize)]| Attending::new(heads, window, half, spans);
    let mut cases = Vec::new();
    for d in [16, 64, 80, 96, 128, 192, 256] {
        cases.push(case((6, 2, d), None, &[(3, 125), (40, 0), (1, 700), (1, 0), (1, 127), (1, 128)]));
        cases.push(case((4, 1, d), Some(33), &[(70, 0), (1, 200), (2, 255)]));
    }
    cases.push(case((40, 1, 64), None, &[(5, 60), (1, 900)]));
    cases.push(case((8, 8, 128), Some(1), &[(129, 0)]));
    cases.push(case((32, 32, 128), None, &[(1, 2047)]));
    cases.push(case((9, 3, 64), None, &[(2048, 0)]));
    cases.push(case((4, 1, 256), Some(512), &[(1100, 0), (1, 1500)]));
    cases.push(case((2, 2, 64), None, &[(1, 8191)]));
    for case in cases {
        let heads = case.kind.heads;
        let layout = KvLayout {
            num_layers: 2,
            num_kv_heads: heads.num_kv_heads,
            head_dim: heads.head_dim,
            dtype: KvDType::F16,
        };
        let mut kv = b.kv_pool(layout, case.pages()).unwrap();
        let rows = |plan: &BatchPlan, range: &dyn Fn(usize, usize) -> std::ops::Range<usize>| {
            let ranges = case.spans.iter().map(|&(len, start)| range(len, start));
            let rows = ranges.enumerate().flat_map(|(s, range)| range.map(move |p| (s, p)));
            let values: Vec<f32> = rows.flat_map(|(s, p)| case.row(s, p)).collect();
            half_tensor(&b, plan.rows(), heads.qkv_width(), values)
        };
        // What came before, then the new tokens.
        let before = |_: usize, start: usize| 0..start;
        let plan = case.plan(before);
        if !plan.spans.is_empty() {
            let mut qkv = rows(&plan, &before);
            b.rope_append(&mut qkv, heads, None, None, &mut kv, 1, &b.batch(&plan).unwrap()).unwrap();
        }
        let new = |len: usize, start: usize| start..start + len;
        let plan = case.plan(new);
        let batch = b.batch(&plan).unwrap();
        let mut qkv = rows(&plan, &new);
        b.rope_append(&mut qkv, heads, None, None, &mut kv, 1, &batch).unwrap();
        let mut out = b.tensor(0, 0).unwrap();
        let mut first = None;
        for _ in 0..10 {
            b.attention(&qkv, &case.kind, &kv, 1, &batch, &mut out).unwrap();
            let got = b.read(&out).unwrap().into_owned();
            let first = first.get_or_insert_with(|| {
                case.check(&got).unwrap();
                got.clone()
            });
            assert!(first.iter().zip(&got).all(|(a, b)| a.to_bits() == b.to_bits()), "{case:?}: runs differ");
        }
    }
}

/// Rows, and the widest rows of each instance.
const WIDTHS: [(usize, usize); 6] = [(5, 64), (3, 576), (2, 4096), (1, 11008), (2, 16384), (2, 28672)];

fn norms_and_gates(b: CudaBackend) {
    let cpu = CpuBackend::new();
    let unit = unit(&b);
    for (rows, cols) in WIDTHS {
        let residual = values(rows * cols, 1);
        let x = rounded(&b, values(rows * cols, 2));
        let weight: Vec<f32> = values(cols, 3).iter().map(|w| w + 1.5).collect();
        let eps = 1e-5;
        let (norm, cpu_norm) =
            (Norm { weight: b.vector(weight.clone()).unwrap(), eps }, Norm { weight: weight.clone(), eps });
        for kind in [InputKind::Float, InputKind::Int8] {
            for factor in [None, Some(1.0), Some(0.25)] {
                let what = format!("norm of {rows} x {cols}, {kind:?}, {factor:?}");
                let mut stream = b.upload(rows, cols, residual.clone()).unwrap();
                let added = half_tensor(&b, rows, cols, x.clone());
                let mut out = b.input(rows, cols).unwrap();
                b.add_norm(&mut stream, factor.map(|f| (&added, f)), &norm, kind, &mut out).unwrap();
                let mut cpu_stream = cpu.upload(rows, cols, residual.clone()).unwrap();
                let cpu_added = cpu.upload(rows, cols, x.clone()).unwrap();
                let mut cpu_out = cpu.input(rows, cols).unwrap();
                let cpu_x = factor.map(|f| (&cpu_added, f));
                cpu.add_norm(&mut cpu_stream, cpu_x, &cpu_norm, kind, &mut cpu_out).unwrap();
                close(&b.read(&stream).unwrap(), &cpu.read(&cpu_stream).unwrap(), 1e-6, 1e-6, &what);
                let (got, want) = (b.read_input(&out).unwrap(), cpu.read_input(&cpu_out).unwrap());
                // A code may fall to the other side.
                let step = want.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0;
                match kind {
                    InputKind::Float => close(&got, &want, unit, 1e-6, &what),
                    InputKind::Int8 => {
                        close(&got, &want, 1e-5, 1.001 * step, &what);
                        let off = got.iter().zip(&*want).filter(|(g, w)| (*g - *w).abs() > 0.01 * step);
                        assert!(off.count() * 500 < got.len() + 500, "{what}: too many codes differ");
                    }
                }
            }
            for gate in [Gate::Silu, Gate::GeluTanh] {
                if cols % 32 != 0 {
                    continue;
                }
                let what = format!("{gate:?} of {rows} x {cols}, {kind:?}");
                let gates = rounded(&b, values(2 * rows * cols, 4).iter().map(|v| 6.0 * v).collect());
                let tensor = half_tensor(&b, rows, 2 * cols, gates.clone());
                let mut out = b.input(rows, cols).unwrap();
                b.gated(&tensor, gate, kind, &mut out).unwrap();
                let cpu_tensor = cpu.upload(rows, 2 * cols, gates).unwrap();
                let mut cpu_out = cpu.input(rows, cols).unwrap();
                cpu.gated(&cpu_tensor, gate, kind, &mut cpu_out).unwrap();
                let (got, want) = (b.read_input(&out).unwrap(), cpu.read_input(&cpu_out).unwrap());
                let step = want.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0;
                match kind {
                    InputKind::Float => close(&got, &want, unit, 1e-5, &what),
                    InputKind::Int8 => close(&got, &want, 1e-5, 1.001 * step, &what),
                }
            }
        }
        let mut tensor = half_tensor(&b, rows, cols, x.clone());
        b.norm(&mut tensor, &norm).unwrap();
        let mut cpu_tensor = cpu.upload(rows, cols, x.clone()).unwrap();
        cpu.norm(&mut cpu_tensor, &cpu_norm).unwrap();
        close(&b.read(&tensor).unwrap(), &cpu.read(&cpu_tensor).unwrap(), unit, 1e-6, "norm in place");
        let mut tensor = half_tensor(&b, rows, cols, x.clone());
        let mut out = b.input(rows, cols).unwrap();
        b.to_input(&mut tensor, InputKind::Int8, &mut out).unwrap();
        let mut cpu_tensor = cpu.upload(rows, cols, x.clone()).unwrap();
        let mut cpu_out = cpu.input(rows, cols).unwrap();
        cpu.to_input(&mut cpu_tensor, InputKind::Int8, &mut cpu_out).unwrap();
        // The same numbers give the same codes.
        close(&b.read_input(&out).unwrap(), &cpu.read_input(&cpu_out).unwrap(), 1e-6, 0.0, "to int8");
    }
}

fn rotated_heads(b: CudaBackend) {
    let cpu = CpuBackend::new();
    let unit = unit(&b);
    for (head_dim, turned, norms) in
        [(64, 64, false), (96, 72, true), (128, 128, true), (256, 256, true), (32, 0, false)]
    {
        let heads = HeadLayout { num_heads: 6, num_kv_heads: 2, head_dim };
        let layout = KvLayout { num_layers: 1, num_kv_heads: 2, head_dim, dtype: KvDType::F16 };
        let mut plan = BatchPlan::default();
        plan.push(&[0; 5], 120, &[2, 0]);
        plan.push(&[0; 3], 0, &[1]);
        let width = heads.qkv_width();
        let x = rounded(&b, values(plan.rows() * width, 7));
        let weights = [values(head_dim, 8), values(head_dim, 9)];
        let freq: Vec<f32> =
            (0..turned / 2).map(|i| 10_000f32.powf(-2.0 * i as f32 / turned as f32)).collect();
        let norm = |w: &Vec<f32>| Norm { weight: b.vector(w.clone()).unwrap(), eps: 1e-6 };
        let own = [norm(&weights[0]), norm(&weights[1])];
        let growing = (turned == 72).then_some(QueryScale { beta: 0.3, period: 50 });
        let rope = (turned > 0).then(|| b.rope(&freq, 1.25, growing, 2 * PAGE).unwrap());
        let mut qkv = half_tensor(&b, plan.rows(), width, x.clone());
        let mut kv = b.kv_pool(layout, 3).unwrap();
        let qk = norms.then_some((&own[0], &own[1]));
        b.rope_append(&mut qkv, heads, qk, rope.as_ref(), &mut kv, 0, &b.batch(&plan).unwrap()).unwrap();
        let [q, k] = weights.map(|weight| Norm { weight, eps: 1e-6 });
        let rope = (turned > 0).then(|| cpu.rope(&freq, 1.25, growing, 2 * PAGE).unwrap());
        let mut want = cpu.upload(plan.rows(), width, x).unwrap();
        let mut pool = cpu.kv_pool(layout, 3).unwrap();
        let qk = norms.then_some((&q, &k));
        // The first positions of a sequence must have been written.
        let mut before = BatchPlan::default();
        before.push(&[0; 120], 0, &[2, 0]);
        let mut zeros = cpu.upload(120, width, vec![0.0; 120 * width]).unwrap();
        cpu.rope_append(&mut zeros, heads, None, None, &mut pool, 0, &before).unwrap();
        cpu.rope_append(&mut want, heads, qk, rope.as_ref(), &mut pool, 0, &plan).unwrap();
        let what = format!("heads {head_dim} wide, {turned} turned");
        close(&b.read(&qkv).unwrap(), &cpu.read(&want).unwrap(), unit, 1e-6, &what);
    }
}

fn embeddings_sums_and_rows(b: CudaBackend) {
    let (vocab, hidden) = (300, 96);
    let table = rounded(&b, values(vocab * hidden, 1));
    let half = |v: &Vec<f32>| match b.half() {
        DType::F16 => WeightData::F16(v.iter().map(|v| half::f16::from_f32(*v)).collect()),
        _ => WeightData::BF16(v.iter().map(|v| half::bf16::from_f32(*v)).collect()),
    };
    for data in [half(&table), WeightData::F32(table.clone())] {
        let embedding = b.embedding(vocab, hidden, data).unwrap();
        let tokens = [299u32, 0, 17, 17, 255];
        let batch = b.batch(&BatchPlan::sequences([tokens.as_slice()])).unwrap();
        let mut out = b.tensor(0, 0).unwrap();
        b.embed(&embedding, &batch, 2.5, &mut out).unwrap();
        let want: Vec<f32> = tokens
            .iter()
            .flat_map(|t| table[*t as usize * hidden..][..hidden].iter().map(|v| v * 2.5))
            .collect();
        assert_eq!(*b.read(&out).unwrap(), want);
        let x = half_tensor(&b, 5, hidden, rounded(&b, values(5 * hidden, 2)));
        b.add(&mut out, &x, 0.5).unwrap();
        let want: Vec<f32> =
            want.iter().zip(&*b.read(&x).unwrap()).map(|(a, x)| 0.5f32.mul_add(*x, *a)).collect();
        assert_eq!(*b.read(&out).unwrap(), want);
        let mut rows = b.tensor(0, 0).unwrap();
        b.gather(&out, &[4, 1, 2, 0], &mut rows).unwrap();
        let want: Vec<f32> =
            [4, 1, 2, 0].iter().flat_map(|r| want[r * hidden..][..hidden].to_vec()).collect();
        assert_eq!(*b.read(&rows).unwrap(), want);
        // The head shares the table.
        let head = b.tied_head(&embedding).unwrap();
        let mut input = b.input(4, hidden).unwrap();
        b.to_input(&mut rows, InputKind::Float, &mut input).unwrap();
        let mut logits = b.tensor(0, 0).unwrap();
        b.linear(&input, &head, &mut logits).unwrap();
        let x = b.read_input(&input).unwrap();
        let want: Vec<f32> = (0..4 * vocab)
            .map(|i| {
                let pair =
                    x[i / vocab * hidden..][..hidden].iter().zip(&table[i % vocab * hidden..][..hidden]);
                pair.map(|(a, w)| f64::from(*a) * f64::from(*w)).sum::<f64>() as f32
            })
            .collect();
        close(&b.read(&logits).unwrap(), &want, 1e-5, 1e-4, "logits");
    }
}

fn the_largest_logits(b: CudaBackend) {
    // A head whose logits are its input: equal ones, signed zeros, what is not finite.
    let n = 1024;
    let mut data = vec![0.0f32; n * n];
    (0..n).for_each(|i| data[i * n + i] = 1.0);
    let identity = LinearWeight::Float { out_features: n, in_features: n, data: WeightData::F32(data) };
    let head = b.head_weight(identity).unwrap();
    let mut rows = [
        (0..n).map(|i| ((i * 37) % 64) as f32 - 20.0).collect::<Vec<f32>>(),
        vec![0.0; n],
        (0..n).map(|i| -(i as f32)).collect(),
    ];
    rows[1][5] = -0.0;
    let x: Vec<f32> = rows.iter().flatten().map(|v| b.half().decode(b.half().encode(*v))).collect();
    let mut tensor = b.upload(3, n, x).unwrap();
    let mut input = b.input(3, n).unwrap();
    b.to_input(&mut tensor, InputKind::Float, &mut input).unwrap();
    let mut out = b.tensor(0, 0).unwrap();
    for count in [1, 3, 70, n, 2 * n] {
        let got = picks::largest_of(&b, &input, &head, count, &mut out);
        let logits = b.read(&out).unwrap().into_owned();
        let want: Vec<_> = logits.chunks(n).map(|row| largest(row, count)).collect();
        assert_eq!(got, want, "{count}");
    }
    let columns = [5, 0, 1023];
    let losses = b.losses(&input, &head, &columns, &mut out).unwrap().unwrap();
    let logits = b.read(&out).unwrap().into_owned();
    for ((row, column), loss) in logits.chunks(n).zip(columns).zip(losses) {
        let sum: f64 = row.iter().map(|v| f64::from(*v).exp()).sum();
        let want = sum.ln() - f64::from(row[column as usize]);
        assert!((loss - want).abs() < 1e-5 * (1.0 + want.abs()), "{loss} instead of {want}");
    }
    assert!(b.losses(&input, &head, &[n as u32, 0, 0], &mut out).is_err());
    assert!(b.losses(&input, &head, &[0], &mut out).is_err());
    // Two models' logits beside the CPU's comparison.
    let other: Vec<f32> = logits.iter().enumerate().map(|(i, v)| v + (i % 7) as f32 * 0.05).collect();
    let model = b.upload(3, n, other.clone()).unwrap();
    let pairs = b.compare(&out, &model, &columns).unwrap().unwrap();
    for (got, want) in pairs.iter().zip(compare_rows(&logits, &other, &columns)) {
        let near = |got: f64, want: f64| (got - want).abs() < 1e-5 * (1.0 + want.abs());
        assert!(
            near(got.baseline_nll, want.baseline_nll) && near(got.model_nll, want.model_nll),
            "{got:?} {want:?}"
        );
        assert!(near(got.kl, want.kl) && got.agree == want.agree, "{got:?} {want:?}");
    }
    assert!(b.compare(&out, &model, &[0]).is_err());
    assert!(b.compare(&out, &b.upload(1, n, vec![0.0; n]).unwrap(), &[0]).is_err());
    let mut bad = vec![1.0f32; n];
    (bad[7], bad[900]) = (f32::NAN, f32::INFINITY);
    let mut tensor = b.upload(1, n, bad).unwrap();
    b.to_input(&mut tensor, InputKind::Float, &mut input).unwrap();
    let got = picks::largest_of(&b, &input, &head, 4, &mut out);
    // A NaN times zero spoils all logits: the first of them is meant.
    assert!(got[0].len() == 1 && got[0][0].1 == 0 && got[0][0].0.is_nan(), "{got:?}");
    let losses = b.losses(&input, &head, &[3], &mut out).unwrap().unwrap();
    assert!(!losses[0].is_finite(), "{losses:?}");
}

fn linear_layers(b: CudaBackend) {
    let cpu = CpuBackend::new();
    let unit = unit(&b);
    let mut random = Random(5);
    let (n, k) = (336, 576);
    let (four, eight) = (CodeBits::Four, CodeBits::Eight);
    for (bits, group) in [(four, None), (four, Some(32)), (four, Some(64)), (eight, None)] {
        let largest = i32::from(bits.largest());
        let codes: Vec<i8> = (0..n * k).map(|_| random.int(-largest, largest) as i8).collect();
        let scales = match group {
            None => Scales::PerChannel((0..n).map(|i| 0.01 + i as f32 * 1e-5).collect()),
            Some(g) => {
                let effective: Vec<f32> = (0..n * k / g).map(|i| 0.01 + (i % 7) as f32 * 1e-3).collect();
                Scales::from_effective(&codes, n, k, g, &effective)
            }
        };
        let weight = QuantizedWeight { bits, out_features: n, in_features: k, codes, scales };
        let bias = values(n, 3);
        for m in [1, 17, 300] {
            let x = rounded(&b, values(m * k, m as u64));
            let layer = b.linear_weight(LinearWeight::Quantized(weight.clone()), Some(bias.clone())).unwrap();
            let mut tensor = half_tensor(&b, m, k, x.clone());
            let (mut input, mut out) = (b.input(m, k).unwrap(), b.tensor(m, n).unwrap());
            b.to_input(&mut tensor, b.input_kind(&layer), &mut input).unwrap();
            b.linear(&input, &layer, &mut out).unwrap();
            let layer =
                cpu.linear_weight(LinearWeight::Quantized(weight.clone()), Some(bias.clone())).unwrap();
            let mut tensor = cpu.upload(m, k, x).unwrap();
            let (mut input, mut want) = (cpu.input(m, k).unwrap(), cpu.tensor(m, n).unwrap());
            cpu.to_input(&mut tensor, InputKind::Int8, &mut input).unwrap();
            cpu.linear(&input, &layer, &mut want).unwrap();
            // The sums are the same; the result is rounded, before and after the bias.
            close(&b.read(&out).unwrap(), &cpu.read(&want).unwrap(), 2.0 * unit, 2.0 * unit, "integers");
        }
    }
    for (bits, group) in [(four, None), (four, Some(32)), (four, Some(128)), (eight, None)] {
        weights_alone(&b, bits, group);
    }
    let data = rounded(&b, values(n * k, 9));
    let bias = rounded(&b, values(n, 10));
    for (m, bias) in [(1, None), (33, Some(bias))] {
        let x = rounded(&b, values(m * k, 11));
        let weight =
            LinearWeight::Float { out_features: n, in_features: k, data: WeightData::F32(data.clone()) };
        let layer = b.linear_weight(weight, bias.clone()).unwrap();
        let mut tensor = half_tensor(&b, m, k, x.clone());
        let (mut input, mut out) = (b.input(m, k).unwrap(), b.tensor(m, n).unwrap());
        b.to_input(&mut tensor, InputKind::Float, &mut input).unwrap();
        b.linear(&input, &layer, &mut out).unwrap();
        let want: Vec<f32> = (0..m * n)
            .map(|i| {
                let pair = x[i / n * k..][..k].iter().zip(&data[i % n * k..][..k]);
                let sum: f64 = pair.map(|(a, w)| f64::from(*a) * f64::from(*w)).sum();
                sum as f32 + bias.as_ref().map_or(0.0, |b| b[i % n])
            })
            .collect();
        close(&b.read(&out).unwrap(), &want, unit, 1e-4, "16-bit weights");
    }
}

/// Codes for 16-bit activations stand for 16-bit weights, `code * scale` rounded once.
fn weights_alone(b: &CudaBackend, bits: CodeBits, group: Option<usize>) {
    let unit = unit(b);
    let mut random = Random(7);
    let (n, k) = (336, 512);
    let largest = i32::from(bits.largest());
    let codes: Vec<i8> = (0..n * k).map(|_| random.int(-largest, largest) as i8).collect();
    // 16-bit numbers.
    let scale = |i: usize| (1 + i % 23) as f32 / 2048.0;
    let scales = match group {
        None => Scales::PerChannel((0..n).map(scale).collect()),
        Some(g) => Scales::weight_only(n, g, &(0..n * k / g).map(scale).collect::<Vec<_>>()),
    };
    let weight = QuantizedWeight { bits, out_features: n, in_features: k, codes, scales };
    let meant: Vec<f32> = rounded(b, (0..n).flat_map(|row| weight.row_values(row)).collect());
    let bias = rounded(b, values(n, 10));
    let weight = LinearWeight::WeightOnly { weight, dtype: DType::F32 };
    let layer = b.linear_weight(weight, Some(bias.clone())).unwrap();
    assert_eq!(b.input_kind(&layer), InputKind::Float);
    for m in [1, 33] {
        let x = rounded(b, values(m * k, 11));
        let mut tensor = half_tensor(b, m, k, x.clone());
        let (mut input, mut out) = (b.input(m, k).unwrap(), b.tensor(m, n).unwrap());
        b.to_input(&mut tensor, InputKind::Float, &mut input).unwrap();
        b.linear(&input, &layer, &mut out).unwrap();
        let want: Vec<f32> = (0..m * n)
            .map(|i| {
                let pair = x[i / n * k..][..k].iter().zip(&meant[i % n * k..][..k]);
                let sum: f64 = pair.map(|(a, w)| f64::from(*a) * f64::from(*w)).sum();
                sum as f32 + bias[i % n]
            })
            .collect();
        close(&b.read(&out).unwrap(), &want, unit, 1e-3, &format!("{bits} alone, {group:?}"));
    }
}

/// Attention of a step that grows by a token at a time, recorded and replayed, is that of steps that are launched.
fn recorded_steps(b: CudaBackend) {
    let case = Attending::new((8, 2, 64), Some(600), b.half(), &[(1, 300), (1, 40)]);
    let heads = case.kind.heads;
    let layout = KvLayout { num_layers: 1, num_kv_heads: 2, head_dim: 64, dtype: KvDType::F16 };
    let plan_of = |starts: [usize; 2]| {
        let mut plan = BatchPlan::default();
        plan.push(&[0], starts[0], &(0..9).collect::<Vec<u32>>());
        plan.push(&[0], starts[1], &(9..18).collect::<Vec<u32>>());
        plan
    };
    let mut kv = b.kv_pool(layout, 18).unwrap();
    // Positions before are zeros of a prefill.
    let mut before = BatchPlan::default();
    before.push(&[0; 300], 0, &(0..9).collect::<Vec<u32>>());
    before.push(&[0; 40], 0, &(9..18).collect::<Vec<u32>>());
    let zeros = rounded(&b, values(340 * heads.qkv_width(), 3));
    let mut qkv = half_tensor(&b, 340, heads.qkv_width(), zeros);
    b.rope_append(&mut qkv, heads, None, None, &mut kv, 0, &b.batch(&before).unwrap()).unwrap();
    let mut qkv = half_tensor(&b, 2, heads.qkv_width(), rounded(&b, values(2 * heads.qkv_width(), 1)));
    let (mut out, mut again) = (b.tensor(0, 0).unwrap(), b.tensor(0, 0).unwrap());
    let mut batch = b.batch(&plan_of([300, 40])).unwrap();
    let (mut graph, mut replayed) = (None, 0);
    for step in 0..300 {
        b.refill(&mut batch, &plan_of([300 + step, 40 + step])).unwrap();
        if !matches!(&graph, Some(graph) if b.replay(graph, &batch).unwrap()) {
            graph = b
                .record::<qqq_backend::BackendError>(&batch, &mut || {
                    b.rope_append(&mut qkv, heads, None, None, &mut kv, 0, &batch)?;
                    b.attention(&qkv, &case.kind, &kv, 0, &batch, &mut out)
                })
                .unwrap();
            match &graph {
                Some(graph) => assert!(b.replay(graph, &batch).unwrap()),
                None => {
                    b.rope_append(&mut qkv, heads, None, None, &mut kv, 0, &batch).unwrap();
                    b.attention(&qkv, &case.kind, &kv, 0, &batch, &mut out).unwrap();
                }
            }
        } else {
            replayed += 1;
        }
        if step % 50 == 49 {
            let got = b.read(&out).unwrap().into_owned();
            b.attention(&qkv, &case.kind, &kv, 0, &batch, &mut again).unwrap();
            assert_eq!(got, *b.read(&again).unwrap(), "step {step}");
        }
    }
    assert!(replayed > 250, "{replayed}");
}
