//! Calibration on the CPU.

mod attended;
mod deviation;
mod gram;
mod nearest;
mod smooth;

use std::borrow::Cow;

use qqq_formats::{DType, LinearWeight, WeightData};

use super::{
    CpuBackend, CpuInput, CpuLinear, MLP_ROWS,
    integer::Int8Activations,
    learn::{Array, CpuLearner},
    matrix::Matrix,
};
use crate::{
    AttentionKind, Backend, BackendError, Calibrate, DeviationValues, InputKind, Pieces, Result,
    first_not_finite, pool::parallel_each_mut, rotate::Turn, solve::Scheme,
};
pub use deviation::CpuDeviation;
pub use gram::CpuGram;

/// Sequences that add to sums of their own at the same time.
const LANES: usize = 8;

/// A Hessian in memory.
#[derive(Clone, Debug)]
pub struct CpuHessian {
    width: usize,
    /// `width x width`, row-major.
    values: Vec<f32>,
}

impl CpuHessian {
    fn trace(&self) -> f64 {
        self.values.iter().step_by(self.width + 1).map(|&d| f64::from(d)).sum()
    }
}

/// Weights in memory.
#[derive(Clone, Debug)]
pub struct CpuWeights {
    k: usize,
    /// `n x k`, row-major.
    values: Vec<f32>,
}

/// An orthogonal matrix in memory.
#[derive(Clone, Debug)]
pub struct CpuRotation {
    width: usize,
    /// `width x width`, row-major.
    matrix: Vec<f32>,
}

impl CpuRotation {
    /// As what multiplies; fails unless blocks of its width fill `channels`.
    fn turn(&self, channels: usize) -> Result<Turn<'_>> {
        if !channels.is_multiple_of(self.width.max(1)) {
            return Err(BackendError::Shape(format!(
                "{channels} channels are turned by a matrix of width {}",
                self.width
            )));
        }
        Ok(Turn { width: self.width, matrix: &self.matrix })
    }
}

impl Calibrate for CpuBackend {
    type Gram = CpuGram;
    type Hessian = CpuHessian;
    type Weights = CpuWeights;
    type Rotation = CpuRotation;
    type Deviations = CpuDeviation;
    type Deviation = CpuDeviation;
    type Learner = CpuLearner<f32>;

    const PIECES: Pieces = Pieces {
        attended_queries: attended::QUERIES,
        probability_queries: attended::BLOCK,
        gram_rows: gram::PANEL_ROWS,
        mlp_tokens: MLP_ROWS,
        lanes: LANES,
        on_host: true,
    };

    fn gram(&self, width: usize) -> Result<CpuGram> {
        Ok(CpuGram::new(width))
    }

    fn gram_add(&self, gram: &mut CpuGram, x: &CpuInput) -> Result<()> {
        check_width(gram.width, x)?;
        match x {
            CpuInput::Float(x) => gram.add(x),
            CpuInput::Int8(x) => gram.add_int8(x),
        }
        Ok(())
    }

    fn gram_of(&self, width: usize, inputs: &[&CpuInput]) -> Result<CpuGram> {
        let mut int8: Vec<&Int8Activations> = Vec::with_capacity(inputs.len());
        let mut float: Vec<&Matrix> = Vec::new();
        for x in inputs {
            check_width(width, x)?;
            match x {
                CpuInput::Int8(x) => int8.push(x),
                CpuInput::Float(x) => float.push(x),
            }
        }
        match (int8.as_slice(), float.as_slice()) {
            (int8, []) => Ok(CpuGram::of_int8(width, int8)),
            ([], float) => Ok(CpuGram::of_float(width, float)),
            _ => Err(BackendError::Shape("a sum over float and int8 inputs".into())),
        }
    }

    fn gram_merge(&self, sum: &mut CpuGram, part: &CpuGram) -> Result<()> {
        sum.merge(part);
        Ok(())
    }

    fn hessian(&self, gram: CpuGram) -> Result<CpuHessian> {
        Ok(CpuHessian { width: gram.width, values: gram.finish() })
    }

