//! Calibration on the GPU: second moments on tensor cores, inputs as attention averages them, what the float model's inputs
//! deviate by, and the solver.
//!
//! Sums are float32, of inputs in 16 bits: int8 rows are made bfloat16, whose rounding (2^-8 of a value at most, with either sign) is
//! lost in the average over thousands of tokens. Everything runs on the device's stream in the order of the calls, so that two
//! runs on the same kind of GPU give the same bits.

mod correct;
mod deviation;
mod factor;
pub mod kernels;
pub mod parameters;
mod smooth;
mod solve;
mod weights;

use std::borrow::Cow;
use std::sync::PoisonError;

use qqq_backend::solve::{Scheme, Solution, Unsolved};
use qqq_backend::{
    AttentionKind, Backend, BackendError, Calibrate, DeviationValues, InputKind, Pieces, Result,
};
use qqq_formats::{LinearWeight, WeightData};

pub use self::deviation::{CudaDeviation, CudaDeviations};
use self::kernels::CalibrationKernel as Kernel;
use self::parameters::{
    DiagonalParameters, MirrorParameters, NotFiniteParameters, ProbabilityParameters, WidenParameters,
};
use self::solve::CudaProblem;
pub use self::weights::{CudaRotation, CudaWeights};
use super::blas::{Matrix, Number, Operands, Product};
use super::learn::{CudaLearner, CudaMatrix};
use super::memory::{Buffer, CudaInput, CudaTensor, Elements, read_values};
use super::steps::{AddParameters, StepKernel, value_type};
use super::{CudaBackend, CudaLinear, cached};
use crate::{CudaError, DType};

/// Queries of a window and head whose averages are taken, as on the CPU.
const ATTENDED_QUERIES: usize = 32;
/// Rows of a sum that are added to at a time: of those above the diagonal nothing is needed.
const PANEL_ROWS: usize = 2048;
/// What an index becomes where all is finite.
const NOWHERE: u32 = u32::MAX;

/// A running sum `x^T x` on a device, of which the lower triangle is valid once there were tokens.
#[derive(Debug)]
pub struct CudaGram {
    width: usize,
    tokens: usize,
    sum: Buffer,
}

/// Second moments on a device, `width x width` float32.
#[derive(Debug)]
pub struct CudaHessian {
    width: usize,
    values: Buffer,
}

impl CudaBackend {
    /// Launches a kernel of calibration.
    ///
    /// # Safety
    /// The parameters must be those of the kernel, and what they point to device memory of the sizes given.
    unsafe fn calibrate<T>(&self, kernel: Kernel, units: usize, mut parameters: T) -> crate::Result<()> {
        if units == 0 {
            return Ok(());
        }
        let loaded = cached(&self.shared.calibration, kernel, || self.device().kernel(&kernel.source(), 0))?;
        let ctas = kernel.ctas(units);
        if ctas > i32::MAX as usize {
            return Err(CudaError::Shape(format!("{units} parts of a matrix: too many for a launch")));
        }
        // SAFETY: the caller's promise.
        unsafe { self.launch_with(&loaded, (ctas, kernel.threads(), 0), false, &mut parameters) }
    }

    /// Index of the first of `count` values that is not finite.
    fn position_not_finite(&self, values: u64, count: usize, dtype: DType) -> crate::Result<Option<usize>> {
        if count >= NOWHERE as usize {
            return Err(CudaError::Shape(format!("{count} values to be checked at once")));
        }
        let found = Buffer::of(self.device(), &[NOWHERE])?;
        let parameters = NotFiniteParameters {
            values,
            count: count as i64,
            first: found.address(),
            value_type: value_type(dtype)?,
        };
        // SAFETY: the caller's values; the index is one word.
        unsafe { self.calibrate(Kernel::NotFinite, count, parameters) }?;
        let bytes = found.read(4)?;
        let first = bytes.first_chunk().map_or(NOWHERE, |b| u32::from_le_bytes(*b));
        Ok((first != NOWHERE).then_some(first as usize))
    }

