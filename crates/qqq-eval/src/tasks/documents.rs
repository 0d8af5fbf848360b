//! Documents of a task: records with the fields that the hub's data sets have, and what is asked of the model.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use qqq_model::{
    chat::{capitalize, is_space},
    text::RowReader,
};
use serde_json::Value;

use super::{
    definitions::{Answer, Choices, Form, SUBJECT, TASKS, Task},
    prompts::{Prompt, Turn},
};
use crate::{EvalError, Result};

/// Records of the files of a split, in their order.
#[derive(Clone, Debug, Default)]
pub struct Records {
    /// The files.
    pub paths: Vec<PathBuf>,
    pub(super) rows: Vec<Record>,
}

/// A record, and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Record {
    /// Index of the file.
    pub file: usize,
    /// Line or row in it, from 1.
    pub line: usize,
    pub value: Value,
}

impl Records {
    /// All records of files.
    ///
    /// # Errors
    /// A file that cannot be read, or holds no records.
    pub fn read(paths: Vec<PathBuf>) -> Result<Self> {
        let mut rows = Vec::new();
        for (file, path) in paths.iter().enumerate() {
            let mut reader = RowReader::open(path)?;
            while let Some((line, value)) = reader.next_row()? {
                rows.push(Record { file, line, value });
            }
        }
        Ok(Self { paths, rows })
    }

    /// Those of a text, which errors call `path`.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn of_text(path: &Path, text: &str) -> Result<Self> {
        let mut reader = RowReader::of_text(path, text)?;
        let mut rows = Vec::new();
        while let Some((line, value)) = reader.next_row()? {
            rows.push(Record { file: 0, line, value });
        }
        Ok(Self { paths: vec![path.to_owned()], rows })
    }

    /// Those of a task's subject.
    ///
    /// # Errors
    /// A record that does not say what its subject is, where it has to.
    pub(super) fn of_task(&self, task: &Task) -> Result<Vec<&Record>> {
        let Some(subject) = task.subject else { return Ok(self.rows.iter().collect()) };
        let mut own = Vec::new();
        for record in &self.rows {
            match text(&record.value, SUBJECT) {
                Ok(named) if named == subject => own.push(record),
                Ok(_) => {}
                Err(reason) => return Err(self.error(record, reason)),
            }
        }
        Ok(own)
    }

    /// What is asked by one of the records.
    ///
    /// # Errors
    /// A field that is missing or makes no sense; another task whose document it seems to be.
    pub(super) fn question(&self, task: &Task, record: &Record) -> Result<Question> {
        let Record { value, .. } = record;
        if !value.is_object() {
            return Err(self.error(record, "it is no JSON object".into()));
        }
        read(task, value).map_err(|reason| {
            let has_all = |other: &&Task| {
                other.fields() != task.fields() && other.fields().iter().all(|f| field(value, f).is_some())
            };
            let lacks = task.fields().iter().any(|f| field(value, f).is_none());
            let other = TASKS.iter().filter(|_| lacks).find(has_all);
            let hint = other.map(|other| format!("; it is a document of {}", other.file));
            self.error(record, format!("{reason}{}", hint.unwrap_or_default()))
        })
    }

    fn error(&self, record: &Record, reason: String) -> EvalError {
        EvalError::Document { path: self.paths[record.file].clone(), line: Some(record.line), reason }
    }
}

/// A question: for each choice what is given, and what is to follow.
#[derive(Clone, Debug)]
pub struct Document {
    /// Index of its file.
    pub file: usize,
    /// Its line or row there, from 1.
    pub line: usize,
    /// Of each choice.
    pub requests: Vec<TextRequest>,
    /// Characters of each choice, by which log-likelihoods are normalized.
    pub lengths: Vec<usize>,
    /// Index of the right choice.
    pub target: usize,
    pub(super) question: Question,
    /// Indices of the examples that come before it.
    pub(super) shots: Vec<usize>,
    pub(super) record: Value,
}

/// A text, and what is to follow it.
#[derive(Clone, Debug, PartialEq)]
pub struct TextRequest {
    /// Given; choices mostly share it.
    pub context: Arc<str>,
    /// Scored; begins with the delimiter.
    pub continuation: String,
}

/// What a document asks, before it becomes a prompt.
#[derive(Clone, Debug)]
pub(super) struct Question {
    /// One, or one for each choice.
    pub contexts: Vec<String>,
    /// One for each choice, or one for all.
    pub answers: Vec<String>,
    pub lengths: Vec<usize>,
    pub target: usize,
}

impl Question {
    /// What the context of a choice is, and its continuation.
    pub fn choice(&self, i: usize) -> (&str, &str) {
        let of = |texts: &'_ [String]| if texts.len() == 1 { 0 } else { i };
        (&self.contexts[of(&self.contexts)], &self.answers[of(&self.answers)])
    }
}

/// Documents of one task.
#[derive(Clone, Debug)]
pub struct Documents {
    /// Whose they are.
    pub task: &'static Task,
    /// Their files.
    pub paths: Vec<PathBuf>,
    /// In the order of the files.
    pub documents: Vec<Document>,
    /// How many examples come before each of them.
    pub shots: usize,
    /// Whether the chat template refuses a system message, so that there is none: no description, and what was to be one.
    pub without_system: bool,
    /// Of documents that are examples: question and answer.
    pub(super) examples: Vec<Turn>,
}

