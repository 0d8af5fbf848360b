//! Where the accumulators go: through the scales into the output, or out as they are.

use std::ops::Range;

use super::pack::BLOCK;
use crate::shared::SharedMut;

/// The result of a product, shape `rows x N`; several tasks write their parts of it.
pub(super) struct Output<'a> {
    out_features: usize,
    kind: Kind<'a>,
}

enum Kind<'a> {
    Accumulators(SharedMut<'a, i32>),
    Scaled(SharedMut<'a, f32>, Scaling<'a>),
}

/// `(acc as f32 * channels[n]) * tokens[row] + bias[n]`, in that order.
#[derive(Clone, Copy)]
pub(super) struct Scaling<'a> {
    /// Scales of the output channels, shape `N`.
    pub channels: &'a [f32],
    /// Scales of the tokens' int8 values, shape `rows`.
    pub tokens: &'a [f32],
    /// Added last, shape `N`.
    pub bias: Option<&'a [f32]>,
}

/// The part of the output that takes the accumulators of one row and some blocks; all slices have one
/// array for each block.
pub(super) enum Destination<'a> {
    Accumulators(&'a mut [[i32; BLOCK]]),
    Scaled {
        out: &'a mut [[f32; BLOCK]],
        channels: &'a [[f32; BLOCK]],
        token: f32,
        bias: Option<&'a [[f32; BLOCK]]>,
    },
}

impl<'a> Output<'a> {
    /// The int32 accumulators themselves.
    pub(super) fn accumulators(out: &'a mut [i32], out_features: usize) -> Self {
        Self { out_features, kind: Kind::Accumulators(SharedMut::new(out)) }
    }

    /// # Panics
    /// If the lengths do not fit together.
    pub(super) fn scaled(out: &'a mut [f32], scaling: Scaling<'a>) -> Self {
        let out_features = scaling.channels.len();
        assert_eq!(out.len(), scaling.tokens.len() * out_features, "values of the output");
        if let Some(bias) = scaling.bias {
            assert_eq!(bias.len(), out_features, "length of the bias");
        }
        Self { out_features, kind: Kind::Scaled(SharedMut::new(out), scaling) }
    }

    /// # Safety
    /// No other destination of the same row and blocks is alive.
    #[inline]
    pub(super) unsafe fn destination(&self, row: usize, blocks: Range<usize>) -> Destination<'_> {
        let start = row * self.out_features + blocks.start * BLOCK;
        let part = start..start + blocks.len() * BLOCK;
        match &self.kind {
            Kind::Accumulators(out) => {
                // SAFETY: passed on to the caller.
                Destination::Accumulators(unsafe { out.slice(part) }.as_chunks_mut().0)
            }
            Kind::Scaled(out, scaling) => Destination::Scaled {
                // SAFETY: passed on to the caller.
                out: unsafe { out.slice(part) }.as_chunks_mut().0,
                channels: &scaling.channels.as_chunks().0[blocks.clone()],
                token: scaling.tokens[row],
                bias: scaling.bias.map(|bias| &bias.as_chunks().0[blocks]),
            },
        }
    }

    /// Asks for the cache lines of a destination, so that its stores find them.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    pub(super) fn prefetch(&self, row: usize, blocks: Range<usize>) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        for block in blocks {
            let start = row * self.out_features + block * BLOCK;
            // SAFETY: a hint reads and writes nothing.
            unsafe {
                let line = match &self.kind {
                    Kind::Accumulators(out) => out.at(start).cast::<i8>(),
                    Kind::Scaled(out, _) => out.at(start).cast(),
                };
                _mm_prefetch::<_MM_HINT_T0>(line);
            }
        }
    }

    /// Writes one block of accumulators.
    ///
    /// # Safety
    /// As [`destination`](Self::destination).
    #[inline]
    pub(super) unsafe fn store(&self, row: usize, block: usize, acc: &[i32; BLOCK]) {
        // SAFETY: passed on to the caller.
        match unsafe { self.destination(row, block..block + 1) } {
            Destination::Accumulators(out) => out[0] = *acc,
            Destination::Scaled { out, channels, token, bias } => {
                for i in 0..BLOCK {
                    let mut y = (acc[i] as f32 * channels[0][i]) * token;
                    if let Some(bias) = bias {
                        y += bias[0][i];
                    }
                    out[0][i] = y;
                }
            }
        }
    }
}
