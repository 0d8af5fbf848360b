#!/usr/bin/env python3
"""Makes crates/qqq-quant/src/recipes/omniquant/tests/vectors.json: small blocks with learned clipping and learned scales, what they
lose, and PyTorch's gradients of that, in float64.

The blocks are written here from the definitions, over whole matrices, with rounding that passes gradients; autograd does the rest.
Needs torch. Usage: scripts/make_omniquant_vectors.py
"""

import json
import math
import pathlib

import torch

OUT = pathlib.Path(__file__).parent.parent / "crates/qqq-quant/src/recipes/omniquant/tests/vectors.json"
HEADS, KV_HEADS, DIM, HIDDEN, INNER, TOKENS, EPS = 4, 2, 4, 8, 12, 5, 1e-5

torch.set_default_dtype(torch.float64)
torch.manual_seed(5)


def draw(*shape, low=-1.0, high=1.0):
    """Numbers that few decimals write exactly."""
    return torch.round((low + (high - low) * torch.rand(*shape)) * 1e4) / 1e4


class Nearest(torch.autograd.Function):
    """Whole numbers, as if they were the numbers themselves."""

    @staticmethod
    def forward(ctx, x):
        return torch.round(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def rms_norm(x, weight):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * weight


def int8(x):
    scale = x.abs().amax(-1, keepdim=True) / 127
    return Nearest.apply(x / scale) * scale


def rounded(weight, columns, upper, lower, grid):
    low, high, reach, group = grid
    if columns is not None:
        weight = weight * columns
    groups = weight.reshape(-1, group)
    most = groups.amax(-1, keepdim=True) * torch.sigmoid(upper)[:, None]
    least = -groups.amin(-1, keepdim=True) * torch.sigmoid(lower)[:, None]
    step = torch.maximum(most, least) / reach
    codes = Nearest.apply(groups / step).clamp(low, high)
    return (codes * step).reshape(weight.shape)


def turn(x, cos, sin):
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


def block(case, clips, scales):
    quantize = int8 if case["is_int8"] else (lambda x: x)
    qkv_s, value_s, gate_up_s = scales if scales else (None, None, None)
    o_s = value_s.reshape(KV_HEADS, 1, DIM).expand(-1, HEADS // KV_HEADS, -1).reshape(-1) if scales else None
    columns = [qkv_s, o_s, gate_up_s, None]
    w = [rounded(case["weights"][i], columns[i], *clips[i], case["grids"][i]) for i in range(4)]
    bias = case["biases"] or [0.0] * 4
    divide = lambda x, s: x if s is None else x / s

    x = quantize(divide(rms_norm(case["x"], case["input_norm"]), qkv_s))
    q, k, v = (x @ w[0].T + bias[0]).split([HEADS * DIM, KV_HEADS * DIM, KV_HEADS * DIM], -1)
    v = divide(v, value_s)
    q, k, v = (t.reshape(TOKENS, -1, DIM).transpose(0, 1) for t in (q, k, v))
    if case["qk_norm"]:
        q, k = rms_norm(q, case["qk_norm"][0]), rms_norm(k, case["qk_norm"][1])
    q, k = turn(q, case["cos"], case["sin"]), turn(k, case["cos"], case["sin"])
    k, v = (t.repeat_interleave(HEADS // KV_HEADS, 0) for t in (k, v))
    position = torch.arange(TOKENS)
    distance = position[:, None] - position[None, :]
    hidden = (distance < 0) | (distance >= (case["window"] or TOKENS))
    scores = (q @ k.transpose(1, 2)) / math.sqrt(DIM)
    attention = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v
    y = quantize(attention.transpose(0, 1).reshape(TOKENS, -1)) @ w[1].T + bias[1]
    after = case["after"]
    middle = case["x"] + case["residual_scale"] * (rms_norm(y, after[0]) if after else y)

    x = quantize(divide(rms_norm(middle, case["post_norm"]), gate_up_s))
    gate, up = (x @ w[2].T + bias[2]).chunk(2, -1)
    gate = torch.nn.functional.silu(gate) if case["gate"] == "silu" else torch.nn.functional.gelu(gate, approximate="tanh")
    y = quantize(gate * up) @ w[3].T + bias[3]
    out = middle + case["residual_scale"] * (rms_norm(y, after[1]) if after else y)
    return (out - case["target"]).pow(2).sum()


def make(is_int8, group, rich):
    shapes = [((HEADS + 2 * KV_HEADS) * DIM, HIDDEN), (HIDDEN, HEADS * DIM), (2 * INNER, HIDDEN), (HIDDEN, INNER)]
    ends = (-8, 7, 7.5) if group else (-7, 7, 7)
    half = DIM // 4 if rich else DIM // 2
    angles = torch.arange(TOKENS)[:, None] * 0.7 ** torch.arange(half)[None, :]
    x = draw(TOKENS, HIDDEN)
    x[:, 2] *= 20
    case = {
        "x": x,
        "target": draw(TOKENS, HIDDEN),
        "weights": [draw(n, k, low=-0.3, high=0.3) for n, k in shapes],
        "biases": [draw(n) for n, _ in shapes] if rich else None,
        "grids": [(*ends, group or k) for _, k in shapes],
        "is_int8": is_int8,
        "input_norm": draw(HIDDEN, low=0.5, high=1.5),
        "post_norm": draw(HIDDEN, low=0.5, high=1.5),
        "qk_norm": [draw(DIM, low=0.5, high=1.5) for _ in range(2)] if rich else None,
        "after": [draw(HIDDEN, low=0.5, high=1.5) for _ in range(2)] if rich else None,
        "cos": angles.cos(),
        "sin": angles.sin(),
        "window": 3 if rich else None,
        "gate": "gelu" if rich else "silu",
        "residual_scale": 0.5 if rich else 1.0,
    }
    clips = []
    for weights, grid in zip(case["weights"], case["grids"]):
        count = weights.numel() // grid[3]
        clips.append([draw(count, low=0.0, high=4.0).requires_grad_() for _ in range(2)])
    scales = None
    if is_int8:
        widths = [HIDDEN, KV_HEADS * DIM, HIDDEN]
        scales = [draw(width, low=0.5, high=2.0).requires_grad_() for width in widths]
    loss = block(case, clips, scales)
    loss.backward()
    strengths = [strength for clip in clips for strength in clip]
    leaves = strengths + (scales or [])
    case["clips"] = [torch.cat(clip).detach() for clip in clips]
    case["scales"] = [s.detach() for s in scales] if scales else None
    case["loss"] = loss.item()
    case["gradients"] = torch.cat([leaf.grad for leaf in leaves])
    return case


def plain(value):
    if isinstance(value, torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


cases = [make(True, None, False), make(True, None, True), make(False, 4, False), make(True, 4, True)]
cases = [{key: plain(value) for key, value in case.items()} for case in cases]
OUT.write_text(json.dumps({"torch": torch.__version__.split("+")[0], "heads": [HEADS, KV_HEADS, DIM], "eps": EPS, "cases": cases}) + "\n")
print(OUT, OUT.stat().st_size)
