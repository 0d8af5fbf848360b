#!/usr/bin/env python3
"""Makes crates/qqq-formats/tests/data/int4.safetensors: small layers in the layouts of weight-only 4-bit checkpoints, each with
the float weight that it stands for.

The tensors are packed here from the definitions of the formats, code by code, in the other direction than the reader goes.
With --verify (needs torch, compressed-tensors and auto-round) they are also unpacked by those libraries, and their float
weights compared. Usage: scripts/make_int4_vectors.py [--verify]
"""

import json
import pathlib
import struct
import sys

import numpy as np

OUT = pathlib.Path(__file__).parent.parent / "crates/qqq-formats/tests/data/int4.safetensors"
N, K, GROUP = 16, 64, 32
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]

rng = np.random.default_rng(27)


def int32(value):
    return np.uint32(value).astype(np.int32) if np.isscalar(value) else value.astype(np.uint32).view(np.int32)


def words_along_rows(values):
    """Eight values of a column a word, the first in the lowest nibble."""
    rows, cols = values.shape
    out = np.zeros((-(-rows // 8), cols), np.uint64)
    for row in range(rows):
        for col in range(cols):
            out[row // 8, col] |= np.uint64(int(values[row, col]) << (4 * (row % 8)))
    return int32(out)


def words_along_columns(values, order=range(8)):
    """Eight values of a row a word; nibble i is value order[i]."""
    rows, cols = values.shape
    out = np.zeros((rows, -(-cols // 8)), np.uint64)
    for row in range(rows):
        for word in range(out.shape[1]):
            for nibble, place in enumerate(order):
                if 8 * word + place < cols:
                    out[row, word] |= np.uint64(int(values[row, 8 * word + place]) << (4 * nibble))
    return int32(out)


def codes_around(zeros, groups, g_idx, low, high):
    """Unsigned codes N x K whose distance from the zero point of their group is within low..high, where 4 bits hold that."""
    out = np.zeros((N, K), np.int64)
    for n in range(N):
        for k in range(K):
            z = zeros[n, g_idx[k]]
            out[n, k] = rng.integers(max(0, z + low), min(15, z + high) + 1)
    return out


def scales(groups, signs=True):
    values = rng.uniform(0.001, 0.05, (N, groups))
    if signs:
        values *= rng.choice([1, 1, 1, -1], (N, groups))
    return values.astype(np.float16)


def float_weight(codes, zeros, s, g_idx):
    """(u - z) * s, in float32: exact for scales of 16 bits."""
    return ((codes - zeros[:, g_idx]) * s[:, g_idx].astype(np.float32)).astype(np.float32)


def main():
    tensors = {}

    def add(name, tensors_of_layer, weight):
        for key, value in tensors_of_layer.items():
            tensors[f"{name}.{key}"] = np.ascontiguousarray(value)
        tensors[f"{name}.float"] = np.ascontiguousarray(weight.astype(np.float32))

    for name, size, less_one, symmetric, act_order in [
        ("gptq_channel", K, True, True, False),
        ("gptq_positive", GROUP, True, True, False),
        ("gptq_group", GROUP, True, True, False),
        ("gptq_asymmetric", GROUP, True, False, False),
        ("gptq_v2", GROUP, False, False, False),
        ("gptq_act_order", GROUP, True, True, True),
        ("gptq_renumbered", GROUP, True, False, "blocks"),
    ]:
        groups = K // size
        # Stored less one, 0 is not to be had.
        zeros = np.full((N, groups), 8) if symmetric else rng.integers(int(less_one), 16, (N, groups))
        g_idx = np.arange(K) // size
        if act_order == "blocks":
            g_idx = groups - 1 - g_idx
        elif act_order:
            g_idx = rng.permutation(g_idx)
        s = scales(groups, signs=name != "gptq_positive")
        # Codes that reach -8 and 7 where symmetric; where not, up to 8 above, or 8 below.
        codes = codes_around(zeros, groups, g_idx, -8, 7)
        if not symmetric:
            upward = rng.integers(0, 2, (N, groups))[:, g_idx]
            codes = np.where(upward == 1, codes_around(zeros, groups, g_idx, -7, 8), codes)
        layer = {
            "qweight": words_along_rows(codes.T),
            "qzeros": words_along_columns(zeros.T - int(less_one)),
            "scales": s.T,
            "g_idx": g_idx.astype(np.int32),
        }
        add(name, layer, float_weight(codes, zeros, s, g_idx))

    groups = K // GROUP
    g_idx = np.arange(K) // GROUP
    zeros = rng.integers(0, 16, (N, groups))
    codes, s = codes_around(zeros, groups, g_idx, -8, 7), scales(groups)
    layer = {
        "qweight": words_along_columns(codes.T, AWQ_ORDER),
        "qzeros": words_along_columns(zeros.T, AWQ_ORDER),
        "scales": s.T,
    }
    add("awq", layer, float_weight(codes, zeros, s, g_idx))

    for name, symmetric, act_order in [
        ("packed", True, False),
        ("packed_positive", True, False),
        ("packed_asymmetric", False, False),
        ("packed_act_order", True, True),
    ]:
        zeros = np.full((N, groups), 8) if symmetric else rng.integers(0, 16, (N, groups))
        order = rng.permutation(g_idx) if act_order else g_idx
        codes, s = codes_around(zeros, groups, order, -8, 7), scales(groups, signs=name != "packed_positive")
        layer = {
            "weight_packed": words_along_columns(codes),
            "weight_scale": s,
            "weight_shape": np.array([N, K], np.int64),
        }
        if not symmetric:
            layer["weight_zero_point"] = words_along_rows(zeros)
        if act_order:
            layer["weight_g_idx"] = order.astype(np.int32)
        add(name, layer, float_weight(codes, zeros, s, order))

    write(tensors)
    if "--verify" in sys.argv[1:]:
        verify(tensors)


def write(tensors):
    header, data = {}, b""
    types = {"float32": "F32", "float16": "F16", "int32": "I32", "int64": "I64"}
    for name, value in sorted(tensors.items()):
        raw = value.tobytes()
        header[name] = {
            "dtype": types[str(value.dtype)],
            "shape": list(value.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    OUT.write_bytes(struct.pack("<Q", len(text)) + text + data)
    print(f"{OUT}: {OUT.stat().st_size} bytes")


def verify(tensors):
    """Each layer, as the libraries unpack it."""
    import types

    import torch
    from compressed_tensors.compressors.pack_quantized import helpers
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    # AutoRound's layers need these of it alone, and nothing of what they would bring along.
    names = ["pack_bitstream", "pack_scalar_zero", "unpack_bitstream"]
    packing = types.SimpleNamespace(requires_generic_bit_packing=lambda bits: bits in (5, 6, 7), **dict.fromkeys(names))
    sys.modules["auto_round"] = types.ModuleType("auto_round")
    sys.modules["auto_round.utils"] = types.SimpleNamespace(get_packing_device=lambda device=None: "cpu")
    sys.modules["auto_round.utils.bit_packing"] = packing
    from auto_round_extension.torch import qlinear_torch, qlinear_torch_zp

    def part(layer, key):
        value = tensors.get(f"{layer}.{key}")
        return None if value is None else torch.from_numpy(value)

    layers = sorted({name.split(".")[0] for name in tensors})
    for layer in layers:
        expected = part(layer, "float")
        if layer.startswith("packed"):
            codes = helpers.unpack_from_int32(part(layer, "weight_packed"), 4, torch.Size((N, K)))
            zeros = part(layer, "weight_zero_point")
            if zeros is not None:
                zeros = helpers.unpack_from_int32(zeros, 4, torch.Size((N, K // GROUP)), packed_dim=0)
            scale = part(layer, "weight_scale").float()
            args = QuantizationArgs(num_bits=4, strategy="group", group_size=GROUP, symmetric=zeros is None)
            # Columns in the order of their groups, as the library's versions that know these have them.
            g_idx = part(layer, "weight_g_idx")
            order = torch.arange(K) if g_idx is None else torch.argsort(g_idx, stable=True)
            got = torch.empty(N, K)
            got[:, order] = dequantize(codes[:, order], scale, zeros, args=args)
            by = "compressed-tensors"
        elif layer == "awq":
            # AutoAWQ's own formula: shifts in order, then its reverse order.
            shifts = torch.arange(0, 32, 4)
            reverse = [0, 4, 1, 5, 2, 6, 3, 7]

            def unpack(words):
                values = (words[:, :, None] >> shifts) & 15
                return values[:, :, reverse].reshape(words.shape[0], -1)

            zeros = unpack(part(layer, "qzeros")).repeat_interleave(GROUP, 0)
            got = ((unpack(part(layer, "qweight")) - zeros) * part(layer, "scales").float().repeat_interleave(GROUP, 0)).T
            by = "AutoAWQ's order"
        else:
            module = qlinear_torch if layer == "gptq_v2" else qlinear_torch_zp
            size = K // part(layer, "scales").shape[0]
            linear = module.QuantLinear(4, size, K, N, False)
            linear.qweight, linear.qzeros = part(layer, "qweight"), part(layer, "qzeros")
            linear.scales, linear.g_idx = part(layer, "scales").float(), part(layer, "g_idx").long()
            linear.dequant_dtype = torch.int32
            got = linear(torch.eye(K)).T
            by = f"AutoRound's {module.__name__.split('.')[-1]}"
        assert torch.equal(got.float(), expected), layer
        print(f"{layer}: the same weights by {by}")


main()
