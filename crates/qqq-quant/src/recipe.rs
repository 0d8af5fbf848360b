//! What to do to a model.

use qqq_backend::solve::Scheme;
use qqq_formats::{Activations, CodeBits, ModelConfig, SimulatedMethod};
use serde::{Deserialize, Serialize};

use crate::{
    Budget,
    precision::{self, Rule},
    recipes::RecipeName,
};

// The first paragraph of a variant's documentation is its help on a command line (feature `clap`), without the full stop.

/// Transformation before the weights are rounded; all are absorbed into the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Transform {
    /// Whichever of the others takes the model least away from the float one, measured by a short run of each.
    ///
    /// Of those that the model allows; [`quantize`](crate::quantize()) decides before the run.
    Auto,
    /// What most models gain most by: rotation, or smoothing where norms allow no rotation.
    ///
    /// [`Recipe::resolved`] decides, by the model's graph alone.
    #[cfg_attr(feature = "clap", value(skip))]
    Usual,
    /// QQQ's adaptive smoothing: shrinks outlier channels of the activations.
    Smooth,
    /// QuaRot's offline rotation: spreads outliers over all channels.
    ///
    /// The residual stream turns, and v and o by heads.
    Rotate,
    /// The weights stay as they are.
    None,
    /// SmoothQuant: the outliers of a norm's channels migrate into the weights behind it.
    ///
    /// Of a [recipe](crate::recipes).
    #[cfg_attr(feature = "clap", value(skip))]
    Migrate,
    /// Outlier Suppression+: channels are shifted, where the model allows it, and those beyond a threshold are shrunk.
    ///
    /// Of a [recipe](crate::recipes).
    #[cfg_attr(feature = "clap", value(skip))]
    Suppress,
    /// AWQ: channels with large activations get larger weights, which round more exactly.
    ///
    /// Of a [recipe](crate::recipes).
    #[cfg_attr(feature = "clap", value(skip))]
    Protect,
    /// OmniQuant: scales of channels are learned with the clipping of weights.
    ///
    /// Of a [recipe](crate::recipes).
    #[cfg_attr(feature = "clap", value(skip))]
    Learn,
}

impl Transform {
    /// Whether it scales input channels by what calibration tokens have there: the layers of a block are then changed together.
    pub const fn scales_channels(self) -> bool {
        matches!(self, Self::Smooth | Self::Learn) || self.reads_windows()
    }

    /// Whether it looks at all calibration windows, as the float model has them.
    pub const fn reads_windows(self) -> bool {
        matches!(self, Self::Migrate | Self::Suppress | Self::Protect)
    }
}

/// Matrix of the residual stream's rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum RotationKind {
    /// Randomised Hadamard matrix; a Hartley matrix, nearly as flat, for a hidden size that has none.
    Hadamard,
    /// Random orthogonal matrix (any hidden size).
    ///
    /// Q of a Gaussian's QR decomposition.
    Orthogonal,
}

/// How the scale of a group is kept beside its channel's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum GroupScales {
    /// float16 numbers, as in the QQQ reference.
    ///
    /// int8 weights are rounded products of codes and scales.
    #[default]
    Half,
    /// 1 to 15 times the channel's scale: a GPU applies them faster, rounding of weights is exact.
    Integer,
}

/// What the output head becomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Head {
    /// 16 bits, as it is.
    #[default]
    Float,
    /// int8 with a scale for each token of the vocabulary, times int8 inputs.
    ///
    /// A head that is tied to the embedding becomes a tensor of its own; the embedding keeps its 16 bits.
    Int8,
}

impl Head {
    /// What it is solved as; `None`: it stays float.
    pub(crate) const fn scheme(self) -> Option<Scheme> {
        match self {
            Self::Float => None,
            Self::Int8 => {
                Some(Scheme { bits: CodeBits::Eight, activations: Activations::Int8, group_size: None })
            }
        }
    }

    fn is_float(&self) -> bool {
        *self == Self::Float
    }
}

/// How scales are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Clip {
    /// The largest weight fits.
    None,
    /// Least squared error of the weights.
    Weight,
    /// Least squared error of the layer's output.
    ///
    /// That is the weights' error, weighted by the Hessian's diagonal.
    Output,
    /// Least squared error of what each group alone adds to the output, as AWQ has it; q and k are not clipped.
    ///
    /// Of a [recipe](crate::recipes).
    #[cfg_attr(feature = "clap", value(skip))]
    GroupOutput,
    /// Learned with the block, as OmniQuant has it.
    ///
    /// Of a [recipe](crate::recipes).
    #[cfg_attr(feature = "clap", value(skip))]
    Learned,
}

/// What later blocks (and later layers of a block) are calibrated on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Propagation {
    /// Outputs of the float model.
    Float,
    /// Outputs of the quantized layers before, as at run time.
    ///
    /// The reference does so from block to block, with float activations and weights as the GPTQ result; inside a block it
    /// calibrates on the float layers.
    Quantized,
}

/// Whose second moment the value projection is compensated for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum ValueHessian {
    /// Its inputs, as GPTQ has it for every layer.
    Input,
    /// Its inputs as attention averages them: what errors of the value projection really cost.
    ///
    /// See [`Calibrate::attended`](qqq_backend::Calibrate::attended).
    Attention,
}

/// Which on-disk form to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum OutputFormat {
    /// qqq where every layer fits it, else compressed-tensors.
    Auto,
    /// The QQQ reference's tiles: groups of 128 or per channel, shapes divisible by 64 and 128.
    Qqq,
    /// pack-quantized int4 weights and dynamic int8 activations: every shape and group size.
    CompressedTensors,
}

