//! Prompts as JSON lines.

use serde_json::{Map, Value};

use super::unique::Unique;
use crate::{
    errors::{bad_input, bad_input_hint},
    numbers::Seed,
};

const FORMS: &str =
    "a line is {\"prompt\": \"...\"}, {\"messages\": [...]} or a text in quotes, as one JSON value";
const KEYS: [&str; 5] = ["prompt", "messages", "tools", "id", "seed"];

/// What a line asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// To answer or continue a text.
    Text(String),
    /// To continue a conversation.
    Messages {
        /// The conversation, as the chat template gets it.
        messages: Vec<Value>,
        /// Tools that the model may call.
        tools: Option<Value>,
    },
}

/// A line of input.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Its number, from 1.
    pub number: usize,
    /// What the user calls it: a text or a whole number.
    pub id: Option<Value>,
    /// What is wanted.
    pub request: Request,
    /// A seed of its own.
    pub seed: Option<Seed>,
}

/// Reads all lines; blank ones count, but ask for nothing. `source` names where they come from.
pub fn parse(text: &str, source: &str) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let line = request(number, line)
            .map_err(|reason| bad_input_hint(format!("{}: {reason}", place(source, number)), FORMS))?;
        lines.push(line);
    }
    if lines.is_empty() {
        return Err(bad_input_hint(format!("{source}: there are no prompts"), FORMS));
    }
    Ok(lines)
}

/// A line, for messages.
pub fn place(source: &str, number: usize) -> String {
    format!("{source}, line {number}")
}

fn request(number: usize, line: &str) -> Result<Line, String> {
    let Unique(value) = serde_json::from_str(line).map_err(|e| {
        let (reason, column) = (e.to_string(), e.column());
        let reason = reason.split(" at line ").next().unwrap_or_default();
        match e.is_data() {
            true => format!("{reason} (column {column})"),
            false => format!("it is no JSON ({reason} at column {column})"),
        }
    })?;
    let object = match value {
        Value::String(text) => Map::from_iter([("prompt".to_owned(), Value::String(text))]),
        Value::Object(object) => object,
        _ => return Err("it is neither a text nor an object".into()),
    };
    if let Some(key) = object.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Err(format!("the key {key:?} is not known (known are {})", KEYS.join(", ")));
    }
    let field = |key: &str| object.get(key).filter(|value| !value.is_null());
    let request = match (field("prompt"), field("messages")) {
        (Some(_), Some(_)) => return Err("it has both a prompt and messages".into()),
        (None, None) => return Err("it has neither a prompt nor messages".into()),
        (Some(_), None) if field("tools").is_some() => return Err("tools go with messages".into()),
        (Some(Value::String(text)), None) if text.is_empty() => return Err("the prompt is empty".into()),
        (Some(Value::String(text)), None) => Request::Text(text.clone()),
        (Some(_), None) => return Err("the prompt is not a text".into()),
        (None, Some(Value::Array(list))) if !list.is_empty() => {
            Request::Messages { messages: list.clone(), tools: field("tools").cloned() }
        }
        (None, Some(_)) => return Err("the messages are not a list of messages".into()),
    };
    let id = field("id").cloned();
    // A larger number would come back rounded.
    if id.as_ref().is_some_and(|id| !(id.is_string() || id.is_i64() || id.is_u64())) {
        return Err("the id is neither a text nor a whole number of at most 64 bits".into());
    }
    let seed = match field("seed") {
        None => None,
        Some(seed) if seed.as_i64() == Some(-1) => Some(Seed::Random),
        Some(seed) => {
            let wanted = "the seed is not a whole number from 0 to 2^64 - 1, or -1 for a random one";
            Some(Seed::Given(seed.as_u64().ok_or(wanted)?))
        }
    };
    Ok(Line { number, id, request, seed })
}

/// Puts the line before an error that it has caused.
pub fn at(source: &str, number: usize, error: &anyhow::Error) -> anyhow::Error {
    bad_input(format!("{}: {error:#}", place(source, number)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(text: &str) -> String {
        parse(text, "in").unwrap_err().to_string()
    }

    #[test]
    fn forms() {
        let text = "{\"prompt\": \"a\", \"id\": \"x\"}\r\n\n\"b\"\n{\"messages\": [{\"role\": \"user\"}], \"seed\": 7, \"id\": -3}\n{\"prompt\": \"c\", \"seed\": -1}";
        let lines = parse(text, "in").unwrap();
        let messages = Request::Messages { messages: vec![json!({"role": "user"})], tools: None };
        let line = |number, id: Value, request, seed| Line {
            number,
            id: Some(id).filter(|id| !id.is_null()),
            request,
            seed,
        };
        let wanted = [
            line(1, json!("x"), Request::Text("a".into()), None),
            line(3, Value::Null, Request::Text("b".into()), None),
            line(4, json!(-3), messages, Some(Seed::Given(7))),
            line(5, Value::Null, Request::Text("c".into()), Some(Seed::Random)),
        ];
        assert_eq!(lines, wanted);
    }

    #[test]
    fn a_bad_line_is_named() {
        for (line, says) in [
            ("{\"prompt\": ", "in, line 2: it is no JSON (EOF while parsing a value at column 11)"),
            ("[1]", "in, line 2: it is neither a text nor an object"),
            ("{\"prompt\": 1}", "the prompt is not a text"),
            ("{\"prompt\": \"\"}", "the prompt is empty"),
            ("{}", "neither a prompt nor messages"),
            ("{\"prompt\": \"a\", \"messages\": []}", "both a prompt and messages"),
            ("{\"messages\": []}", "not a list of messages"),
            ("{\"prompt\": \"a\", \"temperature\": 1}", "the key \"temperature\" is not known"),
            ("{\"prompt\": \"a\", \"id\": [1]}", "the id is neither"),
            ("{\"prompt\": \"a\", \"id\": 123456789012345678901}", "the id is neither"),
            ("{\"prompt\": \"a\", \"seed\": -2}", "the seed is not"),
            ("{\"prompt\": \"a\", \"seed\": 1.0}", "or -1 for a random one"),
            ("{\"prompt\": \"a\", \"prompt\": \"b\"}", "the key \"prompt\" is there twice (column 24)"),
            (
                "{\"messages\": [{\"role\": \"user\", \"content\": \"a\", \"content\": \"b\"}]}",
                "the key \"content\" is there twice",
            ),
            ("{\"prompt\": \"a\", \"tools\": []}", "tools go with messages"),
        ] {
            let error = refused(&format!("\"fine\"\n{line}\n\"fine\"\n"));
            assert!(error.contains("in, line 2: ") && error.contains(says), "{line}: {error}");
        }
        assert!(refused("\n \n").contains("there are no prompts"));
    }
}
