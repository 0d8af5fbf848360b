//! What a decoder does between products.

use std::ffi::OsString;

use qqq_backend::pool::parallel_for;
use qqq_backend::{PAGE, largest};
use qqq_cuda::decoder::rows::{RowConfig, RowOperands, RowSource};
use qqq_cuda::decoder::steps::{
    AddParameters, CompareParameters, Compared, EmbedParameters, LossParameters, RopeParameters, StepKernel,
    TopParameters,
};
use qqq_cuda::{DType, KernelType};

use crate::emulator::{Emulator, Memory, Shape};
use crate::everything;
use crate::uniform::uniform;

/// A NaN in either 16-bit type.
const POISON: u16 = 0x7FAB;

fn shape((blocks, threads): (usize, usize)) -> Shape {
    Shape { blocks, threads, cluster: 1, shared_bytes: 0, together: false }
}

fn raw<T>(parameters: &T) -> (*const std::ffi::c_void, usize) {
    ((&raw const *parameters).cast(), size_of::<T>())
}

/// Numbers in (-size, size).
fn numbers(seed: u64, count: usize, size: f32) -> Vec<f32> {
    (0..count).map(|i| (uniform(seed, i) * 2.0 - 1.0) * size).collect()
}

/// As the 16-bit type has them.
fn encoded(half: DType, values: &[f32]) -> (Vec<u16>, Vec<f32>) {
    let bits: Vec<u16> = values.iter().map(|v| half.encode(*v)).collect();
    let values = bits.iter().map(|b| half.decode(*b)).collect();
    (bits, values)
}

/// Half of a unit in the last place of a number near 1.
fn unit(half: DType) -> f64 {
    if half == DType::BF16 { 1.0 / 256.0 } else { 1.0 / 2048.0 }
}

fn close(got: f64, want: f64, relative: f64, absolute: f64, what: &str) {
    assert!((got - want).abs() <= relative * want.abs() + absolute, "{what}: {got} instead of {want}");
}

pub fn rows_are_those_of_float64(compiler: OsString) {
    let step = if everything() { 1 } else { 5 };
    let configs: Vec<_> = RowConfig::all().into_iter().step_by(step).collect();
    let emulator = Emulator::new(&compiler, configs.iter().map(RowConfig::source).collect());
    parallel_for(configs.len(), |i| {
        let config = configs[i];
        let widest = if config.vectors == 0 { 65536 } else { config.row_threads * config.vectors * 8 };
        // The widest row, and one that leaves threads without work.
        check_rows(&emulator, config, 2, widest, i as u64);
        check_rows(&emulator, config, 5, widest / 2 + 16, i as u64 + 1000);
    });
}

