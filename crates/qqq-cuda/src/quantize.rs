//! Activations to int8, one float32 scale a token, alone or together with the operation that makes them: what feeds the
//! matrix products of [`gemm`](super::gemm).

use crate::dtype::HALVES;
use crate::{DType, KernelType};
use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys;

use super::device::{Device, Kernel};
use super::{CudaError, Result, Source};

/// Most values of a row that the kernels take.
pub const MAX_COLUMNS: usize = 65536;

/// What is done to the input before it becomes int8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// The input is quantized as it is.
    Plain,
    /// RMSNorm of the input, or of input + residual.
    RmsNorm,
    /// `silu(gate) * up` of rows `[gate | up]`.
    SiluMul,
}

impl Operation {
    /// All of them.
    pub const ALL: [Operation; 3] = [Operation::Plain, Operation::RmsNorm, Operation::SiluMul];

    fn short_name(self) -> &'static str {
        match self {
            Operation::Plain => "plain",
            Operation::RmsNorm => "norm",
            Operation::SiluMul => "gated",
        }
    }

    fn enumerator(self) -> &'static str {
        match self {
            Operation::Plain => "kPlain",
            Operation::RmsNorm => "kRmsNorm",
            Operation::SiluMul => "kSiluMul",
        }
    }
}

/// How results between the input and int8 are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// All in float32, up to the int8 codes.
    Float32,
    /// Every operation's result, and the scale, rounded to the input's type: the bits of a sequence of 16-bit
    /// operations.
    Stepwise,
}

/// Threads of a row of `k` values, and the vectors of 8 values that each keeps: `vectors`, or none where rows are too long.
pub(crate) fn row_threads(k: usize, vectors: usize) -> (usize, usize) {
    let threads = k.div_ceil(8 * vectors).next_power_of_two().max(32);
    if threads > 1024 { (1024, 0) } else { (threads, vectors) }
}

/// Rows of a CTA: one, or one a warp.
pub(crate) fn rows_of_cta(row_threads: usize) -> usize {
    if row_threads == 32 { 4 } else { 1 }
}

/// Template arguments of `QuantizeConfig` in `quantize_activations.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct QuantizeConfig {
    /// What is done.
    pub operation: Operation,
    /// Type of the input: F16 or BF16.
    pub input: DType,
    /// Precision of what is between.
    pub precision: Precision,
    /// Threads of a row: 32 (then a CTA takes four rows), or a power of two up to 1,024.
    pub row_threads: usize,
    /// Vectors of 8 values that a thread keeps; 0: none, rows are read again.
    pub vectors: usize,
}

impl QuantizeConfig {
    /// The instance for rows of `k` values.
    pub fn new(operation: Operation, input: DType, precision: Precision, k: usize) -> Self {
        let (row_threads, vectors) = row_threads(k, 4);
        Self { operation, input, precision, row_threads, vectors }
    }

