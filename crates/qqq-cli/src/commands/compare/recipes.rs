//! Quantizing a model by several recipes.
//!
//! Each recipe goes through the command `quantize` itself, with the words that a user would write, in this process: what is
//! refused, told, resumed and stopped by Ctrl-C there is so here.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args as _, FromArgMatches as _};
use qqq_model::Tokenizer;
use qqq_quant::RecipeName;
use serde_json::{Value, json};

use super::{
    CompareArgs,
    kept::{self, Kept},
    subject::{self, Named},
};
use crate::{
    commands::quantize::{self, QuantizeArgs},
    console::Console,
    errors::{bad_input, bad_input_hint},
    files, model,
};

/// Options of `quantize` that say nothing of what comes out, or that `compare` decides.
const OF_THE_RUN: [&str; 15] = [
    "token", "offline", "revision", "output", "resume", "dry-run", "plots", "report", "json", "quiet",
    "verbose", "device", "held-out", "force", "max-kld",
];

/// Recipes of `--recipes`.
pub struct Recipes(Vec<Recipe>);

/// A recipe as it was asked for.
struct Recipe {
    /// `NAME:OPTION=VALUE`.
    text: String,
    /// Where its checkpoint will be.
    output: PathBuf,
    /// The arguments of `quantize` that decide on the result.
    words: Vec<String>,
    /// Whether a calibration text is among them.
    calibrates: bool,
    /// How the hub is reached.
    hub: Vec<String>,
}

impl Recipes {
    /// Those that were asked for, if any; looks at all of them before the first one runs.
    ///
    /// # Errors
    /// A recipe that does not exist, or options that it does not have.
    pub fn new(args: &CompareArgs) -> anyhow::Result<Option<Self>> {
        let Some(folder) = args.output.as_deref().filter(|_| !args.recipes.is_empty()) else {
            return Ok(None);
        };
        let mut recipes: Vec<Recipe> = Vec::new();
        for text in &args.recipes {
            let recipe = Recipe::new(text.trim(), folder, args)?;
            if recipes.iter().any(|other| other.output == recipe.output) {
                return Err(bad_input(format!("--recipes: {} is named twice", recipe.text)));
            }
            quantize::check(&recipe.parsed(false)?)?;
            recipes.push(recipe);
        }
        Ok(Some(Self(recipes)))
    }

    /// Makes the checkpoints that are not there yet.
    ///
    /// # Errors
    /// Those of `quantize`, and one that is there and was made otherwise.
    pub fn make(&self, args: &CompareArgs, console: &Console) -> anyhow::Result<Vec<Named>> {
        let checkpoint = model::open_checked(&args.models[0], &args.hub)?;
        // Before the first one runs, which may take long.
        if !args.texts.is_empty() {
            args.cut.check(&checkpoint, &Tokenizer::load(&checkpoint)?)?;
        }
        for recipe in &self.0 {
            qqq_quant::check_recipe(&checkpoint.config, &quantize::check(&recipe.parsed(false)?)?)
                .with_context(|| format!("--recipes {}", recipe.text))?;
        }
        let source = subject::prints(&checkpoint)?;
        let hashes = || {
            let files = args.calibration.iter().map(Path::new).filter(|path| path.is_file());
            files.map(files::sha256).collect::<anyhow::Result<Vec<_>>>()
        };
        let hashes_before = hashes()?;
        // Before the first one runs as well.
        let mut all = Vec::new();
        for recipe in &self.0 {
            let texts = recipe.calibrates.then_some(&hashes_before);
            let key = json!({ "made": {
                "arguments": recipe.words, "model": source, "calibration": texts, "qqq": env!("CARGO_PKG_VERSION"),
            } });
            let kept = Kept::of(args.output.as_deref(), &recipe.text)?;
            let was_begun = kept.keys().any(|known| *known == key);
            if recipe.output.exists() && !was_begun {
                return Err(bad_input_hint(
                    format!("{} is there, and was made {}", recipe.output.display(), difference(&kept, &key)),
                    "remove it, or give another --output",
                ));
            }
            all.push((recipe, key, kept, was_begun));
        }
        for (index, (recipe, key, mut kept, was_begun)) in all.into_iter().enumerate() {
            if recipe.output.exists() {
                console.status(&format!("{} is there", recipe.output.display()));
                continue;
            }
            kept.retain(|known| known.get("made").is_none())?;
            kept.put(key, &Value::Null)?;
            console.status(&format!("recipe {} ({} of {})", recipe.text, index + 1, self.0.len()));
            // The checkpoint's report says how to make it alone.
            let mut own = console.recorded();
            console.record(own.as_ref().map(|run| run.of_command(recipe.command())));
            quantize::make(&recipe.parsed(was_begun)?, console).inspect_err(|_| {
                console.note("the same qqq compare goes on behind what is finished");
            })?;
            if let (Some(own), Some(made)) = (&mut own, console.recorded()) {
                own.inputs.extend(made.inputs);
            }
            console.record(own);
            if hashes()? != hashes_before {
                return Err(bad_input_hint(
                    format!("--calibration: a text has changed while {} was made", recipe.output.display()),
                    "remove that folder, and start again",
                ));
            }
        }
        let named =
            |recipe: &Recipe| Named { spec: recipe.output.display().to_string(), name: recipe.text.clone() };
        Ok(self.0.iter().map(named).collect())
    }
}

