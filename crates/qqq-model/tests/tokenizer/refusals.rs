//! Tokenizers that are missing, damaged or of another model.

use std::path::Path;
use std::sync::Arc;

use qqq_formats::Checkpoint;
use qqq_formats::gguf::GgufFile;
use qqq_model::Tokenizer;

use crate::common::{checkpoint_of, config, data};

#[track_caller]
fn says(checkpoint: &Checkpoint, words: &[&str]) {
    let message = match Tokenizer::load(checkpoint) {
        Ok(_) => panic!("was accepted"),
        Err(e) => e.to_string(),
    };
    for word in words {
        assert!(message.contains(word), "{message:?} does not say {word:?}");
    }
}

#[test]
fn a_vocabulary_that_is_too_large() {
    for name in ["byte_level", "byte_level.gguf"] {
        let largest = Tokenizer::load(&checkpoint_of(&data(name), 1000)).unwrap().len() - 1;
        assert!(Tokenizer::load(&checkpoint_of(&data(name), largest + 1)).is_ok());
        let words = [&*format!("id {largest}"), &format!("{largest} embeddings"), "another model"];
        says(&checkpoint_of(&data(name), largest), &words);
    }
}

#[test]
fn directories_without_a_usable_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    says(&checkpoint_of(dir.path(), 1000), &["has no tokenizer.json"]);
    write("tokenizer.model", "x");
    says(&checkpoint_of(dir.path(), 1000), &["tokenizer.model", "no tokenizer.json", "save_pretrained"]);
    write("tokenizer.json", "{");
    says(&checkpoint_of(dir.path(), 1000), &["tokenizer.json"]);
    std::fs::copy(data("byte_level/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    write("tokenizer_config.json", "[]");
    says(&checkpoint_of(dir.path(), 1000), &["tokenizer_config.json", "not a JSON object"]);
    write("tokenizer_config.json", r#"{"add_bos_token": true}"#);
    says(&checkpoint_of(dir.path(), 1000), &["add_bos_token"]);
}

/// A GGUF file with one piece of text replaced by another of the same length.
fn patched(name: &str, from: &str, to: &str) -> Checkpoint {
    assert_eq!(from.len(), to.len());
    let bytes = std::fs::read(data(name)).unwrap();
    let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
    let bytes = [&bytes[..at], to.as_bytes(), &bytes[at + from.len()..]].concat();
    let file = Arc::new(GgufFile::from_bytes("bad.gguf", bytes).unwrap());
    Checkpoint {
        path: Path::new("bad.gguf").into(),
        config: config(1000),
        tensors: Box::new(file.clone()),
        gguf: Some(file),
    }
}

#[test]
fn gguf_tokenizers_that_are_not_supported() {
    says(&patched("byte_level.gguf", "llama-bpe", "klingon-1"), &["bad.gguf", "\"klingon-1\"", "qwen2"]);
    says(&patched("byte_level.gguf", "gpt2", "bert"), &["\"bert\"", "not supported"]);
    says(&patched("byte_level.gguf", "tokenizer.ggml.tokens", "tokenizer.ggml.tokenX"), &["tokenizer.ggml.tokens is missing"]);
    says(&patched("byte_level.gguf", "tokenizer.ggml.merges", "tokenizer.ggml.mergeX"), &["tokenizer.ggml.merges is missing"]);
    says(&patched("sentence_piece.gguf", "tokenizer.ggml.scores", "tokenizer.ggml.scoreX"), &["tokenizer.ggml.scores is missing"]);
    says(&patched("sentence_piece.gguf", "bos_token_id", "xos_token_id"), &["bos"]);
    says(&patched("byte_level.gguf", "\u{120} t", "\u{120}\u{120}t"), &["bad.gguf", "merge"]);
}
