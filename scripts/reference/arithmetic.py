"""What layers do with their inputs before they multiply: fake quantization, token by token, in float32."""

from dataclasses import dataclass

import torch
from torch import Tensor


def positive(scale: Tensor) -> Tensor:
    """1 in the place of 0."""
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def int8_tokens(x: Tensor) -> Tensor:
    """-127 to 127, by each token's largest magnitude."""
    scale = positive(x.abs().amax(-1, keepdim=True) / 127)
    return torch.round(x / scale) * scale


def by_int8_tokens(x: Tensor, weight: Tensor) -> Tensor:
    """W4A8 and W8A8: the weight is what its codes stand for."""
    return int8_tokens(x) @ weight.T


@dataclass
class LlmInt8:
    """Input channels in which any token of a step reaches the threshold are multiplied by the weight as it is, all others in
    int8. `x` is `B x T x K`; a step are up to `step` tokens of a window."""

    # int8 weights times their scales.
    rounded: Tensor
    threshold: float
    step: int = 512

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        out = []
        for part in x.split(self.step, 1):
            outlier = (part.abs() >= self.threshold).any(1, keepdim=True)
            inliers = int8_tokens(part.masked_fill(outlier, 0))
            out.append(inliers @ self.rounded.T + part.masked_fill(~outlier, 0) @ weight.T)
        return torch.cat(out, 1)


@dataclass
class AsymmetricTokens:
    """QUIK: unsigned codes from each token's least value to its largest, but for outlier channels, which stay."""

    bits: int
    outliers: Tensor

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        inlier = torch.ones(x.shape[-1], dtype=torch.bool, device=x.device)
        inlier[self.outliers] = False
        kept = x[..., inlier]
        low, high = kept.amin(-1, keepdim=True), kept.amax(-1, keepdim=True)
        levels = 2**self.bits - 1
        scale = positive((high - low) / levels)
        x = x.clone()
        x[..., inlier] = torch.round((kept - low) / scale).clamp(0, levels) * scale + low
        return x @ weight.T
