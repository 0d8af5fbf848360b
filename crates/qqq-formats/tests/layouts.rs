//! The integer layouts: against the reference's vectors, against slow formulas, and there and back.

mod common;

use half::{bf16, f16};
use proptest::prelude::*;
use qqq_formats::{
    Activations, CodeBits, QuantizedWeight, Scales, TensorSource, WeightData, compressed_tensors, qqq,
    safetensors::Safetensors,
};
use qqq_testing::golden;

/// A deterministic spread of numbers.
fn noise(seed: u64) -> impl FnMut() -> u64 {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33
    }
}

/// A weight with scales over several orders of magnitude, rounded by `round`.
fn weight(
    seed: u64,
    n: usize,
    k: usize,
    group_size: Option<usize>,
    round: impl Fn(f32) -> f32,
) -> QuantizedWeight {
    let mut next = noise(seed);
    let low: i8 = if group_size.is_some() { -8 } else { -7 };
    let span = u64::from((7 - low) as u8) + 1;
    let codes: Vec<i8> = (0..n * k).map(|_| low + (next() % span) as i8).collect();
    let mut scale = || round(0.002 * (1.0 + (next() % 10_000) as f32 / 1000.0));
    let scales = match group_size {
        None => Scales::PerChannel((0..n).map(|_| scale()).collect()),
        Some(g) => {
            let effective: Vec<f32> = (0..n * (k / g)).map(|_| scale()).collect();
            Scales::from_effective(&codes, n, k, g, &effective)
        }
    };
    QuantizedWeight { bits: CodeBits::Four, out_features: n, in_features: k, codes, scales }
}

/// The word and nibble of one code, from the golden vectors' description and in the other direction
/// than the implementation goes.
fn place(k: usize, n: usize, n_total: usize, grouped: bool) -> (usize, u32) {
    let (lane, tile) = (n % 8 * 4 + k % 16 / 4, n % 64 / 16);
    let entry = n % 16 / 8 * 4 + k % 4;
    let order = if grouped { [0, 2, 4, 6, 1, 3, 5, 7] } else { [4, 0, 5, 1, 6, 2, 7, 3] };
    let nibble = order.iter().position(|e| *e == entry).unwrap();
    (k / 16 * 2 * n_total + n / 64 * 128 + lane * 4 + tile, nibble as u32)
}

/// `rows x cols` to `cols x rows`.
fn transpose<T: Copy>(values: &[T], rows: usize, cols: usize) -> Vec<T> {
    (0..rows * cols).map(|i| values[i % rows * cols + i / rows]).collect()
}

#[test]
fn golden_vectors_match_bit_for_bit_both_ways() {
    let mut packs = 0;
    for entry in std::fs::read_dir(golden::folder()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.extension().is_none_or(|e| e != "safetensors") {
            continue;
        }
        let file = Safetensors::open(&path).unwrap();
        let shape = file.info("codes").unwrap().shape;
        let (k, n) = (shape[0], shape[1]);
        let codes: Vec<i8> = file.bytes("codes").unwrap().iter().map(|b| *b as i8).collect();
        let codes = transpose(&codes, k, n);
        let ints = |name: &str| -> Vec<i32> {
            file.bytes(name).unwrap().as_chunks().0.iter().map(|b| i32::from_le_bytes(*b)).collect()
        };
        let halves = |name: &str, shape: &[usize]| match file.float(name, shape).unwrap() {
            WeightData::F16(v) => v,
            other => panic!("{other:?}"),
        };
        let group_size = file.info("s_group").map(|info| k / info.shape[0]);
        let groups = group_size.map_or(1, |g| k / g);
        let packed = qqq::Packed {
            b: ints("B"),
            s_channel: file.f32("s_channel", &[1, n]).unwrap(),
            s_group: group_size.map_or_else(Vec::new, |_| halves("s_group", &[groups, n])),
        };
        let unpacked = qqq::unpack(&packed, n, k, group_size).unwrap();
        assert_eq!(unpacked.codes, codes, "{name}: codes");
        assert!(qqq::pack(&unpacked).unwrap() == packed, "{name}: packed again");

        if name.starts_with("pack_") {
            let scale = file.f32("scale", &[n, groups]).unwrap();
            let scales = match group_size {
                None => Scales::PerChannel(scale),
                Some(group_size) => {
                    let channel = file.f32("s_extra", &[n, 1]).unwrap();
                    let group = scale
                        .iter()
                        .enumerate()
                        .map(|(i, s)| f16::from_f32(s / channel[i / groups]))
                        .collect();
                    Scales::PerGroup { group_size, channel, group }
                }
            };
            let natural =
                QuantizedWeight { bits: CodeBits::Four, out_features: n, in_features: k, codes, scales };
            assert!(natural == unpacked, "{name}: natural order");
            assert!(qqq::pack(&natural).unwrap() == packed, "{name}: packed");
            packs += 1;
        } else {
            let factor = if group_size.is_some() { 1 } else { 16 };
            let ours: Vec<i8> = unpacked.int8_weights().iter().map(|w| w * factor).collect();
            let w8: Vec<i8> = file.bytes("w8").unwrap().iter().map(|b| *b as i8).collect();
            assert!(ours == transpose(&w8, k, n), "{name}: int8 weights");
        }
    }
    assert_eq!(packs, 10);
}

