#!/usr/bin/env python3
"""Breaks the fuzzer's valid seeds in every way listed here, one at a time, and makes those of archives and chat templates.

    scripts/make_fuzz_seeds.py

Writes fuzz/seeds/TARGET/bad_SEED_WHAT, which a reader must refuse, and SEED_WHAT for what it may overlook."""

import io
import json
import shutil
import struct
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SEEDS = ROOT / "fuzz" / "seeds"


def write(target: str, name: str, data: bytes) -> None:
    (SEEDS / target).mkdir(exist_ok=True)
    (SEEDS / target / name).write_bytes(data)


def valid(target: str) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((SEEDS / target).iterdir()) if not p.name.startswith("bad_")}


def cut(target: str, name: str, data: bytes, *lengths: int) -> None:
    for length in lengths:
        write(target, f"bad_{name}_cut_at_{length}", data[:length])


# --- config.json -----------------------------------------------------------------------------------------------------


def config() -> None:
    seeds = {name: json.loads(data) for name, data in valid("config").items()}
    changes = {
        "llama": {
            "hidden_size": [0, -64, 63, 1.5, "64", 1 << 62, None],
            "intermediate_size": [0, 1 << 62],
            "num_hidden_layers": [0, 1 << 40],
            "num_attention_heads": [0, 3, 1 << 33],
            "num_key_value_heads": [0, 3, 8],
            "vocab_size": [0, 1 << 62],
            "rms_norm_eps": ["small"],
            "rope_theta": [0, -1],
            "hidden_act": ["relu"],
            "architectures": [["BloomForCausalLM"], [], "Llama"],
            "eos_token_id": ["</s>"],
            "rope_scaling": [{"rope_type": "unheard"}, {"rope_type": "llama3"}, "llama3"],
        },
        "mistral": {
            "head_dim": [0, 15],
            "sliding_window": [0, "wide"],
            "quantization_config": [
                {},
                {"quant_method": "unheard"},
                {"quant_method": "qqq", "wbits": 3, "group_size": 128},
                {"quant_method": "qqq", "wbits": 4, "group_size": 48},
                [],
            ],
        },
    }
    for name, keys in changes.items():
        for key, values in keys.items():
            for i, value in enumerate(values):
                write("config", f"bad_{name}_{key}_{i}", json.dumps(seeds[name] | {key: value}).encode())
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        rest = {k: v for k, v in seeds["llama"].items() if k != key}
        write("config", f"bad_llama_without_{key}", json.dumps(rest).encode())
    weights = seeds["qwen3"]["quantization_config"]["config_groups"]["group_0"]["weights"]
    for key, value in [
        ("num_bits", 8),
        ("type", "float"),
        ("symmetric", False),
        ("group_size", 48),
        ("strategy", "row"),
    ]:
        kept, weights[key] = weights[key], value
        write("config", f"bad_qwen3_weights_{key}", json.dumps(seeds["qwen3"]).encode())
        weights[key] = kept
    text = json.dumps(seeds["llama"]).encode()
    cut("config", "llama", text, 0, 1, len(text) // 2, len(text) - 1)
    write("config", "bad_llama_not_utf8", text.replace(b"llama3", b"llama\xff"))
    write("config", "bad_list", b"[" + text + b"]")
    write("config", "bad_deep", b'{"architectures":' + b"[" * 5000 + b"]" * 5000 + b"}")


# --- safetensors -----------------------------------------------------------------------------------------------------


def with_header(header: object, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + data


def split(file: bytes) -> tuple[dict, bytes]:
    length = struct.unpack("<Q", file[:8])[0]
    return json.loads(file[8 : 8 + length]), file[8 + length :]


def safetensors() -> None:
    seeds = valid("safetensors")
    mode, file = seeds["file"][:1], seeds["file"][1:]
    header, data = split(file)

    def bad(what: str, content: bytes) -> None:
        write("safetensors", f"bad_file_{what}", mode + content)

    text = json.dumps(header).encode()
    for what, length in [("short", len(text) - 1), ("long", len(text) + 100), ("huge", (1 << 64) - 1), ("zero", 0)]:
        bad(f"header_{what}", struct.pack("<Q", length) + text + data)
    for what, change in {
        "dtype_unknown": {"dtype": "Q4"},
        "dtype_number": {"dtype": 4},
        "shape_other": {"shape": [3]},
        "shape_overflows": {"shape": [1 << 63, 4]},
        "shape_negative": {"shape": [-2]},
        "offsets_reversed": {"data_offsets": [8, 0]},
        "offsets_beyond": {"data_offsets": [0, 1 << 40]},
        "offsets_overlap": {"data_offsets": [2, 10]},
        "offsets_one": {"data_offsets": [0]},
    }.items():
        bad(what, with_header(header | {"a": header["a"] | change}, data))
    bad("twice", with_header(text[:-1] + b',"a":' + json.dumps(header["a"]).encode() + b"}", data))
    bad("more_bytes", with_header(header, data + b"x"))
    bad("infinite", with_header(header, struct.pack("<f", float("inf")) + data[4:]))
    bad("lfs_pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    cut("safetensors", "file", seeds["file"], 0, 1, 8, 9, 100, len(seeds["file"]) - 1)

    mode, rest = seeds["shards"][:1], seeds["shards"][1:]
    shard = rest[2 + struct.unpack("<H", rest[:2])[0] :]
    for what, index in {
        "shard_missing": {"weight_map": {"a": "b.safetensors"}},
        "shard_outside": {"weight_map": {"a": "../a.safetensors"}},
        "tensor_missing": {"weight_map": {"z": "a.safetensors"}},
        "empty": {"weight_map": {}},
        "no_map": {},
    }.items():
        text = json.dumps(index).encode()
        write("safetensors", f"bad_shards_{what}", mode + struct.pack("<H", len(text)) + text + shard)
    cut("safetensors", "shards", seeds["shards"], 2, 20, len(seeds["shards"]) - 1)

    nan = {"F32": struct.pack("<f", float("nan")), "F16": b"\x00\x7e", "BF16": b"\xc0\x7f"}
    for name in ("qqq_channel", "qqq_group", "compressed_channel", "compressed_group"):
        mode, (header, data) = seeds[name][:1], split(seeds[name][1:])
        for tensor, info in header.items():
            key = tensor.removeprefix("l.")
            if key == "bias":
                continue
            begin = info["data_offsets"][0]
            others = {k: v for k, v in header.items() if k != tensor}
            # Under another name its bytes have an owner all the same. The shape need not be said twice.
            missing = "" if key == "weight_shape" else "bad_"
            write("safetensors", f"{missing}{name}_without_{key}", mode + with_header(others | {"other": info}, data))
            turned = others | {tensor: info | {"shape": [1, *info["shape"]]}}
            write("safetensors", f"bad_{name}_{key}_shape", mode + with_header(turned, data))
            if info["dtype"] in nan:
                first = nan[info["dtype"]]
                changed = data[:begin] + first + data[begin + len(first) :]
                write("safetensors", f"bad_{name}_{key}_nan", mode + with_header(header, changed))
            if key == "weight_shape":
                changed = data[:begin] + struct.pack("<q", -3) + data[begin + 8 :]
                write("safetensors", f"bad_{name}_{key}_negative", mode + with_header(header, changed))


# --- GGUF ------------------------------------------------------------------------------------------------------------


def gguf() -> None:
    data = valid("gguf")["llama"]

    def bad(what: str, at: int, form: str, *values: object) -> None:
        new = struct.pack("<" + form, *values)
        write("gguf", f"bad_llama_{what}", data[:at] + new + data[at + len(new) :])

    bad("magic", 0, "4s", b"GGML")
    for version in (0, 1, 4, 3 << 24):
        bad(f"version_{version}", 4, "I", version)
    for what, at in [("tensors", 8), ("keys", 16)]:
        for count in (1 << 16, (1 << 64) - 1):
            bad(f"{what}_{count}", at, "Q", count)
    first = b"general.architecture"
    at = 24
    assert data[at + 8 : at + 8 + len(first)] == first
    bad("key_length", at, "Q", (1 << 64) - 1)
    bad("key_not_utf8", at + 8, "B", 0xFF)
    kind = at + 8 + len(first)
    bad("value_type", kind, "I", 77)
    bad("value_other_type", kind, "I", 4)
    bad("value_length", kind + 4, "Q", 1 << 40)
    bad("architecture", kind + 12, "5s", b"bloom")
    for key in ("llama.attention.head_count", "llama.embedding_length"):
        value = data.index(key.encode()) + len(key) + 4
        for n in (0, 3, (1 << 32) - 1):
            bad(f"{key}_{n}", value, "I", n)
    tokens = data.index(b"tokenizer.ggml.tokens") + len("tokenizer.ggml.tokens")
    bad("array_type", tokens + 4, "I", 9)
    bad("array_length", tokens + 8, "Q", 1 << 40)
    name = b"token_embd.weight"
    tensor = data.index(name) + len(name)
    dimensions = struct.unpack_from("<I", data, tensor)[0]
    for n in (0, 5, (1 << 32) - 1):
        bad(f"dimensions_{n}", tensor, "I", n)
    for n in (1 << 40, (1 << 64) - 1):
        bad(f"dimension_{n}", tensor + 4, "Q", n)
    kind = tensor + 4 + 8 * dimensions
    for n in (4, 4000):
        bad(f"tensor_type_{n}", kind, "I", n)
    for n in (8, 1 << 40, (1 << 64) - 32):
        bad(f"offset_{n}", kind + 4, "Q", n)
    bad("name_twice", data.index(b"blk.0.attn_q.weight"), "12s", b"blk.0.attn_k")
    # It has a bias, which that family has not.
    write("gguf", "bad_qwen2_bias", valid("gguf")["qwen2"].replace(b"qwen2", b"qwen3"))
    cut("gguf", "llama", data, 0, 3, 4, 8, 23, 24, 40, len(data) // 2, len(data) - 40)


# --- archives of kernels ---------------------------------------------------------------------------------------------


def zipped(members: list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.compress_type = method
            archive.writestr(info, content)
    return out.getvalue()


def archive() -> None:
    kernels = [("a" * 64, "sm_80", "plain"), ("b" * 64, "sm_90a", "norm")]

    def entry(key: str, arch: str, name: str) -> dict:
        text = f'#include "{name}.cuh"\n'
        return {"key": key, "architecture": arch, "name": name, "shared_bytes": 4096, "text": text}

    def members(index: object) -> list[tuple[str, bytes]]:
        text = index if isinstance(index, bytes) else json.dumps(index).encode()
        return [("index.json", text)] + [(f"{a}/{k}.cubin", b"\x7fELF of " + n.encode() * 9) for k, a, n in kernels]

    entries = [entry(*k) for k in kernels]
    good = {"format": "qqq-kernels-1", "kernels": entries}
    whole = zipped(members(good))
    write("archive", "deflated", whole)
    write("archive", "stored", zipped(members(good), zipfile.ZIP_STORED))
    write("archive", "no_kernels", zipped([("index.json", b'{"format":"qqq-kernels-1","kernels":[]}')]))
    write("archive", "other_members", zipped([*members(good), ("README", b"hello")]))

    for what, index in {
        "format": good | {"format": "qqq-kernels-9"},
        "no_format": {"kernels": entries},
        "architecture": good | {"kernels": [entry("a" * 64, "sm_1", "plain")]},
        "code_missing": good | {"kernels": [entry("c" * 64, "sm_80", "plain")]},
        "code_elsewhere": good | {"kernels": [entry("../" + "a" * 64, "sm_80", "plain")]},
        "twice": good | {"kernels": entries + entries},
        "bytes_negative": good | {"kernels": [entries[0] | {"shared_bytes": -1}]},
        "list": [good],
        "cut": json.dumps(good).encode()[:-1],
        "not_utf8": json.dumps(good).encode().replace(b"plain", b"plai\xff"),
    }.items():
        write("archive", f"bad_index_{what}", zipped(members(index)))
    write("archive", "bad_no_index", zipped(members(good)[1:]))
    write("archive", "bad_text", b"kernels")
    cut("archive", "deflated", whole, 0, 30, len(whole) // 2, len(whole) - 22, len(whole) - 1)

    # Fields of the directory's first entry, of the end record, and of the first member's own header.
    directory, end = whole.index(b"PK\1\2"), whole.index(b"PK\5\6")
    for what, at, form, value in [
        ("directory_magic", directory, "4s", b"PK\1\3"),
        ("directory_method", directory + 10, "H", 99),
        ("directory_encrypted", directory + 8, "H", 1),
        ("directory_crc", directory + 16, "I", 1),
        ("directory_compressed", directory + 20, "I", 5),
        ("directory_name_length", directory + 28, "H", 60000),
        ("directory_offset", directory + 42, "I", 1 << 30),
        ("end_magic", end, "4s", b"PK\5\7"),
        ("end_entries", end + 8, "HH", (60000, 60000)),
        ("end_directory_offset", end + 16, "I", 1 << 30),
        ("local_magic", 0, "4s", b"PK\3\5"),
    ]:
        values = value if isinstance(value, tuple) else (value,)
        new = struct.pack("<" + form, *values)
        write("archive", f"bad_{what}", whole[:at] + new + whole[at + len(new) :])
    code = whole.index(b"PK\3\4", 4) + 30 + len(f"sm_80/{'a' * 64}.cubin") + 4
    write("archive", "bad_code", whole[:code] + bytes([whole[code] ^ 0x55]) + whole[code + 1 :])


# --- chat templates --------------------------------------------------------------------------------------------------


def chat_template() -> None:
    for path in sorted((ROOT / "crates/qqq-model/tests/data/chat").glob("*.jinja")):
        (SEEDS / "chat_template").mkdir(exist_ok=True)
        shutil.copyfile(path, SEEDS / "chat_template" / path.stem)
    for name, text in {
        "text": "no template at all",
        "empty": "",
        "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
        "controls": "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m }}{% break %}{% endfor %}",
        "namespace": "{% set n = namespace(i=0) %}{% for m in messages %}{% set n.i = n.i + 1 %}{% endfor %}{{ n.i }}",
        "macro": "{% macro turn(m) %}{{ m.role }}:{{ m.content|trim }}{% endmacro %}{% for m in messages %}{{ turn(m) }}{% endfor %}",
        "json": "{{ messages|tojson(indent=2) }}{{ bos_token }}{{ eos_token }}",
        "methods": "{% for m in messages %}{{ m.content.strip().split(' ')[-1].upper() }}{% endfor %}",
        "date": "{{ strftime_now('%d %b %Y') }}",
        "whitespace": "{%- for m in messages -%}\r\n  {{- m.content -}}\r\n{%- endfor -%}\r\n",
        "defined": "{% if tools is defined and tools %}x{% endif %}{{ add_generation_prompt }}",
    }.items():
        write("chat_template", name, text.encode())
    for name, text in {
        "open_tag": "{% for m in messages",
        "open_block": "{% for m in messages %}{{ m.content }}",
        "open_expression": "{{ messages[0].content",
        "open_string": "{{ 'a }}",
        "unknown_tag": "{% switch x %}{% endswitch %}",
        "unknown_filter": "{{ messages|nofilter }}",
        "unknown_method": "{{ 'a'.nomethod() }}",
        "unknown_directive": "{{ strftime_now('%Q') }}",
        "raises": "{{ raise_exception('no') }}",
        "divides_by_zero": "{{ 1 // 0 }}",
        "deep": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "recursive": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "wide_range": "{% for i in range(1000000000) %}{% endfor %}",
    }.items():
        write("chat_template", f"bad_{name}", text.encode())
    write("chat_template", "bad_not_utf8", b"{{ '\xff' }}")
    write("chat_template", "bad_utf16", "{{ bos_token }}".encode("utf-16"))


for old in SEEDS.glob("*/bad_*"):
    old.unlink()
for make in (config, safetensors, gguf, archive, chat_template):
    make()
