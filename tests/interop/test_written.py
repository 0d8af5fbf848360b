"""What `qqq quantize` and `qqq convert` write, read by transformers and compressed-tensors: every weight to the bit, and the perplexity, as the
library computes it and with qqq's roundings (arithmetic.py)."""

import json
import os
from pathlib import Path

import pytest
import torch
import transformers
from arithmetic import compute_as_qqq
from safetensors.torch import load_file
from tiny import load, perplexity
from transformers import CONFIG_MAPPING

ROOT = Path(os.environ["QQQ_INTEROP"])
PERPLEXITIES = json.loads((ROOT / "perplexities.json").read_text())


def stored_weights(directory: Path) -> dict[str, torch.Tensor]:
    """The weights as the file format defines them: code times scale."""
    tensors = load_file(directory / "model.safetensors")
    weights = {}
    for name, scales in tensors.items():
        if not name.endswith(".weight_scale"):
            continue
        layer = name.removesuffix(".weight_scale")
        if f"{layer}.weight" in tensors:
            codes = tensors[f"{layer}.weight"].float()
        else:
            words = tensors[f"{layer}.weight_packed"]
            n, k = tensors[f"{layer}.weight_shape"].tolist()
            bits = 32 * words.shape[1] // k
            unsigned = torch.stack([(words >> shift) & (1 << bits) - 1 for shift in range(0, 32, bits)], dim=-1)
            codes = unsigned.reshape(n, -1)[:, :k].float() - (1 << bits - 1)
        weights[layer] = codes * scales.float().repeat_interleave(codes.shape[1] // scales.shape[1], dim=1)
    return weights


@pytest.mark.parametrize("name", PERPLEXITIES)
def test_transformers_reads_what_was_written(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = ROOT / name
    model_type = json.loads((directory / "config.json").read_text())["model_type"]
    if model_type not in CONFIG_MAPPING and transformers.__version__.startswith("4."):
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")
    form = json.loads((directory / "config.json").read_text())["quantization_config"]["format"]
    if form == "mixed-precision" and transformers.__version__.startswith("4."):
        pytest.skip(f"compressed-tensors before 0.15 and transformers {transformers.__version__} know no {form}")
    model = load(directory)
    # Whatever the version keeps until then: the first pass unpacks the weights.
    found = perplexity(model, directory, ROOT / "evaluation.txt")
    assert found == pytest.approx(PERPLEXITIES[name], rel=1e-2)

    expected = stored_weights(directory)
    # Some families have fewer, which are fused.
    linear = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    # A float head is in no list of layers; one of 8 bits is.
    linear = [n for n in linear if n != "lm_head" or "lm_head" in expected]
    float_layers = json.loads((directory / "config.json").read_text())["quantization_config"]["ignore"]
    assert sorted(expected) == sorted(set(linear) - set(float_layers))
    for layer, weight in expected.items():
        assert torch.equal(model.get_submodule(layer).weight.float(), weight), layer

    if "-head" in name:
        # The embedding stays as it is, whatever the head was tied to.
        assert not model.config.tie_word_embeddings
        assert model.lm_head.weight is not model.get_input_embeddings().weight
        assert model.lm_head.quantization_scheme.input_activations.num_bits == 8
    compute_as_qqq(model, directory, monkeypatch)
    found = perplexity(model, directory, ROOT / "evaluation.txt")
    assert found == pytest.approx(PERPLEXITIES[name], rel=1e-3)


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "w4a16").iterdir()))
def test_transformers_reads_weights_alone(name: str) -> None:
    model = load(ROOT / "w4a16" / name)
    # The first pass unpacks the weights, if loading has not.
    perplexity(model, ROOT / "w4a16" / name, ROOT / "evaluation.txt")
    # Those of the W4A8 checkpoint that it was converted from.
    expected = stored_weights(ROOT / name)
    assert expected
    for layer, weight in expected.items():
        module = model.get_submodule(layer)
        assert torch.equal(module.weight.float(), weight), layer
        assert module.quantization_scheme.input_activations is None
