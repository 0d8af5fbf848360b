//! Numbers that the CPU learns with: float32; and float64, in which tests see that gradients are right.

use std::{
    iter::Sum,
    ops::{Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Sub, SubAssign},
};

use faer::traits::ComplexField;

use crate::{
    simd::{SimdLevel, exp, multiversion},
    solve::{ScaleDType, round},
};

/// A float number.
pub trait Real:
    ComplexField
    + Copy
    + PartialOrd
    + Send
    + Sync
    + Sum
    + Neg<Output = Self>
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + DivAssign
    + 'static
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// The nearest one.
    fn of(x: f64) -> Self;
    /// As float64.
    fn wide(self) -> f64;
    /// As float32.
    fn narrow(self) -> f32;
    /// Square root.
    fn root(self) -> Self;
    /// Magnitude.
    fn magnitude(self) -> Self;
    /// The nearest whole number, half to even, of magnitudes below 2^22.
    fn nearest(self) -> Self;
    /// `e^x` of all.
    fn exp_all(x: &mut [Self]);
    /// As scales are stored.
    fn stored(self, dtype: ScaleDType) -> Self;

    /// The larger one.
    fn larger(self, other: Self) -> Self {
        if other > self { other } else { self }
    }

    /// Within bounds.
    fn within(self, low: Self, high: Self) -> Self {
        let x = if self > high { high } else { self };
        if x < low { low } else { x }
    }
}

multiversion! {
    fn exp_f32(x: &mut [f32]) {
        x.iter_mut().for_each(|x| *x = exp::<FMA>(*x));
    }
}

impl Real for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;

    fn of(x: f64) -> Self {
        x as f32
    }

    fn wide(self) -> f64 {
        f64::from(self)
    }

    fn narrow(self) -> f32 {
        self
    }

    fn root(self) -> Self {
        self.sqrt()
    }

    fn magnitude(self) -> Self {
        self.abs()
    }

    #[inline(always)]
    fn nearest(self) -> Self {
        round(self)
    }

    fn exp_all(x: &mut [Self]) {
        exp_f32(SimdLevel::detect(), x);
    }

    fn stored(self, dtype: ScaleDType) -> Self {
        dtype.round(self)
    }
}

impl Real for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;

    fn of(x: f64) -> Self {
        x
    }

    fn wide(self) -> f64 {
        self
    }

    fn narrow(self) -> f32 {
        self as f32
    }

    fn root(self) -> Self {
        self.sqrt()
    }

    fn magnitude(self) -> Self {
        self.abs()
    }

    fn nearest(self) -> Self {
        self.round_ties_even()
    }

    fn exp_all(x: &mut [Self]) {
        x.iter_mut().for_each(|x| *x = x.exp());
    }

    fn stored(self, dtype: ScaleDType) -> Self {
        match dtype {
            ScaleDType::F32 => self,
            dtype => f64::from(dtype.round(self as f32)),
        }
    }
}
