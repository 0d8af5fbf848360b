//! Speed of the W4A8 kernels: a table of GOPS and GB/s by shape, rows, group size and path.
//!
//!     cargo run --release -p qqq-backend --example w4a8_speed -- [PATH...]
//!
//! PATH is `portable`, `avx2`, ...; without one, the best of this machine. Each figure is the best of
//! several runs. With few rows, copies of the weight are gone through in turn, so that it comes from
//! memory as it does in a model; GB/s counts the bytes of the packed weight.

use std::time::{Duration, Instant};

use half::f16;
use qqq_backend::cpu::integer::{Int8Activations, IntegerLinear};
use qqq_backend::cpu::isa::Isa;
use qqq_backend::cpu::matrix::Matrix;
use qqq_backend::pool::{num_threads, parallel_for};
use qqq_formats::{CodeBits, QuantizedWeight, Scales};

/// N and K of SmolLM2-135M's layers (qkv, o, gate and up, down), and one of a 7B model.
const SHAPES: [(usize, usize); 5] = [(960, 576), (576, 576), (3072, 576), (576, 1536), (4096, 4096)];
const ROWS: [usize; 7] = [1, 2, 4, 16, 64, 512, 2048];
/// More than the caches of common machines.
const COLD_BYTES: usize = 192 << 20;

fn weight(n: usize, k: usize, group_size: Option<usize>) -> QuantizedWeight {
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
    QuantizedWeight { bits: CodeBits::Four, out_features: n, in_features: k, codes, scales }
}

/// Best time of a call, from runs of about 20 ms.
fn best(mut call: impl FnMut()) -> Duration {
    let mut best = Duration::MAX;
    for _ in 0..10 {
        let (start, mut calls) = (Instant::now(), 0);
        while start.elapsed() < Duration::from_millis(20) {
            call();
            calls += 1;
        }
        best = best.min(start.elapsed() / calls);
    }
    best
}

fn table(isa: Isa) {
    println!("\n{isa}, {} threads", num_threads());
    println!("{:>6}{:>6}{:>6}{:>6}{:>12}{:>9}{:>8}", "N", "K", "group", "rows", "us", "GOPS", "GB/s");
    for (n, k) in SHAPES {
        for group in [None, Some(128), Some(64)] {
            if group.is_some_and(|group| k % group != 0) {
                continue;
            }
            let linear = IntegerLinear::with_isa(&weight(n, k, group), isa).expect("a path of this machine");
            let copies = vec![linear.clone(); COLD_BYTES.div_ceil(linear.bytes())];
            for rows in ROWS {
                let x =
                    Matrix { rows, cols: k, data: (0..rows * k).map(|i| (i % 97) as f32 - 48.0).collect() };
                let a = Int8Activations::quantize(&x);
                let mut out = Matrix::zeros(rows, n);
                let mut next = 0;
                let time = best(|| {
                    copies[next].matmul(&a, None, &mut out);
                    next = (next + 1) % if rows <= 16 { copies.len() } else { 1 };
                });
                let seconds = time.as_secs_f64();
                println!(
                    "{n:>6}{k:>6}{:>6}{rows:>6}{:>12.2}{:>9.1}{:>8.2}",
                    group.map_or("-".into(), |group| group.to_string()),
                    seconds * 1e6,
                    (2 * rows * n * k) as f64 / seconds / 1e9,
                    linear.bytes() as f64 / seconds / 1e9,
                );
            }
        }
    }
}

/// All linear layers of SmolLM2-135M for `rows` tokens.
fn decoder(isa: Isa) {
    println!("\nlinear layers of 30 blocks of SmolLM2-135M, {isa}");
    println!("{:>6}{:>6}{:>12}{:>12}{:>8}", "group", "rows", "ms", "tokens/s", "GB/s");
    for group in [None, Some(64)] {
        let layers: Vec<_> = (0..30)
            .flat_map(|_| &SHAPES[..4])
            .map(|&(n, k)| {
                IntegerLinear::with_isa(&weight(n, k, group), isa).expect("a path of this machine")
            })
            .collect();
        let bytes: usize = layers.iter().map(IntegerLinear::bytes).sum();
        for rows in [1, 4, 512] {
            let inputs = [576, 1536]
                .map(|cols| Int8Activations::quantize(&Matrix { rows, cols, data: vec![1.0; rows * cols] }));
            let mut outs = [960, 576, 3072, 576].map(|cols| Matrix::zeros(rows, cols));
            let time = best(|| {
                for (i, layer) in layers.iter().enumerate() {
                    layer.matmul(&inputs[usize::from(i % 4 == 3)], None, &mut outs[i % 4]);
                }
            });
            println!(
                "{:>6}{rows:>6}{:>12.3}{:>12.0}{:>8.2}",
                group.map_or("-".into(), |group| group.to_string()),
                time.as_secs_f64() * 1e3,
                rows as f64 / time.as_secs_f64(),
                bytes as f64 / time.as_secs_f64() / 1e9,
            );
        }
    }
}

fn main() {
    let isas: Vec<Isa> = std::env::args()
        .skip(1)
        .map(|name| name.parse::<Isa>().and_then(Isa::checked).unwrap_or_else(|error| panic!("{error}")))
        .collect();
    let hand_over = best(|| parallel_for(num_threads(), |i| _ = std::hint::black_box(i)));
    println!("hand-over to {} threads: {:.2} us", num_threads(), hand_over.as_secs_f64() * 1e6);
    for isa in if isas.is_empty() { vec![Isa::best()] } else { isas } {
        decoder(isa);
        table(isa);
    }
}
