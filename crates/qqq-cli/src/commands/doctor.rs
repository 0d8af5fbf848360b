//! `qqq doctor`.

mod gpu;
mod hub;
mod machine;
mod variables;

use serde::Serialize;

use crate::{console::Console, errors::FailedWithResult};

const AFTER_HELP: &str = "\
Examples:
  qqq doctor
  qqq doctor --json

For each thing that is missing it says what that costs, and how to mend it. The hub is asked for 3 seconds at most, and \
not at all where HF_HUB_OFFLINE is set. Exit code 0: models run on this CPU; 1: something stops even that.";

/// Look at this machine: CPU, GPUs, compiler, memory, disks, hub, environment
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct DoctorArgs {}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// As it should be.
    Ok,
    /// Missing; the rest works without.
    Lack,
    /// Nothing can be computed like this.
    Fault,
}

/// What was found of one thing.
#[derive(Debug, Serialize)]
struct Finding {
    /// What was looked at.
    what: &'static str,
    state: State,
    found: String,
    /// What a lack costs.
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<String>,
    /// How to mend it.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
    /// The numbers, for programs.
    #[serde(skip_serializing_if = "serde_json::Value::is_null")]
    details: serde_json::Value,
}

impl Finding {
    fn ok(what: &'static str, found: impl Into<String>) -> Self {
        Self {
            what,
            state: State::Ok,
            found: found.into(),
            cost: None,
            mend: None,
            details: serde_json::Value::Null,
        }
    }

    fn lack(
        what: &'static str,
        found: impl Into<String>,
        cost: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        let (cost, mend) = (Some(cost.into()), Some(mend.into()));
        Self { state: State::Lack, cost, mend, ..Self::ok(what, found) }
    }

    fn fault(what: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        let cost = Some("no command computes anything".into());
        Self { state: State::Fault, cost, mend: Some(mend.into()), ..Self::ok(what, found) }
    }

    fn with(self, details: serde_json::Value) -> Self {
        Self { details, ..self }
    }
}

/// For `--json`.
#[derive(Serialize)]
struct Report {
    version: &'static str,
    /// Whether models run on the CPU.
    ok: bool,
    findings: Vec<Finding>,
}

/// Runs the command. `threads` is what `--threads` says.
pub fn run(_args: &DoctorArgs, threads: Option<usize>, console: &Console) -> anyhow::Result<()> {
    let findings: Vec<Finding> =
        [machine::look(threads), gpu::look(), machine::disks(), hub::look(), variables::look()]
            .into_iter()
            .flatten()
            .collect();
    let faults: Vec<&str> =
        findings.iter().filter(|f| f.state == State::Fault).map(|f| f.found.as_str()).collect();
    let failure = (!faults.is_empty()).then(|| FailedWithResult(faults.join("; ")));
    let report = Report { version: env!("CARGO_PKG_VERSION"), ok: failure.is_none(), findings };
    console.result(&report, summary)?;
    failure.map_or(Ok(()), |failure| Err(failure.into()))
}

fn summary(report: &Report) -> String {
    let width = report.findings.iter().map(|f| f.what.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for finding in &report.findings {
        let mark = match finding.state {
            State::Ok => "ok",
            State::Lack => "lack",
            State::Fault => "FAULT",
        };
        text += &format!("{mark:5}  {:width$}  {}\n", finding.what, finding.found);
        let below = " ".repeat(5 + 2 + width + 2);
        for (name, line) in [("costs", &finding.cost), ("mend", &finding.mend)] {
            if let Some(line) = line {
                text += &format!("{below}{name}: {line}\n");
            }
        }
    }
    let lacks = report.findings.iter().filter(|f| f.state == State::Lack).count();
    text += &match (report.ok, lacks) {
        (false, _) => "\nNothing can be computed before the faults are mended.\n".to_owned(),
        (true, 0) => "\nNothing is missing.\n".to_owned(),
        (true, n) => format!("\nModels run on this CPU; {n} of the above could be better.\n"),
    };
    text
}
