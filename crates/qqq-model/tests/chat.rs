//! Chat templates rendered as transformers renders them (scripts/make_chat_vectors.py).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use qqq_formats::gguf::GgufFile;
use qqq_formats::{Checkpoint, ModelConfig};
use qqq_model::tokenizer::SpecialTokens;
use qqq_model::{ChatTemplate, Message, Tokenizer};

#[derive(serde::Deserialize)]
struct Case {
    template: String,
    messages: Vec<Message>,
    add_generation_prompt: bool,
    text: Option<String>,
    error: Option<String>,
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn special() -> SpecialTokens {
    SpecialTokens { bos: Some("<s>".into()), eos: Some("</s>".into()), unk: None, pad: None }
}

fn hello() -> [Message; 1] {
    [Message { role: "user".into(), content: "Hello".into() }]
}

#[test]
fn texts_are_those_of_transformers() {
    let cases: Vec<Case> =
        serde_json::from_slice(&std::fs::read(data("chat/expected.json")).unwrap()).unwrap();
    assert_eq!(cases.len(), 48);
    for case in cases {
        let source = std::fs::read_to_string(data("chat").join(&case.template)).unwrap();
        let template = ChatTemplate::new(&source, &special()).unwrap();
        let got = template.render(&case.messages, case.add_generation_prompt);
        match (got, case.text, case.error) {
            (Ok(got), Some(expected), None) => assert_eq!(got, expected, "{}", case.template),
            (Err(got), None, Some(expected)) => {
                assert!(got.to_string().contains(&expected), "{got}")
            }
            (got, expected, error) => panic!("{}: {got:?}, expected {expected:?} {error:?}", case.template),
        }
    }
}

#[test]
fn mistakes_have_a_line() {
    let refusal = |source: &str| ChatTemplate::new(source, &special()).err().unwrap().to_string();
    let message = refusal("a\n{% for %}");
    assert!(message.starts_with("chat template: ") && message.contains("line 2"), "{message}");
    let template = ChatTemplate::new("\n\n{{ messages.x.y }}", &special()).unwrap();
    let message = template.render(&hello(), true).unwrap_err().to_string();
    assert!(message.contains("line 3"), "{message}");
}

#[test]
fn functions_and_variables() {
    let render =
        |source: &str| ChatTemplate::new(source, &special()).unwrap().render(&hello(), true).unwrap();
    assert_eq!(
        render("{{ unk_token is defined }} {{ tools is none }} {{ bos_token ~ eos_token }}"),
        "False True <s></s>"
    );
    assert_eq!(render("{{ {'a': [], 'b': {}} | tojson(indent=2) }}"), "{\n  \"a\": [],\n  \"b\": {}\n}");
    assert_eq!(render("{{ messages | tojson }}"), r#"[{"role": "user", "content": "Hello"}]"#);
    let year: u32 = render("{{ strftime_now('%Y') }}").parse().unwrap();
    assert!(year >= 2024);
}

/// Where a directory's template lies: its own file first, then tokenizer_config.json, as text or list.
#[test]
fn places_of_the_template() {
    let dir = tempfile::tempdir().unwrap();
    let file = Arc::new(GgufFile::open(&data("byte_level.gguf")).unwrap());
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 1000,
    });
    let checkpoint = Checkpoint {
        path: dir.path().into(),
        config: ModelConfig::from_value(Path::new("config.json"), config).unwrap(),
        tensors: Box::new(file),
        gguf: None,
    };
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    std::fs::copy(data("byte_level/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    let tokenizer = Tokenizer::load(&checkpoint).unwrap();
    let load = || ChatTemplate::load(&checkpoint, &tokenizer);
    let text = || load().unwrap().map(|t| t.render(&hello(), true).unwrap());
    assert_eq!(text(), None);
    write("tokenizer_config.json", r#"{"chat_template": [{"name": "rag", "template": "no"}]}"#);
    let message = load().err().unwrap().to_string();
    assert!(message.contains("rag") && message.contains("default"), "{message}");
    write(
        "tokenizer_config.json",
        r#"{"chat_template": [{"name": "rag", "template": "no"}, {"name": "default", "template": "list"}]}"#,
    );
    assert_eq!(text().as_deref(), Some("list"));
    write("tokenizer_config.json", r#"{"chat_template": "string"}"#);
    assert_eq!(text().as_deref(), Some("string"));
    write("chat_template.jinja", "file");
    assert_eq!(text().as_deref(), Some("file"));
}
