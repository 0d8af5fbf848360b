"""Where compressed-tensors computes otherwise than qqq, though both read the same weights.

The library divides the largest activation of a token by 127.5 and multiplies groups' weights as floats; qqq divides by 127 and
rounds them to int8. Where activations are not quantized, qqq rounds what the codes stand for to the model's 16-bit type. On a thousand tokens of a random model that is worth some tenths of a percent of perplexity, so tests
compare twice: with the library as it is, and with qqq's roundings in the library's model, where both must agree closely."""

from pathlib import Path

import pytest
import torch
from compressed_tensors.quantization.lifecycle import forward
from safetensors.torch import load_file


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


def compute_as_qqq(model: torch.nn.Module, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives a model qqq's roundings. Its weights must have been unpacked, as they are by the first forward pass."""
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
    for name, scales in tensors.items():
        if not name.endswith(".weight_scale"):
            continue
        module = model.get_submodule(name.removesuffix(".weight_scale"))
        weight = module.weight.data
        if module.quantization_scheme.input_activations is None:
            types = [tensors["model.embed_tokens.weight"].dtype, scales.dtype]
            half = next((t for t in types if t in (torch.float16, torch.bfloat16)), torch.float32)
            weight.copy_(weight.to(half))
        elif scales.shape[1] > 1:
            weight.copy_(int8_weights(weight.float(), scales.float()))
