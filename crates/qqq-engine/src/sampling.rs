//! Choosing the next token.

/// How to sample.
#[derive(Clone, Debug)]
pub struct SamplingOptions {
    /// 0 means greedy.
    pub temperature: f32,
    /// 0 means all.
    pub top_k: usize,
    /// 1 means all.
    pub top_p: f32,
    /// Tokens less likely than `min_p` times the likeliest are dropped; 0 means none.
    pub min_p: f32,
    /// 1 means none.
    pub repetition_penalty: f32,
    /// Seed.
    pub seed: u64,
}

/// Samples tokens; holds the random state.
pub struct Sampler {}

impl Sampler {
    /// A sampler.
    pub fn new(_options: SamplingOptions) -> Self {
        unimplemented!()
    }

    /// Next token from logits; `history` are the tokens so far (for the repetition penalty).
    pub fn sample(&mut self, _logits: &[f32], _history: &[u32]) -> u32 {
        unimplemented!()
    }
}