    /// The first value of a tensor that is not finite, with its index.
    pub(super) fn tensor_not_finite(&self, x: &CudaTensor) -> Result<Option<(usize, f32)>> {
        let Some(at) = self.position_not_finite(x.address(), x.rows * x.cols, x.dtype)? else {
            return Ok(None);
        };
        Ok(Some((at, x.read()?[at])))
    }

    /// `out = alpha a b + beta out` by cuBLASLt; see [`Product`].
    ///
    /// # Safety
    /// The operands must be device memory of the product's sizes.
    pub(super) unsafe fn product(&self, product: &Product, o: &Operands) -> crate::Result<()> {
        if product.m == 0 || product.n == 0 {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { self.blas()?.launch(product, o) }
    }

    /// Rows of an input in 16 bits: where they are, and their type. `widened` is memory for int8 rows.
    fn half_rows(&self, x: &CudaInput, widened: &mut Buffer) -> crate::Result<(u64, DType)> {
        if x.elements == Elements::Half {
            return Ok((x.buffer.address(), x.half));
        }
        if !x.cols.is_multiple_of(4) {
            return Err(CudaError::Shape(format!("int8 rows of {} channels: multiples of 4", x.cols)));
        }
        let count = x.rows * x.cols;
        widened.reserve(count * 2)?;
        let parameters = WidenParameters {
            codes: x.buffer.address(),
            scales: x.scales.address(),
            out: widened.address(),
            count: (count / 4) as i64,
            row_count: (x.cols / 4) as i32,
        };
        // SAFETY: codes, scales and output have these sizes.
        unsafe { self.calibrate(Kernel::Widen, count / 4, parameters) }?;
        Ok((widened.address(), DType::BF16))
    }

    fn add_to_gram(&self, gram: &mut CudaGram, x: &CudaInput) -> Result<()> {
        if x.cols != gram.width {
            return Err(BackendError::Shape(format!(
                "inputs of {} channels for a sum of {}",
                x.cols, gram.width
            )));
        }
        if x.rows == 0 || x.cols == 0 {
            return Ok(());
        }
        let mut widened = self.shared.widened.lock().unwrap_or_else(PoisonError::into_inner);
        let (rows, half) = self.half_rows(x, &mut widened)?;
        let beta = if gram.tokens == 0 { 0.0 } else { 1.0 };
        // SAFETY: rows and sum have these sizes.
        unsafe { self.add_squares(gram.sum.address(), rows, half, (x.rows, x.cols), beta) }?;
        gram.tokens += x.rows;
        Ok(())
    }

    /// The lower triangle of `sum = x^T x + beta sum`: of `count` rows of `k` values of the 16-bit type, and `k x k` float32.
    ///
    /// # Safety
    /// Rows and sum must be device memory of these sizes.
    unsafe fn add_squares(
        &self,
        sum: u64,
        rows: u64,
        half: DType,
        (count, k): (usize, usize),
        beta: f64,
    ) -> crate::Result<()> {
        for first in (0..k).step_by(PANEL_ROWS) {
            let panel = PANEL_ROWS.min(k - first);
            // The sum's rows are the library's columns; those of the panel end at the diagonal.
            let matrix = Matrix::new(Number::F32, k);
            let product = Product {
                m: first + panel,
                n: panel,
                k: count,
                a: Matrix::new(half.into(), k),
                b: Matrix::transposed(half.into(), k),
                c: matrix,
                d: matrix,
                bias: false,
            };
            let out = sum + (4 * first * k) as u64;
            let operands =
                Operands { a: rows, b: rows + (2 * first) as u64, c: out, d: out, bias: 0, alpha: 1.0, beta };
            // SAFETY: the caller's promise.
            unsafe { self.product(&product, &operands) }?;
        }
        Ok(())
    }

    fn trace(&self, hessian: &CudaHessian) -> crate::Result<f64> {
        Ok(self.diagonal(hessian)?.into_iter().map(f64::from).sum())
    }

    fn diagonal(&self, hessian: &CudaHessian) -> crate::Result<Vec<f32>> {
        let k = hessian.width;
        let out = Buffer::new(self.device(), 4 * k)?;
        let parameters =
            DiagonalParameters { matrix: hessian.values.address(), out: out.address(), width: k as i32 };
        // SAFETY: matrix and output have these sizes.
        unsafe { self.calibrate(Kernel::Diagonal, k, parameters) }?;
        read_values(&out, k, DType::F32)
    }

    /// `sum += factor * x`, float32.
    fn add_matrix(&self, sum: &Buffer, x: &Buffer, count: usize, factor: f32) -> crate::Result<()> {
        let parameters = AddParameters {
            residual: sum.address(),
            x: x.address(),
            count: count as i64,
            value_type: value_type(DType::F32)?,
            factor,
        };
        // SAFETY: both have this size.
        unsafe { self.launch_step(StepKernel::Add, count, parameters) }
    }
}

impl Calibrate for CudaBackend {
    type Gram = CudaGram;
    type Hessian = CudaHessian;
    type Weights = CudaWeights;
    type Rotation = CudaRotation;
    type Deviations = CudaDeviations;
    type Deviation = CudaDeviation;
    type Learner = CudaLearner;

