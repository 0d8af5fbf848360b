//! Adaptive smoothing of a block: what each site's output loses at a candidate's scales.
//!
//! Sites in order: input of q, k, v (loss on the attention output), input of o (the plain product), input of gate and
//! up (loss on `gate(g) * u`), input of down (the plain product). Losses are squared errors relative to the float
//! output, with activations and weights quantized as the kernel has them, weights rounded to nearest. The float inputs
//! of the sites do not depend on the scales chosen before: smoothing never changes the float function.

use qqq_backend::{Calibrate, InputKind, first_not_finite, pool::parallel_chunks_mut};
use qqq_formats::LinearWeight;
use qqq_model::{
    Block, BlockWeights, ModelError, Site,
    block::{Step, head_layout},
    names,
};

use crate::{
    QuantError, Result,
    float_linear::{FloatBlock, FloatLinear, module},
    half_type::HalfType,
    nearest::round_scaled,
    report::SmoothReport,
    smooth::{self, SearchOptions, SmoothChoice},
    transform,
    windows::{Surroundings, Window, Workshop},
};

/// What the search needs to know besides the block.
pub struct SmoothContext<'a, B: Calibrate> {
    /// Device and model.
    pub around: Surroundings<'a, B>,
    /// Grid of the weights: `None` is per channel.
    pub group_size: Option<usize>,
    /// Type of the norms on disk.
    pub half: HalfType,
    /// Extent of the search.
    pub options: SearchOptions,
}

/// A site whose scales are searched.
struct Search<'s, B: Calibrate> {
    context: &'s SmoothContext<'s, B>,
    /// The float block.
    block: &'s Block<B>,
    site: Site,
    /// Name of the layer.
    name: &'s str,
    /// Its input, row-major.
    x: &'s [f32],
    linear: &'s FloatLinear,
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
        block: &mut FloatBlock,
        window: &mut Window<B>,
        workshop: &mut Workshop<B>,
        on_site: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<SmoothReport>> {
        let Surroundings { backend: b, config, .. } = self.around;
        let heads = head_layout(config);
        let copy = BlockWeights {
            norms: block.norms.clone(),
            layers: block.layers.clone().map(FloatLinear::into_layer),
        };
        let float = Block::new(b, config, index, copy)?;
        let Window { flow, batch } = window;
        let mut step = self.around.step(workshop, batch);
        let mut reports = Vec::new();
        for site in Site::ALL {
            float.advance(&mut step, flow, site)?;
            if site == Site::O && heads.num_heads != heads.num_kv_heads {
                continue;
            }
            on_site()?;
            let name = names::linear(index, module(site));
            let Some(input) = flow.input() else { continue };
            let (x, linear) = (b.read_input(input)?, &block.layers[site]);
            let search = Search { context: self, block: &float, site, name: &name, x: &x, linear };
            let reference = search.output(&mut step, input, float.linear(site)?)?;
            let choice = search.run(&mut step, &reference)?;
            reports.push(SmoothReport {
                site: name,
                sigma: choice.sigma,
                smoothed_channels: choice.scales.iter().filter(|&&s| s > 1.0).count(),
                loss_before: choice.loss_before,
                loss_after: choice.loss_after,
            });
            match site {
                Site::Qkv => transform::smooth_qkv(block, &choice.scales, self.half),
                Site::O => transform::smooth_o(block, &choice.scales, heads),
                Site::GateUp => transform::smooth_gate_up(block, &choice.scales, self.half),
                Site::Down => transform::smooth_down(block, &choice.scales),
            }
        }
        float.finish(&mut step, flow)?;
        Ok(reports)
    }
}

