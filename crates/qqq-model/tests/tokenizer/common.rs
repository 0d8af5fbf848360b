//! Test data.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qqq_formats::gguf::{GgufFile, Value};
use qqq_formats::{Checkpoint, ModelConfig};
use qqq_model::Tokenizer;

/// A text and its ids.
#[derive(serde::Deserialize)]
pub struct Case {
    pub text: String,
    pub ids: Vec<u32>,
}

pub fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

pub fn cases(path: &Path) -> Vec<Case> {
    let cases: Vec<Case> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert!(cases.len() > 30);
    cases
}

/// Expected ids of one of the small tokenizers.
pub fn ids(name: &str) -> Vec<Case> {
    cases(&data(name).join("ids.json"))
}

#[track_caller]
pub fn same_ids(tokenizer: &Tokenizer, cases: &[Case]) {
    for case in cases {
        assert_eq!(tokenizer.encode(&case.text, false).unwrap(), case.ids, "{:?}", case.text);
    }
}

/// A configuration of which only the vocabulary matters.
pub fn config(vocab_size: usize) -> ModelConfig {
    let json = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": vocab_size,
    });
    ModelConfig::from_value(Path::new("config.json"), json).unwrap()
}

/// A checkpoint with a tokenizer and no tensors: of a directory or a GGUF file.
pub fn checkpoint_of(path: &Path, vocab_size: usize) -> Checkpoint {
    let file = Arc::new(GgufFile::open(&data("byte_level.gguf")).unwrap());
    let gguf = path.is_file().then(|| Arc::new(GgufFile::open(path).unwrap()));
    Checkpoint {
        path: path.into(),
        config: config(vocab_size),
        tensors: Box::new(file),
        gguf,
        inputs: Default::default(),
    }
}

/// A checkpoint of a GGUF file in which the first string `from` is replaced by `to`.
pub fn with_metadata(name: &str, from: &str, to: &str) -> Checkpoint {
    let string = |s: &str| [&(s.len() as u64).to_le_bytes()[..], s.as_bytes()].concat();
    let (from, to) = (string(from), string(to));
    let bytes = std::fs::read(data(name)).unwrap();
    let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
    let bytes = [&bytes[..at], &to, &bytes[at + from.len()..]].concat();
    in_memory("changed.gguf", bytes)
}

fn in_memory(name: &str, bytes: Vec<u8>) -> Checkpoint {
    let file = Arc::new(GgufFile::from_bytes(name, bytes).unwrap());
    Checkpoint {
        path: Path::new(name).into(),
        config: config(1000),
        tensors: Box::new(file.clone()),
        gguf: Some(file),
        inputs: Default::default(),
    }
}

/// A checkpoint of a GGUF file whose metadata were edited.
pub fn edited(name: &str, edit: impl FnOnce(&mut BTreeMap<String, Value>)) -> Checkpoint {
    let file = GgufFile::open(&data(name)).unwrap();
    let mut keys = file.metadata().iter().map(|(k, v)| (k.to_owned(), v.clone())).collect();
    edit(&mut keys);
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend(0u64.to_le_bytes());
    out.extend((keys.len() as u64).to_le_bytes());
    let string = |out: &mut Vec<u8>, s: &str| {
        out.extend((s.len() as u64).to_le_bytes());
        out.extend(s.as_bytes());
    };
    for (key, value) in &keys {
        string(&mut out, key);
        let mut list = |kind: u32, n: usize| {
            out.extend([9u32.to_le_bytes(), kind.to_le_bytes()].concat());
            out.extend((n as u64).to_le_bytes());
        };
        match value {
            Value::Strings(v) => list(8, v.len()),
            Value::Integers(v) => list(11, v.len()),
            Value::Floats(v) => list(12, v.len()),
            Value::Bools(v) => list(7, v.len()),
            Value::Bool(_) => out.extend(7u32.to_le_bytes()),
            Value::String(_) => out.extend(8u32.to_le_bytes()),
            Value::Unsigned(_) => out.extend(10u32.to_le_bytes()),
            Value::Signed(_) => out.extend(11u32.to_le_bytes()),
            Value::Float(_) => out.extend(12u32.to_le_bytes()),
        }
        match value {
            Value::Strings(v) => v.iter().for_each(|s| string(&mut out, s)),
            Value::Integers(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
            Value::Floats(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
            Value::Bools(v) => out.extend(v.iter().map(|&b| u8::from(b))),
            Value::Bool(b) => out.push((*b).into()),
            Value::String(s) => string(&mut out, s),
            Value::Unsigned(x) => out.extend(x.to_le_bytes()),
            Value::Signed(x) => out.extend(x.to_le_bytes()),
            Value::Float(x) => out.extend(x.to_le_bytes()),
        }
    }
    in_memory("edited.gguf", out)
}
