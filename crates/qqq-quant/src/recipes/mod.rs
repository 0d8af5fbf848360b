//! Published methods as recipes, one file each: what the paper does, with its source on top.
//!
//! A recipe is a value of [`Recipe`]: all of them run through the same calibration, solver, report and resume, on every device.
//! The steps that a paper has of its own are in its file; [`Setting`] are the options that it has. Those whose arithmetic no
//! kernel here runs are [`simulated`].

pub mod awq;
mod factor;
mod fp16;
mod gptq;
pub mod llm_int8;
pub(crate) mod omniquant;
pub mod os_plus;
mod qqq;
pub mod quik;
pub mod quip;
mod rtn;
pub mod simulated;
pub mod smoothquant;
pub mod spqr;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use qqq_backend::{Calibrate, solve::Scheme};
use qqq_model::{Site, Sites};

use crate::{
    QuantError, Recipe, Result as QuantResult, Transform,
    float_linear::FloatBlock,
    half_type::HalfType,
    report::SmoothReport,
    site_search::{Change, SiteSearch, SiteWalk},
    windows::{Surroundings, Window, Workshop},
};

/// A recipe's name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RecipeName {
    /// The tool's own, which keeps most quality ([`Recipe::DEFAULT`]).
    #[default]
    Best,
    /// The model in 16 bits.
    Fp16,
    /// Rounding to nearest.
    Rtn,
    /// SmoothQuant.
    SmoothQuant,
    /// Outlier Suppression+.
    OsPlus,
    /// GPTQ.
    Gptq,
    /// AWQ.
    Awq,
    /// OmniQuant.
    OmniQuant,
    /// QQQ per channel.
    Qqq,
    /// QQQ in groups of 128.
    QqqG128,
    /// QQQ's authors' later one, with rotation.
    QqqRot,
    /// LLM.int8(), simulated.
    LlmInt8,
    /// QUIK, simulated.
    Quik,
    /// SpQR, simulated.
    SpQr,
    /// QuIP, simulated.
    Quip,
}

/// What a recipe leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// [`Recipe::bits`], or those of a simulated method.
    Bits,
    /// [`Recipe::activations`].
    Activations,
    /// [`Recipe::group_size`].
    GroupSize,
    /// [`Recipe::act_order`].
    ActOrder,
    /// [`Recipe::damping`], or that of a simulated method.
    Damping,
    /// [`Recipe::migration_strength`].
    MigrationStrength,
    /// [`Recipe::epochs`].
    Epochs,
    /// [`Recipe::rotation`].
    Rotation,
    /// Tokens of the first window on which thresholds are searched.
    SmoothTokens,
    /// How much text, and which.
    Text,
    /// [`Recipe::seed`].
    Seed,
    /// [`LlmInt8::threshold`](qqq_formats::simulated::LlmInt8), [`SpQr::threshold`](qqq_formats::simulated::SpQr).
    OutlierThreshold,
    /// [`Quik::outliers`](qqq_formats::simulated::Quik).
    Outliers,
    /// [`Quik::outlier_bits`](qqq_formats::simulated::Quik).
    OutlierBits,
    /// [`Quik::down_bits`](qqq_formats::simulated::Quik).
    DownBits,
    /// [`SpQr::group`](qqq_formats::simulated::SpQr).
    Beta1,
    /// [`SpQr::statistics_group`](qqq_formats::simulated::SpQr).
    Beta2,
    /// [`SpQr::statistics_bits`](qqq_formats::simulated::SpQr).
    StatisticsBits,
    /// [`Quip::greedy`](qqq_formats::simulated::Quip).
    Greedy,
    /// [`Quip::rho`](qqq_formats::simulated::Quip).
    Rho,
    /// [`Quip::incoherence`](qqq_formats::simulated::Quip).
    Incoherence,
}

/// What is told of a recipe.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its name.
    pub name: RecipeName,
    /// How it is written.
    pub word: &'static str,
    /// Where it is published.
    pub source: &'static str,
    /// What it does.
    pub what: &'static str,
    /// What becomes of the layers.
    pub gives: &'static str,
    /// The recipe, with its paper's amount of text.
    pub recipe: fn() -> Recipe,
    /// What it leaves open.
    pub settings: &'static [Setting],
}

/// All recipes but the tool's own.
pub const PUBLISHED: [Entry; 14] = [
    fp16::ENTRY,
    rtn::ENTRY,
    smoothquant::ENTRY,
    os_plus::ENTRY,
    gptq::ENTRY,
    awq::ENTRY,
    omniquant::ENTRY,
    qqq::CHANNEL,
    qqq::G128,
    qqq::ROTATED,
    llm_int8::ENTRY,
    quik::ENTRY,
    spqr::ENTRY,
    quip::ENTRY,
];

/// How the tool's own recipe is written.
const OWN: &str = "best";

impl RecipeName {
    /// Whether it is the tool's own.
    pub fn is_own(&self) -> bool {
        *self == Self::Best
    }