impl<B: Calibrate> Search<'_, B> {
    /// Searches the scales with which the quantized layer's output comes nearest to `reference`.
    fn run(&self, step: &mut Step<'_, B>, reference: &[f32]) -> Result<SmoothChoice> {
        let k = self.linear.k;
        let rows = self.x.len() / k;
        check(self.name, "input", self.x, k)?;
        check(self.name, "output", reference, reference.len() / rows.max(1))?;
        let (max, min) = channel_range(self.x, k);
        let power: f64 = reference.iter().map(|&y| f64::from(y) * f64::from(y)).sum();
        let mut failure = None;
        let loss = |s: &[f32]| match self.quantized(step, s) {
            Ok(y) => squared_distance(&y, reference, rows) / power.max(f64::MIN_POSITIVE),
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

    /// The W4A8 layer's output when its input channels are divided by `s` and its columns multiplied.
    fn quantized(&self, step: &mut Step<'_, B>, s: &[f32]) -> Result<Vec<f32>> {
        let (b, k) = (step.backend, self.linear.k);
        let weight = round_scaled(&self.linear.weight, s, self.context.group_size);
        let packed = b
            .linear_weight(LinearWeight::Quantized(weight), self.linear.bias.clone())
            .map_err(|source| ModelError::Backend { name: "smoothing search".into(), source })?;
        let inverse: Vec<f32> = s.iter().map(|s| 1.0 / s).collect();
        let mut scaled = self.x.to_vec();
        parallel_chunks_mut(&mut scaled, 32 * k, |_, rows| {
            for row in rows.chunks_exact_mut(k) {
                row.iter_mut().zip(&inverse).for_each(|(x, i)| *x *= i);
            }
        });
        let mut rows = b.upload(scaled.len() / k, k, scaled)?;
        let mut input = b.input(0, 0)?;
        b.to_input(&mut rows, InputKind::Int8, &mut input)?;
        self.output(step, &input, &packed)
    }

    /// What comes of an input behind a layer at the site: for q, k and v the output of attention, for gate and up the gated
    /// activation, else the layer's own output.
    fn output(&self, step: &mut Step<'_, B>, x: &B::Input, linear: &B::Linear) -> Result<Vec<f32>> {
        let b = step.backend;
        b.linear(x, linear, step.scratch.output(self.site))?;
        match self.site {
            Site::Qkv | Site::GateUp => {
                let mut next = b.input(0, 0)?;
                self.block.finish_site(step, self.site, InputKind::Float, &mut next)?;
                Ok(b.read_input(&next)?.into_owned())
            }
            Site::O | Site::Down => Ok(b.read(step.scratch.output(self.site))?.into_owned()),
        }
    }
}

/// What the search cannot see: the range of a channel and comparisons of losses leave NaN out.
fn check(site: &str, what: &str, x: &[f32], cols: usize) -> Result<()> {
    let Some(first) = first_not_finite(x) else { return Ok(()) };
    Err(QuantError::NotFinite {
        layer: site.to_owned(),
        reason: format!(
            "its float {what} becomes {} at token {} of the calibration text; the model's weights are damaged or overflow \
             on this text",
            x[first],
            first / cols.max(1)
        ),
    })
}

/// Largest and smallest value of every channel.
fn channel_range(x: &[f32], k: usize) -> (Vec<f32>, Vec<f32>) {
    let (mut max, mut min) = (vec![f32::NEG_INFINITY; k], vec![f32::INFINITY; k]);
    for row in x.chunks_exact(k) {
        for ((max, min), &x) in max.iter_mut().zip(&mut min).zip(row) {
            *max = max.max(x);
            *min = min.min(x);
        }
    }
    (max, min)
}

/// Summed by rows, then over rows in their order, so that the result does not depend on the number of threads.
fn squared_distance(a: &[f32], b: &[f32], rows: usize) -> f64 {
    const ROWS: usize = 16;
    let cols = a.len() / rows.max(1);
    let mut sums = vec![0.0f64; rows];
    parallel_chunks_mut(&mut sums, ROWS, |chunk, sums| {
        for (i, sum) in sums.iter_mut().enumerate() {
            let row = (chunk * ROWS + i) * cols..(chunk * ROWS + i + 1) * cols;
            let (a, b) = (&a[row.clone()], &b[row]);
            // Eight partial sums, so that it is vectorized.
            let mut parts = [0.0f64; 8];
            for (a, b) in a.chunks(8).zip(b.chunks(8)) {
                for ((part, &a), &b) in parts.iter_mut().zip(a).zip(b) {
                    *part += f64::from(a - b) * f64::from(a - b);
                }
            }
            *sum = parts.iter().sum();
        }
    });
    sums.iter().sum()
}