    const PIECES: Pieces = Pieces {
        attended_queries: ATTENDED_QUERIES,
        probability_queries: ATTENDED_QUERIES,
        gram_rows: PANEL_ROWS,
        mlp_tokens: usize::MAX,
        // One stream.
        lanes: 1,
        on_host: false,
    };
    const SOLVES: bool = true;

    fn gram(&self, width: usize) -> Result<CudaGram> {
        Ok(CudaGram { width, tokens: 0, sum: Buffer::new(self.device(), 4 * width * width)? })
    }

    fn gram_add(&self, gram: &mut CudaGram, x: &CudaInput) -> Result<()> {
        self.add_to_gram(gram, x)
    }

    fn gram_of(&self, width: usize, inputs: &[&CudaInput]) -> Result<CudaGram> {
        let mut gram = self.gram(width)?;
        if inputs.windows(2).any(|pair| pair[0].elements != pair[1].elements) {
            return Err(BackendError::Shape("a sum over float and int8 inputs".into()));
        }
        for x in inputs {
            self.add_to_gram(&mut gram, x)?;
        }
        Ok(gram)
    }

    fn gram_merge(&self, sum: &mut CudaGram, part: &CudaGram) -> Result<()> {
        if sum.width != part.width {
            return Err(BackendError::Shape(format!("sums of {} and of {} channels", sum.width, part.width)));
        }
        match (sum.tokens, part.tokens) {
            (_, 0) => return Ok(()),
            (0, _) => return Err(BackendError::Shape("a sum is merged into one over no tokens".into())),
            _ => self.add_matrix(&sum.sum, &part.sum, sum.width * sum.width, 1.0)?,
        }
        sum.tokens += part.tokens;
        Ok(())
    }

    fn hessian(&self, gram: CudaGram) -> Result<CudaHessian> {
        let CudaGram { width, tokens, sum } = gram;
        if tokens == 0 {
            let values = Buffer::of(self.device(), &vec![0.0f32; width * width])?;
            return Ok(CudaHessian { width, values });
        }
        let parameters = MirrorParameters {
            matrix: sum.address(),
            width: width as i32,
            factor: (2.0 / tokens as f64) as f32,
        };
        // SAFETY: the matrix has this size.
        unsafe { self.calibrate(Kernel::Mirror, width, parameters) }?;
        Ok(CudaHessian { width, values: sum })
    }

    fn hessian_add(&self, hessian: &mut CudaHessian, other: &CudaHessian, share: f64) -> Result<()> {
        if hessian.width != other.width {
            return Err(BackendError::Shape(format!(
                "Hessians of {} and of {} channels",
                hessian.width, other.width
            )));
        }
        let (own, others) = (self.trace(hessian)?, self.trace(other)?);
        if others > 0.0 {
            let factor = (share * own / others) as f32;
            self.add_matrix(&hessian.values, &other.values, hessian.width * hessian.width, factor)?;
        }
        Ok(())
    }

