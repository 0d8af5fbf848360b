"""What `qqq quantize` writes, read by transformers and compressed-tensors: every weight to the bit, and the perplexity.

The library divides the largest activation of a token by 127.5 and multiplies groups' weights as floats; qqq divides by 127 and
rounds them to int8. On a thousand tokens of a random model that is worth a few tenths of a percent, so perplexities are
compared twice: as the library computes, and with qqq's two roundings in the library's model, where they must agree closely."""

import json
import os
from pathlib import Path

import pytest
import torch
from compressed_tensors.quantization.lifecycle import forward
from safetensors.torch import load_file
from tiny import load, perplexity

ROOT = Path(os.environ["QQQ_INTEROP"])
PERPLEXITIES = json.loads((ROOT / "perplexities.json").read_text())


def stored_weights(directory: Path) -> dict[str, torch.Tensor]:
    """The weights as the file format defines them: code times scale."""
    tensors = load_file(directory / "model.safetensors")
    weights = {}
    for name, words in tensors.items():
        if not name.endswith(".weight_packed"):
            continue
        layer = name.removesuffix(".weight_packed")
        n, k = tensors[f"{layer}.weight_shape"].tolist()
        nibbles = torch.stack([(words >> shift) & 15 for shift in range(0, 32, 4)], dim=-1)
        codes = nibbles.reshape(n, -1)[:, :k].float() - 8
        scales = tensors[f"{layer}.weight_scale"].float()
        weights[layer] = codes * scales.repeat_interleave(k // scales.shape[1], dim=1)
    return weights


def int8_weights(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """A weight in groups as qqq multiplies it: its channel's scale times int8. Scales that are small multiples of one number
    are exact."""
    groups = weight.reshape(*scales.shape, -1)
    codes = groups / scales[..., None]
    largest = codes.abs().amax(-1)
    kept = torch.zeros(len(weight), dtype=torch.bool)
    for most in range(1, 17):
        channel = torch.where(largest > 0, scales, 0).amax(1, keepdim=True) / most
        multiples = (scales / channel).round()
        exact = ((multiples >= 1) & (multiples * channel == scales) & (multiples * largest <= 127)) | (largest == 0)
        kept |= exact.all(1)
    channel = (largest * scales).abs().amax(1, keepdim=True) / 127
    ratio = (scales / channel).half().float()
    rounded = (codes * ratio[..., None]).round() * channel[..., None]
    return torch.where(kept[:, None, None], groups, rounded).reshape(weight.shape)


@pytest.mark.parametrize("name", PERPLEXITIES)
def test_transformers_reads_what_was_written(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = ROOT / name
    model = load(directory)
    # Whatever the version keeps until then: the first pass unpacks the weights.
    found = perplexity(model, directory, ROOT / "evaluation.txt")
    assert found == pytest.approx(PERPLEXITIES[name], rel=1e-2)

    expected = stored_weights(directory)
    assert len(expected) == 14
    for layer, weight in expected.items():
        assert torch.equal(model.get_submodule(layer).weight.float(), weight), layer

    library = forward.compute_dynamic_scales_and_zp

    def by_127(*arguments, **more):
        scale, zero_point = library(*arguments, **more)
        return scale * (127.5 / 127), zero_point

    monkeypatch.setattr(forward, "compute_dynamic_scales_and_zp", by_127)
    quantize = forward.forward_quantize

    def inputs_only(module, value, base_name, args):
        return value if base_name == "weight" else quantize(module, value, base_name, args)

    # It would round the weights to 4 bits again.
    monkeypatch.setattr(forward, "forward_quantize", inputs_only)
    tensors = load_file(directory / "model.safetensors")
    for layer, weight in expected.items():
        scales = tensors[f"{layer}.weight_scale"].float()
        if scales.shape[1] > 1:
            model.get_submodule(layer).weight.data.copy_(int8_weights(weight, scales))
    found = perplexity(model, directory, ROOT / "evaluation.txt")
    assert found == pytest.approx(PERPLEXITIES[name], rel=1e-3)
