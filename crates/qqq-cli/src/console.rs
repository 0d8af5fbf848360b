//! Standard output and standard error.

use std::{
    borrow::Cow,
    ffi::OsString,
    io::{self, IsTerminal, Write},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use serde::Serialize;

use crate::{
    controls::visible,
    errors::{ClosedOutput, Failure},
    record::Record,
};

/// Where results and notes go.
#[derive(Clone, Debug)]
pub struct Console {
    json: bool,
    quiet: bool,
    out_is_terminal: bool,
    err_is_terminal: bool,
    fancy_out: bool,
    fancy_err: bool,
    colour_err: bool,
    told: Arc<Mutex<Told>>,
    /// For the JSON of a result that is not printed as it is.
    kept: Option<Arc<Mutex<Option<String>>>>,
}

/// What the user was told beside the result; every JSON object has it.
#[derive(Debug, Default, Serialize)]
struct Told {
    warnings: Vec<String>,
    notes: Vec<String>,
    /// That was drawn because none was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    /// How to do it again.
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<Record>,
}

#[derive(Serialize)]
struct WithTold<'a, T> {
    #[serde(flatten)]
    value: &'a T,
    #[serde(flatten)]
    told: Told,
}

/// What takes warnings that are not the command's own: those of the log.
#[derive(Clone, Debug)]
pub struct Warnings(Arc<Mutex<Told>>);

impl Warnings {
    /// Keeps a warning that was printed.
    pub fn add(&self, text: String) {
        lock(&self.0).warnings.push(text);
    }
}

fn lock<T>(told: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A list to which a panic came in between is a list still.
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Console {
    /// `json`: results as one JSON object; `quiet`: no notes.
    pub fn new(json: bool, quiet: bool) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        let out_is_terminal = io::stdout().is_terminal();
        let err_is_terminal = io::stderr().is_terminal();
        Self {
            json,
            quiet,
            out_is_terminal,
            err_is_terminal,
            fancy_out: !dumb && out_is_terminal,
            fancy_err: !dumb && err_is_terminal,
            colour_err: wants_colour(err_is_terminal, &|name| std::env::var_os(name)),
            told: Arc::default(),
            kept: None,
        }
    }

    /// One that keeps the JSON of a result as well, and with `--json` does not print it.
    pub fn keeping(&self) -> Self {
        Self { kept: Some(Arc::default()), ..self.clone() }
    }

    /// The JSON of the result, where it was [kept](Self::keeping).
    pub fn take_kept(&self) -> Option<String> {
        self.kept.as_ref().and_then(|kept| lock(kept).take())
    }

    /// What results are to say of how they were made.
    pub fn record(&self, run: Option<Record>) {
        lock(&self.told).run = run;
    }

    /// What results say of how they were made.
    pub fn recorded(&self) -> Option<Record> {
        lock(&self.told).run.clone()
    }

    /// A file of text was read, of that SHA-256.
    pub fn read_input(&self, path: &Path, sha256: &str) {
        if let Some(run) = &mut lock(&self.told).run {
            run.add_input(path, sha256);
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

    /// Whether standard error gets colours.
    pub fn colour_err(&self) -> bool {
        self.colour_err
    }

    /// For the log.
    pub fn warnings(&self) -> Warnings {
        Warnings(self.told.clone())
    }

    /// Prints the result: `value` (a struct or a map) as a JSON object, with the warnings and notes until now, or what
    /// `text` makes of it.
    pub fn result<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
        match self.json {
            true => self.result_object(value),
            false => {
                self.keep(value)?;
                self.line(&text(value))
            }
        }
    }

    /// What a command has printed already that was to be read by people.
    pub fn printed_result<T: Serialize>(&self, value: &T) -> anyhow::Result<()> {
        if self.json { self.result_object(value) } else { self.keep(value) }
    }

    fn result_object<T: Serialize>(&self, value: &T) -> anyhow::Result<()> {
        let object = self.object(value)?;
        match &self.kept {
            Some(kept) => *lock(kept) = Some(object),
            None => self.line(&object)?,
        }
        Ok(())
    }

    fn keep<T: Serialize>(&self, value: &T) -> anyhow::Result<()> {
        if let Some(kept) = &self.kept {
            *lock(kept) = Some(serde_json::to_string(value)?);
        }
        Ok(())
    }

    fn object<T: Serialize>(&self, value: &T) -> serde_json::Result<String> {
        let told = std::mem::take(&mut *lock(&self.told));
        serde_json::to_string(&WithTold { value, told })
    }

    /// Prints a line on standard output.
    pub fn line(&self, text: &str) -> anyhow::Result<()> {
        self.raw(&format!("{}\n", text.trim_end_matches('\n')))
    }

    /// Prints text on standard output at once: as it is, but a terminal gets no control characters.
    pub fn raw(&self, text: &str) -> anyhow::Result<()> {
        let text = shown(text, self.out_is_terminal);
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(ClosedOutput.into()),
            Err(e) => Err(anyhow::Error::new(e).context("standard output")),
        }
    }

    /// Prints a line on standard error, unless quiet; it is part of the JSON object as well.
    pub fn note(&self, text: &str) {
        lock(&self.told).notes.push(text.to_owned());
        self.status(text);
    }

    /// As [`note`](Self::note), of what is only worth knowing now (progress), or is in the result already.
    pub fn status(&self, text: &str) {
        if !self.quiet {
            // Nobody can be told if standard error is gone.
            let _ = writeln!(io::stderr(), "{}", shown(text, self.err_is_terminal));
        }
    }

    /// A line that the user must see; it is part of the JSON object as well.
    pub fn warn(&self, text: &str) {
        lock(&self.told).warnings.push(text.to_owned());
        let _ = writeln!(io::stderr(), "warning: {}", shown(text, self.err_is_terminal));
    }

    /// Tells the seed that was drawn for what `--seed -1` asks for.
    pub fn drawn_seed(&self, seed: u64) {
        let mut told = lock(&self.told);
        told.seed = Some(seed);
        if let Some(run) = &mut told.run {
            run.add_option("--seed", &seed.to_string());
        }
        drop(told);
        self.status(&format!("seed: {seed} (drawn; --seed {seed} gives the same again)"));
    }

    /// Prints a failure: what went wrong (and a hint) on standard error, and the JSON object if one was asked for.
    pub fn failure(&self, failure: &Failure) {
        let mut err = io::stderr();
        let (red, blue, reset) =
            if self.colour_err { ("\x1b[1;31m", "\x1b[1;34m", "\x1b[0m") } else { ("", "", "") };
        let shown = |text| shown(text, self.err_is_terminal);
        let _ = writeln!(err, "{red}error:{reset} {}", shown(&failure.message));
        if let Some(hint) = &failure.hint {
            let _ = writeln!(err, "{blue}hint:{reset} {}", shown(hint));
        }
        self.failure_object(failure);
    }

    /// The JSON object of a failure, if one was asked for and is due still.
    pub fn failure_object(&self, failure: &Failure) {
        if self.json
            && !failure.is_answered()
            && let Ok(object) = {
                // What failed has no figures to compare with.
                self.record(None);
                self.object(&failure.to_json())
            }
        {
            let _ = self.line(&object);
        }
    }
}

