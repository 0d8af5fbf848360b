//! AVX2, with and without AVX-VNNI. A block's weights are expanded once, then multiplied by tiles of up
//! to 4 rows and one line (4 output channels); a 128-bit lane holds four partial sums of one channel.

use std::arch::x86_64::*;
use std::ops::Range;

use half::f16;

use super::Gemm;
use super::pack::{BLOCK, CHUNK, Codes, LINES, Line, STEP};

const TILE_ROWS: usize = 4;

/// How 32 weights are multiplied by 32 activations and added up by fours.
trait Dot {
    /// Added to int8 weights, of groups or of 8 bits.
    const OFFSET: i32;

    /// `acc + w * a`. `nibbles`: the weights are code + 8.
    ///
    /// # Safety
    /// The machine has the instructions.
    unsafe fn dot(acc: __m256i, w: __m256i, a: __m256i, nibbles: bool) -> __m256i;
}

/// AVX-VNNI: unsigned weights times signed activations.
struct Vnni;

impl Dot for Vnni {
    const OFFSET: i32 = 128;

    #[inline(always)]
    unsafe fn dot(acc: __m256i, w: __m256i, a: __m256i, _nibbles: bool) -> __m256i {
        // SAFETY: passed on to the caller.
        unsafe { _mm256_dpbusd_avx_epi32(acc, w, a) }
    }
}

/// `vpmaddubsw` adds two products of unsigned and signed bytes and saturates at 16 bits. It cannot get there
/// with code + 8 (2 * 15 * 128), nor with |a| <= 128 and the weight, |w| <= 127, carrying the sign (2 * 128 * 127). A weight of
/// -128 it cannot take: its sign cannot be changed, and the sum would saturate.
struct Maddubs;

impl Dot for Maddubs {
    const OFFSET: i32 = 0;

    #[inline(always)]
    unsafe fn dot(acc: __m256i, w: __m256i, a: __m256i, nibbles: bool) -> __m256i {
        // SAFETY: passed on to the caller.
        unsafe {
            let pairs = if nibbles {
                _mm256_maddubs_epi16(w, a)
            } else {
                _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(w, a))
            };
            _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }
}

/// Weights of 8 bits with -128 among them, which our quantizer does not make: widened to 16 bits, where two products add up
/// to at most 2^15.
struct Wide;

impl Dot for Wide {
    const OFFSET: i32 = 0;

    #[inline(always)]
    unsafe fn dot(acc: __m256i, w: __m256i, a: __m256i, _nibbles: bool) -> __m256i {
        // SAFETY: passed on to the caller.
        unsafe {
            let even = |x| _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x));
            let odd = |x| _mm256_srai_epi16::<8>(x);
            let sums =
                _mm256_add_epi32(_mm256_madd_epi16(even(w), even(a)), _mm256_madd_epi16(odd(w), odd(a)));
            _mm256_add_epi32(acc, sums)
        }
    }
}

/// Computes output channels `BLOCK * blocks` of the given rows with AVX-VNNI.
///
/// # Safety
/// The machine has the instructions; parts that run at the same time do not overlap.
#[target_feature(enable = "avx2,f16c,avxvnni")]
pub(super) unsafe fn run_vnni(gemm: &Gemm, blocks: Range<usize>, rows: Range<usize>) {
    // SAFETY: passed on to the caller.
    unsafe { run::<Vnni>(gemm, blocks, rows) }
}

/// Computes output channels `BLOCK * blocks` of the given rows with AVX2 alone.
///
/// # Safety
/// As [`run_vnni`].
#[target_feature(enable = "avx2,f16c")]
pub(super) unsafe fn run_maddubs(gemm: &Gemm, blocks: Range<usize>, rows: Range<usize>) {
    // SAFETY: passed on to the caller.
    unsafe {
        match gemm.weight.codes {
            Codes::Bytes { lowest: true, .. } => run::<Wide>(gemm, blocks, rows),
            _ => run::<Maddubs>(gemm, blocks, rows),
        }
    }
}

/// Computes output channels `BLOCK * blocks` of the given rows.
///
/// # Safety
/// The machine has AVX2, F16C and what `D` needs; parts that run at the same time do not overlap.
#[inline(always)]
unsafe fn run<D: Dot>(gemm: &Gemm, blocks: Range<usize>, rows: Range<usize>) {
    let bytes = gemm.weight.codes != Codes::Nibbles;
    // Those of 8 bits were stored with it.
    let int8 = bytes || gemm.weight.groups.is_some();
    let offset = if int8 { D::OFFSET } else { 8 };
    let steps = gemm.weight.in_features / STEP;
    // Written in whole chunks.
    let mut expanded =
        if bytes { Vec::new() } else { vec![Line([0; 64]); steps.next_multiple_of(2) * LINES] };
    for block in blocks {
        let weights = if bytes {
            gemm.weight.block(block)
        } else {
            // SAFETY: passed on to the caller.
            unsafe { expand::<D>(gemm, block, &mut expanded) };
            &expanded
        };
        let mut row = rows.start;
        while row < rows.end {
            let count = (rows.end - row).min(TILE_ROWS);
            // SAFETY: passed on to the caller.
            unsafe {
                match (count, int8) {
                    (1, true) => tile::<D, 1, false>(gemm, block, row, weights, offset),
                    (2, true) => tile::<D, 2, false>(gemm, block, row, weights, offset),
                    (3, true) => tile::<D, 3, false>(gemm, block, row, weights, offset),
                    (_, true) => tile::<D, TILE_ROWS, false>(gemm, block, row, weights, offset),
                    (1, false) => tile::<D, 1, true>(gemm, block, row, weights, offset),
                    (2, false) => tile::<D, 2, true>(gemm, block, row, weights, offset),
                    (3, false) => tile::<D, 3, true>(gemm, block, row, weights, offset),
                    (_, false) => tile::<D, TILE_ROWS, true>(gemm, block, row, weights, offset),
                }
            }
            row += count;
        }
    }
}

