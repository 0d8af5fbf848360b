//! The GPU's matrix products of 16-bit activations against the host's: every instance of both kernels, bit for bit where
//! sums are exact and within what rounding explains where they are not, shapes at every edge, repeats, and independence of
//! the batch. Needs a Hopper GPU; says so and ends well without one.

#[path = "common/compile.rs"]
mod compile;
#[path = "common/products.rs"]
mod products;
#[path = "common/random.rs"]
mod random;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use cudarc::driver::DevicePtr;
use half::{bf16, f16};
use qqq_backend::cuda::gemm::{
    Activation, GemmLayer, GemmTypes, OutputType, PackedWeights, Plan, SumOrder, WeightKind,
};
use qqq_backend::cuda::{Arch, Device};
use qqq_formats::{QuantizedWeight, Scales};

use products::{POISON, device, plans};
use random::Random;

const KINDS: [WeightKind; 4] = [
    WeightKind::Channel4,
    WeightKind::GroupHalf4(32),
    WeightKind::GroupHalf4(64),
    WeightKind::GroupHalf4(128),
];

fn all_types() -> impl Iterator<Item = GemmTypes> {
    let pairs = [(Activation::Float16, OutputType::Float16), (Activation::Bfloat16, OutputType::Bfloat16)];
    pairs.into_iter().flat_map(|(a, o)| KINDS.map(|w| GemmTypes::new(w, a, o).unwrap()))
}

/// The bits of a number in the activations' type.
fn bits(v: f32, types: GemmTypes) -> u16 {
    if types.output() == OutputType::Bfloat16 {
        bf16::from_f32(v).to_bits()
    } else {
        f16::from_f32(v).to_bits()
    }
}

fn value(b: u16, types: GemmTypes) -> f32 {
    if types.output() == OutputType::Bfloat16 {
        bf16::from_bits(b).to_f32()
    } else {
        f16::from_bits(b).to_f32()
    }
}

/// Numbers that a test is made of.
#[derive(Clone, Copy, PartialEq)]
enum Numbers {
    /// Operands are multiples of 1/2, and all sums below 2^22: float32 adds them exactly in any order, and the tensor cores,
    /// whose terms are aligned to the largest, lose nothing either.
    Exact,
    /// What a model may have.
    Real,
}

/// A layer's weights: as the operands that the kernel makes, and packed.
struct Weights {
    types: GemmTypes,
    n: usize,
    k: usize,
    numbers: Numbers,
    operands: Vec<f32>,
    channel: Vec<f32>,
    packed: PackedWeights,
}

impl Weights {
    fn random(types: GemmTypes, n: usize, k: usize, numbers: Numbers) -> Self {
        let mut random = Random(n as u64 * 7 + k as u64);
        let channel: Vec<f32> = (0..n).map(|_| random.int(1, 1000) as f32 / 3e6).collect();
        let codes: Vec<i8> = (0..n * k).map(|_| random.int(-8, 7) as i8).collect();
        let mut scale = || match (numbers, random.int(0, 9)) {
            // Five bits, so that the product with a code has eight.
            (Numbers::Exact, _) => random.int(-31, 31) as f32 / 2.0,
            (Numbers::Real, 0) => 15.875,
            (Numbers::Real, 1) => 0.0,
            (Numbers::Real, 2) => f16::from_bits(random.int(0, 0x3ff) as u16).to_f32(),
            (Numbers::Real, _) => random.int(-15870, 15870) as f32 / 1000.0,
        };
        let scales = match types.weights().group_size() {
            None => Scales::PerChannel(channel.clone()),
            Some(group_size) => Scales::PerGroup {
                group_size,
                channel: channel.clone(),
                group: (0..n * (k / group_size)).map(|_| f16::from_f32(scale())).collect(),
            },
        };
        let rounded = |v: f32| value(bits(v, types), types);
        let operands = match &scales {
            Scales::PerChannel(_) => codes.iter().map(|c| f32::from(*c)).collect(),
            Scales::PerGroup { group_size, group, .. } => {
                let scaled =
                    |i: usize| rounded(f32::from(codes[i]) * rounded(group[i / group_size].to_f32()));
                (0..n * k).map(scaled).collect()
            }
        };
        let weight = QuantizedWeight { out_features: n, in_features: k, codes, scales };
        let packed = PackedWeights::for_activation(&weight, types.activation()).unwrap();
        assert_eq!(packed.kind, types.weights());
        Self { types, n, k, numbers, operands, channel, packed }
    }

    /// Sums of products and of their magnitudes, `m x n`.
    fn sums(&self, x: &[f32]) -> Vec<(f64, f64)> {
        let mut sums = vec![(0.0, 0.0); x.len() / self.k * self.n];
        let next = AtomicUsize::new(0);
        let rows: Vec<_> = sums.chunks_mut(self.n).map(Mutex::new).collect();
        std::thread::scope(|s| {
            for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
                s.spawn(|| {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        let Some(row) = rows.get(i) else { break };
                        let x = &x[i * self.k..][..self.k];
                        for (sum, w) in row.lock().unwrap().iter_mut().zip(self.operands.chunks(self.k)) {
                            *sum = dot(x, w);
                        }
                    }
                });
            }
        });
        drop(rows);
        sums
    }
}

/// The sum of products and that of their magnitudes; lengths are multiples of 16.
fn dot(x: &[f32], w: &[f32]) -> (f64, f64) {
    let (mut sums, mut magnitudes) = ([0.0f64; 8], [0.0f64; 8]);
    for (x, w) in x.chunks_exact(8).zip(w.chunks_exact(8)) {
        for i in 0..8 {
            let product = f64::from(x[i]) * f64::from(w[i]);
            sums[i] += product;
            magnitudes[i] += product.abs();
        }
    }
    (sums.iter().sum(), magnitudes.iter().sum())
}

