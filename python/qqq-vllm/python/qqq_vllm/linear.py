"""Linear layers with weights of 4 or 8 bits and int8 activations."""

import torch
from torch.nn import Parameter
from vllm.config import get_current_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import LinearMethodBase
from vllm.platforms import current_platform

from qqq_vllm import _native, fusion, ops, prepack, proof
from qqq_vllm.formats import FORMATS, Part
from qqq_vllm.weights import LayerLoader

logger = init_logger("vllm.plugins.qqq")

# Products take multiples of this many input and output channels.
_MULTIPLE = 16
_QKV = {"q": 0, "k": 1, "v": 2}


class QQQLinearMethod(LinearMethodBase):
    """The weights of one layer, and its product."""

    def __init__(self, config: _native.Config, prefix: str, names: list[str]) -> None:
        self.config = config
        self.prefix = prefix
        self.names = names
        # A checkpoint may have merged them as vLLM does.
        scheme = config.scheme(names[0]) or config.scheme(prefix)
        if scheme is None or scheme[1] != 8:
            raise ValueError(f"{prefix}: it has no int8 activations")
        self.bits, _, self.group_size = scheme

    def create_weights(
        self,
        layer: torch.nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs,
    ) -> None:
        names = self.names
        if len(names) != len(output_partition_sizes):
            # Merged in the checkpoint as well, or parts that the model does not name.
            names = (
                [self.prefix]
                if len(output_partition_sizes) == 1
                else [f"{self.prefix}[{i}]" for i in range(len(output_partition_sizes))]
            )
        rank, ranks = getattr(layer, "tp_rank", 0), getattr(layer, "tp_size", 1)
        self._check_shape(names, input_size_per_partition, output_partition_sizes, input_size, ranks)
        device = torch.empty(0).device
        layer.qqq_outputs = sum(output_partition_sizes)
        layer.qqq_dtype = params_dtype
        if device.type == "cuda":
            fusion.install(get_current_vllm_config(), params_dtype)

        layout = FORMATS[self.config.format](self.group_size, self.bits)
        loader = LayerLoader(
            names=names,
            format=layout,
            input_size=input_size_per_partition,
            output_sizes=output_partition_sizes,
            whole_input_size=input_size,
            whole_output_sizes=_whole_output_sizes(layer, output_partition_sizes, ranks),
            rank=rank,
            ranks=ranks,
            on_complete=lambda parts: self._prepack(layer, parts, device),
        )
        layer.qqq_loader = loader
        for key, dtype in layout.types.items():
            # Only a name under which vLLM finds the function that takes the tensor, and the type that it expects.
            placeholder = Parameter(torch.empty(0, dtype=dtype), requires_grad=False)
            placeholder.weight_loader = _weight_loader(loader, key)
            layer.register_parameter(key, placeholder)

    def _check_shape(self, names: list[str], inputs: int, outputs: list[int], whole_inputs: int, ranks: int) -> None:
        group, split = self.group_size, f" with tensor parallel size {ranks}" if ranks > 1 else ""
        if inputs % _MULTIPLE:
            raise ValueError(
                f"{self.prefix}: {inputs} input channels{split}; the int8 kernels take multiples of {_MULTIPLE}"
            )
        if group and inputs % group:
            raise ValueError(
                f"{self.prefix}: {whole_inputs} input channels in groups of {group} are {whole_inputs / group:g} groups, "
                f"which cannot be split{split}: {inputs} input channels a rank are no multiple of {group}"
            )
        for name, size in zip(names, outputs, strict=True):
            if size % _MULTIPLE:
                raise ValueError(
                    f"{name}: {size} output channels{split}; the int8 kernels take multiples of {_MULTIPLE}"
                )

    def _prepack(self, layer: torch.nn.Module, parts: list[Part], device: torch.device) -> None:
        n, k = sum(part.shape[0] for part in parts), parts[0].shape[1]
        token_counts: list[int] = []
        if device.type == "cpu":
            handle, kernel = ops.cpu_linear(parts)
            layer.register_buffer("qqq_handle", handle, persistent=False)
        elif device.type == "cuda":
            scales = prepack.read_scales(parts)
            layer.qqq_weights = scales[0]
            chunks, padded = prepack.prepack(parts, scales, *ops.prepacker(device, scales[0]), device)
            most_tokens = get_current_vllm_config().scheduler_config.max_num_batched_tokens
            kernel, token_counts = ops.prepare_gpu(device, scales[0], layer.qqq_dtype, n, k, most_tokens)
            layer.register_buffer("qqq_weight", chunks, persistent=False)
            layer.register_buffer("qqq_scale", padded, persistent=False)
        else:
            raise ValueError(f"{self.prefix}: qqq-vllm has no kernels for devices of type {device.type}")
        proof.check(self.prefix, kernel, parts, layer.qqq_dtype, device, lambda x: self.apply(layer, x), token_counts)
        self._say(n, k, kernel)

    def _say(self, n: int, k: int, kernel: str) -> None:
        """One line for each kind of layer."""
        name = self.prefix.rpartition(".")[2]
        groups = f"in groups of {self.group_size}" if self.group_size else "per channel"
        logger.info_once(
            "%s: int%d weights %s (%d x %d), int8 activations, kernel %s", name, self.bits, groups, n, k, kernel
        )

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        loader: LayerLoader | None = getattr(layer, "qqq_loader", None)
        if loader is None:
            return
        if not loader.has_begun() and get_current_vllm_config().load_config.load_format == "dummy":
            loader.fill(seed=len(self.prefix))
        elif missing := loader.missing():
            raise ValueError(f"the checkpoint has no {', '.join(missing)}")
        del layer.qqq_loader
        for key in loader.format.types:
            delattr(layer, key)
        # The kernels add the bias in float32.
        bias = getattr(layer, "bias", None)
        if bias is not None:
            layer.register_buffer("qqq_bias", bias.detach().to(torch.float32), persistent=False)

    def apply(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        # No reshape without need: nothing may stand between a norm and the quantization of its result.
        rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        bias = None if bias is None else layer.qqq_bias
        if current_platform.is_cpu():
            y = torch.ops.qqq.linear(rows, layer.qqq_handle, layer.qqq_outputs, bias)
        else:
            q, scale = torch.ops.qqq.quantize(rows)
            y = torch.ops.qqq.gemm(
                q, scale, layer.qqq_weight, layer.qqq_scale, bias, layer.qqq_outputs, layer.qqq_weights, x.dtype
            )
        return y if x.dim() == 2 else y.reshape(*x.shape[:-1], layer.qqq_outputs)


def _whole_output_sizes(layer: torch.nn.Module, sizes: list[int], ranks: int) -> list[int]:
    """Outputs of the shards of the whole layer, as a checkpoint has them."""
    heads, kv_heads = getattr(layer, "total_num_heads", None), getattr(layer, "total_num_kv_heads", None)
    if heads is not None and kv_heads is not None and len(sizes) == 3:
        head, value_head = layer.head_size, getattr(layer, "v_head_size", layer.head_size)
        return [heads * head, kv_heads * head, kv_heads * value_head]
    return [size * ranks for size in sizes]


def _weight_loader(loader: LayerLoader, key: str):
    def load(param: Parameter, loaded_weight: torch.Tensor, shard_id: int | str | None = None) -> None:
        if isinstance(shard_id, tuple):
            raise ValueError(
                f"{loader.names[0]}.{key}: a checkpoint that merges {shard_id} of {loader.names} is not supported"
            )
        loader.load(key, loaded_weight, _QKV[shard_id] if isinstance(shard_id, str) else shard_id)

    return load
