//! Mixed precision within a budget: which layers get 8 bits is decided by what 4 bits cost on held-out text.
//!
//! For every site that no rule decides on, the KL divergence of the model from the float one is measured with this site alone
//! in 4 bits, and in 8 ([`sensitivity`]). Sites get 8 bits in the order of what that saves for each byte that it takes, while
//! the budget has room ([`choice`]). Savings of several sites are taken to add up. From then on the run is one with rules,
//! which its report names: the same rules without a budget give the same checkpoint.

mod choice;
mod progress;
mod sensitivity;
mod sizes;

use std::fmt;

use qqq_backend::Calibrate;
use qqq_formats::{CodeBits, size};
use qqq_model::{Site, names};
use serde::{Deserialize, Serialize};

use self::sizes::Sizes;
use crate::{
    OutputFormat, Precision, Progress, QuantError, Recipe, Resolved, Result, Rule, calibration::Source,
    float_linear::module, pipeline::Job, precision,
};

/// How large the result may be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Budget {
    /// Codes and scales of the quantized layers, in bits for each of their weights.
    BitsPerWeight(f64),
    /// All tensors of the checkpoint, in bytes.
    Bytes(u64),
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BitsPerWeight(bits) => write!(f, "{bits} bits per weight"),
            Self::Bytes(bytes) => f.write_str(&size::bytes(*bytes)),
        }
    }
}

/// A layer as it is fused at run time, what was measured of it, and what it got.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SiteChoice {
    /// Such as `model.layers.0.mlp.gate_up_proj`.
    pub name: String,
    /// Its weights.
    pub weights: u64,
    /// Bytes of its codes and scales in 4 bits.
    pub bytes_4: u64,
    /// The same in 8 bits.
    pub bytes_8: u64,
    /// KL divergence from the float model, in nats per token, with this layer alone in 4 bits; none if that leaves no numbers.
    pub kl_divergence_4: Option<f64>,
    /// The same in 8 bits.
    pub kl_divergence_8: Option<f64>,
    /// Bits that it got.
    #[serde(with = "precision::bits")]
    pub bits: CodeBits,
}

impl SiteChoice {
    /// What 8 bits save, in nats per token.
    fn gain(&self) -> f64 {
        let [four, eight] = [self.kl_divergence_4, self.kl_divergence_8].map(|kld| kld.unwrap_or(f64::MAX));
        four - eight
    }
}

/// What a budget was spent on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BudgetReport {
    /// What was asked for.
    pub budget: Budget,
    /// Bits per weight that were reached, over all quantized layers: codes and scales.
    pub bits_per_weight: f64,
    /// Windows of held-out text on which sensitivities were measured.
    pub windows: usize,
    /// Predictions that were compared there.
    pub tokens: usize,
    /// All layers on which the budget decided, in the order of computation.
    pub sites: Vec<SiteChoice>,
    /// The rules that follow, behind those that were given.
    pub rules: Vec<Rule>,
}

impl BudgetReport {
    /// What was reached, for people.
    pub fn describe(&self) -> String {
        let eight = self.sites.iter().filter(|site| site.bits == CodeBits::Eight).count();
        format!(
            "{}: {eight} of {} layers in 8 bits, {:.3} bits per weight reached",
            self.budget,
            self.sites.len(),
            self.bits_per_weight
        )
    }
}

/// A run in which all is decided.
pub(crate) struct Decided {
    pub recipe: Recipe,
    pub format: OutputFormat,
    /// Where there was a budget.
    pub report: Option<BudgetReport>,
    /// Seconds that measuring took.
    pub measured: f64,
    /// Seconds that measuring would take, where it was left out.
    pub unmeasured: f64,
}

impl Decided {
    /// As a stopped run has it, which had the same budget.
    pub fn kept(recipe: &Recipe, kept: BudgetReport) -> Self {
        let mut recipe = Recipe { budget: None, ..recipe.clone() };
        recipe.rules.extend(kept.rules.iter().cloned());
        Self {
            recipe,
            format: OutputFormat::CompressedTensors,
            report: Some(kept),
            measured: 0.0,
            unmeasured: 0.0,
        }
    }
}

/// How the sensitivities come to be.
pub(crate) enum Sensitivities {
    /// They are measured.
    Measured,
    /// It makes no difference which layers get 8 bits, and the time of measuring is estimated.
    Alike,
}

