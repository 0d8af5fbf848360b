//! Weights to be packed, and their weight_tiles as the host packs them. Needs the module `uniform` beside it.

use half::f16;
use qqq_cuda::gemm::{PackedWeights, PrepackKernel, WeightKind};
use qqq_formats::{CodeBits, QuantizedWeight, Scales};

use crate::uniform::uniform;

/// What there is where nothing was written.
const POISON: u8 = 0xA5;

/// Weights in the neutral form as the kernels take them, in bytes, and packed.
pub struct Packing {
    what: String,
    pub kind: WeightKind,
    pub n: usize,
    pub k: usize,
    pub codes: Vec<u8>,
    /// Group scales; empty without groups.
    pub scales: Vec<u8>,
    pub channel: Vec<u8>,
    weight_tiles: Vec<u8>,
    padded: Vec<u8>,
}

/// Outputs of the kernels that pack, and that unpack.
pub struct PackingOutputs {
    pub weight_tiles: Vec<u8>,
    pub padded: Vec<u8>,
    pub codes: Vec<u8>,
    pub scales: Vec<u8>,
    pub channel: Vec<u8>,
}

impl Packing {
    pub fn new(kind: WeightKind, n: usize, k: usize) -> Self {
        let what = format!("{kind:?}, {n} x {k}");
        let channel: Vec<f32> = (0..n).map(|i| 1e-4 + uniform(5, i)).collect();
        let limit = if kind == WeightKind::Channel8 { 256.0 } else { 16.0 };
        let codes: Vec<i8> =
            (0..n * k).map(|i| ((uniform(6, i) * limit).floor() - limit / 2.0) as i8).collect();
        // Bytes of the group scales as the kernel takes them.
        let mut scales: Vec<u8> = Vec::new();
        let packed = match kind.group_size() {
            None if kind == WeightKind::Channel8 => PackedWeights::from_int8(&codes, &channel, k),
            None => PackedWeights::new(&QuantizedWeight {
                bits: CodeBits::Four,
                out_features: n,
                in_features: k,
                codes: codes.clone(),
                scales: Scales::PerChannel(channel.clone()),
            }),
            Some(group_size) => {
                let integer = matches!(kind, WeightKind::GroupInteger4(_));
                let group: Vec<f16> = (0..n * (k / group_size))
                    .map(|i| {
                        let s = uniform(7, i) * 15.0;
                        f16::from_f32(if integer { s.round() } else { s + 0.01 })
                    })
                    .collect();
                for s in &group {
                    if integer {
                        scales.push(s.to_f32() as u8);
                    } else {
                        scales.extend(s.to_le_bytes());
                    }
                }
                PackedWeights::new(&QuantizedWeight {
                    bits: CodeBits::Four,
                    out_features: n,
                    in_features: k,
                    codes: codes.clone(),
                    scales: Scales::PerGroup { group_size, channel: channel.clone(), group },
                })
            }
        }
        .unwrap();
        assert_eq!(packed.kind, kind, "{what}");
        assert_eq!(PrepackKernel::weight_bytes(kind, n, k), packed.weight_tiles.len(), "{what}");
        let bytes = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
        Self {
            what,
            kind,
            n,
            k,
            codes: codes.iter().map(|c| *c as u8).collect(),
            scales,
            channel: bytes(&channel),
            padded: bytes(&packed.channel_scale),
            weight_tiles: packed.weight_tiles,
        }
    }

    /// What the outputs hold before: 16 bytes more than there is to write.
    pub fn poison(&self) -> PackingOutputs {
        let poison = |bytes: &[u8]| vec![POISON; bytes.len() + 16];
        PackingOutputs {
            weight_tiles: poison(&self.weight_tiles),
            padded: poison(&self.padded),
            codes: poison(&self.codes),
            scales: poison(&self.scales),
            channel: poison(&self.channel),
        }
    }

    /// Panics unless the outputs are the host's, byte for byte.
    pub fn check(&self, got: &PackingOutputs) {
        for (name, got, expected) in [
            ("weight_tiles", &got.weight_tiles, &self.weight_tiles),
            ("padded scales", &got.padded, &self.padded),
            ("codes", &got.codes, &self.codes),
            ("group scales", &got.scales, &self.scales),
            ("channel scales", &got.channel, &self.channel),
        ] {
            let (got, beyond) = got.split_at(expected.len());
            assert!(got == expected, "{}: {name} differ", self.what);
            assert!(beyond.iter().all(|b| *b == POISON), "{}: {name}: written too far", self.what);
        }
    }
}
