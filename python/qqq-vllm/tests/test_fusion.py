"""The pass that fuses the quantization of activations, in vLLM's own sequence of passes and compiled by Inductor; the
operators have no CPU kernels, so these tests bring some."""

import copy
import pickle
from collections import Counter

import pytest

torch = pytest.importorskip("torch")
vllm = pytest.importorskip("vllm")

from qqq_vllm import fusion
from qqq_vllm.fusion import QuantizeFusion
from vllm import ir
from vllm.compilation.passes.inductor_pass import CallableInductorPass, pass_context
from vllm.compilation.passes.ir.inplace_functionalization import VllmIRInplaceFunctionalizationPass
from vllm.compilation.passes.pass_manager import PostGradPassManager
from vllm.config import CompilationMode, VllmConfig, set_current_vllm_config
from vllm.config.utils import Range
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.layernorm import RMSNorm

K = 64
EPSILON = 3e-6
_library = torch.library.Library("qqq", "FRAGMENT")


def _quantize(x):
    largest = x.float().abs().amax(1)
    scale = torch.where(largest > 0, largest, 1.0) / 127
    return (x.float() / scale[:, None]).round().to(torch.int8), scale


def _normalized(x, norm, epsilon):
    return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + epsilon) * norm.float()


def _quantize_gated(x):
    gate, up = x.float().chunk(2, dim=1)
    return _quantize(torch.nn.functional.silu(gate) * up)


def _quantize_sum_norm(x, residual, norm, epsilon):
    total = x + residual
    return *_quantize(_normalized(total.float(), norm, epsilon)), total


_library.impl("quantize", _quantize, "CPU")
_library.impl("quantize_gated", _quantize_gated, "CPU")
_library.impl("quantize_norm", lambda x, norm, epsilon: _quantize(_normalized(x.float(), norm, epsilon)), "CPU")
_library.impl("quantize_sum_norm", _quantize_sum_norm, "CPU")


class Recorded(QuantizeFusion):
    """What the pass has left."""

    def __call__(self, graph):
        super().__call__(graph)
        graph.lint()
        names = (str(n.target) for n in graph.nodes if n.op == "call_function")
        self.calls = Counter(n.removesuffix(".default") for n in names if n.startswith(("qqq.", "vllm_ir.", "_C.")))


def run(function, *arguments, dtype):
    """The function's results as they are and compiled, and the calls of operators after the pass."""
    config = VllmConfig()
    with set_current_vllm_config(config), ir.enable_torch_wrap(True), pass_context(Range(start=1, end=64)):
        expected = function(*(a.clone() for a in arguments))
        manager = PostGradPassManager()
        manager.configure(config)
        # It asks for operators that the CPU build lacks, and has nothing to do for these graphs.
        manager.fix_functionalization = lambda graph: None
        recorded = Recorded(dtype)
        manager.add(recorded)
        options = {
            "pre_grad_custom_pass": VllmIRInplaceFunctionalizationPass(config),
            "post_grad_custom_post_pass": manager,
            "enable_auto_functionalized_v2": False,
        }
        torch._dynamo.reset()
        for argument in arguments:
            torch._dynamo.mark_dynamic(argument, 0)
        with torch._inductor.config.patch(force_disable_caches=True):
            compiled = torch.compile(function, fullgraph=True, options=options)(*arguments)
    return expected, compiled, recorded.calls


def multiply(q, scale, weight):
    return (q.float() * scale[:, None] @ weight.float()).to(weight.dtype)


def product(x, weight):
    """A layer's, as the plugin's layers call it on GPUs."""
    return multiply(*torch.ops.qqq.quantize(x), weight)


