//! Tokenizers that are missing, damaged or of another model.

use qqq_formats::Checkpoint;
use qqq_formats::gguf::Value;
use qqq_model::Tokenizer;

use crate::common::{checkpoint_of, data, edited, with_metadata};

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
        let usual = Tokenizer::load(&checkpoint_of(&data(name), 1000)).unwrap();
        let rows = usual.token_to_id("<s>").unwrap() as usize - 1;
        let (id, embeddings) = (format!("id {rows}"), format!("{rows} embeddings"));
        says(&checkpoint_of(&data(name), rows), &[&*id, &embeddings, "another model"]);
        // BOS, which every text gets.
        says(&checkpoint_of(&data(name), rows + 1), &["\"<s>\"", "every text", "another model"]);
    }
}

/// An added token just beyond the embeddings does no harm, as long as no text has it.
#[test]
fn a_token_without_an_embedding() {
    for name in ["byte_level", "byte_level.gguf"] {
        let usual = Tokenizer::load(&checkpoint_of(&data(name), 1000)).unwrap();
        let largest = usual.len() - 1;
        assert_eq!(usual.token_to_id("[INST]").unwrap() as usize, largest);
        assert!(usual.notes().is_empty());
        assert!(Tokenizer::load(&checkpoint_of(&data(name), largest + 1)).unwrap().notes().is_empty());
        let tokenizer = Tokenizer::load(&checkpoint_of(&data(name), largest)).unwrap();
        let [note] = tokenizer.notes() else { panic!("{:?}", tokenizer.notes()) };
        assert!(note.contains("[INST]") && note.contains(&format!("has {largest}")), "{note}");
        assert_eq!(tokenizer.encode("Hi <s>", true).unwrap(), usual.encode("Hi <s>", true).unwrap());
        let message = tokenizer.encode("Hi [INST]", true).unwrap_err().to_string();
        assert!(
            message.contains("\"[INST]\"") && message.contains(&format!("{largest} embeddings")),
            "{message}"
        );
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
}

#[test]
fn gguf_tokenizers_that_are_not_supported() {
    let (bytes, pieces) = ("byte_level.gguf", "sentence_piece.gguf");
    let renamed = |name: &str, key: &str| with_metadata(name, key, "renamed");
    says(&with_metadata(bytes, "llama-bpe", "klingon"), &["changed.gguf", "\"klingon\"", "qwen2"]);
    for (kind, name) in [
        ("bert", "WordPiece"),
        ("t5", "Unigram"),
        ("rwkv", "RWKV"),
        ("plamo2", "PLaMo"),
        ("gemma4", "Gemma"),
        ("new", "\"new\""),
    ] {
        says(&with_metadata(bytes, "gpt2", kind), &[&format!("{kind:?}"), name, "not supported", "gpt2"]);
    }
    says(&with_metadata(bytes, "gpt2", "no_vocab"), &["has no tokenizer"]);
    for (name, key) in [
        (bytes, "tokenizer.ggml.model"),
        (bytes, "tokenizer.ggml.tokens"),
        (bytes, "tokenizer.ggml.merges"),
        (pieces, "tokenizer.ggml.scores"),
        (pieces, "tokenizer.ggml.bos_token_id"),
    ] {
        says(&renamed(name, key), &["changed.gguf", key, "missing"]);
    }
    for (key, list) in [("token_type", Value::Integers(vec![1; 7])), ("scores", Value::Floats(vec![1.0; 7]))]
    {
        let file = edited(pieces, |keys| drop(keys.insert(format!("tokenizer.ggml.{key}"), list)));
        says(&file, &["edited.gguf", key, "has 7 elements"]);
    }
    for name in ["bos", "eos", "eot", "eom"] {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let file = edited(bytes, |keys| drop(keys.insert(key.clone(), Value::Unsigned(5000))));
        says(&file, &["edited.gguf", &key, "is 5000", "tokens"]);
    }
    for (name, key) in [(bytes, "bos"), (pieces, "eos")] {
        let file = edited(name, |keys| {
            keys.remove(&format!("tokenizer.ggml.{key}_token_id"));
            keys.insert(format!("tokenizer.ggml.add_{key}_token"), Value::Bool(true));
        });
        says(&file, &[&format!("add_{key}_token"), &format!("{key}_token_id is missing")]);
    }
}

/// Settings that transformers acts on and this tokenizer does not.
#[test]
fn settings_beside_the_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    std::fs::copy(data("byte_level/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    for key in ["split_special_tokens", "fix_mistral_regex"] {
        write("tokenizer_config.json", &format!("{{\"{key}\": true}}"));
        says(
            &checkpoint_of(dir.path(), 1000),
            &["tokenizer_config.json", &format!("{key} is true"), "remove it"],
        );
    }
    write(
        "tokenizer_config.json",
        r#"{"split_special_tokens": false, "clean_up_tokenization_spaces": true}"#,
    );
    write("generation_config.json", r#"{"temperature": 0.6, "eos_token_id": 2}"#);
    Tokenizer::load(&checkpoint_of(dir.path(), 1000)).unwrap().check_generation().unwrap();
    // It is no matter for who only tokenizes.
    write("generation_config.json", r#"{"temperature": 0.6, "suppress_tokens": [5]}"#);
    let tokenizer = Tokenizer::load(&checkpoint_of(dir.path(), 1000)).unwrap();
    let message = tokenizer.check_generation().unwrap_err().to_string();
    assert!(message.contains("generation_config.json: suppress_tokens is [5]"), "{message}");
}
