//! The CPU backend: float32 compute, and weights of 4 and 8 bits times int8 activations with integer kernels picked at run
//! time.

mod attention;
pub mod calibrate;
mod describe;
mod element;
mod embedding;
mod gemm;
mod gemv;
mod input;
pub mod integer;
pub mod isa;
mod kv_pool;
pub mod learn;
mod linear_float;
pub mod matrix;
mod norm;
mod rope;
mod shortlist;
mod simulated;
mod tile;
mod weight_only;

use std::borrow::Cow;

use qqq_formats::{LinearWeight, WeightData};

use crate::{
    AttentionKind, Backend, BackendError, BatchPlan, Gate, HeadLayout, InputKind, KvLayout, Norm, Pick,
    Picked, QueryScale, Result,
};
use integer::{Int8Activations, IntegerLinear};
use matrix::Matrix;

pub use crate::simd::{FloatIsa, SimdLevel};
pub use embedding::CpuEmbedding;
pub use input::CpuInput;
pub use kv_pool::CpuKvPool;
pub use linear_float::FloatLinear;
pub use rope::CpuRope;
pub use simulated::SimulatedLinear;

/// The CPU backend.
#[derive(Clone, Debug)]
pub struct CpuBackend {
    level: SimdLevel,
}

impl Default for CpuBackend {
    fn default() -> Self {
        Self { level: SimdLevel::detect() }
    }
}

impl CpuBackend {
    /// A backend on the best instruction set of this machine.
    pub fn new() -> Self {
        Self::default()
    }

    /// A backend whose float kernels use a given instruction set.
    ///
    /// # Errors
    /// This machine lacks it.
    pub fn with_float_isa(isa: FloatIsa) -> Result<Self> {
        let level = SimdLevel::new(isa).ok_or_else(|| {
            BackendError::Unavailable(format!(
                "this machine cannot run the {} float kernels; its best are {}",
                isa.name(),
                SimdLevel::detect().isa().name()
            ))
        })?;
        Ok(Self { level })
    }

    /// The instruction set of the float kernels.
    pub fn simd_level(&self) -> SimdLevel {
        self.level
    }
}

/// A prepacked linear layer.
#[derive(Clone, Debug)]
pub enum CpuLinear {
    /// Float weights in their stored precision, float32 activations; the bias is inside.
    Float(FloatLinear),
    /// Weights of 4 or 8 bits, int8 activations; bias of length `N`.
    Integer(IntegerLinear, Option<Vec<f32>>),
    /// 16-bit weights, float32 activations, and the arithmetic of a method that is simulated; the bias is inside.
    Simulated(Box<SimulatedLinear>),
}

impl CpuLinear {
    /// `(N, K)`: output and input channels.
    pub fn shape(&self) -> (usize, usize) {
        match self {
            CpuLinear::Float(weight) => (weight.out_features(), weight.in_features()),
            CpuLinear::Integer(weight, _) => (weight.out_features(), weight.in_features()),
            CpuLinear::Simulated(weight) => (weight.out_features(), weight.in_features()),
        }
    }
}

/// Tokens that pass through the first half of a quantized MLP at a time: what lies between its layers stays in cache.
const MLP_ROWS: usize = 512;

impl Backend for CpuBackend {
    type Tensor = Matrix;
    type Input = CpuInput;
    type Linear = CpuLinear;
    type Embedding = CpuEmbedding;
    type Vector = Vec<f32>;
    type Rope = CpuRope;
    type KvPool = CpuKvPool;
    type Batch = BatchPlan;
    /// There is none.
    type Graph = std::convert::Infallible;
    type Picks = Vec<Picked>;

    /// Takes memory as it is needed.
    fn tensor(&self, _rows: usize, cols: usize) -> Result<Matrix> {
        Ok(Matrix { rows: 0, cols, data: Vec::new() })
    }

    /// Takes memory as it is needed.
    fn input(&self, _rows: usize, _cols: usize) -> Result<CpuInput> {
        Ok(CpuInput::default())
    }

    fn upload(&self, rows: usize, cols: usize, values: Vec<f32>) -> Result<Matrix> {
        if rows.checked_mul(cols) != Some(values.len()) {
            return shape(format!("{} values for a tensor of shape {rows} x {cols}", values.len()));
        }
        Ok(Matrix { rows, cols, data: values })
    }

