//! Inverse frequencies of the rotary embedding.

use qqq_formats::ModelConfig;

/// `head_dim / 2` inverse frequencies, scaled as the configuration says (computed in f32 as transformers does).
pub fn inv_freq(_config: &ModelConfig) -> Vec<f32> {
    unimplemented!()
}
