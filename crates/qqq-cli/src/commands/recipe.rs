//! Recipe options on the command line.

use clap::ValueEnum;
use qqq_quant::{
    Calibration, Clip, GroupScales, MAX_DAMPING, OutputFormat, Propagation, Recipe, RotationKind, Transform,
    ValueHessian,
};

use crate::errors::bad_input;

/// What `qqq quantize` does unless told otherwise: the recipe that keeps most quality in our tables.
pub const fn default_recipe() -> Recipe {
    Recipe::DEFAULT
}

const DEFAULT: Recipe = default_recipe();

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TransformArg {
    /// QQQ's adaptive smoothing: shrinks outlier channels of the activations
    Smooth,
    /// QuaRot's offline rotation: spreads outliers over all channels
    Rotate,
    /// Neither
    None,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RotationArg {
    /// Randomised Hadamard matrix; a Hartley matrix, nearly as flat, for a hidden size that has none
    Hadamard,
    /// Random orthogonal matrix (any hidden size)
    Orthogonal,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum GroupArg {
    /// A scale for 32 input channels of an output channel
    #[value(name = "32")]
    G32,
    /// For 64
    #[value(name = "64")]
    G64,
    /// For 128
    #[value(name = "128")]
    G128,
    /// One scale for a whole output channel: fastest, less exact
    Channel,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum GroupScalesArg {
    /// float16 numbers, as in the QQQ reference
    Half,
    /// 1 to 15 times the channel's scale: a GPU applies them faster, rounding of weights is exact
    Integer,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum MethodArg {
    /// Hessian-based compensation: later columns make up for the rounding of earlier ones
    Gptq,
    /// Round to nearest
    Rtn,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ClipArg {
    /// The largest weight fits
    None,
    /// Least squared error of the weights
    Weight,
    /// Least squared error of the layer's output
    Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ValueHessianArg {
    /// Its inputs, as GPTQ has it for every layer
    Input,
    /// Its inputs as attention averages them: what errors of the value projection really cost
    Attention,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PropagationArg {
    /// Outputs of the float model
    Float,
    /// Outputs of the quantized layers before, as at run time
    Quantized,
}

/// Form on disk.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum FormatArg {
    /// qqq where every layer fits it, else compressed-tensors
    Auto,
    /// The QQQ reference's tiles: groups of 128 or per channel, shapes divisible by 64 and 128
    Qqq,
    /// pack-quantized int4 weights and dynamic int8 activations: every shape and group size
    CompressedTensors,
}

impl FormatArg {
    /// For the library.
    pub fn format(self) -> OutputFormat {
        match self {
            Self::Auto => OutputFormat::Auto,
            Self::Qqq => OutputFormat::Qqq,
            Self::CompressedTensors => OutputFormat::CompressedTensors,
        }
    }
}

/// What to do to the weights.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Recipe")]
pub struct RecipeArgs {
    /// What is done to the model before rounding; absorbed into the weights, free at run time
    #[arg(long, value_enum, default_value_t = TransformArg::Rotate)]
    transform: TransformArg,
    /// Matrix of --transform rotate
    #[arg(long, value_enum, default_value_t = RotationArg::Hadamard)]
    rotation: RotationArg,
    /// Input channels that share a scale: smaller is more exact and a little larger and slower
    #[arg(long, value_enum, default_value_t = GroupArg::G64)]
    group_size: GroupArg,
    /// How the scales of groups are kept [default: integer, where there are groups]
    #[arg(long, value_enum)]
    group_scales: Option<GroupScalesArg>,
    /// How weights are rounded
    #[arg(long, value_enum, default_value_t = MethodArg::Gptq)]
    method: MethodArg,
    /// How scales are chosen: clipping the largest weights can make all others more exact
    #[arg(long, value_enum, default_value_t = ClipArg::Output)]
    clip: ClipArg,
    /// Round columns in their natural order, not the most important ones first
    #[arg(long)]
    no_act_order: bool,
    /// Share of the Hessian's mean diagonal that is added to it; rises by itself where that is too little
    #[arg(long, value_name = "X", default_value_t = DEFAULT.damping, allow_negative_numbers = true)]
    damping: f64,
    /// What the value projection's compensation looks at
    #[arg(long, value_enum, default_value_t = ValueHessianArg::Attention)]
    value_hessian: ValueHessianArg,
    /// What later layers are calibrated on
    #[arg(long, value_enum, default_value_t = PropagationArg::Quantized)]
    propagation: PropagationArg,
    /// Seed of everything random (rotation, choice of windows, samples): the same seed gives the same checkpoint
    #[arg(long, value_name = "N", default_value_t = DEFAULT.seed)]
    seed: u64,
}

/// Amount of calibration data.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Calibration")]
pub struct AmountArgs {
    /// Windows of text for calibration
    #[arg(long, value_name = "N", default_value_t = DEFAULT.calibration.windows)]
    windows: usize,
    /// Tokens of a window
    #[arg(long, value_name = "TOKENS", default_value_t = DEFAULT.calibration.window)]
    window: usize,
    /// Tokens of the first window on which --transform smooth searches its thresholds
    #[arg(long, value_name = "TOKENS", default_value_t = DEFAULT.calibration.smooth_tokens)]
    smooth_tokens: usize,
}

impl RecipeArgs {
    /// The recipe that these options describe.
    pub fn recipe(&self, amount: &AmountArgs) -> anyhow::Result<Recipe> {
        if !(0.0..=MAX_DAMPING).contains(&self.damping) {
            return Err(bad_input(format!(
                "--damping must be a number from 0 to {MAX_DAMPING}, not {:?}",
                self.damping
            )));
        }
        if self.group_scales.is_some() && matches!(self.group_size, GroupArg::Channel) {
            return Err(bad_input(
                "--group-scales needs groups: choose --group-size 32, 64 or 128, or leave it out",
            ));
        }
        Ok(Recipe {
            transform: match self.transform {
                TransformArg::Smooth => Transform::Smooth,
                TransformArg::Rotate => Transform::Rotate,
                TransformArg::None => Transform::None,
            },
            rotation: match self.rotation {
                RotationArg::Hadamard => RotationKind::Hadamard,
                RotationArg::Orthogonal => RotationKind::Orthogonal,
            },
            group_size: match self.group_size {
                GroupArg::G32 => Some(32),
                GroupArg::G64 => Some(64),
                GroupArg::G128 => Some(128),
                GroupArg::Channel => None,
            },
            group_scales: match self.group_scales {
                Some(GroupScalesArg::Half) => GroupScales::Half,
                Some(GroupScalesArg::Integer) | None => GroupScales::Integer,
            },
            compensate: matches!(self.method, MethodArg::Gptq),
            clip: match self.clip {
                ClipArg::None => Clip::None,
                ClipArg::Weight => Clip::Weight,
                ClipArg::Output => Clip::Output,
            },
            act_order: !self.no_act_order,
            damping: self.damping,
            value_hessian: match self.value_hessian {
                ValueHessianArg::Input => ValueHessian::Input,
                ValueHessianArg::Attention => ValueHessian::Attention,
            },
            propagation: match self.propagation {
                PropagationArg::Float => Propagation::Float,
                PropagationArg::Quantized => Propagation::Quantized,
            },
            calibration: Calibration {
                windows: amount.windows,
                window: amount.window,
                smooth_tokens: amount.smooth_tokens.min(amount.window),
            },
            seed: self.seed,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        recipe: RecipeArgs,
        #[command(flatten)]
        amount: AmountArgs,
    }

    #[test]
    fn no_options_give_the_default_recipe() {
        let line = Line::parse_from(["qqq"]);
        assert_eq!(line.recipe.recipe(&line.amount).unwrap(), default_recipe());
    }

    #[test]
    fn every_option_arrives() {
        let line = Line::parse_from(
            "qqq --transform smooth --rotation orthogonal --group-size channel --method rtn --clip none --no-act-order \
             --damping 0.5 --value-hessian input --propagation float --seed 7 --windows 3 --window 64 --smooth-tokens 32"
                .split_whitespace(),
        );
        let want = Recipe {
            transform: Transform::Smooth,
            rotation: RotationKind::Orthogonal,
            group_size: None,
            group_scales: GroupScales::Integer,
            compensate: false,
            clip: Clip::None,
            act_order: false,
            damping: 0.5,
            value_hessian: ValueHessian::Input,
            propagation: Propagation::Float,
            calibration: Calibration { windows: 3, window: 64, smooth_tokens: 32 },
            seed: 7,
        };
        assert_eq!(line.recipe.recipe(&line.amount).unwrap(), want);
    }

    #[test]
    fn group_scales_need_groups() {
        let line = |options: &str| Line::parse_from(options.split_whitespace());
        let good = line("qqq --group-scales half");
        assert_eq!(good.recipe.recipe(&good.amount).unwrap().group_scales, GroupScales::Half);
        let bad = line("qqq --group-scales integer --group-size channel");
        assert!(bad.recipe.recipe(&bad.amount).unwrap_err().to_string().contains("--group-size"));
    }
}
