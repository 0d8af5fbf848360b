//! What a device says about the layers that it holds, for people.

use crate::Backend;

/// A weight as a device holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Output channels; rows of an embedding.
    pub out_features: usize,
    /// Input channels; width of an embedding.
    pub in_features: usize,
    /// What is multiplied: `W4A8`, or the type of float weights, `F32`, `F16` or `BF16`.
    pub arithmetic: &'static str,
    /// Input channels that share a scale; `None` for one scale a channel, and for floats.
    pub group_size: Option<usize>,
    /// The kernel that multiplies by it: `avx2`, `avx512-vnni`.
    pub kernel: &'static str,
    /// Bytes of weights and scales in memory. Those of a tied output head are the embedding's.
    pub bytes: usize,
}

/// A device that can describe what it holds.
pub trait Describe: Backend {
    /// A linear layer.
    fn describe_linear(&self, weight: &Self::Linear) -> Held;
    /// An embedding table.
    fn describe_embedding(&self, table: &Self::Embedding) -> Held;
}
