//! What calibration asks of a device beyond a decoder's operations.

use std::borrow::Cow;

use qqq_formats::{LinearWeight, WeightData};

use crate::{
    AttentionKind, Backend, BackendError, InputKind, Learn, Result,
    solve::{Problem, Scheme, Solution, Unsolved},
};

/// How many rows of a calibration's arrays a device has in work at the same time. Estimates of memory and time are made
/// of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pieces {
    /// Queries of a head for which [`Calibrate::attended`] averages the tokens of a sequence, at most.
    pub attended_queries: usize,
    /// Queries of those whose probabilities are held at the same time.
    pub probability_queries: usize,
    /// Rows of a `K x K` sum that a thread of [`Calibrate::gram_of`] adds to at a time.
    pub gram_rows: usize,
    /// Tokens that pass through gate and up of a quantized MLP at a time.
    pub mlp_tokens: usize,
    /// Sequences that add to sums of their own at the same time, at most. Results depend on it in their last digits: it is not
    /// that of a machine, but of a kind of device.
    pub lanes: usize,
    /// Whether what is computed with lies in the host's memory.
    pub on_host: bool,
}

/// The values of a [deviation](Calibrate::Deviation).
#[derive(Clone, Debug)]
pub struct DeviationValues<'a> {
    /// `2/n sum x (y - x)^T`, `K x K` row-major.
    pub cross: Cow<'a, [f32]>,
    /// `2/n sum (y - x) (y - x)^T`, `K x K` row-major; the lower triangle is valid.
    pub square: Cow<'a, [f32]>,
}

/// A device on which a model can be calibrated: it sums second moments of the inputs of linear layers.
///
/// Results do not depend on how many threads or cores a device has.
///
/// # Errors
/// As those of [`Backend`].
pub trait Calibrate: Backend {
    /// A running sum of `x x^T` over tokens, `K x K`.
    type Gram: Send;
    /// `2/n sum x x^T` over `n` tokens, `K x K`, full and symmetric.
    type Hessian: Send + Sync;
    /// float32 weights of a layer on their way to codes, `N x K`.
    type Weights: Send;
    /// An orthogonal matrix that weights are multiplied with.
    type Rotation: Send + Sync;
    /// Running sums of `x (y - x)^T` and of `(y - x) (y - x)^T` over tokens, `K x K` each: `x` is a token's input as the
    /// quantized model has it, `y` as the float model.
    type Deviations: Send;
    /// `2/n` times the sums of [`Deviations`](Self::Deviations) over `n` tokens.
    type Deviation: Send + Sync;
    /// What blocks [learn](Learn) with.
    type Learner: Learn;

    /// What is in work at the same time.
    const PIECES: Pieces;
    /// Whether the device [solves](Self::solve) layers; else that is left to the caller, who reads Hessians.
    const SOLVES: bool = false;