fn check_rows(emulator: &Emulator, config: RowConfig, m: usize, k: usize, seed: u64) {
    let gates = matches!(config.source, RowSource::Silu | RowSource::GeluTanh);
    let adds = !seed.is_multiple_of(3);
    let width = if gates { 2 * k } else { k };
    let (x_bits, x) = encoded(config.half, &numbers(seed, m * width, 4.0));
    let stream = numbers(seed + 1, m * k, 3.0);
    let weight = numbers(seed + 2, k, 1.5);
    let (factor, epsilon) = (0.75f32, 1e-5f32);
    let mut memory = Memory::default();
    let x_at = memory.upload(&x_bits);
    let [stream_at, weight_at] = [&stream, &weight].map(|v| memory.upload(v));
    let out = memory.upload(&vec![POISON; m * k]);
    let scale = memory.upload(&vec![f32::NAN; m]);
    let residual = config.source == RowSource::ResidualNorm;
    let operands = RowOperands {
        x: if !residual || adds { x_at.address } else { 0 },
        residual: if residual { stream_at.address } else { 0 },
        weight: weight_at.address,
        out: out.address,
        scale: scale.address,
        m,
        k,
        epsilon,
        factor,
    };
    let parameters = operands.parameters(&config).unwrap();
    let source = config.source();
    let late = memory.regions();
    emulator
        .launch(&source, shape(config.launch_shape(m)), raw(&parameters), &memory, &late, seed)
        .expect(&source.name);
    let streamed: Vec<f32> = memory.download(stream_at);
    let halves: Vec<u16> = memory.download(out);
    let codes: Vec<i8> = memory.download(out);
    let scales: Vec<f32> = memory.download(scale);
    for row in 0..m {
        let what = format!("{} of {m} x {k}, row {row}", source.name);
        let values: Vec<f64> = (0..k)
            .map(|c| {
                let at = |c: usize| f64::from(x[row * width + c]);
                let g = at(c);
                match config.source {
                    RowSource::ResidualNorm => {
                        let sum =
                            f64::from(stream[row * k + c]) + if adds { f64::from(factor) * g } else { 0.0 };
                        close(f64::from(streamed[row * k + c]), sum, 1e-6, 1e-7, &what);
                        sum
                    }
                    RowSource::InputNorm | RowSource::Input => g,
                    RowSource::Silu => g / (1.0 + (-g).exp()) * at(k + c),
                    RowSource::GeluTanh => {
                        let inner = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g * g * g);
                        0.5 * g * (1.0 + inner.tanh()) * at(k + c)
                    }
                }
            })
            .collect();
        let normalizes = matches!(config.source, RowSource::ResidualNorm | RowSource::InputNorm);
        let mean = values.iter().map(|v| v * v).sum::<f64>() / k as f64;
        let root = if normalizes { (mean + f64::from(epsilon)).sqrt() } else { 1.0 };
        let wanted: Vec<f64> = values
            .iter()
            .zip(&weight)
            .map(|(v, w)| v / root * if normalizes { f64::from(*w) } else { 1.0 })
            .collect();
        if config.int8 {
            let size = wanted.iter().fold(0.0f64, |m, v| m.max(v.abs()));
            let step = f64::from(scales[row]);
            close(step, size / 127.0, 1e-5, 0.0, &what);
            for (c, want) in wanted.iter().enumerate() {
                // To the nearest code, but for rounding before it.
                close(f64::from(codes[row * k + c]) * step, *want, 0.0, 0.501 * step, &what);
            }
        } else {
            for (c, want) in wanted.iter().enumerate() {
                let got = f64::from(config.half.decode(halves[row * k + c]));
                close(got, *want, 1.01 * unit(config.half), 1e-6, &what);
            }
        }
    }
}

