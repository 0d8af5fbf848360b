//! Products of float32 matrices by cuBLASLt.

use qqq_backend::Result;

use super::{DeviceLearner, DeviceMatrix, LearnDevice, expect};
use crate::decoder::blas::{Matrix, Number, Operands, Product};

/// How float32 factors are multiplied. Sums are float32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Factors {
    /// As they are: what a forward pass gives is compared between epochs that differ by little.
    Exact,
    /// Rounded to TF32, a relative error of 2^-11 each with either sign: gradients differ by far more from one window to the next.
    Rounded,
}

/// A matrix somewhere in a row-major one, or its transpose.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Of its first element.
    pub at: u64,
    /// Elements from one row in memory to the next.
    pub pitch: usize,
    /// Whether rows in memory are its columns.
    pub transposed: bool,
}

impl Part {
    /// As it is.
    pub(super) fn new(at: u64, pitch: usize) -> Self {
        Self { at, pitch, transposed: false }
    }

    /// Transposed.
    pub(super) fn transposed(at: u64, pitch: usize) -> Self {
        Self { at, pitch, transposed: true }
    }
}

/// Shape and operands of `out = alpha a b + beta out + bias`.
#[derive(Clone, Copy, Debug)]
pub struct Multiplication {
    /// Rows of `a` and `out`.
    pub m: usize,
    /// Columns of `b` and `out`.
    pub n: usize,
    /// Columns of `a`, rows of `b`.
    pub k: usize,
    /// `m x k`.
    pub a: Part,
    /// `k x n`.
    pub b: Part,
    /// `m x n`, not transposed.
    pub out: Part,
    /// Factor of the product.
    pub alpha: f64,
    /// Factor of what is there; where it is 0, that is not read.
    pub beta: f64,
    /// Address of `n` values that are added to every row, or 0.
    pub bias: u64,
    /// What is multiplied.
    pub factors: Factors,
}

impl Multiplication {
    /// Row-major `out = a b` is the library's `out^T = b^T a^T`: what lies row-major is its transpose to it.
    pub(super) fn product(&self) -> Product {
        let number = match self.factors {
            Factors::Exact => Number::F32,
            Factors::Rounded => Number::TF32,
        };
        let side = |part: Part| Matrix { number, pitch: part.pitch, transposed: part.transposed };
        let out = Matrix::new(Number::F32, self.out.pitch);
        Product {
            m: self.n,
            n: self.m,
            k: self.k,
            a: side(self.b),
            b: side(self.a),
            c: out,
            d: out,
            bias: self.bias != 0,
        }
    }

    /// The operands of that.
    pub(super) fn operands(&self) -> Operands {
        Operands {
            a: self.b.at,
            b: self.a.at,
            c: self.out.at,
            d: self.out.at,
            bias: self.bias,
            alpha: self.alpha,
            beta: self.beta,
        }
    }
}

impl<D: LearnDevice> DeviceLearner<D> {
    /// `a b`, and a bias if there is an address of one.
    ///
    /// # Safety
    /// The parts must be the device's memory, of `m x k` and `k x n`, and a bias of `n`.
    unsafe fn multiplied(
        &self,
        (m, n, k): (usize, usize, usize),
        (a, b, bias): (Part, Part, u64),
        factors: Factors,
    ) -> Result<DeviceMatrix<D::Memory>> {
        let out = self.matrix(m, n)?;
        let to = Part::new(out.at(0), out.cols);
        let of = Multiplication { m, n, k, a, b, out: to, alpha: 1.0, beta: 0.0, bias, factors };
        // SAFETY: the caller's promise; the output has this shape.
        unsafe { self.device.multiply(&of) }?;
        Ok(out)
    }

    pub(super) fn layer_product(
        &self,
        x: &DeviceMatrix<D::Memory>,
        w: &DeviceMatrix<D::Memory>,
        bias: Option<&DeviceMatrix<D::Memory>>,
    ) -> Result<DeviceMatrix<D::Memory>> {
        expect(x, (x.rows, w.cols), "inputs of a layer")?;
        bias.map_or(Ok(()), |bias| expect(bias, (1, w.rows), "a bias"))?;
        let bias = bias.map_or(0, |bias| bias.at(0));
        let sides = (Part::new(x.at(0), x.cols), Part::transposed(w.at(0), w.cols), bias);
        // SAFETY: the matrices have these shapes.
        unsafe { self.multiplied((x.rows, w.rows, w.cols), sides, Factors::Exact) }
    }

