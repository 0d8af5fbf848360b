#!/usr/bin/env python3
"""Makes crates/qqq-formats/tests/data/dequant.gguf: a few random blocks of every tensor type that
qqq reads, and what the Python package `gguf` (pip install gguf numpy) makes of them.

Tensor `TYPE` holds the blocks, tensor `TYPE.expected` (F32) the values.

Makes split/tiny.gguf there as well, a Llama of one block, and the same model as the package splits it,
split/tiny-00001-of-00003.gguf and so on."""

from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T

OUT = Path(__file__).parent.parent / "crates/qqq-formats/tests/data/dequant.gguf"

# Byte offsets of the f16 scales in a block: random bytes there would give NaN or infinity.
F16_SCALES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
}  # fmt: skip


def blocks(rng, kind, rows, per_row):
    """Random blocks with sane scales, shape rows x bytes."""
    _, size = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (rows * per_row, size), dtype=np.uint8)
    for at in F16_SCALES[kind]:
        scale = (rng.normal(size=rows * per_row) * 0.01).astype(np.float16)
        raw[:, at : at + 2] = scale.view(np.uint8).reshape(-1, 2)
    return raw.reshape(rows, per_row * size)


def tiny(path, **split):
    """A Llama of one block, whole or split."""
    rng = np.random.default_rng(15)
    w = gguf.GGUFWriter(path, "llama", **split)
    w.add_block_count(1)
    w.add_context_length(64)
    w.add_embedding_length(8)
    w.add_feed_forward_length(16)
    w.add_head_count(2)
    w.add_head_count_kv(1)
    w.add_layer_norm_rms_eps(1e-5)
    shapes = {
        "token_embd": (10, 8), "output_norm": (8,), "blk.0.attn_norm": (8,), "blk.0.attn_q": (8, 8),
        "blk.0.attn_k": (4, 8), "blk.0.attn_v": (4, 8), "blk.0.attn_output": (8, 8), "blk.0.ffn_norm": (8,),
        "blk.0.ffn_gate": (16, 8), "blk.0.ffn_up": (16, 8), "blk.0.ffn_down": (8, 16),
    }  # fmt: skip
    for name, shape in shapes.items():
        w.add_tensor(f"{name}.weight", rng.normal(size=shape).astype(np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main():
    folder = OUT.parent / "split"
    folder.mkdir(exist_ok=True)
    tiny(folder / "tiny.gguf")
    tiny(folder / "tiny.gguf", split_max_tensors=4)
    rng = np.random.default_rng(20240614)
    writer = gguf.GGUFWriter(OUT, "vectors")
    writer.add_string("test.text", "Grüße, 世界")
    writer.add_array("test.numbers", [1, -2, 3])
    writer.add_float32("test.float", 0.1)
    writer.add_bool("test.bool", True)

    x = rng.normal(size=(2, 24)).astype(np.float32)
    writer.add_tensor("F32", x)
    writer.add_tensor("F32.expected", x)
    writer.add_tensor("F16", x.astype(np.float16))
    writer.add_tensor("F16.expected", x.astype(np.float16).astype(np.float32))
    half = gguf.quants.quantize(x, T.BF16)
    writer.add_tensor("BF16", half, raw_dtype=T.BF16)
    writer.add_tensor("BF16.expected", gguf.quants.dequantize(half, T.BF16))

    for kind in F16_SCALES:
        rows, per_row = (1, 2) if gguf.GGML_QUANT_SIZES[kind][0] == 256 else (2, 3)
        raw = blocks(rng, kind, rows, per_row)
        writer.add_tensor(kind.name, raw, raw_dtype=kind)
        writer.add_tensor(f"{kind.name}.expected", gguf.quants.dequantize(raw, kind))

    # The package has no Q8_K (llama.cpp uses it for activations only): scale f32, 256 int8, 16 sums.
    d = np.float32(rng.normal() * 0.01)
    q = rng.integers(-128, 128, 256).astype(np.int8)
    sums = q.reshape(16, 16).sum(axis=1).astype(np.int16)
    raw = np.concatenate([d.reshape(1).view(np.uint8), q.view(np.uint8), sums.view(np.uint8)])
    writer.add_tensor("Q8_K", raw.reshape(1, -1), raw_dtype=T.Q8_K)
    writer.add_tensor("Q8_K.expected", (d * q.astype(np.float32)).reshape(1, -1))

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


main()
