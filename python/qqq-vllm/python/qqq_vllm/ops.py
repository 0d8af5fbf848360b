"""What vLLM's models call: PyTorch operators, which torch.compile and CUDA graphs take as they are.

A layer's weight is an argument, not a constant, so that the layers of a model compile to one graph.
"""

from dataclasses import dataclass, field

import torch

from qqq_vllm import _native, openmp
from qqq_vllm.formats import Part, span
from qqq_vllm.prepack import Uploader

_library = torch.library.Library("qqq", "FRAGMENT")

# --- CPU ------------------------------------------------------------------------------------------------------

_cpu_linears: list[_native.CpuLinear] = []


def cpu_linear(parts: list[Part]) -> tuple[torch.Tensor, str]:
    """Prepacks parts of layers that lie one below the other; gives the handle that the operator takes, and the name of the
    instructions that run it."""
    openmp.share_threads()
    linear = _native.CpuLinear(_native.Weight.read([part.native for part in parts]))
    _cpu_linears.append(linear)
    return torch.tensor([len(_cpu_linears) - 1], dtype=torch.int64, device="cpu"), linear.isa


def _linear(x: torch.Tensor, handle: torch.Tensor, n: int, bias: torch.Tensor | None) -> torch.Tensor:
    x = x.contiguous()
    y = torch.empty((x.shape[0], n), dtype=x.dtype)
    dtype = str(x.dtype).removeprefix("torch.")
    _cpu_linears[int(handle)].forward(dtype, span(x), span(y), None if bias is None else span(bias))
    return y


_library.define("linear(Tensor x, Tensor handle, int n, Tensor? bias) -> Tensor")
_library.impl("linear", _linear, "CPU")


