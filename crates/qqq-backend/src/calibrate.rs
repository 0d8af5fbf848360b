//! What calibration asks of a device beyond a decoder's operations.

use crate::{AttentionKind, Backend, Result};

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

    /// What is in work at the same time.
    const PIECES: Pieces;

    /// A sum over no tokens.
    fn gram(&self, width: usize) -> Result<Self::Gram>;
    /// Adds the rows of `x`; int8 rows at what they stand for.
    fn gram_add(&self, gram: &mut Self::Gram, x: &Self::Input) -> Result<()>;
    /// The sum over the rows of several inputs, all of them int8 or all float. As they are known together, a device may sum
    /// int8 rows of nearly the same scale as integers, each with a weight that is off by a few percent at most.
    fn gram_of(&self, width: usize, inputs: &[&Self::Input]) -> Result<Self::Gram>;
    /// Adds another sum.
    fn gram_merge(&self, sum: &mut Self::Gram, part: &Self::Gram) -> Result<()>;
    /// Waits, and gives `2/n` times the sum, full and symmetric, `K x K` row-major; zeros if there were no tokens.
    fn hessian(&self, gram: Self::Gram) -> Result<Vec<f32>>;
    /// The rows of `x` (one sequence from its start) as attention averages them: `sum_t p_t x_t` for some queries of every
    /// head, with the probabilities `p` of the queries and keys in `qkv`, which have been rotated.
    fn attended(&self, x: &Self::Input, qkv: &Self::Tensor, kind: &AttentionKind) -> Result<Self::Input>;
    /// Runs `job` for every item: several at the same time where the device has use for that.
    fn each<T: Send>(&self, items: &mut [T], job: impl Fn(&mut T) + Sync);
}
