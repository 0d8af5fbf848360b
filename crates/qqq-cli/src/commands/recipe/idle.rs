//! Options that would do nothing, and recipes that lack their text, are refused.

use qqq_quant::{NeedsText, Transform};

use super::{ActivationKind, AmountArgs, Method, RecipeArgs};
use crate::errors::{bad_input, bad_input_hint};

impl RecipeArgs {
    /// Refuses options that were given and would change nothing.
    pub(super) fn refuse_idle(&self, amount: &AmountArgs, windows: usize) -> anyhow::Result<()> {
        let refuse =
            |option: &str, why: &str| Err(bad_input(format!("--{option} does nothing {why}: leave it out")));
        // The first of these that was given, if this is so.
        let idle = |is_so: bool, options: &[&'static str]| {
            options.iter().copied().find(|option| is_so && self.given.has(option))
        };
        let rtn = self.method == Method::Rtn;
        let smooth = matches!(self.transform(), Transform::Smooth | Transform::Auto);
        // Most models are rotated where nothing is asked for.
        let rotate = matches!(self.transform(), Transform::Rotate | Transform::Usual | Transform::Auto);
        if let Some(option) = idle(!rotate, &["rotation"]) {
            return refuse(option, "without --transform rotate");
        }
        if let Some(option) = idle(!smooth, &["smooth-tokens"]) {
            return refuse(option, "without --transform smooth");
        }
        if let Some(option) = idle(!self.has_group_scales(), &["group-scales"]) {
            let why = match self.activations {
                ActivationKind::Int8 => "without groups (--group-size 32, 64 or 128)",
                ActivationKind::Half => "with --activations half, whose weights are multiplied in 16 bits",
            };
            return refuse(option, why);
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

/// Refuses a recipe without calibration windows that needs some.
pub(super) fn refuse_without_text(needs: &[NeedsText]) -> anyhow::Result<()> {
    let (mut options, mut ways_out) = (Vec::new(), Vec::new());
    for need in needs {
        let (option, way_out) = match need {
            NeedsText::Smoothing | NeedsText::ChannelScales => ("--transform smooth", "another --transform"),
            NeedsText::Compensation => ("--method gptq", "--method rtn"),
            NeedsText::Clipping => ("--clip output", "--clip weight or none"),
            NeedsText::Simulated => ("--recipe", "another --recipe"),
            NeedsText::Correction => ("--error-correction", "--error-correction 0"),
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
