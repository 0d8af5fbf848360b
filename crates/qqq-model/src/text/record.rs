//! Records to text, by the names of their fields.
//!
//! | fields | text |
//! |---|---|
//! | `text`, else `content` | as it is |
//! | `messages`, `conversations`, `conversation` | through the model's chat template |
//! | `instruction` (`input` or `context`) `output` or `response` | a question and its answer through the chat template; of a model without one as Stanford's Alpaca was trained |
//! | `prompt`, `completion` | one after the other; lists of messages through the chat template |
//!
//! The first of a record's forms in this order counts. Records whose fields are null are left out, as data frames do.

use serde_json::{Map, Value};

use super::{
    LoadTemplate, TextProblem,
    conversation::{self, is_empty, kind, message},
};
use crate::ChatTemplate;

/// What is wrong with a record.
pub(super) type Problem = (TextProblem, String);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Text(&'static str),
    Chat(&'static str),
    Instruction,
    Completion,
}

const FORMS: [Form; 7] = [
    Form::Text("text"),
    Form::Chat("messages"),
    Form::Chat("conversations"),
    Form::Chat("conversation"),
    Form::Instruction,
    Form::Completion,
    Form::Text("content"),
];
const INPUTS: [&str; 2] = ["input", "context"];
const OUTPUTS: [&str; 2] = ["output", "response"];
/// Fields that belong to messages and instructions where they are there.
const BESIDE: [&str; 3] = ["system", "tools", "history"];
const KNOWN: &str =
    "known are text, messages, conversations, instruction with output, prompt with completion, content";

impl Form {
    /// Whether a record with such fields has this form; `holds(name, list)` says whether a field holds a text (or, if
    /// `list`, a list).
    fn fits(self, holds: &dyn Fn(&str, bool) -> bool) -> bool {
        match self {
            Form::Text(name) => holds(name, false),
            Form::Chat(name) => holds(name, true),
            Form::Instruction => holds("instruction", false) && OUTPUTS.iter().any(|o| holds(o, false)),
            Form::Completion => {
                [false, true].iter().any(|list| holds("prompt", *list) && holds("completion", *list))
            }
        }
    }

    fn columns(self) -> Vec<&'static str> {
        match self {
            Form::Text(name) => vec![name],
            Form::Chat(name) => [name].into_iter().chain(BESIDE).collect(),
            Form::Instruction => {
                ["instruction"].into_iter().chain(INPUTS).chain(OUTPUTS).chain(BESIDE).collect()
            }
            Form::Completion => ["prompt", "completion"].into_iter().chain(BESIDE).collect(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Form::Text(name) | Form::Chat(name) => name,
            Form::Instruction => "instruction and output",
            Form::Completion => "prompt and completion",
        }
    }
}

pub(super) struct Records<'a> {
    field: Option<String>,
    load: LoadTemplate<'a>,
    /// The template, once it was asked for.
    template: Option<Option<ChatTemplate>>,
    /// What texts were taken from.
    used: Vec<String>,
    /// What they could have been taken from.
    others: Vec<&'static str>,
    templated: bool,
    skipped: usize,
}

impl<'a> Records<'a> {
    pub fn new(field: Option<String>, load: LoadTemplate<'a>) -> Self {
        Self {
            field,
            load,
            template: None,
            used: Vec::new(),
            others: Vec::new(),
            templated: false,
            skipped: 0,
        }
    }

    pub fn is_templated(&self) -> bool {
        self.templated
    }

    pub fn describe(&self, field: &str) -> Option<String> {
        let mut text = match self.used.as_slice() {
            [] => return None,
            used => format!("{field} {}", used.join(" or ")),
        };
        if self.templated {
            text += ", through the model's chat template";
        }
        if !self.others.is_empty() {
            text += &format!(" (there is {} as well)", self.others.join(", "));
        }
        if self.skipped > 0 {
            text += &format!("; {} without a text left out", self.skipped);
        }
        Some(text)
    }

