//! GGUF vocabularies as some converters leave them: what can be recovered is, with a note.

use std::collections::BTreeMap;

use qqq_formats::gguf::Value;
use qqq_model::{ChatTemplate, Tokenizer};

use crate::common::{checkpoint_of, data, edited, ids, same_ids};

const TYPES: &str = "tokenizer.ggml.token_type";
const TOKENS: &str = "tokenizer.ggml.tokens";
const MERGES: &str = "tokenizer.ggml.merges";
const PRE: &str = "tokenizer.ggml.pre";
const CHATML: &str =
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";

type Keys = BTreeMap<String, Value>;

fn load(name: &str, edit: impl FnOnce(&mut Keys)) -> Tokenizer {
    Tokenizer::load(&edited(name, edit)).unwrap()
}

#[track_caller]
fn noted(tokenizer: &Tokenizer, words: &[&str]) {
    let [note] = tokenizer.notes() else { panic!("{:?}", tokenizer.notes()) };
    for word in words {
        assert!(note.contains(word), "{note:?} does not say {word:?}");
    }
    assert!(!note.contains('\n'));
}

fn strings<'a>(keys: &'a mut Keys, key: &str) -> &'a mut Vec<String> {
    match keys.get_mut(key) {
        Some(Value::Strings(list)) => list,
        other => panic!("{other:?}"),
    }
}

/// Sets the type of tokens by their text.
fn set_types(keys: &mut Keys, kind: i64, which: impl Fn(&str) -> bool) {
    let tokens = strings(keys, TOKENS).clone();
    let Some(Value::Integers(types)) = keys.get_mut(TYPES) else { panic!() };
    types.iter_mut().zip(&tokens).filter(|(_, t)| which(t)).for_each(|(kind_of, _)| *kind_of = kind);
}

#[test]
fn files_without_faults_have_no_notes() {
    for name in ["byte_level.gguf", "sentence_piece.gguf"] {
        let tokenizer = Tokenizer::load(&checkpoint_of(&data(name), 1000)).unwrap();
        assert!(tokenizer.notes().is_empty(), "{:?}", tokenizer.notes());
    }
}

/// However control tokens are typed: the ids of `tokenizers`, which has them as added tokens, and the same ends.
#[test]
fn control_tokens_are_known_by_their_text() {
    let usual = Tokenizer::load(&checkpoint_of(&data("byte_level"), 1000)).unwrap();
    let chat = "<|im_start|>user\nHi<|im_end|>\n<|eot_id|>[INST] <s>";
    let expected = usual.encode(chat, false).unwrap();
    assert_eq!(expected.iter().filter(|&&id| id >= usual.token_to_id("<s>").unwrap()).count(), 5);
    type Edit = fn(&mut Keys);
    let cases: [(&str, Edit); 7] = [
        ("is missing", |keys| {
            keys.remove(TYPES);
        }),
        ("is missing", |keys| {
            keys.insert(TYPES.into(), Value::Integers(Vec::new()));
        }),
        ("the same for all", |keys| set_types(keys, 1, |_| true)),
        ("the same for all", |keys| set_types(keys, 0, |_| true)),
        ("does not mark all", |keys| set_types(keys, 1, |t| t.starts_with('<') && t != "<s>")),
        ("does not mark all", |keys| set_types(keys, 5, |t| t.starts_with("<|") && t.ends_with("|>"))),
        ("does not mark all", |keys| set_types(keys, 4, |t| t.starts_with("<|") && t.ends_with("|>"))),
    ];
    for (fault, edit) in cases {
        let tokenizer = load("byte_level.gguf", |keys| {
            keys.insert("tokenizer.chat_template".into(), Value::String(CHATML.into()));
            edit(keys);
        });
        noted(&tokenizer, &["tokenizer.ggml.token_type", fault, "<|im_end|>", "<|eot_id|>"]);
        assert_eq!(tokenizer.encode(chat, false).unwrap(), expected, "{fault}");
        same_ids(&tokenizer, &ids("byte_level"));
        assert_eq!(tokenizer.eos(), usual.eos(), "{fault}");
        // End tokens give no text.
        let text = tokenizer.decode(&expected, true).unwrap();
        assert!(!text.contains("im_end") && text.contains("user\nHi"), "{text}");
    }
}

