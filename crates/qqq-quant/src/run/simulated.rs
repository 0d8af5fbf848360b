//! Layers of a simulated recipe: quantized module by module, written as 16-bit weights, and made ready to run as they will.

use std::time::Instant;

use qqq_backend::Calibrate;
use qqq_formats::{LinearWeight, SimulatedMethod, SimulatedWeight, WeightData, simulated::Arithmetic};
use qqq_model::{ModelError, Site, block::Layer as BlockLayer, names};

use super::Run;
use crate::{
    QuantError, Result,
    float_linear::FloatLinear,
    output::OutputCheckpoint,
    recipes::simulated::{Layer, Made, quantize},
    report::LayerReport,
    windows::Windows,
};

/// A module of a site's layer, quantized.
pub(crate) struct SimulatedModule {
    /// Its name in the model.
    pub prefix: String,
    pub n: usize,
    pub k: usize,
    pub made: Made,
}

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

    /// Quantizes the modules of a site.
    pub(super) fn simulate(
        &mut self,
        method: &SimulatedMethod,
        (index, site): (usize, Site),
        layer: &FloatLinear<B>,
        hessian: Option<&B::Hessian>,
        largest: Option<&[f32]>,
    ) -> Result<Vec<SimulatedModule>> {
        let clock = Instant::now();
        let b = self.around.backend;
        let all = b.read_weights(&layer.weights)?;
        let hessian: Option<Vec<f64>> = match hessian {
            Some(hessian) => Some(b.read_hessian(hessian)?.iter().map(|h| f64::from(*h)).collect()),
            None => None,
        };
        let mut modules = Vec::new();
        let mut first = 0;
        for (module, n) in site.modules(&self.checkpoint.config) {
            let (prefix, k) = (names::linear(index, module), layer.k);
            self.begin(index, self.estimate.solve(n, k), &format!("solving {module}"))?;
            let weights: Vec<f64> = all[first * k..(first + n) * k].iter().map(|w| f64::from(*w)).collect();
            first += n;
            let task = Layer { name: &prefix, weights: &weights, n, k, hessian: hessian.as_deref(), largest };
            let made = quantize(method, &task, self.half, self.recipe.seed)?;
            let scales = made.quik.as_ref().map(|(scales, _)| scales.as_slice()).unwrap_or_default();
            let range = |(low, high): (f32, f32), s: &f32| (low.min(*s), high.max(*s));
            let start = scales.first().map_or((0.0, 0.0), |s| (*s, *s));
            let dead = hessian.iter().flat_map(|h| h.iter().step_by(k + 1)).filter(|d| **d == 0.0);
            self.layers.push(LayerReport {
                name: prefix.clone(),
                out_features: n,
                in_features: k,
                loss_nearest: made.loss_nearest,
                loss: made.loss,
                damping: damping(method),
                dead_channels: dead.count(),
                scale_range: scales.iter().fold(start, range),
                stored_bits: Some(made.bits),
            });
            modules.push(SimulatedModule { prefix, n, k, made });
        }
        self.timings.solve += clock.elapsed().as_secs_f64();
        Ok(modules)
    }

    /// Writes the modules of a site.
    pub(super) fn write_simulated(
        &mut self,
        (index, site): (usize, Site),
        modules: &[SimulatedModule],
        bias: Option<&[f32]>,
        writer: &mut OutputCheckpoint<'_>,
    ) -> Result<()> {
        self.begin(index, self.estimate.pack.part(self.share(site)), "writing")?;
        let clock = Instant::now();
        let mut first = 0;
        for module in modules {
            writer.add_simulated(module, bias.map(|bias| &bias[first..first + module.n]))?;
            first += module.n;
        }
        self.timings.write += clock.elapsed().as_secs_f64();
        Ok(())
    }

    /// The site's layer as it will run.
    pub(super) fn pack_simulated(
        &mut self,
        method: &SimulatedMethod,
        (index, site): (usize, Site),
        modules: Vec<SimulatedModule>,
        bias: Option<Vec<f32>>,
    ) -> Result<BlockLayer<B>> {
        let clock = Instant::now();
        let dtype = self.half.dtype();
        let (n, k) = (modules.iter().map(|m| m.n).sum(), modules.first().map_or(0, |m| m.k));
        let part = |module: &SimulatedModule| {
            Some(SimulatedWeight {
                out_features: module.n,
                in_features: k,
                data: WeightData::of_f32(dtype, &module.made.weights),
                arithmetic: arithmetic(method, module)?,
            })
        };
        let weight = match modules.iter().map(part).collect::<Option<Vec<_>>>() {
            Some(parts) => SimulatedWeight::joined(parts).map(LinearWeight::Simulated).ok_or_else(|| {
                QuantError::Recipe("parts of a layer were quantized in different ways".into())
            })?,
            None => {
                let values: Vec<f32> = modules.into_iter().flat_map(|m| m.made.weights).collect();
                let data = WeightData::of_f32(dtype, &values);
                LinearWeight::Float { out_features: n, in_features: k, data }
            }
        };
        let packed = self.around.backend.linear_weight(weight, bias);
        self.timings.ready += clock.elapsed().as_secs_f64();
        let name = || names::linear(index, crate::float_linear::module(site));
        Ok(BlockLayer::Ready(packed.map_err(|source| ModelError::Backend { name: name(), source })?))
    }
}

/// What a module does with its input, if it does anything else than to multiply it.
fn arithmetic(method: &SimulatedMethod, module: &SimulatedModule) -> Option<Arithmetic> {
    match method {
        SimulatedMethod::Quik(options) => {
            let (scales, outliers) = module.made.quik.clone()?;
            Some(Arithmetic::Quik { bits: options.bits_of(&module.prefix), scales, outliers })
        }
        SimulatedMethod::LlmInt8(options) => Some(Arithmetic::LlmInt8 { threshold: options.threshold }),
        SimulatedMethod::SpQr(_) | SimulatedMethod::Quip(_) => None,
    }
}

fn damping(method: &SimulatedMethod) -> f64 {
    match method {
        SimulatedMethod::LlmInt8(_) => 0.0,
        SimulatedMethod::Quik(options) => options.damping,
        SimulatedMethod::SpQr(options) => options.damping,
        SimulatedMethod::Quip(options) => options.damping,
    }
}
