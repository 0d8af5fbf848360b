//! Configurations of models whose shapes are measured often. Each source states sizes and the rotary embedding's base.

use serde_json::{Map, Value, json};

/// A model by name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// As `--like` takes it.
    pub name: &'static str,
    /// Where the sizes are stated.
    pub source: &'static str,
    model_type: &'static str,
    class: &'static str,
    hidden: usize,
    inner: usize,
    layers: usize,
    /// Of queries, and of keys and values.
    heads: (usize, usize),
    vocab: usize,
    positions: usize,
    rms_norm_eps: f64,
    rope_theta: f64,
    /// Tokens that begin and end a text.
    ends: (u32, u32),
}

const LLAMA_2: Shape = Shape {
    name: "llama-2-7b",
    source: "Touvron et al., \"Llama 2\", arXiv 2307.09288, with the sizes of arXiv 2302.13971",
    model_type: "llama",
    class: "LlamaForCausalLM",
    hidden: 4096,
    inner: 11_008,
    layers: 32,
    heads: (32, 32),
    vocab: 32_000,
    positions: 4096,
    rms_norm_eps: 1e-5,
    rope_theta: 10_000.0,
    ends: (1, 2),
};

const LLAMA_3: Shape = Shape {
    name: "llama-3-8b",
    source: "\"The Llama 3 Herd of Models\", arXiv 2407.21783, table 3",
    inner: 14_336,
    heads: (32, 8),
    vocab: 128_256,
    positions: 8192,
    rope_theta: 500_000.0,
    ends: (128_000, 128_001),
    ..LLAMA_2
};

/// All of them. Head and embedding are two tensors in each.
pub const SHAPES: [Shape; 5] = [
    LLAMA_2,
    Shape { name: "llama-2-13b", hidden: 5120, inner: 13_824, layers: 40, heads: (40, 40), ..LLAMA_2 },
    LLAMA_3,
    Shape { name: "llama-3-70b", hidden: 8192, inner: 28_672, layers: 80, heads: (64, 8), ..LLAMA_3 },
    Shape {
        name: "qwen3-8b",
        source: "\"Qwen3 Technical Report\", arXiv 2505.09388, table 1",
        model_type: "qwen3",
        class: "Qwen3ForCausalLM",
        hidden: 4096,
        inner: 12_288,
        layers: 36,
        heads: (32, 8),
        vocab: 151_936,
        positions: 40_960,
        rms_norm_eps: 1e-6,
        rope_theta: 1e6,
        ends: (151_643, 151_645),
    },
];

impl Shape {
    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        SHAPES.into_iter().find(|shape| shape.name == name)
    }

    /// Its `config.json`.
    pub fn config(&self) -> Value {
        json!({
            "architectures": [self.class],
            "model_type": self.model_type,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads.0,
            "num_key_value_heads": self.heads.1,
            "head_dim": self.hidden / self.heads.0,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.positions,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "attention_bias": false,
            "tie_word_embeddings": false,
            "bos_token_id": self.ends.0,
            "eos_token_id": self.ends.1,
            "torch_dtype": "bfloat16",
        })
    }
}

/// What says something of each block, in configurations of the families that are known.
const OF_LAYERS: [&str; 2] = ["layer_types", "no_rope_layers"];

/// A configuration with the first `layers` of its blocks.
pub fn shortened(mut config: Map<String, Value>, layers: usize) -> Value {
    config.insert("num_hidden_layers".into(), layers.into());
    for key in OF_LAYERS {
        if let Some(Value::Array(of_layers)) = config.get_mut(key) {
            of_layers.truncate(layers);
        }
    }
    Value::Object(config)
}
