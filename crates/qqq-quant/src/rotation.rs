//! Orthogonal matrices for the rotation of a decoder (QuaRot's offline part, arXiv 2404.00456).
//!
//! Rotating the residual stream (`x Q`) and every layer that writes to it (`Q^T W`) or reads from it (`W Q`) leaves the
//! model's function as it is and spreads outliers over all channels. Heads of v and o turn by a matrix of their own
//! width ([`Rotation::head`]).

mod hadamard;

use faer::Mat;
use qqq_backend::rotate::Turn;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

pub use hadamard::hadamard;

use crate::{QuantError, Result, RotationKind};

/// How the matrix of a rotation was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// All entries are `+-width^-1/2`: nothing spreads an outlier more evenly.
    Hadamard,
    /// Entries `width^-1/2 (cos + sin)(2 pi i j / width)`, at most `(2 / width)^1/2`: for widths for which no Hadamard
    /// matrix can be built.
    Hartley,
    /// `Q` of a Gaussian matrix's QR decomposition.
    Orthogonal,
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Family::Hadamard => "Hadamard",
            Family::Hartley => "Hartley",
            Family::Orthogonal => "random orthogonal",
        })
    }
}

/// An orthogonal matrix `Q`.
#[derive(Clone, Debug)]
pub struct Rotation {
    /// Channels that are turned together: the order of the matrix.
    pub width: usize,
    /// How the matrix was made.
    pub family: Family,
    // `width x width`, row-major
    matrix: Vec<f32>,
}

impl Rotation {
    /// A random rotation, the same for the same seed. [`RotationKind::Hadamard`] gives the flattest matrix known here
    /// ([`Family`]), with rows of random signs.
    ///
    /// # Errors
    /// A width of 0.
    pub fn new(kind: RotationKind, width: usize, seed: u64) -> Result<Self> {
        if width == 0 {
            return Err(QuantError::Recipe("a rotation of width 0".into()));
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (family, matrix) = match kind {
            RotationKind::Hadamard => {
                let (family, mut matrix) = flattest(width);
                for row in matrix.chunks_exact_mut(width) {
                    if rng.random::<bool>() {
                        row.iter_mut().for_each(|v| *v = -*v);
                    }
                }
                (family, matrix)
            }
            RotationKind::Orthogonal => {
                let matrix = random_orthogonal(width, &mut rng);
                (Family::Orthogonal, matrix.into_iter().map(|v| v as f32).collect())
            }
        };
        Ok(Self { width, family, matrix })
    }

    /// The rotation of the heads of v and o: the flattest matrix of their width, without randomness. For v,
    /// [`Rotation::apply_outputs`] turns every head of the weight (and `apply_rows` its bias); for o, whose input
    /// channels are the heads' in a row, [`Rotation::apply_rows`] does on the weight as it lies.
    pub fn head(head_dim: usize) -> Self {
        let (family, matrix) = flattest(head_dim);
        Self { width: head_dim, family, matrix }
    }

    /// The matrix, row-major, `width x width`.
    pub fn matrix(&self) -> &[f32] {
        &self.matrix
    }

    /// `x <- x Q` for every row of `width` values.
    ///
    /// # Panics
    /// If `x` does not hold whole rows.
    pub fn apply_rows(&self, x: &mut [f32]) {
        self.turn().apply_rows(x);
    }

    /// `W <- Q^T W` for a weight of shape `width x cols`, row-major (the layer's outputs are rotated: `y Q`), or for
    /// each of several such blocks that follow one another (heads). A bias is a row vector and takes `apply_rows`.
    ///
    /// # Panics
    /// If `w` does not hold whole blocks.
    pub fn apply_outputs(&self, w: &mut [f32], cols: usize) {
        self.turn().apply_outputs(w, cols);
    }

    fn turn(&self) -> Turn<'_> {
        Turn { width: self.width, matrix: &self.matrix }
    }
}

/// A Hadamard matrix where one can be built, else a Hartley matrix.
fn flattest(width: usize) -> (Family, Vec<f32>) {
    match hadamard(width) {
        Some(matrix) => (Family::Hadamard, matrix),
        None => (Family::Hartley, hartley(width)),
    }
}

/// The matrix of the discrete Hartley transform (R. N. Bracewell, "Discrete Hartley transform", 1983), normalised: symmetric
/// and orthogonal for every width, its entries at most 2^1/2 times as large as a Hadamard matrix's.
fn hartley(width: usize) -> Vec<f32> {
    let unit = 1.0 / (width as f64).sqrt();
    let values: Vec<f32> = (0..width)
        .map(|turn| {
            let (sin, cos) = (std::f64::consts::TAU * turn as f64 / width as f64).sin_cos();
            ((cos + sin) * unit) as f32
        })
        .collect();
    (0..width).flat_map(|i| (0..width).map(move |j| i * j % width)).map(|turn| values[turn]).collect()
}

/// `Q` of a Gaussian matrix's QR decomposition, with the signs that make it uniformly distributed; row-major.
pub(crate) fn random_orthogonal(width: usize, rng: &mut ChaCha8Rng) -> Vec<f64> {
    // Box-Muller; 1 - u lies in (0, 1].
    let gaussian = Mat::from_fn(width, width, |_, _| {
        let (u, v) = (rng.random::<f64>(), rng.random::<f64>());
        (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    });
    let qr = gaussian.qr();
    let (q, r) = (qr.compute_Q(), qr.R());
    let mut out = Vec::with_capacity(width * width);
    for i in 0..width {
        out.extend((0..width).map(|j| if r[(j, j)] < 0.0 { -q[(i, j)] } else { q[(i, j)] }));
    }
    out
}

#[cfg(test)]
#[path = "rotation/tests.rs"]
mod tests;
