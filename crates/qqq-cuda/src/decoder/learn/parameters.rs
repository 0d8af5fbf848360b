//! What kernels of learning are given, as they have it in C++. Addresses are those of float32; matrices are row-major.

/// `DifferenceParameters` of `learn.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DifferenceParameters {
    /// `count` values.
    pub a: u64,
    /// As many, or 0 for zeros.
    pub b: u64,
    /// Output.
    pub out: u64,
    /// How many.
    pub count: i64,
    /// Of the difference.
    pub factor: f32,
}

/// `QuotientParameters` of `learn.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct QuotientParameters {
    /// `rows x pitch`.
    pub x: u64,
    /// `columns` divisors.
    pub divisors: u64,
    /// `rows * columns`.
    pub count: i64,
    /// Elements from one row to the next.
    pub pitch: i32,
    /// First column that is divided.
    pub first: i32,
    /// How many are.
    pub columns: i32,
}

/// `RepeatParameters` of `learn.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RepeatParameters {
    /// What is repeated, or summed.
    pub x: u64,
    /// Output, `columns` values.
    pub out: u64,
    /// Values of the output.
    pub columns: i32,
    /// Of a head.
    pub width: i32,
    /// Query heads that share one of the values.
    pub each: i32,
}

/// `ColumnProductParameters` of `learn.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ColumnProductParameters {
    /// `rows x pitch`.
    pub a: u64,
    /// `rows x pitch`.
    pub b: u64,
    /// Output, `chunks x columns`.
    pub out: u64,
    /// Rows of both.
    pub rows: i32,
    /// Elements from one row to the next.
    pub pitch: i32,
    /// First column that is summed.
    pub first: i32,
    /// How many are.
    pub columns: i32,
}

/// `ColumnTotalParameters` of `learn.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ColumnTotalParameters {
    /// `chunks x columns`.
    pub parts: u64,
    /// `columns` divisors, or 0.
    pub divisors: u64,
    /// `columns` totals; with divisors the quotients are taken from what is there.
    pub out: u64,
    /// Rows of the parts.
    pub chunks: i32,
    /// Columns of the parts.
    pub columns: i32,
}

/// `AdamParameters` of `learn.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AdamParameters {
    /// What is learned, `count` values.
    pub value: u64,
    /// Running means of gradients.
    pub mean: u64,
    /// Running means of their squares.
    pub square: u64,
    /// Gradients.
    pub gradient: u64,
    /// How many.
    pub count: i64,
    /// What is left of the mean, and what a gradient counts.
    pub decay: [f32; 2],
    /// The same of squares.
    pub square_decay: [f32; 2],
    /// Learning rate, corrected for the mean's beginning at 0.
    pub rate: f32,
    /// What roots of squares are divided by for the same reason.
    pub correction: f32,
    /// Added to these.
    pub epsilon: f32,
    /// What no value is below.
    pub least: f32,
}

/// `LearnNormParameters` of `learn_rows.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LearnNormParameters {
    /// `rows x pitch`.
    pub x: u64,
    /// The same, for gradients; else 0.
    pub dy: u64,
    /// `width` factors.
    pub weight: u64,
    /// `rows x pitch`; may be `x`, or `dy` for gradients.
    pub out: u64,
    /// Segments of all rows.
    pub count: i64,
    /// Elements from one row to the next.
    pub pitch: i32,
    /// Column of the first segment.
    pub first: i32,
    /// Segments of a row.
    pub segments: i32,
    /// Elements of a segment.
    pub width: i32,
    /// Added to the mean square.
    pub epsilon: f32,
}

/// `TurnParameters` of `learn_rows.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TurnParameters {
    /// `rows x pitch`.
    pub qkv: u64,
    /// `rows x half`.
    pub cosines: u64,
    /// `rows x half`.
    pub sines: u64,
    /// What queries of a row are multiplied by, `rows`; or 0.
    pub factors: u64,
    /// `rows * heads * (head_dim - half)`.
    pub count: i64,
    /// Elements from one row to the next.
    pub pitch: i32,
    /// Heads that are turned.
    pub heads: i32,
    /// How many of them are queries.
    pub queries: i32,
    /// Width of a head.
    pub head_dim: i32,
    /// Pairs of a head that are turned.
    pub half: i32,
    /// Of the sines.
    pub sign: f32,
}

/// `SoftmaxParameters` of `learn_rows.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SoftmaxParameters {
    /// `tokens x tokens`.
    pub scores: u64,
    /// Of one sequence.
    pub tokens: i32,
    /// Keys that a query sees; 0: all before it.
    pub window: i32,
}

/// `ScoreGradientParameters` of `learn_rows.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ScoreGradientParameters {
    /// `tokens x tokens`.
    pub probabilities: u64,
    /// The same: gradients by them, which become those by the scores.
    pub gradients: u64,
    /// `tokens x pitch`: by attention's output.
    pub dy: u64,
    /// Attention's output.
    pub y: u64,
    /// Of one sequence.
    pub tokens: i32,
    /// Elements from one row of the output to the next.
    pub pitch: i32,
    /// First column of the head.
    pub first: i32,
    /// Width of the head.
    pub width: i32,
}

/// `LearnGateParameters` of `learn_rows.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LearnGateParameters {
    /// `rows x (2 * inner)`.
    pub gate_up: u64,
    /// `rows x inner`, for gradients; else 0.
    pub dy: u64,
    /// Output, `rows x inner`; gradients as `gate_up`.
    pub out: u64,
    /// `rows * inner`.
    pub count: i64,
    /// Width of the gate.
    pub inner: i32,
}

/// `LearnInt8Parameters` of `learn_rows.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LearnInt8Parameters {
    /// `rows x columns`.
    pub x: u64,
    /// The same, for gradients; else 0.
    pub dy: u64,
    /// Output, the same.
    pub out: u64,
    /// Of a row.
    pub columns: i32,
}

/// `LearnWeightParameters` of `learn_weights.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LearnWeightParameters {
    /// `n x k`.
    pub weights: u64,
    /// `k` factors of input channels, or 0.
    pub scales: u64,
    /// `2 x groups` strengths before the sigmoid.
    pub clip: u64,
    /// `n x k`, for gradients; else 0.
    pub dw: u64,
    /// `n x k` rounded weights, or gradients by weights times their scales; or 0.
    pub out: u64,
    /// Steps of groups, or 0; for gradients `2 x groups`.
    pub by_group: u64,
    /// Of all rows.
    pub groups: i64,
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
    /// Type of stored scales.
    pub value_type: i32,
}