pub fn heads_are_rotated(compiler: OsString) {
    let kernels = [DType::F16, DType::BF16].map(StepKernel::RopeAppend);
    let emulator = Emulator::new(&compiler, kernels.iter().map(|k| k.source()).collect());
    let cases = [
        (64, 32, false),
        (96, 36, true),
        (256, 128, true),
        (48, 0, false),
        (112, 27, true),
        (144, 72, false),
    ];
    for (i, (head_dim, pairs, norms)) in cases.into_iter().enumerate() {
        let half = [DType::F16, DType::BF16][i % 2];
        let beta = [0.0f32, 0.1, 0.7, 0.1][i % 4];
        let (heads, kv_heads, pages) = (3, 2, 3);
        let width = (heads + 2 * kv_heads) * head_dim;
        let positions: Vec<i32> = vec![0, 127, 128, 200, 5];
        let slots: Vec<i32> = vec![PAGE as i32, 127, 2 * PAGE as i32, 2 * PAGE as i32 + 72, PAGE as i32 + 5];
        let rows = positions.len();
        let (bits, x) = encoded(half, &numbers(3, rows * width, 2.0));
        let angle =
            |position: i32, pair: usize| f64::from(position) * 10_000f64.powf(-(pair as f64) / pairs as f64);
        let table = |f: fn(f64) -> f64| -> Vec<f32> {
            (0..256 * pairs).map(|i| f(angle((i / pairs) as i32, i % pairs)) as f32).collect()
        };
        let weights = [numbers(7, head_dim, 1.5), numbers(8, head_dim, 1.5)];
        let mut memory = Memory::default();
        let qkv = memory.upload(&bits);
        let pool = pages * kv_heads * PAGE * head_dim;
        let [keys, values] = [(); 2].map(|()| memory.upload(&vec![POISON; pool]));
        let [cosines, sines] = [table(f64::cos), table(f64::sin)].map(|t| memory.upload(&t));
        let [q_norm, k_norm] = [&weights[0], &weights[1]].map(|w| memory.upload(w));
        let parameters = RopeParameters {
            qkv: qkv.address,
            keys: keys.address,
            values: values.address,
            q_norm: if norms { q_norm.address } else { 0 },
            k_norm: if norms { k_norm.address } else { 0 },
            cosines: if pairs > 0 { cosines.address } else { 0 },
            sines: if pairs > 0 { sines.address } else { 0 },
            positions: memory.upload(&positions).address,
            slots: memory.upload(&slots).address,
            rows: rows as i32,
            num_heads: heads as i32,
            num_kv_heads: kv_heads as i32,
            head_dim: head_dim as i32,
            pairs: pairs as i32,
            q_epsilon: 1e-6,
            k_epsilon: 1e-6,
            query_beta: beta,
            query_period: 100,
        };
        let kernel = kernels[i % 2];
        let shape = shape((kernel.ctas(rows * (heads + 2 * kv_heads)), kernel.threads()));
        emulator
            .launch(&kernel.source(), shape, raw(&parameters), &memory, &memory.regions(), i as u64)
            .unwrap();
        let rotated: Vec<u16> = memory.download(qkv);
        let pools: [Vec<u16>; 2] = [memory.download(keys), memory.download(values)];
        for row in 0..rows {
            for head in 0..heads + 2 * kv_heads {
                let at = row * width + head * head_dim;
                let (is_query, is_value) = (head < heads, head >= heads + kv_heads);
                let own: Vec<f64> = x[at..at + head_dim].iter().map(|v| f64::from(*v)).collect();
                let mean = own.iter().map(|v| v * v).sum::<f64>() / head_dim as f64;
                let weight = &weights[usize::from(!is_query)];
                let normed: Vec<f64> = match norms && !is_value {
                    true => own
                        .iter()
                        .zip(weight)
                        .map(|(v, w)| v / (mean + 1e-6).sqrt() * f64::from(*w))
                        .collect(),
                    false => own,
                };
                for d in 0..head_dim {
                    let pair = if d < pairs { d } else { d.wrapping_sub(pairs) };
                    let want = if is_value || d >= 2 * pairs {
                        normed[d]
                    } else {
                        let (s, c) = angle(positions[row], pair).sin_cos();
                        let (other, sign) = if d < pairs { (d + pairs, -1.0) } else { (pair, 1.0) };
                        normed[d] * c + sign * normed[other] * s
                    };
                    let growth = 1.0 + f64::from(beta) * f64::from(1 + positions[row] / 100).ln();
                    let want = if is_query { want * growth } else { want };
                    let what = format!("{head_dim} wide, row {row}, head {head}, {d}");
                    let mut places = vec![rotated[at + d]];
                    if !is_query {
                        let kv_head = (head - heads) % kv_heads;
                        let (page, slot) = (slots[row] as usize / PAGE, slots[row] as usize % PAGE);
                        let place = ((page * kv_heads + kv_head) * PAGE + slot) * head_dim + d;
                        places.push(pools[usize::from(is_value)][place]);
                    }
                    for bits in places {
                        close(f64::from(half.decode(bits)), want, 1.01 * unit(half), 1e-5, &what);
                    }
                }
            }
        }
        let written = rows * kv_heads * head_dim;
        assert!(pools.iter().all(|p| p.iter().filter(|v| **v != POISON).count() == written), "elsewhere too");
    }
}

