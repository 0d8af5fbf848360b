//! Norms, gates, and inputs of products: instances of `decoder_rows.cuh`.

use crate::dtype::HALVES;
use crate::quantize::{row_threads, rows_of_cta};
use crate::{CudaError, DType, KernelType, Result, Source};

/// Most values of a row that the kernels take.
pub use crate::quantize::MAX_COLUMNS;

/// What the values of a row are, as `RowSource` of `decoder_rows.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowSource {
    /// RMSNorm of the residual stream, to which an input may be added before.
    ResidualNorm,
    /// RMSNorm of the input.
    InputNorm,
    /// `silu(g) * u` of rows `[g | u]`.
    Silu,
    /// `gelu(g) * u` of rows `[g | u]`, with the approximation by the hyperbolic tangent.
    GeluTanh,
    /// The input as it is.
    Input,
}

impl RowSource {
    /// All of them, with their names in C++ and in names of kernels.
    const ALL: [(RowSource, &'static str, &'static str); 5] = [
        (RowSource::ResidualNorm, "kResidualNorm", "residual_norm"),
        (RowSource::InputNorm, "kInputNorm", "norm"),
        (RowSource::Silu, "kSilu", "silu"),
        (RowSource::GeluTanh, "kGeluTanh", "gelu"),
        (RowSource::Input, "kInput", "plain"),
    ];

    fn names(self) -> (&'static str, &'static str) {
        let found = Self::ALL.iter().find(|(source, ..)| *source == self);
        found.map(|(_, cpp, short)| (*cpp, *short)).expect("all are listed")
    }

    /// Whether rows of the input are `[g | u]`.
    fn gates(self) -> bool {
        matches!(self, RowSource::Silu | RowSource::GeluTanh)
    }
}

/// Template arguments of `RowConfig` in `decoder_rows.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowConfig {
    /// What is computed.
    pub source: RowSource,
    /// Whether the result is int8 with a scale a row, or of the 16-bit type.
    pub int8: bool,
    /// The 16-bit type.
    pub half: DType,
    /// Threads of a row: 32 (then a CTA takes four rows), or a power of two up to 1,024.
    pub row_threads: usize,
    /// Vectors of 8 values that a thread keeps; 0: none, rows are read again.
    pub vectors: usize,
}

impl RowConfig {
    /// The instance for rows of `k` values.
    pub fn new(source: RowSource, int8: bool, half: DType, k: usize) -> Self {
        let (row_threads, vectors) = row_threads(k, 2);
        Self { source, int8, half, row_threads, vectors }
    }

    /// Every instance that [`new`](Self::new) can give.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for (source, ..) in RowSource::ALL {
            for half in HALVES {
                // The input is 16-bit already.
                let targets: &[bool] = if source == RowSource::Input { &[true] } else { &[true, false] };
                for int8 in targets {
                    let widths = [512, 1024, 2048, 4096, 8192, 16384, MAX_COLUMNS];
                    all.extend(widths.map(|k| Self::new(source, *int8, half, k)));
                }
            }
        }
        all
    }

    fn rows(&self) -> usize {
        rows_of_cta(self.row_threads)
    }

    /// CTAs of a launch for `m` rows, and their threads.
    pub fn launch_shape(&self, m: usize) -> (usize, usize) {
        (m.div_ceil(self.rows()), self.rows() * self.row_threads)
    }

    /// The kernel's source.
    pub fn source(&self) -> Source {
        let (source, short) = self.source.names();
        let name = format!(
            "rows_{short}_{}_{}_{}x{}",
            if self.int8 { "int8" } else { "half" },
            self.half.kernel_name(),
            self.row_threads,
            self.vectors,
        );
        Source::new(name, |function| {
            format!(
                "#include \"decoder_rows.cuh\"\n\
             using C = RowConfig<{source}, {}, {}, {}, {}>;\n\
             // What the host believes.\n\
             static_assert(C::kThreads == {} && C::kRows == {});\n\
             extern \"C\" __global__ void __launch_bounds__(C::kThreads, 1024 / C::kThreads)\n\
             {function}(const __grid_constant__ RowParameters p) {{ decoder_rows<C>(p); }}\n",
                if self.int8 { "kToInt8" } else { "kToHalf" },
                self.half == DType::BF16,
                self.row_threads,
                self.vectors,
                self.rows() * self.row_threads,
                self.rows(),
            )
        })
    }
}

