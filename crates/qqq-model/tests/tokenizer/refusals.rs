//! Tokenizers that are missing, damaged or of another model.

use qqq_formats::Checkpoint;
use qqq_model::Tokenizer;

use crate::common::{checkpoint_of, data, with_metadata};

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

#[test]
fn gguf_tokenizers_that_are_not_supported() {
    let (bytes, pieces) = ("byte_level.gguf", "sentence_piece.gguf");
    let renamed = |name: &str, key: &str| with_metadata(name, key, "renamed");
    says(&with_metadata(bytes, "llama-bpe", "klingon"), &["changed.gguf", "\"klingon\"", "qwen2"]);
    says(&with_metadata(bytes, "gpt2", "bert"), &["\"bert\"", "not supported"]);
    for (name, key) in [
        (bytes, "tokenizer.ggml.model"),
        (bytes, "tokenizer.ggml.tokens"),
        (bytes, "tokenizer.ggml.merges"),
        (pieces, "tokenizer.ggml.scores"),
        (pieces, "tokenizer.ggml.bos_token_id"),
    ] {
        says(&renamed(name, key), &["changed.gguf", key, "missing"]);
    }
    says(&with_metadata(bytes, "e r", "e nothing"), &["changed.gguf", "merge", "nothing"]);
}
