//! Decoding token by token.

use qqq_model::Tokenizer;

use crate::common::{checkpoint_of, data, ids};

#[test]
fn pieces_are_whole_characters_and_add_up() {
    for name in ["byte_level", "sentence_piece.gguf"] {
        let tokenizer = Tokenizer::load(&checkpoint_of(&data(name), 1000)).unwrap();
        for case in ids(name.trim_end_matches(".gguf")) {
            let whole = tokenizer.decode(&case.ids, true).unwrap();
            let mut stream = tokenizer.stream();
            let mut text = String::new();
            for &id in &case.ids {
                if let Some(piece) = stream.push(id).unwrap() {
                    assert!(!piece.is_empty() && !piece.contains('\u{fffd}'), "{piece:?}");
                    text.push_str(&piece);
                }
            }
            text.extend(stream.finish().unwrap());
            assert_eq!(text, whole, "{name}");
        }
    }
}

#[test]
fn an_open_character_is_held_back() {
    let tokenizer = Tokenizer::load(&checkpoint_of(&data("sentence_piece"), 1000)).unwrap();
    let byte = |b: u8| tokenizer.token_to_id(&format!("<0x{b:02X}>")).unwrap();
    let bytes = "😀".as_bytes();
    let mut stream = tokenizer.stream();
    for &b in &bytes[..3] {
        assert_eq!(stream.push(byte(b)).unwrap(), None);
    }
    assert_eq!(stream.push(byte(bytes[3])).unwrap().as_deref(), Some("😀"));
    // Another follows at once: the run of bytes is one to the decoder.
    for &b in &bytes[..3] {
        assert_eq!(stream.push(byte(b)).unwrap(), None);
    }
    assert_eq!(stream.push(byte(bytes[3])).unwrap().as_deref(), Some("😀"));
    assert_eq!(stream.push(byte(bytes[0])).unwrap(), None);
    let left = stream.finish().unwrap().unwrap();
    assert!(left.contains('\u{fffd}'), "{left:?}");
}

/// A model that writes nonsense must not be waited for without end.
#[test]
fn bytes_that_are_no_text_come_out() {
    for name in ["byte_level", "sentence_piece"] {
        let tokenizer = Tokenizer::load(&checkpoint_of(&data(name), 1000)).unwrap();
        // Byte 0xff, which UTF-8 never has; `ÿ` is its character in byte-level vocabularies.
        let id = tokenizer.token_to_id("<0xFF>").or_else(|| tokenizer.token_to_id("ÿ")).unwrap();
        let word = tokenizer.encode("a", false).unwrap();
        let mut stream = tokenizer.stream();
        let mut out = String::new();
        for _ in 0..100 {
            out.extend(stream.push(id).unwrap());
        }
        assert!(out.chars().count() > 50 && out.chars().all(|c| c == '\u{fffd}'), "{name}: {out:?}");
        for id in word {
            out.extend(stream.push(id).unwrap());
        }
        out.extend(stream.finish().unwrap());
        assert!(out.ends_with('a'), "{name}: {out:?}");
    }
}

#[test]
fn special_tokens_give_no_text() {
    let tokenizer = Tokenizer::load(&checkpoint_of(&data("byte_level"), 1000)).unwrap();
    let mut stream = tokenizer.stream();
    let mut text = String::new();
    for id in tokenizer.encode("<|im_start|>one<|im_end|><|im_end|><|im_end|> two<|im_end|>", true).unwrap() {
        text.extend(stream.push(id).unwrap());
    }
    assert_eq!(text, "one two");
    assert_eq!(stream.finish().unwrap(), None);
}
