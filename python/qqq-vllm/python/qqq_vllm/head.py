"""The output head with int8 activations: a linear layer whose outputs, tokens of the vocabulary, vLLM pads and splits among ranks."""

import torch
from torch.nn import Parameter
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank

from qqq_vllm.linear import QQQLinearMethod

#: Tensors that have a row for each token.
_OF_TOKENS = ("weight", "weight_packed", "weight_scale")


class QQQHeadMethod(QQQLinearMethod):
    """A linear layer in the place of an embedding. Rows that vLLM adds at the end of the vocabulary have scales of zero: their
    logits are zero, and it cuts them off."""

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
        if layer.num_embeddings != layer.org_vocab_size:
            raise ValueError(f"{self.prefix}: a quantized output head takes no tokens beside its vocabulary's (LoRA's)")
        layer.tp_rank = get_tensor_model_parallel_rank()
        super().create_weights(
            layer, input_size_per_partition, output_partition_sizes, input_size, output_size, params_dtype
        )
        for key in _OF_TOKENS:
            placeholder = getattr(layer, key, None)
            if placeholder is not None:
                placeholder.weight_loader = _padded(placeholder.weight_loader, self.prefix, key, layer)


def _padded(load, prefix: str, key: str, layer: torch.nn.Module):
    rows, padded = layer.org_vocab_size, layer.num_embeddings_padded

    def load_padded(param: Parameter, loaded_weight: torch.Tensor) -> None:
        if loaded_weight.shape[0] != rows:
            raise ValueError(
                f"{prefix}.{key} has {loaded_weight.shape[0]} rows, and the vocabulary {rows} tokens; they must be as many"
            )
        if padded > rows:
            more = loaded_weight.new_zeros((padded - rows, *loaded_weight.shape[1:]))
            loaded_weight = torch.cat((loaded_weight.detach(), more))
        load(param, loaded_weight)

    return load_padded
