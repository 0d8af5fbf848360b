//! Mixed precision within a budget: which layers get how many bits is decided by what that costs on held-out text.
//!
//! A site that no rule decides on may become 4 bits in the recipe's groups, 4 bits in smaller ones, or 8 bits. For each of these
//! the KL divergence of the model from the float one is measured with this site alone quantized (`sensitivity`). The budget
//! then goes where it saves most for each byte (`choice`). Losses of several sites are taken to add up. From then on the run is
//! one with rules, which its report names: the same rules without a budget give the same checkpoint.

mod choice;
mod progress;
mod sensitivity;
mod sizes;

use std::fmt;

use qqq_backend::Calibrate;
use qqq_formats::{CodeBits, ModelConfig, size};
use qqq_model::{Site, names};
use serde::{Deserialize, Serialize};

use self::sizes::Sizes;
use crate::{
    OutputFormat, Precision, Progress, QuantError, Recipe, Resolved, Result, Rule, calibration::Source,
    float_linear::module, held_out::DECIDING_WINDOWS, pipeline::Job,
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

/// What a layer may become.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Bits and groups.
    pub precision: Precision,
    /// Bytes of codes and scales.
    pub bytes: u64,
    /// KL divergence from the float model, in nats per token, with this layer alone so; none if that leaves no numbers.
    pub kl_divergence: Option<f64>,
}

/// A layer as it is fused at run time, what was measured of it, and what it becomes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SiteChoice {
    /// Such as `model.layers.0.mlp.gate_up_proj`.
    pub name: String,
    /// Its weights.
    pub weights: u64,
    /// What it may become, the smallest first.
    pub candidates: Vec<Candidate>,
    /// What it becomes: that of one of them.
    pub chosen: Precision,
}

impl SiteChoice {
    /// Bytes of what it becomes.
    fn bytes(&self) -> u64 {
        let chosen = self.candidates.iter().find(|candidate| candidate.precision == self.chosen);
        chosen.map_or(0, |candidate| candidate.bytes)
    }
}

/// What a budget was spent on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BudgetReport {
    /// What was asked for.
    pub budget: Budget,
    /// Bits per weight that were reached, over all linear layers of the blocks: codes, scales, biases and what stays in 16 bits.
    pub bits_per_weight: f64,
    /// Windows of held-out text on which candidates were measured.
    pub windows: usize,
    /// Predictions that were compared there for each of them.
    pub tokens: usize,
    /// Whether the result is compared with the float model on this text too: there was no other. It then looks a little better
    /// than it is.
    pub chosen_on_compared_text: bool,
    /// All layers on which the budget decided, in the order of computation.
    pub sites: Vec<SiteChoice>,
    /// The rules that follow, behind those that were given.
    pub rules: Vec<Rule>,
}

impl BudgetReport {
    /// What was reached, for people.
    pub fn describe(&self) -> String {
        let mut counts: Vec<(Precision, usize)> = Vec::new();
        let candidates = self.sites.iter().flat_map(|site| &site.candidates);
        for Candidate { precision, .. } in candidates {
            if !counts.iter().any(|(known, _)| known == precision) {
                let sites = self.sites.iter().filter(|site| site.chosen == *precision);
                counts.push((*precision, sites.count()));
            }
        }
        let counts: Vec<String> = counts
            .into_iter()
            .rev()
            .filter(|(_, count)| *count > 0)
            .map(|(precision, count)| format!("{count} {precision}"))
            .collect();
        format!(
            "{}: {:.3} bits per weight, of {} layers {}",
            self.budget,
            self.bits_per_weight,
            self.sites.len(),
            counts.join(", ")
        )
    }
}

/// A run in which all is decided.
pub(crate) struct Decided {
    pub recipe: Recipe,
    pub format: OutputFormat,
    /// Where there was a budget.
    pub report: Option<BudgetReport>,
    /// What measuring took, or would take.
    pub measuring: Measuring,
}

/// What measuring candidates takes; nothing where there is no budget.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Measuring {
    /// Seconds: those that it took, or that it is expected to take.
    pub seconds: f64,
    /// Memory at most, in bytes: estimated.
    pub memory: u64,
}

