//! `qqq generate`.

use std::io::{IsTerminal, Read};

use qqq_backend::{Backend, KvDType};
use qqq_engine::{FinishReason, GenerateOptions, Generation, generate};
use qqq_model::{ChatTemplate, Decoder, Message, Tokenizer};
use serde::Serialize;

use crate::{
    console::Console,
    device::DeviceArgs,
    errors::{Interrupted, bad_input, bad_input_hint},
    format,
    interrupt::Guard,
    model::{self, HubArgs, LoadedModel},
    numbers,
    sampling::SamplingArgs,
};

const AFTER_HELP: &str = "\
Examples:
  qqq generate qwen-w4a8 --prompt \"Why is the sky blue?\"
  qqq generate model.gguf --raw --prompt \"Once upon a time\" --max-new-tokens 200 --temperature 0.8
  git diff | qqq generate qwen-w4a8 --prompt - --system \"Summarise this change.\"

The text goes to standard output as it is made, statistics to standard error.";

/// Continue or answer one prompt
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct GenerateArgs {
    /// Model: a directory, a .gguf file, or owner/name on the hub
    #[arg(value_name = "MODEL")]
    model: String,
    /// Prompt; "-" reads it from standard input [default: standard input, if it is not a terminal]
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
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
    sampling: SamplingArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// The result, for `--json`.
#[derive(Debug, Serialize)]
pub struct Answer {
    /// New text.
    pub text: String,
    /// Why it ended.
    pub finish: FinishReason,
    /// Tokens of the prompt, template included.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that were computed: less than all if the cache of a chat held some.
    pub computed_prompt_tokens: usize,
    /// New tokens.
    pub new_tokens: usize,
    /// Their ids.
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
    pub fn new(text: String, prompt_tokens: usize, generation: &Generation) -> Self {
        Self {
            text,
            finish: generation.finish,
            prompt_tokens,
            computed_prompt_tokens: generation.prefill_tokens,
            new_tokens: generation.tokens.len(),
            tokens: generation.tokens.clone(),
            prefill_seconds: generation.prefill_seconds,
            decode_steps: generation.decode_steps,
            decode_seconds: generation.decode_seconds,
        }
    }
}

/// Runs the command.
pub fn run(args: &GenerateArgs, console: &Console) -> anyhow::Result<()> {
    let sampling = args.sampling.options(0.0, console)?;
    let prompt = read_prompt(args.prompt.as_deref())?;
    let model = model::load(&args.model, &args.hub)?;
    let ids = encode(args, &model, &prompt)?;
    let options = GenerateOptions {
        sampling,
        max_new_tokens: args.max_new_tokens,
        eos: model.tokenizer.eos().to_vec(),
        kv_dtype: KvDType::F16,
    };
    let guard = Guard::new();
    let streaming = !console.json();
    let answer = answer(&model.decoder, &model.tokenizer, ids, &options, &mut |text| {
        if streaming {
            console.raw(text)?;
        }
        guard.check()
    });
    if streaming {
        console.line("")?;
    }
    let answer = answer?;
    console.status(&statistics(&answer));
    if console.json() { console.result(&answer, |_| String::new()) } else { Ok(()) }
}

fn read_prompt(prompt: Option<&str>) -> anyhow::Result<String> {
    let text = match prompt {
        Some("-") => read_stdin()?,
        None if !std::io::stdin().is_terminal() => read_stdin()?,
        None => {
            return Err(bad_input_hint(
                "there is no prompt",
                "give --prompt TEXT, or pipe text into standard input",
            ));
        }
        Some(text) => text.to_owned(),
    };
    if text.is_empty() { Err(bad_input("the prompt is empty")) } else { Ok(text) }
}

fn read_stdin() -> anyhow::Result<String> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(|e| bad_input(format!("standard input: {e}")))?;
    let end = text.trim_end_matches(['\n', '\r']).len();
    text.truncate(end);
    // Editors on Windows put it before a text; it is no part of it.
    Ok(text.strip_prefix('\u{FEFF}').map(str::to_owned).unwrap_or(text))
}

fn encode(args: &GenerateArgs, model: &LoadedModel, prompt: &str) -> anyhow::Result<Vec<u32>> {
    let template = if args.raw { None } else { ChatTemplate::load(&model.checkpoint, &model.tokenizer)? };
    let ids = match template {
        Some(template) => {
            let message = |role: &str, text: &str| Message { role: role.into(), content: text.into() };
            let mut messages: Vec<_> = args.system.iter().map(|s| message("system", s)).collect();
            messages.push(message("user", prompt));
            // Templates spell special tokens out.
            model.tokenizer.encode(&template.render(&messages, true)?, false)?
        }
        None if args.chat || args.system.is_some() => {
            return Err(bad_input_hint(
                format!("{} has no chat template", args.model),
                "use --raw, and write the prompt as the model expects it",
            ));
        }
        None => model.tokenizer.encode(prompt, true)?,
    };
    if ids.is_empty() { Err(bad_input("the prompt has no tokens")) } else { Ok(ids) }
}

/// Generates an answer; `on_text` gets each piece of text (or "" with a token that completes none), and stops the
/// generation by an error.
pub fn answer<B: Backend>(
    decoder: &Decoder<B>,
    tokenizer: &Tokenizer,
    prompt: Vec<u32>,
    options: &GenerateOptions,
    on_text: &mut dyn FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<Answer> {
    let prompt_tokens = prompt.len();
    let mut text = String::new();
    let mut stream = tokenizer.stream();
    let mut outcome = Ok(());
    let mut emit = |piece: Option<String>| {
        let piece = piece.unwrap_or_default();
        text += &piece;
        on_text(&piece)
    };
    let generations = generate(decoder, &[prompt], options, &mut |_, id| {
        if !options.eos.contains(&id) {
            outcome = stream.push(id).map_err(Into::into).and_then(&mut emit);
        }
        outcome.is_ok()
    })?;
    outcome?;
    emit(stream.finish()?)?;
    let Some(generation) = generations.into_iter().next() else { return Err(Interrupted.into()) };
    Ok(Answer::new(text, prompt_tokens, &generation))
}

/// One line about an answer's speed.
pub fn statistics(a: &Answer) -> String {
    let rate = |tokens: usize, seconds: f64| {
        if seconds > 0.0 { format!(" ({:.0} tokens/s)", tokens as f64 / seconds) } else { String::new() }
    };
    let ended = match a.finish {
        FinishReason::Stop => "end of text",
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
