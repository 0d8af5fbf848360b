//! `qqq chat`.

use std::io::{BufRead, IsTerminal};

use qqq_backend::{CpuBackend, KvDType};
use qqq_engine::{GenerateOptions, Session};
use qqq_model::{ChatTemplate, Message, ModelError, tokenizer::TokenStream};

use super::generate::{Answer, statistics};
use crate::{
    console::Console,
    device::DeviceArgs,
    errors::{bad_input, bad_input_hint},
    interrupt::Guard,
    model::{self, HubArgs, LoadedModel},
    numbers,
    sampling::SamplingArgs,
};

const AFTER_HELP: &str = "\
Examples:
  qqq chat qwen-w4a8
  qqq chat Qwen/Qwen2.5-0.5B-Instruct --system \"Answer in one sentence.\" --temperature 0

A line is a message. /reset forgets the conversation, /system TEXT sets the system message (and forgets), /exit or \
Ctrl-D ends, Ctrl-C stops an answer. The KV cache is kept between turns, so only what is new is computed.";

/// Talk with a model
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct ChatArgs {
    /// Model: a directory, a .gguf file, or owner/name on the hub
    #[arg(value_name = "MODEL")]
    model: String,
    /// System message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Tokens of an answer at most; -1: until the model ends it or its context is full
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1024, allow_negative_numbers = true,
        value_parser = numbers::new_tokens)]
    max_new_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// What a line of input asks for.
