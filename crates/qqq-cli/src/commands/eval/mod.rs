//! `qqq eval`.

mod kld;
mod perplexity;
mod text;

pub use kld::rows as kld_rows;

use clap::Subcommand;

use crate::console::Console;

/// Measure a model's quality on text
#[derive(Debug, clap::Args)]
pub struct EvalArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Perplexity(perplexity::PerplexityArgs),
    Kld(kld::KldArgs),
}

/// Runs the command.
pub fn run(args: &EvalArgs, console: &Console) -> anyhow::Result<()> {
    match &args.command {
        Command::Perplexity(args) => perplexity::run(args, console),
        Command::Kld(args) => kld::run(args, console),
    }
}
