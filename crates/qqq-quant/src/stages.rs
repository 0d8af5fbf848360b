//! Calibration forward passes of one block, and the Hessians they leave.
//!
//! Sequences go through a block in waves: every sequence of a wave is one task of the thread pool (the operations it
//! calls then run on that thread). In a float pass it adds to the Hessian of its lane; lanes are merged in their order,
//! so sums do not depend on the number of threads. In a quantized pass the int8 inputs of a layer are kept, and their
//! Hessian is made of all of them at once.

use qqq_backend::{
    Backend, InputKind, Span,
    cpu::{CpuActivation, CpuBackend, CpuKvCache, matrix::Matrix, w4a8::Int8Activations},
    first_not_finite,
};
use qqq_model::Block;

use crate::{
    QuantError, Result,
    attended::attended,
    hessian::Hessian,
    parallel,
    smooth_sites::{float_rows, one_layer},
};

/// Memory that the Hessians of all lanes may take, unless even [`MIN_LANES`] need more.
const HESSIAN_BYTES: usize = 256 << 20;
const MIN_LANES: usize = 4;
pub(crate) const MAX_LANES: usize = 8;

/// Share of a stage's progress that its forward pass makes; the Hessian is the rest.
const FORWARD_SHARE: f64 = 0.7;

/// Tokens that pass through the MLP at a time: what lies between its layers stays in cache.
pub(crate) const ROWS: usize = 512;

/// One calibration window on its way through the model.
pub struct Sequence {
    /// States that enter the block; rows are tokens.
    pub hidden: Matrix,
    /// Input of the layer that comes next, kept from the stage that made it.
    kept: Option<CpuActivation>,
}

/// All calibration windows.
pub struct Stages<'a> {
    /// Backend.
    pub backend: &'a CpuBackend,
    /// Rotary embedding.
    pub rope: &'a <CpuBackend as Backend>::Rope,
    /// Windows.
    pub sequences: Vec<Sequence>,
}

/// Told after every wave which share of the stage is done; an error stops the stage.
pub type OnWave<'a> = dyn FnMut(f64) -> Result<()> + 'a;

/// The Hessians of a block.
pub struct BlockHessians {
    /// Input of q, k, v.
    pub qkv: Hessian,
    /// The same, averaged by attention: for v.
    pub attended: Hessian,
    /// Input of o.
    pub o: Hessian,
    /// Input of gate, up.
    pub gate_up: Hessian,
    /// Input of down.
    pub down: Hessian,
}

impl<'a> Stages<'a> {
    /// Starts with the embeddings of the windows.
    pub fn new(
        backend: &'a CpuBackend,
        rope: &'a <CpuBackend as Backend>::Rope,
        embeddings: Vec<Matrix>,
    ) -> Self {
        let sequences = embeddings.into_iter().map(|hidden| Sequence { hidden, kept: None }).collect();
        Self { backend, rope, sequences }
    }

    /// Tokens of all windows.
    pub fn tokens(&self) -> usize {
        self.sequences.iter().map(|s| s.hidden.rows).sum()
    }

    /// One pass of the float block: all Hessians, and the states after the block. `widths` are those of the Hessians in
    /// their order; that of the averages may be 0, which leaves it out.
    ///
    /// # Errors
    /// States that are not finite; those of `on_wave`.
    pub fn float_block(
        &mut self,
        name: &str,
        block: &Block<CpuBackend>,
        widths: [usize; 5],
        on_wave: &mut OnWave<'_>,
    ) -> Result<BlockHessians> {
        let (b, rope) = (self.backend, self.rope);
        let sums = self.run(&widths, on_wave, |seq, h| {
            let x = block.attention_input(b, &seq.hidden);
            add(&mut h[0], &x);
            let (qkv, attn) = attend(b, block, &x, rope);
            if h[1].width > 0 {
                h[1].add(&attended(b, &float_rows(x), &qkv, block.heads, block.mask));
            }
            let attn = b.activation(attn, InputKind::Float);
            add(&mut h[2], &attn);
            b.linear_add(&mut seq.hidden, &attn, &block.o);
            let x = block.mlp_input(b, &seq.hidden);
            add(&mut h[3], &x);
            let inner = block.mlp_hidden(b, &x);
            add(&mut h[4], &inner);
            b.linear_add(&mut seq.hidden, &inner, &block.down);
            check(name, &seq.hidden)
        })?;
        let [qkv, attended, o, gate_up, down]: [Hessian; 5] =
            sums.try_into().map_err(|_| QuantError::Recipe("a Hessian is missing".into()))?;
        Ok(BlockHessians { qkv, attended, o, gate_up, down })
    }

    /// Stage A: the int8 input of q, k and v.
    ///
    /// # Errors
    /// Those of `on_wave`, here and below.
    pub fn qkv_input(
        &mut self,
        block: &Block<CpuBackend>,
        width: usize,
        on_wave: &mut OnWave<'_>,
    ) -> Result<Hessian> {
        let b = self.backend;
        self.run_one(width, on_wave, |seq| {
            Ok(b.rms_norm(&seq.hidden, &block.input_norm, block.eps, InputKind::Int8))
        })
    }

