//! The GPU's matrix products of int8 activations against exact sums on the host, bit for bit: every instance of both
//! kernels, shapes at every edge, the golden vectors, and repeats. Needs a Hopper
//! GPU: the tests are reported as ignored without one.

#[path = "common/compile.rs"]
mod compile;
#[path = "common/products.rs"]
mod products;
#[path = "common/products_int8.rs"]
mod products_int8;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use cudarc::driver::DevicePtr;
use half::f16;
use qqq_cuda::dtype::HALVES;
use qqq_cuda::gemm::{
    CostModel, DeviceWeights, GemmPlans, GemmSpec, GemmTypes, PackedWeights, Planner, WeightKind, trials,
};
use qqq_cuda::quantize::{Operation, Precision, QuantizeKernel, QuantizeOperands};
use qqq_cuda::{Arch, DType, Device};
use qqq_testing::{Suite, golden, tests};

use products::{POISON, Products, device, plans};
use products_int8::{Problem, Weights};

fn main() -> ExitCode {
    Suite::new()
        .with(
            device,
            tests![
                every_instance_gives_exact_sums,
                chosen_instances_on_larger_shapes,
                overlapping_chains_wait_for_what_they_read,
                plans_load_on_any_thread,
                trials_choose_among_the_best_estimates,
                golden_vectors
            ],
        )
        .run()
}

fn every_instance_gives_exact_sums(device: Arc<Device>) {
    let mut checked = 0;
    for kind in WeightKind::ALL {
        for output in HALVES {
            let plans = plans(GemmTypes::new(kind, DType::I8, output).unwrap());
            // N and K beside the tiles' multiples, where groups allow it; the second has fewer channels than a tile.
            let shapes = match kind.group_size() {
                None => [(336, 2064), (48, 1040)],
                Some(g) => [(336, 2048 + g), (48, 1024 + g)],
            };
            for (n, k) in shapes {
                let weights = Weights::random(kind, n, k);
                let problem = Problem::new(&weights, 300);
                let bias: Vec<f32> = (0..n).map(|i| i as f32 * 0.37 - 20.0).collect();
                for bias in [None, Some(&bias[..])] {
                    let on_device = DeviceWeights::new(&device, &weights.packed, bias).unwrap();
                    for plan in &plans {
                        let products = GemmPlans::of_plan(&device, *plan, (n, k), 300).unwrap();
                        let products = Products::new(&device, products);
                        for m in [1, 7, 17, 64, 65, 127, 300] {
                            if m * 8 < plan.instance.tile().tokens || bias.is_some() && m != 65 {
                                continue;
                            }
                            let problem = problem.first(m);
                            let what = format!("{plan:?}, {m} x {n} x {k}");
                            for got in products.run(&on_device, (&problem.x, &problem.scale), m, 2) {
                                problem.check(&got, bias, output, &what).unwrap();
                            }
                            checked += 1;
                        }
                    }
                }
            }
        }
    }
    println!("{checked} products checked, twice each");
}

fn chosen_instances_on_larger_shapes(device: Arc<Device>) {
    let planner = Planner::new(&device).unwrap();
    for kind in [WeightKind::Channel4, WeightKind::GroupInteger4(128), WeightKind::GroupHalf4(64)] {
        for (n, k) in [(1280, 8192), (4096, 1024)] {
            let weights = Weights::random(kind, n, k);
            let on_device = DeviceWeights::new(&device, &weights.packed, None).unwrap();
            let spec = GemmSpec::new(GemmTypes::int8(kind, DType::F16), (n, k));
            let problem = Problem::new(&weights, 4097);
            for (m, arch) in [1, 16, 33, 100, 257, 1000, 4097]
                .into_iter()
                .flat_map(|m| [Arch::Sm90a, Arch::Sm80].map(|arch| (m, arch)))
            {
                let problem = problem.first(m);
                let plan = planner.clone().with_arch(arch).plan(&spec, m);
                let products = GemmPlans::of_plan(&device, plan, (n, k), m).unwrap();
                let products = Products::new(&device, products);
                let results = products.run(&on_device, (&problem.x, &problem.scale), m, 10);
                problem.check(&results[0], None, DType::F16, &format!("{plan:?}, {m} x {n} x {k}")).unwrap();
                assert!(
                    results.iter().all(|r| *r == results[0]),
                    "repeats differ: {plan:?}, {m} x {n} x {k}"
                );
            }
        }
    }
}

