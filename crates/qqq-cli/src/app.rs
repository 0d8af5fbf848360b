//! The command line as a whole: global options, dispatch, exit codes.

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand, error::ErrorKind};
use qqq_backend::{cpu::isa::Isa, pool};

use crate::{
    commands::{
        bench, chat, compare, completions, convert, demo, doctor, eval, generate, inspect, kernels, man,
        quantize, rerun, synth,
    },
    console::{Console, wants_colour},
    download,
    errors::{self, Failure},
    interrupt, logging, numbers,
    record::Record,
};

const ABOUT: &str = "Quantize language models to W4A8 (4-bit weights, 8-bit activations), measure, run";

const AFTER_HELP: &str = "\
Start here:
  qqq demo                                             see it all on a small model, in minutes
  qqq quantize Qwen/Qwen2.5-0.5B-Instruct -o qwen-w4a8
  qqq chat qwen-w4a8

In every command MODEL is a directory with config.json and safetensors, a .gguf file, or an id on
the Hugging Face hub (owner/name; owner/name:file.gguf or owner/name:folder/file.gguf for a GGUF file of a repository).

Exit codes: 0 done; 1 failed; 2 wrong usage or bad input; 130 interrupted.

Environment:
  QQQ_THREADS  number of threads, as --threads
  QQQ_ISA      kernels: avx512-vnni, avx-vnni, avx2, neon-dot or portable [default: the best]
  QQQ_CACHE    folder for what can be made again [default: qqq in the user's cache folder]
  QQQ_HISTORY  what was said in `qqq chat` [default: qqq/chat-history in the user's state folder]
  QQQ_KERNEL_CACHE  folder of compiled GPU kernels [default: kernels in QQQ_CACHE; empty: none]
  QQQ_KERNELS  archive of compiled GPU kernels, from `qqq kernels build`
  QQQ_NVRTC    what compiles GPU kernels: the library or its folder [default: looked for]
  QQQ_LOG      log filter: a level (debug), or levels of modules (warn,qqq_model=trace)
  NO_COLOR, CLICOLOR, CLICOLOR_FORCE  whether messages are coloured
  HF_TOKEN, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_ENDPOINT  as for the hub's own tools
  HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE  how to reach the hub: a proxy, certificates to trust
  A variable that is empty counts as not set.";

#[derive(Debug, Parser)]
#[command(name = "qqq",
    bin_name = "qqq", version, about = ABOUT, after_help = AFTER_HELP, max_term_width = 100, args_override_self = true)]
struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
struct GlobalArgs {
    /// Print exactly one JSON object on standard output (also on failure), and nothing else there
    #[arg(long, global = true)]
    json: bool,
    /// Number of threads; -1: all cores [default: QQQ_THREADS, else all cores]
    #[arg(long, global = true, value_name = "N", allow_negative_numbers = true, value_parser = numbers::threads)]
    threads: Option<usize>,
    /// No progress and no notes on standard error; errors remain
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// More log output on standard error (-vv for still more)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    Quantize(quantize::QuantizeArgs),
    Convert(convert::ConvertArgs),
    Generate(generate::GenerateArgs),
    Chat(chat::ChatArgs),
    Eval(eval::EvalArgs),
    Compare(Box<compare::CompareArgs>),
    Inspect(inspect::InspectArgs),
    Bench(bench::BenchArgs),
    Kernels(kernels::KernelsArgs),
    Demo(demo::DemoArgs),
    Synth(synth::SynthArgs),
    Rerun(rerun::RerunArgs),
    Doctor(doctor::DoctorArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
}

/// Every command with its options, for what is made of them.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Parses, runs, and turns the outcome into an exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::command().try_get_matches().and_then(|m| Cli::from_arg_matches(&m)) {
        Ok(cli) => cli,
        Err(error) => return usage_error(&error),
    };
    let console = Console::new(cli.global.json, cli.global.quiet);
    match run(cli, &console) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&console, &error),
    }
}

fn run(cli: Cli, console: &Console) -> anyhow::Result<()> {
    // What a shell runs when it starts is not stopped by a variable that has nothing to do with it.
    match &cli.command {
        Command::Completions(args) => return completions::run(args, console),
        Command::Man(args) => return man::run(args, console),
        // What would stop every other command is what it looks for.
        Command::Doctor(args) => return doctor::run(args, cli.global.threads, console),
        _ => {}
    }
    logging::start(console, cli.global.verbose)?;
    if let Command::Rerun(args) = &cli.command {
        return again(args, cli.global.threads, console);
    }
    console.record(Record::of_this_process());
    begin(cli.global.threads, console)?;
    dispatch(cli.command, console)
}

