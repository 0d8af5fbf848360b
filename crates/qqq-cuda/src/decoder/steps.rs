//! Embedding, rotary embedding, sums and the largest logits: instances of `decoder_steps.cuh`.

use crate::dtype::HALVES;
use crate::{CudaError, DType, KernelType, Result, Source};

/// A kernel of `decoder_steps.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StepKernel {
    /// Rows of an embedding.
    Embed,
    /// A sum with a factor.
    Add,
    /// Norms of heads, rotary embedding, append to the KV cache; of rows of this 16-bit type.
    RopeAppend(DType),
    /// The largest elements of rows.
    Top,
    /// What rows lose that predict a column.
    Losses,
    /// What two models' rows say of each other.
    Compare,
}

/// Threads of a CTA of what works on single elements.
const ELEMENT_THREADS: usize = 256;
/// Heads that a CTA rotates, a warp each.
const ROPE_WARPS: usize = 4;
/// Widest head that is rotated.
const MOST_HEAD_DIM: usize = 256;
/// Threads of a CTA that looks for the largest elements of a row.
const TOP_THREADS: usize = 1024;
/// Threads of a CTA that sums a row.
const LOSS_THREADS: usize = 512;

impl StepKernel {
    /// All of them.
    pub fn all() -> Vec<Self> {
        let ropes = HALVES.into_iter().map(StepKernel::RopeAppend);
        [StepKernel::Embed, StepKernel::Add, StepKernel::Top, StepKernel::Losses, StepKernel::Compare]
            .into_iter()
            .chain(ropes)
            .collect()
    }

    /// The kernel's source.
    pub fn source(self) -> Source {
        let (name, parameters, call) = match self {
            StepKernel::Embed => ("embed".into(), "EmbedParameters", "embed(p)"),
            StepKernel::Add => ("add".into(), "AddParameters", "add(p)"),
            StepKernel::Top => ("top".into(), "TopParameters", "top(p)"),
            StepKernel::Losses => ("losses".into(), "LossParameters", "losses(p)"),
            StepKernel::Compare => ("compare".into(), "CompareParameters", "compare(p)"),
            StepKernel::RopeAppend(half) => (
                format!("rope_append_{}", half.kernel_name()),
                "RopeParameters",
                if half == DType::BF16 { "rope_append<true>(p)" } else { "rope_append<false>(p)" },
            ),
        };
        Source::new(name, |function| {
            format!(
                "#include \"decoder_steps.cuh\"\n\
             // What the host believes.\n\
             static_assert(kRopeWarps == {ROPE_WARPS} && kTopThreads == {TOP_THREADS} && kMostHeadDim == {MOST_HEAD_DIM} && kLossThreads == {LOSS_THREADS} && sizeof(Compared) == {});\n\
             extern \"C\" __global__ void __launch_bounds__({})\n\
             {function}(const __grid_constant__ {parameters} p) {{ overlap_launches(); {call}; }}\n",
                size_of::<Compared>(),
                self.threads(),
            )
        })
    }

    /// Threads of a CTA.
    pub fn threads(self) -> usize {
        match self {
            StepKernel::Embed | StepKernel::Add => ELEMENT_THREADS,
            StepKernel::RopeAppend(_) => 32 * ROPE_WARPS,
            StepKernel::Top => TOP_THREADS,
            StepKernel::Losses | StepKernel::Compare => LOSS_THREADS,
        }
    }

    /// CTAs for `units`: elements, heads of rows, or rows.
    pub fn ctas(self, units: usize) -> usize {
        match self {
            // Each takes several where there are many.
            StepKernel::Embed | StepKernel::Add => units.div_ceil(ELEMENT_THREADS).clamp(1, 4096),
            StepKernel::RopeAppend(_) => units.div_ceil(ROPE_WARPS),
            StepKernel::Top | StepKernel::Losses | StepKernel::Compare => units,
        }
    }
}

