#!/usr/bin/env python3
"""Makes crates/qqq-model/tests/data/tokenizer_config.json: small tokenizers of the families, and the ids that
transformers gives with BOS and EOS in the post-processor of tokenizer.json, in tokenizer_config.json, in both or in
neither, and with tokens that only the files beside tokenizer.json name.

pip install transformers==5.24.0 tokenizers"""

import itertools
import json
import os
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

OUT = Path(__file__).parent.parent / "crates/qqq-model/tests/data/tokenizer_config.json"
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = ["hello", " hello world", "a<|im_end|>b !!", ""]


def byte_level(split):
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w"), ("!", "!")]
    for a, b in merges:
        vocab[a + b] = len(vocab)
    # As text: only other files may name it.
    vocab["<|im_end|>"] = len(vocab)
    t = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    if split is None:
        t.pre_tokenizer = bytes_only
    else:
        pieces = pre_tokenizers.Split(Regex(split), behavior="isolated")
        t.pre_tokenizer = pre_tokenizers.Sequence([pieces, bytes_only])
        t.normalizer = normalizers.NFC()
    t.decoder = decoders.ByteLevel()
    return t


def sentence_piece(gemma):
    tokens = ["<unk>", *(f"<0x{b:02X}>" for b in range(256)), *"▁helowrd!", "<|im_end|>"]
    vocab = {c: i for i, c in enumerate(tokens)}
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("▁", "hello"), ("!", "!")]
    for a, b in merges:
        vocab[a + b] = len(vocab)
    t = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    end = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if gemma:
        t.normalizer = normalizers.Replace(" ", "▁")
        t.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
        t.decoder = decoders.Sequence(end)
    else:
        t.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
        t.decoder = decoders.Sequence([*end, decoders.Strip(" ", 1, 0)])
    return t


FAMILIES = {  # tokenizer, class, model_type
    "gpt2": (byte_level(None), "GPT2Tokenizer", "llama"),
    "generic": (byte_level(None), "PreTrainedTokenizerFast", "llama"),
    "qwen2": (byte_level(QWEN2), "Qwen2Tokenizer", "qwen2"),
    "llama": (sentence_piece(False), "LlamaTokenizerFast", "llama"),
    "mistral": (sentence_piece(False), "LlamaTokenizer", "mistral"),
    "gemma": (sentence_piece(True), "GemmaTokenizerFast", "llama"),
}
# More keys of tokenizer_config.json, and other files.
NAMED = [
    ({"eos_token": "<|im_end|>"}, {}),
    ({"eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "special": True}}, {}),
    ({"additional_special_tokens": ["<|im_end|>"]}, {}),
    ({"image_token": "<|im_end|>"}, {}),
    ({"pad_token": "!"}, {}),
    ({}, {"special_tokens_map.json": {"pad_token": "<|im_end|>"}}),
    ({}, {"added_tokens.json": {"<|im_end|>": None}}),
]


def ids(folder, config, model_type, files):
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "architectures": ["X"]}))
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return [tokenizer(text)["input_ids"] for text in TEXTS]


def main():
    transformers.utils.logging.set_verbosity_error()
    tokenizers, cases = {}, []
    for family, (t, name, model_type) in FAMILIES.items():
        t.add_special_tokens([AddedToken(x, special=True, normalized=False) for x in ["<s>", "</s>"]])
        post = {
            "none": None,
            "bos": ("<s> $A", [("<s>", t.token_to_id("<s>"))]),
            "eos": ("$A </s>", [("</s>", t.token_to_id("</s>"))]),
            "both": ("<s> $A </s>", [(x, t.token_to_id(x)) for x in ["<s>", "</s>"]]),
        }
        flags = itertools.product(post, [None, True, False], [None, True])
        rows = [(p, {"add_bos_token": b, "add_eos_token": e}, {}) for p, b, e in flags]
        rows += [("bos", config, files) for config, files in NAMED]
        for kind, more, files in rows:
            tokenizers[family] = {**json.loads(t.to_str()), "post_processor": None}
            processor = None
            if kind != "none":
                single, special = post[kind]
                t.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
                processor = json.loads(t.to_str())["post_processor"]
            more = {k: v for k, v in more.items() if v is not None}
            files = {n: {k: t.token_to_id(k) if v is None else v for k, v in c.items()} for n, c in files.items()}
            config = {"tokenizer_class": name, "bos_token": "<s>", "eos_token": "</s>", **more}
            with tempfile.TemporaryDirectory() as folder:
                whole = {**tokenizers[family], "post_processor": processor}
                Path(folder, "tokenizer.json").write_text(json.dumps(whole))
                expected = ids(Path(folder), config, model_type, files)
            # Pairs of texts do not occur; a shorter form of the rest.
            if processor is not None:
                processor["pair"] = []
            case = {"tokenizer": family, "post_processor": processor, "config": config, "files": files}
            cases.append({**case, "ids": expected})
    lines = ",\n".join(json.dumps(c, ensure_ascii=False) for c in cases)
    each = ",\n".join(f"{json.dumps(n)}: {json.dumps(t, ensure_ascii=False)}" for n, t in tokenizers.items())
    OUT.write_text(f'{{"texts": {json.dumps(TEXTS)},\n"tokenizers": {{\n{each}\n}},\n"cases": [\n{lines}\n]}}\n')


main()
