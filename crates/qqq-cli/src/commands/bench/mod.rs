//! `qqq bench`.

mod gemm;
mod model;
mod plot;
mod speed;
mod throughput;

use clap::Subcommand;

use crate::console::Console;

pub use gemm::{activations, output};
pub use speed::{Load, Rate, Speed, measure};

/// Measure the speed of a model, or of products on a GPU
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Model(model::ModelArgs),
    Gemm(gemm::GemmArgs),
}

/// Runs the command.
pub fn run(args: &BenchArgs, console: &Console) -> anyhow::Result<()> {
    match &args.command {
        Command::Model(args) => model::run(args, console),
        Command::Gemm(args) => gemm::run(args, console),
    }
}
