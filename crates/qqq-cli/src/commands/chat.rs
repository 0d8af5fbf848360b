//! `qqq chat`.

mod command;
mod editor;
mod history;
mod plain;
mod terminal;

use std::{io::IsTerminal, path::PathBuf};

use qqq_backend::{Backend, KvDType};
use qqq_engine::{FinishReason, GenerateOptions, SamplingOptions, Session, StopStrings, TextEvent};
use qqq_model::{ChatTemplate, Message, ModelError};

use self::{
    command::{COMMANDS, Input, KEYS},
    editor::Editor,
    plain::Lines,
    terminal::KeySignals,
};
use super::generate::{Answer, StopArgs, statistics};
use crate::{
    console::Console,
    device::{DeviceArgs, Place, on_device},
    errors::{bad_input_hint, failed_hint},
    interrupt::Guard,
    model::{self, HubArgs, LoadedModel},
    numbers,
    sampling::SamplingArgs,
};

const AFTER_HELP: &str = "\
Examples:
  qqq chat qwen-w4a8
  qqq chat Qwen/Qwen2.5-0.5B-Instruct --system \"Answer in one sentence.\" --temperature 0

On a terminal there is a line editor with the messages of earlier chats: Enter sends, Alt-Enter or Ctrl-J begins a new \
line, a pasted text stays one message, Ctrl-C stops an answer or drops what is typed (twice: leaves), Ctrl-D leaves, /help \
tells the rest. Messages are kept in the file QQQ_HISTORY [default: qqq/chat-history in the user's folder for state], which \
only the user can read; one that begins with a space is not kept. Elsewhere a line of standard input is a message.

The KV cache is kept between turns, so only what is new is computed.";

/// Talk with a model
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct ChatArgs {
    /// Model: a directory, a .gguf file, or owner/name on the hub
    #[arg(value_name = "MODEL")]
    model: String,
    /// System message before the first turn
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Tokens of an answer at most; -1: until the model ends it or its context is full
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1024, allow_negative_numbers = true,
        value_parser = numbers::new_tokens)]
    max_new_tokens: usize,
    /// Neither read nor keep the messages of earlier chats
    #[arg(long)]
    no_history: bool,
    #[command(flatten)]
    stop: StopArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// Runs the command.
pub fn run(args: &ChatArgs, console: &Console) -> anyhow::Result<()> {
    if console.json() {
        return Err(bad_input_hint("a chat is not one JSON object", "use `qqq generate --json`"));
    }
    let sampling = args.sampling.options(0.7, console)?;
    args.stop.check(console)?;
    // Before the model is loaded: what is typed meanwhile is for the first prompt.
    let mut reader = Reader::new(args, console)?;
    on_device!(args.device.device, &args.model, &args.hub, |place| run_on(
        args,
        &place,
        sampling,
        &mut reader,
        console
    ))
}

fn run_on<P: Place>(
    args: &ChatArgs,
    place: &P,
    sampling: SamplingOptions,
    reader: &mut Reader,
    console: &Console,
) -> anyhow::Result<()> {
    let model = model::load(&args.model, &args.hub, place)?;
    let Some(template) = ChatTemplate::load(&model.checkpoint, &model.tokenizer)? else {
        return Err(bad_input_hint(
            format!("{} has no chat template", args.model),
            "it was not made for conversations; `qqq generate --raw` continues a text",
        ));
    };
    model.tokenizer.check_generation()?;
    let options = GenerateOptions {
        sampling,
        max_new_tokens: args.max_new_tokens,
        eos: model.tokenizer.eos().to_vec(),
        kv_dtype: KvDType::F16,
    };
    let mut chat = Chat {
        session: Session::new(&model.decoder, options)?,
        stop: args.stop.strings(&model.tokenizer)?,
        model: &model,
        template,
        messages: Vec::new(),
        system: args.system.clone(),
    };
    chat.reset();
    if reader.is_terminal() {
        console.note("/help tells what can be done, Ctrl-C stops an answer, Ctrl-D leaves");
    }
    let (mut said, mut unanswered) = (0, 0);
    while let Some(entered) = reader.read(console)? {
        match Input::parse(&entered) {
            Input::Nothing => {}
            Input::Exit => break,
            Input::Help => reader.help(console)?,
            Input::Reset => {
                let forgotten = chat.reset();
                console.note(&match forgotten {
                    0 => "(there was no conversation yet)".to_owned(),
                    n => format!("(the conversation of {n} messages is forgotten)"),
                });
            }
            Input::System(text) => {
                let had = chat.system.take().is_some();
                chat.system = (!text.is_empty()).then(|| text.to_owned());
                chat.reset();
                let what = match (chat.system.is_some(), had) {
                    (true, _) => "the system message is set",
                    (false, true) => "the system message is removed",
                    (false, false) => "there is no system message",
                };
                console.note(&format!("({what}; the conversation begins anew)"));
            }
            Input::Unknown(command) => console.note(&format!(
                "({command} is unknown, /help tells what there is; a space before it makes it a message)"
            )),
            Input::Say(text) => {
                // The guard is there before the first signal can come, and longer than the last.
                let guard = Guard::new();
                let _signals = reader.signals();
                said += 1;
                unanswered += usize::from(!chat.turn(text, &guard, console)?);
            }
        }
    }
    // A person has read why; a program looks at the exit code.
    if said > 0 && unanswered == said && reader.is_piped() {
        return Err(failed_hint("no message has an answer", "the warnings say why"));
    }
    Ok(())
}

