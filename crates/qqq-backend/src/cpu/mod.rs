//! The CPU backend: float32 compute, and W4A8 with integer kernels picked at run time.

mod attention;
pub mod describe;
mod element;
mod embedding;
mod gemm;
mod gemv;
pub mod isa;
mod kv_cache;
mod linear_float;
pub mod matrix;
mod norm;
pub mod pool;
mod rope;
mod shared;
mod shortlist;
pub mod simd;
pub mod team;
mod tile;
pub mod w4a8;

use qqq_formats::{LinearWeight, WeightData};

use crate::{Backend, BackendError, HeadLayout, InputKind, KvLayout, Result, Span, WindowedCausal};
use matrix::Matrix;
use w4a8::{Int8Activations, W4A8Linear};

pub use embedding::CpuEmbedding;
pub use kv_cache::CpuKvCache;
pub use linear_float::FloatLinear;
pub use rope::CpuRope;
pub use simd::{FloatIsa, SimdLevel};

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

    /// Softmax of the scores in `seen`, in place; all others become 0.
    ///
    /// # Panics
    /// If `seen` does not lie within the scores.
    pub fn softmax(&self, scores: &mut [f32], seen: std::ops::Range<usize>) {
        let (_, sum) = norm::softmax_piece(self.level, scores, seen.start, seen.end, f32::NEG_INFINITY);
        let inverse = 1.0 / sum;
        scores[seen].iter_mut().for_each(|s| *s *= inverse);
    }

    /// The instruction set of the float kernels.
    pub fn simd_level(&self) -> SimdLevel {
        self.level
    }
}

/// Input of a linear layer.
#[derive(Clone, Debug)]
pub enum CpuActivation {
    /// Float rows.
    Float(Matrix),
    /// int8 rows with per-token scales.
    Int8(Int8Activations),
}

impl CpuActivation {
    /// Kind of this activation.
    pub fn kind(&self) -> InputKind {
        match self {
            CpuActivation::Float(_) => InputKind::Float,
            CpuActivation::Int8(_) => InputKind::Int8,
        }
    }

    fn rows(&self) -> usize {
        match self {
            CpuActivation::Float(x) => x.rows,
            CpuActivation::Int8(x) => x.rows,
        }
    }
}

/// A prepacked linear layer.
#[derive(Clone, Debug)]
pub enum CpuLinear {
    /// Float weights.
    Float(FloatLinear),
    /// 4-bit weights, int8 activations; bias of length `N`.
    W4A8(W4A8Linear, Option<Vec<f32>>),
}

/// Methods panic where arguments contradict each other (shapes, slots, positions); what comes
/// from outside (weights) is checked and refused with an error.
impl Backend for CpuBackend {
    type Tensor = Matrix;
    type Activation = CpuActivation;
    type Linear = CpuLinear;
    type Embedding = CpuEmbedding;
    type Vector = Vec<f32>;
    type Rope = CpuRope;
    type KvCache = CpuKvCache;

    fn tensor(&self, rows: usize, cols: usize, data: Vec<f32>) -> Matrix {
        assert_eq!(data.len(), rows * cols, "values of a {rows} x {cols} tensor");
        Matrix { rows, cols, data }
    }

    fn to_host(&self, x: &Matrix) -> Vec<f32> {
        x.data.clone()
    }

    fn rows(&self, x: &Matrix) -> usize {
        x.rows
    }

    fn vector(&self, data: Vec<f32>) -> Vec<f32> {
        data
    }

    fn linear_weight(&self, weight: LinearWeight, bias: Option<Vec<f32>>) -> Result<CpuLinear> {
        match weight {
            LinearWeight::Float { out_features, in_features, data } => {
                FloatLinear::new(out_features, in_features, data.into(), bias).map(CpuLinear::Float)
            }
            LinearWeight::Quantized(weight) => {
                linear_float::check_bias(weight.out_features, bias.as_deref())?;
                Ok(CpuLinear::W4A8(W4A8Linear::new(&weight)?, bias))
            }
        }
    }

    fn input_kind(&self, weight: &CpuLinear) -> InputKind {
        match weight {
            CpuLinear::Float(_) => InputKind::Float,
            CpuLinear::W4A8(..) => InputKind::Int8,
        }
    }

    fn embedding(&self, vocab: usize, hidden: usize, data: WeightData) -> Result<CpuEmbedding> {
        CpuEmbedding::new(vocab, hidden, data)
    }

