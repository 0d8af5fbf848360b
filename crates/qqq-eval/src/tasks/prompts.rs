//! What stands around a question: a description, examples with their answers, turns of a conversation; as
//! lm-evaluation-harness 0.4.13 puts them together.

use std::{collections::HashMap, sync::Arc};

use qqq_model::{ChatTemplate, Message, chat::is_space};

use super::{
    Document, Documents, Records, ShotChoice, TextRequest,
    definitions::Form,
    documents::{Question, Record},
    python_random::PythonRandom,
};
use crate::{EvalError, Result};

/// Between a question and its answer.
const DELIMITER: &str = " ";
/// Between examples.
const BETWEEN: &str = "\n\n";
/// The harness's own for examples, if it is not given another.
const SEED: u32 = 1234;

/// What questions are wrapped into.
#[derive(Clone, Copy, Default)]
pub struct Prompt<'a> {
    /// Comes first, before a description of the task.
    pub system: Option<&'a str>,
    /// The template that makes a conversation of it; without one it is one text.
    pub chat: Option<&'a ChatTemplate>,
    /// Whether examples are turns of the conversation of their own, not part of the question's.
    pub multiturn: bool,
}

/// An example: a question and its answer.
#[derive(Clone, Debug)]
pub(super) struct Turn {
    question: String,
    /// An empty text is none, where it is what follows the question.
    answer: Option<String>,
}

impl Documents {
    /// With `count` examples before each question, from the records of the task's split of examples. They are those that the
    /// harness takes, if the documents are the first ones of their split.
    ///
    /// # Errors
    /// Fewer records than that takes; one that is no document of the task.
    pub fn with_shots(mut self, count: usize, records: &Records) -> Result<Self> {
        let pool = records.of_task(self.task)?;
        let drawn = self.draw(count, &pool).map_err(|needed| EvalError::Document {
            path: records.paths.first().cloned().unwrap_or_default(),
            line: None,
            reason: format!(
                "{count} examples for {} take {needed} documents, and it has {}",
                self.task.name,
                pool.len()
            ),
        })?;
        let mut known = HashMap::new();
        self.examples.clear();
        for (document, drawn) in self.documents.iter_mut().zip(drawn) {
            document.shots.clear();
            for place in drawn {
                let example = match known.get(&place) {
                    Some(&example) => example,
                    None => {
                        let question = records.question(self.task, pool[place])?;
                        self.examples.push(turn(&self.task.form, &question));
                        known.insert(place, self.examples.len() - 1);
                        self.examples.len() - 1
                    }
                };
                document.shots.push(example);
            }
        }
        self.shots = count;
        self.prompted(&Prompt::default())
    }

    /// Which of the records come before each document; else how many there would have to be.
    fn draw(&self, count: usize, pool: &[&Record]) -> Result<Vec<Vec<usize>>, usize> {
        let at_least = |needed: usize| if pool.len() < needed { Err(needed) } else { Ok(needed) };
        let but_itself = match self.task.shots.choice {
            ShotChoice::First => {
                let first: Vec<usize> = (0..at_least(count)?).collect();
                return Ok(vec![first; self.documents.len()]);
            }
            ShotChoice::Drawn { but_itself } => but_itself,
        };
        let drawn_at_once = at_least(count + usize::from(but_itself))?;
        let mut random = PythonRandom::new(SEED);
        let mut draw = |document: &Document| {
            let mut drawn = random.sample(pool.len(), drawn_at_once);
            if but_itself {
                drawn.retain(|&place| pool[place].value != document.record);
                drawn.truncate(count);
            }
            if drawn.len() < count {
                // It is there several times.
                let others: Vec<usize> =
                    (0..pool.len()).filter(|&place| pool[place].value != document.record).collect();
                if others.len() < count {
                    return Err(count + pool.len() - others.len());
                }
                drawn = random.sample(others.len(), count).into_iter().map(|i| others[i]).collect();
            }
            Ok(drawn)
        };
        self.documents.iter().map(&mut draw).collect()
    }

    /// As the model is to be asked.
    ///
    /// # Errors
    /// A chat template that refuses the messages.
    pub fn prompted(mut self, prompt: &Prompt<'_>) -> Result<Self> {
        let description = self.task.description();
        let system = joined(prompt.system.unwrap_or_default(), &description);
        // Where there is a template, it says what stands before an answer.
        let delimiter = match (&self.task.form, prompt.chat) {
            (Form::LastWord { .. }, _) | (_, Some(_)) => "",
            (_, None) => DELIMITER,
        };
        for document in &mut self.documents {
            let shots: Vec<&Turn> = document.shots.iter().map(|&shot| &self.examples[shot]).collect();
            let question = &document.question;
            let mut without_system = false;
            let contexts = question
                .contexts
                .iter()
                .map(|context| Ok(Arc::from(asked(&system, &shots, context, prompt, &mut without_system)?)))
                .collect::<Result<Vec<Arc<str>>>>()?;
            self.without_system |= without_system;
            let choices = contexts.len().max(question.answers.len());
            document.requests = (0..choices)
                .map(|i| TextRequest {
                    context: Arc::clone(&contexts[if contexts.len() == 1 { 0 } else { i }]),
                    continuation: format!("{delimiter}{}", question.choice(i).1),
                })
                .collect();
        }
        Ok(self)
    }
}

/// A document as an example.
fn turn(form: &Form, question: &Question) -> Turn {
    let (context, answer) = question.choice(question.target);
    // A choice may be empty; what follows a blank is nothing then.
    let is_answer = matches!(form, Form::Choices { .. }) || !answer.is_empty();
    Turn { question: context.to_owned(), answer: is_answer.then(|| answer.to_owned()) }
}

/// Two texts, with something between them if neither has white space there.
fn joined(first: &str, second: &str) -> String {
    let between = match (first.chars().last(), second.chars().next()) {
        (Some(last), Some(next)) if !is_space(last) && !is_space(next) => BETWEEN,
        _ => "",
    };
    format!("{first}{between}{second}")
}

/// What a model is given.
fn asked(
    system: &str,
    shots: &[&Turn],
    question: &str,
    prompt: &Prompt<'_>,
    without_system: &mut bool,
) -> Result<String> {
    // Each message with what follows it in a text.
    let mut turns: Vec<(&str, &str, &str)> = Vec::new();
    for Turn { question, answer } in shots {
        turns.push(("user", question, if answer.is_some() { DELIMITER } else { "" }));
        turns.extend(answer.as_deref().map(|answer| ("assistant", answer, BETWEEN)));
    }
    turns.push(("user", question, ""));
    let text = || turns.iter().flat_map(|(_, text, between)| [*text, *between]).collect::<String>();
    let Some(template) = prompt.chat else { return Ok(format!("{system}{}", text())) };
    let message = |role: &str, content: &str| Message { role: role.to_owned(), content: content.to_owned() };
    let mut messages: Vec<Message> = match prompt.multiturn {
        true => turns.iter().map(|(role, text, _)| message(role, text)).collect(),
        false => vec![message("user", &text())],
    };
    if !system.is_empty() {
        messages.insert(0, message("system", system));
    }
    match template.render(&messages, true) {
        // Some templates know no such role. The harness goes on without.
        Err(_) if messages[0].role == "system" => {
            *without_system = true;
            Ok(template.render(&messages[1..], true)?)
        }
        outcome => Ok(outcome?),
    }
}