/// What is recovered comes along into what is saved.
#[test]
fn recovered_ends_are_saved() {
    let tokenizer = load("byte_level.gguf", |keys| set_types(keys, 1, |t| t.starts_with("<|")));
    let dir = tempfile::tempdir().unwrap();
    tokenizer.save(dir.path()).unwrap();
    let again = Tokenizer::load(&checkpoint_of(dir.path(), 1000)).unwrap();
    let chat = "<|im_start|>user\nHi<|im_end|>";
    assert_eq!(again.encode(chat, false).unwrap(), tokenizer.encode(chat, false).unwrap());
    assert_eq!(again.eos(), tokenizer.eos());
    let text = std::fs::read(dir.path().join("generation_config.json")).unwrap();
    let generation: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let id = |t: &str| tokenizer.token_to_id(t).unwrap();
    let ends = serde_json::json!([id("</s>"), id("<|im_end|>"), id("<|eot_id|>")]);
    assert_eq!(generation["eos_token_id"], ends);
}

/// Texts that training has learned stay text, whatever they look like, unless the metadata name them.
#[test]
fn learned_tokens_are_no_control_tokens() {
    let learn = |keys: &mut Keys| {
        let tokens = strings(keys, TOKENS);
        let at = tokens.iter().position(|t| t == "<|im_end|>").unwrap() as u64;
        tokens.extend(["<|".into(), "im_end|>".into()]);
        strings(keys, MERGES).push("<| im_end|>".into());
        keys.remove(TYPES);
        at
    };
    let tokenizer = load("byte_level.gguf", |keys| {
        learn(keys);
    });
    assert!(!tokenizer.eos().contains(&tokenizer.token_to_id("<|im_end|>").unwrap()));
    let tokenizer = load("byte_level.gguf", |keys| {
        let at = learn(keys);
        keys.insert("tokenizer.ggml.eot_token_id".into(), Value::Unsigned(at));
    });
    assert!(tokenizer.eos().contains(&tokenizer.token_to_id("<|im_end|>").unwrap()));
}

#[test]
fn sentence_piece_without_types() {
    for untyped in [true, false] {
        let tokenizer = load("sentence_piece.gguf", |keys| match untyped {
            true => drop(keys.remove(TYPES)),
            false => set_types(keys, 1, |_| true),
        });
        noted(&tokenizer, &["token_type", "<s>"]);
        same_ids(&tokenizer, &ids("sentence_piece"));
        let usual = Tokenizer::load(&checkpoint_of(&data("sentence_piece.gguf"), 1000)).unwrap();
        let text = "<s>a</s> \u{1f600}<0x0A>";
        assert_eq!(tokenizer.encode(text, true).unwrap(), usual.encode(text, true).unwrap());
        assert_eq!(tokenizer.eos(), usual.eos());
    }
}

#[derive(serde::Deserialize)]
struct Splittings {
    text: String,
    vocabularies: Vec<Splitting>,
    named: Named,
}

#[derive(serde::Deserialize)]
struct Splitting {
    pre: String,
    tokens: Vec<String>,
    merges: Vec<String>,
    ids: Vec<u32>,
}

/// A vocabulary without splitting, and the ids that names of splittings give.
#[derive(serde::Deserialize)]
struct Named {
    tokens: Vec<String>,
    merges: Vec<String>,
    text: String,
    ids: std::collections::BTreeMap<String, Vec<u32>>,
}

