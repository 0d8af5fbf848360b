"""Weights of a layer (`N x K`) from the second moment of its inputs (`K x K`), both float64: what methods multiply by.

Everything is done for all output channels at once, column after column.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Symmetric codes from `low` to `high`; the largest weight is `reach` scales."""

    low: int
    high: int
    reach: float

    def nearest(self, values: Tensor, scale: Tensor) -> Tensor:
        return torch.round(values / scale).clamp(self.low, self.high) * scale


CHANNEL, GROUP, BYTE = Grid(-7, 7, 7), Grid(-8, 7, 7.5), Grid(-127, 127, 127)


def grid_of(bits: int, group: int | None) -> Grid:
    return BYTE if bits == 8 else GROUP if group else CHANNEL


def in_groups(weight: Tensor, group: int | None) -> Tensor:
    """`N x groups x group`."""
    return weight.reshape(weight.shape[0], -1, group or weight.shape[1])


def full_scales(weight: Tensor, grid: Grid, group: int | None) -> Tensor:
    """By the largest weight of each group, `N x groups x 1`."""
    scale = in_groups(weight, group).abs().amax(-1, keepdim=True) / grid.reach
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def nearest(weight: Tensor, grid: Grid, group: int | None = None, scales: Tensor | None = None) -> Tensor:
    scales = full_scales(weight, grid, group) if scales is None else scales
    return grid.nearest(in_groups(weight, group), scales).reshape(weight.shape)


