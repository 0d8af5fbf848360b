"""Every layer proves itself when it is loaded: what its kernels give for a few tokens is compared, bit for bit, with products of
plain PyTorch integers, made from the checkpoint's tensors by a way of their own.

The activations are integers times a power of two, with 127 in each token, so that int8 holds them exactly; sums are exact in
float64; an output is `(sum * channel scale) * token scale` in float32, as the kernels define it, rounded to the layer's type.
"""

import functools
import math
from collections.abc import Callable, Iterable

import torch

from qqq_vllm.formats import Part

#: Output channels that are compared, of a layer, by type of device.
CHANNELS = {"cpu": 64, "cuda": 128}
_DENSE, _SPARSE = 6, 2
TOKENS = _DENSE + _SPARSE
# Bytes of outputs above which a number of tokens is not tried.
_MOST_BYTES = 64 << 20
_MOST_EXPONENT = 8


class WrongProduct(RuntimeError):
    """A layer's kernel does not multiply the weights of the checkpoint."""


def _nibbles(words: torch.Tensor, shifts: list[int]) -> torch.Tensor:
    """Four bits of each word from each of these places, in a last dimension."""
    at = torch.tensor(shifts, dtype=torch.int32, device=words.device)
    return words.unsqueeze(-1) >> at & 15


