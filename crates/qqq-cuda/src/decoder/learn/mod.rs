//! Learning how blocks are quantized, on the GPU.
//!
//! All is float32, as on the host. Products are cuBLASLt's: in a forward pass of float32 factors, for gradients of TF32 ones. What is
//! between them is plain kernels. Sums are made in an order that does not change: two runs on the same kind of GPU learn the same.

mod attention;
mod device;
pub mod kernels;
pub mod parameters;
mod parts;
pub mod products;
mod weights;

use std::ops::Range;

use qqq_backend::learn::{
    ADAM_DECAY, ADAM_EPSILON, ADAM_SQUARE_DECAY, AdamStep, Learn, Parameter, Rotary, Turn, WeightGradients,
    WeightGrid,
};
use qqq_backend::{AttentionKind, BackendError, Gate, HeadLayout, Result};

pub use self::device::{CudaMemory, LearnDevice};
use self::kernels::LearnKernel as Kernel;
use self::parameters::{
    AdamParameters, LearnGateParameters, LearnInt8Parameters, QuotientParameters, TurnParameters,
};
use super::calibrate::parameters::{DistanceParameters, RangeParameters};
use super::memory::CudaTensor;
use super::steps::{AddParameters, value_type};
use super::{CudaBackend, cached};
use crate::DType;

/// A matrix on a device: float32, row-major.
#[derive(Debug)]
pub struct DeviceMatrix<M> {
    rows: usize,
    cols: usize,
    memory: M,
    address: u64,
}

/// A matrix on a GPU.
pub type CudaMatrix = DeviceMatrix<CudaMemory>;

impl<M> DeviceMatrix<M> {
    /// Address of the first row's element in a column.
    fn at(&self, column: usize) -> u64 {
        self.address + 4 * column as u64
    }

    fn len(&self) -> usize {
        self.rows * self.cols
    }
}

/// Learns on a device.
#[derive(Clone, Debug)]
pub struct DeviceLearner<D> {
    device: D,
}

/// Learns on a GPU.
pub type CudaLearner = DeviceLearner<CudaBackend>;

/// That a matrix has a shape.
fn expect<M>(x: &DeviceMatrix<M>, (rows, cols): (usize, usize), what: &str) -> Result<()> {
    match (x.rows, x.cols) == (rows, cols) {
        true => Ok(()),
        false => Err(BackendError::Shape(format!("{what} of {} x {}, not {rows} x {cols}", x.rows, x.cols))),
    }
}

/// That two matrices are alike.
fn alike<M>(a: &DeviceMatrix<M>, b: &DeviceMatrix<M>) -> Result<()> {
    expect(b, (a.rows, a.cols), "a matrix")
}

/// That a matrix has these columns.
fn has<M>(x: &DeviceMatrix<M>, columns: &Range<usize>) -> Result<()> {
    match columns.start <= columns.end && columns.end <= x.cols {
        true => Ok(()),
        false => Err(BackendError::Shape(format!("columns {columns:?} of {}", x.cols))),
    }
}

impl CudaLearner {
    /// The values of a tensor.
    pub(super) fn of_tensor(&self, x: &CudaTensor) -> Result<CudaMatrix> {
        let out = self.matrix(x.rows, x.cols)?;
        self.floats((x.address(), x.dtype), 0, &out)?;
        Ok(out)
    }

    /// A tensor of these values.
    pub(super) fn into_tensor(x: CudaMatrix) -> CudaTensor {
        CudaTensor { buffer: x.memory.0, rows: x.rows, cols: x.cols, dtype: DType::F32 }
    }
}

impl<D: LearnDevice> Learn for DeviceLearner<D> {
    type Array = DeviceMatrix<D::Memory>;

    fn array(&self, rows: usize, cols: usize, values: &[f32]) -> Result<DeviceMatrix<D::Memory>> {
        if rows.checked_mul(cols) != Some(values.len()) {
            return Err(BackendError::Shape(format!(
                "{} values of a matrix of {rows} x {cols}",
                values.len()
            )));
        }
        let (memory, address) = self.device.upload(values)?;
        Ok(DeviceMatrix { rows, cols, memory, address })
    }

    fn read(&self, x: &DeviceMatrix<D::Memory>) -> Result<Vec<f32>> {
        Ok(bytemuck::pod_collect_to_vec(&self.device.read(&x.memory, 4 * x.len())?))
    }

    fn zeros_like(&self, x: &DeviceMatrix<D::Memory>) -> Result<DeviceMatrix<D::Memory>> {
        self.array(x.rows, x.cols, &vec![0.0; x.len()])
    }

    fn copy(&self, x: &DeviceMatrix<D::Memory>) -> Result<DeviceMatrix<D::Memory>> {
        let out = self.matrix(x.rows, x.cols)?;
        self.device.copy(x.at(0), out.at(0), 4 * x.len())?;
        Ok(out)
    }

