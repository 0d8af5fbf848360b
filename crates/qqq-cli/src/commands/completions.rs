//! `qqq completions`.

use clap_complete::Shell;
use serde::Serialize;

use crate::{app, console::Console, errors::failed_hint};

const AFTER_HELP: &str = "\
Examples:
  qqq completions bash > ~/.local/share/bash-completion/completions/qqq
  qqq completions zsh > ~/.zfunc/_qqq        # with fpath+=~/.zfunc before compinit in ~/.zshrc
  qqq completions fish > ~/.config/fish/completions/qqq.fish
  qqq completions powershell >> $PROFILE

A script belongs to the version that made it: make it again after an update.";

/// A shell's completion script, on standard output
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct CompletionsArgs {
    /// Shell that is to read the script
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

#[derive(Serialize)]
struct Outcome {
    shell: String,
    script: String,
}

/// Runs the command.
pub fn run(args: &CompletionsArgs, console: &Console) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut app::command(), "qqq", &mut script);
    let script = String::from_utf8(script)
        .map_err(|_| failed_hint("the script is not UTF-8", "a fault of this program: please report it"))?;
    console.result(&Outcome { shell: args.shell.to_string(), script }, |o| o.script.clone())
}
