"""The recipes: each takes a float model and calibration tokens, and gives the model that the method computes with."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .arithmetic import AsymmetricTokens, LlmInt8, by_int8_tokens
from .model import SITES, Block, Linear, Model
from .omniquant import learn
from .rounding import BYTE, CHANNEL, Grid, best_scales, gptq, grid_of, nearest, quik, quip, spqr
from .scales import clipped_by_output, migrate, protect, rotate, smooth, suppress


@dataclass(frozen=True)
class Task:
    """A float model, which a recipe may change, and the windows; None where a recipe reads no text."""

    model: Model
    tokens: Tensor | None
    group: int
    seed: int
    epochs: int
    # Steps of searches for a threshold.
    steps: int


def moment(model: Model, block: Block, site: str, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """`H = mean x x^T` of a site's inputs, float64, and the largest magnitude of each channel."""
    total, largest, count = 0.0, [], 0
    for x in model.inputs(block, site, hidden):
        x = x.flatten(0, 1)
        largest.append(x.abs().amax(0))
        count += x.shape[0]
        x = x.double()
        total = total + x.T @ x
    return total / count, torch.stack(largest).amax(0)


Solve = Callable[[str, Tensor, Tensor, Tensor], tuple[Tensor, Callable | None]]


def solved(task: Task, solve: Solve, prepare: Callable[[int, Block], None] | None = None) -> Model:
    """Site after site, each for the inputs that it has behind the quantized ones before. `solve` is given a module's name, its
    weight, the moment and the largest inputs; it gives weight and arithmetic."""
    model = task.model
    hidden = model.embed(task.tokens)
    for index, block in enumerate(model.blocks):
        if prepare:
            prepare(index, block)
        for site, names in SITES.items():
            h, largest = moment(model, block, site, hidden)
            for name in names:
                layer = block.layers[name]
                weight, multiply = solve(name, layer.weight.double(), h, largest)
                block.layers[name] = Linear(weight.float(), layer.bias, multiply or layer.multiply)
        hidden = model.advance(block, hidden)
    return model


def rounded(block: Block, grid: Grid, group: int | None, int8: bool) -> None:
    for name, layer in block.layers.items():
        weight = nearest(layer.weight.double(), grid, group).float()
        block.layers[name] = Linear(weight, layer.bias, by_int8_tokens if int8 else layer.multiply)


def changed(task: Task, change: Callable[[Block, Tensor], None]) -> Model:
    """Block after block, each by the states of the float model."""
    hidden = task.model.embed(task.tokens)
    for block in task.model.blocks:
        after = task.model.advance(block, hidden)
        change(block, hidden)
        hidden = after
    return task.model


def rtn(task: Task, bits: int, group: int | None, int8: bool) -> Model:
    for block in task.model.blocks:
        rounded(block, grid_of(bits, group), group, int8)
    return task.model


def llm_int8(task: Task) -> Model:
    for block in task.model.blocks:
        for layer in block.layers.values():
            layer.multiply = LlmInt8(nearest(layer.weight.double(), BYTE).float(), 6.0)
    return task.model


def quik_model(task: Task) -> Model:
    def solve(name: str, weight: Tensor, h: Tensor, largest: Tensor):
        bits = 8 if name == "down" else 4
        weight, outliers = quik(weight, h, largest, bits, 0.0625, 0.01)
        return weight, AsymmetricTokens(bits, outliers)

    return solved(task, solve)


def spqr_model(task: Task) -> Model:
    return solved(task, lambda name, weight, h, largest: (spqr(weight, h)[0], None))


def quip_model(task: Task, bits: int, clamp_first: bool) -> Model:
    generator = torch.Generator().manual_seed(task.seed)
    return solved(
        task, lambda name, weight, h, largest: (quip(weight, h, generator, bits, clamp_first=clamp_first), None)
    )


def os_plus(task: Task, bits: int) -> Model:
    grid = grid_of(bits, None)

    def change(block: Block, hidden: Tensor) -> None:
        suppress(task.model, block, hidden, grid, task.steps)
        rounded(block, grid, None, True)

    return changed(task, change)


def smoothquant(task: Task) -> Model:
    def change(block: Block, hidden: Tensor) -> None:
        migrate(task.model, block, hidden)
        rounded(block, BYTE, None, True)

    return changed(task, change)


def awq(task: Task) -> Model:
    def change(block: Block, hidden: Tensor) -> None:
        protect(task.model, block, hidden, task.group)
        moments = {site: moment(task.model, block, site, hidden)[0] for site in SITES}
        clipped = {
            name: clipped_by_output(block.layers[name].weight.double(), moments[site], task.group).float()
            for site, names in SITES.items()
            for name in names
            if name not in "qk"
        }
        rounded(block, grid_of(4, task.group), task.group, False)
        for name, weight in clipped.items():
            block.layers[name].weight = weight

    return changed(task, change)


