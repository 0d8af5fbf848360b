//! Adaptive smoothing of a block: what each site's output loses at a candidate's scales.
//!
//! Sites in order: input of q, k, v (loss on the attention output), input of o (the plain product), input of gate and
//! up (loss on `gate(g) * u`), input of down (the plain product). Losses are squared errors relative to the float
//! output, with activations and weights quantized as the kernel has them, weights rounded to nearest. The float inputs
//! of the sites do not depend on the scales chosen before: smoothing never changes the float function.
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
    smooth::{self, SearchOptions, SmoothChoice},
    transform,
    windows::{Surroundings, Window, Workshop},
};

/// What the search needs to know besides the block.
pub struct SmoothContext<'a, B: Calibrate> {
    /// Device and model.
    pub around: Surroundings<'a, B>,
    /// What becomes of the weights of each site; one that stays float is not searched.
    pub schemes: Sites<Option<Scheme>>,
    /// Type of the norms on disk.
    pub half: HalfType,
    /// Extent of the search.
    pub options: SearchOptions,
}

/// A site whose scales are searched.
struct Search<'s, B: Calibrate> {
    context: &'s SmoothContext<'s, B>,
    scheme: Scheme,
    /// The float block.
    block: &'s Block<B>,
    site: Site,
    /// Name of the layer.
    name: &'s str,
    /// Its input.
    x: &'s B::Input,
    layer: &'s FloatLinear<B>,
}

/// What candidates are made in, one after the other.
struct Candidate<B: Calibrate> {
    input: B::Input,
    linear: Option<B::Linear>,
    output: B::Input,
}

impl<B: Calibrate> SmoothContext<'_, B> {
    /// Finds and applies the scales of block `index`. `window` stands before the block (one sequence in float); it leaves
    /// it. `on_site` is told when a search begins.
    ///
    /// # Errors
    /// A weight that the backend refuses, inputs or outputs of a site that are not finite, and those of `on_site`.
    pub fn smooth_block(
        &self,
        index: usize,
        block: &mut FloatBlock<B>,
        window: &mut Window<B>,
        workshop: &mut Workshop<B>,
        on_site: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<SmoothReport>> {
        let Surroundings { backend: b, config, .. } = self.around;
        let heads = head_layout(config);
        // Its layers come and go with the sites. What is changed of the weights meanwhile belongs to layers that have been made.
        let mut float = Block::without_layers(b, config, index, block.norms.clone(), InputKind::Float)?;
        let Window { flow, batch } = window;
        let mut step = self.around.step(workshop, batch);
        let mut reports = Vec::new();
        let mut before = None;
        for site in Site::ALL {
            float.advance(&mut step, flow, site)?;
            if let Some(spent) = before.replace(site) {
                *float.layer_mut(spent) = Layer::Awaited(InputKind::Float);
            }
            *float.layer_mut(site) = block.layers[site].layer(b, index, site)?;
            let Some(scheme) = self.schemes[site] else { continue };
            if site == Site::O && heads.num_heads != heads.num_kv_heads {
                continue;
            }
            on_site()?;
            let name = names::linear(index, module(site));
            let Some(x) = flow.input() else { continue };
            let layer = &block.layers[site];
            let choice = Search { context: self, scheme, block: &float, site, name: &name, x, layer }
                .run(&mut step)?;
            reports.push(SmoothReport {
                site: name,
                sigma: choice.sigma,
                smoothed_channels: choice.scales.iter().filter(|&&s| s > 1.0).count(),
                loss_before: choice.loss_before,
                loss_after: choice.loss_after,
            });
            match site {
                Site::Qkv => transform::smooth_qkv(b, block, &choice.scales, self.half),
                Site::O => transform::smooth_o(b, block, &choice.scales, heads),
                Site::GateUp => transform::smooth_gate_up(b, block, &choice.scales, self.half),
                Site::Down => transform::smooth_down(b, block, &choice.scales),
            }?;
        }
        float.finish(&mut step, flow)?;
        Ok(reports)
    }
}

impl<B: Calibrate> Search<'_, B> {
    /// Searches the scales with which the quantized layer's output comes nearest to the float one's.
    fn run(&self, step: &mut Step<'_, B>) -> Result<SmoothChoice> {
        let b = step.backend;
        self.check(b, "input", self.x)?;
        let mut reference = b.input(0, 0)?;
        self.output(step, self.x, self.block.linear(self.site)?, &mut reference)?;
        self.check(b, "output", &reference)?;
        let (max, min) = b.channel_range(self.x)?;
        let power = b.squared_distance(&reference, None)?.max(f64::MIN_POSITIVE);
        let mut candidate = Candidate { input: b.input(0, 0)?, linear: None, output: b.input(0, 0)? };
        let mut failure = None;
        let loss = |s: &[f32]| match self.distance(step, s, &reference, &mut candidate) {
            Ok(distance) => distance / power,
            Err(e) => {
                failure = Some(e);
                f64::INFINITY
            }
        };
        let choice = smooth::search(&max, &min, loss, &self.context.options);
        if let Some(e) = failure {
            return Err(e);
        }
        match choice.loss_before.is_finite() && choice.loss_after.is_finite() {
            true => Ok(choice),
            false => Err(QuantError::NotFinite {
                layer: self.name.to_owned(),
                reason: "its quantized output overflows on the calibration text: the model's weights or activations are \
                         too large for 32-bit floats"
                    .into(),
            }),
        }
    }

    /// How far the quantized layer's output is from the reference when its input channels are divided by `s` and its columns
    /// multiplied.
    fn distance(
        &self,
        step: &mut Step<'_, B>,
        s: &[f32],
        reference: &B::Input,
        candidate: &mut Candidate<B>,
    ) -> Result<f64> {
        let (b, FloatLinear { weights, bias, .. }) = (step.backend, self.layer);
        let Candidate { input, linear, output } = candidate;
        let refused = |source| ModelError::Backend { name: "smoothing search".into(), source };
        b.smooth_input(self.x, s, self.scheme.input_kind(), input)?;
        b.round_scaled(weights, s, self.scheme, bias.as_deref(), linear).map_err(refused)?;
        let missing = || QuantError::Recipe("a candidate of the smoothing search has no layer".into());
        self.output(step, input, linear.as_ref().ok_or_else(missing)?, output)?;
        Ok(b.squared_distance(output, Some(reference))?)
    }

    /// What comes of an input behind a layer at the site: for q, k and v the output of attention, for gate and up the gated
    /// activation, else the layer's own output.
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
            Site::Qkv | Site::GateUp => Ok(self.block.finish_site(step, self.site, InputKind::Float, out)?),
            Site::O | Site::Down => Ok(b.to_input(product, InputKind::Float, out)?),
        }
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
