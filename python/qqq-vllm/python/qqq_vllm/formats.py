"""The layouts of checkpoints: which tensors a layer has, and its codes on a device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from qqq_vllm import _native

#: Brings a part of a tensor to the device that the codes are on.
Upload = Callable[[torch.Tensor], torch.Tensor]


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


@dataclass(frozen=True)
class StoredLayer:
    """A whole linear layer as the checkpoint has it."""

    name: str
    format: "QQQFormat | CompressedTensorsFormat"
    # In host memory, often of a file that is mapped.
    tensors: dict[str, torch.Tensor]
    native: _native.Stored

    @property
    def shape(self) -> tuple[int, int]:
        return self.native.shape


@dataclass(frozen=True)
class Part:
    """What a rank has of a layer: output channels and input channels."""

    layer: StoredLayer
    rows: tuple[int, int]
    columns: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]

    @property
    def native(self) -> tuple[_native.Stored, tuple[int, int], tuple[int, int]]:
        return self.layer.native, self.rows, self.columns


class QQQFormat:
    """The reference's tiles."""

    others: tuple[str, ...]
    bits = 4

    def __init__(self, group_size: int | None, bits: int = 4) -> None:
        if bits != self.bits:
            raise ValueError(f"QQQ tiles hold 4 bits, not {bits}")
        self.group_size = group_size
        self.types = {"B": torch.int32, "s_channel": torch.float32, "s_group": torch.float16}
        # Per channel there may be an empty s_group.
        self.others = ("s_group",) if group_size is None else ()
        self._needed = [key for key in self.types if key not in self.others]

    def missing(self, tensors: dict[str, torch.Tensor]) -> list[str]:
        """Tensors that a layer lacks."""
        return [key for key in self._needed if key not in tensors]

    def read(self, name: str, tensors: dict[str, torch.Tensor], k: int) -> StoredLayer:
        n = tensors["s_channel"].numel()
        read = {
            "B": _tensor(name, tensors, "B", "int32", [k // 16, 2 * n]),
            "s_channel": _tensor(name, tensors, "s_channel", "float32", [1, n]),
        }
        if self.group_size is not None:
            read["s_group"] = _tensor(name, tensors, "s_group", "float16", [k // self.group_size, n])
        group = span(read["s_group"]) if "s_group" in read else None
        native = _native.Stored.qqq(name, (n, k), self.group_size, span(read["B"]), span(read["s_channel"]), group)
        return StoredLayer(name, self, read, native)

    def check(self, name: str, key: str, tensor: torch.Tensor, k: int) -> None:
        if tensor.numel():
            raise ValueError(f"{name}.{key}: there are group scales, but the configuration says group_size -1")

    def codes(self, part: Part, rows: tuple[int, int], out: torch.Tensor, upload: Upload) -> None:
        """Writes the codes of output channels `rows` of the layer to `out` (int8, `rows x inputs of the part`)."""
        # Whole tiles of 64 channels; 32 lanes of four words each.
        first, last = rows[0] // 64 * 64, -(-rows[1] // 64) * 64
        start, end = (c // 16 for c in part.columns)
        words = upload(part.layer.tensors["B"][start:end, 2 * first : 2 * last])
        tiles = words.view(torch.uint8).view(end - start, (last - first) // 64, 8, 4, 4, 4)
        low, high = tiles & 15, tiles >> 4
        if self.group_size is None:
            # A byte has one column of two rows that are 8 apart, the first in its high nibble.
            codes = (torch.stack((high, low), -1) ^ 8).permute(1, 4, 6, 2, 0, 3, 5)
        else:
            # Bytes 0 and 2 have four columns of a row, bytes 1 and 3 those of the row 8 below.
            codes = torch.stack((low, high), -1).view(*tiles.shape[:5], 2, 2, 2).permute(1, 4, 6, 2, 0, 3, 7, 5)
        codes = codes.reshape(last - first, 16 * (end - start))[rows[0] - first : rows[1] - first]
        out.copy_(codes.view(torch.int8)).sub_(8)


class CompressedTensorsFormat:
    """compressed-tensors' layouts: pack-quantized, and int-quantized, which has a byte for a code."""

    others = ("weight_shape", "weight_g_idx", "weight_zero_point")

    def __init__(self, group_size: int | None, bits: int = 4) -> None:
        self.group_size = group_size
        self.bits = bits
        self.types = {
            "weight_packed": torch.int32,
            "weight": torch.int8,
            # Any float type.
            "weight_scale": torch.float32,
            "weight_shape": torch.int64,
            "weight_g_idx": torch.int32,
            "weight_zero_point": torch.int32,
        }

    def missing(self, tensors: dict[str, torch.Tensor]) -> list[str]:
        """Tensors that a layer lacks."""
        codes = [] if "weight_packed" in tensors or "weight" in tensors else ["weight_packed"]
        return codes + ([] if "weight_scale" in tensors else ["weight_scale"])

    def read(self, name: str, tensors: dict[str, torch.Tensor], k: int) -> StoredLayer:
        n = tensors["weight_scale"].shape[0]
        groups = 1 if self.group_size is None else k // self.group_size
        scale = _tensor(name, tensors, "weight_scale", None, [n, groups]).to(torch.float32).contiguous()
        if "weight" in tensors:
            codes = _tensor(name, tensors, "weight", "int8", [n, k])
            native = _native.Stored.codes(name, (n, k), self.bits, self.group_size, span(codes), span(scale))
            return StoredLayer(name, self, {"weight": codes, "weight_scale": scale}, native)
        packed = _tensor(name, tensors, "weight_packed", "int32", [n, -(-k * self.bits // 32)])
        native = _native.Stored.compressed_tensors(name, (n, k), self.bits, self.group_size, span(packed), span(scale))
        return StoredLayer(name, self, {"weight_packed": packed, "weight_scale": scale}, native)

    def check(self, name: str, key: str, tensor: torch.Tensor, k: int) -> None:
        if key == "weight_g_idx":
            raise ValueError(f"{name}.{key}: groups in the order of activations are not supported")
        if key == "weight_zero_point" and bool(tensor.any()):
            raise ValueError(f"{name}.{key}: there are zero points, but the configuration says symmetric")
        if key == "weight_shape" and tensor.tolist()[-1:] != [k]:
            raise ValueError(f"{name}.{key} is {tensor.tolist()}; {k} input channels are expected")

    def codes(self, part: Part, rows: tuple[int, int], out: torch.Tensor, upload: Upload) -> None:
        """Writes the codes of output channels `rows` of the layer to `out` (int8, `rows x inputs of the part`)."""
        tensors, (start, end) = part.layer.tensors, part.columns
        if "weight" in tensors:
            out.copy_(upload(tensors["weight"][rows[0] : rows[1], start:end]))
            return
        # Inputs are multiples of 16: a word is never cut.
        if self.bits == 8:
            words = upload(tensors["weight_packed"][rows[0] : rows[1], start // 4 : end // 4])
            torch.bitwise_xor(words.view(torch.uint8), 128, out=out.view(torch.uint8))
            return
        two = upload(tensors["weight_packed"][rows[0] : rows[1], start // 8 : end // 8]).view(torch.uint8)
        nibbles = out.view(torch.uint8).view(*two.shape, 2)
        torch.bitwise_and(two, 15, out=nibbles[..., 0])
        torch.bitwise_right_shift(two, 4, out=nibbles[..., 1])
        out.sub_(8)


FORMATS = {"qqq": QQQFormat, "compressed-tensors": CompressedTensorsFormat}


def random_part(name: str, shape: tuple[int, int], group_size: int | None, seed: int, bits: int = 4) -> Part:
    """Random weights, for measurements without a checkpoint: about normally distributed, outputs as large as inputs."""
    n, k = shape
    if bits == 8:
        generator = torch.Generator(device="cpu").manual_seed(seed)
        codes = (
            torch.randn((n, k), generator=generator, device="cpu").mul_(32).round_().clamp_(-127, 127).to(torch.int8)
        )
        scale = torch.full((n, 1), 1 / (32 * k**0.5), dtype=torch.float32, device="cpu")
        layer = CompressedTensorsFormat(None, 8).read(name, {"weight": codes, "weight_scale": scale}, k)
        return Part(layer, (0, n), (0, k))
    words = torch.empty((n, k // 8), dtype=torch.int32, device="cpu")
    _native.random_words(seed, span(words))
    scale = torch.full((n, 1), 1 / (2.3 * k**0.5), dtype=torch.float32, device="cpu")
    if group_size is not None:
        # As the quantizer makes them: small multiples of a channel's scale.
        generator = torch.Generator(device="cpu").manual_seed(seed)
        size = (n, k // group_size)
        scale = scale / 8 * torch.randint(4, 13, size, generator=generator, device="cpu").float()
    layer = CompressedTensorsFormat(group_size).read(name, {"weight_packed": words, "weight_scale": scale}, k)
    return Part(layer, (0, n), (0, k))
