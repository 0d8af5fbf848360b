//! Recipe options on the command line.

use clap::ValueEnum;
use qqq_formats::SimulatedMethod;
use qqq_quant::{
    Calibration, Clip, GroupScales, MAX_DAMPING, NeedsText, Propagation, Recipe, RotationKind, Transform,
    ValueHessian,
};

use crate::{
    errors::{bad_input, bad_input_hint},
    given::Given,
    numbers::{self, Seed},
};

/// Input channels that share a scale.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum GroupSize {
    /// A scale for 32 input channels of an output channel
    #[value(name = "32")]
    G32 = 32,
    /// A scale for 64
    #[value(name = "64")]
    G64 = 64,
    /// A scale for 128
    #[value(name = "128")]
    G128 = 128,
    /// One scale for a whole output channel: fastest, less exact
    Channel,
}

impl GroupSize {
    /// Channels of a group; `None`: all of them.
    pub fn channels(self) -> Option<usize> {
        (self != Self::Channel).then_some(self as usize)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Method {
    /// Hessian-based compensation: later columns make up for the rounding of earlier ones
    Gptq,
    /// Round to nearest
    Rtn,
}

/// What to do to the weights.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Recipe")]
pub struct RecipeArgs {
    // First: it sees what comes after it.
    #[command(flatten)]
    given: Given,
    /// The method of another paper, to compare with: llm-int8, quik, spqr or quip. Its arithmetic is simulated: the checkpoint
    /// holds 16-bit weights and says what they stand for. Parameters after a colon, those of the paper where none are
    /// given: quip:bits=3,greedy=10 (docs/recipes.md has all of them)
    #[arg(long, value_name = "NAME[:KEY=VALUE,...]", value_parser = simulated)]
    recipe: Option<SimulatedMethod>,
    /// What is done to the model before rounding; absorbed into the weights, free at run time
    #[arg(long, value_enum, default_value_t = Recipe::DEFAULT.transform)]
    transform: Transform,
    /// Matrix of the rotation; giving it asks for --transform rotate
    #[arg(long, value_enum, default_value_t = Recipe::DEFAULT.rotation)]
    rotation: RotationKind,
    /// Input channels that share a scale: smaller is more exact and a little larger and slower
    #[arg(long, value_enum, default_value_t = GroupSize::G64)]
    group_size: GroupSize,
    /// How the scales of groups are kept [default: integer, where there are groups]
    #[arg(long, value_enum)]
    group_scales: Option<GroupScales>,
    /// How weights are rounded
    #[arg(long, value_enum, default_value_t = Method::Gptq)]
    method: Method,
    /// How scales are chosen: clipping the largest weights can make all others more exact [default: output, and weight with
    /// --method rtn, which then needs no text]
    #[arg(long, value_enum)]
    clip: Option<Clip>,
    /// Round columns in their natural order, not the most important ones first
    #[arg(long)]
    no_act_order: bool,
    /// Share of the Hessian's mean diagonal that is added to it; rises by itself where that is too little
    #[arg(long, value_name = "X", default_value_t = Recipe::DEFAULT.damping, allow_negative_numbers = true)]
    damping: f64,
    /// What the value projection's compensation looks at
    #[arg(long, value_enum, default_value_t = Recipe::DEFAULT.value_hessian)]
    value_hessian: ValueHessian,
    /// What later layers are calibrated on
    #[arg(long, value_enum, default_value_t = Recipe::DEFAULT.propagation)]
    propagation: Propagation,
    /// How far weights are moved before rounding, to make up for what the quantized layers before have done to their
    /// inputs: 0 (not at all, three times as fast on a CPU) to 1 (least squares on the calibration text) [default: 0.5, and 0
    /// with --method rtn or --propagation float]
    #[arg(long, value_name = "STRENGTH", allow_negative_numbers = true)]
    error_correction: Option<f64>,
    /// Seed of everything random (rotation, choice of windows, samples): the same seed gives the same checkpoint; -1: a
    /// random one, which is told
    #[arg(long, value_name = "N", default_value = "0", allow_negative_numbers = true, value_parser = Seed::parse)]
    seed: Seed,
}

/// Amount of calibration data.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Calibration")]
pub struct AmountArgs {
    /// Windows of text for calibration; 0: none, as --method rtn can do without unless --clip output or --transform smooth
    /// need it (windows then only measure what was lost) [default: 32; where neither --method nor --clip need any and
    /// no option about the text is given: 0, and 1 with --transform smooth]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = numbers::whole)]
    windows: Option<usize>,
    /// Tokens of a window
    #[arg(long, value_name = "TOKENS", default_value_t = Recipe::DEFAULT.calibration.window, allow_negative_numbers = true,
        value_parser = numbers::count)]
    window: usize,
    /// Tokens of the first window on which --transform smooth searches its thresholds
    #[arg(long, value_name = "TOKENS", default_value_t = Recipe::DEFAULT.calibration.smooth_tokens,
        allow_negative_numbers = true, value_parser = numbers::count)]
    smooth_tokens: usize,
}