#[test]
fn golden_scales_are_near_our_derivation() {
    // The reference takes the row's maximum over the float16 fake-quantized weight, we over code * scale: a
    // rounding of float16 apart.
    let file = Safetensors::open(&golden::folder().join("pack_group128_k512_n256.safetensors")).unwrap();
    let (k, n) = (512, 256);
    let codes: Vec<i8> = file.bytes("codes").unwrap().iter().map(|b| *b as i8).collect();
    let scale = file.f32("scale", &[n, k / 128]).unwrap();
    let theirs = file.f32("s_extra", &[n, 1]).unwrap();
    let Scales::PerGroup { channel, .. } =
        Scales::from_effective(&transpose(&codes, k, n), n, k, 128, &scale)
    else {
        unreachable!()
    };
    for (a, b) in channel.iter().zip(&theirs) {
        assert!((a - b).abs() <= b / 2048.0, "{a} {b}");
    }
}

#[test]
fn tiles_follow_the_description() {
    for (n, k, group_size) in [(64, 16, None), (192, 48, None), (64, 32, Some(16)), (128, 96, Some(32))] {
        let weight = weight(7, n, k, group_size, |s| s);
        let packed = qqq::pack(&weight).unwrap();
        for row in 0..n {
            for column in 0..k {
                let (word, nibble) = place(column, row, n, group_size.is_some());
                let bits = packed.b[word].cast_unsigned() >> (4 * nibble) & 15;
                let code = weight.codes[row * k + column];
                let want = if group_size.is_some() { code + 8 } else { code & 15 };
                assert_eq!(bits, want as u32, "n {row}, k {column}");
            }
        }
    }
}

#[test]
fn a_hand_computed_tile() {
    // Code 1 at (n 0, k 0), -1 at (n 8, k 1), 7 at (n 17, k 6), all in word row 0.
    let mut codes = vec![0i8; 64 * 16];
    codes[0] = 1;
    codes[8 * 16 + 1] = -1;
    codes[17 * 16 + 6] = 7;
    let scales = Scales::PerChannel((0..64u8).map(f32::from).collect());
    let packed = qqq::pack(&QuantizedWeight {
        bits: CodeBits::Four,
        out_features: 64,
        in_features: 16,
        codes,
        scales,
    })
    .unwrap();
    // Lane 0, column tile 0: (b 0, r 0) in nibble 1, (b 1, r 1) in nibble 2.
    assert_eq!(packed.b[0].cast_unsigned(), 0x0000_0F10);
    // n 17 is tile 1, row 1 of 8; k 6 is lane 1 of 4, r 2: word (4 + 1) * 4 + 1, nibble 5.
    assert_eq!(packed.b[21].cast_unsigned(), 0x0070_0000);
    assert_eq!(packed.b.iter().filter(|w| **w != 0).count(), 2);
    let first: Vec<f32> = [0, 1, 8, 9, 16, 17, 24, 25, 2, 3].iter().map(|&n| n as f32 / 16.0).collect();
    assert_eq!(packed.s_channel[..10], first);
}