    fn product(
        &self,
        x: &DeviceMatrix<D::Memory>,
        w: &DeviceMatrix<D::Memory>,
        bias: Option<&DeviceMatrix<D::Memory>>,
    ) -> Result<DeviceMatrix<D::Memory>> {
        self.layer_product(x, w, bias)
    }

    fn product_back_x(
        &self,
        dy: &DeviceMatrix<D::Memory>,
        w: &DeviceMatrix<D::Memory>,
    ) -> Result<DeviceMatrix<D::Memory>> {
        self.input_gradients(dy, w)
    }

    fn product_back_w(
        &self,
        dy: &DeviceMatrix<D::Memory>,
        x: &DeviceMatrix<D::Memory>,
    ) -> Result<DeviceMatrix<D::Memory>> {
        self.layer_gradients(dy, x)
    }

    fn norm(
        &self,
        x: &DeviceMatrix<D::Memory>,
        weight: &DeviceMatrix<D::Memory>,
        eps: f64,
    ) -> Result<DeviceMatrix<D::Memory>> {
        expect(weight, (1, x.cols), "the weight of a norm")?;
        let out = self.matrix(x.rows, x.cols)?;
        // SAFETY: the output is as large as the input.
        unsafe { self.norms(x, (None, out.at(0)), 0..x.cols, weight, eps) }?;
        Ok(out)
    }

    fn norm_back(
        &self,
        dy: &DeviceMatrix<D::Memory>,
        x: &DeviceMatrix<D::Memory>,
        weight: &DeviceMatrix<D::Memory>,
        eps: f64,
    ) -> Result<DeviceMatrix<D::Memory>> {
        alike(x, dy)?;
        expect(weight, (1, x.cols), "the weight of a norm")?;
        let out = self.matrix(x.rows, x.cols)?;
        // SAFETY: all are as large as the input.
        unsafe { self.norms(x, (Some(dy.at(0)), out.at(0)), 0..x.cols, weight, eps) }?;
        Ok(out)
    }

    fn norm_heads(
        &self,
        x: &mut DeviceMatrix<D::Memory>,
        columns: Range<usize>,
        weight: &DeviceMatrix<D::Memory>,
        eps: f64,
    ) -> Result<()> {
        // SAFETY: in place.
        unsafe { self.norms(x, (None, x.at(0)), columns, weight, eps) }
    }

    fn norm_heads_back(
        &self,
        dy: &mut DeviceMatrix<D::Memory>,
        x: &DeviceMatrix<D::Memory>,
        columns: Range<usize>,
        weight: &DeviceMatrix<D::Memory>,
        eps: f64,
    ) -> Result<()> {
        alike(x, dy)?;
        // SAFETY: in place of gradients of this size.
        unsafe { self.norms(x, (Some(dy.at(0)), dy.at(0)), columns, weight, eps) }
    }

    fn rotate(
        &self,
        qkv: &mut DeviceMatrix<D::Memory>,
        heads: HeadLayout,
        rotary: &Rotary<DeviceMatrix<D::Memory>>,
        turn: Turn,
    ) -> Result<()> {
        let (half, turned) = (rotary.cos.cols, heads.num_heads + heads.num_kv_heads);
        expect(qkv, (qkv.rows, heads.qkv_width()), "queries, keys and values")?;
        alike(&rotary.cos, &rotary.sin)?;
        let factors = rotary.queries.as_ref();
        let positions = factors.map_or(rotary.cos.rows, |factors| factors.rows.min(rotary.cos.rows));
        if 2 * half > heads.head_dim || qkv.rows > positions {
            return Err(BackendError::Shape(format!(
                "{} positions, and {half} pairs of heads of {}, for a rotary embedding of {positions} positions",
                qkv.rows, heads.head_dim
            )));
        }
        let count = qkv.rows * turned * (heads.head_dim - half);
        let parameters = TurnParameters {
            qkv: qkv.at(0),
            cosines: rotary.cos.at(0),
            sines: rotary.sin.at(0),
            factors: factors.map_or(0, |factors| factors.at(0)),
            count: count as i64,
            pitch: qkv.cols as i32,
            heads: turned as i32,
            queries: heads.num_heads as i32,
            head_dim: heads.head_dim as i32,
            half: half as i32,
            sign: if turn == Turn::Forward { 1.0 } else { -1.0 },
        };
        // SAFETY: as was looked at.
        Ok(unsafe { self.device.launch(Kernel::TurnHeads, count, parameters) }?)
    }

    fn attention(
        &self,
        qkv: &DeviceMatrix<D::Memory>,
        kind: &AttentionKind,
    ) -> Result<DeviceMatrix<D::Memory>> {
        attention::forward(self, qkv, kind)
    }

