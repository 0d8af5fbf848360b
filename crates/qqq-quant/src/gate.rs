//! The gate at the end of a run: a result that is too far from the float model on held-out text does not get its name.

use std::path::PathBuf;

use qqq_model::scores::{Divergence, Estimate};
use serde::{Deserialize, Serialize};

use crate::{Report, held_out::Measured};

/// KL divergence beyond which a result is broken, in nats per token, unless told otherwise. What loses most of a sound model
/// (rounding to nearest per channel, models of some 100 million parameters) stays below; a model that has forgotten its
/// language is as far away as the logarithm of its vocabulary, about 10.
pub const MAX_KLD: f64 = 4.0;

/// What a result must be to get its name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gate {
    /// The largest KL divergence from the float model on held-out text, in nats per token; `None`: any, and logits that are no
    /// numbers as well.
    pub max_kld: Option<f64>,
    /// Gives a result beyond that its name all the same, with a warning.
    pub force: bool,
}

impl Gate {
    /// What there is unless told otherwise.
    pub const DEFAULT: Self = Self { max_kld: Some(MAX_KLD), force: false };
    /// Whatever comes out.
    pub const OPEN: Self = Self { max_kld: None, force: false };
}

impl Default for Gate {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// How far a result is from the float model on text that calibration has not seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Where the text is from, in words.
    pub text: String,
    /// Windows of it.
    pub windows: usize,
    /// Predictions that were compared.
    pub tokens: usize,
    /// The figures, beside the others in JSON; none where the result's numbers are not finite.
    #[serde(flatten)]
    pub divergence: Option<Divergence>,
    /// What of the result is not finite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_finite: Option<String>,
    /// The limit that was set, in nats per token.
    pub max_kld: Option<f64>,
    /// Whether the result is beyond it.
    pub is_beyond: bool,
}

impl Quality {
    /// Of what was measured on windows and predictions; `Err` says why nothing can be said.
    pub(crate) fn of(
        measured: Measured,
        (windows, tokens): (usize, usize),
        text: String,
        gate: &Gate,
    ) -> Result<Self, String> {
        let (divergence, not_finite) = match measured {
            Measured::Numbers(divergence) => (Some(divergence), None),
            Measured::NotFinite(what) => (None, Some(what)),
            Measured::FloatNotFinite(what) => return Err(what),
        };
        let is_within = |limit: f64| divergence.is_some_and(|d| d.kl_divergence.mean <= limit);
        let is_beyond = gate.max_kld.is_some_and(|limit| !is_within(limit));
        Ok(Self { text, windows, tokens, divergence, not_finite, max_kld: gate.max_kld, is_beyond })
    }

    /// The figures for people: names and values.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        let Some(d) = &self.divergence else {
            let what = self.not_finite.as_deref().unwrap_or("nothing was measured");
            return vec![("KL divergence", format!("no number: {what}")), ("held-out text", self.amount())];
        };
        vec![
            ("KL divergence", format!("{} nats per token", shown(d.kl_divergence))),
            (
                "perplexity ratio",
                format!(
                    "{} ({} against {})",
                    shown(d.perplexity_ratio),
                    significant(d.perplexity),
                    significant(d.baseline_perplexity)
                ),
            ),
            ("top-1 agreement", format!("{:.1} %", 100.0 * d.top1_agreement.mean)),
            ("held-out text", self.amount()),
        ]
    }

    fn amount(&self) -> String {
        let s = if self.windows == 1 { "" } else { "s" };
        format!("{}, {} tokens in {} window{s}", self.text, self.tokens, self.windows)
    }

    /// What is wrong with a result beyond the limit, in a sentence without an end.
    pub(crate) fn complaint(&self) -> String {
        let limit = self.max_kld.map_or_else(String::new, |limit| format!(" (the limit is {limit})"));
        let Some(d) = &self.divergence else {
            let what = self.not_finite.as_deref().unwrap_or_default();
            return format!("on held-out text its predictions are no numbers: {what}{limit}");
        };
        format!(
            "on held-out text its predictions are {} nats per token from the float model's{limit}, its perplexity is {} instead \
             of {}, and {:.1} % of the likeliest tokens agree",
            significant(d.kl_divergence.mean),
            significant(d.perplexity),
            significant(d.baseline_perplexity),
            100.0 * d.top1_agreement.mean
        )
    }
}