#[test]
fn shapes_that_the_format_holds() {
    for (k, n) in [(64, 256), (128, 128), (128, 64), (64, 128), (576, 1536), (1536, 576), (4096, 14336)] {
        assert_eq!(qqq::fits(n, k, None), Ok(()), "K {k} N {n}");
    }
    for (k, n) in [(64, 64), (576, 192 / 3 * 2 + 1), (96, 128), (64, 192), (0, 128), (128, 0)] {
        let reason = qqq::fits(n, k, None).unwrap_err();
        assert!(reason.contains("multiples of"), "{reason}");
    }
    assert_eq!(qqq::fits(128, 256, Some(128)), Ok(()));
    assert!(qqq::fits(128, 128, Some(128)).unwrap_err().contains("single group"));
    assert!(qqq::fits(128, 576, Some(128)).unwrap_err().contains("not a multiple"));
    assert!(qqq::fits(128, 256, Some(64)).unwrap_err().contains("groups of 64"));
}

#[test]
fn what_the_tiles_cannot_express_is_refused() {
    let mut w = weight(1, 64, 16, None, |s| s);
    w.codes[3] = -8;
    assert!(qqq::pack(&w).unwrap_err().to_string().contains("-8"));
    let w = weight(1, 32, 16, None, |s| s);
    assert!(qqq::pack(&w).unwrap_err().to_string().contains("multiples of 64 and 16"));
    let mut w = weight(1, 64, 32, Some(16), |s| s);
    let Scales::PerGroup { group, .. } = &mut w.scales else { unreachable!() };
    group[5] = f16::from_f32(40.0);
    assert!(qqq::pack(&w).unwrap_err().to_string().contains("channel 2, group 1"));
}

/// As GPTQModel writes some channels: the largest code times its group scale is beyond 127.
#[test]
fn channels_beyond_int8_keep_their_weights() {
    let (n, k, group_size) = (128, 96, 32);
    let weight = weight(4, n, k, Some(group_size), |s| s);
    let mut packed = qqq::pack(&weight).unwrap();
    // The first run of 64 channels.
    for (i, s) in packed.s_group.iter_mut().enumerate().filter(|(i, _)| i % n < 64) {
        *s = f16::from_f32(s.to_f32() * (1.07 + (i / n) as f32 / 100.0));
    }
    let read = qqq::unpack(&packed, n, k, Some(group_size)).unwrap();
    assert_eq!(read.codes, weight.codes);
    let (Scales::PerGroup { channel: before, group: old, .. }, Scales::PerGroup { channel, group, .. }) =
        (&weight.scales, &read.scales)
    else {
        unreachable!()
    };
    let dequantized = read.dequantize();
    for row in 0..n {
        if row >= 64 {
            assert_eq!((channel[row], &group[row * 3..][..3]), (before[row], &old[row * 3..][..3]));
            continue;
        }
        assert!(channel[row] > before[row], "{row}");
        for i in 0..k {
            let s = f16::from_f32(old[row * 3 + i / 32].to_f32() * (1.07 + (i / 32) as f32 / 100.0)).to_f32();
            let meant = f32::from(weight.codes[row * k + i]) * s * before[row];
            let error = (dequantized[row * k + i] - meant).abs();
            // Half a step of int8, and the rounding of a float16 scale.
            assert!(
                error <= 0.5 * channel[row] + meant.abs() / 2048.0,
                "{row}, {i}: {meant}, off by {error}"
            );
        }
    }
    // Not what is no number.
    packed.s_group[7] = f16::INFINITY;
    assert!(qqq::unpack(&packed, n, k, Some(group_size)).is_err());
}

