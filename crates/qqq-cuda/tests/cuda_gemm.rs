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

use cudarc::driver::DevicePtr;
use half::f16;
use qqq_cuda::gemm::{
    Activation, GemmLayer, GemmPlans, GemmTypes, OutputType, PackedWeights, Plan, WeightKind,
};
use qqq_cuda::quantize::{NormType, Operation, Precision, QuantizeKernel, QuantizeOperands};
use qqq_cuda::{Arch, Device};
use qqq_testing::{Suite, golden, tests};

use products::{POISON, device, plans};
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
                golden_vectors
            ],
        )
        .run()
}

/// What the GPU gives, `repeats` times.
fn run(
    problem: &Problem,
    device: &Device,
    layer: &GemmLayer,
    plan: Option<Plan>,
    repeats: usize,
) -> Vec<Vec<u16>> {
    let stream = device.stream();
    let x = stream.clone_htod(&problem.x).unwrap();
    let scale = stream.clone_htod(&problem.scale).unwrap();
    let poison = vec![POISON; problem.m * problem.n];
    let mut y = stream.clone_htod(&poison).unwrap();
    let address = (x.device_ptr(stream).0, scale.device_ptr(stream).0, y.device_ptr(stream).0);
    layer.prepare(problem.m, plan).unwrap();
    (0..repeats)
        .map(|_| {
            // On the same stream: a copy that only the host waits for may land after the launch.
            stream.memcpy_htod(&poison, &mut y).unwrap();
            // SAFETY: the operands have the layer's shape.
            unsafe { layer.launch(stream.cu_stream(), address, problem.m, true) }.unwrap();
            stream.clone_dtoh(&y).unwrap()
        })
        .collect()
}

fn every_instance_gives_exact_sums(device: Arc<Device>) {
    let mut checked = 0;
    for kind in WeightKind::ALL {
        for output in OutputType::ALL {
            let plans = plans(GemmTypes::new(kind, Activation::Int8, output).unwrap());
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
                    let layer = GemmLayer::new(&device, &weights.packed, bias, output).unwrap();
                    for plan in &plans {
                        for m in [1, 7, 17, 64, 65, 127, 300] {
                            if m * 8 < plan.config.tokens() || bias.is_some() && m != 65 {
                                continue;
                            }
                            let problem = problem.first(m);
                            let what = format!("{plan:?}, {m} x {n} x {k}");
                            for got in run(&problem, &device, &layer, Some(*plan), 2) {
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
    for kind in [WeightKind::Channel4, WeightKind::GroupInteger4(128), WeightKind::GroupHalf4(64)] {
        for (n, k) in [(1280, 8192), (4096, 1024)] {
            let weights = Weights::random(kind, n, k);
            let layer = GemmLayer::new(&device, &weights.packed, None, OutputType::Float16).unwrap();
            let problem = Problem::new(&weights, 4097);
            for (m, arch) in [1, 16, 33, 100, 257, 1000, 4097]
                .into_iter()
                .flat_map(|m| [Arch::Sm90a, Arch::Sm80].map(|arch| (m, arch)))
            {
                let problem = problem.first(m);
                let plan = layer.plan(m, arch);
                let results = run(&problem, &device, &layer, Some(plan), 10);
                problem
                    .check(&results[0], None, OutputType::Float16, &format!("{plan:?}, {m} x {n} x {k}"))
                    .unwrap();
                assert!(
                    results.iter().all(|r| *r == results[0]),
                    "repeats differ: {plan:?}, {m} x {n} x {k}"
                );
            }
        }
    }
}

/// Products and quantizations in turns, each beginning while the one before ends, as in a model: the bits of those that wait.
fn overlapping_chains_wait_for_what_they_read(device: Arc<Device>) {
    let stream = device.stream();
    let (n, most) = (2064, 300);
    let weights: Vec<_> =
        [WeightKind::Channel4, WeightKind::Channel8].map(|kind| Weights::random(kind, n, n)).into();
    let layers: Vec<_> = weights
        .iter()
        .map(|w| GemmLayer::new(&device, &w.packed, None, OutputType::Float16).unwrap())
        .collect();
    let (operation, input, precision) = (Operation::Plain, OutputType::Float16, Precision::Float32);
    let quantize = QuantizeKernel::new(&device, operation, input, precision, n).unwrap();
    let problem = Problem::new(&weights[0], most);
    for m in [1, 16, most] {
        for layer in &layers {
            layer.prepare(m, None).unwrap();
        }
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
                norm_type: NormType::Float32,
                epsilon: 0.0,
                q,
                scale,
                sum: 0,
                m,
            };
            for layer in layers.iter().cycle().take(8) {
                // SAFETY: the operands have the layers' shape, and are kept until the copy below has ended.
                unsafe {
                    layer.launch(stream.cu_stream(), (q, scale, address), m, overlap).unwrap();
                    quantize.launch(stream.cu_stream(), &operands, overlap).unwrap();
                }
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
    let arch = device.arch().unwrap();
    let types = GemmTypes::int8(WeightKind::Channel4, OutputType::Float16);
    for n in [4096, 8192] {
        std::thread::scope(|s| {
            let plans = s.spawn(|| GemmPlans::new(&device, (types, arch), (n, 4096), 300).unwrap());
            assert_eq!(plans.join().unwrap().shape(), (n, 4096));
        });
    }
}

fn golden_vectors(device: Arc<Device>) {
    for product in golden::products() {
        let (n, k) = (product.weight.out_features, product.weight.in_features);
        let packed = PackedWeights::new(&product.weight).unwrap();
        let layer = GemmLayer::new(&device, &packed, None, OutputType::Float16).unwrap();
        let m = product.token_scales.len();
        let (x, scale) = (product.x, product.token_scales);
        let problem = Problem { m, n, x, scale, sums: vec![0; m * n], channel: vec![0.0; n] };
        assert_eq!(problem.x.len(), m * k);
        assert_eq!(run(&problem, &device, &layer, None, 1)[0], product.y_f16, "{}", product.name);
    }
}
