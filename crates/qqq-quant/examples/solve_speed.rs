//! Seconds for solving the layers of a SmolLM2-135M block, and GFLOP/s of the Hessian update, on random data:
//! `cargo run --release -p qqq-quant --example solve_speed`.

use std::time::Instant;

use qqq_backend::cpu::calibrate::CpuGram;
use qqq_backend::cpu::matrix::Matrix;
use qqq_backend::pool::{num_threads, parallel_for};
use qqq_quant::Clip;
use qqq_quant::solve::{SolveOptions, solve};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const BLOCKS: usize = 30;
const SHAPES: [(&str, usize, usize); 4] =
    [("qkv", 960, 576), ("o", 576, 576), ("gate_up", 3072, 576), ("down", 576, 1536)];

fn main() {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut random = |len: usize| -> Vec<f32> { (0..len).map(|_| rng.random::<f32>() - 0.5).collect() };
    println!("{} threads", num_threads());

    let mut hessians = Vec::new();
    for k in [576, 1536] {
        let x = Matrix { rows: 2048, cols: k, data: random(2048 * k) };
        let mut h = CpuGram::new(k);
        h.add(&x);
        let start = Instant::now();
        let rounds = 10;
        (0..rounds).for_each(|_| h.add(&x));
        let one = start.elapsed().as_secs_f64() / f64::from(rounds);
        let start = Instant::now();
        parallel_for(num_threads(), |_| {
            let mut h = CpuGram::new(k);
            (0..rounds).for_each(|_| h.add(&x));
        });
        let all = start.elapsed().as_secs_f64() / f64::from(rounds);
        let work = 2.0 * 2048.0 * (k * k) as f64 / 1e9;
        println!(
            "hessian {k}: {:.0} GFLOP/s on one thread, {:.0} on all (of the full product; half of it is computed)",
            work / one,
            work * num_threads() as f64 / all
        );
        hessians.push((k, h.finish()));
    }

    for (name, options) in [
        ("per channel, unclipped", SolveOptions::default()),
        ("per channel, clip weight", SolveOptions { clip: Clip::Weight, ..Default::default() }),
        ("per channel, clip output", SolveOptions { clip: Clip::Output, ..Default::default() }),
        ("g64, clip weight", SolveOptions { group_size: Some(64), clip: Clip::Weight, ..Default::default() }),
        ("g64, clip output", SolveOptions { group_size: Some(64), clip: Clip::Output, ..Default::default() }),
        ("per channel, to nearest", SolveOptions { compensate: false, ..Default::default() }),
    ] {
        let mut total = 0.0;
        print!("{name}:");
        for (layer, n, k) in SHAPES {
            let weights = random(n * k);
            let hessian = &hessians.iter().find(|(width, _)| *width == k).expect("made above").1;
            let start = Instant::now();
            let solved =
                solve(layer, &weights, n, k, Some(hessian), &options).expect("a random problem is solvable");
            let seconds = start.elapsed().as_secs_f64();
            total += seconds;
            print!(" {layer} {:.1} ms ({:.4} of {:.4}),", seconds * 1e3, solved.loss, solved.loss_nearest);
        }
        println!(" {BLOCKS} blocks {:.2} s", total * BLOCKS as f64);
    }
}