/// Activations with the sums that they must give.
struct Problem<'a> {
    weights: &'a Weights,
    m: usize,
    x: Vec<u16>,
    sums: Vec<(f64, f64)>,
}

impl<'a> Problem<'a> {
    fn new(weights: &'a Weights, m: usize) -> Self {
        let mut random = Random(m as u64);
        let mut number = || match weights.numbers {
            Numbers::Exact => random.int(-8, 8) as f32,
            // Nearly normal.
            Numbers::Real => (0..4).map(|_| random.int(-1000, 1000)).sum::<i32>() as f32 / 1150.0,
        };
        let x: Vec<u16> = (0..m * weights.k).map(|_| bits(number(), weights.types)).collect();
        let values: Vec<f32> = x.iter().map(|b| value(*b, weights.types)).collect();
        Self { weights, m, x, sums: weights.sums(&values) }
    }

    /// The same for `m` tokens from `first`.
    fn tokens(&self, first: usize, m: usize) -> Self {
        let (n, k) = (self.weights.n, self.weights.k);
        Self {
            weights: self.weights,
            m,
            x: self.x[first * k..(first + m) * k].to_vec(),
            sums: self.sums[first * n..(first + m) * n].to_vec(),
        }
    }

    /// What the GPU gives, `repeats` times.
    fn run(&self, device: &Device, layer: &GemmLayer, plan: Plan, repeats: usize) -> Vec<Vec<u16>> {
        let stream = device.stream();
        let x = stream.clone_htod(&self.x).unwrap();
        let poison = vec![POISON; self.m * self.weights.n];
        let mut y = stream.clone_htod(&poison).unwrap();
        let address = (x.device_ptr(stream).0, 0, y.device_ptr(stream).0);
        layer.prepare(self.m, Some(plan)).unwrap();
        (0..repeats)
            .map(|_| {
                // On the same stream: a copy that only the host waits for may land after the launch.
                stream.memcpy_htod(&poison, &mut y).unwrap();
                // SAFETY: the operands have the layer's shape; 16-bit activations have no scales.
                unsafe { layer.launch(stream.cu_stream(), address, self.m, true) }.unwrap();
                stream.clone_dtoh(&y).unwrap()
            })
            .collect()
    }

    /// Exact sums are scaled, biased and rounded as the kernel does it, and must agree in every bit. Other outputs have a
    /// bound. Products of 16-bit numbers are exact in float32; the tensor cores add K of them in some order and may truncate
    /// each time, an error of at most 2^-23 of the sum of magnitudes; partial sums of blocks, the scale and the bias are
    /// roundings of 2^-24 (at most eight). The output is rounded to 2^-11 (float16, or 2^-25 where subnormal) or 2^-8
    /// (bfloat16) of itself.
    fn check(&self, got: &[u16], bias: Option<&[f32]>, what: &str) {
        let Weights { types, n, k, numbers, channel, .. } = self.weights;
        let half_step = if types.output() == OutputType::Bfloat16 { 0.5f64.powi(8) } else { 0.5f64.powi(11) };
        let wrong = |i: usize| {
            let (sum, magnitude) = self.sums[i];
            let (scale, bias) = (channel[i % n], bias.map(|b| b[i % n]));
            if *numbers == Numbers::Exact {
                let y = sum as f32 * scale;
                let expected = bits(bias.map_or(y, |b| y + b), *types);
                return (got[i] != expected).then(|| format!("{:#06x} for {expected:#06x}", got[i]));
            }
            let bias = f64::from(bias.unwrap_or(0.0));
            let expected = sum * f64::from(scale) + bias;
            let sums = (k + 8) as f64 * 0.5f64.powi(23) * (magnitude * f64::from(scale) + bias.abs());
            let bound = sums + half_step * (expected.abs() + sums) + 0.5f64.powi(25);
            let y = f64::from(value(got[i], *types));
            let error = (y - expected).abs();
            (error.is_nan() || error > bound).then(|| format!("{y} for {expected}, bound {bound}"))
        };
        if let Some((i, how)) = (0..got.len()).find_map(|i| wrong(i).map(|how| (i, how))) {
            let bad = (0..got.len()).filter(|&i| wrong(i).is_some()).count();
            panic!(
                "{what}: {bad} of {} outputs are wrong, first token {}, channel {}: {how}",
                got.len(),
                i / n,
                i % n
            );
        }
    }
}

#[test]
fn every_instance() {
    let Some(device) = device() else { return };
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
                            let results = problem.run(&device, &layer, *plan, repeats);
                            problem.check(&results[0], bias, &what);
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
#[test]
fn batch_invariant_plans() {
    let Some(device) = device() else { return };
    for types in all_types() {
        let plans = plans(types);
        let weights = Weights::random(types, 336, 2048 + 128, Numbers::Real);
        let problem = Problem::new(&weights, 300);
        let layer = GemmLayer::new(&device, &weights.packed, None, types.output()).unwrap();
        let layer = layer.with_order(SumOrder::Fixed);
        for arch in [Arch::Sm90a, Arch::Sm80] {
            let all = problem.run(&device, &layer, layer.plan(300, arch), 1).remove(0);
            problem.check(&all, None, "300 tokens");
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
                    let got = problem.tokens(first, m).run(&device, &layer, plan, 1).remove(0);
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

#[test]
fn chosen_instances_on_larger_shapes() {
    let Some(device) = device() else { return };
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
                    let results = problem.run(&device, &layer, plan, 10);
                    problem.check(&results[0], None, &what);
                    assert!(results.iter().all(|r| *r == results[0]), "repeats differ: {what}");
                }
            }
        }
    }
}
