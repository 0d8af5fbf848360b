//! Packing for int8 activations.

use crate::DType;
use half::f16;
use qqq_formats::CodeBits;

use super::*;

fn codes(n: usize, k: usize) -> Vec<i8> {
    (0..n * k).map(|i| ((i * 7 + i / 5) % 16) as i8 - 8).collect()
}

/// The int8 operands that a thread makes of a chunk, following `dequantize.cuh` step by step.
fn operands(p: &PackedWeights, block: usize, step: usize) -> Vec<i8> {
    let steps = p.in_features.div_ceil(128);
    let bytes = p.kind.weight_tile_bytes(p.activation);
    let chunk = &p.weight_tiles[(block * steps + step) * bytes..][..bytes];
    let mut out = vec![0i8; 64 * 128];
    let word = |at: usize| u32::from_le_bytes(chunk[at..at + 4].try_into().unwrap());
    for thread in 0..128 {
        let (row, column) = (16 * (thread / 32) + (thread % 32) / 4, 4 * (thread % 4));
        for half in 0..2 {
            for j in 0..2 {
                for x in 0..2 {
                    let first = 64 * half + 32 * j + 16 * x + column;
                    let (high, low) = if p.kind == WeightKind::Channel8 {
                        let at = (2 * half + j) * 2048 + thread * 16 + 8 * x;
                        (word(at), word(at + 4))
                    } else {
                        let w = word(half * 2048 + thread * 16 + (2 * j + x) * 4);
                        match p.kind {
                            WeightKind::Channel4 => (w & 0xF0F0_F0F0, w << 4 & 0xF0F0_F0F0),
                            WeightKind::GroupInteger4(size) => {
                                let g = (64 * half + 32 * j) / size;
                                let s = |h: usize| u32::from(chunk[4096 + g * 64 + thread / 4 * 2 + h]);
                                let make = |codes: u32, s: u32| {
                                    (codes * s + (0x8080_8080 - s * 0x0808_0808)) ^ 0x8080_8080
                                };
                                (make(w >> 4 & 0x0F0F_0F0F, s(0)), make(w & 0x0F0F_0F0F, s(1)))
                            }
                            WeightKind::GroupHalf4(size) => {
                                let g = (64 * half + 32 * j) / size;
                                let s = |h: usize| {
                                    let at = 4096 + (g * 64 + thread / 4 * 2 + h) * 2;
                                    f32::from(f16::from_le_bytes([chunk[at], chunk[at + 1]]))
                                };
                                let make = |shift: u32, s: f32| {
                                    (0..4).fold(0, |packed, i| {
                                        let code = (w >> (8 * i + shift) & 15) as f32 - 8.0;
                                        let q = (code * s).round_ties_even() as i8;
                                        packed | u32::from(q as u8) << (8 * i)
                                    })
                                };
                                (make(4, s(0)), make(0, s(1)))
                            }
                            WeightKind::Channel8 => unreachable!(),
                        }
                    };
                    for i in 0..4 {
                        out[row * 128 + first + i] = high.to_le_bytes()[i] as i8;
                        out[(row + 8) * 128 + first + i] = low.to_le_bytes()[i] as i8;
                    }
                }
            }
        }
    }
    out
}

fn compare(p: &PackedWeights, int8: &[i8], factor: i32) {
    let (n, k) = (p.out_features, p.in_features);
    for block in 0..n.div_ceil(64) {
        for step in 0..k.div_ceil(128) {
            for (i, &got) in operands(p, block, step).iter().enumerate() {
                let (row, column) = (block * 64 + i / 128, step * 128 + i % 128);
                let expected =
                    if row < n && column < k { i32::from(int8[row * k + column]) * factor } else { 0 };
                assert_eq!(i32::from(got), expected, "{:?} row {row} column {column}", p.kind);
            }
        }
    }
}

#[test]
fn per_channel_holds_sixteen_times_the_code() {
    let w = QuantizedWeight {
        bits: CodeBits::Four,
        out_features: 80,
        in_features: 208,
        codes: codes(80, 208),
        scales: Scales::PerChannel((0..80).map(|i| i as f32 + 0.5).collect()),
    };
    let p = PackedWeights::new(&w).unwrap();
    assert_eq!((p.kind, p.weight_tiles.len()), (WeightKind::Channel4, 2 * 2 * 4096));
    assert_eq!((p.channel_scale.len(), p.channel_scale[3], p.channel_scale[100]), (128, 3.5 / 16.0, 0.0));
    compare(&p, &w.codes, 16);
}