def gptq_model(task: Task) -> Model:
    grid = grid_of(4, task.group)
    return solved(task, lambda name, weight, h, largest: (gptq(weight, h, grid, 0.01, task.group), None))


def qqq(task: Task) -> Model:
    # The float model's states of the first window's first tokens.
    state = {"hidden": task.model.embed(task.tokens[:1, :512])}

    def prepare(index: int, block: Block) -> None:
        before = state["hidden"]
        state["hidden"] = task.model.advance(block, before)
        smooth(task.model, block, before, CHANNEL, task.steps)

    return solved(task, lambda name, weight, h, largest: (gptq(weight, h, CHANNEL, 0.01), by_int8_tokens), prepare)


def qqq_rotated(task: Task) -> Model:
    rotate(task.model, torch.Generator().manual_seed(task.seed))
    shares = [1 - step / 100 for step in range(81)]

    def solve(name: str, weight: Tensor, h: Tensor, largest: Tensor):
        scales = best_scales(weight, CHANNEL, shares, 2.4)
        return gptq(weight, h, CHANNEL, 0.01, scales=scales), by_int8_tokens

    return solved(task, solve)


def omniquant(task: Task, group: int | None, int8: bool) -> Model:
    model = task.model
    floats = hidden = model.embed(task.tokens)
    for index, block in enumerate(model.blocks):
        learned = learn(model, block, floats, hidden, task.epochs, 4, group, int8)
        floats, hidden = model.advance(block, floats), model.advance(learned, hidden)
        model.blocks[index] = learned
    return model


@dataclass(frozen=True)
class Pair:
    """A recipe here and in `qqq quantize`."""

    settings: str
    reference: Callable[[Task], Model]
    # Options of `qqq quantize`; {g} is the group size, {e} the number of epochs.
    ours: str
    # Windows and tokens of each, as in the recipe of ours; None: reads no text.
    text: tuple[int, int] | None = (128, 2048)
    # Whether it depends on a seed.
    is_random: bool = False
    # Where `qqq` computes when asked for a GPU, which does not take all methods.
    instead_of_gpu: str | None = None


PAIRS = {
    "rtn": Pair("W4A8 per channel", lambda t: rtn(t, 4, None, True), "--recipe rtn", None),
    "rtn-w4a16": Pair(
        "W4A16 g{g}",
        lambda t: rtn(t, 4, t.group, False),
        "--recipe rtn --activations half --group-size {g}",
        None,
    ),
    "llm-int8": Pair("W8A8, outliers from 6", llm_int8, "--recipe llm-int8", None, instead_of_gpu="auto"),
    "smoothquant": Pair("W8A8, strength 0.5", smoothquant, "--recipe smoothquant --alpha 0.5", (512, 512)),
    "os+": Pair("W8A8", lambda t: os_plus(t, 8), "--recipe os+", (128, 512)),
    "os+-4": Pair("W4A8 per channel", lambda t: os_plus(t, 4), "--recipe os+ --bits 4", (128, 512)),
    "gptq": Pair("W4A16 g{g}, act-order, damping 0.01", gptq_model, "--recipe gptq --group-size {g}"),
    "awq": Pair("W4A16 g{g}", awq, "--recipe awq --group-size {g}", (128, 512)),
    "quik": Pair("W4A4, down W8A8, 1/16 outliers", quik_model, "--recipe quik", instead_of_gpu="auto"),
    "spqr": Pair("W3A16, groups and statistics of 16, threshold 0.2", spqr_model, "--recipe spqr"),
    "quip": Pair("W2A16, rho 2.4", lambda t: quip_model(t, 2, False), "--recipe quip", is_random=True),
    "quip-4": Pair("W4A16, rho 2.4", lambda t: quip_model(t, 4, False), "--recipe quip --bits 4", is_random=True),
    "quip-clamped": Pair(
        "W2A16, weights cut off before", lambda t: quip_model(t, 2, True), "--recipe quip", is_random=True
    ),
    "quip-4-clamped": Pair(
        "W4A16, weights cut off before", lambda t: quip_model(t, 4, True), "--recipe quip --bits 4", is_random=True
    ),
    "qqq": Pair("W4A8 per channel, smoothed on 512 tokens", qqq, "--recipe qqq"),
    "qqq-rot": Pair("W4A8 per channel, rotated", qqq_rotated, "--recipe qqq-rot", is_random=True),
    "omniquant": Pair(
        "W4A8 per channel, {e} epochs",
        lambda t: omniquant(t, None, True),
        "--recipe omniquant --epochs {e}",
        (16, 512),
        instead_of_gpu="cpu",
    ),
    "omniquant-w4a16": Pair(
        "W4A16 g{g}, {e} epochs",
        lambda t: omniquant(t, t.group, False),
        "--recipe omniquant --epochs {e} --activations half --group-size {g}",
        (16, 512),
        instead_of_gpu="cpu",
    ),
}
