//! A float block walked site by site, to change the input channels of its layers by what windows of calibration tokens have
//! there: what a site loses at a candidate's scales, and how they are applied.
//!
//! Losses are squared errors relative to the float output, with activations and weights quantized as the kernel has them,
//! weights rounded to nearest. The float inputs of the sites do not depend on the scales chosen before: such a change never
//! changes the float function.
//!
//! All of it happens where the weights lie: a candidate's scales go to the device, and its loss comes back.

use qqq_backend::{Calibrate, InputKind, solve::Scheme};
use qqq_model::{
    Block, ModelError, Site, Sites,
    block::{Layer, Step, head_layout},
    names,
};

use crate::{
    QuantError, Result,
    float_linear::{FloatBlock, FloatLinear, module},
    half_type::HalfType,
    report::SmoothReport,
    transform,
    windows::{Surroundings, Window, Workshop},
};

/// A way through the sites of a block.
pub(crate) struct SiteWalk<'a, B: Calibrate> {
    /// Device and model.
    pub around: Surroundings<'a, B>,
    /// What becomes of the weights of each site; one that stays float is not searched.
    pub schemes: Sites<Option<Scheme>>,
    /// Type of the norms on disk.
    pub half: HalfType,
    /// Whether the losses of q, k, v and of gate and up are looked at behind the float layer that comes next (o, down): at the
    /// end of attention and of the MLP.
    pub to_the_end: bool,
}

/// What becomes of a site's input channels.
pub(crate) struct Change {
    /// What is told of it.
    pub report: SmoothReport,
    /// What each channel is divided by.
    pub scales: Vec<f32>,
    /// What is subtracted from each channel of the input of o before, where that is asked.
    pub shift: Option<Vec<f32>>,
}

/// A site whose scales are searched.
pub(crate) struct SiteSearch<'s, B: Calibrate> {
    pub around: Surroundings<'s, B>,
    pub scheme: Scheme,
    /// The float block.
    pub block: &'s Block<B>,
    pub site: Site,
    /// Name of the layer.
    pub name: &'s str,
    pub layer: &'s FloatLinear<B>,
    /// The float layer behind which outputs are compared.
    behind: Option<&'s B::Linear>,
    /// The windows that stand at the site.
    windows: &'s [Window<B>],
    /// The site's input in each.
    pub inputs: Vec<&'s B::Input>,
}

/// Says what a site's layers are changed by.
pub(crate) type Choose<'a, B> = dyn FnMut(&SiteSearch<'_, B>, &mut Workshop<B>) -> Result<Change> + 'a;

/// What candidates are made in, one after the other.
struct Candidate<B: Calibrate> {
    input: B::Input,
    linear: Option<B::Linear>,
    output: B::Input,
}