pub fn embeddings_sums_and_largest_elements(compiler: OsString) {
    let kernels = [StepKernel::Embed, StepKernel::Add, StepKernel::Top];
    let emulator = Emulator::new(&compiler, kernels.iter().map(|k| k.source()).collect());
    let launch = |kernel: StepKernel, units: usize, raw, memory: &Memory| {
        let shape = shape((kernel.ctas(units), kernel.threads()));
        emulator.launch(&kernel.source(), shape, raw, memory, &memory.regions(), 1).unwrap();
    };
    let (vocab, hidden) = (50, 72);
    let tokens = [49i32, 0, 7, 7];
    for (value_type, half) in [(0, DType::F16), (1, DType::BF16)] {
        let (bits, table) = encoded(half, &numbers(1, vocab * hidden, 3.0));
        let (more_bits, more) = encoded(half, &numbers(2, tokens.len() * hidden, 3.0));
        let mut memory = Memory::default();
        let out = memory.upload(&vec![f32::NAN; tokens.len() * hidden]);
        let embed = EmbedParameters {
            table: memory.upload(&bits).address,
            tokens: memory.upload(&tokens).address,
            out: out.address,
            rows: tokens.len() as i64,
            hidden: hidden as i32,
            value_type,
            scale: 2.5,
        };
        launch(StepKernel::Embed, tokens.len() * hidden, raw(&embed), &memory);
        let want: Vec<f32> = tokens
            .iter()
            .flat_map(|t| table[*t as usize * hidden..][..hidden].iter().map(|v| v * 2.5))
            .collect();
        assert_eq!(memory.download::<f32>(out), want);
        let add = AddParameters {
            residual: out.address,
            x: memory.upload(&more_bits).address,
            count: want.len() as i64,
            value_type,
            factor: 0.3,
        };
        launch(StepKernel::Add, want.len(), raw(&add), &memory);
        let want: Vec<f32> = want.iter().zip(more).map(|(a, x)| 0.3f32.mul_add(x, *a)).collect();
        assert_eq!(memory.download::<f32>(out), want);
    }
    let columns = 1500;
    let mut rows = [
        (0..columns).map(|i| ((i * 37) % 64) as f32 - 20.0).collect::<Vec<f32>>(),
        vec![0.0; columns],
        (0..columns).map(|i| -(i as f32)).collect(),
        vec![1.0; columns],
    ];
    rows[1][5] = -0.0;
    (rows[3][0], rows[3][1400]) = (f32::NAN, f32::INFINITY);
    let all = rows.concat();
    for count in [1, 3, 40] {
        let mut memory = Memory::default();
        let out = memory.upload(&vec![0u64; rows.len() * count]);
        let top = TopParameters {
            logits: memory.upload(&all).address,
            out: out.address,
            rows: rows.len() as i32,
            columns: columns as i32,
            count: count as i32,
        };
        launch(StepKernel::Top, rows.len(), raw(&top), &memory);
        let words: Vec<u64> = memory.download(out);
        for (row, words) in rows.iter().zip(words.chunks(count)) {
            let got: Vec<(f32, u32)> =
                words.iter().map(|w| (f32::from_bits((w >> 32) as u32), *w as u32)).collect();
            let want = largest(row, count);
            // Of what is not finite the first is asked for, alone.
            for (got, want) in got.iter().zip(&want) {
                assert_eq!((got.0.to_bits(), got.1), (want.0.to_bits(), want.1), "{count}");
            }
        }
    }
}

pub fn losses_are_those_of_float64(compiler: OsString) {
    let kernel = StepKernel::Losses;
    let emulator = Emulator::new(&compiler, vec![kernel.source()]);
    for columns in [1, 511, 512, 1700] {
        let rows = 7;
        let mut logits = numbers(3, rows * columns, 30.0);
        // Equal ones; what is not finite, as the target and beside it.
        logits[..columns].fill(-2.5);
        let targets: Vec<i32> = (0..rows).map(|row| (row * 131 % columns) as i32).collect();
        logits[4 * columns + columns / 2] = f32::NAN;
        logits[5 * columns + targets[5] as usize] = f32::INFINITY;
        logits[6 * columns + columns - 1] = f32::NEG_INFINITY;
        let mut memory = Memory::default();
        let out = memory.upload(&vec![0.0f64; rows]);
        let parameters = LossParameters {
            logits: memory.upload(&logits).address,
            columns_of: memory.upload(&targets).address,
            out: out.address,
            rows: rows as i32,
            columns: columns as i32,
        };
        let shape = shape((kernel.ctas(rows), kernel.threads()));
        emulator.launch(&kernel.source(), shape, raw(&parameters), &memory, &memory.regions(), 1).unwrap();
        for (row, got) in memory.download::<f64>(out).into_iter().enumerate() {
            let values = logits[row * columns..][..columns].iter().map(|v| f64::from(*v));
            if row >= 4 {
                assert!(!got.is_finite(), "row {row} of {columns}: {got}");
                continue;
            }
            let largest = values.clone().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = values.clone().map(|v| (v - largest).exp()).sum();
            let want = sum.ln() + largest - f64::from(logits[row * columns + targets[row] as usize]);
            close(got, want, 1e-6, 2e-6, &format!("row {row} of {columns}"));
        }
    }
}