/// Weights of a block, with their offset: LINES lines for each 16 input channels, laid out as the packed ones.
///
/// # Safety
/// The machine has AVX2 and F16C.
#[inline(always)]
unsafe fn expand<D: Dot>(gemm: &Gemm, block: usize, out: &mut [Line]) {
    let groups = gemm.weight.block_groups(block);
    let mut tables = [Line([0; 64]); LINES];
    let (packed, _) = gemm.weight.block(block).as_chunks::<LINES>();
    let (out, _) = out.as_chunks_mut::<{ 2 * LINES }>();
    for (chunk, (lines, out)) in packed.iter().zip(out).enumerate() {
        if let Some((size, scales)) = groups
            && chunk.is_multiple_of(size / CHUNK)
        {
            // SAFETY: passed on to the caller.
            tables = unsafe { group_tables(&scales[chunk * CHUNK / size], D::OFFSET) };
        }
        for line in 0..LINES {
            for half in [0, 32] {
                // SAFETY: a line has 64 bytes.
                unsafe {
                    let mask = _mm256_set1_epi8(0xf);
                    let packed = _mm256_load_si256(lines[line].0.as_ptr().add(half).cast());
                    let mut low = _mm256_and_si256(packed, mask);
                    let mut high = _mm256_and_si256(_mm256_srli_epi16::<4>(packed), mask);
                    if groups.is_some() {
                        let table = _mm256_load_si256(tables[line].0.as_ptr().add(half).cast());
                        low = _mm256_shuffle_epi8(table, low);
                        high = _mm256_shuffle_epi8(table, high);
                    }
                    _mm256_store_si256(out[line].0.as_mut_ptr().add(half).cast(), low);
                    _mm256_store_si256(out[LINES + line].0.as_mut_ptr().add(half).cast(), high);
                }
            }
        }
    }
}

/// `round_half_even((i - 8) * scale) + offset` for i in 0..16, for the channels of a block, in the order of the packed
/// lines. Products are exact in float32 (4 + 11 bits), the conversion rounds once. Entries beyond an int8 saturate; no code of
/// the weight uses them.
///
/// # Safety
/// The machine has AVX2 and F16C.
#[inline(always)]
unsafe fn group_tables(scales: &[f16; BLOCK], offset: i32) -> [Line; LINES] {
    let mut out = [Line([0; 64]); LINES];
    // SAFETY: reads 2 * 8 values of 16 bits, writes 16 bytes to each lane of a line.
    unsafe {
        let mut wide = [0.0; BLOCK];
        for half in [0, 8] {
            let scales = _mm256_cvtph_ps(_mm_loadu_si128(scales.as_ptr().add(half).cast()));
            _mm256_storeu_ps(wide.as_mut_ptr().add(half), scales);
        }
        let codes = _mm256_setr_ps(-8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0);
        for (channel, scale) in wide.into_iter().enumerate() {
            let scale = _mm256_set1_ps(scale);
            let low = _mm256_cvtps_epi32(_mm256_mul_ps(codes, scale));
            let high = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_add_ps(codes, _mm256_set1_ps(8.0)), scale));
            let words = |x| _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
            let bytes = _mm_packs_epi16(words(low), words(high));
            // Adding 128 to a byte flips its highest bit; the other offset is 0.
            let bytes = _mm_xor_si128(bytes, _mm_set1_epi8(offset as i8));
            let Line(line) = &mut out[channel % LINES];
            _mm_store_si128(line.as_mut_ptr().add(channel / LINES * 16).cast(), bytes);
        }
    }
    out
}

