//! The plain path: it defines what the others give.

use std::ops::Range;

use super::Gemm;
use super::pack::{BLOCK, CHUNK, Codes, LINES, STEP};

/// Computes output channels `BLOCK * blocks` of the given rows.
pub(super) fn run(gemm: &Gemm, blocks: Range<usize>, rows: Range<usize>) {
    let k = gemm.weight.in_features;
    let mut weights = vec![0; BLOCK * k];
    for block in blocks {
        expand(gemm, block, &mut weights);
        for row in rows.clone() {
            let a = &gemm.a.codes[row * k..(row + 1) * k];
            let mut acc = [0; BLOCK];
            for (acc, w) in acc.iter_mut().zip(weights.chunks_exact(k)) {
                *acc = a.iter().zip(w).map(|(&a, &w)| i32::from(a) * i32::from(w)).sum();
            }
            // SAFETY: parts that run at the same time do not overlap.
            unsafe { gemm.output.store(row, block, &acc) };
        }
    }
}

/// The int8 weights of a block, shape `BLOCK x K`.
fn expand(gemm: &Gemm, block: usize, weights: &mut [i8]) {
    let k = gemm.weight.in_features;
    let lines = gemm.weight.block(block);
    let groups = gemm.weight.block_groups(block);
    if let Codes::Bytes { unsigned, .. } = gemm.weight.codes {
        let flip = if unsigned { 0x80 } else { 0 };
        for (channel, weights) in weights.chunks_exact_mut(k).enumerate() {
            let lane = channel / LINES * STEP;
            for (step, weights) in weights.chunks_exact_mut(STEP).enumerate() {
                let bytes = &lines[step * LINES + channel % LINES].0[lane..lane + STEP];
                weights.iter_mut().zip(bytes).for_each(|(w, byte)| *w = (byte ^ flip).cast_signed());
            }
        }
        return;
    }
    for (channel, weights) in weights.chunks_exact_mut(k).enumerate() {
        for (chunk, weights) in weights.chunks_mut(CHUNK).enumerate() {
            let lane = channel / LINES * 16;
            let bytes = &lines[chunk * LINES + channel % LINES].0[lane..lane + 16];
            let nibbles = bytes.iter().map(|b| b & 0xf).chain(bytes.iter().map(|b| b >> 4));
            let codes = nibbles.map(|nibble| nibble as i8 - 8);
            match groups {
                None => weights.iter_mut().zip(codes).for_each(|(w, code)| *w = code),
                Some((size, scales)) => {
                    let scale = f32::from(scales[chunk * CHUNK / size][channel]);
                    // The product is exact (4 + 11 bits), so this rounds once.
                    let rounded = codes.map(|code| (f32::from(code) * scale).round_ties_even() as i8);
                    weights.iter_mut().zip(rounded).for_each(|(w, code)| *w = code);
                }
            }
        }
    }
}
