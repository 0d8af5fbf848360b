//! The `qqq` command: arguments, progress, tables, exit codes. What it does lies in the libraries.

mod app;
mod commands;
mod console;
mod controls;
mod device;
mod download;
mod errors;
mod files;
mod format;
mod given;
mod interrupt;
mod loading;
mod logging;
mod model;
mod numbers;
mod progress;
mod record;
mod sampling;
mod table;
mod texts;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    app::main()
}
