"""What the plugin uses of vLLM, and whether the version at hand has it."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

#: Names by module; for what is called (or overridden), parameters that must be there.
USED: dict[str, dict[str, tuple[str, ...]]] = {
    "vllm": {"__version__": ()},
    "vllm.compilation.passes.inductor_pass": {
        "InductorPass": (),
        "InductorPass.hash_dict": (),
        "InductorPass.uuid": (),
        "enable_fake_mode": ("fn",),
    },
    "vllm.config": {
        "CompilationMode.VLLM_COMPILE": (),
        "VllmConfig": (),
        "get_current_vllm_config": (),
    },
    "vllm.distributed.parallel_state": {"get_tensor_model_parallel_rank": ()},
    "vllm.logger": {"init_logger": ("name",)},
    "vllm.model_executor.layers.activation": {"SiluAndMul.forward_native": ("x",)},
    "vllm.model_executor.layers.linear": {
        "LinearBase": (),
        "LinearMethodBase": (),
        "LinearMethodBase.apply": ("layer", "x", "bias"),
        "LinearMethodBase.create_weights": (
            "layer",
            "input_size_per_partition",
            "output_partition_sizes",
            "input_size",
            "output_size",
            "params_dtype",
        ),
        "UnquantizedLinearMethod": (),
    },
    "vllm.model_executor.layers.quantization": {"register_quantization_config": ("quantization",)},
    "vllm.model_executor.layers.quantization.base_config": {
        "QuantizationConfig": (),
        "QuantizationConfig.from_config": ("config",),
        "QuantizationConfig.get_config_filenames": (),
        "QuantizationConfig.get_min_capability": (),
        "QuantizationConfig.get_name": (),
        "QuantizationConfig.get_quant_method": ("layer", "prefix"),
        "QuantizationConfig.get_supported_act_dtypes": (),
        "QuantizationConfig.override_quantization_method": ("hf_quant_cfg", "user_quant"),
        "QuantizeMethodBase": (),
        "QuantizeMethodBase.process_weights_after_loading": ("layer",),
    },
    "vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors": {
        "CompressedTensorsConfig.from_config": ("config",),
        "CompressedTensorsConfig.get_quant_method": ("layer", "prefix"),
    },
    "vllm.model_executor.layers.vocab_parallel_embedding": {"ParallelLMHead": ()},
    "vllm.platforms": {
        "current_platform.device_type": (),
        "current_platform.is_cpu": (),
        "current_platform.pass_key": (),
    },
}


def _installed(module: str, name: str) -> Any:
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _parameters(function: Any) -> list[str] | None:
    """Names of a function's parameters; None where it takes any at all, or does not say."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    kinds = {p.kind for p in parameters}
    wrapped = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} <= kinds
    return None if wrapped else [p.name for p in parameters]


def missing(
    find: Callable[[str, str], Any] = _installed, parameters_of: Callable[[Any], list[str] | None] = _parameters
) -> list[str]:
    """What is not there, in words. `find` looks a name of a module up; ImportError or AttributeError where it is not."""
    lacks = []
    for module, names in USED.items():
        for name, parameters in names.items():
            try:
                found = find(module, name)
            except (ImportError, AttributeError) as error:
                lacks.append(f"{module}.{name} ({error})")
                continue
            has = parameters_of(found) if parameters else None
            if has is not None:
                lacks += [f"parameter {p} of {module}.{name}" for p in parameters if p not in has]
    return lacks
