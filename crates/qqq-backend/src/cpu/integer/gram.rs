//! Gram matrices of int8 activations, `sum += weight * sum_t q_t q_t^T`: what calibration for W4A8 spends most of its
//! arithmetic on. The sums over tokens are exact in int32.
//!
//! With AVX-512 VNNI four tokens of a channel make a 32-bit word, the words of 16 channels a line, and `vpdpbusd`
//! multiplies lines (made unsigned by adding 128) by broadcast words: four times the rate of float32. Elsewhere a plain
//! loop gives the same bits; [`is_fast`] tells whether to use it.

#[cfg(target_arch = "x86_64")]
mod avx512;

use super::super::isa::Isa;
use super::pack::Line;

/// Most tokens of a call: a panel of 48 channels then stays in the L1 cache.
pub const GRAM_TOKENS: usize = 512;
/// Channels of a line.
const BLOCK: usize = 16;

/// Whether [`add_gram`] beats a float32 product on this machine, for activations of this width.
pub fn is_fast(width: usize) -> bool {
    width.is_multiple_of(BLOCK) && Isa::selected().is_ok_and(|isa| isa == Isa::Avx512Vnni)
}

/// Memory that calls reuse.
#[derive(Debug, Default)]
pub struct GramScratch {
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code))]
    lines: Vec<Line>,
}

/// Adds `weight * sum_t q_t[i] q_t[j]` to `sum[i * width + j]` for all `j <= i`; elements above the diagonal are left
/// unspecified. The sum over tokens is rounded to float32, multiplied and added, each step rounded.
///
/// # Panics
/// If a row of codes is not `width` long, `sum` is not `width x width`, or there are more than [`GRAM_TOKENS`] rows.
pub fn add_gram(codes: &[&[i8]], width: usize, weight: f32, sum: &mut [f32], scratch: &mut GramScratch) {
    assert!(codes.len() <= GRAM_TOKENS && codes.iter().all(|row| row.len() == width), "rows of codes");
    assert_eq!(sum.len(), width * width, "values of the Gram matrix");
    #[cfg(target_arch = "x86_64")]
    if is_fast(width) {
        // SAFETY: the machine has the instructions, the shapes are checked, and width is a multiple of 16.
        return unsafe { avx512::add(codes, width, weight, sum, scratch) };
    }
    let _ = scratch;
    portable(codes, width, weight, sum);
}

fn portable(codes: &[&[i8]], width: usize, weight: f32, sum: &mut [f32]) {
    let mut row = vec![0i32; width];
    for i in 0..width {
        row.fill(0);
        for q in codes {
            let a = i32::from(q[i]);
            row[..=i].iter_mut().zip(*q).for_each(|(acc, &b)| *acc += a * i32::from(b));
        }
        for (sum, &acc) in sum[i * width..=i * width + i].iter_mut().zip(&row) {
            *sum += acc as f32 * weight;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fast_path_gives_the_bits_of_the_definition() {
        let mut state = 9u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8 as i8
        };
        for (tokens, width) in [(1, 16), (5, 48), (16, 64), (63, 80), (GRAM_TOKENS, 208), (7, 96), (0, 32)] {
            let data: Vec<i8> = (0..tokens * width).map(|_| next()).collect();
            let extreme = vec![-128i8; tokens * width];
            for data in [&data, &extreme] {
                let codes: Vec<&[i8]> = data.chunks_exact(width).collect();
                let start: Vec<f32> = (0..width * width).map(|i| i as f32 * 0.37 - 40.0).collect();
                let (mut got, mut want) = (start.clone(), start);
                let mut scratch = GramScratch::default();
                add_gram(&codes, width, 0.013, &mut got, &mut scratch);
                add_gram(&codes, width, 1.7e-5, &mut got, &mut scratch);
                portable(&codes, width, 0.013, &mut want);
                portable(&codes, width, 1.7e-5, &mut want);
                for i in 0..width {
                    let row = i * width..=i * width + i;
                    assert_eq!(got[row.clone()], want[row], "{tokens} tokens, row {i} of {width}");
                }
            }
        }
    }

    #[test]
    fn portable_is_the_definition() {
        let codes: [&[i8]; 2] = [&[1, -2, 3], &[-128, 127, 5]];
        let mut sum = vec![1.0; 9];
        add_gram(&codes, 3, 0.5, &mut sum, &mut GramScratch::default());
        let dot = |i: usize, j: usize| codes.iter().map(|q| f32::from(q[i]) * f32::from(q[j])).sum::<f32>();
        for i in 0..3 {
            for j in 0..=i {
                assert_eq!(sum[i * 3 + j], 1.0 + 0.5 * dot(i, j));
            }
        }
    }
}
