//! Documents of a task: lines of JSON with the fields that the hub's data sets have, and what is asked of the model.

use std::path::{Path, PathBuf};

use qqq_model::chat::{capitalize, is_space};
use serde_json::Value;

use super::definitions::{Answer, Choices, Form, TASKS, Task};
use crate::{EvalError, Result};

/// What stands between a context and its continuation.
const DELIMITER: &str = " ";

/// A question: for each choice what is given, and what is to follow.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// Its line in the file, from 1.
    pub line: usize,
    /// Of each choice.
    pub requests: Vec<TextRequest>,
    /// Characters of each choice, by which log-likelihoods are normalized.
    pub lengths: Vec<usize>,
    /// Index of the right choice.
    pub target: usize,
}

/// A text, and what is to follow it.
#[derive(Clone, Debug, PartialEq)]
pub struct TextRequest {
    /// Given.
    pub context: String,
    /// Scored; begins with the delimiter.
    pub continuation: String,
}

/// Documents of one file.
#[derive(Clone, Debug)]
pub struct Documents {
    /// Whose they are.
    pub task: &'static Task,
    /// The file.
    pub path: PathBuf,
    /// In the order of the file.
    pub documents: Vec<Document>,
}

impl Documents {
    /// The first `limit` of a file's lines, whose text is given; empty lines are passed over.
    ///
    /// # Errors
    /// A line that is no JSON object, or lacks a field of the task, or has one that makes no sense: with file, line and field;
    /// a file without documents.
    pub fn parse(task: &'static Task, path: &Path, text: &str, limit: usize) -> Result<Self> {
        let error = |line, reason| EvalError::Document { path: path.to_owned(), line, reason };
        let mut documents = Vec::new();
        let lines = text.trim_start_matches('\u{feff}').lines().enumerate();
        for (line, text) in lines.filter(|(_, text)| !text.trim().is_empty()).take(limit) {
            let line = line + 1;
            let value: Value = serde_json::from_str(text)
                .map_err(|e| error(Some(line), format!("it is no line of JSON: {e}")))?;
            if !value.is_object() {
                return Err(error(Some(line), "it is no JSON object".into()));
            }
            let document = read(task, line, &value).map_err(|reason| {
                let other = TASKS.iter().find(|other| {
                    other.fields() != task.fields()
                        && other.fields().iter().all(|f| field(&value, f).is_some())
                });
                let lacks = task.fields().iter().any(|f| field(&value, f).is_none());
                let hint =
                    other.filter(|_| lacks).map(|other| format!("; it is a document of {}", other.name));
                error(Some(line), format!("{reason}{}", hint.unwrap_or_default()))
            })?;
            documents.push(document);
        }
        if documents.is_empty() {
            return Err(error(None, format!("it has no documents of {}", task.name)));
        }
        Ok(Self { task, path: path.to_owned(), documents })
    }
}

/// A field by its path.
fn field<'v>(document: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').try_fold(document, |value, name| value.get(name))
}

fn needed<'v>(document: &'v Value, path: &str) -> Result<&'v Value, String> {
    field(document, path).ok_or_else(|| format!("the field {path:?} is missing"))
}

fn text<'v>(document: &'v Value, path: &str) -> Result<&'v str, String> {
    needed(document, path)?.as_str().ok_or_else(|| format!("the field {path:?} is no text"))
}

fn texts(document: &Value, path: &str) -> Result<Vec<String>, String> {
    let list = needed(document, path)?.as_array();
    list.and_then(|list| list.iter().map(|v| v.as_str().map(str::to_owned)).collect())
        .ok_or_else(|| format!("the field {path:?} is no list of texts"))
}

/// A number, or a text of digits.
fn number(document: &Value, path: &str) -> Result<usize, String> {
    let value = needed(document, path)?;
    let number = value.as_u64().or_else(|| value.as_str()?.parse().ok());
    number
        .and_then(|n| usize::try_from(n).ok())
        .ok_or_else(|| format!("the field {path:?} is {value}, not the number of a choice"))
}

