//! Instances of `calibrate.cuh`, `correct.cuh`, `factor.cuh`, `solve.cuh` and `smooth.cuh`.

use crate::dtype::HALVES;
use crate::{DType, KernelType, Source};

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
/// Columns whose range a CTA looks for.
const RANGE_COLUMNS: usize = 32;
/// Groups of a row that the kernel has room for that rounds a candidate of the smoothing search.
pub const MOST_GROUPS: usize = 2048;
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
    /// What the float model's inputs deviate by, in this 16-bit type.
    Deviate(DType),
    /// float32 values as float64.
    Doubles,
    /// Weights and their steps.
    MoveWeights,
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
    /// Codes and scales of a candidate of the smoothing search.
    RoundScaled {
        /// Whether there are groups.
        grouped: bool,
    },
    /// Rows of this 16-bit type times a factor a column, in int8.
    SmoothRows(DType),
    /// The largest and the least value of every column.
    ChannelRange,
    /// Squared distances of rows.
    Distances,
    /// float32 values in this 16-bit type.
    Halves(DType),
    /// Rows divided by a number each.
    DivideRows,
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
            K::Doubles,
            K::MoveWeights,
            K::FillScales,
            K::IntegerScales,
            K::RoundCodes,
            K::ChannelScales,
            K::CodeValues,
            K::Forms,
            K::KeepBetter,
            K::ToColumns,
            K::FromColumns,
            K::ChannelRange,
            K::Distances,
            K::DivideRows,
        ];
        for grouped in [false, true] {
            all.extend([K::ChooseScales { grouped }, K::Differences { grouped }, K::SolveBlock { grouped }]);
            all.push(K::RoundScaled { grouped });
        }
        for half in HALVES {
            all.extend(HALVES.map(|out| K::Probabilities { half, out }));
            all.extend([K::SmoothRows(half), K::Halves(half), K::Deviate(half)]);
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
            K::Deviate(half) => (
                format!("deviate_{}", half.kernel_name()),
                "Deviate",
                format!("deviate<{}>(p)", is_bf16(half)),
            ),
            K::Doubles => ("doubles".into(), "Doubles", "doubles(p)".into()),
            K::MoveWeights => ("move_weights".into(), "Move", "move_weights(p)".into()),
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
            K::RoundScaled { grouped } => {
                (format!("round_scaled_{}", levels(grouped)), "Round", format!("round_scaled<{grouped}>(p)"))
            }
            K::SmoothRows(half) => (
                format!("smooth_rows_{}", half.kernel_name()),
                "Smooth",
                format!("smooth_rows<{}>(p)", is_bf16(half)),
            ),
            K::ChannelRange => ("channel_range".into(), "Range", "channel_range(p)".into()),
            K::Distances => ("distances".into(), "Distance", "distances(p)".into()),
            K::Halves(half) => {
                (format!("halves_{}", half.kernel_name()), "Halves", format!("halves<{}>(p)", is_bf16(half)))
            }
            K::DivideRows => ("divide_rows".into(), "Divide", "divide_rows(p)".into()),
        };
        Source::new(format!("calibrate_{name}"), |function| {
            format!(
                "#include \"smooth.cuh\"\n\
             // What the host believes.\n\
             static_assert(kProbabilityThreads == {ELEMENT_THREADS} && kMirrorThreads == {ELEMENT_THREADS});\n\
             static_assert(kFactorThreads == {ELEMENT_THREADS} && kMirrorTile == {MIRROR_TILE});\n\
             static_assert(kScaleThreads == {SCALE_THREADS} && kSolveThreads == {SOLVE_THREADS});\n\
             static_assert(kSolveBlock == {SOLVE_BLOCK} && kFactorBlock == {FACTOR_BLOCK});\n\
             static_assert(kSmoothThreads == {ELEMENT_THREADS} && kRangeColumns == {RANGE_COLUMNS});\n\
             static_assert(kMostGroups == {MOST_GROUPS});\n\
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
            K::RoundScaled { .. } | K::SmoothRows(_) | K::Distances => units,
            K::ChannelRange => units.div_ceil(RANGE_COLUMNS),
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