impl Documents {
    /// The first `limit` of a text's records, which errors call `path`; without examples and chat template.
    ///
    /// # Errors
    /// A line that is no JSON object, or lacks a field of the task, or has one that makes no sense: with file, line and field;
    /// a file without documents.
    pub fn parse(task: &'static Task, path: &Path, text: &str, limit: usize) -> Result<Self> {
        Self::new(task, &Records::of_text(path, text)?, limit)
    }

    /// The first `limit` of the records of a task; without examples and chat template.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn new(task: &'static Task, records: &Records, limit: usize) -> Result<Self> {
        let of_record = |record: &Record| {
            let question = records.question(task, record)?;
            Ok(Document {
                file: record.file,
                line: record.line,
                requests: Vec::new(),
                lengths: question.lengths.clone(),
                target: question.target,
                question,
                shots: Vec::new(),
                record: record.value.clone(),
            })
        };
        let own = records.of_task(task)?;
        let documents = own.into_iter().take(limit).map(of_record).collect::<Result<Vec<_>>>()?;
        if documents.is_empty() {
            let path = records.paths.first().cloned().unwrap_or_default();
            let reason = format!("it has no documents of {}", task.name);
            return Err(EvalError::Document { path, line: None, reason });
        }
        let paths = records.paths.clone();
        let bare = Self { task, paths, documents, shots: 0, without_system: false, examples: Vec::new() };
        bare.prompted(&Prompt::default())
    }

    /// Where a document stands.
    pub fn path_of(&self, document: &Document) -> &Path {
        &self.paths[document.file]
    }
}

/// A field by its path.
fn field<'v>(document: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').try_fold(document, |value, name| match value {
        Value::Array(list) => list.get(name.parse::<usize>().ok()?),
        _ => value.get(name),
    })
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

fn read(task: &Task, document: &Value) -> Result<Question, String> {
    let within = |path: &str, target: usize, choices: usize| {
        if target < choices {
            return Ok(target);
        }
        Err(format!("the field {path:?} names none of the {choices} choices"))
    };
    let characters = |texts: &[String]| texts.iter().map(|text| text.chars().count()).collect();
    match &task.form {
        Form::Choices { prompt, choices, answer, clean } => {
            let tidy = |text: String| if *clean { without_marks(&text) } else { text };
            let context = tidy(filled(prompt, document)?);
            let choices: Vec<String> = match choices {
                Choices::Fields(names) => names
                    .iter()
                    .map(|name| text(document, name).map(str::to_owned))
                    .collect::<Result<_, _>>()?,
                Choices::List(name) => texts(document, name)?,
                Choices::Fixed(texts) => texts.iter().map(|&text| text.to_owned()).collect(),
            };
            let answers: Vec<String> = choices.into_iter().map(tidy).collect();
            let target = match answer {
                Answer::Number(name) => within(name, number(document, name)?, answers.len())?,
                Answer::Label { key, labels } => {
                    let label = text(document, key)?;
                    let position = texts(document, labels)?.iter().position(|l| l == label);
                    within(key, position.unwrap_or(usize::MAX), answers.len())?
                }
            };
            Ok(Question { contexts: vec![context], lengths: characters(&answers), answers, target })
        }
        Form::Blank { sentence, options, answer } => {
            let (before, behind) = text(document, sentence)?
                .split_once('_')
                .ok_or_else(|| format!("the field {sentence:?} has no blank (_)"))?;
            let contexts = options
                .iter()
                .map(|option| Ok(format!("{before}{}", text(document, option)?)))
                .collect::<Result<Vec<_>, String>>()?;
            let target = within(answer, number(document, answer)?.wrapping_sub(1), contexts.len())?;
            let answers = vec![behind.trim_matches(is_space).to_owned()];
            // The harness counts what stands before the blank, filled; no metric of such a task depends on it.
            Ok(Question { lengths: characters(&contexts), contexts, answers, target })
        }
        Form::LastWord { text: field } => {
            let all = text(document, field)?;
            let (context, word) = all.rsplit_once(' ').unwrap_or(("", all));
            // The blank is the answer's own.
            let answers = vec![format!(" {word}")];
            Ok(Question {
                contexts: vec![context.to_owned()],
                lengths: characters(&answers),
                answers,
                target: 0,
            })
        }
    }
}

/// A prompt with the document's fields.
fn filled(prompt: &str, document: &Value) -> Result<String, String> {
    let mut parts = prompt.split('{');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once('}').unwrap_or((part, ""));
        let (name, method) = name.split_once('|').unwrap_or((name, ""));
        let text = text(document, name)?;
        match method {
            "capitalize" => out += &capitalize(text),
            "strip" => out += text.trim_matches(is_space),
            _ => out += text,
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
        assert_eq!(&*found.requests[0].context, "The cup fell off the shelf since the cup");
        assert!(found.requests.iter().all(|r| r.continuation == " was loose."));
    }

    #[test]
    fn labels_name_choices() {
        let line = r#"{"question": "What melts?", "choices": {"text": ["ice", "stone"], "label": ["1", "2"]}, "answerKey": "2"}"#;
        let found = &parse("arc_easy", line).unwrap().documents[0];
        assert_eq!((found.target, found.lengths.as_slice()), (1, [3, 5].as_slice()));
        assert_eq!(&*found.requests[1].context, "Question: What melts?\nAnswer:");
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
            ("piqa", "{".into(), "set.jsonl, line 1: it is not valid JSON"),
            ("piqa", "[1]".into(), "no JSON object"),
            ("piqa", "hello".into(), "set.jsonl, line 1: its name says JSON"),
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
