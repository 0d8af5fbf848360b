//! The integer GEMM: int8 activations times weights of 4 or 8 bits, accumulated in int32.
//!
//! Every path ([`Isa`]) reads the same packed weight (`pack`) and gives the same accumulators, bit
//! for bit. Bounds: an accumulator is at most 128 * 128 * K in size, so K up to 65536 cannot overflow.

pub mod activations;
pub mod gram;
mod output;
mod pack;
mod portable;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

use std::ops::Range;

use qqq_formats::QuantizedWeight;

pub use activations::{Int8Activations, quantize_row};

use super::isa::Isa;
use super::matrix::Matrix;
use crate::Result;
use crate::pool::{num_threads, parallel_for};
use output::{Output, Scaling};
use pack::{BLOCK, Codes, PackedWeight};

/// Channel blocks of a panel: the unit of work when there are many rows.
const PANEL_BLOCKS: usize = 4;
/// Bytes of activations that a task goes through for each panel: they stay in the L2 cache.
const ACTIVATION_BYTES: usize = 256 << 10;
/// Bytes of packed weight below which a task of a skinny product is not worth handing over.
const SKINNY_TASK_BYTES: usize = 16 << 10;

/// A prepacked weight of 4 or 8 bits.
#[derive(Clone, Debug)]
pub struct IntegerLinear {
    isa: Isa,
    weight: PackedWeight,
}

/// One product: what a kernel needs besides its part of the work.
struct Gemm<'a> {
    weight: &'a PackedWeight,
    a: &'a Int8Activations,
    output: Output<'a>,
}

impl IntegerLinear {
    /// Prepacks for the path named by `QQQ_ISA`, else for the best path of this machine.
    ///
    /// # Errors
    /// As [`with_isa`](Self::with_isa); or `QQQ_ISA` names no path.
    pub fn new(weight: &QuantizedWeight) -> Result<Self> {
        Self::with_isa(weight, Isa::selected()?)
    }

    /// Prepacks for a given path.
    ///
    /// # Errors
    /// The machine lacks the path; or N or K is not divisible by 16, K is above 65536, the group size
    /// is not 32, 64 or 128 or does not divide K, 8 bits have groups; or the weight holds codes, scales or int8 weights
    /// out of range.
    pub fn with_isa(weight: &QuantizedWeight, isa: Isa) -> Result<Self> {
        let isa = isa.checked()?;
        // What `vpdpbusd` takes.
        let unsigned = matches!(isa, Isa::AvxVnni | Isa::Avx512Vnni);
        Ok(Self { isa, weight: PackedWeight::new(weight, unsigned)? })
    }

    /// The path that this weight is packed for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// `N`, the number of output channels.
    pub fn out_features(&self) -> usize {
        self.weight.out_features
    }

    /// `K`, the number of input channels.
    pub fn in_features(&self) -> usize {
        self.weight.in_features
    }

    /// `W4A8` or `W8A8`.
    pub fn arithmetic(&self) -> &'static str {
        match self.weight.codes {
            Codes::Nibbles => "W4A8",
            Codes::Bytes { .. } => "W8A8",
        }
    }

    /// Input channels of a group, 32, 64 or 128; `None` per channel.
    pub fn group_size(&self) -> Option<usize> {
        self.weight.groups.as_ref().map(|groups| groups.size)
    }

    /// Bytes of the prepacked weight with its scales: what a token has to read.
    pub fn bytes(&self) -> usize {
        self.weight.bytes()
    }

    /// int32 accumulators `a w8^T`, shape `rows x N` (for tests; the product path is fused).
    ///
    /// # Panics
    /// If `a.cols` is not K.
    pub fn accumulators(&self, a: &Int8Activations) -> Vec<i32> {
        let mut acc = vec![0; a.rows * self.out_features()];
        self.run(a, Output::accumulators(&mut acc, self.out_features()));
        acc
    }

    /// `out = (acc as f32 * channel_scale) * token_scale + bias`; each step is rounded to float32. Shape of `out`:
    /// `a.rows x N`.
    ///
    /// # Panics
    /// If the shapes do not fit together.
    pub fn matmul(&self, a: &Int8Activations, bias: Option<&[f32]>, out: &mut Matrix) {
        assert_eq!((out.rows, out.cols), (a.rows, self.out_features()), "shape of the output");
        let scaling = Scaling { channels: &self.weight.channel_scales, tokens: &a.scales, bias };
        self.run(a, Output::scaled(&mut out.data, scaling));
    }

    fn run(&self, a: &Int8Activations, output: Output) {
        assert_eq!(a.cols, self.in_features(), "channels of the activations and of the weight");
        assert!(a.codes.len() == a.rows * a.cols && a.scales.len() == a.rows && a.sums.len() == a.rows);
        let gemm = Gemm { weight: &self.weight, a, output };
        let blocks = self.out_features() / BLOCK;
        if a.rows == 0 {
            return;
        }
        if a.rows <= self.weight.skinny_rows() {
            let most = (self.bytes() / SKINNY_TASK_BYTES).clamp(1, 4 * num_threads());
            let per_task = blocks.div_ceil(most);
            parallel_for(blocks.div_ceil(per_task), |task| {
                let start = task * per_task;
                gemm.run(self.isa, start..blocks.min(start + per_task), 0..a.rows);
            });
            return;
        }
        let panels = blocks.div_ceil(PANEL_BLOCKS);
        let rows_per_task = a.rows.div_ceil(a.codes.len().div_ceil(ACTIVATION_BYTES));
        parallel_for(panels * a.rows.div_ceil(rows_per_task), |task| {
            let (part, panel) = (task / panels, task % panels);
            let (row, block) = (part * rows_per_task, panel * PANEL_BLOCKS);
            gemm.run(self.isa, block..blocks.min(block + PANEL_BLOCKS), row..a.rows.min(row + rows_per_task));
        });
    }
}

impl Gemm<'_> {
    /// Computes output channels `BLOCK * blocks` of the given rows. Parts of one product that run at
    /// the same time must not overlap.
    fn run(&self, isa: Isa, blocks: Range<usize>, rows: Range<usize>) {
        match isa {
            Isa::Portable => portable::run(self, blocks, rows),
            // SAFETY: `IntegerLinear::with_isa` has checked that the machine has the instructions.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { avx2::run_maddubs(self, blocks, rows) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => unsafe { avx2::run_vnni(self, blocks, rows) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => unsafe { avx512::run(self, blocks, rows) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDot => unsafe { neon::run(self, blocks, rows) },
            #[allow(unreachable_patterns)]
            _ => unreachable!("no weight is packed for a path of another architecture"),
        }
    }
}