@torch.library.register_fake("qqq::linear", lib=_library)
def _(x: torch.Tensor, handle: torch.Tensor, n: int, bias: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty((x.shape[0], n))


# --- GPU ------------------------------------------------------------------------------------------------------


@dataclass
class _Gpu:
    """What is prepared on a device."""

    native: _native.Gpu
    gemms: dict[tuple[str, torch.dtype, int, int], _native.Gemm] = field(default_factory=dict)
    quantizers: dict[tuple[str, torch.dtype, int], _native.Quantize] = field(default_factory=dict)
    prepackers: dict[str, _native.Prepack] = field(default_factory=dict)
    uploader: Uploader | None = None
    # One for all products: they run one after the other, on vLLM's one stream for the model.
    workspace: torch.Tensor | None = None
    # Kept for graphs that were captured with them.
    old_workspaces: list[torch.Tensor] = field(default_factory=list)
    most_tokens: int = 0


_gpus: dict[int, _Gpu] = {}


def _gpu(device: torch.device) -> _Gpu:
    index = torch.cuda.current_device() if device.index is None else device.index
    if index not in _gpus:
        _gpus[index] = _Gpu(_native.Gpu(index), uploader=Uploader(device))
    return _gpus[index]


def prepacker(device: torch.device, weights: str) -> tuple[_native.Prepack, Uploader]:
    """The kernel that prepacks such weights, and what brings tensors to the GPU."""
    gpu = _gpu(device)
    if weights not in gpu.prepackers:
        gpu.prepackers[weights] = _native.Prepack(gpu.native, weights)
    assert gpu.uploader is not None
    return gpu.prepackers[weights], gpu.uploader


def prepare_gpu(
    device: torch.device, weights: str, dtype: torch.dtype, n: int, k: int, most_tokens: int
) -> tuple[str, list[int]]:
    """Loads what products of this shape need, so that running them neither compiles nor allocates; gives the name of the
    kernel for one token, and where the shape is a new one, numbers of tokens that run on the other kernels."""
    gpu = _gpu(device)
    if gpu.most_tokens == 0:
        gpu.most_tokens = most_tokens
    name = str(dtype).removeprefix("torch.")
    key = (weights, dtype, n, k)
    is_new = key not in gpu.gemms
    if is_new:
        gpu.gemms[key] = _native.Gemm(gpu.native, weights, name, (n, k), gpu.most_tokens)
    # Which operation comes before a layer is known only when the model is compiled, and then nothing may be loaded.
    for operation in ("plain", "norm", "gated"):
        if (operation, dtype, k) not in gpu.quantizers:
            gpu.quantizers[operation, dtype, k] = _native.Quantize(gpu.native, operation, name, k)
    size = gpu.gemms[key].workspace_bytes
    if gpu.workspace is None or gpu.workspace.numel() < size:
        if gpu.workspace is not None:
            gpu.old_workspaces.append(gpu.workspace)
        gpu.workspace = torch.zeros(size, dtype=torch.uint8, device=device)
    gemm = gpu.gemms[key]
    kernels: dict[str, int] = {}
    if is_new:
        for tokens in (2**i for i in range(gpu.most_tokens.bit_length())):
            kernels.setdefault(gemm.kernel(tokens), tokens)
    return gemm.kernel(1), sorted(kernels.values())


def _quantizer(operation: str, x: torch.Tensor, k: int) -> tuple[_native.Quantize, int]:
    """The kernel, and the stream to launch it on."""
    kernel = _gpus[x.device.index].quantizers[operation, x.dtype, k]
    return kernel, torch.cuda.current_stream(x.device).cuda_stream


def _quantized(x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where int8 activations and their scales go."""
    q = torch.empty((x.shape[0], k), dtype=torch.int8, device=x.device)
    return q, torch.empty((x.shape[0],), dtype=torch.float32, device=x.device)


def _quantize_rows(operation: str, x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The operations that take nothing besides `x`."""
    x = x.contiguous()
    q, scale = _quantized(x, k)
    if x.shape[0]:
        kernel, stream = _quantizer(operation, x, k)
        kernel.launch(stream, x.shape[0], x.data_ptr(), q.data_ptr(), scale.data_ptr())
    return q, scale


def _quantize(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return _quantize_rows("plain", x, x.shape[1])


def _quantize_gated(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return _quantize_rows("gated", x, x.shape[1] // 2)


def _quantize_norm(x: torch.Tensor, norm: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.contiguous()
    q, scale = _quantized(x, x.shape[1])
    if x.shape[0]:
        kernel, stream = _quantizer("norm", x, x.shape[1])
        factors = norm.data_ptr(), norm.dtype == torch.float32
        kernel.launch_norm(stream, x.shape[0], x.data_ptr(), (0, 0), factors, epsilon, q.data_ptr(), scale.data_ptr())
    return q, scale


def _quantize_sum_norm(
    x: torch.Tensor, residual: torch.Tensor, norm: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x, residual = x.contiguous(), residual.contiguous()
    q, scale = _quantized(x, x.shape[1])
    total = torch.empty_like(x)
    if x.shape[0]:
        kernel, stream = _quantizer("norm", x, x.shape[1])
        addresses, factors = (residual.data_ptr(), total.data_ptr()), (norm.data_ptr(), norm.dtype == torch.float32)
        kernel.launch_norm(
            stream, x.shape[0], x.data_ptr(), addresses, factors, epsilon, q.data_ptr(), scale.data_ptr()
        )
    return q, scale, total


def _gemm(
    q: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    channel_scale: torch.Tensor,
    bias: torch.Tensor | None,
    n: int,
    weights: str,
    dtype: torch.dtype,
) -> torch.Tensor:
    tokens, k = q.shape
    y = torch.empty((tokens, n), dtype=dtype, device=q.device)
    gpu = _gpus[q.device.index]
    kernel = gpu.gemms[weights, dtype, n, k]
    stream = torch.cuda.current_stream(q.device).cuda_stream
    workspace = (gpu.workspace.data_ptr(), gpu.workspace.numel())
    # More tokens than were planned for are taken in parts: a product of a part is the part of the product.
    for start in range(0, tokens, gpu.most_tokens):
        kernel.launch(
            stream,
            min(gpu.most_tokens, tokens - start),
            q.data_ptr() + start * k,
            scale.data_ptr() + 4 * start,
            weight.data_ptr(),
            channel_scale.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            y.data_ptr() + start * n * y.element_size(),
            workspace,
        )
    return y


# int8 values of tokens, and their scales: of x; of silu(gate) * up where x is [gate | up]; of RMSNorm(x); of
# RMSNorm(x + residual), with the sum.
_library.define("quantize(Tensor x) -> (Tensor, Tensor)")
_library.define("quantize_gated(Tensor x) -> (Tensor, Tensor)")
_library.define("quantize_norm(Tensor x, Tensor norm, float epsilon) -> (Tensor, Tensor)")
_library.define("quantize_sum_norm(Tensor x, Tensor residual, Tensor norm, float epsilon) -> (Tensor, Tensor, Tensor)")
_library.impl("quantize", _quantize, "CUDA")
_library.impl("quantize_gated", _quantize_gated, "CUDA")
_library.impl("quantize_norm", _quantize_norm, "CUDA")
_library.impl("quantize_sum_norm", _quantize_sum_norm, "CUDA")
_library.define(
    "gemm(Tensor q, Tensor scale, Tensor weight, Tensor channel_scale, Tensor? bias, int n, str weights, "
    "ScalarType dtype) -> Tensor"
)
_library.impl("gemm", _gemm, "CUDA")


def _fake_quantized(x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty((x.shape[0], k), dtype=torch.int8), x.new_empty((x.shape[0],), dtype=torch.float32)


@torch.library.register_fake("qqq::quantize", lib=_library)
def _(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return _fake_quantized(x, x.shape[1])


@torch.library.register_fake("qqq::quantize_gated", lib=_library)
def _(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return _fake_quantized(x, x.shape[1] // 2)


@torch.library.register_fake("qqq::quantize_norm", lib=_library)
def _(x: torch.Tensor, norm: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    return _fake_quantized(x, x.shape[1])


@torch.library.register_fake("qqq::quantize_sum_norm", lib=_library)
def _(
    x: torch.Tensor, residual: torch.Tensor, norm: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return *_fake_quantized(x, x.shape[1]), torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.register_fake("qqq::gemm", lib=_library)
def _(
    q: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    channel_scale: torch.Tensor,
    bias: torch.Tensor | None,
    n: int,
    weights: str,
    dtype: torch.dtype,
) -> torch.Tensor:
    return q.new_empty((q.shape[0], n), dtype=dtype)
