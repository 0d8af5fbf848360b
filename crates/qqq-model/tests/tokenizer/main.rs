//! Tokenizers: ids of `tokenizers` and llama.cpp (scripts/make_tokenizer_vectors.py), from directories
//! and GGUF files, and what is refused.

mod common;
mod families;
mod metadata;
mod refusals;
mod stream;

use std::collections::HashMap;
use std::path::Path;

use common::{Case, checkpoint_of, data, ids, same_ids};
use qqq_model::{ChatTemplate, Message, Tokenizer};

/// The same small vocabulary as directory and as GGUF file.
fn both(name: &str) -> [(Tokenizer, Vec<Case>); 2] {
    let paths = [data(name), data(&format!("{name}.gguf"))];
    paths.map(|path| (Tokenizer::load(&checkpoint_of(&path, 1000)).unwrap(), ids(name)))
}

#[test]
fn byte_level_ids_are_those_of_tokenizers_and_llama_cpp() {
    for (tokenizer, cases) in both("byte_level") {
        same_ids(&tokenizer, &cases);
        for case in &cases {
            assert_eq!(tokenizer.decode(&case.ids, false).unwrap(), case.text);
        }
    }
}

/// The other pre-tokenizers, on the same vocabulary.
#[test]
fn every_pre_tokenizer_splits_as_llama_cpp_does() {
    let corpus = std::fs::read_to_string(data("corpus.txt")).unwrap();
    let file = std::fs::read(data("pre_ids.json")).unwrap();
    let expected: HashMap<String, Vec<u32>> = serde_json::from_slice(&file).unwrap();
    assert_eq!(expected.len(), 5);
    for (pre, ids) in expected {
        let checkpoint = common::with_metadata("byte_level.gguf", "llama-bpe", &pre);
        let tokenizer = Tokenizer::load(&checkpoint).unwrap();
        let got = tokenizer.encode(&corpus, false).unwrap();
        let differs = got.iter().zip(&ids).position(|(g, e)| g != e);
        assert!(got == ids, "{pre}: differs from token {differs:?} on");
    }
}

#[test]
fn sentence_piece_ids_are_those_of_tokenizers_and_llama_cpp() {
    for (tokenizer, cases) in both("sentence_piece") {
        same_ids(&tokenizer, &cases);
        for case in cases.iter().filter(|c| !c.text.contains(['<', '\u{2581}'])) {
            assert_eq!(tokenizer.decode(&case.ids, false).unwrap(), case.text);
        }
    }
}

#[test]
fn bos_is_added_where_asked() {
    for name in ["byte_level", "sentence_piece"] {
        for (tokenizer, _) in both(name) {
            let bos = tokenizer.token_to_id("<s>").unwrap();
            assert_eq!(tokenizer.bos(), Some(bos));
            let plain = tokenizer.encode("Hello", false).unwrap();
            let special = tokenizer.encode("Hello", true).unwrap();
            assert_eq!(special, [&[bos][..], &plain].concat(), "{name}");
            assert_eq!(tokenizer.encode("", true).unwrap(), [bos]);
            assert_eq!(tokenizer.decode(&special, true).unwrap(), "Hello");
            assert_eq!(tokenizer.decode(&special, false).unwrap().trim_start_matches("<s>").trim(), "Hello");
        }
    }
}

/// The tokens that end a turn join the end of sequence.
#[test]
fn end_tokens() {
    for (tokenizer, _) in both("byte_level") {
        let id = |t: &str| tokenizer.token_to_id(t).unwrap();
        assert_eq!(tokenizer.eos()[0], id("</s>"));
        for token in ["<|im_end|>", "<|eot_id|>"] {
            assert!(tokenizer.eos().contains(&id(token)), "{token}");
        }
        assert!(!tokenizer.eos().contains(&id("<|im_start|>")) && !tokenizer.eos().contains(&id("<s>")));
        assert_eq!(tokenizer.eos().len(), 3);
    }
}

/// A saved tokenizer gives the same ids, ends and template, from either source.
#[test]
fn saved_tokenizers_load_again() {
    for name in ["byte_level", "sentence_piece", "byte_level.gguf", "sentence_piece.gguf"] {
        let from = checkpoint_of(&data(name), 1000);
        let tokenizer = Tokenizer::load(&from).unwrap();
        let dir = tempfile::tempdir().unwrap();
        tokenizer.save(dir.path()).unwrap();
        let saved = checkpoint_of(dir.path(), 1000);
        let again = Tokenizer::load(&saved).unwrap();
        same_ids(&again, &ids(name.trim_end_matches(".gguf")));
        assert_eq!(again.encode("Hi", true).unwrap(), tokenizer.encode("Hi", true).unwrap());
        assert_eq!((again.bos(), again.eos()), (tokenizer.bos(), tokenizer.eos()));
        assert_eq!(again.special_tokens(), tokenizer.special_tokens());
        let render = |checkpoint, tokenizer| {
            let message = Message { role: "user".into(), content: "Hi".into() };
            ChatTemplate::load(checkpoint, tokenizer).unwrap().map(|t| t.render(&[message], false).unwrap())
        };
        let rendered = render(&from, &tokenizer);
        assert_eq!(rendered, render(&saved, &again));
        let expected = (name != "sentence_piece").then_some("user: Hi\n");
        assert_eq!(rendered.as_deref(), expected, "{name}");
        if name.ends_with(".gguf") {
            for file in ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json"] {
                let text = std::fs::read(dir.path().join(file)).unwrap();
                serde_json::from_slice::<serde_json::Value>(&text).unwrap();
            }
            assert!(dir.path().join("chat_template.jinja").is_file());
        }
    }
}

/// generation_config.json, truncation and padding left over from training.
#[test]
fn directories_with_more_files() {
    let dir = tempfile::tempdir().unwrap();
    let copy = |name: &str, edit: &dyn Fn(&mut serde_json::Value)| {
        let text = std::fs::read(data("byte_level").join(name)).unwrap();
        let mut json = serde_json::from_slice(&text).unwrap();
        edit(&mut json);
        std::fs::write(dir.path().join(name), json.to_string()).unwrap();
    };
    copy("tokenizer.json", &|json| {
        json["truncation"] = serde_json::json!(
            {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
        );
        json["padding"] = serde_json::json!({
            "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "!"
        });
    });
    copy("tokenizer_config.json", &|json| json["add_bos_token"] = false.into());
    std::fs::write(
        dir.path().join("generation_config.json"),
        r#"{"eos_token_id": [5, 7], "bos_token_id": 3}"#,
    )
    .unwrap();
    let tokenizer = Tokenizer::load(&checkpoint_of(dir.path(), 1000)).unwrap();
    same_ids(&tokenizer, &ids("byte_level"));
    assert_eq!(tokenizer.eos()[..2], [5, 7]);
    assert_eq!(tokenizer.bos(), tokenizer.token_to_id("<s>"));
    // The post-processor counts, not add_bos_token: false.
    assert_eq!(tokenizer.encode("Hi", true).unwrap()[0], tokenizer.bos().unwrap());
    let out = tempfile::tempdir().unwrap();
    tokenizer.save(out.path()).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        let read = |dir: &Path| std::fs::read(dir.join(name)).unwrap();
        assert_eq!(read(dir.path()), read(out.path()), "{name}");
    }
}
