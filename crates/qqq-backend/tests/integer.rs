//! The integer kernels: every path against an independent loop and the golden vectors. Those that this machine cannot run
//! are reported as ignored.

use std::process::ExitCode;

use half::f16;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use qqq_backend::cpu::integer::{Int8Activations, IntegerLinear};
use qqq_backend::cpu::isa::Isa;
use qqq_backend::cpu::matrix::Matrix;
use qqq_formats::{CodeBits, QuantizedWeight, Scales};
use qqq_testing::{Missing, Random, Suite, golden, tests};

fn main() -> ExitCode {
    let mut suite = Suite::new().tests(tests![weights_that_the_kernels_cannot_hold_are_refused]);
    for isa in Isa::ALL {
        suite = suite.on(
            isa.name(),
            move || isa.checked().map_err(|e| Missing::Machine(e.to_string())),
            tests![
                row_counts_at_every_edge,
                smallest_shapes,
                several_row_parts_of_a_product,
                extreme_values,
                the_largest_k_does_not_overflow,
                any_shape,
                golden_vectors
            ],
        );
    }
    suite.run()
}

/// Kinds of weights.
#[derive(Clone, Copy, Debug)]
enum Mode {
    /// 4 bits, per channel or in groups.
    Four(Option<usize>),
    /// 8 bits, as our quantizer makes them.
    Eight,
    /// 8 bits, with -128 among them.
    Lowest,
}

impl Mode {
    fn group_size(self) -> Option<usize> {
        match self {
            Mode::Four(group_size) => group_size,
            Mode::Eight | Mode::Lowest => None,
        }
    }

    fn bits(self) -> CodeBits {
        match self {
            Mode::Four(_) => CodeBits::Four,
            Mode::Eight | Mode::Lowest => CodeBits::Eight,
        }
    }

    /// The smallest and the largest code.
    fn ends(self) -> (i8, i8) {
        match self {
            Mode::Four(_) => (-8, 7),
            Mode::Eight => (-127, 127),
            Mode::Lowest => (-128, 127),
        }
    }
}

/// Random codes and scales; group scales reach the limit |int8 weight| = 127 and include ties
/// (halves), zero and negative values.
fn weight(random: &mut Random, n: usize, k: usize, mode: Mode) -> QuantizedWeight {
    let (low, high) = mode.ends();
    let codes = (0..n * k).map(|_| random.int(low.into(), high.into()) as i8).collect();
    let channel = (0..n).map(|_| random.int(1, 1000) as f32 / 3e4).collect();
    let scales = match mode.group_size() {
        None => Scales::PerChannel(channel),
        Some(group_size) => {
            let group = (0..n * k / group_size)
                .map(|_| match random.int(0, 9) {
                    0 => f16::from_f32(15.875),
                    1 => f16::from_f32(random.int(-31, 31) as f32 / 2.0),
                    2 => f16::ZERO,
                    3 => f16::from_bits(random.int(0, 0x03ff) as u16),
                    4 => f16::from_f32(-random.int(0, 1587) as f32 / 100.0),
                    _ => f16::from_f32(random.int(0, 15870) as f32 / 1000.0),
                })
                .collect();
            Scales::PerGroup { group_size, channel, group }
        }
    };
    QuantizedWeight { bits: mode.bits(), out_features: n, in_features: k, codes, scales }
}

fn activations(rows: usize, cols: usize, mut code: impl FnMut() -> i8) -> Int8Activations {
    let codes: Vec<i8> = (0..rows * cols).map(|_| code()).collect();
    let sums = codes.chunks(cols).map(|row| row.iter().map(|&c| i32::from(c)).sum()).collect();
    let scales = (0..rows).map(|i| 0.01 + i as f32 * 0.003).collect();
    Int8Activations { rows, cols, codes, scales, sums }
}

/// The accumulators by definition.
fn naive(weight: &QuantizedWeight, a: &Int8Activations) -> Vec<i32> {
    let k = weight.in_features;
    let int8_weights: Vec<i64> = weight
        .codes
        .iter()
        .enumerate()
        .map(|(i, &code)| match &weight.scales {
            Scales::PerChannel(_) => i64::from(code),
            Scales::PerGroup { group_size, group, .. } => {
                (f64::from(code) * group[i / group_size].to_f64()).round_ties_even() as i64
            }
        })
        .collect();
    let product = |row: &[i8], w: &[i64]| row.iter().zip(w).map(|(&a, &w)| i64::from(a) * w).sum::<i64>();
    a.codes
        .chunks_exact(k)
        .flat_map(|row| int8_weights.chunks_exact(k).map(move |w| product(row, w)))
        .map(|sum| i32::try_from(sum).expect("no overflow within the stated bounds"))
        .collect()
}

