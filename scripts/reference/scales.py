"""What methods do to input channels before weights are rounded, absorbed into norms and weights: the float block computes the
same afterwards. Blocks are changed in place; `hidden` are float states before them, `windows x T x hidden`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .arithmetic import int8_tokens
from .model import SITES, Block, Model
from .rounding import GROUP, Grid, full_scales, in_groups, nearest


def weights(block: Block, site: str) -> Tensor:
    return torch.cat([block.layers[name].weight for name in SITES[site]])


def ranges(model: Model, block: Block, site: str, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Largest and least value of each channel, and the mean magnitude."""
    high, low, total, count = [], [], 0.0, 0
    for x in model.inputs(block, site, hidden):
        high.append(x.amax((0, 1)))
        low.append(x.amin((0, 1)))
        total = total + x.abs().double().sum((0, 1))
        count += x.shape[0] * x.shape[1]
    return torch.stack(high).amax(0), torch.stack(low).amin(0), (total / count).float()


def divide(block: Block, site: str, s: Tensor, shift: Tensor | None = None) -> None:
    """Divides a site's input channels by `s`, and subtracts `shift` before, which o's input alone can have."""
    layers, shape = block.layers, block.shape
    if shift is not None:
        layers["o"].bias = shift @ layers["o"].weight.T + (0 if layers["o"].bias is None else layers["o"].bias)
    for name in SITES[site]:
        layers[name].weight = layers[name].weight * s
    if site in block.norms:
        block.norms[site] = block.norms[site] / s
        return
    maker = layers["v" if site == "o" else "up"]

    def made(values: Tensor) -> Tensor:
        """By the channels of the layer that makes the input."""
        each = shape.heads // shape.kv_heads
        return values if site == "down" else values.view(shape.kv_heads, each, shape.dim)[:, 0].reshape(-1)

    maker.weight = maker.weight / made(s)[:, None]
    if shift is not None:
        maker.bias = -made(shift) + (0 if maker.bias is None else maker.bias)
    if maker.bias is not None:
        maker.bias = maker.bias / made(s)


class Losses:
    """Squared error of what comes of a site with quantized weights (and inputs), by what its channels are divided by."""

    def __init__(
        self,
        model: Model,
        block: Block,
        site: str,
        hidden: Tensor,
        quantize: Callable[[Tensor], Tensor],
        int8: bool,
        to_the_end: bool = False,
        shift: Tensor | None = None,
    ):
        self.block, self.site, self.rope = block, site, model.rope(hidden.shape[1])
        self.quantize, self.int8 = quantize, int8
        self.next = block.layers[{"qkv": "o", "gate_up": "down"}[site]] if to_the_end and site in block.norms else None
        self.inputs = [x if shift is None else x - shift for x in model.inputs(block, site, hidden)]
        self.float = [block.layers[name].weight for name in SITES[site]]
        self.references = [self.output(x, self.float) for x in self.inputs]

    def output(self, x: Tensor, weights: list[Tensor]) -> Tensor:
        biases = [self.block.layers[name].bias for name in SITES[self.site]]
        outputs = [x @ w.T + (0 if b is None else b) for w, b in zip(weights, biases)]
        out = self.block.behind(self.site, outputs, self.rope)
        return out if self.next is None else self.next(out)

    def __call__(self, s: Tensor) -> float:
        rounded = [self.quantize(w * s) for w in self.float]
        total = 0.0
        for x, reference in zip(self.inputs, self.references):
            x = x / s
            x = int8_tokens(x) if self.int8 else x
            total += (self.output(x, rounded) - reference).double().square().sum().item()
        return total


def beyond(high: Tensor, low: Tensor, threshold: float) -> Tensor:
    """`max(1, max / t, min / -t)`: OS+'s equation 5, QQQ's section 3.2."""
    return (torch.maximum(high, -low) / threshold).clamp(min=1)


def best_threshold(losses: Losses, high: Tensor, low: Tensor, steps: int) -> Tensor:
    """Scales of the threshold with the least loss, out of a grid from the largest magnitude down to the least channel's."""
    size = torch.maximum(high, -low)
    top = size.max().item()
    bottom = max(size[size > 0].min().item(), 1e-4 * top)
    best = torch.ones_like(size)
    least = losses(best)
    for i in range(1, steps + 1):
        s = beyond(high, low, top * (bottom / top) ** (i / steps))
        if (loss := losses(s)) < least:
            best, least = s, loss
    return best