#[derive(Debug, PartialEq)]
enum Input<'a> {
    Say(&'a str),
    System(&'a str),
    Reset,
    Exit,
    Unknown(&'a str),
    Nothing,
}

impl<'a> Input<'a> {
    fn parse(line: &'a str) -> Self {
        let line = line.trim();
        let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match command {
            "" => Self::Nothing,
            "/exit" | "/quit" | "/bye" => Self::Exit,
            "/reset" => Self::Reset,
            "/system" => Self::System(rest.trim()),
            other if other.starts_with('/') => Self::Unknown(other),
            _ => Self::Say(line),
        }
    }
}

/// Runs the command.
pub fn run(args: &ChatArgs, console: &Console) -> anyhow::Result<()> {
    if console.json() {
        return Err(bad_input_hint("a chat is not one JSON object", "use `qqq generate --json`"));
    }
    let sampling = args.sampling.options(0.7, console)?;
    let model = model::load(&args.model, &args.hub)?;
    let Some(template) = ChatTemplate::load(&model.checkpoint, &model.tokenizer)? else {
        return Err(bad_input_hint(
            format!("{} has no chat template", args.model),
            "it was not made for conversations; `qqq generate --raw` continues a text",
        ));
    };
    let options = GenerateOptions {
        sampling,
        max_new_tokens: args.max_new_tokens,
        eos: model.tokenizer.eos().to_vec(),
        kv_dtype: KvDType::F16,
    };
    let mut chat = Chat {
        session: Session::new(&model.decoder, options.clone()),
        model: &model,
        template,
        options,
        messages: Vec::new(),
        system: args.system.clone(),
    };
    chat.reset();
    let terminal = std::io::stdin().is_terminal() && console.fancy_out();
    if terminal {
        console.note("/exit or Ctrl-D ends, /reset forgets, /system TEXT sets the system message, Ctrl-C stops an answer");
    }
    let mut input = std::io::stdin().lock();
    let mut bytes = Vec::new();
    loop {
        if terminal {
            console.raw("> ")?;
        }
        bytes.clear();
        let read =
            input.read_until(b'\n', &mut bytes).map_err(|e| bad_input(format!("standard input: {e}")))?;
        if read == 0 {
            return if terminal { console.line("") } else { Ok(()) };
        }
        let line = match text_of(&bytes) {
            Ok(line) => line,
            Err(reason) => {
                console.warn(&reason);
                continue;
            }
        };
        match Input::parse(line) {
            Input::Nothing => {}
            Input::Exit => return Ok(()),
            Input::Reset => chat.reset(),
            Input::System(text) => {
                chat.system = (!text.is_empty()).then(|| text.to_owned());
                chat.reset();
            }
            Input::Unknown(command) => {
                console.note(&format!("{command} is unknown: /exit, /reset, /system TEXT"))
            }
            Input::Say(text) => chat.turn(text, console)?,
        }
    }
}

struct Chat<'a> {
    model: &'a LoadedModel,
    template: ChatTemplate,
    session: Session<'a, CpuBackend>,
    options: GenerateOptions,
    messages: Vec<Message>,
    system: Option<String>,
}

impl Chat<'_> {
    /// Whether the template would take the conversation if it had no system message.
    fn refuses_system(&self) -> bool {
        self.system.is_some() && self.template.render(&self.messages[1..], true).is_ok()
    }

    fn reset(&mut self) {
        self.session.clear();
        self.messages = self.system.iter().map(|text| message("system", text)).collect();
    }

    /// One message and its answer. A request that the template refuses or the model cannot serve is told,
    /// and forgotten.
    fn turn(&mut self, text: &str, console: &Console) -> anyhow::Result<()> {
        self.messages.push(message("user", text));
        let prompt = match self.template.render(&self.messages, true) {
            Ok(prompt) => prompt,
            Err(e) => {
                let hint = if self.refuses_system() {
                    "it is the system message that it does not take: /system without a text removes it"
                } else {
                    "the message is left out of the conversation"
                };
                self.messages.pop();
                console.warn(&format!("{e}; {hint}"));
                return Ok(());
            }
        };
        let ids = match self.model.tokenizer.encode(&prompt, false) {
            Ok(ids) => ids,
            // A token that the model has no embedding of, say.
            Err(e) => {
                self.messages.pop();
                console.warn(&format!("{e}; the message is left out of the conversation"));
                return Ok(());
            }
        };
        let guard = Guard::new();
        let mut answer = String::new();
        let mut stream = self.model.tokenizer.stream();
        let mut outcome = Ok(());
        let eos = &self.options.eos;
        let generation = self.session.generate(&ids, &mut |id| {
            if !eos.contains(&id) {
                outcome = push(&mut stream, id, &mut answer, console);
            }
            outcome.is_ok() && !guard.pressed()
        });
        outcome?;
        let generation = match generation {
            Ok(generation) => generation,
            // Of a model that is broken no other message gets an answer.
            Err(e @ ModelError::NotFinite(_)) => return Err(e.into()),
            Err(e) => {
                self.messages.pop();
                let is_first = self.messages.len() == usize::from(self.system.is_some());
                let hint = if is_first { "the message is left out" } else { "/reset makes room" };
                console.warn(&format!("{e}; {hint}"));
                return Ok(());
            }
        };
        if let Some(rest) = stream.finish()? {
            answer += &rest;
            console.raw(&rest)?;
        }
        console.line("")?;
        console.note(&format!("[{}]", statistics(&Answer::new(String::new(), ids.len(), &generation))));
        self.messages.push(message("assistant", &answer));
        Ok(())
    }
}

/// A line of input as text.
fn text_of(line: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(line).map_err(|e| {
        let at = e.valid_up_to();
        format!("this line is not UTF-8 (byte {} is {:#04x}) and is left out", at + 1, line[at])
    })
}

fn push(stream: &mut TokenStream<'_>, id: u32, answer: &mut String, console: &Console) -> anyhow::Result<()> {
    if let Some(piece) = stream.push(id)? {
        *answer += &piece;
        console.raw(&piece)?;
    }
    Ok(())
}

fn message(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        assert_eq!(Input::parse("hello /exit\n"), Input::Say("hello /exit"));
        assert_eq!(Input::parse(" /exit \n"), Input::Exit);
        assert_eq!(Input::parse("/system  Be brief. \n"), Input::System("Be brief."));
        assert_eq!(Input::parse("/system"), Input::System(""));
        assert_eq!(Input::parse("/rest"), Input::Unknown("/rest"));
        assert_eq!(Input::parse("  \n"), Input::Nothing);
    }

    #[test]
    fn lines_that_are_no_text() {
        assert_eq!(text_of("é\n".as_bytes()), Ok("é\n"));
        let reason = text_of(b"ab\xff\xfe\n").unwrap_err();
        assert!(reason.contains("not UTF-8 (byte 3 is 0xff)"), "{reason}");
    }
}
