"""Checks of the methods on a tiny random model, where they must come to known things."""

import torch
from torch import Tensor

from .arithmetic import AsymmetricTokens, LlmInt8, by_int8_tokens
from .model import Model, of_transformers
from .recipes import PAIRS, Task
from .rounding import BYTE, CHANNEL, Grid, best_scales, damped, gptq, inverse_factor, nearest, quik, quip, spqr, sweep
from .scales import divide, hadamard, rotate


def tiny():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


def far(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def layer() -> tuple[Tensor, Tensor, Tensor]:
    """Weights, moment and largest inputs, with two outlier channels."""
    torch.manual_seed(7)
    weight = torch.randn(24, 32, dtype=torch.float64)
    x = torch.randn(256, 32, dtype=torch.float64) @ (torch.eye(32).double() + 0.3 * torch.randn(32, 32).double())
    x[:, [5, 20]] *= 20
    return weight, x.T @ x / 256, x.abs().amax(0)


def loss(weight: Tensor, rounded: Tensor, moment: Tensor) -> float:
    error = weight - rounded
    return ((error @ moment) * error).sum().item()


@torch.no_grad()
def self_test() -> int:
    failed = []

    def check(what: str, holds: bool, *told) -> None:
        print("ok  " if holds else "FAIL", what, *told)
        failed.extend([] if holds else [what])

    module = tiny()
    model: Model = of_transformers(module)
    tokens = torch.randint(0, 97, (4, 24))
    exact = module(input_ids=tokens).logits
    check("the float model is transformers'", far(model.logits(tokens), exact) < 1e-5)

    scaled = model.copy()
    for block in scaled.blocks:
        for site in ("qkv", "gate_up", "down"):
            divide(block, site, torch.rand(64 if site == "down" else 32) + 0.5)
        divide(block, "o", block.shape.repeated(torch.rand(16) + 0.5), block.shape.repeated(torch.randn(16)))
    check("scales and shifts change nothing", far(scaled.logits(tokens), exact) < 1e-4)
    turned = model.copy()
    rotate(turned, torch.Generator().manual_seed(1))
    check("a rotation changes nothing", far(turned.logits(tokens), exact) < 1e-4)
    for width in (12, 28, 36, 64, 576):
        h = hadamard(width)
        check(f"Hadamard matrix of {width}", torch.equal(h @ h.T, width * torch.eye(width, dtype=torch.float64)))

    weight, moment, largest = layer()
    plain = nearest(weight, CHANNEL)
    solved = gptq(weight, moment, CHANNEL, 0.01)
    check("GPTQ loses less than nearest", loss(weight, solved, moment) < 0.8 * loss(weight, plain, moment))
    diagonal = gptq(weight, torch.diag(moment.diagonal()), CHANNEL, 0.01)
    check("GPTQ of independent inputs is nearest", torch.allclose(diagonal, plain))
    grid = Grid(-8, 7, 7)
    scales = best_scales(weight, grid, [1 - 0.008 * step for step in range(100)], 2.0)
    in_order = gptq(weight, moment, grid, 0.01, scales=scales, act_order=False)
    check("QUIK without outliers is GPTQ", torch.allclose(quik(weight, moment, largest, 4, 0.0, 0.01)[0], in_order))
    some, outliers = quik(weight, moment, largest, 4, 0.0625, 0.01)
    check("QUIK finds the outliers", outliers.tolist() == [5, 20])
    check("QUIK loses less than nearest", loss(weight, some, moment) < loss(weight, plain, moment))
    all_sparse, share = spqr(weight, moment, threshold=-torch.inf)
    check("SpQR with all weights outliers is float", torch.equal(all_sparse, weight) and share == 1)
    many = spqr(weight, moment, bits=12, statistics_bits=16, threshold=torch.inf)[0]
    check("SpQR of 12 bits is near float", far(many, weight) < 1e-2)
    generator = torch.Generator().manual_seed(2)
    check("QuIP of 16 bits is near float", far(quip(weight, moment, generator, 16, rho=64.0), weight) < 1e-2)
    ldlq = quip(weight, moment, generator, 3, incoherent=False)
    step = 2 * 2.4 * weight.square().mean().sqrt() / 7
    work = weight.clone()
    sweep(
        work,
        inverse_factor(damped(moment, 0.01)),
        lambda _, w: (torch.round(w / step + 3.5).clamp(0, 7) - 3.5) * step,
        0,
        32,
    )
    check("LDLQ without incoherence is GPTQ", torch.allclose(ldlq, work))

    x = torch.randn(2, 16, 32)
    w8 = nearest(weight, BYTE).float()
    int8 = LlmInt8(w8, torch.inf)(x, weight.float())
    check("LLM.int8() without outliers is W8A8", far(int8, by_int8_tokens(x, w8)) < 1e-6)
    check(
        "LLM.int8() of outliers alone is float", far(LlmInt8(w8, 0.0)(x, weight.float()), x @ weight.float().T) < 1e-6
    )
    none = torch.tensor([], dtype=torch.long)
    check("QUIK's inputs of 8 bits are near float", far(AsymmetricTokens(8, none)(x, w8), x @ w8.T) < 1e-2)

    # The least that 4 bits and int8 may cost, and the most.
    for name, pair in PAIRS.items():
        task = Task(model.copy(), tokens, 8, 0, 3, 12)
        distance = far(pair.reference(task).logits(tokens), exact)
        check(f"{name} is near float, and not float", 1e-5 < distance < 1.5, f"{distance:.4f}")
    print(f"{len(failed)} failed")
    return 1 if failed else 0
