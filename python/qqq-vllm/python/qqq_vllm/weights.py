"""Weights on their way from a checkpoint to a kernel: tensors of shards, in any order, to this rank's part of the layer."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from qqq_vllm.formats import CompressedTensorsFormat, Part, QQQFormat, StoredLayer, random_part


@dataclass
class LayerLoader:
    """Collects a layer's tensors; says which parts of them are this rank's as soon as they are complete.

    vLLM merges layers along their outputs (the shards) and splits them among ranks along outputs or inputs. A checkpoint's
    tensors are taken whole, and cut when they are unpacked: scales of a row are derived from the whole row, so that every
    rank multiplies the same int8 weights as a single device would.
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
    # Told the parts, which lie one below the other.
    on_complete: Callable[[list[Part]], None]
    complete: bool = False
    _tensors: dict[int | None, dict[str, torch.Tensor]] = field(default_factory=dict)
    _shards: dict[int, Part] = field(default_factory=dict)

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
        if self.format.missing(tensors):
            return
        layer = self.format.read(self._name(shard), tensors, self.whole_input_size)
        del self._tensors[shard]
        if shard is None:
            starts = [sum(self.whole_output_sizes[:i]) for i in range(len(self.names))]
            for i, (start, size) in enumerate(zip(starts, self.whole_output_sizes)):
                self._shards[i] = self._part(self.names[i], layer, start, size, self.output_sizes[i])
        else:
            size = layer.shape[0]
            self._shards[shard] = self._part(layer.name, layer, 0, size, self.output_sizes[shard])
        if len(self._shards) == len(self.names):
            self._finish([self._shards[i] for i in range(len(self.names))])

    def _finish(self, parts: list[Part]) -> None:
        self._shards.clear()
        self.complete = True
        self.on_complete(parts)

    def fill(self, seed: int) -> None:
        """Random weights in place of a checkpoint's."""
        shapes = [(size, self.input_size) for size in self.output_sizes]
        group_size, bits = self.format.group_size, self.format.bits
        named = enumerate(zip(self.names, shapes))
        self._finish([random_part(n, s, group_size, seed + i, bits) for i, (n, s) in named])

    def _name(self, shard: int | None) -> str:
        return " + ".join(self.names) if shard is None else self.names[shard]

    def _part(self, name: str, layer: StoredLayer, start: int, whole: int, size: int) -> Part:
        """This rank's `size` output channels of the `whole` that begin at channel `start`."""
        if start + whole > layer.shape[0]:
            raise ValueError(f"{name}: the checkpoint's tensors have {layer.shape[0]} output channels, too few")
        # Where there are more ranks than parts (few key and value heads), neighbours have the same part.
        parts = whole // size
        if whole % size or parts > self.ranks or self.ranks % parts:
            raise ValueError(
                f"{name}: {whole} output channels cannot be split into parts of {size} for {self.ranks} ranks"
            )
        start += self.rank // (self.ranks // parts) * size
        first = 0 if self.input_size == self.whole_input_size else self.rank * self.input_size
        return Part(layer, (start, start + size), (first, first + self.input_size))

    def missing(self) -> list[str]:
        """Full names of the tensors that have not come."""
        if self.complete:
            return []
        if None in self._tensors:
            return [f"{self._name(None)}.{key}" for key in self.format.missing(self._tensors[None])]
        return [
            f"{name}.{key}"
            for i, name in enumerate(self.names)
            if i not in self._shards
            for key in self.format.missing(self._tensors.get(i, {}))
        ]

    def has_begun(self) -> bool:
        """Whether any tensor has come."""
        return self.complete or bool(self._tensors) or bool(self._shards)
