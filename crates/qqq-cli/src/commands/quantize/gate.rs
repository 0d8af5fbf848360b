//! How far from the float model a result may be, and what is said of one that is further away.

use std::path::Path;

use anyhow::anyhow;
use qqq_quant::{BeyondGate, Gate, QuantError, Report, Transform, calibration, recipes::Setting};
use serde::Serialize;
use serde_json::Value;

use super::summary;
use crate::{
    console::Console,
    errors::{FailedWithResult, Failure, bad_input, bad_input_hint},
    numbers::{self, MaxKld},
};

/// What is asked of the result.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Quality")]
pub struct GateArgs {
    /// Windows of the text that calibration does not see, on which the result is compared with the float model at the end;
    /// without calibration windows they are of the built-in text, and short. 0: none [default: 2]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = numbers::whole)]
    held_out: Option<usize>,
    /// Fail if the result is further from the float model: KL divergence on the held-out text, in nats per token, or "off".
    /// The checkpoint then lies beside OUT, as OUT.failed-gate [default: 4, which only broken results are beyond]
    #[arg(long, value_name = "NATS", allow_negative_numbers = true, value_parser = MaxKld::parse)]
    max_kld: Option<MaxKld>,
    /// Call a result OUT that is beyond --max-kld, with a warning
    #[arg(long)]
    force: bool,
}

impl GateArgs {
    /// Windows that are held out.
    pub fn held_out(&self) -> usize {
        self.held_out.unwrap_or(calibration::HELD_OUT)
    }

    /// What a result must be.
    ///
    /// # Errors
    /// Options of which one makes another do nothing.
    pub fn gate(&self) -> anyhow::Result<Gate> {
        let limited = !matches!(self.max_kld, Some(MaxKld(None)));
        if self.force && !limited {
            return Err(bad_input("--force does nothing with --max-kld off: leave it out"));
        }
        if self.held_out() == 0 {
            if matches!(self.max_kld, Some(MaxKld(Some(_)))) {
                return Err(bad_input_hint(
                    "--max-kld is measured on held-out text, and --held-out 0 leaves none",
                    "leave --held-out out",
                ));
            }
            if self.force {
                return Err(bad_input("--force does nothing with --held-out 0: leave it out"));
            }
        }
        let max_kld = self.max_kld.map_or(Gate::DEFAULT.max_kld, |limit| limit.0);
        Ok(Gate { max_kld, force: self.force })
    }
}

/// For `--json`.
#[derive(Serialize)]
struct Failed<'a> {
    error: Value,
    output: &'a Path,
    report: &'a Report,
}

/// Tells of a checkpoint that did not get its name: its summary, and why it failed.
pub fn refused(beyond: Box<BeyondGate>, console: &Console) -> anyhow::Error {
    let error = anyhow!(QuantError::Gate(beyond.clone()));
    let BeyondGate { path, report } = &*beyond;
    let object = Failure::of(&error).to_json()["error"].take();
    let failed = Failed { error: object, output: path, report };
    match console.result(&failed, |failed| summary(failed.report, failed.output)) {
        Ok(()) => {
            let message = error.to_string();
            error.context(FailedWithResult(message))
        }
        Err(e) => e,
    }
}

/// What may help a result that is too far from the float model.
pub fn way_out(beyond: &BeyondGate) -> String {
    let recipe = &beyond.report.recipe;
    let mut ways = Vec::new();
    let published = recipe.name.entry();
    if let Some(entry) = published {
        // It has no other options than its own.
        if entry.settings.contains(&Setting::Bits) {
            ways.push("more bits (--bits)");
        }
        ways.push("the tool's own recipe (--recipe best)");
    }
    match recipe.group_size {
        _ if published.is_some() => {}
        None => ways.push("groups (--group-size 64)"),
        Some(64..) => ways.push("finer groups (--group-size 32)"),
        Some(_) => {}
    }
    if recipe.transform != Transform::Rotate && published.is_none() {
        ways.push("rotation, where the model allows it (--transform rotate)");
    }
    if !recipe.compensate && published.is_none() {
        ways.push("compensation (--method gptq)");
    }
    if recipe.calibrates() {
        ways.push("more text, and text that the model knows (--windows, --calibration)");
    }
    format!(
        "try {}; see that the float model is sound (qqq eval perplexity {} --text FILE); --force gives such a result its name",
        ways.join(", "),
        crate::format::shell_word(Path::new(&beyond.report.model))
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        gate: GateArgs,
    }

    #[test]
    fn options_arrive_and_idle_ones_are_refused() {
        let gate = |line: &str| {
            let line = Line::try_parse_from(["qqq"].into_iter().chain(line.split_whitespace()));
            let line = line.map_err(|e| e.to_string())?;
            Ok((line.gate.held_out(), line.gate.gate().map_err(|e: anyhow::Error| e.to_string())?))
        };
        assert_eq!(gate(""), Ok((2, Gate::DEFAULT)));
        assert_eq!(
            gate("--held-out 5 --max-kld 0.5 --force"),
            Ok((5, Gate { max_kld: Some(0.5), force: true }))
        );
        assert_eq!(gate("--max-kld off"), Ok((2, Gate::OPEN)));
        assert_eq!(gate("--held-out 0"), Ok((0, Gate::DEFAULT)));
        for (line, says) in [
            ("--max-kld 0", "above 0"),
            ("--max-kld -1", "above 0"),
            ("--max-kld nan", "above 0"),
            ("--max-kld none", "\"off\""),
            ("--held-out -1", "from 0 on"),
            ("--max-kld off --force", "--force does nothing"),
            ("--held-out 0 --force", "--force does nothing"),
            ("--held-out 0 --max-kld 1", "leaves none"),
        ] {
            let error: Result<_, String> = gate(line);
            let error = error.unwrap_err();
            assert!(error.contains(says), "{line}: {error}");
        }
    }
}