/// A text as a stream gets it.
fn shown(text: &str, is_terminal: bool) -> Cow<'_, str> {
    if is_terminal { visible(text) } else { text.into() }
}

/// Whether a stream gets colours, by the variables that programs have agreed on (<https://no-color.org>,
/// <https://bixense.com/clicolors>). `get` gives the variables of the environment; what is set to nothing counts as not
/// set.
pub fn wants_colour(is_terminal: bool, get: &dyn Fn(&str) -> Option<OsString>) -> bool {
    let set = |name: &str| get(name).filter(|v| !v.is_empty());
    if set("NO_COLOR").is_some() {
        return false;
    }
    if set("CLICOLOR_FORCE").is_some_and(|v| v != "0") {
        return true;
    }
    is_terminal && set("CLICOLOR").is_none_or(|v| v != "0") && set("TERM").is_none_or(|v| v != "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_as_the_variables_say() {
        let wants = |is_terminal: bool, variables: &[(&str, &str)]| {
            let get = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v));
            wants_colour(is_terminal, &get)
        };
        assert!(wants(true, &[]) && !wants(false, &[]));
        assert!(!wants(true, &[("NO_COLOR", "1")]) && !wants(true, &[("NO_COLOR", "0")]));
        assert!(wants(true, &[("NO_COLOR", ""), ("CLICOLOR", ""), ("TERM", "xterm")]));
        assert!(!wants(true, &[("CLICOLOR", "0")]) && wants(true, &[("CLICOLOR", "1")]));
        assert!(!wants(false, &[("CLICOLOR", "1")]));
        assert!(wants(false, &[("CLICOLOR_FORCE", "1")]));
        assert!(wants(false, &[("CLICOLOR_FORCE", "1"), ("CLICOLOR", "0"), ("TERM", "dumb")]));
        assert!(!wants(false, &[("CLICOLOR_FORCE", "0")]) && !wants(false, &[("CLICOLOR_FORCE", "")]));
        assert!(!wants(false, &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]));
        assert!(!wants(true, &[("TERM", "dumb")]));
    }

    #[test]
    fn objects_have_what_was_told() {
        #[derive(Serialize)]
        struct Result {
            small: f32,
        }
        let console = Console::new(true, true);
        console.note("read");
        console.status("50%");
        console.drawn_seed(7);
        console.warnings().add("old".into());
        assert_eq!(
            console.object(&Result { small: 0.1 }).unwrap(),
            r#"{"small":0.1,"warnings":["old"],"notes":["read"],"seed":7}"#
        );
        assert_eq!(
            console.object(&Result { small: 1.0 }).unwrap(),
            r#"{"small":1.0,"warnings":[],"notes":[]}"#
        );
    }
}
