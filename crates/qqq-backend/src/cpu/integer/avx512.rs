//! AVX-512 with VNNI: `vpdpbusd` multiplies unsigned weights (code + 8, or int8 weight + 128) by the signed
//! activations; the row's sum of activations, times the offset, comes off at the end.
//!
//! Few rows: the packed lines are expanded in registers, a lane holds four partial sums of one
//! channel. Many rows: a panel of up to 64 channels is expanded once, transposed so that a register holds
//! 4 input channels of 16 output channels, and multiplied by tiles of 6 rows.

use std::arch::x86_64::*;
use std::cell::Cell;
use std::ops::Range;

use half::f16;

use super::output::Destination;
use super::pack::{BLOCK, CHUNK, Codes, LINES, Line, STEP};
use super::{Gemm, PANEL_BLOCKS};

/// Rows of a tile: with 4 blocks, 24 accumulators, 4 weights and a broadcast fit 32 registers.
const TILE_ROWS: usize = 6;
/// How far ahead of use packed lines are fetched.
const PREFETCH_LINES: usize = 64;

thread_local! {
    static PANEL: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// Computes output channels `BLOCK * blocks` of the given rows.
///
/// # Safety
/// The machine has the instructions; parts that run at the same time do not overlap.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) unsafe fn run(gemm: &Gemm, blocks: Range<usize>, rows: Range<usize>) {
    if rows.len() <= gemm.weight.skinny_rows() {
        let passes = rows.len().div_ceil(TILE_ROWS);
        for block in blocks {
            for rows in split(rows.clone(), passes) {
                let row = rows.start;
                // SAFETY: passed on to the caller.
                unsafe {
                    match rows.len() {
                        1 => skinny::<1>(gemm, block, row),
                        2 => skinny::<2>(gemm, block, row),
                        3 => skinny::<3>(gemm, block, row),
                        4 => skinny::<4>(gemm, block, row),
                        5 => skinny::<5>(gemm, block, row),
                        _ => skinny::<TILE_ROWS>(gemm, block, row),
                    }
                }
            }
        }
        return;
    }
    let mut panel = PANEL.take();
    let mut block = blocks.start;
    while block < blocks.end {
        // SAFETY: passed on to the caller.
        unsafe {
            if blocks.end - block >= PANEL_BLOCKS {
                run_panel::<PANEL_BLOCKS>(gemm, block, rows.clone(), &mut panel);
                block += PANEL_BLOCKS;
            } else {
                run_panel::<1>(gemm, block, rows.clone(), &mut panel);
                block += 1;
            }
        }
    }
    PANEL.set(panel);
}

/// `rows` in parts of nearly the same size.
fn split(rows: Range<usize>, parts: usize) -> impl Iterator<Item = Range<usize>> {
    (0..parts).map(move |i| rows.start + rows.len() * i / parts..rows.start + rows.len() * (i + 1) / parts)
}

/// What is added to the int8 weights to make them unsigned.
#[inline]
fn offset(gemm: &Gemm) -> i32 {
    // Those of 8 bits were stored with it.
    if gemm.weight.groups.is_some() || gemm.weight.codes != Codes::Nibbles { 128 } else { 8 }
}

/// Makes unsigned weights of the codes.
trait Lookup: Copy {
    /// # Safety
    /// The machine has AVX-512 BW.
    unsafe fn weights(self, line: usize, nibbles: __m512i) -> __m512i;
}

/// Per channel: code + 8 itself.
#[derive(Clone, Copy)]
struct PerChannel;

impl Lookup for PerChannel {
    #[inline(always)]
    unsafe fn weights(self, _line: usize, nibbles: __m512i) -> __m512i {
        nibbles
    }
}

/// Per group: a table for each channel of the block, in the order of the packed lines.
#[derive(Clone, Copy)]
struct Tables([__m512i; LINES]);

impl Lookup for Tables {
    #[inline(always)]
    unsafe fn weights(self, line: usize, nibbles: __m512i) -> __m512i {
        // SAFETY: passed on to the caller.
        unsafe { _mm512_shuffle_epi8(self.0[line], nibbles) }
    }
}