    /// Columns of a table that are needed. `holds(name, list)`: whether there is a column of texts (lists) of that name.
    pub fn columns(
        &mut self,
        names: &[&str],
        holds: &dyn Fn(&str, bool) -> bool,
    ) -> Result<Vec<String>, Problem> {
        let wanted: Vec<String> = match &self.field {
            Some(field) if names.contains(&field.as_str()) => {
                [field.as_str()].into_iter().chain(BESIDE).map(str::to_owned).collect()
            }
            Some(field) => {
                return Err((
                    TextProblem::Field,
                    format!("there is no column {field:?} (columns: {})", names.join(", ")),
                ));
            }
            None => {
                let Some(form) = self.choose(holds) else {
                    let reason = match names.iter().find(|name| FORMS.iter().any(|f| f.name() == **name)) {
                        Some(name) => format!("the column {name:?} does not hold what its name says"),
                        None => format!(
                            "no column of a known name holds a text (columns: {}; {KNOWN})",
                            names.join(", ")
                        ),
                    };
                    return Err((TextProblem::Field, reason));
                };
                form.columns().into_iter().map(str::to_owned).collect()
            }
        };
        Ok(wanted.into_iter().filter(|w| names.contains(&w.as_str())).collect())
    }

    /// The first form that fits; keeps the others in mind.
    fn choose(&mut self, holds: &dyn Fn(&str, bool) -> bool) -> Option<Form> {
        let mut fitting = FORMS.into_iter().filter(|form| form.fits(holds));
        let first = fitting.next()?;
        for other in fitting {
            if !self.others.contains(&other.name()) {
                self.others.push(other.name());
            }
        }
        Some(first)
    }

    /// The text of a record, `None` if it has none.
    pub fn text(&mut self, value: Value) -> Result<Option<String>, Problem> {
        let record = match value {
            Value::String(text) => {
                self.use_(String::from("of each text itself"));
                return Ok(Some(text));
            }
            Value::Null => {
                self.skipped += 1;
                return Ok(None);
            }
            Value::Object(record) => record,
            other => {
                let reason = format!("{} where a text, or an object with one, is expected", kind(&other));
                return Err((TextProblem::NotJson, reason));
            }
        };
        let names = || record.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        if let Some(field) = self.field.clone() {
            return match record.get(&field) {
                None => Err((TextProblem::Field, format!("it has no field {field:?} (fields: {})", names()))),
                Some(Value::Null) => self.text(Value::Null),
                Some(Value::String(text)) => {
                    self.use_(format!("{field:?}"));
                    Ok(Some(text.clone()))
                }
                Some(Value::Array(list)) => {
                    self.use_(format!("{field:?}"));
                    self.chat(&record, list)
                        .map(Some)
                        .map_err(|(p, reason)| (p, format!("{field:?}: {reason}")))
                }
                Some(other) => Err((TextProblem::Field, format!("{field:?} is {}, not a text", kind(other)))),
            };
        }
        let holds = |name: &str, list: bool| match record.get(name) {
            Some(Value::String(_)) => !list,
            Some(Value::Array(_)) => list,
            _ => false,
        };
        let Some(form) = self.choose(&holds) else {
            // All that is known of it is null.
            let null = |form: &Form| form.fits(&|name, _| record.get(name).is_some_and(Value::is_null));
            if FORMS.iter().any(null) {
                return self.text(Value::Null);
            }
            let wrong = record.iter().find(|(name, _)| FORMS.iter().any(|f| f.name() == name.as_str()));
            let reason = match wrong {
                Some((name, value)) => format!("{name:?} is {}", kind(value)),
                None => format!("no field of a known name holds a text (fields: {}; {KNOWN})", names()),
            };
            return Err((TextProblem::Field, reason));
        };
        self.use_(quoted(form, &record));
        self.form(form, &record).map(Some)
    }

    fn use_(&mut self, what: String) {
        if !self.used.contains(&what) {
            self.used.push(what);
        }
    }

    fn form(&mut self, form: Form, record: &Map<String, Value>) -> Result<String, Problem> {
        let text = |names: &[&str]| names.iter().find_map(|n| record.get(*n)?.as_str()).unwrap_or_default();
        match form {
            Form::Text(name) => Ok(text(&[name]).to_owned()),
            Form::Chat(name) => {
                let list = record[name].as_array().map_or(&[][..], Vec::as_slice);
                self.chat(record, list).map_err(|(p, reason)| (p, format!("{name:?}: {reason}")))
            }
            Form::Instruction => {
                let (question, input, answer) = (text(&["instruction"]), text(&INPUTS), text(&OUTPUTS));
                if self.template()?.is_none() {
                    if record.get("history").is_some_and(|h| !is_empty(h)) {
                        return Err((TextProblem::Content, NO_TEMPLATE.replace("{}", "\"history\"")));
                    }
                    return Ok(alpaca(text(&["system"]), question, input, answer));
                }
                let mut messages = history(record)?;
                let question =
                    if input.is_empty() { question.to_owned() } else { format!("{question}\n{input}") };
                messages.extend([message("user", &question), message("assistant", answer)]);
                self.render(record, messages)
            }
            Form::Completion => match (&record["prompt"], &record["completion"]) {
                (Value::Array(prompt), Value::Array(completion)) => {
                    self.chat(record, &[prompt.as_slice(), completion].concat())
                }
                _ => Ok(format!("{}{}", text(&["prompt"]), text(&["completion"]))),
            },
        }
    }