impl<B: Calibrate> SiteWalk<'_, B> {
    /// Takes `windows` through block `index`, and changes its layers at the sites that are `wanted` by what `choose` says.
    /// `windows` stand before the block (sequences in float); they leave it. `on_site` is told when a search begins.
    ///
    /// # Errors
    /// A weight that the backend refuses; those of `choose` and of `on_site`.
    #[expect(clippy::too_many_arguments)]
    pub fn change(
        &self,
        index: usize,
        block: &mut FloatBlock<B>,
        windows: &mut [Window<B>],
        workshop: &mut Workshop<B>,
        wanted: &dyn Fn(Site) -> bool,
        on_site: &mut dyn FnMut() -> Result<()>,
        choose: &mut Choose<'_, B>,
    ) -> Result<Vec<SmoothReport>> {
        let Surroundings { backend: b, config, .. } = self.around;
        let heads = head_layout(config);
        // Its layers come and go with the sites. What is changed of the weights meanwhile belongs to layers that have been made.
        let mut float = Block::without_layers(b, config, index, block.norms.clone(), InputKind::Float)?;
        let mut reports = Vec::new();
        let mut before = None;
        for site in Site::ALL {
            for Window { flow, batch } in windows.iter_mut() {
                float.advance(&mut self.around.step(workshop, batch), flow, site)?;
                flow.shed(b)?;
            }
            if let Some(spent) = before.replace(site) {
                *float.layer_mut(spent) = Layer::Awaited(InputKind::Float);
            }
            *float.layer_mut(site) = block.layers[site].layer(b, index, site)?;
            let Some(scheme) = self.schemes[site].filter(|_| wanted(site)) else { continue };
            on_site()?;
            let name = names::linear(index, module(site));
            let next = match (site, site.next()) {
                (Site::Qkv | Site::GateUp, Some(next)) if self.to_the_end => {
                    Some(block.layers[next].layer(b, index, next)?)
                }
                _ => None,
            };
            let behind = match &next {
                Some(Layer::Ready(linear)) => Some(linear),
                _ => None,
            };
            let Change { report, scales, shift } = {
                let search = SiteSearch {
                    around: self.around,
                    scheme,
                    block: &float,
                    site,
                    name: &name,
                    layer: &block.layers[site],
                    behind,
                    windows: &*windows,
                    inputs: windows.iter().filter_map(|window| window.flow.input()).collect(),
                };
                choose(&search, workshop)?
            };
            reports.push(report);
            match (site, shift) {
                (Site::Qkv, _) => transform::smooth_qkv(b, block, &scales, self.half),
                (Site::O, Some(z)) => transform::shift_o(b, block, &z, &scales, heads, self.half),
                (Site::O, None) => transform::smooth_o(b, block, &scales, heads),
                (Site::GateUp, _) => transform::smooth_gate_up(b, block, &scales, self.half),
                (Site::Down, _) => transform::smooth_down(b, block, &scales),
            }?;
        }
        for Window { flow, batch } in windows {
            float.finish(&mut self.around.step(workshop, batch), flow)?;
        }
        Ok(reports)
    }
}

impl<'s, B: Calibrate> SiteSearch<'s, B> {
    /// The same site with other inputs, as many.
    pub fn with_inputs<'t>(&'t self, inputs: &'t [B::Input]) -> SiteSearch<'t, B>
    where
        's: 't,
    {
        let &Self { around, scheme, block, site, name, layer, behind, windows, .. } = self;
        let inputs = inputs.iter().collect();
        SiteSearch { around, scheme, block, site, name, layer, behind, windows, inputs }
    }

