//! Adaptive smoothing of a block: what each site's output loses at a candidate's scales.
//!
//! Sites in order: input of q, k, v (loss on the attention output), input of o (the plain product), input of gate and
//! up (loss on `silu(gate) * up`), input of down (the plain product). Losses are squared errors relative to the float
//! output, with activations and weights quantized as the kernel has them, weights rounded to nearest. The float inputs
//! of the sites do not depend on the scales chosen before: smoothing never changes the float function.

use qqq_backend::{
    Backend, HeadLayout, InputKind, KvDType, KvLayout, Span,
    cpu::{CpuActivation, CpuBackend, matrix::Matrix, w4a8::Int8Activations},
    first_not_finite,
};
use qqq_formats::{LinearWeight, ModelConfig};
use qqq_model::{Block, ModelError, names};

use crate::{
    QuantError, Result,
    float_block::{FloatBlock, FloatLinear},
    half_type::HalfType,
    nearest::round_scaled,
    parallel,
    report::{SmoothReport, modules},
    smooth::{self, SearchOptions, SmoothChoice},
    transform,
};

/// What the search needs to know besides the block.
pub struct SmoothContext<'a> {
    /// Backend.
    pub backend: &'a CpuBackend,
    /// Model.
    pub config: &'a ModelConfig,
    /// Rotary embedding.
    pub rope: &'a <CpuBackend as Backend>::Rope,
    /// Grid of the weights: `None` is per channel.
    pub group_size: Option<usize>,
    /// Type of the norms on disk.
    pub half: HalfType,
    /// Extent of the search.
    pub options: SearchOptions,
}

impl SmoothContext<'_> {
    /// Finds and applies the scales of block `index`. `hidden` are the float states that enter the block (one sequence);
    /// they leave it as the states after the block. `sites` names the site that is begun.
    ///
    /// # Errors
    /// A weight that the backend refuses, inputs or outputs of a site that are not finite, and those of `on_site`.
    pub fn smooth_block(
        &self,
        index: usize,
        block: &mut FloatBlock,
        hidden: &mut Matrix,
        on_site: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<SmoothReport>> {
        let b = self.backend;
        let heads = crate::float_block::head_layout(self.config);
        let float = Block::new(b, self.config, index, block.to_weights())?;
        let [qkv, o, gate_up, down] = [modules::QKV, modules::O, modules::GATE_UP, modules::DOWN]
            .map(|site| names::linear(index, site));
        let mut reports = Vec::new();
        let mut push = |site: &str, choice: &SmoothChoice| {
            reports.push(SmoothReport {
                site: site.to_owned(),
                sigma: choice.sigma,
                smoothed_channels: choice.scales.iter().filter(|&&s| s > 1.0).count(),
                loss_before: choice.loss_before,
                loss_after: choice.loss_after,
            });
        };

        let x = float_rows(float.attention_input(b, hidden));
        let attend = |mut qkv: Matrix| {
            let mut kv = b.kv_cache(one_layer(heads));
            let spans = [Span { slot: b.kv_add_slot(&mut kv), start: 0, len: qkv.rows }];
            let norms = float.qk_norm.as_ref().map(|(q, k)| (q, k, float.eps));
            b.rope_append_kv(&mut qkv, heads, norms, self.rope, &mut kv, 0, &spans);
            b.attention(&qkv, heads, float.mask, &kv, 0, &spans)
        };
        let attn = attend(b.linear(&CpuActivation::Float(x.clone()), &float.qkv));
        on_site()?;
        let choice = self.search(&qkv, &x, &block.qkv, &attn, &attend)?;
        transform::smooth_qkv(block, &choice.scales, self.half);
        push(&qkv, &choice);

        let attn = CpuActivation::Float(attn);
        let out = b.linear(&attn, &float.o);
        add(hidden, &out);
        if heads.num_heads == heads.num_kv_heads {
            on_site()?;
            let choice = self.search(&o, &float_rows(attn), &block.o, &out, &|y| y)?;
            transform::smooth_o(block, &choice.scales, heads);
            push(&o, &choice);
        }

        let x = float_rows(float.mlp_input(b, hidden));
        let activate = |y: Matrix| float_rows(b.silu_mul(y, InputKind::Float));
        let inner = activate(b.linear(&CpuActivation::Float(x.clone()), &float.gate_up));
        on_site()?;
        let choice = self.search(&gate_up, &x, &block.gate_up, &inner, &activate)?;
        transform::smooth_gate_up(block, &choice.scales, self.half);
        push(&gate_up, &choice);

        let inner = CpuActivation::Float(inner);
        let out = b.linear(&inner, &float.down);
        add(hidden, &out);
        on_site()?;
        let choice = self.search(&down, &float_rows(inner), &block.down, &out, &|y| y)?;
        transform::smooth_down(block, &choice.scales);
        push(&down, &choice);
        Ok(reports)
    }

    /// Searches the scales of one site: `x` enters `linear`, and `finish` of its output should be `reference`.
    fn search(
        &self,
        site: &str,
        x: &Matrix,
        linear: &FloatLinear,
        reference: &Matrix,
        finish: &dyn Fn(Matrix) -> Matrix,
    ) -> Result<SmoothChoice> {
        check(site, "input", x)?;
        check(site, "output", reference)?;
        let (max, min) = channel_range(x);
        let power: f64 = reference.data.iter().map(|&y| f64::from(y) * f64::from(y)).sum();
        let mut failure = None;
        let loss = |s: &[f32]| match self.quantized(x, linear, s) {
            Ok(y) => squared_distance(&finish(y), reference) / power.max(f64::MIN_POSITIVE),
            Err(e) => {
                failure = Some(e);
                f64::INFINITY
            }
        };
        let choice = smooth::search(&max, &min, loss, &self.options);
        if let Some(e) = failure {
            return Err(e);
        }
        match choice.loss_before.is_finite() && choice.loss_after.is_finite() {
            true => Ok(choice),
            false => Err(QuantError::NotFinite {
                layer: site.to_owned(),
                reason: "its quantized output overflows on the calibration text: the model's weights or activations are \
                         too large for 32-bit floats"
                    .into(),
            }),
        }
    }

    /// The W4A8 layer's output when its input channels are divided by `s` and its columns multiplied.
    fn quantized(&self, x: &Matrix, linear: &FloatLinear, s: &[f32]) -> Result<Matrix> {
        let weight = round_scaled(&linear.weight, s, self.group_size);
        let packed = self
            .backend
            .linear_weight(LinearWeight::Quantized(weight), linear.bias.clone())
            .map_err(|source| ModelError::Backend { name: "smoothing search".into(), source })?;
        let inverse: Vec<f32> = s.iter().map(|s| 1.0 / s).collect();
        let mut scaled = x.clone();
        parallel::chunks_mut(&mut scaled.data, 32 * x.cols, |_, rows| {
            for row in rows.chunks_exact_mut(x.cols) {
                row.iter_mut().zip(&inverse).for_each(|(x, i)| *x *= i);
            }
        });
        let codes = Int8Activations::quantize(&scaled);
        Ok(self.backend.linear(&CpuActivation::Int8(codes), &packed))
    }
}

