"""Weights on their way from a checkpoint to a kernel: tensors of shards, in any order, to this rank's part of the layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from qqq_vllm import _native


def span(tensor: torch.Tensor) -> tuple[int, int]:
    """Address and number of elements of a contiguous tensor in host memory."""
    assert tensor.is_contiguous() and tensor.device.type == "cpu"
    return tensor.data_ptr(), tensor.numel()


def _tensor(
    name: str, tensors: dict[str, torch.Tensor], key: str, dtype: str | None, shape: Sequence[int]
) -> torch.Tensor:
    tensor = tensors[key].detach()
    if dtype is not None and tensor.dtype != getattr(torch, dtype):
        raise ValueError(f"{name}.{key} is of type {tensor.dtype}, not {dtype}")
    if list(tensor.shape) != list(shape):
        raise ValueError(f"{name}.{key} has shape {list(tensor.shape)}; {list(shape)} is expected")
    return tensor.to("cpu").contiguous()


class QQQFormat:
    """The reference's tiles."""

    def __init__(self, group_size: int | None) -> None:
        self.group_size = group_size
        # Per channel there may be an empty s_group.
        self.needed = ("B", "s_channel") if group_size is None else ("B", "s_channel", "s_group")
        self.others = ("s_group",) if group_size is None else ()

    def read(self, name: str, tensors: dict[str, torch.Tensor], k: int) -> _native.Weight:
        n = tensors["s_channel"].numel()
        b = _tensor(name, tensors, "B", "int32", [k // 16, 2 * n])
        s_channel = _tensor(name, tensors, "s_channel", "float32", [1, n])
        group = None
        if self.group_size is not None:
            group = _tensor(name, tensors, "s_group", "float16", [k // self.group_size, n])
        spans = (span(b), span(s_channel), None if group is None else span(group))
        return _native.Weight.from_qqq(name, (n, k), self.group_size, *spans)

    def check(self, name: str, key: str, tensor: torch.Tensor, k: int) -> None:
        if tensor.numel():
            raise ValueError(f"{name}.{key}: there are group scales, but the configuration says group_size -1")


class CompressedTensorsFormat:
    """compressed-tensors' pack-quantized layout."""

    needed = ("weight_packed", "weight_scale")
    others = ("weight_shape", "weight_g_idx", "weight_zero_point")

    def __init__(self, group_size: int | None) -> None:
        self.group_size = group_size

    def read(self, name: str, tensors: dict[str, torch.Tensor], k: int) -> _native.Weight:
        n = tensors["weight_scale"].shape[0]
        packed = _tensor(name, tensors, "weight_packed", "int32", [n, -(-k // 8)])
        groups = 1 if self.group_size is None else k // self.group_size
        scale = _tensor(name, tensors, "weight_scale", None, [n, groups]).to(torch.float32).contiguous()
        return _native.Weight.from_compressed_tensors(name, (n, k), self.group_size, span(packed), span(scale))

    def check(self, name: str, key: str, tensor: torch.Tensor, k: int) -> None:
        if key == "weight_g_idx":
            raise ValueError(f"{name}.{key}: groups in the order of activations are not supported")
        if key == "weight_zero_point" and bool(tensor.any()):
            raise ValueError(f"{name}.{key}: there are zero points, but the configuration says symmetric")
        if key == "weight_shape" and tensor.tolist()[-1:] != [k]:
            raise ValueError(f"{name}.{key} is {tensor.tolist()}; {k} input channels are expected")


FORMATS = {"qqq": QQQFormat, "compressed-tensors": CompressedTensorsFormat}


@dataclass
class LayerLoader:
    """Collects a layer's tensors; joins them into this rank's weight as soon as they are complete.

    vLLM merges layers along their outputs (the shards) and splits them among ranks along outputs or inputs. A checkpoint's
    tensors are read whole, brought to the neutral form, and cut there: scales of a row are derived from the whole row, so that
    every rank multiplies the same int8 weights as a single device would.
    """

    names: list[str]
    format: QQQFormat | CompressedTensorsFormat
    # Channels of this rank: inputs, and outputs of each shard; inputs of the whole layer.
    input_size: int
    output_sizes: list[int]
    whole_input_size: int
    # Outputs of each shard of the whole layer, for checkpoints that have them merged.
    whole_output_sizes: list[int]
    rank: int
    ranks: int
    on_complete: Callable[[_native.Weight], None]
    complete: bool = False
    _tensors: dict[int | None, dict[str, torch.Tensor]] = field(default_factory=dict)
    _shards: dict[int, _native.Weight] = field(default_factory=dict)

    def load(self, key: str, tensor: torch.Tensor, shard: int | None) -> None:
        """Takes tensor `key` of a shard; of the layer as a whole if `shard` is None."""
        if shard is None and len(self.names) == 1:
            shard = 0
        if key in self.format.others:
            self.format.check(self._name(shard), key, tensor, self.whole_input_size)
        elif not self.complete:
            self._tensors.setdefault(shard, {})[key] = tensor
            self._read(shard)

    def _read(self, shard: int | None) -> None:
        tensors = self._tensors[shard]
        if any(key not in tensors for key in self.format.needed):
            return
        name = self._name(shard)
        weight = self.format.read(name, tensors, self.whole_input_size)
        del self._tensors[shard]
        weight = self._columns(name, weight)
        if shard is None:
            starts = [sum(self.whole_output_sizes[:i]) for i in range(len(self.names))]
            for i, start in enumerate(starts):
                whole = weight.rows(start, start + self.whole_output_sizes[i])
                self._shards[i] = self._rows(self.names[i], whole, self.output_sizes[i])
        else:
            self._shards[shard] = self._rows(name, weight, self.output_sizes[shard])
        if len(self._shards) == len(self.names):
            parts = [self._shards[i] for i in range(len(self.names))]
            self._shards.clear()
            self.complete = True
            self.on_complete(parts[0] if len(parts) == 1 else _native.Weight.concat(parts))

    def _name(self, shard: int | None) -> str:
        return " + ".join(self.names) if shard is None else self.names[shard]

    def _rows(self, name: str, weight: _native.Weight, size: int) -> _native.Weight:
        whole = weight.shape[0]
        if whole == size:
            return weight
        # Where there are more ranks than parts (few key and value heads), neighbours have the same part.
        parts = whole // size
        if whole % size or parts > self.ranks or self.ranks % parts:
            raise ValueError(
                f"{name}: {whole} output channels cannot be split into parts of {size} for {self.ranks} ranks"
            )
        index = self.rank // (self.ranks // parts)
        return weight.rows(index * size, (index + 1) * size)

    def _columns(self, name: str, weight: _native.Weight) -> _native.Weight:
        whole, size = weight.shape[1], self.input_size
        if whole == size:
            return weight
        return weight.columns(self.rank * size, (self.rank + 1) * size)

    def missing(self) -> list[str]:
        """Full names of the tensors that have not come."""
        if self.complete:
            return []
        if None in self._tensors:
            return [f"{self._name(None)}.{key}" for key in self.format.needed if key not in self._tensors[None]]
        return [
            f"{name}.{key}"
            for i, name in enumerate(self.names)
            if i not in self._shards
            for key in self.format.needed
            if key not in self._tensors.get(i, {})
        ]

    def has_begun(self) -> bool:
        """Whether any tensor has come."""
        return self.complete or bool(self._tensors) or bool(self._shards)
