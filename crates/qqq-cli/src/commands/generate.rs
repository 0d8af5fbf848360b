//! `qqq generate`.

mod batch;
mod lines;
mod prompt;
mod unique;

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
};

use qqq_backend::{Backend, KvDType};
use qqq_engine::{
    FinishReason, GenerateOptions, Prompt, SamplingOptions, StopStrings, TextEvent, TextGeneration, TextRun,
};
use qqq_model::{Decoder, Tokenizer};
use serde::Serialize;

use self::prompt::Encoder;
use crate::{
    console::Console,
    device::{DeviceArgs, Place, on_device},
    errors::{Interrupted, bad_input, bad_input_hint},
    files, format,
    interrupt::Guard,
    model::{self, HubArgs},
    numbers,
    sampling::SamplingArgs,
};

const AFTER_HELP: &str = "\
Examples:
  qqq generate qwen-w4a8 --prompt \"Why is the sky blue?\"
  qqq generate model.gguf --raw --prompt \"Once upon a time\" --max-new-tokens 200 --temperature 0.8
  git diff | qqq generate qwen-w4a8 --prompt - --system \"Summarise this change.\"
  qqq generate qwen-w4a8 --batch --prompt-file prompts.jsonl > answers.jsonl

The text goes to standard output as it is made, statistics to standard error.

With --batch, a line of input is a JSON object with `prompt` (a text) or `messages` (a list, with `tools` if there are \
any), and may have an `id` and a `seed` (-1: a random one, which its answer tells); or it is a text in quotes. All lines are checked before the first is run. An answer \
is a JSON object on one line with the `line`'s number, its `id`, the `text` and what --json gives for one prompt; answers \
come in the order of the lines. With --json they are the list `answers` of one object. Ctrl-C ends with the answers that are \
complete. A line with a seed draws as if it were alone with --seed; line i of the others draws from the i-th of the \
independent streams of --seed, whatever the batch size.";

/// Continue or answer a prompt, or a batch of prompts
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct GenerateArgs {
    /// Model: a directory, a .gguf file, or owner/name on the hub
    #[arg(value_name = "MODEL")]
    model: String,
    /// Prompt; "-" reads it from standard input [default: standard input, if it is not a terminal]
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// File with the prompt, or with --batch the prompts; "-" is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompt_file: Option<PathBuf>,
    /// Answer many prompts, one JSON object a line in and out [from standard input, or --prompt-file]
    #[arg(long, conflicts_with = "prompt")]
    batch: bool,
    /// Prompts of a batch that run together
    #[arg(long, value_name = "N", default_value_t = 16, requires = "batch", allow_negative_numbers = true,
        value_parser = numbers::count)]
    batch_size: usize,
    /// New tokens at most; -1: until the model ends or its context is full
    #[arg(short = 'n', long, value_name = "N", default_value_t = 256, allow_negative_numbers = true,
        value_parser = numbers::new_tokens)]
    max_new_tokens: usize,
    /// Continue the prompt as it is, without the chat template
    #[arg(long, conflicts_with_all = ["chat", "system"])]
    raw: bool,
    /// Insist on the chat template: fail if the model has none [default: use it if there is one]
    #[arg(long)]
    chat: bool,
    /// System message that precedes the prompt in the chat template
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    stop: StopArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// What ends an answer early.
#[derive(Clone, Debug, clap::Args)]
pub struct StopArgs {
    /// End before this text; can be given several times, the one that is complete first counts
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
}

impl StopArgs {
    /// Refuses what can end nothing, and tells what looks like a mistake.
    pub fn check(&self, console: &Console) -> anyhow::Result<()> {
        if self.stop.iter().any(String::is_empty) {
            return Err(bad_input("--stop: the text is empty"));
        }
        for text in self.stop.iter().filter(|text| text.contains("\\n") || text.contains("\\t")) {
            console.warn(&format!(
                "--stop {text:?} has a backslash and a letter in it; a line end is written $'\\n' in most shells"
            ));
        }
        Ok(())
    }

    /// For texts of this tokenizer.
    pub fn strings(&self, tokenizer: &Tokenizer) -> anyhow::Result<StopStrings> {
        Ok(StopStrings::new(self.stop.clone(), tokenizer)?)
    }
}

/// The result, for `--json`.
#[derive(Debug, Serialize)]
pub struct Answer {
    /// The answer, without the stop string that ended it.
    pub text: String,
    /// Why it ended.
    pub finish: FinishReason,
    /// The stop string before which it ended.
    pub stop_string: Option<String>,
    /// Tokens of the prompt, template included.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that were computed: less than all if the cache of a chat held some.
    pub computed_prompt_tokens: usize,
    /// How many tokens the answer has.
    pub new_tokens: usize,
    /// Their ids, those of the stop string included.
    pub tokens: Vec<u32>,
    /// Seconds for the prompt.
    pub prefill_seconds: f64,
    /// Runs of the model after the first new token, which comes out of the prompt.
    pub decode_steps: usize,
    /// Seconds for them.
    pub decode_seconds: f64,
}

impl Answer {
    /// From what the engine says.
    pub fn new(prompt_tokens: usize, result: TextGeneration) -> Self {
        let TextGeneration { text, stop_string, generation } = result;
        Self {
            text,
            finish: generation.finish,
            stop_string,
            prompt_tokens,
            computed_prompt_tokens: generation.prefill_tokens,
            new_tokens: generation.tokens.len(),
            tokens: generation.tokens,
            prefill_seconds: generation.prefill_seconds,
            decode_steps: generation.decode_steps,
            decode_seconds: generation.decode_seconds,
        }
    }
}

