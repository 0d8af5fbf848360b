"""The quantization method ``qqq``: which layers are quantized, and how they are stored."""

import json
from typing import Any

import torch
import vllm
from vllm.config import get_current_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.platforms import current_platform

from qqq_vllm import _native, versions
from qqq_vllm.head import QQQHeadMethod
from qqq_vllm.linear import QQQLinearMethod

logger = init_logger("vllm.plugins.qqq")


#: What vLLM adds to every quantization_config.
_ADDED = ("total_num_heads", "total_num_kv_heads")


class QQQConfig(QuantizationConfig):
    """``quantization_config`` of a checkpoint: QQQ tiles (W4A8), or compressed-tensors with W4A8 and W8A8 layers, which run here,
    and W4A16 and W8A16 ones, which vLLM runs itself."""

    def __init__(self, native: _native.Config, given: dict[str, Any]) -> None:
        super().__init__()
        self.native = native
        self.given = given

    def __repr__(self) -> str:
        return f"QQQConfig(format={self.native.format!r}, schemes={self.native.schemes})"

    @classmethod
    def get_name(cls) -> str:
        return "qqq"

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        types = [torch.float16, torch.bfloat16]
        return [*types, torch.float32] if current_platform.is_cpu() else types

    @classmethod
    def get_min_capability(cls) -> int:
        return 80

    @staticmethod
    def get_config_filenames() -> list[str]:
        # The reference and GPTQModel write this beside config.json, which has the same.
        return ["quantize_config.json"]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QQQConfig":
        if note := versions.note(vllm.__version__):
            logger.warning_once(note)
        given = {key: value for key, value in config.items() if key not in _ADDED}
        return cls(_native.Config(json.dumps({"quant_method": "qqq"} | given)), given)

    @classmethod
    def override_quantization_method(cls, hf_quant_cfg: dict[str, Any], user_quant: str | None, **_: Any) -> str | None:
        """compressed-tensors checkpoints run here when that is asked for: vLLM has a way of its own for them."""
        asked = user_quant == "qqq" and hf_quant_cfg.get("quant_method") == "compressed-tensors"
        return "qqq" if asked else None

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        if isinstance(layer, LinearBase):
            if self._is_float(prefix):
                return UnquantizedLinearMethod()
            if self._activations(prefix) == 16:
                return self._weight_only().get_quant_method(layer, prefix)
            return QQQLinearMethod(self.native, prefix, self._shard_names(prefix))
        if _is_mixture(layer) and not self._is_float(prefix):
            raise ValueError(f"{prefix}: qqq-vllm has no kernels for mixtures of experts; keep them in float")
        if isinstance(layer, ParallelLMHead) and not self._is_float(prefix) and not _tied_head():
            if self._activations(prefix) == 16:
                return self._weight_only().get_quant_method(layer, prefix)
            return QQQHeadMethod(self.native, prefix, [prefix])
        return None

    def _shard_names(self, prefix: str) -> list[str]:
        """The checkpoint's names of what vLLM has merged into one layer: q_proj, k_proj and v_proj of qkv_proj."""
        parent, _, name = prefix.rpartition(".")
        shards = self.packed_modules_mapping.get(name, [name])
        return [f"{parent}.{shard}" if parent else shard for shard in shards]

    def _activations(self, prefix: str) -> int:
        """Bits of a quantized layer's activations. What vLLM runs as one layer must be quantized alike."""
        names = self._shard_names(prefix)
        # A checkpoint may have merged them as vLLM does.
        schemes = {name: self.native.scheme(name) or self.native.scheme(prefix) for name in names}
        if len(set(schemes.values())) > 1:
            shown = ", ".join(f"{name}: W{s[0]}A{s[1]}" + (f" g{s[2]}" if s[2] else "") for name, s in schemes.items())
            raise ValueError(
                f"{prefix}: vLLM runs {', '.join(names)} as one layer, but they are not quantized alike ({shown}); quantize "
                "all of them in one way"
            )
        return schemes[names[0]][1]

    def _weight_only(self) -> CompressedTensorsConfig:
        """vLLM's own way for layers with 16-bit activations."""
        config = CompressedTensorsConfig.from_config(dict(self.given))
        config.packed_modules_mapping = self.packed_modules_mapping
        return config

    def _is_float(self, prefix: str) -> bool:
        names = self._shard_names(prefix)
        ignored = [name for name in names if self.native.ignores(name)]
        if ignored and len(ignored) < len(names):
            raise ValueError(
                f"{prefix}: {', '.join(ignored)} is kept in float and the rest of {', '.join(names)} is not; vLLM runs them "
                "as one layer, which needs one type"
            )
        return bool(ignored) or self.native.ignores(prefix)


def _is_mixture(layer: torch.nn.Module) -> bool:
    # Its class has other names in other versions of vLLM; its package has not.
    return any(".fused_moe." in f"{c.__module__}." for c in type(layer).__mro__)


def _tied_head() -> bool:
    model = get_current_vllm_config().model_config
    return model is not None and bool(getattr(model.hf_config, "tie_word_embeddings", False))
