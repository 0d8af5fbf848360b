"""What compressed-tensors writes, read by qqq: its perplexity is that of the library's own model, as the library computes it
and with qqq's roundings (arithmetic.py), or an error names what is not supported."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from arithmetic import compute_as_qqq
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    apply_quantization_config,
)
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file
from tiny import load, perplexity, qqq, qqq_perplexity

ROOT = Path(os.environ["QQQ_INTEROP"])
TEXT = ROOT / "evaluation.txt"
ACTIVATIONS = {"num_bits": 8, "strategy": "token", "dynamic": True}


def weights(group_size: int | None, **changes: object) -> dict:
    kind = {"strategy": "channel"} if group_size is None else {"strategy": "group", "group_size": group_size}
    return {"num_bits": 4, "symmetric": True, **kind, **changes}


def group(targets: list[str], arguments: dict, activations: dict | None = ACTIVATIONS, form: str | None = None) -> dict:
    inputs = None if activations is None else QuantizationArgs(**activations)
    return {
        "targets": targets,
        "weights": QuantizationArgs(**arguments),
        "input_activations": inputs,
        "format": form,
    }


@torch.no_grad()
def write(out: Path, family: str, groups: list[dict], ignore: list[str], form: str | None = None) -> None:
    """Rounds the weights to the nearest and saves them as llm-compressor does."""
    source = ROOT / family
    model = load(source)
    schemes = {f"group_{i}": QuantizationScheme(**g) for i, g in enumerate(groups)}
    config = QuantizationConfig(config_groups=schemes, ignore=ignore, quantization_status="initialized")
    apply_quantization_config(model, config)
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is None:
            continue
        arguments, weight = scheme.weights, module.weight
        size = weight.shape[1] if arguments.strategy == "channel" else arguments.group_size
        parts = weight.reshape(weight.shape[0], -1, size)
        scale, zero_point = calculate_qparams(parts.amin(-1), parts.amax(-1), arguments)
        module.weight_scale.copy_(scale.reshape(module.weight_scale.shape))
        if hasattr(module, "weight_zero_point"):
            module.weight_zero_point.copy_(zero_point.reshape(module.weight_zero_point.shape))
        module.quantization_status = QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(model, quantization_format=form)
    compressor.compress_model(model)
    out.mkdir()
    # A tied head is stored once.
    tied = model.config.tie_word_embeddings
    state = {k: v.contiguous() for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")}
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, out)
    compressor.update_config(str(out))


HEAD = ["lm_head"]
CASES = {
    "int-channel": ("llama", [group(["Linear"], weights(None))], HEAD, "int-quantized"),
    "int-g32": ("qwen2", [group(["Linear"], weights(32))], HEAD, "int-quantized"),
    "int-g128": ("qwen3", [group(["Linear"], weights(128))], HEAD, "int-quantized"),
    "default-form": ("llama", [group(["Linear"], weights(128))], HEAD, None),
    "packed-channel": ("qwen3", [group(["Linear"], weights(None))], HEAD, "pack-quantized"),
    "packed-g32": ("llama", [group(["Linear"], weights(32))], HEAD, "pack-quantized"),
    "packed-g128": ("qwen2", [group(["Linear"], weights(128))], HEAD, "pack-quantized"),
    "act-order": ("llama", [group(["Linear"], weights(64, actorder="weight"))], HEAD, None),
    "ignored-layers": (
        "llama",
        [group(["Linear"], weights(32))],
        ["lm_head", r"re:.*layers\.(1|7)\.mlp", "re:(?!.*self_attn).*down_proj"],
        None,
    ),
    "targets": ("llama", [group(["re:.*self_attn.*"], weights(32))], [], None),
    "mixed-groups": (
        "llama",
        [
            group(["re:.*mlp.*", "model.layers.0.self_attn.o_proj"], weights(None), form="pack-quantized"),
            group(["re:.*layers.1.self_attn.*"], weights(64), form="int-quantized"),
            group(["Linear"], weights(32), form="int-quantized"),
        ],
        HEAD,
        None,
    ),
    "w8a8": ("llama", [group(["Linear"], weights(None, num_bits=8))], HEAD, None),
    # An output head that is quantized, as one layer of many and in a group of its own.
    "w8a8-and-head": ("llama", [group(["Linear"], weights(None, num_bits=8))], [], None),
    "head-alone": (
        "llama",
        [
            group(["lm_head"], weights(None, num_bits=8), form="int-quantized"),
            group(["Linear"], weights(64), form="pack-quantized"),
        ],
        [],
        None,
    ),
    "w8a8-packed": ("qwen2", [group(["Linear"], weights(None, num_bits=8))], HEAD, "pack-quantized"),
    "w4a16": ("qwen3", [group(["Linear"], weights(32), None)], HEAD, "pack-quantized"),
    "w8a16": ("llama", [group(["Linear"], weights(None, num_bits=8), None)], HEAD, "pack-quantized"),
    "mixed-schemes": (
        "llama",
        [
            group(["re:.*down_proj"], weights(None, num_bits=8), form="int-quantized"),
            group(["re:.*o_proj"], weights(32), None, form="pack-quantized"),
            group(["Linear"], weights(64), form="pack-quantized"),
        ],
        HEAD,
        None,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_qqq_reads_what_the_library_wrote(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / name
    write(out, *CASES[name])
    found = qqq_perplexity(out, TEXT)
    model = load(out)
    assert found == pytest.approx(perplexity(model, out, TEXT), rel=1e-2)
    compute_as_qqq(model, out, monkeypatch)
    assert found == pytest.approx(perplexity(model, out, TEXT), rel=1e-3)


REFUSED = {
    "asymmetric": (group(["Linear"], weights(32, symmetric=False)), "weights.symmetric is false"),
    "eight-bits-in-groups": (
        group(["Linear"], weights(32, num_bits=8)),
        "weights.num_bits is 8: 8-bit weights have one",
    ),
    "small-groups": (group(["Linear"], weights(16)), "weights.group_size is 16"),
    "asymmetric-weight-only": (group(["Linear"], weights(32, symmetric=False), None), "weights.symmetric is false"),
    "static": (
        group(["Linear"], weights(32), {"num_bits": 8, "strategy": "tensor", "dynamic": False}),
        "input_activations.dynamic is false",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_qqq_names_what_it_does_not_read(name: str, tmp_path: Path) -> None:
    scheme, words = REFUSED[name]
    out = tmp_path / name
    write(out, "llama", [scheme], HEAD)
    result = qqq("inspect", out)
    assert result["exit_code"] == 2
    assert words in json.dumps(result["error"])