    fn hessian_add(&self, hessian: &mut CpuHessian, other: &CpuHessian, share: f64) -> Result<()> {
        if hessian.width != other.width {
            return Err(BackendError::Shape(format!(
                "Hessians of {} and of {} channels",
                hessian.width, other.width
            )));
        }
        let (own, others) = (hessian.trace(), other.trace());
        let factor = if others > 0.0 { share * own / others } else { 0.0 };
        let pairs = hessian.values.iter_mut().zip(&other.values);
        pairs.for_each(|(a, b)| *a = (f64::from(*a) + factor * f64::from(*b)) as f32);
        Ok(())
    }

    fn deviations(&self, width: usize, together: &[&CpuInput]) -> Result<CpuDeviation> {
        together.iter().try_for_each(|x| check_width(width, x))?;
        Ok(CpuDeviation::new(width, together))
    }

    fn deviations_add(
        &self,
        sums: &mut CpuDeviation,
        first: usize,
        pairs: &[(&CpuInput, &CpuInput)],
    ) -> Result<()> {
        sums.add(first, pairs)
    }

    fn deviation(&self, sums: CpuDeviation) -> Result<CpuDeviation> {
        Ok(sums.finish())
    }

    fn deviation_add(&self, deviation: &mut CpuDeviation, other: &CpuDeviation, factor: f64) -> Result<()> {
        deviation.add_other(other, factor)
    }