    fn deviations(&self, width: usize, together: &[&CudaInput]) -> Result<CudaDeviations> {
        self.no_deviations(width, together)
    }

    // Every token has weight 1, here as in `gram_of`.
    fn deviations_add(
        &self,
        sums: &mut CudaDeviations,
        _first: usize,
        pairs: &[(&CudaInput, &CudaInput)],
    ) -> Result<()> {
        self.add_deviations(sums, pairs)
    }

    fn deviation(&self, sums: CudaDeviations) -> Result<CudaDeviation> {
        self.mean_deviation(sums)
    }

    fn deviation_add(&self, deviation: &mut CudaDeviation, other: &CudaDeviation, factor: f64) -> Result<()> {
        self.add_deviation(deviation, other, factor)
    }

    fn read_deviation<'d>(&self, deviation: &'d CudaDeviation) -> Result<DeviationValues<'d>> {
        self.deviation_values(deviation)
    }

    fn read_hessian<'h>(&self, hessian: &'h CudaHessian) -> Result<Cow<'h, [f32]>> {
        Ok(Cow::Owned(read_values(&hessian.values, hessian.width * hessian.width, DType::F32)?))
    }

    fn attended(&self, x: &CudaInput, qkv: &CudaTensor, kind: &AttentionKind) -> Result<CudaInput> {
        let heads = kind.heads;
        self.expect(qkv, self.half(), "queries")?;
        if x.rows != qkv.rows || qkv.cols != heads.qkv_width() || heads.head_dim > 256 {
            return Err(BackendError::Shape(format!(
                "{} inputs of attention for queries, keys and values of shape {} x {}",
                x.rows, qkv.rows, qkv.cols
            )));
        }
        let (rows, k) = (x.rows, x.cols);
        let stride = rows.div_ceil(ATTENDED_QUERIES).max(1);
        let queries = (stride / 2..rows).step_by(stride).len();
        let count = heads.num_heads * queries;
        let mut widened = self.shared.widened.lock().unwrap_or_else(PoisonError::into_inner);
        let (values, half) = self.half_rows(x, &mut widened)?;
        let mut out = CudaInput::new(self.device(), half, count, k)?;
        out.reshape(count, k, Elements::Half)?;
        let pitch = rows.next_multiple_of(8);
        let probabilities = Buffer::new(self.device(), 2 * count * pitch)?;
        let parameters = ProbabilityParameters {
            qkv: qkv.address(),
            out: probabilities.address(),
            rows: rows as i32,
            num_heads: heads.num_heads as i32,
            num_kv_heads: heads.num_kv_heads as i32,
            head_dim: heads.head_dim as i32,
            queries: queries as i32,
            first: (stride / 2) as i32,
            stride: stride as i32,
            window: kind.window.map_or(0, |w| i32::try_from(w).unwrap_or(0)),
            pitch: pitch as i32,
            scale: kind.scale * std::f32::consts::LOG2_E,
        };
        // SAFETY: queries, keys and probabilities have these sizes.
        unsafe { self.calibrate(Kernel::Probabilities { half: self.half(), out: half }, count, parameters) }?;
        // Row-major `z = p x` is the library's `z^T = x^T p^T`.
        let number = half.into();
        let averages = Matrix::new(number, k);
        let product = Product {
            m: k,
            n: count,
            k: rows,
            a: Matrix::new(number, k),
            b: Matrix::new(number, pitch),
            c: averages,
            d: averages,
            bias: false,
        };
        let at = out.buffer.address();
        let operands =
            Operands { a: values, b: probabilities.address(), c: at, d: at, bias: 0, alpha: 1.0, beta: 0.0 };
        // SAFETY: all have these sizes.
        unsafe { self.product(&product, &operands) }?;
        Ok(out)
    }

    fn linear_of(&self, weight: &LinearWeight, bias: Option<&[f32]>) -> Result<CudaLinear> {
        match weight {
            LinearWeight::Quantized(weight) => Ok(CudaLinear::quantized(self, weight, bias)?),
            weight => self.linear_weight(weight.clone(), bias.map(<[f32]>::to_vec)),
        }
    }

    fn weights(&self, n: usize, k: usize, data: WeightData) -> Result<CudaWeights> {
        self.upload_weights(n, k, data)
    }

    fn read_weights<'w>(&self, weights: &'w CudaWeights) -> Result<Cow<'w, [f32]>> {
        Ok(Cow::Owned(self.download_weights(weights)?))
    }

    fn scale_inputs(&self, weights: &mut CudaWeights, s: &[f32]) -> Result<()> {
        self.scale_weights(weights, s)
    }

    fn divide_outputs(&self, weights: &mut CudaWeights, first: usize, s: &[f32]) -> Result<()> {
        self.divide_rows(weights, first, s)
    }

    fn float_linear(&self, weights: &CudaWeights, bias: Option<Vec<f32>>) -> Result<CudaLinear> {
        self.half_linear(weights, bias.as_deref())
    }

    fn round_scaled(
        &self,
        weights: &CudaWeights,
        s: &[f32],
        scheme: Scheme,
        bias: Option<&[f32]>,
        linear: &mut Option<CudaLinear>,
    ) -> Result<()> {
        self.round_candidate(weights, s, scheme, bias, linear)
    }

    fn input_not_finite(&self, x: &CudaInput) -> Result<Option<(usize, f32)>> {
        let (values, count) = match x.elements {
            Elements::Half => (x.buffer.address(), x.rows * x.cols),
            Elements::Int8 => return Err(BackendError::Shape("int8 rows are finite".into())),
        };
        let Some(at) = self.position_not_finite(values, count, x.half)? else { return Ok(None) };
        Ok(Some((at / x.cols.max(1), x.read()?[at])))
    }

    fn channel_range(&self, x: &CudaInput) -> Result<(Vec<f32>, Vec<f32>)> {
        self.range_of(x)
    }

    fn smooth_input(&self, x: &CudaInput, s: &[f32], kind: InputKind, out: &mut CudaInput) -> Result<()> {
        match kind {
            InputKind::Int8 => self.smooth_rows(x, s, out),
            InputKind::Float => self.divide_columns(x, s, out),
        }
    }

    fn squared_distance(&self, a: &CudaInput, b: Option<&CudaInput>) -> Result<f64> {
        self.distance(a, b)
    }

    fn rotation(&self, width: usize, matrix: &[f32]) -> Result<CudaRotation> {
        self.upload_rotation(width, matrix)
    }

    fn rotate_inputs(&self, weights: &mut CudaWeights, q: &CudaRotation) -> Result<()> {
        self.rotate_columns(weights, q)
    }

    fn rotate_outputs(&self, weights: &mut CudaWeights, first: usize, q: &CudaRotation) -> Result<()> {
        self.rotate_rows(weights, first, q)
    }

    fn solve(&self, problem: &CudaProblem<'_>) -> Result<std::result::Result<Solution, Unsolved>> {
        self.solve_layer(problem)
    }

    fn learner(&self) -> CudaLearner {
        CudaLearner::new(self.clone())
    }

    fn to_array(&self, x: &CudaTensor) -> Result<CudaMatrix> {
        self.learner().of_tensor(x)
    }

    fn tensor_of(&self, x: CudaMatrix) -> Result<CudaTensor> {
        Ok(CudaLearner::into_tensor(x))
    }

    fn free_memory(&self) -> Result<Option<u64>> {
        let free = self.device().memory()?.0 as u64;
        Ok(Some(self.shared.options.memory_limit.map_or(free, |limit| limit.min(free))))
    }

    fn each<T: Send>(&self, items: &mut [T], job: impl Fn(&mut T) + Sync) {
        items.iter_mut().for_each(job);
    }
}