/// When measuring takes most memory.
pub(crate) const PHASE: &str = "measuring what bits cost";

impl Decided {
    /// By what was measured, now or by a stopped run that had the same budget.
    pub fn by(recipe: &Recipe, report: BudgetReport) -> Self {
        let mut recipe = Recipe { budget: None, ..recipe.clone() };
        recipe.rules.extend(report.rules.iter().cloned());
        Self {
            recipe,
            format: OutputFormat::CompressedTensors,
            report: Some(report),
            measuring: Measuring::default(),
        }
    }
}

/// How it becomes known what candidates lose.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sensitivities {
    /// It is measured.
    Measured,
    /// It makes no difference which layers get more bits, and the time of measuring is estimated.
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
        let recipe = job.recipe.clone();
        return Ok(Decided { recipe, format, report: None, measuring: Measuring::default() });
    };
    check(job.recipe, budget, format)?;
    let Resolved { recipe, .. } = job.recipe.resolved(&job.checkpoint.config);
    let sizes = Sizes::of(job.checkpoint, &recipe)?;
    let room = sizes.room(budget)?;
    let rounding = sensitivity::recipe(&Recipe { budget: None, ..recipe });
    let compared = job.calibration.held_out;
    let calibration = job.calibration.with_more_held_out(DECIDING_WINDOWS);
    let measuring = Job { recipe: &rounding, calibration, ..*job };
    let mut found = sensitivity::measure(&measuring, compared, &sizes, sensitivities, progress)?;
    choice::spend(&mut found.sites, room);
    let rules = rules(&job.checkpoint.config, &sizes, &found.sites);
    let report = BudgetReport {
        budget,
        bits_per_weight: sizes.bits_per_weight(&found.sites),
        windows: found.windows,
        tokens: found.tokens,
        chosen_on_compared_text: found.on_compared_text && *job.calibration.source != Source::SelfSamples,
        sites: found.sites,
        rules,
    };
    Ok(Decided { measuring: found.measuring, ..Decided::by(job.recipe, report) })
}

/// Refuses what a budget does not go with.
fn check(recipe: &Recipe, budget: Budget, format: OutputFormat) -> Result<()> {
    let refuse = |message: String| Err(QuantError::Recipe(message));
    // The form of all of one kind is for one kind.
    if format == OutputFormat::Qqq {
        return refuse(
            "a budget makes layers of several kinds, which the qqq form does not hold side by side; write compressed-tensors \
             (--format compressed-tensors)"
                .into(),
        );
    }
    if recipe.bits == CodeBits::Eight {
        return refuse(format!(
            "a budget of {budget} gives 8 bits to some layers of 4, and this recipe has 8 bits everywhere; leave --bits out, or \
             the budget"
        ));
    }
    if !recipe.name.is_own() {
        return refuse(format!(
            "recipe {} gives all layers the bits of its paper, and a budget of {budget} decides on them; take recipe best, or leave \
             the budget out",
            recipe.name
        ));
    }
    Ok(())
}

/// Rules that give sites what was chosen for them, where that is not the smallest candidate: one for each kind of sites and
/// precision.
fn rules(config: &ModelConfig, sizes: &Sizes, sites: &[SiteChoice]) -> Vec<Rule> {
    let mut rules = Vec::new();
    for site in Site::ALL {
        let modules: Vec<String> =
            site.module_names(config).iter().map(|module| module.replace('.', r"\.")).collect();
        for scheme in sizes.schemes(site).skip(1) {
            let precision = Precision::of(Some(scheme));
            let chosen = sizes.free.iter().zip(sites);
            let chosen = chosen.filter(|((_, of), choice)| *of == site && choice.chosen == precision);
            let blocks: Vec<String> = chosen.map(|((block, _), _)| block.to_string()).collect();
            if !blocks.is_empty() {
                let pattern = format!(r"re:model\.layers\.({})\.({})$", blocks.join("|"), modules.join("|"));
                rules.push(Rule { pattern, precision });
            }
        }
    }
    rules
}

/// The name of a site's layer.
fn site_name(block: usize, site: Site) -> String {
    names::linear(block, module(site))
}
