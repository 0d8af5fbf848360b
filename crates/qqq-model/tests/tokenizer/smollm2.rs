//! The real vocabulary.

use std::path::{Path, PathBuf};

use qqq_formats::Checkpoint;
use qqq_model::{ChatTemplate, Message, Tokenizer};

use crate::common::{cases, data, same_ids};

/// Path of SmolLM2-135M-Instruct.Q4_1.gguf, `None` (with a line printed) where it may be missing.
fn smollm2() -> Option<PathBuf> {
    let path = match std::env::var_os("QQQ_TEST_SMOLLM2") {
        Some(path) => PathBuf::from(path),
        None => Path::new(&std::env::var_os("HOME").unwrap_or_default())
            .join(".cache/qqq/models/SmolLM2-135M-Instruct.Q4_1.gguf"),
    };
    if path.is_file() {
        return Some(path);
    }
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{} is missing", path.display());
    println!("skipped: {} is missing (QQQ_TEST_SMOLLM2 names another place)", path.display());
    None
}

#[test]
fn smollm2_ids_are_those_of_llama_cpp() {
    let Some(path) = smollm2() else { return };
    let tokenizer = Tokenizer::load(&Checkpoint::open(&path).unwrap()).unwrap();
    let cases = cases(&data("smollm2_ids.json"));
    same_ids(&tokenizer, &cases);
    for case in &cases {
        assert_eq!(tokenizer.decode(&case.ids, false).unwrap(), case.text);
    }
    assert_eq!(tokenizer.len(), 49152);
    assert_eq!(tokenizer.bos(), Some(1));
    assert_eq!(tokenizer.eos(), [2, 0]);
    // add_bos_token is false.
    assert_eq!(tokenizer.encode("Hello", true).unwrap(), tokenizer.encode("Hello", false).unwrap());
}

#[test]
fn smollm2_chat() {
    let Some(path) = smollm2() else { return };
    let checkpoint = Checkpoint::open(&path).unwrap();
    let tokenizer = Tokenizer::load(&checkpoint).unwrap();
    let template = ChatTemplate::load(&checkpoint, &tokenizer).unwrap().unwrap();
    let message = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
    let talk = [message("system", "Be kind."), message("user", "Hi!")];
    let text = template.render(&talk, true).unwrap();
    assert_eq!(
        text,
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n"
    );
    let ids = tokenizer.encode(&text, true).unwrap();
    assert_eq!(ids.iter().filter(|id| **id == 1).count(), 3);
    assert_eq!(ids.iter().filter(|id| **id == 2).count(), 2);
    assert!(template.render(&talk[1..], false).unwrap().starts_with("<|im_start|>system\nYou are a helpful"));
}
