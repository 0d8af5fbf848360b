//! Instances of `learn.cuh`, `learn_rows.cuh` and `learn_weights.cuh`, and of what else learning needs that calibration has.

use crate::Source;

/// Threads of a CTA.
const THREADS: usize = 256;
/// Most CTAs of what works on single elements: each takes several.
const ELEMENT_CTAS: usize = 8192;
/// Columns that a CTA sums.
const PRODUCT_COLUMNS: usize = 32;
/// Rows of such a sum.
pub const PRODUCT_ROWS: usize = 128;

/// A kernel of learning. `back`: the gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LearnKernel {
    /// Values as float32, times a factor a column.
    Floats,
    /// A sum with a factor.
    Add,
    /// Squared distances of rows.
    Distances,
    /// The largest and the least value of every column.
    ChannelRange,
    /// A difference with a factor.
    Difference,
    /// Columns by their divisors.
    DivideColumns,
    /// What channels of the values have, for those of attention's output.
    RepeatHeads,
    /// The sums of these.
    SumHeads,
    /// Products of two matrices, summed over chunks of [`PRODUCT_ROWS`] rows.
    ColumnProducts,
    /// The sums of all chunks.
    ColumnTotals,
    /// A step down a gradient.
    Adam,
    /// Norms of rows, by a CTA each, or of heads, by a warp.
    Norm {
        /// Whether of heads.
        heads: bool,
        /// See above.
        back: bool,
    },
    /// The rotary embedding.
    TurnHeads,
    /// Probabilities of attention.
    Softmax,
    /// Gradients by its scores.
    ScoreGradients,
    /// Gates.
    Gate {
        /// GELU instead of SiLU.
        gelu: bool,
        /// See above.
        back: bool,
    },
    /// Rows to int8 and back to float.
    Int8 {
        /// See above.
        back: bool,
    },
    /// Rounded weights, of groups by a warp each, or of whole rows by a CTA.
    Weights {
        /// Whether there are groups.
        grouped: bool,
        /// See above.
        back: bool,
    },
}

use LearnKernel as K;

impl LearnKernel {
    /// All of them.
    pub fn all() -> Vec<Self> {
        let mut all = vec![
            K::Floats,
            K::Add,
            K::Distances,
            K::ChannelRange,
            K::Difference,
            K::DivideColumns,
            K::RepeatHeads,
            K::SumHeads,
            K::ColumnProducts,
            K::ColumnTotals,
            K::Adam,
            K::TurnHeads,
            K::Softmax,
            K::ScoreGradients,
        ];
        for back in [false, true] {
            all.push(K::Int8 { back });
            for other in [false, true] {
                all.push(K::Norm { heads: other, back });
                all.push(K::Gate { gelu: other, back });
                all.push(K::Weights { grouped: other, back });
            }
        }
        all
    }

    /// The kernel's source.
    pub fn source(self) -> Source {
        let way = |back: bool| if back { "_back" } else { "" };
        let (name, parameters, call) = match self {
            K::Floats => ("floats".into(), "Floats", "floats(p)".into()),
            K::Add => ("add".into(), "Add", "add(p)".into()),
            K::Distances => ("distances".into(), "Distance", "distances(p)".into()),
            K::ChannelRange => ("channel_range".into(), "Range", "channel_range(p)".into()),
            K::Difference => ("difference".into(), "Difference", "difference(p)".into()),
            K::DivideColumns => ("divide_columns".into(), "Quotient", "divide_columns(p)".into()),
            K::RepeatHeads => ("repeat_heads".into(), "Repeat", "repeat_heads(p)".into()),
            K::SumHeads => ("sum_heads".into(), "Repeat", "sum_heads(p)".into()),
            K::ColumnProducts => ("column_products".into(), "ColumnProduct", "column_products(p)".into()),
            K::ColumnTotals => ("column_totals".into(), "ColumnTotal", "column_totals(p)".into()),
            K::Adam => ("adam".into(), "Adam", "adam(p)".into()),
            K::TurnHeads => ("turn_heads".into(), "Turn", "turn_heads(p)".into()),
            K::Softmax => ("softmax".into(), "Softmax", "softmax(p)".into()),
            K::ScoreGradients => ("score_gradients".into(), "ScoreGradient", "score_gradients(p)".into()),
            K::Norm { heads, back } => (
                format!("norm_{}{}", if heads { "heads" } else { "rows" }, way(back)),
                "LearnNorm",
                format!("learn_norm<{}, {back}>(p)", together(heads)),
            ),
            K::Gate { gelu, back } => (
                format!("{}{}", if gelu { "gelu" } else { "silu" }, way(back)),
                "LearnGate",
                format!("learn_gate<{gelu}, {back}>(p)"),
            ),
            K::Int8 { back } => (format!("int8{}", way(back)), "LearnInt8", format!("learn_int8<{back}>(p)")),
            K::Weights { grouped, back } => (
                format!("weights_{}{}", if grouped { "groups" } else { "channel" }, way(back)),
                "LearnWeight",
                format!("learn_weights<{}, {back}>(p)", together(grouped)),
            ),
        };
        Source::new(format!("learn_{name}"), |function| {
            format!(
                "#include \"learn_weights.cuh\"\n\
             // What the host believes.\n\
             static_assert(kLearnThreads == {THREADS} && kProductColumns == {PRODUCT_COLUMNS} && kProductRows == {PRODUCT_ROWS} && kRangeColumns == {PRODUCT_COLUMNS});\n\
             extern \"C\" __global__ void __launch_bounds__({THREADS})\n\
             {function}(const __grid_constant__ {parameters}Parameters p) {{ {call}; }}\n",
            )
        })
    }

    /// Threads of a CTA.
    pub fn threads(self) -> usize {
        THREADS
    }

    /// CTAs for `units`: elements, rows, heads of rows, groups, queries, or for [`ColumnProducts`](Self::ColumnProducts) pieces
    /// of [`product_pieces`].
    pub fn ctas(self, units: usize) -> usize {
        match self {
            K::Norm { heads: true, .. } | K::Weights { grouped: true, .. } => units.div_ceil(THREADS / 32),
            K::Norm { .. } | K::Weights { .. } | K::Int8 { .. } => units,
            K::Softmax | K::ScoreGradients | K::ColumnProducts | K::Distances => units,
            K::ChannelRange => units.div_ceil(PRODUCT_COLUMNS),
            _ => units.div_ceil(THREADS).clamp(1, ELEMENT_CTAS),
        }
    }
}

/// Pieces in which products of so many rows and columns are summed.
pub fn product_pieces(rows: usize, columns: usize) -> usize {
    rows.div_ceil(PRODUCT_ROWS) * columns.div_ceil(PRODUCT_COLUMNS)
}

/// Threads that work on a row, or on a part of it.
fn together(parts: bool) -> usize {
    if parts { 32 } else { THREADS }
}