impl RecipeArgs {
    /// The recipe that these options describe.
    pub fn recipe(&self, amount: &AmountArgs) -> anyhow::Result<Recipe> {
        if let Some(method) = self.recipe {
            return self.simulating(method, amount);
        }
        if !(0.0..=MAX_DAMPING).contains(&self.damping) {
            return Err(bad_input(format!(
                "--damping must be a number from 0 to {MAX_DAMPING}, not {:?}",
                self.damping
            )));
        }
        if let Some(strength) = self.error_correction
            && !(0.0..=1.0).contains(&strength)
        {
            return Err(bad_input(format!(
                "--error-correction must be a number from 0 to 1, not {strength:?}"
            )));
        }
        if self.corrects() && self.propagation == Propagation::Float {
            return Err(bad_input_hint(
                "--error-correction makes up for what quantized layers have done to the inputs of later ones, and with \
                 --propagation float nothing was done to these",
                "leave one of the two out",
            ));
        }
        let windows = self.windows(amount);
        self.refuse_idle(amount, windows)?;
        let recipe = Recipe {
            transform: self.transform(),
            rotation: self.rotation,
            group_size: self.group_size.channels(),
            group_scales: self.group_scales.unwrap_or(Recipe::DEFAULT.group_scales),
            compensate: self.method == Method::Gptq,
            clip: self.clip(),
            act_order: !self.no_act_order,
            damping: self.damping,
            value_hessian: self.value_hessian,
            propagation: self.propagation,
            // Without windows there is nothing to learn from, which only matters to who asks for it.
            error_correction: match self.error_correction {
                None if windows == 0 => 0.0,
                _ => self.error_correction(),
            },
            calibration: Calibration {
                windows,
                window: amount.window,
                smooth_tokens: amount.smooth_tokens.min(amount.window),
            },
            seed: self.seed.value()?.0,
            simulated: None,
        };
        if !recipe.calibrates() {
            refuse_without_text(&recipe.needs_text())?;
        }
        Ok(recipe)
    }

    /// The recipe of a method that is simulated.
    fn simulating(&self, method: SimulatedMethod, amount: &AmountArgs) -> anyhow::Result<Recipe> {
        const OTHERS: [&str; 11] = [
            "transform",
            "rotation",
            "group-size",
            "group-scales",
            "method",
            "clip",
            "no-act-order",
            "damping",
            "value-hessian",
            "error-correction",
            "smooth-tokens",
        ];
        let name = method.name();
        if let Some(option) = OTHERS.into_iter().find(|option| self.given.has(option)) {
            return Err(bad_input_hint(
                format!("--{option} does nothing with --recipe {name}: leave it out"),
                format!("the parameters of its paper stand behind its name: --recipe {name}:KEY=VALUE"),
            ));
        }
        let recipe = Recipe::simulating(method);
        let about_text = ["calibration", "window", "text-format", "text-field", "propagation"];
        let default = match about_text.iter().any(|option| self.given.has(option)) {
            _ if !recipe.needs_text().is_empty() => Recipe::DEFAULT.calibration.windows,
            true => Recipe::DEFAULT.calibration.windows,
            // Of a method that looks at no text.
            false => 0,
        };
        let windows = amount.windows.unwrap_or(default);
        let calibration = Calibration {
            windows,
            window: amount.window,
            smooth_tokens: Recipe::DEFAULT.calibration.smooth_tokens,
        };
        let seed = self.seed.value()?.0;
        let recipe = Recipe { calibration, propagation: self.propagation, seed, ..recipe };
        if !recipe.calibrates() {
            refuse_without_text(&recipe.needs_text())?;
        }
        Ok(recipe)
    }

