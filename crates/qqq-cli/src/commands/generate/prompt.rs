//! Prompts: where they come from, and their tokens.

use std::path::Path;

use anyhow::Context;
use qqq_backend::Backend;
use qqq_model::{
    ChatTemplate, Message, ModelError, TextOptions, TextReader, Tokenizer,
    text::{self, TextError, TextFormat, TextProblem},
};
use serde_json::{Map, Value};

use crate::{
    errors::{bad_input, bad_input_hint},
    model::LoadedModel,
};

/// What standard input is called in messages.
pub const STDIN: &str = "standard input";

/// The text of a file, "-" for standard input: one of any form of plain text, without the end of its last line, which
/// whatever wrote it has put there.
pub fn read(path: &Path) -> anyhow::Result<String> {
    let is_stdin = path == Path::new("-");
    let text = match from(path, is_stdin) {
        // Nothing was piped: whoever asked for the prompt says what is missing.
        Err(ModelError::Text(TextError { problem: TextProblem::Blank, .. })) if is_stdin => Ok(String::new()),
        text => text,
    };
    text.map(without_line_end).context("cannot read the prompt")
}

fn from(path: &Path, is_stdin: bool) -> Result<String, ModelError> {
    let options = TextOptions { format: TextFormat::Plain, field: None };
    let mut reader = match is_stdin {
        true => TextReader::stream(STDIN, std::io::stdin().lock(), &options, Box::new(|| Ok(None)))?,
        false => TextReader::open(path, &options, Box::new(|| Ok(None)))?,
    };
    let mut text = String::new();
    while let Some(piece) = reader.next_piece()? {
        text += &piece;
    }
    Ok(text)
}

/// Without one line end: more of them are the text's own.
fn without_line_end(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    text
}

/// Makes tokens of prompts.
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    /// Positions of the model.
    context: usize,
    name: &'a str,
    template: Option<ChatTemplate>,
    system: Option<&'a str>,
}

impl<'a> Encoder<'a> {
    /// For the model called `name`. `raw`: without the chat template; `insist`: not without one.
    pub fn new<B: Backend>(
        model: &'a LoadedModel<B>,
        name: &'a str,
        raw: bool,
        insist: bool,
        system: Option<&'a str>,
    ) -> anyhow::Result<Self> {
        let template = if raw { None } else { ChatTemplate::load(&model.checkpoint, &model.tokenizer)? };
        if template.is_none() && (insist || system.is_some()) {
            return Err(bad_input_hint(
                format!("{name} has no chat template"),
                "use --raw, and write the prompt as the model expects it",
            ));
        }
        let context = model.decoder.config.max_position_embeddings;
        Ok(Self { tokenizer: &model.tokenizer, context, name, template, system })
    }

    /// The tokens of a text: as a user's message, or as it is if there is no template.
    pub fn text(&self, prompt: &str) -> anyhow::Result<Vec<u32>> {
        let Some(template) = &self.template else {
            return self.checked(self.tokenizer.encode(prompt, true)?);
        };
        let message = |role: &str, text: &str| Message { role: role.into(), content: text.into() };
        let mut messages: Vec<_> = self.system.iter().map(|s| message("system", s)).collect();
        messages.push(message("user", prompt));
        self.rendered(&template.render(&messages, true)?)
    }

    /// The tokens of a conversation, with the system message before it unless it begins with one.
    pub fn messages(&self, list: &[Value], tools: Option<&Value>) -> anyhow::Result<Vec<u32>> {
        let Some(template) = &self.template else {
            return Err(bad_input_hint(
                format!("there are messages, but {} is used without a chat template", self.name),
                "leave --raw out, or give prompts if the model has none",
            ));
        };
        let mut messages = text::messages(list).map_err(bad_input)?;
        if let Some(system) = self.system
            && messages.first().is_none_or(|m| m["role"] != "system")
        {
            messages.insert(0, serde_json::json!({ "role": "system", "content": system }));
        }
        let variables: Map<_, _> =
            tools.map(|tools| ("tools".to_owned(), tools.clone())).into_iter().collect();
        self.rendered(&text::render(template, &messages, true, &variables)?)
    }

    /// Templates spell special tokens out.
    fn rendered(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        self.checked(self.tokenizer.encode(text, false)?)
    }

    fn checked(&self, ids: Vec<u32>) -> anyhow::Result<Vec<u32>> {
        let context = self.context;
        match ids.len() {
            0 => Err(bad_input("the prompt has no tokens")),
            n if n >= context => Err(bad_input(format!(
                "the prompt has {n} tokens; the model's context of {context} leaves no room for an answer"
            ))),
            _ => Ok(ids),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_end_is_taken_away() {
        for (text, left) in [
            ("a", "a"),
            ("a\n", "a"),
            ("a\r\n", "a"),
            ("a\n\n", "a\n"),
            ("a\r\n\r\n", "a\r\n"),
            ("a\r", "a\r"),
            ("\n", ""),
        ] {
            assert_eq!(without_line_end(text.into()), left, "{text:?}");
        }
    }
}
