//! The operations, each a launch or two.

use std::borrow::Cow;
use std::sync::Arc;

use cudarc::driver::{CudaGraph, sys};
use qqq_backend::{
    AttentionKind, Backend, BackendError, BatchPlan, Gate, HeadLayout, InputKind, KvDType, KvLayout, Norm,
    PairScore, Pick, Picked, QueryScale, Result,
};
use qqq_formats::{LinearWeight, WeightData};

use super::CudaBackend;
use super::batch::CudaBatch;
use super::kv_pool::CudaKvPool;
use super::linear::{CudaLinear, half_values};
use super::logits::CudaPicks;
use super::memory::{Buffer, CudaInput, CudaTensor, CudaVector, Elements, allocations, copy, read_values};
use super::rows::{RowConfig, RowOperands, RowSource};
use super::steps::{AddParameters, EmbedParameters, StepKernel, value_type};
use crate::error::driver;
use crate::{CudaError, DType, KernelType};

/// An embedding table on a device, `vocab x hidden`, in the type of the checkpoint.
#[derive(Debug)]
pub struct CudaEmbedding {
    table: Arc<Buffer>,
    dtype: DType,
    vocab: usize,
    hidden: usize,
}

/// Cosines and sines on a device, `positions x pairs` float32 each.
#[derive(Debug)]
pub struct CudaRope {
    pub(super) cosines: CudaVector,
    pub(super) sines: CudaVector,
    pub(super) pairs: usize,
    pub(super) positions: usize,
    pub(super) query_scale: Option<QueryScale>,
}

/// A recorded step.
pub struct CudaStep {
    graph: CudaGraph,
    /// Allocations before it was recorded.
    allocations: u64,
    /// Of its batch.
    shape: Vec<usize>,
}

// SAFETY: whoever has the graph uses it alone; the context is bound before each use.
unsafe impl Send for CudaStep {}

impl From<CudaError> for BackendError {
    fn from(error: CudaError) -> Self {
        match error {
            CudaError::Shape(what) => BackendError::Shape(what),
            other => BackendError::Unavailable(other.to_string()),
        }
    }
}

pub(super) fn shape<T>(what: String) -> Result<T> {
    Err(BackendError::Shape(what))
}

/// How inputs of a kind are kept.
fn elements(kind: InputKind) -> Elements {
    match kind {
        InputKind::Float => Elements::Half,
        InputKind::Int8 => Elements::Int8,
    }
}

impl CudaBackend {
    /// A result of rows as the input of a linear layer.
    fn rows_to_input(
        &self,
        source: RowSource,
        operands: RowOperands,
        kind: InputKind,
        out: &mut CudaInput,
    ) -> Result<()> {
        out.reshape(operands.m, operands.k, elements(kind))?;
        let scale = if kind == InputKind::Int8 { out.scales.address() } else { 0 };
        self.rows(
            source,
            kind == InputKind::Int8,
            RowOperands { out: out.buffer.address(), scale, ..operands },
        )
    }

    fn rows(&self, source: RowSource, int8: bool, operands: RowOperands) -> Result<()> {
        let config = RowConfig::new(source, int8, self.half(), operands.k);
        let mut parameters = operands.parameters(&config)?;
        let (ctas, threads) = config.launch_shape(operands.m);
        // SAFETY: the callers give memory of these sizes.
        Ok(unsafe { self.launch(&*self.row_kernel(config)?, (ctas, threads, 0), &mut parameters) }?)
    }

    pub(super) fn expect(&self, x: &CudaTensor, dtype: DType, what: &str) -> Result<()> {
        if x.dtype == dtype {
            return Ok(());
        }
        shape(format!("{what} of {}, where {dtype} is needed", x.dtype))
    }
}

/// That a norm fits rows.
pub(super) fn check_norm(cols: usize, norm: &Norm<CudaBackend>) -> Result<()> {
    if norm.weight.len == cols {
        return Ok(());
    }
    shape(format!("a norm of {} values for rows of {cols}", norm.weight.len))
}

impl Backend for CudaBackend {
    type Tensor = CudaTensor;
    type Input = CudaInput;
    type Linear = CudaLinear;
    type Embedding = CudaEmbedding;
    type Vector = CudaVector;
    type Rope = CudaRope;
    type KvPool = CudaKvPool;
    type Batch = CudaBatch;
    type Graph = CudaStep;
    type Picks = CudaPicks;

    const STEP_TOKENS: usize = 4096;
    const SUMS_LOSSES: bool = true;
    const DRAWS: bool = true;