/// Runs the command.
pub fn run(args: &GenerateArgs, console: &Console) -> anyhow::Result<()> {
    let sampling = args.sampling.options(0.0, console)?;
    args.stop.check(console)?;
    let text = read_prompt(args)?;
    let source = match &args.prompt_file {
        Some(file) if file != Path::new("-") => {
            // A pipe can be read once.
            if file.is_file() {
                console.read_input(file, &files::sha256(file)?);
            }
            file.display().to_string()
        }
        _ => prompt::STDIN.into(),
    };
    let lines = if args.batch { Some(lines::parse(&text, &source)?) } else { None };
    on_device!(args.device.device, &args.model, &args.hub, |place| run_on(
        args,
        &place,
        (&text, lines.as_deref(), &source),
        sampling,
        console
    ))
}

/// With a text, and the lines of a batch in it if it is one, from a source.
fn run_on<P: Place>(
    args: &GenerateArgs,
    place: &P,
    (text, lines, source): (&str, Option<&[lines::Line]>, &str),
    sampling: SamplingOptions,
    console: &Console,
) -> anyhow::Result<()> {
    let model = model::load(&args.model, &args.hub, place)?;
    let encoder = Encoder::new(&model, &args.model, args.raw, args.chat, args.system.as_deref())?;
    model.tokenizer.check_generation()?;
    let options = GenerateOptions {
        sampling,
        max_new_tokens: args.max_new_tokens,
        eos: model.tokenizer.eos().to_vec(),
        kv_dtype: KvDType::F16,
    };
    let stop = args.stop.strings(&model.tokenizer)?;
    let run = TextRun {
        decoder: &model.decoder,
        tokenizer: &model.tokenizer,
        options: &options,
        stop: &stop,
        together: args.batch_size,
    };
    if let Some(lines) = lines {
        let prompts = batch::encode(lines, source, &encoder)?;
        return batch::run(lines, &prompts, &run, console);
    }
    let tokens = encoder.text(text)?;
    let guard = Guard::new();
    let streaming = !console.json();
    let answer = one(&run, tokens, &mut |event| {
        if let TextEvent::Text { piece, .. } = event
            && streaming
        {
            console.raw(piece)?;
        }
        guard.check()
    });
    if streaming {
        console.line("")?;
    }
    let answer = answer?;
    console.status(&statistics(&answer));
    console.printed_result(&answer)
}

/// The prompt, or the prompts.
fn read_prompt(args: &GenerateArgs) -> anyhow::Result<String> {
    let piped = !std::io::stdin().is_terminal();
    let text = match (args.prompt.as_deref(), &args.prompt_file) {
        (Some("-"), _) => prompt::read(Path::new("-"))?,
        (Some(text), _) => text.to_owned(),
        (None, Some(file)) => prompt::read(file)?,
        (None, None) if piped => prompt::read(Path::new("-"))?,
        (None, None) => {
            let hint = match args.batch {
                true => "name a file with --prompt-file FILE, or pipe JSON lines into standard input",
                false => "give --prompt TEXT or --prompt-file FILE, or pipe text into standard input",
            };
            return Err(bad_input_hint("there is no prompt", hint));
        }
    };
    if text.is_empty() && !args.batch { Err(bad_input("the prompt is empty")) } else { Ok(text) }
}

/// Generates an answer; `on_text` gets each piece of text (or "" where none is complete), and stops the generation by
/// an error.
pub fn answer<B: Backend>(
    decoder: &Decoder<B>,
    tokenizer: &Tokenizer,
    prompt: Vec<u32>,
    options: &GenerateOptions,
    on_text: &mut dyn FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<Answer> {
    let stop = StopStrings::default();
    let run = TextRun { decoder, tokenizer, options, stop: &stop, together: 1 };
    one(&run, prompt, &mut |event| match event {
        TextEvent::Text { piece, .. } => on_text(piece),
        _ => on_text(""),
    })
}

/// Generates one answer; an error of `on_event` stops it.
fn one<B: Backend>(
    run: &TextRun<'_, B>,
    tokens: Vec<u32>,
    on_event: &mut dyn FnMut(TextEvent<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<Answer> {
    let prompt_tokens = tokens.len();
    let mut outcome = Ok(());
    let mut answer = None;
    run.run(&[Prompt { tokens, seed: None }], &mut |event| {
        if let TextEvent::End { result, .. } = event {
            answer = Some(Answer::new(prompt_tokens, result));
        } else if outcome.is_ok() {
            outcome = on_event(event);
        }
        outcome.is_ok()
    })?;
    outcome?;
    // Whatever keeps a prompt from its end is an error.
    answer.ok_or_else(|| Interrupted.into())
}

/// One line about an answer's speed.
pub fn statistics(a: &Answer) -> String {
    let rate = |tokens: usize, seconds: f64| {
        if seconds > 0.0 { format!(" ({:.0} tokens/s)", tokens as f64 / seconds) } else { String::new() }
    };
    let ended = match a.finish {
        FinishReason::Stop => "end of text",
        FinishReason::StopString => "stop string",
        FinishReason::Length => "length limit",
        FinishReason::Cancelled => "stopped",
    };
    format!(
        "prompt: {} tokens in {}{}; new: {} tokens in {}{}; {ended}",
        a.prompt_tokens,
        format::seconds(a.prefill_seconds),
        rate(a.computed_prompt_tokens, a.prefill_seconds),
        a.new_tokens,
        format::seconds(a.decode_seconds),
        rate(a.decode_steps, a.decode_seconds),
    )
}
