//! Products and quantization on the GPU: device addresses in, work on a stream out.

use cudarc::driver::sys::CUstream;
use pyo3::prelude::*;
use qqq_cuda::gemm::prepack::Direction;
use qqq_cuda::gemm::{
    GemmOperands, GemmPlans, GemmSpec, GemmTypes, Planner, PrepackKernel, PrepackOperands, WeightKind,
};
use qqq_cuda::quantize::{Operation, Precision, QuantizeKernel, QuantizeOperands};
use qqq_cuda::{CudaError, DType, Device};

use crate::{runtime_error, value_error};

fn output_type(dtype: &str) -> PyResult<DType> {
    match dtype {
        "float16" => Ok(DType::F16),
        "bfloat16" => Ok(DType::BF16),
        other => Err(value_error(format!("the GPU kernels take float16 and bfloat16, not {other}"))),
    }
}

fn error(error: CudaError) -> PyErr {
    match error {
        CudaError::Shape(reason) => value_error(reason),
        other => runtime_error(other),
    }
}

/// A GPU: its primary context, which PyTorch uses as well.
#[pyclass(frozen, module = "qqq_vllm._native")]
pub struct Gpu(Planner);

#[pymethods]
impl Gpu {
    /// Opens GPU number `ordinal`; RuntimeError where there is no such GPU, or none that there are kernels for.
    #[new]
    fn new(py: Python<'_>, ordinal: usize) -> PyResult<Self> {
        py.detach(|| Ok(Self(Planner::new(&Device::new(ordinal)?)?))).map_err(error)
    }

    /// Its model.
    #[getter]
    fn name(&self) -> &str {
        self.0.device().name()
    }

    /// The architecture of the kernels that it runs.
    #[getter]
    fn arch(&self) -> String {
        self.0.arch().to_string()
    }
}

/// The products of one shape, for 1 to a number of tokens; every kernel that they need is loaded.
#[pyclass(frozen, module = "qqq_vllm._native")]
pub struct Gemm(GemmPlans);

#[pymethods]
impl Gemm {
    /// Compiles (or takes from the cache) and loads.
    #[new]
    fn new(
        py: Python<'_>,
        gpu: PyRef<'_, Gpu>,
        weights: &str,
        output: &str,
        shape: (usize, usize),
        most_tokens: usize,
    ) -> PyResult<Self> {
        let weights = weights.parse().map_err(value_error)?;
        let spec = GemmSpec::new(GemmTypes::int8(weights, output_type(output)?), shape);
        let planner = &gpu.0;
        let load = || {
            planner.try_plans(&spec, most_tokens)?;
            GemmPlans::new(planner, &spec, most_tokens)
        };
        py.detach(load).map(Self).map_err(error)
    }

    /// Bytes of a workspace, zero before its first use, that products on the same stream may share.
    #[getter]
    fn workspace_bytes(&self) -> usize {
        self.0.workspace_bytes()
    }

    /// The name of the kernel that a number of tokens gets.
    fn kernel(&self, tokens: usize) -> PyResult<String> {
        Ok(self.0.plan(tokens).map_err(error)?.instance.source().name)
    }

    /// Launches `y = x W^T + bias` on `stream`.
    #[allow(clippy::too_many_arguments)]
    fn launch(
        &self,
        stream: usize,
        tokens: usize,
        x: u64,
        token_scale: u64,
        weights: u64,
        channel_scale: u64,
        bias: u64,
        y: u64,
        workspace: (u64, usize),
    ) -> PyResult<()> {
        let (n, k) = self.0.shape();
        let operands = GemmOperands { x, token_scale, y, weights, channel_scale, bias, m: tokens, n, k };
        // SAFETY: the Python side has checked types, sizes and device, and PyTorch's allocator keeps the memory until the
        // stream has passed. Weights, scales and bias were written long before: the launch may overlap the one before.
        unsafe { self.0.launch(stream as CUstream, &operands, workspace, true) }.map_err(error)
    }
}

/// Weights to the chunks that products read.
#[pyclass(frozen, module = "qqq_vllm._native")]
pub struct Prepack {
    kernel: PrepackKernel,
    kind: WeightKind,
}

