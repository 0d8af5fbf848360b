//! The GPU's matrix products of int8 activations against exact sums on the host, bit for bit: every instance of both
//! kernels, shapes at every edge, the golden vectors, and repeats. Needs a Hopper GPU; says so and ends well without one.

#[path = "common/compile.rs"]
mod compile;
#[path = "common/products.rs"]
mod products;
#[path = "common/random.rs"]
mod random;

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use cudarc::driver::DevicePtr;
use half::{bf16, f16};
use qqq_backend::cuda::gemm::{
    Activation, GemmLayer, GemmTypes, OutputType, PackedWeights, Plan, WeightKind,
};
use qqq_backend::cuda::{Arch, Device};
use qqq_formats::{QuantizedWeight, Scales};
use safetensors::SafeTensors;

use products::{POISON, device, plans};
use random::Random;

/// A layer's weights, as int8 and packed.
struct Weights {
    n: usize,
    k: usize,
    int8: Vec<i8>,
    channel: Vec<f32>,
    packed: PackedWeights,
}

impl Weights {
    fn random(kind: WeightKind, n: usize, k: usize) -> Self {
        let mut random = Random(n as u64 * 7 + k as u64);
        let channel: Vec<f32> = (0..n).map(|_| random.int(1, 1000) as f32 / 3e6).collect();
        if kind == WeightKind::Channel8 {
            let int8: Vec<i8> = (0..n * k).map(|_| random.int(-128, 127) as i8).collect();
            let packed = PackedWeights::from_int8(&int8, &channel, k).unwrap();
            return Self { n, k, int8, channel, packed };
        }
        // A scale of 16 leaves no room for code -8.
        let lowest = if matches!(kind, WeightKind::GroupInteger4(_)) { -7 } else { -8 };
        let codes = (0..n * k).map(|_| random.int(lowest, 7) as i8).collect();
        let mut group = |f: &mut dyn FnMut(&mut Random) -> f32, size: usize| Scales::PerGroup {
            group_size: size,
            channel: channel.clone(),
            group: (0..n * (k / size)).map(|_| f16::from_f32(f(&mut random))).collect(),
        };
        let scales = match kind {
            WeightKind::GroupInteger4(size) => group(&mut |r| r.int(0, 16) as f32, size),
            // Ties, zeros, negative and subnormal scales, and the largest.
            WeightKind::GroupHalf4(size) => group(
                &mut |r| match r.int(0, 9) {
                    0 => 15.875,
                    1 => r.int(-31, 31) as f32 / 2.0,
                    2 => 0.0,
                    3 => f16::from_bits(r.int(0, 0x3ff) as u16).to_f32(),
                    _ => r.int(0, 15870) as f32 / 1000.0,
                },
                size,
            ),
            _ => Scales::PerChannel(channel.clone()),
        };
        let weight = QuantizedWeight { out_features: n, in_features: k, codes, scales };
        let packed = PackedWeights::new(&weight).unwrap();
        assert_eq!(packed.kind, kind);
        Self { n, k, int8: weight.int8_weights(), channel, packed }
    }

    /// Exact sums, `m x n`.
    fn sums(&self, x: &[i8]) -> Vec<i32> {
        let mut sums = vec![0; x.len() / self.k * self.n];
        let next = AtomicUsize::new(0);
        let rows: Vec<_> = sums.chunks_mut(self.n).map(Mutex::new).collect();
        std::thread::scope(|s| {
            for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
                s.spawn(|| {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        let Some(row) = rows.get(i) else { break };
                        let x = &x[i * self.k..][..self.k];
                        for (sum, w) in row.lock().unwrap().iter_mut().zip(self.int8.chunks(self.k)) {
                            *sum = x.iter().zip(w).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum();
                        }
                    }
                });
            }
        });
        drop(rows);
        sums
    }
}

/// Activations with the outputs that they must give.
struct Problem {
    m: usize,
    n: usize,
    x: Vec<i8>,
    scale: Vec<f32>,
    sums: Vec<i32>,
    channel: Vec<f32>,
}

impl Problem {
    fn new(weights: &Weights, m: usize) -> Self {
        let mut random = Random(m as u64);
        let x: Vec<i8> = (0..m * weights.k).map(|_| random.int(-128, 127) as i8).collect();
        let scale = (0..m).map(|_| random.int(1, 1000) as f32 / 1e4).collect();
        let sums = weights.sums(&x);
        Self { m, n: weights.n, x, scale, sums, channel: weights.channel.clone() }
    }

    /// The first tokens alone.
    fn first(&self, m: usize) -> Self {
        Self {
            m,
            n: self.n,
            x: self.x[..self.x.len() / self.m * m].to_vec(),
            scale: self.scale[..m].to_vec(),
            sums: self.sums[..m * self.n].to_vec(),
            channel: self.channel.clone(),
        }
    }

    fn expected(&self, bias: Option<&[f32]>, output: OutputType) -> Vec<u16> {
        let value = |i: usize| {
            let y = self.sums[i] as f32 * self.channel[i % self.n] * self.scale[i / self.n];
            bias.map_or(y, |b| y + b[i % self.n])
        };
        let bits = |y: f32| match output {
            OutputType::Float16 => f16::from_f32(y).to_bits(),
            OutputType::Bfloat16 => bf16::from_f32(y).to_bits(),
        };
        (0..self.sums.len()).map(|i| bits(value(i))).collect()
    }

