//! Solved layers on their way: written, and made ready to run.

use std::time::Instant;

use qqq_backend::{BackendError, Calibrate, solve::Scheme};
use qqq_formats::{LinearWeight, QuantizedWeight};
use qqq_model::{ModelError, Site, block::Layer, names};

use super::Run;
use crate::{
    QuantError, Result,
    float_linear::{FloatLinear, module},
    output::OutputCheckpoint,
};

impl<B: Calibrate> Run<'_, B> {
    pub(super) fn write(
        &mut self,
        index: usize,
        site: Site,
        weight: &LinearWeight,
        bias: Option<&[f32]>,
        writer: &mut OutputCheckpoint<'_>,
    ) -> Result<()> {
        self.begin(index, self.estimate.pack.part(self.share(site)), "writing")?;
        let clock = Instant::now();
        writer.add_linear(index, site, weight, bias)?;
        self.timings.write += clock.elapsed().as_secs_f64();
        Ok(())
    }

    /// A weight as it runs.
    pub fn pack(&mut self, index: usize, weight: LinearWeight, bias: Option<Vec<f32>>) -> Result<Layer<B>> {
        let clock = Instant::now();
        let packed = self.around.backend.linear_weight(weight, bias);
        self.ready(index, clock, packed)
    }

    /// As `pack`, of a weight that is still needed.
    pub(super) fn pack_kept(
        &mut self,
        index: usize,
        weight: &LinearWeight,
        bias: Option<&[f32]>,
    ) -> Result<Layer<B>> {
        let clock = Instant::now();
        let packed = self.around.backend.linear_of(weight, bias);
        self.ready(index, clock, packed)
    }

    /// A layer that stays in 16 bits, as it is written.
    pub(super) fn keep_float(
        &mut self,
        index: usize,
        site: Site,
        layer: &FloatLinear<B>,
    ) -> Result<LinearWeight> {
        let clock = Instant::now();
        let name = names::linear(index, module(site));
        let mut bytes = Vec::new();
        self.half.append(&name, &self.around.backend.read_weights(&layer.weights)?, &mut bytes)?;
        let data = self.half.values(bytes);
        self.timings.transform += clock.elapsed().as_secs_f64();
        Ok(LinearWeight::Float { out_features: layer.n, in_features: layer.k, data })
    }

    fn ready(
        &mut self,
        index: usize,
        clock: Instant,
        packed: std::result::Result<B::Linear, BackendError>,
    ) -> Result<Layer<B>> {
        self.timings.ready += clock.elapsed().as_secs_f64();
        let name = format!("model.layers.{index}");
        Ok(Layer::Ready(packed.map_err(|source| ModelError::Backend { name, source })?))
    }
}

/// What takes the input of a site, in a few words.
pub(super) fn input_of(site: Site) -> &'static str {
    match site {
        Site::Qkv => "qkv",
        Site::O => "o",
        Site::GateUp => "gate and up",
        Site::Down => "down",
    }
}

/// A layer of zeros.
pub(crate) fn zeros(n: usize, k: usize, scheme: Scheme) -> QuantizedWeight {
    let groups = scheme.group_size.map_or(1, |group| k / group);
    scheme.weight((n, k), vec![0; n * k], vec![1.0; n * groups])
}

/// Stacks two layers.
pub(crate) fn join(first: &QuantizedWeight, second: &QuantizedWeight) -> Result<QuantizedWeight> {
    QuantizedWeight::concat(&[first, second])
        .ok_or_else(|| QuantError::Recipe("parts of a layer were quantized in different ways".into()))
}