    fn attention_back(
        &self,
        dy: &DeviceMatrix<D::Memory>,
        y: &DeviceMatrix<D::Memory>,
        qkv: &DeviceMatrix<D::Memory>,
        kind: &AttentionKind,
    ) -> Result<DeviceMatrix<D::Memory>> {
        attention::back(self, dy, y, qkv, kind)
    }

    fn gated(&self, gate_up: &DeviceMatrix<D::Memory>, gate: Gate) -> Result<DeviceMatrix<D::Memory>> {
        let inner = gate_up.cols / 2;
        expect(gate_up, (gate_up.rows, 2 * inner), "gates")?;
        let out = self.matrix(gate_up.rows, inner)?;
        let parameters = LearnGateParameters {
            gate_up: gate_up.at(0),
            dy: 0,
            out: out.at(0),
            count: out.len() as i64,
            inner: inner as i32,
        };
        let kernel = Kernel::Gate { gelu: gate == Gate::GeluTanh, back: false };
        // SAFETY: both have these sizes.
        unsafe { self.device.launch(kernel, out.len(), parameters) }?;
        Ok(out)
    }

    fn gated_back(
        &self,
        dy: &DeviceMatrix<D::Memory>,
        gate_up: &DeviceMatrix<D::Memory>,
        gate: Gate,
    ) -> Result<DeviceMatrix<D::Memory>> {
        expect(gate_up, (dy.rows, 2 * dy.cols), "gates")?;
        let out = self.matrix(gate_up.rows, gate_up.cols)?;
        let parameters = LearnGateParameters {
            gate_up: gate_up.at(0),
            dy: dy.at(0),
            out: out.at(0),
            count: dy.len() as i64,
            inner: dy.cols as i32,
        };
        let kernel = Kernel::Gate { gelu: gate == Gate::GeluTanh, back: true };
        // SAFETY: all have these sizes.
        unsafe { self.device.launch(kernel, dy.len(), parameters) }?;
        Ok(out)
    }

    fn add(&self, sum: &mut DeviceMatrix<D::Memory>, x: &DeviceMatrix<D::Memory>, factor: f64) -> Result<()> {
        alike(sum, x)?;
        let parameters = AddParameters {
            residual: sum.at(0),
            x: x.at(0),
            count: x.len() as i64,
            value_type: value_type(DType::F32)?,
            factor: factor as f32,
        };
        // SAFETY: both have this size.
        Ok(unsafe { self.device.launch(Kernel::Add, x.len(), parameters) }?)
    }

    fn scaled(&self, x: &DeviceMatrix<D::Memory>, factor: f64) -> Result<DeviceMatrix<D::Memory>> {
        self.scaled_difference(x, None, factor)
    }

    fn difference(
        &self,
        a: &DeviceMatrix<D::Memory>,
        b: &DeviceMatrix<D::Memory>,
        factor: f64,
    ) -> Result<DeviceMatrix<D::Memory>> {
        self.scaled_difference(a, Some(b), factor)
    }

    fn squared_distance(
        &self,
        a: &DeviceMatrix<D::Memory>,
        b: Option<&DeviceMatrix<D::Memory>>,
    ) -> Result<f64> {
        b.map_or(Ok(()), |b| alike(a, b))?;
        let (sums, out) = self.device.room(8 * a.rows)?;
        let parameters = DistanceParameters {
            a: a.at(0),
            b: b.map_or(0, |b| b.at(0)),
            out,
            columns: a.cols as i32,
            value_type: value_type(DType::F32)?,
        };
        // SAFETY: both have these rows, and each a sum.
        unsafe { self.device.launch(Kernel::Distances, a.rows, parameters) }?;
        let sums: Vec<f64> = bytemuck::pod_collect_to_vec(&self.device.read(&sums, 8 * a.rows)?);
        Ok(sums.iter().sum())
    }

    fn divide_columns(
        &self,
        x: &mut DeviceMatrix<D::Memory>,
        first: usize,
        s: &DeviceMatrix<D::Memory>,
    ) -> Result<()> {
        has(x, &(first..first + s.cols))?;
        let count = x.rows * s.cols;
        let parameters = QuotientParameters {
            x: x.at(0),
            divisors: s.at(0),
            count: count as i64,
            pitch: x.cols as i32,
            first: first as i32,
            columns: s.cols as i32,
        };
        // SAFETY: the columns are there.
        Ok(unsafe { self.device.launch(Kernel::DivideColumns, count, parameters) }?)
    }

    fn divide_columns_back(
        &self,
        ds: &mut DeviceMatrix<D::Memory>,
        dy: &DeviceMatrix<D::Memory>,
        y: &DeviceMatrix<D::Memory>,
        first: usize,
        s: &DeviceMatrix<D::Memory>,
    ) -> Result<()> {
        self.column_sums((dy, y), first, Some(s), ds)
    }

