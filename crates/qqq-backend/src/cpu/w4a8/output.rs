//! Where the accumulators go: through the scales into the output, or out as they are.

use super::pack::BLOCK;
use crate::cpu::shared::SharedMut;

/// The result of a product, shape `rows x N`; several tasks write their parts of it.
pub(super) struct Output<'a> {
    out_features: usize,
    kind: Kind<'a>,
}

enum Kind<'a> {
    Accumulators(SharedMut<'a, i32>),
    Scaled(SharedMut<'a, f32>, Scaling<'a>),
}

/// `(acc as f32 * channels[n]) * tokens[row] + bias[n]`, in that order, added to the output if `add`.
#[derive(Clone, Copy)]
pub(super) struct Scaling<'a> {
    /// Shape `N`.
    pub channels: &'a [f32],
    /// Shape `rows`.
    pub tokens: &'a [f32],
    /// Shape `N`.
    pub bias: Option<&'a [f32]>,
    pub add: bool,
}

/// The part of the output that takes one block of accumulators.
pub(super) enum Destination<'a> {
    Accumulators(&'a mut [i32; BLOCK]),
    Scaled { out: &'a mut [f32; BLOCK], channels: &'a [f32; BLOCK], token: f32, bias: Option<&'a [f32; BLOCK]>, add: bool },
}

/// Entries `block * BLOCK ..` of a vector of length N.
fn block_of(vector: &[f32], block: usize) -> &[f32; BLOCK] {
    vector[block * BLOCK..].first_chunk().expect("lengths are checked in Output's constructors")
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
    /// No other destination of the same row and block is alive.
    #[inline]
    pub(super) unsafe fn destination(&self, row: usize, block: usize) -> Destination<'_> {
        let start = row * self.out_features + block * BLOCK;
        match &self.kind {
            Kind::Accumulators(out) => {
                // SAFETY: passed on to the caller.
                let out = unsafe { out.slice(start..start + BLOCK) };
                Destination::Accumulators(out.first_chunk_mut().expect("BLOCK elements"))
            }
            Kind::Scaled(out, scaling) => {
                // SAFETY: passed on to the caller.
                let out = unsafe { out.slice(start..start + BLOCK) };
                Destination::Scaled {
                    out: out.first_chunk_mut().expect("BLOCK elements"),
                    channels: block_of(scaling.channels, block),
                    token: scaling.tokens[row],
                    bias: scaling.bias.map(|bias| block_of(bias, block)),
                    add: scaling.add,
                }
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
        match unsafe { self.destination(row, block) } {
            Destination::Accumulators(out) => *out = *acc,
            Destination::Scaled { out, channels, token, bias, add } => {
                for i in 0..BLOCK {
                    let mut y = (acc[i] as f32 * channels[i]) * token;
                    if let Some(bias) = bias {
                        y += bias[i];
                    }
                    out[i] = if add { out[i] + y } else { y };
                }
            }
        }
    }
}