    /// Who names the rotation's matrix wants a rotation, on whatever model.
    fn transform(&self) -> Transform {
        match self.transform {
            Transform::Auto if self.given.has("rotation") => Transform::Rotate,
            asked => asked,
        }
    }

    /// Whether the recipe's seed was drawn.
    pub fn draws_seed(&self) -> bool {
        self.seed == Seed::Random
    }

    /// What was asked for, else what the method makes the most of: rounding to nearest looks at the weights alone.
    fn clip(&self) -> Clip {
        self.clip.unwrap_or(match self.method {
            Method::Gptq => Recipe::DEFAULT.clip,
            Method::Rtn => Clip::Weight,
        })
    }

    /// Whether Hessians are looked at, which take many windows of text.
    fn needs_hessians(&self) -> bool {
        self.method == Method::Gptq || self.clip() == Clip::Output || self.corrects()
    }

    /// What was asked for, else the default where it changes what is looked at anyway: rounding to nearest reads no text.
    fn error_correction(&self) -> f64 {
        self.error_correction.unwrap_or(match (self.method, self.propagation) {
            (Method::Gptq, Propagation::Quantized) => Recipe::DEFAULT.error_correction,
            (Method::Rtn, _) | (_, Propagation::Float) => 0.0,
        })
    }

    /// Whether weights are corrected.
    fn corrects(&self) -> bool {
        self.error_correction() != 0.0
    }

    /// Calibration windows: what was asked for, else no more than is needed where no option about them was given.
    fn windows(&self, amount: &AmountArgs) -> usize {
        let given = ["calibration", "window", "text-format", "text-field"].iter().any(|o| self.given.has(o));
        let default = match self.transform {
            _ if self.needs_hessians() || given => Recipe::DEFAULT.calibration.windows,
            // Thresholds are searched on the first.
            Transform::Smooth => 1,
            Transform::Rotate | Transform::None | Transform::Auto => 0,
        };
        amount.windows.unwrap_or(default)
    }

    /// Refuses options that were given and would change nothing.
    fn refuse_idle(&self, amount: &AmountArgs, windows: usize) -> anyhow::Result<()> {
        let refuse =
            |option: &str, why: &str| Err(bad_input(format!("--{option} does nothing {why}: leave it out")));
        // The first of these that was given, if this is so.
        let idle = |is_so: bool, options: &[&'static str]| {
            options.iter().copied().find(|option| is_so && self.given.has(option))
        };
        let rtn = self.method == Method::Rtn;
        let smooth = self.transform == Transform::Smooth;
        // Most models are rotated where nothing is asked for.
        let rotate = matches!(self.transform, Transform::Rotate | Transform::Auto);
        if let Some(option) = idle(!rotate, &["rotation"]) {
            return refuse(option, "without --transform rotate");
        }
        if let Some(option) = idle(!smooth, &["smooth-tokens"]) {
            return refuse(option, "without --transform smooth");
        }
        if let Some(option) = idle(self.group_size == GroupSize::Channel, &["group-scales"]) {
            return refuse(option, "without groups (--group-size 32, 64 or 128)");
        }
        if let Some(option) = idle(rtn, &["damping", "no-act-order"]) {
            return refuse(option, "with --method rtn");
        }
        // Calibration then only measures what was lost.
        if let Some(option) = idle(!self.needs_hessians(), &["value-hessian"]) {
            return refuse(
                option,
                "with --method rtn, unless scales are chosen by --clip output or weights moved by --error-correction",
            );
        }
        if let Some(option) = idle(!self.needs_hessians(), &["propagation"]) {
            return refuse(option, "with --method rtn, unless scales are chosen by --clip output");
        }
        // What cannot do without calibration is refused as such.
        if windows == 0 && !self.needs_hessians() && !smooth {
            let calibrating = ["calibration", "window", "text-format", "text-field"];
            if let Some(option) = idle(true, &calibrating).or(idle(!rotate, &["seed"])) {
                return refuse(option, "without calibration windows (--windows)");
            }
        }
        if self.given.has("smooth-tokens") && amount.smooth_tokens > amount.window {
            return Err(bad_input(format!(
                "--smooth-tokens {}: they come from the first window, which has {} (--window)",
                amount.smooth_tokens, amount.window
            )));
        }
        Ok(())
    }

