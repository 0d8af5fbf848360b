//! Instances of `calibrate.cuh` and `solve.cuh`, and what they are given.

use crate::dtype::HALVES;
use crate::{DType, Source};

/// Threads of a CTA of what works on single elements.
const ELEMENT_THREADS: usize = 256;
/// Most CTAs of what works on single elements: each takes several.
const ELEMENT_CTAS: usize = 8192;
/// Side of a tile of a matrix that is mirrored.
const MIRROR_TILE: usize = 32;
/// Threads of a CTA of what works on rows and groups.
const SCALE_THREADS: usize = 256;
/// Threads of a CTA of solved rows.
const SOLVE_THREADS: usize = 128;
/// CTAs that an SM has registers for, at least.
const CTAS: usize = 4;
/// Columns that are solved at a time.
pub const SOLVE_BLOCK: usize = 64;
/// Columns that are factorized at a time.
pub const FACTOR_BLOCK: usize = 64;

/// A kernel of calibration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CalibrationKernel {
    /// int8 rows at what they stand for.
    Widen,
    /// Values as float32, times a factor a column.
    Floats,
    /// Probabilities of attention, for queries and keys of one 16-bit type, of another.
    Probabilities {
        /// Of queries and keys.
        half: DType,
        /// Of the probabilities.
        out: DType,
    },
    /// A lower triangle as a whole matrix.
    Mirror,
    /// The diagonal of a matrix.
    Diagonal,
    /// The first value that is not finite.
    NotFinite,
    /// The damped Hessian in reversed order.
    Damp,
    /// The factor of a square on the diagonal.
    FactorSquare,
    /// What errors feed back.
    Feedback,
    /// Scales of groups, by a CTA each where they are whole rows, else by a warp.
    ChooseScales {
        /// Whether there are groups.
        grouped: bool,
    },
    /// Scales of groups without weights.
    FillScales,
    /// Scales that are small multiples of one.
    IntegerScales,
    /// Codes rounded to nearest.
    RoundCodes,
    /// Scales of int8 weights.
    ChannelScales,
    /// Weights minus what the kernels see.
    Differences {
        /// Whether there are groups.
        grouped: bool,
    },
    /// Codes as numbers.
    CodeValues,
    /// `v H v^T` of rows.
    Forms,
    /// The better of two tries.
    KeepBetter,
    /// Weights in the order of solving.
    ToColumns,
    /// Codes in the order of channels.
    FromColumns,
    /// Compensated codes of a block of columns.
    SolveBlock {
        /// Whether there are groups.
        grouped: bool,
    },
}

use CalibrationKernel as K;

impl CalibrationKernel {
    /// All of them.
    pub fn all() -> Vec<Self> {
        let mut all = vec![
            K::Widen,
            K::Floats,
            K::Mirror,
            K::Diagonal,
            K::NotFinite,
            K::Damp,
            K::FactorSquare,
            K::Feedback,
            K::FillScales,
            K::IntegerScales,
            K::RoundCodes,
            K::ChannelScales,
            K::CodeValues,
            K::Forms,
            K::KeepBetter,
            K::ToColumns,
            K::FromColumns,
        ];
        for grouped in [false, true] {
            all.extend([K::ChooseScales { grouped }, K::Differences { grouped }, K::SolveBlock { grouped }]);
        }
        for half in HALVES {
            all.extend(HALVES.map(|out| K::Probabilities { half, out }));
        }
        all
    }