/// The device addresses of an operation's operands, all 16-byte aligned and valid until the launch has run; 0 where the
/// operation knows none.
#[derive(Clone, Copy, Debug, Default)]
pub struct RowOperands {
    /// `m x k`, of gates `m x 2k`, of the 16-bit type.
    pub x: u64,
    /// `m x k` float32.
    pub residual: u64,
    /// Weights of the norm, `k` float32.
    pub weight: u64,
    /// `m x k`.
    pub out: u64,
    /// Output: scales of int8 rows, `m` float32.
    pub scale: u64,
    /// Rows, one a token.
    pub m: usize,
    /// Values of a row.
    pub k: usize,
    /// What RMSNorm adds to the mean of the squares.
    pub epsilon: f32,
    /// Factor of `x` where it is added to the residual stream.
    pub factor: f32,
}

/// `RowParameters` of `decoder_rows.cuh`.
#[repr(C)]
pub struct RowParameters {
    x: u64,
    residual: u64,
    weight: u64,
    out: u64,
    scale: u64,
    m: i32,
    k: i32,
    epsilon: f32,
    factor: f32,
}

impl RowOperands {
    /// What the kernel of this instance is given.
    ///
    /// # Errors
    /// [`CudaError::Shape`] when there are no rows, they are no multiple of 16 values long or too long, or an address is
    /// missing or not aligned.
    pub fn parameters(&self, config: &RowConfig) -> Result<RowParameters> {
        let problem = |what: String| Err(CudaError::Shape(format!("rows of a decoder on the GPU: {what}")));
        let (m, k) = (self.m, self.k);
        if m == 0 || m > i32::MAX as usize || k == 0 || !k.is_multiple_of(16) || k > MAX_COLUMNS {
            return problem(format!(
                "{m} rows of {k} values, where kernels take multiples of 16 up to {MAX_COLUMNS}"
            ));
        }
        let norm = matches!(config.source, RowSource::ResidualNorm | RowSource::InputNorm);
        let residual = config.source == RowSource::ResidualNorm;
        for (name, address, needed) in [
            ("input", self.x, !residual),
            ("residual stream", self.residual, residual),
            ("norm", self.weight, norm),
            ("output", self.out, true),
            ("scale", self.scale, config.int8),
        ] {
            if needed && address == 0 {
                return problem(format!("no address for the {name}"));
            }
            if address % 16 != 0 {
                return problem(format!("the {name}'s address {address:#x} is not aligned to 16 bytes"));
            }
        }
        if config.source.gates() && self.out == self.x {
            return problem(String::from("gates cannot be written where they are read"));
        }
        Ok(RowParameters {
            x: self.x,
            residual: self.residual,
            weight: self.weight,
            out: self.out,
            scale: self.scale,
            m: m as i32,
            k: k as i32,
            epsilon: self.epsilon,
            factor: self.factor,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_fit_their_instance() {
        for k in (16..=MAX_COLUMNS).step_by(16) {
            let c = RowConfig::new(RowSource::Silu, true, DType::F16, k);
            assert!(c.vectors == 0 || c.row_threads * c.vectors * 8 >= k, "{k}: {c:?}");
            assert!(c.row_threads <= 1024 && c.row_threads.is_power_of_two(), "{k}: {c:?}");
            assert!(RowConfig::all().contains(&c), "{k}: {c:?}");
        }
    }
}
