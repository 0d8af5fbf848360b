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
use super::pack::{BLOCK, CHUNK, LINES, Line};
use super::{Gemm, PANEL_BLOCKS, SKINNY_ROWS};

/// Rows of a tile: with 4 blocks, 24 accumulators, 4 weights and a broadcast fit 32 registers.
const TILE_ROWS: usize = 6;
/// How far ahead of use packed lines are fetched.
const PREFETCH_LINES: usize = 32;

thread_local! {
    static PANEL: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// Computes output channels `BLOCK * blocks` of the given rows.
///
/// # Safety
/// The machine has the instructions; parts that run at the same time do not overlap.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) unsafe fn run(gemm: &Gemm, blocks: Range<usize>, rows: Range<usize>) {
    // SAFETY (all calls): passed on to the caller.
    if rows.len() <= SKINNY_ROWS {
        for block in blocks {
            let mut row = rows.start;
            while row < rows.end {
                let count = (rows.end - row).min(4);
                match count {
                    1 => unsafe { skinny::<1>(gemm, block, row) },
                    2 => unsafe { skinny::<2>(gemm, block, row) },
                    3 => unsafe { skinny::<3>(gemm, block, row) },
                    _ => unsafe { skinny::<4>(gemm, block, row) },
                }
                row += count;
            }
        }
        return;
    }
    let mut panel = PANEL.take();
    let mut block = blocks.start;
    while block < blocks.end {
        let count = if blocks.end - block >= PANEL_BLOCKS { PANEL_BLOCKS } else { 1 };
        match count {
            PANEL_BLOCKS => unsafe { run_panel::<PANEL_BLOCKS>(gemm, block, rows.clone(), &mut panel) },
            _ => unsafe { run_panel::<1>(gemm, block, rows.clone(), &mut panel) },
        }
        block += count;
    }
    PANEL.set(panel);
}

/// What is added to the int8 weights to make them unsigned.
#[inline]
fn offset(gemm: &Gemm) -> i32 {
    if gemm.weight.groups.is_some() { 128 } else { 8 }
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
    let lines = gemm.weight.block(block);
    let a = gemm.a.codes[row * k..(row + R) * k].as_ptr();
    let mut acc = [[_mm512_setzero_si512(); LINES]; R];
    // SAFETY (all calls): a chunk has LINES lines; `a` has R rows of k codes, and chunk < k / CHUNK.
    match gemm.weight.block_groups(block) {
        None => {
            let chunks = k / CHUNK;
            for chunk in 0..chunks {
                unsafe { multiply::<R>(&mut acc, lines.as_ptr().add(chunk * LINES), a.add(chunk * CHUNK), k, PerChannel) };
            }
            if !k.is_multiple_of(CHUNK) {
                unsafe { multiply_half::<R>(&mut acc, lines.as_ptr().add(chunks * LINES), a.add(chunks * CHUNK), k) };
            }
        }
        Some((size, scales)) => {
            let per_group = size / CHUNK;
            for (group, scales) in scales.iter().enumerate() {
                let tables = tables(scales);
                for chunk in group * per_group..(group + 1) * per_group {
                    unsafe { multiply::<R>(&mut acc, lines.as_ptr().add(chunk * LINES), a.add(chunk * CHUNK), k, tables) };
                }
            }
        }
    }
    for (r, acc) in acc.into_iter().enumerate() {
        let [a, b, c, d] = transpose(acc);
        let sum = _mm512_add_epi32(_mm512_add_epi32(a, b), _mm512_add_epi32(c, d));
        // SAFETY: passed on to the caller.
        unsafe { store(gemm, row + r, block, sum) };
    }
}

/// Adds the products of one chunk.
///
/// # Safety
/// `lines` points to LINES lines, `a` to R rows of CHUNK codes, `stride` apart.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn multiply<const R: usize>(
    acc: &mut [[__m512i; LINES]; R],
    lines: *const Line,
    a: *const i8,
    stride: usize,
    lookup: impl Lookup,
) {
    let mask = _mm512_set1_epi8(0xf);
    // A prefetch may go past the end of the weight: it is a hint that never faults.
    for line in 0..LINES {
        _mm_prefetch::<_MM_HINT_T0>(lines.wrapping_add(PREFETCH_LINES + line).cast());
    }
    let (mut low, mut high) = ([_mm512_setzero_si512(); R], [_mm512_setzero_si512(); R]);
    for r in 0..R {
        // SAFETY: the row has CHUNK codes.
        unsafe {
            low[r] = _mm512_broadcast_i32x4(_mm_loadu_si128(a.add(r * stride).cast()));
            high[r] = _mm512_broadcast_i32x4(_mm_loadu_si128(a.add(r * stride + 16).cast()));
        }
    }
    for line in 0..LINES {
        // SAFETY: `lines` has LINES lines, which are aligned; the machine has AVX-512 BW.
        let (first, second) = unsafe {
            let packed = _mm512_load_si512(lines.add(line).cast());
            (
                lookup.weights(line, _mm512_and_si512(packed, mask)),
                lookup.weights(line, _mm512_and_si512(_mm512_srli_epi16::<4>(packed), mask)),
            )
        };
        for r in 0..R {
            acc[r][line] = _mm512_dpbusd_epi32(acc[r][line], first, low[r]);
            acc[r][line] = _mm512_dpbusd_epi32(acc[r][line], second, high[r]);
        }
    }
}

