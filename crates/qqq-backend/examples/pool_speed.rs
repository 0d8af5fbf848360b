//! The thread pool beside rayon's, on the patterns of a decoder: `cargo run --release -p qqq-backend --example pool_speed`.
//!
//! A step of decoding hands out some two hundred small jobs with short serial pieces between them; prefill and the quantizer
//! hand out few large ones. Each figure is the lower decile of many runs, in microseconds, so that a machine with other work
//! to do lets it through; all are measured in turns. rayon is called from one of its own threads (`install`), which is its
//! fastest way, with tasks that it may bundle and with tasks one by one. `QQQ_THREADS` sets the threads of both.

use std::hint::black_box;
use std::time::{Duration, Instant};

use qqq_backend::pool::{num_threads, parallel_for};
use rayon::prelude::*;

/// A way to run `job(i)` for every `i` below a number.
type ParallelFor<'a> = &'a (dyn Fn(usize, &(dyn Fn(usize) + Sync)) + Sync);

/// About this much arithmetic, on any thread.
fn work(iterations: usize) {
    black_box((0..iterations).fold(1.0f64, |x, _| black_box(x) * 1.000_000_1));
}

/// Iterations of [`work`] in a microsecond.
fn calibrated() -> f64 {
    let rounds = (0..20).map(|_| {
        let start = Instant::now();
        work(100_000);
        100_000.0 / start.elapsed().as_secs_f64() / 1e6
    });
    rounds.fold(0.0, f64::max)
}

struct Pattern {
    name: &'static str,
    /// Parallel regions of a run.
    regions: usize,
    /// Tasks of a region.
    tasks: usize,
    /// Microseconds of a task.
    task: f64,
    /// Microseconds of serial work after each region.
    serial: f64,
    /// Sleep before a run, in which idle threads fall asleep.
    pause: Duration,
}

const NO_PAUSE: Duration = Duration::ZERO;

const PATTERNS: [Pattern; 7] = [
    Pattern {
        name: "fork and join, empty tasks",
        regions: 100,
        tasks: 2,
        task: 0.0,
        serial: 0.0,
        pause: NO_PAUSE,
    },
    Pattern { name: "the same, 16 tasks", regions: 100, tasks: 16, task: 0.0, serial: 0.0, pause: NO_PAUSE },
    Pattern {
        name: "fork and join after 10 us alone",
        regions: 50,
        tasks: 2,
        task: 0.0,
        serial: 10.0,
        pause: NO_PAUSE,
    },
    Pattern {
        name: "one region after 2 ms asleep",
        regions: 1,
        tasks: 2,
        task: 5.0,
        serial: 0.0,
        pause: Duration::from_millis(2),
    },
    Pattern {
        name: "decode: 200 x 8 x 2 us, 1 us alone",
        regions: 200,
        tasks: 8,
        task: 2.0,
        serial: 1.0,
        pause: NO_PAUSE,
    },
    Pattern {
        name: "decode: 200 x 8 x 10 us, 3 us alone",
        regions: 200,
        tasks: 8,
        task: 10.0,
        serial: 3.0,
        pause: NO_PAUSE,
    },
    Pattern {
        name: "prefill: 5 x 64 x 100 us",
        regions: 5,
        tasks: 64,
        task: 100.0,
        serial: 5.0,
        pause: NO_PAUSE,
    },
];

impl Pattern {
    /// Microseconds of a run.
    fn run(&self, per_us: f64, parallel_for: ParallelFor) -> f64 {
        std::thread::sleep(self.pause);
        let (task, serial) = ((self.task * per_us) as usize, (self.serial * per_us) as usize);
        let start = Instant::now();
        for _ in 0..self.regions {
            parallel_for(self.tasks, &|_| work(task));
            work(serial);
        }
        start.elapsed().as_secs_f64() * 1e6
    }

    /// What a run would take if nothing but the work took time.
    fn ideal(&self, threads: usize) -> f64 {
        self.regions as f64 * (self.tasks.div_ceil(threads) as f64 * self.task + self.serial)
    }
}

fn lower_decile(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 10]
}

fn main() {
    let threads = num_threads();
    let per_us = calibrated();
    let rayon = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start");
    let ways: [ParallelFor; 3] = [
        &|tasks, job| parallel_for(tasks, job),
        &|tasks, job| (0..tasks).into_par_iter().for_each(job),
        &|tasks, job| (0..tasks).into_par_iter().with_max_len(1).for_each(job),
    ];
    println!("{threads} threads; microseconds");
    println!(
        "{:38}{:>10}{:>10}{:>10}{:>12}{:>8}",
        "", "work alone", "this pool", "rayon", "rayon, by 1", "ratio"
    );
    for pattern in &PATTERNS {
        let mut times = [const { Vec::new() }; 3];
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(3) || times[0].len() < 15 {
            times[0].push(pattern.run(per_us, ways[0]));
            // One after the other, so that no pool spins while another is measured.
            for way in 1..ways.len() {
                std::thread::sleep(Duration::from_millis(1));
                times[way].push(rayon.install(|| pattern.run(per_us, ways[way])));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let [ours, plain, by_one] = times.map(lower_decile);
        println!(
            "{:38}{:>10.1}{ours:>10.1}{plain:>10.1}{by_one:>12.1}{:>8.2}",
            pattern.name,
            pattern.ideal(threads),
            plain.min(by_one) / ours
        );
    }
}
