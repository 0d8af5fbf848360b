//! A model that is made on the spot, for examples in documentation.

use std::path::{Path, PathBuf};

use qqq_formats::{DType, writer::CheckpointWriter};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

const HIDDEN: usize = 64;
const INNER: usize = 128;
const LAYERS: usize = 2;
const VOCAB: usize = 96;
/// Words of the text.
const WORDS: usize = 3000;

/// A random Llama model of two small blocks, whose tokenizer knows the words `w0` to `w95`, and a text of such words. All is
/// in a temporary directory that goes with this value.
pub struct TinyModel {
    dir: TempDir,
}

impl TinyModel {
    /// Makes it.
    ///
    /// # Panics
    /// If no files can be written.
    pub fn new() -> Self {
        let tiny = Self { dir: tempfile::tempdir().expect("a temporary directory") };
        write(&tiny.path("model"));
        // Each word follows from the last one with a little chance: something that can be calibrated on.
        let mut word = 0;
        let text = crate::values(WORDS, 3).into_iter().map(|random| {
            word = (word * 5 + (random.abs() * 7.0) as usize) % VOCAB;
            format!("w{word} ")
        });
        std::fs::write(tiny.path("text.txt"), text.collect::<String>()).expect("a text");
        tiny
    }

    /// The model's directory, as others have on their disks.
    pub fn model(&self) -> PathBuf {
        self.path("model")
    }

    /// The text's file.
    pub fn text(&self) -> PathBuf {
        self.path("text.txt")
    }

    /// A path beside them.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Default for TinyModel {
    fn default() -> Self {
        Self::new()
    }
}

fn write(dir: &Path) {
    let mut writer = CheckpointWriter::create(dir).expect("a directory for the model");
    for (seed, (name, shape)) in tensors().into_iter().enumerate() {
        let scale = 1.5 / (HIDDEN as f32).sqrt();
        let values = crate::values(shape.iter().product(), seed as u64 + 1);
        let bytes: Vec<u8> = values
            .iter()
            .map(|x| if shape.len() == 1 { 1.0 + 0.2 * x } else { scale * x })
            .flat_map(f32::to_le_bytes)
            .collect();
        writer.add(&name, DType::F32, &shape, &bytes).expect("a tensor");
    }
    let put = |file: &str, value: Value| {
        std::fs::write(writer.staging().join(file), value.to_string()).expect("a file of the model");
    };
    put(
        "config.json",
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCAB,
            "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "tie_word_embeddings": true, "torch_dtype": "float32",
        }),
    );
    put("tokenizer.json", word_tokenizer(VOCAB));
    writer.finish().expect("the model");
}

/// Content of a tokenizer.json that knows the words `w0` to `w{words - 1}`, divided by blanks, a token each.
pub fn word_tokenizer(words: usize) -> Value {
    let vocab: Map<_, _> = (0..words).map(|i| (format!("w{i}"), json!(i))).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"},
    })
}

/// Names and shapes.
fn tensors() -> Vec<(String, Vec<usize>)> {
    let mut all = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for i in 0..LAYERS {
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![HIDDEN / 2, HIDDEN]),
            ("self_attn.v_proj", vec![HIDDEN / 2, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("mlp.gate_proj", vec![INNER, HIDDEN]),
            ("mlp.up_proj", vec![INNER, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INNER]),
        ] {
            all.push((format!("model.layers.{i}.{name}.weight"), shape));
        }
    }
    all
}
