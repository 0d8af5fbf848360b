//! What kernels of calibration are given, as they have it in C++.

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

/// `DampParameters` of `factor.cuh`.
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

/// `FactorParameters` of `factor.cuh`.
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

/// `FeedbackParameters` of `factor.cuh`.
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

/// `DeviateParameters` of `correct.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DeviateParameters {
    /// Inputs of the quantized model, `rows x cols`: int8 where there are scales.
    pub x: u64,
    /// Scales of the rows, `rows` float32; or 0.
    pub scales: u64,
    /// Inputs of the float model, `rows x cols`.
    pub y: u64,
    /// Output, `rows x cols` of a 16-bit type.
    pub out: u64,
    /// Fours of values.
    pub count: i64,
    /// Of a row.
    pub row_count: i32,
    /// Type of `x` where there are no scales.
    pub x_type: i32,
    /// Type of `y`.
    pub y_type: i32,
}

/// `DoublesParameters` of `correct.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DoublesParameters {
    /// Values, float32.
    pub x: u64,
    /// Output, float64.
    pub out: u64,
    /// How many.
    pub count: i64,
}

/// `MoveParameters` of `correct.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MoveParameters {
    /// `n x k` float32.
    pub weights: u64,
    /// What they are moved by at strength 1, `n x k` float64.
    pub steps: u64,
    /// Diagonal of the Hessian, `k` float32.
    pub diagonal: u64,
    /// Output, `n x k` float32.
    pub out: u64,
    /// Weights.
    pub count: i64,
    /// Input channels, columns of the weights.
    pub k: i32,
    /// What steps are multiplied by.
    pub strength: f64,
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
    /// Added to the sums, `n` float64; or 0.
    pub added: u64,
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

/// `RoundParameters` of `smooth.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RoundParameters {
    /// `n x k` float32.
    pub weights: u64,
    /// What columns are multiplied by, `k` float32.
    pub factors: u64,
    /// Output, `n x k` int8.
    pub codes: u64,
    /// Output, scales of the output channels: `n` float32.
    pub channels: u64,
    /// Output, multiples of the channel scales, `n x groups` float16; 0 without groups.
    pub multiples: u64,
    /// Input channels, columns of the weights.
    pub k: i32,
    /// Columns of a group; without groups all.
    pub group: i32,
    /// Least code, as a float.
    pub low: f32,
    /// Largest code, as a float.
    pub high: f32,
    /// What the largest weight is divided by.
    pub reach: f32,
}

/// `SmoothParameters` of `smooth.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SmoothParameters {
    /// `rows x k` values of the kernel's 16-bit type.
    pub x: u64,
    /// What columns are multiplied by, `k` float32.
    pub factors: u64,
    /// Output, `rows x k` int8.
    pub out: u64,
    /// Output, scales of the rows, `rows` float32.
    pub scales: u64,
    /// Columns.
    pub k: i32,
}

/// `RangeParameters` of `smooth.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RangeParameters {
    /// `rows x k` values.
    pub x: u64,
    /// Output, the largest of each column: `k` float32.
    pub most: u64,
    /// Output, the least of each column: `k` float32.
    pub least: u64,
    /// Rows, one a token.
    pub rows: i32,
    /// Columns.
    pub k: i32,
    /// Type of the values.
    pub value_type: i32,
}

/// `DistanceParameters` of `smooth.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DistanceParameters {
    /// `rows x columns` values.
    pub a: u64,
    /// As many, or 0 for zeros.
    pub b: u64,
    /// Output, a sum for each row: `rows` float64.
    pub out: u64,
    /// Columns.
    pub columns: i32,
    /// Type of the values.
    pub value_type: i32,
}

/// `HalvesParameters` of `smooth.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HalvesParameters {
    /// float32 values, two at a time.
    pub x: u64,
    /// Output, as many of the kernel's 16-bit type.
    pub out: u64,
    /// Twos of values.
    pub count: i64,
}

/// `DivideParameters` of `smooth.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DivideParameters {
    /// `rows x k` float32.
    pub weights: u64,
    /// What rows are divided by, `rows` float32.
    pub divisors: u64,
    /// Elements of the weights.
    pub count: i64,
    /// Input channels, columns of the weights.
    pub k: i32,
}