/// The largest damping: with the diagonal a million times its mean, compensation has long become plain rounding, and
/// float32 is far from its end.
pub const MAX_DAMPING: f64 = 1e6;

/// Amount of calibration data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calibration {
    /// Windows for the Hessians.
    pub windows: usize,
    /// Tokens of a window.
    pub window: usize,
    /// Tokens for the smoothing search (taken from the first window).
    pub smooth_tokens: usize,
}

/// A whole recipe. [`Recipe::DEFAULT`] is where most begin: `Recipe { group_size: None, ..Recipe::DEFAULT }`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Whose recipe it is. Reports of the tool's own say nothing.
    #[serde(default, skip_serializing_if = "RecipeName::is_own")]
    pub name: RecipeName,
    /// What is absorbed into the weights before they are rounded.
    pub transform: Transform,
    /// How much of the outliers [`Transform::Migrate`] moves into the weights, from 0 to 1; `None`: searched for each site. Says
    /// nothing with other transforms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration_strength: Option<f64>,
    /// Times that [`Transform::Learn`] goes through all calibration windows. Says nothing with other transforms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<usize>,
    /// Kind of rotation, where there is one.
    pub rotation: RotationKind,
    /// Bits of the weights where no rule says otherwise; 8 go with `group_size: None`. Reports of before there was a choice: 4.
    #[serde(with = "precision::bits", default = "precision::bits::four")]
    pub bits: CodeBits,
    /// What quantized layers multiply. Reports of before there was a choice: int8.
    #[serde(with = "precision::activations", default = "precision::activations::int8")]
    pub activations: Activations,
    /// `None`: per channel; else 32, 64 or 128.
    pub group_size: Option<usize>,
    /// Layers that become something else; the last rule that names a layer counts.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// How large the result may be: which layers on which no rule decides get 8 bits instead of 4 follows from that, and rules
    /// that say so take its place ([`budget`](crate::budget)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// What the output head becomes, which no rule names. Reports of before there was a choice: float.
    #[serde(default, skip_serializing_if = "Head::is_float")]
    pub head: Head,
    /// How scales of groups are kept; without groups this says nothing. Reports of before there was a choice: float16.
    #[serde(default)]
    pub group_scales: GroupScales,
    /// Hessian-based compensation (GPTQ); without it weights are rounded to nearest.
    pub compensate: bool,
    /// How scales are chosen.
    pub clip: Clip,
    /// Quantize the columns with the largest Hessian diagonal first (scales stay those of the natural order).
    pub act_order: bool,
    /// Share of the mean Hessian diagonal that is added to it.
    pub damping: f64,
    /// Hessian of the value projection.
    pub value_hessian: ValueHessian,
    /// What later layers are calibrated on.
    pub propagation: Propagation,
    /// How far weights are moved, before they are rounded, to make up for what the quantized layers before have done to
    /// their inputs: from 0 (not at all) to 1 (least squared error against the float model's output on the calibration
    /// text). See [`solve::Correction`](crate::solve::Correction). Reports of before there was a choice: 0.
    #[serde(default)]
    pub error_correction: f64,
    /// How much text is looked at.
    pub calibration: Calibration,
    /// Seed of everything random.
    pub seed: u64,
    /// A method whose arithmetic is simulated, of a [recipe](crate::recipes): it takes the place of everything above but
    /// calibration, propagation and seed ([`Recipe::simulating`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub simulated: Option<SimulatedMethod>,
}

impl Recipe {
    /// What is done unless told otherwise: the recipe that keeps most quality.
    pub const DEFAULT: Self = Self {
        name: RecipeName::Best,
        transform: Transform::Usual,
        migration_strength: None,
        epochs: None,
        rotation: RotationKind::Hadamard,
        bits: CodeBits::Four,
        activations: Activations::Int8,
        group_size: Some(64),
        rules: Vec::new(),
        budget: None,
        head: Head::Float,
        group_scales: GroupScales::Integer,
        compensate: true,
        clip: Clip::Output,
        act_order: true,
        damping: 0.01,
        value_hessian: ValueHessian::Attention,
        propagation: Propagation::Quantized,
        error_correction: 0.5,
        calibration: Calibration { windows: 32, window: 2048, smooth_tokens: 512 },
        seed: 0,
        simulated: None,
    };

    /// Whether weights are corrected for what the layers before have done to their inputs.
    pub fn corrects(&self) -> bool {
        self.error_correction != 0.0
    }

    /// Whether blocks are learned.
    pub fn learns(&self) -> bool {
        self.transform == Transform::Learn
    }

    /// Whether the calibration windows go through the float model as well.
    pub fn follows_float(&self) -> bool {
        self.corrects() || self.learns()
    }

    /// Whether calibration text is looked at.
    pub fn calibrates(&self) -> bool {
        self.calibration.windows > 0
    }

    /// Whether the output head has a tensor of its own in the result, as the last norm is folded into one that is rotated, and
    /// one of 8 bits has other values than the embedding.
    pub(crate) fn separates_head(&self, config: &ModelConfig) -> bool {
        !config.tie_word_embeddings || self.transform == Transform::Rotate || self.head != Head::Float
    }

    /// Tokens of the float model that the transform looks at: windows, and tokens of each.
    pub fn transform_amount(&self) -> (usize, usize) {
        let Calibration { windows, window, smooth_tokens } = self.calibration;
        match self.transform {
            Transform::Smooth => (1, smooth_tokens),
            transform if transform.reads_windows() || self.learns() => (windows, window),
            _ => (0, 0),
        }
    }
}

impl Default for Recipe {
    fn default() -> Self {
        Self::DEFAULT
    }
}
