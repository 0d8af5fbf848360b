//! Layers whose arithmetic is simulated, and inputs for them.

use qqq_backend::{Backend, InputKind};
use qqq_cuda::{DType, KernelType};
use qqq_formats::{LinearWeight, SimulatedWeight, WeightData, simulated::Arithmetic};

use crate::uniform::uniform;

/// A number in (-1, 1).
fn number(seed: u64, i: usize) -> f32 {
    2.0 * uniform(seed, i) - 1.0
}

/// A layer of `n x k` for each of: LLM.int8(); QUIK with outliers of 16 bits, of 8 bits, and with none.
pub fn weights(half: DType, (n, k): (usize, usize)) -> Vec<SimulatedWeight> {
    let rounded = |v: f32| half.decode(half.encode(v));
    let dtype = if half == DType::BF16 { qqq_formats::DType::BF16 } else { qqq_formats::DType::F16 };
    let quik = |bits: u8, outliers: Vec<usize>, of_codes: bool| {
        let most = f32::from((1u8 << (bits - 1)) - 1);
        let scales: Vec<f32> = (0..n).map(|row| rounded(0.01 + row as f32 / 999.0)).collect();
        let outlier_scales: Vec<f32> = scales.iter().map(|s| s / 8.0).collect();
        let value = |i: usize| match (outliers.contains(&(i % k)), of_codes) {
            (true, true) => (number(1, i) * 127.0).round() * outlier_scales[i / k],
            (true, false) => number(1, i),
            (false, _) => (number(1, i) * most).round() * scales[i / k],
        };
        let data = WeightData::of_f32(dtype, &(0..n * k).map(value).collect::<Vec<_>>());
        let outlier_scales = of_codes.then_some(outlier_scales);
        let arithmetic = Arithmetic::Quik { bits, scales, outliers, outlier_scales };
        SimulatedWeight { out_features: n, in_features: k, data, arithmetic }
    };
    let floats: Vec<f32> = (0..n * k).map(|i| number(2, i)).collect();
    vec![
        SimulatedWeight {
            out_features: n,
            in_features: k,
            data: WeightData::of_f32(dtype, &floats),
            arithmetic: Arithmetic::LlmInt8 { threshold: 6.0 },
        },
        quik(4, vec![1, 7, k - 1], false),
        quik(4, vec![0, 7, k / 2, k - 2], true),
        quik(8, vec![], false),
        quik(4, vec![], true),
    ]
}

/// Rows of the 16-bit type, some values of which are large: the first row is even, the last zero.
pub fn input(half: DType, (m, k): (usize, usize)) -> Vec<f32> {
    let value = |i: usize| match (i / k, i % k) {
        (0, _) => 1.25,
        (row, _) if row + 1 == m => 0.0,
        (row, 7) => 9.0 + row as f32 / 16.0,
        (row, 11) if row % 3 == 2 => -6.0,
        _ => 4.0 * number(3, i) + 0.7,
    };
    (0..m * k).map(|i| half.decode(half.encode(value(i)))).collect()
}

/// What a backend makes of a layer and `m` rows.
pub fn output<B: Backend>(
    b: &B,
    weight: SimulatedWeight,
    bias: Option<Vec<f32>>,
    (m, x): (usize, &[f32]),
) -> Vec<f32> {
    let k = weight.in_features;
    let layer = b.linear_weight(LinearWeight::Simulated(weight), bias).unwrap();
    let mut rows = b.upload(m, k, x.to_vec()).unwrap();
    let (mut input, mut out) = (b.input(m, k).unwrap(), b.tensor(0, 0).unwrap());
    assert_eq!(b.input_kind(&layer), InputKind::Float);
    b.to_input(&mut rows, InputKind::Float, &mut input).unwrap();
    b.linear(&input, &layer, &mut out).unwrap();
    b.read(&out).unwrap().into_owned()
}
