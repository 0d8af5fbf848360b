"""OmniQuant, arXiv 2308.13137: learned clipping of weights, and learned scales of channels where activations are int8."""

import torch
from torch import Tensor

from .arithmetic import by_int8_tokens, positive
from .model import SITES, Block, Linear, Model, product
from .rounding import grid_of, in_groups
from .scales import ranges, weights

CLIP_RATE, SCALE_RATE, FIRST, LEAST = 1e-2, 5e-3, 4.0, 1e-2


class Nearest(torch.autograd.Function):
    """Whole numbers; gradients pass."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient


def int8_product(x: Tensor, weight: Tensor) -> Tensor:
    scale = positive(x.abs().amax(-1, keepdim=True) / 127)
    return Nearest.apply(x / scale) * scale @ weight.T


def block_of(block: Block, learned: dict[str, Tensor], bits: int, group: int | None, int8: bool) -> Block:
    """With what is learned; differentiable."""
    grid, out = grid_of(bits, group), block.copy()
    s = {site: learned[site] for site in ("qkv", "o", "gate_up") if site in learned}
    for site, names in SITES.items():
        for name in names:
            layer = block.layers[name]
            weight, bias = layer.weight, layer.bias
            if site in s:
                weight = weight * (block.shape.repeated(s[site]) if site == "o" else s[site])
            if name == "v" and "o" in s:
                weight = weight / s["o"][:, None]
                bias = None if bias is None else bias / s["o"]
            parts = in_groups(weight, group)
            most = parts.amax(-1, keepdim=True) * torch.sigmoid(learned[f"{name} upper"])
            least = -parts.amin(-1, keepdim=True) * torch.sigmoid(learned[f"{name} lower"])
            step = positive(torch.maximum(most, least) / grid.reach)
            rounded = (Nearest.apply(parts / step).clamp(grid.low, grid.high) * step).reshape(weight.shape)
            out.layers[name] = Linear(rounded, bias, int8_product if int8 else product)
        if site in block.norms and site in s:
            out.norms[site] = block.norms[site] / s[site]
    return out


def beginning(model: Model, block: Block, hidden: Tensor, group: int | None, int8: bool) -> dict[str, Tensor]:
    learned = {}
    for name, layer in block.layers.items():
        ones = torch.ones_like(in_groups(layer.weight, group)[..., :1])
        learned |= {f"{name} {end}": FIRST * ones for end in ("upper", "lower")}
    shape = block.shape
    for site in ("qkv", "o", "gate_up") if int8 else ():
        high, low, _ = ranges(model, block, site, hidden)
        x, w = torch.maximum(high, -low), weights(block, site).abs().amax(0)
        if site == "o":
            x, w = (
                t.view(shape.kv_heads, shape.heads // shape.kv_heads, shape.dim).amax(1).reshape(-1) for t in (x, w)
            )
        # As SmoothQuant's, at strength 0.5.
        s = (x / w.clamp(min=1e-5)).sqrt().clamp(min=LEAST)
        learned[site] = torch.where(x > 0, s, torch.ones_like(s))
    return learned


def learn(
    model: Model, block: Block, floats: Tensor, hidden: Tensor, epochs: int, bits: int, group: int | None, int8: bool
) -> Block:
    """What the block becomes: after the last epoch, as the paper has it. `floats` are the float model's states, `hidden` those
    behind quantized blocks."""
    rope, targets = model.rope(hidden.shape[1]), model.advance(block, floats)
    learned = {name: value.requires_grad_() for name, value in beginning(model, block, floats, group, int8).items()}
    clips = [value for name, value in learned.items() if " " in name]
    scales = [value for name, value in learned.items() if " " not in name]
    rates = [{"params": clips, "lr": CLIP_RATE}] + [{"params": scales, "lr": SCALE_RATE}] * bool(scales)
    adam = torch.optim.Adam(rates)
    # Losses near 1, whatever the size of the states.
    power = None
    with torch.enable_grad():
        for _ in range(epochs):
            for x, target in zip(hidden.split(1), targets.split(1)):
                loss = (block_of(block, learned, bits, group, int8).forward(x, rope) - target).square().mean()
                power = power or loss.item() or 1.0
                adam.zero_grad()
                (loss / power).backward()
                adam.step()
                with torch.no_grad():
                    for s in scales:
                        s.clamp_(min=LEAST)
    with torch.no_grad():
        out = block_of(block, learned, bits, group, int8)
    for layer in out.layers.values():
        layer.multiply = by_int8_tokens if int8 else product
    return out