    /// The kernel's source.
    pub fn source(self) -> Source {
        let is_bf16 = |t: DType| t == DType::BF16;
        let (name, parameters, call) = match self {
            K::Widen => ("widen".into(), "Widen", "widen(p)".into()),
            K::Floats => ("floats".into(), "Floats", "floats(p)".into()),
            K::Probabilities { half, out } => (
                format!("probabilities_{}_{}", half.name().to_lowercase(), out.name().to_lowercase()),
                "Probability",
                format!("probabilities<{}, {}>(p)", is_bf16(half), is_bf16(out)),
            ),
            K::Mirror => ("mirror".into(), "Mirror", "mirror(p)".into()),
            K::Diagonal => ("diagonal".into(), "Diagonal", "diagonal(p)".into()),
            K::NotFinite => ("not_finite".into(), "NotFinite", "not_finite(p)".into()),
            K::Damp => ("damp".into(), "Damp", "damp(p)".into()),
            K::FactorSquare => ("factor_square".into(), "Factor", "factor_square(p)".into()),
            K::Feedback => ("feedback".into(), "Feedback", "feedback(p)".into()),
            K::ChooseScales { grouped } => {
                let threads = if grouped { 32 } else { SCALE_THREADS };
                (format!("choose_scales_{threads}"), "Scale", format!("choose_scales<{threads}>(p)"))
            }
            K::FillScales => ("fill_scales".into(), "Scale", "fill_scales(p)".into()),
            K::IntegerScales => ("integer_scales".into(), "Scale", "integer_scales(p)".into()),
            K::RoundCodes => ("round_codes".into(), "Code", "round_codes(p)".into()),
            K::ChannelScales => ("channel_scales".into(), "Code", "channel_scales(p)".into()),
            K::Differences { grouped } => {
                (format!("differences_{}", levels(grouped)), "Code", format!("differences<{grouped}>(p)"))
            }
            K::CodeValues => ("code_values".into(), "Code", "code_values(p)".into()),
            K::Forms => ("forms".into(), "Form", "forms(p)".into()),
            K::KeepBetter => ("keep_better".into(), "Keep", "keep_better(p)".into()),
            K::ToColumns => ("to_columns".into(), "Column", "to_columns(p)".into()),
            K::FromColumns => ("from_columns".into(), "Column", "from_columns(p)".into()),
            K::SolveBlock { grouped } => {
                (format!("solve_block_{}", levels(grouped)), "Solve", format!("solve_block<{grouped}>(p)"))
            }
        };
        Source::new(format!("calibrate_{name}"), |function| {
            format!(
                "#include \"solve.cuh\"\n\
             // What the host believes.\n\
             static_assert(kProbabilityThreads == {ELEMENT_THREADS} && kMirrorThreads == {ELEMENT_THREADS});\n\
             static_assert(kFactorThreads == {ELEMENT_THREADS} && kMirrorTile == {MIRROR_TILE});\n\
             static_assert(kScaleThreads == {SCALE_THREADS} && kSolveThreads == {SOLVE_THREADS});\n\
             static_assert(kSolveBlock == {SOLVE_BLOCK} && kFactorBlock == {FACTOR_BLOCK});\n\
             // Without a number of CTAs ptxas spills some instances to fit one more.\n\
             extern \"C\" __global__ void __launch_bounds__({}, {CTAS})\n\
             {function}(const __grid_constant__ {parameters}Parameters p) {{ {call}; }}\n",
                self.threads(),
            )
        })
    }

    /// Threads of a CTA.
    pub fn threads(self) -> usize {
        match self {
            K::SolveBlock { .. } => SOLVE_THREADS,
            _ => ELEMENT_THREADS,
        }
    }

    /// CTAs for `units`: elements, rows, groups, or what else the kernel works on.
    pub fn ctas(self, units: usize) -> usize {
        const WARPS: usize = SCALE_THREADS / 32;
        match self {
            K::Probabilities { .. } | K::FactorSquare | K::Forms | K::KeepBetter => units,
            // Rows of a square matrix.
            K::Mirror => units.div_ceil(MIRROR_TILE).pow(2),
            K::ChooseScales { grouped: false } => units,
            K::ChooseScales { grouped: true } | K::IntegerScales | K::ChannelScales => units.div_ceil(WARPS),
            K::SolveBlock { .. } => units.div_ceil(SOLVE_THREADS),
            K::Diagonal | K::FillScales => units.div_ceil(ELEMENT_THREADS),
            _ => units.div_ceil(ELEMENT_THREADS).clamp(1, ELEMENT_CTAS),
        }
    }
}