    /// The largest and the least value of every channel.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn range(&self) -> Result<(Vec<f32>, Vec<f32>)> {
        let b = self.around.backend;
        let mut range: Option<(Vec<f32>, Vec<f32>)> = None;
        for x in &self.inputs {
            let (high, low) = b.channel_range(x)?;
            match &mut range {
                None => range = Some((high, low)),
                Some((max, min)) => {
                    max.iter_mut().zip(high).for_each(|(max, x)| *max = max.max(x));
                    min.iter_mut().zip(low).for_each(|(min, x)| *min = min.min(x));
                }
            }
        }
        range.ok_or_else(|| {
            QuantError::Recipe(format!("{}: no calibration tokens stand at this layer", self.name))
        })
    }

    /// The largest magnitude of every channel.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn largest(&self) -> Result<Vec<f32>> {
        let (max, min) = self.range()?;
        Ok(max.iter().zip(&min).map(|(max, min)| max.max(-min)).collect())
    }

    /// The mean magnitude of every channel.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn mean_magnitudes(&self) -> Result<Vec<f32>> {
        let b = self.around.backend;
        let (mut sums, mut rows) = (vec![0.0f64; self.layer.k], 0usize);
        for x in &self.inputs {
            for row in b.read_input(x)?.chunks_exact(self.layer.k) {
                sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(x.abs()));
                rows += 1;
            }
        }
        Ok(sums.iter().map(|sum| (sum / rows.max(1) as f64) as f32).collect())
    }

    /// The largest magnitude of the weights of every input channel.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn largest_weights(&self) -> Result<Vec<f32>> {
        let weights = self.around.backend.read_weights(&self.layer.weights)?;
        let mut largest = vec![0.0f32; self.layer.k];
        for row in weights.chunks_exact(self.layer.k) {
            largest.iter_mut().zip(row).for_each(|(most, w)| *most = most.max(w.abs()));
        }
        Ok(largest)
    }

    /// Has `choose` look for scales: it is given what the quantized layer loses with any, relative to the float output's square.
    ///
    /// # Errors
    /// Inputs or outputs of the site that are not finite; those of the backend.
    pub fn search<T>(
        &self,
        workshop: &mut Workshop<B>,
        choose: impl FnOnce(&mut dyn FnMut(&[f32]) -> f64) -> T,
    ) -> Result<T> {
        let b = self.around.backend;
        let linear = self.block.linear(self.site)?;
        let mut references = Vec::with_capacity(self.inputs.len());
        let mut power = 0.0;
        for (window, x) in self.windows.iter().zip(&self.inputs) {
            self.check(b, "input", x)?;
            let mut reference = b.input(0, 0)?;
            self.output(&mut self.around.step(workshop, &window.batch), x, linear, &mut reference)?;
            self.check(b, "output", &reference)?;
            power += b.squared_distance(&reference, None)?;
            references.push(reference);
        }
        let power = power.max(f64::MIN_POSITIVE);
        let mut candidate = Candidate { input: b.input(0, 0)?, linear: None, output: b.input(0, 0)? };
        let mut failure = None;
        let chosen = choose(&mut |s| match self.distance(workshop, s, &references, &mut candidate) {
            Ok(distance) => distance / power,
            Err(e) => {
                failure = Some(e);
                f64::INFINITY
            }
        });
        failure.map_or(Ok(chosen), Err)
    }

    /// That losses are numbers.
    ///
    /// # Errors
    /// One that is not.
    pub fn check_losses(&self, losses: [f64; 2]) -> Result<()> {
        match losses.iter().all(|loss| loss.is_finite()) {
            true => Ok(()),
            false => Err(QuantError::NotFinite {
                layer: self.name.to_owned(),
                reason: "its quantized output overflows on the calibration text: the model's weights or activations are \
                         too large for 32-bit floats"
                    .into(),
            }),
        }
    }

    /// How far the quantized layer's outputs are from the references when its input channels are divided by `s` and its columns
    /// multiplied.
    fn distance(
        &self,
        workshop: &mut Workshop<B>,
        s: &[f32],
        references: &[B::Input],
        candidate: &mut Candidate<B>,
    ) -> Result<f64> {
        let (b, FloatLinear { weights, bias, .. }) = (self.around.backend, self.layer);
        let Candidate { input, linear, output } = candidate;
        let refused = |source| ModelError::Backend { name: "smoothing search".into(), source };
        b.round_scaled(weights, s, self.scheme, bias.as_deref(), linear).map_err(refused)?;
        let missing = || QuantError::Recipe("a candidate of the smoothing search has no layer".into());
        let linear = linear.as_ref().ok_or_else(missing)?;
        let mut sum = 0.0;
        for ((window, x), reference) in self.windows.iter().zip(&self.inputs).zip(references) {
            b.smooth_input(x, s, self.scheme.input_kind(), input)?;
            self.output(&mut self.around.step(workshop, &window.batch), input, linear, output)?;
            sum += b.squared_distance(output, Some(reference))?;
        }
        Ok(sum)
    }

    /// What comes of an input behind a layer at the site: for q, k and v the output of attention, for gate and up the gated
    /// activation, else the layer's own output; and behind the layer after it, where that is asked.
    fn output(
        &self,
        step: &mut Step<'_, B>,
        x: &B::Input,
        linear: &B::Linear,
        out: &mut B::Input,
    ) -> Result<()> {
        let b = step.backend;
        let product = step.scratch.output(self.site);
        b.linear(x, linear, product)?;
        match self.site {
            Site::Qkv | Site::GateUp => self.block.finish_site(step, self.site, InputKind::Float, out)?,
            Site::O | Site::Down => b.to_input(product, InputKind::Float, out)?,
        }
        if let Some(behind) = self.behind {
            b.linear(out, behind, &mut step.scratch.out)?;
            b.to_input(&mut step.scratch.out, InputKind::Float, out)?;
        }
        Ok(())
    }

    /// What the search cannot see: the range of a channel and comparisons of losses leave NaN out.
    fn check(&self, b: &B, what: &str, x: &B::Input) -> Result<()> {
        let Some((token, value)) = b.input_not_finite(x)? else { return Ok(()) };
        Err(QuantError::NotFinite {
            layer: self.name.to_owned(),
            reason: format!(
                "its float {what} becomes {value} at token {token} of the calibration text; the model's weights are damaged or \
                 overflow on this text"
            ),
        })
    }
}
