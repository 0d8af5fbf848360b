//! Recipes of papers on the command line: what they leave open may be said, and nothing else.

use qqq_formats::{Activations, CodeBits};
use qqq_quant::{
    Calibration, Clip, Recipe,
    recipes::{Entry, PUBLISHED, Setting},
};

use super::{
    ActivationKind, AmountArgs, RecipeArgs,
    papers::{Alpha, PaperArgs},
};
use crate::errors::{bad_input, bad_input_hint};

/// Tokens that a recipe takes of the built-in text, at most, unless their number is given: it holds no more than some 100,000.
const BUILT_IN_TOKENS: usize = 65_536;

/// Options, by their names, and what of a recipe they say. Those without are the tool's own recipe's alone.
static OPTIONS: [(&str, Option<Setting>); 35] = [
    ("transform", None),
    ("rotation", Some(Setting::Rotation)),
    ("alpha", Some(Setting::MigrationStrength)),
    ("epochs", Some(Setting::Epochs)),
    ("outlier-threshold", Some(Setting::OutlierThreshold)),
    ("outliers", Some(Setting::Outliers)),
    ("outlier-bits", Some(Setting::OutlierBits)),
    ("down-bits", Some(Setting::DownBits)),
    ("beta1", Some(Setting::Beta1)),
    ("beta2", Some(Setting::Beta2)),
    ("statistics-bits", Some(Setting::StatisticsBits)),
    ("greedy", Some(Setting::Greedy)),
    ("rho", Some(Setting::Rho)),
    ("no-incoherence", Some(Setting::Incoherence)),
    ("bits", Some(Setting::Bits)),
    ("activations", Some(Setting::Activations)),
    ("rules", None),
    ("budget", None),
    ("head", None),
    ("group-size", Some(Setting::GroupSize)),
    ("group-scales", None),
    ("method", None),
    ("clip", None),
    ("no-act-order", Some(Setting::ActOrder)),
    ("damping", Some(Setting::Damping)),
    ("value-hessian", None),
    ("propagation", None),
    ("error-correction", None),
    ("smooth-tokens", Some(Setting::SmoothTokens)),
    ("windows", Some(Setting::Text)),
    ("window", Some(Setting::Text)),
    ("calibration", Some(Setting::Text)),
    ("text-format", Some(Setting::Text)),
    ("text-field", Some(Setting::Text)),
    ("seed", Some(Setting::Seed)),
];

/// The name of an option as it is written.
fn written(option: &str) -> &str {
    if option == "rules" { "rule" } else { option }
}

impl RecipeArgs {
    /// The recipe of a paper, with what was said of it. `built_in`: whether the text is the built-in one.
    pub(super) fn published(
        &self,
        entry: &Entry,
        amount: &AmountArgs,
        built_in: bool,
    ) -> anyhow::Result<Recipe> {
        self.refuse_foreign(entry)?;
        let mut recipe = (entry.recipe)();
        if let Some(method) = recipe.simulated {
            recipe = Recipe::simulating(self.simulated(method)?);
        } else if self.given.has("bits") {
            recipe.bits = self.code_bits()?;
        }
        if recipe.bits == CodeBits::Eight {
            recipe.group_size = None;
        }
        if self.given.has("group-size") {
            recipe.group_size = self.group_size()?;
        }
        if recipe.clip == Clip::GroupOutput && recipe.group_size.is_none() {
            return Err(bad_input_hint(
                format!("--group-size channel: recipe {} ({}) quantizes in groups", entry.word, entry.source),
                "take 32, 64 or 128",
            ));
        }
        if self.given.has("activations") {
            recipe.activations = match self.activations {
                ActivationKind::Int8 => Activations::Int8,
                ActivationKind::Half => Activations::Half,
            };
        }
        if let Some(alpha) = self.papers.alpha {
            recipe.migration_strength = match alpha {
                Alpha::Given(strength) => Some(strength),
                Alpha::Search => None,
            };
        }
        recipe.epochs = self.papers.epochs.or(recipe.epochs);
        if self.given.has("damping") && recipe.simulated.is_none() {
            recipe.damping = self.damping;
        }
        recipe.act_order &= !self.no_act_order;
        recipe.rotation = self.rotation;
        recipe.seed = self.seed.value()?.0;
        recipe.calibration = self.amount_of(&recipe, amount, built_in);
        if !recipe.calibrates() {
            if !recipe.needs_text().is_empty() {
                return Err(bad_input_hint(
                    format!(
                        "--windows 0 leaves no calibration text, which --recipe {} cannot do without",
                        entry.word
                    ),
                    "leave --windows out",
                ));
            }
            let idle = ["calibration", "window", "text-format", "text-field", "seed"];
            if let Some(option) = idle.into_iter().find(|option| self.given.has(option)) {
                return Err(bad_input(format!(
                    "--{option} does nothing without calibration windows (--windows): leave it out"
                )));
            }
        }
        Ok(recipe)
    }