fn read(task: &Task, line: usize, document: &Value) -> Result<Document, String> {
    let within = |path: &str, target: usize, choices: usize| {
        if target < choices {
            return Ok(target);
        }
        Err(format!("the field {path:?} names none of the {choices} choices"))
    };
    match &task.form {
        Form::Choices { prompt, choices, answer, clean } => {
            let tidy = |text: String| if *clean { without_marks(&text) } else { text };
            let context = tidy(filled(prompt, document)?);
            let choices = match choices {
                Choices::Fields(names) => names
                    .iter()
                    .map(|name| text(document, name).map(str::to_owned))
                    .collect::<Result<_, _>>()?,
                Choices::List(name) => texts(document, name)?,
            };
            let choices: Vec<String> = choices.into_iter().map(tidy).collect();
            let target = match answer {
                Answer::Number(name) => within(name, number(document, name)?, choices.len())?,
                Answer::Label { key, labels } => {
                    let label = text(document, key)?;
                    let position = texts(document, labels)?.iter().position(|l| l == label);
                    within(key, position.unwrap_or(usize::MAX), choices.len())?
                }
            };
            let requests = choices.iter().map(|choice| TextRequest {
                context: context.clone(),
                continuation: format!("{DELIMITER}{choice}"),
            });
            Ok(Document {
                line,
                requests: requests.collect(),
                lengths: choices.iter().map(|choice| choice.chars().count()).collect(),
                target,
            })
        }
        Form::Blank { sentence, options, answer } => {
            let (before, behind) = text(document, sentence)?
                .split_once('_')
                .ok_or_else(|| format!("the field {sentence:?} has no blank (_)"))?;
            let continuation = format!("{DELIMITER}{}", behind.trim_matches(is_space));
            let contexts = options
                .iter()
                .map(|option| Ok(format!("{before}{}", text(document, option)?)))
                .collect::<Result<Vec<_>, String>>()?;
            let target = within(answer, number(document, answer)?.wrapping_sub(1), contexts.len())?;
            // The harness counts what stands before the blank, filled; no metric of such a task depends on it.
            let lengths = contexts.iter().map(|context| context.chars().count()).collect();
            let request = |context| TextRequest { context, continuation: continuation.clone() };
            Ok(Document { line, requests: contexts.into_iter().map(request).collect(), lengths, target })
        }
    }
}

/// A prompt with the document's fields.
fn filled(prompt: &str, document: &Value) -> Result<String, String> {
    let mut parts = prompt.split('{');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once('}').unwrap_or((part, ""));
        match name.split_once('|') {
            Some((name, _capitalize)) => out += &capitalize(text(document, name)?),
            None => out += text(document, name)?,
        }
        out += rest;
    }
    Ok(out)
}

/// WikiHow's part of HellaSwag has titles and other marks in brackets: a title begins a sentence, the others go.
fn without_marks(text: &str) -> String {
    let text = text.trim_matches(is_space).replace(" [title]", ". ");
    let mut out = String::new();
    let mut rest = text.as_str();
    while let Some(open) = rest.find('[') {
        out += &rest[..open];
        let marked = &rest[open..];
        // A mark ends on its line, or is none.
        match marked.find([']', '\n']) {
            Some(end) if marked.as_bytes()[end] == b']' => rest = &marked[end + 1..],
            _ => {
                out.push('[');
                rest = &marked[1..];
            }
        }
    }
    (out + rest).replace("  ", " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(task: &str, text: &str) -> Result<Documents> {
        Documents::parse(Task::named(task).unwrap(), Path::new("set.jsonl"), text, usize::MAX)
    }

    #[test]
    fn marks_go() {
        assert_eq!(without_marks(" How to [title] Boil it. [step] Take  a pan [of] water [now\n"), {
            "How to. Boil it. Take a pan water [now"
        });
        assert_eq!(without_marks("a [b\nc] d"), "a [b\nc] d");
    }

    #[test]
    fn a_blank_is_filled_and_what_follows_is_scored() {
        let line = r#"{"sentence": "The cup fell off the shelf since _ was loose. ", "option1": "the cup", "option2": "the shelf", "answer": "2"}"#;
        let found = &parse("winogrande", line).unwrap().documents[0];
        assert_eq!(found.target, 1);
        assert_eq!(found.requests[0].context, "The cup fell off the shelf since the cup");
        assert!(found.requests.iter().all(|r| r.continuation == " was loose."));
    }

    #[test]
    fn labels_name_choices() {
        let line = r#"{"question": "What melts?", "choices": {"text": ["ice", "stone"], "label": ["1", "2"]}, "answerKey": "2"}"#;
        let found = &parse("arc_easy", line).unwrap().documents[0];
        assert_eq!((found.target, found.lengths.as_slice()), (1, [3, 5].as_slice()));
        assert_eq!(found.requests[1].context, "Question: What melts?\nAnswer:");
        assert_eq!(found.requests[1].continuation, " stone");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let piqa = r#"{"goal": "g", "sol1": "a", "sol2": "b", "label": 1}"#;
        for (task, text, says) in [
            (
                "piqa",
                format!("{piqa}\n\n{{\"goal\": \"g\"}}"),
                "set.jsonl, line 3: the field \"sol1\" is missing",
            ),
            ("arc_easy", piqa.into(), "the field \"question\" is missing; it is a document of piqa"),
            ("piqa", piqa.replace("1}", "2}"), "the field \"label\" names none of the 2 choices"),
            (
                "piqa",
                piqa.replace("1}", "\"x\"}"),
                "the field \"label\" is \"x\", not the number of a choice",
            ),
            ("piqa", "{".into(), "line 1: it is no line of JSON"),
            ("piqa", "[]".into(), "no JSON object"),
            ("piqa", "\n".into(), "set.jsonl: it has no documents of piqa"),
            (
                "winogrande",
                r#"{"sentence": "s", "option1": "", "option2": "", "answer": "1"}"#.into(),
                "no blank",
            ),
        ] {
            let error = parse(task, &text).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