/// Levels of scales, for names.
fn levels(grouped: bool) -> &'static str {
    if grouped { "groups" } else { "channel" }
}

/// `WidenParameters` of `calibrate.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct WidenParameters {
    /// `rows x cols` codes, four at a time.
    pub codes: u64,
    /// Scales of the rows, `rows` float32.
    pub scales: u64,
    /// Output, `rows x cols` bfloat16.
    pub out: u64,
    /// Fours of codes.
    pub count: i64,
    /// Of a row.
    pub row_count: i32,
}

/// `FloatsParameters` of `calibrate.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FloatsParameters {
    /// Values.
    pub x: u64,
    /// `columns` float32, or 0.
    pub factors: u64,
    /// Output, float32; may be `x` where that is.
    pub out: u64,
    /// How many.
    pub count: i64,
    /// Values of a row.
    pub columns: i32,
    /// Type of the values.
    pub value_type: i32,
}

/// `ProbabilityParameters` of `calibrate.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ProbabilityParameters {
    /// Rows of q, k and v heads.
    pub qkv: u64,
    /// Output, `(heads * queries) x pitch`.
    pub out: u64,
    /// Rows of one sequence.
    pub rows: i32,
    /// Query heads of a token.
    pub num_heads: i32,
    /// Key heads of a token.
    pub num_kv_heads: i32,
    /// Width of a head.
    pub head_dim: i32,
    /// Queries of a head.
    pub queries: i32,
    /// Position of the first.
    pub first: i32,
    /// Positions from one to the next.
    pub stride: i32,
    /// Positions that a query sees; 0: all before it.
    pub window: i32,
    /// Elements of a row of the output.
    pub pitch: i32,
    /// Of scores, times log2(e).
    pub scale: f32,
}

/// `MirrorParameters` of `calibrate.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MirrorParameters {
    /// `width x width` float32.
    pub matrix: u64,
    /// Rows and columns of the matrix.
    pub width: i32,
    /// What all is multiplied by.
    pub factor: f32,
}

/// `DiagonalParameters` of `calibrate.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DiagonalParameters {
    /// `width x width` float32.
    pub matrix: u64,
    /// Output, the diagonal: `width` float32.
    pub out: u64,
    /// Rows and columns of the matrix.
    pub width: i32,
}

/// `NotFiniteParameters` of `calibrate.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct NotFiniteParameters {
    /// Values that are looked at, `count` of them.
    pub values: u64,
    /// Number of values.
    pub count: i64,
    /// Where the index goes, 32 bits.
    pub first: u64,
    /// Type of the values.
    pub value_type: i32,
}

/// `DampParameters` of `solve.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DampParameters {
    /// `k x k` float32.
    pub hessian: u64,
    /// Diagonal of the Hessian, `k` float32.
    pub diagonal: u64,
    /// Original channel of each column, in the order in which they are solved: `k` int32.
    pub order: u64,
    /// Output, `k x k` float64.
    pub out: u64,
    /// Input channels: rows and columns of the Hessian.
    pub k: i32,
    /// Of the diagonal.
    pub mean: f64,
    /// What is added to the diagonal.
    pub added: f64,
}

/// `FactorParameters` of `solve.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FactorParameters {
    /// What is left of a block of columns.
    pub rest: u64,
    /// Output, the columns of the Cholesky factor.
    pub out: u64,
    /// Its inverse, transposed.
    pub inverse: u64,
    /// Output, int32: set where the matrix is not positive definite.
    pub failed: u64,
    /// Between columns of `rest`.
    pub rest_pitch: i32,
    /// Between columns of `out`.
    pub out_pitch: i32,
    /// Columns of the block.
    pub width: i32,
}

/// `FeedbackParameters` of `solve.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FeedbackParameters {
    /// `k x k` float64.
    pub factor: u64,
    /// Output, `k x k` float32.
    pub feedback: u64,
    /// Output, `k` float32.
    pub cost: u64,
    /// Output, int32: set where a number of the feedback is not finite.
    pub failed: u64,
    /// Input channels: rows and columns of the factor.
    pub k: i32,
}