def best_scales(weight: Tensor, grid: Grid, shares: list[float], power: float) -> Tensor:
    """Per output channel, the share of the full scale with the least `sum |w - q|^power`."""
    full = full_scales(weight, grid, None)
    least, best = torch.full_like(full, torch.inf), full
    for share in shares:
        scale = full * share
        error = (in_groups(weight, None) - grid.nearest(in_groups(weight, None), scale)).abs().pow(power)
        error = error.sum(-1, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


def damped(moment: Tensor, share: float) -> Tensor:
    """With a share of the mean diagonal added; channels that were always 0 have the mean."""
    diagonal = moment.diagonal()
    mean = diagonal.mean()
    return moment + torch.diag(torch.where(diagonal > 0, 0, mean) + share * mean)


def inverse_factor(moment: Tensor) -> Tensor:
    """Upper `U` with `H^-1 = U^T U` (GPTQ, section 3.3)."""
    return torch.linalg.cholesky(torch.linalg.inv(moment), upper=True)


def sweep(weight: Tensor, factor: Tensor, round_column: Callable[[int, Tensor], Tensor], first: int, last: int) -> None:
    """GPTQ over some columns, in place: each is rounded, and all behind it take up the error."""
    for j in range(first, last):
        rounded = round_column(j, weight[:, j])
        error = (weight[:, j] - rounded) / factor[j, j]
        weight[:, j:] -= error[:, None] * factor[j, j:]
        weight[:, j] = rounded


def gptq(
    weight: Tensor,
    moment: Tensor,
    grid: Grid,
    damping: float,
    group: int | None = None,
    scales: Tensor | None = None,
    act_order: bool = True,
) -> Tensor:
    """arXiv 2210.17323, with scales of the weights before (static groups) and columns by falling diagonal."""
    scales = full_scales(weight, grid, group) if scales is None else scales
    of_column = scales.expand(-1, -1, group or weight.shape[1]).reshape(weight.shape)
    moment = damped(moment, damping)
    order = torch.arange(weight.shape[1], device=weight.device)
    if act_order:
        order = torch.argsort(moment.diagonal(), descending=True, stable=True)
    of_column, work = of_column[:, order], weight[:, order]
    factor = inverse_factor(moment[order][:, order])
    sweep(work, factor, lambda j, w: grid.nearest(w, of_column[:, j]), 0, work.shape[1])
    out = torch.empty_like(weight)
    out[:, order] = work
    return out


def quik(
    weight: Tensor, moment: Tensor, largest: Tensor, bits: int, share: float, damping: float
) -> tuple[Tensor, Tensor]:
    """arXiv 2310.09259: GPTQ with the channels of the largest inputs last, which stay in 16 bits. Gives these as well."""
    columns = weight.shape[1]
    count = round(share * columns)
    by_size = torch.argsort(largest, descending=True, stable=True)
    outliers, base = by_size[:count].sort().values, by_size[count:].sort().values
    top = 2 ** (bits - 1) - 1
    grid = Grid(-top - 1, top, top)
    scales = best_scales(weight[:, base], grid, [1 - 0.008 * step for step in range(100)], 2.0)[:, 0, 0]
    order = torch.cat([base, outliers])
    work = weight[:, order]
    factor = inverse_factor(damped(moment, damping)[order][:, order])
    sweep(work, factor, lambda _, w: grid.nearest(w, scales), 0, columns - count)
    out = torch.empty_like(weight)
    out[:, order] = work
    return out, outliers


@dataclass(frozen=True)
class Affine:
    """Codes from 0 to `levels`; a code stands for `scale (code - zero)`."""

    scale: Tensor
    zero: Tensor
    levels: int

    @staticmethod
    def fit(values: Tensor, bits: int, among: Tensor | None = None) -> "Affine":
        """From the least to the largest along the last dimension, `among` those that are true."""
        among = torch.ones_like(values, dtype=torch.bool) if among is None else among
        low = values.masked_fill(~among, torch.inf).amin(-1, keepdim=True)
        high = values.masked_fill(~among, -torch.inf).amax(-1, keepdim=True)
        levels = 2**bits - 1
        usual = high > low
        scale = torch.where(usual, (high - low) / levels, 1.0)
        zero = torch.where(usual, -low / scale, torch.where(low.isfinite(), -low, 0.0))
        return Affine(scale, zero, levels)

    def nearest(self, values: Tensor) -> Tensor:
        codes = torch.round(values / self.scale + self.zero).clamp(0, self.levels)
        return self.scale * (codes - self.zero)


def spqr(
    weight: Tensor,
    moment: Tensor,
    bits: int = 3,
    group: int = 16,
    shared: int = 16,
    statistics_bits: int = 3,
    threshold: float = 0.2,
    damping: float = 1.0,
) -> tuple[Tensor, float]:
    """Algorithm 1 of arXiv 2306.03078. Gives the share of outliers as well."""
    factor = inverse_factor(damped(moment, damping))
    pivots = factor.diagonal()
    tau = threshold * (weight.var(0, correction=0) / pivots.square()).mean()
    work = weight.clone()
    rows, columns = weight.shape
    count = 0
    for first in range(0, columns, group):
        last = min(first + group, columns)
        now, pivot = work[:, first:last], pivots[first:last]
        # Error of the group without each of its weights, `N x left out x weights`.
        without = ~torch.eye(last - first, dtype=torch.bool, device=weight.device)
        each = now[:, None, :].expand(-1, last - first, -1)
        error = ((each - Affine.fit(each, bits, without.expand_as(each)).nearest(each)) / pivot).square()
        whole = ((now - Affine.fit(now, bits).nearest(now)) / pivot).square().sum(-1, keepdim=True)
        outlier = whole - (error * without).sum(-1) > tau
        count += int(outlier.sum())
        grid = Affine.fit(now, bits, ~outlier)
        if statistics_bits < 16:
            parts = []
            for values in (grid.scale[:, 0], grid.zero[:, 0]):
                parts.append(
                    torch.cat([Affine.fit(some, statistics_bits).nearest(some) for some in values.split(shared)])
                )
            grid = Affine(parts[0][:, None], parts[1][:, None], grid.levels)

        def round_column(j: int, values: Tensor, grid=grid, outlier=outlier, first=first) -> Tensor:
            rounded = grid.nearest(values[:, None])[:, 0]
            return torch.where(outlier[:, j - first], values, rounded)

        sweep(work, factor, round_column, first, last)
    return work, count / (rows * columns)


def random_turn(width: int, generator: torch.Generator) -> Tensor:
    """An orthogonal matrix: a Kronecker product of two random ones behind a random permutation."""
    p = max(p for p in range(1, int(width**0.5) + 1) if width % p == 0)

    def orthogonal(size: int) -> Tensor:
        q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
        return q * r.diagonal().sign()

    turn = torch.kron(orthogonal(p), orthogonal(width // p))
    return turn[:, torch.randperm(width, generator=generator)]


def quip(
    weight: Tensor,
    moment: Tensor,
    generator: torch.Generator,
    bits: int = 2,
    rho: float = 2.4,
    damping: float = 0.01,
    incoherent: bool = True,
    clamp_first: bool = False,
) -> Tensor:
    """Algorithms 1 to 3 of arXiv 2307.13304. `clamp_first`: weights beyond the range are cut off before they are rounded, so that
    others do not make up for that."""
    rows, columns = weight.shape
    work, moment = weight, damped(moment, damping)
    if incoherent:
        left, right = (random_turn(width, generator).to(weight.device) for width in (rows, columns))
        factors = (moment.diagonal() / work.square().sum(0)).pow(0.25)
        factors = torch.where(factors.isfinite() & (factors > 0), factors, torch.ones_like(factors))
        work, moment = work * factors, moment / (factors[:, None] * factors)
        work, moment = left @ work @ right.T, right @ moment @ right.T
    scale, levels = rho * work.square().mean().sqrt(), 2**bits - 1
    work = (work / scale + 1) / 2 * levels
    if clamp_first:
        work = work.clamp(0, levels)
    # H = (F + I) D (F + I)^T with F strictly upper: Cholesky of the reversed matrix.
    reverse = torch.linalg.cholesky(moment.flip(0, 1)).flip(0, 1)
    feedback = reverse / reverse.diagonal() - torch.eye(columns, dtype=work.dtype, device=work.device)
    out = torch.zeros_like(work)
    for j in range(columns):
        out[:, j] = torch.round(work[:, j] + (work[:, :j] - out[:, :j]) @ feedback[:j, j]).clamp(0, levels)
    out = (out / levels * 2 - 1) * scale
    if incoherent:
        out = left.T @ out @ right / factors
    return out