def _qqq_rows(part: Part, rows: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Codes (int32, whole rows), channel scales and group scales of output channels: by their places in the tiles."""
    tensors = part.layer.tensors
    grouped = "s_group" in tensors
    lanes = 4 * (rows % 8).unsqueeze(1) + torch.arange(4, device="cpu")
    places = (rows // 64 * 128).unsqueeze(1) + 4 * lanes + (rows % 64 // 16).unsqueeze(1)
    # K/16, rows, lanes of a row: four columns each.
    words = tensors["B"][:, places.flatten()].view(-1, *places.shape).to(device)
    upper, lower = ([0, 16, 4, 20], [8, 24, 12, 28]) if grouped else ([4, 12, 20, 28], [0, 8, 16, 24])
    is_lower = (rows % 16 >= 8).to(device).view(1, -1, 1, 1)
    codes = torch.where(is_lower, _nibbles(words, lower), _nibbles(words, upper))
    codes = codes.permute(1, 0, 2, 3).reshape(len(rows), -1)
    codes = codes - 8 if grouped else torch.where(codes > 7, codes - 16, codes)
    channel = tensors["s_channel"][0, rows // 32 * 32 + rows % 8 // 2 * 8 + rows % 32 // 8 * 2 + rows % 2]
    if not grouped:
        return codes, channel * 16, None
    group = tensors["s_group"][:, rows // 64 * 64 + rows % 8 * 8 + rows % 64 // 8].T.float()
    # What would be beyond int8 is brought into it by a larger scale of the channel.
    channel, group = channel.to(device), group.to(device)
    largest = _largest(codes, group.shape[1]) * group.abs()
    most = largest.amax(1)
    factor = torch.where(most.round() > 127, most / torch.full_like(most, 127), torch.ones_like(most))
    return codes, channel * factor, (group / factor.unsqueeze(1)).half().float()


def _compressed_rows(part: Part, rows: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, ...]:
    """As :func:`_qqq_rows`."""
    tensors = part.layer.tensors
    if "weight" in tensors:
        codes = tensors["weight"][rows].to(device).int()
    elif part.layer.format.bits == 8:
        words = tensors["weight_packed"][rows].to(device).unsqueeze(-1)
        shifts = torch.tensor([0, 8, 16, 24], dtype=torch.int32, device=device)
        codes = (words >> shifts & 255).flatten(1) - 128
    else:
        codes = _nibbles(tensors["weight_packed"][rows].to(device), [0, 4, 8, 12, 16, 20, 24, 28]).flatten(1) - 8
    scale = tensors["weight_scale"][rows].to(device)
    if part.layer.format.group_size is None:
        return codes, scale[:, 0], None
    return codes, *_two_levels(_largest(codes, scale.shape[1]), scale)


def _largest(codes: torch.Tensor, groups: int) -> torch.Tensor:
    """Largest magnitudes in groups, as float32."""
    return codes.view(len(codes), groups, -1).abs().amax(2).float()


def _two_levels(largest: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Channel scales and group scales (float32 of float16 values) of rows whose groups have these scales.

    The largest number of which the scales of a row are multiples by 1 to 16, if there is one; else the largest weight divided
    by 127. Divisors are tensors: PyTorch multiplies by the reciprocal of a number.
    """
    used = largest > 0
    tiny = torch.finfo(torch.float32).tiny
    top = torch.where(used, scale, torch.zeros_like(scale)).amax(1)
    # By divisor and row; then by group as well.
    candidates = top / torch.arange(1, 17, dtype=torch.float32, device=top.device).unsqueeze(1)
    each = candidates.unsqueeze(2)
    multiple = (scale / each).round()
    fits = (multiple >= 1) & (multiple * each == scale) & (multiple * largest <= 127)
    good = (fits | ~used).all(2) & (candidates >= tiny)
    # The first that is good.
    chosen = candidates.gather(0, good.int().argmax(0, keepdim=True))[0]
    most = (largest * scale).abs().amax(1)
    other = torch.where(most > 0, (most / torch.full_like(most, 127)).clamp_min(tiny), torch.ones_like(most))
    channel = torch.where(good.any(0), chosen, other)
    group = torch.where(used, scale / channel.unsqueeze(1), torch.zeros_like(scale))
    return channel, group.half().float()


def sample(parts: list[Part], count: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Output channels spread over the parts, their int8 weights (float64) and channel scales (float32)."""
    n = sum(p.shape[0] for p in parts)
    channels, weights, scales, first = [], [], [], 0
    for part in parts:
        size, (start, end) = part.shape[0], part.columns
        some = min(size, max(16, count * size // n))
        inside = torch.linspace(0, size - 1, some, dtype=torch.float64, device="cpu").long()
        read = _qqq_rows if "B" in part.layer.tensors else _compressed_rows
        codes, channel, group = read(part, inside + part.rows[0], device)
        if group is not None:
            whole = group.repeat_interleave(codes.shape[1] // group.shape[1], 1)
            codes = (codes.float() * whole).round()
        channels.append(inside + first)
        weights.append(codes[:, start:end].double())
        scales.append(channel.to(device))
        first += size
    return torch.cat(channels).to(device), torch.cat(weights), torch.cat(scales)


@functools.cache
def _tokens(k: int) -> torch.Tensor:
    """int8 activations (as float64, on the host): dense ones, and some that are nearly one input channel's weights."""
    generator = torch.Generator(device="cpu").manual_seed(k)
    q = torch.randint(-127, 128, (TOKENS, k), generator=generator, device="cpu").double()
    keep = torch.rand((_SPARSE, k), generator=generator, device="cpu") < 8 / k
    q[_DENSE:] = q[_DENSE:].clamp(-1, 1) * keep
    largest = torch.randint(0, k, (TOKENS,), generator=generator, device="cpu")
    q[torch.arange(TOKENS, device="cpu"), largest] = 127
    return q


def check(
    name: str,
    kernel: str,
    parts: list[Part],
    dtype: torch.dtype,
    device: torch.device,
    product: Callable[[torch.Tensor], torch.Tensor],
    token_counts: Iterable[int] = (),
) -> None:
    """Compares `product(x)` for a few tokens, one token, and numbers of tokens that run on other kernels.

    Raises :class:`WrongProduct` with the layer's name, and what differs.
    """
    channels, weights, scale = sample(parts, CHANNELS.get(device.type, 64), device)
    q = _tokens(weights.shape[1]).to(device)
    sums = q @ weights.T
    scaled = sums.float() * scale
    # Outputs in the middle of what 16 bits hold.
    largest = float(scaled.abs().amax())
    exponent = 0 if largest == 0 else round(math.log2(256.0 / largest))
    factor = 2.0 ** max(-_MOST_EXPONENT, min(_MOST_EXPONENT, exponent))
    expected = (scaled * factor).to(dtype)
    x = (q * factor).to(dtype)
    n = sum(p.shape[0] for p in parts)
    for tokens in (TOKENS, 1, *token_counts):
        if tokens * n * dtype.itemsize > _MOST_BYTES:
            continue
        rows = torch.arange(tokens, device=device) % TOKENS
        got = product(x[rows])[:, channels]
        wrong = (got != expected[rows]).nonzero()
        if len(wrong) == 0:
            continue
        token, column = (int(i) for i in wrong[0])
        raise WrongProduct(
            f"{name}: the kernel {kernel} gives {float(got[token, column])} for output channel {int(channels[column])} of "
            f"token {token} of {tokens}; in integers it is {int(sums[token % TOKENS, column])} x "
            f"{float(scale[column]):.9g} x {factor} = {float(expected[token % TOKENS, column])}. {len(wrong)} of "
            f"{got.numel()} values that were compared differ: the layer would not run as the checkpoint says, so it is not "
            "loaded"
        )
