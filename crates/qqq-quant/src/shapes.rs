//! Shapes of models whose runs were measured, for tests of what is expected of a run.

use std::path::Path;

use qqq_formats::ModelConfig;
use serde_json::json;

/// A model of Llama's graph.
fn llama(
    hidden: usize,
    inner: usize,
    heads: (usize, usize),
    layers: usize,
    vocab: usize,
    tied: bool,
) -> ModelConfig {
    let value = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads.0, "num_key_value_heads": heads.1, "vocab_size": vocab,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": tied,
    });
    ModelConfig::from_value(Path::new("config.json"), value).unwrap()
}

/// The sizes of SmolLM2-135M.
pub fn smollm2() -> ModelConfig {
    llama(576, 1536, (9, 3), 30, 49_152, true)
}

/// Blocks of Llama-2-7B.
pub fn llama_7b(layers: usize) -> ModelConfig {
    llama(4096, 11_008, (32, 32), layers, 32_000, false)
}

/// Two blocks of a hidden size of 2048.
pub fn wide() -> ModelConfig {
    llama(2048, 8192, (32, 8), 2, 32_000, false)
}
