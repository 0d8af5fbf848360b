//! Standard output and standard error.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::errors::{ClosedOutput, Failure};

/// Where results and notes go.
#[derive(Clone, Debug)]
pub struct Console {
    json: bool,
    quiet: bool,
    fancy_out: bool,
    fancy_err: bool,
}

impl Console {
    /// `json`: results as one JSON object; `quiet`: no notes.
    pub fn new(json: bool, quiet: bool) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        Self {
            json,
            quiet,
            fancy_out: !dumb && io::stdout().is_terminal(),
            fancy_err: !dumb && io::stderr().is_terminal(),
        }
    }

    /// Whether results are to be JSON.
    pub fn json(&self) -> bool {
        self.json
    }

    /// Whether notes and progress are unwanted.
    pub fn quiet(&self) -> bool {
        self.quiet
    }

    /// Whether standard output is a terminal that shows lines and boxes.
    pub fn fancy_out(&self) -> bool {
        self.fancy_out
    }

    /// Whether standard error is a terminal that shows progress bars.
    pub fn fancy_err(&self) -> bool {
        self.fancy_err
    }

    /// Prints the result: `value` as JSON, or what `text` makes of it.
    pub fn result<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
        let line = if self.json { serde_json::to_string(value)? } else { text(value) };
        self.line(&line)
    }

    /// Prints a line on standard output.
    pub fn line(&self, text: &str) -> anyhow::Result<()> {
        self.raw(&format!("{}\n", text.trim_end_matches('\n')))
    }

    /// Prints text on standard output at once.
    pub fn raw(&self, text: &str) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(ClosedOutput.into()),
            Err(e) => Err(anyhow::Error::new(e).context("standard output")),
        }
    }

    /// Prints a line on standard error, unless quiet.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            // Nobody can be told if standard error is gone.
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// A line that the user must see.
    pub fn warn(&self, text: &str) {
        let _ = writeln!(io::stderr(), "warning: {text}");
    }

    /// Prints a failure: a line (and a hint) on standard error, and the JSON object if one was asked for.
    pub fn failure(&self, failure: &Failure) {
        let mut err = io::stderr();
        let (red, blue, reset) =
            if self.fancy_err { ("\x1b[1;31m", "\x1b[1;34m", "\x1b[0m") } else { ("", "", "") };
        let _ = writeln!(err, "{red}error:{reset} {}", failure.message);
        if let Some(hint) = &failure.hint {
            let _ = writeln!(err, "{blue}hint:{reset} {hint}");
        }
        if self.json && !failure.is_answered() {
            let _ = self.line(&failure.to_json().to_string());
        }
    }
}
