//! Linear layers whose arithmetic is simulated: exact integer sums beside products in float.
//!
//! What their methods multiply in 16 bits is multiplied here as the CPU multiplies all 16-bit weights: by float32 activations.

use qqq_formats::{CodeBits, QuantizedWeight, Scales, SimulatedWeight, WeightData, simulated::Arithmetic};

use super::{
    integer::{Int8Activations, IntegerLinear, quantize_row},
    isa::Isa,
    linear_float::{FloatLinear, check_bias},
    matrix::Matrix,
};
use crate::{BackendError, Result, pool::parallel_chunks_mut, simd::SimdLevel};

/// A layer of a simulated checkpoint, with its bias.
#[derive(Clone, Debug)]
pub struct SimulatedLinear {
    integer: IntegerLinear,
    kind: Kind,
    bias: Option<Vec<f32>>,
}

#[derive(Clone, Debug)]
enum Kind {
    LlmInt8 {
        threshold: f32,
        /// `N x K`.
        weights: WeightData,
    },
    Quik {
        bits: u8,
        outliers: Vec<usize>,
        outlier_weights: OutlierWeights,
        /// Sum of an output channel's codes times its scale: what an input of ones gives. Shape `N`.
        reduced: Vec<f32>,
    },
}

/// What QUIK's outlier channels are multiplied by.
#[derive(Clone, Debug)]
enum OutlierWeights {
    /// There are no such channels.
    None,
    /// 16-bit weights, `N x outliers`.
    Half(FloatLinear),
    /// 8-bit codes, `N x K`, zero in all other channels; and their sums, as those of the others.
    Int8 { integer: IntegerLinear, reduced: Vec<f32> },
}

impl SimulatedLinear {
    /// # Errors
    /// A weight that does not hold what its arithmetic says; shapes that the integer kernels do not take.
    pub(super) fn new(weight: SimulatedWeight, bias: Option<Vec<f32>>) -> Result<Self> {
        let (n, k) = (weight.out_features, weight.in_features);
        check_bias(n, bias.as_deref())?;
        let shape = |e: qqq_formats::FormatError| BackendError::Shape(e.to_string());
        let codes = weight.codes().map_err(shape)?;
        let outlier_codes = weight.outlier_codes().map_err(shape)?;
        let SimulatedWeight { data, arithmetic, .. } = weight;
        let (bits, codes, scales, kind) = match (arithmetic, codes) {
            (Arithmetic::Quik { bits, scales, outliers, outlier_scales }, Some(codes)) => {
                let reduced = reduced(&codes, k, &scales);
                let outlier_weights = match (outlier_scales, outlier_codes) {
                    _ if outliers.is_empty() => OutlierWeights::None,
                    (Some(scales), Some(codes)) => {
                        let reduced = self::reduced(&codes, k, &scales);
                        OutlierWeights::Int8 { integer: integer(8, (n, k), codes, scales)?, reduced }
                    }
                    _ => {
                        let values = columns(&data, k, &outliers);
                        let data = WeightData::of_f32(data.dtype(), &values);
                        OutlierWeights::Half(FloatLinear::new(n, outliers.len(), data.into(), None)?)
                    }
                };
                (bits, codes, scales, Kind::Quik { bits, outliers, outlier_weights, reduced })
            }
            (Arithmetic::LlmInt8 { threshold }, _) => {
                let (mut codes, mut scales) = (vec![0; n * k], vec![0.0; n]);
                let values = data.clone().into_f32();
                let rows = codes.chunks_exact_mut(k).zip(values.chunks_exact(k)).zip(&mut scales);
                rows.for_each(|((codes, values), scale)| *scale = quantize_row(values, codes).0);
                (8, codes, scales, Kind::LlmInt8 { threshold, weights: data })
            }
            (Arithmetic::Quik { .. }, None) => {
                return Err(BackendError::Shape("a simulated layer without codes".into()));
            }
        };
        Ok(Self { integer: integer(bits, (n, k), codes, scales)?, kind, bias })
    }

    /// `N`, the number of output channels.
    pub fn out_features(&self) -> usize {
        self.integer.out_features()
    }

    /// `K`, the number of input channels.
    pub fn in_features(&self) -> usize {
        self.integer.in_features()
    }