    fn chat(&mut self, record: &Map<String, Value>, list: &[Value]) -> Result<String, Problem> {
        let messages = conversation::messages(list).map_err(|reason| (TextProblem::Field, reason))?;
        self.render(record, messages)
    }

    /// Messages through the chat template, with the system message that a record has apart from them.
    fn render(&mut self, record: &Map<String, Value>, mut messages: Vec<Value>) -> Result<String, Problem> {
        if let Some(system) = record.get("system").and_then(Value::as_str).filter(|s| !s.is_empty())
            && messages.first().is_none_or(|m| m["role"] != "system")
        {
            messages.insert(0, message("system", system));
        }
        let mut variables = Map::new();
        // An empty list is a list: templates may tell it from none.
        match record.get("tools") {
            None | Some(Value::Null) => {}
            Some(Value::String(blank)) if blank.trim().is_empty() => {}
            // Where columns have one type, definitions of tools are JSON in a text.
            Some(Value::String(json)) => {
                let tools = serde_json::from_str(json)
                    .map_err(|e| (TextProblem::Field, format!("\"tools\" is no JSON: {e}")))?;
                variables.insert("tools".into(), tools);
            }
            Some(tools) => {
                variables.insert("tools".into(), tools.clone());
            }
        }
        self.templated = true;
        match self.template()? {
            Some(template) => {
                let rendered = conversation::render(template, &messages, false, &variables);
                rendered.map_err(|e| (TextProblem::Content, e.to_string()))
            }
            None => Err((TextProblem::Content, NO_TEMPLATE.replace("{}", "messages"))),
        }
    }

    fn template(&mut self) -> Result<Option<&ChatTemplate>, Problem> {
        if self.template.is_none() {
            self.template = Some((self.load)().map_err(|e| (TextProblem::Content, e.to_string()))?);
        }
        Ok(self.template.as_ref().and_then(Option::as_ref))
    }
}

const NO_TEMPLATE: &str = "the model has no chat template for {}; give records with a \"text\"";

/// Earlier questions and answers: pairs of texts.
fn history(record: &Map<String, Value>) -> Result<Vec<Value>, Problem> {
    let mut messages = Vec::new();
    for turn in record.get("history").and_then(Value::as_array).into_iter().flatten() {
        let pair = turn.as_array().map(|t| t.iter().map(Value::as_str).collect::<Vec<_>>());
        match pair.as_deref() {
            Some([Some(question), Some(answer)]) => {
                messages.extend([message("user", question), message("assistant", answer)]);
            }
            _ => return Err((TextProblem::Field, "\"history\" does not consist of pairs of texts".into())),
        }
    }
    Ok(messages)
}

/// The prompt that Stanford's Alpaca was trained with, and the answer.
fn alpaca(system: &str, instruction: &str, input: &str, output: &str) -> String {
    let system = if system.is_empty() { String::new() } else { format!("{system}\n\n") };
    let (context, input) = match input {
        "" => ("", String::new()),
        input => (", paired with an input that provides further context", format!("### Input:\n{input}\n\n")),
    };
    format!(
        "{system}Below is an instruction that describes a task{context}. Write a response that appropriately \
         completes the request.\n\n### Instruction:\n{instruction}\n\n{input}### Response:\n{output}"
    )
}

/// The names of the fields that a form takes its text from.
fn quoted(form: Form, record: &Map<String, Value>) -> String {
    let names = match form {
        Form::Text(name) | Form::Chat(name) => vec![name],
        _ => form.columns().into_iter().filter(|c| record.get(*c).is_some_and(|v| !is_empty(v))).collect(),
    };
    names.iter().map(|n| format!("{n:?}")).collect::<Vec<_>>().join(", ")
}