/// What every command begins with.
fn begin(threads: Option<usize>, console: &Console) -> anyhow::Result<()> {
    settings(threads)?;
    interrupt::install(console.clone())?;
    download::show_on(console);
    Ok(())
}

/// Runs what an earlier run has run.
fn again(args: &rerun::RerunArgs, threads: Option<usize>, console: &Console) -> anyhow::Result<()> {
    let earlier = rerun::Earlier::read(args)?;
    let words = std::iter::once("qqq").chain(earlier.record.arguments.iter().map(String::as_str));
    let cli = Cli::try_parse_from(words).map_err(|e| earlier.unusable(&e.render().to_string()))?;
    if let Command::Rerun(_) = &cli.command {
        return Err(earlier.unusable("it runs another run again"));
    }
    if args.only_checks() {
        return earlier.checked(console);
    }
    let console = &console.keeping();
    console.record(Some(earlier.record.clone()));
    begin(threads.or(cli.global.threads), console)?;
    console.status(&earlier.record.command());
    let outcome = dispatch(cli.command, console);
    match (outcome, console.take_kept()) {
        (Ok(()), Some(result)) => earlier.compare(&result, console),
        (outcome, result) => {
            // A result that is none to compare.
            if let Some(result) = result.filter(|_| console.json()) {
                console.line(&result)?;
            }
            outcome
        }
    }
}

fn dispatch(command: Command, console: &Console) -> anyhow::Result<()> {
    match command {
        Command::Quantize(args) => quantize::run(&args, console),
        Command::Convert(args) => convert::run(&args, console),
        Command::Generate(args) => generate::run(&args, console),
        Command::Chat(args) => chat::run(&args, console),
        Command::Eval(args) => eval::run(&args, console),
        Command::Compare(args) => compare::run(&args, console),
        Command::Inspect(args) => inspect::run(&args, console),
        Command::Bench(args) => bench::run(&args, console),
        Command::Kernels(args) => kernels::run(&args, console),
        Command::Demo(args) => demo::run(&args, console),
        Command::Synth(args) => synth::run(&args, console),
        // These run without what others need.
        Command::Rerun(_) | Command::Doctor(_) | Command::Completions(_) | Command::Man(_) => Ok(()),
    }
}

/// Starts the threads, and looks at what the environment asks of the kernels: a name that is none is an error even where
/// nothing would be run by it.
fn settings(threads: Option<usize>) -> anyhow::Result<()> {
    let option = if threads.is_some() { "--threads: " } else { "" };
    pool::set_num_threads(threads).map_err(|e| errors::bad_input(format!("{option}{e}")))?;
    Isa::selected().map_err(|e| errors::bad_input(e.to_string()))?;
    Ok(())
}

fn report(console: &Console, error: &anyhow::Error) -> ExitCode {
    let failure = Failure::of(error);
    if failure.is_closed_output() {
        // Whoever read our output has seen enough.
        return ExitCode::SUCCESS;
    }
    console.failure(&failure);
    ExitCode::from(failure.exit_code)
}

/// clap's own errors, and `--help` and `--version`.
fn usage_error(error: &clap::Error) -> ExitCode {
    let asked_for = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    let json = !asked_for && std::env::args_os().any(|a| a == "--json");
    let text = error.render();
    let is_terminal =
        if error.use_stderr() { io::stderr().is_terminal() } else { io::stdout().is_terminal() };
    let shown = match wants_colour(is_terminal, &|name| std::env::var_os(name)) {
        true => text.ansi().to_string(),
        false => text.to_string(),
    };
    // A closed pipe is no reason to fail here either.
    let _ = match error.use_stderr() {
        true => io::stderr().write_all(shown.as_bytes()),
        false => io::stdout().write_all(shown.as_bytes()),
    };
    if json {
        let text = text.to_string();
        let message = text.trim().trim_start_matches("error: ");
        Console::new(true, true).failure_object(&Failure::usage(message));
    }
    ExitCode::from(if asked_for { 0 } else { errors::BAD_INPUT })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