    /// What is simulated.
    pub fn arithmetic(&self) -> &'static str {
        match self.kind {
            Kind::LlmInt8 { .. } => "LLM.int8() simulated",
            Kind::Quik { bits: 4, .. } => "QUIK W4A4 simulated",
            Kind::Quik { .. } => "QUIK W8A8 simulated",
        }
    }

    /// The path of its integer kernels.
    pub fn isa(&self) -> Isa {
        self.integer.isa()
    }

    /// Bytes of both forms of the weight.
    pub fn bytes(&self) -> usize {
        let float = match &self.kind {
            Kind::LlmInt8 { weights, .. } => weights.len() * weights.dtype().size().unwrap_or(0),
            Kind::Quik { outlier_weights, .. } => match outlier_weights {
                OutlierWeights::None => 0,
                OutlierWeights::Half(float) => {
                    let data = float.data();
                    data.len() * data.dtype().size().unwrap_or(0)
                }
                OutlierWeights::Int8 { integer, .. } => integer.bytes(),
            },
        };
        self.integer.bytes() + float
    }

    /// `x W^T + bias` by the method's arithmetic; shape `x.rows x N`.
    ///
    /// # Errors
    /// Those of the parts that are made for this input.
    pub(super) fn matmul(&self, level: SimdLevel, x: &Matrix, out: &mut Matrix) -> Result<()> {
        out.reshape(x.rows, self.out_features());
        // What is added: to each token's outputs what an input of ones gives, times its zero; and a product.
        let (codes, float, product) = match &self.kind {
            Kind::LlmInt8 { threshold, weights } => {
                let outliers = large_columns(x, *threshold);
                let mut rest = Matrix { rows: x.rows, cols: x.cols, data: x.data.clone() };
                for row in rest.data.chunks_exact_mut(x.cols) {
                    outliers.iter().for_each(|j| row[*j] = 0.0);
                }
                let codes = Int8Activations::quantize(&rest);
                let float = match outliers.len() {
                    0 => None,
                    count => {
                        let values = WeightData::F32(columns(weights, x.cols, &outliers));
                        Some(FloatLinear::new(self.out_features(), count, values.into(), None)?)
                    }
                };
                let product = float.as_ref().map(|float| times(level, x, float, &outliers));
                (codes, None, product)
            }
            Kind::Quik { bits, outliers, outlier_weights, reduced } => {
                let mut is_outlier = vec![false; x.cols];
                outliers.iter().for_each(|j| is_outlier[*j] = true);
                let (codes, zeros) = asymmetric(x, *bits, |j| !is_outlier[j]);
                let product = match outlier_weights {
                    OutlierWeights::None => None,
                    OutlierWeights::Half(float) => Some(times(level, x, float, outliers)),
                    OutlierWeights::Int8 { integer, reduced } => {
                        let (codes, zeros) = asymmetric(x, 8, |j| is_outlier[j]);
                        let mut product = Matrix::default();
                        product.reshape(x.rows, self.out_features());
                        integer.matmul(&codes, None, &mut product);
                        add_zeros(&mut product, &zeros, reduced);
                        Some(product)
                    }
                };
                (codes, Some((zeros, reduced)), product)
            }
        };
        self.integer.matmul(&codes, None, out);
        if let Some((zeros, reduced)) = float {
            add_zeros(out, &zeros, reduced);
        }
        let n = out.cols;
        parallel_chunks_mut(&mut out.data, n, |row, out| {
            if let Some(product) = &product {
                out.iter_mut().zip(product.row(row)).for_each(|(y, p)| *y += p);
            }
            if let Some(bias) = &self.bias {
                out.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
        });
        Ok(())
    }
}

/// Codes as the integer kernels take them.
fn integer(bits: u8, (n, k): (usize, usize), codes: Vec<i8>, scales: Vec<f32>) -> Result<IntegerLinear> {
    let bits = if bits == 4 { CodeBits::Four } else { CodeBits::Eight };
    let scales = Scales::PerChannel(scales);
    IntegerLinear::new(&QuantizedWeight { bits, out_features: n, in_features: k, codes, scales })
}