/// Where messages come from.
enum Reader {
    Editor(Box<Editor>),
    Lines { lines: Lines, prompt: bool },
}

impl Reader {
    fn new(args: &ChatArgs, console: &Console) -> anyhow::Result<Self> {
        // The editor draws on standard error, and asks where it is through standard output.
        if std::io::stdin().is_terminal() && console.fancy_out() && console.fancy_err() {
            let history: Option<PathBuf> = if args.no_history { None } else { history::file() };
            return Ok(Self::Editor(Box::new(Editor::new(history.as_deref(), console)?)));
        }
        Ok(Self::Lines { lines: Lines::new(), prompt: std::io::stdout().is_terminal() })
    }

    fn is_terminal(&self) -> bool {
        matches!(self, Self::Editor(_))
    }

    /// Whether messages come from a pipe or a file.
    fn is_piped(&self) -> bool {
        matches!(self, Self::Lines { lines, .. } if !lines.is_terminal())
    }

    fn read(&mut self, console: &Console) -> anyhow::Result<Option<String>> {
        match self {
            Self::Editor(editor) => editor.read(console),
            Self::Lines { lines, prompt } => lines.read(*prompt, console),
        }
    }

    /// Ctrl-C and Ctrl-Z are signals while this lives.
    fn signals(&self) -> Option<KeySignals> {
        match self {
            Self::Editor(editor) => Some(editor.signals()),
            Self::Lines { .. } => None,
        }
    }

    fn help(&self, console: &Console) -> anyhow::Result<()> {
        match self {
            Self::Editor(_) => console.line(&format!("{COMMANDS}\n\n{KEYS}")),
            Self::Lines { .. } => {
                console.note(COMMANDS);
                Ok(())
            }
        }
    }
}

struct Chat<'a, B: Backend> {
    model: &'a LoadedModel<B>,
    template: ChatTemplate,
    session: Session<'a, B>,
    stop: StopStrings,
    messages: Vec<Message>,
    system: Option<String>,
}

impl<B: Backend> Chat<'_, B> {
    /// Whether the template would take the conversation if it had no system message.
    fn refuses_system(&self) -> bool {
        self.system.is_some() && self.template.render(&self.messages[1..], true).is_ok()
    }

    /// Forgets the conversation; gives the number of its messages.
    fn reset(&mut self) -> usize {
        let spoken = self.messages.iter().filter(|m| m.role != "system").count();
        self.session.clear();
        self.messages = self.system.iter().map(|text| message("system", text)).collect();
        spoken
    }

    /// One message and its answer. A request that the template refuses or the model cannot serve is told,
    /// and forgotten. Whether there is an answer, or it was not wanted any more.
    fn turn(&mut self, text: &str, guard: &Guard, console: &Console) -> anyhow::Result<bool> {
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
                return Ok(false);
            }
        };
        let ids = match self.model.tokenizer.encode(&prompt, false) {
            Ok(ids) => ids,
            // A token that the model has no embedding of, say.
            Err(e) => {
                self.messages.pop();
                console.warn(&format!("{e}; the message is left out of the conversation"));
                return Ok(false);
            }
        };
        let mut printed = Ok(());
        let result = self.session.generate_text(&self.model.tokenizer, &ids, &self.stop, &mut |event| {
            if let TextEvent::Text { piece, .. } = event
                && printed.is_ok()
            {
                printed = console.raw(piece);
            }
            printed.is_ok() && !guard.pressed()
        });
        printed?;
        let answer = match result {
            Ok(result) => Answer::new(ids.len(), result),
            // Of a model that is broken no other message gets an answer.
            Err(e @ ModelError::NotFinite(_)) => return Err(e.into()),
            Err(e) => {
                self.messages.pop();
                let is_first = self.messages.len() == usize::from(self.system.is_some());
                let hint = if is_first { "the message is left out" } else { "/reset makes room" };
                console.warn(&format!("{e}; {hint}"));
                return Ok(false);
            }
        };
        if answer.finish == FinishReason::Cancelled && answer.new_tokens == 0 {
            self.messages.pop();
            console.note("(stopped before the answer; the message is left out of the conversation)");
            return Ok(true);
        }
        console.line("")?;
        console.note(&format!("[{}]", statistics(&answer)));
        self.messages.push(message("assistant", &answer.text));
        Ok(true)
    }
}

fn message(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into() }
}
