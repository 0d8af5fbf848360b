//! The GPU's matrix products of 16-bit activations against the host's: every instance of both kernels, bit for bit
//! where sums are exact and within what rounding explains where they are not, shapes at every edge, repeats, and
//! independence of the batch. Needs a Hopper GPU: the tests are reported as ignored without one.

#[path = "common/compile.rs"]
mod compile;
#[path = "common/products.rs"]
mod products;
#[path = "common/products_half.rs"]
mod products_half;

use std::process::ExitCode;
use std::sync::Arc;

use qqq_cuda::gemm::{DeviceWeights, GemmPlans, GemmSpec, Instance, Plan, Planner, SumOrder};
use qqq_cuda::{Arch, Device};
use qqq_testing::{Suite, tests};

use products::{Products, device, plans};
use products_half::{Numbers, Problem, Weights, all_types};

fn main() -> ExitCode {
    Suite::new()
        .with(device, tests![every_instance, batch_invariant_plans, chosen_instances_on_larger_shapes])
        .run()
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
                    let on_device = DeviceWeights::new(&device, &weights.packed, bias).unwrap();
                    for plan in &plans {
                        let products = GemmPlans::of_plan(&device, *plan, (n, k), 300).unwrap();
                        let products = Products::new(&device, products);
                        for m in [1, 7, 17, 64, 65, 127, 300] {
                            // Real numbers: one number of tokens beside the tiles' multiples, and repeats.
                            let (few, repeats) = match numbers {
                                Numbers::Exact => (bias.is_some(), 2),
                                Numbers::Real => (true, 10),
                            };
                            if m * 8 < plan.instance.tile().tokens || few && m != 65 {
                                continue;
                            }
                            let problem = problem.tokens(0, m);
                            let what = format!("{plan:?}, {m} x {n} x {k}");
                            let results = products.run(&on_device, (&problem.x, &[]), problem.m, repeats);
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
    let planner = Planner::new(&device).unwrap();
    for types in all_types() {
        let plans = plans(types);
        let weights = Weights::random(types, 336, 2048 + 128, Numbers::Real);
        let problem = Problem::new(&weights, 300);
        let (n, k) = (weights.n, weights.packed.in_features);
        let spec = GemmSpec::new(types, (n, k)).with_order(SumOrder::Fixed);
        let on_device = DeviceWeights::new(&device, &weights.packed, None).unwrap();
        for arch in [Arch::Sm90a, Arch::Sm80] {
            let planner = planner.clone().with_arch(arch);
            let chosen = Products::new(&device, GemmPlans::new(&planner, &spec, 300).unwrap());
            let all = chosen.run(&on_device, (&problem.x, &[]), 300, 1).remove(0);
            problem.check(&all, None, "300 tokens").unwrap();
            for (first, m) in
                [(0, 1), (299, 1), (5, 7), (100, 17), (33, 33), (1, 64), (64, 65), (150, 127), (44, 256)]
            {
                let tokens = problem.tokens(first, m);
                let check = |products: &Products, what: &str| {
                    let got = products.run(&on_device, (&tokens.x, &[]), m, 1).remove(0);
                    let same = got == all[first * n..(first + m) * n];
                    assert!(same, "{m} tokens from {first} differ from 300: {what}");
                };
                assert!(chosen.plan(m).is_batch_invariant());
                check(&chosen, "chosen");
                if m == 65 {
                    let own = |p: &&Plan| arch_of(p) == arch && p.is_batch_invariant();
                    for plan in plans.iter().filter(own) {
                        let products = GemmPlans::of_plan(&device, *plan, (n, k), m).unwrap();
                        check(&Products::new(&device, products), &format!("{plan:?}"));
                    }
                }
            }
        }
    }
}

/// The architecture whose kernel a plan has.
fn arch_of(plan: &Plan) -> Arch {
    if matches!(plan.instance, Instance::Sm90(_)) { Arch::Sm90a } else { Arch::Sm80 }
}

fn chosen_instances_on_larger_shapes(device: Arc<Device>) {
    let planner = Planner::new(&device).unwrap();
    for types in all_types() {
        for (n, k) in [(1280, 8192), (4096, 1024)] {
            let weights = Weights::random(types, n, k, Numbers::Real);
            let problem = Problem::new(&weights, 520);
            let spec = GemmSpec::new(types, (n, k));
            let on_device = DeviceWeights::new(&device, &weights.packed, None).unwrap();
            for m in [1, 16, 33, 100, 257, 520] {
                for arch in [Arch::Sm90a, Arch::Sm80] {
                    let problem = problem.tokens(0, m);
                    let plan = planner.clone().with_arch(arch).plan(&spec, m);
                    let what = format!("{plan:?}, {m} x {n} x {k}");
                    let products = GemmPlans::of_plan(&device, plan, (n, k), m).unwrap();
                    let products = Products::new(&device, products);
                    let results = products.run(&on_device, (&problem.x, &[]), m, 10);
                    problem.check(&results[0], None, &what).unwrap();
                    assert!(results.iter().all(|r| *r == results[0]), "repeats differ: {what}");
                }
            }
        }
    }
}
