//! Layers of a simulated recipe, quantized module by module.

use std::time::Instant;

use qqq_backend::Calibrate;
use qqq_formats::{LinearWeight, SimulatedMethod, SimulatedWeight, simulated::Arithmetic};
use qqq_model::{Site, names};

use super::Run;
use crate::{
    QuantError, Result,
    float_linear::FloatLinear,
    recipes::{
        quik,
        simulated::{Layer, Made, quantize},
    },
    report::LayerReport,
    windows::Windows,
};

impl<B: Calibrate> Run<'_, B> {
    /// The largest magnitude of each input channel at the site at which the windows stand, where the recipe looks at that.
    pub(super) fn largest_inputs(&self, windows: &Windows<'_, B>) -> Result<Option<Vec<f32>>> {
        let Some(SimulatedMethod::Quik(_)) = self.recipe.simulated else { return Ok(None) };
        let mut largest = Vec::new();
        for input in windows.inputs() {
            let (high, low) = self.around.backend.channel_range(input)?;
            largest.resize(high.len(), 0.0f32);
            let of_input = high.iter().zip(&low).map(|(h, l)| h.abs().max(l.abs()));
            largest.iter_mut().zip(of_input).for_each(|(most, m)| *most = most.max(m));
        }
        Ok(Some(largest))
    }

    /// Quantizes the modules of a site; they come as the one layer that they run as.
    pub(super) fn simulate(
        &mut self,
        method: &SimulatedMethod,
        (index, site): (usize, Site),
        layer: &FloatLinear<B>,
        hessian: Option<&B::Hessian>,
        largest: Option<&[f32]>,
    ) -> Result<LinearWeight> {
        let clock = Instant::now();
        let b = self.around.backend;
        let all = b.read_weights(&layer.weights)?;
        let hessian: Option<Vec<f64>> = match hessian {
            Some(hessian) => Some(b.read_hessian(hessian)?.iter().map(|h| f64::from(*h)).collect()),
            None => None,
        };
        let (k, mut first) = (layer.k, 0);
        // 16-bit weights of all modules, and what each does with its input besides.
        let (mut bytes, mut parts) = (Vec::new(), Vec::new());
        for (module, n) in site.modules(&self.checkpoint.config) {
            let prefix = names::linear(index, module);
            self.begin(index, self.estimate.solve(n, k), &format!("solving {module}"))?;
            let weights: Vec<f64> = all[first * k..(first + n) * k].iter().map(|w| f64::from(*w)).collect();
            first += n;
            let task = Layer { name: &prefix, weights: &weights, n, k, hessian: hessian.as_deref(), largest };
            let made = quantize(method, &task, self.half, self.recipe.seed)?;
            let scales = made.quik.as_ref().map(|codes| codes.scales.as_slice()).unwrap_or_default();
            let range = |(low, high): (f32, f32), s: &f32| (low.min(*s), high.max(*s));
            let start = scales.first().map_or((0.0, 0.0), |s| (*s, *s));
            let dead = hessian.iter().flat_map(|h| h.iter().step_by(k + 1)).filter(|d| **d == 0.0);
            self.layers.push(LayerReport {
                name: prefix.clone(),
                precision: None,
                out_features: n,
                in_features: k,
                loss_nearest: made.loss_nearest,
                loss: made.loss,
                weight_error: Some(relative_error(&weights, &made.weights)),
                damping: method.damping(),
                dead_channels: dead.count(),
                scale_range: scales.iter().fold(start, range),
                stored_bits: Some(made.bits),
            });
            let begins = bytes.len();
            self.half.append(&prefix, &made.weights, &mut bytes)?;
            if let Some(arithmetic) = arithmetic(method, &prefix, made) {
                let data = self.half.values(bytes.split_off(begins));
                parts.push(SimulatedWeight { out_features: n, in_features: k, data, arithmetic });
            }
        }
        self.timings.solve += clock.elapsed().as_secs_f64();
        if parts.is_empty() {
            let data = self.half.values(bytes);
            return Ok(LinearWeight::Float { out_features: layer.n, in_features: k, data });
        }
        SimulatedWeight::joined(parts)
            .map(LinearWeight::Simulated)
            .ok_or_else(|| QuantError::Recipe("parts of a layer were quantized in different ways".into()))
    }
}

/// `|W-Q| / |W|`.
fn relative_error(weights: &[f64], made: &[f32]) -> f64 {
    let error: f64 = weights.iter().zip(made).map(|(w, q)| (w - f64::from(*q)).powi(2)).sum();
    let energy: f64 = weights.iter().map(|w| w.powi(2)).sum();
    if energy > 0.0 { (error / energy).sqrt() } else { 0.0 }
}

/// What a module does with its input, if it does anything else than to multiply it.
fn arithmetic(method: &SimulatedMethod, prefix: &str, made: Made) -> Option<Arithmetic> {
    match method {
        SimulatedMethod::Quik(options) => {
            let quik::Codes { scales, outliers, outlier_scales } = made.quik?;
            Some(Arithmetic::Quik { bits: options.bits_of(prefix), scales, outliers, outlier_scales })
        }
        SimulatedMethod::LlmInt8(options) => Some(Arithmetic::LlmInt8 { threshold: options.threshold }),
        SimulatedMethod::SpQr(_) | SimulatedMethod::Quip(_) => None,
    }
}