    fn read<'t>(&self, x: &'t Matrix) -> Result<Cow<'t, [f32]>> {
        Ok(Cow::Borrowed(&x.data))
    }

    fn read_input<'t>(&self, x: &'t CpuInput) -> Result<Cow<'t, [f32]>> {
        Ok(x.values())
    }

    fn vector(&self, values: Vec<f32>) -> Result<Vec<f32>> {
        Ok(values)
    }

    fn linear_weight(&self, weight: LinearWeight, bias: Option<Vec<f32>>) -> Result<CpuLinear> {
        match weight {
            LinearWeight::Float { out_features, in_features, data } => {
                FloatLinear::new(out_features, in_features, data.into(), bias).map(CpuLinear::Float)
            }
            LinearWeight::WeightOnly { weight, dtype } => {
                let (n, k) = (weight.out_features, weight.in_features);
                FloatLinear::new(n, k, weight_only::float_weights(&weight, dtype)?.into(), bias)
                    .map(CpuLinear::Float)
            }
            LinearWeight::Quantized(weight) => {
                linear_float::check_bias(weight.out_features, bias.as_deref())?;
                Ok(CpuLinear::Integer(IntegerLinear::new(&weight)?, bias))
            }
            LinearWeight::Simulated(weight) => {
                SimulatedLinear::new(weight, bias).map(|layer| CpuLinear::Simulated(Box::new(layer)))
            }
        }
    }

    fn input_kind(&self, weight: &CpuLinear) -> InputKind {
        match weight {
            CpuLinear::Float(_) | CpuLinear::Simulated(_) => InputKind::Float,
            CpuLinear::Integer(..) => InputKind::Int8,
        }
    }

    fn embedding(&self, vocab: usize, hidden: usize, data: WeightData) -> Result<CpuEmbedding> {
        CpuEmbedding::new(vocab, hidden, data)
    }

    fn tied_head(&self, embedding: &CpuEmbedding) -> Result<CpuLinear> {
        embedding.tied_head().map(CpuLinear::Float)
    }

    fn rope(
        &self,
        inv_freq: &[f32],
        factor: f32,
        query_scale: Option<QueryScale>,
        max_positions: usize,
    ) -> Result<CpuRope> {
        Ok(CpuRope::new(inv_freq, factor, query_scale, max_positions))
    }

    fn kv_pool(&self, layout: KvLayout, pages: usize) -> Result<CpuKvPool> {
        Ok(CpuKvPool::new(layout, pages))
    }

    fn grow_kv(&self, pool: &mut CpuKvPool, pages: usize) -> Result<()> {
        pool.grow(pages);
        Ok(())
    }

    fn batch(&self, plan: &BatchPlan) -> Result<BatchPlan> {
        plan.check()?;
        Ok(plan.clone())
    }

    fn refill(&self, batch: &mut BatchPlan, plan: &BatchPlan) -> Result<()> {
        plan.check()?;
        batch.clone_from(plan);
        Ok(())
    }

    fn embed(&self, table: &CpuEmbedding, batch: &BatchPlan, scale: f32, out: &mut Matrix) -> Result<()> {
        if batch.tokens.is_empty() {
            return Err(BackendError::Batch("a batch without tokens has no embeddings".into()));
        }
        if let Some(id) = batch.tokens.iter().find(|id| **id as usize >= table.vocab()) {
            return Err(BackendError::Batch(format!("token {id} of an embedding of {}", table.vocab())));
        }
        table.rows(self.level, &batch.tokens, scale, out);
        Ok(())
    }

    fn add_norm(
        &self,
        residual: &mut Matrix,
        x: Option<(&Matrix, f32)>,
        norm: &Norm<Self>,
        kind: InputKind,
        out: &mut CpuInput,
    ) -> Result<()> {
        check_norm(residual, norm)?;
        if let Some((x, _)) = x {
            check_alike(residual, x)?;
        }
        norm::add_norm(self.level, residual, x, (&norm.weight, norm.eps), kind, out);
        Ok(())
    }

    fn add(&self, residual: &mut Matrix, x: &Matrix, scale: f32) -> Result<()> {
        check_alike(residual, x)?;
        norm::add(self.level, residual, x, scale);
        Ok(())
    }

    fn norm(&self, x: &mut Matrix, norm: &Norm<Self>) -> Result<()> {
        check_norm(x, norm)?;
        norm::norm(self.level, x, &norm.weight, norm.eps);
        Ok(())
    }

    fn to_input(&self, x: &mut Matrix, kind: InputKind, out: &mut CpuInput) -> Result<()> {
        match (kind, &mut *out) {
            // The memory changes hands.
            (InputKind::Float, CpuInput::Float(out)) => std::mem::swap(x, out),
            (InputKind::Float, _) => *out = CpuInput::Float(std::mem::take(x)),
            (InputKind::Int8, CpuInput::Int8(out)) => out.quantize_from(x),
            (InputKind::Int8, _) => *out = CpuInput::Int8(Int8Activations::quantize(x)),
        }
        Ok(())
    }

    fn linear(&self, x: &CpuInput, weight: &CpuLinear, out: &mut Matrix) -> Result<()> {
        let (_, k) = weight.shape();
        match (x, weight) {
            _ if x.cols() != k => shape(format!("{} channels for a linear layer that takes {k}", x.cols())),
            (CpuInput::Float(x), CpuLinear::Float(weight)) => {
                weight.matmul(self.level, x, out);
                Ok(())
            }
            (CpuInput::Float(x), CpuLinear::Simulated(weight)) => weight.matmul(self.level, x, out),
            (CpuInput::Int8(x), CpuLinear::Integer(weight, bias)) => {
                out.reshape(x.rows, weight.out_features());
                weight.matmul(x, bias.as_deref(), out);
                Ok(())
            }
            _ => shape(format!(
                "a linear layer that takes {:?} was given {:?}",
                self.input_kind(weight),
                x.kind()
            )),
        }
    }

    fn gated_linear(
        &self,
        x: &CpuInput,
        weight: &CpuLinear,
        gate: Gate,
        kind: InputKind,
        gate_up: &mut Matrix,
        out: &mut CpuInput,
    ) -> Result<()> {
        let (n, _) = weight.shape();
        check_gated(n)?;
        match x {
            CpuInput::Int8(rows) if rows.rows > MLP_ROWS => {
                out.reshape(kind, rows.rows, n / 2);
                for first in (0..rows.rows).step_by(MLP_ROWS) {
                    self.linear(&CpuInput::Int8(rows.rows(first, MLP_ROWS)), weight, gate_up)?;
                    norm::gated(self.level, gate_up, gate, first, out);
                }
                Ok(())
            }
            _ => {
                self.linear(x, weight, gate_up)?;
                self.gated(gate_up, gate, kind, out)
            }
        }
    }

    fn gated(&self, gate_up: &Matrix, gate: Gate, kind: InputKind, out: &mut CpuInput) -> Result<()> {
        check_gated(gate_up.cols)?;
        out.reshape(kind, gate_up.rows, gate_up.cols / 2);
        norm::gated(self.level, gate_up, gate, 0, out);
        Ok(())
    }

    fn rope_append(
        &self,
        qkv: &mut Matrix,
        heads: HeadLayout,
        qk_norm: Option<(&Norm<Self>, &Norm<Self>)>,
        rope: Option<&CpuRope>,
        kv: &mut CpuKvPool,
        layer: usize,
        batch: &BatchPlan,
    ) -> Result<()> {
        let norms = qk_norm.map(|(q, k)| [q, k].map(|norm| (norm.weight.as_slice(), norm.eps)));
        if norms.iter().flatten().any(|(weight, _)| weight.len() != heads.head_dim) {
            return shape(format!("norms of heads that are {} wide", heads.head_dim));
        }
        rope::rope_append(self.level, qkv, heads, norms, rope, kv, layer, batch)
    }

    fn attention(
        &self,
        qkv: &Matrix,
        kind: &AttentionKind,
        kv: &CpuKvPool,
        layer: usize,
        batch: &BatchPlan,
        out: &mut Matrix,
    ) -> Result<()> {
        attention::attention(self.level, qkv, kind, kv, layer, batch, out)
    }

    fn gather(&self, x: &Matrix, rows: &[usize], out: &mut Matrix) -> Result<()> {
        if let Some(row) = rows.iter().find(|row| **row >= x.rows) {
            return Err(BackendError::Batch(format!("row {row} of {}", x.rows)));
        }
        out.reshape(rows.len(), x.cols);
        for (i, &row) in rows.iter().enumerate() {
            out.row_mut(i).copy_from_slice(x.row(row));
        }
        Ok(())
    }

    fn picks(&self) -> Result<Vec<Picked>> {
        Ok(Vec::new())
    }

    fn pick(
        &self,
        x: &CpuInput,
        weight: &CpuLinear,
        pick: Pick,
        out: &mut Matrix,
        picks: &mut Vec<Picked>,
    ) -> Result<()> {
        if pick.temperature.is_some() {
            return Err(BackendError::Unavailable("the CPU draws from rows that are read".into()));
        }
        let count = pick.largest;
        picks.clear();
        let mut found = |largest| picks.push(Picked { largest, drawn: None });
        if let (CpuInput::Float(x), CpuLinear::Float(weight)) = (x, weight)
            && x.cols == weight.in_features()
            && let Some(top) = weight.top(self.level, x, count)
        {
            top.into_iter().for_each(found);
            return Ok(());
        }
        self.linear(x, weight, out)?;
        (0..out.rows).for_each(|row| found(crate::largest(out.row(row), count)));
        Ok(())
    }

    fn read_picks(&self, picks: &Vec<Picked>) -> Result<Vec<Picked>> {
        Ok(picks.clone())
    }
}

fn shape<T>(what: String) -> Result<T> {
    Err(BackendError::Shape(what))
}

fn check_norm(x: &Matrix, norm: &Norm<CpuBackend>) -> Result<()> {
    match x.cols == norm.weight.len() {
        true => Ok(()),
        false => shape(format!("a norm of {} for rows of {}", norm.weight.len(), x.cols)),
    }
}

fn check_alike(residual: &Matrix, x: &Matrix) -> Result<()> {
    match (residual.rows, residual.cols) == (x.rows, x.cols) {
        true => Ok(()),
        false => {
            shape(format!("{} x {} cannot be added to {} x {}", x.rows, x.cols, residual.rows, residual.cols))
        }
    }
}

fn check_gated(cols: usize) -> Result<()> {
    match cols.is_multiple_of(2) {
        true => Ok(()),
        false => shape(format!("rows of {cols} are not those of gate and up")),
    }
}
