//! The command line as a whole: global options, dispatch, exit codes.

use std::process::ExitCode;

use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand, error::ErrorKind};
use qqq_backend::cpu::pool;
use tracing_subscriber::EnvFilter;

use crate::{
    commands::{bench, chat, demo, eval, generate, inspect, kernels, quantize},
    console::Console,
    download,
    errors::{self, Failure},
    interrupt,
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
  QQQ_ISA      kernel path: avx512-vnni, avx-vnni, avx2, neon-dot or portable [default: the best here]
  QQQ_CACHE    where `qqq demo` keeps its model [default: qqq in the user's cache directory]
  QQQ_KERNELS  archive of compiled GPU kernels, from `qqq kernels build`
  QQQ_LOG      log filter, as qqq=debug
  HF_TOKEN, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_ENDPOINT  as for the hub's own tools
  HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE  how to reach the hub: a proxy, certificates to trust";

#[derive(Debug, Parser)]
#[command(name = "qqq",
    bin_name = "qqq", version, about = ABOUT, after_help = AFTER_HELP, max_term_width = 100, disable_help_subcommand = true)]
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
    /// Number of threads [default: QQQ_THREADS, else all cores]
    #[arg(long, global = true, value_name = "N")]
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
    Generate(generate::GenerateArgs),
    Chat(chat::ChatArgs),
    Eval(eval::EvalArgs),
    Inspect(inspect::InspectArgs),
    Bench(bench::BenchArgs),
    Kernels(kernels::KernelsArgs),
    Demo(demo::DemoArgs),
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
    log_to_stderr(cli.global.verbose, cli.global.quiet);
    pool::set_num_threads(cli.global.threads).map_err(|e| errors::bad_input(e.to_string()))?;
    interrupt::install(cli.global.json)?;
    download::show_on(console);
    match cli.command {
        Command::Quantize(args) => quantize::run(&args, console),
        Command::Generate(args) => generate::run(&args, console),
        Command::Chat(args) => chat::run(&args, console),
        Command::Eval(args) => eval::run(&args, console),
        Command::Inspect(args) => inspect::run(&args, console),
        Command::Bench(args) => bench::run(&args, console),
        Command::Kernels(args) => kernels::run(&args, console),
        Command::Demo(args) => demo::run(&args, console),
    }
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
    if !asked_for && std::env::args_os().any(|a| a == "--json") {
        let text = error.render().to_string();
        let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        Console::new(true, true).failure(&Failure::usage(message));
        return ExitCode::from(errors::BAD_INPUT);
    }
    // A closed pipe is no reason to fail here either.
    let _ = error.print();
    ExitCode::from(if asked_for { 0 } else { errors::BAD_INPUT })
}

fn log_to_stderr(verbose: u8, quiet: bool) {
    let level = match (quiet, verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, 2) => "debug",
        (false, _) => "trace",
    };
    let filter = std::env::var("QQQ_LOG")
        .ok()
        .and_then(|text| EnvFilter::try_new(text).ok())
        .unwrap_or_else(|| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .without_time()
        .with_target(false)
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