    /// A sum over no tokens.
    fn gram(&self, width: usize) -> Result<Self::Gram>;
    /// Adds the rows of `x`; int8 rows at what they stand for.
    fn gram_add(&self, gram: &mut Self::Gram, x: &Self::Input) -> Result<()>;
    /// The sum over the rows of several inputs, all of them int8 or all float. As they are known together, a device may sum
    /// int8 rows of nearly the same scale as integers, each with a weight that is off by a few percent at most.
    fn gram_of(&self, width: usize, inputs: &[&Self::Input]) -> Result<Self::Gram>;
    /// Adds another sum.
    fn gram_merge(&self, sum: &mut Self::Gram, part: &Self::Gram) -> Result<()>;
    /// `2/n` times the sum; zeros if there were no tokens.
    fn hessian(&self, gram: Self::Gram) -> Result<Self::Hessian>;
    /// Adds to a Hessian `share` of another one at equal trace; nothing where the other's trace is 0.
    fn hessian_add(&self, hessian: &mut Self::Hessian, other: &Self::Hessian, share: f64) -> Result<()>;
    /// Sums over no tokens, for inputs of `width` channels. `together`: the inputs of the quantized model where
    /// [`gram_of`](Self::gram_of) sums them; a device that gives tokens weights there gives them the same here. Empty where
    /// [`gram_add`](Self::gram_add) sums them, each token with weight 1.
    fn deviations(&self, width: usize, together: &[&Self::Input]) -> Result<Self::Deviations>;
    /// Adds the rows of pairs of inputs, of the quantized and of the float model, which are float. The first pair's is the
    /// input `first` of those that are summed together.
    fn deviations_add(
        &self,
        sums: &mut Self::Deviations,
        first: usize,
        pairs: &[(&Self::Input, &Self::Input)],
    ) -> Result<()>;
    /// `2/n` times the sums; zeros if there were no tokens.
    fn deviation(&self, sums: Self::Deviations) -> Result<Self::Deviation>;
    /// Adds `factor` times another one.
    fn deviation_add(
        &self,
        deviation: &mut Self::Deviation,
        other: &Self::Deviation,
        factor: f64,
    ) -> Result<()>;
    /// Waits, and gives the values of both matrices.
    fn read_deviation<'d>(&self, deviation: &'d Self::Deviation) -> Result<DeviationValues<'d>>;
    /// Waits, and gives the values of a Hessian, row-major.
    fn read_hessian<'h>(&self, hessian: &'h Self::Hessian) -> Result<Cow<'h, [f32]>>;
    /// The rows of `x` (one sequence from its start) as attention averages them: `sum_t p_t x_t` for some queries of every
    /// head, with the probabilities `p` of the queries and keys in `qkv`, which have been rotated.
    fn attended(&self, x: &Self::Input, qkv: &Self::Tensor, kind: &AttentionKind) -> Result<Self::Input>;
    /// As [`Backend::linear_weight`], of a weight that the caller keeps.
    fn linear_of(&self, weight: &LinearWeight, bias: Option<&[f32]>) -> Result<Self::Linear> {
        self.linear_weight(weight.clone(), bias.map(<[f32]>::to_vec))
    }
    /// Weights of shape `n x k`, row-major, in float32.
    fn weights(&self, n: usize, k: usize, data: WeightData) -> Result<Self::Weights>;
    /// Waits, and gives weights, row-major.
    fn read_weights<'w>(&self, weights: &'w Self::Weights) -> Result<Cow<'w, [f32]>>;
    /// Multiplies input channel `j` by `s[j]`.
    fn scale_inputs(&self, weights: &mut Self::Weights, s: &[f32]) -> Result<()>;
    /// Divides output channel `first + j` by `s[j]`.
    fn divide_outputs(&self, weights: &mut Self::Weights, first: usize, s: &[f32]) -> Result<()>;
    /// The layer of these weights as they are, which takes float inputs.
    fn float_linear(&self, weights: &Self::Weights, bias: Option<Vec<f32>>) -> Result<Self::Linear>;
    /// The layer of `W diag(s)` rounded to nearest, with scales by which the largest weight just fits: that of a channel or group
    /// is `max|w|` over the reach of the scheme's [grid](Scheme::grid). `linear` is what this has made of the same layer before,
    /// whose memory may be used again, or `None`.
    fn round_scaled(
        &self,
        weights: &Self::Weights,
        s: &[f32],
        scheme: Scheme,
        bias: Option<&[f32]>,
        linear: &mut Option<Self::Linear>,
    ) -> Result<()>;
    /// The first value of an input that is not finite, with its row.
    fn input_not_finite(&self, x: &Self::Input) -> Result<Option<(usize, f32)>>;
    /// Waits, and gives the largest and the least value of every channel of a float input.
    fn channel_range(&self, x: &Self::Input) -> Result<(Vec<f32>, Vec<f32>)>;
    /// Makes rows of a kind of the rows of a float input, whose channel `j` is divided by `s[j]`.
    fn smooth_input(&self, x: &Self::Input, s: &[f32], kind: InputKind, out: &mut Self::Input) -> Result<()>;
    /// Waits, and gives the sum of the squared differences of two float inputs; without `b` that of the squares.
    fn squared_distance(&self, a: &Self::Input, b: Option<&Self::Input>) -> Result<f64>;
    /// An orthogonal matrix `Q`, `width x width`, row-major.
    fn rotation(&self, width: usize, matrix: &[f32]) -> Result<Self::Rotation>;
    /// `W <- W Q`, for every `width` input channels that follow one another.
    fn rotate_inputs(&self, weights: &mut Self::Weights, q: &Self::Rotation) -> Result<()>;
    /// `W <- Q^T W`, for every `width` output channels that follow one another, from channel `first` on.
    fn rotate_outputs(&self, weights: &mut Self::Weights, first: usize, q: &Self::Rotation) -> Result<()>;
    /// Solves a layer, where [`SOLVES`](Self::SOLVES). Why one cannot be solved is the inner error.
    ///
    /// # Errors
    /// A problem whose parts contradict each other, Hessians that are not finite, and what the device refuses.
    fn solve(
        &self,
        _problem: &Problem<'_, Self::Weights, Self::Hessian, Self::Deviation>,
    ) -> Result<std::result::Result<Solution, Unsolved>> {
        Err(BackendError::Unavailable("this device solves no layers".into()))
    }
    /// What blocks learn with on this device.
    fn learner(&self) -> Self::Learner;
    /// The values of a tensor, as they are learned with.
    fn to_array(&self, x: &Self::Tensor) -> Result<<Self::Learner as Learn>::Array>;
    /// A tensor of these values.
    fn tensor_of(&self, x: <Self::Learner as Learn>::Array) -> Result<Self::Tensor>;
    /// Bytes of the device's own memory that are free; `None` where that is the host's.
    fn free_memory(&self) -> Result<Option<u64>> {
        Ok(None)
    }
    /// Runs `job` for every item: several at the same time where the device has use for that.
    fn each<T: Send>(&self, items: &mut [T], job: impl Fn(&mut T) + Sync);
}
