//! Loading weights of 8, 16 and 32 bits as f32 vectors.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use half::{bf16, f16};

#[cfg(target_arch = "x86_64")]
use crate::simd::FloatIsa;
use crate::simd::{SimdLevel, multiversion};

/// A stored element type.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    /// Widens (exactly), with what the compilation target or a library offers.
    fn widen_portable(src: &[Self], dst: &mut [f32]);

    /// Widens (exactly).
    ///
    /// # Panics
    /// If the lengths differ.
    fn widen(level: SimdLevel, src: &[Self], dst: &mut [f32]) {
        assert_eq!(src.len(), dst.len());
        match level.isa() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the machine has the level.
            FloatIsa::Avx512 => unsafe { widen_avx512(src, dst) },
            _ => Self::widen_portable(src, dst),
        }
    }

    /// The `n` (at most 16) elements at `p`, and zeros.
    ///
    /// # Safety
    /// The elements must be readable and the machine must have AVX-512 F, BW and VL.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load_first(p: *const Self, n: usize) -> __m512;

    /// The 16 elements at `p`.
    ///
    /// # Safety
    /// As for [`load_first`](Self::load_first).
    #[cfg(target_arch = "x86_64")]
    unsafe fn load(p: *const Self) -> __m512;
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn widen_avx512<W: Element>(src: &[W], dst: &mut [f32]) {
    let whole = src.len() - src.len() % 16;
    for i in (0..whole).step_by(16) {
        // SAFETY: 16 elements from i on, within both slices.
        unsafe { _mm512_storeu_ps(dst.as_mut_ptr().add(i), W::load(src.as_ptr().add(i))) };
    }
    W::widen_portable(&src[whole..], &mut dst[whole..]);
}

impl Element for f32 {
    fn widen_portable(src: &[Self], dst: &mut [f32]) {
        dst.copy_from_slice(src);
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load_first(p: *const Self, n: usize) -> __m512 {
        // SAFETY: the mask leaves out what lies beyond n.
        unsafe { _mm512_maskz_loadu_ps(((1u32 << n) - 1) as u16, p) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load(p: *const Self) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_ps(p) }
    }
}

impl Element for f16 {
    fn widen_portable(src: &[Self], dst: &mut [f32]) {
        // Uses F16C or its NEON equivalent where the machine has it.
        half::slice::HalfFloatSliceExt::convert_to_f32_slice(src, dst);
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load_first(p: *const Self, n: usize) -> __m512 {
        // SAFETY: the mask leaves out what lies beyond n.
        _mm512_cvtph_ps(unsafe { _mm256_maskz_loadu_epi16(((1u32 << n) - 1) as u16, p.cast()) })
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load(p: *const Self) -> __m512 {
        // SAFETY: the caller's promise.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(p.cast()) })
    }
}

/// A bf16 is the upper half of an f32.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
fn widen_bf16(x: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x)))
}

impl Element for bf16 {
    fn widen_portable(src: &[Self], dst: &mut [f32]) {
        for (d, s) in dst.iter_mut().zip(src) {
            *d = f32::from_bits(u32::from(s.to_bits()) << 16);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load_first(p: *const Self, n: usize) -> __m512 {
        // SAFETY: the mask leaves out what lies beyond n.
        widen_bf16(unsafe { _mm256_maskz_loadu_epi16(((1u32 << n) - 1) as u16, p.cast()) })
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load(p: *const Self) -> __m512 {
        // SAFETY: the caller's promise.
        widen_bf16(unsafe { _mm256_loadu_si256(p.cast()) })
    }
}

multiversion! {
    fn widen_i8(src: &[i8], dst: &mut [f32]) {
        for (d, s) in dst.iter_mut().zip(src) {
            *d = f32::from(*s);
        }
    }
}

impl Element for i8 {
    fn widen_portable(src: &[Self], dst: &mut [f32]) {
        widen_i8(SimdLevel::detect(), src, dst);
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load_first(p: *const Self, n: usize) -> __m512 {
        // SAFETY: the mask leaves out what lies beyond n.
        let bytes = unsafe { _mm_maskz_loadu_epi8(((1u32 << n) - 1) as u16, p) };
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load(p: *const Self) -> __m512 {
        // SAFETY: the caller's promise.
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(unsafe { _mm_loadu_si128(p.cast()) }))
    }
}
