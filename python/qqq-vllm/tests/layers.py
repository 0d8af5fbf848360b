"""Layers as checkpoints store them and as vLLM makes them, without a model around them."""

import json

import torch
from qqq_vllm import _native
from qqq_vllm.linear import QQQLinearMethod


def config(group_size: int | None, layout: str = "compressed-tensors", bits: int = 4) -> _native.Config:
    if layout == "qqq":
        return _native.Config(json.dumps({"quant_method": "qqq", "wbits": 4, "group_size": group_size or -1}))
    weights = {"num_bits": bits, "strategy": "group" if group_size else "channel", "group_size": group_size}
    inputs = {"num_bits": 8, "strategy": "token", "dynamic": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return _native.Config(
        json.dumps(
            {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": group}}
        )
    )


def random_codes(n: int, k: int, group_size: int | None, seed: int, integers: bool = False):
    """Codes and scales (float16, a group's as integers times a power of two if asked)."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-7, 8, (n, k), generator=generator)
    groups = k // group_size if group_size else 1
    if integers:
        return codes, (torch.randint(1, 16, (n, groups), generator=generator) / 1024).half()
    return codes, (torch.rand(n, groups, generator=generator) * 0.01 + 0.001).half()


def words(nibbles: torch.Tensor) -> torch.Tensor:
    """Eight nibbles of the last dimension to an int32, the lowest first."""
    all_ = (nibbles << (4 * torch.arange(8))).sum(-1)
    return torch.where(all_ >= 1 << 31, all_ - (1 << 32), all_).to(torch.int32)


def tensors(n: int, k: int, group_size: int | None, seed: int, integers: bool = False) -> dict[str, torch.Tensor]:
    """A layer's tensors as compressed-tensors stores them, and the float weight that they stand for."""
    codes, scale = random_codes(n, k, group_size, seed, integers)
    packed = words((codes + 8).reshape(n, k // 8, 8))
    weight = codes * scale.float().repeat_interleave(k // scale.shape[1], 1)
    return {"weight_packed": packed, "weight_scale": scale, "weight_shape": torch.tensor([n, k]), "float": weight}


def tensors8(n: int, k: int, seed: int, layout: str = "bytes") -> dict[str, torch.Tensor]:
    """A layer of 8-bit codes, -128 among them, as compressed-tensors stores it, and the float weight that they stand for."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-128, 128, (n, k), generator=generator)
    scale = (torch.rand(n, 1, generator=generator) * 0.001 + 0.0001).half()
    stored = {"weight_scale": scale, "float": codes * scale.float()}
    if layout == "bytes":
        return stored | {"weight": codes.to(torch.int8)}
    all_ = ((codes + 128).reshape(n, k // 4, 4) << (8 * torch.arange(4))).sum(-1)
    packed = torch.where(all_ >= 1 << 31, all_ - (1 << 32), all_).to(torch.int32)
    return stored | {"weight_packed": packed, "weight_shape": torch.tensor([n, k])}


def tiles(codes: torch.Tensor, channel: torch.Tensor, group: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """QQQ tensors: code by code, as the reference's layout is described. `group`: `n x k / 128` float16, 128 in a group."""
    n, k = codes.shape
    b = torch.zeros((k // 16, 2 * n), dtype=torch.int64)
    shifts = [[4, 12, 20, 28], [0, 8, 16, 24]] if group is None else [[0, 16, 4, 20], [8, 24, 12, 28]]
    for row in range(n):
        tile, upper, lane = row % 64 // 16, row % 16 // 8, row % 8
        for quarter in range(4):
            word = row // 64 * 128 + 4 * (4 * lane + quarter) + tile
            for r in range(4):
                nibbles = codes[row, 4 * quarter + r :: 16] + (0 if group is None else 8) & 15
                b[:, word] |= nibbles << shifts[upper][r]
    b = torch.where(b >= 1 << 31, b - (1 << 32), b).to(torch.int32)
    pairs = [0, 1, 8, 9, 16, 17, 24, 25]
    order = [p // 32 * 32 + 2 * (p % 32 // 8) + pairs[p % 8] for p in range(n)]
    stored = {"B": b, "s_channel": (channel / 16 if group is None else channel).float()[order].reshape(1, n)}
    if group is not None:
        order = [p // 64 * 64 + p % 64 // 8 + 8 * (p % 8) for p in range(n)]
        stored["s_group"] = group[order].T.contiguous()
    return stored


def make(
    names,
    inputs,
    outputs,
    whole_inputs,
    group_size,
    rank=0,
    ranks=1,
    dtype=torch.float32,
    prefix="",
    layout=None,
    bits=4,
):
    layer = torch.nn.Module()
    layer.tp_rank, layer.tp_size = rank, ranks
    method = QQQLinearMethod(config(group_size, layout or "compressed-tensors", bits), prefix or names[0], names)
    method.create_weights(layer, inputs, outputs, whole_inputs, sum(outputs) * ranks, dtype, weight_loader=None)
    return layer, method


def load(layer, method, shards):
    for shard, stored in shards:
        for key, tensor in stored.items():
            if key != "float":
                parameter = getattr(layer, key)
                arguments = (parameter, tensor) if shard is None else (parameter, tensor, shard)
                parameter.weight_loader(*arguments)
    method.process_weights_after_loading(layer)