    /// With q and k quantized: the input of q, k and v as attention averages it. Changes nothing.
    ///
    /// # Errors
    /// Those of `on_wave`.
    pub fn attended_input(
        &mut self,
        block: &Block<CpuBackend>,
        width: usize,
        on_wave: &mut OnWave<'_>,
    ) -> Result<Hessian> {
        let (b, rope) = (self.backend, self.rope);
        let sums = self.run(&[width], on_wave, |seq, h| {
            let Some(x) = &seq.kept else { return Ok(()) };
            let (qkv, ..) = project(b, block, x, rope);
            h[0].add(&attended(b, &float_rows(x.clone()), &qkv, block.heads, block.mask));
            Ok(())
        })?;
        Ok(sums.into_iter().next().unwrap_or_else(|| Hessian::new(width)))
    }

    /// Stage B, with q, k and v quantized: attention, the int8 input of o.
    ///
    /// # Errors
    /// Those of `on_wave`.
    pub fn o_input(
        &mut self,
        block: &Block<CpuBackend>,
        width: usize,
        on_wave: &mut OnWave<'_>,
    ) -> Result<Hessian> {
        let (b, rope) = (self.backend, self.rope);
        self.run_one(width, on_wave, |seq| {
            let x = seq.kept.take().unwrap_or_else(|| block.attention_input(b, &seq.hidden));
            Ok(b.activation(attend(b, block, &x, rope).1, InputKind::Int8))
        })
    }

    /// Stage C, with o quantized: the residual stream after attention, the int8 input of gate and up.
    ///
    /// # Errors
    /// States that are not finite; those of `on_wave`.
    pub fn gate_up_input(
        &mut self,
        name: &str,
        block: &Block<CpuBackend>,
        width: usize,
        on_wave: &mut OnWave<'_>,
    ) -> Result<Hessian> {
        let b = self.backend;
        self.run_one(width, on_wave, |seq| {
            if let Some(attn) = seq.kept.take() {
                b.linear_add(&mut seq.hidden, &attn, &block.o);
            }
            check(name, &seq.hidden)?;
            Ok(b.rms_norm(&seq.hidden, &block.post_norm, block.eps, InputKind::Int8))
        })
    }

    /// Stage D, with gate and up quantized: the int8 input of down.
    ///
    /// # Errors
    /// Those of `on_wave`.
    pub fn down_input(
        &mut self,
        block: &Block<CpuBackend>,
        width: usize,
        on_wave: &mut OnWave<'_>,
    ) -> Result<Hessian> {
        let b = self.backend;
        self.run_one(width, on_wave, |seq| {
            let x = int8(seq.kept.take().unwrap_or_else(|| block.mlp_input(b, &seq.hidden)));
            let mut all = Int8Activations {
                cols: width,
                codes: Vec::with_capacity(x.rows * width),
                scales: Vec::with_capacity(x.rows),
                sums: Vec::with_capacity(x.rows),
                rows: 0,
            };
            for first in (0..x.rows).step_by(ROWS) {
                let x = CpuActivation::Int8(rows(&x, first, ROWS));
                append(&mut all, int8(b.silu_mul(b.linear(&x, &block.gate_up), InputKind::Int8)));
            }
            Ok(CpuActivation::Int8(all))
        })
    }

    /// Stage E, with down quantized: the states after the block.
    ///
    /// # Errors
    /// States that are not finite; those of `on_wave`.
    pub fn finish_block(
        &mut self,
        name: &str,
        block: &Block<CpuBackend>,
        on_wave: &mut OnWave<'_>,
    ) -> Result<()> {
        let b = self.backend;
        self.run(&[], on_wave, |seq, _| {
            if let Some(inner) = seq.kept.take() {
                b.linear_add(&mut seq.hidden, &inner, &block.down);
            }
            check(name, &seq.hidden)
        })?;
        Ok(())
    }

    /// Runs a stage of quantized layers: `job` gives the input of the next layer, which is kept for the next stage, and
    /// its Hessian over all sequences.
    fn run_one(
        &mut self,
        width: usize,
        on_wave: &mut OnWave<'_>,
        job: impl Fn(&mut Sequence) -> Result<CpuActivation> + Sync,
    ) -> Result<Hessian> {
        self.run(&[], &mut |share| on_wave(share * FORWARD_SHARE), |seq, _| {
            seq.kept = Some(CpuActivation::Int8(int8(job(seq)?)));
            Ok(())
        })?;
        let inputs: Vec<&Int8Activations> = self
            .sequences
            .iter()
            .filter_map(|seq| match &seq.kept {
                Some(CpuActivation::Int8(q)) => Some(q),
                _ => None,
            })
            .collect();
        let sum = Hessian::of_int8(width, &inputs);
        on_wave(1.0)?;
        Ok(sum)
    }