/// The sum of each output channel's codes times its scale.
fn reduced(codes: &[i8], k: usize, scales: &[f32]) -> Vec<f32> {
    let sum = |row: &[i8]| row.iter().map(|c| i32::from(*c)).sum::<i32>();
    codes.chunks_exact(k).zip(scales).map(|(row, s)| sum(row) as f32 * s).collect()
}

/// Adds to each token's outputs what an input of ones gives, times the token's zero.
fn add_zeros(out: &mut Matrix, zeros: &[f32], reduced: &[f32]) {
    let n = out.cols;
    parallel_chunks_mut(&mut out.data, n, |row, out| {
        out.iter_mut().zip(reduced).for_each(|(y, r)| *y += zeros[row] * r);
    });
}

/// The product of some columns of `x` with the weights that belong to them.
fn times(level: SimdLevel, x: &Matrix, weights: &FloatLinear, columns: &[usize]) -> Matrix {
    let data = x.data.chunks_exact(x.cols).flat_map(|row| columns.iter().map(|j| row[*j])).collect();
    let mut out = Matrix::default();
    weights.matmul(level, &Matrix { rows: x.rows, cols: columns.len(), data }, &mut out);
    out
}

/// Some columns of a row-major matrix of width `k`, in float32.
fn columns(data: &WeightData, k: usize, columns: &[usize]) -> Vec<f32> {
    let some = |value: &dyn Fn(usize) -> f32| -> Vec<f32> {
        (0..data.len()).step_by(k).flat_map(|row| columns.iter().map(move |j| value(row + j))).collect()
    };
    match data {
        WeightData::F32(values) => some(&|i| values[i]),
        WeightData::F16(values) => some(&|i| values[i].to_f32()),
        WeightData::BF16(values) => some(&|i| values[i].to_f32()),
    }
}

/// Columns in which any magnitude reaches a threshold; one that is no number counts.
fn large_columns(x: &Matrix, threshold: f32) -> Vec<usize> {
    let mut large = vec![false; x.cols];
    for row in x.data.chunks_exact(x.cols) {
        large.iter_mut().zip(row).for_each(|(large, v)| *large |= v.abs() >= threshold || v.is_nan());
    }
    (0..x.cols).filter(|j| large[*j]).collect()
}

/// Some columns of rows as unsigned codes of `bits` bits from their least value to their largest, less half the range; and what a
/// code of less than half the range stands for: `x = code * scale + zero`. Columns that are not `kept` count for nothing and have
/// code 0. Rows with a value that is not finite have it as their zero.
fn asymmetric(x: &Matrix, bits: u8, kept: impl Fn(usize) -> bool) -> (Int8Activations, Vec<f32>) {
    let levels = f32::from((1u16 << bits) - 1);
    let half = 1i32 << (bits - 1);
    let mut out = Int8Activations::default();
    out.reshape(x.rows, x.cols);
    let mut zeros = vec![0.0; x.rows];
    for (row, zero) in zeros.iter_mut().enumerate() {
        let values = || x.row(row).iter().enumerate().filter(|(j, _)| kept(*j)).map(|(_, v)| *v);
        let codes = &mut out.codes[row * x.cols..(row + 1) * x.cols];
        codes.fill(0);
        if let Some(bad) = values().find(|v| !v.is_finite()) {
            (*zero, out.scales[row], out.sums[row]) = (bad, 1.0, 0);
            continue;
        }
        let (low, high) = values().fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        // Halves of both, whose difference is always finite.
        let scale = 2.0 * ((high / 2.0 - low / 2.0) / levels);
        let scale = if scale > 0.0 && scale.is_finite() { scale } else { 1.0 };
        let mut sum = 0;
        for (j, (code, v)) in codes.iter_mut().zip(x.row(row)).enumerate() {
            if kept(j) {
                let q = ((v - low) / scale).round_ties_even().clamp(0.0, levels) as i32 - half;
                *code = q as i8;
                sum += q;
            }
        }
        let low = if low.is_finite() { low } else { 0.0 };
        (*zero, out.scales[row], out.sums[row]) = (low + half as f32 * scale, scale, sum);
    }
    (out, zeros)
}

#[cfg(test)]
mod tests {
    use half::f16;
    use qqq_formats::LinearWeight;

    use super::*;
    use crate::{Backend, CpuBackend};

    const N: usize = 32;
    const K: usize = 48;

