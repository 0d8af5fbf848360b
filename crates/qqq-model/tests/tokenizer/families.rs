//! Tokenizers of directories: ids are those of transformers (scripts/make_tokenizer_config_vectors.py), whatever the
//! files beside tokenizer.json say.

use std::collections::HashMap;

use qqq_model::Tokenizer;
use serde_json::Value;

use crate::common::{checkpoint_of, data};

#[derive(serde::Deserialize)]
struct Vectors {
    texts: Vec<String>,
    tokenizers: HashMap<String, Value>,
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    tokenizer: String,
    post_processor: Value,
    config: Value,
    files: HashMap<String, Value>,
    ids: Vec<Vec<u32>>,
}

/// Whether the post-processor adds something before and after a text.
fn adds(post_processor: &Value) -> (bool, bool) {
    let parts = post_processor["single"].as_array().cloned().unwrap_or_default();
    let special = |part: Option<&Value>| part.is_some_and(|p| p.get("SpecialToken").is_some());
    (special(parts.first()), special(parts.last()))
}

#[test]
fn ids_are_those_of_transformers_5() {
    let text = std::fs::read(data("tokenizer_config.json")).unwrap();
    let vectors: Vectors = serde_json::from_slice(&text).unwrap();
    assert!(vectors.tokenizers.len() == 6 && vectors.cases.len() > 150);
    let mut disagreements = 0;
    for case in vectors.cases {
        let dir = tempfile::tempdir().unwrap();
        let write =
            |name: &str, json: &Value| std::fs::write(dir.path().join(name), json.to_string()).unwrap();
        let mut tokenizer = vectors.tokenizers[&case.tokenizer].clone();
        tokenizer["post_processor"] = case.post_processor.clone();
        write("tokenizer.json", &tokenizer);
        write("tokenizer_config.json", &case.config);
        for (name, json) in &case.files {
            write(name, json);
        }
        let tokenizer = Tokenizer::load(&checkpoint_of(dir.path(), 1000)).unwrap();
        let about = format!("{} {} {:?} {}", case.tokenizer, case.config, case.files, case.post_processor);
        for (text, ids) in vectors.texts.iter().zip(&case.ids) {
            assert_eq!(&tokenizer.encode(text, true).unwrap(), ids, "{text:?}: {about}");
        }
        // A note for each setting that says something else than what is done.
        let (before, after) = adds(&case.post_processor);
        for (key, adds) in [("add_bos_token", before), ("add_eos_token", after)] {
            let noted = tokenizer.notes().iter().any(|n| n.contains(key));
            assert_eq!(noted, case.config[key].as_bool().is_some_and(|said| said != adds), "{about}");
            disagreements += usize::from(noted);
        }
    }
    assert!(disagreements > 50, "{disagreements}");
}
