//! Products of int8 activations with their exact results. Needs the module `random` beside it.

use half::f16;
use qqq_backend::pool::parallel_chunks_mut;
use qqq_cuda::gemm::{PackedWeights, WeightKind};
use qqq_cuda::{DType, KernelType};
use qqq_formats::{CodeBits, QuantizedWeight, Scales};

use qqq_testing::Random;

/// A layer's weights, as int8 and packed.
pub struct Weights {
    pub n: usize,
    pub k: usize,
    int8: Vec<i8>,
    channel: Vec<f32>,
    pub packed: PackedWeights,
}

impl Weights {
    pub fn random(kind: WeightKind, n: usize, k: usize) -> Self {
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
        let weight = QuantizedWeight { bits: CodeBits::Four, out_features: n, in_features: k, codes, scales };
        let packed = PackedWeights::new(&weight).unwrap();
        assert_eq!(packed.kind, kind);
        Self { n, k, int8: weight.int8_weights(), channel, packed }
    }

    /// Exact sums, `m x n`.
    fn sums(&self, x: &[i8]) -> Vec<i32> {
        let mut sums = vec![0; x.len() / self.k * self.n];
        parallel_chunks_mut(&mut sums, self.n, |i, row| {
            let x = &x[i * self.k..][..self.k];
            for (sum, w) in row.iter_mut().zip(self.int8.chunks(self.k)) {
                *sum = x.iter().zip(w).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum();
            }
        });
        sums
    }
}

/// Activations with the outputs that they must give.
pub struct Problem {
    pub m: usize,
    pub n: usize,
    pub x: Vec<i8>,
    pub scale: Vec<f32>,
    pub sums: Vec<i32>,
    pub channel: Vec<f32>,
}

impl Problem {
    pub fn new(weights: &Weights, m: usize) -> Self {
        let mut random = Random(m as u64);
        let x: Vec<i8> = (0..m * weights.k).map(|_| random.int(-128, 127) as i8).collect();
        let scale = (0..m).map(|_| random.int(1, 1000) as f32 / 1e4).collect();
        let sums = weights.sums(&x);
        Self { m, n: weights.n, x, scale, sums, channel: weights.channel.clone() }
    }

    /// The first tokens alone.
    pub fn first(&self, m: usize) -> Self {
        Self {
            m,
            n: self.n,
            x: self.x[..self.x.len() / self.m * m].to_vec(),
            scale: self.scale[..m].to_vec(),
            sums: self.sums[..m * self.n].to_vec(),
            channel: self.channel.clone(),
        }
    }

    pub fn expected(&self, bias: Option<&[f32]>, output: DType) -> Vec<u16> {
        let value = |i: usize| {
            let y = self.sums[i] as f32 * self.channel[i % self.n] * self.scale[i / self.n];
            bias.map_or(y, |b| y + b[i % self.n])
        };
        (0..self.sums.len()).map(|i| output.encode(value(i))).collect()
    }

    pub fn check(&self, got: &[u16], bias: Option<&[f32]>, output: DType, what: &str) -> Result<(), String> {
        let expected = self.expected(bias, output);
        if let Some(i) = (0..got.len()).find(|&i| got[i] != expected[i]) {
            let bad = (0..got.len()).filter(|&i| got[i] != expected[i]).count();
            return Err(format!(
                "{what}: {bad} of {} outputs differ, first token {}, channel {}: {:#06x} for {:#06x}",
                got.len(),
                i / self.n,
                i % self.n,
                got[i],
                expected[i]
            ));
        }
        Ok(())
    }
}