    fn number(i: usize) -> f32 {
        ((i * 7919 + 13) % 1013) as f32 / 506.5 - 1.0
    }

    fn run(weight: SimulatedWeight, x: &Matrix, bias: Option<Vec<f32>>) -> Vec<f32> {
        let backend = CpuBackend::new();
        let layer = backend.linear_weight(LinearWeight::Simulated(weight), bias).unwrap();
        assert_eq!(backend.input_kind(&layer), crate::InputKind::Float);
        let mut input = backend.input(x.rows, x.cols).unwrap();
        backend.to_input(&mut x.clone(), crate::InputKind::Float, &mut input).unwrap();
        let mut out = backend.tensor(x.rows, N).unwrap();
        backend.linear(&input, &layer, &mut out).unwrap();
        out.data
    }

    fn close(got: &[f32], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            assert!((f64::from(*g) - w).abs() < 2e-5 * (1.0 + w.abs()), "{i}: {g}, not {w}");
        }
    }

    /// The definition of LLM.int8(), in plain words and float64.
    #[test]
    fn llm_int8_is_its_definition() {
        for (rows, large) in [(1, vec![]), (3, vec![(0, 5), (2, 17)]), (70, vec![(69, 0)])] {
            let mut x = Matrix { rows, cols: K, data: (0..rows * K).map(|i| 3.0 * number(i + 1)).collect() };
            for (row, j) in &large {
                x.data[row * K + j] = -6.0 - *j as f32;
            }
            let data = WeightData::F16((0..N * K).map(|i| f16::from_f32(number(i))).collect());
            let w: Vec<f64> = data.clone().into_f32().into_iter().map(f64::from).collect();
            let bias: Vec<f32> = (0..N).map(number).collect();
            let outlier = |j: usize| large.iter().any(|(_, l)| *l == j);
            let rounded = |v: f32, scale: f32| f64::from((v / scale).round_ties_even());
            let mut want = vec![];
            for row in x.data.chunks(K) {
                let sx = (0..K).filter(|j| !outlier(*j)).fold(0.0f32, |m, j| m.max(row[j].abs())) / 127.0;
                for (n, w) in w.chunks(K).enumerate() {
                    let sw = w.iter().fold(0.0f32, |m, v| m.max(v.abs() as f32)) / 127.0;
                    let (mut integers, mut floats) = (0.0, 0.0);
                    for j in 0..K {
                        if outlier(j) {
                            floats += f64::from(row[j]) * w[j];
                        } else {
                            integers += rounded(row[j], sx) * rounded(w[j] as f32, sw);
                        }
                    }
                    want.push(integers * f64::from(sx) * f64::from(sw) + floats + f64::from(bias[n]));
                }
            }
            let arithmetic = Arithmetic::LlmInt8 { threshold: 6.0 };
            let weight = SimulatedWeight { out_features: N, in_features: K, data, arithmetic };
            close(&run(weight, &x, Some(bias)), &want);
        }
    }

    fn quik(bits: u8, outliers: Vec<usize>, outlier_bits: u8) -> SimulatedWeight {
        let most = ((1 << (bits - 1)) - 1) as f32;
        let scales: Vec<f32> = (0..N).map(|n| f16::from_f32(0.01 + n as f32 / 999.0).to_f32()).collect();
        let outlier_scales: Vec<f32> = scales.iter().map(|s| s / 8.0).collect();
        let value = |i: usize| match (outliers.contains(&(i % K)), outlier_bits) {
            (true, 8) => f16::from_f32((number(i) * 127.0).round() * outlier_scales[i / K]),
            (true, _) => f16::from_f32(number(i)),
            (false, _) => f16::from_f32((number(i) * most).round() * scales[i / K]),
        };
        let data = WeightData::F16((0..N * K).map(value).collect());
        let outlier_scales = (outlier_bits == 8).then_some(outlier_scales);
        let arithmetic = Arithmetic::Quik { bits, scales, outliers, outlier_scales };
        SimulatedWeight { out_features: N, in_features: K, data, arithmetic }
    }

    /// Some columns of a row as codes stand for them, from the least of them to the largest.
    fn on_their_grid(row: &[f32], bits: u8, kept: impl Fn(usize) -> bool) -> Vec<f64> {
        let values: Vec<f32> = (0..K).filter(|j| kept(*j)).map(|j| row[j]).collect();
        let low = values.iter().fold(f32::MAX, |m, v| m.min(*v));
        let high = values.iter().fold(f32::MIN, |m, v| m.max(*v));
        let scale = (high - low) / ((1 << bits) - 1) as f32;
        let scale = if scale > 0.0 { scale } else { 1.0 };
        let rounded = |v: f32| f64::from(((v - low) / scale).round_ties_even());
        row.iter().map(|v| rounded(*v) * f64::from(scale) + f64::from(low)).collect()
    }

    /// The definition of QUIK's product, in plain words and float64.
    #[test]
    fn quik_is_its_definition() {
        for (bits, outliers, outlier_bits, rows) in [
            (4, vec![3, 47], 16, 5),
            (8, vec![0], 16, 1),
            (4, vec![], 16, 40),
            (4, vec![2, 3, 40, 41, 47], 8, 7),
            (8, vec![11], 8, 2),
            (4, vec![], 8, 3),
        ] {
            let weight = quik(bits, outliers.clone(), outlier_bits);
            let Arithmetic::Quik { scales, outlier_scales, .. } = &weight.arithmetic else { unreachable!() };
            let x = Matrix { rows, cols: K, data: (0..rows * K).map(|i| 5.0 * number(i) + 0.7).collect() };
            let (codes, outlier_codes) = (weight.codes().unwrap().unwrap(), weight.outlier_codes().unwrap());
            assert_eq!(outlier_codes.is_some(), outlier_bits == 8);
            let floats = weight.data.clone().into_f32();
            let mut want = vec![];
            for row in x.data.chunks(K) {
                let is_outlier = |j: usize| outliers.contains(&j);
                let base = on_their_grid(row, bits, |j| !is_outlier(j));
                let other = on_their_grid(row, 8, is_outlier);
                for n in 0..N {
                    let product = |j: usize| match (is_outlier(j), &outlier_codes, outlier_scales) {
                        (false, ..) => base[j] * f64::from(codes[n * K + j]) * f64::from(scales[n]),
                        (true, Some(codes), Some(scales)) => {
                            other[j] * f64::from(codes[n * K + j]) * f64::from(scales[n])
                        }
                        (true, ..) => f64::from(row[j]) * f64::from(floats[n * K + j]),
                    };
                    want.push((0..K).map(product).sum());
                }
            }
            close(&run(weight, &x, None), &want);
        }
    }

    #[test]
    fn rows_that_are_not_finite_stay_visible_and_even_ones_are_exact() {
        let mut x = Matrix { rows: 3, cols: K, data: vec![1.25; 3 * K] };
        x.data[K + 4] = f32::NAN;
        x.data[2 * K + 3] = f32::INFINITY;
        let weight = quik(4, vec![3], 16);
        let exact: Vec<f64> = weight
            .data
            .clone()
            .into_f32()
            .chunks(K)
            .map(|w| w.iter().map(|v| 1.25 * f64::from(*v)).sum())
            .collect();
        let out = run(weight, &x, None);
        for (got, want) in out[..N].iter().zip(&exact) {
            assert!((f64::from(*got) - want).abs() < 3e-3 * want.abs().max(1.0), "{got}, not {want}");
        }
        assert!(out[N..].iter().all(|v| !v.is_finite()));
        let arithmetic = Arithmetic::LlmInt8 { threshold: 6.0 };
        let weight = SimulatedWeight { arithmetic, ..quik(4, vec![], 16) };
        let out = run(weight, &x, None);
        assert!(out[..N].iter().all(|v| v.is_finite()) && out[N..2 * N].iter().all(|v| v.is_nan()));
    }

    #[test]
    fn weights_that_are_no_codes_are_refused() {
        let mut weight = quik(4, vec![3], 16);
        if let WeightData::F16(values) = &mut weight.data {
            values[K + 3] = f16::from_f32(0.123);
            values[K + 5] = f16::from_f32(0.123);
        }
        let error = CpuBackend::new().linear_weight(LinearWeight::Simulated(weight), None).unwrap_err();
        assert!(error.to_string().contains("weight [1, 5] is 0.12298584"), "{error}");
    }
}
