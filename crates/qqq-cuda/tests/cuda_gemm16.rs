//! The GPU's matrix products of 16-bit activations against the host's: every instance of both kernels, bit for bit where
//! sums are exact and within what rounding explains where they are not, shapes at every edge, repeats, and independence of
//! the batch. Needs a Hopper GPU: the tests are reported as ignored without one.

#[path = "common/compile.rs"]
mod compile;
#[path = "common/products.rs"]
mod products;
#[path = "common/products_half.rs"]
mod products_half;

use std::process::ExitCode;
use std::sync::Arc;

use cudarc::driver::DevicePtr;
use qqq_cuda::gemm::{GemmLayer, Plan, SumOrder};
use qqq_cuda::{Arch, Device};
use qqq_testing::{Suite, tests};

use products::{POISON, device, plans};
use products_half::{Numbers, Problem, Weights, all_types};

fn main() -> ExitCode {
    Suite::new()
        .with(device, tests![every_instance, batch_invariant_plans, chosen_instances_on_larger_shapes])
        .run()
}

/// What the GPU gives, `repeats` times.
fn run(problem: &Problem, device: &Device, layer: &GemmLayer, plan: Plan, repeats: usize) -> Vec<Vec<u16>> {
    let stream = device.stream();
    let x = stream.clone_htod(&problem.x).unwrap();
    let poison = vec![POISON; problem.m * problem.weights.n];
    let mut y = stream.clone_htod(&poison).unwrap();
    let address = (x.device_ptr(stream).0, 0, y.device_ptr(stream).0);
    layer.prepare(problem.m, Some(plan)).unwrap();
    (0..repeats)
        .map(|_| {
            // On the same stream: a copy that only the host waits for may land after the launch.
            stream.memcpy_htod(&poison, &mut y).unwrap();
            // SAFETY: the operands have the layer's shape; 16-bit activations have no scales.
            unsafe { layer.launch(stream.cu_stream(), address, problem.m, true) }.unwrap();
            stream.clone_dtoh(&y).unwrap()
        })
        .collect()
}

fn every_instance(device: Arc<Device>) {
    let mut checked = 0;
    for types in all_types() {
        let plans = plans(types);
        // N and K beside the tiles' multiples, where groups allow it; the second has fewer channels than a tile.
        let shapes = match types.weights().group_size() {
            None => [(336, 2064), (48, 1040)],
            Some(g) => [(336, 2048 + g), (48, 1024 + g)],
        };
        for (n, k) in shapes {
            for numbers in [Numbers::Exact, Numbers::Real] {
                let weights = Weights::random(types, n, k, numbers);
                let problem = Problem::new(&weights, 300);
                let bias: Vec<f32> = (0..n).map(|i| i as f32 * 0.37 - 20.0).collect();
                for bias in [None, Some(&bias[..])] {
                    let layer = GemmLayer::new(&device, &weights.packed, bias, types.output()).unwrap();
                    for plan in &plans {
                        for m in [1, 7, 17, 64, 65, 127, 300] {
                            // Real numbers: one number of tokens beside the tiles' multiples, and repeats.
                            let (few, repeats) = match numbers {
                                Numbers::Exact => (bias.is_some(), 2),
                                Numbers::Real => (true, 10),
                            };
                            if m * 8 < plan.config.tokens() || few && m != 65 {
                                continue;
                            }
                            let problem = problem.tokens(0, m);
                            let what = format!("{plan:?}, {m} x {n} x {k}");
                            let results = run(&problem, &device, &layer, *plan, repeats);
                            problem.check(&results[0], bias, &what).unwrap();
                            assert!(results.iter().all(|r| *r == results[0]), "repeats differ: {what}");
                            checked += 1;
                        }
                    }
                }
            }
        }
    }
    println!("{checked} products checked");
}

/// Every plan in one order gives a token the same bits: whatever the tile, the number of tokens and the token's place.
fn batch_invariant_plans(device: Arc<Device>) {
    for types in all_types() {
        let plans = plans(types);
        let weights = Weights::random(types, 336, 2048 + 128, Numbers::Real);
        let problem = Problem::new(&weights, 300);
        let layer = GemmLayer::new(&device, &weights.packed, None, types.output()).unwrap();
        let layer = layer.with_order(SumOrder::Fixed);
        for arch in [Arch::Sm90a, Arch::Sm80] {
            let all = run(&problem, &device, &layer, layer.plan(300, arch), 1).remove(0);
            problem.check(&all, None, "300 tokens").unwrap();
            for (first, m) in
                [(0, 1), (299, 1), (5, 7), (100, 17), (33, 33), (1, 64), (64, 65), (150, 127), (44, 256)]
            {
                let mut invariant = vec![layer.plan(m, arch)];
                if m == 65 {
                    let own = |p: &Plan| arch_of(p) == arch && p.is_batch_invariant();
                    invariant.extend(plans.iter().copied().filter(own));
                }
                for plan in invariant {
                    assert!(plan.is_batch_invariant(), "{plan:?}");
                    let got = run(&problem.tokens(first, m), &device, &layer, plan, 1).remove(0);
                    let same = got == all[first * weights.n..(first + m) * weights.n];
                    assert!(same, "{m} tokens from {first} differ from 300: {plan:?}");
                }
            }
        }
    }
}

/// The architecture whose kernel a plan has.
fn arch_of(plan: &Plan) -> Arch {
    if plan.config.source().name.starts_with("sm90") { Arch::Sm90a } else { Arch::Sm80 }
}

fn chosen_instances_on_larger_shapes(device: Arc<Device>) {
    for types in all_types() {
        for (n, k) in [(1280, 8192), (4096, 1024)] {
            let weights = Weights::random(types, n, k, Numbers::Real);
            let problem = Problem::new(&weights, 520);
            let layer = GemmLayer::new(&device, &weights.packed, None, types.output()).unwrap();
            for m in [1, 16, 33, 100, 257, 520] {
                for arch in [Arch::Sm90a, Arch::Sm80] {
                    let problem = problem.tokens(0, m);
                    let plan = layer.plan(m, arch);
                    let what = format!("{plan:?}, {m} x {n} x {k}");
                    let results = run(&problem, &device, &layer, plan, 10);
                    problem.check(&results[0], None, &what).unwrap();
                    assert!(results.iter().all(|r| *r == results[0]), "repeats differ: {what}");
                }
            }
        }
    }
}