def random(*shape, dtype, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def norm(dtype, **options):
    with set_current_vllm_config(VllmConfig()):
        layer = RMSNorm(K, eps=EPSILON, dtype=dtype, **options)
    if layer.has_weight:
        layer.weight.data += random(K, dtype=layer.weight.dtype, seed=9) / 4
    return layer


def assert_close(expected, got):
    """Up to what comes of other roundings: a value may become another int8."""
    for e, g in zip(expected, got, strict=True):
        assert g.dtype == e.dtype and g.shape == e.shape
        error = (e.float() - g.float()).norm() / e.float().norm()
        assert error < 0.01


@pytest.mark.parametrize(
    "dtype, norm_dtype", [(torch.float16, None), (torch.bfloat16, None), (torch.bfloat16, torch.float32)]
)
def test_a_block_of_a_model(dtype, norm_dtype):
    with torch.no_grad():
        first, second = norm(norm_dtype or dtype), norm(norm_dtype or dtype)
        qkv, up, down = random(K, K, dtype=dtype), random(K, 4 * K, dtype=dtype), random(2 * K, K, dtype=dtype)

        def block(x):
            residual = x
            attention = product(first(x), qkv)
            normed, residual = second(attention, residual)
            return product(SiluAndMul.forward_native(product(normed, up)), down), residual

        def fused_block(x):
            ops = torch.ops.qqq
            attention = multiply(*ops.quantize_norm(x, first.weight, EPSILON), qkv)
            *normed, residual = ops.quantize_sum_norm(attention, x, second.weight, EPSILON)
            return multiply(*ops.quantize_gated(multiply(*normed, up)), down), residual

        x = random(7, K, dtype=dtype, seed=3)
        _, got, calls = run(block, x, dtype=dtype)
        assert calls == {"qqq.quantize_norm": 1, "qqq.quantize_sum_norm": 1, "qqq.quantize_gated": 1}
        assert_close(fused_block(x), got)


def test_vllms_kernel_for_silu():
    if not hasattr(torch.ops._C, "silu_and_mul"):
        pytest.skip("this build of vLLM has none")
    weight = random(K, K, dtype=torch.float16)

    def function(x):
        out = torch.empty((x.shape[0], x.shape[1] // 2), dtype=x.dtype)
        torch.ops._C.silu_and_mul(out, x)
        return (product(out, weight),)

    expected, got, calls = run(function, random(5, 2 * K, dtype=torch.float16), dtype=torch.float16)
    assert calls == {"qqq.quantize_gated": 1}
    assert_close(expected, got)


def test_what_is_left_alone():
    dtype = torch.bfloat16
    weight, half = random(K, K, dtype=dtype), norm(dtype, var_hidden_size=K // 2)
    whole, without_factors = norm(dtype), norm(dtype, has_weight=False)

    def function(x):
        first, second = x[:, :K], x[:, K:]
        used_twice = whole(first)
        yield product(used_twice, weight)
        yield used_twice
        yield product(half(first), weight)
        yield product(without_factors(first), weight)
        yield product(torch.nn.functional.silu(second) * first, weight)
        yield product(torch.nn.functional.gelu(first) * second, weight)

    with torch.no_grad():
        expected, got, calls = run(lambda x: tuple(function(x)), random(4, 2 * K, dtype=dtype), dtype=dtype)
    assert calls == {"qqq.quantize": 5, "vllm_ir.rms_norm": 3}
    assert_close(expected, got)


def config_to_install(**passes):
    config = VllmConfig()
    # The CPU has no such mode.
    config.compilation_config.mode = CompilationMode.VLLM_COMPILE
    config.compilation_config.inductor_compile_config |= passes
    return config


def test_install():
    config = config_to_install()
    before = config.compilation_config.compute_hash()
    fusion.install(config, torch.float16)
    fusion.install(config, torch.float16)
    added = config.compilation_config.inductor_compile_config["post_grad_custom_post_pass"]
    assert isinstance(added, QuantizeFusion) and added.before is None
    # Compiled models are kept under this name.
    assert config.compilation_config.compute_hash() != before
    for copied in (copy.deepcopy(added), pickle.loads(pickle.dumps(added))):
        assert copied.uuid() == added.uuid() and copied.dtype == torch.float16


def test_install_beside_another_pass():
    seen = []
    other = CallableInductorPass(seen.append, uuid="other")
    config = config_to_install(post_grad_custom_post_pass=other)
    fusion.install(config, torch.bfloat16)
    both = config.compilation_config.inductor_compile_config["post_grad_custom_post_pass"]
    graph = torch.fx.symbolic_trace(lambda x: x + 1).graph
    both(graph)
    assert seen == [graph] and both.uuid() != QuantizeFusion(torch.bfloat16).uuid()
    with pytest.raises(ValueError, match="no InductorPass"):
        fusion.install(config_to_install(post_grad_custom_post_pass=print), torch.bfloat16)


def test_install_only_where_asked(monkeypatch):
    config = config_to_install()
    config.compilation_config.mode = CompilationMode.NONE
    fusion.install(config, torch.bfloat16)
    monkeypatch.setenv("QQQ_VLLM_FUSION", "0")
    config.compilation_config.mode = CompilationMode.VLLM_COMPILE
    fusion.install(config, torch.bfloat16)
    assert "post_grad_custom_post_pass" not in config.compilation_config.inductor_compile_config