/// Names that are in files alone, against llama.cpp's regular expressions for them.
#[test]
fn splittings_that_files_name() {
    let text = std::fs::read(data("splittings.json")).unwrap();
    let named = serde_json::from_slice::<Splittings>(&text).unwrap().named;
    assert_eq!(named.ids.keys().collect::<Vec<_>>(), ["dbrx", "gpt-4o", "refact", "smaug-bpe"]);
    for (pre, ids) in &named.ids {
        let tokenizer = load("byte_level.gguf", |keys| {
            keys.insert(TOKENS.into(), Value::Strings(named.tokens.clone()));
            keys.insert(MERGES.into(), Value::Strings(named.merges.clone()));
            keys.insert(TYPES.into(), Value::Integers(vec![1; named.tokens.len()]));
            keys.insert(PRE.into(), Value::String(pre.clone()));
            for name in ["bos", "eos"] {
                keys.remove(&format!("tokenizer.ggml.{name}_token_id"));
            }
        });
        assert_eq!(tokenizer.encode(&named.text, true).unwrap(), *ids, "{pre}");
    }
}

/// Vocabularies made with each splitting (scripts/make_splitting_vectors.py): found without its name, in files of any
/// architecture.
#[test]
fn a_missing_splitting_is_seen_in_the_vocabulary() {
    let text = std::fs::read(data("splittings.json")).unwrap();
    let splittings: Splittings = serde_json::from_slice(&text).unwrap();
    assert_eq!(splittings.vocabularies.len(), 5);
    for v in &splittings.vocabularies {
        for (architecture, pre) in
            [("llama", None), ("llama", Some("")), ("qwen2", None), ("llama", Some("?"))]
        {
            // Qwen's splitting is taken for Qwen wherever the vocabulary allows it: Tekken's small one does not.
            let checkpoint = edited("byte_level.gguf", |keys| {
                keys.insert("general.architecture".into(), Value::String(architecture.into()));
                keys.insert(TOKENS.into(), Value::Strings(v.tokens.clone()));
                keys.insert(MERGES.into(), Value::Strings(v.merges.clone()));
                keys.insert(TYPES.into(), Value::Integers(vec![1; v.tokens.len()]));
                keys.remove(PRE);
                keys.extend(pre.map(|p| (PRE.to_owned(), Value::String(p.into()))));
                for name in ["bos", "eos"] {
                    keys.remove(&format!("tokenizer.ggml.{name}_token_id"));
                }
            });
            let tokenizer = match (Tokenizer::load(&checkpoint), pre) {
                (Err(e), Some("?")) => {
                    let e = e.to_string();
                    let fits = format!("fits {:?}", v.pre);
                    assert!(e.contains("\"?\" is not supported") && e.contains("tekken are)"), "{e}");
                    assert!(e.contains(&fits) && e.contains("--pre-tokenizer"), "{e}");
                    continue;
                }
                (tokenizer, _) => tokenizer.unwrap(),
            };
            if architecture == "qwen2" && v.pre == "tekken" {
                noted(&tokenizer, &["\"qwen2\""]);
                continue;
            }
            noted(&tokenizer, &["tokenizer.ggml.pre is missing", &format!("split as {:?}", v.pre)]);
            assert_eq!(tokenizer.encode(&splittings.text, true).unwrap(), v.ids, "{architecture} {}", v.pre);
        }
    }
}

/// Too few tokens say nothing: llama.cpp's rules, with a note. Where a file asks for them, and its vocabulary was made
/// otherwise, that is said.
#[test]
fn the_default_splitting() {
    let default = load("byte_level.gguf", |keys| {
        keys.insert(PRE.into(), Value::String("default".into()));
    });
    noted(&default, &["is \"default\"", "as \"llama-bpe\""]);
    let few = load("byte_level.gguf", |keys| {
        keys.remove(PRE);
        strings(keys, MERGES).truncate(20);
    });
    noted(&few, &["tokenizer.ggml.pre is missing", "as \"default\"", "llama.cpp"]);
    let found = load("byte_level.gguf", |keys| drop(keys.remove(PRE)));
    noted(&found, &["as \"llama-bpe\""]);
    same_ids(&found, &ids("byte_level"));
    assert_eq!(found.encode("", true).unwrap(), [found.bos().unwrap()]);
}

