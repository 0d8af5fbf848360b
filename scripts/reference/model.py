"""A Llama whose layers can be given other weights and another arithmetic, in float32."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

# Modules by the input that they share, in the order of the forward pass.
SITES = {"qkv": ("q", "k", "v"), "o": ("o",), "gate_up": ("gate", "up"), "down": ("down",)}
# Tokens that go through a block at once.
BATCH_TOKENS = 16 << 10


def product(x: Tensor, weight: Tensor) -> Tensor:
    """What a float layer computes."""
    return x @ weight.T


@dataclass
class Linear:
    """`multiply(x, weight) + bias`."""

    weight: Tensor
    bias: Tensor | None = None
    multiply: Callable[[Tensor, Tensor], Tensor] = product

    def __call__(self, x: Tensor) -> Tensor:
        y = self.multiply(x, self.weight)
        return y if self.bias is None else y + self.bias


@dataclass(frozen=True)
class Shape:
    """Of attention, and the norms' epsilon."""

    heads: int
    kv_heads: int
    dim: int
    eps: float

    def repeated(self, values: Tensor) -> Tensor:
        """Channels of v as those of o's input that they feed."""
        each = self.heads // self.kv_heads
        return values.reshape(self.kv_heads, 1, self.dim).expand(-1, each, -1).reshape(-1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def rotated(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions; `x` is `B x heads x T x dim`."""
    cos, sin = rope
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


@dataclass
class Block:
    """A decoder block. Hidden states are `B x T x hidden`."""

    shape: Shape
    norms: dict[str, Tensor]
    layers: dict[str, Linear]

    def copy(self) -> "Block":
        return Block(self.shape, dict(self.norms), {name: replace(layer) for name, layer in self.layers.items()})

    def attention(self, q: Tensor, k: Tensor, v: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        batch, tokens, _ = q.shape
        q, k, v = (x.view(batch, tokens, -1, self.shape.dim).transpose(1, 2) for x in (q, k, v))
        each = self.shape.heads // self.shape.kv_heads
        k, v = rotated(k, rope).repeat_interleave(each, 1), v.repeat_interleave(each, 1)
        out = functional.scaled_dot_product_attention(rotated(q, rope), k, v, is_causal=True)
        return out.transpose(1, 2).reshape(batch, tokens, -1)

    def behind(self, site: str, outputs: list[Tensor], rope: tuple[Tensor, Tensor]) -> Tensor:
        """What comes of a site's outputs before the next layer."""
        match site:
            case "qkv":
                return self.attention(*outputs, rope)
            case "gate_up":
                return functional.silu(outputs[0]) * outputs[1]
            case _:
                return outputs[0]

    def forward(self, hidden: Tensor, rope: tuple[Tensor, Tensor], until: str | None = None) -> Tensor:
        """The input of site `until`, or what leaves the block."""
        for first, second in (("qkv", "o"), ("gate_up", "down")):
            x = rms_norm(hidden, self.norms[first], self.shape.eps)
            if until == first:
                return x
            x = self.behind(first, [self.layers[name](x) for name in SITES[first]], rope)
            if until == second:
                return x
            hidden = hidden + self.layers[second](x)
        return hidden


@dataclass
class Model:
    embeddings: Tensor
    blocks: list[Block]
    norm: Tensor
    head: Tensor
    eps: float
    # Of a number of tokens, cosines and sines, `T x dim`.
    rope: Callable[[int], tuple[Tensor, Tensor]]

    def copy(self) -> "Model":
        return replace(self, blocks=[block.copy() for block in self.blocks])

    def embed(self, tokens: Tensor) -> Tensor:
        return self.embeddings[tokens]

    def logits(self, tokens: Tensor) -> Tensor:
        hidden, rope = self.embed(tokens), self.rope(tokens.shape[1])
        for block in self.blocks:
            hidden = block.forward(hidden, rope)
        return rms_norm(hidden, self.norm, self.eps) @ self.head.T

    def each(self, hidden: Tensor) -> Iterator[Tensor]:
        """Some windows after the other."""
        yield from hidden.split(max(1, BATCH_TOKENS // hidden.shape[1]))

    def advance(self, block: Block, hidden: Tensor) -> Tensor:
        rope = self.rope(hidden.shape[1])
        return torch.cat([block.forward(part, rope) for part in self.each(hidden)])

    def inputs(self, block: Block, site: str, hidden: Tensor) -> Iterator[Tensor]:
        """Those of a site, `B x T x K`."""
        rope = self.rope(hidden.shape[1])
        for part in self.each(hidden):
            yield block.forward(part, rope, site)


def of_transformers(module) -> Model:
    """A model of transformers, in float32 where it is."""
    config = module.config
    if config.model_type != "llama":
        raise ValueError(f"a {config.model_type}: only llama is written here")
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = Shape(config.num_attention_heads, config.num_key_value_heads, dim, config.rms_norm_eps)
    device = module.lm_head.weight.device

    def values(parameter) -> Tensor | None:
        return None if parameter is None else parameter.detach().float()

    def block(layer) -> Block:
        parts = {name: getattr(layer.self_attn, f"{name}_proj") for name in "qkvo"}
        parts |= {name: getattr(layer.mlp, f"{name}_proj") for name in ("gate", "up", "down")}
        layers = {name: Linear(values(part.weight), values(part.bias)) for name, part in parts.items()}
        norms = {"qkv": layer.input_layernorm, "gate_up": layer.post_attention_layernorm}
        return Block(shape, {site: values(norm.weight) for site, norm in norms.items()}, layers)

    def rope(tokens: int) -> tuple[Tensor, Tensor]:
        positions = torch.arange(tokens, device=device)[None]
        cos, sin = module.model.rotary_emb(torch.zeros(1, device=device), positions)
        return cos[0], sin[0]

    return Model(
        embeddings=values(module.model.embed_tokens.weight),
        blocks=[block(layer) for layer in module.model.layers],
        norm=values(module.model.norm.weight),
        head=values(module.lm_head.weight),
        eps=config.rms_norm_eps,
        rope=rope,
    )


def load(path: Path, device: str) -> Model:
    from transformers import AutoModelForCausalLM

    return of_transformers(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).to(device).eval())
