//! Vector instruction sets of the float kernels, and how one function body is compiled for each.

use std::sync::OnceLock;

/// Instruction set of the float kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SimdLevel {
    /// What the compilation target guarantees.
    Portable,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
}

impl SimdLevel {
    /// Every level, slowest first.
    pub const ALL: [SimdLevel; 3] = [SimdLevel::Portable, SimdLevel::Avx2, SimdLevel::Avx512];

    /// As users call it.
    pub fn name(self) -> &'static str {
        match self {
            SimdLevel::Portable => "portable",
            SimdLevel::Avx2 => "avx2",
            SimdLevel::Avx512 => "avx512",
        }
    }

    /// The best level of this machine.
    pub fn detect() -> Self {
        static LEVEL: OnceLock<SimdLevel> = OnceLock::new();
        *LEVEL.get_or_init(|| {
            [SimdLevel::Avx512, SimdLevel::Avx2]
                .into_iter()
                .find(|level| level.is_available())
                .unwrap_or(SimdLevel::Portable)
        })
    }

    /// Whether this machine can run the level.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            match self {
                SimdLevel::Portable => true,
                SimdLevel::Avx2 => avx2,
                SimdLevel::Avx512 => {
                    avx2 && is_x86_feature_detected!("avx512f")
                        && is_x86_feature_detected!("avx512bw")
                        && is_x86_feature_detected!("avx512dq")
                        && is_x86_feature_detected!("avx512vl")
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == SimdLevel::Portable
        }
    }
}

/// Defines `fn name(level: SimdLevel, args...)`, whose body the compiler vectorises for every level.
/// `FMA` is a constant in the body: whether [`fma`] may fuse (a call into the C library otherwise).
///
/// Every caller takes `level` from a [`CpuBackend`](super::CpuBackend), which holds available levels
/// only.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name(level: $crate::cpu::simd::SimdLevel, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<const FMA: bool>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    body::<true>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    body::<true>($($arg),*)
                }
                match level {
                    // SAFETY: a level in use is available on this machine.
                    $crate::cpu::simd::SimdLevel::Avx512 => unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::cpu::simd::SimdLevel::Avx2 => unsafe { avx2($($arg),*) },
                    $crate::cpu::simd::SimdLevel::Portable => body::<false>($($arg),*),
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            {
                let _ = level;
                body::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
            }
        }
    };
}
pub(crate) use multiversion;

/// `a * b + c`, fused where the instruction exists.
#[inline(always)]
pub(crate) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `e^x` to about 2e-7 relative, in a form that compilers vectorise: `e^x = 2^n e^r` with
/// `n = round(x / ln 2)`, and a Taylor polynomial of degree 7 for `e^r`, `|r| <= ln 2 / 2`.
/// Below -87.3 the result is 0, above 88 that of 88; NaN stays NaN.
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    const LOWEST: f32 = -87.3;
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    const ROUNDER: f32 = 12_582_912.0;
    // ln 2 in two parts: the first has few bits, so n * LN2_HI is exact.
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    // Comparisons written so that NaN passes through.
    let clamped = if x > 88.0 { 88.0 } else { x };
    let clamped = if clamped < LOWEST { LOWEST } else { clamped };
    let shifted = fma::<FMA>(clamped, std::f32::consts::LOG2_E, ROUNDER);
    let n = shifted - ROUNDER;
    let r = fma::<FMA>(n, -LN2_LO, fma::<FMA>(n, -LN2_HI, clamped));
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = fma::<FMA>(p, r, c);
    }
    let power = shifted.to_bits().wrapping_sub(ROUNDER.to_bits()).wrapping_add(127) << 23;
    let y = p * f32::from_bits(power);
    if x < LOWEST { 0.0 } else { y }
}

multiversion! {
    /// Sum of squares, in 32 partial sums.
    pub(crate) fn sum_of_squares(x: &[f32]) -> f32 {
        let mut lanes = [0.0f32; 32];
        let chunks = x.chunks_exact(32);
        let mut rest = 0.0;
        for &v in chunks.remainder() {
            rest = fma::<FMA>(v, v, rest);
        }
        for chunk in chunks {
            for (lane, &v) in lanes.iter_mut().zip(chunk) {
                *lane = fma::<FMA>(v, v, *lane);
            }
        }
        rest + lanes.iter().sum::<f32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate() {
        multiversion! {
            fn exp_all(x: &[f32], out: &mut [f32]) {
                for (o, &v) in out.iter_mut().zip(x) {
                    *o = exp::<FMA>(v);
                }
            }
        }
        let x: Vec<f32> = (0..1_000_000).map(|i| i as f32 * 1.75e-4 - 87.25).collect();
        for level in SimdLevel::ALL {
            if !level.is_available() {
                continue;
            }
            let mut y = vec![0.0; x.len()];
            exp_all(level, &x, &mut y);
            for (&x, &y) in x.iter().zip(&y) {
                let want = f64::from(x).exp();
                assert!(((f64::from(y) - want) / want).abs() < 2e-7, "{level:?}: exp({x}) = {y}, not {want}");
            }
            let mut special = [0.0; 5];
            exp_all(level, &[f32::NEG_INFINITY, -100.0, 0.0, f32::NAN, 88.0], &mut special);
            assert_eq!(special[..3], [0.0, 0.0, 1.0]);
            assert!(special[3].is_nan() && special[4].is_finite());
        }
    }

    #[test]
    fn sum_of_squares_of_any_length() {
        for n in [0, 1, 31, 32, 33, 100] {
            let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let want: usize = (0..n).map(|i| i * i).sum();
            for level in [SimdLevel::Portable, SimdLevel::detect()] {
                assert_eq!(sum_of_squares(level, &x), want as f32);
            }
        }
    }
}