    /// What is told of it; `None` for the tool's own.
    pub fn entry(self) -> Option<&'static Entry> {
        const ALL: &[Entry] = &PUBLISHED;
        ALL.iter().find(|entry| entry.name == self)
    }

    /// The recipe, with its paper's amount of text.
    pub fn recipe(self) -> Recipe {
        self.entry().map_or(Recipe::DEFAULT, |entry| (entry.recipe)())
    }

    /// How it is written.
    pub fn word(self) -> &'static str {
        self.entry().map_or(OWN, |entry| entry.word)
    }

    /// All names, the tool's own first.
    pub fn all() -> impl Iterator<Item = Self> {
        std::iter::once(Self::Best).chain(PUBLISHED.iter().map(|entry| entry.name).collect::<Vec<_>>())
    }
}

impl fmt::Display for RecipeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for RecipeName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::all().find(|name| name.word() == text).ok_or_else(|| {
            let words: Vec<&str> = Self::all().map(Self::word).collect();
            format!("there is no recipe {text:?}: {}", words.join(", "))
        })
    }
}

impl From<RecipeName> for String {
    fn from(name: RecipeName) -> String {
        name.to_string()
    }
}

impl TryFrom<String> for RecipeName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// All that a published recipe leaves out: nothing but rounding to nearest, by the largest weight, of layers that are calibrated
/// in the float model.
fn plain() -> Recipe {
    Recipe {
        transform: crate::Transform::None,
        group_size: None,
        group_scales: crate::GroupScales::Half,
        compensate: false,
        clip: crate::Clip::None,
        value_hessian: crate::ValueHessian::Input,
        propagation: crate::Propagation::Float,
        error_correction: 0.0,
        ..Recipe::DEFAULT
    }
}

/// What a recipe does to a block before its layers are rounded, where it looks at all calibration windows for that.
pub(crate) struct BlockChange<'a, B: Calibrate> {
    pub around: Surroundings<'a, B>,
    pub recipe: &'a Recipe,
    pub schemes: Sites<Option<Scheme>>,
    pub half: HalfType,
}

impl<B: Calibrate> BlockChange<'_, B> {
    /// Changes block `index`. `windows` stand before it (sequences in float); they leave it. `on_site` is told when a site
    /// begins.
    ///
    /// # Errors
    /// A weight that the backend refuses, inputs or outputs of a site that are not finite, and those of `on_site`.
    pub fn apply(
        &self,
        index: usize,
        block: &mut FloatBlock<B>,
        windows: &mut [Window<B>],
        workshop: &mut Workshop<B>,
        on_site: &mut dyn FnMut() -> QuantResult<()>,
    ) -> QuantResult<Vec<SmoothReport>> {
        let Self { around, recipe, schemes, half } = *self;
        let transform = recipe.transform;
        let walk = SiteWalk { around, schemes, half, to_the_end: transform == Transform::Protect };
        let wanted = |site: Site| match transform {
            Transform::Migrate => smoothquant::wanted(site),
            Transform::Protect => awq::wanted(around, site),
            _ => true,
        };
        let mut choose = |site: &SiteSearch<'_, B>, workshop: &mut Workshop<B>| -> QuantResult<Change> {
            match transform {
                Transform::Migrate => smoothquant::choose(site, workshop, recipe.migration_strength),
                Transform::Suppress => os_plus::choose(site, workshop),
                Transform::Protect => awq::choose(site, workshop),
                other => Err(QuantError::Recipe(format!("transform {other:?} looks at no windows"))),
            }
        };
        let reports = walk.change(index, block, windows, workshop, &wanted, on_site, &mut choose)?;
        if transform == Transform::Suppress && os_plus::adds_bias(around.config) {
            // Those of layers that stay as they are, too: config.json promises them.
            for site in [Site::Qkv, Site::O] {
                let layer = &mut block.layers[site];
                layer.bias.get_or_insert_with(|| vec![0.0; layer.n]);
            }
        }
        Ok(reports)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_words() {
        for name in RecipeName::all() {
            assert_eq!(name.to_string().parse(), Ok(name));
            assert_eq!(name.recipe().name, name);
            let json = serde_json::to_value(name.recipe()).unwrap();
            assert_eq!(json.get("name").is_none(), name == RecipeName::Best, "{name}");
            assert_eq!(serde_json::from_value::<Recipe>(json).unwrap(), name.recipe());
        }
        let error = "omni".parse::<RecipeName>().unwrap_err();
        assert!(error.contains("os+") && error.contains("best"), "{error}");
    }

    #[test]
    fn a_recipe_that_looks_at_text_has_some() {
        for name in RecipeName::all() {
            let recipe = name.recipe();
            let needs = recipe.needs_text();
            assert_eq!(needs.is_empty(), !recipe.calibrates(), "{name}: {needs:?}");
            assert!(!recipe.transform.reads_windows() || recipe.propagation == crate::Propagation::Float);
        }
    }
}