#[pymethods]
impl Prepack {
    /// Compiles (or takes from the cache) and loads.
    #[new]
    fn new(py: Python<'_>, gpu: PyRef<'_, Gpu>, weights: &str) -> PyResult<Self> {
        let kind = weights.parse().map_err(value_error)?;
        let device = gpu.0.device();
        py.detach(|| PrepackKernel::new(device, kind, Direction::Pack))
            .map(|kernel| Self { kernel, kind })
            .map_err(error)
    }

    /// Bytes of the chunks of so many output and input channels.
    fn chunks_bytes(&self, n: usize, k: usize) -> usize {
        PrepackKernel::weight_bytes(self.kind, n, k)
    }

    /// Launches on `stream`: codes (int8, `N x K`), group scales (of the kind's type; 0 without groups) and channel scales
    /// (float32) to chunks and padded channel scales (`ceil(N / 64) * 64`).
    #[allow(clippy::too_many_arguments)]
    fn launch(
        &self,
        stream: usize,
        shape: (usize, usize),
        codes: u64,
        scales: u64,
        channel_scale: u64,
        chunks: u64,
        padded_scale: u64,
    ) -> PyResult<()> {
        let (n, k) = shape;
        let operands =
            PrepackOperands { codes, scales, weight_tiles: chunks, channel_scale, padded_scale, n, k };
        // SAFETY: as for products.
        unsafe { self.kernel.launch(stream as CUstream, &operands) }.map_err(error)
    }
}

/// Activations to int8, alone or after the operation that makes them, for tokens of one length.
#[pyclass(frozen, module = "qqq_vllm._native")]
pub struct Quantize {
    kernel: QuantizeKernel,
    input: DType,
}

#[pymethods]
impl Quantize {
    /// Compiles (or takes from the cache) and loads. `operation` is "plain", "norm" or "gated"; `k` counts the values of a
    /// token's result.
    #[new]
    fn new(py: Python<'_>, gpu: PyRef<'_, Gpu>, operation: &str, input: &str, k: usize) -> PyResult<Self> {
        let (device, input) = (gpu.0.device(), output_type(input)?);
        let operation = match operation {
            "plain" => Operation::Plain,
            "norm" => Operation::RmsNorm,
            "gated" => Operation::SiluMul,
            other => return Err(value_error(format!("no operation is called {other}"))),
        };
        py.detach(|| QuantizeKernel::new(device, operation, input, Precision::Float32, k))
            .map(|kernel| Self { kernel, input })
            .map_err(error)
    }

    /// Launches `q, scale = x`, or `= silu(gate) * up` of `x = [gate | up]`, on `stream`.
    fn launch(&self, stream: usize, tokens: usize, x: u64, q: u64, scale: u64) -> PyResult<()> {
        let norm = Norm { factors: 0, type_: DType::F32, epsilon: 0.0, residual: (0, 0) };
        self.start(stream, tokens, x, norm, (q, scale))
    }

    /// Launches `q, scale = RMSNorm(x + residual)` on `stream`; a residual's addresses are those of what is added and of
    /// where the sum goes, or zeros. `norm` is the address of the factors and whether they are float32; otherwise they are
    /// of the input's type.
    #[allow(clippy::too_many_arguments)]
    fn launch_norm(
        &self,
        stream: usize,
        tokens: usize,
        x: u64,
        residual: (u64, u64),
        norm: (u64, bool),
        epsilon: f32,
        q: u64,
        scale: u64,
    ) -> PyResult<()> {
        let type_ = if norm.1 { DType::F32 } else { self.input };
        self.start(stream, tokens, x, Norm { factors: norm.0, type_, epsilon, residual }, (q, scale))
    }
}

/// A norm's part of the operands.
struct Norm {
    factors: u64,
    type_: DType,
    epsilon: f32,
    residual: (u64, u64),
}

impl Quantize {
    fn start(
        &self,
        stream: usize,
        tokens: usize,
        x: u64,
        norm: Norm,
        (q, scale): (u64, u64),
    ) -> PyResult<()> {
        let operands = QuantizeOperands {
            x,
            residual: norm.residual.0,
            new_residual: norm.residual.1,
            norm: norm.factors,
            norm_type: norm.type_,
            epsilon: norm.epsilon,
            q,
            scale,
            sum: 0,
            m: tokens,
        };
        // SAFETY: as for products.
        unsafe { self.kernel.launch(stream as CUstream, &operands, true) }.map_err(error)
    }
}
