"""Layers as vLLM makes, loads and calls them, rank by rank, without a model around them."""

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from layers import config, load, make, random_codes, tensors, tensors8, tiles

PREFIX = "model.layers.0.self_attn.qkv_proj"
NAMES = [f"model.layers.0.self_attn.{x}_proj" for x in "qkv"]


def reference(x, weight):
    """The product in float64 of what the kernel multiplies: activations rounded to int8."""
    scale = x.float().abs().amax(1, keepdim=True) / 127
    codes = (x.float() / scale).round()
    return (codes.double() * scale.double()) @ weight.double().T


@pytest.mark.parametrize("group_size", [None, 32, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_merged_layer_with_bias(group_size, dtype):
    shards = [tensors(n, 256, group_size, n) for n in (128, 32, 48)]
    layer, method = make(NAMES, 256, [128, 32, 48], 256, group_size, dtype=dtype)
    bias = torch.randn(208, generator=torch.Generator().manual_seed(5)).to(dtype)
    layer.bias = torch.nn.Parameter(bias, requires_grad=False)
    load(layer, method, zip("qkv", shards))
    x = torch.randn(3, 5, 256, generator=torch.Generator().manual_seed(6)).to(dtype)
    y = method.apply(layer, x, layer.bias)
    assert y.shape == (3, 5, 208) and y.dtype == dtype
    weight = torch.cat([s["float"] for s in shards])
    expected = reference(x.reshape(15, 256), weight) + bias.double()
    # Groups: the int8 weight is rounded once more, by at most half a step of a 127th of the row's largest.
    rounding = 0 if group_size is None else weight.abs().amax(1).double() / 254
    bound = x.reshape(15, 256).double().abs().sum(1, keepdim=True) * rounding
    exact = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    error = (y.reshape(15, 208).double() - expected).abs()
    assert (error <= bound * 1.01 + exact * (expected.abs() + 1)).all()
    # Without the bias, which other layers add later.
    assert torch.equal(method.apply(layer, x[0], None), method.apply(layer, x[:1], None)[0])


@pytest.mark.parametrize("group_size", [None, 64])
def test_ranks_of_a_column_parallel_layer(group_size):
    """Four ranks, four query and two key heads of 32: neighbours share a key head."""
    shards = [tensors(n, 128, group_size, n) for n in (128, 64, 64)]
    whole_layer, whole_method = make(NAMES, 128, [128, 64, 64], 128, group_size)
    load(whole_layer, whole_method, zip("qkv", shards))
    x = torch.randn(7, 128, generator=torch.Generator().manual_seed(1))
    q, k, v = whole_method.apply(whole_layer, x).split([128, 64, 64], 1)
    for rank in range(4):
        layer, method = make(NAMES, 128, [32, 32, 32], 128, group_size, rank, 4)
        load(layer, method, zip("qkv", shards))
        parts = [q[:, 32 * rank :][:, :32], k[:, 32 * (rank // 2) :][:, :32], v[:, 32 * (rank // 2) :][:, :32]]
        assert torch.equal(method.apply(layer, x), torch.cat(parts, 1))


@pytest.mark.parametrize("group_size", [None, 32])
def test_ranks_of_a_row_parallel_layer_multiply_the_whole_layers_weights(group_size):
    """With activations that int8 holds exactly, partial products add up to the whole one but for float32 rounding."""
    stored = tensors(64, 128, group_size, 3)
    name = "model.layers.0.mlp.down_proj"
    layer, method = make([name], 128, [64], 128, group_size, prefix=name)
    load(layer, method, [(None, stored)])
    x = torch.randint(-127, 128, (5, 128), generator=torch.Generator().manual_seed(2)).float()
    x[:, ::32] = 127
    whole = method.apply(layer, x)
    total = torch.zeros_like(whole)
    for rank in range(2):
        part, method = make([name], 64, [64], 128, group_size, rank, 2, prefix=name)
        load(part, method, [(None, stored)])
        total += method.apply(part, x[:, 64 * rank : 64 * (rank + 1)].contiguous())
    assert torch.allclose(total, whole, rtol=1e-5, atol=1e-4)


def test_a_merged_checkpoint():
    """q, k and v in one tensor, as some models have them."""
    shards = [tensors(n, 128, 64, n) for n in (128, 64, 64)]
    merged = {key: torch.cat([s[key] for s in shards]) for key in ("weight_packed", "weight_scale")}
    separate, method = make(NAMES, 128, [128, 64, 64], 128, 64)
    load(separate, method, zip("qkv", shards))
    x = torch.randn(2, 128, generator=torch.Generator().manual_seed(1))
    expected = method.apply(separate, x)
    for rank in range(2):
        layer, method = make(NAMES, 128, [64, 32, 32], 128, 64, rank, 2)
        load(layer, method, [(None, merged)])
        rows = [expected[:, start + rank * size :][:, :size] for start, size in [(0, 64), (128, 32), (192, 32)]]
        assert torch.equal(method.apply(layer, x), torch.cat(rows, 1))


def error(function, *arguments, **named) -> str:
    with pytest.raises(ValueError) as found:
        function(*arguments, **named)
    return str(found.value)


def test_shapes_that_ranks_cannot_share_are_refused():
    name = "model.layers.0.mlp.down_proj"
    says = error(make, [name], 96, [64], 192, 64, 0, 2, prefix=name)
    assert says.startswith(name) and "3 groups" in says and "tensor parallel size 2" in says
    says = error(make, NAMES, 128, [64, 24, 24], 128, None, 0, 2)
    assert says.startswith(NAMES[1]) and "24 output channels" in says and "multiples of 16" in says


def test_tensors_that_do_not_fit_are_named():
    stored = tensors(64, 128, 64, 1)
    name = "model.layers.0.mlp.down_proj"

    def say(changes, missing=()):
        layer, method = make([name], 128, [64], 128, 64, prefix=name)
        changed = {k: v for k, v in (stored | changes).items() if k not in missing}
        return error(load, layer, method, [(None, changed)])

    assert f"{name}.weight_packed has shape [64, 8]" in say({"weight_packed": stored["weight_packed"][:, :8]})
    assert f"{name}.weight_scale has shape [64, 4]" in say({"weight_scale": torch.ones(64, 4)})
    assert f"{name}.weight_packed is of type torch.int64" in say({"weight_packed": stored["weight_packed"].long()})
    assert f"{name}.weight_shape is [64, 96]" in say({"weight_shape": torch.tensor([64, 96])})
    assert f"{name}.weight_zero_point" in say({"weight_zero_point": torch.ones(64, 2)})
    assert f"{name}.weight_g_idx" in say({"weight_g_idx": torch.arange(128)})
    assert f"the checkpoint has no {name}.weight_scale" in say({}, missing=["weight_scale"])
    assert "is inf" in say({"weight_scale": torch.full((64, 2), float("inf"))})


def test_the_operator_is_one_that_torch_understands():
    stored = tensors(64, 128, None, 1)
    layer, method = make(["down_proj"], 128, [64], 128, None, prefix="down_proj")
    load(layer, method, [(None, stored)])
    x = torch.randn(4, 128)
    torch.library.opcheck(torch.ops.qqq.linear.default, (x, layer.qqq_handle, 64, None))
    assert torch.ops.qqq.linear(x[:0], layer.qqq_handle, 64, None).shape == (0, 64)


def test_what_would_run_as_something_else_is_refused():
    from qqq_vllm.config import QQQConfig

    assert QQQConfig.from_config({"quant_method": "qqq", "wbits": 4, "group_size": -1}).native.schemes == ["W4A8"]
    # As GPTQModel writes it.
    gptqmodel = {"quant_method": "qqq", "checkpoint_format": "qqq", "bits": 4, "group_size": 128, "desc_act": True}
    assert QQQConfig.from_config(gptqmodel).native.schemes == ["W4A8 g128"]
    for change, says in [({"group_size": 96}, "group_size is 96"), ({"bits": 8}, "bits is 8")]:
        assert says in error(QQQConfig.from_config, gptqmodel | change)
    asked = QQQConfig.override_quantization_method({"quant_method": "compressed-tensors"}, "qqq", hf_config=None)
    others = QQQConfig.override_quantization_method({"quant_method": "compressed-tensors"}, None)
    assert (asked, others) == ("qqq", None)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("group_size", [None, 128])
def test_qqq_tiles(group_size, ranks):
    """A rank's channels need not be whole tiles."""
    n, k, name = 192, 256, "model.layers.0.mlp.up_proj"
    codes, scale = random_codes(n, k, group_size, 4)
    if group_size is None:
        stored = tiles(codes, scale[:, 0].float(), None)
        weight = codes * scale.float()
    else:
        # One channel goes beyond int8, as other writers make them.
        group = (scale * 1500).half()
        group[5, 0] = 40
        codes[5, 0] = 7
        stored = tiles(codes, torch.full((n,), 0.01), group)
        weight = codes * 0.01 * group.float().repeat_interleave(128, 1)
    x = torch.randn(3, k, generator=torch.Generator().manual_seed(2))
    expected = reference(x, weight)
    for rank in range(ranks):
        layer, method = make([name], k, [n // ranks], k, group_size, rank, ranks, layout="qqq")
        load(layer, method, [(None, stored)])
        part = expected[:, rank * n // ranks :][:, : n // ranks]
        assert (method.apply(layer, x).double() - part).norm() < (1e-5 if group_size is None else 0.02) * part.norm()


@pytest.mark.parametrize("group_size", [None, 32])
def test_codes_of_a_byte(group_size):
    """compressed-tensors' int-quantized layout holds 4-bit codes as int8."""
    name = "model.layers.0.mlp.up_proj"
    codes, scale = random_codes(64, 128, group_size, 8)
    packed, method = make([name], 128, [64], 128, group_size)
    load(packed, method, [(None, tensors(64, 128, group_size, 8))])
    plain, method = make([name], 128, [64], 128, group_size)
    load(plain, method, [(None, {"weight": codes.to(torch.int8), "weight_scale": scale})])
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(2))
    assert torch.equal(method.apply(plain, x), method.apply(packed, x))
    codes[17, 3] = 9
    layer, method = make([name], 128, [64], 128, group_size)
    says = error(load, layer, method, [(None, {"weight": codes.to(torch.int8), "weight_scale": scale})])
    assert says == f"{name}: code 9 at index {17 * 128 + 3} is not a signed 4-bit number"
    layer, method = make([name], 128, [64], 128, group_size)
    assert f"{name}.weight is of type torch.float16" in error(
        load, layer, method, [(None, {"weight": codes.half(), "weight_scale": scale})]
    )


@pytest.mark.parametrize("layout", ["bytes", "packed"])
def test_eight_bits(layout):
    """W8A8, merged and split among ranks; every layer has proved itself when it is loaded."""
    shards = [tensors8(n, 256, n, layout) for n in (128, 64, 64)]
    layer, method = make(NAMES, 256, [128, 64, 64], 256, None, bits=8)
    load(layer, method, list(zip("qkv", shards)))
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(4))
    expected = reference(x, torch.cat([s["float"] for s in shards]))
    y = method.apply(layer, x)
    assert (y.double() - expected).norm() < 1e-5 * expected.norm()
    for rank in range(2):
        part, method = make(NAMES, 256, [64, 32, 32], 256, None, rank, 2, bits=8)
        load(part, method, list(zip("qkv", shards)))
        rows = torch.cat(
            [torch.arange(n // 2) + start + rank * n // 2 for start, n in ((0, 128), (128, 64), (192, 64))]
        )
        assert torch.equal(method.apply(part, x), y[:, rows])


def make_head(vocab, padded, hidden, rank, ranks, monkeypatch):
    from qqq_vllm import head

    monkeypatch.setattr(head, "get_tensor_model_parallel_rank", lambda: rank)
    layer = torch.nn.Module()
    layer.tp_size, layer.num_embeddings, layer.org_vocab_size = ranks, vocab, vocab
    layer.num_embeddings_padded = padded
    method = head.QQQHeadMethod(config(None, bits=8), "lm_head", ["lm_head"])
    # As ParallelLMHead has it.
    method.create_weights(layer, hidden, [padded // ranks], hidden, padded, torch.float32, weight_loader=None)
    return layer, method


@pytest.mark.parametrize("layout", ["bytes", "packed"])
@pytest.mark.parametrize("vocab, padded", [(320, 320), (272, 320)])
def test_an_output_head(vocab, padded, layout, monkeypatch):
    """vLLM pads the vocabulary, and ranks have parts of what is padded."""
    stored = tensors8(vocab, 128, 7, layout)
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(4))
    expected = reference(x, stored["float"])
    for ranks in (1, 2):
        parts = []
        for rank in range(ranks):
            layer, method = make_head(vocab, padded, 128, rank, ranks, monkeypatch)
            load(layer, method, [(None, stored)])
            parts.append(method.apply(layer, x, bias=None))
            assert parts[-1].shape == (3, padded // ranks)
        logits = torch.cat(parts, 1)
        # As vLLM's logits processor cuts them.
        assert (logits[:, :vocab].double() - expected).norm() < 1e-5 * expected.norm()
        assert not logits[:, vocab:].any()


def test_output_heads_that_do_not_fit_are_refused(monkeypatch):
    layer, method = make_head(272, 320, 128, 0, 1, monkeypatch)
    says = error(load, layer, method, [(None, tensors8(256, 128, 7))])
    assert "has 256 rows, and the vocabulary 272 tokens" in says

    from qqq_vllm.config import QQQConfig
    from qqq_vllm.head import QQQHeadMethod
    from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
        CompressedTensorsLinearMethod,
    )
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    class Head(ParallelLMHead):
        def __init__(self):
            torch.nn.Module.__init__(self)

    linear = (["Linear"], "pack-quantized", 4, 64, 8)
    monkeypatch.setattr("qqq_vllm.config._tied_head", lambda: False)
    for groups, ignore, method in [
        (((["lm_head"], "int-quantized", 8, None, 8), linear), (), QQQHeadMethod),
        (((["lm_head"], "pack-quantized", 4, 128, 16), linear), (), CompressedTensorsLinearMethod),
        ((linear,), ("lm_head",), type(None)),
    ]:
        head_config = QQQConfig.from_config(several(*groups, ignore=ignore))
        assert type(head_config.get_quant_method(Head(), "lm_head")) is method


def several(*groups, ignore=("lm_head",)):
    """A configuration with these groups: targets, format, bits of weights, group size, bits of activations."""

    def group(targets, form, bits, size, activations):
        strategy = {"strategy": "channel"} if size is None else {"strategy": "group", "group_size": size}
        weights = {"num_bits": bits, "type": "int", "symmetric": True, "dynamic": False, **strategy}
        inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
        inputs = inputs if activations == 8 else None
        return {"targets": targets, "format": form, "weights": weights, "input_activations": inputs}

    forms = {form for _, form, *_ in groups}
    return {
        "quant_method": "compressed-tensors",
        "format": forms.pop() if len(forms) == 1 else "mixed-precision",
        "ignore": list(ignore),
        "config_groups": {f"group_{i}": group(*g) for i, g in enumerate(groups)},
    }


def test_configurations_of_one_and_of_several_schemes():
    from qqq_vllm import _native

    def config(*groups):
        return _native.Config(json.dumps(several(*groups)))

    plain = config((["Linear"], "int-quantized", 4, 64, 8))
    assert (plain.format, plain.schemes, plain.ignores("lm_head")) == ("compressed-tensors", ["W4A8 g64"], True)
    both = config((["re:.*mlp.*"], "int-quantized", 4, None, 8), (["Linear"], "pack-quantized", 4, None, 8))
    assert both.schemes == ["W4A8"] and both.scheme("model.layers.0.mlp.up_proj") == (4, 8, None)
    mixed = config(
        (["re:.*down_proj"], "int-quantized", 8, None, 8),
        (["re:.*o_proj"], "pack-quantized", 4, 128, 16),
        (["Linear"], "pack-quantized", 4, 64, 8),
    )
    scheme = mixed.scheme
    assert scheme("model.layers.0.mlp.down_proj") == (8, 8, None)
    assert scheme("model.layers.0.self_attn.o_proj") == (4, 16, 128)
    assert scheme("model.layers.0.mlp.up_proj") == (4, 8, 64)
    assert scheme("lm_head") is None


def test_layers_of_several_schemes():
    """Integers run here, weights alone in vLLM's own way; what vLLM merges must be quantized alike."""
    from qqq_vllm.config import QQQConfig
    from qqq_vllm.linear import QQQLinearMethod
    from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
    from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
        CompressedTensorsLinearMethod,
    )

    class Linear(LinearBase):
        def __init__(self):
            torch.nn.Module.__init__(self)

    given = several(
        (["re:.*down_proj"], "int-quantized", 8, None, 8),
        (["re:.*o_proj"], "pack-quantized", 4, 128, 16),
        (["re:.*(v|q)_proj", "re:.*mlp.*"], "pack-quantized", 4, 64, 8),
        (["re:.*k_proj"], "pack-quantized", 4, 128, 8),
        ignore=["lm_head", "model.layers.1.mlp.down_proj"],
    )
    config = QQQConfig.from_config(given)
    config.packed_modules_mapping = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }

    def method(name):
        return config.get_quant_method(Linear(), f"model.layers.{name}")

    down, merged = method("0.mlp.down_proj"), method("0.mlp.gate_up_proj")
    assert isinstance(down, QQQLinearMethod) and (down.bits, down.group_size) == (8, None)
    assert isinstance(merged, QQQLinearMethod) and (merged.bits, merged.group_size) == (4, 64)
    assert isinstance(method("1.mlp.down_proj"), UnquantizedLinearMethod)
    assert isinstance(method("0.self_attn.o_proj"), CompressedTensorsLinearMethod)
    says = error(method, "0.self_attn.qkv_proj")
    assert "q_proj: W4A8 g64" in says and "k_proj: W4A8 g128" in says and "one way" in says


def test_errors_count_channels_of_the_whole_layer():
    stored = tensors(256, 128, 64, 1)
    stored["weight_scale"][200, 1] = float("nan")
    for rank in range(2):
        layer, method = make(["down_proj"], 64, [256], 128, 64, rank, 2)
        assert "output channel 200, group 1 is NaN" in error(load, layer, method, [(None, stored)])
    stored = tensors(256, 128, None, 1)
    stored["weight_scale"][77] = float("inf")
    layer, method = make(["up_proj"], 128, [128], 128, None, 0, 2)
    assert error(load, layer, method, [(None, stored)]) == "up_proj: the scale of output channel 77 is inf"


@pytest.mark.parametrize("group_size", [None, 64])
def test_random_weights(group_size, monkeypatch):
    from qqq_vllm import linear

    load_config = type("LoadConfig", (), {"load_format": "dummy"})
    config = type("VllmConfig", (), {"load_config": load_config})
    monkeypatch.setattr(linear, "get_current_vllm_config", lambda: config)
    layer, method = make(NAMES, 256, [128, 64, 64], 256, group_size)
    method.process_weights_after_loading(layer)
    y = method.apply(layer, torch.randn(64, 256, generator=torch.Generator().manual_seed(1)))
    # As large as the inputs.
    assert y.shape == (64, 256) and 0.8 < float(y.std()) < 1.25
    assert not list(layer.parameters())


def test_placeholders_have_the_types_of_the_tensors():
    """Where these differ some versions of vLLM warn, once for each tensor."""
    for layout, stored in [
        ("qqq", tiles(*(lambda c, s: (c, torch.ones(64), s))(*random_codes(64, 256, 128, 1)))),
        ("compressed-tensors", tensors(64, 256, 128, 1)),
    ]:
        layer, _ = make(["up_proj"], 256, [64], 256, 128, layout=layout)
        for key, tensor in stored.items():
            if key == "weight_scale":
                # Any float is widened to it, which is nothing to warn of.
                assert layer.weight_scale.dtype == torch.float32
            elif key != "float":
                assert getattr(layer, key).dtype == tensor.dtype, key


def test_vllm_loads_without_a_warning():
    from vllm.model_executor.models import utils

    layer, method = make(["up_proj"], 256, [64], 256, 128)
    model = torch.nn.Module()
    model.up_proj = layer
    said = []
    stored = {f"up_proj.{k}": v for k, v in tensors(64, 256, 128, 1).items() if k != "float"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils.logger, "warning", lambda *arguments: said.append(arguments))
        assert utils.AutoWeightsLoader(model).load_weights(stored.items()) == set(stored)
    method.process_weights_after_loading(layer)
    assert said == []