/// `ScaleParameters` of `solve.cuh`, with the rule.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ScaleParameters {
    /// `n x k` float32.
    pub weights: u64,
    /// What a squared error of an input channel costs, `k` float32.
    pub importance: u64,
    /// `n x groups` float32.
    pub scales: u64,
    /// Output channels, rows of the weights.
    pub n: i32,
    /// Input channels, columns of the weights.
    pub k: i32,
    /// Columns of a group.
    pub group: i32,
    /// Least code, as a float.
    pub low: f32,
    /// Largest code, as a float.
    pub high: f32,
    /// What the largest weight is divided by.
    pub reach: f32,
    /// First ratio, in hundredths.
    pub from: i32,
    /// Last ratio, in hundredths.
    pub to: i32,
    /// Hundredths between two ratios; 0: no search.
    pub stride: i32,
    /// Whether errors count to the power of 2.4.
    pub steep: i32,
    /// Type of stored scales.
    pub value_type: i32,
}

/// `CodeParameters` of `solve.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CodeParameters {
    /// `n x k` float32.
    pub weights: u64,
    /// `n x groups` float32.
    pub scales: u64,
    /// Scales of the output channels as int8 weights have them, `n` float32.
    pub channels: u64,
    /// `n x k` int8.
    pub codes: u64,
    /// `n x k` float32.
    pub out: u64,
    /// Output channels, rows of the weights.
    pub n: i32,
    /// Input channels, columns of the weights.
    pub k: i32,
    /// Columns of a group.
    pub group: i32,
    /// Least code, as a float.
    pub low: f32,
    /// Largest code, as a float.
    pub high: f32,
}

/// `FormParameters` of `solve.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FormParameters {
    /// `n x k` float32.
    pub rows: u64,
    /// Their product with the Hessian, or 0.
    pub product: u64,
    /// Output, a sum for each row: `n` float64.
    pub out: u64,
    /// Columns of the rows.
    pub k: i32,
}

/// `KeepParameters` of `solve.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct KeepParameters {
    /// `n x k` int8.
    pub codes: u64,
    /// The best so far.
    pub best: u64,
    /// Errors of the rows with these codes, `n` float64.
    pub errors: u64,
    /// Those of the best.
    pub least: u64,
    /// Columns of the rows.
    pub k: i32,
}

/// `ColumnParameters` of `solve.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ColumnParameters {
    /// `n x k` float32.
    pub weights: u64,
    /// `n x k` int8.
    pub codes: u64,
    /// Original channel of each column, in the order in which they are solved: `k` int32.
    pub order: u64,
    /// `k x n` float32.
    pub columns: u64,
    /// `k x n` int8.
    pub column_codes: u64,
    /// Output channels, rows of the weights.
    pub n: i32,
    /// Input channels, columns of the weights.
    pub k: i32,
}

/// `SolveParameters` of `solve.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SolveParameters {
    /// `k x k` float32.
    pub feedback: u64,
    /// Original channel of each column, in the order in which they are solved: `k` int32.
    pub order: u64,
    /// `n x groups` float32.
    pub scales: u64,
    /// Scales of the output channels, `n` float32.
    pub channels: u64,
    /// `k x n` float32.
    pub columns: u64,
    /// A block of columns, float32.
    pub targets: u64,
    /// `k x n` float32.
    pub errors: u64,
    /// `k x n` int8.
    pub codes: u64,
    /// Output channels, rows of the weights.
    pub n: i32,
    /// Input channels, columns of the weights.
    pub k: i32,
    /// Columns of a group.
    pub group: i32,
    /// Groups of a row.
    pub groups: i32,
    /// First column of the block.
    pub start: i32,
    /// Columns of the block.
    pub width: i32,
    /// Least code, as a float.
    pub low: f32,
    /// Largest code, as a float.
    pub high: f32,
}
