//! Recipe options on the command line.

mod idle;
mod papers;
mod published;

use clap::ValueEnum;
use qqq_formats::{Activations, CodeBits};
use qqq_quant::{
    Budget, Calibration, Clip, GroupScales, Groups, Head, MAX_DAMPING, Precision, Propagation, Recipe,
    RecipeName, RotationKind, Rule, Transform, ValueHessian,
};

pub use self::published::table;
use self::{idle::refuse_without_text, papers::PaperArgs};
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

/// What quantized layers multiply.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum ActivationKind {
    /// Quantized to int8, a scale a token: integer products
    Int8,
    /// 16 bits, as they are: weights alone are quantized
    Half,
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
    /// A published method, with its paper's amounts of text (of the built-in text 65,536 tokens at most) and no options but its
    /// own; the list is below. Other options here are those of the tool's own recipe
    #[arg(long = "recipe", value_name = "NAME", value_parser = str::parse::<RecipeName>, default_value_t = RecipeName::Best)]
    name: RecipeName,
    /// What is done to the model before rounding; absorbed into the weights, free at run time [default: rotate, or smooth where
    /// the model's norms allow no rotation]
    #[arg(long, value_enum)]
    transform: Option<Transform>,
    /// Matrix of the rotation; giving it asks for --transform rotate
    #[arg(long, value_enum, default_value_t = Recipe::DEFAULT.rotation)]
    rotation: RotationKind,
    /// Bits of the weights: 4, or 8 per channel. --recipe spqr has from 2 to 8 (its paper 3), quip from 2 to 16 (its paper 2)
    #[arg(long, value_name = "BITS", default_value_t = 4, value_parser = clap::value_parser!(u8).range(2..=16))]
    bits: u8,
    /// What the layers multiply
    #[arg(long, value_enum, default_value_t = ActivationKind::Int8)]
    activations: ActivationKind,
    /// Another precision for some layers, such as down_proj=int8: a module's name, or whole words of it (down_proj,
    /// layers.0, layers.0.mlp.down_proj), or re:EXPRESSION, which must match from model.layers... on; then int4 (in the groups of
    /// --group-size), int4:g32, int4:g64, int4:g128, int4:channel, int8 or float (16 bits, as it is). May be given several times:
    /// the last that names a layer counts. q, k and v run as one layer and take one precision; so do gate and up
    #[arg(long = "rule", value_name = "MODULE=PRECISION", value_parser = str::parse::<Rule>)]
    rules: Vec<Rule>,
    /// Mixed precision within a size: bits per weight of the layers (such as 4.8), or a size of the checkpoint's tensors (such
    /// as 900MB). Before the run it is measured, on held-out text, how far each layer alone takes the model from the float one in the
    /// groups of --group-size, in smaller ones, and in 8 bits; then bits go where they save most for each byte. Rules are kept,
    /// and the budget decides on the other layers
    #[arg(long, value_name = "BITS|SIZE", allow_negative_numbers = true, value_parser = numbers::budget)]
    budget: Option<Budget>,
    /// What the output head becomes. An int8 head of a model that ties it to the embedding is stored beside that, which keeps its
    /// 16 bits; it takes the compressed-tensors format, and counts in a --budget of bytes, not in bits per weight
    #[arg(long, value_enum, default_value_t = Head::Float)]
    head: Head,
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
    // Last: its heading would hold for what comes after it.
    #[command(flatten)]
    papers: Box<PaperArgs>,
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
    /// The recipe that these options describe. `built_in`: whether the text is the built-in one.
    pub fn recipe(&self, amount: &AmountArgs, built_in: bool) -> anyhow::Result<Recipe> {
        if !(0.0..=MAX_DAMPING).contains(&self.damping) {
            return Err(bad_input(format!(
                "--damping must be a number from 0 to {MAX_DAMPING}, not {:?}",
                self.damping
            )));
        }
        if let Some(entry) = self.name.entry() {
            return self.published(entry, amount, built_in);
        }
        self.refuse_papers()?;
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
        if let (Some(budget), 8) = (self.budget, self.bits) {
            return Err(bad_input_hint(
                format!("--budget: {budget} gives 8 bits to some layers of 4, and --bits 8 has 8 everywhere"),
                "leave one of the two out",
            ));
        }
        let windows = self.windows(amount);
        self.refuse_idle(amount, windows)?;
        let recipe = Recipe {
            name: RecipeName::Best,
            migration_strength: None,
            epochs: None,
            transform: self.transform(),
            rotation: self.rotation,
            bits: self.code_bits()?,
            activations: match self.activations {
                ActivationKind::Int8 => Activations::Int8,
                ActivationKind::Half => Activations::Half,
            },
            group_size: self.group_size()?,
            rules: self.rules.clone(),
            budget: self.budget,
            head: self.head,
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

    /// Bits of codes that there are kernels for.
    fn code_bits(&self) -> anyhow::Result<CodeBits> {
        CodeBits::of(self.bits.into()).ok_or_else(|| {
            bad_input_hint(
                format!("--bits {}: recipe {} makes weights of 4 or 8 bits", self.bits, self.name),
                "others are simulated: --recipe spqr has from 2 to 8 bits, quip from 2 to 16",
            )
        })
    }

    /// Input channels that share a scale; `None`: all of an output channel.
    fn group_size(&self) -> anyhow::Result<Option<usize>> {
        match (self.code_bits()?, self.group_size.channels()) {
            (CodeBits::Four, groups) => Ok(groups),
            (CodeBits::Eight, Some(size)) if self.given.has("group-size") => Err(bad_input_hint(
                format!("--bits 8 takes one scale an output channel, no groups of {size}"),
                "leave --group-size out, or take 4 bits",
            )),
            (CodeBits::Eight, _) => Ok(None),
        }
    }

    /// Whether some layer has scales of groups beside those of channels.
    fn has_group_scales(&self) -> bool {
        let in_groups = |rule: &Rule| matches!(rule.precision, Precision::Int4(Groups::Of(_)));
        let all = self.bits == 4 && self.group_size != GroupSize::Channel;
        self.activations == ActivationKind::Int8 && (all || self.rules.iter().any(in_groups))
    }

    /// Who names the rotation's matrix wants a rotation, on whatever model.
    fn transform(&self) -> Transform {
        match self.transform {
            Some(asked) => asked,
            None if self.given.has("rotation") => Transform::Rotate,
            None => Recipe::DEFAULT.transform,
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
        let default = match self.transform() {
            _ if self.needs_hessians() || given => Recipe::DEFAULT.calibration.windows,
            // Thresholds are searched on the first.
            Transform::Smooth => 1,
            _ => 0,
        };
        amount.windows.unwrap_or(default)
    }
}

#[cfg(test)]
mod tests;