    fn read_deviation<'d>(&self, deviation: &'d CpuDeviation) -> Result<DeviationValues<'d>> {
        let (cross, square) = deviation.values();
        Ok(DeviationValues { cross: Cow::Borrowed(cross), square: Cow::Borrowed(square) })
    }

    fn read_hessian<'h>(&self, hessian: &'h CpuHessian) -> Result<Cow<'h, [f32]>> {
        Ok(Cow::Borrowed(&hessian.values))
    }

    fn attended(&self, x: &CpuInput, qkv: &Matrix, kind: &AttentionKind) -> Result<CpuInput> {
        let rows = match x {
            CpuInput::Float(x) => Cow::Borrowed(x),
            CpuInput::Int8(x) => Cow::Owned(x.dequantize()),
        };
        Ok(CpuInput::Float(attended::attended(self.simd_level(), &rows, qkv, kind)?))
    }

    fn weights(&self, n: usize, k: usize, data: WeightData) -> Result<CpuWeights> {
        if n.checked_mul(k) != Some(data.len()) || k == 0 {
            return Err(BackendError::Shape(format!("{} values for a weight of {n} x {k}", data.len())));
        }
        Ok(CpuWeights { k, values: data.into_f32() })
    }

    fn read_weights<'w>(&self, weights: &'w CpuWeights) -> Result<Cow<'w, [f32]>> {
        Ok(Cow::Borrowed(&weights.values))
    }

    fn scale_inputs(&self, weights: &mut CpuWeights, s: &[f32]) -> Result<()> {
        if s.len() != weights.k {
            return Err(BackendError::Shape(format!("{} factors for {} channels", s.len(), weights.k)));
        }
        for row in weights.values.chunks_exact_mut(weights.k) {
            row.iter_mut().zip(s).for_each(|(w, s)| *w *= s);
        }
        Ok(())
    }

    fn divide_outputs(&self, weights: &mut CpuWeights, first: usize, s: &[f32]) -> Result<()> {
        let rows = weights.values.chunks_exact_mut(weights.k).skip(first);
        if rows.len() < s.len() {
            return Err(BackendError::Shape(format!("{} divisors for {} channels", s.len(), rows.len())));
        }
        for (row, s) in rows.zip(s) {
            row.iter_mut().for_each(|w| *w /= s);
        }
        Ok(())
    }

    fn float_linear(&self, weights: &CpuWeights, bias: Option<Vec<f32>>) -> Result<CpuLinear> {
        let data = WeightData::F32(weights.values.clone());
        let (out_features, in_features) = (weights.values.len() / weights.k, weights.k);
        self.linear_weight(LinearWeight::Float { out_features, in_features, data }, bias)
    }

    fn round_scaled(
        &self,
        weights: &CpuWeights,
        s: &[f32],
        scheme: Scheme,
        bias: Option<&[f32]>,
        linear: &mut Option<CpuLinear>,
    ) -> Result<()> {
        let k = weights.k;
        if s.len() != k {
            return Err(BackendError::Shape(format!("{} factors for {k} channels", s.len())));
        }
        scheme.check(k).map_err(BackendError::Shape)?;
        *linear = None;
        let weight = nearest::round_scaled(&weights.values, s, scheme);
        // Scales are float32 here, and so is what they make of codes.
        let weight = scheme.layer(weight, DType::F32);
        *linear = Some(self.linear_weight(weight, bias.map(<[f32]>::to_vec))?);
        Ok(())
    }

    fn input_not_finite(&self, x: &CpuInput) -> Result<Option<(usize, f32)>> {
        let values = x.values();
        Ok(first_not_finite(&values).map(|first| (first / x.cols().max(1), values[first])))
    }

    fn channel_range(&self, x: &CpuInput) -> Result<(Vec<f32>, Vec<f32>)> {
        Ok(smooth::channel_range(float_rows(x)?))
    }

    fn smooth_input(&self, x: &CpuInput, s: &[f32], kind: InputKind, out: &mut CpuInput) -> Result<()> {
        check_width(s.len(), x)?;
        let mut scaled = smooth::divided(float_rows(x)?, s);
        self.to_input(&mut scaled, kind, out)
    }

    fn squared_distance(&self, a: &CpuInput, b: Option<&CpuInput>) -> Result<f64> {
        match b {
            Some(b) if (a.rows(), a.cols()) != (b.rows(), b.cols()) => Err(BackendError::Shape(format!(
                "{} x {} values compared with {} x {}",
                a.rows(),
                a.cols(),
                b.rows(),
                b.cols()
            ))),
            b => Ok(smooth::squared_distance(a, b)),
        }
    }

    fn rotation(&self, width: usize, matrix: &[f32]) -> Result<CpuRotation> {
        Ok(CpuRotation { width, matrix: matrix.to_vec() })
    }

    fn rotate_inputs(&self, weights: &mut CpuWeights, q: &CpuRotation) -> Result<()> {
        q.turn(weights.k)?.apply_rows(&mut weights.values);
        Ok(())
    }

    fn rotate_outputs(&self, weights: &mut CpuWeights, first: usize, q: &CpuRotation) -> Result<()> {
        let k = weights.k;
        let rows = (weights.values.len() / k).saturating_sub(first);
        q.turn(rows)?.apply_outputs(&mut weights.values[first * k..], k);
        Ok(())
    }

    fn learner(&self) -> CpuLearner<f32> {
        CpuLearner::new()
    }

    fn to_array(&self, x: &Matrix) -> Result<Array<f32>> {
        Ok(Array { rows: x.rows, cols: x.cols, data: x.data.clone() })
    }

    fn tensor_of(&self, Array { rows, cols, data }: Array<f32>) -> Result<Matrix> {
        Ok(Matrix { rows, cols, data })
    }

    fn each<T: Send>(&self, items: &mut [T], job: impl Fn(&mut T) + Sync) {
        parallel_each_mut(items, |_, item| job(item));
    }
}

/// Rows that are float.
fn float_rows(x: &CpuInput) -> Result<&Matrix> {
    match x {
        CpuInput::Float(x) => Ok(x),
        CpuInput::Int8(_) => Err(BackendError::Shape("int8 rows where float ones are smoothed".into())),
    }
}

fn check_width(width: usize, x: &CpuInput) -> Result<()> {
    if x.cols() == width {
        return Ok(());
    }
    Err(BackendError::Shape(format!("inputs of {} channels for a sum of {width}", x.cols())))
}
