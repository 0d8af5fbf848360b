//! Conversations as data sets have them, brought to the messages of a chat template.

use serde_json::{Map, Value, json};

use crate::{ChatTemplate, Result as ModelResult};

/// Who speaks in the data sets that follow ShareGPT (`from`), and the role that stands for it.
const SPEAKERS: [(&str, &str); 14] = [
    ("human", "user"),
    ("user", "user"),
    ("gpt", "assistant"),
    ("assistant", "assistant"),
    ("model", "assistant"),
    ("chatgpt", "assistant"),
    ("bing", "assistant"),
    ("bard", "assistant"),
    ("system", "system"),
    ("tool", "tool"),
    ("observation", "tool"),
    ("function_response", "tool"),
    ("tool_response", "tool"),
    ("ipython", "tool"),
];

/// Messages of a list: with `role` and `content`, or ShareGPT's `from` and `value`.
///
/// # Errors
/// What is wrong with which message, as a sentence.
pub fn messages(list: &[Value]) -> Result<Vec<Value>, String> {
    list.iter()
        .enumerate()
        .map(|(i, message)| {
            let Value::Object(message) = message else {
                return Err(format!("message {} is {}, not an object", i + 1, kind(message)));
            };
            let read = if message.contains_key("role") { with_role(message) } else { with_speaker(message) };
            read.map_err(|reason| format!("message {}: {reason}", i + 1))
        })
        .collect()
}

/// A message of a role, as chat templates have it.
pub(super) fn message(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}

fn with_role(message: &Map<String, Value>) -> Result<Value, String> {
    if !message["role"].is_string() {
        return Err(format!("its role is {}, not a text", kind(&message["role"])));
    }
    let calls = message.get("tool_calls").is_some_and(|calls| !is_empty(calls));
    match message.get("content") {
        // Templates that know parts may write something between them: they are given as they are.
        Some(Value::Array(parts)) => parts.iter().try_for_each(is_text)?,
        Some(Value::String(_)) => {}
        // A message that only calls tools has none.
        None | Some(Value::Null) if calls => {}
        None => return Err("it has no content".into()),
        Some(other) => return Err(format!("its content is {}, not a text", kind(other))),
    }
    Ok(Value::Object(message.clone()))
}

/// Checks that a part of a content is text, for a language model.
fn is_text(part: &Value) -> Result<(), String> {
    if part.is_string() || part.get("text").is_some_and(Value::is_string) {
        return Ok(());
    }
    let kind = part.get("type").and_then(Value::as_str).unwrap_or("unknown");
    Err(format!("its content has a part of type {kind}, which is no text"))
}

/// The prompt for messages that [`messages`] gave. Contents in parts are given to the template as they are if it knows
/// parts, else as their texts one after the other.
///
/// # Errors
/// As [`ChatTemplate::render_with`].
pub fn render(
    template: &ChatTemplate,
    messages: &[Value],
    add_generation_prompt: bool,
    variables: &Map<String, Value>,
) -> ModelResult<String> {
    let rendered = template.render_with(messages, add_generation_prompt, variables);
    // A template that knows nothing of parts fails, or writes them as Python would print a list.
    let is_wrong = |text: &String| text.contains("[{'type'") || text.contains("[{'text'");
    if messages.iter().any(|m| m["content"].is_array()) && rendered.as_ref().map_or(true, is_wrong) {
        return template.render_with(&joined(messages), add_generation_prompt, variables);
    }
    rendered
}

/// Messages whose contents in parts are their texts, one after the other.
fn joined(messages: &[Value]) -> Vec<Value> {
    let join = |message: &Value| {
        let mut message = message.clone();
        if let Some(content @ Value::Array(_)) = message.get_mut("content") {
            let texts = content.as_array().into_iter().flatten();
            let text =
                texts.filter_map(|p| p.as_str().or_else(|| p.get("text")?.as_str())).collect::<String>();
            *content = text.into();
        }
        message
    };
    messages.iter().map(join).collect()
}

fn with_speaker(message: &Map<String, Value>) -> Result<Value, String> {
    let (Some(Value::String(from)), Some(Value::String(value))) = (message.get("from"), message.get("value"))
    else {
        let names: Vec<&str> = message.keys().map(String::as_str).collect();
        return Err(format!(
            "role and content (or from and value) are expected, but there are {}",
            names.join(", ")
        ));
    };
    if from == "function_call" {
        let call: Value =
            serde_json::from_str(value).map_err(|e| format!("its function call is no JSON: {e}"))?;
        let calls = if call.is_array() { call } else { json!([call]) };
        let calls: Vec<Value> = calls
            .as_array()
            .into_iter()
            .flatten()
            .map(|c| json!({ "type": "function", "function": c }))
            .collect();
        return Ok(json!({ "role": "assistant", "content": null, "tool_calls": calls }));
    }
    match SPEAKERS.iter().find(|(name, _)| name == from) {
        Some((_, role)) => Ok(json!({ "role": role, "content": value })),
        None => Err(format!("nothing is known of a speaker {from:?}")),
    }
}

/// Whether there is nothing in a value.
pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::String(text) => text.trim().is_empty() || text.trim() == "[]",
        _ => false,
    }
}

/// What a value is, for messages.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
