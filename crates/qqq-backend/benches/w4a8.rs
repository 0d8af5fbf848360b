//! `cargo bench -p qqq-backend --bench w4a8`: the W4A8 GEMM at the shapes of SmolLM2-135M, on the best path
//! of this machine. The example `w4a8_speed` prints GOPS and GB/s for more shapes and paths.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::f16;
use qqq_backend::cpu::matrix::Matrix;
use qqq_backend::cpu::pool::{num_threads, parallel_for};
use qqq_backend::cpu::w4a8::{Int8Activations, W4A8Linear};
use qqq_formats::{QuantizedWeight, Scales};

fn linear(n: usize, k: usize, group_size: Option<usize>) -> W4A8Linear {
    let codes = (0..n * k).map(|i| (i * 7 % 15) as i8 - 7).collect();
    let channel = vec![0.01; n];
    let scales = match group_size {
        None => Scales::PerChannel(channel),
        Some(group_size) => {
            let group =
                (0..n * k / group_size).map(|i| f16::from_f32(1.0 + (i % 140) as f32 / 10.0)).collect();
            Scales::PerGroup { group_size, channel, group }
        }
    };
    let weight = QuantizedWeight { out_features: n, in_features: k, codes, scales };
    W4A8Linear::new(&weight).expect("a shape that the kernels take")
}

fn activations(rows: usize, cols: usize) -> Matrix {
    Matrix { rows, cols, data: (0..rows * cols).map(|i| (i % 97) as f32 - 48.0).collect() }
}

fn matmul(criterion: &mut Criterion) {
    for (n, k) in [(960, 576), (576, 576), (3072, 576), (576, 1536)] {
        for (name, group_size) in [("channel", None), ("g64", Some(64))] {
            let linear = linear(n, k, group_size);
            let mut group = criterion.benchmark_group(format!("w4a8/{n}x{k}/{name}"));
            for rows in [1, 4, 16, 512] {
                let a = Int8Activations::quantize(&activations(rows, k));
                let mut out = Matrix::zeros(rows, n);
                group.throughput(Throughput::Elements((2 * rows * n * k) as u64));
                group.bench_function(BenchmarkId::from_parameter(rows), |b| {
                    b.iter(|| linear.matmul(black_box(&a), None, false, &mut out));
                });
            }
        }
    }
}

fn others(criterion: &mut Criterion) {
    criterion.bench_function("hand-over", |b| b.iter(|| parallel_for(num_threads(), |i| _ = black_box(i))));
    for rows in [1, 512] {
        let x = activations(rows, 576);
        criterion.bench_function(&format!("quantize/{rows}x576"), |b| {
            b.iter(|| Int8Activations::quantize(black_box(&x)))
        });
    }
}

criterion_group!(benches, matmul, others);
criterion_main!(benches);