pub fn comparisons_are_those_of_float64(compiler: OsString) {
    let kernel = StepKernel::Compare;
    let emulator = Emulator::new(&compiler, vec![kernel.source()]);
    for columns in [1, 511, 512, 1700] {
        let rows = 9;
        let mut baseline = numbers(3, rows * columns, 20.0);
        // Models that are close, far, and equal.
        let mut model: Vec<f32> =
            baseline.iter().zip(numbers(4, rows * columns, 1e-2)).map(|(x, e)| x + e).collect();
        model[columns..2 * columns].copy_from_slice(&numbers(5, columns, 20.0));
        model[2 * columns..3 * columns].copy_from_slice(&baseline[2 * columns..3 * columns]);
        // The first of equal ones is the likeliest.
        baseline[3 * columns..4 * columns].fill(-2.5);
        model[3 * columns..4 * columns].fill(1.5);
        let targets: Vec<i32> = (0..rows).map(|row| (row * 131 % columns) as i32).collect();
        baseline[5 * columns + columns / 2] = f32::NAN;
        baseline[6 * columns + targets[6] as usize] = f32::INFINITY;
        model[7 * columns + columns - 1] = f32::NEG_INFINITY;
        model[8 * columns + targets[8] as usize] = f32::NAN;
        let mut memory = Memory::default();
        let nothing = Compared { baseline_nll: 0.0, model_nll: 0.0, kl: 0.0, agree: -1 };
        let out = memory.upload(&vec![nothing; rows]);
        let parameters = CompareParameters {
            baseline: memory.upload(&baseline).address,
            model: memory.upload(&model).address,
            columns_of: memory.upload(&targets).address,
            out: out.address,
            rows: rows as i32,
            columns: columns as i32,
        };
        let shape = shape((kernel.ctas(rows), kernel.threads()));
        emulator.launch(&kernel.source(), shape, raw(&parameters), &memory, &memory.regions(), 1).unwrap();
        for (row, got) in memory.download::<Compared>(out).into_iter().enumerate() {
            let place = format!("row {row} of {columns}");
            let log_softmax = |all: &[f32]| -> Vec<f64> {
                let values: Vec<f64> =
                    all[row * columns..][..columns].iter().map(|v| f64::from(*v)).collect();
                let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = values.iter().map(|v| (v - largest).exp()).sum();
                values.iter().map(|v| v - largest - sum.ln()).collect()
            };
            let finite = [!(5..=6).contains(&row), row < 7];
            assert_eq!([got.baseline_nll.is_finite(), got.model_nll.is_finite()], finite, "{place}: {got:?}");
            if row >= 5 {
                assert!(!got.kl.is_finite(), "{place}: {got:?}");
                continue;
            }
            let (p, q) = (log_softmax(&baseline), log_softmax(&model));
            let first =
                |x: &[f64]| x.iter().position(|v| *v == x.iter().copied().fold(f64::NEG_INFINITY, f64::max));
            let kl: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
            let target = targets[row] as usize;
            close(got.baseline_nll, -p[target], 1e-6, 2e-6, &place);
            close(got.model_nll, -q[target], 1e-6, 2e-6, &place);
            close(got.kl, kl, 1e-6, 1e-6, &place);
            assert_eq!(got.agree == 1, first(&p) == first(&q), "{place}");
        }
        let got = memory.download::<Compared>(out)[2];
        assert_eq!((got.kl, got.agree), (0.0, 1), "{columns}: {got:?}");
    }
}