/// `ValueType` of `decoder_steps.cuh`.
pub(super) fn value_type(dtype: DType) -> Result<i32> {
    match dtype {
        DType::F16 => Ok(0),
        DType::BF16 => Ok(1),
        DType::F32 => Ok(2),
        other => Err(CudaError::Types(format!("values of {other}: F16, BF16 or F32"))),
    }
}

/// `EmbedParameters` of `decoder_steps.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EmbedParameters {
    /// The table, `vocabulary x hidden`.
    pub table: u64,
    /// Token ids, `rows` int32.
    pub tokens: u64,
    /// Output, `rows x hidden` float32.
    pub out: u64,
    /// Rows, one a token.
    pub rows: i64,
    /// Values of a row.
    pub hidden: i32,
    /// Type of the table.
    pub value_type: i32,
    /// Factor of the embedding's values.
    pub scale: f32,
}

/// `AddParameters` of `decoder_steps.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AddParameters {
    /// `count` float32, to which is added.
    pub residual: u64,
    /// What is added, `count` values.
    pub x: u64,
    /// Elements of both.
    pub count: i64,
    /// Type of `x`.
    pub value_type: i32,
    /// Factor of `x`.
    pub factor: f32,
}

/// `RopeParameters` of `decoder_steps.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RopeParameters {
    /// Rows of q, k and v heads.
    pub qkv: u64,
    /// The layer's keys.
    pub keys: u64,
    /// The layer's values, in pages like the keys.
    pub values: u64,
    /// Norm of query heads, or 0.
    pub q_norm: u64,
    /// Norm of key heads, or 0.
    pub k_norm: u64,
    /// Cosines, positions x pairs float32, or 0.
    pub cosines: u64,
    /// Sines, positions x pairs float32, or 0.
    pub sines: u64,
    /// Positions of the tokens in their sequences, `rows` int32.
    pub positions: u64,
    /// `rows` int32: page times positions of a page, and the place in the page.
    pub slots: u64,
    /// Rows, one a token.
    pub rows: i32,
    /// Query heads of a token.
    pub num_heads: i32,
    /// Key heads of a token.
    pub num_kv_heads: i32,
    /// Width of a head.
    pub head_dim: i32,
    /// Pairs that turn.
    pub pairs: i32,
    /// Of the norm of query heads.
    pub q_epsilon: f32,
    /// Of the norm of key heads.
    pub k_epsilon: f32,
    /// Queries grow by `1 + beta ln(1 + floor(position / period))`; 0: they do not.
    pub query_beta: f32,
    /// Positions that share a factor; at least 1.
    pub query_period: i32,
}

/// `TopParameters` of `decoder_steps.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TopParameters {
    /// `rows x columns` float32.
    pub logits: u64,
    /// Output, `rows x count`: a column in the low half of a word, the element's bits in the high one.
    pub out: u64,
    /// Rows, one a token.
    pub rows: i32,
    /// Elements of a row.
    pub columns: i32,
    /// How many of them.
    pub count: i32,
}

/// `LossParameters` of `decoder_steps.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LossParameters {
    /// `rows x columns` float32.
    pub logits: u64,
    /// `rows` int32: a column of each row.
    pub columns_of: u64,
    /// Output, `rows` float64.
    pub out: u64,
    /// Rows.
    pub rows: i32,
    /// Elements of a row.
    pub columns: i32,
}

/// `CompareParameters` of `decoder_steps.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CompareParameters {
    /// `rows x columns` float32.
    pub baseline: u64,
    /// As many of the model's.
    pub model: u64,
    /// `rows` int32: a column of each row.
    pub columns_of: u64,
    /// Output, `rows` [`Compared`].
    pub out: u64,
    /// Rows.
    pub rows: i32,
    /// Elements of a row.
    pub columns: i32,
}

/// `Compared` of `decoder_steps.cuh`: what a pair of rows says. What is made of a row that is not finite is not finite.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Compared {
    /// `-log p` of the baseline's column.
    pub baseline_nll: f64,
    /// Of the model's.
    pub model_nll: f64,
    /// KL(baseline || model).
    pub kl: f64,
    /// 1 where the largest elements, the first among equals, are of one column, else 0.
    pub agree: i64,
}