def suppress(model: Model, block: Block, hidden: Tensor, grid: Grid, steps: int) -> None:
    """OS+, arXiv 2304.09145: o's input is shifted, all inputs are scaled beyond a threshold."""
    shape = block.shape
    for site in SITES:
        high, low, _ = ranges(model, block, site, hidden)
        shift = None
        if site == "o":
            each = (shape.kv_heads, shape.heads // shape.kv_heads, shape.dim)
            high = shape.repeated(high.view(each).amax(1).reshape(-1))
            low = shape.repeated(low.view(each).amin(1).reshape(-1))
            shift = (high + low) / 2
            high, low = high - shift, low - shift
        losses = Losses(model, block, site, hidden, lambda w: nearest(w, grid), True, shift=shift)
        divide(block, site, best_threshold(losses, high, low, steps), shift)


def smooth(model: Model, block: Block, hidden: Tensor, grid: Grid, steps: int) -> None:
    """QQQ's adaptive smoothing, arXiv 2406.09904; not of o's input where several of its channels share one of v."""
    for site in SITES:
        if site == "o" and block.shape.heads != block.shape.kv_heads:
            continue
        high, low, _ = ranges(model, block, site, hidden)
        losses = Losses(model, block, site, hidden, lambda w: nearest(w, grid), True)
        divide(block, site, best_threshold(losses, high, low, steps))


def migrate(model: Model, block: Block, hidden: Tensor, strength: float = 0.5) -> None:
    """SmoothQuant, arXiv 2211.10438, equation 4: behind norms."""
    for site in block.norms:
        high, low, _ = ranges(model, block, site, hidden)
        x, w = torch.maximum(high, -low), weights(block, site).abs().amax(0).clamp(min=1e-5)
        s = (x.pow(strength) / w.pow(1 - strength)).clamp(min=1e-5)
        divide(block, site, torch.where(x > 0, s, torch.ones_like(s)))


def protect(model: Model, block: Block, hidden: Tensor, group: int | None) -> None:
    """AWQ's scales, arXiv 2306.00978: `mean|X|^r`, with the `r` of 20 that loses least."""
    for site in SITES:
        if site == "o" and block.shape.heads != block.shape.kv_heads:
            continue
        means = ranges(model, block, site, hidden)[2]
        losses = Losses(model, block, site, hidden, lambda w: nearest(w, GROUP, group), False, to_the_end=True)

        def scales(exponent: float, means=means) -> Tensor:
            s = means.pow(exponent).clamp(min=1e-4)
            return s / (s.max() * s.min()).sqrt()

        divide(block, site, min((scales(i / 20) for i in range(20)), key=losses))


def clipped_by_output(weight: Tensor, moment: Tensor, group: int) -> Tensor:
    """AWQ's clipping: of each group the scale, out of ten, whose error of what the group adds to the output is least. Float64."""
    parts, full = in_groups(weight, group), full_scales(weight, GROUP, group)
    count = parts.shape[1]
    index = torch.arange(count, device=weight.device)
    blocks = moment.view(count, group, count, group)[index, :, index]
    least, best = torch.full_like(full, torch.inf), full
    for step in range(10):
        scale = full * (1 - step / 20)
        error = parts - GROUP.nearest(parts, scale)
        loss = (torch.einsum("ngi,gij->ngj", error, blocks) * error).sum(-1, keepdim=True)
        best, least = torch.where(loss < least, scale, best), torch.minimum(loss, least)
    return nearest(weight, GROUP, group, best)


def hadamard(width: int) -> Tensor:
    """Of Sylvester's and Paley's constructions, entries 1 and -1, float64."""
    if width == 1:
        return torch.ones(1, 1, dtype=torch.float64)

    def is_prime(q: int) -> bool:
        return q > 2 and all(q % d for d in range(2, int(q**0.5) + 1))

    def jacobsthal(q: int) -> Tensor:
        squares = {i * i % q for i in range(1, q)}
        sign = [0 if i == 0 else 1 if i in squares else -1 for i in range(q)]
        return torch.tensor([[sign[(i - j) % q] for j in range(q)] for i in range(q)], dtype=torch.float64)

    def bordered(q: int, corner: float) -> Tensor:
        out = torch.ones(q + 1, q + 1, dtype=torch.float64)
        out[0, 0] = 0
        out[1:, 0] = corner
        out[1:, 1:] = jacobsthal(q)
        return out

    q = width - 1
    if is_prime(q) and q % 4 == 3:
        return bordered(q, -1) + torch.eye(width, dtype=torch.float64)
    q = width // 2 - 1
    if width % 2 == 0 and is_prime(q) and q % 4 == 1:
        one, other = torch.tensor([[1.0, 1], [1, -1]]).double(), torch.tensor([[1.0, -1], [-1, -1]]).double()
        return torch.kron(bordered(q, 1), one) + torch.kron(torch.eye(q + 1, dtype=torch.float64), other)
    if width % 2:
        raise ValueError(f"no Hadamard matrix of width {width} is built here")
    return torch.kron(torch.tensor([[1.0, 1], [1, -1]]).double(), hadamard(width // 2))


def rotate(model: Model, generator: torch.Generator) -> None:
    """QuaRot's offline rotation, arXiv 2404.00456: of the stream with random signs, and of the heads of v and o. In place."""
    device, width = model.embeddings.device, model.embeddings.shape[1]
    signs = torch.randint(0, 2, (width, 1), generator=generator).double() * 2 - 1
    stream = (hadamard(width) * signs / width**0.5).to(device)

    def turned(weight: Tensor) -> Tensor:
        return (weight.double() @ stream).float()

    model.embeddings, model.head = turned(model.embeddings), turned(model.head * model.norm)
    model.norm = torch.ones_like(model.norm)
    for block in model.blocks:
        dim, layers = block.shape.dim, block.layers
        head = (hadamard(dim) / dim**0.5).to(device)
        for site in ("qkv", "gate_up"):
            for name in SITES[site]:
                layers[name].weight = turned(layers[name].weight * block.norms[site])
            block.norms[site] = torch.ones_like(block.norms[site])
        for name in ("o", "down"):
            layers[name].weight = (stream.T @ layers[name].weight.double()).float()
            if layers[name].bias is not None:
                layers[name].bias = (layers[name].bias.double() @ stream).float()
        v, o = layers["v"], layers["o"]
        shape = v.weight.shape
        v.weight = (head.T @ v.weight.double().view(-1, dim, shape[1])).reshape(shape).float()
        if v.bias is not None:
            v.bias = (v.bias.double().view(-1, dim) @ head).reshape(-1).float()
        o.weight = (o.weight.double().view(o.weight.shape[0], -1, dim) @ head).reshape(o.weight.shape).float()