/// A mean with its standard error, if there is one.
fn shown(estimate: Estimate) -> String {
    let mean = significant(estimate.mean);
    estimate.standard_error.map_or(mean.clone(), |error| format!("{mean} ± {}", significant(error)))
}

/// Three or four digits that count.
fn significant(x: f64) -> String {
    let digits = match x.abs() {
        x if x >= 1000.0 => 0,
        x if x >= 10.0 => 1,
        x if x >= 1.0 => 2,
        x if x >= 0.1 || x == 0.0 => 3,
        _ => 5,
    };
    format!("{x:.digits$}")
}

/// A run whose result is beyond the gate's limit.
#[derive(Clone, Debug)]
pub struct BeyondGate {
    /// Where the complete checkpoint is, with its report.
    pub path: PathBuf,
    /// The report.
    pub report: Report,
}

impl std::fmt::Display for BeyondGate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let complaint = self.report.quality.as_ref().map(Quality::complaint).unwrap_or_default();
        write!(
            f,
            "the result is too far from the float model: {complaint}; it is kept as {}",
            self.path.display()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimate(mean: f64) -> Estimate {
        Estimate { mean, standard_error: Some(mean / 10.0) }
    }

    fn divergence(kld: f64) -> Divergence {
        Divergence {
            kl_divergence: estimate(kld),
            top1_agreement: estimate(0.5),
            perplexity_ratio: estimate(kld.exp()),
            baseline_perplexity: 20.0,
            perplexity: 20.0 * kld.exp(),
        }
    }

    fn of(measured: Measured, gate: Gate) -> Quality {
        Quality::of(measured, (2, 100), "a text".into(), &gate).unwrap()
    }

    #[test]
    fn a_limit_is_for_numbers_and_for_what_is_none() {
        let numbers = |kld: f64| Measured::Numbers(divergence(kld));
        let strict = Gate { max_kld: Some(0.5), force: true };
        for (kld, gate, is_beyond) in [
            (0.1, strict, false),
            (0.5, strict, false),
            (0.51, strict, true),
            (3.9, Gate::DEFAULT, false),
            (4.1, Gate::DEFAULT, true),
            (1e6, Gate::OPEN, false),
        ] {
            assert_eq!(of(numbers(kld), gate).is_beyond, is_beyond, "{kld}, {gate:?}");
        }
        let broken = || Measured::NotFinite("the logits are not finite".into());
        assert!(of(broken(), Gate::DEFAULT).is_beyond && !of(broken(), Gate::OPEN).is_beyond);
        assert!(of(broken(), Gate::DEFAULT).complaint().contains("the logits are not finite"));
        // Nothing can be said against a float model without numbers.
        let nothing = Measured::FloatNotFinite("its logits".into());
        assert_eq!(Quality::of(nothing, (2, 100), "a text".into(), &Gate::DEFAULT), Err("its logits".into()));
    }

    #[test]
    fn reports_keep_it() {
        for quality in [
            of(Measured::Numbers(divergence(0.25)), Gate::DEFAULT),
            of(Measured::NotFinite("the logits are not finite".into()), Gate::OPEN),
        ] {
            let json = serde_json::to_value(&quality).unwrap();
            assert_eq!(serde_json::from_value::<Quality>(json).unwrap(), quality);
            assert!(quality.rows().iter().any(|(name, value)| *name == "KL divergence" && !value.is_empty()));
        }
        let json = serde_json::to_value(of(Measured::Numbers(divergence(0.25)), Gate::DEFAULT)).unwrap();
        assert_eq!(json["kl_divergence"]["mean"], 0.25);
    }
}