/// One block of output channels, `R` rows.
///
/// # Safety
/// As for [`run`].
#[inline(always)]
unsafe fn tile<D: Dot, const R: usize, const NIBBLES: bool>(
    gemm: &Gemm,
    block: usize,
    row: usize,
    weights: &[Line],
    offset: i32,
) {
    let k = gemm.weight.in_features;
    let a = gemm.a.codes[row * k..(row + R) * k].as_ptr();
    let weights = weights[..k / 16 * LINES].as_ptr();
    let mut sums = [[0; BLOCK]; R];
    for (r, sums) in sums.iter_mut().enumerate() {
        *sums = [offset.wrapping_mul(gemm.a.sums[row + r]).wrapping_neg(); BLOCK];
    }
    for line in 0..LINES {
        // SAFETY: there are k / 16 * LINES lines of weights and R rows of k activations.
        unsafe {
            let mut acc = [[_mm256_setzero_si256(); 2]; R];
            for step in 0..k / 16 {
                let w = weights.add(step * LINES + line).cast::<__m256i>();
                let w = [_mm256_load_si256(w), _mm256_load_si256(w.add(1))];
                for (r, acc) in acc.iter_mut().enumerate() {
                    let a = _mm256_broadcastsi128_si256(_mm_loadu_si128(a.add(r * k + step * 16).cast()));
                    acc[0] = D::dot(acc[0], w[0], a, NIBBLES);
                    acc[1] = D::dot(acc[1], w[1], a, NIBBLES);
                }
            }
            for (sums, [a, b]) in sums.iter_mut().zip(acc) {
                // Lanes 0 and 2 of the line in the low half, 1 and 3 in the high one.
                let pairs = _mm256_hadd_epi32(a, b);
                let pairs = _mm256_hadd_epi32(pairs, pairs);
                let mut words = [0i32; 8];
                _mm256_storeu_si256(words.as_mut_ptr().cast(), pairs);
                for (lane, word) in [words[0], words[4], words[1], words[5]].into_iter().enumerate() {
                    sums[lane * LINES + line] = word.wrapping_add(sums[lane * LINES + line]);
                }
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        // SAFETY: parts that run at the same time do not overlap.
        unsafe { gemm.output.store(row + r, block, sums) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::integer::output::Output;
    use crate::cpu::integer::pack::PackedWeight;
    use crate::cpu::integer::{Int8Activations, IntegerLinear};
    use crate::cpu::isa::Isa;
    use qqq_formats::{CodeBits, QuantizedWeight, Scales};

    /// The AVX-VNNI path with its one special instruction made of AVX2's, so that machines without AVX-VNNI test all the
    /// rest of it.
    struct VnniOfAvx2;

    impl Dot for VnniOfAvx2 {
        const OFFSET: i32 = Vnni::OFFSET;

        #[inline(always)]
        unsafe fn dot(acc: __m256i, w: __m256i, a: __m256i, _nibbles: bool) -> __m256i {
            // SAFETY: passed on to the caller.
            unsafe {
                let even = _mm256_madd_epi16(
                    _mm256_and_si256(w, _mm256_set1_epi16(0xff)),
                    _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(a)),
                );
                let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(w), _mm256_srai_epi16::<8>(a));
                _mm256_add_epi32(acc, _mm256_add_epi32(even, odd))
            }
        }
    }

    /// # Safety
    /// As for [`run`].
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn run_of_avx2(gemm: &Gemm, blocks: Range<usize>, rows: Range<usize>) {
        // SAFETY: passed on to the caller.
        unsafe { run::<VnniOfAvx2>(gemm, blocks, rows) }
    }

    #[test]
    fn vnni_with_256_bits_matches_the_portable_path() {
        assert!(Isa::Avx2.is_available(), "this test needs a processor with AVX2");
        let (n, rows) = (48, 7);
        let (four, eight) = (CodeBits::Four, CodeBits::Eight);
        for (bits, k, group_size) in [
            (four, 16, None),
            (four, 80, None),
            (four, 256, None),
            (four, 256, Some(32)),
            (four, 256, Some(128)),
            (eight, 16, None),
            (eight, 272, None),
        ] {
            let codes = match bits {
                CodeBits::Four => (0..n * k).map(|i| (i * 29 % 16) as i8 - 8).collect(),
                CodeBits::Eight => (0..n * k).map(|i| (i * 29 % 256) as u8 as i8).collect(),
            };
            let scales = match group_size {
                None => Scales::PerChannel(vec![1.0; n]),
                Some(group_size) => Scales::PerGroup {
                    group_size,
                    channel: vec![1.0; n],
                    group: (0..n * k / group_size)
                        .map(|i| f16::from_f32(i as f32 % 63.0 / 4.0 - 7.5))
                        .collect(),
                },
            };
            let weight = QuantizedWeight { bits, out_features: n, in_features: k, codes, scales };
            let codes: Vec<i8> = (0..rows * k).map(|i| (i * 83 % 256) as u8 as i8).collect();
            let sums = codes.chunks(k).map(|row| row.iter().map(|&c| i32::from(c)).sum()).collect();
            let a = Int8Activations { rows, cols: k, codes, scales: vec![1.0; rows], sums };
            let linear = IntegerLinear::with_isa(&weight, Isa::Portable).expect("a valid weight");
            let mut acc = vec![0; rows * n];
            // As for the instruction that is made up here.
            let packed = PackedWeight::new(&weight, true).expect("a valid weight");
            let gemm = Gemm { weight: &packed, a: &a, output: Output::accumulators(&mut acc, n) };
            // SAFETY: the machine has the instructions; nothing else writes to `acc`.
            unsafe { run_of_avx2(&gemm, 0..n / BLOCK, 0..rows) };
            assert_eq!(acc, linear.accumulators(&a), "{bits}, K {k}, group size {group_size:?}");
        }
    }
}