#[test]
fn nibbles_of_a_word_are_in_order() {
    let codes = [-8, -7, -6, -5, 4, 5, 6, 7, 1, -1, 0];
    let words = compressed_tensors::pack_codes(CodeBits::Four, &codes, 11);
    let words: Vec<u32> = words.iter().map(|w| w.cast_unsigned()).collect();
    assert_eq!(words, [0xFEDC_3210, 0x0000_0879]);
}

#[test]
fn rows_without_weights() {
    let codes = vec![0, 0, 0, 0, 3, -8, 0, 0];
    let scales = Scales::from_effective(&codes, 2, 4, 2, &[0.5, f32::MAX, 0.25, 1e30]);
    let Scales::PerGroup { channel, group, .. } = &scales else { unreachable!() };
    // One group alone is once its own scale.
    assert_eq!(channel, &[1.0, 0.25]);
    assert_eq!(group.iter().map(|g| g.to_f32()).collect::<Vec<_>>(), [0.0, 0.0, 1.0, 0.0]);
    let weight = QuantizedWeight { bits: CodeBits::Four, out_features: 2, in_features: 4, codes, scales };
    weight.check("w").unwrap();
    assert_eq!(weight.int8_weights(), [0, 0, 0, 0, 3, -8, 0, 0]);
    compressed_tensors::effective_scales(&weight, Activations::Int8, "w").unwrap();
}

#[test]
fn scales_of_any_origin_survive_as_they_are_or_are_refused() {
    let mut w = weight(3, 64, 64, Some(32), |s| s);
    let Scales::PerGroup { channel, group, .. } = &mut w.scales else { unreachable!() };
    channel[9] *= 1.5; // as if the effective scales were larger
    for g in &mut group[20..22] {
        *g = f16::from_f32(g.to_f32() / 2.0); // row 10 no longer reaches 127
    }
    assert!(
        compressed_tensors::effective_scales(&w, Activations::Int8, "layer")
            .unwrap_err()
            .to_string()
            .contains("layer")
    );
}