    /// Every instance that [`new`](Self::new) can give.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for operation in Operation::ALL {
            for input in HALVES {
                for precision in [Precision::Float32, Precision::Stepwise] {
                    let widths = [1024, 2048, 4096, 8192, 16384, 32768, MAX_COLUMNS];
                    all.extend(widths.map(|k| Self::new(operation, input, precision, k)));
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
        let stepwise = self.precision == Precision::Stepwise;
        let name = format!(
            "quantize_{}_{}_{}x{}{}",
            self.operation.short_name(),
            self.input.kernel_name(),
            self.row_threads,
            self.vectors,
            if stepwise { "_stepwise" } else { "" },
        );
        Source::new(name, |function| {
            format!(
                "#include \"quantize_activations.cuh\"\n\
             using C = QuantizeConfig<{}, {}, {}, {}, {stepwise}>;\n\
             // What the host believes.\n\
             static_assert(C::kThreads == {} && C::kRows == {});\n\
             // Without a number of blocks ptxas spills some instances to fit one more.\n\
             extern \"C\" __global__ void __launch_bounds__(C::kThreads, 1024 / C::kThreads)\n\
             {function}(const __grid_constant__ QuantizeParameters p) {{ quantize_activations<C>(p); }}\n",
                self.operation.enumerator(),
                self.input == DType::BF16,
                self.row_threads,
                self.vectors,
                self.rows() * self.row_threads,
                self.rows(),
            )
        })
    }
}

/// The device addresses of an operation's operands, all 16-byte aligned and valid until the launch has run.
#[derive(Clone, Copy, Debug)]
pub struct QuantizeOperands {
    /// Input, `m x k`, for [`Operation::SiluMul`] `m x 2k`, row-major.
    pub x: u64,
    /// For [`Operation::RmsNorm`]: `m x k` of the input's type; or 0.
    pub residual: u64,
    /// Output where there is a residual: input + residual, of the input's type; may be `residual` itself.
    pub new_residual: u64,
    /// For [`Operation::RmsNorm`]: `k` factors.
    pub norm: u64,
    /// Type of `norm`.
    pub norm_type: DType,
    /// What RMSNorm adds to the mean of the squares.
    pub epsilon: f32,
    /// Output, `m x k` int8.
    pub q: u64,
    /// Output, `m` float32: `max |row| / 127`.
    pub scale: u64,
    /// Output, `m` int32: the sum of a row of `q`; or 0.
    pub sum: u64,
    /// Tokens: rows of input and output.
    pub m: usize,
}

/// `QuantizeParameters` of `quantize_activations.cuh`: what the kernel takes.
#[repr(C)]
pub struct QuantizeParameters {
    x: u64,
    residual: u64,
    new_residual: u64,
    norm: u64,
    q: u64,
    scale: u64,
    sum: u64,
    m: i32,
    k: i32,
    epsilon: f32,
    norm_type: i32,
}

impl QuantizeOperands {
    /// What the kernel of this instance is given for rows of `k` values.
    ///
    /// # Errors
    /// [`CudaError::Shape`] when there are no tokens, an address is missing or not aligned, or one is given that the
    /// operation does not know.
    pub fn parameters(&self, config: &QuantizeConfig, k: usize) -> Result<QuantizeParameters> {
        let problem = |what: String| Err(CudaError::Shape(format!("quantizing activations: {what}")));
        if self.m == 0 || self.m > i32::MAX as usize {
            return problem(format!("{} tokens", self.m));
        }
        let normalizes = config.operation == Operation::RmsNorm;
        if !normalizes && [self.norm, self.residual, self.new_residual] != [0; 3] {
            return problem(String::from("a norm's operand is given, and the operation has none"));
        }
        let needed = [("input", self.x, true), ("output", self.q, true), ("scale", self.scale, true)];
        if self.residual == 0 && self.new_residual != 0 {
            return problem(String::from(
                "an address for the new residual is given, and there is no residual",
            ));
        }
        let others = [
            ("norm", self.norm, normalizes),
            ("residual", self.residual, false),
            ("new residual", self.new_residual, self.residual != 0),
            ("sum", self.sum, false),
        ];
        for (name, address, required) in needed.into_iter().chain(others) {
            if required && address == 0 {
                return problem(format!("no address for the {name}"));
            }
            if address % 16 != 0 {
                return problem(format!("the {name}'s address {address:#x} is not aligned to 16 bytes"));
            }
        }
        // `DType` of `quantize_activations.cuh`.
        let norm_type = match self.norm_type {
            DType::F16 => 0,
            DType::BF16 => 1,
            DType::F32 => 2,
            other => {
                return Err(CudaError::Types(format!("a norm with factors of {other}: F16, BF16 or F32")));
            }
        };
        Ok(QuantizeParameters {
            x: self.x,
            residual: self.residual,
            new_residual: self.new_residual,
            norm: self.norm,
            q: self.q,
            scale: self.scale,
            sum: self.sum,
            m: self.m as i32,
            k: k as i32,
            epsilon: self.epsilon,
            norm_type,
        })
    }
}

/// A compiled and loaded instance for rows of one length.
#[derive(Clone, Debug)]
pub struct QuantizeKernel {
    config: QuantizeConfig,
    k: usize,
    kernel: Arc<Kernel>,
}

impl QuantizeKernel {
    /// Compiles (or takes from the cache) and loads the kernel for rows of `k` values.
    ///
    /// # Errors
    /// [`CudaError::Shape`] when `k` is no multiple of 16 or above 65,536; when NVRTC is needed and missing, or the
    /// driver refuses the kernel.
    pub fn new(
        device: &Device,
        operation: Operation,
        input: DType,
        precision: Precision,
        k: usize,
    ) -> Result<Self> {
        if k == 0 || !k.is_multiple_of(16) || k > MAX_COLUMNS {
            return Err(CudaError::Shape(format!(
                "tokens of {k} values: the GPU kernels take multiples of 16 up to {MAX_COLUMNS}"
            )));
        }
        if !HALVES.contains(&input) {
            return Err(CudaError::Types(format!(
                "quantizing activations of {input}: the kernels take F16 and BF16"
            )));
        }
        let config = QuantizeConfig::new(operation, input, precision, k);
        Ok(Self { config, k, kernel: device.kernel(&config.source(), 0)? })
    }

    /// Launches the operation on `stream`. With `overlap`, the launch may begin while the one before it still runs
    /// (programmatic dependent launch): until that one has finished, it reads and writes nothing.
    ///
    /// # Errors
    /// [`CudaError::Shape`] when there are no tokens, an address is missing or not aligned, or one is given that the
    /// operation does not know; [`CudaError::Driver`] when the driver refuses the launch.
    ///
    /// # Safety
    /// The operands must be device memory of the sizes given.
    pub unsafe fn launch(&self, stream: sys::CUstream, o: &QuantizeOperands, overlap: bool) -> Result<()> {
        let mut parameters = o.parameters(&self.config, self.k)?;
        let (ctas, threads) = self.config.launch_shape(o.m);
        let parameters: *mut c_void = (&raw mut parameters).cast();
        // SAFETY: the structure is the kernel's one parameter; the caller vouches for the memory.
        unsafe { self.kernel.launch(stream, (ctas, threads, 0), 1, overlap, &mut [parameters]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_fit_their_instance() {
        for k in (16..=MAX_COLUMNS).step_by(16) {
            let c = QuantizeConfig::new(Operation::Plain, DType::F16, Precision::Float32, k);
            assert!(c.vectors == 0 || c.row_threads * c.vectors * 8 >= k, "{k}: {c:?}");
            assert!(c.row_threads <= 1024 && c.row_threads.is_power_of_two(), "{k}: {c:?}");
            assert!(QuantizeConfig::all().contains(&c), "{k}: {c:?}");
        }
    }
}
