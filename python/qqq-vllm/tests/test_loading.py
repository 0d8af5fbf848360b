"""Both ways from a checkpoint to prepacked weights give the same bytes; and a layer that multiplies something else is not loaded."""

import ctypes

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from layers import load, make, random_codes, tensors, tensors8, tiles
from qqq_vllm import _native, formats, ops, prepack, proof
from qqq_vllm.formats import CompressedTensorsFormat, Part, QQQFormat, span


class HostKernel:
    """In place of the GPU's kernel: it packs a block as the host packs a layer."""

    def __init__(self, kind: str, group_size: int | None) -> None:
        self.kind, self.group_size = kind, group_size
        self.launches = 0

    def chunks_bytes(self, n: int, k: int) -> int:
        group = {None: 0, 32: 256, 64: 128, 128: 128}[self.group_size]
        if self.kind.endswith("-half"):
            group = {32: 512, 64: 256, 128: 128}[self.group_size]
        codes = 8192 if self.kind == "int8" else 4096
        return -(-n // 64) * -(-k // 128) * (codes + group)

    def launch(self, stream, shape, codes, scales, channel_scale, chunks, padded_scale):
        n, k = shape
        group = None
        if self.group_size is not None:
            count = n * (k // self.group_size)
            if not self.kind.endswith("-half"):
                whole = torch.frombuffer((ctypes.c_uint8 * count).from_address(scales), dtype=torch.uint8).half()
                group = span(whole)
            else:
                group = (scales, count)
        bits = 8 if self.kind == "int8" else 4
        weight = _native.Weight.from_codes(shape, self.group_size, (codes, n * k), (channel_scale, n), group, bits)
        # A block may have integers alone where the layer has not.
        kind, packed, padded = weight.prepack()
        assert kind == self.kind
        ctypes.memmove(chunks, packed, len(packed))
        ctypes.memmove(padded_scale, padded, len(padded))
        self.launches += 1


def both_ways(parts):
    """The kind, chunks and scales of the host, and of the device's way; how many blocks that took."""
    kind, chunks, padded = _native.Weight.read([p.native for p in parts]).prepack()
    scales = prepack.read_scales(parts)
    kernel = HostKernel(scales[0], parts[0].layer.format.group_size)
    device = torch.device("cpu")
    got, got_padded = prepack.prepack(parts, scales, kernel, torch.Tensor.contiguous, device)
    return (kind, chunks, padded), (scales[0], bytes(got.numpy()), bytes(got_padded.numpy())), kernel.launches


def stored_layer(layout: str, n: int, k: int, group_size: int | None, seed: int, integers: bool):
    if layout == "packed":
        stored = tensors(n, k, group_size, seed, integers)
        return CompressedTensorsFormat(group_size).read(f"layer{seed}", stored, k)
    codes, scale = random_codes(n, k, group_size, seed, integers)
    if layout == "bytes":
        stored = {"weight": codes.to(torch.int8), "weight_scale": scale}
        return CompressedTensorsFormat(group_size).read(f"layer{seed}", stored, k)
    if group_size is None:
        stored = tiles(codes, scale[:, 0].float(), None)
    else:
        stored = tiles(codes, torch.full((n,), 0.01), (scale * (1024 if integers else 1500)).half())
    return QQQFormat(group_size).read(f"layer{seed}", stored, k)


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize(
    "layout, group_size",
    [
        *(("packed", g) for g in (None, 32, 64, 128)),
        *(("bytes", g) for g in (None, 64)),
        *(("tiles", g) for g in (None, 128)),
    ],
)
def test_the_same_bytes(layout, group_size, integers, monkeypatch):
    k = 512
    layers = [stored_layer(layout, n, k, group_size, n, integers) for n in (256, 64, 128)]
    whole = [Part(layer, (0, layer.shape[0]), (0, k)) for layer in layers]
    # A rank's outputs, some no whole chunks; and a rank's inputs.
    rows = [Part(layers[0], (80, 176), (0, k)), Part(layers[1], (16, 32), (0, k)), Part(layers[2], (0, 128), (0, k))]
    columns = [Part(layers[2], (0, 128), (128, 384))]
    for parts in (whole, rows, columns):
        host, device, _ = both_ways(parts)
        assert host == device
        assert host[0] == ("channel" if group_size is None else f"g{group_size}" + ("" if integers else "-half"))
    monkeypatch.setattr(prepack, "BLOCK_BYTES", 64 * k)
    for parts, blocks in ((whole, 7), (rows, 4)):
        host, device, launches = both_ways(parts)
        assert host == device and launches == blocks


@pytest.mark.parametrize("layout", ["bytes", "packed"])
def test_the_same_bytes_of_eight_bits(layout, monkeypatch):
    k = 512
    layers = [CompressedTensorsFormat(None, 8).read(f"layer{n}", tensors8(n, k, n, layout), k) for n in (256, 64)]
    whole = [Part(layer, (0, layer.shape[0]), (0, k)) for layer in layers]
    rank = [Part(layers[0], (80, 176), (128, 384)), Part(layers[1], (16, 32), (128, 384))]
    monkeypatch.setattr(prepack, "BLOCK_BYTES", 64 * k)
    for parts in (whole, rank):
        host, device, _ = both_ways(parts)
        assert host == device and host[0] == "int8"
        _, channel, _ = prepack.read_scales(parts)
        channels, weights, own = proof.sample(parts, 10**6, torch.device("cpu"))
        assert torch.equal(own, channel[channels])
        codes = torch.cat(
            [tensors8(n, k, n, "bytes")["weight"][p.rows[0] : p.rows[1], p.columns[0] : p.columns[1]] for n, p in
             zip((256, 64), parts, strict=True)]
        )  # fmt: skip
        assert torch.equal(weights, codes.double()[channels])


def test_rows_whose_scales_are_zero_or_tiny():
    """Groups without a weight, rows without one, and scales at the end of float32."""
    codes, _ = random_codes(64, 256, 64, 3)
    codes[3, :64], codes[7] = 0, 0
    scale = torch.rand(64, 4, generator=torch.Generator().manual_seed(1)) + 0.1
    scale[9] *= 1e-38
    scale[11] = 0
    stored = {"weight": codes.to(torch.int8), "weight_scale": scale}
    layer = CompressedTensorsFormat(64).read("layer", stored, 256)
    parts = [Part(layer, (0, 64), (0, 256))]
    host, device, _ = both_ways(parts)
    assert host == device
    # The proof's own derivation.
    _, channel, group = prepack.read_scales(parts)
    channels, weights, own = proof.sample(parts, 64, torch.device("cpu"))
    assert channels.tolist() == list(range(64)) and torch.equal(own, channel)
    assert torch.equal(weights, (codes * group.float().repeat_interleave(64, 1)).round().double())


NAME = "model.layers.3.mlp.down_proj"


def load_one(group_size=64, layout="compressed-tensors", **changes):
    layer, method = make([NAME], 256, [192], 256, group_size, layout=layout, **changes)
    if layout == "qqq":
        codes, scale = random_codes(192, 256, group_size, 5)
        group = None if group_size is None else (scale * 1500).half()
        stored = tiles(codes, scale[:, 0].float() if group is None else torch.full((192,), 0.01), group)
    else:
        stored = tensors(192, 256, group_size, 5)
    load(layer, method, [(None, stored)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "layout, group_size", [("compressed-tensors", None), ("compressed-tensors", 64), ("qqq", None), ("qqq", 128)]
)
def test_weights_that_are_not_the_checkpoints_are_found(layout, group_size, dtype, monkeypatch):
    """One row of 192 lies 16 further down."""
    load_one(group_size, layout, dtype=dtype)
    read = ops.cpu_linear

    def shifted(parts):
        (part,) = parts
        return read([Part(part.layer, (16, 192), part.columns), Part(part.layer, (0, 16), part.columns)])

    monkeypatch.setattr(ops, "cpu_linear", shifted)
    with pytest.raises(proof.WrongProduct) as found:
        load_one(group_size, layout, dtype=dtype)
    says = str(found.value)
    assert (
        says.startswith(f"{NAME}: the kernel ") and "for output channel 0 of token 0 of 8; in integers it is " in says
    )
    assert "so it is not loaded" in says


class Broken:
    """A kernel with a mistake in what it writes."""

    def __init__(self, linear, mistake) -> None:
        self.linear, self.mistake, self.isa = linear, mistake, linear.isa

    def forward(self, dtype, x, y, bias):
        self.linear.forward(dtype, x, y, bias)
        values = torch.frombuffer((ctypes.c_float * y[1]).from_address(y[0]), dtype=torch.float32).view(-1, 192)
        self.mistake(values)


def last_place(values):
    values[:, 191] = torch.nextafter(values[:, 191], torch.tensor(torch.inf))


def only_for_one_token(values):
    if len(values) == 1:
        values[0] *= 2


def only_the_last_token(values):
    values[-1, 100:] = 0


@pytest.mark.parametrize("mistake", [last_place, only_for_one_token, only_the_last_token])
def test_kernels_that_do_not_multiply_are_found(mistake, monkeypatch):
    monkeypatch.setattr(
        ops,
        "_native",
        type("Native", (), vars(_native) | {"CpuLinear": lambda w: Broken(_native.CpuLinear(w), mistake)}),
    )
    with pytest.raises(proof.WrongProduct, match=NAME):
        load_one()


@pytest.mark.parametrize("bit", [0, 13, 31])
def test_one_wrong_bit_of_a_word_is_found(bit, monkeypatch):
    """In the first row, of what the kernel gets."""
    read = _native.Stored.compressed_tensors

    def wrong(name, shape, bits, group_size, packed, scale):
        word = ctypes.c_uint32.from_address(packed[0] + 4 * 11)
        word.value ^= 1 << bit
        stored = read(name, shape, bits, group_size, packed, scale)
        _native.Weight.read([(stored, (0, shape[0]), (0, shape[1]))])
        return stored

    class Native:
        Stored = type("Stored", (), {"compressed_tensors": staticmethod(wrong)})

    made = ops.cpu_linear

    def linear(parts):
        made_of = made(parts)
        # What the proof reads is right again.
        words = parts[0].layer.tensors["weight_packed"]
        ctypes.c_uint32.from_address(words.data_ptr() + 4 * 11).value ^= 1 << bit
        return made_of

    monkeypatch.setattr(formats, "_native", Native)
    monkeypatch.setattr(ops, "cpu_linear", linear)
    with pytest.raises(proof.WrongProduct, match="output channel 0 "):
        load_one(None)


def test_ranks_prove_their_parts():
    stored = tensors(192, 256, 64, 5)
    for rank in range(2):
        layer, method = make([NAME], 128, [192], 256, 64, rank, 2)
        load(layer, method, [(None, stored)])