    pub(super) fn input_gradients(
        &self,
        dy: &DeviceMatrix<D::Memory>,
        w: &DeviceMatrix<D::Memory>,
    ) -> Result<DeviceMatrix<D::Memory>> {
        expect(dy, (dy.rows, w.rows), "gradients by a layer's output")?;
        let sides = (Part::new(dy.at(0), dy.cols), Part::new(w.at(0), w.cols), 0);
        // SAFETY: the matrices have these shapes.
        unsafe { self.multiplied((dy.rows, w.cols, w.rows), sides, Factors::Rounded) }
    }

    pub(super) fn layer_gradients(
        &self,
        dy: &DeviceMatrix<D::Memory>,
        x: &DeviceMatrix<D::Memory>,
    ) -> Result<DeviceMatrix<D::Memory>> {
        expect(dy, (x.rows, dy.cols), "gradients by a layer's output")?;
        let sides = (Part::transposed(dy.at(0), dy.cols), Part::new(x.at(0), x.cols), 0);
        // SAFETY: the matrices have these shapes.
        unsafe { self.multiplied((dy.cols, x.cols, x.rows), sides, Factors::Rounded) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Element of a matrix as the library reads it.
    fn element(values: &[f32], matrix: Matrix, row: usize, col: usize) -> f32 {
        let (row, col) = if matrix.transposed { (col, row) } else { (row, col) };
        values[col * matrix.pitch + row]
    }

    /// What the library makes of a product, on the host.
    fn by_library(product: &Product, a: &[f32], b: &[f32], out: &mut [f32]) {
        for row in 0..product.m {
            for col in 0..product.n {
                let products = (0..product.k)
                    .map(|i| element(a, product.a, row, i) * element(b, product.b, i, col))
                    .sum();
                out[col * product.d.pitch + row] = products;
            }
        }
    }

    #[test]
    fn rows_are_the_librarys_columns() {
        let (m, n, k) = (3, 5, 4);
        let number = |i: usize| (i * 37 % 19) as f32 - 9.0;
        for a_transposed in [false, true] {
            for b_transposed in [false, true] {
                // Parts of wider matrices.
                let (a_rows, a_pitch) = if a_transposed { (k, m + 2) } else { (m, k + 1) };
                let (b_rows, b_pitch) = if b_transposed { (n, k + 3) } else { (k, n + 1) };
                let a: Vec<f32> = (0..a_rows * a_pitch).map(number).collect();
                let b: Vec<f32> = (0..b_rows * b_pitch).map(|i| number(i + 7)).collect();
                let of = Multiplication {
                    m,
                    n,
                    k,
                    a: Part { at: 0, pitch: a_pitch, transposed: a_transposed },
                    b: Part { at: 0, pitch: b_pitch, transposed: b_transposed },
                    out: Part::new(0, n + 2),
                    alpha: 1.0,
                    beta: 0.0,
                    bias: 0,
                    factors: Factors::Exact,
                };
                let mut out = vec![f32::NAN; m * (n + 2)];
                by_library(&of.product(), &b, &a, &mut out);
                for i in 0..m {
                    for j in 0..n {
                        let a_at =
                            |l: usize| if a_transposed { a[l * a_pitch + i] } else { a[i * a_pitch + l] };
                        let b_at =
                            |l: usize| if b_transposed { b[j * b_pitch + l] } else { b[l * b_pitch + j] };
                        let want: f32 = (0..k).map(|l| a_at(l) * b_at(l)).sum();
                        assert_eq!(out[i * (n + 2) + j], want, "{a_transposed} {b_transposed} {i} {j}");
                    }
                    assert!(out[i * (n + 2) + n].is_nan());
                }
            }
        }
    }
}