    /// Refuses options that say how to read a text, for calibration that reads none.
    pub fn refuse_text_options(&self) -> anyhow::Result<()> {
        match ["text-format", "text-field"].into_iter().find(|option| self.given.has(option)) {
            Some(option) => {
                Err(bad_input(format!("--{option} does nothing without a text: name one by --calibration")))
            }
            None => Ok(()),
        }
    }
}

/// A method with its parameters, `quip` or `quip:bits=3,greedy=10`.
fn simulated(text: &str) -> Result<SimulatedMethod, String> {
    let (name, parameters) = text.split_once(':').unwrap_or((text, ""));
    let mut map = serde_json::Map::new();
    for parameter in parameters.split(',').filter(|p| !p.is_empty()) {
        let Some((key, value)) = parameter.split_once('=') else {
            return Err(format!("{parameter:?} is no KEY=VALUE"));
        };
        // JSON has no infinity.
        let value = if value == "inf" { "null" } else { value };
        let value = serde_json::from_str(value)
            .map_err(|_| format!("{key} is {value:?}, no number, true or false"))?;
        if map.insert(key.to_owned(), value).is_some() {
            return Err(format!("{key} is given twice"));
        }
    }
    SimulatedMethod::with(name, map)
}

/// Refuses a recipe without calibration windows that needs some.
fn refuse_without_text(needs: &[NeedsText]) -> anyhow::Result<()> {
    let (mut options, mut ways_out) = (Vec::new(), Vec::new());
    for need in needs {
        let (option, way_out) = match need {
            NeedsText::Smoothing => ("--transform smooth", "another --transform"),
            NeedsText::Compensation => ("--method gptq", "--method rtn"),
            NeedsText::Clipping => ("--clip output", "--clip weight or none"),
            NeedsText::Correction => ("--error-correction", "--error-correction 0"),
            NeedsText::Simulated => ("--recipe", "--recipe llm-int8"),
        };
        options.push(option);
        ways_out.push(way_out);
    }
    if options.is_empty() {
        return Ok(());
    }
    Err(bad_input_hint(
        format!("--windows 0 leaves no calibration text, which {} cannot do without", options.join(" and ")),
        format!("give {}; or leave --windows out", ways_out.join(", and ")),
    ))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::errors::Failure;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        recipe: RecipeArgs,
        #[command(flatten)]
        amount: AmountArgs,
        #[arg(long)]
        calibration: Option<String>,
    }

    #[test]
    fn no_options_give_the_default_recipe() {
        let line = Line::parse_from(["qqq"]);
        assert_eq!(line.recipe.recipe(&line.amount).unwrap(), Recipe::DEFAULT);
    }

    fn recipe(options: &str) -> Result<Recipe, String> {
        let line = Line::parse_from(["qqq"].into_iter().chain(options.split_whitespace()));
        line.recipe.recipe(&line.amount).map_err(|e| e.to_string())
    }

    #[test]
    fn every_option_arrives() {
        let want = Recipe {
            transform: Transform::Smooth,
            group_size: None,
            clip: Clip::None,
            act_order: false,
            damping: 0.5,
            value_hessian: ValueHessian::Input,
            propagation: Propagation::Float,
            error_correction: 0.0,
            calibration: Calibration { windows: 3, window: 64, smooth_tokens: 32 },
            seed: 7,
            ..Recipe::DEFAULT
        };
        let options = "--transform smooth --group-size channel --clip none --no-act-order --damping 0.5 --value-hessian \
                       input --propagation float --seed 7 --windows 3 --window 64 --smooth-tokens 32";
        assert_eq!(recipe(options), Ok(want));
        // Who names a matrix asks for the rotation.
        let want = Recipe {
            transform: Transform::Rotate,
            rotation: RotationKind::Orthogonal,
            group_scales: GroupScales::Half,
            compensate: false,
            error_correction: 0.0,
            ..Recipe::DEFAULT
        };
        let options = "--rotation orthogonal --group-scales half --method rtn --clip output";
        assert_eq!(recipe(options), Ok(want));
        let want =
            Recipe { compensate: false, clip: Clip::Weight, error_correction: 0.25, ..Recipe::DEFAULT };
        assert_eq!(recipe("--error-correction 0.25 --method rtn"), Ok(want));
        let auto = Recipe { seed: 1, ..Recipe::DEFAULT };
        assert_eq!(recipe("--transform auto --seed 1"), Ok(auto));
    }

    #[test]
    fn rounding_to_nearest_reads_no_text_unless_asked() {
        let windows = |options: &str| recipe(options).unwrap().calibration.windows;
        for (options, want) in [
            ("--method rtn --clip none", 0),
            ("--method rtn --clip weight --transform none", 0),
            ("--method rtn", 0),
            ("--method rtn --clip output", 32),
            ("--method rtn --clip none --transform smooth", 1),
            ("--method rtn --transform smooth", 1),
            ("--method rtn --transform smooth --calibration x", 32),
            ("--clip weight", 32),
            ("--method rtn --error-correction 0.5", 32),
            ("--method rtn --clip none --window 64", 32),
            ("--method rtn --clip none --windows 4", 4),
            ("--windows 4", 4),
            ("", 32),
        ] {
            assert_eq!(windows(options), want, "{options}");
        }
    }

    #[test]
    fn scales_are_chosen_as_the_method_can() {
        for (options, want) in [
            ("", Clip::Output),
            ("--method rtn", Clip::Weight),
            ("--method rtn --calibration x", Clip::Weight),
            ("--method rtn --clip output", Clip::Output),
            ("--method rtn --clip none", Clip::None),
            ("--clip weight", Clip::Weight),
        ] {
            assert_eq!(recipe(options).unwrap().clip, want, "{options}");
        }
    }

    #[test]
    fn errors_are_corrected_where_text_is_looked_at_anyway() {
        for (options, want) in [
            ("", Recipe::DEFAULT.error_correction),
            ("--transform smooth --clip none", Recipe::DEFAULT.error_correction),
            ("--error-correction 0", 0.0),
            ("--error-correction 0.25", 0.25),
            ("--propagation float", 0.0),
            ("--method rtn", 0.0),
            ("--method rtn --clip output", 0.0),
            ("--method rtn --error-correction 1", 1.0),
        ] {
            assert_eq!(recipe(options).unwrap().error_correction, want, "{options}");
        }
    }

    #[test]
    fn options_that_would_do_nothing_are_refused() {
        for (options, option, why) in [
            ("--transform smooth --rotation hadamard", "--rotation", "--transform rotate"),
            ("--transform none --rotation orthogonal", "--rotation", "--transform rotate"),
            ("--smooth-tokens 512", "--smooth-tokens", "--transform smooth"),
            ("--transform auto --smooth-tokens 512", "--smooth-tokens", "--transform smooth"),
            ("--group-scales integer --group-size channel", "--group-scales", "--group-size 32"),
            ("--method rtn --damping 0.01", "--damping", "--method rtn"),
            ("--method rtn --no-act-order", "--no-act-order", "--method rtn"),
            ("--method rtn --value-hessian input", "--value-hessian", "--clip output"),
            ("--method rtn --clip weight --value-hessian input", "--value-hessian", "--clip output"),
            ("--method rtn --clip none --propagation float", "--propagation", "--clip output"),
            ("--method rtn --clip none --windows 0 --window 64", "--window", "--windows"),
            ("--method rtn --clip none --windows 0 --transform none --seed 1", "--seed", "--windows"),
            ("--method rtn --clip weight --transform none --seed 1", "--seed", "--windows"),
            ("--transform smooth --window 64 --smooth-tokens 65", "--smooth-tokens 65", "which has 64"),
        ] {
            let error = recipe(options).unwrap_err();
            assert!(error.starts_with(option) && error.contains(why), "{options}: {error}");
        }
        for good in [
            "--transform rotate --rotation orthogonal",
            "--transform smooth --smooth-tokens 64 --window 64",
            "--method rtn --clip output --value-hessian input --propagation float",
            "--method rtn --clip none --windows 0 --seed 1",
            "--method rtn --clip none --windows 4 --window 64",
            // A default that does not fit is not one that was given.
            "--transform none --group-size channel --method rtn --clip none",
            "--transform smooth --window 64",
        ] {
            assert!(recipe(good).is_ok(), "{good}: {:?}", recipe(good));
        }
    }

    #[test]
    fn what_needs_text_is_named_with_its_way_out() {
        for (options, named, hint) in [
            (
                "--method rtn --clip output",
                "--clip output",
                "give --clip weight or none; or leave --windows out",
            ),
            ("--clip none", "--method gptq", "give --method rtn; or leave --windows out"),
            (
                "--method rtn --clip weight --transform smooth",
                "--transform smooth",
                "give another --transform; or leave --windows out",
            ),
            (
                "--method rtn --error-correction 1",
                "--error-correction",
                "give --error-correction 0; or leave --windows out",
            ),
            (
                "",
                "--method gptq and --clip output",
                "give --method rtn, and --clip weight or none; or leave --windows out",
            ),
        ] {
            let line =
                Line::parse_from(["qqq", "--windows", "0"].into_iter().chain(options.split_whitespace()));
            let failure = Failure::of(&line.recipe.recipe(&line.amount).unwrap_err());
            let message = format!("--windows 0 leaves no calibration text, which {named} cannot do without");
            assert_eq!((failure.message, failure.hint.as_deref()), (message, Some(hint)), "{options}");
        }
        assert!(recipe("--windows 0 --method rtn --clip weight").is_ok());
    }

    #[test]
    fn a_correction_that_cannot_be_is_refused() {
        for strength in ["-0.1", "1.5", "NaN", "inf"] {
            let error = recipe(&format!("--error-correction {strength}")).unwrap_err();
            assert!(error.starts_with("--error-correction must be a number from 0 to 1"), "{error}");
        }
        let error = recipe("--error-correction 0.5 --propagation float").unwrap_err();
        assert!(error.contains("--propagation float"), "{error}");
        assert!(recipe("--error-correction 0 --propagation float").is_ok());
    }

    #[test]
    fn methods_that_are_simulated_have_their_own_parameters() {
        use qqq_formats::simulated::{Quip, SpQr};
        let quip = SimulatedMethod::Quip(Quip { bits: 3, greedy: 10, ..Quip::default() });
        assert_eq!(recipe("--recipe quip:bits=3,greedy=10"), Ok(Recipe::simulating(quip)));
        let spqr = SimulatedMethod::SpQr(SpQr { threshold: f64::INFINITY, ..SpQr::default() });
        let calibration = Calibration { windows: 2, window: 64, ..Recipe::DEFAULT.calibration };
        let want = Recipe { calibration, seed: 5, ..Recipe::simulating(spqr) };
        assert_eq!(recipe("--recipe spqr:threshold=inf --windows 2 --window 64 --seed 5"), Ok(want));
        // It looks at no text unless somebody names one.
        assert_eq!(recipe("--recipe llm-int8").unwrap().calibration.windows, 0);
        assert_eq!(recipe("--recipe llm-int8 --window 64").unwrap().calibration.windows, 32);
        for (options, says) in [
            ("--recipe quik --group-size 64", "--group-size does nothing with --recipe quik"),
            ("--recipe quip --windows 0", "--recipe cannot do without"),
        ] {
            let error = recipe(options).unwrap_err();
            assert!(error.contains(says), "{options}: {error}");
        }
        for (text, says) in [
            ("awq2", "none of llm-int8, quik, spqr, quip"),
            ("quip:bits=1", "bits is 1, but must be from 2 to 16"),
            ("quip:bit=2", "unknown field"),
            ("quip:bits", "no KEY=VALUE"),
            ("quip:bits=2,bits=3", "given twice"),
            ("quik:bits=two", "no number"),
            ("quik:bits=5", "4 or 8"),
            ("spqr:threshold=-1", "a number > 0"),
        ] {
            let error = simulated(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn a_random_seed_is_drawn() {
        let seeds: Vec<u64> = (0..3).map(|_| recipe("--seed -1").unwrap().seed).collect();
        assert!(seeds.iter().any(|s| *s != seeds[0]), "{seeds:?}");
    }
}