/// `round_half_even((i - 8) * scale) + 128` for i in 0..16, for the channels of a block. Products are
/// exact in float32 (4 + 11 bits), the conversion rounds once. Entries beyond an int8 saturate; no code of the weight uses
/// them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn tables(scales: &[f16; BLOCK]) -> Tables {
    // SAFETY: reads 16 values of 16 bits.
    let scales = _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(scales.as_ptr().cast()) });
    // Channel 4 * lane + line, in all elements of the lane.
    let first = _mm512_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
    let codes = _mm512_broadcast_f32x4(_mm_setr_ps(-8.0, -7.0, -6.0, -5.0));
    let codes = [0.0, 4.0, 8.0, 12.0].map(|step| _mm512_add_ps(codes, _mm512_set1_ps(step)));
    let mut out = [_mm512_setzero_si512(); LINES];
    for (line, out) in out.iter_mut().enumerate() {
        let scale = _mm512_permutexvar_ps(_mm512_add_epi32(first, _mm512_set1_epi32(line as i32)), scales);
        let [a, b, c, d] = codes.map(|code| _mm512_cvtps_epi32(_mm512_mul_ps(code, scale)));
        // Packing works inside lanes: entries 0..4, 4..8, 8..12, 12..16 of the lane's channel.
        let bytes = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
        *out = _mm512_xor_si512(bytes, _mm512_set1_epi8(-128));
    }
    Tables(out)
}

/// One block of output channels, `R` rows.
///
/// # Safety
/// As [`run`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn skinny<const R: usize>(gemm: &Gemm, block: usize, row: usize) {
    let k = gemm.weight.in_features;
    let chunks = gemm.weight.block(block).as_chunks::<LINES>().0;
    let a = gemm.a.codes[row * k..(row + R) * k].as_ptr();
    let mut acc = [[_mm512_setzero_si512(); LINES]; R];
    match gemm.weight.block_groups(block) {
        _ if gemm.weight.codes != Codes::Nibbles => {
            for (i, step) in chunks.iter().enumerate() {
                // SAFETY: `a` has R rows of k codes, and every step takes 16 of them.
                unsafe { multiply_step::<R>(&mut acc, step, a.add(i * STEP), k) };
            }
        }
        None => {
            for (i, chunk) in chunks[..k / CHUNK].iter().enumerate() {
                // SAFETY: `a` has R rows of k codes, and every chunk but a last half one takes CHUNK.
                unsafe { multiply::<R>(&mut acc, chunk, a.add(i * CHUNK), k, PerChannel) };
            }
            if !k.is_multiple_of(CHUNK) {
                let weights = low(&chunks[k / CHUNK], PerChannel);
                // SAFETY: the last half chunk takes the last codes of the R rows.
                unsafe { multiply_half::<R>(&mut acc, weights, a.add(k - CHUNK / 2), k) };
            }
        }
        Some((size, scales)) => {
            let per_group = size / CHUNK;
            for (group, (chunks, scales)) in chunks.chunks_exact(per_group).zip(scales).enumerate() {
                let tables = tables(scales);
                for (i, chunk) in chunks.iter().enumerate() {
                    let start = (group * per_group + i) * CHUNK;
                    // SAFETY: `a` has R rows of k codes, and k is a multiple of the group size.
                    unsafe { multiply::<R>(&mut acc, chunk, a.add(start), k, tables) };
                }
            }
        }
    }
    for (r, acc) in acc.into_iter().enumerate() {
        let [a, b, c, d] = transpose(acc);
        let sum = _mm512_add_epi32(_mm512_add_epi32(a, b), _mm512_add_epi32(c, d));
        // SAFETY: passed on to the caller.
        unsafe { store(gemm, row + r, block, [sum]) };
    }
}

/// Weights of the chunk's first 16 input channels.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn low(chunk: &[Line; LINES], lookup: impl Lookup) -> [__m512i; LINES] {
    let mut out = [_mm512_setzero_si512(); LINES];
    for line in 0..LINES {
        // SAFETY: a line is 64 aligned bytes; the machine has AVX-512 BW.
        unsafe {
            let packed = _mm512_load_si512(chunk[line].0.as_ptr().cast());
            out[line] = lookup.weights(line, _mm512_and_si512(packed, _mm512_set1_epi8(0xf)));
        }
    }
    out
}

/// Weights of the chunk's last 16 input channels.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn high(chunk: &[Line; LINES], lookup: impl Lookup) -> [__m512i; LINES] {
    let mut out = [_mm512_setzero_si512(); LINES];
    for line in 0..LINES {
        // SAFETY: as in `low`.
        unsafe {
            let packed = _mm512_srli_epi16::<4>(_mm512_load_si512(chunk[line].0.as_ptr().cast()));
            out[line] = lookup.weights(line, _mm512_and_si512(packed, _mm512_set1_epi8(0xf)));
        }
    }
    out
}