/// Adds the products of the low half of a chunk (per channel only: groups are whole chunks).
///
/// # Safety
/// `lines` points to LINES lines, `a` to R rows of 16 codes, `stride` apart.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn multiply_half<const R: usize>(acc: &mut [[__m512i; LINES]; R], lines: *const Line, a: *const i8, stride: usize) {
    for r in 0..R {
        for line in 0..LINES {
            // SAFETY: as the function's.
            unsafe {
                let codes = _mm512_broadcast_i32x4(_mm_loadu_si128(a.add(r * stride).cast()));
                let packed = _mm512_load_si512(lines.add(line).cast());
                acc[r][line] = _mm512_dpbusd_epi32(acc[r][line], _mm512_and_si512(packed, _mm512_set1_epi8(0xf)), codes);
            }
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

/// Takes the offset's share off the accumulators of a block and writes the result.
///
/// # Safety
/// As [`run`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn store(gemm: &Gemm, row: usize, block: usize, acc: __m512i) {
    let acc = _mm512_sub_epi32(acc, _mm512_set1_epi32(offset(gemm).wrapping_mul(gemm.a.sums[row])));
    // SAFETY: the arrays have 16 elements; the rest is passed on to the caller.
    unsafe {
        match gemm.output.destination(row, block) {
            Destination::Accumulators(out) => _mm512_storeu_si512(out.as_mut_ptr().cast(), acc),
            Destination::Scaled { out, channels, token, bias, add } => {
                let y = _mm512_mul_ps(_mm512_cvtepi32_ps(acc), _mm512_loadu_ps(channels.as_ptr()));
                let mut y = _mm512_mul_ps(y, _mm512_set1_ps(token));
                if let Some(bias) = bias {
                    y = _mm512_add_ps(y, _mm512_loadu_ps(bias.as_ptr()));
                }
                if add {
                    y = _mm512_add_ps(_mm512_loadu_ps(out.as_ptr()), y);
                }
                _mm512_storeu_ps(out.as_mut_ptr(), y);
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
    let mut row = rows.start;
    while row < rows.end {
        let count = (rows.end - row).min(TILE_ROWS);
        // SAFETY (all calls): passed on to the caller; the panel has k / 4 steps of C lines.
        match count {
            1 => unsafe { tile::<1, C>(gemm, block, row, panel) },
            2 => unsafe { tile::<2, C>(gemm, block, row, panel) },
            3 => unsafe { tile::<3, C>(gemm, block, row, panel) },
            4 => unsafe { tile::<4, C>(gemm, block, row, panel) },
            5 => unsafe { tile::<5, C>(gemm, block, row, panel) },
            _ => unsafe { tile::<TILE_ROWS, C>(gemm, block, row, panel) },
        }
        row += count;
    }
}

/// Unsigned weights of a block, transposed: line `step * stride` of `out` gets input channels `4 * step ..` of the 16 output channels.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn expand(gemm: &Gemm, block: usize, out: &mut [Line], stride: usize) {
    let lines = gemm.weight.block(block).as_chunks::<LINES>().0;
    let groups = gemm.weight.block_groups(block);
    let mut table = None;
    for (chunk, lines) in lines.iter().enumerate() {
        if let Some((size, scales)) = groups && chunk.is_multiple_of(size / CHUNK) {
            table = Some(tables(&scales[chunk * CHUNK / size]));
        }
        let mask = _mm512_set1_epi8(0xf);
        let (mut low, mut high) = ([_mm512_setzero_si512(); LINES], [_mm512_setzero_si512(); LINES]);
        for line in 0..LINES {
            // SAFETY: a line has 64 bytes; the machine has AVX-512 BW.
            unsafe {
                let packed = _mm512_load_si512(lines[line].0.as_ptr().cast());
                low[line] = _mm512_and_si512(packed, mask);
                high[line] = _mm512_and_si512(_mm512_srli_epi16::<4>(packed), mask);
                if let Some(table) = table {
                    low[line] = table.weights(line, low[line]);
                    high[line] = table.weights(line, high[line]);
                }
            }
        }
        for (i, step) in transpose(low).into_iter().chain(transpose(high)).enumerate() {
            let line = &mut out[(chunk * (CHUNK / 4) + i) * stride];
            // SAFETY: a line has 64 bytes.
            unsafe { _mm512_store_si512(line.0.as_mut_ptr().cast(), step) };
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
    for step in 0..k / 4 {
        let mut w = [_mm512_setzero_si512(); C];
        for (c, w) in w.iter_mut().enumerate() {
            // SAFETY: the panel has k / 4 * C lines, which are aligned.
            *w = unsafe { _mm512_load_si512(panel.add(step * C + c).cast()) };
        }
        for (r, acc) in acc.iter_mut().enumerate() {
            // SAFETY: `a` has R rows of k codes.
            let four = _mm512_set1_epi32(unsafe { a.add(r * k + step * 4).cast::<i32>().read_unaligned() });
            for c in 0..C {
                acc[c] = _mm512_dpbusd_epi32(acc[c], w[c], four);
            }
        }
    }
    for (r, acc) in acc.into_iter().enumerate() {
        for (c, acc) in acc.into_iter().enumerate() {
            // SAFETY: passed on to the caller.
            unsafe { store(gemm, row + r, block + c, acc) };
        }
    }
}