    /// Runs `job(sequence, Hessians)` for every sequence; returns one Hessian for every width.
    fn run(
        &mut self,
        widths: &[usize],
        on_wave: &mut OnWave<'_>,
        job: impl Fn(&mut Sequence, &mut [Hessian]) -> Result<()> + Sync,
    ) -> Result<Vec<Hessian>> {
        struct Lane<'s> {
            sequence: &'s mut Sequence,
            sums: Vec<Hessian>,
            result: Result<()>,
        }
        let total = self.sequences.len();
        let mut idle: Vec<Vec<Hessian>> = Vec::new();
        let mut done = 0;
        for wave in self.sequences.chunks_mut(lanes(widths)) {
            let mut sums = idle.into_iter();
            let mut lanes: Vec<Lane<'_>> = wave
                .iter_mut()
                .map(|sequence| Lane {
                    sequence,
                    sums: sums.next().unwrap_or_else(|| widths.iter().map(|&k| Hessian::new(k)).collect()),
                    result: Ok(()),
                })
                .collect();
            // Lanes without a sequence (in the last wave) come after those with one.
            let unused: Vec<_> = sums.collect();
            parallel::each_mut(&mut lanes, |_, lane| lane.result = job(lane.sequence, &mut lane.sums));
            done += lanes.len();
            idle = Vec::with_capacity(lanes.len() + unused.len());
            for lane in lanes {
                lane.result?;
                idle.push(lane.sums);
            }
            idle.extend(unused);
            on_wave(done as f64 / total as f64)?;
        }
        let mut lanes = idle.into_iter();
        let mut merged = lanes.next().unwrap_or_default();
        for lane in lanes {
            merged.iter_mut().zip(&lane).for_each(|(sum, part)| sum.merge(part));
        }
        Ok(merged)
    }
}

/// Lanes for Hessians of these widths; must not depend on the machine.
pub(crate) fn lanes(widths: &[usize]) -> usize {
    let bytes: usize = widths.iter().map(|k| 4 * k * k).sum();
    (HESSIAN_BYTES / bytes.max(1)).clamp(MIN_LANES, MAX_LANES)
}

fn add(sum: &mut Hessian, x: &CpuActivation) {
    match x {
        CpuActivation::Float(m) => sum.add(m),
        CpuActivation::Int8(q) => sum.add_int8(q),
    }
}

fn int8(x: CpuActivation) -> Int8Activations {
    match x {
        CpuActivation::Int8(q) => q,
        CpuActivation::Float(m) => Int8Activations::quantize(&m),
    }
}

/// At most `count` rows from `first` on.
fn rows(x: &Int8Activations, first: usize, count: usize) -> Int8Activations {
    let range = first..x.rows.min(first + count);
    Int8Activations {
        rows: range.len(),
        cols: x.cols,
        codes: x.codes[range.start * x.cols..range.end * x.cols].to_vec(),
        scales: x.scales[range.clone()].to_vec(),
        sums: x.sums[range].to_vec(),
    }
}

fn append(all: &mut Int8Activations, part: Int8Activations) {
    all.rows += part.rows;
    all.codes.extend_from_slice(&part.codes);
    all.scales.extend_from_slice(&part.scales);
    all.sums.extend_from_slice(&part.sums);
}

/// Queries, keys and values of one whole sequence after the rotary embedding, and the cache that holds the latter two.
fn project(
    b: &CpuBackend,
    block: &Block<CpuBackend>,
    x: &CpuActivation,
    rope: &<CpuBackend as Backend>::Rope,
) -> (Matrix, CpuKvCache, [Span; 1]) {
    let mut qkv = b.linear(x, &block.qkv);
    let mut kv = b.kv_cache(one_layer(block.heads));
    let spans = [Span { slot: b.kv_add_slot(&mut kv), start: 0, len: qkv.rows }];
    block.rope_append_kv(b, &mut qkv, rope, &mut kv, 0, &spans);
    (qkv, kv, spans)
}

/// Attention of one whole sequence: queries, keys and values, and the output.
fn attend(
    b: &CpuBackend,
    block: &Block<CpuBackend>,
    x: &CpuActivation,
    rope: &<CpuBackend as Backend>::Rope,
) -> (Matrix, Matrix) {
    let (qkv, kv, spans) = project(b, block, x, rope);
    let out = b.attention(&qkv, block.heads, block.mask, &kv, 0, &spans);
    (qkv, out)
}

fn check(name: &str, hidden: &Matrix) -> Result<()> {
    let Some(first) = first_not_finite(&hidden.data) else { return Ok(()) };
    Err(QuantError::NotFinite {
        layer: name.to_owned(),
        reason: format!(
            "the hidden states of the calibration tokens become {} here (token {} of a window); the model's weights are \
             damaged or overflow on this text",
            hidden.data[first],
            first / hidden.cols.max(1)
        ),
    })
}
