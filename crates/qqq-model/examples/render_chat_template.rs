//! Renders chat templates for scripts/compare_chat_templates.py: a JSON list of cases on standard input, of
//! texts or errors on standard output.

use qqq_model::ChatTemplate;
use qqq_model::tokenizer::SpecialTokens;
use serde_json::{Map, Value, json};

#[derive(serde::Deserialize)]
struct Case {
    template: String,
    messages: Vec<Value>,
    add_generation_prompt: bool,
    variables: Map<String, Value>,
}

fn main() -> serde_json::Result<()> {
    let cases: Vec<Case> = serde_json::from_reader(std::io::stdin())?;
    let special = SpecialTokens { bos: Some("<s>".into()), eos: Some("</s>".into()), unk: None, pad: None };
    let render = |c: &Case| {
        let template = ChatTemplate::new(&c.template, &special)?;
        template.render_with(&c.messages, c.add_generation_prompt, &c.variables)
    };
    let results: Vec<Value> = cases
        .iter()
        .map(|c| match render(c) {
            Ok(text) => json!({ "text": text }),
            Err(e) => json!({ "error": e.to_string() }),
        })
        .collect();
    serde_json::to_writer(std::io::stdout(), &results)
}