    /// What the GPU gives, `repeats` times.
    fn run(&self, device: &Device, layer: &GemmLayer, plan: Option<Plan>, repeats: usize) -> Vec<Vec<u16>> {
        let stream = device.stream();
        let x = stream.clone_htod(&self.x).unwrap();
        let scale = stream.clone_htod(&self.scale).unwrap();
        let poison = vec![POISON; self.m * self.n];
        let mut y = stream.clone_htod(&poison).unwrap();
        let address = (x.device_ptr(stream).0, scale.device_ptr(stream).0, y.device_ptr(stream).0);
        layer.prepare(self.m, plan).unwrap();
        (0..repeats)
            .map(|_| {
                // On the same stream: a copy that only the host waits for may land after the launch.
                stream.memcpy_htod(&poison, &mut y).unwrap();
                // SAFETY: the operands have the layer's shape.
                unsafe { layer.launch(stream.cu_stream(), address, self.m, true) }.unwrap();
                stream.clone_dtoh(&y).unwrap()
            })
            .collect()
    }

    fn check(&self, got: &[u16], bias: Option<&[f32]>, output: OutputType, what: &str) {
        let expected = self.expected(bias, output);
        if let Some(i) = (0..got.len()).find(|&i| got[i] != expected[i]) {
            let bad = (0..got.len()).filter(|&i| got[i] != expected[i]).count();
            panic!(
                "{what}: {bad} of {} outputs differ, first token {}, channel {}: {:#06x} for {:#06x}",
                got.len(),
                i / self.n,
                i % self.n,
                got[i],
                expected[i]
            );
        }
    }
}

#[test]
fn every_instance_gives_exact_sums() {
    let Some(device) = device() else { return };
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
                            for got in problem.run(&device, &layer, Some(*plan), 2) {
                                problem.check(&got, bias, output, &what);
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

#[test]
fn chosen_instances_on_larger_shapes() {
    let Some(device) = device() else { return };
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
                let results = problem.run(&device, &layer, Some(plan), 10);
                problem.check(&results[0], None, OutputType::Float16, &format!("{plan:?}, {m} x {n} x {k}"));
                assert!(
                    results.iter().all(|r| *r == results[0]),
                    "repeats differ: {plan:?}, {m} x {n} x {k}"
                );
            }
        }
    }
}

#[test]
fn golden_vectors() {
    let Some(device) = device() else { return };
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/golden");
    let folder = std::env::var_os("QQQ_GOLDEN").map_or_else(|| PathBuf::from(beside), PathBuf::from);
    if !folder.is_dir() {
        println!("skipped: no golden vectors beside this checkout");
        return;
    }
    for (name, n, k, group) in
        [("gemm_channel_m5_k128_n128", 128, 128, None), ("gemm_group128_m5_k256_n128", 128, 256, Some(128))]
    {
        let data = std::fs::read(folder.join(name).with_extension("safetensors")).expect(name);
        let file = SafeTensors::deserialize(&data).expect(name);
        let bytes = |tensor: &str| file.tensor(tensor).expect(tensor).data().to_vec();
        let floats = |tensor: &str| -> Vec<f32> {
            bytes(tensor).chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        };
        let halves = |tensor: &str| -> Vec<u16> {
            bytes(tensor).chunks(2).map(|b| u16::from_le_bytes(b.try_into().unwrap())).collect()
        };
        // `codes` is K x N.
        let codes = bytes("codes");
        let codes = (0..n * k).map(|i| codes[i % k * n + i / k] as i8).collect();
        // The scales' order in the file: golden vectors' description.
        let s_channel = floats("s_channel");
        let mut channel = vec![0.0; n];
        for (i, s) in s_channel.iter().enumerate() {
            channel[i / 32 * 32 + 2 * (i % 32 / 8) + [0, 1, 8, 9, 16, 17, 24, 25][i % 8]] = *s;
        }
        let scales = match group {
            None => Scales::PerChannel(channel.iter().map(|s| s * 16.0).collect()),
            Some(group_size) => {
                let packed = halves("s_group");
                let groups = k / group_size;
                let mut group = vec![f16::ZERO; n * groups];
                for (i, s) in packed.iter().enumerate() {
                    let (g, j) = (i / n, i % n);
                    group[(j / 64 * 64 + j % 64 / 8 + 8 * (j % 8)) * groups + g] = f16::from_bits(*s);
                }
                Scales::PerGroup { group_size, channel, group }
            }
        };
        let weight = QuantizedWeight { out_features: n, in_features: k, codes, scales };
        let x: Vec<i8> = bytes("a").iter().map(|b| *b as i8).collect();
        let m = x.len() / k;
        let expected = halves("out");
        let layer = GemmLayer::new(&device, &PackedWeights::new(&weight).unwrap(), None, OutputType::Float16)
            .unwrap();
        let problem = Problem { m, n, x, scale: floats("s1"), sums: vec![0; m * n], channel: vec![0.0; n] };
        assert_eq!(problem.run(&device, &layer, None, 1)[0], expected, "{name}");
        println!("{name}: {} outputs equal", expected.len());
    }
}