/// Decides what becomes of the layers of `job` by its recipe's budget; without one nothing changes.
///
/// # Errors
/// A budget that cannot be kept, or that nothing depends on; nothing to measure on; those of the passes.
pub(crate) fn decide<B: Calibrate>(
    job: &Job<'_, B>,
    format: OutputFormat,
    sensitivities: Sensitivities,
    progress: &mut dyn Progress,
) -> Result<Decided> {
    let Some(budget) = job.recipe.budget else {
        return Ok(Decided {
            recipe: job.recipe.clone(),
            format,
            report: None,
            measured: 0.0,
            unmeasured: 0.0,
        });
    };
    let refuse = |message: String| Err(QuantError::Recipe(message));
    // The form of all of one kind is for one kind.
    if format == OutputFormat::Qqq {
        return refuse(
            "a budget makes layers of 4 and 8 bits, which the qqq form does not hold side by side; write \
                       compressed-tensors (--format compressed-tensors)"
                .into(),
        );
    }
    let format = OutputFormat::CompressedTensors;
    if job.recipe.bits == CodeBits::Eight {
        return refuse(format!(
            "a budget of {budget} gives 8 bits to some layers of 4, and this recipe has 8 bits everywhere; leave --bits out, or \
             the budget"
        ));
    }
    if job.calibration.held_out == 0 {
        return refuse("a budget is spent by what is measured on held-out text, of which there are 0 windows (--held-out)".into());
    }
    let config = &job.checkpoint.config;
    let Resolved { recipe, .. } = job.recipe.resolved(config);
    let sizes = Sizes::of(job.checkpoint, &recipe)?;
    let room = sizes.room(budget)?;
    // The recipe without the budget, and rounding to nearest, which needs no statistics.
    let recipe = Recipe { budget: None, ..recipe };
    let rounding = sensitivity::recipe(&recipe);
    let source = match *job.calibration.source {
        // Not to have the model write twice.
        Source::SelfSamples => &Source::BuiltIn,
        ref source => source,
    };
    let calibration = crate::calibration::CalibrationText { source, ..job.calibration };
    let measuring = Job { recipe: &rounding, calibration, ..*job };
    let mut unmeasured = 0.0;
    let (mut sites, (windows, tokens), seconds) = match sensitivities {
        Sensitivities::Measured => {
            let found = sensitivity::measure(&measuring, format, &sizes, progress)?;
            (found.sites, (found.windows, found.tokens), found.seconds)
        }
        Sensitivities::Alike => {
            unmeasured = sensitivity::expected(&measuring, format, &sizes, progress)?;
            (sizes.sites(), (0, 0), 0.0)
        }
    };
    choice::spend(&mut sites, room);
    let rules = rules(job, &sizes, &sites);
    let mut recipe = Recipe { budget: None, ..job.recipe.clone() };
    recipe.rules.extend(rules.iter().cloned());
    let report = BudgetReport {
        budget,
        bits_per_weight: sizes.bits_per_weight(&sites),
        windows,
        tokens,
        sites,
        rules,
    };
    Ok(Decided { recipe, format, report: Some(report), measured: seconds, unmeasured })
}

/// A rule for each kind of sites that got 8 bits.
fn rules<B>(job: &Job<'_, B>, sizes: &Sizes, sites: &[SiteChoice]) -> Vec<Rule> {
    let config = &job.checkpoint.config;
    let of_site = |site: Site| {
        let chosen = sizes.free.iter().zip(sites);
        let chosen = chosen.filter(|((_, of), choice)| *of == site && choice.bits == CodeBits::Eight);
        let blocks: Vec<String> = chosen.map(|((block, _), _)| block.to_string()).collect();
        let modules: Vec<String> =
            site.module_names(config).iter().map(|module| module.replace('.', r"\.")).collect();
        (!blocks.is_empty()).then(|| Rule {
            pattern: format!(r"re:model\.layers\.({})\.({})$", blocks.join("|"), modules.join("|")),
            precision: Precision::Int8,
        })
    };
    Site::ALL.into_iter().filter_map(of_site).collect()
}

/// The name of a site's layer.
fn site_name(block: usize, site: Site) -> String {
    names::linear(block, module(site))
}