/// Adds the products of one chunk.
///
/// # Safety
/// `a` points to R rows of CHUNK codes, `stride` apart.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn multiply<const R: usize>(
    acc: &mut [[__m512i; LINES]; R],
    chunk: &[Line; LINES],
    a: *const i8,
    stride: usize,
    lookup: impl Lookup,
) {
    // A prefetch may go past the end of the weight: it is a hint that never faults.
    for line in 0..LINES {
        _mm_prefetch::<_MM_HINT_T0>(chunk.as_ptr().wrapping_add(PREFETCH_LINES + line).cast());
    }
    // SAFETY: passed on to the caller.
    unsafe {
        multiply_half(acc, low(chunk, lookup), a, stride);
        multiply_half(acc, high(chunk, lookup), a.add(CHUNK / 2), stride);
    }
}

/// Adds the products of a step of weights of 8 bits.
///
/// # Safety
/// As [`multiply_half`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn multiply_step<const R: usize>(
    acc: &mut [[__m512i; LINES]; R],
    step: &[Line; LINES],
    a: *const i8,
    stride: usize,
) {
    // A prefetch may go past the end of the weight: it is a hint that never faults.
    for line in 0..LINES {
        _mm_prefetch::<_MM_HINT_T0>(step.as_ptr().wrapping_add(PREFETCH_LINES + line).cast());
    }
    // SAFETY: passed on to the caller.
    unsafe { multiply_half(acc, loaded(step), a, stride) };
}

/// The lines of a step.
#[inline]
#[target_feature(enable = "avx512f")]
fn loaded(step: &[Line; LINES]) -> [__m512i; LINES] {
    // SAFETY: a line is 64 aligned bytes.
    step.each_ref().map(|line| unsafe { _mm512_load_si512(line.0.as_ptr().cast()) })
}

/// Adds the products of 16 input channels.
///
/// # Safety
/// `a` points to R rows of 16 codes, `stride` apart.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn multiply_half<const R: usize>(
    acc: &mut [[__m512i; LINES]; R],
    w: [__m512i; LINES],
    a: *const i8,
    stride: usize,
) {
    for (r, acc) in acc.iter_mut().enumerate() {
        // SAFETY: row r has 16 codes.
        let codes = _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(a.add(r * stride).cast()) });
        for line in 0..LINES {
            acc[line] = _mm512_dpbusd_epi32(acc[line], w[line], codes);
        }
    }
}

/// Transposes 4x4 words inside each lane: word j of lane L of result d is word d of lane L of input j.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
    let (ab2, cd2) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
    [
        _mm512_unpacklo_epi64(ab, cd),
        _mm512_unpackhi_epi64(ab, cd),
        _mm512_unpacklo_epi64(ab2, cd2),
        _mm512_unpackhi_epi64(ab2, cd2),
    ]
}

/// Takes the offset's share off the accumulators of a row and `C` blocks and writes the result.
///
/// # Safety
/// As [`run`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn store<const C: usize>(gemm: &Gemm, row: usize, block: usize, acc: [__m512i; C]) {
    let share = _mm512_set1_epi32(offset(gemm).wrapping_mul(gemm.a.sums[row]));
    let acc = acc.map(|acc| _mm512_sub_epi32(acc, share));
    // SAFETY: the arrays have 16 elements; the rest is passed on to the caller.
    unsafe {
        match gemm.output.destination(row, block..block + C) {
            Destination::Accumulators(out) => {
                for (out, acc) in out.iter_mut().zip(acc) {
                    _mm512_storeu_si512(out.as_mut_ptr().cast(), acc);
                }
            }
            Destination::Scaled { out, channels, token, bias } => {
                let token = _mm512_set1_ps(token);
                for (c, ((out, channels), acc)) in out.iter_mut().zip(channels).zip(acc).enumerate() {
                    let y = _mm512_mul_ps(_mm512_cvtepi32_ps(acc), _mm512_loadu_ps(channels.as_ptr()));
                    let mut y = _mm512_mul_ps(y, token);
                    if let Some(bias) = bias {
                        y = _mm512_add_ps(y, _mm512_loadu_ps(bias[c].as_ptr()));
                    }
                    _mm512_storeu_ps(out.as_mut_ptr(), y);
                }
            }
        }
    }
}

