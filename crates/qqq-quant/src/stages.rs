//! Calibration forward passes of one block, and the Hessians they leave.
//!
//! Sequences go through a block in waves: every sequence of a wave is one task of the thread pool (the operations it
//! calls then run on that thread), and adds to the Hessian of its lane. Lanes are merged in their order, so sums do not
//! depend on the number of threads.

use qqq_backend::{
    Backend, InputKind, Span,
    cpu::{CpuActivation, CpuBackend, matrix::Matrix, w4a8::Int8Activations},
};
use qqq_model::Block;

use crate::{QuantError, Result, hessian::Hessian, parallel, smooth_sites::one_layer};

/// Memory that the Hessians of all lanes may take, unless even [`MIN_LANES`] need more.
const HESSIAN_BYTES: usize = 256 << 20;
const MIN_LANES: usize = 4;
const MAX_LANES: usize = 8;

/// Tokens that pass through the MLP at a time: what lies between its layers stays in cache.
const ROWS: usize = 512;

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

/// The four Hessians of a block.
pub struct BlockHessians {
    /// Input of q, k, v.
    pub qkv: Hessian,
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

    /// One pass of the float block: all Hessians, and the states after the block.
    ///
    /// # Errors
    /// States that are not finite; those of `on_wave`.
    pub fn float_block(
        &mut self,
        name: &str,
        block: &Block<CpuBackend>,
        widths: [usize; 4],
        on_wave: &mut OnWave<'_>,
    ) -> Result<BlockHessians> {
        let (b, rope) = (self.backend, self.rope);
        let sums = self.run(&widths, on_wave, |seq, h| {
            let x = block.attention_input(b, &seq.hidden);
            add(&mut h[0], &x);
            let attn = b.activation(attend(b, block, &x, rope), InputKind::Float);
            add(&mut h[1], &attn);
            b.linear_add(&mut seq.hidden, &attn, &block.o);
            let x = block.mlp_input(b, &seq.hidden);
            add(&mut h[2], &x);
            let inner = block.mlp_hidden(b, &x);
            add(&mut h[3], &inner);
            b.linear_add(&mut seq.hidden, &inner, &block.down);
            check(name, &seq.hidden)
        })?;
        let [qkv, o, gate_up, down]: [Hessian; 4] =
            sums.try_into().map_err(|_| QuantError::Recipe("a Hessian is missing".into()))?;
        Ok(BlockHessians { qkv, o, gate_up, down })
    }

    /// Stage A: the int8 input of q, k and v.
    pub fn qkv_input(
        &mut self,
        block: &Block<CpuBackend>,
        width: usize,
        on_wave: &mut OnWave<'_>,
    ) -> Result<Hessian> {
        let b = self.backend;
        self.run_one(width, on_wave, |seq, h| {
            add(h, &b.rms_norm(&seq.hidden, &block.input_norm, block.eps, InputKind::Int8));
            Ok(())
        })
    }

    /// Stage B, with q, k and v quantized: attention, the int8 input of o.
    pub fn o_input(
        &mut self,
        block: &Block<CpuBackend>,
        width: usize,
        on_wave: &mut OnWave<'_>,
    ) -> Result<Hessian> {
        let (b, rope) = (self.backend, self.rope);
        self.run_one(width, on_wave, |seq, h| {
            let x = block.attention_input(b, &seq.hidden);
            let attn = b.activation(attend(b, block, &x, rope), InputKind::Int8);
            add(h, &attn);
            seq.kept = Some(attn);
            Ok(())
        })
    }

    /// Stage C, with o quantized: the residual stream after attention, the int8 input of gate and up.
    pub fn gate_up_input(
        &mut self,
        name: &str,
        block: &Block<CpuBackend>,
        width: usize,
        on_wave: &mut OnWave<'_>,
    ) -> Result<Hessian> {
        let b = self.backend;
        self.run_one(width, on_wave, |seq, h| {
            if let Some(attn) = seq.kept.take() {
                b.linear_add(&mut seq.hidden, &attn, &block.o);
            }
            check(name, &seq.hidden)?;
            add(h, &b.rms_norm(&seq.hidden, &block.post_norm, block.eps, InputKind::Int8));
            Ok(())
        })
    }

    /// Stage D, with gate and up quantized: the int8 input of down.
    pub fn down_input(
        &mut self,
        block: &Block<CpuBackend>,
        width: usize,
        on_wave: &mut OnWave<'_>,
    ) -> Result<Hessian> {
        let b = self.backend;
        self.run_one(width, on_wave, |seq, h| {
            let mut all = Int8Activations { cols: width, ..Int8Activations::default() };
            for first in (0..seq.hidden.rows).step_by(ROWS) {
                let x = block.mlp_input(b, &rows(&seq.hidden, first, ROWS));
                let inner = b.silu_mul(b.linear(&x, &block.gate_up), InputKind::Int8);
                add(h, &inner);
                append(&mut all, inner);
            }
            seq.kept = Some(CpuActivation::Int8(all));
            Ok(())
        })
    }

    /// Stage E, with down quantized: the states after the block.
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

    fn run_one(
        &mut self,
        width: usize,
        on_wave: &mut OnWave<'_>,
        job: impl Fn(&mut Sequence, &mut Hessian) -> Result<()> + Sync,
    ) -> Result<Hessian> {
        let sums = self.run(&[width], on_wave, |seq, h| job(seq, &mut h[0]))?;
        Ok(sums.into_iter().next().unwrap_or_else(|| Hessian::new(width)))
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
fn lanes(widths: &[usize]) -> usize {
    let bytes: usize = widths.iter().map(|k| 4 * k * k).sum();
    (HESSIAN_BYTES / bytes.max(1)).clamp(MIN_LANES, MAX_LANES)
}

fn add(sum: &mut Hessian, x: &CpuActivation) {
    match x {
        CpuActivation::Float(m) => sum.add(m),
        CpuActivation::Int8(q) => sum.add_int8(q),
    }
}

/// At most `count` rows from `first` on.
fn rows(x: &Matrix, first: usize, count: usize) -> Matrix {
    let rows = count.min(x.rows - first);
    Matrix { rows, cols: x.cols, data: x.data[first * x.cols..(first + rows) * x.cols].to_vec() }
}

fn append(all: &mut Int8Activations, part: CpuActivation) {
    let part = match part {
        CpuActivation::Int8(q) => q,
        CpuActivation::Float(m) => Int8Activations::quantize(&m),
    };
    all.rows += part.rows;
    all.codes.extend_from_slice(&part.codes);
    all.scales.extend_from_slice(&part.scales);
    all.sums.extend_from_slice(&part.sums);
}

/// Attention of one whole sequence.
fn attend(
    b: &CpuBackend,
    block: &Block<CpuBackend>,
    x: &CpuActivation,
    rope: &<CpuBackend as Backend>::Rope,
) -> Matrix {
    let rows = match x {
        CpuActivation::Float(m) => m.rows,
        CpuActivation::Int8(q) => q.rows,
    };
    let mut kv = b.kv_cache(one_layer(block.heads));
    let spans = [Span { slot: b.kv_add_slot(&mut kv), start: 0, len: rows }];
    block.attention(b, x, rope, &mut kv, 0, &spans)
}

fn check(name: &str, hidden: &Matrix) -> Result<()> {
    if hidden.data.iter().all(|x| x.is_finite()) {
        return Ok(());
    }
    Err(QuantError::Numerics {
        layer: name.to_owned(),
        reason: "the hidden states of the calibration tokens become NaN or infinite here; \
                 the model's weights are damaged or overflow on this text"
            .into(),
    })
}