    fn tied_head(&self, embedding: &CpuEmbedding) -> Result<CpuLinear> {
        embedding.tied_head().map(CpuLinear::Float)
    }

    fn scaled_rope(&self, inv_freq: &[f32], factor: f32, max_positions: usize) -> CpuRope {
        CpuRope::new(inv_freq, factor, max_positions)
    }

    fn kv_cache(&self, layout: KvLayout) -> CpuKvCache {
        CpuKvCache::new(layout)
    }

    fn kv_add_slot(&self, kv: &mut CpuKvCache) -> usize {
        kv.add_slot()
    }

    fn kv_remove_slot(&self, kv: &mut CpuKvCache, slot: usize) {
        kv.remove_slot(slot);
    }

    fn kv_truncate(&self, kv: &mut CpuKvCache, slot: usize, len: usize) {
        kv.truncate(slot, len);
    }

    fn embed(&self, table: &CpuEmbedding, ids: &[u32]) -> Matrix {
        table.rows(self.level, ids)
    }

    fn rms_norm(&self, x: &Matrix, weight: &Vec<f32>, eps: f32, kind: InputKind) -> CpuActivation {
        norm::rms_norm(self.level, x, weight, eps, kind)
    }

    fn activation(&self, x: Matrix, kind: InputKind) -> CpuActivation {
        match kind {
            InputKind::Float => CpuActivation::Float(x),
            InputKind::Int8 => CpuActivation::Int8(Int8Activations::quantize(&x)),
        }
    }

    fn linear(&self, x: &CpuActivation, weight: &CpuLinear) -> Matrix {
        match (x, weight) {
            (CpuActivation::Float(x), CpuLinear::Float(weight)) => weight.matmul(self.level, x),
            (CpuActivation::Int8(x), CpuLinear::W4A8(weight, bias)) => {
                let mut out = Matrix::unspecified(x.rows, weight.out_features());
                weight.matmul(x, bias.as_deref(), false, &mut out);
                out
            }
            _ => panic!("a linear layer that takes {:?} was given {:?}", self.input_kind(weight), x.kind()),
        }
    }

    fn linear_top(&self, x: &CpuActivation, weight: &CpuLinear, count: usize) -> Vec<Vec<(f32, u32)>> {
        if let (CpuActivation::Float(x), CpuLinear::Float(weight)) = (x, weight)
            && let Some(top) = weight.top(self.level, x, count)
        {
            return top;
        }
        let out = self.linear(x, weight);
        (0..out.rows).map(|row| crate::largest(out.row(row), count)).collect()
    }

    fn linear_add(&self, acc: &mut Matrix, x: &CpuActivation, weight: &CpuLinear) {
        assert_eq!(acc.rows, x.rows(), "rows of the sum");
        match (x, weight) {
            (CpuActivation::Float(x), CpuLinear::Float(weight)) => weight.matmul_add(self.level, x, acc),
            (CpuActivation::Int8(x), CpuLinear::W4A8(weight, bias)) => {
                weight.matmul(x, bias.as_deref(), true, acc)
            }
            _ => panic!("a linear layer that takes {:?} was given {:?}", self.input_kind(weight), x.kind()),
        }
    }

    fn silu_mul(&self, gate_up: Matrix, kind: InputKind) -> CpuActivation {
        norm::silu_mul(self.level, &gate_up, kind)
    }

    fn rope_append_kv(
        &self,
        qkv: &mut Matrix,
        heads: HeadLayout,
        qk_norm: Option<(&Vec<f32>, &Vec<f32>, f32)>,
        rope: &CpuRope,
        kv: &mut CpuKvCache,
        layer: usize,
        spans: &[Span],
    ) {
        let norm = qk_norm.map(|(q, k, eps)| (q.as_slice(), k.as_slice(), eps));
        rope::rope_append_kv(self.level, qkv, heads, norm, rope, kv, layer, spans);
    }

    fn attention(
        &self,
        qkv: &Matrix,
        heads: HeadLayout,
        mask: WindowedCausal,
        kv: &CpuKvCache,
        layer: usize,
        spans: &[Span],
    ) -> Matrix {
        attention::attention(self.level, qkv, heads, mask, kv, layer, spans)
    }

    fn select_rows(&self, x: &Matrix, rows: &[usize]) -> Matrix {
        let mut out = Matrix::unspecified(rows.len(), x.cols);
        for (i, &row) in rows.iter().enumerate() {
            out.row_mut(i).copy_from_slice(x.row(row));
        }
        out
    }
}
