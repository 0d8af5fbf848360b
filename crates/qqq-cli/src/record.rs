//! What a run was: enough to do it again. Every result of `--json` has it, and so has a quantization's report.

use std::{collections::BTreeMap, ffi::OsString, path::Path};

use serde::{Deserialize, Serialize};

/// Variables of the environment that figures may depend on.
const VARIABLES: [&str; 2] = ["QQQ_THREADS", "QQQ_ISA"];

/// How the program was called, and what it read. Paths are as they were given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Of qqq.
    pub version: String,
    /// The arguments, without what only says how results are shown, and without tokens of the hub.
    pub arguments: Vec<String>,
    /// Variables that figures may depend on, as far as they are set.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// SHA-256 of files of text that were read.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inputs: BTreeMap<String, String>,
}

impl Record {
    /// Of this process; nothing where an argument is not Unicode, as JSON cannot tell it.
    pub fn of_this_process() -> Option<Self> {
        let arguments: Option<Vec<String>> =
            std::env::args_os().skip(1).map(|a| a.into_string().ok()).collect();
        Some(Self {
            version: env!("CARGO_PKG_VERSION").into(),
            arguments: essential(arguments?),
            environment: environment(&|name| std::env::var_os(name)),
            inputs: BTreeMap::new(),
        })
    }

    /// That of another command in this process.
    pub fn of_command(&self, arguments: Vec<String>) -> Self {
        Self { arguments, inputs: BTreeMap::new(), ..self.clone() }
    }

    /// Adds a file that was read.
    pub fn add_input(&mut self, path: &Path, sha256: &str) {
        self.inputs.insert(path.display().to_string(), sha256.to_owned());
    }

    /// An option that takes the place of the same one before it.
    pub fn add_option(&mut self, name: &str, value: &str) {
        // The last one counts.
        let end = self.end_of_options();
        self.arguments.splice(end..end, [name.to_owned(), value.to_owned()]);
    }

    /// Takes an option with its value away.
    pub fn remove_option(&mut self, name: &str) {
        let joined = format!("{name}=");
        while let Some(at) =
            self.arguments[..self.end_of_options()].iter().position(|a| a == name || a.starts_with(&joined))
        {
            let end = if self.arguments[at] == name { at + 2 } else { at + 1 };
            self.arguments.drain(at..end.min(self.arguments.len()));
        }
    }

    /// Whether it is a comparison with a folder: what it measured is there, and is not measured again.
    pub fn keeps_measurements(&self) -> bool {
        let options = &self.arguments[..self.end_of_options()];
        let is_output =
            |a: &String| a.starts_with("--output") || (a.starts_with("-o") && !a.starts_with("--"));
        options.iter().find(|a| !a.starts_with('-')).is_some_and(|command| command == "compare")
            && options.iter().any(is_output)
    }

    fn end_of_options(&self) -> usize {
        self.arguments.iter().position(|a| a == "--").unwrap_or(self.arguments.len())
    }

    /// The command, as a shell takes it.
    pub fn command(&self) -> String {
        let arguments = shlex::try_join(self.arguments.iter().map(String::as_str));
        format!("qqq {}", arguments.unwrap_or_else(|_| self.arguments.join(" ")))
    }
}

/// The variables that figures may depend on; what is empty counts as not set.
pub fn environment(get: &dyn Fn(&str) -> Option<OsString>) -> BTreeMap<String, String> {
    let of = |name: &str| {
        let value = get(name)?.into_string().ok().filter(|value| !value.is_empty())?;
        Some((name.to_owned(), value))
    };
    VARIABLES.into_iter().filter_map(of).collect()
}

/// Arguments without `--json`, `--quiet`, `--verbose` and `--token`.
fn essential(arguments: Vec<String>) -> Vec<String> {
    let mut kept = Vec::new();
    let mut all = arguments.into_iter();
    while let Some(argument) = all.next() {
        let argument = match argument.strip_prefix('-') {
            Some(letters) if letters.starts_with(['q', 'v']) => {
                match letters.trim_start_matches(['q', 'v']) {
                    "" => continue,
                    others => format!("-{others}"),
                }
            }
            _ => argument,
        };
        match argument.as_str() {
            "--" => {
                kept.push(argument);
                kept.extend(all);
                break;
            }
            "--json" | "--quiet" | "--verbose" => {}
            "--token" => drop(all.next()),
            _ if argument.starts_with("--token=") => {}
            // What follows may look like an option, and is text.
            "--prompt" | "-p" | "--stop" => kept.extend([Some(argument), all.next()].into_iter().flatten()),
            _ => kept.push(argument),
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(arguments: &str) -> String {
        essential(arguments.split(' ').map(str::to_owned).collect()).join(" ")
    }

    #[test]
    fn what_only_shows_results_and_what_is_secret_is_left_out() {
        for (given, expected) in [
            ("--json eval perplexity m -q --text t --limit -1 -vv", "eval perplexity m --text t --limit -1"),
            ("quantize m -qo out --threads 2 --token hf_secret --quiet", "quantize m -o out --threads 2"),
            ("quantize m --token=hf_secret -oq", "quantize m -oq"),
            ("generate m -p -v --stop --json --verbose", "generate m -p -v --stop --json"),
            ("generate m -qp --json --prompt-file -", "generate m -p --json --prompt-file -"),
            ("generate m -- --json -q", "generate m -- --json -q"),
            ("generate m --token", "generate m"),
        ] {
            assert_eq!(kept(given), expected, "{given}");
        }
    }

    #[test]
    fn options_are_added_and_taken_away_before_the_end_of_options() {
        let changed = |arguments: &str, change: &dyn Fn(&mut Record)| {
            let arguments = arguments.split(' ').map(str::to_owned).collect();
            let mut record = Record { arguments, ..Record::default() };
            change(&mut record);
            record.command()
        };
        let seed = |record: &mut Record| record.add_option("--seed", "7");
        assert_eq!(changed("synth --seed -1 -o out", &seed), "qqq synth --seed -1 -o out --seed 7");
        assert_eq!(changed("generate m --seed -1 -- -x", &seed), "qqq generate m --seed -1 --seed 7 -- -x");
        let report = |record: &mut Record| record.remove_option("--report");
        let without = changed("quantize m --report a -o out --report=b -- --report", &report);
        assert_eq!(without, "qqq quantize m -o out -- --report");
    }

    #[test]
    fn variables_that_are_set_to_something_are_kept() {
        let set = [("QQQ_ISA", "portable"), ("QQQ_THREADS", ""), ("HF_TOKEN", "hf_secret")];
        let get = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v));
        let found = environment(&get);
        assert_eq!(found, BTreeMap::from([("QQQ_ISA".to_owned(), "portable".to_owned())]));
    }
}