#[test]
fn groups_give_the_int8_weights_of_the_neutral_form() {
    for size in [32, 64, 128] {
        let (n, k) = (96, 384);
        for integer in [true, false] {
            let group = (0..n * (k / size))
                .map(|i| {
                    f16::from_f32(if integer { (i % 17) as f32 } else { (i * 37 % 1500) as f32 / 100.0 })
                })
                .collect();
            // A scale of 16 takes codes up to 7.
            let w = QuantizedWeight {
                bits: CodeBits::Four,
                out_features: n,
                in_features: k,
                codes: codes(n, k).into_iter().map(|c| c.max(-7)).collect(),
                scales: Scales::PerGroup { group_size: size, channel: vec![0.25; n], group },
            };
            let p = PackedWeights::new(&w).unwrap();
            let kind = if integer { WeightKind::GroupInteger4(size) } else { WeightKind::GroupHalf4(size) };
            assert_eq!(p.kind, kind);
            compare(&p, &w.int8_weights(), 1);
        }
    }
}

#[test]
fn int8_weights_are_kept() {
    let (n, k) = (64, 144);
    let codes: Vec<i8> = (0..n * k).map(|i| (i * 31 % 256) as u8 as i8).collect();
    let p = PackedWeights::from_int8(&codes, &vec![1.0; n], k).unwrap();
    compare(&p, &codes, 1);
}

#[test]
fn shapes_that_no_kernel_takes() {
    let make = |n: usize, k: usize, scales| QuantizedWeight {
        bits: CodeBits::Four,
        out_features: n,
        in_features: k,
        codes: vec![0; n * k],
        scales,
    };
    for (n, k) in [(24, 64), (64, 40), (16, 65552)] {
        let error = PackedWeights::new(&make(n, k, Scales::PerChannel(vec![1.0; n]))).unwrap_err();
        assert!(error.to_string().contains("multiples of 16"), "{error}");
    }
    let scales = Scales::PerGroup { group_size: 16, channel: vec![1.0; 16], group: vec![f16::ONE; 16 * 4] };
    for activation in [DType::I8, DType::F16] {
        let error = PackedWeights::for_activation(&make(16, 64, scales.clone()), activation).unwrap_err();
        assert!(error.to_string().contains("32, 64 or 128"), "{error}");
    }
}

#[test]
fn weights_are_stored_as_asked_where_their_scales_allow_it() {
    let grouped = |scale: f32| QuantizedWeight {
        bits: CodeBits::Four,
        out_features: 64,
        in_features: 128,
        codes: codes(64, 128),
        scales: Scales::PerGroup {
            group_size: 64,
            channel: vec![0.25; 64],
            group: vec![f16::from_f32(scale); 128],
        },
    };
    let half = WeightKind::GroupHalf4(64);
    // Integer scales are 16-bit numbers too, and give the same int8 weights.
    let p = PackedWeights::of_kind(&grouped(3.0), half, DType::I8).unwrap();
    assert_eq!(p.kind, half);
    compare(&p, &grouped(3.0).int8_weights(), 1);
    for (weight, kind, activation, says) in [
        (grouped(2.5), WeightKind::GroupInteger4(64), DType::I8, "cannot be stored as g64"),
        (grouped(2.5), WeightKind::GroupHalf4(32), DType::I8, "cannot be stored as g32-half"),
        (grouped(2.5), WeightKind::Channel4, DType::I8, "cannot be stored as channel"),
        (grouped(3.0), WeightKind::GroupInteger4(64), DType::F16, "f16 activations with weights g64"),
        (grouped(3.0), half, DType::F32, "the kernels take I8"),
    ] {
        let error = PackedWeights::of_kind(&weight, kind, activation).unwrap_err();
        assert!(matches!(error, CudaError::Types(_)) && error.to_string().contains(says), "{error}");
    }
}
