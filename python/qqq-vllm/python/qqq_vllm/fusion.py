"""Activations become int8 in the kernel of the operation that makes them: RMSNorm, with or without the residual, and
SiLU-multiply.

vLLM runs this pass last over each graph that torch.compile has made of a model, before Inductor compiles it. Without
torch.compile (``--enforce-eager``), and on CPUs, whose products take float activations, nothing is fused.
"""

import operator
import os
from collections.abc import Callable
from typing import Any

import torch
import torch._inductor.pattern_matcher as matcher
from torch import fx
from torch._inductor.fx_passes.post_grad import view_to_reshape
from vllm.compilation.passes.inductor_pass import InductorPass, enable_fake_mode
from vllm.config import CompilationMode, VllmConfig
from vllm.logger import init_logger
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.platforms import current_platform

from qqq_vllm import __version__, ops  # noqa: F401  (the operators are defined there)

logger = init_logger("vllm.plugins.qqq")

_HALF = (torch.float16, torch.bfloat16)


class QuantizeFusion(InductorPass):
    """The pass; `before` is one that the user has asked for, which keeps its place."""

    def __init__(self, dtype: torch.dtype, before: InductorPass | None = None) -> None:
        self.dtype = dtype
        self.before = before
        # Made when it is needed: a pattern is no part of what identifies a pass, and cannot be copied.
        self._gated: matcher.PatternMatcherPass | None = None

    def __call__(self, graph: fx.Graph) -> None:
        if self.before is not None:
            self.before(graph)
        if self._gated is None:
            self._gated = _gated_patterns(self.dtype)
        found = {"RMSNorm": fuse_norms(graph), "SiLU-multiply": self._gated.apply(graph)}
        for name, count in found.items():
            logger.debug("quantization fused with %s in %d places", name, count)
            if count:
                logger.info_once("int8 activations: quantized in the kernel of %s", name)

    def uuid(self) -> str:
        before = None if self.before is None else str(self.before.uuid())
        return InductorPass.hash_dict({"qqq": __version__, "dtype": str(self.dtype), "before": before})

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_gated": None}


def install(config: VllmConfig, dtype: torch.dtype) -> None:
    """Adds the pass to what vLLM runs, once; `QQQ_VLLM_FUSION=0` leaves it out."""
    compilation = config.compilation_config
    if os.environ.get("QQQ_VLLM_FUSION", "1") == "0" or compilation.mode != CompilationMode.VLLM_COMPILE:
        return
    passes, key = compilation.inductor_compile_config, current_platform.pass_key
    before = passes.get(key)
    if isinstance(before, QuantizeFusion):
        return
    if before is not None and not isinstance(before, InductorPass):
        raise ValueError(
            f"compilation_config.inductor_compile_config[{key!r}] is no InductorPass of vLLM, so that the quantization of "
            "activations cannot be fused beside it; QQQ_VLLM_FUSION=0 leaves that out"
        )
    passes[key] = QuantizeFusion(dtype, before)


def fuse_norms(graph: fx.Graph) -> int:
    """Puts one operator in place of each RMSNorm whose result is quantized and not used otherwise."""
    fused = 0
    for quantize in graph.find_nodes(op="call_function", target=torch.ops.qqq.quantize.default):
        source = quantize.args[0]
        if not isinstance(source, fx.Node) or len(source.users) != 1:
            continue
        if source.target is torch.ops.vllm_ir.rms_norm.default:
            fused += _fuse_norm(graph, quantize, source)
        elif _is_item(source, 0) and source.args[0].target is torch.ops.vllm_ir.fused_add_rms_norm.default:
            fused += _fuse_sum_norm(graph, quantize, source)
    return fused


def _fuse_norm(graph: fx.Graph, quantize: fx.Node, norm: fx.Node) -> bool:
    given = _arguments(norm)
    x, factors = given["x"], given["weight"]
    if not _is_supported(given, x):
        return False
    new = _insert(graph, quantize, torch.ops.qqq.quantize_norm.default, (x, factors, given["epsilon"]))
    quantize.replace_all_uses_with(new)
    for node in (quantize, norm):
        graph.erase_node(node)
    return True