/// The output by definition, on top of `out`.
fn finish(weight: &QuantizedWeight, a: &Int8Activations, acc: &[i32], bias: Option<&[f32]>, out: &mut [f32]) {
    let n = weight.out_features;
    for (i, (out, &acc)) in out.iter_mut().zip(acc).enumerate() {
        let mut y = acc as f32 * weight.channel_scales()[i % n];
        y *= a.scales[i / n];
        if let Some(bias) = bias {
            y += bias[i % n];
        }
        *out = y;
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Compares a path with the definition: accumulators and both kinds of output.
fn check(isa: Isa, weight: &QuantizedWeight, a: &Int8Activations) {
    let n = weight.out_features;
    let expected = naive(weight, a);
    let bias: Vec<f32> = (0..n).map(|i| i as f32 * 0.37 - 2.0).collect();
    let linear = IntegerLinear::with_isa(weight, isa).expect("a valid weight");
    let what = format!("{isa}: {} rows, N {n}, K {}", a.rows, weight.in_features);
    assert!(linear.accumulators(a) == expected, "accumulators, {what}");
    for bias in [None, Some(&bias[..])] {
        let start: Vec<f32> = (0..a.rows * n).map(|i| (i % 7) as f32 - 3.0).collect();
        let mut out = Matrix { rows: a.rows, cols: n, data: start.clone() };
        linear.matmul(a, bias, &mut out);
        let mut expected_out = start;
        finish(weight, a, &expected, bias, &mut expected_out);
        assert!(bits(&out.data) == bits(&expected_out), "output, bias {}, {what}", bias.is_some());
    }
}

const MODES: [Mode; 6] = [
    Mode::Four(None),
    Mode::Four(Some(32)),
    Mode::Four(Some(64)),
    Mode::Four(Some(128)),
    Mode::Eight,
    Mode::Lowest,
];

fn row_counts_at_every_edge(isa: Isa) {
    let mut random = Random(1);
    for mode in MODES {
        let weight = weight(&mut random, 144, 256, mode);
        for rows in (0..=20).chain([31, 33, 64, 65, 131]) {
            check(isa, &weight, &activations(rows, 256, || random.int(-128, 127) as i8));
        }
    }
}

fn smallest_shapes(isa: Isa) {
    let mut random = Random(2);
    for (n, k) in [(16, 16), (16, 32), (32, 16), (16, 48), (48, 80), (80, 112)] {
        for mode in [Mode::Four(None), Mode::Eight, Mode::Lowest] {
            let weight = weight(&mut random, n, k, mode);
            for rows in [1, 2, 3, 4, 5, 8, 9, 17, 33] {
                check(isa, &weight, &activations(rows, k, || random.int(-128, 127) as i8));
            }
        }
    }
}

fn several_row_parts_of_a_product(isa: Isa) {
    let mut random = Random(3);
    for mode in [Mode::Four(Some(64)), Mode::Eight] {
        let weight = weight(&mut random, 80, 2048, mode);
        check(isa, &weight, &activations(301, 2048, || random.int(-128, 127) as i8));
    }
}

/// A weight whose codes are all the same, and so are its group scales.
fn uniform(mode: Mode, n: usize, k: usize, code: i8, scale: f32) -> QuantizedWeight {
    let scales = match mode.group_size() {
        None => Scales::PerChannel(vec![1.0; n]),
        Some(group_size) => Scales::PerGroup {
            group_size,
            channel: vec![1.0; n],
            group: vec![f16::from_f32(scale); n * k / group_size],
        },
    };
    QuantizedWeight { bits: mode.bits(), out_features: n, in_features: k, codes: vec![code; n * k], scales }
}

fn extreme_values(isa: Isa) {
    for mode in MODES {
        let four = [
            (-8, 15.875),
            (7, 18.14),
            (-8, -15.875),
            (7, -18.14),
            (1, 127.0),
            (-1, 127.0),
            (5, 0.5),
            (-7, 0.5),
        ];
        let eight = [mode.ends().0, 127, 1, -1].map(|code| (code, 1.0));
        let values = if mode.bits() == CodeBits::Four { &four[..] } else { &eight };
        for (code, scale) in values {
            for activation in [-128, 127, 0] {
                let weight = uniform(mode, 32, 1024, *code, *scale);
                for rows in [1, 10] {
                    check(isa, &weight, &activations(rows, 1024, || activation));
                }
            }
        }
    }
}

fn the_largest_k_does_not_overflow(isa: Isa) {
    let k = 65536;
    for activation in [-128, 127] {
        for mode in [Mode::Four(None), Mode::Four(Some(128)), Mode::Eight, Mode::Lowest] {
            let (low, high) = mode.ends();
            for (code, scale) in [(low, 15.875), (high, 18.14)] {
                let weight = uniform(mode, 16, k, code, scale);
                check(isa, &weight, &activations(1, k, || activation));
                check(isa, &weight, &activations(9, k, || activation));
            }
        }
    }
}

fn weights_that_the_kernels_cannot_hold_are_refused() {
    let refused = |weight: &QuantizedWeight, part: &str| {
        let error = IntegerLinear::with_isa(weight, Isa::Portable).expect_err(part).to_string();
        assert!(error.contains(part), "\"{error}\" does not say \"{part}\"");
    };
    let mut random = Random(4);
    let good = weight(&mut random, 32, 128, Mode::Four(Some(64)));
    for (n, k) in [(24, 128), (32, 120), (0, 16), (16, 0)] {
        refused(
            &QuantizedWeight {
                bits: CodeBits::Four,
                out_features: n,
                in_features: k,
                codes: vec![0; n * k],
                scales: Scales::PerChannel(vec![1.0; n]),
            },
            "divisible by 16",
        );
    }
    let per_channel = |n: usize, k: usize| QuantizedWeight {
        bits: CodeBits::Four,
        out_features: n,
        in_features: k,
        codes: vec![0; n * k],
        scales: Scales::PerChannel(vec![1.0; n]),
    };
    refused(&per_channel(16, 65552), "65536");
    refused(&QuantizedWeight { codes: vec![0; 17], ..per_channel(16, 16) }, "17 codes");
    refused(&QuantizedWeight { codes: vec![8; 256], ..per_channel(16, 16) }, "code 8");
    refused(
        &QuantizedWeight { scales: Scales::PerChannel(vec![1.0; 15]), ..per_channel(16, 16) },
        "15 channel scales",
    );
    refused(
        &QuantizedWeight { scales: Scales::PerChannel(vec![f32::NAN; 16]), ..per_channel(16, 16) },
        "NaN",
    );
    let group = |group_size: usize, scale: f32, count: usize| QuantizedWeight {
        bits: CodeBits::Four,
        scales: Scales::PerGroup {
            group_size,
            channel: vec![1.0; 32],
            group: vec![f16::from_f32(scale); count],
        },
        ..good.clone()
    };
    refused(
        &QuantizedWeight { bits: CodeBits::Eight, ..group(64, 1.0, 64) },
        "it has groups of 64; 8 bits go with a scale an output channel",
    );
    refused(&group(16, 1.0, 256), "group size is 16");
    refused(&group(96, 1.0, 42), "group size is 96");
    refused(&group(64, 1.0, 63), "63 scales");
    refused(&group(64, 18.5, 64), "out of -127..=127");
    refused(&group(64, f32::INFINITY, 64), "out of -127..=127");
    refused(&group(64, f32::NAN, 64), "out of -127..=127");
}

fn any_shape(isa: Isa) {
    let mut runner =
        TestRunner::new(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) });
    let cases = (1usize..14, 1usize..24, 0..MODES.len(), 1usize..40, any::<u64>());
    let result = runner.run(&cases, |(n, k, mode, rows, seed)| {
        let k = k * 16;
        let k = MODES[mode].group_size().map_or(k, |group| k.next_multiple_of(group));
        let mut random = Random(seed);
        let weight = weight(&mut random, n * 16, k, MODES[mode]);
        check(isa, &weight, &activations(rows, k, || random.int(-128, 127) as i8));
        Ok(())
    });
    result.unwrap_or_else(|e| panic!("{e}"));
}

fn golden_vectors(isa: Isa) {
    for product in golden::products() {
        let (name, k) = (product.name, product.weight.in_features);
        assert_eq!(
            product.weight.int8_weights().iter().map(|&w| i32::from(w) * product.factor).collect::<Vec<_>>(),
            product.int8_weights.iter().map(|&w| i32::from(w)).collect::<Vec<_>>(),
            "{name}: int8 weights"
        );
        let sums = product.x.chunks(k).map(|row| row.iter().map(|&c| i32::from(c)).sum()).collect();
        let rows = product.token_scales.len();
        let a = Int8Activations { rows, cols: k, codes: product.x, scales: product.token_scales, sums };
        let linear = IntegerLinear::with_isa(&product.weight, isa).expect(name);
        let got: Vec<i32> = linear.accumulators(&a).iter().map(|acc| acc * product.factor).collect();
        assert_eq!(got, product.accumulators, "{name}: accumulators");
        let mut out = Matrix::zeros(rows, product.weight.out_features);
        linear.matmul(&a, None, &mut out);
        assert_eq!(bits(&out.data), bits(&product.y), "{name}: output");
    }
}