/// What the search cannot see: the range of a channel and comparisons of losses leave NaN out.
fn check(site: &str, what: &str, x: &Matrix) -> Result<()> {
    let Some(first) = first_not_finite(&x.data) else { return Ok(()) };
    Err(QuantError::NotFinite {
        layer: site.to_owned(),
        reason: format!(
            "its float {what} becomes {} at token {} of the calibration text; the model's weights are damaged or overflow \
             on this text",
            x.data[first],
            first / x.cols.max(1)
        ),
    })
}

/// A cache for one layer of calibration.
pub(crate) fn one_layer(heads: HeadLayout) -> KvLayout {
    KvLayout {
        num_layers: 1,
        num_kv_heads: heads.num_kv_heads,
        head_dim: heads.head_dim,
        dtype: KvDType::F32,
    }
}

/// The rows of an activation, widened if they are quantized.
pub(crate) fn float_rows(x: CpuActivation) -> Matrix {
    match x {
        CpuActivation::Float(m) => m,
        CpuActivation::Int8(q) => q.dequantize(),
    }
}

fn add(acc: &mut Matrix, x: &Matrix) {
    acc.data.iter_mut().zip(&x.data).for_each(|(a, x)| *a += x);
}

/// Largest and smallest value of every channel.
fn channel_range(x: &Matrix) -> (Vec<f32>, Vec<f32>) {
    let (mut max, mut min) = (vec![f32::NEG_INFINITY; x.cols], vec![f32::INFINITY; x.cols]);
    for row in x.data.chunks_exact(x.cols) {
        for ((max, min), &x) in max.iter_mut().zip(&mut min).zip(row) {
            *max = max.max(x);
            *min = min.min(x);
        }
    }
    (max, min)
}

/// Summed by rows, then over rows in their order, so that the result does not depend on the number of threads.
fn squared_distance(a: &Matrix, b: &Matrix) -> f64 {
    const ROWS: usize = 16;
    let mut sums = vec![0.0f64; a.rows];
    parallel::chunks_mut(&mut sums, ROWS, |chunk, sums| {
        for (i, sum) in sums.iter_mut().enumerate() {
            let (a, b) = (a.row(chunk * ROWS + i), b.row(chunk * ROWS + i));
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
