//! Products of 16-bit activations with their results. Needs the module `random` beside it.

use half::f16;
use qqq_backend::pool::parallel_chunks_mut;
use qqq_cuda::gemm::{GemmTypes, PackedWeights, WeightKind};
use qqq_cuda::{DType, KernelType};
use qqq_formats::{CodeBits, QuantizedWeight, Scales};

use qqq_testing::Random;

const KINDS: [WeightKind; 4] = [
    WeightKind::Channel4,
    WeightKind::GroupHalf4(32),
    WeightKind::GroupHalf4(64),
    WeightKind::GroupHalf4(128),
];

/// What there are kernels for.
pub fn all_types() -> impl Iterator<Item = GemmTypes> {
    let pairs = [(DType::F16, DType::F16), (DType::BF16, DType::BF16)];
    pairs.into_iter().flat_map(|(a, o)| KINDS.map(|w| GemmTypes::new(w, a, o).unwrap()))
}

/// Numbers that a test is made of.
#[derive(Clone, Copy, PartialEq)]
pub enum Numbers {
    /// Operands are multiples of 1/2, and all sums below 2^22: float32 adds them exactly in any order, and the tensor
    /// cores, whose terms are aligned to the largest, lose nothing either.
    Exact,
    /// What a model may have.
    Real,
}

/// A layer's weights: as the operands that the kernel makes, and packed.
pub struct Weights {
    types: GemmTypes,
    pub n: usize,
    pub k: usize,
    numbers: Numbers,
    operands: Vec<f32>,
    channel: Vec<f32>,
    pub packed: PackedWeights,
}

impl Weights {
    pub fn random(types: GemmTypes, n: usize, k: usize, numbers: Numbers) -> Self {
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
        let rounded = |v: f32| types.output().decode(types.output().encode(v));
        let operands = match &scales {
            Scales::PerChannel(_) => codes.iter().map(|c| f32::from(*c)).collect(),
            Scales::PerGroup { group_size, group, .. } => {
                let scaled =
                    |i: usize| rounded(f32::from(codes[i]) * rounded(group[i / group_size].to_f32()));
                (0..n * k).map(scaled).collect()
            }
        };
        let weight = QuantizedWeight { bits: CodeBits::Four, out_features: n, in_features: k, codes, scales };
        let packed = PackedWeights::for_activation(&weight, types.activation()).unwrap();
        assert_eq!(packed.kind, types.weights());
        Self { types, n, k, numbers, operands, channel, packed }
    }

    /// Sums of products and of their magnitudes, `m x n`.
    fn sums(&self, x: &[f32]) -> Vec<(f64, f64)> {
        let mut sums = vec![(0.0, 0.0); x.len() / self.k * self.n];
        parallel_chunks_mut(&mut sums, self.n, |i, row| {
            let x = &x[i * self.k..][..self.k];
            for (sum, w) in row.iter_mut().zip(self.operands.chunks(self.k)) {
                *sum = dot(x, w);
            }
        });
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
pub struct Problem<'a> {
    pub weights: &'a Weights,
    pub m: usize,
    pub x: Vec<u16>,
    sums: Vec<(f64, f64)>,
}

impl<'a> Problem<'a> {
    pub fn new(weights: &'a Weights, m: usize) -> Self {
        let mut random = Random(m as u64);
        let mut number = || match weights.numbers {
            Numbers::Exact => random.int(-8, 8) as f32,
            // Nearly normal.
            Numbers::Real => (0..4).map(|_| random.int(-1000, 1000)).sum::<i32>() as f32 / 1150.0,
        };
        let x: Vec<u16> = (0..m * weights.k).map(|_| weights.types.output().encode(number())).collect();
        let values: Vec<f32> = x.iter().map(|b| weights.types.output().decode(*b)).collect();
        Self { weights, m, x, sums: weights.sums(&values) }
    }

    /// The same for `m` tokens from `first`.
    pub fn tokens(&self, first: usize, m: usize) -> Self {
        let (n, k) = (self.weights.n, self.weights.k);
        Self {
            weights: self.weights,
            m,
            x: self.x[first * k..(first + m) * k].to_vec(),
            sums: self.sums[first * n..(first + m) * n].to_vec(),
        }
    }

    /// Exact sums are scaled, biased and rounded as the kernel does it, and must agree in every bit. Other outputs have
    /// a bound. Products of 16-bit numbers are exact in float32; the tensor cores add K of them in some order and may
    /// truncate each time, an error of at most 2^-23 of the sum of magnitudes; partial sums of blocks, the scale and
    /// the bias are roundings of 2^-24 (at most eight). The output is rounded to 2^-11 (float16, or 2^-25 where
    /// subnormal) or 2^-8 (bfloat16) of itself.
    pub fn check(&self, got: &[u16], bias: Option<&[f32]>, what: &str) -> Result<(), String> {
        let Weights { types, n, k, numbers, channel, .. } = self.weights;
        let half_step = if types.output() == DType::BF16 { 0.5f64.powi(8) } else { 0.5f64.powi(11) };
        let wrong = |i: usize| {
            let (sum, magnitude) = self.sums[i];
            let (scale, bias) = (channel[i % n], bias.map(|b| b[i % n]));
            if *numbers == Numbers::Exact {
                let y = sum as f32 * scale;
                let expected = types.output().encode(bias.map_or(y, |b| y + b));
                return (got[i] != expected).then(|| format!("{:#06x} for {expected:#06x}", got[i]));
            }
            let bias = f64::from(bias.unwrap_or(0.0));
            let expected = sum * f64::from(scale) + bias;
            let sums = (k + 8) as f64 * 0.5f64.powi(23) * (magnitude * f64::from(scale) + bias.abs());
            let bound = sums + half_step * (expected.abs() + sums) + 0.5f64.powi(25);
            let y = f64::from(types.output().decode(got[i]));
            let error = (y - expected).abs();
            (error.is_nan() || error > bound).then(|| format!("{y} for {expected}, bound {bound}"))
        };
        if let Some((i, how)) = (0..got.len()).find_map(|i| wrong(i).map(|how| (i, how))) {
            let bad = (0..got.len()).filter(|&i| wrong(i).is_some()).count();
            return Err(format!(
                "{what}: {bad} of {} outputs are wrong, first token {}, channel {}: {how}",
                got.len(),
                i / n,
                i % n
            ));
        }
        Ok(())
    }
}