def _fuse_sum_norm(graph: fx.Graph, quantize: fx.Node, normed: fx.Node) -> bool:
    both = normed.args[0]
    given = _arguments(both)
    x, residual, factors = given["x"], given["x_residual"], given["weight"]
    if not _is_supported(given, x, residual) or not all(_is_item(u, 0) or _is_item(u, 1) for u in both.users):
        return False
    arguments = (x, residual, factors, given["epsilon"])
    # Where the sum is needed first.
    new = _insert(graph, both, torch.ops.qqq.quantize_sum_norm.default, arguments)
    quantize.replace_all_uses_with(new)
    graph.erase_node(quantize)
    for item in list(both.users):
        if _is_item(item, 1):
            item.args = (new, 2)
        elif not item.users:
            graph.erase_node(item)
    graph.erase_node(both)
    return True


def _is_supported(norm: dict[str, Any], *inputs: fx.Node) -> bool:
    """Whether the kernel does this norm: whole rows of one 16-bit type, with factors of that type or float32."""
    if norm["weight"] is None or norm["variance_size"] is not None:
        return False
    values = [node.meta["val"] for node in inputs]
    dtype = values[0].dtype
    return (
        dtype in _HALF
        and all(v.dtype == dtype and v.dim() == 2 for v in values)
        and norm["weight"].meta["val"].dtype in (dtype, torch.float32)
    )


def _is_item(node: fx.Node, index: int) -> bool:
    return node.target is operator.getitem and node.args[1] == index


def _arguments(node: fx.Node) -> dict[str, Any]:
    """By the names of the operator's schema, with its defaults."""
    given = dict(node.kwargs)
    for i, argument in enumerate(node.target._schema.arguments):
        if i < len(node.args):
            given[argument.name] = node.args[i]
        elif argument.name not in given:
            given[argument.name] = argument.default_value
    return given


def _insert(graph: fx.Graph, place: fx.Node, target: Callable, arguments: tuple) -> fx.Node:
    """A call before a node, with what later passes ask of its results."""
    with graph.inserting_before(place):
        new = graph.call_function(target, arguments)
    values = [a.meta["val"] if isinstance(a, fx.Node) else a for a in arguments]
    with values[0].fake_mode:
        new.meta["val"] = target(*values)
    return new


def _gated_patterns(dtype: torch.dtype) -> matcher.PatternMatcherPass:
    """SiLU-multiply as vLLM's models write it: in PyTorch's operators, or as a kernel of vLLM's."""

    def native(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ops.qqq.quantize(SiluAndMul.forward_native(x))

    def kernel(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = torch.empty((x.shape[0], x.shape[1] // 2), dtype=x.dtype, device=x.device)
        target = torch.ops._C.silu_and_mul.default
        # Their names differ between vLLM's builds.
        names = [argument.name for argument in target._schema.arguments]
        called = torch.ops.higher_order.auto_functionalized(target, **dict(zip(names, (out, x), strict=True)))
        return torch.ops.qqq.quantize(called[1])

    def fused(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ops.qqq.quantize_gated(x)

    def trace(*arguments: Any, **named: Any) -> fx.GraphModule:
        module = matcher.fwd_only(*arguments, **named)
        # As Inductor has done with the graph.
        view_to_reshape(module)
        return module

    patterns = matcher.PatternMatcherPass(pass_name="qqq_quantize_gated")

    @enable_fake_mode
    def register(pattern: Callable) -> None:
        example = torch.empty((5, 32), dtype=dtype, device=current_platform.device_type)
        matcher.register_replacement(pattern, fused, [example], trace, patterns)

    register(native)
    if hasattr(torch.ops._C, "silu_and_mul"):
        register(kernel)
    return patterns
