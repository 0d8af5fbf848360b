//! Solving layers: which output channels go together, for which moments of their inputs.

use std::{ops::Range, time::Instant};

use qqq_backend::{
    Calibrate,
    solve::{Correction, Scheme},
};
use qqq_formats::QuantizedWeight;
use qqq_model::{Site, names};

use super::{Run, join};
use crate::{
    Clip, Precision, Result,
    float_linear::{FloatLinear, module},
    moments::{Moments, Sums},
    report::{LayerReport, modules},
    solve::{SolveOptions, round_on, solve_corrected_on},
    value_hessian::value_moments,
};

impl<B: Calibrate> Run<'_, B> {
    /// Solves a site's layer. Where v has a Hessian of its own, `averages` gives it, once q and k are solved.
    pub(super) fn solve_site(
        &mut self,
        index: usize,
        site: Site,
        scheme: Scheme,
        layer: &FloatLinear<B>,
        inputs: &Moments<B>,
        averages: impl FnOnce(&mut Self, &QuantizedWeight) -> Result<Sums<B>>,
    ) -> Result<QuantizedWeight> {
        let first_v = self.queries_and_keys();
        if site == Site::Qkv && self.recipe.clip == Clip::GroupOutput {
            // Theirs are not clipped.
            let qk = self.solve(index, modules::QK, scheme, layer, 0..first_v, Some(inputs))?;
            let v = self.solve(index, modules::V, scheme, layer, first_v..layer.n, Some(inputs))?;
            return join(&qk, &v);
        }
        if site != Site::Qkv || !self.attends() {
            return self.solve(index, module(site), scheme, layer, 0..layer.n, Some(inputs));
        }
        let qk = self.solve(index, modules::QK, scheme, layer, 0..first_v, Some(inputs))?;
        let averages = averages(self, &qk)?;
        let moments = value_moments(self.around.backend, averages, inputs)?;
        let v = self.solve(index, modules::V, scheme, layer, first_v..layer.n, Some(&moments))?;
        join(&qk, &v)
    }

    /// Solves output channels of a layer, or of several that share their input, for the moments of that, or without them.
    ///
    /// # Errors
    /// Weights that cannot be quantized, a Hessian that cannot be factorised; those of the backend.
    pub fn solve(
        &mut self,
        index: usize,
        module: &str,
        scheme: Scheme,
        layer: &FloatLinear<B>,
        rows: Range<usize>,
        moments: Option<&Moments<B>>,
    ) -> Result<QuantizedWeight> {
        let clock = Instant::now();
        let (n, k) = (rows.len(), layer.k);
        self.begin(index, self.estimate.solve(n, k), &format!("solving {module}"))?;
        let name = names::linear(index, module);
        let mut options = self.solve_options(scheme);
        if (self.recipe.clip, module) == (Clip::GroupOutput, modules::QK) {
            options.clip = Clip::None;
        }
        let hessian = moments.map(|moments| &moments.hessian);
        let groups = k / scheme.group_size.unwrap_or(k);
        let given = layer.scales.as_deref().map(|scales| &scales[rows.start * groups..rows.end * groups]);
        let deviation = moments.and_then(|moments| moments.deviation.as_ref());
        let strength = self.recipe.error_correction;
        let correction = deviation.map(|deviation| Correction { deviation, strength });
        let backend = self.around.backend;
        let weights = &layer.weights;
        let solved = match given {
            Some(scales) => round_on(backend, &name, weights, rows, k, hessian, scales, &options),
            None => solve_corrected_on(backend, &name, weights, rows, k, hessian, correction, &options),
        }?;
        self.warn_of_damping(&name, solved.damping);
        self.layers.push(LayerReport {
            name,
            precision: Some(Precision::of(Some(scheme))),
            out_features: n,
            in_features: k,
            loss_nearest: solved.loss_nearest,
            loss: solved.loss,
            weight_error: Some(solved.weight_loss.sqrt()),
            damping: solved.damping,
            dead_channels: solved.dead_channels,
            stored_bits: None,
            scale_range: scale_range(solved.weight.channel_scales()),
        });
        self.timings.solve += clock.elapsed().as_secs_f64();
        Ok(solved.weight)
    }

    /// How layers that become such ones are solved.
    pub(super) fn solve_options(&self, scheme: Scheme) -> SolveOptions {
        SolveOptions {
            bits: scheme.bits,
            activations: scheme.activations,
            group_size: scheme.group_size,
            group_scales: self.recipe.group_scales,
            compensate: self.recipe.compensate,
            clip: self.recipe.clip,
            act_order: self.recipe.act_order,
            damping: self.recipe.damping,
            scale_dtype: self.scale_dtype,
        }
    }

    pub(super) fn warn_of_damping(&mut self, layer: &str, needed: f64) {
        let asked = self.recipe.damping;
        if needed > asked * 1.000_001 {
            self.work.warn(format!(
                "{layer}: the Hessian is not positive definite at damping {asked}; {needed} was used"
            ));
        }
    }
}

/// Smallest and largest of the scales.
pub(super) fn scale_range(scales: &[f32]) -> (f32, f32) {
    scales.iter().fold((f32::INFINITY, 0.0), |(low, high), &s| (low.min(s), high.max(s)))
}
