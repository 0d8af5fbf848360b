//! Second moments of a layer's inputs.

use qqq_backend::cpu::matrix::Matrix;

/// `H = 2/n sum x x^T` over `n` tokens, kept as a running sum (lower triangle, f32 blocks).
#[derive(Clone, Debug)]
pub struct Hessian {
    /// Width `K`.
    pub width: usize,
    /// Tokens so far.
    pub tokens: usize,
    /// Running `sum x x^T`, `K x K` row-major, lower triangle valid.
    pub sum: Vec<f32>,
}

impl Hessian {
    /// Zero.
    pub fn new(width: usize) -> Self {
        Self { width, tokens: 0, sum: vec![0.0; width * width] }
    }

    /// Adds the rows of `x` (symmetric rank-k update on the calling thread).
    pub fn add(&mut self, _x: &Matrix) {
        unimplemented!()
    }

    /// Adds another sum.
    pub fn merge(&mut self, _other: &Hessian) {
        unimplemented!()
    }

    /// `2/n sum`, full symmetric `K x K`.
    pub fn finish(&self) -> Vec<f32> {
        unimplemented!()
    }
}