/// Products and quantizations in turns, each beginning while the one before ends, as in a model: the bits of those that
/// wait.
fn overlapping_chains_wait_for_what_they_read(device: Arc<Device>) {
    let stream = device.stream();
    let (n, most) = (2064, 300);
    let weights: Vec<_> =
        [WeightKind::Channel4, WeightKind::Channel8].map(|kind| Weights::random(kind, n, n)).into();
    let planner = Planner::new(&device).unwrap();
    let layers: Vec<_> = weights
        .iter()
        .map(|w| {
            let spec = GemmSpec::new(GemmTypes::int8(w.packed.kind, DType::F16), (n, n));
            let plans = GemmPlans::new(&planner, &spec, most).unwrap();
            (DeviceWeights::new(&device, &w.packed, None).unwrap(), Products::new(&device, plans))
        })
        .collect();
    let (operation, input, precision) = (Operation::Plain, DType::F16, Precision::Float32);
    let quantize = QuantizeKernel::new(&device, operation, input, precision, n).unwrap();
    let problem = Problem::new(&weights[0], most);
    for m in [1, 16, most] {
        let chain = |overlap: bool| {
            let first = problem.first(m);
            let q = stream.clone_htod(&first.x).unwrap();
            let scale = stream.clone_htod(&first.scale).unwrap();
            let y = stream.clone_htod(&vec![POISON; m * n]).unwrap();
            let (q, scale) = (q.device_ptr(stream).0, scale.device_ptr(stream).0);
            let address = y.device_ptr(stream).0;
            let operands = QuantizeOperands {
                x: address,
                residual: 0,
                new_residual: 0,
                norm: 0,
                norm_type: DType::F32,
                epsilon: 0.0,
                q,
                scale,
                sum: 0,
                m,
            };
            for (weights, products) in layers.iter().cycle().take(8) {
                products.launch(weights, (q, scale, address), m, overlap);
                // SAFETY: the operands have the layers' shape, and are kept until the copy below has ended.
                unsafe { quantize.launch(stream.cu_stream(), &operands, overlap) }.unwrap();
            }
            stream.clone_dtoh(&y).unwrap()
        };
        let expected = chain(false);
        assert!(
            expected.iter().all(|b| f16::from_bits(*b).is_finite())
                && expected.iter().any(|b| *b & 0x7FFF != 0)
        );
        (0..20).for_each(|_| assert_eq!(chain(true), expected, "{m} tokens"));
    }
}

/// Kernels that one shape has loaded are found by another, on threads that have not used the device before.
fn plans_load_on_any_thread(device: Arc<Device>) {
    let planner = Planner::new(&device).unwrap();
    let types = GemmTypes::int8(WeightKind::Channel4, DType::F16);
    for n in [4096, 8192] {
        std::thread::scope(|s| {
            let plans = s.spawn(|| GemmPlans::new(&planner, &GemmSpec::new(types, (n, 4096)), 300).unwrap());
            assert_eq!(plans.join().unwrap().shape(), (n, 4096));
        });
    }
}

fn golden_vectors(device: Arc<Device>) {
    let planner = Planner::new(&device).unwrap();
    for product in golden::products() {
        let (n, k) = (product.weight.out_features, product.weight.in_features);
        let packed = PackedWeights::new(&product.weight).unwrap();
        let spec = GemmSpec::new(GemmTypes::int8(packed.kind, DType::F16), (n, k));
        let m = product.token_scales.len();
        let products = Products::new(&device, GemmPlans::new(&planner, &spec, m).unwrap());
        let weights = DeviceWeights::new(&device, &packed, None).unwrap();
        assert_eq!(product.x.len(), m * k);
        let got = products.run(&weights, (&product.x, &product.token_scales), m, 1).remove(0);
        assert_eq!(got, product.y_f16, "{}", product.name);
    }
}

/// What trials find is a plan that is tried, and known from then on. Whether it is the fastest is what `qqq bench gemm --each`
/// says.
fn trials_choose_among_the_best_estimates(device: Arc<Device>) {
    let planner = Planner::new(&device).unwrap();
    let model = CostModel::new(device.sms());
    let types = GemmTypes::int8(WeightKind::Channel4, DType::F16);
    // A shape that no other test has, so that nothing was kept of it.
    let spec = GemmSpec::new(types, (1424, 1680));
    assert!(trials::are_tried(&spec));
    planner.try_plans(&spec, 300).unwrap();
    let tried: Vec<_> = trials::tokens().take_while(|m| *m < 300).chain([300]).collect();
    for m in &tried {
        let plans = trials::worth_trying(&model, &spec, planner.arch(), *m);
        assert!(plans.contains(&planner.plan(&spec, *m)), "{m} tokens");
    }
    let begin = Instant::now();
    planner.clone().try_plans(&spec, 300).unwrap();
    println!("{} numbers of tokens; again: {:.1} us", tried.len(), begin.elapsed().as_secs_f64() * 1e6);
    // Small ones are not tried.
    let small = GemmSpec::new(types, (512, 512));
    planner.try_plans(&small, 300).unwrap();
    assert_eq!(planner.tuned(&small, 64), None);
}