proptest! {
    #[test]
    fn pack_and_unpack_are_inverse(seed: u64, n in 1usize..4, k in 1usize..9, mode in 0usize..4) {
        let (n, k) = (64 * n, 16 * k);
        let group_size = [None, Some(16), Some(k), Some(if k % 32 == 0 { 32 } else { 16 })][mode];
        let weight = weight(seed, n, k, group_size, |s| s);
        let packed = qqq::pack(&weight).unwrap();
        prop_assert_eq!(packed.b.len(), k / 16 * 2 * n);
        prop_assert!(qqq::unpack(&packed, n, k, group_size).unwrap() == weight);
        // Blocks of channels stand for themselves.
        for start in (0..n).step_by(64) {
            let rows = qqq::Packed::of_rows(&packed.b, &packed.s_channel, &packed.s_group, n, start..start + 64).unwrap();
            prop_assert!(Some(qqq::unpack(&rows, 64, k, group_size).unwrap()) == weight.rows(start..start + 64));
        }
        let cut = qqq::Packed::of_rows(&packed.b, &packed.s_channel, &packed.s_group, n, 0..32);
        prop_assert!(cut.is_none());
        if group_size.is_none() {
            prop_assert_eq!(qqq::channel_scales(&packed.s_channel), weight.channel_scales());
        }
    }

    #[test]
    fn pack_quantized_is_reversible(seed: u64, n in 1usize..6, k in 1usize..40) {
        let weight = weight(seed, n, k, None, |s| s);
        let words = compressed_tensors::pack_codes(CodeBits::Four, &weight.codes, k);
        prop_assert_eq!(words.len(), n * k.div_ceil(8));
        prop_assert_eq!(compressed_tensors::unpack_codes(CodeBits::Four, &words, k), weight.codes);
    }

    /// Whatever the scales were rounded to, what is stored gives the same int8 weights and channel scales
    /// back; scales rounded to bf16 or f16 need no wider type than f32, and bf16 stays bf16.
    #[test]
    fn derived_scales_survive_storing(seed: u64, groups in 1usize..6, rounding in 0usize..3, exponent in -30i32..20) {
        let (n, group_size) = (8, 32);
        let k = groups * group_size;
        let factor = (exponent as f32).exp2();
        let w = weight(seed, n, k, Some(group_size), |s| match rounding {
            0 => bf16::from_f32(s * factor).to_f32(),
            1 => f16::from_f32(s).to_f32(),
            _ => s * factor,
        });
        w.check("w").unwrap();
        let stored = compressed_tensors::effective_scales(&w, Activations::Int8, "w").unwrap();
        if rounding == 0 {
            prop_assert!(matches!(stored, WeightData::BF16(_)));
        }
        let words = compressed_tensors::pack_codes(CodeBits::Four, &w.codes, k);
        let kind = (CodeBits::Four, Activations::Int8, Some(group_size));
        let again = compressed_tensors::unpack("w", &words, stored.into_f32(), (n, k), kind).unwrap();
        prop_assert!(again == w);
    }

    /// Scales that are multiples of one are kept as such, in whatever type holds them exactly.
    #[test]
    fn integer_group_scales_survive_storing(seed: u64, groups in 1usize..6, bits in 0usize..3, exponent in -12i32..4) {
        let (n, group_size) = (8, 32);
        let k = groups * group_size;
        // Significant bits of the channel scales: a bfloat16 holds 8, of which the multiples need 4.
        let bits = [4, 7, 20][bits];
        let mut next = noise(seed);
        let mut below = |limit: u64| (next() % limit) as u32;
        let codes: Vec<i8> = (0..n * k).map(|_| below(16) as i8 - 8).collect();
        let mut multiples = Vec::new();
        let mut effective = Vec::new();
        for _ in 0..n {
            let channel = ((1 << (bits - 1)) + below(1 << (bits - 1))) as f32 * (exponent as f32).exp2();
            for _ in 0..groups {
                multiples.push(1 + below(15));
                effective.push(*multiples.last().unwrap() as f32 * channel);
            }
        }
        let scales = Scales::from_effective(&codes, n, k, group_size, &effective);
        let Scales::PerGroup { channel, group, .. } = &scales else { unreachable!() };
        for (i, (multiple, group)) in multiples.iter().zip(group).enumerate() {
            let group = group.to_f32();
            prop_assert!(group.fract() == 0.0 && group >= 1.0 && group <= *multiple as f32, "{}: {}", i, group);
            prop_assert_eq!(group * channel[i / groups], effective[i]);
        }
        let w = QuantizedWeight { bits: CodeBits::Four, out_features: n, in_features: k, codes, scales };
        w.check("w").unwrap();
        let stored = compressed_tensors::effective_scales(&w, Activations::Int8, "w").unwrap();
        if bits == 4 {
            prop_assert!(matches!(stored, WeightData::BF16(_)));
        }
        let words = compressed_tensors::pack_codes(CodeBits::Four, &w.codes, k);
        let kind = (CodeBits::Four, Activations::Int8, Some(group_size));
        let again = compressed_tensors::unpack("w", &words, stored.into_f32(), (n, k), kind).unwrap();
        prop_assert!(again == w);
    }

    #[test]
    fn int8_weights_stay_in_range(codes in prop::collection::vec(-8i8..=7, 64), bits in prop::collection::vec(any::<u32>(), 4)) {
        let effective: Vec<f32> = bits
            .iter()
            .map(|b| f32::from_bits(*b))
            .map(|s| if s.is_finite() && s.abs() < 1e37 { s } else { 0.5 })
            .collect();
        let scales = Scales::from_effective(&codes, 2, 32, 16, &effective);
        let weight = QuantizedWeight { bits: CodeBits::Four, out_features: 2, in_features: 32, codes, scales };
        prop_assert!(weight.check("w").is_ok(), "{:?}", weight.check("w"));
    }
}