#[test]
fn merges_of_unknown_tokens_are_left_out() {
    let tokenizer = load("byte_level.gguf", |keys| {
        let merges = strings(keys, MERGES);
        merges.insert(3, "zzz qqq".into());
        merges.push("q \u{121}".into());
        merges.push("nospace".into());
    });
    noted(&tokenizer, &["tokenizer.ggml.merges", "3 of ", "`zzz qqq`", "`nospace`"]);
    same_ids(&tokenizer, &ids("byte_level"));
}

/// A text that two tokens have is the later one's; the other one, should a model give it, has that text.
#[test]
fn duplicate_tokens() {
    let usual = Tokenizer::load(&checkpoint_of(&data("byte_level"), 1000)).unwrap();
    let last = usual.len() as u32;
    let tokenizer = load("byte_level.gguf", |keys| {
        strings(keys, TOKENS).push("\u{120}the".into());
        let Some(Value::Integers(types)) = keys.get_mut(TYPES) else { panic!() };
        types.push(1);
    });
    noted(&tokenizer, &["tokenizer.ggml.tokens: 1 have", "\u{120}the"]);
    let first = usual.token_to_id("\u{120}the").unwrap();
    assert_eq!(tokenizer.encode(" the", false).unwrap(), [last]);
    for id in [first, last] {
        assert_eq!(tokenizer.decode(&[id], false).unwrap(), " the");
    }
    for case in ids("byte_level") {
        let expected: Vec<u32> = case.ids.iter().map(|&id| if id == first { last } else { id }).collect();
        assert_eq!(tokenizer.encode(&case.text, false).unwrap(), expected);
    }
}

/// Templates beside the default one are written where transformers looks for them.
#[test]
fn several_chat_templates() {
    let checkpoint = edited("byte_level.gguf", |keys| {
        let names = vec!["tool_use".to_owned(), "../x".to_owned()];
        keys.insert("tokenizer.chat_templates".into(), Value::Strings(names));
        for name in ["tool_use", "../x"] {
            keys.insert(
                format!("tokenizer.chat_template.{name}"),
                Value::String(format!("{name}{{{{ 1 }}}}")),
            );
        }
    });
    let tokenizer = Tokenizer::load(&checkpoint).unwrap();
    assert!(ChatTemplate::load(&checkpoint, &tokenizer).unwrap().is_some());
    let dir = tempfile::tempdir().unwrap();
    tokenizer.save(dir.path()).unwrap();
    let folder = dir.path().join("additional_chat_templates");
    assert_eq!(std::fs::read_to_string(folder.join("tool_use.jinja")).unwrap(), "tool_use{{ 1 }}");
    assert_eq!(folder.read_dir().unwrap().count(), 1);
    assert!(!dir.path().join("x.jinja").exists());
}

/// Padding and unknown text are never used here, so ids that are no tokens' do no harm.
#[test]
fn a_padding_token_beyond_the_vocabulary() {
    let tokenizer = load("byte_level.gguf", |keys| {
        keys.insert("tokenizer.ggml.padding_token_id".into(), Value::Unsigned(5000));
    });
    noted(&tokenizer, &["padding_token_id is 5000", "none is taken"]);
    assert_eq!(tokenizer.special_tokens().pad, None);
    same_ids(&tokenizer, &ids("byte_level"));
    let dir = tempfile::tempdir().unwrap();
    tokenizer.save(dir.path()).unwrap();
    let text = std::fs::read_to_string(dir.path().join("generation_config.json")).unwrap();
    assert!(!text.contains("5000"), "{text}");
}