    fn largest_of_columns(&self, x: &DeviceMatrix<D::Memory>) -> Result<Vec<f32>> {
        let [most, least] = [self.matrix(1, x.cols)?, self.matrix(1, x.cols)?];
        let parameters = RangeParameters {
            x: x.at(0),
            most: most.at(0),
            least: least.at(0),
            rows: x.rows as i32,
            k: x.cols as i32,
            value_type: value_type(DType::F32)?,
        };
        // SAFETY: both have a value for each column.
        unsafe { self.device.launch(Kernel::ChannelRange, x.cols, parameters) }?;
        let pairs = self.read(&most)?.into_iter().zip(self.read(&least)?);
        Ok(pairs.map(|(most, least)| most.max(-least)).collect())
    }

    fn repeat_heads(
        &self,
        s: &DeviceMatrix<D::Memory>,
        heads: HeadLayout,
    ) -> Result<DeviceMatrix<D::Memory>> {
        expect(s, (1, heads.kv_width()), "scales of values")?;
        self.over_heads(Kernel::RepeatHeads, s, heads, heads.q_width())
    }

    fn repeat_heads_back(
        &self,
        ds: &DeviceMatrix<D::Memory>,
        heads: HeadLayout,
    ) -> Result<DeviceMatrix<D::Memory>> {
        expect(ds, (1, heads.q_width()), "gradients by scales")?;
        self.over_heads(Kernel::SumHeads, ds, heads, heads.kv_width())
    }

    fn int8(&self, x: &DeviceMatrix<D::Memory>) -> Result<DeviceMatrix<D::Memory>> {
        let out = self.matrix(x.rows, x.cols)?;
        let parameters = LearnInt8Parameters { x: x.at(0), dy: 0, out: out.at(0), columns: x.cols as i32 };
        // SAFETY: both have these sizes.
        unsafe { self.device.launch(Kernel::Int8 { back: false }, x.rows, parameters) }?;
        Ok(out)
    }

    fn int8_back(
        &self,
        dy: &DeviceMatrix<D::Memory>,
        x: &DeviceMatrix<D::Memory>,
    ) -> Result<DeviceMatrix<D::Memory>> {
        alike(x, dy)?;
        let out = self.matrix(x.rows, x.cols)?;
        let parameters =
            LearnInt8Parameters { x: x.at(0), dy: dy.at(0), out: out.at(0), columns: x.cols as i32 };
        // SAFETY: all have these sizes.
        unsafe { self.device.launch(Kernel::Int8 { back: true }, x.rows, parameters) }?;
        Ok(out)
    }

    fn weight(
        &self,
        w: &DeviceMatrix<D::Memory>,
        scales: Option<&DeviceMatrix<D::Memory>>,
        clip: Option<(&DeviceMatrix<D::Memory>, WeightGrid)>,
    ) -> Result<DeviceMatrix<D::Memory>> {
        self.rounded_weight(w, scales, clip)
    }

    fn weight_back(
        &self,
        dw: &DeviceMatrix<D::Memory>,
        w: &DeviceMatrix<D::Memory>,
        scales: Option<&DeviceMatrix<D::Memory>>,
        clip: Option<(&DeviceMatrix<D::Memory>, WeightGrid)>,
    ) -> Result<WeightGradients<DeviceMatrix<D::Memory>>> {
        self.weight_gradients(dw, w, scales, clip)
    }

    fn steps(
        &self,
        w: &DeviceMatrix<D::Memory>,
        clip: &DeviceMatrix<D::Memory>,
        grid: WeightGrid,
    ) -> Result<Vec<f32>> {
        self.weight_steps(w, clip, grid)
    }

    fn adam(
        &self,
        parameter: &mut Parameter<DeviceMatrix<D::Memory>>,
        gradient: &DeviceMatrix<D::Memory>,
        step: AdamStep,
    ) -> Result<()> {
        let Parameter { value, mean, square } = parameter;
        for x in [&*mean, &*square, gradient] {
            alike(value, x)?;
        }
        let parameters = AdamParameters {
            value: value.at(0),
            mean: mean.at(0),
            square: square.at(0),
            gradient: gradient.at(0),
            count: value.len() as i64,
            decay: [ADAM_DECAY as f32, (1.0 - ADAM_DECAY) as f32],
            square_decay: [ADAM_SQUARE_DECAY as f32, (1.0 - ADAM_SQUARE_DECAY) as f32],
            rate: step.corrected_rate() as f32,
            correction: step.correction() as f32,
            epsilon: ADAM_EPSILON as f32,
            least: step.least.map_or(f32::NEG_INFINITY, |least| least as f32),
        };
        // SAFETY: all have this size.
        Ok(unsafe { self.device.launch(Kernel::Adam, value.len(), parameters) }?)
    }
}