    /// How much text: what was said, else the paper's amount, and of the built-in text what it holds.
    fn amount_of(&self, recipe: &Recipe, amount: &AmountArgs, built_in: bool) -> Calibration {
        let own = recipe.calibration;
        let window = if self.given.has("window") { amount.window } else { own.window };
        let measures = ["calibration", "window", "text-format", "text-field"];
        let windows = match own.windows {
            // Text then only measures what is lost.
            0 if measures.into_iter().any(|option| self.given.has(option)) => {
                Recipe::DEFAULT.calibration.windows
            }
            windows if built_in => windows.min((BUILT_IN_TOKENS / window.max(1)).max(1)),
            windows => windows,
        };
        let smooth_tokens = if self.given.has("smooth-tokens") {
            amount.smooth_tokens
        } else {
            own.smooth_tokens.min(window)
        };
        Calibration { windows: amount.windows.unwrap_or(windows), window, smooth_tokens }
    }

    /// Refuses options of papers that the tool's own recipe does not have.
    pub(super) fn refuse_papers(&self) -> anyhow::Result<()> {
        let given = PaperArgs::OPTIONS.into_iter().find(|option| self.given.has(option));
        let Some(option) = given else { return Ok(()) };
        let setting = OPTIONS.iter().find(|(name, _)| *name == option).and_then(|(_, setting)| *setting);
        let owns = |entry: &&Entry| setting.is_some_and(|setting| entry.settings.contains(&setting));
        let owners: Vec<&str> = PUBLISHED.iter().filter(owns).map(|entry| entry.word).collect();
        Err(bad_input_hint(
            format!("--{option}: the tool's own recipe (best) has no such option"),
            format!("it is that of --recipe {}", owners.join(" and ")),
        ))
    }

    /// Refuses options that the paper does not have.
    fn refuse_foreign(&self, entry: &Entry) -> anyhow::Result<()> {
        let has =
            |setting: &Option<Setting>| setting.is_some_and(|setting| entry.settings.contains(&setting));
        let foreign = OPTIONS.iter().find(|(option, setting)| self.given.has(option) && !has(setting));
        let Some((option, _)) = foreign else { return Ok(()) };
        let own: Vec<String> = OPTIONS
            .iter()
            .filter(|(_, setting)| has(setting))
            .map(|(option, _)| format!("--{}", written(option)))
            .collect();
        let has = match own.is_empty() {
            true => "it has none".to_owned(),
            false => format!("it has {}", own.join(", ")),
        };
        Err(bad_input_hint(
            format!("--{}: recipe {} ({}) has no such option", written(option), entry.word, entry.source),
            format!("leave one of the two out; {has}"),
        ))
    }
}

/// All recipes in a table, for the help.
pub fn table() -> String {
    let mut text = String::from(
        "Recipes:\n  best         the tool's own, with the options above: keeps most quality; W4A8 unless they say otherwise\n",
    );
    for entry in PUBLISHED {
        text += &format!("  {:<12} {}: {}; {}\n", entry.word, entry.gives, entry.what, entry.source);
    }
    text
}