    fn tensor(&self, rows: usize, cols: usize) -> Result<CudaTensor> {
        // Those that come to hold float32, the residual stream and logits, grow when they do.
        let buffer = Buffer::new(self.device(), rows * cols * self.half().bytes())?;
        Ok(CudaTensor { buffer, rows: 0, cols, dtype: self.half() })
    }

    fn input(&self, rows: usize, cols: usize) -> Result<CudaInput> {
        Ok(CudaInput::new(self.device(), self.half(), rows, cols)?)
    }

    fn upload(&self, rows: usize, cols: usize, values: Vec<f32>) -> Result<CudaTensor> {
        if rows.checked_mul(cols) != Some(values.len()) {
            return shape(format!("{} values for a tensor of shape {rows} x {cols}", values.len()));
        }
        let buffer = Buffer::of(self.device(), &values)?;
        Ok(CudaTensor { buffer, rows, cols, dtype: DType::F32 })
    }

    fn read<'t>(&self, x: &'t CudaTensor) -> Result<Cow<'t, [f32]>> {
        Ok(Cow::Owned(x.read()?))
    }

    fn first_not_finite(&self, x: &CudaTensor) -> Result<Option<(usize, f32)>> {
        self.tensor_not_finite(x)
    }

    fn read_input<'t>(&self, x: &'t CudaInput) -> Result<Cow<'t, [f32]>> {
        Ok(Cow::Owned(x.read()?))
    }

    fn vector(&self, values: Vec<f32>) -> Result<CudaVector> {
        Ok(CudaVector::new(self.device(), &values)?)
    }

    fn linear_weight(&self, weight: LinearWeight, bias: Option<Vec<f32>>) -> Result<CudaLinear> {
        Ok(CudaLinear::new(self, weight, bias)?)
    }

    fn head_weight(&self, weight: LinearWeight) -> Result<CudaLinear> {
        Ok(CudaLinear::head(self, weight)?)
    }

    fn input_kind(&self, weight: &CudaLinear) -> InputKind {
        weight.input_kind()
    }

    fn finest_kv(&self) -> KvDType {
        KvDType::F16
    }

    fn embedding(&self, vocab: usize, hidden: usize, data: WeightData) -> Result<CudaEmbedding> {
        if vocab.checked_mul(hidden) != Some(data.len()) {
            return shape(format!("{} values for an embedding of {vocab} x {hidden}", data.len()));
        }
        let dtype = match &data {
            WeightData::F32(_) => DType::F32,
            WeightData::F16(_) => DType::F16,
            WeightData::BF16(_) => DType::BF16,
        };
        let table = match data {
            WeightData::F32(v) => Buffer::of(self.device(), &v)?,
            half => half_values(self.device(), half, dtype)?,
        };
        Ok(CudaEmbedding { table: Arc::new(table), dtype, vocab, hidden })
    }

    fn tied_head(&self, embedding: &CudaEmbedding) -> Result<CudaLinear> {
        let size = (embedding.vocab, embedding.hidden);
        if embedding.dtype == self.half() {
            return Ok(CudaLinear::sharing(self, size, embedding.table.clone(), None, DType::F32)?);
        }
        // The head multiplies 16-bit numbers of its own.
        let values = read_values(&embedding.table, size.0 * size.1, embedding.dtype)?;
        Ok(CudaLinear::float(self, size, WeightData::F32(values), None, DType::F32)?)
    }

    fn rope(
        &self,
        inv_freq: &[f32],
        factor: f32,
        query_scale: Option<QueryScale>,
        max_positions: usize,
    ) -> Result<CudaRope> {
        let pairs = inv_freq.len();
        let angle = |i: usize| f64::from((i / pairs) as f32 * inv_freq[i % pairs]);
        let values = |f: fn(f64) -> f64| -> Vec<f32> {
            (0..max_positions * pairs).map(|i| f(angle(i)) as f32 * factor).collect()
        };
        Ok(CudaRope {
            cosines: self.vector(values(f64::cos))?,
            sines: self.vector(values(f64::sin))?,
            pairs,
            positions: max_positions,
            query_scale,
        })
    }

    fn kv_pool(&self, layout: KvLayout, pages: usize) -> Result<CudaKvPool> {
        Ok(CudaKvPool::new(self, layout, pages)?)
    }

    fn grow_kv(&self, pool: &mut CudaKvPool, pages: usize) -> Result<()> {
        Ok(pool.grow(self, pages)?)
    }

    fn batch(&self, plan: &BatchPlan) -> Result<CudaBatch> {
        plan.check()?;
        Ok(CudaBatch::new(self.device(), plan)?)
    }

    fn refill(&self, batch: &mut CudaBatch, plan: &BatchPlan) -> Result<()> {
        plan.check()?;
        Ok(batch.refill(plan)?)
    }

    fn record<E: From<BackendError>>(
        &self,
        batch: &CudaBatch,
        step: &mut dyn FnMut() -> std::result::Result<(), E>,
    ) -> std::result::Result<Option<CudaStep>, E> {
        // Nothing may be allocated while a step is recorded: the one before must have needed as much.
        if !batch.is_alike {
            return Ok(None);
        }
        let stream = self.device().stream();
        let failed = || driver("recording a step");
        let device = |e| BackendError::from(failed()(e));
        // Other threads may use the device meanwhile.
        stream
            .begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            .map_err(device)?;
        let before = allocations();
        let outcome = step();
        // A capture ends whatever has become of the step.
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0));
        outcome?;
        let Some(graph) = graph.map_err(device)? else { return Ok(None) };
        Ok(Some(CudaStep { graph, allocations: before, shape: batch.shape() }))
    }

    fn replay(&self, step: &CudaStep, batch: &CudaBatch) -> Result<bool> {
        if step.allocations != allocations() || step.shape != batch.shape() {
            return Ok(false);
        }
        step.graph.launch().map_err(driver("replaying a step")).map_err(CudaError::into).map(|()| true)
    }

    fn embed(
        &self,
        table: &CudaEmbedding,
        batch: &CudaBatch,
        scale: f32,
        out: &mut CudaTensor,
    ) -> Result<()> {
        let rows = batch.plan.tokens.len();
        if rows == 0 {
            return Err(BackendError::Batch("a batch without tokens has no embeddings".into()));
        }
        if let Some(id) = batch.plan.tokens.iter().find(|id| **id as usize >= table.vocab) {
            return Err(BackendError::Batch(format!("token {id} of an embedding of {}", table.vocab)));
        }
        out.reshape(rows, table.hidden, DType::F32)?;
        let parameters = EmbedParameters {
            table: table.table.address(),
            tokens: batch.tokens(),
            out: out.address(),
            rows: rows as i64,
            hidden: table.hidden as i32,
            value_type: value_type(table.dtype)?,
            scale,
        };
        // SAFETY: tokens are in the table, and the output has this size.
        Ok(unsafe { self.launch_step(StepKernel::Embed, rows * table.hidden, parameters) }?)
    }

    fn add_norm(
        &self,
        residual: &mut CudaTensor,
        x: Option<(&CudaTensor, f32)>,
        norm: &Norm<Self>,
        kind: InputKind,
        out: &mut CudaInput,
    ) -> Result<()> {
        self.expect(residual, DType::F32, "a residual stream")?;
        check_norm(residual.cols, norm)?;
        if let Some((x, _)) = x {
            self.expect(x, self.half(), "what is added to the residual stream")?;
            check_alike(residual, x)?;
        }
        let operands = RowOperands {
            x: x.map_or(0, |(x, _)| x.address()),
            residual: residual.address(),
            weight: norm.weight.address(),
            m: residual.rows,
            k: residual.cols,
            epsilon: norm.eps,
            factor: x.map_or(0.0, |(_, factor)| factor),
            ..RowOperands::default()
        };
        self.rows_to_input(RowSource::ResidualNorm, operands, kind, out)
    }

    fn add(&self, residual: &mut CudaTensor, x: &CudaTensor, scale: f32) -> Result<()> {
        self.expect(residual, DType::F32, "a residual stream")?;
        check_alike(residual, x)?;
        let count = residual.rows * residual.cols;
        let parameters = AddParameters {
            residual: residual.address(),
            x: x.address(),
            count: count as i64,
            value_type: value_type(x.dtype)?,
            factor: scale,
        };
        // SAFETY: both have this size.
        Ok(unsafe { self.launch_step(StepKernel::Add, count, parameters) }?)
    }

    fn norm(&self, x: &mut CudaTensor, norm: &Norm<Self>) -> Result<()> {
        self.expect(x, self.half(), "rows to be normalized")?;
        check_norm(x.cols, norm)?;
        let operands = RowOperands {
            x: x.address(),
            weight: norm.weight.address(),
            out: x.address(),
            m: x.rows,
            k: x.cols,
            epsilon: norm.eps,
            ..RowOperands::default()
        };
        self.rows(RowSource::InputNorm, false, operands)
    }

    fn to_input(&self, x: &mut CudaTensor, kind: InputKind, out: &mut CudaInput) -> Result<()> {
        if x.dtype == DType::F32 {
            // Given by the host.
            let values = x.read()?;
            let (rows, cols) = (x.rows, x.cols);
            x.buffer = half_values(self.device(), WeightData::F32(values), self.half())?;
            (x.rows, x.cols, x.dtype) = (rows, cols, self.half());
        }
        if kind == InputKind::Float {
            out.reshape(x.rows, x.cols, Elements::Half)?;
            return Ok(copy(self, x.address(), out.buffer.address(), x.rows * x.cols * self.half().bytes())?);
        }
        let operands = RowOperands { x: x.address(), m: x.rows, k: x.cols, ..RowOperands::default() };
        self.rows_to_input(RowSource::Input, operands, kind, out)
    }

    fn linear(&self, x: &CudaInput, weight: &CudaLinear, out: &mut CudaTensor) -> Result<()> {
        weight.multiply(self, x, out)
    }

    fn gated_linear(
        &self,
        x: &CudaInput,
        weight: &CudaLinear,
        gate: Gate,
        kind: InputKind,
        gate_up: &mut CudaTensor,
        out: &mut CudaInput,
    ) -> Result<()> {
        self.linear(x, weight, gate_up)?;
        self.gated(gate_up, gate, kind, out)
    }

    fn gated(&self, gate_up: &CudaTensor, gate: Gate, kind: InputKind, out: &mut CudaInput) -> Result<()> {
        self.expect(gate_up, self.half(), "gates")?;
        if !gate_up.cols.is_multiple_of(2) {
            return shape(format!("{} columns are no pairs of gate and value", gate_up.cols));
        }
        let source = match gate {
            Gate::Silu => RowSource::Silu,
            Gate::GeluTanh => RowSource::GeluTanh,
        };
        let (m, k) = (gate_up.rows, gate_up.cols / 2);
        let operands = RowOperands { x: gate_up.address(), m, k, ..RowOperands::default() };
        self.rows_to_input(source, operands, kind, out)
    }

    fn rope_append(
        &self,
        qkv: &mut CudaTensor,
        heads: HeadLayout,
        qk_norm: Option<(&Norm<Self>, &Norm<Self>)>,
        rope: Option<&CudaRope>,
        kv: &mut CudaKvPool,
        layer: usize,
        batch: &CudaBatch,
    ) -> Result<()> {
        self.rotate_and_append(qkv, heads, qk_norm, rope, kv, layer, batch)
    }

    fn attention(
        &self,
        qkv: &CudaTensor,
        kind: &AttentionKind,
        kv: &CudaKvPool,
        layer: usize,
        batch: &CudaBatch,
        out: &mut CudaTensor,
    ) -> Result<()> {
        self.attend(qkv, kind, kv, layer, batch, out)
    }

    fn gather(&self, x: &CudaTensor, rows: &[usize], out: &mut CudaTensor) -> Result<()> {
        if let Some(row) = rows.iter().find(|row| **row >= x.rows) {
            return Err(BackendError::Batch(format!("row {row} of {}", x.rows)));
        }
        out.reshape(rows.len(), x.cols, x.dtype)?;
        let bytes = x.cols * x.dtype.bytes();
        // Rows that follow each other are one copy.
        let mut done = 0;
        for run in rows.chunk_by(|a, b| a + 1 == *b) {
            let (from, to) = ((run[0] * bytes) as u64, (done * bytes) as u64);
            copy(self, x.address() + from, out.address() + to, run.len() * bytes)?;
            done += run.len();
        }
        Ok(())
    }

    fn picks(&self) -> Result<CudaPicks> {
        Ok(CudaPicks::new(self.device())?)
    }

    fn set_chances(&self, picks: &mut CudaPicks, chances: &[f64]) -> Result<()> {
        Ok(picks.set_chances(chances)?)
    }

    fn pick(
        &self,
        x: &CudaInput,
        weight: &CudaLinear,
        pick: Pick,
        out: &mut CudaTensor,
        picks: &mut CudaPicks,
    ) -> Result<()> {
        self.pick_logits(x, weight, pick, out, picks)
    }

    fn read_picks(&self, picks: &CudaPicks) -> Result<Vec<Picked>> {
        Ok(picks.read()?)
    }

    fn losses(
        &self,
        x: &CudaInput,
        weight: &CudaLinear,
        columns: &[u32],
        out: &mut CudaTensor,
    ) -> Result<Option<Vec<f64>>> {
        self.losses_of(x, weight, columns, out)
    }

    fn compare(
        &self,
        baseline: &CudaTensor,
        model: &CudaTensor,
        columns: &[u32],
    ) -> Result<Option<Vec<PairScore>>> {
        self.compare_on_device(baseline, model, columns)
    }
}

fn check_alike(a: &CudaTensor, b: &CudaTensor) -> Result<()> {
    if (a.rows, a.cols) == (b.rows, b.cols) {
        return Ok(());
    }
    shape(format!("{} x {} values to be added to {} x {}", b.rows, b.cols, a.rows, a.cols))
}
