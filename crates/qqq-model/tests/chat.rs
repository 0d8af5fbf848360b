//! Chat templates rendered as transformers renders them (scripts/make_chat_vectors.py).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use qqq_formats::gguf::GgufFile;
use qqq_formats::{Checkpoint, ModelConfig};
use qqq_model::tokenizer::SpecialTokens;
use qqq_model::{ChatTemplate, Message, Tokenizer};
use serde_json::{Map, Value};

/// A template file with a conversation, and what transformers makes of it.
#[derive(serde::Deserialize)]
struct Case {
    template: String,
    messages: Vec<Value>,
    #[serde(default)]
    tools: Option<Value>,
    add_generation_prompt: bool,
    text: Option<String>,
    error: Option<String>,
}

/// A small template, and what Jinja2 makes of it: a text, an error, or what we do not have.
#[derive(serde::Deserialize)]
struct Snippet {
    subject: String,
    template: String,
    text: Option<String>,
    error: Option<String>,
    says: Option<String>,
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
    assert_eq!(cases.len(), 112);
    for case in cases {
        let source = std::fs::read_to_string(data("chat").join(&case.template)).unwrap();
        let template = ChatTemplate::new(&source, &special()).unwrap();
        let variables = case.tools.iter().map(|tools| ("tools".to_owned(), tools.clone())).collect();
        let got = template.render_with(&case.messages, case.add_generation_prompt, &variables);
        match (got, case.text, case.error) {
            (Ok(got), Some(expected), None) => assert_eq!(got, expected, "{}", case.template),
            // Messages of templates are the same, those of Python are in other words.
            (Err(got), None, Some(expected)) => {
                let python = expected.starts_with('\'') || expected.contains("object");
                assert!(python || got.to_string().contains(&expected), "{got}, expected {expected}");
            }
            (got, expected, error) => panic!("{}: {got:?}, expected {expected:?} {error:?}", case.template),
        }
    }
}

/// Each for one thing of Jinja2 or Python (scripts/chat_snippets.py): the same text, or an error where
/// Jinja2 has one; what it renders and we do not is an error that names it.
#[test]
fn snippets_are_as_jinja2_has_them() {
    let cases: Vec<Snippet> =
        serde_json::from_slice(&std::fs::read(data("chat/snippets.json")).unwrap()).unwrap();
    let mut variables: Map<String, Value> =
        serde_json::from_slice(&std::fs::read(data("chat/variables.json")).unwrap()).unwrap();
    let messages = variables.remove("messages").unwrap();
    assert!(cases.len() > 400);
    let mut wrong = Vec::new();
    for Snippet { subject, template, text, error, says } in cases {
        let got = ChatTemplate::new(&template, &special())
            .and_then(|t| t.render_with(messages.as_array().unwrap(), false, &variables));
        let good = match (&got, &text, &says) {
            (Ok(got), Some(text), _) => got == text,
            (Err(got), None, Some(says)) => {
                let got = got.to_string();
                got.contains(says.as_str()) && got.contains("line 1 of the template")
            }
            (Err(_), None, None) => error.is_some(),
            _ => false,
        };
        if !good {
            wrong.push(format!(
                "{subject}: {template}\n  got {got:?}\n  expected {text:?} {error:?} {says:?}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What does not end, or takes the stack, is an error.
#[test]
fn endless_templates_are_errors() {
    let render = |source: &str| {
        let template = ChatTemplate::new(source, &special());
        template.and_then(|t| t.render(&hello(), true)).unwrap_err().to_string()
    };
    let loops = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}";
    assert!(render(loops).contains("steps"), "{}", render(loops));
    let grows =
        "{% set ns = namespace(s='x') %}{% for a in range(100) %}{% set ns.s = ns.s + ns.s %}{% endfor %}";
    assert!(render(grows).contains("too long") || render(grows).contains("steps"), "{}", render(grows));
    for endless in [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f() %}{{ caller() }}{% endmacro %}{% macro g() %}{% call f() %}{{ g() }}{% endcall %}{% endmacro %}{{ g() }}",
    ] {
        assert!(render(endless).contains("recursion"), "{}", render(endless));
    }
    for wide in ["{{ 'a' * 1000000000 }}", "{{ 'a'.ljust(1000000000) }}", "{{ '%1000000000d' % 1 }}"] {
        assert!(render(wide).contains("too long"), "{}", render(wide));
    }
    let deep = format!("{{{{ {}1{} }}}}", "(".repeat(5000), ")".repeat(5000));
    assert!(render(&deep).contains("inside of each other"), "{}", render(&deep));
    let blocks = "{% if true %}".repeat(5000);
    assert!(render(&blocks).contains("inside of each other"), "{}", render(&blocks));
    let nested = "{% set ns = namespace(l=[]) %}{% for a in range(100000) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l }}";
    assert!(render(nested).contains("deep"), "{}", render(nested));
    let wide_sum = format!("{{{{ 0{} }}}}", " + 1".repeat(2000));
    let template = ChatTemplate::new(&wide_sum, &special()).unwrap();
    assert_eq!(template.render(&hello(), true).unwrap(), "2000");
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
    // Another one each time: a checkpoint that is open insists that its files stay as they are.
    let checkpoint = || Checkpoint {
        path: dir.path().into(),
        config: ModelConfig::from_value(Path::new("config.json"), config.clone()).unwrap(),
        tensors: Box::new(file.clone()),
        gguf: None,
        inputs: Default::default(),
    };
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    std::fs::copy(data("byte_level/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    let tokenizer = Tokenizer::load(&checkpoint()).unwrap();
    let load = || ChatTemplate::load(&checkpoint(), &tokenizer);
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
