//! A model's chat template: where it comes from, and what it is rendered with.

use minijinja::Environment;
use minijinja::value::Value;
use qqq_formats::{Checkpoint, Inputs};

use super::engine;
use super::python::value::from_json;
use crate::tokenizer::{SpecialTokens, read_json};
use crate::{ModelError, Result, Tokenizer};

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said, as the template gets it.
    pub content: String,
}

/// A model's chat template (Jinja).
pub struct ChatTemplate {
    environment: Environment<'static>,
    special: SpecialTokens,
}

impl ChatTemplate {
    /// The template that comes with a checkpoint, `None` if it has none.
    ///
    /// # Errors
    /// A template that is no valid Jinja, or several of which none is called `default`.
    pub fn load(checkpoint: &Checkpoint, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let source = match &checkpoint.gguf {
            Some(file) => file.metadata().string("tokenizer.chat_template")?.map(str::to_owned),
            None => directory_template(&checkpoint.path, &checkpoint.inputs)?,
        };
        source.map(|s| Self::new(&s, tokenizer.special_tokens())).transpose()
    }

    /// A template from its source.
    ///
    /// # Errors
    /// It is no valid Jinja, or uses something that cannot be rendered as Jinja2 renders it.
    pub fn new(source: &str, special: &SpecialTokens) -> Result<Self> {
        let environment = engine::compile(source).map_err(ModelError::ChatTemplate)?;
        Ok(ChatTemplate { environment, special: special.clone() })
    }

    /// The prompt for a conversation.
    ///
    /// # Errors
    /// The template fails, or refuses the conversation (roles that do not alternate, say).
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let message = |m: &Message| serde_json::json!({"role": m.role, "content": m.content});
        let messages: Vec<_> = messages.iter().map(message).collect();
        self.render_with(&messages, add_generation_prompt, &serde_json::Map::new())
    }

    /// The prompt for messages with any fields (`tool_calls`, lists of contents, ...), and with more
    /// variables: `tools`, `documents`, `enable_thinking`, or others that the template knows.
    ///
    /// As in transformers, a message's fields that are null are left out, and reasoning is found under
    /// the names `reasoning_content`, `thinking` and `reasoning`.
    ///
    /// # Errors
    /// The template fails, or refuses the conversation.
    pub fn render_with(
        &self,
        messages: &[serde_json::Value],
        add_generation_prompt: bool,
        variables: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<String> {
        let messages: Vec<Value> = messages.iter().map(|m| from_json(&normalized(m))).collect();
        let mut all = vec![
            ("messages".to_owned(), Value::from(messages)),
            ("add_generation_prompt".to_owned(), Value::from(add_generation_prompt)),
            ("tools".to_owned(), Value::from(())),
            ("documents".to_owned(), Value::from(())),
        ];
        // Tokens a model does not have are undefined in transformers, not none.
        let SpecialTokens { bos, eos, unk, pad } = &self.special;
        for (name, token) in [("bos_token", bos), ("eos_token", eos), ("unk_token", unk), ("pad_token", pad)]
        {
            all.extend(token.as_deref().map(|t| (name.to_owned(), Value::from(t))));
        }
        all.extend(variables.iter().map(|(name, value)| (name.clone(), from_json(value))));
        engine::render(&self.environment, all).map_err(ModelError::ChatTemplate)
    }
}

/// A message as transformers hands it to a template.
fn normalized(message: &serde_json::Value) -> serde_json::Value {
    const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
    let Some(fields) = message.as_object() else { return message.clone() };
    let fields: serde_json::Map<_, _> =
        fields.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), v.clone())).collect();
    let Some(reasoning) = REASONING.iter().find_map(|name| fields.get(*name)).cloned() else {
        return fields.into();
    };
    let mut all = serde_json::Map::new();
    all.insert("thinking".into(), reasoning.clone());
    all.extend(fields);
    all.insert("reasoning_content".into(), reasoning);
    all.into()
}

/// The template of a directory: a file of its own takes precedence over the tokenizer's configuration.
fn directory_template(dir: &std::path::Path, inputs: &Inputs) -> Result<Option<String>> {
    let path = dir.join("chat_template.jinja");
    if let Some(text) = inputs.read_if_there(&path)? {
        let text = String::from_utf8(text)
            .map_err(|e| ModelError::ChatTemplate(format!("{}: is not UTF-8: {e}", path.display())))?;
        return Ok(Some(text));
    }
    for name in ["chat_template.json", "tokenizer_config.json"] {
        let template = read_json(inputs, dir, name)?.map(|mut json| json["chat_template"].take());
        match template {
            Some(serde_json::Value::String(text)) => return Ok(Some(text)),
            Some(serde_json::Value::Array(list)) => return named_template(&list, name).map(Some),
            _ => {}
        }
    }
    Ok(None)
}

/// The template called `default` of a list of `{"name": ..., "template": ...}`.
fn named_template(list: &[serde_json::Value], file: &str) -> Result<String> {
    let default = list.iter().find(|t| t["name"] == "default").and_then(|t| t["template"].as_str());
    default.map(str::to_owned).ok_or_else(|| {
        let names: Vec<_> = list.iter().filter_map(|t| t["name"].as_str()).collect();
        ModelError::ChatTemplate(format!("{file} has templates {names:?}, but none called \"default\""))
    })
}
