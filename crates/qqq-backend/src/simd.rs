//! Vector instruction sets of the float kernels, and how one function body is compiled for each.

use std::sync::OnceLock;

/// Instruction set of the float kernels, whether or not this machine has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatIsa {
    /// What the compilation target guarantees.
    Portable,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
}

impl FloatIsa {
    /// Every instruction set, slowest first.
    pub const ALL: [FloatIsa; 3] = [FloatIsa::Portable, FloatIsa::Avx2, FloatIsa::Avx512];

    /// As users call it.
    pub fn name(self) -> &'static str {
        match self {
            FloatIsa::Portable => "portable",
            FloatIsa::Avx2 => "avx2",
            FloatIsa::Avx512 => "avx512",
        }
    }

    fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            match self {
                FloatIsa::Portable => true,
                FloatIsa::Avx2 => avx2,
                FloatIsa::Avx512 => {
                    avx2 && is_x86_feature_detected!("avx512f")
                        && is_x86_feature_detected!("avx512bw")
                        && is_x86_feature_detected!("avx512dq")
                        && is_x86_feature_detected!("avx512vl")
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == FloatIsa::Portable
        }
    }
}

/// An instruction set that this machine has: a value is the proof, since only detection makes one. Code that is compiled
/// for the instruction set may run where there is such a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimdLevel(FloatIsa);

impl SimdLevel {
    /// What every machine has.
    pub const PORTABLE: SimdLevel = SimdLevel(FloatIsa::Portable);

    /// The level of an instruction set, if this machine has it.
    pub fn new(isa: FloatIsa) -> Option<Self> {
        isa.is_available().then_some(Self(isa))
    }

    /// Every level of this machine, slowest first.
    pub fn all() -> impl Iterator<Item = Self> {
        FloatIsa::ALL.into_iter().filter_map(Self::new)
    }

    /// The best level of this machine.
    pub fn detect() -> Self {
        static LEVEL: OnceLock<SimdLevel> = OnceLock::new();
        *LEVEL.get_or_init(|| Self::all().last().unwrap_or(Self::PORTABLE))
    }

    /// The instruction set.
    #[inline]
    pub fn isa(self) -> FloatIsa {
        self.0
    }
}

/// Defines `fn name(level: SimdLevel, args...)`, whose body the compiler vectorises for every instruction set.
/// `FMA` is a constant in the body: whether [`fma`] may fuse (a call into the C library otherwise). A body without it is
/// never fused, and gives the same bits on every level.
///
/// Helpers of a body must be `#[inline(always)]` functions: a closure does not take on the instruction set of the function
/// that calls it.
///
/// ```
/// use qqq_backend::simd::{SimdLevel, multiversion};
///
/// multiversion! {
///     fn scale(x: &mut [f32], by: f32) {
///         x.iter_mut().for_each(|v| *v *= by);
///     }
/// }
/// let mut x = [1.0, 2.0];
/// scale(SimdLevel::detect(), &mut x, 3.0);
/// assert_eq!(x, [3.0, 6.0]);
/// ```
#[doc(hidden)]
#[macro_export]
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name(level: $crate::simd::SimdLevel, $($arg: $ty),*) $(-> $ret)? {
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
                match level.isa() {
                    // SAFETY: the machine has the instruction set of every level.
                    $crate::simd::FloatIsa::Avx512 => unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::simd::FloatIsa::Avx2 => unsafe { avx2($($arg),*) },
                    $crate::simd::FloatIsa::Portable => body::<false>($($arg),*),
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
#[doc(inline)]
pub use multiversion;

/// `a * b + c`, fused where the instruction exists.
#[inline(always)]
pub fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `e^x` to about 2e-7 relative, in a form that compilers vectorise: `e^x = 2^n e^r` with
/// `n = round(x / ln 2)`, and a Taylor polynomial of degree 7 for `e^r`, `|r| <= ln 2 / 2`.
/// Below -87.3 the result is 0, above 88 that of 88; NaN stays NaN.
#[inline(always)]
pub fn exp<const FMA: bool>(x: f32) -> f32 {
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
        for level in SimdLevel::all() {
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
            for level in SimdLevel::all() {
                assert_eq!(sum_of_squares(level, &x), want as f32);
            }
        }
    }
}
