//! Packing for 16-bit activations.

use crate::DType;
use half::{bf16, f16};
use qqq_formats::CodeBits;

use super::*;

fn weight(n: usize, k: usize, group_size: Option<usize>) -> QuantizedWeight {
    let codes = (0..n * k).map(|i| ((i * 7 + i / 5 + i / 640) % 16) as i8 - 8).collect();
    let scales = match group_size {
        None => Scales::PerChannel((0..n).map(|i| i as f32 + 0.5).collect()),
        Some(group_size) => Scales::PerGroup {
            group_size,
            channel: vec![0.25; n],
            group: (0..n * (k / group_size)).map(|i| f16::from_f32((i * 37 % 1500) as f32 / 100.0)).collect(),
        },
    };
    QuantizedWeight { bits: CodeBits::Four, out_features: n, in_features: k, codes, scales }
}

/// A number of the activations' type by its bits.
fn number(bits: u16, activation: DType) -> f32 {
    if activation == DType::BF16 { bf16::from_bits(bits).to_f32() } else { f16::from_bits(bits).to_f32() }
}

fn rounded(value: f32, activation: DType) -> f32 {
    if activation == DType::BF16 { bf16::from_f32(value).to_f32() } else { f16::from_f32(value).to_f32() }
}

/// The operands that the threads make of a chunk, following `dequantize16.cuh` step by step, down to the bits that it
/// sets, and placed where PTX says that the fragment of a k16 step has its registers.
fn operands(p: &PackedWeights, block: usize, step: usize) -> Vec<f32> {
    let bytes = p.kind.weight_tile_bytes(p.activation);
    let chunk = &p.weight_tiles[(block * p.in_features.div_ceil(64) + step) * bytes..][..bytes];
    let mut out = vec![f32::NAN; 64 * 64];
    for thread in 0..128 {
        let (row, c) = (16 * (thread / 32) + thread % 32 / 4, 2 * (thread % 4));
        for half in 0..2 {
            for j in 0..2 {
                let at = half * 1024 + thread * 8 + j * 4;
                let word = u32::from_le_bytes(chunk[at..at + 4].try_into().unwrap());
                for register in 0..4 {
                    let pair = if p.activation == DType::BF16 {
                        let bits = (word >> (4 * register)) & 0x000F_000F | 0x4300_4300;
                        [bits as u16, (bits >> 16) as u16].map(|b| number(b, p.activation) - 136.0)
                    } else {
                        let shifted = if register < 2 { word } else { word >> 8 };
                        let (mask, factor, offset) = if register % 2 == 0 {
                            (0x000F_000F, 1.0, 1032.0)
                        } else {
                            (0x00F0_00F0, 1.0 / 16.0, 72.0)
                        };
                        let bits = shifted & mask | 0x6400_6400;
                        [bits as u16, (bits >> 16) as u16].map(|b| number(b, p.activation) * factor - offset)
                    };
                    let scale = p.kind.group_size().map(|size| {
                        let group = if size == 32 { half } else { 0 };
                        let at = (64 * 64 / 2) + (group * 64 + thread / 4 * 2 + register % 2) * 2;
                        number(u16::from_le_bytes([chunk[at], chunk[at + 1]]), p.activation)
                    });
                    let row = row + 8 * (register % 2);
                    let column = 32 * half + 16 * j + c + 8 * (register / 2);
                    for (i, value) in pair.into_iter().enumerate() {
                        out[row * 64 + column + i] =
                            scale.map_or(value, |s| rounded(value * s, p.activation));
                    }
                }
            }
        }
    }
    out
}

#[test]
fn threads_unpack_the_weights() {
    let (n, k) = (80, 384);
    for activation in [DType::F16, DType::BF16] {
        for group_size in [None, Some(32), Some(64), Some(128)] {
            let w = weight(n, k, group_size);
            let p = PackedWeights::for_activation(&w, activation).unwrap();
            assert_eq!((p.activation, p.kind.group_size()), (activation, group_size));
            assert_eq!(p.weight_tiles.len(), 2 * 6 * p.kind.weight_tile_bytes(activation));
            assert_eq!((p.channel_scale.len(), p.channel_scale[100]), (128, 0.0));
            assert_eq!(p.channel_scale[3], w.channel_scales()[3]);
            for (block, step) in (0..2).flat_map(|b| (0..6).map(move |s| (b, s))) {
                for (i, &got) in operands(&p, block, step).iter().enumerate() {
                    let (row, column) = (block * 64 + i / 64, step * 64 + i % 64);
                    let expected = if row >= n {
                        0.0
                    } else {
                        let code = f32::from(w.codes[row * k + column]);
                        match &w.scales {
                            Scales::PerChannel(_) => code,
                            Scales::PerGroup { group_size, group, .. } => {
                                let scale = group[row * (k / group_size) + column / group_size].to_f32();
                                rounded(code * rounded(scale, activation), activation)
                            }
                        }
                    };
                    assert_eq!(got, expected, "{activation:?} {group_size:?} row {row} column {column}");
                }
            }
        }
    }
}

#[test]
fn columns_beyond_the_last_are_zero() {
    let w = weight(16, 80, None);
    let p = PackedWeights::for_activation(&w, DType::F16).unwrap();
    let last = operands(&p, 0, 1);
    for row in 0..16 {
        assert_eq!(last[row * 64 + 15], f32::from(w.codes[row * 80 + 79]));
        assert!(last[row * 64 + 16..][..48].iter().all(|v| *v == 0.0));
    }
}

#[test]
fn integer_scales_are_kept_as_numbers() {
    let mut w = weight(64, 128, Some(64));
    if let Scales::PerGroup { group, .. } = &mut w.scales {
        group.iter_mut().enumerate().for_each(|(i, s)| *s = f16::from_f32((i % 16) as f32));
    }
    let p = PackedWeights::for_activation(&w, DType::BF16).unwrap();
    assert_eq!(p.kind, WeightKind::GroupHalf4(64));
    assert_eq!(operands(&p, 0, 1)[0], f32::from(w.codes[64]) * 1.0);
    assert_eq!(PackedWeights::for_activation(&w, DType::I8).unwrap(), PackedWeights::new(&w).unwrap());
}
