//! `qqq rerun`: a run again, from the JSON that it wrote.

mod difference;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use qqq_quant::REPORT_FILE;
use serde::Serialize;
use serde_json::Value;

use self::difference::{differences, figures};
use crate::{
    console::Console,
    errors::{FailedWithResult, bad_input, bad_input_hint},
    files,
    record::{self, Record},
};

const AFTER_HELP: &str = "\
Examples:
  qqq eval perplexity qwen-w4a8 --text wiki.txt --json >perplexity.json
  qqq rerun perplexity.json
  qqq rerun qwen-w4a8/quantization_report.json -o again
  qqq rerun perplexity.json --check                  # can it be run here? nothing is run

FILE is what a command has printed with --json, or the quantization_report.json of a checkpoint: its \"run\" says how the \
program was called. Relative paths are as seen from here, so start it where the first run was started. Texts are compared by \
their SHA-256; models are not. The figures of both runs are then compared, all but times, speeds and memory; where they \
differ, the command fails with exit code 1.";

/// Differences that are printed.
const SHOWN: usize = 20;

/// Run something again from the JSON that it wrote, and compare the figures
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct RerunArgs {
    /// JSON of a run
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// What is made goes here instead: needed where the output of the first run is still there
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,
    /// Only say whether it can be run again: version, variables, texts
    #[arg(long)]
    check: bool,
    /// Run what another version of qqq has run
    #[arg(long)]
    any_version: bool,
}

/// An earlier run.
pub struct Earlier<'a> {
    file: &'a Path,
    result: Value,
    /// How it is called now.
    pub record: Record,
}

/// For `--json`.
#[derive(Serialize)]
struct Comparison {
    figures: usize,
    same: bool,
    differences: Vec<String>,
}

#[derive(Serialize)]
struct Checked<'a> {
    command: &'a str,
    version: &'a str,
    inputs: usize,
}

impl<'a> Earlier<'a> {
    /// Reads what a run wrote.
    ///
    /// # Errors
    /// No JSON of a run; one of another version, with other variables, of texts that are others now.
    pub fn read(args: &'a RerunArgs) -> anyhow::Result<Self> {
        let file = &args.file;
        let name = file.display();
        let text = fs::read_to_string(file).map_err(|e| bad_input(format!("{name}: {e}")))?;
        let result: Value =
            serde_json::from_str(&text).map_err(|e| bad_input(format!("{name} is no JSON: {e}")))?;
        let Some(run) = result.get("run") else {
            return Err(bad_input_hint(
                format!("{name} has no \"run\", so it does not say how it was made"),
                "give what a command has printed with --json, or a quantization_report.json; older versions of qqq did not write it",
            ));
        };
        let record: Record = serde_json::from_value(run.clone())
            .map_err(|e| bad_input(format!("{name}: \"run\" is not what qqq writes: {e}")))?;
        if args.output.is_none() && !args.check && record.keeps_measurements() {
            return Err(bad_input_hint(
                format!(
                    "{name} is a comparison whose folder keeps what was measured: nothing would be measured again"
                ),
                "give another folder: --output",
            ));
        }
        let mut earlier = Self { file, result, record };
        earlier.check(args.any_version)?;
        // Its copy stands in the output.
        earlier.record.remove_option("--report");
        if let Some(output) = &args.output {
            earlier.record.add_option("--output", &output.display().to_string());
        }
        Ok(earlier)
    }

    fn check(&self, any_version: bool) -> anyhow::Result<()> {
        let (name, record) = (self.file.display(), &self.record);
        let own = env!("CARGO_PKG_VERSION");
        if record.version != own && !any_version {
            return Err(bad_input_hint(
                format!("{name} was written by qqq {}, and this is {own}", record.version),
                "take that version, or --any-version to see what has changed",
            ));
        }
        let now = record::environment(&|name| std::env::var_os(name));
        if now != record.environment {
            let shown = |variables: &std::collections::BTreeMap<String, String>| match variables.is_empty() {
                true => "neither QQQ_THREADS nor QQQ_ISA".to_owned(),
                false => variables.iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>().join(" "),
            };
            return Err(bad_input_hint(
                format!("{name} was run with {}, and here is {}", shown(&record.environment), shown(&now)),
                "set the same variables of the environment: figures may depend on them",
            ));
        }
        let mut changed = Vec::new();
        for (path, sha256) in &record.inputs {
            match files::sha256(Path::new(path)) {
                Ok(found) if found == *sha256 => {}
                Ok(found) => changed.push(format!("{path} has SHA-256 {found}, and had {sha256}")),
                Err(e) => changed.push(format!("{path}: {:#}", e)),
            }
        }
        if changed.is_empty() {
            return Ok(());
        }
        Err(bad_input_hint(
            format!("what {name} was made of is not here as it was:\n{}", changed.join("\n")),
            "relative paths are as seen from here: start it where the first run was started",
        ))
    }

    /// Why its arguments are none.
    pub fn unusable(&self, reason: &str) -> anyhow::Error {
        let (name, command) = (self.file.display(), self.record.command());
        let reason = reason.trim().trim_start_matches("error: ");
        bad_input(format!("{name} cannot be run again as `{command}`: {reason}"))
    }

    /// Says that it can be run.
    ///
    /// # Errors
    /// Standard output is gone.
    pub fn checked(&self, console: &Console) -> anyhow::Result<()> {
        let (command, inputs) = (self.record.command(), self.record.inputs.len());
        let checked = Checked { command: &command, version: &self.record.version, inputs };
        console.result(&checked, |c| {
            format!("{}\ncan be run again: {} as they were", c.command, texts(c.inputs))
        })
    }

    /// Compares what is there now, the JSON of a result; with `--json` prints both.
    ///
    /// # Errors
    /// The figures differ.
    pub fn compare(&self, now: &str, console: &Console) -> anyhow::Result<()> {
        let mut result: Value = serde_json::from_str(now).context("the result")?;
        if let (None, Some(_), Some(Value::String(output))) =
            (self.result.get("report"), result.get("report"), result.get("output"))
        {
            // What is compared with is the report in a checkpoint.
            let path = Path::new(output).join(REPORT_FILE);
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            result = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        }
        let differences = differences(&self.result, &result);
        let comparison =
            Comparison { figures: figures(&self.result), same: differences.is_empty(), differences };
        let name = self.file.display();
        let Comparison { figures, same, differences } = &comparison;
        if console.json() {
            let object = now.trim_end().strip_suffix('}').context("the result is no object")?;
            console.line(&format!("{object},\"rerun\":{}}}", serde_json::to_string(&comparison)?))?;
        } else if *same {
            console.line(&format!("\nrerun: all {figures} figures are those of {name} (times aside)"))?;
        } else {
            let mut text = format!("\nrerun: not as in {name}:");
            for difference in differences.iter().take(SHOWN) {
                text += &format!("\n  {difference}");
            }
            if differences.len() > SHOWN {
                text += &format!("\n  and {} more", differences.len() - SHOWN);
            }
            console.line(&text)?;
        }
        match *same {
            true => Ok(()),
            false => {
                let what = format!("{} values differ from those of {name}", differences.len());
                Err(FailedWithResult(what).into())
            }
        }
    }
}

impl RerunArgs {
    /// Whether nothing is to be run.
    pub fn only_checks(&self) -> bool {
        self.check
    }
}

fn texts(count: usize) -> String {
    match count {
        0 => "it has read no texts, other files are not looked at; all is".into(),
        1 => "one text is".into(),
        n => format!("{n} texts are"),
    }
}