/// `C` blocks of output channels, many rows.
///
/// # Safety
/// As [`run`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn run_panel<const C: usize>(gemm: &Gemm, block: usize, rows: Range<usize>, panel: &mut Vec<Line>) {
    let k = gemm.weight.in_features;
    // Written in whole chunks.
    panel.resize(k.div_ceil(CHUNK) * (CHUNK / 4) * C, Line([0; 64]));
    for c in 0..C {
        expand(gemm, block + c, &mut panel[c..], C);
    }
    for rows in split(rows.clone(), rows.len().div_ceil(TILE_ROWS)) {
        let row = rows.start;
        // SAFETY: passed on to the caller; the panel has k / 4 steps of C lines.
        unsafe {
            match rows.len() {
                1 => tile::<1, C>(gemm, block, row, panel),
                2 => tile::<2, C>(gemm, block, row, panel),
                3 => tile::<3, C>(gemm, block, row, panel),
                4 => tile::<4, C>(gemm, block, row, panel),
                5 => tile::<5, C>(gemm, block, row, panel),
                _ => tile::<TILE_ROWS, C>(gemm, block, row, panel),
            }
        }
    }
}

/// Unsigned weights of a block, transposed: line `step * stride` of `out` gets input channels `4 * step ..`
/// of the 16 output channels.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn expand(gemm: &Gemm, block: usize, out: &mut [Line], stride: usize) {
    let chunks = gemm.weight.block(block).as_chunks::<LINES>().0;
    if gemm.weight.codes != Codes::Nibbles {
        for (step, out) in chunks.iter().zip(out.chunks_mut(STEP / 4 * stride)) {
            for (i, line) in transpose(loaded(step)).into_iter().enumerate() {
                // SAFETY: a line is 64 aligned bytes.
                unsafe { _mm512_store_si512(out[i * stride].0.as_mut_ptr().cast(), line) };
            }
        }
        return;
    }
    let mut steps = out.chunks_mut(CHUNK / 4 * stride);
    match gemm.weight.block_groups(block) {
        None => {
            for (chunk, out) in chunks.iter().zip(&mut steps) {
                expand_chunk(chunk, out, stride, PerChannel);
            }
        }
        Some((size, scales)) => {
            for (chunks, scales) in chunks.chunks_exact(size / CHUNK).zip(scales) {
                let tables = tables(scales);
                for (chunk, out) in chunks.iter().zip(&mut steps) {
                    expand_chunk(chunk, out, stride, tables);
                }
            }
        }
    }
}

/// [`expand`] for one chunk.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn expand_chunk(chunk: &[Line; LINES], out: &mut [Line], stride: usize, lookup: impl Lookup) {
    let (low, high) = (transpose(low(chunk, lookup)), transpose(high(chunk, lookup)));
    for i in 0..4 {
        // SAFETY: a line is 64 aligned bytes.
        unsafe {
            _mm512_store_si512(out[i * stride].0.as_mut_ptr().cast(), low[i]);
            _mm512_store_si512(out[(i + 4) * stride].0.as_mut_ptr().cast(), high[i]);
        }
    }
}

/// `C` blocks of output channels, `R` rows.
///
/// # Safety
/// As [`run`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn tile<const R: usize, const C: usize>(gemm: &Gemm, block: usize, row: usize, panel: &[Line]) {
    let k = gemm.weight.in_features;
    let a = gemm.a.codes[row * k..(row + R) * k].as_ptr();
    let panel = panel[..k / 4 * C].as_ptr();
    let mut acc = [[_mm512_setzero_si512(); C]; R];
    let steps = k / 4;
    for part in 0..R {
        // Spread out, so that loads do not wait behind these.
        gemm.output.prefetch(row + part, block..block + C);
        for step in steps * part / R..steps * (part + 1) / R {
            let mut w = [_mm512_setzero_si512(); C];
            for (c, w) in w.iter_mut().enumerate() {
                // SAFETY: the panel has k / 4 * C lines, which are aligned.
                *w = unsafe { _mm512_load_si512(panel.add(step * C + c).cast()) };
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                // SAFETY: `a` has R rows of k codes.
                let four =
                    _mm512_set1_epi32(unsafe { a.add(r * k + step * 4).cast::<i32>().read_unaligned() });
                for c in 0..C {
                    acc[c] = _mm512_dpbusd_epi32(acc[c], w[c], four);
                }
            }
        }
    }
    for (r, acc) in acc.into_iter().enumerate() {
        // SAFETY: passed on to the caller.
        unsafe { store(gemm, row + r, block, acc) };
    }
}