impl Recipe {
    fn new(text: &str, folder: &Path, args: &CompareArgs) -> anyhow::Result<Self> {
        let mut parts = text.split(':');
        let word = parts.next().unwrap_or_default();
        let name: RecipeName = word.parse().map_err(|e| bad_input(format!("--recipes {text}: {e}")))?;
        let mut words = vec!["--recipe".to_owned(), name.word().to_owned()];
        for option in parts {
            let (option, value) = option.split_once('=').unwrap_or((option, ""));
            if OF_THE_RUN.contains(&option) {
                return Err(bad_input_hint(
                    format!(
                        "--recipes {}: {option} is no option of a recipe",
                        text.split('=').next().unwrap_or(text)
                    ),
                    "options of compare go beside --recipes; where a checkpoint goes, and whether it goes on, compare decides",
                ));
            }
            words.push(format!("--{option}"));
            if !value.is_empty() {
                words.push(value.to_owned());
            }
        }
        // What is held out gives the report its pictures; how far a result may be from the float model the comparison tells.
        words.extend(["--max-kld".into(), "off".into(), "--device".into(), args.device.device.to_string()]);
        let calibrates = name.recipe().calibrates();
        if calibrates {
            let mut add = |option: &str, values: Vec<String>| {
                if !values.is_empty() {
                    words.push(option.to_owned());
                    words.extend(values);
                }
            };
            let number = |n: Option<usize>| n.iter().map(ToString::to_string).collect();
            add("--windows", number(args.calibration_windows));
            add("--window", number(args.calibration_window));
            add("--seed", args.seed.iter().map(ToString::to_string).collect());
            add("--calibration", args.calibration.clone());
        }
        if let Some(revision) = &args.hub.revision {
            words.extend(["--revision".to_owned(), revision.clone()]);
        }
        words.extend([String::from("--"), args.models[0].clone()]);
        let mut hub: Vec<String> =
            args.hub.token.iter().flat_map(|token| ["--token".into(), token.clone()]).collect();
        hub.extend(args.hub.offline.then(|| "--offline".into()));
        Ok(Self { text: text.to_owned(), output: folder.join(kept::file_name(text)), words, calibrates, hub })
    }

    /// The command that makes its checkpoint.
    fn command(&self) -> Vec<String> {
        let begin = ["quantize".to_owned(), "-o".into(), self.output.display().to_string()];
        begin.into_iter().chain(self.words.iter().cloned()).collect()
    }

    /// As `quantize` takes it.
    fn parsed(&self, resume: bool) -> anyhow::Result<QuantizeArgs> {
        let command = QuantizeArgs::augment_args(clap::Command::new("quantize").no_binary_name(true));
        let output = ["-o".to_owned(), self.output.display().to_string()];
        let resume = resume.then(|| "--resume".to_owned());
        let words = output.into_iter().chain(resume).chain(self.hub.iter().chain(&self.words).cloned());
        let matches = command.try_get_matches_from(words);
        matches.and_then(|matches| QuantizeArgs::from_arg_matches(&matches)).map_err(|e| {
            let message = e.to_string();
            let first = message.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
            bad_input(format!("--recipes {}: {first}", self.text))
        })
    }
}

/// How a checkpoint that is there was made, in words.
fn difference(kept: &Kept, key: &Value) -> String {
    let Some(known) = kept.keys().find_map(|known| known.get("made")) else {
        return "by another command".to_owned();
    };
    let now = &key["made"];
    let words = |made: &Value| -> String {
        let words = made["arguments"].as_array().into_iter().flatten().filter_map(Value::as_str);
        words.collect::<Vec<_>>().join(" ")
    };
    if known["arguments"] != now["arguments"] {
        return format!("by quantize {}, not {}", words(known), words(now));
    }
    if known["qqq"] != now["qqq"] {
        return format!("by qqq {}", known["qqq"].as_str().unwrap_or("of another version"));
    }
    match known["model"] == now["model"] {
        true => "with another calibration text under the same name".to_owned(),
        false => "from other files of the model under the same name".to_owned(),
    }
}
